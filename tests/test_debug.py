"""Pictures of the tape, the profiler, and what the tape keeps."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import minitorch as mt
from minitorch import debug, nn
from minitorch.errors import GraphError
from minitorch.nn import functional as F

SVG = "{http://www.w3.org/2000/svg}"


def _loss():
    mt.manual_seed(0)
    x = mt.randn(8, 4)
    layer = nn.Linear(4, 3)
    return nn.functional.cross_entropy(layer(x).tanh(), mt.tensor([0, 1, 2, 0, 1, 2, 0, 1]))


def test_the_picture_has_a_box_for_every_operation_and_leaf(tmp_path):
    picture = debug.graph(_loss())
    root = ElementTree.fromstring(picture.svg)
    labels = [text.text for text in root.iter(f"{SVG}text")]
    assert {"linear", "tanh", "cross_entropy"} <= set(labels)
    assert labels.count("leaf") == 2  # weight and bias; x receives no gradient
    assert "8×3 float32" in labels
    boxes = [(r.get("x"), r.get("y")) for r in root.iter(f"{SVG}rect")]
    assert len(set(boxes)) == len(boxes) == 5
    picture.save(tmp_path / "tape.svg")
    assert (tmp_path / "tape.svg").read_text() == picture._repr_svg_()


def test_a_value_used_twice_is_drawn_once():
    x = mt.ones(2, requires_grad=True)
    y = x.exp()
    root = ElementTree.fromstring(debug.graph((y * y.sin()).sum()).svg)
    labels = [text.text for text in root.iter(f"{SVG}text")]
    assert labels.count("exp") == 1
    assert labels.count("leaf") == 1


def test_a_tensor_off_the_tape_has_no_picture():
    with pytest.raises(GraphError, match="not computed by a recorded operation"):
        debug.graph(mt.ones(2))


def test_the_profiler_sees_forward_and_backward(tmp_path):
    x = mt.randn(50, 60, requires_grad=True)
    with debug.profile() as report:
        (x @ x.mT).softmax(-1).square().sum().backward()
    calls = {(name, phase): n for name, phase, n, _, _ in report.summary()}
    assert calls["matmul", "forward"] == 1
    assert calls["matmul", "backward"] == 1
    assert calls["softmax", "backward"] == 1
    size = next(row[4] for row in report.summary() if row[:2] == ("matmul", "forward"))
    assert size == 50 * 50 * 4
    assert "softmax" in report.table()
    report.save_chrome_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert len(events) == len(report.events)
    assert all(event["dur"] >= 0 for event in events)
    before = len(report.events)
    x.exp()
    assert len(report.events) == before


def test_a_profile_adds_in_place_as_the_sweep_does_without_it():
    weight = mt.randn(50, 4, requires_grad=True)
    first, second = mt.tensor([1, 2]), mt.tensor([2, 3])
    with debug.profile() as profile:
        (F.embedding(first, weight) + F.embedding(second, weight)).sum().backward()
    rows = {(name, phase): (calls, size) for name, phase, calls, _, size in profile.summary()}
    assert rows["embedding", "backward"] == (2, weight.data.nbytes)
    np.testing.assert_array_equal(weight.grad.numpy()[:5, 0], [0, 1, 2, 1, 0])


def test_what_the_tape_keeps():
    x = mt.ones(100, requires_grad=True)
    report = debug.saved((x.exp() + 1).sin().sum())
    rows = {row.operation: row for row in report.rows}
    assert rows["exp"].kept == ("result",)
    assert rows["exp"].bytes == 400
    assert rows["sin"].kept == ("x",)
    assert rows["add"].kept == rows["sum"].kept == ()
    assert report.total == 800
    assert "800" in str(report)


def test_a_checkpoint_keeps_what_it_was_given():
    x = mt.ones(100, requires_grad=True)

    def f(x):
        return x.exp().sin().exp().sum()

    report = debug.saved(mt.checkpoint(f, x))
    assert report.total == 400 < debug.saved(f(x)).total == 800
    assert [(row.operation, row.shape, row.kept, row.bytes) for row in report.rows] == [
        ("checkpoint", (100,), ("its inputs",), 400),
        ("exp", (100,), ("result (recomputed)",), 0),
        ("sin", (100,), ("x (recomputed)",), 0),
        ("exp", (100,), ("result (recomputed)",), 0),
        ("sum", (), (), 0),
    ]


def test_inputs_of_checkpoints_count_once():
    x, y = mt.ones(100, requires_grad=True), mt.ones(50)

    def f(pair, *, scale):
        return pair["first"].exp() * pair["rest"][0].sum() * scale

    def twice():
        tree = {"first": x, "rest": [y]}
        return mt.checkpoint(f, tree, scale=y[:1]) + mt.checkpoint(f, tree, scale=y[:1])

    assert debug.saved(twice()).total == 600

    def chain(z):
        return z.exp().sin()

    # x, and between the two what the first made; after them, the input of the last exp is theirs
    between = mt.checkpoint(chain, mt.checkpoint(chain, x))
    assert debug.saved(between).total == 800
    assert debug.saved(between * between).total == 1200


def test_a_checkpoint_that_closes_over_everything_was_given_nothing():
    x = mt.ones(100, requires_grad=True)
    report = debug.saved(mt.checkpoint(lambda: x.exp().sum()))
    assert report.total == 0
    assert report.rows[0].operation == "checkpoint"
    assert report.rows[0].kept == ()
