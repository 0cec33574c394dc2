"""CUDA graphs on the stand-in for CuPy, which does nothing in a capture and all in a replay.

What a replay computes is held against the same step done eagerly, bit for bit.
"""

from functools import partial

import numpy as np
import pytest

import minitorch as mt
from minitorch import cuda, nn, optim
from minitorch.errors import GraphError, ShapeError
from minitorch.nn import functional as F
from minitorch.recomputation import checkpoint
from models.gpt2 import GPT2, GPT2Config

CONFIG = GPT2Config(vocab_size=11, n_positions=4, n_layer=1, n_head=1, n_embd=8, dropout=0.2)
gpt2 = partial(GPT2, CONFIG)
OPTIMIZERS = {
    "adamw": lambda model: optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1]},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        0.01,
    ),
    "adam": lambda model: optim.Adam(model.parameters(), 0.01, weight_decay=0.1),
    "sgd": lambda model: optim.SGD(model.parameters(), 0.1, momentum=0.9, dampening=0.5),
    "lion": lambda model: optim.Lion(model.parameters(), 0.001),
    "muon": lambda model: optim.Muon(optim.muon_groups(model, adamw_lr=0.01, exclude=()), 0.02),
}
pytestmark = pytest.mark.gpu
needs_a_stand_in = pytest.mark.usefixtures("gpu")


@pytest.fixture
def gpu(request):
    """Device "cuda": the GPU, or the stand-in."""
    if not cuda.is_available():
        pytest.importorskip("minitorch._simt", reason="no C++20 compiler at installation")
        request.getfixturevalue("stand_in")


