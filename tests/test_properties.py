"""Drawn cases of every operation on every backend (properties.py says what can be drawn and what has to hold).

A failure is shrunk to its simplest case, and ends in one line of shell that repeats it. FFKERN_PROPERTY_EXAMPLES is how
many cases an operation gets on each backend: a few, or as many as a longer hunt has time for.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import hypothesis
import op_cases as cases
import properties
import pytest
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FFKERN_PROPERTY_EXAMPLES") or 10)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def storage(tmp_path: Path) -> None:
    """What hypothesis keeps of its own goes with the test."""
    hypothesis.configuration.set_hypothesis_home_dir(tmp_path)


def hunt(op: str, backend: str, examples: int, seed: int) -> None:
    """Draws cases, and fails with the line of the simplest that fails.

    Every choice is among listed values: the same seed draws the same cases, whatever else is imported. Nothing is
    kept, nothing is timed (the machine may be busy); no case is thrown away, so no health is to be checked.
    """
    failed: list[properties.Case] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
    )
    @hypothesis.given(
        st.fixed_dictionaries({name: st.sampled_from(of) for name, of in properties.choices(op, backend).items()})
    )
    def holds(drawn: properties.Case) -> None:
        case = properties.settled(drawn)
        try:
            properties.check(case)
        except Exception:
            failed.append(case)
            raise

    try:
        holds()
    except Exception as error:
        if not failed:
            raise
        raise AssertionError(f"{error}\nrepeat: {properties.line(failed[-1])}") from error  # hypothesis ends with it


def test_every_operation_is_drawn() -> None:
    assert sorted(properties.FIELDS) == cases.TENSOR_OPS


@pytest.mark.parametrize("op", properties.FIELDS)
def test_operation(op: str, unit: str, seed: int) -> None:
    hunt(op, unit, EXAMPLES, seed)


@pytest.mark.parametrize("device", cases.CUDA, indirect=True)
@pytest.mark.parametrize("op", cases.CUDA_OPS)
def test_operation_on_cuda(op: str, device: str, seed: int) -> None:
    hunt(op, device, EXAMPLES, seed)


# A forward pass with a mistake that only some sizes and dtypes show.
BROKEN = """
import op_cases as cases

def broken(forward=cases.forward, **a):
    got = forward(**a)
    units = a["weight"].shape[0]
    if units >= 9 and a["x"].shape[0] > 1:
        got["goodness"][1] *= 1.01
    return got

cases.forward = broken
"""


def test_a_failure_prints_a_line_that_repeats_it(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    whole = cases.forward
    with cases.running_on("cpu-portable"):
        hunt("layer_forward", "cpu-portable", 50, seed)
        monkeypatch.setattr(cases, "forward", whole)  # to be restored
        exec(BROKEN, {})
        with pytest.raises(AssertionError) as failure:
            hunt("layer_forward", "cpu-portable", 50, seed)
    message, _, command = str(failure.value).rpartition("\nrepeat: ")
    assert message.startswith("goodness: error")
    threads, _, script, words = shlex.split(command)
    case = properties.parse(words)
    assert (case["units"], case["rows"]) == (9, 2), "not the simplest case"
    assert properties.line(case) == command

    def repeat(*python: str) -> subprocess.CompletedProcess[str]:
        name, _, value = threads.partition("=")
        environment = os.environ | {name: value, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        return subprocess.run(
            [sys.executable, *python, words], cwd=ROOT, env=environment, capture_output=True, text=True
        )

    held = repeat(script)
    assert (held.returncode, held.stdout) == (0, "holds\n"), held.stderr
    failed = repeat("-c", f"{BROKEN}\nimport sys, properties\nproperties.main(sys.argv[1])")
    assert failed.returncode == 1
    assert failed.stderr.rstrip().endswith(f"AssertionError: {message}"), failed.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [("op=local_loss rows=4", r"rows is '4'; expected one of 1, 2, 3"), ("op=local_loss sign=up", r"sign is 'up'")],
)
def test_a_line_with_a_mistake_is_refused(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        properties.parse(words)
