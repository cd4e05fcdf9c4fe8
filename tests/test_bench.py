"""The benchmark: its timer, its gate, its report. Speeds themselves are not tested."""

from __future__ import annotations

import dataclasses
import json
import math
import mmap
import subprocess
from pathlib import Path

import pytest
import torch

from bench import cases, gate, memory, report, run, timing
from bench.candidates import predict_judges, step_learners
from bench.eager import EagerStep
from bench.fused import FusedStep

TINY = cases.StepCase(24, 40, 16)
TINY_SHARED = cases.StepCase(24, 40, 16, shared=True)
TINY_KEEP = cases.StepCase(24, 40, 16, keep=True)
TINY_PREDICT = cases.PredictCase((40, 16, 12), 30)

TIMES = ("ffkern_ms", "eager_ms", "eager_fused_adam_ms", "compile_ms", "floor_ms")
REQUIRED = {
    "case": str,
    "device": str,
    "dtype": str,
    "threads": int,
    "rows": int,
    "in_features": int,
    "out_features": int,
    "error_ratio": float,
    **dict.fromkeys(TIMES, float),
    "peak_bytes": int,
    "eager_peak_bytes": int,
}


class FakeClock:
    """Time that only candidates move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def candidate(self, name: str, *durations: float):
        queue = list(durations)

        def call() -> None:
            self.order.append(name)
            self.now += queue.pop(0) if len(queue) > 1 else queue[0]

        return call


# ------------------------------------------------------------ timing


def test_round_robin_alternates_and_rotates():
    clock = FakeClock()
    candidates = {"a": clock.candidate("a", 9.0, 1.0), "b": clock.candidate("b", 9.0, 2.0)}
    times = timing.round_robin(candidates, seconds=0, min_rounds=3, warmups=1, clock=clock)
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3}  # the warm-up's 9 s are not a sample
    assert clock.order == ["a", "b", "a", "b", "b", "a", "a", "b"]


@pytest.mark.parametrize(("seconds", "most", "rounds"), [(0, 99, 2), (5.0, 99, 5), (5.0, 4, 4)])
def test_round_robin_stops(seconds, most, rounds):
    clock = FakeClock()
    times = timing.round_robin(
        {"a": clock.candidate("a", 1.0)},
        seconds=seconds,
        min_rounds=2,
        max_rounds=most,
        warmups=0,
        clock=clock,
    )
    assert len(times["a"]) == rounds


def test_round_robin_asks_another_meter():
    clock = FakeClock()

    def sample(candidate) -> float:
        candidate()
        return 11.0

    candidates = {"a": clock.candidate("a", 1.0)}
    times = timing.round_robin(candidates, seconds=0, min_rounds=2, clock=clock, sample=sample)
    assert times == {"a": [11.0, 11.0]}
    assert clock.order == ["a"] * 3  # the warm-up goes through it too


def test_summaries():
    summary = timing.summarise([4.0, 1.0, 3.0, 2.0, 100.0])
    assert summary == timing.Summary(3.0, 1.0, 2.0, 4.0, 5)
    assert summary.iqr == 2.0
    assert timing.summarise([2.0]) == timing.Summary(2.0, 2.0, 2.0, 2.0, 1)


def test_fastest_of_a_group():
    slow, fast = timing.summarise([2.0]), timing.summarise([1.0])
    summaries = {"eager/a": slow, "eager/b": fast, "eager_fused_adam/a": timing.summarise([0.1])}
    assert timing.fastest(summaries, "eager") == ("eager/b", fast)
    assert timing.fastest({"ffkern": slow}, "ffkern") == ("ffkern", slow)
    assert timing.fastest(summaries, "floor") is None


def test_per_round_ratio_cancels_a_slow_spell():
    assert timing.per_round_ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == 2.0


# ------------------------------------------------------------ report

GOOD = report.Record(
    case="step/784-500/b100",
    device="cpu",
    dtype="float32",
    threads=2,
    rows=200,
    in_features=784,
    out_features=500,
    error_ratio=1.004,
    ffkern_ms=2.0,
    eager_ms=5.0,
    eager_fused_adam_ms=4.5,
    floor_ms=1.6,
    peak_bytes=3 * 2**20,
    eager_peak_bytes=12 * 2**20,
    spread={"ffkern": report.Spread("ffkern", 1.9, 0.1, 7)},
)
BAD = dataclasses.replace(GOOD, case="predict/784-500-500/n9", error_ratio=None, failed="goodness: ratio nan")
ORIGIN = report.Origin("python -m bench.run", "a machine", "2.13.0", 2, "2026-01-02")

TABLE = """\
| case | ffkern ms | eager ms | fused Adam ms | compile ms | floor ms | eager / ffkern \
| ffkern / floor | error | peak MiB | eager's |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| step/784-500/b100 | 2.00 | 5.00 | 4.50 | - | 1.60 | 2.50x | 1.25 | 1.00 | 3 | 12 |
| predict/784-500-500/n9 | FAILED | - | - | - | - | - | - | - | - | - |

