"""How a branch is added to the stream that it reads from, and where the norm stands.

    pre         x + f(norm(x))                   GPT-2, Llama: the stream itself is never normalised
    post        norm(x + f(x))                   the first transformer; needs warm-up
    scaled      norm(α x + f(x))                 DeepNorm: α = (2 layers)^¼ for decoders
    sandwich    x + norm'(f(norm(x)))            Gemma 2: the branch's output has one, too
    normalised  α norm(x) + β f(norm(x))         MiniMax-01

Sources: pre, Xiong et al. 2020 (arXiv 2002.04745); DeepNorm, Wang et al. 2022 (2203.00555), whose
branches are also initialised (8 layers)^-¼ as large; sandwich, Ding et al. 2021 (2105.13290).
"""

from collections.abc import Callable

from minitorch.tensor import Tensor

Function = Callable[[Tensor], Tensor]
Residual = Callable[[Tensor, Function, Function], Tensor]
"""(x, norm, branch) -> the stream after the branch."""


def pre_norm(x: Tensor, norm: Function, branch: Function) -> Tensor:
    """x + branch(norm(x))."""
    return x + branch(norm(x))


def post_norm(x: Tensor, norm: Function, branch: Function) -> Tensor:
    """norm(x + branch(x))."""
    return norm(x + branch(x))


def scaled_post_norm(alpha: float) -> Residual:
    """norm(alpha x + branch(x))."""
    return lambda x, norm, branch: norm(alpha * x + branch(x))


def normalised(alpha: float, beta: float) -> Residual:
    """alpha n + beta branch(n), where n = norm(x)."""

    def times(factor: float, x: Tensor) -> Tensor:
        return x if factor == 1 else factor * x

    def add(x: Tensor, norm: Function, branch: Function) -> Tensor:
        n = norm(x)
        return times(alpha, n) + times(beta, branch(n))

    return add


def deepnorm(layers: int) -> tuple[float, float]:
    """α and β of a decoder: the stream's weight, and by what its branches' weights shrink."""
    return (2 * layers) ** 0.25, (8 * layers) ** -0.25
