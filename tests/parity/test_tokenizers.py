"""Hugging Face's tokenizers library as oracle: same merges learnt, same ids, same files read."""

import json
import random
import unicodedata
from pydoc_data.topics import topics

import pytest

from minitorch.tokenizers import (
    CL100K_PATTERN,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    PreTokenizer,
    load,
)

peer = pytest.importorskip("tokenizers", reason="peer not installed: pip install -e .[peers]")

CORPUS = "\n".join(topics.values())
EXCERPT = CORPUS[:50_000]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
FRAGMENTS = [
    *SPECIAL,
    *("<|endoftext", "|>", "<|", "<|endoftext|><|endoftext|>"),
    *("e\u0301", "a\u0308\u0323", "\u0301\u0301\u0301", "A\u030a", "\u212b", "ﬁ", "\uac00", "각"),
    *("\ud7ff", "\ue000", "\ufffd", "\ufffe", "\uffff", "\U0010ffff", "\U00010000", "\U000e0041"),
    *("👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "❤️", "\u200d", "\ufe0f"),
    *("שלום", "مرحبا", "\u202e", "\u2066", "\u200f"),
    *("\u200b", "\u2060", "\ufeff", "\u00ad", "\u034f"),
    *("\0", "\x07", "\x1b[0m", "\x1c", "\x1f", "\x7f", "\x85", "\u2028", "\u2029"),
    *(" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u2003", "\u180e"),
    *("'s", "'S", "'ll", "’s", "'ſ", "can't", "١٢٣", "½", "Ⅷ", "12345", "x²", "_", "--", "日本語"),
    *("Ġ", "Ċ", "ÿ", "ß", "İ", "naïve", "def f(x):\n    return x\n", "the", " the", "hello"),
]


def hostile(count, seed=0):
    """Texts of fragments and random code points, long runs of white space, and the empty string.

    Random code points come from Unicode 3.2: the tables of two libraries, of whatever versions,
    agree on them. Letters that were added last year they may take for something else.
    """
    generator = random.Random(seed)
    old = [i for i in range(0x110000) if unicodedata.ucd_3_2_0.category(chr(i)) not in ("Cn", "Cs")]
    texts = ["", " " * 3000, "\n" * 500 + " x", "\u3000" * 700 + "y", "a" * 5000, "ab" * 2000 + "a"]
    while len(texts) < count:
        parts = []
        for _ in range(generator.randint(1, 12)):
            if generator.random() < 0.6:
                parts.append(generator.choice(FRAGMENTS))
            elif generator.random() < 0.9:
                parts.append(chr(generator.choice(old)))
            else:
                parts.append(generator.choice(" \t\n\u00a0") * generator.randint(1, 60))
        texts.append("".join(parts))
    return texts


@pytest.fixture(scope="module")
def texts():
    return hostile(5000)


@pytest.fixture(scope="module")
def fewer_texts(texts):
    return texts[:700]


@pytest.fixture(scope="module")
def ours():
    return BPETokenizer.train(CORPUS, 1500, SPECIAL)


def train_peer(texts, vocab_size, pre_tokenizer=None, **options):
    tokenizer = peer.Tokenizer(peer.models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer or peer.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = peer.decoders.ByteLevel()
    options.setdefault("initial_alphabet", peer.pre_tokenizers.ByteLevel.alphabet())
    trainer = peer.trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, **options)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def model_of(tokenizer):
    return json.loads(tokenizer.to_str())["model"]


def merges_of(tokenizer):
    return [tuple(merge) for merge in model_of(tokenizer)["merges"]]


def theirs_of(tokenizer, path):
    tokenizer.save(path)
    return peer.Tokenizer.from_file(str(path))


def ours_of(tokenizer, path):
    tokenizer.save(str(path))
    return load(path)


def assert_same_ids(ours, theirs, texts):
    """With special tokens recognised in the text, and without."""
    for allowed in ("all", ()):
        theirs.encode_special_tokens = not allowed
        expected = theirs.encode_batch(texts, add_special_tokens=False)
        for text, encoding in zip(texts, expected, strict=True):
            assert ours.encode(text, allowed_special=allowed) == encoding.ids, repr(text)


@pytest.mark.parametrize("vocab_size", [256, 257, 4096])
def test_training_learns_the_same_merges(vocab_size):
    ours, theirs = BPETokenizer.train(CORPUS, vocab_size), train_peer([CORPUS], vocab_size)
    assert ours.vocab == theirs.get_vocab()
    assert ours.merges == merges_of(theirs)


def test_training_on_a_file_is_training_on_its_lines(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(EXCERPT, encoding="utf-8")
    theirs = peer.Tokenizer(peer.models.BPE())
    theirs.pre_tokenizer = peer.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = peer.pre_tokenizers.ByteLevel.alphabet()
    trainer = peer.trainers.BpeTrainer(
        vocab_size=1024, show_progress=False, initial_alphabet=alphabet
    )
    theirs.train([str(path)], trainer)
    with path.open(encoding="utf-8", newline="\n") as lines:
        assert BPETokenizer.train(lines, 1024).merges == merges_of(theirs)


@pytest.mark.parametrize("min_frequency", [1, 2, 3])
def test_ties_are_broken_the_same_way(min_frequency):
    """Short texts over few letters: nearly every choice is a tie, and pairs overlap themselves."""
    generator = random.Random(min_frequency)
    for _ in range(100):
        alphabet = generator.choice(["ab", "abc ", "aé ", "zyx\n "])
        texts = [
            "".join(generator.choices(alphabet, k=generator.randint(1, 60)))
            for _ in range(generator.randint(1, 3))
        ]
        ours = BPETokenizer.train(texts, 300, min_frequency=min_frequency)
        assert ours.merges == merges_of(train_peer(texts, 300, min_frequency=min_frequency)), texts


def test_the_corpus_and_hostile_text_encode_alike(ours, texts, tmp_path):
    theirs = theirs_of(ours, tmp_path / "tokenizer.json")
    assert ours.encode(CORPUS) == theirs.encode(CORPUS).ids
    assert_same_ids(ours, theirs, texts)


def test_any_ids_decode_alike(ours, tmp_path):
    theirs = theirs_of(ours, tmp_path / "tokenizer.json")
    generator = random.Random(0)
    low = list(range(300)) + list(ours.special_tokens.values())  # mostly single, broken bytes
    for _ in range(2000):
        ids = generator.choices(low, k=generator.randint(0, 12))
        for skip in (True, False):
            expected = theirs.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip_special_tokens=skip) == expected


@pytest.mark.parametrize(
    "make",
    [
        lambda: ByteTokenizer(),
        lambda: ByteTokenizer(SPECIAL),
        lambda: CharTokenizer.train(CORPUS),
        lambda: CharTokenizer.train(CORPUS, SPECIAL, "<unk>"),
        lambda: BPETokenizer.train(EXCERPT, 400, nfc=True),
        lambda: BPETokenizer.train(
            EXCERPT,
            400,
            SPECIAL,
            pre_tokenizer=PreTokenizer((CL100K_PATTERN,), use_regex=False),
        ),
    ],
    ids=["byte", "byte-special", "char", "char-unk", "bpe-nfc", "bpe-cl100k"],
)
def test_our_files_are_theirs(make, fewer_texts, tmp_path):
    tokenizer = make()
    path = tmp_path / "tokenizer.json"
    theirs = theirs_of(tokenizer, path)
    assert json.loads(theirs.to_str()) == json.loads(path.read_text(encoding="utf-8"))
    assert theirs.get_vocab() == tokenizer.vocab
    if isinstance(tokenizer, CharTokenizer) and "<unk>" not in tokenizer.vocab:
        known = {char for char in tokenizer.vocab if len(char) == 1}
        fewer_texts = ["".join(char for char in text if char in known) for text in fewer_texts]
    assert_same_ids(tokenizer, theirs, fewer_texts)
    for text in fewer_texts[:300]:
        ids = tokenizer.encode(text)
        assert theirs.decode(ids, skip_special_tokens=False) == tokenizer.decode(ids)


def test_training_with_the_pattern_of_gpt4_learns_the_same_merges():
    split = peer.pre_tokenizers.Split(peer.Regex(CL100K_PATTERN), "isolated")
    byte_level = peer.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    stages = peer.pre_tokenizers.Sequence([split, byte_level])
    ours = BPETokenizer.train(
        EXCERPT, 800, pre_tokenizer=PreTokenizer((CL100K_PATTERN,), use_regex=False)
    )
    assert ours.merges == merges_of(train_peer([EXCERPT], 800, stages))


def byte_level(**options):
    return peer.pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **options})


