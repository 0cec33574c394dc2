"""Models in folders as Hugging Face lays them out: config.json, and weights in safetensors files.

    config.json                             the sizes, and which architecture they are of
    model.safetensors                       the weights; or, where they are too many for one file,
    model-00001-of-00003.safetensors        shards, and
    model.safetensors.index.json            which of them holds which tensor

Weights are mapped into memory, so that the system reads from the disk what is used, when it is
used; those whose dtype changes are converted one by one. A folder is read whole or not at all, and
what does not fit is listed by name.

A family takes part by its configuration, a `PretrainedConfig`: it turns config.json into sizes, the
sizes into a model, and the tensors of the files into the model's, and all of it back.
"""

import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from minitorch import nn
from minitorch.backend import is_float
from minitorch.errors import CheckpointError, ConfigError
from minitorch.io import (
    map_safetensors,
    read_json,
    save_safetensors,
    sync_folder,
    write_json,
)
from minitorch.random import Generator

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
SHARD_BYTES = 5_000_000_000

Arrays = dict[str, np.ndarray]


class PretrainedConfig(Protocol):
    """What reading and writing a folder wants of a family's configuration."""

    model_type: ClassVar[str]

    @classmethod
    def from_hugging_face(cls, content: Mapping[str, Any]) -> Self:
        """The configuration that config.json describes."""

    def to_hugging_face(self) -> dict[str, Any]:
        """What config.json holds."""

    def build(self, dtype: np.dtype, generator: Generator | None) -> nn.Module:
        """The model of this configuration."""

    def from_files(self, arrays: Arrays) -> Arrays:
        """The tensors of the files as the model names and keeps them."""

    def to_files(self, arrays: Arrays) -> Arrays:
        """The model's tensors as the files name and keep them."""


def load(
    folder: str | Path, families: Iterable[type[PretrainedConfig]], dtype: np.dtype
) -> nn.Module:
    """The model in a folder, of one of the families, its weights converted to dtype.

    Weights that are of this dtype in the files stay mapped. Raises ConfigError for an architecture
    or a variant that no family is, and CheckpointError for files that are missing or damaged, or
    whose tensors are missing, unexpected, of another shape or not finite, with a list of them.
    """
    folder = Path(folder)
    config = read_config(folder, families)
    arrays = config.from_files(read_weights(folder))
    with nn.init.unallocated():
        model = config.build(dtype, None)
    try:
        model.load_state_dict(arrays, assign=True)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return model


def read_config(folder: Path, families: Iterable[type[PretrainedConfig]]) -> Any:
    """The configuration in a folder."""
    path = folder / CONFIG
    content = read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected an object of settings; got {content!r:.80}")
    known = {family.model_type: family for family in families}
    kind = content.get("model_type")
    if kind not in known:
        raise ConfigError(
            f"{path}: expected a model_type among {', '.join(sorted(known))}; got {kind!r}"
        )
    if "quantization_config" in content:
        raise ConfigError(f"{path}: expected weights as numbers; these are quantised")
    try:
        return known[kind].from_hugging_face(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_weights(folder: Path) -> Arrays:
    """All tensors in a folder's files, mapped; CheckpointError where one is not finite."""
    index = folder / INDEX
    arrays = _read_shards(folder, index) if index.is_file() else _read_file(folder / WEIGHTS)
    bad = [name for name, array in arrays.items() if not is_finite(array)]
    if bad:
        raise CheckpointError(
            f"{folder}: NaN or infinity in {', '.join(bad[:10])}"
            f"{f' and {len(bad) - 10} more' if len(bad) > 10 else ''}. The weights are damaged: "
            "copy or download them again, or take an earlier checkpoint"
        )
    return arrays


def _read_file(path: Path) -> Arrays:
    if not path.is_file() and (path.parent / "pytorch_model.bin").is_file():
        raise CheckpointError(
            f"{path}: no such file. pytorch_model.bin beside it can run code when it is read, and "
            "is not: save the model with safe_serialization=True"
        )
    return map_safetensors(path)[0]


def _read_shards(folder: Path, index: Path) -> Arrays:
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in places.values()
    ):
        raise CheckpointError(f"{index}: expected weight_map, of tensors to files in this folder")
    arrays: Arrays = {}
    for file in sorted(set(places.values())):
        held = _read_file(folder / file)
        wanted = {name for name, place in places.items() if place == file}
        if held.keys() != wanted:
            astray = sorted(held.keys() ^ wanted)
            raise CheckpointError(
                f"{folder / file}: expected the tensors that {INDEX} names for it; they differ in "
                f"{', '.join(astray[:10])}. The folder is mixed of two models, or incomplete"
            )
        arrays |= held
    return arrays


