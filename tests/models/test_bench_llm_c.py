"""tests/benchmarks/llm_c.py without llm.c: the files that it is given, and how it is waited for."""

import json
import shutil
import sys
import time

import numpy as np
import pytest

import minitorch as mt
from models.bench import timing
from models.gpt2 import GPT2, GPT2Config
from tests.benchmarks import llm_c

CONFIG = GPT2Config(vocab_size=150, n_positions=8, n_layer=2, n_head=2, n_embd=8)
BATCH, TIME = 2, 4
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, BATCH * TIME)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CONFIG": CONFIG, "BATCH": BATCH, "TIME": TIME}.items():
        monkeypatch.setattr(llm_c, name, value)


def layer_norm(x, weight, bias):
    centred = x - x.mean(-1, keepdims=True)
    return weight * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) + bias


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def loss_of_the_files(folder):
    """GPT-2's first loss by NumPy, from the files alone, laid out as train_gpt2.c reads them."""
    content = (folder / "gpt2_124M.bin").read_bytes()
    header = np.frombuffer(content[:1024], np.int32)
    assert header[:2].tolist() == [20240326, 3]
    positions, vocabulary, layers, heads, c, rows = header[2:8].tolist()
    shapes = [(rows, c), (positions, c), (c,), (c,), (3 * c, c), (3 * c,), (c, c), (c,)]
    shapes += [(c,), (c,), (4 * c, c), (4 * c,), (c, 4 * c), (c,), (c,), (c,)]
    left, arrays = np.frombuffer(content[1024:], np.float32).astype(np.float64), []
    for i, shape in enumerate(shapes):
        shape = (layers, *shape) if 2 <= i < 14 else shape
        count = int(np.prod(shape))
        arrays.append(left[:count].reshape(shape))
        left = left[count:]
    assert left.size == 0
    wte, wpe, *blocks, lnf_weight, lnf_bias = arrays
    assert rows == 256
    assert not wte[vocabulary:].any()

    text = (folder / "dev/data/tinyshakespeare/tiny_shakespeare_train.bin").read_bytes()
    header, text = np.frombuffer(text[:1024], np.int32), np.frombuffer(text[1024:], np.uint16)
    assert header[:3].tolist() == [20240520, 1, len(text)]
    batches = [text[i : i + BATCH * TIME + 1] for i in range(0, len(text) - 1, BATCH * TIME)]
    assert len(batches) > 5  # as many as llm.c validates on
    assert all(np.array_equal(batch, batches[0]) for batch in batches)
    ids, targets = (x.reshape(BATCH, TIME) for x in (batches[0][:-1], batches[0][1:]))

    x = wte[ids] + wpe[:TIME]
    for w1, b1, qkv_w, qkv_b, o_w, o_b, w2, b2, fc_w, fc_b, proj_w, proj_b in zip(
        *blocks, strict=True
    ):
        qkv = layer_norm(x, w1, b1) @ qkv_w.T + qkv_b
        q, k, v = (
            t.reshape(BATCH, TIME, heads, -1).swapaxes(1, 2) for t in np.split(qkv, 3, axis=-1)
        )
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(c // heads)
        scores[..., np.triu(np.ones((TIME, TIME), bool), 1)] = -np.inf
        x = x + (softmax(scores) @ v).swapaxes(1, 2).reshape(x.shape) @ o_w.T + o_b
        h = layer_norm(x, w2, b2) @ fc_w.T + fc_b
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + h @ proj_w.T + proj_b
    logits = layer_norm(x, lnf_weight, lnf_bias) @ wte[:vocabulary].T
    of_target = np.take_along_axis(softmax(logits), targets[..., None].astype(int), -1)
    return -np.log(of_target).mean()


def test_the_files_hold_the_model_and_the_batch(tmp_path):
    model = GPT2(CONFIG, generator=mt.Generator(0))
    for i, param in enumerate(model.parameters()):  # no bias may be 0, nor a norm's weight 1
        param.data += np.random.default_rng(i).normal(0, 0.3, param.shape).astype(np.float32)
    llm_c.write_checkpoint(tmp_path / "gpt2_124M.bin", model)
    llm_c.write_tokens(tmp_path, TOKENS)
    ours = llm_c.Ours(model, TOKENS)
    ours()
    assert ours.losses == [pytest.approx(loss_of_the_files(tmp_path), abs=1e-5)]


def stand_in(path, body):
    """A program in Python in llm.c's place."""
    path.write_text(f"#!{sys.executable}\nimport sys, time\n{body}")
    path.chmod(0o755)
    return path


STEPS = """
def work(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

for step in range(41):
    if step % 10 == 0:
        work(1.0)
        print("val loss 4.5")
    work(0.03)
    print(f"step {step}: train loss {5 - step / 8:f} (took 30.0 ms)")
"""


def test_validation_is_in_no_step_that_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "REST", 0)
    theirs = llm_c.Theirs(stand_in(tmp_path / "run", STEPS), tmp_path, threads=1)
    try:
        case = timing.Case("", lambda: {"llm.c": theirs})
        costs = timing.measure(case, llm_c.MOST_ROUNDS).costs["llm.c"]
    finally:
        theirs.close()
    assert theirs.losses == [5 - step / 8 for step in range(2 + 2 * llm_c.MOST_ROUNDS)]
    assert max(costs) < 1