class Small(nn.Module):
    """As GPT2, but quickly emulated."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 4), nn.Linear(4, 11)

    def loss(self, ids, targets):
        x = F.dropout(self.embedding(ids), 0.2)
        return F.linear_cross_entropy(x, self.head.weight, targets, self.head.bias)


class Training:
    """Two micro-batches to a step, clipped, with dropout and a schedule that moves every step."""

    def __init__(self, device, optimizer="adamw", precision=None, model=Small):
        mt.manual_seed(0)
        self.model = model().to(device)
        self.optimizer = OPTIMIZERS[optimizer](self.model)
        self.scheduler = optim.LRScheduler(self.optimizer, optim.schedules.cosine(10, 3))
        self.precision, self.device = precision, device

    def update(self, ids, targets):
        self.optimizer.zero_grad()
        total = None
        for i in range(2):
            with mt.autocast(self.precision) if self.precision else mt.enable_grad():
                part = self.model.loss(ids[i], targets[i]) * 0.5
            part.backward()
            total = part.detach() if total is None else total + part.detach()
        norm, scale = optim.clip_grad_scale(self.model.parameters(), 0.5)
        self.optimizer.step(scale)
        return total, norm

    def run(self, update, steps=10):
        """What each step returned, and the weights after the last."""
        rng, found = np.random.default_rng(0), []
        for _ in range(steps):
            ids = [mt.from_numpy(x).to(self.device) for x in rng.integers(0, 11, (2, 2, 1, 4))]
            found.append([x.item() for x in update(*ids)])
            self.scheduler.step()
        return found, [p.detach().numpy() for p in self.model.parameters()]


def same(a, b):
    assert a[0] == b[0]
    for ours, theirs in zip(a[1], b[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@needs_a_stand_in
@pytest.mark.parametrize(
    ("optimizer", "precision", "model"),
    [
        *[(name, None, Small) for name in OPTIMIZERS],
        ("adamw", "bfloat16", gpt2),
    ],
)
def test_ten_captured_steps_are_ten_steps(optimizer, precision, model):
    eager = Training("cuda", optimizer, precision, model)
    expected, state = eager.run(eager.update), mt.random.get_rng_state()
    captured = Training("cuda", optimizer, precision, model)
    step = cuda.GraphedStep(captured.update, num_warmup_iters=2)
    same(captured.run(step), expected)
    assert mt.random.get_rng_state() == state
    ours, theirs = (x.optimizer.state_dict()["state"] for x in (captured, eager))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


@needs_a_stand_in
def test_replays_compute_what_the_emulated_device_does():
    eager = Training("simt")
    expected = eager.run(eager.update)
    captured = Training("cuda")
    same(captured.run(cuda.GraphedStep(captured.update)), expected)


@needs_a_stand_in
def test_between_replays_the_weights_may_be_written_and_looked_at():
    def run(wrap):
        training = Training("cuda", precision="bfloat16")
        average = optim.EMA(training.model.parameters(), 0.9)
        step, seen = wrap(training.update), []

        def update(ids, targets):
            found = step(ids, targets)
            average.update()
            with average.applied(), mt.no_grad(), mt.autocast("bfloat16"):
                seen.append(training.model.head(mt.ones(2, 4).to("cuda")).numpy())
            with mt.no_grad():
                training.model.head.weight.mul_(0.9)
            return found

        return training.run(update, steps=6), seen

    (expected, logits), (found, replayed) = run(lambda f: f), run(cuda.GraphedStep)
    same(found, expected)
    np.testing.assert_array_equal(replayed, logits)


@needs_a_stand_in
def test_recomputed_dropout_and_a_generator_of_ones_own():
    def run(wrap):
        mt.manual_seed(3)
        own = mt.Generator(5)
        block = lambda x: F.dropout(x * 2, 0.5)  # noqa: E731

        def step(x):
            w = x.detach().requires_grad_()
            F.dropout(checkpoint(block, w), 0.5, generator=own).backward(x)
            drawn = F.categorical(x, generator=own)
            return w.grad, drawn

        call = wrap(step)
        x = mt.rand(4, 8).to("cuda")
        found = [[y.numpy() for y in call(x)] for _ in range(6)]
        return found, own.offset, mt.random.get_rng_state()

    (expected, *after), (found, *after_too) = run(lambda f: f), run(cuda.GraphedStep)
    assert after == after_too
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    assert len({x.tobytes() for x, _ in found}) == 6


@needs_a_stand_in
def test_a_graph_by_itself():
    x, total = mt.ones(3).to("cuda"), mt.zeros(3).to("cuda")
    graph = cuda.CUDAGraph()
    with pytest.raises(GraphError, match="holds no step yet"):
        graph.replay()
    with cuda.graph(graph):
        total += 2 * x
    assert total.tolist() == [0, 0, 0]
    x[...] = 5.0
    graph.replay()
    assert total.tolist() == [10, 10, 10]
    graph.replay()
    assert total.tolist() == [20, 20, 20]
    with pytest.raises(GraphError, match="holds a step already"), cuda.graph(graph):
        pass


LOOKS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool((x > 0).all()),
    "numpy": lambda x: x.numpy(),
    "tolist": lambda x: x.tolist(),
    "print": repr,
    r"to\('cpu'\)": lambda x: x.cpu(),
    "draw": lambda _: mt.rand(2),
}


@needs_a_stand_in
@pytest.mark.parametrize("operation", LOOKS)
def test_what_waits_is_named(operation):
    step = cuda.GraphedStep(LOOKS[operation], num_warmup_iters=1)
    x = mt.ones(2).to("cuda")
    step(x)
    with pytest.raises(GraphError, match=rf"^{operation}: .*captured\s+step"):
        step(x)
    assert x.tolist() == [1, 1]  # the capture is over


@needs_a_stand_in
def test_what_the_device_refuses_is_named():
    step = cuda.GraphedStep(lambda x: x.sort()[0], num_warmup_iters=1)
    x = mt.tensor([2.0, 1.0]).to("cuda")
    assert step(x).tolist() == [1, 2]
    with pytest.raises(GraphError, match="the step cannot be captured"):
        step(x)


@needs_a_stand_in
def test_an_optimizer_that_cannot_be_captured():
    w = nn.Parameter(mt.ones(3, 3)).to("cuda").detach().requires_grad_()
    optimizer = optim.Adafactor([w])

    def step(x):
        optimizer.zero_grad()
        (w * x).sum().backward()
        optimizer.step()
        return w

    step = cuda.GraphedStep(step, num_warmup_iters=1)
    step(mt.ones(3, 3).to("cuda"))
    with pytest.raises(GraphError, match=r"Adafactor.step: .*take another optimizer"):
        step(mt.ones(3, 3).to("cuda"))


@needs_a_stand_in
def test_inputs_of_another_shape():
    step = cuda.GraphedStep(lambda x: x + 1)
    step(np.ones(3, np.float32))
    with pytest.raises(ShapeError, match=r"expected input 0 .*\(3,\) float32; got \(4,\) float32"):
        step(np.ones(4, np.float32))


@needs_a_stand_in
def test_a_generator_seeded_anew():
    generator = mt.Generator(1)
    step = cuda.GraphedStep(lambda x: F.dropout(x, 0.5, generator=generator), num_warmup_iters=1)
    for _ in range(3):
        step(np.ones(3, np.float32))
    generator.manual_seed(2)
    with pytest.raises(GraphError, match=r"expected the generator to have seed 1.*got 2"):
        step(np.ones(3, np.float32))