def split(pattern):
    return peer.pre_tokenizers.Split(pattern, "isolated")


PRE_TOKENIZERS = {
    "plain": byte_level(),
    "prefix space": byte_level(add_prefix_space=True),
    "whole text": byte_level(use_regex=False),
    "cl100k": peer.pre_tokenizers.Sequence(
        [split(peer.Regex(CL100K_PATTERN)), byte_level(use_regex=False)]
    ),
    "digits": peer.pre_tokenizers.Sequence([peer.pre_tokenizers.Digits(True), byte_level()]),
    "runs of digits, prefix space": peer.pre_tokenizers.Sequence(
        [peer.pre_tokenizers.Digits(False), byte_level(add_prefix_space=True)]
    ),
    "a literal": peer.pre_tokenizers.Sequence([split("e."), byte_level(use_regex=False)]),
}


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_their_pre_tokenizers(name, fewer_texts, tmp_path):
    theirs = train_peer([EXCERPT], 600, PRE_TOKENIZERS[name])
    theirs.add_special_tokens(SPECIAL)
    ours = ours_of(theirs, tmp_path / "tokenizer.json")
    assert ours.vocab == theirs.get_vocab()
    assert_same_ids(ours, theirs, fewer_texts)
    assert_same_ids(ours_of(ours, tmp_path / "again.json"), theirs, fewer_texts[:300])


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_their_model_options(ignore_merges, fewer_texts, tmp_path):
    theirs = train_peer([EXCERPT], 600)
    description = json.loads(theirs.to_str())
    model = description["model"]
    model["ignore_merges"] = ignore_merges
    model["merges"] = [" ".join(pair) for pair in model["merges"][:200]]  # the older spelling
    description["normalizer"] = {"type": "NFC"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(description), encoding="utf-8")
    theirs = peer.Tokenizer.from_file(str(path))
    ours = load(path)
    assert len(ours.merges) == 200
    assert_same_ids(ours, theirs, fewer_texts)
    assert ours.encode(CORPUS) == theirs.encode(CORPUS).ids


