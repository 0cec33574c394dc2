"""Builds the compiled kernels through ninja: in parallel, and only what has changed.

    minitorch._cpu            csrc/cpu, for the instruction sets of the processor
    minitorch._simt           csrc/cuda in the emulator of csrc/simt
    minitorch._simt_checked   the same, with every access to memory checked
    minitorch._cuda           csrc/cuda for a GPU, where nvcc and NVIDIA's driver are found

Everything else about the package is in pyproject.toml. Objects and ninja's own records stay in
build/, so that a second install compiles only what was edited. Where there is no C++20 compiler, or
the compilation fails, the package is installed without the extension: minitorch then runs on its
NumPy kernels, and says so in `minitorch doctor`.

MT_BUILD=0 leaves all of them out, MT_BUILD=1 makes it an error that they cannot be built, and CXX
names the compiler. MT_CUDA=0 and 1 say the same of minitorch._cuda; 1 needs no driver.
"""

import filecmp
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from ctypes.util import find_library
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
SOURCES = ROOT / "csrc" / "cpu"
KERNELS = SOURCES / "kernels"
EMULATOR = ROOT / "csrc" / "simt"
CUDA = ROOT / "csrc" / "cuda"
FLAGS = ["-std=c++20", "-O3", "-fno-math-errno", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
QUICKER = ("matmul", "experts", "latent", "norms", "topk")
"""The kernels' files that -O2 compiles in less time than -O3 does, and that run no slower."""
LONGEST = ("matmul", "attention")
"""Those that are compiled first: with one of them at the end a processor would wait."""
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AMX = ["-mamx-tile", "-mamx-bf16"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]
INSTRUCTION_SETS = {"portable": ["-DMT_VECTOR_BYTES=16"]}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS |= {
        "avx2": ["-DMT_VECTOR_BYTES=32", *AVX2],
        "avx512": ["-DMT_VECTOR_BYTES=64", *AVX512],
        "avx512_bf16": ["-DMT_VECTOR_BYTES=64", *AVX512, "-mavx512bf16", *AMX],
    }
EMULATED = ["-x", "c++", "-O1", "-g1", "-Wno-unknown-pragmas", "-Wno-psabi"]
CHECKED = ["-fsanitize=thread", "--param", "tsan-distinguish-volatile=1"]
"""Flags for a kernel's file under the emulator, and for its check build."""
ARCHITECTURES = ["arch=compute_80,code=sm_80", "arch=compute_90a,code=sm_90a"]
FUTURE = "arch=compute_80,code=compute_80"
OLDEST_CUDA = 12
"""The first with C++20 and sm_90a."""


def architectures(source):
    """What a kernel's file is compiled for; warpgroups have their products on Hopper alone."""
    return ARCHITECTURES[1:] if source.stem.endswith("_wgmma") else [*ARCHITECTURES, FUTURE]


class BuildError(Exception):
    """Why the extension cannot be built, in one line."""


class BuildWithNinja(build_ext):
    """Compiles the extension, or leaves it out with a line that says why."""

    def run(self):
        if os.environ.get("MT_BUILD") != "0":
            super().run()

    def build_extensions(self):
        for ext in self.extensions:
            try:
                self.build_extension(ext)
            except BuildError as error:
                first = ext.name == "minitorch._cpu"
                what = "the compiled kernels" if first else ext.name
                wanted = "MT_CUDA" if ext.name == "minitorch._cuda" else "MT_BUILD"
                if "1" in (os.environ.get("MT_BUILD"), os.environ.get(wanted)):
                    raise SystemExit(f"minitorch: cannot build {what}: {error}") from None
                what = "compiled kernels, on NumPy alone" if first else ext.name
                print(f"minitorch: installed without {what}: {error}", file=sys.stderr)
                if first:
                    return

    def build_extension(self, ext):
        name = ext.name.rpartition(".")[2]
        compiler = find_compiler()
        cuda = find_nvcc() if name == "_cuda" else None
        if name == "_cuda" and cuda is None:
            return
        folder = ROOT / "build" / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        folder.mkdir(parents=True, exist_ok=True)
        write_ninja_file(folder / "build.ninja", compiler, cuda)
        run_ninja(folder, f"{name}.so")
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / f"{name}.so", target)


def find_nvcc():
    """CUDA's compiler; None where it is not wanted, or it or a driver is not there."""
    wanted = os.environ.get("MT_CUDA", "auto")
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if wanted == "1" and nvcc is None:
        raise BuildError("MT_CUDA=1, and no nvcc on the path or in CUDA_HOME")
    if nvcc is None or wanted == "0" or (wanted != "1" and not find_library("cuda")):
        return None
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", said)
    if release is None or int(release[1]) < OLDEST_CUDA:
        version = ".".join(release.groups()) if release else "an unknown version"
        raise BuildError(f"expected nvcc of CUDA {OLDEST_CUDA}.0 or later; {nvcc} is {version}")
    return nvcc


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


