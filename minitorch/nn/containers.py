"""Modules that hold modules: in a row, in a list, in a dict."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from minitorch.errors import ConfigError
from minitorch.nn.module import Module


class ModuleList(Module):
    """A list of modules that count as children; it has no forward of its own."""

    def __init__(self, modules: Iterable[Module] = ()):
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> "ModuleList":
        """Add a module at the end; returns the list."""
        setattr(self, str(len(self)), module)
        return self

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __getitem__(self, index: int) -> Module:
        return list(self.children())[index]

    def __setitem__(self, index: int, module: Module) -> None:
        setattr(self, str(range(len(self))[index]), module)


class Sequential(ModuleList):
    """Each module applied to the result of the one before: Sequential(f, g)(x) = g(f(x))."""

    def __init__(self, *modules: Module):
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x


class ModuleDict(Module):
    """A dict of modules that count as children, under their keys."""

    def __init__(self, modules: Mapping[str, Module] | None = None):
        for key, module in (modules or {}).items():
            self[key] = module

    def __getitem__(self, key: str) -> Module:
        return dict(self.named_children())[key]

    def __setitem__(self, key: str, module: Module) -> None:
        if "." in key or hasattr(type(self), key):
            raise ConfigError(
                f"ModuleDict: expected a key without dots that is no attribute of ModuleDict; "
                f"got {key!r}"
            )
        setattr(self, key, module)

    def __contains__(self, key: str) -> bool:
        return key in dict(self.named_children())

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[str]:
        return (key for key, _ in self.named_children())

    def keys(self) -> Iterator[str]:
        """The keys, in the order of their setting."""
        return iter(self)

    def values(self) -> Iterator[Module]:
        """The modules."""
        return self.children()

    def items(self) -> Iterator[tuple[str, Module]]:
        """Pairs of key and module."""
        return self.named_children()
