"""`minitorch r1`: DeepSeek-R1's pipeline on a toy, from a base model to a distilled one."""

import json
import signal
import sys
from dataclasses import fields
from pathlib import Path

import click
from rich.console import Console

from minitorch.errors import ConfigError
from minitorch.io import write_json
from models import checkpoints
from models.commands.running import RUNS
from models.experiments.experiment import record, save_picture, show
from models.experiments.r1 import EXPERIMENT
from models.interrupts import Interrupts
from models.machine import note_missing_kernels
from models.options import parse_assignment
from models.pipelines.r1 import R1Config, run
from models.pipelines.stages import Stages, settings_of
from models.recipes.loop import Stopped

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command(
    epilog="""
    \b
    Examples:
      minitorch r1
      minitorch r1 --quick --out /tmp/r1
      minitorch r1 --set language_weight=0.2 --seed 1 --json
      minitorch r1 --resume runs/r1
    """
)
@click.option("--quick", is_flag=True, help="Tiny sizes, only to see that it runs.")
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="One setting; repeatable."
)
@click.option("--seed", type=click.IntRange(min=0), help="Of all that is drawn.  [0]")
@click.option("--out", type=FOLDER, default=RUNS / "r1", show_default=True, help="Of all stages.")
@click.option("--resume", type=FOLDER, help="Go on with what this folder holds.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def r1(
    quick: bool,
    assignments: tuple[str, ...],
    seed: int | None,
    out: Path,
    resume: Path | None,
    as_json: bool,
) -> None:
    """Run DeepSeek-R1's pipeline on sums that are thought of in two alphabets.

    A base model; R1-Zero by reinforcement alone; a cold start, and reinforcement that asks for one
    language; what that writes and is right, learnt by the base; reinforcement on all tasks; and a
    small model that learns from the result. With controls that lack one of these. Every stage has
    a folder; Ctrl-C saves and stops, and --resume goes on where it was.
    """
    stream = sys.stderr if as_json else sys.stdout
    console = Console(file=stream, highlight=False, force_terminal=stream.isatty())
    note_missing_kernels()
    config, out = _settings(quick, assignments, seed, out, resume)
    with Interrupts() as interrupts:
        stages = Stages(out, config, console, lambda: interrupts.received is not None)
        try:
            with checkpoints.exclusive(out):
                rows = run(config, stages)
        except Stopped:
            console.print(f"stopped; go on with: minitorch r1 --resume {out}", soft_wrap=True)
            raise SystemExit(143 if interrupts.received == signal.SIGTERM else 130) from None
    claims = EXPERIMENT.claims(rows) if config == R1Config(seed=config.seed) else []
    show(console, rows, claims)
    found = record(EXPERIMENT, config, config.seed, rows, claims, _command(config))
    write_json(out / "r1.json", found)
    save_picture(out / "r1.png", EXPERIMENT, rows)
    for what, name in (("models", "*/checkpoints"), ("result", "r1.json"), ("picture", "r1.png")):
        console.print(f"{what:9}{out / name}", soft_wrap=True)
    if as_json:
        click.echo(json.dumps({"out": str(out), "rows": rows}))


def _settings(
    quick: bool,
    assignments: tuple[str, ...],
    seed: int | None,
    out: Path,
    resume: Path | None,
) -> tuple[R1Config, Path]:
    """The settings, and the folder: a new one, or that of a pipeline that was begun."""
    if resume is not None:
        if quick or assignments or seed is not None:
            raise click.UsageError("--resume takes the settings of the pipeline; give it alone")
        return settings_of(resume, R1Config), resume
    if (out / "config.toml").is_file():
        raise ConfigError(
            f"--out {out} already holds a pipeline; go on with it by --resume {out}, or choose "
            "another folder"
        )
    overrides = dict(map(parse_assignment, assignments))
    if seed is not None:
        overrides["seed"] = str(seed)
    return R1Config.resolve("quick" if quick else "toy", None, overrides), out


def _command(config: R1Config) -> str:
    """One that computes the same."""
    changed = [
        f"--set {field.name}={getattr(config, field.name)}"
        for field in fields(config)
        if getattr(config, field.name) != field.default
    ]
    return " ".join(["minitorch r1", *changed])
