"""Compiles the two libraries: libptxsim (src/ptx, src/exec, src/capi.cpp) and libptxsim_cuda (with src/driver).

Objects and libraries are named after a hash of what they are made from, so only what has changed is compiled, and
both libraries share their objects. A lock lets one process at a time compile; files appear by renaming.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src"
JOBS = 2
FLAGS = (
    *("-std=c++20", "-O3", "-march=native", "-fPIC", "-pthread", "-fvisibility=hidden"),
    *("-ffp-contract=off", "-fno-strict-aliasing"),  # no fused operations that the PTX does not ask for
)


def _folder() -> Path:
    """$PTXSIM_BUILD, or build/ptxsim in the repository."""
    return Path(os.environ.get("PTXSIM_BUILD", ROOT.parents[1] / "build" / "ptxsim"))


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> bytes:
    """A cache that travels to another machine must not serve its -march=native."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return b""
    return next((line for line in lines if line.startswith("flags")), "").encode()


@functools.cache
def _headers(folder: str) -> bytes:
    """All headers that sources of a folder may include: each folder knows itself and those before it."""
    order = ["ptx", "exec", SOURCES.name, "driver"]
    known = order[: order.index(folder) + 1]
    paths = sorted(path for path in SOURCES.rglob("*.h") if path.parent.name in known)
    return _hash(*(path.read_bytes() for path in paths)).encode()


def _run(command: Sequence[str | Path], output: Path) -> None:
    part = output.with_name(f"{output.name}.{os.getpid()}.part")
    done = subprocess.run([*map(str, command), "-o", str(part)], capture_output=True, text=True)
    if done.returncode:
        part.unlink(missing_ok=True)
        raise RuntimeError(f"ptxsim: compilation failed\n{done.stderr}")
    part.replace(output)


def _library(name: str, folders: Iterable[str], include: Sequence[str] = (), link: Sequence[str] = ()) -> str:
    sources = sorted(path for folder in folders for path in SOURCES.glob(f"{folder}*.cpp"))
    flags = [*FLAGS, *os.environ.get("PTXSIM_CXXFLAGS", "").split()]
    common = _hash(" ".join(flags).encode(), _processor()).encode()
    keys = {path: _hash(common, _headers(path.parent.name), path.read_bytes()) for path in sources}
    folder = _folder()
    library = folder / f"{name}-{_hash(*(key.encode() for key in keys.values()))}.so"
    if library.exists():
        return str(library)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        objects = {path: folder / f"{path.parent.name}-{path.stem}-{key}.o" for path, key in keys.items()}
        missing = [path for path, target in objects.items() if not target.exists()]
        missing.sort(key=lambda path: -path.stat().st_size)  # the longest first
        paths = [f"-I{folder}" for folder in include]
        with ThreadPoolExecutor(JOBS) as pool:
            list(pool.map(lambda path: _run(["g++", *flags, *paths, "-c", path], objects[path]), missing))
        if not library.exists():
            _run(["g++", "-shared", "-pthread", *objects.values(), *link], library)
    return str(library)


def build() -> str:
    """Compiles the emulator if its sources have changed; returns the library's path."""
    return _library("libptxsim", ("ptx/", "exec/", ""))


def driver_library(link_dir: str | Path | None = None) -> str:
    """Compiles libptxsim_cuda.so, the CUDA driver API on the emulator; returns its path.

    link_dir: a folder that shall hold it as libcuda.so.1 too, for LD_LIBRARY_PATH."""
    link = ("-Wl,-soname,libcuda.so.1", "-Wl,-Bsymbolic", "-ldl")
    library = _library("libptxsim_cuda", ("ptx/", "exec/", "", "driver/"), [cuda_include()], link)
    if link_dir:
        name = Path(link_dir) / "libcuda.so.1"
        name.parent.mkdir(parents=True, exist_ok=True)
        name.unlink(missing_ok=True)
        name.symlink_to(library)
    return library


def cuda_include() -> str:
    """The folder of cuda.h: in $CUDA_HOME or $CUDA_PATH, where nvcc looks, or in a pip package."""
    places = [Path(os.environ[name], "include") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if nvcc := shutil.which("nvcc"):
        places.append(Path(nvcc).resolve().parents[1] / "include")
        command = [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True).stderr
        places += [Path(os.path.normpath(path)) for path in re.findall(r'"?-I([^" ]+)"?', said)]
    packages = ("triton/backends/nvidia/include", "nvidia/cu13/include", "nvidia/cuda_runtime/include")
    places += [Path(path, package) for path in sys.path for package in packages]
    for place in places:
        if (place / "cuda.h").exists():
            return str(place)
    raise RuntimeError("ptxsim: cuda.h not found; set CUDA_HOME")
