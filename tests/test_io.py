"""Files are whole or absent, and nothing that a file says is believed before it is checked."""

import builtins
import contextlib
import errno
import json
import os
import stat

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minitorch.errors import CheckpointError, DtypeError
from minitorch.io import (
    atomic_write,
    load_safetensors,
    map_safetensors,
    read_json,
    save_safetensors,
    write_json,
)
from minitorch.tensor import Tensor

DTYPES = [
    *(np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.bool_),
    *(np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint32, np.uint16, np.uint8),
]


def assert_same(loaded, expected):
    assert loaded.keys() == expected.keys()
    for name, array in expected.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].shape == array.shape
        assert loaded[name].tobytes() == array.tobytes()  # bit for bit, NaN payloads included


@pytest.fixture
def tensors():
    generator = np.random.default_rng(0)
    arrays = {f"of.{np.dtype(d).name}": (generator.random((3, 5)) * 3).astype(d) for d in DTYPES}
    return arrays | {"scalar": np.array(2.5), "empty": np.zeros((0, 4), np.float32)}


def test_round_trip_of_every_dtype(tmp_path, tensors):
    save_safetensors(tmp_path / "m.safetensors", tensors, {"step": "7", "name": "Ωé\n"})
    loaded, metadata = load_safetensors(tmp_path / "m.safetensors")
    assert_same(loaded, tensors)
    assert metadata == {"step": "7", "name": "Ωé\n"}
    assert all(array.flags.writeable for array in loaded.values())


@given(
    st.dictionaries(
        st.text(max_size=8).filter(
            lambda s: s != "__metadata__" and s.isprintable() and s.isascii()
        ),
        st.sampled_from(DTYPES).flatmap(
            lambda dtype: st.builds(
                lambda shape, fill: np.full(shape, fill).astype(dtype),
                hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
                st.integers(0, 1),
            )
        ),
        max_size=5,
    )
)
def test_round_trip_of_any_shapes(tmp_path_factory, arrays):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save_safetensors(path, arrays)
    assert_same(load_safetensors(path)[0], arrays)
    with safetensors.safe_open(path, "numpy") as peer:
        assert set(peer.keys()) == arrays.keys()


def test_the_safetensors_package_reads_ours(tmp_path, tensors):
    save_safetensors(tmp_path / "m.safetensors", tensors, {"format": "pt"})
    with safetensors.safe_open(tmp_path / "m.safetensors", "numpy") as peer:
        assert_same({name: peer.get_tensor(name) for name in peer.keys()}, tensors)  # noqa: SIM118
        assert peer.metadata() == {"format": "pt"}


def test_we_read_the_safetensors_packages(tmp_path, tensors):
    safetensors.numpy.save_file(tensors, tmp_path / "m.safetensors", {"a": "1", "b": "2"})
    loaded, metadata = load_safetensors(tmp_path / "m.safetensors")
    assert_same(loaded, tensors)
    assert metadata == {"a": "1", "b": "2"}


def test_layout_does_not_matter(tmp_path):
    a = np.arange(24, dtype=np.float32).reshape(4, 6)
    views = {
        "transposed": a.T,
        "strided": a[::2, ::-3],
        "broadcast": np.broadcast_to(a[0], (3, 6)),
        "big-endian": a.astype(">f4"),
        "tensor": Tensor(a[1:]),
        "numpy scalar": np.float32(3),
    }
    save_safetensors(tmp_path / "v.safetensors", views)
    loaded, _ = load_safetensors(tmp_path / "v.safetensors")
    for name, view in views.items():
        expected = view.data if name == "tensor" else view
        np.testing.assert_array_equal(loaded[name], expected)