def is_finite(array: np.ndarray) -> bool:
    """Whether an array of floats holds neither NaN nor infinity: no exponent is all ones.

    By the bits of the numbers, in pieces, so that it costs one reading and no memory.
    """
    if not is_float(array.dtype):
        return True
    kind = np.dtype(f"u{array.itemsize}")
    magnitude = kind.type(np.iinfo(kind).max >> 1)
    infinite = np.array(np.inf, array.dtype).view(kind)
    bits = np.ascontiguousarray(array).reshape(-1).view(kind)
    piece = 1 << 20
    return all(
        ((bits[at : at + piece] & magnitude) < infinite).all() for at in range(0, len(bits), piece)
    )


def save(model: nn.Module, folder: str | Path, max_shard_bytes: int = SHARD_BYTES) -> None:
    """Write a model's folder, as transformers loads it.

    max_shard_bytes: weights of more are written as several files. All files are written into a
    hidden folder first and then take their places, those of an earlier model removed before and
    config.json, without which nothing can be loaded, last. Whatever interrupts this leaves
    the earlier model, the new one, or a folder that is refused, but never a mixture of the two.
    Raises CheckpointError where the disk is full or not writable.
    """
    folder, config = Path(folder), model.config  # type: ignore[attr-defined]
    if any(name.endswith(".lora_A") for name, _ in model.named_parameters()):
        raise CheckpointError(
            f"save {folder}: the model has LoRA adapters, for which its files have no names; take "
            "lora.merged_model(model), or lora.save_adapter for the adapters alone"
        )
    arrays = config.to_files({name: t.numpy() for name, t in model.state_dict().items()})
    dtype = next(array.dtype.name for array in arrays.values() if is_float(array.dtype))
    staged = folder / f".model.{secrets.token_hex(4)}.tmp"
    try:
        staged.mkdir(parents=True)
        write_weights(staged, arrays, max_shard_bytes)
        write_json(staged / CONFIG, {**config.to_hugging_face(), "torch_dtype": dtype})
        (folder / CONFIG).unlink(missing_ok=True)
        for path in [path for path in folder.iterdir() if SHARD.fullmatch(path.name)]:
            path.unlink()
        for path in [path for path in staged.iterdir() if path.name != CONFIG]:
            path.rename(folder / path.name)
        sync_folder(folder)
        (staged / CONFIG).rename(folder / CONFIG)
        sync_folder(folder)
    except OSError as error:
        raise CheckpointError(f"save {folder}: {error.strerror or error}") from error
    finally:
        for leftover in folder.glob(".model.*.tmp"):  # and what a killed save left
            shutil.rmtree(leftover, ignore_errors=True)


def write_weights(folder: Path, arrays: Arrays, max_shard_bytes: int) -> None:
    """Write tensors as one file, or as shards with an index."""
    shards = _shards(arrays, max_shard_bytes)
    if len(shards) == 1:
        save_safetensors(folder / WEIGHTS, arrays, {"format": "pt"})
        return
    places = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_safetensors(folder / file, {name: arrays[name] for name in names}, {"format": "pt"})
        places.update(dict.fromkeys(names, file))
    size = sum(array.nbytes for array in arrays.values())
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": places})


def _shards(arrays: Arrays, max_bytes: int) -> list[list[str]]:
    """Names in their order, cut before a shard would be too large; one tensor is never cut."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, array in arrays.items():
        if shards[-1] and size + array.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += array.nbytes
    return shards


def check_fixed(content: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]]) -> None:
    """ConfigError where config.json has another value than those a family knows.

    fixed: key -> the values that it may have; a key that is absent is fine.
    """
    for key, allowed in fixed.items():
        if key in content and content[key] not in allowed:
            raise ConfigError(
                f"expected {key} to be {' or '.join(map(repr, allowed))}; got {content[key]!r}"
            )
