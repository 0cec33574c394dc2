"""All that needs a GPU, in one command: `python -m tests.gpu [RESULT.json]`, below nine minutes.

It builds the kernels in place for this machine, runs on it what the tests of tests/cuda otherwise
run in the emulator and on a stand-in for CuPy, lets compute-sanitizer watch a training step, times
kernels and training steps beside CuPy and PyTorch (where that is installed), and writes what came
out, with date and hardware. What moves memory is given as a share of what a copy reaches in the
same run, training steps as a share of what the fastest product reaches. What there is no time for
is left out, the most telling cases come first. Nothing is downloaded: python3 with the packages
below, nvcc and a driver must be there.
Exit code 0 if all passed, 1 if something failed, 2 if it cannot be run here.

`python -m tests.gpu --golden FILE` writes golden vectors instead (tests/simt/golden.py).
"""

import datetime
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tests" / "benchmarks" / "results"
PROGRAMS = ("nvcc", "nvidia-smi")
PACKAGES = ("numpy", "cupy", "ml_dtypes", "pybind11", "ninja", "setuptools", "pytest", "hypothesis")
SECONDS = {"build": 210, "tests": 130, "sanitizer": 45, "times": 150}
"""What each part may take; together below nine minutes."""
ROUNDS = 15
WARM_UP = 5
LARGE = 4096
"""The length of the rows, and the side of products in float32."""
SIDES = (8192, 4096, 2048, 1024, 16384)
"""Of square products in bfloat16."""
TOKENS = 1 << 15
"""Rows of a transformer's products."""
LAYERS = ((768, 2304), (768, 3072), (3072, 768), (768, 50257))
"""GPT-2's: features that come in, and that go out."""
LENGTHS = (16384, 4096, 1024, 512)
"""Of attention's sequences, which have 16384 tokens together, and 2048 features in all heads."""
WIDTHS = (128, 64)
"""Of its heads."""
BATCH = (32, 1024)
"""Sequences and tokens of each in a training step of GPT-2."""
SPARE = 25
"""Seconds before the end of the times at which no other case is begun."""
HAS_TORCH, HAS_TRITON = (importlib.util.find_spec(name) is not None for name in ("torch", "triton"))
TRITON = ("softmax", "layer_norm", "rms_norm", "cross_entropy")
"""Which PyTorch's compiler makes a kernel of for comparison, where it can."""
ON_THE_GPU = "not simt and not forward and not reversed and not random"
"""Of the tests, those that need no emulator; pytest's expression."""


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--golden"]:
        return golden_vectors(arguments[1:])
    if lacking := missing():
        print(f"tests.gpu: needs {', '.join(lacking)}, not found here", file=sys.stderr)
        return 2
    report: dict[str, Any] = {"date": now(), "hardware": hardware()}
    report["build"] = run("build", "setup.py", "build_ext", "--inplace")
    passed = report["build"]["passed"]
    if passed:
        suite = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
        report["tests"] = run("tests", *suite, "-k", ON_THE_GPU, "tests/cuda")
        step = "tests/cuda/test_engine.py::test_training[cuda-adamw-None]"
        report["sanitizer"] = run("sanitizer", *suite, step, under=sanitizer())
        report["times"] = run("times", "-m", "tests.gpu", "--times")
        passed = all(part["passed"] for part in report.values() if "passed" in part)
    path = Path(arguments[0]) if arguments else RESULTS / "gpu.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"tests.gpu: {'passed' if passed else 'FAILED'}; {path}")
    return 0 if passed else 1


def golden_vectors(arguments: list[str]) -> int:
    """Write what this GPU's instructions give for the inputs of tests/simt/golden.py."""
    if len(arguments) != 1:
        print("tests.gpu --golden: expected the FILE to write", file=sys.stderr)
        return 2
    if lacking := missing(("nvcc", "nvidia-smi"), ("numpy", "ml_dtypes", "safetensors")):
        print(f"tests.gpu --golden: needs {', '.join(lacking)}, not found here", file=sys.stderr)
        return 2
    from tests.simt import golden

    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "fragments"
        source = ROOT / "tests" / "simt" / "fragments.cu"
        flags = ["-std=c++20", "--expt-relaxed-constexpr", "-arch=sm_90a"]
        subprocess.run(["nvcc", *flags, source, "-o", program], check=True)

        def compute(name: str, given: bytes) -> bytes:
            return subprocess.run([program, name], input=given, capture_output=True).stdout

        golden.record(Path(arguments[0]), compute, json.dumps(hardware()))
    print(f"tests.gpu: {len(golden.cases())} golden vectors; {arguments[0]}")
    return 0


