"""The CUDA kernels on a software driver: test equipment, never part of the package.

`load()` compiles the shipped launch path with a LaunchScope for CPU tensors, and the PTX of the
kernels, and registers torch.ops.ffkern_emulated: the operations of ffkern that have CUDA kernels,
with the same schemas, for CPU tensors. The driver underneath is tests/ptxsim.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from types import ModuleType

from . import toolkit

__all__ = ["FORCE", "environment", "instances", "load", "toolkit"]

FORCE = "FFKERN_CUDA_LAYER_FORWARD"  # forces an instance of the kernel by name


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

    toolkit.put_nvcc_on_path()
    sys.path.insert(0, str(toolkit.ROOT / "tests/ptxsim"))
    import ptxsim

    from . import build

    torch.ops.load_library(str(build.library()))
    # The variables are read when the library first needs its driver, which is now: afterwards a
    # real driver can be loaded in the same process.
    with environment(FFKERN_CUDA_DRIVER=ptxsim.driver_library(), PTXSIM_DEVICE="sm_80"):
        matrix = torch.zeros(1, 8, dtype=torch.bfloat16)
        torch.ops.ffkern_emulated.layer_forward(matrix, matrix, None, None, "l2", 1e-4, "mean_sq")
    return ptxsim


def instances() -> list[str]:
    """Names of the compiled instances of the forward kernel, from the header that lists them."""
    import re

    header = toolkit.ROOT / "csrc/cuda/layer_forward_tile.h"
    return re.findall(r"^\s*X\((\w+),", header.read_text(), re.M)
