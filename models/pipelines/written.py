"""What a model in a folder writes: answers to prompts, as texts, to be measured or learnt from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.best_of import sampled
from models.families import with_tokenizer
from models.recipes.judging import texts_of
from models.recipes.prompts import Prompt


@dataclass(frozen=True)
class Written:
    """A completion. length: its tokens, the one that ends it included."""

    prompt: Prompt
    text: str
    length: int
    finished: bool


def write(
    folder: Path,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    seed: int,
    samples: int = 1,
    temperature: float = 1.0,
) -> list[Written]:
    """So many samples of each prompt, side by side."""
    model, tokenizer = with_tokenizer(folder)
    rollouts = sampled(
        model,
        tokenizer,
        prompts,
        samples=samples,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
    )
    return [
        Written(prompts[i // samples], text, len(rollout.completion_ids), rollout.finished)
        for i, (rollout, text) in enumerate(zip(rollouts, texts_of(rollouts, tokenizer)))
    ]
