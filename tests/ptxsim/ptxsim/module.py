"""PTX modules: compiling, questioning, launching."""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from .library import Config, PtxError, check, lib
from .memory import DeviceBuffer, contiguous, is_array, unwrapped


def demangle(names: list[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    return done.stdout.split("\n")[: len(names)] if done.stdout else names


def _scalar(value, parameter: dict, what: str) -> bytes:
    """The bytes of an argument that is not an array."""
    size, is_float = parameter["size"], parameter["float"]
    if value is None:
        return bytes(8)
    if isinstance(value, DeviceBuffer):
        return struct.pack("<Q", value.addr)
    if isinstance(value, (bytes, bytearray, ctypes._SimpleCData, ctypes.Structure, ctypes.Array)):
        return bytes(value)
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tobytes()
    if isinstance(value, float) and not (is_float or parameter["bits"]):
        raise PtxError(f"{what} is a float but the parameter is not")
    if isinstance(value, float) or (isinstance(value, int) and is_float):
        return struct.pack("<f" if size == 4 else "<d", value)
    if isinstance(value, int):
        return (int(value) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    raise TypeError(f"{what}: {type(value)!r}")


def _triple(size) -> tuple[int, int, int]:
    given = (size,) if isinstance(size, int) else tuple(size)
    return (*given, *(1,) * (3 - len(given)))


class Module:
    """Parsed PTX. `.kernels` lists the entry points, `.vars` the variables in global and constant memory."""

    def __init__(self, ptx_text: str):
        self.ptx, self._handle = ptx_text, None
        self._handle = check(lib().ps_parse(ptx_text.encode()))
        info = json.loads(lib().ps_info(self._handle))
        self.target = info["target"]
        self.kernels = info["kernels"]
        for kernel, name in zip(self.kernels, demangle([k["name"] for k in self.kernels]), strict=True):
            kernel["demangled"] = name
        self.vars = {v["name"]: v for v in info["vars"]}

    @classmethod
    def from_cuda(cls, path_or_source: str | Path, arch: str = "sm_80", flags=(), keep=None) -> Module:
        """Compiles CUDA C++ (a file, or source text) with nvcc -ptx. keep: where the PTX shall stay."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(path_or_source) if "\n" not in str(path_or_source) else Path(folder, "src.cu")
            if not source.exists():
                source = Path(folder, "src.cu")
                source.write_text(str(path_or_source))
            out = Path(keep or Path(folder, "out.ptx"))
            command = ["nvcc", "-ptx", f"-arch={arch}", "-std=c++17", *flags, source, "-o", out]
            done = subprocess.run([*map(str, command)], capture_output=True, text=True)
            if done.returncode:
                raise PtxError("nvcc failed:\n" + done.stderr[-8000:])
            return cls(out.read_text())

    @classmethod
    def from_file(cls, path: str | Path) -> Module:
        return cls(Path(path).read_text())

    def find(self, name: str) -> dict:
        """The record of a kernel, by mangled name, demangled name, or a unique part of either."""
        for test in (
            lambda k: k["name"] == name,
            lambda k: k["demangled"] == name,
            lambda k: re.split(r"[<(]", re.sub(r"^void ", "", k["demangled"]))[0] == name,
            lambda k: name in k["demangled"],
            lambda k: name in k["name"],
        ):
            hit = [k for k in self.kernels if test(k)]
            if len(hit) == 1:
                return hit[0]
            if len(hit) > 1:
                raise PtxError(f"kernel name {name!r} is ambiguous: {[k['demangled'][:120] for k in hit]}")
        raise PtxError(f"no kernel {name!r}; have {[k['demangled'][:120] for k in self.kernels]}")

    def info(self, name: str) -> dict:
        """Instruction count, static shared memory and unsupported instructions of a kernel."""
        return json.loads(check(lib().ps_kernel_info(self._handle, self.find(name)["name"].encode())))

    def _pack(self, kernel: dict, args) -> tuple[bytes, list[DeviceBuffer], list[tuple[int, DeviceBuffer]]]:
        """The parameter block, the buffers of this launch, and those among them that are `Out`."""
        parameters = kernel["params"]
        if len(args) != len(parameters):
            raise PtxError(f"{kernel['demangled'][:100]} takes {len(parameters)} arguments, got {len(args)}")
        raw = bytearray(max((p["offset"] + p["size"] for p in parameters), default=0))
        buffers: dict[tuple[int, int], DeviceBuffer] = {}
        outs = []
        for i, (argument, parameter) in enumerate(zip(args, parameters, strict=True)):
            value, readonly, uninit = unwrapped(argument)
            if is_array(value):
                key = contiguous(value)
                if key not in buffers:  # one array may be passed twice
                    buffers[key] = DeviceBuffer(value, readonly, uninit, f"argument {i}")
                    if uninit:
                        outs.append((i, buffers[key]))
                value = buffers[key]
            data = _scalar(value, parameter, f"argument {i}")
            if len(data) != parameter["size"]:
                raise PtxError(f"argument {i} has {len(data)} bytes, parameter has {parameter['size']}")
            raw[parameter["offset"] : parameter["offset"] + len(data)] = data
        return bytes(raw), list(buffers.values()), outs

    def launch(
        self,
        name: str,
        grid,
        block,
        args,
        smem: int = 0,
        cluster=(1, 1, 1),
        check_races: bool = True,
        check_uninit: bool = True,
        check_proxy: bool = True,
        allow_exited_at_barrier: bool = False,
        allow_exited_cta: bool = False,
        threads: int = 2,
        resident: int = 1,
        max_instructions: int = 4_000_000_000,
        max_smem: int = 227 * 1024,
        order: int = 0,
        strict_warp: bool = True,
    ) -> dict:
        """Runs a kernel; returns statistics. Raises PtxError on any violation.

        threads: host threads. resident: blocks that run interleaved on one of them (-1: the whole grid, for grid-wide
        barriers). strict_warp: only __syncwarp and barriers order shared-memory accesses within a warp; False:
        shuffles, votes and mma do so too. order: of the warps; 0 ascending, 1 descending, from 2 on pseudo-random
        with that seed."""
        kernel = self.find(name)
        raw, buffers, outs = self._pack(kernel, args)
        config = Config(
            grid=_triple(grid),
            block=_triple(block),
            cluster=_triple(cluster),
            dynamic_smem=smem,
            check_races=check_races,
            check_uninit=check_uninit,
            check_proxy=check_proxy,
            allow_exited_cta=allow_exited_cta,
            allow_exited_at_barrier=allow_exited_at_barrier,
            threads=threads,
            resident=resident,
            max_smem=max_smem,
            max_instructions=max_instructions,
            order=order,
            strict_warp=strict_warp,
        )
        try:
            name = kernel["name"].encode()
            stats = json.loads(check(lib().ps_launch(self._handle, name, ctypes.byref(config), raw, len(raw))))
            if outs:
                stats["unwritten_bytes"] = {i: buffer.unwritten() for i, buffer in outs}
            return stats
        finally:
            for buffer in buffers:
                buffer.free()

    def __del__(self):
        with contextlib.suppress(Exception):
            if self._handle:
                lib().ps_free_module(self._handle)
