"""`minitorch train`: from a text to a model, shown while it happens, safe to interrupt."""

import contextlib
import json
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.columns import Columns
from rich.console import Console
from rich.table import Table

from minitorch.backend import DEVICES
from minitorch.errors import CheckpointError, ConfigError
from minitorch.io import atomic_write
from minitorch.random import Generator
from models import checkpoints
from models.config import PRESETS, TrainConfig, describe, parse_assignment, resolve, resumed
from models.corpus import prepare
from models.display import display
from models.families import FAMILIES
from models.generate import generate, start_of_text, stream_text
from models.interrupts import Interrupts
from models.loss_curve import draw_loss_curve
from models.machine import note_missing_kernels
from models.runlog import RunLog
from models.sampling import Sampler
from models.training import DivergenceError, Run, Stopped, fit

RUNS = Path("runs")
OWNED = ("config.toml", "log.jsonl", "loss.png", "sample.txt", "checkpoints", "tensorboard")
"""What a run consists of, all in its folder: --overwrite deletes this and nothing else."""


class _Train(click.Command):
    """A command that knows what was meant by `--steps 100`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            key = error.option_name.lstrip("-").replace("-", "_")
            if key not in {name for name, *_ in describe()}:
                raise
            raise click.UsageError(
                f"no such option {error.option_name}; it is a setting: --set {key}=VALUE", ctx
            ) from None


def _list_settings(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    table = Table("key", "default", "meaning", box=None, pad_edge=False)
    for key, default, *_, meaning in describe():
        table.add_row(key, default, meaning)
    Console(highlight=False).print(table)
    ctx.exit()


@click.command(
    cls=_Train,
    epilog="""
    \b
    Examples:
      minitorch train
      minitorch train --model llama
      minitorch train --data book.txt --preset baby --set steps=2000 --out runs/book
      minitorch train --resume runs/book
      minitorch train --resume runs/book --set steps=4000
    """,
)
@click.option("--preset", type=click.Choice(list(PRESETS)), help="Sizes to begin with.  [nano]")
@click.option("--model", type=click.Choice(list(FAMILIES)), help="Family of the model.  [gpt2]")
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file of settings.")
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="One setting; repeatable."
)
@click.option("--data", help="Text: a file, a folder, a URL.  [the embedded corpus]")
@click.option("--seed", type=int, help="Of weights, order of the data and dropout.  [1337]")
@click.option("--device", type=click.Choice(DEVICES), help="Where it computes.  [cpu]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.  [runs/PRESET]")
@click.option("--resume", type=click.Path(path_type=Path), help="Go on with this run.")
@click.option("--overwrite", is_flag=True, help="Replace the run that --out holds.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option(
    "--settings",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_settings,
    help="List the keys of --set with default and meaning, and exit.",
)
def train(
    preset: str | None,
    model: str | None,
    file: Path | None,
    assignments: tuple[str, ...],
    data: str | None,
    seed: int | None,
    device: str | None,
    out: Path | None,
    resume: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train a language model on a text. Without options: a small GPT, in a few minutes.

    A setting comes from the last of these that names it: the defaults, --preset, --config, --set,
    and --model, --data, --seed and --device. Ctrl-C saves and stops; --resume goes on as if it
    never had stopped.
    """
    overrides: dict[str, Any] = dict(map(parse_assignment, assignments))
    given = {"model": model, "data": data, "seed": seed, "device": device}
    overrides |= {key: value for key, value in given.items() if value is not None}
    if data is not None and Path(data).exists():
        overrides["data"] = str(Path(data).absolute())  # the run may go on from another folder
    if resume is not None:
        if preset or file or overwrite or out not in (None, resume):
            raise click.UsageError(
                "--resume takes the settings of the run; only --set and --device go with it"
            )
        out, config, saved = resume, *_read(resume, overrides)
    else:
        config, saved = resolve(preset or "nano", file, overrides), None
        out = out or _free(RUNS / (preset or "nano"))
        _check_out(out, overwrite)
    stream = sys.stderr if as_json else sys.stdout
    # FORCE_COLOR and notebooks would have rich draw moving lines into what is only a file.
    console = Console(
        file=stream, highlight=False, force_terminal=stream.isatty(), force_jupyter=False
    )
    note_missing_kernels()
    with console.status(f"reading {config.data}"):
        corpus = prepare(config, None if saved is None else saved.path / "tokenizer.json")
    run = Run(config, corpus)
    if saved is not None:
        run.restore(saved)
    with _own(out, overwrite):
        config.save(out / "config.toml")
        _introduce(console, run, out)
        result = _train(console, run, out)
    if as_json:
        click.echo(json.dumps(result))


