"""make gpu-check and the benchmark on a GPU, as far as they go without one.

Kernels run on the software driver, graphs are captured by it, and a clock of our own stands in for events: what these
tests measure is never a speed. Names and numbers of GPUs in here are made up.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import emulated
import every_operation
import gpu_check
import op_cases
import pytest
import test_gpu
import torch
from emulated.graphs import Graphs
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bench import cases, cuda_timing, gate, gpu, gpu_report, operations, report, run, traffic
from bench.cuda_timing import Ceilings, Rig
from bench.eager import EagerStep
from bench.fused import FusedStep
from ffkern import nn

ROOT = Path(__file__).resolve().parents[1]
TINY: list[gpu.GpuCase] = [
    cases.StepCase(24, 40, 16),
    cases.StepCase(24, 40, 16, shared=True),
    cases.PredictCase((40, 16, 12), 30),
]
TINY_OPERATIONS = [operations.OperationCase(name, rows=20, side=5, units=12) for name in operations.RESULTS]
BY_NAME = {precision.name: precision for precision in cases.PRECISIONS}
SLOW = gpu_report.Gpu("Imaginary GPU 1", "9.9", 2**30, 2**20, 1, "0.0", "0.0", "0.0")
CEILINGS = Ceilings(1000.0, 5.0, {"float32": 10.0, "bfloat16": 100.0})
ORIGIN = report.Origin("ffkern bench --device cuda", "no machine", "0.0", 1, "2026-01-02")


class DirectGraphs:
    """A graph that is the call itself."""

    def aside(self, call: Callable[[], object]) -> None:
        call()

    def record(self, call: Callable[[], object]) -> Callable[[], object]:
        return call


def count_of_calls(call: Callable[[], object]) -> float:
    """A sample of a clock that stands still."""
    call()
    return 1e-3


def a_rig() -> Rig:
    def peak(call: Callable[[], object]) -> int:
        call()
        return 2**20

    return Rig("cpu", count_of_calls, DirectGraphs(), peak)


def options(**changes: Any) -> argparse.Namespace:
    given = {"quick": False, "filter": "", "seconds": 1e-9, "json": None, "png": None, "readme": False}
    return argparse.Namespace(**(given | {"no_compile": True} | changes))


# ------------------------------------------------------------ refusals


def a_torch(cuda: str | None, gpus: int, capability: tuple[int, int] = (8, 0)) -> Any:
    properties = types.SimpleNamespace(
        name="Imaginary GPU 1", major=capability[0], minor=capability[1], multi_processor_count=3,
        total_memory=2**34, L2_cache_size=2**22,
    )  # fmt: skip
    found = types.SimpleNamespace(
        is_available=lambda: gpus > 0,
        device_count=lambda: gpus,
        get_device_properties=lambda _: properties,
        get_device_capability=lambda: capability,
    )
    return types.SimpleNamespace(__version__="9.9", version=types.SimpleNamespace(cuda=cuda), cuda=found)


def facts(*images: str) -> dict[str, Any]:
    return {"version": "0.1", "build": {"nvcc": "13.0"}, "cuda": {"images": list(images)}}


@pytest.mark.parametrize(
    ("torch_", "images", "reason"),
    [
        (a_torch(None, 0), ["sm_80"], "torch 9.9 is a build without CUDA"),
        (a_torch("13.0", 0), ["sm_80"], "torch sees no GPU"),
        (a_torch("13.0", 1), [], "this build of ffkern has no CUDA kernels"),
        (a_torch("13.0", 1, (7, 0)), ["sm_80"], "compute capability 7.0: ffkern's kernels need 7.5"),
        (a_torch("13.0", 1), ["sm_80"], ""),
    ],
)
def test_what_cannot_be_checked_is_refused(torch_, images, reason):
    found = gpu_check.refusal(torch_, facts(*images))
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def test_the_machine_is_described():
    lines = "\n".join(gpu_check.machine(a_torch("13.0", 2), facts("sm_80", "compute_80"), ""))
    for words in ("torch 9.9, CUDA 13.0", "nvcc 13.0", "sm_80, compute_80", "nvidia-smi: not found"):
        assert words in lines
    assert "cuda:1 Imaginary GPU 1, compute capability 8.0, 3 multiprocessors, 16 GiB, L2 4 MiB" in lines


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")
def test_without_a_gpu_the_commands_say_so(capsys):
    done = subprocess.run([sys.executable, "tests/gpu_check.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert f"torch {torch.__version__}" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("gpu-check: torch ")
    assert (ROOT / "build" / "gpu-check.log").read_text() == done.stdout
    assert every_operation.main() == 2
    assert capsys.readouterr().err == "torch sees no CUDA device on this machine\n"


# ------------------------------------------------------------ the steps


def test_steps_in_order_whatever_fails():
    said: list[str] = []
    planned = [gpu_check.Step(name, (name,), 1.0) for name in ("one", "two", "three")]
    planned.insert(1, gpu_check.Step("none", ("none",), 1.0, missing="it is not installed"))

    def runner(step: gpu_check.Step, say: gpu_check.Say) -> gpu_check.Outcome:
        if step.missing:
            return gpu_check.run(step, say)
        say(f"ran {step.name}")
        return gpu_check.Outcome(step.name, "failed" if step.name == "one" else "passed", 2.0)

    assert gpu_check.check(planned, said.append, runner) == 1
    assert [line for line in said if line.startswith("ran")] == ["ran one", "ran two", "ran three"]
    assert said[-5:] == [
        "one    failed      2.0 s",
        "none   skipped     0.0 s  it is not installed",
        "two    passed      2.0 s",
        "three  passed      2.0 s",
        "4 steps, 1 failed, 6 s",
    ]
    assert gpu_check.check(planned[1:], said.append, runner) == 0


def python(code: str, limit: float = 60.0, **variables: str) -> gpu_check.Step:
    return gpu_check.Step("it", (sys.executable, "-c", code), limit, variables)


def test_a_step_passes_on_what_is_printed():
    said: list[str] = []
    code = "import os, sys; print(os.environ['COLOUR']); print('bad', file=sys.stderr)"
    outcome = gpu_check.run(python(code, COLOUR="green"), said.append)
    assert (outcome.state, outcome.note) == ("passed", "")
    assert sorted(said) == ["bad", "green"]


@pytest.mark.parametrize(
    ("step", "note"),
    [
        (python("raise SystemExit(3)"), "exit status 3"),
        (python("import os; os.kill(os.getpid(), 11)"), "exit status -11"),
        (gpu_check.Step("it", ("/no/such/program",), 1.0), "No such file"),
        # a child that holds the pipe open ends with it
        (python("import subprocess; subprocess.run(['sleep', '60'])", limit=1.0), "stopped after 1 s"),
    ],
)
def test_a_step_that_fails_says_how(step, note):
    outcome = gpu_check.run(step, lambda _: None)
    assert outcome.state == "failed"
    assert note in outcome.note
    assert outcome.seconds < 30


def test_what_the_steps_run_exists():
    planned = gpu_check.steps(Path("/somewhere/compute-sanitizer"))
    assert [step.command[2] for step in planned if "sanitizer" in step.name] == list(gpu_check.TOOLS)
    assert not any(step.missing for step in planned)
    for step in planned:
        for word in step.command:
            path = word.rpartition("=")[2]
            if path.startswith("tests"):
                assert (ROOT / path).is_file(), path
    without = gpu_check.steps(None)
    assert [step.missing for step in without] == [""] * 2 + [gpu_check.NO_SANITIZER] * 4 + [""]
    assert gpu_check.run(without[2], lambda _: None).state == "skipped"
    assert run._parser().parse_args(planned[-1].command[4:]).device == "cuda"


def test_the_parity_step_finds_every_operation():
    command = [*gpu_check.steps(None)[0].command, "--collect-only", "-q", "tests/test_ops.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("tests/test_ops.py: "))
    assert int(line.split(": ")[1]) > 400


# ------------------------------------------------------------ the sanitizers' program


@pytest.mark.emulated
@pytest.mark.parametrize("device", ["sm_80", "sm_90"])
def test_every_operation_under_the_emulator(device):
    """It checks what compute-sanitizer checks: bounds, shared memory, memory that nobody has written."""
    with emulated.device(device):
        made = every_operation.run()
    assert made == 3 * len(every_operation.DTYPES) * len(op_cases.CUDA_OPS)


def test_an_operation_left_out_is_noticed(monkeypatch):
    calls = every_operation.calls
    monkeypatch.setattr(every_operation, "calls", lambda *a: [c for c in calls(*a) if c[0] != "peer_update_"])
    with pytest.raises(AssertionError, match="peer_update_"):
        every_operation.run(every_operation.SHAPES[:1])


# ------------------------------------------------------------ time


class FakeCuda:
    """Events of a device whose clock the test moves; writes down what is asked of it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def Event(self, enable_timing: bool) -> Any:  # noqa: N802
        assert enable_timing
        event = types.SimpleNamespace(at=0.0)

        def record() -> None:
            self.log.append("record")
            event.at = self.now

        event.record = record
        event.elapsed_time = lambda end: end.at - event.at
        return event

    def synchronize(self) -> None:
        self.log.append("synchronize")


