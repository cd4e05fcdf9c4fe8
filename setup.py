"""Builds ffkern/libffkern.so, _C.so and _arrays*.so with CMake and ninja against the installed torch.

All sources and flags are in CMakeLists.txt. Environment (docs/install.md): FFKERN_CUDA=auto|0|1,
FFKERN_CUDA_ARCHS, FFKERN_WERROR, MAX_JOBS, CXX, CUDA_HOME.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, NoReturn

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TORCH_MIN = (2, 13)
NVCC_MIN = (12, 8)  # the first with sm_100 and sm_120
GB_PER_JOB = 2.0


def say(text: str) -> None:
    print(f"ffkern: {text}", file=sys.stderr, flush=True)


def fail(text: str) -> NoReturn:
    raise SystemExit(f"\nffkern: {text}\n")


def numbers(text: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(p) for p in match.group().split(".")) if match else ()


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def find_torch() -> tuple[Path, str]:
    """Folder and version of the installed torch, without importing it."""
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        fail(
            "torch is not installed where this build runs: run `pip install torch`, then "
            "`pip install --no-build-isolation .` (build isolation hides the installed torch)."
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    version = "of unknown version"
    with suppress(OSError, KeyError):
        version = str(runpy.run_path(str(folder / "version.py"))["__version__"])
    if numbers(version)[:2] < TORCH_MIN:
        fail(
            f"torch {version} in {folder} is too old, ffkern needs {dotted(TORCH_MIN)} or newer: "
            f'run `pip install "torch>={dotted(TORCH_MIN)}"` and build again.'
        )
    return folder, version


def find_compiler() -> str:
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["c++", "g++", "clang++"]:
        path = shutil.which(name)
        if path is None:
            continue
        test = [path, "-std=c++20", "-fsyntax-only", "-x", "c++", os.devnull]
        if subprocess.run(test, capture_output=True).returncode:
            fail(f"{path} cannot compile C++20: set CXX to g++ >= 11 or clang++ >= 14.")
        return path
    if wanted:
        fail(f"the C++ compiler CXX={wanted} does not exist: set it to an installed one or unset it.")
    fail("no C++ compiler found: install one (on Debian and Ubuntu `apt-get install g++`), or set CXX to it.")


def find_tool(name: str) -> str:
    """A build tool that pip installed beside this interpreter, or one on PATH."""
    path = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if path is None:
        fail(f"{name} is not installed: run `pip install cmake ninja` and build again.")
    return path


def python_headers() -> Path | None:
    """Folder of Python.h, which some distributions ship apart from Python."""
    folder = Path(sysconfig.get_path("include"))
    return folder if (folder / "Python.h").exists() else None


def find_pybind11() -> str:
    """Folder of pybind11's CMake files."""
    spec = find_spec("pybind11")
    if spec is None or spec.origin is None:
        fail("pybind11 is not installed where this build runs: run `pip install pybind11` and build again.")
    return str(Path(spec.origin).parent / "share" / "cmake" / "pybind11")


