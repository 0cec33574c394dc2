"""Settings: flat dataclasses, each value checked, described, and saved as TOML.

A value comes from the last of these that names it:

    the defaults  <  --preset  <  --config FILE (TOML)  <  --set key=value and options of their own

Every field carries its help and its range, from which the messages, `--settings` of a command and
the tables in the documentation are made.
"""

import dataclasses
import difflib
import json
import math
import operator
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from minitorch.errors import ConfigError
from minitorch.io import atomic_write

LIMITS = {
    "at_least": ("at least", operator.ge),
    "above": ("more than", operator.gt),
    "below": ("less than", operator.lt),
    "at_most": ("at most", operator.le),
}


def option(
    default: Any, help: str, *, choices: Sequence[str] = (), fixed: bool = False, **limits: float
) -> Any:
    """A field of the settings.

    limits: bounds by the names of LIMITS. fixed: a run cannot be resumed with another value.
    """
    metadata = {"help": help, "choices": tuple(choices), "fixed": fixed, "limits": limits}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The base of all settings. A subclass lists its fields, each an `option`.

    command: the one that these settings are of. presets: named changes of the defaults, if any; the
    first is taken where none is named. Raises ConfigError, naming the field, for a value of the
    wrong type or out of its range.
    """

    command: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _typed(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            _check_range(field, value)

    @classmethod
    def resolve(
        cls,
        preset: str | None = None,
        file: str | Path | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Self:
        """The settings from a preset, a TOML file and overrides, the later ones winning.

        overrides: values, or texts such as "1e-3" as they come from a command line. Raises
        ConfigError.
        """
        preset = preset or next(iter(cls.presets), None)
        if preset is not None and preset not in cls.presets:
            raise ConfigError(f"preset: {unknown(preset, cls.presets)}")
        values = dict(cls.presets[preset] if preset else {})
        if file is not None:
            values.update(cls._with_source(str(file), read_toml(file)))
        values.update(cls._with_source("--set", overrides or {}))
        return cls(**values)

    def resumed(self, now: Self, overrides: Mapping[str, Any]) -> Self:
        """What a run that had these settings goes on with: `now` and overrides.

        Raises ConfigError where a fixed field would change.
        """
        after = dataclasses.replace(now, **self._with_source("--set", overrides))
        for field in dataclasses.fields(self):
            old, new = getattr(self, field.name), getattr(after, field.name)
            if field.metadata["fixed"] and old != new:
                raise ConfigError(
                    f"{field.name}: this run has {old!r} and cannot be resumed with {new!r}; "
                    "start a new one with another --out"
                )
        return after

    def toml(self) -> list[str]:
        """One line of TOML per field, without comments."""
        return [f"{f.name} = {_toml(getattr(self, f.name))}" for f in dataclasses.fields(self)]

    def save(self, path: str | Path) -> None:
        """Write all fields as TOML with their help as comments; `resolve` reads it back."""
        lines = [
            f"# A run of minitorch; use it again with: minitorch {self.command} --config FILE",
            *(
                f"{line}  # {_describe(field)}"
                for line, field in zip(self.toml(), dataclasses.fields(self))
            ),
        ]
        with atomic_write(path) as file:
            file.write(("\n".join(lines) + "\n").encode())

    @classmethod
    def describe(cls) -> list[tuple[str, ...]]:
        """For every field: key, default, what each preset but the first has or "", meaning."""
        others = list(cls.presets.values())[1:]
        return [
            (
                field.name,
                _toml(field.default),
                *(_toml(preset[field.name]) if field.name in preset else "" for preset in others),
                _describe(field),
            )
            for field in dataclasses.fields(cls)
        ]

    @classmethod
    def _with_source(cls, source: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values of the fields' types, from texts too; errors begin with the source."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        result = {}
        for key, value in values.items():
            if key not in fields:
                raise ConfigError(f"{source}: {unknown(key, fields)}")
            try:
                result[key] = _typed(fields[key], value, parse=True)
            except ConfigError as error:
                raise ConfigError(f"{source}: {error}") from None
        return result


def read_toml(path: str | Path) -> dict[str, Any]:
    """The keys and values of a TOML file; ConfigError where it is missing or not TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None


def parse_assignment(text: str) -> tuple[str, str]:
    """("key", "value") from "key=value"; ConfigError where there is no "="."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: expected key=value, for example --set steps=2000")
    return key.strip().replace("-", "_"), value.strip()


def _typed(field: dataclasses.Field, value: Any, parse: bool = False) -> Any:
    kind = field.type
    if parse and isinstance(value, str) and kind is not str:
        value = _parse(kind, value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        expected = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
        raise ConfigError(f"{field.name}: expected {expected[kind]}; got {value!r}")  # type: ignore[index]
    return value


def _parse(kind: Any, text: str) -> Any:
    """The value that a text from the command line stands for, or the text where there is none."""
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text


def _check_range(field: dataclasses.Field, value: Any) -> None:
    choices, limits = field.metadata["choices"], field.metadata["limits"]
    if choices and value not in choices:
        raise ConfigError(f"{field.name}: {unknown(value, choices)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{field.name}: expected a finite number; got {value}")
    if not all(LIMITS[name][1](value, limit) for name, limit in limits.items()):
        expected = ", ".join(f"{LIMITS[name][0]} {limit}" for name, limit in limits.items())
        raise ConfigError(f"{field.name}: expected {expected}; got {value}")


def _describe(field: dataclasses.Field) -> str:
    choices = field.metadata["choices"]
    return field.metadata["help"] + (f": {', '.join(f'`{c}`' for c in choices)}" if choices else "")


def unknown(name: str, known: Any) -> str:
    """What to say of a name that is not among the known: the one that was meant, or all."""
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
    return f"unknown {name!r}; {hint}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