def _train(console: Console, run: Run, out: Path) -> dict[str, Any]:
    """Train, draw, sample; the result as JSON has it."""
    config = run.config
    with RunLog(out, run.step) as log, Interrupts() as interrupts:
        show = display(console, run.step, config.steps)
        try:
            path = fit(run, log, out / "checkpoints", show, lambda: interrupts.received is not None)
        except Stopped as stopped:
            show.close()
            if stopped.checkpoint is None:
                console.print("stopped before the first step; there is nothing to save")
            else:
                console.print(f"stopped at step {run.step}, saved as {stopped.checkpoint}")
                console.print(f"go on with: {_again('train --resume', out)}", soft_wrap=True)
            raise SystemExit(143 if interrupts.received == signal.SIGTERM else 130) from None
        except (DivergenceError, CheckpointError) as error:
            raise type(error)(f"{error}. {_remedy(out, error)}") from error
        finally:
            show.close()
    draw_loss_curve(
        out / "loss.png",
        run.losses,
        log.rows,
        title=f"{run.model.config.title}, {run.model.num_parameters() / 1e6:.2f} M parameters, "
        f"on {run.corpus.name}",
        unit=f"nats per {run.corpus.unit}",
    )
    last = log.rows[-1]
    console.print(
        f"\n{run.step} steps in {_duration(run.elapsed)}: validation loss "
        f"[bold]{last['val_loss']:.4f}[/] nats per {run.corpus.unit}, "
        f"{last['bits_per_byte']:.3f} bits per byte"
    )
    text = _sample(run, config.sample_tokens)
    if text:
        with atomic_write(out / "sample.txt") as file:
            file.write(text.encode())
        console.rule("a sample", style="dim")
        console.print(text, markup=False, soft_wrap=True)
        console.rule(style="dim")
    for name, place in (("model", path), ("log", out / "log.jsonl"), ("picture", out / "loss.png")):
        console.print(f"{name:8}{place}", soft_wrap=True)
    console.print(f"more of it: {_again('sample --checkpoint', out)}", soft_wrap=True)
    return {"out": str(out), "checkpoint": str(path), **last, "sample": text}


def _sample(run: Run, length: int) -> str:
    """Text that the trained model writes, beginning with its start of a text."""
    tokenizer = run.corpus.tokenizer
    with run.averaged_weights():
        stream = generate(
            run.model,
            start_of_text(tokenizer),
            max_tokens=length,
            sampler=Sampler(temperature=0.8),
            generator=Generator(run.config.seed),
        )
        return "".join(stream_text((token for token, _ in stream), tokenizer)).strip()


def _read(out: Path, overrides: dict[str, Any]) -> tuple[TrainConfig, checkpoints.Checkpoint]:
    """The configuration that a run goes on with, and its newest checkpoint."""
    if (out / checkpoints.STATE).is_file():
        raise ConfigError(
            f"--resume {out}: this is a checkpoint; give the folder of the run, {out.parent.parent}"
        )
    saved = checkpoints.load(checkpoints.newest(out))
    before = TrainConfig(**saved.state["config"])
    now = resolve(file=out / "config.toml")
    config = resumed(before, now, overrides)
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


@contextlib.contextmanager
def _own(out: Path, overwrite: bool) -> Iterator[None]:
    """The folder of the run, made or emptied, and locked against other processes."""
    out.mkdir(parents=True, exist_ok=True)
    with checkpoints.exclusive(out):
        for name in OWNED if overwrite else ():
            if (out / name).is_dir():
                shutil.rmtree(out / name)
            else:
                (out / name).unlink(missing_ok=True)
        yield


def _introduce(console: Console, run: Run, out: Path) -> None:
    corpus, config = run.corpus, run.config
    console.print(
        f"[bold]{out}[/]: {run.model.config.title} with {run.model.num_parameters():,} parameters "
        f"and a vocabulary of {corpus.tokenizer.vocab_size:,} {corpus.unit}s"
    )
    console.print(
        f"{corpus.name}: {len(corpus.train):,} {corpus.unit}s to train on, "
        f"{len(corpus.validation):,} to validate"
    )
    if run.step:
        console.print(f"going on from step {run.step}")
    console.print(
        Columns(config.toml(), padding=(0, 3), equal=True, column_first=True), style="dim"
    )
    console.print()


def _remedy(out: Path, error: Exception) -> str:
    """How to go on after an error, from which checkpoint."""
    found = checkpoints.steps(out / "checkpoints")
    if not found:
        return "No checkpoint has been saved yet"
    change = " --set learning_rate=…" if isinstance(error, DivergenceError) else ""
    advice = "a lower learning rate or grad_clip" if change else "room on the disk"
    return (
        f"The last good checkpoint is {found[-1]}; with {advice}, go on with: "
        f"{_again('train --resume', out)}{change}"
    )


def _again(command: str, out: Path) -> str:
    """A command of this program for a folder, such that it can be pasted into the same shell."""
    called, found = sys.argv[0], shutil.which("minitorch")
    program = "minitorch"
    if Path(called).name == program and not (found and Path(found).samefile(called)):
        program = called  # from a virtual environment that is not activated
    return f"{shlex.quote(program)} {command} {shlex.quote(str(out))}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
