"""What a model writes when it is being trained: many completions at once, with what they cost it.

Every step of the model adds one token to each of `places` texts. Where a text has ended its place
is taken by the next prompt, so that a long one holds nobody up: the newcomers are read in one pass
of their own, each distinct prompt once, and their part of the cache is put beside that of the
others (`models.blocks.cache.Cache.adopt`). When no prompt waits, the places that are free go away.

A token is drawn with a number that depends on the seed, the rollout's number and the token's
position in it, and on nothing else. So it does not matter which texts are written together, how
many, or in how many calls: a rollout that was cut off goes on, in a later call, as if it had not
been. (Up to rounding: a product of other shapes may be rounded otherwise, and a draw that stands
on the edge between two tokens may fall on its other side.)

`Rollout.log_probs` are those of the distribution that was drawn from, at the sampler's temperature
and after its truncations. They are computed in float64 from the logits; what a training step finds
for the same tokens differs by the rounding of the logits, as it computes them for whole texts and
not from a cache: by 2e-6 at most in float32 and 4e-15 in float64 over the tokens and the six
families of tests/models/test_rollouts.py.
"""

import dataclasses
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

import minitorch as mt
from minitorch.errors import ConfigError
from minitorch.kernels.philox import stream
from models.blocks.cache import Cache
from models.blocks.context import PADDING
from models.families import Model
from models.sampling import Sampler, draw_at

PLACES = 256
"""Texts written at once, unless a caller says otherwise."""

REFILL = 8
"""Newcomers are read when at least a share of 1 / REFILL of the places is free."""

FREE = -1


@dataclass(frozen=True)
class Rollout:
    """A prompt and what followed it, in token ids, which are never made of text again.

    number: which of the run's random streams its tokens are drawn from. completion_ids, log_probs
    and mask are equally long. mask is true at what the model chose, its end token included, and
    false at what it was told, such as a tool's answer; log_probs are 0 there. finished: whether it
    ended by itself rather than at a limit.
    """

    number: int
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    mask: tuple[bool, ...] = ()
    finished: bool = False

    @property
    def ids(self) -> tuple[int, ...]:
        """Prompt and completion."""
        return self.prompt_ids + self.completion_ids

    def told(self, ids: Sequence[int]) -> "Rollout":
        """With words that are not the model's after it, and the turn its own again."""
        return self._longer(tuple(ids), (0.0,) * len(ids), False, finished=False)

    def wrote(self, ids: Sequence[int], log_probs: Sequence[float], finished: bool) -> "Rollout":
        """With the model's own words after it."""
        return self._longer(tuple(ids), tuple(log_probs), True, finished)

    def _longer(
        self, ids: tuple[int, ...], log_probs: tuple[float, ...], chosen: bool, finished: bool
    ) -> "Rollout":
        return dataclasses.replace(
            self,
            completion_ids=self.completion_ids + ids,
            log_probs=self.log_probs + log_probs,
            mask=self.mask + (chosen,) * len(ids),
            finished=finished,
        )


def begin(prompts: Sequence[Sequence[int]], samples: int = 1, first: int = 0) -> list[Rollout]:
    """An empty rollout for each sample of each prompt, those of a prompt side by side.

    first: the number of the first one; a run that samples again takes others.
    """
    return [
        Rollout(first + i * samples + j, tuple(prompt))
        for i, prompt in enumerate(prompts)
        for j in range(samples)
    ]


def extend(
    model: Model,
    rollouts: Sequence[Rollout],
    *,
    max_tokens: int | Sequence[int],
    sampler: Sampler,
    seed: int,
    vocab_size: int | None = None,
    stop_ids: Collection[int] = (),
    places: int = PLACES,
) -> list[Rollout]:
    """The rollouts with what the model writes after them; those that are finished as they are.

    max_tokens: how many more, of all or of each; a rollout finishes with a token of stop_ids, which
    it keeps. vocab_size: ids from here on are never drawn. The model is put into evaluation mode.
    Raises ConfigError for an empty prompt, and where a text would be longer than the context.
    """
    limits = [max_tokens] * len(rollouts) if isinstance(max_tokens, int) else list(max_tokens)
    _check(rollouts, limits, model.config.max_position_embeddings)
    model.eval()
    writer = _Writer(model, rollouts, limits, sampler, seed, vocab_size, stop_ids, places)
    with mt.no_grad():
        writer.run()
    return [
        rollout if rollout.finished else rollout.wrote(*writer.written(i))
        for i, rollout in enumerate(rollouts)
    ]


def _check(rollouts: Sequence[Rollout], limits: Sequence[int], context: int) -> None:
    for rollout, limit in zip(rollouts, limits, strict=True):
        length = len(rollout.ids)
        if not rollout.finished and (not length or length + limit > context):
            raise ConfigError(
                f"rollouts: expected texts of 1 to {context - limit} tokens, so that with {limit} "
                f"more they fit into the context of {context}; rollout {rollout.number} has "
                f"{length}. Shorten the prompt, or write fewer tokens"
            )


