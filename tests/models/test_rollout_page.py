"""What was written of rollouts can be read again, and the page shows it and runs none of it."""

import pytest

from minitorch.errors import DataError
from models.rollout_page import (
    append_rollouts,
    read_rollouts,
    record,
    write_page,
    write_rollouts,
)


def rollout(step=1, group=0, tokens=("<b>", "7", "&"), mask=(True, False, True), **changes):
    values = {
        "prompt": "3+4=",
        "values": {"log_probs": [-0.5, 0.0, -1.0], "advantages": [1.5, 0.0, -0.5]},
        "reward": 1.0,
        "rewards": {"exact": 1.0, "layout": None},
        "finished": False,
        **changes,
    }
    return record(step, group, tokens=tokens, mask=mask, **values)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    assert read_rollouts(path) == []
    one, two = rollout(), rollout(step=2)
    write_rollouts(path, [one])
    append_rollouts(path, [two])
    assert read_rollouts(path) == [one, two]
    with open(path, "a") as file:
        file.write('{"step": 3, "gro')  # a run that was killed
    assert read_rollouts(path) == [one, two]


def test_a_line_that_is_no_rollout(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    path.write_text('{"step": 1}\n')
    with pytest.raises(DataError, match=r"rollouts.jsonl:1: not a rollout"):
        read_rollouts(path)


def test_the_page(tmp_path):
    path = tmp_path / "rollouts.html"
    write_page(path, [rollout(step=1), rollout(step=2, prompt="<script>")], "a & b")
    page = path.read_text()
    assert "<b>7" not in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<title>a &amp; b</title>" in page
    assert page.index("step 2") < page.index("step 1")
    assert page.count("class=told title='told'>7<") == 2
    assert "rgba(34, 160, 80, 0.60)' title='log p -0.500, advantage +1.500'>&lt;b&gt;<" in page
    assert "rgba(215, 60, 60, 0.20)" in page
    assert "<td>1</td><td>1</td><td>–</td>" in page
    assert "http" not in page
    write_page(path, [], "none")
    assert "No rollouts yet" in path.read_text()
