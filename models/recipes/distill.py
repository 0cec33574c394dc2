r"""Distillation: a student learns what a teacher thinks of all next tokens, not the one that came.

    loss = (1 - alpha) cross-entropy(text) + alpha T² D(teacher, student; both softened by T)

D is the forward or the reverse KL divergence, or a Jensen-Shannon divergence between the two; with
top_k only the teacher's likeliest tokens and all others together (minitorch/rl/distillation.py).

A share of the steps, `on_policy`, measures D on texts that the student continues itself, so that it
learns where its own mistakes lead; which token stands there is then nobody's advice, and the
cross-entropy is left out. To learn from texts that the teacher has written instead (sequence-level
distillation) is fine-tuning, and needs no recipe of its own.

Sources: Hinton et al. 2015 (arXiv 1503.02531); on-policy, Agarwal et al. 2023, "GKD" (2306.13649),
whose lambda is on_policy; on sequences, Kim and Rush 2016 (1606.07947).
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

import minitorch as mt
from minitorch import rl
from minitorch.errors import ConfigError
from minitorch.tensor import Tensor
from minitorch.tokenizers import Tokenizer
from models import checkpoints
from models.config import LanguageModelSettings, TrainConfig
from models.corpus import Corpus, prepare
from models.families import Model, with_tokenizer
from models.options import option
from models.recipes.data import IGNORED
from models.recipes.recipe import Metrics
from models.recipes.start import check_same_vocabulary
from models.rollouts import begin, extend
from models.sampling import Sampler
from models.training import Run, build_model


@dataclass(frozen=True, kw_only=True)
class DistillConfig(LanguageModelSettings):
    """Who teaches whom, on what text, and how."""

    command: ClassVar[str] = "distill"

    n_layer: int = option(2, "number of transformer blocks", at_least=1, fixed=True)
    n_embd: int = option(64, "width of the model", at_least=1, fixed=True)

    teacher: str = option("", "folder of the model that is learnt from", fixed=True)
    student: str = option(
        "", "folder of the model that learns; without, a new one of the sizes above", fixed=True
    )
    alpha: float = option(
        0.9, "weight of the teacher's word; that of the text is the rest", above=0, at_most=1
    )
    temperature: float = option(2.0, "by which both are softened", above=0)
    divergence: str = option("forward", "what is made small", choices=("forward", "reverse", "jsd"))
    beta: float = option(
        0.5, "with `jsd`, from `forward` near 0 to `reverse` near 1", above=0, below=1
    )
    top_k: int = option(
        0, "with `forward`, tokens of the teacher that are told apart; 0: all", at_least=0
    )
    on_policy: float = option(
        0.0, "share of the steps on what the student writes itself", at_least=0, at_most=1
    )
    prompt_length: int = option(
        8, "tokens of the text that the student continues in such a step", at_least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k and self.divergence != "forward":
            raise ConfigError(
                f"top_k: expected 0 with divergence={self.divergence}; got {self.top_k}. What the "
                "teacher has not said of the other tokens is only known to forward"
            )
        if self.on_policy and self.prompt_length >= self.block_size:
            raise ConfigError(
                f"prompt_length: expected less than block_size = {self.block_size}, so that there "
                f"is something to write; got {self.prompt_length}"
            )


class Distillation(Run):
    """A run on a text with a teacher beside it."""

    columns: ClassVar[Mapping[str, str]] = {
        **Run.columns,
        "to_teacher": "{:+.4f} to the teacher",
    }
    config: DistillConfig

    def __init__(
        self, config: DistillConfig, corpus: Corpus, teacher: Model, student: Model | None = None
    ):
        mt.manual_seed(config.seed)
        student = student or build_model(config, teacher.config.vocab_size)
        super().__init__(config, corpus, student)
        self.teacher: Any = teacher.to(config.device).requires_grad_(False)
        self._check()
        self.divergence = _divergence(config)
        self.teacher_loss = self.validation_loss(self.teacher) or 0.0

    def _check(self) -> None:
        config, sizes = self.config, self.teacher.config
        if self.model.config.vocab_size != sizes.vocab_size:
            raise ConfigError(
                f"student: expected the teacher's vocabulary of {sizes.vocab_size} tokens; got "
                f"{self.model.config.vocab_size}"
            )
        for name, model in (("teacher", self.teacher), ("student", self.model)):
            longest = model.config.max_position_embeddings
            if config.block_size > longest:
                raise ConfigError(
                    f"block_size: expected at most {longest}, the context of the {name}; got "
                    f"{config.block_size}"
                )

    def batches(self) -> tuple[np.ndarray, np.ndarray]:
        ids, targets = super().batches()
        return self._continued(ids) if self.is_on_policy(self.step) else (ids, targets)

    def is_on_policy(self, step: int) -> bool:
        """Whether a step is one on what the student writes: a share of them, evenly spread."""
        return math.floor((step + 1) * self.config.on_policy) > math.floor(
            step * self.config.on_policy
        )

    def _continued(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The student's continuations of the first tokens of ids; a prompt is nobody's word."""
        start, length = self.config.prompt_length, ids.shape[-1]
        prompts = ids[..., :start].reshape(-1, start).tolist()
        written = self.continued(prompts, length, first=self.step * len(prompts))
        self.model.train()
        targets = np.full_like(written, IGNORED)
        targets[:, start - 1 : -1] = written[:, start:]
        return written.reshape(ids.shape), targets.reshape(ids.shape)

    def continued(
        self, prompts: Sequence[Sequence[int]], length: int, first: int = 0
    ) -> np.ndarray:
        """The prompts and what the student writes after them: (prompts, length).

        first: the number of the first prompt, which decides what is drawn.
        """
        rollouts = extend(
            self.model,
            begin(prompts, first=first),
            max_tokens=length - len(prompts[0]),
            sampler=Sampler(),
            seed=self.config.seed,
            vocab_size=self.tokenizer.vocab_size,
        )
        return np.array([rollout.ids for rollout in rollouts])

    def compared(self, ids: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each token from `start` on: log p of student and teacher, and their divergence.

        ids: (batch, time). Returns three arrays (batch, time - start). The divergence is the one
        that the run makes small.
        """
        self.model.eval()
        tokens = mt.from_numpy(ids).to(self.config.device)
        with mt.no_grad(), self.precision():
            logits = [
                model(tokens)[0][:, start - 1 : -1].float() for model in (self.model, self.teacher)
            ]
        written = tokens[:, start:].unsqueeze(-1)
        everything = tokens[:, start:] >= 0
        student, teacher = (x.log_softmax(-1).gather(-1, written).squeeze(-1) for x in logits)
        divergences = self.divergence(
            logits[0], logits[1], everything, aggregate=lambda values, _: values
        )
        return student.numpy(), teacher.numpy(), divergences.numpy()

    def objective(self, ids: Tensor, targets: Tensor) -> Tensor:
        with self.precision():
            with mt.no_grad():
                teacher = self.teacher(ids)[0].float()
            student, loss = self.model(ids, targets)
        soft = self.divergence(student.float(), teacher, targets != IGNORED)
        alpha = 1.0 if self.is_on_policy(self.step) else self.config.alpha
        return soft if alpha == 1 else (1 - alpha) * loss + alpha * soft

    def evaluate(self, stop: Callable[[], bool] = lambda: False) -> Metrics | None:
        found = super().evaluate(stop)
        if found is None:
            return None
        return {**found, "to_teacher": found["val_loss"] - self.teacher_loss}

    def _graphed(self) -> mt.cuda.GraphedStep | None:
        """None where steps are of two kinds."""
        return None if self.config.on_policy else super()._graphed()

    @property
    def fingerprint(self) -> dict[str, int]:
        """That of the text, and the teacher's."""
        crc = 0
        for tensor in self.teacher.state_dict().values():
            crc = zlib.crc32(np.ascontiguousarray(tensor.to("cpu").numpy()).data, crc)
        return {**super().fingerprint, "teacher_crc32": crc}


class _Softened(Protocol):
    """(student's logits, teacher's, mask) -> a number, or whatever aggregate makes of tokens."""

    def __call__(
        self, student: Tensor, teacher: Tensor, mask: Tensor, aggregate: rl.Aggregation = ...
    ) -> Tensor: ...


def _divergence(config: DistillConfig) -> _Softened:
    temperature = config.temperature
    if config.top_k:

        def of_likeliest(
            student: Tensor,
            teacher: Tensor,
            mask: Tensor,
            aggregate: rl.Aggregation = rl.token_mean,
        ) -> Tensor:
            k = min(config.top_k, teacher.shape[-1])
            targets = rl.top_k_targets(teacher, k, temperature=temperature)
            found = rl.top_k_forward_kl(student, targets, temperature=temperature)
            return aggregate(found, mask) * temperature**2

        return of_likeliest
    kinds: dict[str, rl.Divergence] = {
        "forward": rl.forward_kl,
        "reverse": rl.reverse_kl,
        "jsd": rl.generalised_jsd(config.beta),
    }
    return partial(
        rl.distillation_loss, temperature=temperature, divergence=kinds[config.divergence]
    )


def prepared(config: DistillConfig) -> Distillation:
    """The run that the settings describe: teacher, student and text are read."""
    if not config.teacher:
        raise ConfigError("teacher: expected the folder of a trained model; give one by --teacher")
    folder = checkpoints.model_folder(Path(config.teacher))
    teacher, tokenizer = with_tokenizer(folder)
    student = _student(config, tokenizer, teacher)
    text = TrainConfig(
        data=config.data, val_fraction=config.val_fraction, block_size=config.block_size
    )
    corpus = prepare(text, folder / "tokenizer.json")
    return Distillation(config, corpus, teacher, student)


def _student(config: DistillConfig, tokenizer: Tokenizer, teacher: Model) -> Model | None:
    if not config.student:
        return None
    student, own = with_tokenizer(checkpoints.model_folder(Path(config.student)))
    check_same_vocabulary(own, tokenizer, config.student)
    return student
