"""Builds minitorch._cpu from csrc/cpu through ninja: in parallel, and only what has changed.

Everything else about the package is in pyproject.toml. Objects and ninja's own records stay in
build/, so that a second install compiles only what was edited. Where there is no C++20 compiler, or
the compilation fails, the package is installed without the extension: minitorch then runs on its
NumPy kernels, and says so in `minitorch doctor`.

MT_BUILD=0 leaves the extension out, MT_BUILD=1 makes it an error that it cannot be built, and
CXX names the compiler.
"""

import filecmp
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
SOURCES = ROOT / "csrc" / "cpu"
KERNELS = SOURCES / "kernels"
FLAGS = ["-std=c++20", "-O3", "-fno-math-errno", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]
INSTRUCTION_SETS = {"portable": ["-DMT_VECTOR_BYTES=16"]}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS |= {
        "avx2": ["-DMT_VECTOR_BYTES=32", *AVX2],
        "avx512": ["-DMT_VECTOR_BYTES=64", *AVX512],
        "avx512_bf16": ["-DMT_VECTOR_BYTES=64", *AVX512, "-mavx512bf16"],
    }


class BuildError(Exception):
    """Why the extension cannot be built, in one line."""


class BuildWithNinja(build_ext):
    """Compiles the extension, or leaves it out with a line that says why."""

    def run(self):
        wanted = os.environ.get("MT_BUILD", "auto")
        if wanted == "0":
            return
        try:
            super().run()
        except BuildError as error:
            if wanted == "1":
                raise SystemExit(f"minitorch: cannot build the compiled kernels: {error}") from None
            print(
                f"minitorch: installed without compiled kernels, on NumPy alone: {error}",
                file=sys.stderr,
            )

    def build_extension(self, ext):
        compiler = find_compiler()
        folder = ROOT / "build" / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        folder.mkdir(parents=True, exist_ok=True)
        write_ninja_file(folder / "build.ninja", compiler)
        run_ninja(folder)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / "_cpu.so", target)


def find_compiler():
    """The command of a compiler that accepts C++20: CXX, or the first of the usual names."""
    asked = os.environ.get("CXX")
    for command in [asked] if asked else ["g++", "clang++", "c++"]:
        words = shlex.split(command)
        if not shutil.which(words[0]):
            continue
        probe = [*words, "-std=c++20", "-fsyntax-only", "-x", "c++", os.devnull]
        if subprocess.run(probe, capture_output=True).returncode == 0:
            return words
    raise BuildError(f"no C++20 compiler found ({f'CXX={asked}' if asked else 'g++ or clang++'})")


def write_ninja_file(path, compiler):
    """One rule to compile and one to link; what is in kernels/ once for every instruction set."""
    from ninja.ninja_syntax import Writer

    includes = [f"-isystem{copy}" for copy in copy_headers(path.parent / "include")]
    link = ["-undefined", "dynamic_lookup", "-bundle"] if sys.platform == "darwin" else ["-shared"]
    with path.open("w") as file:
        ninja = Writer(file)
        ninja.variable("flags", shlex.join(FLAGS))
        ninja.rule(
            "compile",
            f"{shlex.join(compiler)} $flags $extra -MD -MF $out.d -c $in -o $out",
            depfile="$out.d",
            deps="gcc",
            description="compile $out",
        )
        ninja.rule(
            "link",
            f"{shlex.join([*compiler, *link])} $in -o $out -pthread",
            description="link $out",
        )
        units = [(source, "", includes) for source in sorted(SOURCES.glob("*.cpp"))]
        for name, extra in INSTRUCTION_SETS.items():
            selected = [f"-DMT_INSTRUCTION_SET={name}", *extra]
            units += [(source, name, selected) for source in sorted(KERNELS.glob("*.cpp"))]
        objects = []
        for source, name, extra in units:
            out = f"{name}/{source.stem}.o" if name else f"{source.stem}.o"
            ninja.build(out, "compile", str(source), variables={"extra": shlex.join(extra)})
            objects.append(out)
        ninja.build("_cpu.so", "link", objects)


def copy_headers(into):
    """Copies of the headers of Python, pybind11 and NumPy, rewritten only where they differ.

    pip builds in a fresh environment each time, in a folder of another name; from these copies
    ninja sees the same paths and times as before.
    """
    import numpy
    import pybind11

    origins = {
        "python": sysconfig.get_path("include"),
        "pybind11": pybind11.get_include(),
        "numpy": numpy.get_include(),
    }
    for name, origin in origins.items():
        for header in Path(origin).rglob("*.h*"):
            copy = into / name / header.relative_to(origin)
            if not copy.exists() or not filecmp.cmp(header, copy, shallow=False):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(header, copy)
        yield into / name


def run_ninja(folder):
    import ninja

    done = subprocess.run(
        [Path(ninja.BIN_DIR) / "ninja", "-C", folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    (folder / "build.log").write_text(done.stdout)
    if done.returncode:
        raise BuildError(f"the compilation failed, see {folder / 'build.log'}")


setup(
    ext_modules=[Extension("minitorch._cpu", sources=[], optional=True)],
    cmdclass={"build_ext": BuildWithNinja},
)
