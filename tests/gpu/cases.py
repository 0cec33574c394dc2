"""What is timed, the most telling first: the same work by each library that is installed.

Sizes are those at which others have published figures: squares and GPT-2's layers, attention of
16384 tokens and 2048 features in all, rows of 4096, a step of GPT-2 with 32 sequences of 1024.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minitorch import kernels
from minitorch.backend import bfloat16, float32

LARGE = 4096
"""The length of the rows, and the side of products in float32."""
ROWS = 8
"""How many, in lengths of theirs."""
VOCABULARY = (8192, 50304)
"""Rows, and classes, of losses over a vocabulary."""
LONG = (512, 131072)
"""Rows, and their length, that take a cluster of blocks."""
SIDES = (8192, 4096, 2048, 1024, 16384)
"""Of square products in bfloat16."""
TOKENS = 1 << 15
"""Rows of a transformer's products."""
LAYERS = ((768, 2304), (768, 3072), (768, 50257))
"""GPT-2's: features that come in, and that go out."""
GATED = (8192, 4096, 14336)
"""Rows of a gated product, and Llama 3 8B's features and hidden width."""
EXPERTS = (8, 2048, 4096)
"""How many, and the features on both sides."""
LENGTHS = (16384, 4096, 1024, 512, 8192, 2048)
"""Of attention's sequences, which have 16384 tokens together, and 2048 features in all heads."""
WIDTHS = (128, 64)
"""Of its heads."""
PAST = (64, 8192)
"""Sequences of which one token is decoded, and the tokens before it."""
BATCH = (32, 1024)
"""Sequences and tokens of each in a training step of GPT-2."""
RANKS, REDUCED = 4, (1 << 16, 1 << 26)
"""On one device, and how many numbers each has."""
HAS_TORCH, HAS_TRITON = (importlib.util.find_spec(name) is not None for name in ("torch", "triton"))

Call = Callable[[], Any]


class Case(NamedTuple):
    """build(library) makes the arrays, and gives what does the work once.

    bytes: what memory has to move for it; flops: its multiplications and additions, of numbers of
    dtype; products: whether these are what limits it; tokens: that are learnt from.
    """

    name: str
    libraries: Sequence[str]
    build: Callable[[str], Call]
    dtype: str
    bytes: float
    flops: float = 0
    products: bool = False
    tokens: int = 0


def cases() -> Iterator[Case]:
    """The copy, products, attention, whole steps, what is bound by memory, the rest."""
    yield copy()
    for side in SIDES:
        yield product(side, side, side, bfloat16)
    yield from attention(LENGTHS[0], WIDTHS[0], bfloat16)
    yield gpt2_step()
    yield from rows(bfloat16)
    for width, features in LAYERS:
        yield product(TOKENS, features, width, bfloat16)
        yield product(TOKENS, width, features, bfloat16)
        yield product(features, width, TOKENS, bfloat16, turned=True)
    for length in LENGTHS:
        for width in WIDTHS:
            if (length, width) != (LENGTHS[0], WIDTHS[0]):
                yield from attention(length, width, bfloat16)
    yield head()
    yield from gated_product()
    yield from experts()
    yield decoding()
    yield scaled_product()
    yield optimizer()
    for size in REDUCED:
        yield all_reduce(size)
    yield product(LARGE, LARGE, LARGE, float32)
    yield from rows(float32)
    for precision in ("bfloat16", "float32"):
        yield from steps(precision)


def normal(*shape: int) -> Any:
    """Random numbers in main memory, the same ones again and again."""
    some = np.random.default_rng(0).standard_normal(1 << 20, np.float32)
    return np.resize(some, shape)


def on_the_device(x: Any, dtype: Any) -> Any:
    """x there, its numbers in the same order in memory."""
    import cupy

    if x.flags.c_contiguous:
        return cupy.asarray(x.astype(dtype))
    return cupy.asarray(x.T.astype(dtype)).T


def torch_of(x: Any, dtype: Any) -> Any:
    """x as PyTorch's, on the device."""
    import torch

    return torch.from_numpy(x).to("cuda", getattr(torch, str(dtype)))


def with_torch(*names: str) -> tuple[str, ...]:
    """These libraries and, where it is installed, PyTorch."""
    return (*names, "torch") if HAS_TORCH else names


