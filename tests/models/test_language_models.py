"""What every language model here does, GPT-2 and decoders with any attention: its formula, the same
through a cache and with padding, the right gradients, and an error for what it cannot read."""

import dataclasses
import math

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import DtypeError, GraphError, ShapeError
from tests.models.small import (
    GPT2,
    MASK,
    MODELS,
    SMALL,
    gpt2_formula,
    llama_formula,
    logits_of,
    randomised,
    tokens,
)

every = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
both = pytest.mark.parametrize("config", [GPT2, SMALL], ids=["gpt2", "llama"])


@pytest.mark.parametrize(
    ("config", "formula"),
    [
        (GPT2, gpt2_formula),
        (dataclasses.replace(GPT2, bias=False), gpt2_formula),
        (SMALL, llama_formula),
    ],
    ids=["gpt2", "gpt2 without biases", "llama"],
)
@pytest.mark.parametrize("time", [1, 5, 9])
def test_logits_and_loss_are_the_formula(config, formula, time):
    model = randomised(config)
    ids, targets = tokens((2, time)), tokens((2, time), seed=2)
    targets[0, 0] = -100 if time > 1 else targets[0, 0]
    logits, loss = model(mt.from_numpy(ids), mt.from_numpy(targets))
    expected = np.stack([formula(model, row) for row in ids])
    np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-10, atol=1e-11)
    log_probs = expected - np.log(np.exp(expected).sum(-1, keepdims=True))
    rows, columns = np.nonzero(targets != -100)
    picked = log_probs[rows, columns, targets[rows, columns]]
    assert loss.item() == pytest.approx(-picked.mean(), rel=1e-10)
    assert model(mt.from_numpy(ids))[1] is None


@both
def test_the_loss_without_the_logits_is_the_same(config):
    gradients = []
    for loss_of in (lambda model, *args: model(*args)[1], lambda model, *args: model.loss(*args)):
        model = randomised(config)
        ids, targets = mt.from_numpy(tokens((3, 6))), mt.from_numpy(tokens((3, 6), seed=2))
        loss = loss_of(model, ids, targets)
        loss.backward()
        gradients.append([loss.item(), *(param.grad.numpy() for param in model.parameters())])
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-13)