def find_nvcc() -> tuple[Path | None, str]:
    """nvcc and where it was looked for: CUDA_HOME or CUDA_PATH alone when set, else everywhere."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            folders, where = [Path(os.environ[name]) / "bin"], f"{name}={os.environ[name]}"
            break
    else:
        folders = [*map(Path, os.get_exec_path()), Path("/usr/local/cuda/bin")]
        site = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path]
        for entry in dict.fromkeys(filter(None, site)):
            folders += [p / "bin" for p in sorted(Path(entry).glob("nvidia/cu1*"))]
        where = "PATH, /usr/local/cuda or site-packages/nvidia"
    return next((f / "nvcc" for f in folders if os.access(f / "nvcc", os.X_OK)), None), where


def choose_cuda() -> Path | None:
    """nvcc when the CUDA kernels are to be built."""
    want = os.environ.get("FFKERN_CUDA") or "auto"
    if want not in ("auto", "0", "1"):
        fail(f"FFKERN_CUDA={want} is not one of auto, 0, 1.")
    if want == "0":
        say("FFKERN_CUDA=0: building the CPU library only")
        return None
    nvcc, where = find_nvcc()
    if nvcc is None:
        problem = f"there is no nvcc in {where}"
    else:
        run = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True)
        found = re.search(r"release (\d+\.\d+)", run.stdout)
        if run.returncode or not found:
            problem = f"{nvcc} does not run"
        elif numbers(found.group(1)) < NVCC_MIN:
            problem = f"{nvcc} is release {found.group(1)}, older than {dotted(NVCC_MIN)}"
        else:
            say(f"FFKERN_CUDA={want}: building CPU and CUDA kernels, {nvcc} ({found.group(1)})")
            return nvcc
    if want == "1":
        fail(
            f"FFKERN_CUDA=1 but {problem}: install the CUDA toolkit (docs/install.md) and set "
            "CUDA_HOME to it, or set FFKERN_CUDA=0 for the CPU library."
        )
    say("*" * 80)
    say(f"FFKERN_CUDA=auto: {problem}.")
    say("Building the CPU library WITHOUT CUDA KERNELS.")
    say("*" * 80)
    return None


def available_gb() -> float | None:
    """Memory that the build may use: free on the machine, and left by the control group."""
    found = []
    with suppress(OSError):
        match = re.search(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())
        found += [int(match.group(1)) / 2**20] if match else []
    with suppress(OSError, ValueError):  # the text is "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        found.append((limit - int((group / "memory.current").read_text())) / 2**30)
    return min(found, default=None)


def jobs() -> int:
    wanted = os.environ.get("MAX_JOBS")
    if wanted:
        if not wanted.isdigit() or int(wanted) < 1:
            fail(f"MAX_JOBS={wanted} is not a positive whole number.")
        return int(wanted)
    cores = len(os.sched_getaffinity(0))
    memory = available_gb()
    return max(1, cores if memory is None else min(cores, int(memory / GB_PER_JOB)))


class CMakeBuild(build_ext):
    """Runs CMake. ``_C.so`` is a plain shared library without Python symbols; ``_arrays`` is a module of this Python;
    both stand on ``libffkern.so`` beside them."""

    SHARED = "libffkern.so"

    def get_ext_filename(self, fullname: str) -> str:
        return "ffkern/_C.so" if fullname == "ffkern._C" else super().get_ext_filename(fullname)

    def finalize_options(self) -> None:
        super().finalize_options()
        if python_headers() is None:
            self.extensions = [ext for ext in self.extensions if ext.name != "ffkern._arrays"]

    def run(self) -> None:
        if sys.platform != "linux":
            fail(f"ffkern builds on Linux only, not {sys.platform}: use a container or WSL.")
        torch_dir, torch_version = find_torch()
        compiler = find_compiler()
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        nvcc = choose_cuda()
        width = jobs()
        say(f"torch {torch_version} in {torch_dir}; compiler {compiler}")
        say(f"{width} parallel jobs (MAX_JOBS changes it)")
        build = ROOT / "build" / ("cmake-cuda" if nvcc else "cmake-cpu")
        options = {
            "BUILD_SHARED_LIBS": "ON",
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            "CMAKE_CXX_COMPILER": compiler,
            "CMAKE_MAKE_PROGRAM": ninja,
            "FFKERN_TORCH": "ON",
            "FFKERN_TORCH_DIR": str(torch_dir),
            "FFKERN_TORCH_VERSION": torch_version,
            "FFKERN_ARRAYS": "OFF",
            "FFKERN_CUDA": "ON" if nvcc else "OFF",
            "FFKERN_WERROR": "ON" if os.environ.get("FFKERN_WERROR") == "1" else "OFF",
        }
        if len(self.extensions) > 1:
            options |= {
                "FFKERN_ARRAYS": "ON",
                "Python_EXECUTABLE": os.path.realpath(sys.executable),
                "pybind11_DIR": find_pybind11(),
            }
        else:
            say("*" * 80)
            say(f"{sysconfig.get_path('include')}/Python.h is missing (Debian, Ubuntu: apt-get install python3-dev).")
            say("Building WITHOUT ffkern.arrays, the functions for NumPy and CuPy.")
            for folder in (Path(self.build_lib), ROOT):  # none but one of an earlier build, for another libffkern.so
                for stale in (folder / "ffkern").glob("_arrays.*.so"):
                    stale.unlink()
            say("*" * 80)
        if nvcc:
            options["FFKERN_NVCC"] = str(nvcc)
            if os.environ.get("FFKERN_CUDA_ARCHS"):
                options["FFKERN_CUDA_ARCHS"] = os.environ["FFKERN_CUDA_ARCHS"]
        configure = [cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja"]
        configure += [f"-D{k}={v}" for k, v in options.items()]
        # Another compiler or another torch: forget the cache, keep the objects that still fit.
        stamp = build / "configured.txt"
        known = stamp.exists() and stamp.read_text() == "\n".join(configure)
        self.run_tool([configure[0], *([] if known else ["--fresh"]), *configure[1:]])
        stamp.write_text("\n".join(configure))
        # Through the environment: as a flag, another width would compile every kernel again.
        flags = f"--threads={width} " + os.environ.get("NVCC_PREPEND_FLAGS", "")
        os.environ["NVCC_PREPEND_FLAGS"] = flags.strip()
        targets = [ext.name.removeprefix("ffkern.") for ext in self.extensions]
        self.run_tool([cmake, "--build", str(build), "--target", *targets, "-j", str(width)])
        for path in map(Path, self.outputs()):
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(path.name + ".part")  # renamed: a process that has the old one loaded keeps it
            shutil.copy2(build / path.name, aside)
            aside.replace(path)
        if self.inplace:
            self.copy_to_source()

    def outputs(self) -> list[str]:
        built = [str(Path(self.build_lib) / self.get_ext_filename(ext.name)) for ext in self.extensions]
        return [*built, str(Path(self.build_lib) / "ffkern" / self.SHARED)]

    @staticmethod
    def run_tool(command: list[str]) -> None:
        if subprocess.run(command).returncode:
            fail(
                "the build failed: the first error above says why, and docs/install.md lists known "
                "causes (FFKERN_CUDA=0 builds without the CUDA compiler)."
            )

    def copy_to_source(self) -> None:
        for path in self.outputs():
            aside = ROOT / "ffkern" / (Path(path).name + ".part")
            shutil.copy2(path, aside)
            aside.replace(aside.with_suffix(""))

    def get_outputs(self) -> list[str]:
        return [str(ROOT / "ffkern" / Path(p).name) for p in self.outputs()] if self.inplace else self.outputs()


class FindNvcc(Command):
    """`setup.py -q find_nvcc` prints the path of nvcc, or fails."""

    description = "print the path of the CUDA compiler that build_ext uses"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = []

    def initialize_options(self) -> None: ...

    def finalize_options(self) -> None: ...

    def run(self) -> None:
        nvcc, where = find_nvcc()
        if nvcc is None:
            fail(f"there is no nvcc in {where}.")
        print(nvcc)


setup(
    ext_modules=[Extension("ffkern._C", sources=[]), Extension("ffkern._arrays", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "find_nvcc": FindNvcc},
)
