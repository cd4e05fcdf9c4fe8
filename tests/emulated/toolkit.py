"""Where compilers and build tools are. One lookup for every test that compiles something."""

from __future__ import annotations

import functools
import os
import shutil
import site
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _pip_folders() -> list[Path]:
    """The bin folders of CUDA toolkits that pip has installed (nvidia/cu13/bin)."""
    places = dict.fromkeys([*site.getsitepackages(), *sys.path])
    return sorted(p for place in places if place for p in Path(place).glob("nvidia/cu1*/bin"))


def find(tool: str) -> Path | None:
    """$CUDA_HOME/bin, then PATH, then a toolkit installed by pip."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [Path(home, "bin")] if home else []
    on_path = shutil.which(tool)
    places += [Path(on_path).parent] if on_path else []
    return next((p / tool for p in places + _pip_folders() if os.access(p / tool, os.X_OK)), None)


def build_tool(name: str) -> str:
    """cmake or ninja: next to this interpreter, or on PATH."""
    path = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if path is None:
        raise RuntimeError(f"{name} is missing, and tests build with it: pip install {name}.")
    return path


@functools.cache
def nvcc() -> Path:
    found = find("nvcc")
    if found is None:
        raise RuntimeError(
            "nvcc is missing, and the tests of the CUDA kernels compile them: install the CUDA 13 "
            "toolkit and set CUDA_HOME to it, or pip install -r requirements-cuda.txt."
        )
    return found


@functools.cache
def cuobjdump() -> tuple[Path, dict[str, str]]:
    """cuobjdump, and an environment in which it finds nvdisasm."""
    dump, disassembler = find("cuobjdump"), find("nvdisasm")
    if dump is None or disassembler is None:
        raise RuntimeError(
            "cuobjdump or nvdisasm is missing, and the tests of the machine code need both: "
            "pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm."
        )
    return dump, dict(os.environ, PATH=f"{disassembler.parent}{os.pathsep}{os.environ['PATH']}")


def put_nvcc_on_path() -> None:
    """For code that calls nvcc by name."""
    folder = str(nvcc().parent)
    if folder not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = folder + os.pathsep + os.environ["PATH"]
