"""Continuing a text, one token at a time: the cache of keys and values, and text as it comes.

Each step runs the model on the newest token alone; the layers' caches hold the keys and values of
those before. Where the model's context is full, the cache is made anew from its later half: what is
cached has its position in it, learned or as a rotation, and cannot be moved. Until then the result
is, up to rounding, that of running the model on the whole text for every token. A model that keeps
the first tokens and a window (models/blocks/streaming.py) goes on with the cache it has.

Texts of different lengths can be continued together. They are padded on the left, so that the next
token of each is in the last column, and each gets what it would get alone.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np

import minitorch as mt
from minitorch.errors import ConfigError, DataError
from minitorch.nn import functional as F
from minitorch.random import Generator
from minitorch.tokenizers import Tokenizer
from models.families import Model
from models.sampling import Sampler

END_OF_TEXT = "<|endoftext|>"


def generate(
    model: Model,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sampler: Sampler,
    generator: Generator,
    vocab_size: int | None = None,
    stop_ids: Collection[int] = (),
) -> Iterator[tuple[int, float]]:
    """The tokens that follow the prompt, each with its log-probability, as they are drawn.

    vocab_size: ids from here on are never drawn; some models have more rows than tokens. Ends after
    max_tokens, or before a token of stop_ids. The model is put into evaluation mode.
    """
    if not prompt:
        raise ConfigError("generate: expected a prompt of at least one token; got none")
    model.eval()
    block, device = model.config.max_position_embeddings, next(model.parameters()).device
    if getattr(model.config, "first_tokens", 0):  # a window that needs no new cache, ever
        block = len(prompt) + max_tokens
    tokens, fresh, held = list(prompt), list(prompt)[-block:], 0
    for drawn in range(max_tokens):
        if held + len(fresh) > block:
            fresh, held = tokens[-max(block // 2, 1) :], 0
        if held == 0:
            cache = model.new_cache(min(len(fresh) + max_tokens - drawn, block))
        held += len(fresh)
        with mt.no_grad():
            logits, _ = model(mt.from_numpy(np.array([fresh])).to(device), cache=cache)
        rows = logits[:, -1, :vocab_size]
        if sampler.is_plain:
            ids, log_probs = _drawn(rows, sampler.temperature, generator)
        else:
            past = [prompt], [tokens[len(prompt) :]]
            ids, log_probs = sampler(rows.numpy(), *past, generator=generator)
        token = int(ids[0])
        if token in stop_ids:
            return
        tokens.append(token)
        fresh = [token]
        yield token, float(log_probs[0])


def _drawn(
    logits: mt.Tensor, temperature: float, generator: Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and their log-probabilities, drawn where the logits are: nothing else is fetched."""
    with mt.no_grad():
        ids = F.categorical(logits, temperature, generator=generator)
        if temperature == 0:
            return ids.numpy(), np.zeros(len(ids))
        log_probs = (logits.double() / temperature).log_softmax(-1).gather(-1, ids[:, None])
    drawn = ids.numpy()
    if (drawn < 0).any():
        raise ConfigError(
            "generate: no token can be drawn: the logits hold a NaN or are not finite; are the "
            "model's weights finite?"
        )
    return drawn, log_probs[:, 0].numpy()


def generate_batch(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampler: Sampler,
    generator: Generator,
    vocab_size: int | None = None,
    stop_ids: Collection[int] = (),
) -> list[list[int]]:
    """The tokens that follow each prompt, all rows in one pass of the model for every token.

    prompts: of any lengths. A row ends before a token of stop_ids, and all after max_tokens. Raises
    ConfigError for an empty prompt, and where a row would be longer than the model's context.
    """
    longest, context = max(map(len, prompts), default=0), model.config.max_position_embeddings
    if not all(prompts) or longest + max_tokens > context:
        raise ConfigError(
            f"generate: expected prompts of 1 to {context - max_tokens} tokens, so that with "
            f"{max_tokens} more they fit into {context}; got {[len(p) for p in prompts]}"
        )
    model.eval()
    device = next(model.parameters()).device
    mask = np.array([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], bool)
    ids = np.array([[0] * (longest - len(p)) + list(p) for p in prompts], np.int64)
    cache = model.new_cache(longest + max_tokens)
    found: list[list[int]] = [[] for _ in prompts]
    going = np.ones(len(prompts), bool)
    for _ in range(max_tokens):
        with mt.no_grad():
            logits, _ = model(mt.from_numpy(ids).to(device), cache=cache, mask=mt.from_numpy(mask))
        drawn, _ = sampler(logits[:, -1, :vocab_size].numpy(), prompts, found, generator=generator)
        going &= ~np.isin(drawn, list(stop_ids))
        for row in np.flatnonzero(going):
            found[row].append(int(drawn[row]))
        if not going.any():
            break
        ids, mask = drawn[:, None], np.ones((len(prompts), 1), bool)
    return found


def start_of_text(tokenizer: Tokenizer) -> list[int]:
    """What to continue where there is no prompt: the end of another text, or of another line.

    The first token of all where the vocabulary has neither.
    """
    if END_OF_TEXT in tokenizer.special_tokens:
        return [tokenizer.special_tokens[END_OF_TEXT]]
    try:
        return tokenizer.encode("\n")
    except DataError:
        return [0]


def stream_text(
    tokens: Iterable[int], tokenizer: Tokenizer, stop: Collection[str] = ()
) -> Iterator[str]:
    """The text of tokens as it becomes certain, up to the first of the stop texts, without it.

    Held back are bytes that are no whole character yet, and an end that may begin a stop text.
    """
    decoder = tokenizer.stream_decoder(skip_special_tokens=True)
    held = ""
    for token in tokens:
        held += decoder.push(token)
        ends = [at for text in stop if (at := held.find(text)) >= 0]
        if ends:
            yield held[: min(ends)]
            return
        certain = len(held) - max((_overlap(held, text) for text in stop), default=0)
        if certain:
            yield held[:certain]
            held = held[certain:]
    yield held + decoder.finish()


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of text that stop begins with."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
