"""Compiles the CUDA launch path for CPU tensors: the shipped sources, ops.cpp, and the kernels as PTX."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from . import toolkit

ROOT = toolkit.ROOT
FOLDER = ROOT / "build" / "emulated"
KERNELS = ("layer_forward",)
SOURCES = (
    "csrc/cuda/driver.cpp",
    "csrc/cuda/module.cpp",
    "csrc/cuda/layer_forward.cpp",
    "csrc/torch/cuda_ops.cpp",
    "tests/emulated/ops.cpp",
)
NVCC_FLAGS = ("-std=c++17", "-O3", "--Werror=all-warnings")
# PTX only: the driver of the emulated device refuses machine code anyway.
PTX_FLAGS = ("-fatbin", "-gencode=arch=compute_80,code=compute_80", *NVCC_FLAGS)
CXX_FLAGS = (
    *("-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fvisibility=hidden"),
    "-DTORCH_TARGET_VERSION=0x020d000000000000",
)
TORCH = Path(torch.__file__).parent


def run_all(commands: Iterable[Sequence[str | Path]]) -> list[str]:
    """Runs commands side by side, as many as there are cores; returns what each printed."""
    waiting, running, printed = [[str(a) for a in c] for c in commands], [], []
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            command = waiting.pop(0)
            pipe = subprocess.PIPE
            running.append(
                (command, subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT))
            )
        command, process = running.pop(0)
        text = process.communicate()[0].decode()
        if process.returncode:
            for _, other in running:
                other.wait()
            raise RuntimeError(f"{' '.join(command)}\n{text}")
        printed.append(text)
    return printed


def _key() -> str:
    inputs = [*(ROOT / "csrc").rglob("*"), *(ROOT / "tests/emulated").glob("*.cpp"), Path(__file__)]
    relevant = [p for p in inputs if p.is_file() and p.parent.name != "cpu"]
    digest = hashlib.sha256(f"{torch.__version__} {toolkit.nvcc()}".encode())
    for path in sorted(relevant):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def library() -> Path:
    """The compiled library; kept in build/emulated until a source changes."""
    target = FOLDER / f"ffkern_emulated-{_key()}.so"
    if target.exists():
        return target
    FOLDER.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=FOLDER))
    try:
        cuda, include = ROOT / "csrc/cuda", TORCH / "include"
        objects = {s: work / (s.replace("/", "_") + ".o") for s in SOURCES}
        images = [
            [toolkit.nvcc(), *PTX_FLAGS, cuda / f"{k}.cu", "-o", work / f"{k}.fatbin"]
            for k in KERNELS
        ]
        run_all(
            images
            + [
                ["g++", *CXX_FLAGS, f"-I{ROOT}/csrc", "-isystem", include, "-c", ROOT / s, "-o", o]
                for s, o in objects.items()
            ]
        )
        run_all([["g++", "-c", cuda / "images.S", f"-Wa,-I{work}", "-o", work / "images.o"]])
        link = [
            "g++",
            "-shared",
            *objects.values(),
            work / "images.o",
            f"-L{TORCH}/lib",
            "-ltorch_cpu",
        ]
        run_all([[*link, "-ldl", "-Wl,--no-undefined", "-o", work / "library.so"]])
        os.replace(work / "library.so", target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target
