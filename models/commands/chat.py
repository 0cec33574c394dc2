"""`minitorch chat`: talk to a model that has learnt to answer."""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from minitorch.backend import DEVICES
from minitorch.errors import ConfigError
from minitorch.random import Generator
from minitorch.tokenizers import Tokenizer
from models import checkpoints
from models.chat import Message, end_id, render_prompt
from models.commands.drawing import drawing_options
from models.commands.sample import newest_run
from models.families import Model, with_tokenizer
from models.generate import generate, stream_text
from models.machine import note_missing_kernels
from models.sampling import Sampler

FORGET = "/forget"


@click.command(
    epilog="Example: minitorch chat --checkpoint runs/sft --system 'Be brief.' --temperature 0"
)
@click.option(
    "--checkpoint",
    "--out",
    "folder",
    type=click.Path(path_type=Path),
    help="A folder that `minitorch sft` or another command wrote, or a Hugging Face model with the "
    "special tokens of ChatML.  [default: the newest run in runs/]",
)
@click.option("--best", is_flag=True, help="The checkpoint that was judged best.")
@click.option("--system", default="", help="What the model is told before all questions.")
@click.option("--max-tokens", default=300, show_default=True, type=click.IntRange(min=1))
@drawing_options
@click.option("--device", default="cpu", show_default=True, type=click.Choice(DEVICES))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
def chat(
    folder: Path | None,
    best: bool,
    system: str,
    max_tokens: int,
    device: str,
    seed: int,
    **settings: float,
) -> None:
    """Talk to a model: a line is a question, the answer appears as it is written.

    /forget begins anew; Ctrl-D ends. Ctrl-C ends an answer that is too long. Where a talk is longer
    than the model's context its oldest questions are forgotten first.
    """
    sampler = Sampler(**settings)  # type: ignore[arg-type]
    model, tokenizer = with_tokenizer(
        checkpoints.model_folder(folder or newest_run(checkpoints.RUNS), best)
    )
    model.to(device)
    note_missing_kernels()
    generator = Generator(seed)
    begin = [Message("system", system)] if system else []
    said = list(begin)
    while (question := _read()) is not None:
        if question == FORGET:
            said = list(begin)
        elif question:
            said.append(Message("user", question))
            kept = fitting(said, tokenizer, model.config.max_position_embeddings)
            answer = _answer(model, tokenizer, kept, max_tokens, sampler, generator)
            said = [*kept, Message("assistant", answer)]


def _read() -> str | None:
    """The next line, None at the end; asked for where somebody sits before it."""
    if sys.stdin.isatty():
        click.secho("> ", nl=False, bold=True)
    line = sys.stdin.readline()
    return line.strip() if line else None


def _answer(
    model: Model,
    tokenizer: Tokenizer,
    said: Sequence[Message],
    max_tokens: int,
    sampler: Sampler,
    generator: Generator,
) -> str:
    """Write the answer as it comes; returns it, or what there is of it at Ctrl-C."""
    prompt = render_prompt(said, tokenizer)
    stream = generate(
        model,
        prompt,
        max_tokens=min(max_tokens, model.config.max_position_embeddings - len(prompt)),
        sampler=sampler,
        generator=generator,
        vocab_size=tokenizer.vocab_size,
        stop_ids={end_id(tokenizer), *tokenizer.special_tokens.values()},
    )
    answer = ""
    try:
        for piece in stream_text((token for token, _ in stream), tokenizer):
            click.echo(piece, nl=False)
            sys.stdout.flush()
            answer += piece
    except KeyboardInterrupt:
        click.secho(" …", nl=False, dim=True)
    click.echo()
    return answer


def fitting(said: Sequence[Message], tokenizer: Tokenizer, context: int) -> list[Message]:
    """The talk without its oldest questions and answers, so that it and a token fit.

    The system's message and the last question stay. Raises ConfigError where they are too long.
    """
    kept = list(said)
    first = int(kept[0].role == "system")
    while len(render_prompt(kept, tokenizer)) >= context:
        if len(kept) == first + 1:
            raise ConfigError(
                f"chat: the question is longer than the model's context of {context} tokens"
            )
        del kept[first : first + 2]
    return kept