def test_a_sample_is_between_events_from_an_idle_device_with_a_cold_cache():
    cuda = FakeCuda()
    scratch = torch.ones(8)

    def call() -> None:
        assert not scratch.any()  # overwritten before, and not inside
        cuda.log.append("call")
        cuda.now += 2.5  # milliseconds

    timer = cuda_timing.EventTimer(scratch, cuda)
    assert timer(call) == 2.5e-3
    assert cuda.log == ["synchronize", "record", "call", "record", "synchronize"]


def test_the_flush_is_larger_than_the_cache():
    assert cuda_timing.flush_bytes(50 * 2**20) == 100 * 2**20
    assert cuda_timing.flush_bytes(0) == 64 * 2**20


def test_ceilings_are_the_best_samples():
    """64 KiB copied and 2 * 8^3 FLOP, in a quarter of a millisecond at best."""
    left = {"slow": 3}

    def sample(call: Callable[[], object]) -> float:
        call()
        left["slow"] -= 1
        return 0.25e-3 if left["slow"] < 0 else 1.0

    rig = dataclasses.replace(a_rig(), sample=sample)
    found = cuda_timing.measure_ceilings(rig, copy_bytes=2**16, sides=(4, 8))
    assert found.copy_gbs == pytest.approx(2 * 2**16 / 0.25e-3 / 1e9)
    assert found.launch_us == pytest.approx(250.0)
    assert found.tflops == pytest.approx(dict.fromkeys(BY_NAME, 2 * 8**3 / 0.25e-3 / 1e12))