class _Writer:
    """The places with the texts in them, those that wait, and what has been written.

    Rows of `ids`, `log_probs`, `uniform`, `count` and `finished` are rollouts; `here` says which of
    them is at each place, or FREE.
    """

    def __init__(
        self,
        model: Model,
        rollouts: Sequence[Rollout],
        limits: Sequence[int],
        sampler: Sampler,
        seed: int,
        vocab_size: int | None,
        stop_ids: Collection[int],
        places: int,
    ):
        self.model, self.rollouts, self.sampler = model, rollouts, sampler
        self.seed, self.vocab_size, self.places = seed, vocab_size, places
        self.device = next(model.parameters()).device
        self.stops = np.zeros(model.config.vocab_size, bool)
        self.stops[list(stop_ids)] = True
        self.limits = np.array(limits, np.int64)
        shape = len(rollouts), max(limits, default=0)
        self.ids, self.log_probs = np.zeros(shape, np.int64), np.zeros(shape)
        self.uniform = np.zeros(shape)
        self.count = np.zeros(len(rollouts), np.int64)
        self.finished = np.zeros(len(rollouts), bool)
        self.waiting = deque(
            i for i, rollout in enumerate(rollouts) if limits[i] and not rollout.finished
        )
        self.planned = max((len(rollouts[i].ids) + limits[i] for i in self.waiting), default=0)
        self.cache: Cache | None = None
        self.here = np.empty(0, np.int64)

    def written(self, i: int) -> tuple[list[int], list[float], bool]:
        """Ids and log-probabilities of a rollout, and whether it is finished."""
        count = self.count[i]
        ids, log_probs = self.ids[i, :count].tolist(), self.log_probs[i, :count].tolist()
        return ids, log_probs, bool(self.finished[i])

    def run(self) -> None:
        """Write until nobody waits and no place is taken."""
        if self.waiting:
            self._open()
        while self.waiting or (self.here != FREE).any():
            free = np.flatnonzero(self.here == FREE)
            if self.waiting and len(free) * REFILL >= len(self.here):
                self._refill(free[: len(self.waiting)])
                continue
            if not self.waiting and len(free) * 4 >= len(self.here):
                self._close()
            self._step()

    def _open(self) -> None:
        """Read the first prompts."""
        newcomers = self._next(self.places)
        self.cache, rows, logits = self._read(newcomers)
        self.cache.take(rows)
        self.here = newcomers
        self._write(logits[rows], newcomers)

    def _refill(self, free: np.ndarray) -> None:
        """Read as many prompts as there are free places, into these."""
        assert self.cache is not None
        newcomers = self._next(len(free))
        cache, rows, logits = self._read(newcomers)
        self.cache.adopt(free, cache, rows)
        self.here[free] = newcomers
        self._write(logits[rows], newcomers)

    def _close(self) -> None:
        """Do without the free places."""
        assert self.cache is not None
        taken = np.flatnonzero(self.here != FREE)
        self.cache.take(taken)
        self.here = self.here[taken]

    def _step(self) -> None:
        """One more token at each place."""
        assert self.cache is not None
        self.cache.trim()
        newest = self.ids[self.here, self.count[self.here] - 1]
        logits = self._logits(newest[:, None], self.cache, None)
        taken = self.here != FREE
        self._write(logits[taken], self.here[taken])

    def _next(self, count: int) -> np.ndarray:
        return np.array([self.waiting.popleft() for _ in range(min(count, len(self.waiting)))])

    def _read(self, newcomers: np.ndarray) -> tuple[Cache, np.ndarray, np.ndarray]:
        """A cache of the distinct texts, each newcomer's row in it, and the rows' next logits."""
        row: dict[tuple[int, ...], int] = {}
        rows = np.array([row.setdefault(self.rollouts[i].ids, len(row)) for i in newcomers])
        longest = max(map(len, row))
        ids = np.array([(0,) * (longest - len(text)) + text for text in row], np.int64)
        mask = np.array([(False,) * (longest - len(text)) + (True,) * len(text) for text in row])
        cache = self.model.new_cache(self.planned)
        return cache, rows, self._logits(ids, cache, mt.from_numpy(mask))

    def _logits(self, ids: np.ndarray, cache: Cache, mask: mt.Tensor | None) -> np.ndarray:
        """Those of the token after the last column: (rows, vocab_size) float64."""
        features = self.model.features(mt.from_numpy(ids).to(self.device), cache, mask)
        logits = self.model.lm_head(features[:, -1]).numpy()
        return logits[:, : self.vocab_size].astype(np.float64)

    def _write(self, logits: np.ndarray, texts: np.ndarray) -> None:
        """Draw a token for each of the texts, and free the places of those that are at an end."""
        at = self.count[texts]
        first = texts[at == 0]
        if self.sampler.temperature and len(first):
            self.uniform[first] = self._uniform(first)
        probs = self.sampler.probabilities(logits, *self._past(texts))
        drawn = draw_at(probs, self.uniform[texts, at])
        self.ids[texts, at] = drawn
        self.log_probs[texts, at] = np.log(probs[np.arange(len(texts)), drawn])
        self.count[texts] += 1
        self.finished[texts] = self.stops[drawn]
        self._leave(self.finished | (self.count == self.limits))

    def _uniform(self, texts: np.ndarray) -> np.ndarray:
        """The numbers that a rollout's tokens are drawn with, from its next token on."""
        found, length = [], self.uniform.shape[1]
        for i in texts:
            rollout, past = self.rollouts[i], len(self.rollouts[i].completion_ids)
            found.append(stream(self.seed, rollout.number).random(past + length)[past:])
        return np.stack(found)

    def _past(self, texts: np.ndarray) -> tuple[list, list]:
        """Prompts and completions so far, for a sampler that looks at them."""
        if not self.sampler.looks_back:
            return [], []
        rollouts = [self.rollouts[i] for i in texts]
        completions = [
            [*rollout.completion_ids, *self.ids[i, : self.count[i]]]
            for i, rollout in zip(texts, rollouts)
        ]
        return [rollout.prompt_ids for rollout in rollouts], completions

    def _leave(self, ended: np.ndarray) -> None:
        assert self.cache is not None
        places = ended[self.here] & (self.here != FREE)
        self.here[places] = FREE
        self.cache.positions[places] = PADDING