predict/784-500-500/n9 FAILED: goodness: ratio nan
"""


def test_markdown():
    assert report.markdown([GOOD, BAD]) == TABLE


def test_readme_table_replaces_only_what_is_between_the_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):  # writing again changes nothing
        report.write_readme(readme, [GOOD, BAD], ORIGIN)
        text = readme.read_text()
        assert text.startswith(f"before\n{report.BEGIN}\n| case |")
        assert text.endswith(f"\n{report.END}\nafter\n")
        assert "old" not in text
        assert text.count("step/784-500/b100") == 1
        assert BAD.case not in text  # SHOWN is a selection
        assert "All 2 cases: [docs/benchmarks.md](docs/benchmarks.md)." in text
        for origin in ("python -m bench.run", "a machine", "2.13.0", "2026-01-02"):
            assert origin in text
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_both_tables_are_what_the_stored_results_give():
    stored = report.from_json((report.RESULTS / "cpu.json").read_text(encoding="utf-8"))
    text = report.README.read_text(encoding="utf-8")
    assert report.put_between_markers(text, report.readme_section(*stored)) == text, "python -m bench.report"
    assert report.PAGE.read_text(encoding="utf-8") == report.page(*stored), "python -m bench.report"
    assert {record.case for record in stored[0]} >= set(report.SHOWN)
    assert {case.name for case in cases.full_cases()} >= set(report.SHOWN)


def test_tables_say_what_made_the_products(product):
    origin = run._origin([], "cpu")
    assert origin.products == {"blas": report.BLAS, "own": report.OWN}[product]
    assert f"ffkern's products by {origin.products}" in report.page([GOOD], origin).replace("\n", " ")
    old = json.loads(report.to_json([GOOD], ORIGIN))
    del old[0]["origin"]["products"]
    assert report.from_json(json.dumps(old))[1] == ORIGIN


@pytest.mark.parametrize("text", ["", report.BEGIN, f"{report.END}{report.BEGIN}"])
def test_readme_without_markers_is_refused(text):
    with pytest.raises(ValueError, match="in this order"):
        report.put_between_markers(text, "table")


def test_json_round_trip(tmp_path):
    path = tmp_path / "new" / "r.json"
    report.write_json(path, [GOOD, BAD], ORIGIN)
    assert report.from_json(path.read_text()) == ([GOOD, BAD], ORIGIN)
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]


def test_png(tmp_path):
    report.write_png(tmp_path / "r.png", [GOOD, BAD], ORIGIN)
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    report.write_png(tmp_path / "r.png", [], ORIGIN)
    assert [path.name for path in tmp_path.iterdir()] == ["r.png"]


# ------------------------------------------------------------ cases


def test_case_names_are_unique_and_can_be_read_back():
    every = cases.full_cases() + cases.quick_cases()
    assert all(cases.find_case(case.name) == case for case in every)
    names = [case.name for case in cases.full_cases()]
    assert len(set(names)) == len(names)
    assert cases.StepCase(100, 784, 500).rows == 200


def test_shared_rows_are_the_variants_of_the_images():
    data = cases.step_data(TINY_SHARED)
    expected = [
        torch.ops.ffkern.overlay_label(data.images, labels, cases.CLASSES, data.overlay) for labels in data.labels
    ]
    assert torch.equal(data.rows, torch.cat(expected))
    assert not (data.labels[0] == data.labels[1]).any()


# ------------------------------------------------------------ gate

EXACT = {"goodness": torch.tensor([1.0, 2.0], dtype=torch.float64)}


def off(error: float) -> dict[str, torch.Tensor]:
    return {"goodness": EXACT["goodness"] + torch.tensor([0.0, 2 * error])}


@pytest.mark.parametrize(
    ("error", "eager", "ratio"),
    [(3e-6, 1e-6, 3.0), (1e-6, 2e-6, 0.5), (gate.FLOOR, 0.0, 1.0)],
)
def test_ratio_of_the_largest_errors(error, eager, ratio):
    verdict = gate.compare(off(error), [off(eager / 2), off(eager)], EXACT)
    assert verdict.ratio == pytest.approx(ratio, rel=0.01)
    assert verdict.passes() == (ratio <= 2)


@pytest.mark.parametrize("wrong", [torch.tensor([1.0, math.nan]), torch.tensor([1.0])])
def test_nan_and_wrong_shapes_fail(wrong):
    verdict = gate.compare({"goodness": wrong}, [off(1e-6)], EXACT)
    assert math.isnan(verdict.ratio)
    assert not verdict.passes()


@pytest.mark.parametrize("case", [TINY, TINY_SHARED, TINY_KEEP], ids=lambda case: case.name)
def test_all_candidates_learn_the_same(case):
    data = cases.step_data(case)
    exact = gate.learn(EagerStep(case, data, "stacked", dtype=torch.float64))
    found = {name: gate.learn(make()) for name, make in step_learners(case, data).items()}
    eager = [found["eager/stacked"], found["eager/separate"]]
    for name, results in found.items():
        verdict = gate.compare(results, eager, exact)
        assert verdict.passes(2.0 if name == "ffkern" else gate.RIVAL_LIMIT), f"{name}: {verdict}"


class OffByAPerMille(FusedStep):
    """Its goodness looks right to the eye."""

    def results(self):
        found = super().results()
        return {**found, "goodness": found["goodness"] * 1.001}


class ForgetsTheLastRow(FusedStep):
    def __init__(self, case, data):
        sign = data.sign.clone()
        sign[-1] = 0
        super().__init__(case, dataclasses.replace(data, sign=sign))


class Stuck(FusedStep):
    """Fast, because it learns only once."""

    learnt = False

    def __call__(self):
        if not self.learnt:
            super().__call__()
        self.learnt = True


@pytest.mark.parametrize("broken", [OffByAPerMille, ForgetsTheLastRow, Stuck])
def test_no_speed_for_a_wrong_result(broken, monkeypatch, capsys, tmp_path):
    def learners(case, data, **_):
        return {**step_learners(case, data), "ffkern": lambda: broken(case, data)}

    measure = run.measure_step
    monkeypatch.setattr(cases, "quick_cases", lambda: [TINY])
    monkeypatch.setattr(run, "measure_step", lambda case, plan: measure(case, plan, learners))
    path = tmp_path / "r.json"
    assert run.main(["--quick", "--no-compile", "--json", str(path)]) == 1
    shown = capsys.readouterr().out
    assert f"{TINY.name} FAILED: " in shown
    assert f"| {TINY.name} | FAILED | - | - | - | - | - | - |" in shown
    (record,) = json.loads(path.read_text())
    assert record["failed"]
    assert [record[time] for time in TIMES] == [None] * 5


class WrongWinners:
    def __init__(self, judge):
        self.judge = judge

    def goodness(self, images):
        return self.judge.goodness(images).flip(2)

    def __call__(self):
        return self.judge()


def test_no_speed_for_wrong_labels():
    def judges(case, data, **_):
        made = predict_judges(case, data)
        return {**made, "ffkern": lambda: WrongWinners(made["ffkern"]())}

    record = run.measure_prediction(TINY_PREDICT, run.Plan(0.01, quick=True), judges)
    assert "winners differ" in record.failed
    assert all(getattr(record, time) is None for time in TIMES)


def test_a_wrong_competitor_is_left_out(capsys):
    def learners(case, data, **_):
        made = step_learners(case, data)
        wrong = dataclasses.replace(data, bias=data.bias + 1)
        return {**made, "eager_fused_adam/separate": lambda: EagerStep(case, wrong, "separate"),
                "eager_fused_adam/stacked": lambda: EagerStep(case, wrong, "stacked")}  # fmt: skip

    record = run.measure_step(TINY, run.Plan(0.01, quick=True), learners)
    assert record.eager_fused_adam_ms is None
    assert record.ffkern_ms is not None
    assert "eager_fused_adam/stacked left out, its result is wrong" in capsys.readouterr().err


# ------------------------------------------------------------ whole runs


@pytest.fixture
def tiny_cases(monkeypatch):
    found = [TINY, TINY_SHARED, TINY_KEEP, TINY_PREDICT]
    monkeypatch.setattr(cases, "quick_cases", lambda: found)
    monkeypatch.setattr(cases, "wants_memory", lambda case: case is TINY)
    return found


def test_records(tiny_cases, tmp_path, capsys):
    path = tmp_path / "r.json"
    threads = torch.get_num_threads()
    try:
        assert run.main(["--quick", "--no-compile", "--seconds", "0.01", "--threads", "1",
                         "--json", str(path)]) == 0  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    records = json.loads(path.read_text())
    assert [record["case"] for record in records] == [case.name for case in tiny_cases]
    for record in records:
        may_be_null = {"compile_ms"}
        if record["case"] != TINY.name:
            may_be_null |= {"peak_bytes", "eager_peak_bytes"}
        if record["case"].startswith("predict/"):
            may_be_null.add("eager_fused_adam_ms")
        for name, kind in REQUIRED.items():
            if name in may_be_null:
                assert record[name] is None, name
            else:
                assert isinstance(record[name], kind), name
        assert record["spread"]["ffkern"]["rounds"] >= 3
        assert record["spread"]["eager"]["candidate"].startswith("eager/")
    assert records[0]["rows"] == 48
    assert records[0]["threads"] == 1
    shown = capsys.readouterr().out
    assert "FAILED" not in shown
    assert "| case | ffkern ms |" in shown


def test_filter(tiny_cases, capsys):
    chosen = ["--quick", "--no-compile", "--no-memory", "--seconds", "0.01"]
    assert run.main([*chosen, "--filter", "shared"]) == 0
    shown = capsys.readouterr().out
    assert TINY_SHARED.name in shown
    assert TINY_KEEP.name not in shown
    assert run.main([*chosen, "--filter", "nothing"]) == 2
    assert "no case has this in its name" in capsys.readouterr().err


@pytest.mark.parametrize("part", [["--quick"], ["--filter", "shared"]])
def test_tables_of_a_part_are_refused(tiny_cases, part, capsys):
    assert run.main(["--readme", *part]) == 2
    assert capsys.readouterr().err == "--readme: the tables have all cases; not with --quick or --filter\n"


def test_a_run_writes_both_tables(tiny_cases, monkeypatch, tmp_path):
    readme = tmp_path / "README.md"
    monkeypatch.setattr(report, "README", readme)
    written: list[Path] = []
    monkeypatch.setattr(report, "write_aside", lambda path, _: written.append(path))
    monkeypatch.setattr(cases, "full_cases", lambda: [TINY])
    readme.write_text("nothing")
    chosen = ["--no-compile", "--no-memory", "--seconds", "0.01", "--readme"]
    assert run.main(chosen) == 2
    readme.write_text(f"{report.BEGIN}{report.END}")
    assert run.main(chosen) == 0
    assert written == [readme, report.PAGE]


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")
def test_cuda_without_a_gpu_is_one_sentence(capsys):
    assert run.main(["--device", "cuda"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "--device cuda: torch sees no CUDA device on this machine\n"


def test_high_water_mark():
    if not memory.reset_peak():
        pytest.skip("this kernel does not reset the high-water mark")
    before = memory.resident("VmHWM")
    # Pages of the kernel's own: malloc would take a large block out of what earlier tests freed, which is resident yet.
    with mmap.mmap(-1, 64 << 20) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
    assert memory.resident("VmHWM") - before > 60 << 20
    memory.reset_peak()
    assert memory.resident("VmHWM") - before < 30 << 20


def test_a_child_that_fails_says_why(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nKeyError: 'nobody'\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="measuring the memory of nobody failed: KeyError"):
        memory.peak_in_child(TINY.name, "nobody", 1)
