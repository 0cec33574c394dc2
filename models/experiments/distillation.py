"""What a teacher's distribution is worth to a student, beside the text that it is about.

A teacher has read the whole training text. Students of a twentieth of its size, alike to the bit at
the start, see one part of it in the same batches for the same number of steps. They learn:

    the text             the character that comes next
    the teacher          its softened distribution of what might come next, and a little the text
    an untrained teacher  the same, from a teacher that knows nothing: the negative control

Expected (Hinton et al. 2015, arXiv 1503.02531, section 3, where a small net recovers most of what a
large one knows): the student of the teacher reads new text better than the student of the text,
since each distribution says more than the one character that came. The student of the untrained
teacher reads it worse.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console

import minitorch as mt
from minitorch import nn, rl
from minitorch.backend import DEFAULT_FLOAT
from minitorch.data import BatchLoader
from minitorch.random import Generator
from minitorch.tensor import Tensor
from models.decoder import Decoder
from models.experiments.experiment import Claim, Experiment, Row, by_name
from models.experiments.learning import embedded, mean_loss, train
from models.llama import LlamaConfig

HEADS = 4


@dataclass(frozen=True)
class Setup:
    """part: the share of the training text that students see."""

    length: int = 64
    batch_size: int = 16
    teacher_width: int = 128
    teacher_layers: int = 3
    teacher_steps: int = 900
    width: int = 32
    layers: int = 2
    steps: int = 700
    part: float = 0.1
    alpha: float = 0.9
    temperature: float = 2.0
    learning_rate: float = 3e-3
    validation_tokens: int = 20_000


class Taught:
    """A student with a teacher beside it, which an optimizer does not see."""

    def __init__(self, student: Decoder, teacher: Decoder, setup: Setup):
        self.student, self.teacher, self.setup = student, teacher.eval(), setup
        self.parameters, self.train = student.parameters, student.train

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """That of `minitorch distill`."""
        with mt.no_grad():
            teacher = self.teacher(ids)[0]
        student, hard = self.student(ids, targets)
        everywhere = mt.ones(*ids.shape)
        temperature, alpha = self.setup.temperature, self.setup.alpha
        soft = rl.distillation_loss(student, teacher, everywhere, temperature=temperature)
        assert hard is not None
        return (1 - alpha) * hard + alpha * soft


def build(setup: Setup, vocab_size: int, width: int, layers: int, seed: int) -> Decoder:
    """A Llama with random weights."""
    sizes = LlamaConfig.sized(
        vocab_size=vocab_size, layers=layers, heads=HEADS, width=width, positions=setup.length
    )
    return sizes.build(DEFAULT_FLOAT, Generator(seed))


def batches(ids: np.ndarray, setup: Setup, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of a text at random."""
    return iter(BatchLoader(ids, setup.batch_size, setup.length, seed))


def run(setup: Setup, seed: int, console: Console) -> list[Row]:
    """How well each model reads text that none has seen."""
    text = embedded(setup.length)
    rate = setup.learning_rate
    untrained, teacher = (
        build(setup, text.vocab_size, setup.teacher_width, setup.teacher_layers, seed)
        for _ in range(2)
    )
    stream = batches(text.train, setup, seed + 1)
    train(teacher, stream, setup.teacher_steps, rate, console, "teacher")
    rows = [measured("teacher", teacher, text.train, text.validation, setup)]
    part = text.train[: round(setup.part * len(text.train))]
    for name, master in (
        ("the text", None),
        ("the teacher", teacher),
        ("an untrained teacher", untrained),
    ):
        student = build(setup, text.vocab_size, setup.width, setup.layers, seed + 2)
        learner = student if master is None else Taught(student, master, setup)
        train(learner, batches(part, setup, seed + 3), setup.steps, rate, console, name)
        rows.append(measured(name, student, part, text.validation, setup))
    return rows


def measured(
    name: str, model: nn.Module, seen: np.ndarray, unseen: np.ndarray, setup: Setup
) -> Row:
    """Losses in nats per character, on text that it has seen and on text that it has not."""
    tokens = setup.validation_tokens
    return {
        "variant": name,
        "parameters": model.num_parameters(),
        "seen": mean_loss(model, seen, setup.length, tokens),
        "unseen": mean_loss(model, unseen, setup.length, tokens),
    }


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Of the loss on text that no model has seen."""
    found = {name: row["unseen"] for name, row in by_name(rows).items()}
    alone = found["the text"]
    return [
        Claim("the teacher gains, nats", alone - found["the teacher"], ">=", 0.02),
        Claim("of what the teacher knows more, it gives on",
              (alone - found["the teacher"]) / (alone - found["teacher"]), ">=", 0.05),
        Claim("an untrained teacher gains, nats", alone - found["an untrained teacher"], "<=", 0.0,
              control=True),
    ]  # fmt: skip


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    """Bars of the loss on text seen and not."""
    at = np.arange(len(rows))
    for shift, key in ((-0.2, "seen"), (0.2, "unseen")):
        axes.bar(at + shift, [row[key] for row in rows], 0.4, label=f"text {key}")
    names = ["the teacher itself", *(f"learns from\n{row['variant']}" for row in rows[1:])]
    axes.set_xticks(at, names)
    axes.set(ylabel="nats per character", ylim=(1, None))
    axes.legend()


EXPERIMENT = Experiment(
    name="distillation",
    question="What is a teacher's distribution worth to a student?",
    setup=Setup(),
    quick=Setup(
        length=8,
        batch_size=2,
        teacher_width=16,
        teacher_layers=1,
        teacher_steps=2,
        width=8,
        layers=1,
        steps=2,
        validation_tokens=64,
    ),
    run=run,
    claims=claims,
    draw=draw,
)
