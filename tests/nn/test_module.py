"""Modules: what counts as a part, names, moving, saving, loading."""

import copy

import ml_dtypes
import numpy as np
import pytest

import minitorch as mt
from minitorch import nn
from minitorch.errors import CheckpointError, ConfigError, DtypeError
from minitorch.optim import SGD
from minitorch.tensor import Tensor


class Inner(nn.Module):
    def __init__(self):
        self.scale = nn.Parameter(np.full(2, 3.0, np.float32))
        self.register_buffer("count", mt.tensor([1, 2]))
        self.register_buffer("mean", mt.tensor([0.5]))
        self.register_buffer("scratch", mt.tensor([9.0]), persistent=False)
        self.register_buffer("absent", None)
        self.note = Tensor(np.zeros(3))

    def forward(self, x):
        return x * self.scale


class Outer(nn.Module):
    """No super().__init__() is needed."""

    def __init__(self):
        self.first = nn.Linear(2, 2)
        self.inner = Inner()
        self.bias = nn.Parameter(np.zeros(2, np.float32))
        self.nothing = None

    def forward(self, x):
        return self.inner(self.first(x)) + self.bias


class Tied(nn.Module):
    def __init__(self):
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


def test_parts_and_their_names():
    model = Outer()
    assert [name for name, _ in model.named_parameters()] == [
        "bias",
        "first.weight",
        "first.bias",
        "inner.scale",
    ]
    assert [name for name, _ in model.named_buffers()] == [
        "inner.count",
        "inner.mean",
        "inner.scratch",
    ]
    assert [name for name, _ in model.named_modules()] == ["", "first", "inner"]
    assert [name for name, _ in model.named_children()] == ["first", "inner"]
    assert list(model.children()) == [model.first, model.inner]
    assert model.num_parameters() == 2 + 4 + 2 + 2
    assert list(model.state_dict()) == [
        "bias",
        "first.weight",
        "first.bias",
        "inner.scale",
        "inner.count",
        "inner.mean",
    ]
    model.first = None
    assert [name for name, _ in model.named_parameters()] == ["bias", "inner.scale"]


def test_a_shared_parameter_is_one():
    model = Tied()
    assert [name for name, _ in model.named_parameters()] == ["embedding.weight"]
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert names == ["embedding.weight", "head.weight"]
    assert model.num_parameters() == 15
    assert list(model.state_dict()) == ["embedding.weight"]
    twin = copy.deepcopy(model)
    assert twin.head.weight is twin.embedding.weight is not model.head.weight

    before = model.embedding.weight.data.copy()
    optimizer = SGD(model.parameters(), lr=0.1)
    model(mt.tensor([1, 2])).sum().backward()
    gradient = model.embedding.weight.grad.data.copy()
    optimizer.step()
    np.testing.assert_allclose(model.head.weight.data, before - 0.1 * gradient, atol=1e-6)


def test_a_shared_module_is_one():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, shared)
    assert len(list(model.modules())) == 2
    assert model.num_parameters() == 6
    assert list(model.state_dict()) == ["0.weight", "0.bias"]


def test_parts_in_plain_containers_are_refused():
    model = nn.Module()
    for value in ([nn.Linear(1, 1)], (nn.Parameter(np.zeros(1)),), {"a": nn.Linear(1, 1)}):
        with pytest.raises(ConfigError, match=r"Module\.layers.*ModuleList"):
            model.layers = value
    model.sizes = [1, 2, 3]


def test_train_eval_freeze_and_zero_grad():
    model = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)))
    assert all(module.training for module in model.modules())
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.train().modules())

    for param in model.parameters():
        param.grad = mt.ones(*param.shape)
    model.zero_grad(set_to_none=False)
    assert all((param.grad.data == 0).all() for param in model.parameters())
    model.zero_grad()
    assert all(param.grad is None for param in model.parameters())
    model.requires_grad_(False)
    assert model.num_parameters(trainable_only=True) == 0 < model.num_parameters()
    assert not model(mt.ones(1, 2)).requires_grad


def test_apply_visits_children_first():
    seen = []
    model = nn.Sequential(nn.Sequential(nn.ReLU()), nn.Tanh())
    assert model.apply(lambda module: seen.append(type(module).__name__)) is model
    assert seen == ["ReLU", "Sequential", "Tanh", "Sequential"]


def test_to_converts_floats_in_place():
    model = Outer()
    weight = model.first.weight
    model(mt.ones(1, 2)).sum().backward()
    assert model.double() is model
    assert model.first.weight is weight
    assert weight.dtype == weight.grad.dtype == mt.float64
    assert model.inner.mean.dtype == model.inner.scratch.dtype == mt.float64
    assert model.inner.count.dtype == mt.int64
    assert model(mt.ones(1, 2, dtype=mt.float64)).dtype == mt.float64
    for method, dtype in [("half", mt.float16), ("bfloat16", mt.bfloat16), ("float", mt.float32)]:
        getattr(model, method)()
        assert {param.dtype for param in model.parameters()} == {dtype}
    assert model.to("cpu", mt.float64).first.weight.dtype == mt.float64
    with pytest.raises(DtypeError, match="floating"):
        model.to(mt.int64)


