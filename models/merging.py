r"""Models of one architecture made into one, weight by weight, without any training.

With theta_i the models' weights, w_i their shares, and tau_i = theta_i - theta_0 what each has
learnt since the base theta_0 that all come from:

    linear            sum_i w_i theta_i / sum_i w_i
    slerp             sin((1-t) a) / sin(a) theta_1 + sin(t a) / sin(a) theta_2, a the angle
    task_arithmetic   theta_0 + scale sum_i w_i tau_i
    ties              trim each tau_i to its largest entries; for each entry elect the sign of
                      their sum; theta_0 + scale times the mean of the tau_i of that sign
    dare              drop entries of each tau_i at random, divide the others by the share that is
                      kept, and go on as task_arithmetic
    dare_ties         the same, and go on as ties, with nothing trimmed

Opposite changes cancel in a sum; ties lets the majority have its say instead. Dropping nine tenths
of what was learnt does little harm because it is so redundant.

All is done tensor by tensor, in float32 or wider, and stored in the dtype of the first model; the
paper on ties trims all tensors of a model together. Sources: averages, Wortsman et al. 2022 (arXiv
2203.05482); slerp, Shoemake 1985; task arithmetic, Ilharco et al. 2022 (2212.04089); ties, Yadav et
al. 2023 (2306.01708), algorithm 1, with shares as in mergekit; dare, Yu et al. 2023 (2311.03099).
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from minitorch.backend import is_float
from minitorch.errors import CheckpointError, ConfigError
from minitorch.io import read_json, write_json
from minitorch.random import Generator
from models.families import FAMILIES
from models.pretrained import (
    CONFIG,
    SHARD_BYTES,
    Arrays,
    PretrainedConfig,
    read_config,
    read_weights,
    write_weights,
)

PARALLEL = 0.9995
"""Above this cosine a straight line is as good, and the angle's sine too small to divide by."""

TOKENIZER = "tokenizer.json"
NOT_OF_THE_MODEL = ("torch_dtype", "dtype", "transformers_version", "_name_or_path")


def linear(models: Sequence[Arrays], *, weights: Sequence[float] | None = None) -> Arrays:
    """The mean of all models, or with weights the weighted one; they are made to sum to 1."""
    shares = np.array(_shares(models, weights))
    if shares.sum() == 0:
        raise ConfigError("linear: expected weights whose sum is not 0; got a sum of 0")
    shares = shares / shares.sum()
    return _each(models, lambda *tensors: _weighted(shares, tensors))


def slerp(models: Sequence[Arrays], *, t: float = 0.5) -> Arrays:
    """Along the arc from the first model, t = 0, to the second, t = 1.

    Where two tensors point nearly the same way, or one is 0, along the straight line.
    """
    if len(models) != 2:
        raise ConfigError(f"slerp: expected two models; got {len(models)}")
    if not 0 <= t <= 1:
        raise ConfigError(f"slerp: expected t in [0, 1]; got {t}")
    return _each(models, lambda a, b: _arc(a, b, t))


