"""Parameter groups, saved state, and what is refused."""

import json

import numpy as np
import pytest

from minitorch.errors import CheckpointError, ConfigError
from minitorch.nn import Embedding, Linear, Module, Parameter
from minitorch.optim import SGD, Adafactor, Adam, AdamW, Lion, Muon, muon_groups
from minitorch.tensor import Tensor

OPTIMIZERS = [
    (SGD, {"momentum": 0.9}),
    (Adam, {}),
    (AdamW, {}),
    (Lion, {}),
    (Adafactor, {}),
    (Muon, {}),
]


def parameters(seed=0, shapes=((4, 3), (3, 5))):
    rng = np.random.default_rng(seed)
    return [Parameter(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]


def step(optimizer, seed):
    rng = np.random.default_rng(seed)
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = Tensor(rng.standard_normal(param.shape).astype(np.float32))
    optimizer.step()


@pytest.mark.parametrize(("optimizer_class", "options"), OPTIMIZERS)
def test_a_restored_optimizer_goes_on_bit_for_bit(optimizer_class, options):
    ours = parameters()
    optimizer = optimizer_class(ours, **options)
    for seed in range(3):
        step(optimizer, seed)
    saved = optimizer.state_dict()
    resumed = [Parameter(param.data.copy()) for param in ours]
    for seed in range(3, 6):
        step(optimizer, seed)

    other = optimizer_class(resumed, **{**options, "lr": 123.0})
    groups = json.loads(json.dumps(saved["param_groups"]))
    arrays = {name: array.copy() for name, array in saved["state"].items()}
    other.load_state_dict({"state": arrays, "param_groups": groups})
    for array in arrays.values():
        array[...] = -1  # a loaded state must not alias the caller's arrays
    for seed in range(3, 6):
        step(other, seed)
    for one, two in zip(ours, resumed, strict=True):
        np.testing.assert_array_equal(one.data, two.data)


def test_state_is_flat_and_a_copy():
    optimizer = AdamW(parameters())
    step(optimizer, 0)
    saved = optimizer.state_dict()
    assert sorted(saved["state"]) == [
        *("0.exp_avg", "0.exp_avg_sq", "0.step", "1.exp_avg", "1.exp_avg_sq", "1.step"),
    ]
    assert all(isinstance(array, np.ndarray) for array in saved["state"].values())
    before = saved["state"]["0.exp_avg"].copy()
    step(optimizer, 1)
    np.testing.assert_array_equal(saved["state"]["0.exp_avg"], before)
    assert saved["state"]["0.step"] == 1


def test_a_parameter_without_gradient_does_not_advance():
    used, unused = parameters()
    optimizer = AdamW([used, unused], weight_decay=0.5)
    before, version = unused.data.copy(), unused.version
    for _ in range(3):
        used.grad = Tensor(np.ones((4, 3), np.float32))
        optimizer.step()
    np.testing.assert_array_equal(unused.data, before)
    assert unused.version == version
    assert not any(name.startswith("1.") for name in optimizer.state_dict()["state"])

    unused.grad = Tensor(np.ones((3, 5), np.float32))
    used.grad = None
    optimizer.step()
    steps = optimizer.state_dict()["state"]
    assert (steps["0.step"], steps["1.step"]) == (3, 1)


def test_step_counts_as_a_write_in_place():
    (param,) = parameters(shapes=[(2,)])
    array = param.data
    optimizer = SGD([param], lr=0.1)
    param.grad = Tensor(np.ones(2, np.float32))
    optimizer.step()
    assert param.version == 1
    assert param.data is array


def test_zero_grad():
    (param,) = parameters(shapes=[(2,)])
    optimizer = SGD([param])
    param.grad = Tensor(np.ones(2, np.float32))
    optimizer.zero_grad(set_to_none=False)
    np.testing.assert_array_equal(param.grad.data, [0, 0])
    optimizer.zero_grad()
    assert param.grad is None


def test_groups_have_their_own_numbers():
    one, two = parameters()
    optimizer = SGD([{"params": [one], "lr": 1.0}, {"params": two, "name": "slow"}], lr=0.5)
    starts = [one.data.copy(), two.data.copy()]
    for param in (one, two):
        param.grad = Tensor(np.ones(param.shape, np.float32))
    optimizer.step()
    np.testing.assert_allclose(starts[0] - one.data, 1.0, rtol=1e-6)
    np.testing.assert_allclose(starts[1] - two.data, 0.5, rtol=1e-6)
    assert "slow" in repr(optimizer)
    optimizer.add_param_group({"params": parameters(shapes=[(2,)]), "lr": 0.0})
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(("optimizer_class", "options"), OPTIMIZERS)
def test_many_parameters_are_updated_as_each_alone(optimizer_class, options):
    """Of two groups, of one shape and another, one of them not in each step; the rates change."""
    shapes = [(4, 3), (3, 5), (4, 3), (4, 3)]
    together, alone = parameters(shapes=shapes), parameters(shapes=shapes)
    optimizer = optimizer_class(
        [{"params": together[:3], "lr": 0.1}, {"params": together[3:], "lr": 0.02}], **options
    )
    singles = [
        optimizer_class([param], **options | {"lr": 0.02 if i == 3 else 0.1})
        for i, param in enumerate(alone)
    ]
    rng = np.random.default_rng(1)
    for count in range(4):
        grads = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        for i, pair in enumerate(zip(together, alone, strict=True)):
            for param in pair:
                param.grad = None if (i, count) == (2, 1) else Tensor(grads[i].copy())
        for each in (optimizer, *singles):
            each.step()
            for group in each.param_groups:
                group["lr"] *= 0.5
    for param, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(param.data, other.data, rtol=2e-6, atol=1e-7)


BAD_VALUES = [
    (SGD, {"lr": -1.0}, "lr"),
    (SGD, {"lr": float("nan")}, "lr"),
    (SGD, {"lr": "fast"}, "lr"),
    (SGD, {"momentum": -0.1}, "momentum"),
    (SGD, {"nesterov": True}, "nesterov"),
    (SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov"),
    (AdamW, {"betas": (0.9, 1.0)}, "betas"),
    (AdamW, {"betas": 0.9}, "betas"),
    (Adam, {"eps": -1e-8}, "eps"),
    (Lion, {"weight_decay": -0.1}, "weight_decay"),
    (Adafactor, {"d": 0.5}, "d to be"),
    (Adafactor, {"beta2_decay": 0.8}, "beta2_decay"),
    (Muon, {"adjust_lr_fn": "keller"}, "match_rms_adamw"),
    (Muon, {"ns_steps": 0}, "ns_steps"),
]


@pytest.mark.parametrize(("optimizer_class", "options", "message"), BAD_VALUES)
def test_bad_numbers_are_refused(optimizer_class, options, message):
    with pytest.raises(ConfigError, match=message):
        optimizer_class(parameters(), **options)
    with pytest.raises(ConfigError, match=message):
        optimizer_class([{"params": parameters(), **options}])


def test_bad_parameters_are_refused():
    one, two = parameters()
    for params, message in [
        ([], "got none"),
        (one, "model.parameters"),
        ({"params": [one]}, "model.parameters"),
        ([{"params": []}], "empty"),
        ([{"lr": 0.1}], "'params'"),
        ([one.data], "ndarray"),
        ([one, two, one], "twice"),
        ([{"params": [one]}, {"params": [one]}], "twice"),
        ([Tensor(np.ones(3))], "requires a gradient"),
        ([{"params": [one], "weigth_decay": 0.1}], "weigth_decay"),
    ]:
        with pytest.raises(ConfigError, match=message):
            AdamW(params)
    with pytest.raises(ConfigError, match="use_muon=False"):
        Muon(parameters(shapes=[(3,)]))


def test_a_state_that_does_not_fit_changes_nothing():
    optimizer = AdamW(parameters())
    step(optimizer, 0)
    good = optimizer.state_dict()

    def changed(**changes):
        return {"state": {**good["state"], **changes}, "param_groups": good["param_groups"]}

    other_shape = AdamW(parameters(shapes=[(4, 3), (3, 6)]))
    step(other_shape, 0)
    lion = Lion(parameters())
    step(lion, 0)
    fewer = AdamW(parameters(shapes=[(4, 3)]))
    step(fewer, 0)
    truncated = changed()
    del truncated["state"]["1.exp_avg"]
    for state, message in [
        (fewer.state_dict(), r"\[2\].*\[1\]"),
        (other_shape.state_dict(), r"\(3, 6\)"),
        (lion.state_dict(), "another optimizer"),
        (truncated, "parameter 1"),
        (changed(**{"7.exp_avg": np.zeros(3)}), "7.exp_avg"),
        (changed(exp_avg=np.zeros(3)), "exp_avg"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            optimizer.load_state_dict(state)
        for key, value in optimizer.state_dict()["state"].items():
            np.testing.assert_array_equal(value, good["state"][key])


class Tied(Module):
    def __init__(self):
        self.wte = Embedding(6, 4)
        self.inner = Linear(4, 4)
        self.lm_head = Linear(4, 6, bias=False)
        self.lm_head.weight = self.wte.weight
        self.head = Linear(4, 3)


def test_muon_groups_divide_by_role():
    model = Tied()
    matrices, others = muon_groups(model, adamw_lr=0.003, exclude=("lm_head", "head"))
    assert [id(p) for p in matrices["params"]] == [id(model.inner.weight)]
    assert others["lr"] == 0.003
    expected = {model.wte.weight, model.inner.bias, model.head.weight, model.head.bias}
    assert {id(p) for p in others["params"]} == {id(p) for p in expected}
    Muon([matrices, others], lr=0.02)