def test_between_calls_the_process_stands_still(tmp_path):
    body = "for step in range(9):\n    time.sleep(0.03)\n"
    body += '    print(f"step {step}: train loss {time.monotonic():f} (took 30.0 ms)")\n'
    theirs = llm_c.Theirs(stand_in(tmp_path / "run", body), tmp_path, threads=1)
    try:
        theirs()
        time.sleep(0.3)
        begun = time.monotonic()
        theirs()
    finally:
        theirs.close()
    assert theirs.losses[0] < begun < theirs.losses[1]


@pytest.mark.parametrize("body", ["sys.exit('no such file')", "print('Bad magic model file')"])
def test_a_process_that_ends_is_an_error(tmp_path, body):
    theirs = llm_c.Theirs(stand_in(tmp_path / "run", body), tmp_path, threads=1)
    try:
        with pytest.raises(SystemExit, match="ended before its next step"):
            theirs()
    finally:
        theirs.close()


PROGRAM = """
#include <stdio.h>
#include <unistd.h>
int main() {
    double losses[] = {%s};
    for (int step = 0; step < 4; step++) {
        usleep(200000);  // far longer than it takes to be stopped, on a busy machine too
        printf("step %%d: train loss %%f (took 200.0 ms)\\n", step, losses[step]);
    }
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler was found")
@pytest.mark.parametrize("wrong", [0.0, 0.001])
def test_a_run_is_measured_if_the_losses_agree(tmp_path, monkeypatch, wrong):
    ours = llm_c.Ours(GPT2(CONFIG, generator=mt.Generator(0)), TOKENS)
    for _ in range(4):
        ours()
    losses = ", ".join(str(loss + wrong * (step == 3)) for step, loss in enumerate(ours.losses))
    (tmp_path / "train_gpt2.c").write_text(PROGRAM % losses)
    target = tmp_path / "result.json"
    arguments = ["--source", str(tmp_path), "--rounds", "1", "--json", str(target)]
    monkeypatch.setattr("sys.argv", ["-m", *arguments])
    if wrong:
        with pytest.raises(SystemExit, match="step 3: the loss is"):
            llm_c.main()
        assert not target.exists()
        return
    llm_c.main()
    content = json.loads(target.read_text())
    (row,) = content["results"]
    assert row["seconds"]["llm.c"] >= 0.2
    assert row["ratio"]["llm.c"] == row["seconds"]["llm.c"] / row["seconds"]["minitorch"]
    assert content["losses"]["llm.c"] == pytest.approx(ours.losses, abs=1e-6)
