"""What the commands that train have in common: options, the folder of a run, stopping, going on."""

import contextlib
import json
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
from rich.columns import Columns
from rich.console import Console
from rich.table import Table

from minitorch.errors import CheckpointError, ConfigError, MinitorchError
from models import checkpoints
from models.display import display
from models.interrupts import Interrupts
from models.loss_curve import draw_loss_curve
from models.machine import note_missing_kernels
from models.optimization import TrainingSettings
from models.options import parse_assignment
from models.recipes.loop import Stopped, fit
from models.recipes.recipe import DivergenceError, Recipe
from models.runlog import RunLog

OWNED = (
    "config.toml",
    "log.jsonl",
    "loss.png",
    "sample.txt",
    "rollouts.jsonl",
    "rollouts.html",
    "checkpoints",
    "tensorboard",
)
"""What a run consists of, all in its folder: --overwrite deletes this and nothing else."""


def training_command(
    settings: type[TrainingSettings], shortcuts: Mapping[str, str], examples: Sequence[str]
) -> Callable[[Callable[["Job"], None]], click.Command]:
    """A command of a function that takes a `Job`; its docstring is the help.

    shortcuts: settings that have an option of their own besides --set, with its help; --seed and
    --device are always among them.
    """

    def decorate(function: Callable[["Job"], None]) -> click.Command:
        def call(**given: Any) -> None:
            function(_job(settings, **given))

        epilog = "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples)
        names = {**shortcuts, "seed": "Of all that is drawn.", "device": "Where it computes."}
        return _TrainingCommand(
            name=settings.command,
            callback=call,
            help=function.__doc__,
            epilog=epilog,
            params=_options(settings, names),
            settings=settings,
        )

    return decorate


class _TrainingCommand(click.Command):
    """A command that knows what was meant by `--steps 100`."""

    def __init__(self, *arguments: Any, settings: type[TrainingSettings], **options: Any):
        super().__init__(*arguments, **options)
        self.settings = settings

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            key = error.option_name.lstrip("-").replace("-", "_")
            if key not in {field.name for field in fields(self.settings)}:
                raise
            raise click.UsageError(
                f"no such option {error.option_name}; it is a setting: --set {key}=VALUE", ctx
            ) from None


