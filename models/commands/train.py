"""`minitorch train`: from a text to a model, shown while it happens, safe to interrupt."""

from minitorch.io import atomic_write
from minitorch.random import Generator
from models.commands.running import Job, duration, training_command
from models.config import TrainConfig
from models.corpus import prepare
from models.generate import generate, start_of_text, stream_text
from models.sampling import Sampler
from models.training import Run


@training_command(
    TrainConfig,
    shortcuts={
        "model": "Family of the model.",
        "data": "Text: a file, a folder, a URL, or the embedded corpus.",
    },
    examples=(
        "minitorch train",
        "minitorch train --model llama",
        "minitorch train --data book.txt --preset baby --set steps=2000 --out runs/book",
        "minitorch train --resume runs/book",
        "minitorch train --resume runs/book --set steps=4000",
    ),
)
def train(job: Job) -> None:
    """Train a language model on a text. Without options: a small GPT, in a few minutes.

    A setting comes from the last of these that names it: the defaults, --preset, --config, --set,
    and --model, --data, --seed and --device. Ctrl-C saves and stops; --resume goes on as if it
    never had stopped.
    """
    config, console, saved = job.config, job.console, job.saved
    with console.status(f"reading {config.data}"):
        corpus = prepare(config, None if saved is None else saved.path / "tokenizer.json")
    run = Run(config, corpus)
    about = [
        f"and a vocabulary of {corpus.tokenizer.vocab_size:,} {corpus.unit}s",
        f"{corpus.name}: {len(corpus.train):,} {corpus.unit}s to train on, "
        f"{len(corpus.validation):,} to validate",
    ]
    with job.owned(run, about):
        result = job.fit(run, title=f"on {corpus.name}", unit=f"nats per {corpus.unit}")
        console.print(
            f"\n{run.step} steps in {duration(run.elapsed)}: validation loss "
            f"[bold]{result['val_loss']:.4f}[/] nats per {corpus.unit}, "
            f"{result['bits_per_byte']:.3f} bits per byte"
        )
        text = _sample(run, config.sample_tokens)
        if text:
            with atomic_write(job.out / "sample.txt") as file:
                file.write(text.encode())
            console.rule("a sample", style="dim")
            console.print(text, markup=False, soft_wrap=True)
            console.rule(style="dim")
        job.report({**result, "sample": text}, "sample --checkpoint")


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