def test_the_setting_of_products_is_put_back():
    before = torch.get_float32_matmul_precision()
    with cuda_timing.product_precision(BY_NAME["tf32"]):
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.backends.cuda.matmul.allow_tf32  # torch.compile asks this way: both have to agree
    with cuda_timing.product_precision(BY_NAME["bfloat16"]):
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.get_float32_matmul_precision() == before


class EmulatedGraphs:
    """Captures by the software driver; what torch itself computes in a call is not captured."""

    def __init__(self) -> None:
        self.driver = Graphs()
        self.stream = self.driver.stream()

    def aside(self, call: Callable[[], object]) -> None:
        call()

    def record(self, call: Callable[[], object]) -> Callable[[], object]:
        graph: list[int] = []
        with self.driver.capture(self.stream, graph):
            call()
        return lambda: self.driver.replay(graph[0], self.stream)


@pytest.mark.emulated
@pytest.mark.parametrize("case", TINY[:2], ids=lambda case: case.name)
def test_the_gate_judges_replays(case):
    """Two steps from Python, one replay: the results of three steps. A replay that is missing shows."""
    data = cases.step_data(case)
    exact = gate.learn(EagerStep(case, data, "stacked", dtype=torch.float64))
    eager = gate.learn(EagerStep(case, data, "stacked"))
    graphs = EmulatedGraphs()
    with emulated.device("sm_80", stream=graphs.stream, hold=True):
        verdict = gate.compare(gate.learn(cuda_timing.Replayed(FusedStep(case, data), graphs)), [eager], exact)
        assert verdict.passes(), verdict
        idle = cuda_timing.Replayed(FusedStep(case, data), graphs)
        graphs.record = lambda _: lambda: None
        assert not gate.compare(gate.learn(idle), [eager], exact).passes()


# ------------------------------------------------------------ cases


def test_every_operation_has_a_case():
    covered = set(operations.RESULTS) | operations.IN_STEPS_AND_PREDICTIONS | operations.SAME_LAUNCHES
    assert covered == set(op_cases.CUDA_OPS)
    names = [case.name for case in gpu.all_cases(quick=False)]
    assert len(set(names)) == len(names)
    assert set(names) >= set(gpu_report.SHOWN) | gpu.COMPILED
    quick = [case.name for case in gpu.all_cases(quick=True)]
    assert len(quick) == 2 + len(operations.RESULTS)


