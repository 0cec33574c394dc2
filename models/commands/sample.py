"""`minitorch sample`: continue a text with a trained model, token by token."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from minitorch.backend import DEVICES
from minitorch.errors import CheckpointError, ConfigError
from minitorch.random import Generator
from models import checkpoints
from models.commands.drawing import drawing_options
from models.families import FAMILIES, with_tokenizer
from models.generate import generate, start_of_text, stream_text
from models.machine import note_missing_kernels
from models.sampling import Sampler


@click.command(
    epilog="Example: minitorch sample --checkpoint runs/nano --prompt 'The ' --temperature 0.7 "
    "--top-p 0.95 --seed 3"
)
@click.option(
    "--checkpoint",
    "--out",
    "folder",
    type=click.Path(path_type=Path),
    help="What to load: a folder that `minitorch train` wrote, one of its checkpoints, or a "
    f"Hugging Face model ({', '.join(FAMILIES)}) with config.json, its weights as safetensors, "
    "and tokenizer.json. "
    "[default: the newest run in runs/]",
)
@click.option("--best", is_flag=True, help="The checkpoint of the lowest validation loss.")
@click.option("--prompt", default="", help="Text to continue.  [default: the start of a text]")
@click.option("--max-tokens", default=300, show_default=True, type=click.IntRange(min=0))
@click.option("--num-samples", default=1, show_default=True, type=click.IntRange(min=1))
@drawing_options
@click.option("--stop", multiple=True, help="End before this text. May be given several times.")
@click.option("--device", default="cpu", show_default=True, type=click.Choice(DEVICES))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a sample: text, tokens, log_probs."
)
def sample(
    folder: Path | None,
    best: bool,
    prompt: str,
    max_tokens: int,
    num_samples: int,
    stop: tuple[str, ...],
    device: str,
    seed: int,
    as_json: bool,
    **settings: float,
) -> None:
    """Continue a text with a trained model, token by token as they are drawn.

    The same seed gives the same text. Penalties, temperature, top-k, top-p and min-p act in this
    order.
    """
    sampler = Sampler(**settings)  # type: ignore[arg-type]
    if "" in stop:
        raise ConfigError("--stop: expected a text; got an empty one")
    path = checkpoints.model_folder(folder or newest_run(checkpoints.RUNS), best)
    model, tokenizer = with_tokenizer(path)
    model.to(device)
    note_missing_kernels()
    ids = tokenizer.encode(prompt, allowed_special="all") or start_of_text(tokenizer)
    generator = Generator(seed)
    for number in range(num_samples):
        drawn: list[tuple[int, float]] = []
        stream = generate(
            model,
            ids,
            max_tokens=max_tokens,
            sampler=sampler,
            generator=generator,
            vocab_size=tokenizer.vocab_size,
            stop_ids=tokenizer.special_tokens.values(),
        )
        pieces = stream_text(_recorded(stream, drawn), tokenizer, stop)
        if as_json:
            text = "".join(pieces)
            tokens, log_probs = zip(*drawn) if drawn else ((), ())
            result = {"checkpoint": str(path), "seed": seed, "sample": number, "prompt": prompt}
            result |= {"text": text, "tokens": tokens, "log_probs": log_probs}
            click.echo(json.dumps(result, ensure_ascii=False))
            continue
        if num_samples > 1:
            click.secho(f"--- sample {number + 1} of {num_samples}", dim=True)
        click.secho(prompt, nl=False, bold=True)
        for piece in pieces:
            click.echo(piece, nl=False)
            sys.stdout.flush()
        click.echo()


def newest_run(runs: Path) -> Path:
    """The run in the folder that was trained last."""
    found = [path for path in runs.glob("*") if checkpoints.steps(path / "checkpoints")]
    if not found:
        raise CheckpointError(
            f"no run in {runs}/ yet; train one with `minitorch train`, or give --checkpoint DIR"
        )
    return max(found, key=lambda path: checkpoints.newest(path).stat().st_mtime)


def _recorded(stream: Iterator[tuple[int, float]], into: list[tuple[int, float]]) -> Iterator[int]:
    for token, log_prob in stream:
        into.append((token, log_prob))
        yield token
