"""What every optimizer shares: parameter groups, the loop over parameters, saved state.

An optimizer is a rule  weight, gradient, state -> new weight, new state  and some numbers (lr,
betas, ...) that may differ between groups of parameters. A subclass lists its numbers with their
ranges in `rules`, the arrays that it keeps for a parameter in `state_shapes`, and writes the rule
in `update`, in place on NumPy arrays, so that it reads like the algorithm in its paper.

float16 and bfloat16 parameters are updated in float32 and rounded when they are written back;
their state is float32. An update that is smaller than half the spacing of such numbers around the
weight is then lost (1 + 0.001 is 1 in bfloat16), which is why mixed-precision training keeps
float32 weights.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from minitorch import capture
from minitorch.backend import device_of, half_precision, to_device
from minitorch.errors import CheckpointError, ConfigError, GraphError
from minitorch.kernels.reference.optimizers import Scale, scaled
from minitorch.nn.embedding import RowGradient
from minitorch.ops.conversion import lowered_copy
from minitorch.tensor import Tensor

Group = dict[str, Any]


class Part(NamedTuple):
    """A parameter's turn: its array, its gradient, what is kept for it, and its group.

    copy: where autocast keeps the parameter rounded, if it does. rows: those of the weight and of
    the state that grad is of; None: all.
    """

    weight: np.ndarray
    grad: np.ndarray
    state: dict[str, Any]
    group: Group
    copy: np.ndarray | None = None
    rows: np.ndarray | None = None


class Numbers(Sequence[dict[str, Any]]):
    """What a rule's kernel is told of each part: step, lr, ..., as they are when asked for.

    of: from a part, of which it may look at the group, the step and the shape; parts that have
    these in common share one dict. A captured step asks again before each replay.
    """

    def __init__(self, parts: Sequence[Part], of: Callable[[Part], dict[str, Any]]):
        self.parts, self.of = parts, of

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: Any) -> Any:
        return self.of(self.parts[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        found: dict[Any, dict[str, Any]] = {}
        for part in self.parts:
            key = id(part.group), part.state["step"], part.weight.shape
            numbers = found.get(key)
            if numbers is None:
                numbers = found[key] = self.of(part)
            yield numbers


class Rule(NamedTuple):
    """The values that a hyperparameter may take: a test, and the same in words."""

    test: Callable[[Any], bool]
    text: str

    def accepts(self, value: Any) -> bool:
        """Whether value passes; a value of a type that cannot be tested does not."""
        try:
            return bool(self.test(value))
        except (TypeError, ValueError):
            return False


NON_NEGATIVE = Rule(lambda value: 0 <= value < np.inf, "a number of at least 0")
POSITIVE = Rule(lambda value: 0 < value < np.inf, "a number above 0")
FRACTION = Rule(lambda value: 0 <= value < 1, "a number in [0, 1)")
BETAS = Rule(
    lambda value: len(value) == 2 and all(0 <= beta < 1 for beta in value),
    "two numbers in [0, 1)",
)
FLAG = Rule(lambda value: isinstance(value, bool), "True or False")


class Optimizer:
    """The base of all optimizers.

    params: the Tensors to change, or dicts {"params": Tensors, "lr": ..., ...}, one for each group
    whose numbers differ from the defaults. A group may carry a "name".
    Raises ConfigError for a value out of range, an unknown key, no parameters, or one given twice.
    """

    rules: ClassVar[dict[str, Rule]] = {}
    capturable: ClassVar[bool] = False
    """Whether step() can be part of a captured step (minitorch.cuda) on a GPU."""
    by_number: ClassVar[bool] = True
    """Whether each number is updated by itself, so that some rows of a table can be, too. Then the
    rows that have no gradient stay as they are: no decay, no momentum, as in torch's SparseAdam."""
    in_rows: ClassVar[bool] = False
    """Whether update_all reads and writes such rows where they lie; otherwise it is given copies of
    them, which are then put back."""

    def __init__(self, params: Iterable[Tensor] | Iterable[Group], **defaults: Any):
        self.defaults = defaults
        self.param_groups: list[Group] = []
        self.state: dict[int, dict[str, Any]] = {}
        if isinstance(params, Tensor | dict) or not isinstance(params, Iterable):
            raise ConfigError(
                f"{self._name}: expected a list of parameters or of groups; "
                f"got {type(params).__name__}. Pass model.parameters()"
            )
        entries: list[Any] = list(params)
        if not entries:
            raise ConfigError(
                f"{self._name}: expected parameters; got none. Is the model empty, or an iterator "
                "used up?"
            )
        if not all(isinstance(entry, dict) for entry in entries):
            entries = [{"params": entries}]
        for group in entries:
            self.add_param_group(group)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def add_param_group(self, group: Group) -> None:
        """Append {"params": Tensors, ...}; numbers that it does not name are the defaults."""
        unknown = group.keys() - self.defaults.keys() - {"params", "name"}
        if unknown:
            raise ConfigError(
                f"{self._name}: expected the keys params, name, {', '.join(self.defaults)} in a "
                f"parameter group; got {sorted(unknown)[0]!r}"
            )
        if "params" not in group:
            raise ConfigError(f"{self._name}: expected 'params' in a parameter group; got none")
        params = group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        if not params:
            raise ConfigError(f"{self._name}: expected parameters in a group; got an empty list")
        known = {id(param) for other in self.param_groups for param in other["params"]}
        for param in params:
            self._check_param(param, known)
            known.add(id(param))
        group = {**self.defaults, **group, "params": params}
        self._check_group(group)
        self.param_groups.append(group)

    def _check_param(self, param: Any, known: set[int]) -> None:
        if not isinstance(param, Tensor):
            raise ConfigError(
                f"{self._name}: expected Tensors as parameters; got {type(param).__name__}"
            )
        if id(param) in known:
            raise ConfigError(
                f"{self._name}: a parameter of shape {tuple(param.shape)} was given twice; "
                "it would be updated twice in every step"
            )
        if not param.is_leaf or not param.requires_grad:
            raise ConfigError(
                f"{self._name}: a tensor of shape {tuple(param.shape)} is not a leaf that "
                "requires a gradient, so it would never change; pass the parameters themselves"
            )

    def _check_group(self, group: Group) -> None:
        for key, rule in self.rules.items():
            if not rule.accepts(group[key]):
                raise ConfigError(
                    f"{self._name}: expected {key} to be {rule.text}; got {group[key]!r}"
                )

    def state_shapes(self, shape: tuple[int, ...], group: Group) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the arrays kept for a parameter of this shape; they begin as 0."""
        return {}

    def update(
        self, weight: np.ndarray, grad: np.ndarray, state: dict[str, Any], group: Group
    ) -> None:
        """Change weight and the arrays of state in place; grad belongs to the caller.

        All are float32 or float64, of the same dtype, and have at least one dimension (a scalar
        comes as one element). state["step"] counts from 1.
        """
        raise NotImplementedError(f"{self._name} does not define update()")

    def update_all(self, parts: Sequence[Part], grad_scale: Scale) -> None:
        """update() for every parameter, each gradient times grad_scale; fills the copies, too."""
        if parts and capture.thread.current is not None and not self.capturable:
            raise GraphError(
                f"{self._name}.step: computes with numbers that a captured step cannot wait for. "
                "Leave the step uncaptured, or take another optimizer"
            )
        for weight, grad, state, group, copy, _ in parts:
            self.update(weight, scaled(grad, grad_scale), state, group)
            if copy is not None:
                copy[...] = weight.astype(copy.dtype)

    def _numbers(self, group: Group) -> dict[str, Any]:
        """The numbers of a group, without its parameters and its name."""
        return {key: group[key] for key in self.rules}

    def step(self, grad_scale: float | Tensor = 1.0) -> None:
        """Update every parameter that has a gradient; the others' state does not advance.

        grad_scale: a factor of all gradients, such as `clip_grad_scale` gives.
        """
        scale = grad_scale.data if isinstance(grad_scale, Tensor) else grad_scale
        parts, params = [], []
        for index, param, group in self._enumerate():
            gradient = param.grad
            if gradient is None:
                continue
            weight, grad = param.data, gradient.data
            if not weight.ndim:
                weight, grad = np.atleast_1d(weight), np.atleast_1d(grad)
            dtype = _compute_dtype(weight)
            state = own = self._state_of(index, weight, dtype, group)
            state["step"] += 1
            if grad.dtype is not dtype:
                grad = grad.astype(dtype, copy=False)
            part, rows, at, kept, copy = weight, None, None, lowered_copy(param), None
            if isinstance(gradient, RowGradient):
                self._check_rows()
                rows, kept = gradient.rows, None
                if not self.in_rows or dtype != weight.dtype:
                    own = {k: part if k == "step" else part[rows] for k, part in state.items()}
                    part, at, rows = weight[rows], rows, None
            elif kept is not None:
                copy = kept.array.reshape(weight.shape)
            if part.dtype is not dtype:
                part = part.astype(dtype, copy=False)
            parts.append(Part(part, grad, own, group, copy, rows))
            params.append((param, weight, at, state, kept))
        if capture.thread.current is not None:
            capture.thread.current.before_replay(lambda: _count(parts))
        self.update_all(parts, scale)
        for (param, weight, at, state, kept), part in zip(params, parts, strict=True):
            if part.weight is not weight:
                weight[... if at is None else at] = part.weight.astype(weight.dtype)
            if at is not None:
                for name in state.keys() - {"step"}:
                    state[name][at] = part.state[name]
            param.bump_version()
            if kept is not None:
                kept.written(param)

    def _state_of(
        self, index: int, weight: np.ndarray, dtype: np.dtype, group: Group
    ) -> dict[str, Any]:
        """What is kept for a parameter, with what the group asks for since the last step."""
        state = self.state.get(index)
        if state is None:
            state = self.state[index] = {"step": 0}
        for name, shape in self.state_shapes(weight.shape, group).items():
            if name not in state:
                state[name] = np.zeros_like(weight, dtype=dtype, shape=shape)
        return state

    def _check_rows(self) -> None:
        if not self.by_number:
            raise ConfigError(
                f"{self._name}: expected a gradient of all rows; got that of a RowEmbedding, which "
                "wants an optimizer that updates every number by itself, such as AdamW or SGD"
            )

    def _enumerate(self) -> Iterable[tuple[int, Tensor, Group]]:
        index = 0
        for group in self.param_groups:
            for param in group["params"]:
                yield index, param, group
                index += 1

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients (then step() passes such parameters over), or fill them with 0."""
        for _, param, _ in self._enumerate():
            if set_to_none:
                param.grad = None
            elif param.grad is not None:
                param.grad = Tensor(np.zeros_like(param.grad.data))

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that step() depends on besides parameters and gradients.

        "state": arrays by flat names such as "0.exp_avg", ready for a safetensors file, where 0
        is the position of the parameter over all groups. "param_groups": the numbers, which JSON
        can hold. (In PyTorch "state" is nested: {0: {"exp_avg": ...}}.)
        """
        arrays = {
            f"{index}.{name}": np.array(value if name == "step" else to_device(value, "cpu"))
            for index, state in self.state.items()
            for name, value in state.items()
        }
        start, groups = 0, []
        for group in self.param_groups:
            indices = list(range(start, start + len(group["params"])))
            groups.append({**group, "params": indices})
            start += len(indices)
        return {"state": arrays, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what state_dict() returned. Raises CheckpointError if it does not fit.

        Nothing changes unless all of it fits.
        """
        saved_groups = state_dict["param_groups"]
        sizes = [len(group["params"]) for group in self.param_groups]
        saved_sizes = [len(group["params"]) for group in saved_groups]
        if sizes != saved_sizes:
            raise CheckpointError(
                f"{self._name}.load_state_dict: expected groups of {sizes} parameters; the saved "
                f"state has {saved_sizes}. Build the same groups in the same order"
            )
        groups = [
            self._merge_group(group, saved)
            for group, saved in zip(self.param_groups, saved_groups, strict=True)
        ]
        state = self._unflatten(state_dict["state"], groups)
        self.param_groups, self.state = groups, state

    def _merge_group(self, group: Group, saved: Group) -> Group:
        numbers = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in saved.items()
            if key != "params"
        }
        missing = self.defaults.keys() - numbers.keys()
        unknown = numbers.keys() - self.defaults.keys() - {"name"}
        if missing or unknown:
            raise CheckpointError(
                f"{self._name}.load_state_dict: a saved group lacks {sorted(missing)} and has the "
                f"unknown {sorted(unknown)}. Was it saved by another optimizer?"
            )
        merged = {**group, **numbers}
        self._check_group(merged)
        return merged

    def _unflatten(
        self, arrays: dict[str, np.ndarray], groups: list[Group]
    ) -> dict[int, dict[str, Any]]:
        """Split "0.exp_avg" into state[0]["exp_avg"], checked against state_shapes."""
        params = [(param, group) for group in groups for param in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for key, value in arrays.items():
            number, _, name = key.partition(".")
            if not (number.isdecimal() and name and int(number) < len(params)):
                raise CheckpointError(
                    f"{self._name}.load_state_dict: expected entries such as '0.step' for "
                    f"{len(params)} parameters; got {key!r}"
                )
            state.setdefault(int(number), {})[name] = value
        for index, entries in state.items():
            param, group = params[index]
            weight = np.atleast_1d(param.data)
            shapes = {"step": (), **self.state_shapes(weight.shape, group)}
            found = {name: np.shape(value) for name, value in entries.items()}
            if found != shapes:
                raise CheckpointError(
                    f"{self._name}.load_state_dict: expected {shapes} for parameter {index} of "
                    f"shape {param.data.shape}; the saved state has {found}"
                )
            for name, value in entries.items():
                entries[name] = int(value) if name == "step" else _copy_like(weight, value)
        return state

    def __repr__(self) -> str:
        lines = []
        for index, group in enumerate(self.param_groups):
            count = sum(param.numel() for param in group["params"])
            numbers = ", ".join(f"{key}={group[key]!r}" for key in group if key != "params")
            lines.append(f"  group {index}: {len(group['params'])} tensors, {count:,} numbers; ")
            lines[-1] += numbers
        return "\n".join([f"{self._name}(", *lines, ")"])


def _count(parts: Sequence[Part]) -> None:
    for part in parts:
        part.state["step"] += 1


def _copy_like(weight: np.ndarray, value: np.ndarray) -> np.ndarray:
    """A copy of value where weight lives, in the dtype of its state."""
    value = np.array(to_device(value, "cpu"), _compute_dtype(weight))
    return to_device(value, device_of(weight))


def _compute_dtype(array: np.ndarray) -> np.dtype:
    """float64 for float64 parameters, float32 for everything narrower."""
    return np.dtype(np.float32) if half_precision(array.dtype) else array.dtype