def copy() -> Case:
    """A large array, read and written: the rate that memory-bound kernels are held against."""
    count = 1 << 28

    def build(library: str) -> Call:
        import cupy

        source = cupy.ones(count, cupy.float32)
        return partial(cupy.copyto, cupy.empty_like(source), source)

    return Case("copy", ["cupy"], build, "float32", 2 * 4 * count)


def product(m: int, n: int, k: int, dtype: Any, turned: bool = False) -> Case:
    """(m, k) by (k, n); turned: the left one is in memory as (k, m), as in a weight's gradient."""
    half = "cupy" if dtype == float32 else "cupy float16"  # CuPy has no product of bfloat16

    def build(library: str) -> Call:
        import cupy

        left, right = normal(k, m).T if turned else normal(m, k), normal(k, n)
        if library == "torch":
            a, b = (torch_of(x, dtype) for x in (left, right))
            return lambda: a @ b
        a, b = (
            on_the_device(x, dtype if library != "cupy float16" else np.float16)
            for x in (left, right)
        )
        return partial(
            kernels.lookup("matmul", "cuda") if library == "minitorch" else cupy.matmul, a, b
        )

    layout = ", left turned" if turned else ""
    return Case(
        f"matmul {m} x {n} x {k} {dtype}{layout}",
        with_torch("minitorch", half),
        build,
        str(dtype),
        (m * k + k * n + m * n) * np.dtype(dtype).itemsize,
        2.0 * m * n * k,
        products=True,
    )


def scaled_product() -> Case:
    """Of numbers of 8 bits with a scale for each block, quantised before."""
    m = n = k = SIDES[0]

    def build(library: str) -> Call:
        from minitorch.kernels.cuda.scaled_mm import as_scaled

        a, b, left, right = as_scaled(*(on_the_device(normal(m, k), bfloat16) for _ in range(2)))
        return partial(kernels.lookup("scaled_mm", "cuda"), a, b.T, left, right, dtype=bfloat16)

    size = m * k + k * n + 2 * m * n
    return Case(
        f"scaled_mm {m} x {n} x {k}", ["minitorch"], build, "e4m3", size, 2.0 * m * n * k, True
    )


def gated_product() -> Iterator[Case]:
    """silu(x gateᵀ) (x upᵀ): by one kernel, which keeps both products or not; by two and a pass."""
    count, width, hidden = GATED

    for keep in (False, True):

        def build(library: str, keep: bool = keep) -> Call:
            given = normal(count, width), *(normal(hidden, width) / 64 for _ in range(2))
            if library == "torch":
                import torch

                a, gate, up = (torch_of(one, bfloat16) for one in given)
                return lambda: torch.nn.functional.silu(a @ gate.T) * (a @ up.T)
            a, gate, up = (on_the_device(one, bfloat16) for one in given)
            if library == "minitorch":
                return partial(kernels.lookup("linear_swiglu", "cuda"), a, gate, up, keep=keep)
            linear, swiglu = (kernels.lookup(name, "cuda") for name in ("linear", "swiglu"))
            return lambda: swiglu(linear(a, gate, None), linear(a, up, None))

        libraries = with_torch("minitorch", "minitorch in three")
        size = 2.0 * (count * width + 2 * width * hidden + (3 if keep else 1) * count * hidden)
        name = f"linear_swiglu {count} x {hidden} x {width}{', kept' if keep else ''}"
        flops = 2 * 2.0 * count * width * hidden
        yield Case(name, libraries, build, "bfloat16", size, flops, True)


