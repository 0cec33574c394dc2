"""CUDA programs on the CPU: translate what g++ cannot read, compile in the check build, run.

The emulator (csrc/simt) makes a kernel's words mean something to g++. What is not words but
grammar, and variables that have the names of such words, are rewritten, in place, so that every
line keeps its number:

    kernel<<<grid, block>>>(x, n);      SIMT_LAUNCH((kernel), (grid, block), (x, n));
    __shared__ float tile[32][33];      SHARED(float, tile, [32][33]);
    dim3 blockDim(32);                  dim3 blockDim_own(32);
"""

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import minitorch
from minitorch.errors import ConfigError, DataError
from minitorch.io import atomic_write

CHECKOUT = Path(minitorch.__file__).resolve().parent.parent
EMULATOR = CHECKOUT / "csrc" / "simt"
CHECKED = ["-fsanitize=thread", "--param", "tsan-distinguish-volatile=1"]
"""The compiler then reports every access to memory, to csrc/simt/hooks.cpp."""


def compile_program(source: Path, folder: Path, *, checked: bool = True) -> Path:
    """An executable made of a CUDA source file with a main(), in `folder`.

    Raises ConfigError where there is no compiler, or no checkout of the emulator; DataError with
    the compiler's words where the program does not compile.
    """
    compiler = _compiler()
    objects = _emulator_objects(compiler)
    translated = folder / f"{source.stem}.cpp"
    with atomic_write(translated, "w") as file:
        file.write(f'#line 1 "{source.resolve()}"\n' + translate(source.read_text()))
    program = folder / source.stem
    includes = [f"-I{EMULATOR}", f"-I{EMULATOR / 'include'}", f"-I{source.parent}"]
    flags = ["-std=c++20", "-O1", "-g", "-w", "-include", "simt.h", *includes]
    flags += CHECKED if checked else []
    own = folder / f"{source.stem}.o"
    _run([*compiler, *flags, "-c", str(translated), "-o", str(own)], f"compiling {source}")
    _run(
        [*compiler, *map(str, objects), str(own), "-o", str(program), "-ldl", "-pthread"],
        f"linking {source}",
    )
    return program


def translate(source: str) -> str:
    """CUDA's own grammar rewritten as macros of simt.h; lines stay where they are.

    Raises DataError for a launch whose brackets do not close.
    """
    source = _without_own_names(source)
    edits = [*_launches(source), *_shared_arrays(source)]
    for begin, end, text in sorted(edits, reverse=True):
        kept = "\n" * (source.count("\n", begin, end) - text.count("\n"))
        source = source[:begin] + text + kept + source[end:]
    return source


def _blanked(source: str) -> str:
    """The source with comments and strings overwritten by spaces, so that only code is found."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\''
    return re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m[0]), source, flags=re.DOTALL)


def _without_own_names(source: str) -> str:
    """A program's own variables that are named blockDim, say, renamed: simt.h has macros there."""
    code = _blanked(source)
    places: set[int] = set()
    for begin, name in _declared(code):
        use = re.compile(rf"(?<![\w.])(?<!->){name}\b")
        places.update(match.end() for match in use.finditer(code, begin, _scope_end(code, begin)))
    for at in sorted(places, reverse=True):
        source = f"{source[:at]}_own{source[at:]}"
    return source


_TYPE = r"(?<![\w.])(?:dim3|uint3|auto|size_t|u?int(?:\d+_t)?|unsigned|long)\b"
_BUILT_IN = ("threadIdx", "blockIdx", "blockDim", "gridDim")


def _declared(code: str) -> Iterator[tuple[int, str]]:
    """Where variables of the built-in names are declared, also behind others of their type."""
    for kind in re.finditer(_TYPE, code):
        depth, expected = 0, True  # expected: a name would be that of a new variable
        for token in re.finditer(r"\w+|\S", code[kind.end() :]):
            word = token[0]
            if expected and depth == 0 and word in _BUILT_IN:
                yield kind.end() + token.start(), word
            depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(word, 0)
            if depth < 0 or (depth == 0 and word == ";"):
                break
            if word not in ("&", "*", "const", "int", "long"):
                expected = depth == 0 and word == ","


def _scope_end(code: str, at: int) -> int:
    """Where the block ends that encloses a declaration, or what follows that of a parameter."""
    depth, opening = 0, at
    while depth >= 0 and opening > 0:
        opening -= 1
        depth += {")": 1, "}": 1, "(": -1, "{": -1}.get(code[opening], 0)
    if code[opening] == "(":
        after = _closing(code, opening) + 1
        body = re.compile(r"[{;]").search(code, after)
        if body is None or body[0] == ";":
            return len(code) if body is None else body.start()
        opening = body.start()
    return _closing(code, opening) if code[opening] == "{" else len(code)