def test_compulsory_traffic_by_hand():
    step = cases.StepCase(2, 3, 5)  # four rows, three inputs, five units
    trained = 2 * 4 * 3 * (15 + 5)
    assert traffic.step_bytes(step, 4) == trained + 4 * 4 * 3 + 4 * 4
    assert traffic.step_bytes(step, 2) == trained + 2 * 2 * 15 + 2 * 4 * 3 + 4 * 4
    assert traffic.step_flops(step) == 2 * 2 * 4 * 3 * 5
    shared = cases.StepCase(2, 30, 5, shared=True, keep=True)
    trained = 2 * 4 * 3 * (150 + 5)
    kept = 4 * (4 * 5 + 4)
    assert traffic.step_bytes(shared, 4) == trained + 4 * 2 * 30 + 4 * 4 + 8 * 4 + kept
    assert traffic.step_flops(shared) == 2 * 2 * 2 * 30 * 5
    predict = cases.PredictCase((30, 5, 4), 7)
    assert traffic.predict_bytes(predict, 2) == 2 * (7 * 30 + 150 + 20) + 4 * 9 + 8 * 7
    assert traffic.predict_flops(predict) == 2 * 7 * (150 + 10 * 20)


@pytest.mark.parametrize(
    ("name", "floats", "elements", "integers"),
    [
        ("layer_forward", 12 * 25 + 12 + 3 * 20, 20 * 25 + 20 * 12, 0),
        ("wrong_labels", 20, 0, 2 * 20),
        ("all_wrong_labels", 0, 0, 20 + 9 * 20),
        ("layer_grad", 3 * 20 + 12 + 12 * 25 + 12, 20 * 25 + 20 * 12, 0),
        # label columns alone are read of the weights
        ("shared_variants", 10 + 12 * 10 + 12 + 2 + 3 * 20, 10 * 12 + 20 * 12, 20),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compulsory_bytes_of_operations(name, floats, elements, integers, dtype):
    (case,) = (case for case in TINY_OPERATIONS if case.operation == name)
    operation = operations.Operation(case, dtype, "cpu")
    operation()
    assert operation.compulsory_bytes() == 4 * floats + dtype.itemsize * elements + 8 * integers


def test_updates_count_twice_and_workspaces_not_at_all():
    (case,) = (case for case in TINY_OPERATIONS if case.operation == "layer_update_")
    operation = operations.Operation(case, torch.float32, "cpu")
    operation()
    trained = 3 * (12 * 25 + 12) * 4 + 8 + 9 * 8  # weight, bias, their moments, count of steps, statistics
    assert operation.compulsory_bytes() == 2 * trained + 8 + 4 * (20 * 25 + 20 * 12 + 3 * 20 + 12)


def measured(chosen: list[Any], *precisions: str) -> list[gpu_report.GpuRecord]:
    return gpu.measure(chosen, [BY_NAME[name] for name in precisions], CEILINGS, a_rig(), options())


def test_every_case_in_every_precision_is_right_on_the_cpu():
    records = measured([*TINY, *TINY_OPERATIONS], *BY_NAME)
    assert not [record for record in records if record.failed]
    steps = [record for record in records if record.case.startswith("step")]
    assert len(steps) == 2 * 4
    for record in steps:
        assert set(record.times) == set(gpu_report.GROUPS) - {"compile"}
        assert set(record.peaks.values()) == {2**20}
    by_operation = {record.case.split("/")[0]: set(record.times) for record in records}
    assert by_operation["layer_forward"] == {"ffkern", "ffkern_graph", "eager", "cublas"}
    assert by_operation["hybrid_images_"] == {"ffkern", "ffkern_graph"}
    assert by_operation["predict"] == {"ffkern", "ffkern_graph", "eager", "cublas"}
    of_labels = [r.precision for r in records if r.case.startswith("wrong_labels")]
    assert of_labels == ["float32"]


@pytest.mark.emulated
def test_the_cuda_kernels_pass_the_gate(monkeypatch):
    """tf32 and the 16-bit dtypes as the tensor cores compute them."""
    monkeypatch.setattr(nn, "_stored", lambda x: x.dtype)  # as on CUDA
    monkeypatch.setattr(nn, "_packed", lambda weight: False)
    with emulated.device("sm_80"):
        records = measured(TINY, "tf32", "float16") + measured(TINY_OPERATIONS, "bfloat16")
    assert not [record for record in records if record.failed]
    assert len(records) == 2 * len(TINY) + len(operations.RESULTS) - len(operations.OF_ONE_PRECISION)


class OffByFivePerCent(operations.Operation):
    def results(self) -> dict[str, Tensor]:
        return {name: 1.05 * value for name, value in super().results().items()}


def test_no_speed_for_a_wrong_operation(monkeypatch):
    monkeypatch.setattr(gpu, "Operation", OffByFivePerCent)
    for record in measured(TINY_OPERATIONS[:1], *BY_NAME):
        assert "ratio" in record.failed, record.precision
        assert record.times == {}


def test_no_speed_for_a_wrong_graph():
    class Forgets(DirectGraphs):
        def record(self, call: Callable[[], object]) -> Callable[[], object]:
            return lambda: None

    rig = dataclasses.replace(a_rig(), graphs=Forgets())
    record = gpu.measure_case(TINY[0], BY_NAME["float32"], rig, 1e-9)
    assert "ratio" in record.failed
    (updates,) = (case for case in TINY_OPERATIONS if case.operation == "layer_update_")
    record = gpu.measure_case(updates, BY_NAME["float32"], rig, 1e-9)
    assert record.failed == gpu.GRAPH_DIFFERS
    assert record.times == {}


def test_no_speed_for_a_prediction_that_a_graph_gets_wrong(monkeypatch):
    monkeypatch.setattr(gpu, "Kept", lambda call: cuda_timing.Kept(lambda: call() + 1))
    record = gpu.measure_case(TINY[2], BY_NAME["float32"], a_rig(), 1e-9)
    assert record.failed == gpu.GRAPH_DIFFERS


def test_a_case_that_raises_is_recorded_and_the_next_one_runs(monkeypatch):
    def raises(case: Any, *_: Any) -> gpu_report.GpuRecord:
        raise RuntimeError(f"{case.name} does not fit\nat some place")

    monkeypatch.setattr(gpu, "_prediction", raises)
    records = measured([TINY[2], TINY[0]], "float32")
    assert records[0].failed == f"RuntimeError: {TINY[2].name} does not fit"
    assert not records[1].failed


def test_a_wrong_competitor_is_left_out(monkeypatch, capsys):
    monkeypatch.setitem(operations.EAGER, "wrong_labels", lambda a: a["labels"])
    (case,) = (case for case in TINY_OPERATIONS if case.operation == "wrong_labels")
    (record,) = measured([case], "float32")
    assert set(record.times) == {"ffkern", "ffkern_graph"}
    assert "eager left out, its result is wrong" in capsys.readouterr().err


def test_a_competitor_that_raises_is_left_out(capsys):
    """torch.compile without its compiler, or a capture that torch refuses, costs no time of the others."""

    class Refuses(DirectGraphs):
        def record(self, call: Callable[[], object]) -> Callable[[], object]:
            if isinstance(call, EagerStep):
                raise RuntimeError("operation not permitted when stream is capturing")
            return call

    rig = dataclasses.replace(a_rig(), graphs=Refuses())
    record = gpu.measure_case(TINY[0], BY_NAME["float32"], rig, 1e-9)
    assert not record.failed
    assert "eager_graph" not in record.times
    assert {"ffkern", "ffkern_graph", "eager", "eager_fused_adam"} <= set(record.times)
    assert "eager_graph/stacked left out, it raised RuntimeError" in capsys.readouterr().err


@pytest.mark.parametrize(("capability", "names"), [("7.5", ["float32", "float16"]), ("8.0", list(BY_NAME))])
def test_precisions_of_a_device(capability, names):
    assert [precision.name for precision in gpu.usable(capability)] == names


# ------------------------------------------------------------ whole runs, files, the README

RECORD = gpu_report.GpuRecord(
    case="step/2000-2000/b5000",
    precision="bfloat16",
    rows=10000,
    in_features=2000,
    out_features=2000,
    flops=2 * 10**11,
    bytes=10**9,
    error_ratio=0.5,
    times={"ffkern": 5.0, "ffkern_graph": 4.0, "eager": 20.0, "cublas": 3.0},
    spread={"ffkern": report.Spread("ffkern", 4.5, 0.1, 9)},
    peaks={"ffkern": 3 * 2**20, "eager": 9 * 2**20},
)
FAILED = dataclasses.replace(RECORD, times={}, spread={}, peaks={}, error_ratio=None, failed="h: ratio nan")
RESULT = gpu_report.Result(SLOW, CEILINGS, ORIGIN, [RECORD, FAILED, dataclasses.replace(RECORD, case="else")])


def test_a_row_has_rates_beside_the_ceilings():
    cells = dict(zip(gpu_report.HEADER, gpu_report.row(RECORD, CEILINGS), strict=True))
    assert cells["TFLOP/s"] == "50.0"  # 2e11 in 4 ms, the faster of the two
    assert cells["of best"] == "50 %"
    assert (cells["GB/s"], cells["of copy"]) == ("250", "25 %")
    assert cells["eager / ffkern"] == "4.00x"
    assert (cells["peak MiB"], cells["eager's"]) == ("3", "9")
    failed = gpu_report.row(FAILED, CEILINGS)
    assert len(failed) == len(gpu_report.HEADER)
    assert failed[2:4] == ["FAILED", "-"]
    assert "FAILED: h: ratio nan" in gpu_report.markdown([FAILED], CEILINGS)


def test_files_of_gpus(tmp_path):
    assert gpu_report.slug("NVIDIA Imaginary 100 (80GB)") == "nvidia-imaginary-100-80gb"
    gpu_report.write_json(tmp_path / "b.json", RESULT)
    (tmp_path / "cpu.json").write_text("[]")
    (tmp_path / "more.json").write_text('{"gpu": "none of these"}')
    other = dataclasses.replace(RESULT, gpu=dataclasses.replace(SLOW, name="Imaginary GPU 0"))
    gpu_report.write_json(tmp_path / "a.json", other)
    assert gpu_report.stored(tmp_path) == [other, RESULT]


def test_the_readme_has_rows_of_every_gpu(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{gpu_report.BEGIN}\nold\n{gpu_report.END}\nafter\n{report.BEGIN}{report.END}\n")
    gpu_report.write_readme(readme, [])
    assert "not measured yet" in readme.read_text()
    other = dataclasses.replace(RESULT, gpu=dataclasses.replace(SLOW, name="Imaginary GPU 0"))
    for _ in range(2):  # writing again changes nothing
        gpu_report.write_readme(readme, [other, RESULT])
        text = readme.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| Imaginary")]
    assert [row.split(" | ")[:3] for row in rows] == [
        [f"| Imaginary GPU {number}", RECORD.case, "bfloat16"] for number in (0, 0, 1, 1)
    ]
    assert "not measured yet" not in text
    assert "copy 1000 GB/s; torch.mm TFLOP/s: float32 10.0, bfloat16 100.0; a launch 5.0 us" in text
    assert text.startswith(f"before\n{gpu_report.BEGIN}\n")
    assert text.endswith(f"{gpu_report.END}\nafter\n{report.BEGIN}{report.END}\n")


def test_the_readme_shows_the_results_that_are_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = gpu_report.readme_section(gpu_report.stored())
    assert report.put_between_markers(text, section, gpu_report.BEGIN, gpu_report.END) == text


@pytest.fixture
def somewhere(monkeypatch, tmp_path) -> Path:
    """A GPU that does not exist, tiny cases, and folders of the test's own."""
    (tmp_path / "README.md").write_text(f"{gpu_report.BEGIN}\n{gpu_report.END}\n")
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(gpu_report.stored, "__defaults__", (tmp_path / "results",))
    monkeypatch.setattr(gpu, "describe_gpu", lambda: SLOW)
    monkeypatch.setattr(gpu, "all_cases", lambda quick: [TINY[0], TINY_OPERATIONS[0]])
    monkeypatch.setattr(gpu, "measure_ceilings", lambda *_: CEILINGS)
    return tmp_path


def test_a_whole_run_writes_the_file_and_the_readme(somewhere, capsys):
    assert gpu.run(options(readme=True), ORIGIN, a_rig()) == 0
    (result,) = gpu_report.stored(somewhere / "results")
    assert [path.name for path in (somewhere / "results").iterdir()] == ["imaginary-gpu-1.json"]
    assert (result.gpu, result.ceilings, result.origin) == (SLOW, CEILINGS, ORIGIN)
    assert len(result.records) == 2 * len(BY_NAME)
    assert "| GPU | case |" in (somewhere / "README.md").read_text()
    shown = capsys.readouterr().out
    assert f"{TINY[0].name}, bfloat16: ffkern ms 1.000" in shown
    assert f"| {TINY[0].name} | tf32 | 1.000 |" in shown


def test_a_part_of_a_run_leaves_the_file_alone(somewhere):
    assert gpu.run(options(filter="forward"), ORIGIN, a_rig()) == 0
    assert gpu.run(options(quick=True), ORIGIN, a_rig()) == 0
    assert not (somewhere / "results").exists()
    assert gpu.run(options(filter="forward", json=somewhere / "part.json"), ORIGIN, a_rig()) == 0
    assert {r.case for r in gpu_report.from_json((somewhere / "part.json").read_text()).records} == {
        TINY_OPERATIONS[0].name
    }


def test_a_failed_case_is_an_exit_status(somewhere, monkeypatch):
    monkeypatch.setattr(gpu, "Operation", OffByFivePerCent)
    assert gpu.run(options(), ORIGIN, a_rig()) == 1
    (result,) = gpu_report.stored(somewhere / "results")
    assert len([record for record in result.records if record.failed]) == len(BY_NAME)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--png", "x.png"], "--png: there is a chart of CPU results only"),
        (["--filter", "nothing"], "--filter nothing: no case has this in its name"),
        (["--readme"], "--readme: {readme} has no <!-- gpu:begin -->"),
    ],
)
def test_what_a_run_refuses(somewhere, monkeypatch, arguments, message, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (somewhere / "README.md").write_text("nothing")
    assert run.main(["--device", "cuda", *arguments]) == 2
    assert capsys.readouterr().err == message.format(readme=somewhere / "README.md") + "\n"


# ------------------------------------------------------------ test_gpu.py on stand-ins


class CpuForCuda(TorchFunctionMode):
    """Whoever asks torch for cuda gets the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def here(value: Any) -> Any:
            return "cpu" if isinstance(value, str | torch.device) and str(value).startswith("cuda") else value

        if func is Tensor.cuda:
            return args[0]
        return func(*map(here, args), **{name: here(value) for name, value in (kwargs or {}).items()})


@pytest.fixture
def graphs(monkeypatch) -> Iterator[EmulatedGraphs]:
    """torch.cuda's streams and graphs, by the software driver; there is one stream."""
    found = EmulatedGraphs()
    stream = types.SimpleNamespace(wait_stream=lambda _: None, synchronize=lambda: None)

    class Graph:
        replay: Callable[[], object]

    @contextlib.contextmanager
    def graph(captured: Graph) -> Iterator[None]:
        handle: list[int] = []
        with found.driver.capture(found.stream, handle):
            yield
        captured.replay = lambda: found.driver.replay(handle[0], found.stream)

    stand_ins: dict[str, Any] = {name: lambda: stream for name in ("Stream", "current_stream", "default_stream")}
    stand_ins |= {"stream": lambda _: contextlib.nullcontext(), "synchronize": lambda: None}
    for name, value in {**stand_ins, "CUDAGraph": Graph, "graph": graph}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    with CpuForCuda():
        yield found


@pytest.mark.emulated
@pytest.mark.parametrize("kind", ["layer", "shared"])
def test_the_tests_of_graphs_hold_on_the_software_driver(kind, graphs):
    with emulated.device("sm_80", stream=graphs.stream, hold=True):
        test_gpu.test_three_replays_are_three_steps(torch.float32, kind)
        if kind == "layer":
            test_gpu.test_a_learning_rate_set_between_replays_acts(torch.float16)
            test_gpu.test_replays_read_new_data_from_the_same_memory()


@pytest.mark.emulated
def test_the_tests_of_streams_and_gradients_hold_on_the_software_driver(graphs):
    with emulated.device("sm_80"):
        test_gpu.test_streams_side_by_side("shared")
        test_gpu.test_gradients_from_the_autograd_thread()


@pytest.mark.emulated
def test_a_step_that_is_lost_shows_in_the_tests_of_graphs(graphs, monkeypatch):
    replay = graphs.driver.replay
    replays = []

    def sometimes(graph: int, stream: int) -> None:
        replays.append(graph)
        if len(replays) != 2:
            replay(graph, stream)

    monkeypatch.setattr(graphs.driver, "replay", sometimes)
    with emulated.device("sm_80", stream=graphs.stream, hold=True), pytest.raises(AssertionError):
        test_gpu.test_three_replays_are_three_steps(torch.float32, "layer")


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_the_tests_of_compiled_steps_hold_on_the_cpu(graphs):
    for kind in test_gpu.LEARNERS:
        test_gpu.test_a_compiled_step_is_the_step(kind)