@every
def test_the_future_is_not_seen(config):
    model = randomised(config)
    ids = tokens((1, 8))
    changed = ids.copy()
    changed[0, 5] = (ids[0, 5] + 1) % 19
    before, after = logits_of(model, ids), logits_of(model, changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.abs(before[:, 5] - after[:, 5]).max() > 1e-6


@every
@pytest.mark.parametrize("parts", [[1] * 9, [5, 1, 3], [2, 7], [8, 1]], ids=str)
def test_cached_is_uncached(config, parts):
    """In one piece, one by one, or in any pieces: the logits of every position are the same."""
    model = randomised(config).eval()
    ids = tokens((3, 9))
    whole, cache, at = logits_of(model, ids), model.new_cache(), np.cumsum(parts)[:-1]
    pieces = [logits_of(model, piece, cache) for piece in np.split(ids, at, axis=1)]
    np.testing.assert_allclose(np.concatenate(pieces, 1), whole, rtol=1e-10, atol=1e-11)
    assert cache.length == 9
    assert cache.nbytes > 0


@every
@pytest.mark.parametrize("parts", [None, [1] * 9, [4, 1, 4], [6, 3]], ids=str)
def test_padding_on_any_side_changes_nothing(config, parts):
    """Each row gives what its tokens give alone, cached or not, together or by itself."""
    model = randomised(config).eval()
    ids = tokens(MASK.shape)

    def padded(ids, mask):
        if parts is None:
            return logits_of(model, ids, mask=mask)
        cache, at = model.new_cache(), np.cumsum(parts)[:-1]
        steps = zip(np.split(ids, at, 1), np.split(mask, at, 1))
        return np.concatenate([logits_of(model, i, cache, m) for i, m in steps], 1)

    together = padded(ids, MASK)
    for row, real, logits in zip(ids, MASK, together):
        alone = logits_of(model, row[None, real])[0]
        np.testing.assert_allclose(logits[real], alone, rtol=1e-10, atol=1e-11)
        np.testing.assert_allclose(
            padded(row[None], real[None])[0, real], alone, rtol=1e-10, atol=1e-11
        )


@both
def test_padded_rows_have_the_gradients_of_rows_alone(config):
    model = randomised(config)
    ids = tokens(MASK.shape)
    targets = np.where(MASK, tokens(MASK.shape, seed=2), -100)
    model.loss(*(mt.from_numpy(x) for x in (ids, targets, MASK))).backward()
    together = {name: param.grad.numpy().copy() for name, param in model.named_parameters()}
    model.zero_grad()
    for row, real, target in zip(ids, MASK, targets):
        part = model.loss(mt.from_numpy(row[None, real]), mt.from_numpy(target[None, real]))
        (part * (real.sum() / MASK.sum())).backward()
    for name, param in model.named_parameters():
        np.testing.assert_allclose(together[name], param.grad.numpy(), rtol=1e-9, atol=1e-12)


@every
def test_gradient_is_the_slope_along_a_random_direction(config):
    model = randomised(config)
    ids, targets = mt.from_numpy(tokens((2, 6))), mt.from_numpy(tokens((2, 6), seed=2))
    mask = mt.from_numpy(MASK[[0, 2], :6])
    model.loss(ids, targets, mask).backward()
    rng = np.random.default_rng(3)
    for name, param in model.named_parameters():
        start, direction = param.data.copy(), rng.standard_normal(param.shape)
        losses = []
        for h in (1e-5, -1e-5):
            param.data[...] = start + h * direction
            with mt.no_grad():
                losses.append(model.loss(ids, targets, mask).item())
        param.data[...] = start
        slope = (losses[0] - losses[1]) / 2e-5
        assert (param.grad.numpy() * direction).sum() == pytest.approx(slope, rel=1e-5, abs=1e-8), (
            name
        )


@both
def test_caches_refuse_what_they_cannot_hold(config):
    model = randomised(config)
    with pytest.raises(GraphError, match="no_grad"):
        model(mt.from_numpy(tokens((2, 3))), cache=model.new_cache())
    cache = model.new_cache()
    logits_of(model, tokens((2, 5)), cache)
    with pytest.raises(ShapeError, match=r"[cC]ache: expected"):
        logits_of(model, tokens((3, 1)), cache)


@both
def test_what_is_no_batch_of_ids_is_refused(config):
    model = randomised(config)
    with pytest.raises(ShapeError, match="batch, time"):
        model(mt.from_numpy(tokens(5)))
    with pytest.raises(ShapeError, match="batch, time"):
        model(mt.from_numpy(tokens((2, 0))))
    with pytest.raises(DtypeError, match="integer"):
        model(mt.zeros(1, 3))
    with pytest.raises(ShapeError, match="mask"):
        model(mt.from_numpy(tokens((2, 3))), mask=mt.ones(2, 4))
    with pytest.raises(ShapeError, match=r"\[0, 19\)"):
        model(mt.from_numpy(np.array([[19]])))


@both
def test_hidden_states_lead_to_the_features(config):
    model = randomised(config)
    ids, mask = mt.from_numpy(tokens(MASK.shape)), mt.from_numpy(MASK)
    states = model.hidden_states(ids, mask)
    assert len(states) == 2 + 1
    norm = model.ln_f if config is GPT2 else model.norm
    features = norm(states[-1]).detach().numpy()
    np.testing.assert_array_equal(features, model.features(ids, mask=mask).detach().numpy())


@both
def test_initial_weights(config):
    """N(0, 0.02²), and smaller where the residual stream is written to; norms 1 and biases 0."""
    wide = {"n_embd": 96, "n_head": 2} if config is GPT2 else {"hidden_size": 96}
    config = dataclasses.replace(config, vocab_size=199, **wide)
    model = config.build(np.dtype(np.float32), mt.Generator(0))
    for name, param in model.named_parameters():
        if name.endswith("bias"):
            assert not param.data.any()
        elif "ln_" in name or "norm" in name:
            assert (param.data == 1).all()
        else:
            into_stream = name.endswith(("c_proj.weight", "o_proj.weight", "down_proj.weight"))
            std = 0.02 / math.sqrt(4) if into_stream else 0.02
            assert param.data.std() == pytest.approx(std, rel=0.05), name
            assert abs(param.data.mean()) < std / 10
    ids, targets = (mt.from_numpy(tokens((4, 16), seed)) for seed in (1, 2))
    assert model.loss(ids, targets).item() == pytest.approx(math.log(199), abs=0.05)


@both
def test_seeds_decide_the_weights(config):
    def weights(seed):
        model = config.build(np.dtype(np.float32), mt.Generator(seed))
        return np.concatenate([param.data.ravel() for param in model.parameters()])

    mt.manual_seed(5)
    np.testing.assert_array_equal(weights(1), weights(1))
    assert (weights(1) != weights(2)).any()
    assert mt.random.get_rng_state()["offset"] == 0


@pytest.mark.parametrize(
    ("config", "name"),
    [(GPT2, "dropout"), (SMALL, "attention_dropout")],
    ids=["gpt2", "llama"],
)
def test_dropout_acts_in_training_alone(config, name):
    mt.manual_seed(0)
    model = randomised(dataclasses.replace(config, **{name: 0.5}))
    ids = tokens(MASK.shape)
    for mask in (None, MASK):
        model.train()
        assert (logits_of(model, ids, mask=mask) != logits_of(model, ids, mask=mask)).any()
        model.eval()
        expected = logits_of(randomised(config).eval(), ids, mask=mask)
        np.testing.assert_array_equal(logits_of(model, ids, mask=mask), expected)
