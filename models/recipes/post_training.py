"""What recipes share that begin with a trained model: where it lies, and LoRA.

With LoRA the weights stand still and adapters are trained. A checkpoint then holds the model with
its adapters taken in, which everything reads, and beside it the adapters alone, as peft does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minitorch import nn
from minitorch.random import Generator
from models import checkpoints, lora
from models.families import Model
from models.optimization import TrainingSettings
from models.options import option
from models.recipes.recipe import Recipe
from models.recipes.start import load_base


@dataclass(frozen=True, kw_only=True)
class AdapterSettings(TrainingSettings):
    """Whether all weights are trained, or adapters."""

    lora_rank: int = option(0, "of the adapters that are trained; 0: all weights are", at_least=0,
        fixed=True)  # fmt: skip
    lora_alpha: float = option(16.0, "with LoRA, the weight of the adapters", above=0, fixed=True)
    lora_dropout: float = option(
        0.0, "with LoRA, dropout of what adapters read", at_least=0, below=1
    )
    lora_rs: bool = option(
        False, "with LoRA, alpha over the root of the rank instead of the rank", fixed=True
    )


def adapters_of(config: AdapterSettings) -> lora.LoraConfig | None:
    """What the settings say of adapters; None: there are none."""
    if config.lora_rank == 0:
        return None
    return lora.LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        use_rslora=config.lora_rs,
    )


class Adapted(Recipe):
    """A recipe whose model may have adapters. A subclass sets `adapters`, or None, and attaches."""

    adapters: lora.LoraConfig | None

    def arrays(self) -> dict[str, np.ndarray]:
        """With LoRA, what is trained: the exported model has the adapters taken in."""
        if self.adapters is None:
            return {}
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        return checkpoints.named({"trained": trained})

    def export(self, folder: Path) -> None:
        """The model and its tokenizer; with LoRA the adapters alone besides, as peft has them."""
        if self.adapters is None:
            super().export(folder)
            return
        lora.merged_model(self.model).save_pretrained(folder)
        self.tokenizer.save(folder / "tokenizer.json")
        lora.save_adapter(self.model, folder, self.adapters, self.config.model)  # type: ignore[attr-defined]

    def load_model(self, saved: checkpoints.Checkpoint) -> None:
        """The whole model, or the adapters of one whose weights are those of the folder."""
        if self.adapters is None:
            super().load_model(saved)
        else:
            self.model.load_state_dict(saved.part("trained"), strict=False)


@dataclass(frozen=True, kw_only=True)
class PostTrainingSettings(AdapterSettings):
    """Smaller steps than from nothing, and no decay towards 0: the weights have been learnt."""

    steps: int = option(300, "optimizer steps", at_least=1)
    batch_size: int = option(16, "rows in one forward pass", at_least=1, fixed=True)
    optimizer: str = option(
        "adamw", "update rule", choices=("adamw", "muon", "lion", "adafactor", "sgd"), fixed=True
    )
    learning_rate: float = option(5e-4, "the highest learning rate", above=0)
    weight_decay: float = option(0.0, "of matrices and embeddings, not of vectors", at_least=0)
    eval_interval: int = option(50, "steps between evaluations", at_least=1)
    checkpoint_interval: int = option(50, "steps between checkpoints", at_least=1)

    model: str = option(
        "", "what to begin with: the folder of a run, a checkpoint, or a Hugging Face model",
        fixed=True,
    )  # fmt: skip


class PostTraining(Adapted):
    """A recipe whose model comes from a folder."""

    def __init__(
        self,
        config: PostTrainingSettings,
        template: str | None = None,
        wrap: Callable[[Model], nn.Module] = lambda model: model,
    ):
        """template: of conversations, whose special tokens the model is given; None: it has one.

        wrap: what is made of the model to be trained, such as one with another head.
        """
        self.adapters = adapters_of(config)
        frozen = self.adapters is not None
        model, tokenizer = load_base(config.model, config.seed, template, frozen=frozen)
        if self.adapters is not None:
            lora.attach(model, self.adapters, Generator(config.seed))
        super().__init__(config, wrap(model), tokenizer)

    @property
    def context(self) -> int:
        """The most tokens that the model reads."""
        return self.model.config.max_position_embeddings
