"""minitorch: a tensor and autograd engine with hand-written kernels, and language models on it.

Names and conventions are PyTorch's. `minitorch.tensor` makes tensors, the operations are methods
of Tensor and functions here, `minitorch.nn` and `minitorch.optim` build and train models.
"""

from minitorch import autograd, cuda, debug, distributed, nn, ops, optim, random
from minitorch.backend import (
    bfloat16,
    bool,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    promote_types,
    result_type,
    uint8,
)
from minitorch.explain import Explanation, explain
from minitorch.gradcheck import gradcheck
from minitorch.kernels import (
    get_float32_matmul_precision,
    get_num_threads,
    set_float32_matmul_precision,
    set_num_threads,
)
from minitorch.modes import (
    autocast,
    detect_anomaly,
    enable_grad,
    inference_mode,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)
from minitorch.ops.creation import (
    arange,
    bernoulli,
    empty,
    empty_like,
    eye,
    full,
    full_like,
    linspace,
    multinomial,
    ones,
    ones_like,
    rand,
    rand_like,
    randint,
    randn,
    randn_like,
    randperm,
    zeros,
    zeros_like,
)
from minitorch.ops.joining import cat, stack
from minitorch.ops.layout import broadcast_to
from minitorch.ops.masking import where
from minitorch.ops.products import einsum
from minitorch.random import Generator, manual_seed
from minitorch.recomputation import checkpoint
from minitorch.tensor import Tensor, attached, from_dlpack, from_numpy, tensor
from minitorch.transforms import grad, hessian, hvp, jacobian, jvp, value_and_grad, vjp
from minitorch.vmap import vmap

__version__ = "0.1.0"


# Every operation that is a method of Tensor is a function here too, as in PyTorch.
globals().update({name: f for name, f in attached().items() if name not in globals()})