def missing(programs: Sequence[str] = PROGRAMS, packages: Sequence[str] = PACKAGES) -> list[str]:
    """Programs and packages that are not here; "a GPU" where the driver shows none."""
    lacking = [name for name in programs if not shutil.which(name)]
    lacking += [name for name in packages if importlib.util.find_spec(name) is None]
    return lacking or ([] if "GPU 0" in output("nvidia-smi", "-L") else ["a GPU"])


def hardware() -> dict[str, str | None]:
    query = "--query-gpu=name,driver_version,memory.total,compute_cap"
    found = output("nvidia-smi", query, "--format=csv,noheader").split(", ")
    release = re.search(r"release (\S+),", output("nvcc", "--version"))
    return {
        **dict(zip(("gpu", "driver", "memory", "compute capability"), map(str.strip, found))),
        "nvcc": release and release[1],
        "python": sys.version.split()[0],
    }


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def sanitizer() -> list[str]:
    """What makes a program watched; nothing where the toolkit came without it."""
    found = shutil.which("compute-sanitizer")
    return [found, "--error-exitcode", "9", "--target-processes", "all"] if found else []


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def run(part: str, *arguments: str, under: list[str] | None = None) -> dict[str, Any]:
    """This python3 with arguments, under another program perhaps: what became of it."""
    if under == []:
        return {"passed": True, "skipped": "compute-sanitizer was not found"}
    command = [*(under or []), sys.executable, *arguments]
    environment = {**os.environ, "MT_CUDA": "1", "PYTHONPATH": str(ROOT)}
    begun = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS[part],
        )
        code, said = done.returncode, done.stdout + (done.stderr if done.returncode else "")
    except subprocess.TimeoutExpired:
        code, said = None, f"took more than {SECONDS[part]} s"
    print(f"{part}: {'ok' if code == 0 else said[-4000:]}", flush=True)
    result: dict[str, Any] = {"passed": code == 0, "seconds": round(time.monotonic() - begun, 1)}
    if part == "times" and code == 0:
        return {**result, "cases": json.loads(said)}
    return {**result, "said": (said.strip().splitlines() or [""])[-1]}


def times() -> list[dict[str, Any]]:
    """Medians in microseconds, the libraries in turns.

    Of what moves memory also the bytes that it must move, and the share that this is of the rate
    at which a large array was copied before; of what multiplies its rate of operations, and of
    steps the share of the highest rate before.
    """
    begun, rate, measured, fastest = time.monotonic(), copy_rate(), [], 0.0
    for case in cases():
        if time.monotonic() - begun > SECONDS["times"] - SPARE:
            measured.append({"case": case.name, "left_out": "this one and those after it"})
            break
        took: dict[str, list[float]] = {library: [] for library in case.calls}
        for call in case.calls.values():
            for _ in range(WARM_UP):  # kernels are compiled, and steps captured
                call()
        for _ in range(ROUNDS):
            for library, call in case.calls.items():
                took[library].append(seconds(call))
        medians = {library: statistics.median(values) for library, values in took.items()}
        row: dict[str, Any] = {
            "case": case.name,
            "microseconds": {library: 1e6 * value for library, value in medians.items()},
        }
        if case.bytes:
            ours = case.bytes / medians["minitorch"]
            row |= {"bytes": case.bytes, "share_of_copy": ours / rate}
        if case.flops:
            row["flops"] = {name: case.flops / value for name, value in medians.items()}
            if case.tokens:
                row["tokens"] = {name: case.tokens / value for name, value in medians.items()}
                row["share_of_products"] = row["flops"]["minitorch"] / fastest
            fastest = max(fastest, *row["flops"].values())
        measured.append(row)
    return [{"case": "copy", "bytes_per_second": rate}, *measured]


