"""Rejection sampling: of several completions of a prompt the best is kept, to be fine-tuned on.

    o_1 … o_n ~ policy(· | prompt);   keep argmax_i score(o_i), if it is good enough

Only completions that end by themselves are kept, and of equally good ones the shortest. What is
kept are rows for `minitorch sft`. Sources: Llama 2, Touvron et al. 2023 (arXiv 2307.09288), section
3.2.3; the shortest that is right, Kimi k1.5 (2501.12599), section 2.4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minitorch.errors import ConfigError
from minitorch.tokenizers import Tokenizer
from models.chat import end_id
from models.families import Model
from models.recipes.judging import Score, texts_of
from models.recipes.prompts import Prompt
from models.rollouts import Rollout, begin, extend
from models.sampling import Sampler


@dataclass(frozen=True)
class Best:
    """The best completion of a prompt, as text; None where none ended, or none is good enough.

    scores: those of all its completions.
    """

    completion: str | None
    score: float
    scores: np.ndarray


def best_of(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    score: Score,
    *,
    samples: int,
    max_tokens: int,
    temperature: float = 1.0,
    at_least: float = -np.inf,
    seed: int = 0,
) -> list[Best]:
    """For each prompt the best of so many samples. at_least: the score of one that is kept."""
    if not temperature > 0 and samples > 1:
        raise ConfigError(
            f"best_of: expected a temperature above 0, as {samples} greedy samples are all the "
            f"same; got {temperature}"
        )
    rollouts = sampled(
        model,
        tokenizer,
        prompts,
        samples=samples,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
    )
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    scores = score(repeated, rollouts).reshape(-1, samples)
    found = []
    for i, row in enumerate(scores):
        written = rollouts[i * samples : (i + 1) * samples]
        ended = [j for j, rollout in enumerate(written) if rollout.finished and row[j] >= at_least]
        if not ended:
            found.append(Best(None, float("nan"), row))
            continue
        best = min(ended, key=lambda j: (-row[j], len(written[j].completion_ids)))
        (text,) = texts_of([written[best]], tokenizer)
        found.append(Best(text, float(row[best]), row))
    return found


def sampled(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> list[Rollout]:
    """So many completions of each prompt, those of a prompt side by side."""
    return extend(
        model,
        begin([prompt.ids for prompt in prompts], samples),
        max_tokens=max_tokens,
        sampler=Sampler(temperature=temperature),
        seed=seed,
        vocab_size=tokenizer.vocab_size,
        stop_ids={end_id(tokenizer)},
    )


def row_of(prompt: Any, best: Best, columns: dict[str, Any]) -> dict[str, Any]:
    """What `minitorch sft` reads, and the prompt's columns."""
    return {"prompt": prompt, "completion": best.completion, "score": best.score, **columns}
