"""Corpora, token files and the loader: what is read, what is refused, and exact resumption."""

import functools
import hashlib
import http.server
import json
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitorch.data import (
    BatchLoader,
    download,
    embedded_text,
    load_text,
    open_tokens,
    sequential_batches,
    split_tokens,
    write_tokens,
)
from minitorch.errors import ConfigError, DataError


def test_the_embedded_corpus_is_text_without_repetitions():
    text = embedded_text()
    assert text == load_text("embedded")
    assert 200_000 < len(text) < 1_000_000
    paragraphs = [p for p in text.split("\n\n") if len(p) > 400]
    assert len(set(paragraphs)) > 0.97 * len(paragraphs)


def test_a_stripped_python_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="stripped of its documentation"):
        embedded_text()


def test_files_and_folders(tmp_path):
    (tmp_path / "b.txt").write_text("second", encoding="utf-8")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.md").write_bytes(b"\xef\xbb\xbffirst \xc3\xa9")
    (tmp_path / "image.bin").write_bytes(b"\x00\xff")
    (tmp_path / ".hidden").write_text("no", encoding="utf-8")
    assert load_text(tmp_path) == "first é\n\nsecond"
    assert load_text(tmp_path / "b.txt") == "second"


def test_bad_text_is_refused_with_its_place(tmp_path):
    (tmp_path / "latin").write_bytes(b"abc\xe9")
    with pytest.raises(DataError, match="latin is not UTF-8: byte 3 is 0xe9"):
        load_text(tmp_path / "latin")
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(DataError, match="holds no text"):
        load_text(tmp_path / "empty")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        load_text(tmp_path / "absent")
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="holds no text files"):
        load_text(tmp_path / "void")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "text.txt").write_text("from the network")
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()


def test_download_is_checked_cached_and_whole_or_absent(server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checksum = hashlib.sha256(b"from the network").hexdigest()
    assert load_text(f"{server}text.txt#sha256={checksum}") == "from the network"
    seen = []
    path = download(f"{server}text.txt", checksum, tmp_path / "c", lambda *p: seen.append(p))
    assert seen == [(16, 16)]
    assert download("http://127.0.0.1:1/text.txt", checksum, tmp_path / "c") == path
    wrong = "0" * 64
    with pytest.raises(DataError, match=f"has SHA-256 {checksum}, not {wrong}"):
        download(f"{server}text.txt", wrong, tmp_path / "d")
    assert list((tmp_path / "d").iterdir()) == []
    with pytest.raises(DataError, match="cannot download"):
        download(f"{server}absent", checksum, tmp_path / "d")
    with pytest.raises(DataError, match="needs its checksum"):
        load_text(f"{server}text.txt")


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_token_files_round_trip(tmp_path_factory, ids):
    path = tmp_path_factory.mktemp("tokens") / "t.bin"
    write_tokens(path, ids)
    back = open_tokens(path)
    assert back.tolist() == ids
    assert back.dtype.itemsize == (2 if not ids or max(ids) < 65536 else 4)


def test_damaged_token_files_are_refused(tmp_path):
    path = tmp_path / "t.bin"
    write_tokens(path, [1, 2, 3])
    whole = path.read_bytes()
    for damaged, message in [
        (whole[:-1], "promises 3 ids"),
        (whole[:10], "not a token file"),
        (b"x" * 40, "not a token file"),
        (whole[:16] + b"\xff" * 8 + whole[24:], "is damaged"),
    ]:
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=message):
            open_tokens(path)
    with pytest.raises(DataError, match="not negative"):
        write_tokens(path, [-1])


def test_an_epoch_visits_every_block_once():
    ids = np.arange(1000)
    loader = BatchLoader(ids, batch_size=3, block_size=7, seed=5)
    blocks = len(loader._starts)
    inputs = np.concatenate([next(loader)[0] for _ in range(blocks // 3)])
    assert len(np.unique(inputs)) == inputs.size > 970
    assert loader.epoch == 0
    first, second = BatchLoader(ids, 3, 7, 5), BatchLoader(ids, 3, 7, 6)
    assert not np.array_equal(next(first)[0], next(second)[0])


@given(st.integers(0, 60), st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**64))
def test_resumption_is_exact(done, batch_size, block_size, seed):
    ids = np.arange(41, dtype=np.uint16)
    loader = BatchLoader(ids, batch_size, block_size, seed)
    for _ in range(done):
        inputs, targets = next(loader)
        assert np.array_equal(inputs + 1, targets)
        assert inputs.shape == (batch_size, block_size)
    resumed = BatchLoader(ids, batch_size, block_size, seed=0)
    resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    for _ in range(12):
        for a, b in zip(next(loader), next(resumed)):
            assert np.array_equal(a, b)


def test_states_and_sizes_that_do_not_fit_are_refused():
    loader = BatchLoader(np.arange(50), 2, 4)
    before = loader.state_dict()
    for state in (
        {},
        {"seed": 0, "epoch": 0, "position": 99},
        {"seed": 0, "epoch": -1, "position": 0},
    ):
        with pytest.raises(ConfigError, match="loader"):
            loader.load_state_dict(state)
        assert loader.state_dict() == before
    with pytest.raises(DataError, match="need 51 tokens; the text has 50"):
        BatchLoader(np.arange(50), 2, 50)
    with pytest.raises(ConfigError, match="at least 1"):
        BatchLoader(np.arange(50), 0, 4)


def test_split_and_evaluation_cover_the_text():
    ids = np.arange(103)
    train, val = split_tokens(ids, 0.2, 4)
    assert np.array_equal(np.concatenate([train, val]), ids)
    seen = np.concatenate([x.reshape(-1) for x, _ in sequential_batches(val, 2, 4)])
    assert np.array_equal(seen, val[:20])
    some = [x for x, _ in sequential_batches(train, 2, 4, max_tokens=20)]
    assert sum(x.size for x in some) == 20
    with pytest.raises(DataError, match="validation part of the text has 10 tokens"):
        split_tokens(ids, 0.1, 10)
