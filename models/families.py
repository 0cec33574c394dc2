"""The families of models, by the names that their files give them."""

from pathlib import Path
from typing import Any

import numpy as np

from minitorch.backend import DEFAULT_FLOAT
from minitorch.errors import CheckpointError
from minitorch.tokenizers import Tokenizer
from minitorch.tokenizers import load as load_tokenizer
from models import lora, pretrained
from models.decoder import Decoder
from models.deepseek import DeepseekV2Config, DeepseekV3Config
from models.gpt2 import GPT2, GPT2Config
from models.llama import LlamaConfig
from models.minimax import MiniMaxConfig
from models.mistral import MistralConfig
from models.mixtral import MixtralConfig
from models.qwen import Qwen2Config, QwenConfig
from models.qwen_moe import Qwen2MoeConfig

Model = GPT2 | Decoder

FAMILIES: dict[str, type[Any]] = {
    family.model_type: family
    for family in (
        GPT2Config,
        LlamaConfig,
        MistralConfig,
        QwenConfig,
        Qwen2Config,
        MixtralConfig,
        Qwen2MoeConfig,
        DeepseekV2Config,
        DeepseekV3Config,
        MiniMaxConfig,
    )
}
"""model_type in config.json -> the family's configuration."""


def from_pretrained(folder: str | Path, dtype: np.dtype = DEFAULT_FLOAT) -> Model:
    """The model in a folder that save_pretrained, or transformers, wrote; of any family.

    Weights are converted to dtype; those that have it in the files are mapped into memory, and
    read when they are used. A folder of peft's, adapters alone, gives the model that they name with
    the adapters taken in. Raises ConfigError for another architecture, and CheckpointError for what
    is missing, damaged or does not fit; then nothing is loaded.
    """
    folder = Path(folder)
    if (folder / lora.ADAPTER_CONFIG).is_file() and not (folder / pretrained.CONFIG).is_file():
        model = from_pretrained(lora.base_folder(folder), dtype)
        lora.load_adapter(model, folder)
        return lora.merged_model(model)
    return pretrained.load(folder, FAMILIES.values(), dtype)  # type: ignore[return-value]


def with_tokenizer(folder: Path) -> tuple[Model, Tokenizer]:
    """The model and the tokenizer in a folder; CheckpointError where they do not fit together.

    A folder of adapters without a tokenizer has that of their model.
    """
    home = folder
    if not (folder / "tokenizer.json").is_file() and (folder / lora.ADAPTER_CONFIG).is_file():
        home = lora.base_folder(folder)
    model, tokenizer = from_pretrained(folder), load_tokenizer(home / "tokenizer.json")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens and the model "
            f"{model.config.vocab_size}; they do not belong together"
        )
    return model, tokenizer