def _arc(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    sizes = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    cosine = float(np.vdot(a, b)) / sizes if sizes else 1.0
    if abs(cosine) > PARALLEL:
        return (1 - t) * a + t * b
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def task_arithmetic(
    models: Sequence[Arrays],
    base: Arrays,
    *,
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
) -> Arrays:
    """The base, and scale times the weighted sum of what each model has learnt since.

    A negative weight takes away what a model has learnt.
    """
    shares = np.array(_shares(models, weights))
    return _each(
        [base, *models],
        lambda start, *ends: start + scale * _weighted(shares, [end - start for end in ends]),
    )


def ties(
    models: Sequence[Arrays],
    base: Arrays,
    *,
    weights: Sequence[float] | None = None,
    density: float = 0.2,
    scale: float = 1.0,
) -> Arrays:
    """The base, and scale times what the majority agrees on. density: the share that is kept."""
    _check_density("ties", density)
    shares = _shares(models, weights)

    def merged(start: np.ndarray, *ends: np.ndarray) -> np.ndarray:
        learnt = [trimmed(end - start, density) for end in ends]
        return start + scale * agreed(shares, learnt)

    return _each([base, *models], merged)


def trimmed(change: np.ndarray, density: float) -> np.ndarray:
    """The largest entries by magnitude, a share of `density`, and 0 for the others."""
    keep = round(density * change.size)
    if keep == change.size:
        return change
    out = np.zeros_like(change).reshape(-1)
    largest = np.argpartition(-np.abs(change.reshape(-1)), keep)[:keep]
    out[largest] = change.reshape(-1)[largest]
    return out.reshape(change.shape)


def agreed(shares: Sequence[float], changes: Sequence[np.ndarray]) -> np.ndarray:
    """For each entry the mean of the changes that have the sign of their weighted sum."""
    total = np.zeros_like(changes[0])
    count = np.zeros_like(changes[0])
    sign = np.sign(_weighted(shares, changes))
    for share, change in zip(shares, changes, strict=True):
        agrees = (np.sign(share * change) == sign) & (change != 0)
        total += np.where(agrees, share * change, 0)
        count += np.where(agrees, abs(share), 0)
    return total / np.where(count == 0, 1, count)


def dare(
    models: Sequence[Arrays],
    base: Arrays,
    *,
    weights: Sequence[float] | None = None,
    density: float = 0.5,
    scale: float = 1.0,
    seed: int = 0,
) -> Arrays:
    """task_arithmetic of the models after `dropped`. density: the share that is kept."""
    return task_arithmetic(dropped(models, base, density, seed), base, weights=weights, scale=scale)


def dare_ties(
    models: Sequence[Arrays],
    base: Arrays,
    *,
    weights: Sequence[float] | None = None,
    density: float = 0.5,
    scale: float = 1.0,
    seed: int = 0,
) -> Arrays:
    """ties, trimming nothing, of the models after `dropped`. density: the share that is kept."""
    models = dropped(models, base, density, seed)
    return ties(models, base, weights=weights, density=1.0, scale=scale)


def dropped(models: Sequence[Arrays], base: Arrays, density: float, seed: int) -> list[Arrays]:
    """Models of which a share of 1 - density has not been learnt, and the rest 1 / density times.

    On average nothing has changed.
    """
    _check_density("dare", density)
    generator = Generator(seed)

    def thinned(start: np.ndarray, end: np.ndarray) -> np.ndarray:
        kept = generator.draw().random(start.shape) < density
        return start + np.where(kept, (end - start) / density, 0)

    return [_each([base, model], thinned) for model in models]


METHODS: Mapping[str, Callable[..., Arrays]] = {
    method.__name__: method for method in (linear, slerp, task_arithmetic, ties, dare, dare_ties)
}
WITHOUT_BASE = ("linear", "slerp")


def merge_folders(
    method: str, folders: Sequence[Path], out: Path, base: Path | None = None, **settings: object
) -> None:
    """Merge the models in folders into another, `out`, with the first one's tokenizer.

    base: the folder of theta_0, for the methods that need one. Raises ConfigError and
    CheckpointError for models of other architectures, sizes or vocabularies, and for a setting
    that the method does not have; then nothing is written.
    """
    if method not in METHODS:
        raise ConfigError(f"merge: expected a method of {', '.join(METHODS)}; got {method!r}")
    if (base is None) != (method in WITHOUT_BASE):
        need = "no base model" if base else "the base that the models were trained from"
        raise ConfigError(f"{method}: expected {need}; got {base or 'none'}")
    if out.resolve() in {folder.resolve() for folder in (*folders, *([base] if base else []))}:
        raise ConfigError(f"merge: {out} is one of the models; give another folder for the result")
    sources = [*([base] if base else []), *folders]
    config = _common(sources)
    _check_tokenizers(sources)
    arrays = [read_weights(folder) for folder in sources]
    for folder, held in zip(sources, arrays, strict=True):
        _check_shapes(sources[0], arrays[0], folder, held)
    start = {"base": arrays.pop(0)} if base else {}
    merged = METHODS[method](arrays, **start, **settings)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (TOKENIZER, "tokenizer_config.json", "generation_config.json"):
            if (folders[0] / name).is_file():
                shutil.copyfile(folders[0] / name, out / name)
    except OSError as error:
        raise CheckpointError(f"merge {out}: {error.strerror or error}") from error
    write_weights(out, merged, SHARD_BYTES)
    write_json(out / CONFIG, config)


def _common(folders: Sequence[Path]) -> dict[str, object]:
    """The content of the first config.json, after a look at whether the others say the same."""
    first = _settings(folders[0])
    for folder in folders[1:]:
        settings = _settings(folder)
        differ = sorted(
            key for key in first.keys() | settings.keys() if first.get(key) != settings.get(key)
        )
        if differ:
            found = ", ".join(f"{key} {settings.get(key)!r}" for key in differ[:3])
            wanted = ", ".join(f"{key} {first.get(key)!r}" for key in differ[:3])
            raise ConfigError(
                f"merge: expected {folder} to be of the architecture and size of {folders[0]}, "
                f"with {wanted}; got {found}. Only models with the same ancestor can be merged"
            )
    return read_json(folders[0] / CONFIG)


def _settings(folder: Path) -> dict[str, object]:
    """What config.json says of the model itself, defaults filled in."""
    families: list[type[PretrainedConfig]] = list(FAMILIES.values())
    content = read_config(folder, families).to_hugging_face()
    return {key: value for key, value in content.items() if key not in NOT_OF_THE_MODEL}


def _check_tokenizers(folders: Sequence[Path]) -> None:
    found = [f / TOKENIZER for f in folders if (f / TOKENIZER).is_file()]
    for path in found[1:]:
        if read_json(path) != read_json(found[0]):
            raise ConfigError(
                f"merge: expected one tokenizer; {path} is not that of {found[0].parent}. The same "
                "number would stand for different tokens"
            )


def _check_shapes(first: Path, wanted: Arrays, folder: Path, found: Arrays) -> None:
    for name in sorted(wanted.keys() | found.keys()):
        shapes = [x[name].shape if name in x else "none" for x in (wanted, found)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"merge: expected {name} of {folder} to have shape {shapes[0]}, as in {first}; "
                f"got {shapes[1]}"
            )


def _each(models: Sequence[Arrays], function: Callable[..., np.ndarray]) -> Arrays:
    """function of the models' tensors of each name; what is no float is the first model's."""
    return {
        name: function(*(_wide(model[name]) for model in models)).astype(tensor.dtype)
        if is_float(tensor.dtype)
        else tensor
        for name, tensor in models[0].items()
    }


def _wide(array: np.ndarray) -> np.ndarray:
    return array if array.dtype == np.float64 else array.astype(np.float32)


def _weighted(shares: Sequence[float] | np.ndarray, tensors: Sequence[np.ndarray]) -> np.ndarray:
    return sum(float(share) * tensor for share, tensor in zip(shares, tensors, strict=True))  # type: ignore[return-value]


def _shares(models: Sequence[Arrays], weights: Sequence[float] | None) -> list[float]:
    """A weight for each model: 1 unless given."""
    shares = [1.0] * len(models) if weights is None else list(weights)
    if not models or len(shares) != len(models):
        raise ConfigError(
            f"merge: expected some models and a weight for each; got {len(models)} models and "
            f"{len(shares)} weights"
        )
    return shares


def _check_density(method: str, density: float) -> None:
    if not 0 < density <= 1:
        raise ConfigError(f"{method}: expected a density in (0, 1]; got {density}")
