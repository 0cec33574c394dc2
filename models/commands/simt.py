"""`minitorch simt run`: a CUDA program on the CPU, every access to memory checked."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import click

from models.emulation import compile_program

ORDERS = ("forward", "reversed", "random")


@click.group(epilog="Example: minitorch simt run reduce.cu --schedules 20")
def simt() -> None:
    """Run CUDA kernels on the CPU, and find their races, bounds errors and deadlocks."""


@simt.command(
    epilog="Example: minitorch simt run reduce.cu --schedules 20 --json findings.json -- 1024"
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("arguments", nargs=-1)
@click.option(
    "--order",
    type=click.Choice(ORDERS),
    default="forward",
    show_default=True,
    help="In which threads that could all run do.",
)
@click.option("--seed", default=0, show_default=True, help="Of the random order.")
@click.option(
    "--schedules",
    type=click.IntRange(1),
    help="Run so often: forward, reversed, then in random orders from --seed on.",
)
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write findings there.")
@click.option("--unchecked", is_flag=True, help="Only run: much faster, and finds nothing.")
def run(
    file: Path,
    arguments: tuple[str, ...],
    order: str,
    seed: int,
    schedules: int | None,
    path: Path | None,
    unchecked: bool,
) -> None:
    """Compile FILE, a CUDA source file with a main(), and run it with ARGUMENTS.

    Prints what the program prints, then what was found, as a compiler would. Exits with 1 if
    anything was, or with the program's own code.
    """
    runs = [(order, seed)]
    if schedules:
        runs = [("forward", seed), ("reversed", seed)]
        runs = [*runs, *(("random", seed + i) for i in range(schedules))][:schedules]
    found: list[dict] = []
    code = 0
    with tempfile.TemporaryDirectory(prefix="minitorch-simt-") as folder:
        program = compile_program(file, Path(folder), checked=not unchecked)
        for i, (chosen, start) in enumerate(runs):
            findings, rc = _run(program, arguments, chosen, start, quiet=i > 0)
            new = [f for f in findings if _key(f) not in {_key(g) for g in found}]
            for finding in new:
                click.echo(_line(finding, chosen, start, len(runs) > 1), err=True)
            found += new
            code = code or rc
    if path:
        path.write_text(json.dumps(found, indent=1) + "\n")
    if not unchecked:
        many = "" if len(runs) == 1 else f" in {len(runs)} schedules"
        click.echo(f"{len(found) or 'no'} finding{'' if len(found) == 1 else 's'}{many}", err=True)
    if found or code:
        raise SystemExit(code or 1)


def _run(
    program: Path, arguments: tuple[str, ...], order: str, seed: int, quiet: bool
) -> tuple[list[dict], int]:
    """Findings of one run, and the program's exit code, 0 where findings alone made it 1."""
    report = program.with_suffix(".json")
    report.unlink(missing_ok=True)
    environment = os.environ | {
        "SIMT_ORDER": order,
        "SIMT_SEED": str(seed),
        "SIMT_JSON": str(report),
    }
    done = subprocess.run(
        [str(program), *arguments],
        env=environment,
        stdout=subprocess.DEVNULL if quiet else None,
    )
    findings = json.loads(report.read_text()) if report.exists() else []
    if done.returncode < 0:
        click.echo(f"error: the program was ended by signal {-done.returncode}", err=True)
    return findings, 0 if findings else done.returncode


def _key(finding: dict) -> tuple:
    return finding["kind"], finding["file"], finding["line"], finding["other_line"]


def _line(finding: dict, order: str, seed: int, several: bool) -> str:
    where = f"thread {finding['thread']} of block {finding['block']} " if finding["thread"] else ""
    times = f" ({finding['count']} times)" if finding["count"] > 1 else ""
    schedule = f" [{order}{f', seed {seed}' if order == 'random' else ''}]" if several else ""
    place = f"{finding['file']}:{finding['line']}"
    return f"{place}: error: {finding['kind']}: {where}{finding['message']}{times}{schedule}"
