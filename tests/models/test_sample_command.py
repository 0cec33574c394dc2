"""`minitorch sample`: what it prints, from where it loads, and what it refuses."""

import json
import shutil

import pytest

from models import checkpoints

SHORT = ("--max-tokens", 12)


def test_text_follows_the_prompt_and_the_seed_decides(cli, whole):
    def text(*options):
        result = cli("sample", "--checkpoint", whole, "--prompt", "3 times", *SHORT, *options)
        assert result.exit_code == 0
        return result.stdout

    assert text().startswith("3 times")
    assert len(text()) == len("3 times") + 12 + 1
    assert text("--seed", 4) == text("--seed", 4) != text("--seed", 5)
    greedy = ("--temperature", 0)
    assert text(*greedy, "--seed", 4) == text(*greedy, "--seed", 5) == text("--top-k", 1)


def test_json_holds_tokens_and_their_log_probabilities(cli, whole):
    result = cli("sample", "--checkpoint", whole, "--num-samples", 2, "--json", *SHORT)
    first, second = map(json.loads, result.stdout.splitlines())
    assert (first["sample"], second["sample"]) == (0, 1)
    assert first["text"] != second["text"]
    assert len(first["tokens"]) == len(first["log_probs"]) == len(first["text"]) == 12
    assert all(value <= 0 for value in first["log_probs"])
    assert first["checkpoint"] == str(checkpoints.newest(whole))


def test_a_run_a_checkpoint_and_a_copy_elsewhere_are_the_same_model(cli, whole, tmp_path):
    checkpoint = checkpoints.newest(whole)
    copy = tmp_path / "hugging-face"
    copy.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(checkpoint / name, copy)
    outputs = [
        cli("sample", "--checkpoint", path, *SHORT).stdout for path in (whole, checkpoint, copy)
    ]
    assert outputs[0] == outputs[1] == outputs[2] != ""


def test_without_checkpoint_the_newest_run_is_taken(cli, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli("sample")
    assert result.exit_code == 1
    assert "no run in runs/ yet; train one with `minitorch train`" in result.stderr
    shutil.copytree(whole, tmp_path / "runs" / "nano")
    assert cli("sample", *SHORT).exit_code == 0
    assert cli("sample", "--best", *SHORT).exit_code == 0


def test_stop_ends_the_text(cli, whole):
    options = ("--checkpoint", whole, "--max-tokens", 200, "--json", "--temperature", 2)
    whole_text = json.loads(cli("sample", *options).stdout)["text"]
    stop = whole_text[20:22]
    stopped = json.loads(cli("sample", *options, "--stop", stop).stdout)["text"]
    assert stopped == whole_text[: whole_text.index(stop)]


def test_a_folder_without_a_model_says_what_a_model_is(cli, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    result = cli("sample", "--checkpoint", tmp_path)
    assert result.exit_code == 1
    message = " ".join(result.stderr.split())
    assert "holds neither config.json nor a checkpoint" in message
    assert "as Hugging Face lays one out" in message


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--prompt", "§"], 1, "the character '§'"),
        (["--temperature", "-1"], 1, "temperature: expected 0 (greedy) or more; got -1.0"),
        (["--top-p", "0"], 1, "top_p: expected more than 0"),
        (["--stop", ""], 1, "--stop: expected a text"),
        (["--checkpoint", "absent"], 1, "absent does not exist; give the folder"),
        (["--num-samples", "0"], 2, "0 is not in the range x>=1"),
        (["--top_k", "3"], 2, "'--top-k'"),
    ],
)
def test_bad_arguments(cli, whole, options, code, message):
    result = cli("sample", "--checkpoint", whole, *options)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())


def test_a_tokenizer_of_another_model_is_refused(cli, whole):
    from minitorch.tokenizers import ByteTokenizer

    folder = checkpoints.newest(whole)
    ByteTokenizer().save(folder / "tokenizer.json")
    (folder / "checkpoint.json").unlink()  # which knows the file as it was
    result = cli("sample", "--checkpoint", folder)
    assert result.exit_code == 1
    assert "do not belong together" in result.stderr
