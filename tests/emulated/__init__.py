"""The CUDA kernels on a software driver: test equipment, never part of the package.

``load()`` compiles the shipped launch path with a LaunchScope for CPU tensors, and the PTX of the kernels, and
registers ``torch.ops.ffkern_emulated``: the CUDA operations of ffkern, with the same schemas, for CPU tensors. The
driver underneath is tests/ptxsim, with one device of every kind in ``DEVICES``.

``device(name)`` lets ffkern's own operations run on such a device for a while: everything above them (modules,
optimisers, trainer) then works as it is, on CPU tensors whose kernels are the CUDA ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from . import toolkit

__all__ = [
    "DEVICES",
    "FORCE",
    "FORCE_FLOAT32",
    "FORCE_LEAVE_OUT",
    "TESTED",
    "device",
    "environment",
    "hopper_instances",
    "instances",
    "load",
    "toolkit",
]

FORCE = "FFKERN_CUDA_PRODUCT"  # forces an instance of the products by name
FORCE_FLOAT32 = "FFKERN_CUDA_FLOAT32"  # forces the arithmetic of float32 products
FORCE_LEAVE_OUT = "FFKERN_CUDA_LEAVE_OUT"  # forces rows to be left out where it would not pay
DEVICES = ("sm_75", "sm_80", "sm_90", "sm_89")
TESTED = DEVICES[:3]  # the last is sm_80 with other numbers, for the counts of bench


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Environment variables, set for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@functools.cache
def load() -> ModuleType:
    """Registers torch.ops.ffkern_emulated; returns ptxsim, to control and question the driver."""
    import torch

    from ffkern import ops

    toolkit.put_nvcc_on_path()
    sys.path.insert(0, str(toolkit.ROOT / "tests/ptxsim"))
    import ptxsim

    from . import build

    _keep.append(torch.library.Library("ffkern_emulated", "DEF"))
    for name, schema in ops.SCHEMAS.items():
        _keep[0].define(name + schema)
    build.build()
    torch.ops.load_library(str(build.FOLDER / "ffkern_emulated.so"))
    # The variables are read when the library first needs its driver, which is now: afterwards a
    # real driver can be loaded in the same process.
    with environment(FFKERN_CUDA_DRIVER=ptxsim.driver_library(), PTXSIM_DEVICE=",".join(DEVICES)):
        torch.ops.ffkern_emulated.update_workspace(torch.zeros(1, 1), 1, 0, 1, "sgd")  # which loads no kernel yet
    return ptxsim


_keep: list[Any] = []  # libraries whose registrations go with them


def operations() -> list[str]:
    """The operations that have CUDA kernels."""
    import torch

    from ffkern import ops

    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return [name for name in ops.SCHEMAS if has(f"ffkern_emulated::{name}", "CPU")]


def call(name: str) -> Callable[..., Any]:
    """The operation on the emulated device; a failed launch says what the emulator saw."""
    import torch

    ptxsim = load()
    op = getattr(torch.ops.ffkern_emulated, name).default

    def run(*args: Any) -> Any:
        try:
            return op(*args)
        except RuntimeError as error:
            if "failed with CUDA_ERROR" in str(error):  # kernel, PTX line, block and thread
                raise RuntimeError(f"{error}\n{ptxsim.driver_last_error()}") from error
            raise

    return run


@contextlib.contextmanager
def device(name: str, *, stream: int | None = None, hold: bool = False) -> Iterator[ModuleType]:
    """ffkern's operations on CPU tensors run their CUDA kernels on this device of the software driver.

    With ``hold`` memory stays addressable after an operation, for graphs to replay, until the context ends.
    """
    import torch

    from . import build

    ptxsim = load()
    select = ctypes.CDLL(str(build.FOLDER / "ffkern_emulated.so")).ffkern_emulated_select
    select.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
    select(DEVICES.index(name), stream, hold)
    library = torch.library.Library("ffkern", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that operations are overridden is the purpose
            for operation in operations():
                library.impl(operation, call(operation), "CPU", allow_override=True)
        yield ptxsim
    finally:
        library._destroy()
        select(DEVICES.index("sm_80"), None, False)


def _listed(family: str, width: int | None) -> list[str]:
    """Names in the lists of instances for operands of 2 or 4 bytes, from the header that has them."""
    header = (toolkit.ROOT / f"csrc/cuda/{'hopper' if family == 'HOPPER' else 'product'}.h").read_text()
    names = []
    for bits in (16, 32):
        part = re.search(rf"FFKERN_{family}_{bits}BIT\(X\)(.*?)\n(?!\s+X)", header, re.S)
        assert part is not None
        if width is None or width * 8 == bits:
            names += re.findall(r"X\((\w+),", part.group(1))
    return names


def instances(width: int | None = None) -> list[str]:
    """Names of the compiled instances for operands of 2 or 4 bytes."""
    return _listed("TILES", width)


def hopper_instances(width: int | None = None) -> list[str]:
    """Names of the instances for devices of compute capability 9.0 alone."""
    return _listed("HOPPER", width)


def tile_values(instance: str) -> list[int]:
    """Tile M, N, K, stages of an instance; then warps M, N, copy bytes, blocks, which Hopper's do not have."""
    for name in ("product.h", "hopper.h"):
        found = re.search(rf"X\({instance}, ([\d, ]+)\)", (toolkit.ROOT / "csrc/cuda" / name).read_text())
        if found is not None:
            return [int(value) for value in found.group(1).split(",")]
    raise KeyError(instance)
