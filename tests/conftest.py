"""Seeds and the choice of CPU path, for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

import ffkern  # noqa: F401  (registers the operations)

ISAS = torch.ops.ffkern.cpu_path().split(";")[1].split(", ")


@pytest.fixture(autouse=True)
def seed() -> int:
    """Fresh random inputs in every run; a failing test shows the seed that repeats it."""
    value = int(os.environ.get("FFKERN_TEST_SEED") or int.from_bytes(os.urandom(4), "little"))
    print(f"FFKERN_TEST_SEED={value}")
    torch.manual_seed(value)
    return value


def _forced(variable: str, value: str) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, value)
        torch.ops.ffkern.reset_cpu_path()
        yield value
    torch.ops.ffkern.reset_cpu_path()


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that this build has and this machine runs."""
    for value in _forced("FFKERN_CPU_ISA", request.param):
        assert torch.ops.ffkern.cpu_path().split(";")[0] == value
        yield value


@pytest.fixture
def own_gemm() -> Iterator[None]:
    """The library's own matrix product instead of torch's BLAS."""
    for _ in _forced("FFKERN_GEMM", "own"):
        assert torch.ops.ffkern.cpu_path().split(";")[2] == "own"
        yield


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that an operation allocates and never writes reads as NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads that a test changes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
