"""The tests notice mistakes in the CPU kernels: a few of those that mutation/cpu.py makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutation import cpu

ROOT = Path(__file__).resolve().parents[1]
SUITE = ("test_properties.py::test_operation",)  # the shortest that calls every operation
# Of all kinds and kernels, on any processor; choose others if the code changes that they are made in.
CAUGHT = [
    "core/math.h: return 1.0f / (n + kind.eps); => return 1.0f / (n - kind.eps);",
    "cpu/gemm_kernels.cpp: for (; i < rows; ++i) tile<A, 1, kVectors>(k, a + i * lda, lda, b, add, c + i * ldc, ldc); "
    "=> for (; false && i < rows; ++i) tile<A, 1, kVectors>(k, a + i * lda, lda, b, add, c + i * ldc, ldc);",
    "cpu/hybrid.cpp: const float* above = r > 0 ? in - width : in; => const float* above = r > 0 ? in + width : in;",
    "cpu/labels.cpp: sum += p; => sum = p;",
    "cpu/layer.cpp: out.scale[i] = row.scale; => ;",
    "cpu/learn.cpp: for (int64_t j = 0; j < layer.units; ++j) column[j] += neutral[j]; => "
    "for (int64_t j = 0; j < layer.units; ++j) column[j] = neutral[j];",
    "cpu/row_kernels.cpp: store(weight + j, fnma(lr, fma(decay, w, a), w), lanes); => ;",
    "cpu/rows.h: const int64_t first = panel * kPanel, rows = units - first < kPanel ? units - first : kPanel; => "
    "const int64_t first = panel * kPanel, rows = units - first > kPanel ? units - first : kPanel;",
]


@pytest.fixture(scope="module")
def workshop() -> cpu.Workshop:
    return cpu.Workshop(ROOT / "build" / "mutation" / "cpu")


def test_nothing_is_caught_without_a_mistake(workshop: cpu.Workshop) -> None:
    assert workshop.build(None) == ""
    assert workshop.tests(SUITE) == ""


@pytest.mark.parametrize("name", CAUGHT, ids=lambda name: name.partition(":")[0])
def test_a_mistake_is_caught(name: str, workshop: cpu.Workshop) -> None:
    mutant = next((mutant for mutant in cpu.mutants() if mutant.name == name), None)
    assert mutant, f"the code has changed, choose another mistake than {name}"
    assert workshop.build(mutant) == ""
    assert workshop.tests(SUITE, mutant.likely), "no test has noticed"


def test_every_mistake_has_its_place_and_name() -> None:
    every = cpu.mutants()
    assert len({mutant.name for mutant in every}) == len(every)
    assert {mutant.kind for mutant in every} == {kind for kind, _, _ in cpu.RULES}
    for mutant in every:
        source = (ROOT / "csrc" / mutant.file).read_text()
        assert mutant.apply(source) != source, mutant.name
        before, _, after = mutant.name.partition(": ")[2].partition(" => ")
        assert before, after


def test_every_explanation_names_a_mistake() -> None:
    stale = cpu.EQUIVALENT.keys() - {mutant.name for mutant in cpu.mutants()}
    assert not stale, f"the code has changed, and these explanations with it: {stale}"