def experts() -> Iterator[Case]:
    """The three products of a mixture's layer, rows dealt out evenly."""
    count, width, features = EXPERTS
    given = {
        "grouped_mm": ((TOKENS, width), (count, width, features)),
        "grouped_mm of the gradient": ((TOKENS, features), (count, features, width)),
        "grouped_outer": ((TOKENS, width), (TOKENS, features)),
    }
    for name, shapes in given.items():

        def build(library: str, name: str = name, shapes: Any = shapes) -> Call:
            import cupy

            arrays = [on_the_device(normal(*shape), bfloat16) for shape in shapes]
            ends = cupy.arange(1, count + 1) * (TOKENS // count)
            return partial(kernels.lookup(name.split()[0], "cuda"), *arrays, ends)

        size = 2 * (TOKENS * (width + features) + count * width * features)
        flops = 2.0 * TOKENS * width * features
        yield Case(f"{name} {count} experts", ["minitorch"], build, "bfloat16", size, flops, True)


def rows(dtype: Any) -> Iterator[Case]:
    """Functions of rows and of elements: arrays read or written, and operations for a number."""
    for name, (arrays, flops) in ROW_KERNELS.items():
        shape = SHAPES.get(name, lambda: (ROWS * LARGE, LARGE))()
        size = arrays * shape[0] * shape[1] * np.dtype(dtype).itemsize
        peers = [*with_torch()] if name in PEERS else []
        if peers and name in COMPILED and HAS_TRITON:
            peers.append("triton")
        build = partial(_row_call, name, shape, dtype)
        count = flops * shape[0] * shape[1]
        yield Case(f"{name} {dtype}", ["minitorch", *peers], build, "float32", size, count)


ROW_KERNELS = {
    "add": (3, 1),
    "gelu": (2, 10),
    "gelu_backward": (3, 20),
    "silu": (2, 5),
    "swiglu": (3, 6),
    "dropout": (2, 20),
    "rope": (2, 3),
    "softmax": (2, 5),
    "softmax_backward": (3, 4),
    "softmax of long rows": (2, 5),
    "layer_norm": (2, 8),
    "layer_norm_backward": (3, 12),
    "rms_norm": (2, 4),
    "rms_norm_backward": (3, 8),
    "add_layer_norm": (4, 9),
    "add_rms_norm": (4, 5),
    "cross_entropy": (1, 5),
    "cross_entropy_backward": (2, 4),
    "l2_norm": (1, 2),
    "categorical": (1, 10),
}
"""Arrays that are read or written, and operations for each number, about."""
SHAPES = {
    "softmax of long rows": lambda: LONG,
    "cross_entropy": lambda: VOCABULARY,
    "cross_entropy_backward": lambda: VOCABULARY,
    "categorical": lambda: VOCABULARY,
}
PEERS = frozenset(
    [
        *("add", "gelu", "silu", "swiglu", "dropout", "softmax", "softmax of long rows"),
        *("layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm", "cross_entropy"),
    ]
)
"""What PyTorch has a function for."""
COMPILED = PEERS - {"add", "dropout", "gelu", "silu"}
"""Which PyTorch's compiler makes a kernel of, where it can (Triton)."""


def _row_call(name: str, shape: tuple[int, int], dtype: Any, library: str) -> Call:
    return (
        _our_row(name, shape, dtype)
        if library == "minitorch"
        else _torch_row(name, shape, dtype, library)
    )


def _our_row(name: str, shape: tuple[int, int], dtype: Any) -> Call:
    import cupy

    x = on_the_device(normal(*shape), dtype)
    grad = x.copy()
    weight, bias = (cupy.ones(shape[1], float32) for _ in range(2))
    run = partial(kernels.lookup, device="cuda")
    match name.split()[0]:
        case "add" | "swiglu":
            return partial(run(name), x, grad)
        case "gelu_backward":
            return partial(run(name), grad, x)
        case "dropout":
            return partial(run(name), x, p=0.1, seed=1, offset=2)
        case "rope":
            width = min(128, shape[1])
            cos, sin = (cupy.ones((shape[0], width // 2), float32) for _ in range(2))
            by_head = x.reshape(shape[0], -1, width).transpose(1, 0, 2)
            return partial(run(name), by_head, cos, sin)
        case "softmax_backward":
            return partial(run(name), grad, run("softmax")(x))
        case "layer_norm":
            return partial(run(name), x, weight, bias)
        case "rms_norm":
            return partial(run(name), x, weight)
        case "add_layer_norm":
            return partial(run(name), x, grad, weight, bias)
        case "add_rms_norm":
            return partial(run(name), x, grad, weight)
        case "layer_norm_backward":
            return partial(run(name), grad, x, weight, *run("layer_norm")(x, weight, bias)[1:])
        case "rms_norm_backward":
            return partial(run(name), grad, x, weight, run("rms_norm")(x, weight)[1])
        case "cross_entropy":
            return partial(run(name), x, _targets(shape))
        case "cross_entropy_backward":
            target = _targets(shape)
            loss, normaliser = run("cross_entropy")(x, target)
            return partial(run(name), loss, x, target, normaliser)
        case "l2_norm":
            return partial(run(name), [x])
        case "categorical":
            options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
            return partial(run(name), x, **options, seed=1, offset=2)
        case kernel:
            return partial(run(kernel), x)


def _targets(shape: tuple[int, int]) -> Any:
    import cupy

    return cupy.arange(shape[0]) % shape[1]


def _torch_row(name: str, shape: tuple[int, int], dtype: Any, library: str) -> Call:
    import torch

    f, width = torch.nn.functional, shape[1:]
    x = torch_of(normal(*shape), dtype)
    other, weight = x.clone(), torch_of(normal(*width), dtype)
    index = torch.arange(shape[0], device="cuda") % shape[1]
    call = {
        "add": lambda: x + other,
        "gelu": lambda: f.gelu(x),
        "silu": lambda: f.silu(x),
        "swiglu": lambda: f.silu(x) * other,
        "dropout": lambda: f.dropout(x, 0.1),
        "softmax": lambda: x.softmax(-1),
        "layer_norm": lambda: f.layer_norm(x, width, weight, weight),
        "rms_norm": lambda: f.rms_norm(x, width, weight),
        "add_layer_norm": lambda: (x + other, f.layer_norm(x + other, width, weight, weight)),
        "add_rms_norm": lambda: (x + other, f.rms_norm(x + other, width, weight)),
        "cross_entropy": lambda: f.cross_entropy(x, index),
    }[name.split()[0]]
    return torch.compile(call) if library == "triton" else call


def attention(length: int, width: int, dtype: Any) -> Iterator[Case]:
    """Causal and not, forward and backward; PyTorch's by each of its fast kernels."""
    heads, batch = 2048 // width, max(1, 16384 // length)
    shape = (batch, heads, length, width)
    size = float(np.prod(shape)) * np.dtype(dtype).itemsize
    libraries = ["minitorch", *(["torch flash", "torch cudnn"] if HAS_TORCH else [])]
    for causal in (False, True):
        operations = 4.0 * np.prod(shape) * length / (2 if causal else 1)
        kind = "causal attention" if causal else "attention"
        for direction, flops, arrays in (("forward", 1.0, 4), ("backward", 2.5, 8)):
            build = partial(_attend, shape, dtype, causal, direction)
            name = f"{kind} {length} x {width} {dtype} {direction}"
            yield Case(name, libraries, build, str(dtype), arrays * size, flops * operations, True)


def _attend(shape: tuple[int, ...], dtype: Any, causal: bool, direction: str, library: str) -> Call:
    if library == "minitorch":
        import minitorch as mt
        from minitorch.nn import functional as F

        attend, place = F.scaled_dot_product_attention, partial(_ours, mt, dtype)
    else:
        attend, place = _torch_attention(library), partial(torch_of, dtype=dtype)
    q, k, v = (place(normal(*shape)) for _ in range(3))
    if direction == "forward":
        return lambda: attend(q, k, v, is_causal=causal)
    for x in (q, k, v):
        x.requires_grad_()
    out, grad = attend(q, k, v, is_causal=causal), place(normal(*shape))

    def backward() -> None:
        out.backward(grad, retain_graph=True)
        q.grad = k.grad = v.grad = None

    return backward


def _ours(mt: Any, dtype: Any, x: Any) -> Any:
    return mt.from_numpy(x).to(dtype=dtype, device="cuda")


def _torch_attention(library: str) -> Callable[..., Any]:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backend = {
        "torch flash": SDPBackend.FLASH_ATTENTION,
        "torch cudnn": SDPBackend.CUDNN_ATTENTION,
    }[library]

    def attend(*arrays: Any, **options: Any) -> Any:
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(*arrays, **options)

    return attend


def decoding() -> Case:
    """A token of each sequence to its past: 32 heads that share 8 of keys and values."""
    batch, past = PAST

    def build(library: str) -> Call:
        query, key = normal(batch, 32, 1, 128), normal(batch, 8, past, 128)
        if library == "torch":
            import torch

            q, k = (torch_of(x, bfloat16) for x in (query, key))
            attend = torch.nn.functional.scaled_dot_product_attention
            return lambda: attend(q, k, k, enable_gqa=True)
        q, k = (on_the_device(x, bfloat16) for x in (query, key))
        return partial(kernels.lookup("scaled_dot_product_attention", "cuda"), q, k, k.copy())

    size, flops = 2.0 * 2 * batch * 8 * past * 128, 4.0 * batch * 32 * past * 128
    return Case(
        f"decoding {batch} x {past} bfloat16",
        with_torch("minitorch"),
        build,
        "bfloat16",
        size,
        flops,
    )


def head() -> Case:
    """The head's product and its loss, forward and backward, without the logits of all rows."""
    count, (width, classes) = TOKENS, LAYERS[-1]

    def build(library: str) -> Call:
        x, weight = normal(count, width), normal(classes, width) / 100
        if library == "torch":
            import torch

            a, w = (torch_of(one, bfloat16).requires_grad_() for one in (x, weight))
            to = torch.arange(count, device="cuda") % classes
            loss = lambda: torch.nn.functional.cross_entropy(a @ w.T, to)  # noqa: E731
        else:
            import minitorch as mt
            from minitorch.nn import functional as F

            a, w = (_ours(mt, bfloat16, one).requires_grad_() for one in (x, weight))
            to = mt.from_numpy(np.arange(count) % classes).to(device="cuda")
            loss = lambda: F.linear_cross_entropy(a, w, to)  # noqa: E731

        def both() -> None:
            loss().backward()
            a.grad = w.grad = None

        return both

    flops = 3 * 2.0 * count * width * classes
    size = 2.0 * 2 * (count * width + width * classes)
    name = f"head and loss {count} x {classes}"
    return Case(name, with_torch("minitorch"), build, "bfloat16", size, flops, True)


def all_reduce(count: int) -> Case:
    """Between ranks on one device, each on a stream; every rank's numbers read and written once."""

    def build(library: str) -> Call:
        import minitorch as mt
        from minitorch.distributed import device_group

        group = device_group(RANKS, device="cuda")
        tensors = [_ours(mt, float32, normal(count)) for _ in range(RANKS)]
        return partial(group.all_reduce, tensors, "avg")

    name = f"all_reduce of {RANKS} ranks, {count} numbers"
    return Case(name, ["minitorch"], build, "float32", 2.0 * 4 * RANKS * count, RANKS * count)


def optimizer() -> Case:
    """Clip and AdamW over GPT-2's parameters: four arrays read, three written; one for the norm."""
    config = _gpt2_config()
    width, positions = config.n_embd, config.vocab_size + config.n_positions
    count = (positions + 2) * width + config.n_layer * (12 * width + 13) * width

    def build(library: str) -> Call:
        import minitorch as mt
        from models.gpt2 import GPT2

        model = GPT2(config)
        if library == "torch":
            import torch

            theirs = [
                torch.zeros(p.shape, device="cuda", requires_grad=True) for p in model.parameters()
            ]
            for p in theirs:
                p.grad = torch.ones_like(p)
            fused = torch.optim.AdamW(theirs, 1e-4, fused=True)

            def peer() -> None:
                torch.nn.utils.clip_grad_norm_(theirs, 1.0)
                fused.step()

            return peer
        params = list(model.to("cuda").parameters())
        for p in params:
            p.grad = p.detach().clone()
        adamw = mt.optim.AdamW(params, 1e-4)

        def ours() -> None:
            _, scale = mt.optim.clip_grad_scale(params, 1.0)
            adamw.step(scale)

        return ours

    return Case(
        "clip + AdamW gpt2", with_torch("minitorch"), build, "float32", 32 * count, 14 * count
    )


def _gpt2_config() -> Any:
    from models.gpt2 import GPT2Config

    return GPT2Config.preset("gpt2")


def gpt2_step() -> Case:
    """GPT-2's step in bfloat16, of a batch that fills a GPU; PyTorch's compiled."""
    config = _gpt2_config()
    batch = np.random.default_rng(0).integers(0, config.vocab_size, (2, *BATCH))
    name = f"step gpt2 {BATCH[0]} x {BATCH[1]} bfloat16"
    return _step(name, config, batch, "bfloat16", "torch.compile")


def steps(precision: str) -> Iterator[Case]:
    """The sizes that are trained on a CPU, too."""
    from models.bench import step

    for size, (config, *_) in step.SIZES.items():
        yield _step(f"step {size} {precision}", config, step.tokens(size, 0), precision, "torch")


def _step(name: str, config: Any, batch: Any, precision: str, peer: str) -> Case:
    """Training steps, each launch by Python or all in one graph."""
    from models.bench import step

    def build(library: str) -> Call:
        if library == peer:
            from models.bench import torch_gpt

            compiled = peer == "torch.compile"
            return torch_gpt.Step(config, *batch, precision, compiled, "cuda")
        ours = step.Step(config, *batch, precision, "cuda")
        if library == "minitorch eager":
            ours.update = ours.eager
        return ours

    libraries = ["minitorch", "minitorch eager", *([peer] if HAS_TORCH else [])]
    flops, tokens = step.flops(config, *batch.shape[1:]), batch[0].size
    return Case(name, libraries, build, precision, 0, flops, tokens=tokens)
