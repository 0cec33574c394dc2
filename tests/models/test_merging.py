"""Merging: identities of each method, the arithmetic typed again, and folders that do not fit."""

import json

import numpy as np
import pytest

import minitorch as mt
from minitorch.backend import bfloat16
from minitorch.errors import CheckpointError, ConfigError
from minitorch.random import Generator
from models import merging
from models.families import FAMILIES, from_pretrained
from models.merging import merge_folders

SHAPES = {"one": (5, 4), "two": (7,), "three": (2, 3, 4)}


def weights(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


A, B, C, BASE = (weights(seed) for seed in range(4))


def close(found, expected, atol=1e-12):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=atol, err_msg=name)


def combined(*terms):
    """The sum of factor times tensor, by name."""
    return {name: sum(factor * model[name] for factor, model in terms) for name in SHAPES}


def test_linear_is_the_weighted_mean():
    close(merging.linear([A, B]), combined((0.5, A), (0.5, B)))
    close(merging.linear([A, B, C], weights=[2, 1, 1]), combined((0.5, A), (0.25, B), (0.25, C)))
    close(merging.linear([A]), A)


def test_slerp_begins_and_ends_at_the_models():
    close(merging.slerp([A, B], t=0.0), A)
    close(merging.slerp([A, B], t=1.0), B)


def test_slerp_keeps_the_length_and_turns_evenly():
    a, b = (x["two"] / np.linalg.norm(x["two"]) for x in (A, B))
    whole = np.arccos(a @ b)
    for t in (0.1, 0.5, 0.8):
        found = merging.slerp([{"two": a}, {"two": b}], t=t)["two"]
        assert np.linalg.norm(found) == pytest.approx(1)
        assert np.arccos(a @ found) == pytest.approx(t * whole)


def test_slerp_of_one_direction_and_of_zeros_is_a_straight_line():
    doubled, zero = combined((2.0, A)), combined((0.0, A))
    close(merging.slerp([A, doubled], t=0.25), combined((1.25, A)))
    close(merging.slerp([zero, A], t=0.25), combined((0.25, A)))
    opposite = combined((-1.0, A))
    close(merging.slerp([A, opposite], t=0.5), zero)


def test_task_arithmetic_adds_and_takes_away():
    close(merging.task_arithmetic([A], BASE), A)
    added = combined((1, BASE), (0.5, A), (-0.5, BASE), (0.5, B), (-0.5, BASE))
    close(merging.task_arithmetic([A, B], BASE, scale=0.5), added)
    close(merging.task_arithmetic([A], BASE, weights=[-1]), combined((2, BASE), (-1, A)))


def test_ties_of_one_model_at_density_1_is_the_model():
    close(merging.ties([A], BASE, density=1.0), A)


def test_ties_of_a_model_with_itself_is_ties_of_the_model():
    close(merging.ties([A, A], BASE), merging.ties([A], BASE))


def test_ties_against_its_definition_entry_by_entry():
    models, shares, density = [A, B, C], [1.0, 0.5, 2.0], 0.6
    found = merging.ties(models, BASE, weights=shares, density=density, scale=0.7)
    for name, start in BASE.items():
        learnt = []
        for model in models:
            change = (model[name] - start).reshape(-1)
            limit = np.sort(np.abs(change))[-round(density * change.size)]
            learnt.append(np.where(np.abs(change) >= limit, change, 0))
        for i in range(start.size):
            entries = [(w, tau[i]) for w, tau in zip(shares, learnt) if tau[i] != 0]
            sign = np.sign(sum(w * x for w, x in entries))
            same = [(w, x) for w, x in entries if np.sign(x) == sign]
            mean = sum(w * x for w, x in same) / sum(w for w, _ in same) if same else 0.0
            expected = start.reshape(-1)[i] + 0.7 * mean
            assert found[name].reshape(-1)[i] == pytest.approx(expected)


def test_what_is_trimmed_and_what_a_majority_decides():
    np.testing.assert_array_equal(
        merging.trimmed(np.array([0.1, -3.0, 2.0, 0.0]), 0.5), [0, -3, 2, 0]
    )
    votes = [np.array([1.0, 1.0]), np.array([2.0, -3.0]), np.array([-4.0, 1.0])]
    np.testing.assert_array_equal(merging.agreed([1, 1, 1], votes), [-4, -3])


def test_dare_drops_and_makes_up_for_it():
    large = {"w": np.ones((400, 300))}
    zero = {"w": np.zeros((400, 300))}
    found = merging.dropped([large], zero, 0.1, seed=0)[0]["w"]
    assert set(np.unique(found)) == {0.0, 10.0}
    assert found.mean() == pytest.approx(1, abs=0.03)
    other = merging.dropped([large], zero, 0.1, seed=1)[0]["w"]
    assert 0.005 < (found * other > 0).mean() < 0.02
    close(merging.dare([A], BASE, density=1.0), A)
    close(merging.dare_ties([A], BASE, density=1.0), A)


def test_two_models_do_not_drop_the_same_entries():
    ones, zero = {"w": np.ones(2000)}, {"w": np.zeros(2000)}
    a, b = merging.dropped([ones, ones], zero, 0.5, seed=0)
    assert 0.2 < ((a["w"] > 0) & (b["w"] > 0)).mean() < 0.3


