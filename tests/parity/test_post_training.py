"""Fine-tuning and preferences: the losses of recipes are those that transformers' models give."""

import json

import numpy as np
import pytest

from minitorch.random import Generator
from minitorch.tokenizers import CharTokenizer
from models.families import FAMILIES
from models.recipes.dpo import DPO, DPOConfig
from models.recipes.sft import SFT, SFTConfig

REASON = "peer not installed: pip install -e .[peers]"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)

LETTERS = "abcdefgh="


@pytest.fixture(params=["llama", "gpt2", "qwen2"])
def folder(request, tmp_path):
    sizes = FAMILIES[request.param].sized(
        vocab_size=len(LETTERS) + 1, layers=2, heads=2, width=16, positions=32
    )
    sizes.build(np.float32, Generator(3)).save_pretrained(tmp_path)
    CharTokenizer(sorted(LETTERS), ["<|endoftext|>"]).save(tmp_path / "tokenizer.json")
    return tmp_path


def write(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def theirs(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def tokens(model_tokenizer, prompt, answer):
    """A question and its answer with the end token, and where the answer begins."""
    ids = model_tokenizer.encode(prompt)
    end = model_tokenizer.special_tokens["<|endoftext|>"]
    return [*ids, *model_tokenizer.encode(answer), end], len(ids)


def test_the_loss_of_answers_is_that_of_labels(folder):
    rows = [
        {"prompt": "ab=", "completion": "ba"},
        {"prompt": "c=", "completion": "c"},
        {"prompt": "dabc=", "completion": "cbad"},
        {"prompt": "ha=", "completion": "a"},
    ]
    recipe = SFT(
        SFTConfig(model=str(folder), data=write(folder, rows), template="plain", batch_size=3)
    )
    peer, total, count = theirs(folder), 0.0, 0
    for row in recipe.rows:
        if row in recipe.validation:
            continue
        ids, start = tokens(recipe.tokenizer, row.fields["prompt"], row.fields["completion"])
        labels = [-100] * start + ids[start:]
        loss = peer(torch.tensor([ids]), labels=torch.tensor([labels])).loss
        total, count = total + loss.item() * (len(ids) - start), count + len(ids) - start
    metrics = recipe.train_step()
    assert metrics["tokens"] == count
    assert metrics["loss"] == pytest.approx(total / count, rel=1e-5)


def test_reference_log_probs_are_sums_over_answers(folder):
    rows = [{"prompt": f"{c}=", "chosen": "abc", "rejected": "hg"} for c in "abcd"]
    recipe = DPO(DPOConfig(model=str(folder), data=write(folder, rows), batch_size=2))
    peer = theirs(folder)
    for pair in [*recipe.training, *recipe.validation]:
        for answer, known in zip(pair.answers, pair.reference, strict=True):
            ids = torch.tensor(answer.ids)
            with torch.no_grad():
                log_probs = peer(ids[None]).logits[0].log_softmax(-1)
            start = 2  # after the letter and "="
            expected = log_probs[range(start - 1, len(ids) - 1), ids[start:]].sum()
            assert known == pytest.approx(expected.item(), rel=1e-5)
