"""The programs in examples/ do what they say. The one in C++ is built and run in test_cpp.py."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

# What each prints, and the worst accuracy or the largest error in percent that is still right.
PRINTS: dict[str, list[tuple[str, float, float]]] = {
    "pytorch_digits.py": [(r"highest goodness: ([\d.]+)%", 94, 100), (r"linear probe .*: ([\d.]+)%", 95, 100)],
    "numpy_digits.py": [(r"test error ([\d.]+)%", 0, 5)],
    "sklearn_digits.py": [
        (r"digits, FFClassifier: accuracy ([\d.]+)", 0.95, 1),
        (r"breast cancer, 5-fold: accuracy ([\d.]+)", 0.93, 1),
        (r"every image seen once: accuracy ([\d.]+)", 0.75, 1),
    ],
}


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*PRINTS, "cupy_digits.py"}


@pytest.mark.parametrize("name", PRINTS)
def test_example(name: str) -> None:
    command = [sys.executable, "-W", "error", EXAMPLES / name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for pattern, low, high in PRINTS[name]:
        found = re.search(pattern, done.stdout)
        assert found, done.stdout
        assert low <= float(found[1]) <= high, done.stdout


@pytest.mark.emulated
def test_the_example_for_cupy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As it is, with a stand-in for CuPy whose arrays are on the software driver; small, because that is slow."""
    from emulated.arrays import arrays_module, namespace

    from ffkern import arrays

    cupy = types.ModuleType("cupy")
    cupy.__dict__.update({k: v for k, v in vars(namespace(1)).items() if not k.startswith("__")})
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(arrays, "_arrays", arrays_module())
    spec = importlib.util.spec_from_file_location("cupy_digits", EXAMPLES / "cupy_digits.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    accuracy = example.main(images=400, epochs=12, units=128, batch=32)
    assert capsys.readouterr().out == f"test accuracy {accuracy:.1%}\n"
    assert accuracy >= 0.7


@pytest.mark.gpu
def test_the_example_for_cupy_on_a_gpu() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if not cupy.is_available():
        pytest.skip("no GPU on this machine")
    done = subprocess.run([sys.executable, EXAMPLES / "cupy_digits.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(re.findall(r"test accuracy ([\d.]+)%", done.stdout)[0]) >= 94