def test_the_dtype_is_kept_and_integers_are_the_first_ones():
    low = weights(0, bfloat16) | {"count": np.arange(3)}
    high = weights(1, bfloat16) | {"count": np.arange(3) + 1}
    found = merging.linear([low, high])
    assert {str(x.dtype) for x in found.values()} == {"bfloat16", "int64"}
    np.testing.assert_array_equal(found["count"], [0, 1, 2])
    exact = (low["one"].astype(np.float32) + high["one"].astype(np.float32)) / 2
    np.testing.assert_array_equal(found["one"], exact.astype(bfloat16))


SIZE = {"vocab_size": 19, "layers": 2, "heads": 2, "width": 16, "positions": 12}


def folder_of(path, family="llama", seed=0, tokens="x", **size):
    FAMILIES[family].sized(**{**SIZE, **size}).build(np.float32, Generator(seed)).save_pretrained(
        path
    )
    (path / "tokenizer.json").write_text(json.dumps({"version": tokens}))
    return path


@pytest.fixture
def folders(tmp_path):
    return [folder_of(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_folder_is_a_model(family, tmp_path):
    a, b = (folder_of(tmp_path / name, family, seed=seed) for seed, name in enumerate("ab"))
    merge_folders("linear", [a, b], tmp_path / "out")
    ids = mt.from_numpy(np.arange(6)[None])
    found = from_pretrained(tmp_path / "out").state_dict()
    one, two = (from_pretrained(path).state_dict() for path in (a, b))
    for name, tensor in found.items():
        expected = (one[name].numpy() + two[name].numpy()) / 2
        np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-6)
    with mt.no_grad():
        assert np.isfinite(from_pretrained(tmp_path / "out").eval()(ids)[0].numpy()).all()
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"version": "x"}'


@pytest.mark.parametrize("method", merging.METHODS)
def test_every_method_on_the_command_line(method, folders, tmp_path, cli):
    base = [] if method in merging.WITHOUT_BASE else ["--base", folders[2]]
    out = tmp_path / "out"
    result = cli("merge", *folders[:2], "--method", method, *base, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert str(out) in result.stdout
    direct = merging.METHODS[method](
        *[[merging.read_weights(f) for f in folders[:2]]],
        **({"base": merging.read_weights(folders[2])} if base else {}),
    )
    close(merging.read_weights(out), direct, atol=0)


def test_settings_reach_the_method(folders, tmp_path, cli):
    out = tmp_path / "out"
    arguments = ["--method", "linear", "--weight", 3, "--weight", 1, "--out", out]
    assert cli("merge", *folders[:2], *arguments).exit_code == 0
    a, b = (merging.read_weights(f) for f in folders[:2])
    expected = {name: 0.75 * a[name] + 0.25 * b[name] for name in a}
    close(merging.read_weights(out), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "ties"], "ties: expected the base that the models were trained from"),
        (["--method", "slerp", "--t", 2], r"slerp: expected t in \[0, 1\]"),
        (["--method", "slerp", "--scale", 2], "--scale: slerp has no such setting; it takes --t"),
        (["--weight", 1], "2 models and 1 weights"),
        (["--weight", 1, "--weight", -1], "sum is not 0"),
    ],
)
def test_settings_that_make_no_sense(arguments, message, folders, tmp_path, cli):
    result = cli("merge", *folders[:2], *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(result.stderr)
    assert not (tmp_path / "out").exists()


def refused(tmp_path, folders, kind, message, **settings):
    method = settings.pop("method", "linear")
    with pytest.raises(kind, match=message):
        merge_folders(method, folders, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_another_architecture(folders, tmp_path):
    other = folder_of(tmp_path / "other", "qwen2")
    refused(tmp_path, [folders[0], other], ConfigError, r"architecture.*model_type")


def test_another_size(folders, tmp_path):
    other = folder_of(tmp_path / "other", layers=3)
    refused(tmp_path, [folders[0], other], ConfigError, r"num_hidden_layers 2; got .*3")


def test_another_tokenizer(folders, tmp_path):
    other = folder_of(tmp_path / "other", tokens="y")
    refused(tmp_path, [folders[0], other], ConfigError, "expected one tokenizer")


def test_a_base_of_another_size(folders, tmp_path):
    other = folder_of(tmp_path / "other", width=32)
    refused(tmp_path, folders[:2], ConfigError, "hidden_size", method="ties", base=other)


def test_weights_of_other_shapes_under_an_equal_config(folders, tmp_path):
    other = folder_of(tmp_path / "other", vocab_size=20)
    (other / "config.json").write_text((folders[0] / "config.json").read_text())
    refused(tmp_path, [folders[0], other], CheckpointError, r"lm_head.*\(19, 16\).*\(20, 16\)")


def test_a_folder_that_is_not_there_and_one_that_would_be_overwritten(folders, tmp_path):
    refused(tmp_path, [folders[0], tmp_path / "none"], CheckpointError, "none")
    with pytest.raises(ConfigError, match="another folder for the result"):
        merge_folders("linear", folders, folders[1])


def test_one_density_for_a_share_of_nothing(folders, tmp_path):
    refused(
        tmp_path, folders[:2], ConfigError, "density", method="dare", base=folders[2], density=0.0
    )
    refused(tmp_path, folders[:2], ConfigError, "method", method="magic")
    refused(tmp_path, folders[:2], ConfigError, "no base", base=folders[2])
