"""Seeds and the choice of CPU path, for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import emulated
import pytest
import torch

import ffkern.ops  # noqa: F401  (registers the operations)

# Else torch's products on a GPU count as not deterministic. Read when cuBLAS starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

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


CUDA = [
    *(pytest.param(f"emulated-cuda-{name}", marks=pytest.mark.emulated) for name in emulated.DEVICES),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


def _on(where: str) -> Iterator[str]:
    kind, _, which = where.rpartition("-")
    if kind == "cpu":
        for value in _forced("FFKERN_CPU_ISA", which):
            assert torch.ops.ffkern.cpu_path().split(";")[0] == value
            yield where
    elif kind == "emulated-cuda":
        with emulated.device(which):
            yield where
    elif which == "cpu":
        yield where
    else:
        if not torch.cuda.is_available():
            pytest.skip("no GPU on this machine")
        with torch.device("cuda"):
            yield where


@pytest.fixture(params=[*(f"cpu-{isa}" for isa in ISAS), *CUDA])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the operations run: every instruction set of this machine, the CUDA kernels on every device of the software
    driver, and a GPU if there is one."""
    yield from _on(request.param)


@pytest.fixture(params=["cpu", *CUDA])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The same for what does not depend on the CPU's instruction set."""
    yield from _on(request.param)


@pytest.fixture(params=["blas", "own"])
def product(request: pytest.FixtureRequest) -> Iterator[str]:
    """torch's BLAS and the library's own matrix product; which one is the default depends on the processor."""
    for value in _forced("FFKERN_GEMM", request.param):
        assert torch.ops.ffkern.cpu_path().split(";")[2] == value
        yield value


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
