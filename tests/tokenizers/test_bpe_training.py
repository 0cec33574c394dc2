"""The incremental training against the definition: count all pairs again for every merge."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitorch.errors import ConfigError, DataError
from minitorch.tokenizers import BPETokenizer, PreTokenizer
from minitorch.tokenizers.bpe_training import learn_merges, merge


def by_definition(words, counts, num_base, num_merges, min_frequency=1):
    merges = []
    for new in range(num_base, num_base + num_merges):
        frequency = Counter()
        for word, count in zip(words, counts):
            for pair in pairwise(word):
                frequency[pair] += count
        if not frequency:
            break
        pair, count = min(frequency.items(), key=lambda item: (-item[1], item[0]))
        if count < min_frequency:
            break
        merges.append(pair)
        words = [merge(word, pair, new) for word in words]
    return merges


words_and_counts = st.lists(
    st.tuples(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 5)), max_size=8
)


@given(words_and_counts, st.integers(0, 30), st.integers(0, 4))
def test_learns_what_the_definition_says(entries, num_merges, min_frequency):
    words, counts = [word for word, _ in entries], [count for _, count in entries]
    expected = by_definition(words, counts, 4, num_merges, min_frequency)
    assert learn_merges([*words], counts, 4, num_merges, min_frequency) == expected


def test_a_text_worked_by_hand():
    """aaabdaaabac: aa, then of ab and Za (twice each) the one with the smaller ids, then ..."""
    tokenizer = BPETokenizer.train("aaabdaaabac", 259, pre_tokenizer=PreTokenizer(use_regex=False))
    assert tokenizer.merges == [("a", "a"), ("a", "b"), ("aa", "ab")]
    assert tokenizer.encode("aaabdaaabac") == [
        tokenizer.token_to_id(name) for name in ("aaab", "d", "aaab", "a", "c")
    ]


def test_merging_is_left_to_right():
    assert merge([1, 1, 1, 2, 1, 1], (1, 1), 9) == [9, 1, 2, 9]
    assert merge([], (1, 1), 9) == []


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
