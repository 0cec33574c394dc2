"""`minitorch train` as its users meet it: files, messages, exit codes, and every interruption."""

import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from minitorch.io import load_safetensors
from minitorch.kernels.cuda.extension import is_available
from models import checkpoints
from models.config import TrainConfig
from models.families import FAMILIES
from models.runlog import read_log
from models.training import Run

TIMINGS = ("tokens_per_second", "elapsed", "peak_memory")


def final_weights(out):
    """The model's tensors at the last step, and all that training keeps beside them."""
    path = checkpoints.newest(out)
    assert path.name == "step-00000006"
    model, _ = load_safetensors(path / "model.safetensors")
    return {**model, **checkpoints.load(path).arrays}


def untimed_log(out):
    rows = read_log(out / "log.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def assert_same_run(out, other):
    ours, theirs = final_weights(out), final_weights(other)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], name)
    assert untimed_log(out) == untimed_log(other)


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def at_step(monkeypatch):
    """at_step(n, action): action is called at the beginning of the step after n steps."""

    def arrange(step, action):
        train_step = Run.train_step

        def patched(run):
            if run.step == step:
                action()
            return train_step(run)

        monkeypatch.setattr(Run, "train_step", patched)

    return arrange


def test_a_run_leaves_model_log_picture_and_sample(cli, tiny, tmp_path, text_file):
    out = tmp_path / "run"
    result = cli(*tiny, "--seed", 5, "--out", out, "--json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    rows = read_log(out / "log.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row in rows:
        assert {"step", "train_loss", "val_loss", "tokens_per_second"} <= row.keys()
        assert all(np.isfinite(value) for value in row.values())
    assert summary["val_loss"] == rows[-1]["val_loss"]
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "sample.txt").read_text(encoding="utf-8") == summary["sample"] != ""
    config = TrainConfig.resolve(file=out / "config.toml")
    assert (config.seed, config.n_embd, config.data) == (5, 16, str(text_file))
    assert (checkpoints.newest(out) / "tokenizer.json").is_file()
    assert summary["checkpoint"] == str(checkpoints.newest(out))
    assert "val " in result.stderr  # the progress is not in the way of the JSON


def test_a_file_gets_no_moving_lines(cli, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in cli(*tiny, "--out", tmp_path / "run").output


def test_bits_per_byte_do_not_depend_on_the_tokenizer(cli, tiny, tmp_path, text_file):
    text_file.write_text("äö ü" * 300, encoding="utf-8")
    for tokenizer, per_byte in (("char", 4 / 7), ("byte", 1.0)):  # three of four take two bytes
        out = tmp_path / tokenizer
        assert cli(*tiny, "--set", f"tokenizer={tokenizer}", "--out", out).exit_code == 0
        row = read_log(out / "log.jsonl")[-1]
        expected = row["val_loss"] / np.log(2) * per_byte
        assert row["bits_per_byte"] == pytest.approx(expected, rel=0.02)


def test_without_out_each_run_has_its_own_folder(cli, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("nano", "nano-2"):
        assert cli(*tiny).exit_code == 0
        assert (tmp_path / "runs" / name / "loss.png").is_file()


def test_tensorboard_files_are_written(cli, tiny, tmp_path):
    pytest.importorskip("tensorboardX", reason="not installed: pip install -e .[test]")
    assert cli(*tiny, "--out", tmp_path / "run").exit_code == 0
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"train_loss" in events.read_bytes()


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_saves_and_says_how_to_go_on(
    cli, tiny, tmp_path, whole, at_step, monkeypatch, number, code
):
    out = tmp_path / "run"
    with monkeypatch.context():
        at_step(3, lambda: os.kill(os.getpid(), number))
        result = cli(*tiny, "--out", out)
    assert result.exit_code == code
    assert f"go on with: minitorch train --resume {out}" in result.output
    assert checkpoints.newest(out).name == "step-00000004"
    assert cli("train", "--resume", out).exit_code == 0
    assert_same_run(out, whole)


def test_the_way_to_go_on_can_be_pasted(cli, tiny, tmp_path, monkeypatch):
    program = tmp_path / "my venv" / "minitorch"  # not activated, so not on the PATH
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(program), "train"])
    out = tmp_path / "my run"
    result = cli(*tiny, "--out", out)
    assert f"more of it: '{program}' sample --checkpoint '{out}'" in result.output
    monkeypatch.setenv("PATH", str(program.parent))
    result = cli("train", "--resume", out)
    assert f"more of it: minitorch sample --checkpoint '{out}'" in result.output


def test_a_setting_used_as_an_option_is_told_how(cli, tmp_path):
    for option, key in (("--steps", "steps"), ("--learning-rate=1", "learning_rate")):
        result = cli("train", option, "5", "--out", tmp_path / "run")
        assert result.exit_code == 2
        assert f"it is a setting: --set {key}=VALUE" in result.stderr
    assert "Did you mean" in cli("train", "--sed", "5").stderr


