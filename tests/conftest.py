"""Seeds and the choice of CPU path, for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from op_cases import CPU, CUDA, ISAS, UNITS, forced, running_on

# Else torch's products on a GPU count as not deterministic. Read when cuBLAS starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def seed() -> int:
    """Fresh random inputs in every run; a failing test shows the seed that repeats it."""
    value = int(os.environ.get("FFKERN_TEST_SEED") or int.from_bytes(os.urandom(4), "little"))
    print(f"FFKERN_TEST_SEED={value}")
    torch.manual_seed(value)
    return value


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that this build has and this machine runs."""
    with forced(FFKERN_CPU_ISA=request.param) as path:
        assert path[0] == request.param
        yield request.param


def _on(where: str) -> Iterator[str]:
    if where == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU on this machine")
    with running_on(where):
        yield where


@pytest.fixture(params=[*CPU, *CUDA])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the operations run: every instruction set of this machine, the CUDA kernels on every device of the software
    driver, and a GPU if there is one. cases.every_backend_of() adds the CPU's units for bfloat16."""
    yield from _on(request.param)


@pytest.fixture(params=[*CPU, *UNITS])
def unit(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every way of this machine to multiply bfloat16: by multiply-adds of every instruction set, and on every unit."""
    yield from _on(request.param)


@pytest.fixture(params=["cpu", *CUDA])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The same for what does not depend on the CPU's instruction set."""
    yield from _on(request.param)


@pytest.fixture(params=["blas", "own"])
def product(request: pytest.FixtureRequest) -> Iterator[str]:
    """torch's BLAS and the library's own matrix product; which one is the default depends on the processor."""
    with forced(FFKERN_GEMM=request.param) as path:
        assert path[2] == request.param
        yield request.param


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that an operation allocates and never writes reads as NaN. On a GPU the reference uses operations of
    torch's that have no deterministic form, so torch may warn but not raise."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads that a test changes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
