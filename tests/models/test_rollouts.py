"""Rollouts: the same tokens in any company, log-probabilities that training finds again."""

import dataclasses

import numpy as np
import pytest

import minitorch as mt
from minitorch import modes, rl
from minitorch.errors import ConfigError
from minitorch.random import Generator
from models import rollouts
from models.deepseek import DeepseekV2Config
from models.generate import generate
from models.gpt2 import GPT2Config
from models.llama import LlamaConfig
from models.minimax import MiniMaxConfig
from models.mistral import MistralConfig
from models.qwen import Qwen2Config
from models.sampling import Sampler

FAMILIES = [GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, DeepseekV2Config, MiniMaxConfig]
PROMPTS = [[3, 1, 4], [1, 5], [9, 2, 6, 5], [3], [5, 8, 9], [7, 9, 3, 2, 3], [8]]
GREEDY, PLAIN = Sampler(temperature=0), Sampler(temperature=1.3)
END = 0


def build(family, dtype=np.float64):
    config = family.sized(vocab_size=11, layers=2, heads=2, width=16, positions=40)
    model = config.build(np.dtype(dtype), Generator(1))
    with mt.no_grad():
        for param in model.parameters():  # far from the even distribution of a fresh model
            param.mul_(4.0 if param.ndim > 1 else 1.0)
    return model


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.model_type)
def any_model(request):
    return build(request.param)


@pytest.fixture(scope="module")
def model():
    return build(LlamaConfig)


def write(model, begun, max_tokens=12, sampler=PLAIN, stop_ids=(END,), **options):
    return rollouts.extend(
        model,
        begun,
        max_tokens=max_tokens,
        sampler=sampler,
        seed=5,
        stop_ids=stop_ids,
        **options,
    )


def same(one, two):
    """Whether rollouts agree, the last bits of their log-probabilities aside."""
    assert [dataclasses.replace(r, log_probs=()) for r in one] == [
        dataclasses.replace(r, log_probs=()) for r in two
    ]
    for a, b in zip(one, two):
        np.testing.assert_allclose(a.log_probs, b.log_probs, rtol=0, atol=1e-10)
    return True


def test_greedy_rollouts_are_what_generate_writes_one_by_one(any_model):
    for rollout in write(any_model, rollouts.begin(PROMPTS), sampler=GREEDY, places=3):
        alone = generate(
            any_model,
            rollout.prompt_ids,
            max_tokens=12,
            sampler=GREEDY,
            generator=Generator(0),
            stop_ids=(END,),
        )
        ids = [token for token, _ in alone]
        assert list(rollout.completion_ids) == ids + [END] * rollout.finished
        assert rollout.finished == (len(ids) < 12)
        assert not any(rollout.log_probs)


def test_nothing_depends_on_the_company(any_model):
    begun = rollouts.begin(PROMPTS, samples=3)
    together = write(any_model, begun)
    assert len({r.completion_ids for r in together}) > len(PROMPTS)
    assert 0 < sum(r.finished for r in together) < len(together)
    assert same(together, write(any_model, begun, places=4))
    assert same(together, [r for one in begun for r in write(any_model, [one])])


def test_a_rollout_that_was_cut_off_goes_on(any_model):
    begun = rollouts.begin(PROMPTS, samples=2)
    cut = write(any_model, begun, max_tokens=5)
    left = [12 - len(r.completion_ids) for r in cut]
    assert same(write(any_model, begun), write(any_model, cut, max_tokens=left, places=5))


def test_the_log_probabilities_are_those_of_training(any_model):
    assert _distance(any_model, PLAIN) < 1e-13


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_in_float32_they_differ_by_rounding(family):
    assert _distance(build(family, np.float32), PLAIN) < 1e-5


def _distance(model, sampler):
    """The most that a token's log-probability differs from what training computes for it."""
    worst = 0.0
    for rollout in write(model, rollouts.begin(PROMPTS, samples=4), sampler=sampler):
        ids = mt.tensor([rollout.ids])
        logits, _ = model(ids[:, :-1])
        found = rl.token_log_probs(logits, ids[:, 1:], temperature=sampler.temperature)
        found = found.detach().numpy()[0, len(rollout.prompt_ids) - 1 :]
        worst = max(worst, np.abs(found - rollout.log_probs).max())
    return worst


