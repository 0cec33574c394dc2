"""What a model in a folder writes: answers to prompts, as texts, to be measured or learnt from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.chat import end_id
from models.families import with_tokenizer
from models.recipes.prompts import Prompt
from models.rollouts import begin, extend
from models.sampling import Sampler


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
    end = end_id(tokenizer)
    rollouts = extend(
        model,
        begin([prompt.ids for prompt in prompts], samples),
        max_tokens=max_tokens,
        sampler=Sampler(temperature=temperature),
        seed=seed,
        vocab_size=tokenizer.vocab_size,
        stop_ids={end},
    )
    return [
        Written(
            prompts[i // samples],
            tokenizer.decode([token for token in rollout.completion_ids if token != end]),
            len(rollout.completion_ids),
            rollout.finished,
        )
        for i, rollout in enumerate(rollouts)
    ]