def _options(settings: type[TrainingSettings], shortcuts: Mapping[str, str]) -> list[click.Option]:
    folder = click.Path(path_type=Path)

    def listing(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
        if wanted:
            _list_settings(settings)
            ctx.exit()

    options = [
        click.Option(["--config", "file"], type=folder, help="TOML file of settings."),
        click.Option(
            ["--set", "assignments"],
            multiple=True,
            metavar="KEY=VALUE",
            help="One setting; repeatable.",
        ),
        *(_shortcut(settings, name, help) for name, help in shortcuts.items()),
        click.Option(
            ["--out"],
            type=folder,
            help=f"Folder of the run.  [runs/{'PRESET' if settings.presets else settings.command}]",
        ),
        click.Option(["--resume"], type=folder, help="Go on with this run."),
        click.Option(["--overwrite"], is_flag=True, help="Replace the run that --out holds."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print the result as JSON."),
        click.Option(
            ["--settings"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=listing,
            help="List the keys of --set with default and meaning, and exit.",
        ),
    ]
    if settings.presets:
        first, *_ = settings.presets
        choice = click.Choice(list(settings.presets))
        options.insert(
            0, click.Option(["--preset"], type=choice, help=f"Sizes to begin with.  [{first}]")
        )
    return options


def _shortcut(settings: type[TrainingSettings], name: str, help: str) -> click.Option:
    (field,) = (field for field in fields(settings) if field.name == name)
    choices, default = field.metadata["choices"], field.default
    return click.Option(
        [f"--{name.replace('_', '-')}", name],
        type=click.Choice(choices) if choices else field.type,
        help=help if default == "" else f"{help}  [{default}]",
    )


def _list_settings(settings: type[TrainingSettings]) -> None:
    table = Table("key", "default", "meaning", box=None, pad_edge=False)
    for key, default, *_, meaning in settings.describe():
        table.add_row(key, default, meaning)
    Console(highlight=False).print(table)


@dataclass(frozen=True)
class Job:
    """What a command line asks for. saved: the checkpoint to go on from, if it is to go on."""

    config: Any
    out: Path
    saved: checkpoints.Checkpoint | None
    overwrite: bool
    as_json: bool
    console: Console

    @contextlib.contextmanager
    def owned(self, recipe: Recipe, about: Sequence[str]) -> Iterator[None]:
        """Within the block the folder of the run is there, and locked against other processes.

        The recipe goes on from the checkpoint, if there is one. about: lines that introduce it.
        """
        if self.saved is not None:
            recipe.restore(self.saved)
        self.out.mkdir(parents=True, exist_ok=True)
        with checkpoints.exclusive(self.out):
            for name in OWNED if self.overwrite else ():
                if (self.out / name).is_dir():
                    shutil.rmtree(self.out / name)
                else:
                    (self.out / name).unlink(missing_ok=True)
            self.config.save(self.out / "config.toml")
            self._introduce(recipe, about)
            yield

    def _introduce(self, recipe: Recipe, about: Sequence[str]) -> None:
        model = recipe.model
        self.console.print(
            f"[bold]{self.out}[/]: {model.config.title} with {model.num_parameters():,} parameters "
            f"{about[0]}"
        )
        for line in about[1:]:
            self.console.print(line)
        if recipe.step:
            self.console.print(f"going on from step {recipe.step}")
        self.console.print(
            Columns(self.config.toml(), padding=(0, 3), equal=True, column_first=True), style="dim"
        )
        self.console.print()

    def fit(self, recipe: Recipe, *, title: str, unit: str) -> dict[str, Any]:
        """Train to the last step, and draw it; the result as JSON has it.

        title: of the picture, after the model's. unit: of the loss. Ends the program where it was
        asked to stop.
        """
        log = RunLog(self.out, recipe.step, recipe.best_by, recipe.higher_is_better)
        with log, Interrupts() as interrupts:
            show = display(self.console, recipe.step, self.config.steps, recipe.columns)
            try:
                path = fit(
                    recipe,
                    log,
                    self.out / "checkpoints",
                    show,
                    lambda: interrupts.received is not None,
                )
            except Stopped as stopped:
                show.close()
                self._say_how_to_go_on(recipe, stopped)
                raise SystemExit(143 if interrupts.received == signal.SIGTERM else 130) from None
            except MinitorchError as error:
                raise type(error)(f"{error}. {self._remedy(error)}") from error
            finally:
                show.close()
        model = recipe.model
        draw_loss_curve(
            self.out / "loss.png",
            recipe.losses,
            log.rows,
            title=f"{model.config.title}, {model.num_parameters() / 1e6:.2f} M parameters, {title}",
            unit=unit,
        )
        return {"out": str(self.out), "checkpoint": str(path), **log.rows[-1]}

    def report(self, result: dict[str, Any], more: str = "") -> None:
        """Say where everything is, and the command that shows more of it, if there is one."""
        places = {
            "model": result["checkpoint"],
            "log": self.out / "log.jsonl",
            "picture": self.out / "loss.png",
        }
        for name, place in places.items():
            self.console.print(f"{name:8}{place}", soft_wrap=True)
        if more:
            self.console.print(f"more of it: {self.again(more)}", soft_wrap=True)
        if self.as_json:
            click.echo(json.dumps(result))

    def _say_how_to_go_on(self, recipe: Recipe, stopped: Stopped) -> None:
        if stopped.checkpoint is None:
            self.console.print("stopped before the first step; there is nothing to save")
            return
        self.console.print(f"stopped at step {recipe.step}, saved as {stopped.checkpoint}")
        again = self.again(f"{self.config.command} --resume")
        self.console.print(f"go on with: {again}", soft_wrap=True)

    def _remedy(self, error: Exception) -> str:
        """How to go on after an error, from which checkpoint."""
        found = checkpoints.steps(self.out / "checkpoints")
        if not found:
            return "No checkpoint has been saved yet"
        change, advice = "", "that put right"
        if isinstance(error, DivergenceError):
            change, advice = " --set learning_rate=…", "a lower learning rate or grad_clip"
        elif isinstance(error, CheckpointError):
            advice = "room on the disk"
        return (
            f"The last good checkpoint is {found[-1]}; with {advice}, go on with: "
            f"{self.again(f'{self.config.command} --resume')}{change}"
        )

    def again(self, command: str) -> str:
        """A command of this program for the folder, to be pasted into the same shell."""
        called, found = sys.argv[0], shutil.which("minitorch")
        program = "minitorch"
        if Path(called).name == program and not (found and Path(found).samefile(called)):
            program = called  # from a virtual environment that is not activated
        return f"{shlex.quote(program)} {command} {shlex.quote(str(self.out))}"


def duration(seconds: float) -> str:
    """In words."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _job(
    settings: type[TrainingSettings],
    *,
    file: Path | None,
    assignments: tuple[str, ...],
    out: Path | None,
    resume: Path | None,
    overwrite: bool,
    as_json: bool,
    preset: str | None = None,
    **shortcuts: Any,
) -> Job:
    overrides: dict[str, Any] = dict(map(parse_assignment, assignments))
    overrides |= {key: value for key, value in shortcuts.items() if value is not None}
    for field in fields(settings):
        given = overrides.get(field.name)
        if isinstance(given, str) and given and not field.metadata["choices"]:
            path = Path(given)
            if path.exists():  # the run may go on from elsewhere
                overrides[field.name] = str(path.absolute())
    if resume is not None:
        if preset or file or overwrite or out not in (None, resume):
            raise click.UsageError(
                "--resume takes the settings of the run; only --set and --device go with it"
            )
        out, config, saved = resume, *_read(settings, resume, overrides)
    else:
        config, saved = settings.resolve(preset, file, overrides), None
        name = preset or next(iter(settings.presets), settings.command)
        out = out or _free(checkpoints.RUNS / name)
        _check_out(out, overwrite)
    stream = sys.stderr if as_json else sys.stdout
    # FORCE_COLOR and notebooks would have rich draw moving lines into what is only a file.
    console = Console(
        file=stream, highlight=False, force_terminal=stream.isatty(), force_jupyter=False
    )
    note_missing_kernels()
    return Job(config, out, saved, overwrite, as_json, console)


def _read(
    settings: type[TrainingSettings], out: Path, overrides: dict[str, Any]
) -> tuple[TrainingSettings, checkpoints.Checkpoint]:
    """The configuration that a run goes on with, and its newest checkpoint."""
    if (out / checkpoints.STATE).is_file():
        raise ConfigError(
            f"--resume {out}: this is a checkpoint; give the folder of the run, {out.parent.parent}"
        )
    saved = checkpoints.load(checkpoints.newest(out))
    command = saved.state.get("command")
    if command is None:
        raise ConfigError(
            f"--resume {out}: another version of minitorch began this run; train anew"
        )
    if command != settings.command:
        raise ConfigError(
            f"--resume {out}: this run was begun by `minitorch {command}`; go on with it by "
            f"`minitorch {command} --resume {out}`"
        )
    now = settings.resolve(file=out / "config.toml")
    config = settings(**saved.state["config"]).resumed(now, overrides)
    if config.steps < saved.step:
        raise ConfigError(f"steps: this run has done {saved.step} already; got {config.steps}")
    return config, saved


def _free(out: Path) -> Path:
    """out, or out-2, out-3, ...: the first that does not exist."""
    number, candidate = 1, out
    while candidate.exists():
        number += 1
        candidate = out.with_name(f"{out.name}-{number}")
    return candidate


def _check_out(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: there is a file of this name; choose another folder")
    if not overwrite and any((out / name).exists() for name in OWNED):
        raise ConfigError(
            f"--out {out} already holds a run; go on with it by --resume {out}, replace it by "
            "--overwrite, or choose another folder"
        )
