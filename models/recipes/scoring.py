"""What a model gives to the tokens of a batch: log-probabilities, and the loss of its routers."""

import numpy as np

import minitorch as mt
from minitorch.nn import functional as F
from minitorch.tensor import Tensor
from models.blocks.cache import step
from models.blocks.context import place_packed
from models.families import Model
from models.recipes.data import IGNORED, Batch


def features(
    model: Model, ids: np.ndarray, segments: np.ndarray | None = None
) -> tuple[Tensor, list[Tensor]]:
    """What the head reads, (batch, time, width), and what blocks add to a loss.

    ids: (batch, time). segments: which text each token is of, where a row holds several. Rows that
    are padded on the right need none: no token sees what comes after it.
    """
    tokens = mt.from_numpy(ids).to(next(model.parameters()).device)
    context = (
        step(tokens, None, None) if segments is None else place_packed(segments, tokens.device)
    )
    return model.features(tokens, context=context), context.losses()


def next_token_losses(model: Model, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """-log p of every target, (batch, time), 0 where there is none, and what blocks add.

    The logits are never whole in memory.
    """
    hidden, extra = features(model, batch.ids, batch.segments if batch.packed else None)
    targets = mt.from_numpy(batch.targets).to(hidden.device)
    head = model.lm_head
    losses = F.linear_cross_entropy(
        hidden, head.weight, targets, head.bias, ignore_index=IGNORED, reduction="none"
    )
    return losses, extra
