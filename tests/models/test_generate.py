"""Generation: the cache changes nothing, the context may overflow, text comes out whole."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import ConfigError
from minitorch.random import Generator
from minitorch.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer
from models.generate import generate, generate_batch, start_of_text, stream_text
from models.gpt2 import GPT2, GPT2Config
from models.llama import LlamaConfig
from models.mistral import MistralConfig, streaming
from models.qwen import Qwen2Config, QwenConfig
from models.sampling import Sampler

SIZES = {"vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 12}
GREEDY = Sampler(temperature=0)


def gpt2():
    model = GPT2(GPT2Config(**SIZES), dtype=np.dtype(np.float64), generator=Generator(1))
    with mt.no_grad():
        for param in model.parameters():  # far from the even distribution of a fresh model
            param.mul_(8.0)
    return model


@pytest.fixture
def model():
    return gpt2()


def tokens(model, prompt, sampler=GREEDY, seed=0, **options):
    options = {"max_tokens": 5, **options}
    stream = generate(model, prompt, sampler=sampler, generator=Generator(seed), **options)
    return [token for token, _ in stream]


def without_cache(model, prompt, count, window):
    ids = list(prompt)
    for _ in range(count):
        context = ids[window(len(ids)) :]
        with mt.no_grad():
            logits, _ = model(mt.tensor([context]))
        ids.append(int(logits.data[0, -1].argmax()))
    return ids[len(prompt) :]


def test_the_cache_changes_nothing(model):
    assert tokens(model, [3, 1, 4], max_tokens=9) == without_cache(
        model, [3, 1, 4], 9, lambda length: 0
    )


def test_a_full_context_goes_on_from_its_later_half(model):
    def window(length):
        # Full at 12: from then on the context is 6, 7, ..., 12 tokens, and 6 again.
        return 0 if length <= 12 else length - 6 - (length - 13) % 7

    got = tokens(model, [3, 1, 4], max_tokens=30)
    assert got == without_cache(model, [3, 1, 4], 30, window)


def decoder(family, **changes):
    model = family.preset("toy", vocab_size=11, hidden_size=16, **changes).build(
        np.dtype(np.float64), Generator(1)
    )
    with mt.no_grad():
        for param in model.parameters():
            param.mul_(8.0 if param.ndim > 1 else 1.0)
    return model


@pytest.fixture(params=[GPT2Config, LlamaConfig, MistralConfig, QwenConfig, Qwen2Config])
def any_model(request):
    if request.param is GPT2Config:
        return gpt2()
    small = {"num_hidden_layers": 2, "intermediate_size": 20, "max_position_embeddings": 12}
    return decoder(request.param, **small)


def test_every_family_goes_on(any_model):
    assert tokens(any_model, [3, 1, 4], max_tokens=9) == without_cache(
        any_model, [3, 1, 4], 9, lambda length: 0
    )
    assert len(tokens(any_model, [3, 1, 4], max_tokens=20)) == 20


def test_texts_of_different_lengths_are_continued_together(any_model):
    prompts = [[3, 1, 4], [1], [5, 9, 2, 6, 5], [3, 5]]
    options = {"max_tokens": 7, "sampler": GREEDY, "generator": Generator(0)}
    together = generate_batch(any_model, prompts, **options)
    assert together == [tokens(any_model, prompt, max_tokens=7) for prompt in prompts]
    stop = together[0][2]
    stopped = generate_batch(any_model, prompts, stop_ids=[stop], **options)
    for row, whole in zip(stopped, together):
        assert row == (whole[: whole.index(stop)] if stop in whole else whole)


def test_a_batch_has_to_fit(any_model):
    options = {"max_tokens": 7, "sampler": GREEDY, "generator": Generator(0)}
    for prompts in ([[1], []], [[1], [2] * 6]):
        with pytest.raises(ConfigError, match="1 to 5 tokens"):
            generate_batch(any_model, prompts, **options)


def test_a_window_with_the_first_tokens_goes_on_with_the_cache_it_has():
    """Beyond the context, as the whole text at once says; and it has the weights it was given."""
    sizes = {"layers": 2, "heads": 2, "width": 16, "positions": 12}
    plain = LlamaConfig.sized(vocab_size=23, **sizes).build(np.dtype(np.float64), Generator(0))
    model = streaming(plain, window=8, first_tokens=3)
    assert model.embed_tokens.weight.data is plain.embed_tokens.weight.data
    prompt = [1, 5, 2, 8]
    options = {"sampler": Sampler(temperature=0), "generator": Generator(1)}
    drawn = [token for token, _ in generate(model, prompt, max_tokens=40, **options)]
    with mt.no_grad():
        logits, _ = model(mt.tensor([[*prompt, *drawn]]))
    assert drawn == logits.numpy()[0, len(prompt) - 1 : -1].argmax(-1).tolist()
    short = [token for token, _ in generate(plain, prompt, max_tokens=7, **options)]
    assert drawn[:7] == short  # 3 + 8 tokens are all seen as in the model without a window


def test_streaming_is_for_llama_and_mistral():
    model = Qwen2Config.preset("toy", vocab_size=23).build(np.dtype(np.float32), None)
    with pytest.raises(ConfigError, match="expected a Llama or a Mistral; got Qwen2Config"):
        streaming(model, window=8)


def test_a_long_prompt_is_cropped(model):
    prompt = list(np.arange(40) % 11)
    assert tokens(model, prompt, max_tokens=1) == tokens(model, prompt[-12:], max_tokens=1)


def test_log_probabilities_are_those_of_the_distribution(model):
    generator = Generator(2)
    (token, log_prob), *_ = generate(
        model, [1, 2], max_tokens=1, sampler=Sampler(), generator=generator
    )
    with mt.no_grad():
        logits, _ = model(mt.tensor([[1, 2]]))
    expected = mt.log_softmax(logits, dim=-1).data[0, -1, token]
    assert log_prob == pytest.approx(expected, abs=1e-9)


def test_the_seed_decides(model):
    sampler = Sampler(temperature=3.0)
    drawn = [tokens(model, [1], sampler, seed, max_tokens=20) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_stops_before_a_stop_token_and_never_draws_past_the_vocabulary(model):
    whole = tokens(model, [3, 1, 4], max_tokens=9)
    stop = whole[4]
    assert tokens(model, [3, 1, 4], max_tokens=9, stop_ids={stop}) == whole[: whole.index(stop)]
    few = tokens(model, [1], Sampler(temperature=5.0), max_tokens=60, vocab_size=4)
    assert set(few) == {0, 1, 2, 3}


def test_an_empty_prompt_is_an_error(model):
    with pytest.raises(ConfigError, match="a prompt of at least one token"):
        tokens(model, [])


def test_text_is_held_back_until_it_is_whole():
    tokenizer = ByteTokenizer()
    pieces = list(stream_text("aé€😀".encode(), tokenizer))
    assert [piece for piece in pieces if piece] == ["a", "é", "€", "😀"]
    assert "".join(stream_text("é".encode()[:1], tokenizer)) == "\ufffd"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one\n\ntwo", ["\n\n"], "one"),
        ("one\n", ["\n\n"], "one\n"),
        ("aaab", ["aab"], "a"),
        ("abcdef", ["e", "cd"], "ab"),
        ("abc", ["abc"], ""),
        ("abc", ["x"], "abc"),
    ],
)
def test_stop_texts_may_begin_in_one_token_and_end_in_another(text, stop, expected):
    pieces = list(stream_text(text.encode(), ByteTokenizer(), stop))
    assert "".join(pieces) == expected


def test_a_text_begins_after_another():
    assert start_of_text(CharTokenizer("ab\n")) == [2]
    assert start_of_text(CharTokenizer("ab")) == [0]
    bpe = BPETokenizer.train("some text", 260, ["<|endoftext|>"])
    assert start_of_text(bpe) == [bpe.special_tokens["<|endoftext|>"]]
