r"""LoRA: a linear layer stands still and learns by a product of two thin matrices beside it.

    y = x Wᵀ + s dropout(x) Aᵀ Bᵀ          W: (out, in), frozen; A: (r, in); B: (out, r)
    s = alpha / r                          or alpha / sqrt(r): rank-stabilised

A starts at random and B at 0, so that an adapted model begins as the model that it adapts. Without
its adapters it is that model again: one copy of the weights serves as policy and as reference
(`adapters_off`). For text to be generated fast, or for a folder that knows nothing of LoRA,
W + s B A takes the place of W (`merge`, `merged_model`).

    adapted   attach(model, config)           its adapters are all that is trained
    stored    save_adapter, load_adapter      the folder of peft: adapter_config.json and
                                              adapter_model.safetensors, some MB for some GB

Left out: adapters on stacked experts, whose weights are no Linear's; DoRA; ranks that differ from
layer to layer. Sources: Hu et al. 2021 (arXiv 2106.09685); s with sqrt(r): Kalajdzievski 2023
(arXiv 2312.03732); files and the start of A: peft, tuners/lora.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minitorch import backend, nn
from minitorch.errors import CheckpointError, ConfigError
from minitorch.io import load_safetensors, read_json, save_safetensors, write_json
from minitorch.modes import no_grad
from minitorch.nn import functional as F
from minitorch.random import Generator
from minitorch.tensor import Tensor
from models.sizes import check_positive, check_share, check_size

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """What is adapted, and how; peft's names.

    r: the rank. lora_alpha: the adapters' weight, see above. lora_dropout: in training, of what
    they read. target_modules: the last parts of the layers' names, such as ("q_proj", "v_proj"),
    or whole names; "all-linear" is every Linear but the head. use_rslora: s = alpha / sqrt(r).
    """

    r: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    target_modules: Sequence[str] | str = ALL_LINEAR
    use_rslora: bool = False

    def __post_init__(self) -> None:
        check_size("r", self.r)
        check_positive("lora_alpha", self.lora_alpha)
        check_share("lora_dropout", self.lora_dropout)
        if isinstance(self.target_modules, str) and self.target_modules != ALL_LINEAR:
            object.__setattr__(self, "target_modules", (self.target_modules,))
        if not self.target_modules:
            raise ConfigError(
                f"target_modules: expected names of layers, or {ALL_LINEAR!r}; got none"
            )

    @property
    def scale(self) -> float:
        """s in the formula."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


class LoraLinear(nn.Module):
    """A Linear, `base`, with an adapter beside it: (..., in_features) -> (..., out_features).

    `weight` is the matrix that the two amount to, for code that reads a layer's weight.
    """

    def __init__(self, base: nn.Linear, config: LoraConfig, generator: Generator | None = None):
        self.base, self.scale, self.enabled = base, config.scale, True
        self.in_features, self.out_features = base.in_features, base.out_features
        dtype = base.weight.dtype
        self.lora_A = nn.Parameter(nn.init.empty((config.r, self.in_features), dtype))
        self.lora_B = nn.Parameter(nn.init.empty((self.out_features, config.r), dtype))
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.lora_A, -bound, bound, generator)
        nn.init.zeros_(self.lora_B)
        self.dropout = nn.Dropout(config.lora_dropout)
        self._own_weight: Any = None

    @property
    def merged(self) -> bool:
        """Whether the base has taken the adapter in."""
        return self._own_weight is not None

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if self.merged or not self.enabled:
            return y
        return y + F.linear(F.linear(self.dropout(x), self.lora_A) * self.scale, self.lora_B)

    @property
    def weight(self) -> Tensor:
        """W + s B A, or W where the adapter is off. With dropout in training there is none."""
        if self.merged or not self.enabled:
            return self.base.weight
        if self.training and self.dropout.p:
            raise ConfigError(
                "lora_dropout: expected 0, as this layer's weight is read without its input; got "
                f"{self.dropout.p}. Leave the layer out of target_modules, or set lora_dropout=0"
            )
        return self.whole()

    def whole(self) -> Tensor:
        """W + s B A, also where the adapter is off."""
        if self.merged:
            return self.base.weight
        return self.base.weight + self.lora_B @ self.lora_A * self.scale

    @property
    def bias(self) -> nn.Parameter | None:
        """The base's."""
        return self.base.bias

    @no_grad()
    def merge(self) -> None:
        """Let the base compute what both do; what it was is kept."""
        if not self.merged:
            merged = self.whole()
            self._own_weight = self.base.weight.data
            self._put(merged.data)

    def unmerge(self) -> None:
        """The base is what it was, to the bit."""
        if self.merged:
            own, self._own_weight = self._own_weight, None
            self._put(backend.to_device(own, self.base.weight.device))

    def _put(self, array: Any) -> None:
        self.base.weight.data = array
        self.base.weight.bump_version()

    def extra_repr(self) -> str:
        return f"rank={self.lora_A.shape[0]}, scale={self.scale:g}"