def _launches(source: str) -> list[tuple[int, int, str]]:
    code = _blanked(source)
    edits = []
    for match in re.finditer("<<<", code):
        name_begin = _name_before(code, match.start())
        middle = code.find(">>>", match.end())
        opening = code.find("(", middle)
        if middle < 0 or opening < 0 or code[middle + 3 : opening].strip():
            line = code.count("\n", 0, match.start()) + 1
            raise DataError(f"line {line}: expected kernel<<<grid, block>>>(arguments)")
        closing = _closing(code, opening)
        kernel = source[name_begin : match.start()].strip()
        how = source[match.end() : middle]
        arguments = source[opening : closing + 1]
        edits.append((name_begin, closing + 1, f"SIMT_LAUNCH(({kernel}), ({how}), {arguments})"))
    return edits


def _name_before(code: str, end: int) -> int:
    """Where a name such as simt::kernel<64, float> begins that ends here."""
    at = len(code[:end].rstrip())
    if code[at - 1] == ">":
        depth = 0
        while at > 0:
            at -= 1
            depth += {">": 1, "<": -1}.get(code[at], 0)
            if depth == 0:
                break
        at = len(code[:at].rstrip())
    name = re.search(r"[\w:]+$", code[:at])
    if name is None:
        line = code.count("\n", 0, end) + 1
        raise DataError(f"line {line}: expected the name of a kernel before <<<")
    return name.start()


def _closing(code: str, opening: int) -> int:
    bracket, depth = code[opening], 0
    for i in range(opening, len(code)):
        depth += {bracket: 1, {"(": ")", "{": "}"}[bracket]: -1}.get(code[i], 0)
        if depth == 0:
            return i
    raise DataError(f"line {code.count(chr(10), 0, opening) + 1}: a bracket that is not closed")


def _shared_arrays(source: str) -> list[tuple[int, int, str]]:
    code = _blanked(source)
    edits = []
    aligned = r"(?:(?:__align__|alignas)\s*\([^)]*\)\s*)?"
    pattern = rf"(extern\s+)?(volatile\s+)?__shared__\s+{aligned}(?:(volatile)\s+)?([^;]*?);"
    for match in re.finditer(pattern, code):
        external, before, after, declaration = match.groups()
        parts = re.match(
            rf"{aligned}((?:unsigned\s+|const\s+)*[\w:]+(?:\s*<[^>]*>)?)\s+(.*)",
            declaration,
            re.DOTALL,
        )
        if parts is None:
            continue
        kind = f"{'volatile ' if before or after else ''}{parts[1]}"
        arrays = []
        for part in parts[2].split(","):
            name, dimensions = re.findall(r"^\s*(\w*)\s*(.*)", part, re.DOTALL)[0]
            if external:
                arrays.append(f"SHARED_DYNAMIC({kind}, {name});")
            else:
                arrays.append(f"SHARED({kind}, {name}, {dimensions.strip()});")
        edits.append((match.start(), match.end(), " ".join(arrays)))
    return edits


def _compiler() -> list[str]:
    words = shlex.split(os.environ.get("CXX", "g++"))
    if not shutil.which(words[0]):
        raise ConfigError(
            f"simt: expected a C++20 compiler; there is no {words[0]!r}. Install g++, or name one "
            "with CXX"
        )
    if not EMULATOR.is_dir():
        raise ConfigError(f"simt: the emulator's source is not at {EMULATOR}; use a checkout")
    return words


def _emulator_objects(compiler: list[str]) -> list[Path]:
    """The emulator: as building minitorch left it, else compiled once for each version of it."""
    sources = sorted(EMULATOR.glob("*.cpp"))
    if built := _built(sources):
        return built
    digest = hashlib.sha256(shlex.join(compiler).encode())
    for path in sorted(EMULATOR.glob("*.[ch]*")):
        digest.update(path.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "minitorch" / f"simt-{digest.hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)

    def build(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        if not target.exists():
            partial = folder / f"{source.stem}.{os.getpid()}.part"
            command = [*compiler, "-std=c++20", "-O2", "-g", "-c", str(source), "-o", str(partial)]
            _run(command, f"compiling {source}")
            partial.rename(target)
        return target

    with _alone(folder), ThreadPoolExecutor() as pool:
        return list(pool.map(build, sources))


def _built(sources: list[Path]) -> list[Path]:
    """The objects that setup.py made, if they are newer than all of the emulator's source."""
    platform = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    objects = [CHECKOUT / "build" / platform / "simt" / f"{path.stem}.o" for path in sources]
    changed = max(path.stat().st_mtime for path in EMULATOR.glob("*.[ch]*"))
    newer = all(path.is_file() and path.stat().st_mtime > changed for path in objects)
    return objects if newer else []


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within the block no other process is in it for this folder: they wait, and find its work."""
    with open(folder / ".lock", "wb") as file:
        with contextlib.suppress(ImportError):  # not a Unix: what is made twice is made twice
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise DataError(f"{what} failed:\n{done.stderr.strip()}")
