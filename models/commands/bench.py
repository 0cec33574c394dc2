"""`minitorch bench`: this engine beside its peers, and beside what the machine can do."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click
from rich.console import Console

import minitorch as mt
from minitorch.backend import DEVICES
from minitorch.errors import ConfigError
from minitorch.io import write_json
from models.bench.ladder import ladder_table
from models.bench.peaks import Peaks, measure_peaks
from models.bench.report import draw, show, to_json
from models.bench.timing import Case, measure
from models.machine import note_missing_kernels

SUITES = ("matmul", "attention", "norms", "ops", "step", "decode", "memory")
PEERS = ("numpy", "torch", "jax")
ON_THE_GPU = ("attention", "norms", "step")
"""Suites that can be timed on a GPU."""


@click.command(epilog="Example: minitorch bench step --peers torch --only nano --json step.json")
@click.argument("suites", nargs=-1, type=click.Choice(SUITES))
@click.option("--peers", default=None, help=f"Which of {','.join(PEERS)}; all that are installed.")
@click.option("--only", default="", help="Only cases whose name contains this.")
@click.option(
    "--device", default="cpu", show_default=True, type=click.Choice(DEVICES), help="Of all sides."
)
@click.option("--rounds", default=11, show_default=True, type=click.IntRange(1))
@click.option("--threads", type=click.IntRange(1), help="For every library; all cores otherwise.")
@click.option("--seed", default=0, show_default=True, help="Of the random inputs.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write figures there.")
@click.option("--ladder", is_flag=True, help="With matmul: the GPU's steps, or counts of them.")
@click.option("--picture", type=click.Path(path_type=Path), help="Draw the ratios, as PNG.")
def bench(
    suites: tuple[str, ...],
    peers: str | None,
    only: str,
    device: str,
    rounds: int,
    threads: int | None,
    seed: int,
    json_path: Path | None,
    picture: Path | None,
    ladder: bool,
) -> None:
    """Time kernels and whole training steps, in turns with other libraries; weigh their memory.

    \b
    matmul     matrix products of a transformer's training and decoding, and squares
    attention  fused attention, forward and backward
    norms      softmax, norms, activations, cross-entropy
    ops        the optimizer, and what a single operation costs
    step       one step of training a GPT
    decode     one token of a GPT at a time
    memory     the peak memory of a process that trains a GPT

    Without SUITES all of them; with --device cuda attention, norms and step. Figures are medians; a
    ratio above 1 means that minitorch is the faster, or takes less memory. The machine's own limits
    are measured first.
    """
    console = Console(stderr=json_path is not None and str(json_path) == "-")
    if ladder:
        if suites != ("matmul",):
            raise ConfigError("--ladder: expected matmul alone; say bench matmul --ladder")
        return console.print(ladder_table(seed))
    names = _peers(peers)
    note_missing_kernels()
    if threads:
        _use_threads(threads, names)
    mt.manual_seed(seed)
    suites, wait = _on_device(device, suites or (SUITES if device == "cpu" else ON_THE_GPU))
    peaks = measure_peaks() if device == "cpu" else None
    if device == "cpu":
        _print_peaks(console, peaks)
    reports = []
    for suite in suites:
        cases: Callable[..., Iterator[Case]] = import_module(f"models.bench.{suite}").cases
        place = () if device == "cpu" else (device,)
        chosen = [case for case in cases(names, seed, *place) if only in case.name]
        measured = (measure(case, rounds, wait) for case in chosen)
        results = show(console, f"\n{suite}", measured, peaks)
        if not results:
            raise ConfigError(f"bench {suite}: no case has {only!r} in its name")
        command = " ".join(["minitorch", *sys.argv[1:]])
        reports.append(to_json(suite, results, peaks, command))
        if picture is not None:
            path = picture if len(suites) == 1 else picture.with_stem(f"{picture.stem}-{suite}")
            draw(path, suite, results)
            console.print(f"picture: {path}")
    content = reports[0] if len(reports) == 1 else reports
    if json_path is not None and str(json_path) == "-":
        click.echo(json.dumps(content, indent=2))
    elif json_path is not None:
        write_json(json_path, content)
        console.print(f"figures: {json_path}")


def _on_device(device: str, suites: tuple[str, ...]) -> tuple[tuple[str, ...], Callable[[], None]]:
    """The suites, which the device must be able to time, and what waits for it."""
    if device == "cpu":
        return suites, lambda: None
    if device == "simt":
        raise ConfigError(
            "--device simt: the emulator's time says nothing of a GPU's. Count what a kernel does "
            "with `minitorch simt run --counts`, or take --device cuda"
        )
    for suite in suites:
        if suite not in ON_THE_GPU:
            raise ConfigError(
                f"--device cuda: expected suites among {', '.join(ON_THE_GPU)}; got {suite}, which "
                "measures main memory and the processor. Leave out --device"
            )
    mt.cuda.synchronize()  # raises DeviceError where there is none
    return suites, mt.cuda.synchronize


def _peers(asked: str | None) -> tuple[str, ...]:
    if asked is None:
        return tuple(name for name in PEERS if find_spec(name))
    names = tuple(name.strip() for name in asked.split(",") if name.strip())
    for name in names:
        if name not in PEERS:
            raise ConfigError(f"--peers: expected some of {', '.join(PEERS)}; got {name!r}")
        if not find_spec(name):
            raise ConfigError(
                f'--peers: {name} is not installed; pip install "minitorch-engine[peers]", or '
                "leave it out"
            )
    return names


def _use_threads(count: int, peers: tuple[str, ...]) -> None:
    mt.set_num_threads(count)
    if "torch" in peers:
        import_module("torch").set_num_threads(count)
    if "jax" in peers:
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:count]))


def _print_peaks(console: Console, peaks: Peaks | None) -> None:
    if peaks is None:
        console.print("no compiled kernels: the machine's limits are not measured")
        return
    console.print(
        f"this machine, {peaks.threads} threads: {peaks.float32_flops / 1e9:,.0f} GFLOP/s in "
        f"float32, {peaks.float64_flops / 1e9:,.0f} in float64, "
        f"{peaks.bfloat16_flops / 1e9:,.0f} in bfloat16, reads "
        f"{peaks.read_bytes / 1e9:.1f} GB/s"
    )
