"""The incremental training against the definition: count all pairs again for every merge."""

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitorch.errors import ConfigError, DataError
from minitorch.tokenizers import BPETokenizer, PreTokenizer
from minitorch.tokenizers.bpe_training import learn_merges


def replace(word, pair, new):
    """From left to right, without overlap."""
    result = []
    for token in word:
        if result and (result[-1], token) == pair:
            result[-1] = new
        else:
            result.append(token)
    return result


def by_definition(words, num_base, num_merges, min_frequency):
    merges = []
    for new in range(num_base, num_base + num_merges):
        frequency = Counter()
        for word, count in words:
            for pair in pairwise(word):
                frequency[pair] += count
        if not frequency:
            break
        pair, count = min(frequency.items(), key=lambda item: (-item[1], item[0]))
        if count < min_frequency:
            break
        merges.append(pair)
        words = [(replace(word, pair, new), count) for word, count in words]
    return merges


words_and_counts = st.lists(
    st.tuples(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 5)), max_size=8
)


@given(words_and_counts, st.integers(0, 30), st.integers(0, 4))
def test_learns_what_the_definition_says(words, num_merges, min_frequency):
    expected = by_definition(words, 4, num_merges, min_frequency)
    assert learn_merges(words, 4, num_merges, min_frequency) == expected


def test_a_text_worked_by_hand():
    """aaabdaaabac: aa, then of ab and Za (twice each) the one with the smaller ids, then ..."""
    tokenizer = BPETokenizer.train("aaabdaaabac", 259, pre_tokenizer=PreTokenizer(use_regex=False))
    assert tokenizer.merges == [("a", "a"), ("a", "b"), ("aa", "ab")]
    assert tokenizer.encode("aaabdaaabac") == [
        tokenizer.token_to_id(name) for name in ("aaab", "d", "aaab", "a", "c")
    ]


def test_a_long_word_costs_no_more_than_many_short_ones():
    """200,000 letters in one word; going through all of it for every merge would take minutes."""
    letters = random.Random(0).choices(range(8), k=200_000)
    assert len(learn_merges([(letters, 1)], 8, 2000)) == 2000


def test_progress_is_told_and_may_interrupt():
    seen = []
    BPETokenizer.train("the cat, the hat", 260, progress=lambda *state: seen.append(state))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def interrupt(done, wanted):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        BPETokenizer.train("the cat", 260, progress=interrupt)


def test_a_short_text_gives_a_smaller_vocabulary():
    assert BPETokenizer.train("abab", 1000).vocab_size == 256 + 2
    assert BPETokenizer.train("abab", 1000, ["<end>"], min_frequency=2).vocab_size == 256 + 1 + 1


def test_no_piece_spans_two_texts():
    assert BPETokenizer.train(["a", "b"], 300).merges == []
    assert BPETokenizer.train("ab", 300).merges == [("a", "b")]


def test_training_that_cannot_be():
    with pytest.raises(ConfigError, match="take at least 258"):
        BPETokenizer.train("text", 257, ["<a>", "<b>"])
    with pytest.raises(DataError, match="empty"):
        BPETokenizer.train(["", ""], 300)
    with pytest.raises(DataError, match="surrogate"):
        BPETokenizer.train("a\ud800", 300)
    with pytest.raises(DataError, match="'the' has id"):
        BPETokenizer.train("the the the", 259, ["the"])
    with pytest.raises(DataError, match="same name"):
        BPETokenizer.train("text", 300, ["<a>", "<a>"])
