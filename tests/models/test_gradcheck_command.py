"""`minitorch gradcheck`: the table, JSON, a wrong rule, and wrong names."""

import json

from click.testing import CliRunner

from minitorch.ops import registry
from minitorch.ops.definition import Rule
from models.commands.gradcheck import gradcheck


def test_the_table():
    result = CliRunner().invoke(gradcheck, ["--op", "softmax", "--op", "mul"])
    assert result.exit_code == 0
    assert "softmax" in result.output
    assert "bilinear" in result.output
    assert "2 operations" in result.output
    assert "all right" in result.output


def test_json_and_smaller_dtypes():
    for dtype in ("float32", "bfloat16"):
        result = CliRunner().invoke(
            gradcheck, ["--op", "layer_norm", "--dtype", dtype, "--order", "1", "--json"]
        )
        report = json.loads(result.output)
        assert report["ok"], result.output
        assert report["operations"][0]["structure"] == "fused"


def test_a_wrong_rule_exits_with_one(monkeypatch):
    monkeypatch.setattr(registry["cos"], "rules", [Rule(lambda x: x.sin(), ("x",))])
    result = CliRunner().invoke(gradcheck, ["--op", "cos"])
    assert result.exit_code == 1
    assert "WRONG" in result.output
    assert "analytic" in result.output


def test_wrong_names_are_explained():
    result = CliRunner().invoke(gradcheck, ["--op", "sofmax"])
    assert "did you mean softmax" in str(result.exception)
    assert "no derivative" in str(CliRunner().invoke(gradcheck, ["--op", "argmax"]).exception)