def attach(model: nn.Module, config: LoraConfig, generator: Generator | None = None) -> None:
    """Freeze a model and put adapters beside its layers, in place.

    Afterwards `adapter_parameters(model)` are all that is trained. Raises ConfigError where a name
    in target_modules fits no Linear, or one that shares its weight with the embedding.
    """
    if adapters(model):
        raise ConfigError("attach: the model has adapters already; take its merged_model first")
    names = _targets(model, config)
    model.requires_grad_(False)
    modules = dict(model.named_modules())
    for name in names:
        parent, _, attribute = name.rpartition(".")
        adapter = LoraLinear(modules[name], config, generator)  # type: ignore[arg-type]
        setattr(modules[parent], attribute, adapter.train(model.training))


def _targets(model: nn.Module, config: LoraConfig) -> list[str]:
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    owners: dict[int, set[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(param), set()).add(name)
    tied = {name for name, module in linear.items() if len(owners[id(module.weight)]) > 1}
    if config.target_modules == ALL_LINEAR:
        chosen = [name for name in linear if name != "lm_head" and name not in tied]
        if not chosen:
            raise ConfigError(f"target_modules: {type(model).__name__} has no Linear to adapt")
        return chosen
    for target in config.target_modules:
        if not any(_ends_in(name, target) for name in linear):
            kinds = sorted({name.rpartition(".")[2] for name in linear})
            raise ConfigError(
                f"target_modules: expected names of Linear layers, of {', '.join(kinds)}; got "
                f"{target!r}. Stacked experts and embeddings cannot be adapted"
            )
    chosen = [name for name in linear if any(_ends_in(name, t) for t in config.target_modules)]
    if tied & set(chosen):
        raise ConfigError(
            f"target_modules: {', '.join(sorted(tied & set(chosen)))} shares its weight with the "
            "embedding, which would change with it when the two are merged; leave it out"
        )
    return chosen


def _ends_in(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def adapters(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers of a model by their names."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}


def adapter_parameters(model: nn.Module) -> list[nn.Parameter]:
    """A and B of all adapters, for an optimizer."""
    return [p for layer in adapters(model).values() for p in (layer.lora_A, layer.lora_B)]


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within the block the model is what it was before: the reference of its own training."""
    layers = list(adapters(model).values())
    before = [(layer.enabled, layer.merged) for layer in layers]
    try:
        for layer in layers:
            layer.unmerge()
            layer.enabled = False
        yield
    finally:
        for layer, (enabled, merged) in zip(layers, before, strict=True):
            layer.enabled = enabled
            if merged:
                layer.merge()


def merge(model: nn.Module) -> None:
    """Let every layer compute base and adapter at once, as fast as without, until unmerge()."""
    for layer in adapters(model).values():
        layer.merge()


def unmerge(model: nn.Module) -> None:
    """Undo merge(), to the bit; adapters can be trained again."""
    for layer in adapters(model).values():
        layer.unmerge()


@contextlib.contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Within the block every layer computes base and adapter at once; a model without has none."""
    merge(model)
    try:
        yield
    finally:
        unmerge(model)


def merged_model(model: Any) -> Any:
    """A new model of the same family with the adapters taken in, for save_pretrained.

    What was not adapted it shares with the model.
    """
    arrays = {name.replace(".base.", "."): t for name, t in model.state_dict().items()}
    arrays = {k: t for k, t in arrays.items() if not k.endswith((".lora_A", ".lora_B"))}
    with no_grad():
        arrays.update({f"{name}.weight": m.whole() for name, m in adapters(model).items()})
    with nn.init.unallocated():
        plain = model.config.build(next(iter(model.parameters())).dtype, None)
    plain.load_state_dict(arrays, assign=True)
    return plain.train(model.training)


def save_adapter(model: Any, folder: str | Path, config: LoraConfig, base: str | Path = "") -> None:
    """Write the adapters alone, as peft lays them out.

    config: what they were attached with. base: the folder, or the name, of the model that they
    belong to; `models.families.from_pretrained` and peft read it from there.
    """
    folder = Path(folder)
    layers = adapters(model)
    if not layers:
        raise ConfigError("save_adapter: the model has no adapters; attach() some")
    theirs = _names_in_files(model.config, layers)
    arrays = {}
    for name, layer in layers.items():
        for part in ("lora_A", "lora_B"):
            arrays[f"{PREFIX}{theirs[name]}.{part}.weight"] = getattr(layer, part).detach().numpy()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"save_adapter {folder}: {error.strerror or error}") from error
    save_safetensors(folder / ADAPTER_WEIGHTS, arrays, {"format": "pt"})
    write_json(
        folder / ADAPTER_CONFIG,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(base),
            "r": config.r,
            "lora_alpha": config.lora_alpha,
            "lora_dropout": config.lora_dropout,
            "use_rslora": config.use_rslora,
            "target_modules": sorted(theirs.values()),
            "fan_in_fan_out": model.config.model_type == "gpt2",
            "bias": "none",
            "init_lora_weights": True,
            "inference_mode": True,
        },
    )


FIXED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
}
"""What adapter_config.json may say of what is not built here."""


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The content of adapter_config.json; ConfigError for a variant that this is not."""
    path = folder / ADAPTER_CONFIG
    content = read_json(path)
    if not isinstance(content, dict) or not {"r", "lora_alpha"} <= content.keys():
        raise CheckpointError(f"{path}: expected the settings of LoRA; got {content!r:.80}")
    for key, allowed in FIXED.items():
        if key in content and content[key] not in allowed:
            raise ConfigError(
                f"{path}: expected {key} to be {allowed[0]!r}; got {content[key]!r}. Merge the "
                "adapter with peft (merge_and_unload), and load the model"
            )
    return content


def base_folder(folder: Path) -> Path:
    """Where the model lies that the adapters in a folder belong to, as they say themselves."""
    named = str(read_adapter_config(folder).get("base_model_name_or_path") or "")
    for path in (Path(named), folder / named):
        if named and (path / "config.json").is_file():
            return path
    raise CheckpointError(
        f"{folder / ADAPTER_CONFIG}: expected base_model_name_or_path to be a folder with a model; "
        f"got {named!r}. Write there where the model lies that these adapters were trained on"
    )


def load_adapter(model: Any, folder: str | Path) -> LoraConfig:
    """Attach the adapters in a folder to their model; returns their configuration.

    Raises CheckpointError, leaving the model as it is, for tensors that are missing, unexpected or
    of another shape, and for another model's.
    """
    folder = Path(folder)
    content = read_adapter_config(folder)
    found = _read_adapters(model, folder)
    config = LoraConfig(
        r=content["r"],
        lora_alpha=content["lora_alpha"],
        lora_dropout=content.get("lora_dropout", 0.0),
        target_modules=tuple(found),
        use_rslora=content.get("use_rslora", False),
    )
    modules = dict(model.named_modules())
    for name, parts in found.items():
        got = {part: array.shape for part, array in sorted(parts.items())}
        layer = modules[name]
        expected = {
            "lora_A": (config.r, layer.in_features),
            "lora_B": (layer.out_features, config.r),
        }
        if got != expected:
            raise CheckpointError(f"{folder}: {name}: expected {expected}; got {got}")
    attach(model, config)
    for name, adapter in adapters(model).items():
        adapter.load_state_dict(found[name], strict=False)
    return config


def _read_adapters(model: Any, folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """lora_A and lora_B of each layer, by the layers' names here."""
    arrays, _ = load_safetensors(folder / ADAPTER_WEIGHTS)
    linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    ours = {there: here for here, there in _names_in_files(model.config, linear, False).items()}
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        name, _, part = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if name not in ours or part not in ("lora_A", "lora_B"):
            raise CheckpointError(
                f"{folder}: {key} is no adapter of a Linear of this {type(model).__name__}; it "
                "belongs to another model, or adapts what cannot be adapted here"
            )
        found.setdefault(ours[name], {})[part] = array
    return found


def _names_in_files(config: Any, names: Iterable[str], strict: bool = True) -> dict[str, str]:
    """What Hugging Face's files call the layers; those that have no name of their own are left out.

    strict: then there must be none such.
    """
    always = config.to_files({}).keys()
    found = {}
    for name in names:
        try:
            files = config.to_files({f"{name}.weight": np.zeros((1, 1), np.float32)})
        except KeyError:  # a part of a larger matrix
            files = {}
        keys = [key for key in files if key.endswith(".weight") and key not in always]
        if len(keys) == 1:
            found[name] = keys[0].removesuffix(".weight")
        elif strict:
            raise ConfigError(
                f"{name}: {config.title}'s files hold this layer as a part of a larger matrix, "
                "for which peft has no adapter; save the merged_model instead"
            )
    return found