def copy_rate() -> float:
    """Bytes that a copy on the device reads and writes in a second."""
    import cupy

    source = cupy.ones(1 << 28, cupy.float32)
    to = cupy.empty_like(source)
    copy = lambda: cupy.copyto(to, source)  # noqa: E731
    copy()
    return 2 * source.nbytes / statistics.median(seconds(copy) for _ in range(ROUNDS))


def seconds(call: Callable[[], Any]) -> float:
    """Of one call, the device idle before and waited for after."""
    import cupy

    device = cupy.cuda.Device()
    device.synchronize()
    begun = time.perf_counter()
    call()
    device.synchronize()
    return time.perf_counter() - begun


class Case(NamedTuple):
    """The same work by each library that is installed; bytes: what memory has to move for it.

    flops: its multiplications and additions; tokens: that are learnt from.
    """

    name: str
    calls: dict[str, Callable[[], Any]]
    bytes: float = 0
    flops: float = 0
    tokens: int = 0


def cases() -> Iterator[Case]:
    """Products, attention, whole steps, what is bound by memory, the optimizer."""
    from minitorch.backend import bfloat16, float32

    for side in SIDES:
        yield product(side, side, side, bfloat16)
    for i, (width, features) in enumerate(LAYERS):
        yield product(TOKENS, features, width, bfloat16)
        yield product(TOKENS, width, features, bfloat16)
        yield product(features, width, TOKENS, bfloat16, turned=True)
        if i == 0:
            yield from attention(LENGTHS[0], WIDTHS[0], bfloat16)
    for length in LENGTHS:
        for width in WIDTHS:
            if (length, width) != (LENGTHS[0], WIDTHS[0]):
                yield from attention(length, width, bfloat16)
    yield gpt2_step()
    yield from rows(bfloat16)
    yield from optimizer()
    for precision in ("bfloat16", "float32"):
        yield from steps(precision)
    yield product(LARGE, LARGE, LARGE, float32)
    yield from attention(LENGTHS[-1], WIDTHS[0], float32)
    yield from rows(float32)


def normal(*shape: int) -> Any:
    """Random numbers in main memory, the same ones again and again."""
    import numpy as np

    some = np.random.default_rng(0).standard_normal(1 << 20, np.float32)
    return np.resize(some, shape)


def torch_of(array: Any, dtype: Any) -> Any:
    """The array as PyTorch's, on the device."""
    import torch

    return torch.from_numpy(array).to("cuda", getattr(torch, str(dtype)))


def product(m: int, n: int, k: int, dtype: Any, turned: bool = False) -> Case:
    """(m, k) by (k, n); turned: the left one is in memory as (k, m), as in a weight's gradient."""
    import cupy

    from minitorch import kernels

    left, right = normal(k, m).T if turned else normal(m, k), normal(k, n)
    a, b = (on_the_device(x, dtype) for x in (left, right))
    matmul = kernels.lookup("matmul", "cuda")
    calls = {"minitorch": lambda: matmul(a, b)}
    half = "cupy" if dtype == "float32" else "cupy float16"  # CuPy has no product of bfloat16
    x, y = (a, b) if dtype == "float32" else [on_the_device(x, "float16") for x in (left, right)]
    calls[half] = lambda: cupy.matmul(x, y)
    if HAS_TORCH:
        c, d = (torch_of(x, dtype) for x in (left, right))
        calls["torch"] = lambda: c @ d
    layout = ", left turned" if turned else ""
    return Case(f"matmul {m} x {n} x {k} {dtype}{layout}", calls, flops=2.0 * m * n * k)


def on_the_device(x: Any, dtype: Any) -> Any:
    """x there, its numbers in the same order in memory."""
    import cupy

    if x.flags.c_contiguous:
        return cupy.asarray(x.astype(dtype))
    return cupy.asarray(x.T.astype(dtype)).T