def test_the_same_tensors_give_the_same_bytes(tmp_path, tensors):
    metadata = {letter: letter for letter in "zyxabc"}
    save_safetensors(tmp_path / "a", tensors, metadata)
    backwards = dict(reversed(tensors.items()))
    save_safetensors(tmp_path / "b", backwards, dict(reversed(metadata.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_the_format_lacks_is_refused(tmp_path):
    with pytest.raises(DtypeError, match=r"'z' has dtype complex128; expected one of float64, "):
        save_safetensors(tmp_path / "m", {"z": np.zeros(2, complex)})
    with pytest.raises(CheckpointError, match="__metadata__"):
        save_safetensors(tmp_path / "m", {"__metadata__": np.zeros(2)})
    with pytest.raises(CheckpointError, match="strings; got 7"):
        save_safetensors(tmp_path / "m", {}, {"step": 7})
    assert list(tmp_path.iterdir()) == []


def damaged(header: object, data: bytes = b"\0" * 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def one(**changes):
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


BAD_FILES = {
    "empty": (b"", "0 bytes, too short"),
    "seven bytes": (b"\0" * 7, "7 bytes, too short"),
    "no header": (b"\0" * 8, "not valid JSON"),
    "text": (b"To be, or not to be, that is the question.\n" * 9, "not safetensors"),
    "zip": (b"PK\x03\x04" + b"\0" * 100, "not safetensors|not valid JSON"),
    "header longer than file": ((1 << 40).to_bytes(8, "little") + b"{}", "header of 1,099,511"),
    "largest header": (b"\xff" * 8 + b"{}", "header of 18,446,744"),
    "header cut": (damaged(one(), b"")[:-5], "truncated"),
    "not UTF-8": (damaged(b'{"\xff": 1}'), "not valid JSON"),
    "not JSON": (damaged(b"{'w': 1}"), "not valid JSON"),
    "deep JSON": (damaged(b"[" * 100_000), "not valid JSON"),
    "long number": (damaged(b"[" + b"9" * 100_000 + b"]"), "not valid JSON"),
    "a list": (damaged([]), "not a JSON object"),
    "twice": (damaged(b'{"w": 1, "w": 2}'), "occurs twice"),
    "metadata": (damaged({"__metadata__": {"a": 1}}, b""), "not an object of strings"),
    "metadata list": (damaged({"__metadata__": []}, b""), "not an object of strings"),
    "entry": (damaged({"w": 3}), "'w' is described by 3"),
    "missing key": (damaged({"w": {"dtype": "F32", "shape": [2]}}), "is described by"),
    "extra key": (damaged(one(code="x")), "is described by"),
    "dtype": (damaged(one(dtype="Q9")), "dtype Q9, expected one of F64"),
    "dtype number": (damaged(one(dtype=7)), "is described by"),
    "shape": (damaged(one(shape="ab")), "is described by"),
    "negative": (damaged(one(shape=[-2, -1])), "is described by"),
    "boolean": (damaged(one(shape=[True, 2])), "is described by"),
    "fraction": (damaged(one(shape=[2.0])), "is described by"),
    "one offset": (damaged(one(data_offsets=[8])), "is described by"),
    "reversed": (damaged(one(data_offsets=[8, 0])), "holds -8 bytes, expected 8"),
    "beyond the end": (damaged(one(shape=[9], data_offsets=[0, 36])), "truncated"),
    "wrapping": (damaged(one(shape=[2**62, 4])), "expected 73786976294838206464"),
    "huge": (damaged(one(shape=[2**40], data_offsets=[0, 2**42])), "truncated"),
    "many dimensions": (damaged(one(shape=[1] * 99 + [2])), "dimension"),
    "zero times huge": (
        damaged(one(shape=[0, 2**62, 2**62], data_offsets=[0, 0]), b""),
        "too big|too large|maximum",
    ),
    "data cut": (damaged(one(), b"\0" * 7), "truncated"),
    "data longer": (damaged(one(), b"\0" * 9), "followed by something else"),
    "hole": (damaged(one(data_offsets=[8, 16]), b"\0" * 16), "begins at 8, expected 0"),
    "overlap": (
        damaged(one() | {"v": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}),
        "begins at 4, expected 8",
    ),
    "not a boolean": (
        damaged(one(dtype="BOOL", data_offsets=[0, 2]), b"\1\2"),
        "neither 0 nor 1",
    ),
}


both_readers = pytest.mark.parametrize("load", [load_safetensors, map_safetensors])


@both_readers
@pytest.mark.parametrize("name", BAD_FILES)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, name, load):
    content, message = BAD_FILES[name]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


@both_readers
def test_every_truncation_is_noticed(tmp_path, load):
    path = tmp_path / "m.safetensors"
    save_safetensors(path, {"w": np.arange(4.0), "b": np.ones(3, bool)}, {"step": "1"})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load(path)


@pytest.mark.parametrize("odd", [0, 1, 4])
def test_mapped_is_read(tmp_path, tensors, odd):
    """Of every dtype, and where the data begin at an odd place."""
    path = tmp_path / "m.safetensors"
    save_safetensors(path, tensors, {"a": "b"})
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length] + b" " * odd, content[8 + length :]
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    mapped, metadata = map_safetensors(path)
    assert_same(mapped, tensors)
    assert metadata == {"a": "b"}
    assert all(array.flags.aligned for array in mapped.values())
    before = path.read_bytes()
    for array in mapped.values():
        array[...] = 1
    assert path.read_bytes() == before


@given(st.data())
def test_a_changed_byte_never_raises_anything_else(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    save_safetensors(path, {"w": np.arange(4.0), "b": np.ones(3, bool)}, {"step": "1"})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    read = [None, None]
    for i, load in enumerate((load_safetensors, map_safetensors)):
        with contextlib.suppress(CheckpointError):
            read[i] = load(path)[0]
    assert (read[0] is None) == (read[1] is None)
    if read[0] is not None:
        assert_same(read[1], read[0])


def test_missing_files_and_folders(tmp_path):
    for read in (load_safetensors, map_safetensors, read_json):
        with pytest.raises(CheckpointError, match=r"no such file\. Check the path"):
            read(tmp_path / "absent")
        with pytest.raises(CheckpointError, match="not a regular file"):
            read(tmp_path)
    with pytest.raises(CheckpointError, match="No such file or directory"):
        write_json(tmp_path / "absent" / "a.json", {})


class FullDisk:
    """A file that takes some bytes and then none, as on a disk that has run full."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()


@pytest.mark.parametrize("room", [0, 8, 100, 1000])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, room):
    path = tmp_path / "m.safetensors"
    save_safetensors(path, {"w": np.arange(3.0)})
    before = path.read_bytes()
    real_open = builtins.open
    monkeypatch.setattr(builtins, "open", lambda *a, **k: FullDisk(real_open(*a, **k), room))
    with pytest.raises(CheckpointError, match=r"No space left on device.*untouched; free some"):
        save_safetensors(path, {"w": np.arange(3000.0)})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_at_the_last_moment_leaves_the_old_file(tmp_path, monkeypatch, failing):
    path = tmp_path / "state.json"
    write_json(path, {"step": 1})

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(CheckpointError, match=r"state\.json: No space left"):
        write_json(path, {"step": 2})
    monkeypatch.undo()
    assert read_json(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_block_leaves_the_old_file(tmp_path, interruption):
    path = tmp_path / "notes.txt"
    path.write_text("old")

    def write():
        with atomic_write(path, "w") as file:
            file.write("new")
            raise interruption

    with pytest.raises(interruption):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_is_seen_until_the_block_ends(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with atomic_write(path, "w") as file:
        file.write("é\n")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_bytes() == "é\n".encode()


def test_a_symbolic_link_goes_on_pointing(tmp_path):
    (tmp_path / "store").mkdir()
    link = tmp_path / "latest.json"
    link.symlink_to(tmp_path / "store" / "a.json")
    write_json(link, [1])
    assert link.is_symlink()
    assert read_json(tmp_path / "store" / "a.json") == [1]


def test_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640


def test_json(tmp_path):
    state = {"loss": 1.5, "names": ["é", None, True], "deep": {"step": 2**70}}
    write_json(tmp_path / "a.json", state)
    assert read_json(tmp_path / "a.json") == state
    for impossible in (float("nan"), np.float32(1), {1, 2}):
        with pytest.raises(CheckpointError, match="not expressible as JSON"):
            write_json(tmp_path / "a.json", {"x": impossible})
    assert read_json(tmp_path / "a.json") == state
    (tmp_path / "a.json").write_text('{"step": 1')
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_json(tmp_path / "a.json")


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'wb' or 'w'; got 'a'"), atomic_write(tmp_path / "a", "a"):
        pass
