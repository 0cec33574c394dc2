"""`minitorch simt run`: a CUDA program on the CPU, every access to memory checked, and counted."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from minitorch.kernels.cuda.traffic import Traffic, parse_traffic
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
@click.option(
    "--choices",
    default="",
    metavar="N,N,...",
    help="Whose turns come first, of those that can run, before the order holds.",
)
@click.option("--counts", is_flag=True, help="Print what each line's accesses to memory cost.")
@click.option(
    "--json", "path", type=click.Path(path_type=Path), help="Write findings, and counts, there."
)
@click.option("--unchecked", is_flag=True, help="Only run: much faster, and finds nothing.")
def run(
    file: Path,
    arguments: tuple[str, ...],
    order: str,
    seed: int,
    schedules: int | None,
    choices: str,
    counts: bool,
    path: Path | None,
    unchecked: bool,
) -> None:
    """Compile FILE, a CUDA source file with a main(), and run it with ARGUMENTS.

    Prints what the program prints, then what was found, as a compiler would. Exits with 1 if
    anything was, or with the program's own code.
    """
    if counts and unchecked:
        raise click.UsageError("--counts needs the check build: leave out --unchecked")
    runs = [(order, seed)]
    if schedules:
        runs = [("forward", seed), ("reversed", seed)]
        runs = [*runs, *(("random", seed + i) for i in range(schedules))][:schedules]
    found: list[dict] = []
    traffic: list[Traffic] = []
    code = 0
    with tempfile.TemporaryDirectory(prefix="minitorch-simt-") as folder:
        program = compile_program(file, Path(folder), checked=not unchecked)
        for i, (chosen, start) in enumerate(runs):
            schedule = {"SIMT_ORDER": chosen, "SIMT_SEED": str(start), "SIMT_CHOICES": choices}
            counted = program.with_suffix(".counts") if counts and i == 0 else None
            findings, rc = _run(program, arguments, schedule, counted, quiet=i > 0)
            if counted and counted.exists():
                traffic = parse_traffic(counted.read_text())
            new = [f for f in findings if _key(f) not in {_key(g) for g in found}]
            for finding in new:
                click.echo(_line(finding, chosen, start, len(runs) > 1), err=True)
            found += new
            code = code or rc
    if path:
        both = {"findings": found, "traffic": [asdict(row) for row in traffic]}
        path.write_text(json.dumps(both if counts else found, indent=1) + "\n")
    if counts:
        _print_table(traffic)
    if not unchecked:
        many = "" if len(runs) == 1 else f" in {len(runs)} schedules"
        click.echo(f"{len(found) or 'no'} finding{'' if len(found) == 1 else 's'}{many}", err=True)
    if found or code:
        raise SystemExit(code or 1)


def _run(
    program: Path,
    arguments: tuple[str, ...],
    schedule: dict[str, str],
    counted: Path | None,
    quiet: bool,
) -> tuple[list[dict], int]:
    """Findings of one run, and the program's exit code, 0 where findings alone made it 1.

    counted: where the program is to write what it counts, or None for no counts.
    """
    report = program.with_suffix(".json")
    report.unlink(missing_ok=True)
    environment = os.environ | schedule | {"SIMT_JSON": str(report)}
    if counted:
        environment["SIMT_COUNTS"] = str(counted)
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


def _print_table(traffic: list[Traffic]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("kernel", "line", "access"):
        table.add_column(heading, no_wrap=True)
    for heading in ("requests", "wavefronts", "conflicts", "sectors", "efficiency"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in traffic:
        shared = row.memory == "shared"
        table.add_row(
            row.kernel,
            f"{Path(row.file).name}:{row.line}",
            f"{row.access} {row.memory}, {row.bytes} B",
            f"{row.requests:,}",
            f"{row.transfers:,}" if shared else "",
            f"{row.conflicts:,}" if shared else "",
            "" if shared else f"{row.transfers:,}",
            f"{row.efficiency:.1%}",
        )
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
