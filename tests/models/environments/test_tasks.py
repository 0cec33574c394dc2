"""Tasks: rows that fit, demonstrations that earn everything, none of it by chance."""

import numpy as np
import pytest

from models.environments.rewards import weighted
from models.environments.tasks import OPERATIONS, TASKS

COUNT = 200


def drawn(task, seed=0, count=COUNT):
    random = np.random.default_rng(seed)
    rows = [task.draw(random) for _ in range(count)]
    return rows, [task.demonstrate(row, random) for row in rows]


def judged(task, rows, completions):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return weighted(task.rewards, columns.pop("prompt"), completions, columns)


@pytest.fixture(params=TASKS)
def task(request):
    return TASKS[request.param]()


def test_demonstrations_are_right(task):
    rows, completions = drawn(task)
    _, given = judged(task, rows, completions)
    first, *_ = given.values()
    assert set(first) == {1.0}
    assert len({row["prompt"] for row in rows}) > COUNT / 4


def test_those_of_other_rows_are_not(task):
    rows, completions = drawn(task)
    _, given = judged(task, rows, completions[1:] + completions[:1])
    first, *_ = given.values()
    assert np.mean([value == 1.0 for value in first]) < 0.5
    _, given = judged(task, rows, [""] * COUNT)
    first, *_ = given.values()
    assert not any(first)


def test_all_fits(task):
    tokenizer = task.tokenizer()
    rows, completions = drawn(task)
    for row, completion in zip(rows, completions):
        assert len(tokenizer.encode(row["prompt"])) <= task.longest_prompt
        ids = tokenizer.encode(completion, allowed_special="all")
        assert len(ids) < task.longest_completion  # the end token comes on top
        assert tokenizer.decode(ids) == completion


def test_a_seed_is_a_sequence(task):
    assert drawn(task, 3) == drawn(task, 3)
    assert drawn(task, 3) != drawn(task, 4)


def test_every_string_operation_occurs():
    rows, _ = drawn(TASKS["strings"]())
    assert {row["prompt"].split()[0] for row in rows} == set(OPERATIONS)


def test_the_demonstrations_of_two_alphabets_are_mixed():
    task = TASKS["bilingual"]()
    _, given = judged(task, *drawn(task))
    assert 0.5 < np.mean(given["language"]) < 0.7
    assert set(given["layout"]) == {1.0}