def test_their_added_tokens(fewer_texts, tmp_path):
    theirs = train_peer([EXCERPT], 600)
    theirs.normalizer = peer.normalizers.NFC()
    theirs.add_special_tokens(
        [
            *SPECIAL,
            peer.AddedToken("<left>", lstrip=True),
            peer.AddedToken("<right>", rstrip=True),
            peer.AddedToken("<|end", special=True),
        ]
    )
    theirs.add_tokens(
        [
            peer.AddedToken("hello", single_word=True),
            peer.AddedToken("e\u0301", normalized=True),
            peer.AddedToken("A\u030a", normalized=False),
            peer.AddedToken("    ", normalized=False),
            peer.AddedToken("can't", lstrip=True, rstrip=True),
        ]
    )
    ours = ours_of(theirs, tmp_path / "tokenizer.json")
    assert ours.special_tokens.keys() == {*SPECIAL, "<left>", "<right>", "<|end"}
    generator = random.Random(1)
    words = [*theirs.get_added_tokens_decoder().values()]
    words = [token.content for token in words] + [" ", "\n\u3000 ", "x", "é", "\u0301", "Å", "_"]
    mixed = ["".join(generator.choices(words, k=generator.randint(1, 9))) for _ in range(3000)]
    assert_same_ids(ours, theirs, [*fewer_texts, *mixed])
    assert_same_ids(ours_of(ours, tmp_path / "again.json"), theirs, mixed[:300])


def test_a_vocabulary_that_lacks_bytes(fewer_texts, tmp_path):
    theirs = train_peer([EXCERPT], 400, initial_alphabet=[], special_tokens=["<unk>"])
    description = json.loads(theirs.to_str())
    description["model"]["unk_token"] = "<unk>"
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(description), encoding="utf-8")
    assert_same_ids(load(path), peer.Tokenizer.from_file(str(path)), fewer_texts)


def test_special_tokens_that_come_first(fewer_texts, tmp_path):
    """BpeTrainer puts the special tokens it is given before the bytes."""
    theirs = train_peer([EXCERPT], 700, special_tokens=SPECIAL)
    ours = ours_of(theirs, tmp_path / "tokenizer.json")
    assert [ours.token_to_id(name) for name in SPECIAL] == [0, 1, 2]
    assert_same_ids(ours, theirs, fewer_texts)
    assert ours.merges == BPETokenizer.train(EXCERPT, 700, SPECIAL).merges