def test_tokens_are_drawn_as_often_as_they_are_likely(model):
    drawn = write(model, rollouts.begin([[3, 1, 4]], samples=4000), max_tokens=1)
    counts = np.bincount([r.completion_ids[0] for r in drawn], minlength=11)
    with mt.no_grad():
        logits, _ = model(mt.tensor([[3, 1, 4]]))
    probs = PLAIN.probabilities(logits.numpy()[:, -1])[0]
    expected = 4000 * probs
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 29.6  # 99.9 % of the distribution with 10 degrees of freedom


def test_the_end_token_is_in_the_mask_and_what_is_told_is_not(model):
    first = write(model, rollouts.begin(PROMPTS), stop_ids=(2, 3, 4))
    told = [r.told([6, 6]) for r in first]
    second = write(model, told, max_tokens=4, stop_ids=(2, 3, 4))
    for a, b in zip(first, second):
        length = len(a.completion_ids)
        assert all(a.mask)
        assert len(a.mask) == length == len(a.log_probs)
        if a.finished:
            assert a.completion_ids[-1] in (2, 3, 4)
        assert b.completion_ids[:length] == a.completion_ids
        assert b.completion_ids[length : length + 2] == (6, 6)
        assert b.mask[length : length + 3] == (False, False, True)
        assert b.log_probs[length : length + 2] == (0.0, 0.0)
    assert any(r.finished for r in first)


def test_penalties_see_each_text_alone(model):
    penalised = Sampler(temperature=0, repetition_penalty=1.5, presence_penalty=2.0)
    begun = rollouts.begin(PROMPTS)
    cut = write(model, begun, max_tokens=4, sampler=penalised)
    left = [12 - len(r.completion_ids) for r in cut]
    whole = write(model, begun, sampler=penalised, places=2)
    assert same(whole, write(model, cut, max_tokens=left, sampler=penalised))
    for rollout in whole:
        alone = generate(
            model,
            rollout.prompt_ids,
            max_tokens=len(rollout.completion_ids),
            sampler=penalised,
            generator=Generator(0),
        )
        assert [token for token, _ in alone] == list(rollout.completion_ids)


def test_ids_beyond_the_vocabulary_are_never_drawn(model):
    drawn = write(model, rollouts.begin(PROMPTS, samples=20), vocab_size=6)
    assert max(token for r in drawn for token in r.completion_ids) == 5


def test_seeds_and_numbers_decide(model):
    begun = rollouts.begin(PROMPTS, samples=4)
    again = rollouts.begin(PROMPTS, samples=4, first=1000)
    assert [r.number for r in again][:2] == [1000, 1001]
    one, two = write(model, begun), write(model, again)
    assert [r.completion_ids for r in one] != [r.completion_ids for r in two]


def test_nothing_to_do(model):
    assert write(model, []) == []
    begun = rollouts.begin(PROMPTS)
    assert write(model, begun, max_tokens=0) == begun
    done = [r.wrote([END], [0.0], True) for r in begun]
    assert write(model, done) == done


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([[1], []], "rollout 1 has 0"), ([[1] * 29], "texts of 1 to 28 tokens.*has 29")],
)
def test_prompts_that_do_not_fit(model, prompts, message):
    with pytest.raises(ConfigError, match=message):
        write(model, rollouts.begin(prompts))


class _Counter:
    """Counts operations."""

    def __init__(self):
        self.count = 0

    def call(self, primitive, inputs, meta, run):
        self.count += 1
        return run()


def test_a_token_costs_few_operations(model):
    counts = []
    for tokens in (4, 5):
        with modes.observe(_Counter()) as counter:
            write(model, rollouts.begin(PROMPTS), tokens, stop_ids=())
        counts.append(counter.count)
    layers, around = 2, 4  # the embedding, the last norm, the newest column, the head
    assert counts[1] - counts[0] <= 23 * layers + around