def write_ninja_file(path, compiler, nvcc):
    """One rule for each compiler, one to link; each module's files with its own flags."""
    from ninja.ninja_syntax import Writer

    includes = [f"-isystem{copy}" for copy in copy_headers(path.parent / "include")]
    link = ["-undefined", "dynamic_lookup", "-bundle"] if sys.platform == "darwin" else ["-shared"]
    with path.open("w") as file:
        ninja = Writer(file)
        ninja.known = set()  # objects that two modules share are made once
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
            f"{shlex.join([*compiler, *link])} $in -o $out -pthread $libraries",
            description="link $out",
        )
        write_module(ninja, "_cpu", cpu_units(includes))
        emulator = [(source, "simt", []) for source in sorted(EMULATOR.glob("*.cpp"))]
        emulator.append((CUDA / "module.cpp", "simt", ["-O1", *includes]))
        for name, extra in (("_simt", []), ("_simt_checked", CHECKED)):
            units = [(source, name, [*EMULATED, *extra]) for source in sorted(CUDA.glob("*.cu"))]
            write_module(ninja, name, [*emulator, *units], libraries="-ldl")
        if nvcc:
            write_cuda_module(ninja, compiler, nvcc, includes)


def cpu_units(includes):
    """Source, folder of the object, flags: kernels/ once for every instruction set that it uses."""
    units = [(source, "cpu", includes) for source in sorted(SOURCES.glob("*.cpp"))]
    for name, extra in INSTRUCTION_SETS.items():
        selected = [f"-DMT_INSTRUCTION_SET={name}", *extra]
        sources = sorted(KERNELS.glob("*.cpp"))
        if name == "avx512_bf16":  # elsewhere it adds nothing, or takes subnormal numbers for 0
            sources = [
                source
                for source in sources
                if source.stem == "activations" or "tile_registers.h" in included(source)
            ]
        units += [(source, name, [*selected, *optimised(source)]) for source in sources]
    return sorted(units, key=lambda unit: unit[0].stem not in LONGEST)


def optimised(source):
    return ["-O2"] if source.stem in QUICKER else []


def included(source):
    """The names of the headers beside a kernel that it includes, and those that they do."""
    names = re.findall(r'^#include "([^"/]+)"', source.read_text(), re.MULTILINE)
    return {*names}.union(*(included(source.parent / name) for name in names))


def write_module(ninja, name, units, libraries=""):
    objects = []
    for source, folder, extra in units:
        out = f"{folder}/{source.stem}.o"
        if out not in ninja.known:
            ninja.build(out, "compile", str(source), variables={"extra": shlex.join(extra)})
            ninja.known.add(out)
        objects.append(out)
    ninja.build(f"{name}.so", "link", objects, variables={"libraries": libraries})


def write_cuda_module(ninja, compiler, nvcc, includes):
    """Kernels for two architectures and PTX for later ones; CUDA's runtime linked statically."""
    flags = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-diag-suppress", "177"]
    host = ["-Xcompiler", "-fPIC,-fvisibility=hidden", "-ccbin", compiler[0]]
    ninja.rule(
        "nvcc",
        f"{shlex.join([nvcc, *flags, *host])} $extra -MD -MF $out.d -c $in -o $out",
        depfile="$out.d",
        deps="gcc",
        description="nvcc $out",
    )
    system = [word for path in includes for word in ("-isystem", path.removeprefix("-isystem"))]
    objects = []
    for source in [*sorted(CUDA.glob("*.cu")), CUDA / "module.cpp"]:
        out = f"_cuda/{source.stem}.o"
        extra = [word for code in architectures(source) for word in ("-gencode", code)]
        if source.suffix == ".cpp":
            extra += ["-x", "cu", *system]
        ninja.build(out, "nvcc", str(source), variables={"extra": shlex.join(extra)})
        objects.append(out)
    ninja.rule(
        "nvlink",
        f"{shlex.join([nvcc, '-shared', '-cudart', 'static', '-ccbin', compiler[0]])} $in -o $out",
        description="link $out",
    )
    ninja.build("_cuda.so", "nvlink", objects)


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


def run_ninja(folder, target):
    import ninja

    done = subprocess.run(
        [Path(ninja.BIN_DIR) / "ninja", "-C", folder, target],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    (folder / "build.log").write_text(done.stdout)
    if done.returncode:
        raise BuildError(f"the compilation failed, see {folder / 'build.log'}")


setup(
    ext_modules=[
        Extension(f"minitorch.{name}", sources=[], optional=True)
        for name in ("_cpu", "_simt", "_simt_checked", "_cuda")
    ],
    cmdclass={"build_ext": BuildWithNinja},
)