@pytest.fixture
def ctrl_c():
    """SIGINT as a terminal's program has it; a shell's background job ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_does_not_wait(cli, tiny, tmp_path, at_step):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second Ctrl-C did not act")

    at_step(3, twice)
    result = cli(*tiny, "--out", tmp_path / "run")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert checkpoints.newest(tmp_path / "run").name == "step-00000002"


def test_an_ignored_ctrl_c_stays_ignored(cli, tiny, tmp_path, at_step, ctrl_c):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    at_step(3, lambda: signal.raise_signal(signal.SIGINT))
    assert cli(*tiny, "--out", tmp_path / "run").exit_code == 0


KILLED = """
import os, signal, sys
from models.training import Run
def kill(run, *_, method=getattr(Run, sys.argv[1])):
    if run.step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return method(run, *_)
setattr(Run, sys.argv[1], kill)
from models.cli import main
main(sys.argv[3:])
"""


@pytest.mark.parametrize(
    ("method", "step"),
    [("train_step", 3), ("export", 4)],
    ids=["while training", "while a checkpoint is being written"],
)
def test_kill_9_loses_only_what_came_after_the_checkpoint(cli, tiny, tmp_path, whole, method, step):
    out = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, method, str(step), *tiny, "--out", str(out)]
    result = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    assert [path.name for path in checkpoints.steps(out / "checkpoints")] == ["step-00000002"]
    assert cli("train", "--resume", out).exit_code == 0
    assert_same_run(out, whole)
    assert not list(out.glob("checkpoints/.*"))


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_a_terminal(tiny, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "models.cli", *tiny, "--set", "steps=100000"]
    process = subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = iter(process.stdout.readline, "")
    assert any(line.startswith("step      4") for line in lines)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"minitorch train --resume {out}" in rest
    checkpoints.load(checkpoints.newest(out))


def test_a_finished_run_can_be_prolonged(cli, whole):
    assert cli("train", "--resume", whole).exit_code == 0  # nothing left to do
    assert cli("train", "--resume", whole, "--set", "steps=8").exit_code == 0
    assert [row["step"] for row in read_log(whole / "log.jsonl")] == [2, 4, 6, 8]
    assert TrainConfig.resolve(file=whole / "config.toml").steps == 8
    result = cli("train", "--resume", whole, "--set", "steps=7")
    assert result.exit_code == 1
    assert "steps: this run has done 8 already; got 7" in result.stderr


def test_a_full_disk_stops_with_the_last_good_checkpoint(
    cli, tiny, tmp_path, whole, at_step, monkeypatch
):
    out = tmp_path / "run"

    def fill():
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "fsync", full)

    with monkeypatch.context() as patch:
        at_step(3, fill)
        result = cli(*tiny, "--out", out)
    assert result.exit_code == 1
    assert "error: " in result.stderr
    assert "No space left on device" in result.stderr
    assert "The last good checkpoint is" in result.stderr
    assert checkpoints.newest(out).name == "step-00000002"
    monkeypatch.undo()
    assert cli("train", "--resume", out).exit_code == 0
    assert_same_run(out, whole)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, on the way to infinity
def test_divergence_stops_with_the_last_good_checkpoint(cli, tiny, tmp_path, whole):
    spoilt = ("--set", "learning_rate=1e30", "--set", "steps=50")
    fresh = cli(*tiny, *spoilt, "--set", "optimizer=sgd", "--out", tmp_path / "run")
    assert "No checkpoint has been saved yet" in fresh.stderr
    resumed = cli("train", "--resume", whole, *spoilt, "--set", "muon_learning_rate=1e30")
    assert (
        f"with a lower learning rate or grad_clip, go on with: minitorch train --resume {whole}"
        in (resumed.stderr)
    )
    for result in (fresh, resumed):
        assert result.exit_code == 1
        assert "error: step " in result.stderr
        assert "loss is nan" in result.stderr
    final_weights(whole)


def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(cli, tiny, tmp_path, whole):
    out = tmp_path / "run"
    assert cli(*tiny, "--out", out).exit_code == 0
    damaged = checkpoints.newest(out)
    path = damaged / "training.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    before = contents(out)
    for command in (("train", "--resume", out), ("sample", "--checkpoint", out)):
        result = cli(*command)
        assert result.exit_code == 1
        assert "training.safetensors is not as it was written" in result.stderr
        assert "delete this folder to go on from step-00000004" in result.stderr
    assert contents(out) == before
    (damaged / "checkpoint.json").write_text("{")
    result = cli("train", "--resume", out)
    assert "checkpoint.json cannot be read; delete this folder to go on from" in result.stderr
    for file in damaged.iterdir():
        file.unlink()
    damaged.rmdir()
    assert cli("train", "--resume", out).exit_code == 0
    assert_same_run(out, whole)


def test_a_folder_that_holds_a_run_is_not_written_over(cli, tiny, whole, text_file):
    before = contents(whole)
    result = cli(*tiny, "--out", whole)
    assert result.exit_code == 1
    assert f"go on with it by --resume {whole}, replace it by --overwrite" in result.stderr
    # Not by --overwrite either, where the new run cannot begin.
    text_file.write_bytes(b"caf\xe9")
    assert cli(*tiny, "--out", whole, "--overwrite").exit_code == 1
    assert contents(whole) == before


def test_overwrite_replaces_the_run_and_nothing_else(cli, tiny, whole):
    (whole / "notes.txt").write_text("mine")
    assert cli(*tiny, "--out", whole, "--overwrite", "--set", "steps=4").exit_code == 0
    assert checkpoints.newest(whole).name == "step-00000004"
    assert (whole / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--stepz", "3"], 2, "No such option '--stepz'"),
        (["--sed", "3"], 2, "Did you mean"),
        (["--preset", "nanno"], 2, "'nanno' is not one of"),
        (["--seed", "x"], 2, "'x' is not a valid integer"),
        (["--set", "stepz=3"], 1, "unknown 'stepz'; did you mean 'steps'?"),
        (["--set", "steps"], 1, "--set steps: expected key=value"),
        (["--set", "n_head=3"], 1, "3 heads do not divide n_embd = 16; n_head could be 2"),
        (
            ["--set", "tokenizer=chars"],
            1,
            "tokenizer: expected char, byte, bpe or a",
        ),
        (["--set", "block_size=5000"], 1, "a smaller block_size"),
        (["--config", "absent.toml"], 1, "absent.toml: no such configuration file"),
        (["--data", "absent.txt"], 1, "absent.txt"),
        (["--data", "https://localhost/x"], 1, "checksum"),
        (["--resume", "absent"], 1, "absent does not exist; give a folder"),
        (["--resume", "x", "--preset", "baby"], 2, "--resume takes the settings of the run"),
    ],
)
def test_bad_arguments(cli, tiny, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    base = ["train"] if "--resume" in arguments else tiny
    result = cli(*base, *arguments)
    assert result.exit_code == code
    assert "error: " in result.stderr
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9 au lait" * 100, "is not UTF-8"),
        (b"", "holds no text"),
        (b"short", "a block of 8 and its targets need 9"),
    ],
)
def test_bad_texts(cli, tiny, tmp_path, text_file, content, message):
    text_file.write_bytes(content)
    result = cli(*tiny, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_what_a_run_depends_on_cannot_be_changed_in_the_middle(cli, whole):
    result = cli("train", "--resume", whole, "--set", "n_layer=3")
    assert result.exit_code == 1
    assert "n_layer: this run has 2 and cannot be resumed with 3" in result.stderr
    result = cli("train", "--resume", checkpoints.newest(whole))
    assert f"give the folder of the run, {whole}" in result.stderr


def test_all_settings_can_be_listed(cli):
    result = cli("train", "--settings")
    assert result.exit_code == 0
    for name in TrainConfig.resolve().__dict__:
        assert f"\n{name} " in result.stdout


def test_a_device(cli, tiny, tmp_path):
    if not is_available("simt"):
        pytest.skip("minitorch._simt was not built: no C++20 compiler")
    out = tmp_path / "run"
    assert cli(*tiny, "--device", "simt", "--out", out).exit_code == 0
    assert TrainConfig.resolve(file=out / "config.toml").device == "simt"
    sampled = [
        cli("sample", "--checkpoint", out, "--max-tokens", 9, "--device", device).stdout
        for device in ("cpu", "simt")
    ]
    assert sampled[0] == sampled[1] != ""
    result = cli("train", "--resume", out, "--set", "steps=8", "--device", "cpu")
    assert result.exit_code == 0
    assert read_log(out / "log.jsonl")[-1]["step"] == 8


def test_a_device_that_is_not_there(tiny, tmp_path):
    command = [
        sys.executable,
        "-m",
        "models.cli",
        *tiny,
        "--device",
        "cuda",
        "--out",
        tmp_path / "x",
    ]
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=os.environ | hidden, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: device 'cuda': ")
    assert not (tmp_path / "x").exists()


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gpt2"])
def test_every_family_can_be_trained_interrupted_and_sampled(cli, tiny, tmp_path, at_step, family):
    arguments = [*tiny, "--model", family, "--out"]
    assert cli(*arguments, tmp_path / "whole").exit_code == 0
    at_step(3, lambda: signal.raise_signal(signal.SIGINT))
    assert cli(*arguments, tmp_path / "stopped").exit_code == 130
    at_step(99, lambda: None)
    assert cli("train", "--resume", tmp_path / "stopped").exit_code == 0
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    result = cli("sample", "--checkpoint", tmp_path / "whole", "--max-tokens", 12)
    assert len(result.stdout) == 13
    title = FAMILIES[family].sized(vocab_size=9, layers=1, heads=2, width=8, positions=8).title
    assert title in cli("train", "--resume", tmp_path / "whole", "--set", "steps=7").stdout


def test_dropout_is_of_gpt2(cli, tiny, tmp_path):
    result = cli(*tiny, "--model", "llama", "--set", "dropout=0.1", "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "Set dropout=0" in result.stderr
