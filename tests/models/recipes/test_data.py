"""Rows: what they mean, how they are refused, batched and packed."""

import json

import numpy as np
import pytest

from minitorch.errors import DataError
from minitorch.tokenizers import ByteTokenizer
from models.chat import Message, with_template
from models.recipes.data import (
    IGNORED,
    Example,
    Row,
    Shuffled,
    collate,
    example,
    fingerprint,
    pack,
    prompt_ids,
    read_rows,
    split_rows,
)

TOKENIZER = with_template(ByteTokenizer(), "turns")


def make(length, value, masked_from=1):
    return Example(np.full(length, value), np.arange(length) >= masked_from)


def test_rows_are_read_with_their_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b", "level": 3}\n\n{"prompt": "c"}\n')
    rows = read_rows(path)
    assert [row.where for row in rows] == [f"{path}:1", f"{path}:3"]
    assert rows[0].fields["level"] == 3
    assert rows[0].conversation() == [Message("user", "a"), Message("assistant", "b")]
    assert fingerprint(rows) != fingerprint(rows[:1])


def test_the_question_is_all_before_the_last_answer():
    said = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")]
    row = Row("f:1", {"messages": [{"role": r, "content": c} for r, c in said]})
    messages, answer = row.question()
    assert ([m.content for m in messages], answer) == (["a", "b", "c"], "d")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "a"}, "f:1: expected a text under 'completion'; got None. The keys are prompt"),
        ({"prompt": "a", "completion": ""}, "expected a text under 'completion'; got ''"),
        ({"completion": "a"}, "expected a text under 'prompt'"),
        ({"messages": []}, "expected a list of messages under 'messages'"),
        ({"messages": ["a"]}, 'f:1: expected messages like {"role": "user"'),
        ({"messages": [{"role": "x", "content": ""}]}, "f:1: message: expected a role"),
        ({"messages": [{"role": "user", "content": "a"}]}, "expected an answer of the assistant"),
    ],
)
def test_a_row_without_what_it_needs_is_named(fields, message):
    with pytest.raises(DataError) as error:
        Row("f:1", fields).conversation()
    assert message in str(error.value)


def said(*contents):
    roles = ("user", "assistant") * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents)]


def test_a_pair_is_two_answers_or_two_conversations():
    answers = Row("f:1", {"prompt": said("a", "b", "c"), "chosen": "d", "rejected": "e"})
    talks = Row("f:1", {"chosen": said("a", "b", "c", "d"), "rejected": said("a", "b", "c", "e")})
    assert answers.pair() == talks.pair()
    assert [message.content for message in talks.pair()[1]] == ["a", "b", "c", "e"]
    for chosen, rejected, message in (
        (said("a", "b"), said("c", "d"), "got two questions"),
        (said("a", "b"), said("a", "b"), "chosen and rejected are the same"),
        (said("a", "b", "c"), said("a", "b"), "f:1: expected an answer at the end of 'chosen'"),
    ):
        with pytest.raises(DataError, match=message):
            Row("f:1", {"chosen": chosen, "rejected": rejected}).pair()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no rows"),
        (b'{"a": 1}\n{', ":2: not a line of JSON"),
        (b"[1]", ":1: expected an object; got"),
        (b"\xff", "is not UTF-8"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match="rows") as error:
        read_rows(path)
    assert message in str(error.value)
    with pytest.raises(DataError, match="cannot read"):
        read_rows(tmp_path / "absent.jsonl")


def test_numbers():
    row = Row("f:1", {"margin": 2, "bad": "x"})
    assert (row.number("margin", 0), row.number("absent", 0.5)) == (2.0, 0.5)
    with pytest.raises(DataError, match="f:1: expected a number under 'bad'; got 'x'"):
        row.number("bad", 0)


def test_a_row_longer_than_the_context_is_named():
    row = Row("f:7", {"prompt": "a" * 20, "completion": "b"})
    assert len(example(row, row.conversation(), TOKENIZER, 25)) == 25
    with pytest.raises(DataError, match="f:7: 25 tokens are more than the model's context of 24"):
        example(row, row.conversation(), TOKENIZER, 24)
    with pytest.raises(DataError, match="f:7: 23 tokens are more"):
        prompt_ids(row, TOKENIZER, 22)


def test_both_parts_of_a_split_have_rows():
    rows = [Row(f"f:{i}", {"i": i}) for i in range(10)]
    training, validation = split_rows(rows, 0.2, seed=1)
    assert (len(training), len(validation)) == (8, 2)
    assert sorted(row.fields["i"] for row in [*training, *validation]) == list(range(10))
    assert split_rows(rows, 0.2, seed=1) == (training, validation)
    assert split_rows(rows, 0.2, seed=2) != (training, validation)
    with pytest.raises(DataError, match="at least 2 rows"):
        split_rows(rows[:1], 0.2, seed=1)


def test_targets_are_the_masked_tokens_one_early():
    batch = collate([[make(4, 7, 2), make(2, 8)], [make(3, 9)]])
    assert batch.ids.tolist() == [[7, 7, 7, 7, 8, 8], [9, 9, 9, 0, 0, 0]]
    none = IGNORED
    assert batch.targets.tolist() == [[none, 7, 7, none, 8, none], [9, 9, none, none, none, none]]
    assert batch.segments.tolist() == [[1, 1, 1, 1, 2, 2], [1, 1, 1, 0, 0, 0]]
    assert batch.counted == 5 == sum(x.counted for x in (make(4, 7, 2), make(2, 8), make(3, 9)))
    assert batch.packed
    assert not collate([[make(4, 7)], [make(3, 9)]]).packed


def test_packing_loses_nothing_and_fits():
    draw = np.random.default_rng(0)
    examples = [make(int(n), i) for i, n in enumerate(draw.integers(1, 20, 100))]
    rows = pack(examples, 20)
    assert all(sum(map(len, row)) <= 20 for row in rows)
    assert sorted(int(item.ids[0]) for row in rows for item in row) == list(range(100))
    assert len(rows) <= 1.1 * sum(map(len, examples)) / 20 + 1


def test_every_epoch_has_all_rows_in_an_order_of_its_own():
    loader = Shuffled(5, 2, seed=3)
    drawn = [next(loader) for _ in range(5)]
    first, second = np.split(np.concatenate(drawn), 2)
    assert sorted(first) == sorted(second) == list(range(5))
    assert first.tolist() != second.tolist()
    one, two = Shuffled(5, 2, seed=3), Shuffled(5, 2, seed=9)
    for _ in range(3):
        next(one)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert [next(two) for _ in range(4)] == [next(one) for _ in range(4)]
