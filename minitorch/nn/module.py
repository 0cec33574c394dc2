"""Module: parameters with a function over them, nested to any depth.

A module keeps its parts as plain attributes. Whatever is a Parameter is trained; a Module is a
child, whose parts count too, under names joined by dots ("h.0.attn.c_attn.weight"); a Tensor given
to `register_buffer` is state that is saved but not trained. There is nothing to call first: no
super().__init__(), no registration of parameters.

A parameter that two modules share (a tied head) has two names and is one parameter: it is listed,
counted, updated and saved once, under its first name, and may be loaded under any of them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np

from minitorch import backend
from minitorch.errors import CheckpointError, ConfigError, DtypeError
from minitorch.tensor import Tensor


class Parameter(Tensor):
    """A leaf tensor that its module trains. It shares memory with data."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True):
        super().__init__(data, requires_grad=requires_grad)

    def __repr__(self) -> str:
        return f"Parameter({super().__repr__()})"


class LoadReport(NamedTuple):
    """What load_state_dict(strict=False) passed over."""

    missing: list[str]
    unexpected: list[str]


class Module:
    """The base of every layer and model: subclass it, set attributes, define forward()."""

    training: bool = True
    _buffers: Mapping[str, bool] = MappingProxyType({})  # name -> persistent

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes. Call the module itself: module(x)."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, list | tuple | dict):
            parts = value.values() if isinstance(value, dict) else value
            if any(isinstance(part, Parameter | Module) for part in parts):
                raise ConfigError(
                    f"{type(self).__name__}.{name}: expected no modules or parameters inside a "
                    f"plain {type(value).__name__}, where they would be neither trained nor saved; "
                    "use ModuleList or ModuleDict"
                )
        object.__setattr__(self, name, value)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Make tensor an attribute that moves with the module and, if persistent, is saved."""
        self._buffers = {**self._buffers, name: persistent}
        setattr(self, name, tensor)

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """The same as setting the attribute."""
        setattr(self, name, param)

    def named_children(self) -> Iterator[tuple[str, "Module"]]:
        """The modules that are attributes of this one."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator["Module"]:
        """named_children without the names."""
        return (child for _, child in self.named_children())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """This module (named ""), its children, theirs, and so on, each once."""
        seen: set[int] = set()
        for name, module in self._walk(prefix):
            if id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def _walk(self, prefix: str) -> Iterator[tuple[str, "Module"]]:
        """All paths to all modules; a shared module comes up once for each path."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child._walk(_join(prefix, name))

    def modules(self) -> Iterator["Module"]:
        """named_modules without the names."""
        seen: set[int] = set()
        stack: list[Module] = [self]
        while stack:
            module = stack.pop()
            if id(module) not in seen:
                seen.add(id(module))
                yield module
                stack += [v for v in reversed(vars(module).values()) if isinstance(v, Module)]

    def named_parameters(
        self, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """All parameters with their names: this module's own, then each child's.

        remove_duplicate=False lists a shared parameter under each of its names.
        """
        yield from self._named(_own_parameters, prefix, remove_duplicate)

    def parameters(self) -> Iterator[Parameter]:
        """named_parameters without the names."""
        seen: set[int] = set()
        stack: list[Module] = [self]
        while stack:  # as modules(), each visited once for both
            module = stack.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            children = []
            for value in vars(module).values():
                if isinstance(value, Module):
                    children.append(value)
                elif isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield value
            stack += reversed(children)

    def named_buffers(
        self, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """All buffers with their names, the persistent and the others."""
        yield from self._named(_own_buffers, prefix, remove_duplicate)

    def buffers(self) -> Iterator[Tensor]:
        """named_buffers without the names."""
        return (buffer for _, buffer in self.named_buffers())

    def _named(
        self,
        own: Callable[["Module"], Iterable[tuple[str, Any]]],
        prefix: str,
        remove_duplicate: bool,
    ) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        for path, module in self._walk(prefix):
            for name, value in own(module):
                if not (remove_duplicate and id(value) in seen):
                    seen.add(id(value))
                    yield _join(path, name), value

    def num_parameters(self, trainable_only: bool = False) -> int:
        """How many numbers the parameters hold, shared ones counted once."""
        return sum(
            param.numel()
            for param in self.parameters()
            if param.requires_grad or not trainable_only
        )

    def train(self, mode: bool = True) -> Self:
        """Set `training`, which dropout obeys, here and in all modules below."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """train(False)."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Train all parameters, or freeze them."""
        for param in self.parameters():
            param.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients, or fill them with 0."""
        for param in self.parameters():
            if set_to_none or param.grad is None:
                param.grad = None
            else:
                param.grad = Tensor(np.zeros_like(param.grad.data))

    def apply(self, function: Callable[["Module"], Any]) -> Self:
        """Call function(module) on every module, children before parents."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    def to(self, *targets: Any) -> Self:
        """Move to a device ("cpu", "cuda", "simt"), convert to a floating dtype, or both; in place.

        Integer and bool buffers keep their dtype. Parameters stay the same objects, so an
        optimizer goes on working.
        """
        device, dtype = _targets(targets)
        for tensor in (*self.parameters(), *self.buffers()):
            for part in (tensor, tensor.grad):
                if part is not None:
                    part.data = _convert(part.data, device, dtype)
                    part.bump_version()
        return self

    def float(self) -> Self:
        """to(float32)."""
        return self.to(backend.float32)

    def double(self) -> Self:
        """to(float64)."""
        return self.to(backend.float64)

    def half(self) -> Self:
        """to(float16)."""
        return self.to(backend.float16)

    def bfloat16(self) -> Self:
        """to(bfloat16)."""
        return self.to(backend.bfloat16)

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers by name. They share memory with the module.

        A shared parameter is there once, under its first name. (PyTorch lists every name.)
        """
        names = self._aliases()
        return {aliases[0]: tensor.detach() for tensor, aliases in names.values()}

    def _aliases(self) -> dict[int, tuple[Tensor, list[str]]]:
        """id -> (tensor, all its names), for parameters and persistent buffers."""
        found: dict[int, tuple[Tensor, list[str]]] = {}
        for own in (_own_parameters, _persistent_buffers):
            for name, tensor in self._named(own, "", remove_duplicate=False):
                found.setdefault(id(tensor), (tensor, []))[1].append(name)
        return found

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> LoadReport:
        """Copy arrays or tensors into the parameters and buffers of the same names.

        Values are converted to the dtype of the parameter. strict=False tolerates names that are
        missing or unexpected; shapes must agree in any case. assign: the parameters take over the
        given arrays, which are copied only where the dtype or the device differs. Raises
        CheckpointError with the full list of what does not fit, and then nothing has been changed.
        """
        writes: list[tuple[Tensor, Any]] = []
        missing, misfits = [], []
        known: set[str] = set()
        for tensor, names in self._aliases().values():
            known.update(names)
            given = [name for name in names if name in state_dict]
            if not given:
                missing.append(names[0])
            for name in given:
                value = _array(state_dict[name])
                misfits += _misfits(name, value, tensor, given[0], _array(state_dict[given[0]]))
                writes.append((tensor, value))
        unexpected = [name for name in state_dict if name not in known]
        if misfits or (strict and (missing or unexpected)):
            raise CheckpointError(_report(self, missing, unexpected, misfits))
        for tensor, value in writes:
            value = backend.to_device(value, tensor.device).astype(tensor.dtype, copy=False)
            if assign:
                tensor.data = value
            else:
                tensor.data[...] = value
            tensor.bump_version()
        return LoadReport(missing, unexpected)

    def extra_repr(self) -> str:
        """What repr() shows between the brackets, before the children."""
        return ""

    def __repr__(self) -> str:
        """The tree of modules; a run of equal neighbours is one line "(0-11): 12 x Block"."""
        lines = self._tree()
        count = self.num_parameters()
        if len(lines) > 1 and count:
            lines[-1] += f"  # {count:,} parameters"
        return "\n".join(lines)

    def _tree(self) -> list[str]:
        head, extra = f"{type(self).__name__}(", self.extra_repr()
        runs: list[tuple[list[str], list[str]]] = []  # (names, lines of the module)
        for name, child in self.named_children():
            lines = child._tree()
            if runs and runs[-1][1] == lines and name.isdecimal():
                runs[-1][0].append(name)
            else:
                runs.append(([name], lines))
        if not runs:
            return [f"{head}{extra})"]
        body = [f"  {extra}"] if extra else []
        for names, lines in runs:
            label = f"({names[0]}): "
            if len(names) > 1:
                label = f"({names[0]}-{names[-1]}): {len(names)} x "
            body += [f"  {line}" for line in (label + lines[0], *lines[1:])]
        return [head, *body, ")"]


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _own_parameters(module: Module) -> Iterator[tuple[str, Parameter]]:
    for name, value in vars(module).items():
        if isinstance(value, Parameter):
            yield name, value


def _own_buffers(module: Module) -> Iterator[tuple[str, Tensor]]:
    for name in module._buffers:
        if getattr(module, name) is not None:
            yield name, getattr(module, name)


def _persistent_buffers(module: Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, buffer) for name, buffer in _own_buffers(module) if module._buffers[name])


def _targets(targets: tuple[Any, ...]) -> tuple[str | None, np.dtype | None]:
    device, dtype = None, None
    for target in targets:
        if isinstance(target, str) and target in backend.DEVICES:
            device = target
        else:
            dtype = backend.as_dtype(target)
            if not backend.is_float(dtype):
                raise DtypeError(f"Module.to: expected a floating dtype; got {dtype}")
    return device, dtype


def _convert(array: Any, device: str | None, dtype: np.dtype | None) -> Any:
    if dtype is not None and backend.is_float(array.dtype):
        array = array.astype(dtype, copy=False)
    return array if device is None else backend.to_device(array, device)


def _array(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else np.asarray(value)


def _misfits(name: str, value: Any, tensor: Tensor, first: str, first_value: Any) -> list[str]:
    """Why value cannot be loaded into tensor, as lines of the report."""
    if value.shape != tensor.shape:
        return [f"{name}: expected shape {tensor.shape}; got {value.shape}"]
    if backend.is_float(value.dtype) and not backend.is_float(tensor.dtype):
        return [f"{name}: expected dtype {tensor.dtype}; got {value.dtype}"]
    if name != first and not np.array_equal(value, first_value):
        return [f"{name}: shares its parameter with {first}, but their values differ"]
    return []


def _report(module: Module, missing: list[str], unexpected: list[str], misfits: list[str]) -> str:
    lines = [f"load_state_dict: the saved tensors do not fit this {type(module).__name__}"]
    for title, names in (
        ("missing (the module has them, the file does not)", missing),
        ("unexpected (the file has them, the module does not)", unexpected),
        ("unsuitable", misfits),
    ):
        if names:
            shown = [*names[:20], *([f"and {len(names) - 20} more"] if len(names) > 20 else [])]
            lines += [f"  {title}:", *(f"    {name}" for name in shown)]
    lines.append("  nothing was loaded; check that the configuration is that of the saved model")
    return "\n".join(lines)
