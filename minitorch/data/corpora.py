"""Text: the one that every Python carries, your own files, and files from the network.

The embedded corpus is the Python language reference as `help()` shows it, from the module
`pydoc_data.topics` of the standard library: English prose and code, about 370,000 characters
without its repetitions, no download. It differs a little between versions of Python, so figures
are comparable only under one version.
"""

import hashlib
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from minitorch.errors import DataError
from minitorch.io import atomic_write

CORPORA = {
    "tiny-shakespeare": (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
        "#sha256=86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    ),
}
"""Public corpora by name, as URL#sha256=CHECKSUM; name any other in that form."""

Progress = Callable[[int, int | None], None]
_LARGEST_DOWNLOAD = 1 << 32


def load_text(source: str | os.PathLike, progress: Progress | None = None) -> str:
    """The text of a source.

    source: "embedded"; a name in CORPORA; a URL with its checksum, https://...#sha256=...; a UTF-8
    file; or a folder, whose text files are joined in the order of their paths.
    Raises DataError where it is missing, empty, not UTF-8, or has another checksum.
    """
    name = os.fspath(source)
    if name == "embedded":
        return embedded_text()
    name = CORPORA.get(name, name)
    if re.match(r"https?://", name):
        return _read_file(_fetch(name, progress))
    path = Path(name).expanduser()
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise DataError(
            f"data: {name!r} is neither a file nor a folder nor one of: "
            f"{', '.join(['embedded', *CORPORA])}"
        )
    return _read_file(path)


def embedded_text() -> str:
    """The Python language reference, its sections in alphabetical order of their names.

    Some sections are contained in larger ones. They are left out, since a sentence that stands both
    in the training and in the validation text would make the validation loss too low.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError(
            "data: this Python was stripped of its documentation (pydoc_data.topics); name a text "
            "file or a folder instead of 'embedded'"
        ) from None
    kept: list[str] = []
    seen: set[str] = set()
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", topics[name])]
        repeated = sum(len(p) for p in paragraphs if p in seen)
        if 2 * repeated < sum(map(len, paragraphs)):
            kept.append(name)
            seen.update(paragraphs)
    return "\n\n".join(topics[name].strip() for name in sorted(kept)) + "\n"


def _read_file(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"data: cannot read {path}: {error.strerror}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"data: {path} is not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}. Convert "
            "it, for instance with iconv -f latin1 -t utf-8"
        ) from None
    if not text.strip():
        raise DataError(f"data: {path} holds no text")
    return text


def _read_folder(folder: Path) -> str:
    """The UTF-8 files below folder; hidden ones, and binary ones (with a zero byte), left out."""
    texts = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.stat().st_size and not _is_binary(path):
            texts.append(_read_file(path))
    if not texts:
        raise DataError(f"data: the folder {folder} holds no text files")
    return "\n\n".join(texts)


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" in file.read(8192)


def _fetch(url: str, progress: Progress | None) -> Path:
    address, _, fragment = url.partition("#")
    checksum = fragment.removeprefix("sha256=").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", checksum):
        raise DataError(
            f"data: {address} needs its checksum, as in {address}#sha256=<64 hexadecimal digits>, "
            "so that what is downloaded is what was meant"
        )
    return download(address, checksum, progress=progress)


def download(
    url: str, sha256: str, cache: Path | None = None, progress: Progress | None = None
) -> Path:
    """The file at url, downloaded once into the cache folder and checked against its SHA-256.

    cache: $XDG_CACHE_HOME/minitorch by default. progress(done, total): bytes, the total None where
    the server does not say. Raises DataError; what was downloaded in part is removed.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "minitorch" if cache is None else cache
    name = Path(urllib.parse.urlparse(url).path).name or "corpus"
    target = folder / f"{sha256[:16]}-{name}"
    if target.exists() and _digest(target) == sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    try:
        with (
            urllib.request.urlopen(url, timeout=60) as response,
            atomic_write(target) as file,
        ):
            total = response.headers.get("Content-Length")
            expected = int(total) if total and total.isdigit() else None
            done = 0
            while block := response.read(1 << 20):
                done += len(block)
                if done > _LARGEST_DOWNLOAD:
                    raise DataError(f"data: {url} is larger than {_LARGEST_DOWNLOAD} bytes")
                digest.update(block)
                file.write(block)
                if progress is not None:
                    progress(done, expected)
            if digest.hexdigest() != sha256:
                raise DataError(
                    f"data: {url} has SHA-256 {digest.hexdigest()}, not {sha256}: the file has "
                    "changed, or was damaged on its way"
                )
    except OSError as error:
        raise DataError(f"data: cannot download {url}: {error}") from None
    return target


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
