"""Training through the CUDA kernels in the check build: the losses of the CPU's kernels."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import nn, optim
from minitorch.kernels.cuda.extension import checked
from minitorch.nn import functional as F


class Net(nn.Module):
    """Embedding, norms, activations, dropout, a head: what the row kernels compute."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 24)
        self.layer_norm, self.rms_norm = nn.LayerNorm(24), nn.RMSNorm(24)
        self.wide, self.narrow, self.head = nn.Linear(24, 48), nn.Linear(48, 24), nn.Linear(24, 20)

    def forward(self, index):
        x = self.embedding(index)
        x = x + F.dropout(self.narrow(F.gelu(self.wide(self.layer_norm(x)))), 0.1, True)
        gate = self.wide(self.rms_norm(x))
        return self.head(x + F.swiglu(gate[..., :24], gate[..., 24:]))


def losses(device):
    rng = np.random.default_rng(0)
    index, target = rng.integers(0, 20, (2, 5)), rng.integers(0, 20, 10)
    mt.manual_seed(0)
    net = Net().to(device)
    optimizer = optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(3):
        logits = net(mt.tensor(index).to(device)).reshape(10, 20)
        loss = F.cross_entropy(logits, mt.tensor(target).to(device))
        optimizer.zero_grad()
        loss.backward()
        optim.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


def test_losses_are_those_of_the_cpu():
    with checked("random", 1):
        found = list(losses("simt"))
    assert found == pytest.approx(list(losses("cpu")), rel=1e-5)
    assert found[-1] < found[0]