def test_state_round_trip_and_sharing():
    one, two = Outer(), Outer()
    state = one.state_dict()
    assert state["bias"].data is one.bias.data
    assert not state["bias"].requires_grad
    array = two.first.weight.data
    report = two.load_state_dict({name: tensor.numpy() for name, tensor in state.items()})
    assert report == ([], [])
    assert two.first.weight.data is array
    for name, tensor in two.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), state[name].numpy())
    one.bias.data += 1
    assert (two.bias.data == 0).all()
    assert two.bias.version == 1


def test_values_take_the_parameters_dtype():
    model = nn.Linear(2, 2).double()
    weight = np.ones((2, 2), ml_dtypes.bfloat16)
    model.load_state_dict({"weight": weight, "bias": np.zeros(2, np.float16)})
    assert model.weight.dtype == mt.float64


def test_what_does_not_fit_is_listed_and_nothing_is_loaded():
    model = Outer()
    before = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    state = {name: array + 1 for name, array in before.items()}
    del state["bias"]
    state["first.weight"] = np.zeros((2, 3))
    state["inner.count"] = np.zeros(2)
    state["last.weight"] = np.zeros(2)
    with pytest.raises(CheckpointError) as caught:
        model.load_state_dict(state)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[0].endswith("do not fit this Outer")
    assert (
        lines.index("bias") == lines.index("missing (the module has them, the file does not):") + 1
    )
    position = lines.index("unexpected (the file has them, the module does not):")
    assert lines[position + 1] == "last.weight"
    assert "first.weight: expected shape (2, 2); got (2, 3)" in lines
    assert "inner.count: expected dtype int64; got float64" in lines
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[name])
    with pytest.raises(CheckpointError, match="unsuitable"):
        model.load_state_dict(state, strict=False)


def test_not_strict_tolerates_names():
    model = Outer()
    report = model.load_state_dict({"bias": np.ones(2), "other": np.ones(2)}, strict=False)
    assert (model.bias.data == 1).all()
    assert report.unexpected == ["other"]
    assert "first.weight" in report.missing
    with pytest.raises(CheckpointError, match="and 5 more"):
        model.load_state_dict({str(i): np.ones(1) for i in range(25)})


def test_a_shared_parameter_loads_under_any_name():
    model, value = Tied(), np.arange(15.0).reshape(5, 3)
    for state in (
        {"embedding.weight": value},
        {"head.weight": value},
        {"head.weight": value, "embedding.weight": value.copy()},
    ):
        model.embedding.weight.data[...] = 0
        model.load_state_dict(state)
        np.testing.assert_array_equal(model.head.weight.data, value)
    with pytest.raises(CheckpointError, match=r"head\.weight: shares its parameter with embedding"):
        model.load_state_dict({"head.weight": value + 1, "embedding.weight": value})


def test_repr_is_the_tree():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)), nn.ReLU())
    assert repr(model) == (
        "Sequential(\n  (0-2): 3 x Linear(2, 2, bias=True)\n  (3): ReLU()\n)  # 18 parameters"
    )
    assert repr(nn.CausalSelfAttention(4, 2)).splitlines()[:3] == [
        "CausalSelfAttention(",
        "  n_head=2",
        "  (c_attn): Linear(4, 12, bias=True)",
    ]
    assert repr(nn.Parameter(np.zeros(1))).startswith("Parameter(tensor(")


def test_forward_must_be_defined():
    with pytest.raises(NotImplementedError, match="Module"):
        nn.Module()(1)


def test_containers():
    layers = nn.ModuleList([nn.Linear(1, 2)]).append(nn.Linear(2, 3))
    assert len(layers) == 2
    assert layers[-1] is layers[1] is list(layers)[1]
    layers[-1] = nn.Linear(2, 5)
    assert layers[1].out_features == 5
    assert list(layers.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    with pytest.raises(IndexError):
        layers[2]

    chain = nn.Sequential(nn.Linear(1, 2), nn.Tanh())
    x = mt.ones(3, 1)
    np.testing.assert_array_equal(chain(x).data, np.tanh(chain[0](x).data))

    heads = nn.ModuleDict({"a": nn.Linear(1, 2)})
    heads["b"] = nn.Tanh()
    assert list(heads) == list(heads.keys()) == ["a", "b"]
    assert ("a" in heads, "c" in heads, len(heads)) == (True, False, 2)
    assert list(heads.values())[1] is heads["b"]
    assert dict(heads.items())["a"] is heads["a"]
    assert list(heads.state_dict()) == ["a.weight", "a.bias"]
    for key in ("keys", "a.b", "training"):
        with pytest.raises(ConfigError, match=key):
            heads[key] = nn.Tanh()
