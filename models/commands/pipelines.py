"""What the commands share that run a pipeline: options, where it goes, and its table at the end."""

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from minitorch.errors import ConfigError
from minitorch.io import write_json
from models import checkpoints
from models.checkpoints import RUNS
from models.experiments.experiment import Experiment, record, save_picture, show
from models.interrupts import Interrupts
from models.machine import note_missing_kernels
from models.options import parse_assignment
from models.pipelines.stages import Stages, settings_of
from models.recipes.loop import Stopped

FOLDER = click.Path(path_type=Path, file_okay=False)

Run = Callable[[Any, Stages], list[dict[str, Any]]]
"""The settings and the stages of a pipeline, to the rows of its table."""


def pipeline_command(
    experiment: Experiment, run: Run, *, examples: tuple[str, ...]
) -> Callable[[Callable[[], None]], click.Command]:
    """A command that runs the pipeline of an experiment. The function gives its name and help."""
    kind = type(experiment.setup)
    name = kind.command

    def decorate(function: Callable[[], None]) -> click.Command:
        def command(quick: bool, assignments: tuple[str, ...], seed: int | None, out: Path,
                    resume: Path | None, as_json: bool) -> None:  # fmt: skip
            config, out = _settings(kind, quick, assignments, seed, out, resume)
            _run(experiment, run, config, out, as_json)

        command.__doc__ = function.__doc__
        options = [
            click.option("--quick", is_flag=True, help="Tiny sizes, only to see that it runs."),
            click.option(
                "--set", "assignments", multiple=True, metavar="KEY=VALUE",
                help="One setting; repeatable.",
            ),
            click.option("--seed", type=click.IntRange(min=0), help="Of all that is drawn.  [0]"),
            click.option(
                "--out", type=FOLDER, default=RUNS / name, show_default=True,
                help="Of all stages.",
            ),
            click.option("--resume", type=FOLDER, help="Go on with what this folder holds."),
            click.option("--json", "as_json", is_flag=True, help="Print the table as JSON."),
        ]  # fmt: skip
        for option in reversed(options):
            command = option(command)
        lines = "".join(f"  {example}\n" for example in examples)
        return click.command(name, epilog=f"\b\nExamples:\n{lines}")(command)

    return decorate


def _settings(
    kind: type[Any],
    quick: bool,
    assignments: tuple[str, ...],
    seed: int | None,
    out: Path,
    resume: Path | None,
) -> tuple[Any, Path]:
    """The settings, and the folder: a new one, or that of a pipeline that was begun."""
    if resume is not None:
        if quick or assignments or seed is not None:
            raise click.UsageError("--resume takes the settings of the pipeline; give it alone")
        return settings_of(resume, kind), resume
    if (out / "config.toml").is_file():
        raise ConfigError(
            f"--out {out} already holds a pipeline; go on with it by --resume {out}, or choose "
            "another folder"
        )
    overrides = dict(map(parse_assignment, assignments))
    if seed is not None:
        overrides["seed"] = str(seed)
    return kind.resolve("quick" if quick else "toy", None, overrides), out


def _run(experiment: Experiment, run: Run, config: Any, out: Path, as_json: bool) -> None:
    """Run it, show the table and the claims, and write both into the folder."""
    name = config.command
    stream = sys.stderr if as_json else sys.stdout
    console = Console(file=stream, highlight=False, force_terminal=stream.isatty())
    note_missing_kernels()
    with Interrupts() as interrupts:
        stages = Stages(out, config, console, lambda: interrupts.received is not None)
        try:
            with checkpoints.exclusive(out):
                rows = run(config, stages)
        except Stopped:
            console.print(f"stopped; go on with: minitorch {name} --resume {out}", soft_wrap=True)
            raise SystemExit(143 if interrupts.received == signal.SIGTERM else 130) from None
    claims = experiment.claims(rows) if config == type(config)(seed=config.seed) else []
    show(console, rows, claims)
    found = record(experiment, config, config.seed, rows, claims, _command(config))
    write_json(out / f"{name}.json", found)
    save_picture(out / f"{name}.png", experiment, rows)
    for what, where in (
        ("models", "*/checkpoints"),
        ("result", f"{name}.json"),
        ("picture", f"{name}.png"),
    ):
        console.print(f"{what:9}{out / where}", soft_wrap=True)
    if as_json:
        click.echo(json.dumps({"out": str(out), "rows": rows}))


def _command(config: Any) -> str:
    """One that computes the same."""
    changed = [
        f"--set {field.name}={getattr(config, field.name)}"
        for field in fields(config)
        if getattr(config, field.name) != field.default
    ]
    return " ".join([f"minitorch {config.command}", *changed])