def rows(dtype: Any) -> Iterator[Case]:
    """Functions of rows and of elements; forward reads one array and writes one."""
    import cupy

    from minitorch import kernels
    from minitorch.backend import float32

    host = normal(2 * LARGE, LARGE)
    x, grad = (cupy.asarray(host.astype(dtype)) for _ in range(2))
    weight, bias = (cupy.ones(LARGE, float32) for _ in range(2))
    target = cupy.arange(2 * LARGE) % LARGE
    run = lambda name: kernels.lookup(name, "cuda")  # noqa: E731
    y = run("softmax")(x)
    _, mean, rstd = run("layer_norm")(x, weight, bias)
    _, rms = run("rms_norm")(x, weight)
    loss, normaliser = run("cross_entropy")(x, target)
    ours = {
        "add": (3, lambda: run("add")(x, grad)),
        "gelu": (2, lambda: run("gelu")(x)),
        "gelu_backward": (3, lambda: run("gelu_backward")(grad, x)),
        "silu": (2, lambda: run("silu")(x)),
        "swiglu": (3, lambda: run("swiglu")(x, grad)),
        "dropout": (2, lambda: run("dropout")(x, p=0.1, seed=1, offset=2)),
        "softmax": (2, lambda: run("softmax")(x)),
        "softmax_backward": (3, lambda: run("softmax_backward")(grad, y)),
        "layer_norm": (2, lambda: run("layer_norm")(x, weight, bias)),
        "layer_norm_backward": (
            3,
            lambda: run("layer_norm_backward")(grad, x, weight, mean, rstd),
        ),
        "rms_norm": (2, lambda: run("rms_norm")(x, weight)),
        "rms_norm_backward": (3, lambda: run("rms_norm_backward")(grad, x, weight, rms)),
        "cross_entropy": (1, lambda: run("cross_entropy")(x, target)),
        "cross_entropy_backward": (
            2,
            lambda: run("cross_entropy_backward")(loss, x, target, normaliser),
        ),
        "l2_norm": (1, lambda: run("l2_norm")([x])),
        "categorical": (
            1,
            lambda: run("categorical")(
                x, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1, offset=2
            ),
        ),
    }
    theirs: dict[str, Callable[[], Any]] = {}
    if HAS_TORCH:
        import torch

        t, g, w = torch_of(host, dtype), torch_of(host, dtype), torch_of(host[0], dtype)
        f, index = torch.nn.functional, torch.arange(2 * LARGE, device="cuda") % LARGE
        theirs = {
            "add": lambda: t + g,
            "gelu": lambda: f.gelu(t),
            "silu": lambda: f.silu(t),
            "dropout": lambda: f.dropout(t, 0.1),
            "softmax": lambda: t.softmax(-1),
            "layer_norm": lambda: f.layer_norm(t, (LARGE,), w, w),
            "rms_norm": lambda: f.rms_norm(t, (LARGE,), w),
            "cross_entropy": lambda: f.cross_entropy(t, index),
        }
    for name, (arrays, call) in ours.items():
        peers = {"torch": theirs[name]} if name in theirs else {}
        if name in theirs and name in TRITON and HAS_TRITON:
            peers["triton"] = torch.compile(theirs[name])
        yield Case(f"{name} {dtype}", {"minitorch": call, **peers}, arrays * x.nbytes)


