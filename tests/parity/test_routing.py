"""The loss on the balance of experts, and its gradient, against transformers'."""

import numpy as np
import pytest

import minitorch as mt
from models.blocks.routing import load_balancing_loss

PEERS = "peer not installed: pip install -e .[peers]"
torch = pytest.importorskip("torch", reason=PEERS)
mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral", reason=PEERS)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("layers", [1, 3])
def test_theirs_is_k_times_ours_over_the_tokens_of_all_layers(layers, k):
    logits = np.random.default_rng(0).standard_normal((layers, 40, 8))
    mine = mt.Tensor(logits, requires_grad=True)
    scores = mine.reshape(-1, 8).softmax(-1)
    ours = k * load_balancing_loss(scores, scores.detach().topk(k).indices)
    ours.backward()
    parts = [torch.from_numpy(part).requires_grad_() for part in logits]
    theirs = mixtral.load_balancing_loss_func(tuple(parts), 8, k)
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    expected = np.stack([part.grad.numpy() for part in parts])
    np.testing.assert_allclose(
        mine.grad.numpy(), expected, rtol=1e-5, atol=1e-8
    )  # theirs counts in float32
