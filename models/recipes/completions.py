"""Completions as arrays, to be learnt from: what was chosen, and what it was drawn with.

Everything is (completions, time), where time counts the tokens of completions from their first on:
prompts are read, and nothing of them is kept but what the model makes of them.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import minitorch as mt
from minitorch import rl
from minitorch.tensor import Tensor
from models.families import Model
from models.rollouts import Rollout


@dataclass(frozen=True)
class Completions:
    """Rows of one batch.

    ids: prompts with their completions, (completions, longest text), padded on the right. starts:
    the lengths of the prompts. tokens, mask, fresh, log_probs: of the completions, what was
    written, whether by the model, whether by the model of this step, and with which
    log-probability.
    """

    ids: np.ndarray
    starts: np.ndarray
    tokens: np.ndarray
    mask: np.ndarray
    fresh: np.ndarray
    log_probs: np.ndarray

    @classmethod
    def of(cls, rollouts: Sequence[Rollout], earlier: Sequence[int] = ()) -> "Completions":
        """From what was written; a rollout without a completion has an empty mask.

        earlier: how many tokens of each completion earlier steps wrote; none, by default.
        """
        longest = max(len(rollout.ids) for rollout in rollouts)
        time = max(1, max(len(rollout.completion_ids) for rollout in rollouts))
        ids = np.zeros((len(rollouts), longest), np.int64)
        tokens = np.zeros((len(rollouts), time), np.int64)
        mask, log_probs = np.zeros(tokens.shape, bool), np.zeros(tokens.shape, np.float32)
        for i, rollout in enumerate(rollouts):
            end = len(rollout.completion_ids)
            ids[i, : len(rollout.ids)] = rollout.ids
            tokens[i, :end], mask[i, :end] = rollout.completion_ids, rollout.mask
            log_probs[i, :end] = rollout.log_probs
        starts = np.array([len(rollout.prompt_ids) for rollout in rollouts])
        before = np.array(earlier or [0] * len(rollouts))
        fresh = mask & (np.arange(time) >= before[:, None])
        return cls(ids, starts, tokens, mask, fresh, log_probs)

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, rows: np.ndarray) -> "Completions":
        """Some of them, in this order."""
        fields = dataclasses.fields(self)
        return Completions(*(getattr(self, field.name)[rows] for field in fields))

    @property
    def lengths(self) -> np.ndarray:
        """How many tokens the model chose: (completions,)."""
        return self.mask.sum(1)


def log_probs(model: Model, batch: Completions, temperature: float) -> Tensor:
    """Those that the model gives to the tokens: (completions, time). Behind the mask they are 0.

    The logits are never whole in memory. A token's are those of the position before it, which for
    the first one is the prompt's last. Padding on the right is seen by no token.
    """
    device = next(model.parameters()).device
    hidden = model.features(mt.from_numpy(batch.ids).to(device))
    row, column = np.nonzero(batch.mask)
    width = hidden.shape[-1]
    at = row * batch.ids.shape[1] + batch.starts[row] + column - 1
    chosen = hidden.reshape(-1, width)[mt.from_numpy(at).to(device)]
    found = rl.linear_token_log_probs(
        chosen,
        model.lm_head.weight,
        mt.from_numpy(batch.tokens[row, column]).to(device),
        model.lm_head.bias,
        temperature=temperature,
    )
    blank = found.new_zeros(batch.mask.size)
    place = mt.from_numpy(row * batch.mask.shape[1] + column).to(device)
    return blank.index_add(0, place, found).reshape(batch.mask.shape)
