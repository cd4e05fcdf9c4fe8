"""Compiles what runs the CUDA kernels on a software driver: the targets ffkern_emulated (torch's operations, for CPU
tensors) and ffkern_emulated_arrays (the module behind ffkern.arrays) of CMakeLists.txt."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pybind11
import torch

from . import toolkit

ROOT = toolkit.ROOT
FOLDER = ROOT / "build" / "emulated"
NVCC_FLAGS = ("-std=c++20", "-O3", "--Werror=all-warnings")  # as in CMakeLists.txt


def run_all(commands: Iterable[Sequence[str | Path]]) -> list[str]:
    """Runs commands side by side, as many as there are cores; returns what each printed."""
    waiting, running, printed = [[str(a) for a in c] for c in commands], [], []
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            command, pipe = waiting.pop(0), subprocess.PIPE
            process = subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True)
            running.append((command, process))
        command, process = running.pop(0)
        text = process.communicate()[0]
        if process.returncode:
            for _, other in running:
                other.communicate()
            raise RuntimeError(f"{' '.join(command)}\n{text}")
        printed.append(text)
    return printed


def build() -> None:
    """CMake and ninja rebuild only what has changed since the last call."""
    options = {
        "CMAKE_MAKE_PROGRAM": toolkit.build_tool("ninja"),
        "FFKERN_TORCH": "ON",
        "FFKERN_TORCH_DIR": Path(torch.__file__).parent,
        "FFKERN_ARRAYS": "ON",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "FFKERN_CUDA": "ON",
        "FFKERN_NVCC": toolkit.nvcc(),
        # PTX only: the driver of an emulated device refuses machine code anyway.
        "FFKERN_CUDA_ARCHS": "compute_75;compute_80;compute_90a",
        "FFKERN_WERROR": "ON",
    }
    cmake = toolkit.build_tool("cmake")
    configure = [cmake, "-S", ROOT, "-B", FOLDER, "-G", "Ninja"]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run_all([[*configure, *(f"-D{name}={value}" for name, value in options.items())]])
        run_all([[cmake, "--build", FOLDER, "--target", "ffkern_emulated", "ffkern_emulated_arrays"]])
