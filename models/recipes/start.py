"""Where post-training begins: a model and its tokenizer from a folder, ready for conversations."""

import dataclasses
from pathlib import Path

import numpy as np

import minitorch as mt
from minitorch.errors import ConfigError
from minitorch.tokenizers import Tokenizer
from models import checkpoints
from models.chat import template_of, with_template
from models.families import Model, with_tokenizer


def load_base(
    folder: str | Path, seed: int, template: str | None = None, *, frozen: bool = False
) -> tuple[Model, Tokenizer]:
    """The model and the tokenizer to begin with, and the global random stream set to the seed.

    folder: of a run (its newest checkpoint), a checkpoint, or a Hugging Face model. template: one
    whose special tokens are added where they are missing, and their rows to the model; None where
    there must be one already. frozen: whether these rows could not be trained, which makes a
    template's missing tokens an error. Raises CheckpointError and ConfigError.
    """
    mt.manual_seed(seed)
    if not str(folder):
        raise ConfigError("model: expected the folder of a trained model; give one by --model")
    model, tokenizer = with_tokenizer(checkpoints.model_folder(Path(folder)))
    if template is None:
        template_of(tokenizer)
        return model, tokenizer
    before, tokenizer = tokenizer, with_template(tokenizer, template)
    if frozen and tokenizer is not before:
        raise ConfigError(
            f"lora_rank: the tokenizer lacks special tokens of template {template!r}, and adapters "
            "cannot learn their embeddings; train once without LoRA (lora_rank=0)"
        )
    return with_vocabulary(model, tokenizer.vocab_size), tokenizer


def with_vocabulary(model: Model, size: int) -> Model:
    """The model with at least so many tokens: new rows are the mean of the old, and a little noise.

    A token that is new then starts about as likely as an average one, where a random row would be
    far from all. Source: Hewitt 2021, "Initializing new word embeddings for pretrained language
    models".
    """
    if size <= model.config.vocab_size:
        return model
    config = dataclasses.replace(model.config, vocab_size=size)
    parameters = dict(model.named_parameters())
    larger = config.build(next(iter(parameters.values())).dtype, None)
    state = {}
    before = {name: array.numpy() for name, array in model.state_dict().items()}
    for name, tensor in larger.state_dict().items():
        old, fresh = before[name], tensor.numpy()
        more = [] if old.shape == fresh.shape else [old.mean(0) + fresh[len(old) :]]
        state[name] = np.concatenate([old, *more])
    larger.load_state_dict(state)
    return larger


def check_same_vocabulary(reference: Tokenizer, tokenizer: Tokenizer, folder: str | Path) -> None:
    """ConfigError where a second model reads other tokens than the first."""
    if reference.vocab != tokenizer.vocab:
        raise ConfigError(
            f"{folder}: expected the vocabulary of the model that is trained, "
            f"{tokenizer.vocab_size} tokens; got another one, of {reference.vocab_size}. "
            "Log-probabilities of different tokens cannot be compared"
        )