def attention(length: int, width: int, dtype: Any) -> Iterator[Case]:
    """Causal and not, forward and with backward; PyTorch's by each of its fast kernels."""
    import minitorch as mt
    from minitorch.nn import functional as F

    heads = 2048 // width
    host = [normal(max(1, 16384 // length), heads, length, width)] * 3
    ours = [mt.from_numpy(x).to(dtype=dtype, device="cuda").requires_grad_() for x in host]
    functions: dict[str, Callable[..., Any]] = {"minitorch": F.scaled_dot_product_attention}
    tensors: dict[str, list[Any]] = {"minitorch": ours}
    if HAS_TORCH:
        theirs = [torch_of(x, dtype).requires_grad_() for x in host]
        functions |= torch_attention(dtype)
        tensors |= dict.fromkeys(functions.keys() - {"minitorch"}, theirs)
    operations = 4.0 * host[0].size * length
    for causal in (False, True):
        for name, factor in (("forward", 1.0), ("forward + backward", 3.5)):
            run = forward if factor == 1 else forward_and_backward
            calls = {
                library: partial(run, attend, *tensors[library], causal=causal)
                for library, attend in functions.items()
            }
            kind = "causal attention" if causal else "attention"
            flops = factor * operations / (2 if causal else 1)
            yield Case(f"{kind} {length} x {width} {dtype} {name}", calls, flops=flops)


def forward(attend: Callable[..., Any], q: Any, k: Any, v: Any, *, causal: bool) -> None:
    attend(q.detach(), k.detach(), v.detach(), is_causal=causal)


def forward_and_backward(
    attend: Callable[..., Any], q: Any, k: Any, v: Any, *, causal: bool
) -> None:
    attend(q, k, v, is_causal=causal).backward(v.detach())
    q.grad = k.grad = v.grad = None


def torch_attention(dtype: Any) -> dict[str, Callable[..., Any]]:
    """PyTorch's function by its own choice of a kernel, and for 16 bits by each fast one."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    attend = torch.nn.functional.scaled_dot_product_attention

    def only(backend: Any, *arguments: Any, **options: Any) -> Any:
        with sdpa_kernel(backend):
            return attend(*arguments, **options)

    if dtype == "float32":
        return {"torch": attend}
    return {
        "torch flash": partial(only, SDPBackend.FLASH_ATTENTION),
        "torch cudnn": partial(only, SDPBackend.CUDNN_ATTENTION),
    }


def optimizer() -> Iterator[Case]:
    """Clip and AdamW over GPT-2's parameters: four arrays read, three written; one for the norm."""
    import minitorch as mt
    from models.gpt2 import GPT2, GPT2Config

    params = list(GPT2(GPT2Config.preset("gpt2")).to("cuda").parameters())
    count = sum(p.numel() for p in params)
    for p in params:
        p.grad = p.detach().clone()
    adamw = mt.optim.AdamW(params, 1e-4)

    def ours() -> None:
        _, scale = mt.optim.clip_grad_scale(params, 1.0)
        adamw.step(scale)

    calls: dict[str, Callable[[], Any]] = {"minitorch": ours}
    if HAS_TORCH:
        import torch

        theirs = [torch.zeros(p.shape, device="cuda", requires_grad=True) for p in params]
        for p in theirs:
            p.grad = torch.ones_like(p)
        fused = torch.optim.AdamW(theirs, 1e-4, fused=True)

        def peer() -> None:
            torch.nn.utils.clip_grad_norm_(theirs, 1.0)
            fused.step()

        calls["torch"] = peer
    yield Case("clip + AdamW gpt2", calls, 8 * 4 * count)


def gpt2_step() -> Case:
    """GPT-2's step in bfloat16, of a batch that fills a GPU; PyTorch's compiled."""
    import numpy as np

    from models.bench import step
    from models.gpt2 import GPT2Config

    config = GPT2Config.preset("gpt2")
    batch = np.random.default_rng(0).integers(0, config.vocab_size, (2, *BATCH))
    calls = step_calls(config, batch, "bfloat16", compiled=True)
    operations, tokens = step.flops(config, *BATCH), BATCH[0] * BATCH[1]
    return Case(f"step gpt2 {BATCH[0]} x {BATCH[1]} bfloat16", calls, 0, operations, tokens)


def steps(precision: str) -> Iterator[Case]:
    """The sizes that are trained on a CPU, too."""
    from models.bench import step

    for size, (config, *_) in step.SIZES.items():
        calls = step_calls(config, step.tokens(size, 0), precision, compiled=False)
        yield Case(f"step {size} {precision}", calls)


def step_calls(
    config: Any, batch: Any, precision: str, *, compiled: bool
) -> dict[str, Callable[[], Any]]:
    """Training steps, each launch by Python or all in one graph."""
    from models.bench import step

    captured = step.Step(config, *batch, precision, "cuda")
    eager = step.Step(config, *batch, precision, "cuda")
    eager.update = eager.eager
    calls: dict[str, Callable[[], Any]] = {"minitorch": captured, "minitorch eager": eager}
    if HAS_TORCH:
        from models.bench import torch_gpt

        name = "torch.compile" if compiled else "torch"
        calls[name] = torch_gpt.Step(config, *batch, precision, compiled, "cuda")
    return calls


if __name__ == "__main__":
    if sys.argv[1:] == ["--times"]:
        print(json.dumps(times()))
    else:
        sys.exit(main(sys.argv[1:]))
