"""`minitorch chat`: questions from standard input, a talk that is kept and cut to the context."""

import numpy as np
import pytest
from click.testing import CliRunner

from minitorch.errors import ConfigError
from minitorch.random import Generator
from minitorch.tokenizers import ByteTokenizer
from models.chat import Message, render_prompt, with_template
from models.cli import main
from models.commands import chat as command
from models.commands.chat import fitting
from models.families import FAMILIES

TOKENIZER = with_template(ByteTokenizer(), "turns")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    sizes = FAMILIES["gpt2"].sized(
        vocab_size=TOKENIZER.vocab_size, layers=1, heads=2, width=16, positions=64
    )
    sizes.build(np.float32, Generator(1)).save_pretrained(path)
    TOKENIZER.save(path / "tokenizer.json")
    return path


def talk(folder, text, *options):
    arguments = ["chat", "--checkpoint", str(folder), "--max-tokens", "5", *options]
    return CliRunner().invoke(main, arguments, input=text)


def test_every_question_is_answered_the_same_for_a_seed(folder):
    result = talk(folder, "Hi\n\nAnd now?\n")
    assert result.exit_code == 0
    assert result.stdout == talk(folder, "Hi\nAnd now?\n").stdout
    assert result.stdout != talk(folder, "Hi\nAnd now?\n", "--seed", "1").stdout


def test_what_was_said_is_kept_until_it_is_forgotten(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(command, "_answer", lambda m, t, said, *_: asked.append(said) or "A")
    talk(folder, "one\ntwo\n/forget\nthree\n", "--system", "S")
    contents = [[message.content for message in said] for said in asked]
    assert contents == [["S", "one"], ["S", "one", "A", "two"], ["S", "three"]]


def test_the_oldest_questions_go_first():
    said = [Message("system", "S")]
    for number in range(4):
        said += [Message("user", f"question {number}"), Message("assistant", "yes")]
    said.append(Message("user", "last"))
    room = len(render_prompt([said[0], *said[5:]], TOKENIZER))
    assert fitting(said, TOKENIZER, room + 1) == [said[0], *said[5:]]
    assert fitting(said, TOKENIZER, room) == [said[0], *said[7:]]
    assert fitting(said, TOKENIZER, 1000) == said
    with pytest.raises(ConfigError, match="longer than the model's context of 5 tokens"):
        fitting(said, TOKENIZER, 5)


def test_ctrl_c_ends_the_answer_and_not_the_talk(folder, monkeypatch):
    def interrupted(*_, **__):
        yield 65, -1.0
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "generate", interrupted)
    result = talk(folder, "one\ntwo\n")
    assert result.exit_code == 0
    assert result.stdout == "A …\nA …\n"


def test_a_model_that_cannot_answer_says_so(folder, tmp_path):
    sizes = FAMILIES["gpt2"].sized(vocab_size=256, layers=1, heads=2, width=8, positions=8)
    sizes.build(np.float32, Generator(1)).save_pretrained(tmp_path)
    ByteTokenizer().save(tmp_path / "tokenizer.json")
    result = talk(tmp_path, "Hi\n")
    assert result.exit_code == 1
    assert "train with `minitorch sft`, which adds them" in result.stderr
    result = talk(folder, "a" * 100 + "\n")
    assert "the question is longer than the model's context of 64 tokens" in result.stderr
