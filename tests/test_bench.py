"""The benchmark: its timer, its gate, its report. Speeds themselves are not tested."""

from __future__ import annotations

import dataclasses
import json
import math
import mmap
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import (
    backprop,
    calibrator,
    cases,
    epoch,
    gate,
    measure,
    memory,
    network,
    peers,
    report,
    run,
    scaling,
    timing,
)
from bench.candidates import network_learners, predict_judges, step_learners
from bench.eager import EagerStep
from bench.fused import FusedStep
from ffkern.nn import FFLinear, FFNet

TINY = cases.StepCase(24, 40, 16)
TINY_SHARED = cases.StepCase(24, 40, 16, shared=True)
TINY_KEEP = cases.StepCase(24, 40, 16, keep=True)
TINY_PREDICT = cases.PredictCase((40, 16, 12), 30)

TINY_NETWORKS = [cases.NetworkCase((40, 24, 20, 16), 24, kind) for kind in cases.NETWORKS]

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


# ------------------------------------------------------------ calibrator


def test_the_calibrator_is_the_fastest_of_its_repeats():
    moments = iter([0.0, 4.0, 4.0, 5.0, 5.0, 7.0, 7.0, 9.0])  # 4, 1, 2 and 2 seconds
    product = calibrator.Calibrator(torch.bfloat16, clock=lambda: next(moments))
    assert product() == pytest.approx(2e-9 * 128 * 512 * 128)
    assert float(product.out[0, 0]) == 512


def test_a_sample_carries_the_speed_before_and_after_it():
    class Fake:
        speeds = iter([30.0, 60.0])
        clock = FakeClock()

        def __call__(self) -> float:
            return next(self.speeds)

    fake = Fake()
    sample = calibrator.Calibrated(fake.clock.candidate("a", 3.0), fake).sample()
    assert sample == calibrator.Sample(3.0, 40.0)


def sampled(*pairs: tuple[float, float]) -> list[calibrator.Sample]:
    return [calibrator.Sample(*pair) for pair in pairs]


def test_samples_are_told_apart_by_the_state_of_the_machine():
    swinging = {
        "ffkern": sampled((1.0, 300.0), (1.1, 310.0), (3.0, 100.0), (3.2, 100.0)),
        "eager": sampled((4.0, 300.0), (6.0, 100.0), (6.0, 105.0), (6.0, 100.0)),
        "floor": sampled((0.5, 300.0), (0.5, 300.0)),  # never seen slow
    }
    found = calibrator.calibration(swinging)
    assert found.spread == pytest.approx(3.0, rel=0.05)
    assert found.fast_ms == pytest.approx({"ffkern": 1050.0, "eager": 4000.0, "floor": 500.0})
    assert found.slow_ms == pytest.approx({"ffkern": 3100.0, "eager": 6000.0})
    steady = calibrator.calibration({"ffkern": sampled((1.0, 100.0), (3.0, 140.0))})
    assert steady.gflops == 120.0
    assert steady.fast_ms == steady.slow_ms == {}


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

NARROW = dataclasses.replace(
    GOOD,
    dtype="bfloat16",
    ffkern_ms=1.0,
    eager_ms=3.5,
    eager_fused_adam_ms=3.0,
    compile_ms=2.5,
    floor_ms=0.8,
    float32_ms={"ffkern": 2.0, "eager": 5.0, "eager_fused_adam": 4.5},
    calibration={
        "float32": calibrator.Calibration(90.0, 50.0, 100.0, {"ffkern": 2.0, "eager": 5.0}),
        "bfloat16": calibrator.Calibration(300.0, 150.0, 330.0, {"ffkern": 1.0, "eager": 3.5}, {"ffkern": 2.0}),
    },
)
NARROW_TABLE = """\
| case, bfloat16 | ffkern ms | its float32 ms | eager float32 ms | fused Adam float32 ms | autocast ms | compile ms \
| compile float32 ms | floor ms | eager float32 / ffkern | autocast / ffkern | ffkern float32 / bfloat16 \
| ffkern / floor | error | GFLOP/s |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| step/784-500/b100 | 1.00 | 2.00 | 5.00 | 4.50 | 3.00 | 2.50 | - | 0.80 | 5.00x | 3.00x | 2.00x \
| 1.25 | 1.00 | 150 to 330 |
| predict/784-500-500/n9 | FAILED | - | - | - | - | - | - | - | - | - | - | - | - | - |
"""

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


def test_markdown_of_bfloat16():
    failed = dataclasses.replace(BAD, dtype="bfloat16")
    text = report.markdown([GOOD, NARROW, failed])
    assert NARROW_TABLE in text
    assert text.startswith("| case | ffkern ms")
    said = (
        "The machine's bfloat16 products swung between 150 and 330 GFLOP/s during step/784-500/b100: eager / ffkern "
        "3.50x in its fast state."
    )
    notes = " ".join(text.partition("goodness: ratio nan\n")[2].split())
    assert notes == said  # that of float32 belongs to the float32 record


def test_readme_table_replaces_only_what_is_between_the_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):  # writing again changes nothing
        report.write_section(readme, report.readme_section([GOOD, NARROW, BAD], ORIGIN))
        text = readme.read_text()
        assert "| step/784-500/b100 | 2.00 | 5.00 | - | 2.50x | 1.00 | 3.00 | 5.00x | 3.00x |" in text
        assert text.startswith(f"before\n{report.BEGIN}\n| case |")
        assert text.endswith(f"\n{report.END}\nafter\n")
        assert "old" not in text
        assert text.count("step/784-500/b100") == 1
        assert BAD.case not in text  # SHOWN is a selection
        assert "All 2 cases" in text
        for origin in ("python -m bench.run", "a machine", "2.13.0", "2026-01-02"):
            assert origin in text
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_both_tables_are_what_the_stored_results_give():
    stored = report.from_json((report.RESULTS / "cpu.json").read_text(encoding="utf-8"))
    text = report.README.read_text(encoding="utf-8")
    assert report.put_between_markers(text, report.readme_section(*stored)) == text, "python -m bench.report"
    text = report.PAGE.read_text(encoding="utf-8")
    assert report.put_between_markers(text, report.page_section(*stored)) == text, "python -m bench.report"
    assert {record.case for record in stored[0]} >= set(report.SHOWN)
    assert {case.name for case in cases.full_cases()} >= set(report.SHOWN)


def test_tables_say_what_made_the_products(product):
    origin = run.origin_of("bench.run", [])
    assert origin.products == {"blas": report.BLAS, "own": report.OWN}[product]
    assert f"ffkern's products by {origin.products}" in report.page_section([GOOD], origin).replace("\n", " ")
    old = json.loads(report.to_json([GOOD], ORIGIN))
    del old[0]["origin"]["products"]
    assert report.from_json(json.dumps(old))[1] == ORIGIN


@pytest.mark.parametrize("text", ["", report.BEGIN, f"{report.END}{report.BEGIN}"])
def test_readme_without_markers_is_refused(text):
    with pytest.raises(ValueError, match="in this order"):
        report.put_between_markers(text, "table")


def test_json_round_trip(tmp_path):
    path = tmp_path / "new" / "r.json"
    report.write_json(path, [GOOD, BAD, NARROW], ORIGIN)
    assert report.from_json(path.read_text()) == ([GOOD, BAD, NARROW], ORIGIN)
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]


def test_png(tmp_path):
    report.write_png(tmp_path / "r.png", [GOOD, BAD], ORIGIN)
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    report.write_png(tmp_path / "r.png", [], ORIGIN)
    assert [path.name for path in tmp_path.iterdir()] == ["r.png"]


# ------------------------------------------------------------ cases


def test_case_names_are_unique_and_can_be_read_back():
    every = cases.full_cases() + cases.quick_cases() + TINY_NETWORKS
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", TINY_NETWORKS, ids=lambda case: case.name)
def test_all_networks_learn_what_the_reference_learns(case, dtype):
    data = cases.network_data(case, dtype)
    exact = gate.learn(network.ReferenceNetwork(case.recipe, data))
    found = {name: gate.learn(make()) for name, make in network_learners(case, data).items()}
    eager = [results for name, results in found.items() if name.startswith("eager/")]
    assert len(eager) == 2
    bound = 1e-5 if dtype == torch.float32 else 5e-2
    for name, results in found.items():
        verdict = gate.compare(results, eager, exact, gate.floor_of(0.0 if dtype == torch.float32 else 2.0**-10))
        assert verdict.passes(2.0 if name == "ffkern" else 8.0), f"{name}: {verdict}"
        assert gate.compare(results, [results], exact).error < bound, name
    assert ("head moment" in exact) == (case.kind != "uniform")
    assert ("change of weight 2" in exact) == (case.kind == "hinton")


@pytest.mark.parametrize("wrong", [{"peer": 0.0}, {"momentum": 0.8}, {"weight_decay": 0.0}, {"threshold": 1.0}])
@pytest.mark.parametrize("form", network.FORMS)
def test_the_comparison_of_networks_sees_every_setting(wrong, form):
    case = TINY_NETWORKS[2]
    assert case.kind == "hinton"
    data = cases.network_data(case)
    exact = gate.learn(network.ReferenceNetwork(case.recipe, data))
    right, other = (
        gate.learn(network.EagerNetwork(recipe, data, form)) for recipe in (case.recipe, case.recipe.override(**wrong))
    )
    assert not gate.compare(other, [right], exact).passes(8.0)


def test_the_eager_network_says_what_it_does_not_implement():
    recipe = TINY_NETWORKS[0].recipe.override(norm="l2")
    with pytest.raises(ValueError, match=r"^norm is 'l2'; expected 'rms'$"):
        network.EagerNetwork(recipe, cases.network_data(TINY_NETWORKS[0]), "manual")


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

    honest = measure.measure
    monkeypatch.setattr(cases, "quick_cases", lambda: [TINY])
    monkeypatch.setattr(measure, "measure", lambda case, plan: honest(case, plan, learners))
    path = tmp_path / "r.json"
    assert run.main(["--quick", "--no-compile", "--json", str(path)]) == 1
    shown = capsys.readouterr().out
    assert f"{TINY.name}, float32 FAILED: " in shown
    assert f"| {TINY.name} | FAILED | - | - | - | - | - | - |" in shown
    (record,) = json.loads(path.read_text())
    assert record["failed"]
    assert [record[time] for time in TIMES] == [None] * 5


class OffByAPercent(FusedStep):
    """Far enough for bfloat16, whose own error is a few per mille."""

    def results(self):
        found = super().results()
        return {**found, "weight moment": found["weight moment"] * 1.01}


@pytest.mark.parametrize("broken", [OffByAPercent, ForgetsTheLastRow, Stuck])
def test_no_speed_for_a_wrong_result_in_bfloat16(broken):
    def learners(case, data, **_):
        made = step_learners(case, data)
        return {**made, "ffkern": lambda: broken(case, data)} if data.rows.dtype == torch.bfloat16 else made

    plan = measure.Plan(0.01, quick=True, precisions=("float32", "bfloat16"))
    wide, narrow = measure.measure(TINY, plan, learners)
    assert not wide.failed
    assert wide.ffkern_ms is not None
    assert narrow.failed
    assert [getattr(narrow, time) for time in TIMES] == [None] * 5
    assert narrow.float32_ms["ffkern"] == wide.ffkern_ms  # that side is right, and timed


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

    (record,) = measure.measure(TINY_PREDICT, measure.Plan(0.01, quick=True), judges)
    assert "winners differ" in record.failed
    assert all(getattr(record, time) is None for time in TIMES)


def test_a_wrong_competitor_is_left_out(capsys):
    def learners(case, data, **_):
        made = step_learners(case, data)
        wrong = dataclasses.replace(data, bias=data.bias + 1)
        return {**made, "eager_fused_adam/separate": lambda: EagerStep(case, wrong, "separate"),
                "eager_fused_adam/stacked": lambda: EagerStep(case, wrong, "stacked")}  # fmt: skip

    (record,) = measure.measure(TINY, measure.Plan(0.01, quick=True), learners)
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


def test_records_of_both_precisions(tiny_cases, tmp_path, capsys):
    tiny_cases.append(TINY_NETWORKS[1])
    path = tmp_path / "r.json"
    chosen = ["--quick", "--no-compile", "--no-memory", "--seconds", "0.01", "--json", str(path)]
    assert run.main([*chosen, "--precision", "both"]) == 0
    records, _ = report.from_json(path.read_text())
    assert [(r.case, r.dtype) for r in records] == [(c.name, p) for c in tiny_cases for p in measure.PRECISIONS]
    for wide, narrow in zip(records[::2], records[1::2], strict=True):
        assert wide.float32_ms is None
        assert list(wide.calibration) == ["float32"]
        assert list(narrow.calibration) == ["float32", "bfloat16"]
        assert all(found.gflops > 0 for found in narrow.calibration.values())
        # The same rounds.
        assert narrow.float32_ms["ffkern"] == wide.ffkern_ms
        assert narrow.float32_ms["eager"] == wide.eager_ms
        assert None not in (narrow.ffkern_ms, narrow.eager_ms, narrow.floor_ms, narrow.autocast_ms)
        assert narrow.spread["float32 ffkern"] == wide.spread["ffkern"]
    assert "| case, bfloat16 |" in capsys.readouterr().out


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


def test_a_gpu_has_no_precision_to_choose(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    options = run._parser().parse_args(["--device", "cuda", "--precision", "both"])
    assert run.refusal(options) == "--precision both: on a GPU every precision is measured anyway"


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


# ------------------------------------------------------------ backpropagation, memory, scaling

TINY_UNIFORM = cases.NetworkCase((32, 16, 16), 8, "uniform")


@pytest.mark.parametrize("how", [{"parts": 3}, {"checkpointed": True}])
def test_backpropagation_in_parts_and_with_checkpoints_is_the_same(how):
    data = cases.network_data(TINY_UNIFORM)
    plain, other = (backprop.Backprop(TINY_UNIFORM.recipe, data, **given) for given in ({}, how))
    first = [p.detach().clone() for p in plain.layers.parameters()]
    for _ in range(3):
        plain()
        other()
    for a, b, begin in zip(plain.layers.parameters(), other.layers.parameters(), first, strict=True):
        assert not torch.equal(a, begin)
        moments = [(one.opt.state[p]["exp_avg"]) for one, p in ((plain, a), (other, b))]
        torch.testing.assert_close(*moments, rtol=1e-4, atol=1e-7)


def test_checkpoints_run_the_layers_again():
    data = cases.network_data(TINY_UNIFORM)
    calls = {}
    for checkpointed in (False, True):
        one = backprop.Backprop(TINY_UNIFORM.recipe, data, checkpointed=checkpointed)
        seen: list[int] = []
        one.layers[0][0].register_forward_hook(lambda *_, seen=seen: seen.append(1))
        one()
        calls[checkpointed] = len(seen)
    assert calls == {False: 1, True: 2}


@pytest.mark.parametrize("candidate", ["ffkern", "backprop"])
def test_memory_of_a_network(candidate):
    peak = memory.peak_in_child("network/300-200x2/b50/uniform", candidate, 1)
    parameters = 300 * 200 + 200 + 200 * 200 + 200 + (200 * 10 + 10 if candidate == "backprop" else 0)
    assert peak.trained == pytest.approx(3 * 4 * parameters, abs=64)  # and counts of steps
    assert peak.beyond_inputs > peak.trained
    assert peak.working == peak.beyond_inputs - peak.trained


def test_points_that_were_timed_and_weighed_are_one():
    timed = [backprop.Point("a", "ffkern", "float32", 2.0), backprop.Point("b", "ffkern", "float32", 3.0)]
    weighed = [backprop.Point("b", "ffkern", "float32", None, memory.Peak(3 << 20, 1 << 20))]
    found = backprop.merged(timed, weighed)
    assert [(p.case, p.ms, p.peak) for p in found] == [("a", 2.0, None), ("b", 3.0, memory.Peak(3 << 20, 1 << 20))]
    assert "| b | ffkern | float32 | 3.0 | 3 | 2 |" in backprop.markdown(found)


def test_scaling(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(memory, "peak_in_child", lambda case, name, *_: memory.Peak(5 << 20, 1 << 20))
    networks = tuple(cases.NetworkCase((32, *[16] * depth), 8, "uniform") for depth in (1, 2))
    axes = [scaling.Axis("layers", (1, 2), networks), scaling.Axis("layers", (1, 2), networks, memory=True)]
    monkeypatch.setattr(scaling, "axes", lambda quick: axes)
    png, path = tmp_path / "s.png", tmp_path / "s.json"
    assert scaling.main(["--quick", "--png", str(png), "--json", str(path)]) == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    points = json.loads(path.read_text())["points"]
    assert len(points) == 2 * len(scaling.GROUPS) * len(measure.PRECISIONS)
    assert all(p["ms"] > 0 and p["peak"]["trained"] == 1 << 20 for p in points)
    assert "network/32-16x2/b8/uniform: ffkern float32 4 MiB" in capsys.readouterr().out


def test_nothing_is_scaled_that_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr(measure, "measure", lambda case, plan: [GOOD, BAD])
    assert scaling.main(["--quick"]) == 1
    shown = capsys.readouterr()
    assert BAD.failed in shown.err
    assert shown.out == ""


# ------------------------------------------------------------ epochs, and other people's programs


@pytest.fixture
def images(monkeypatch):
    monkeypatch.setattr(epoch, "IMAGES", 400)

    def missing(name):
        raise FileNotFoundError(name)

    monkeypatch.setattr(epoch.data, "load", missing)
    return epoch.mnist_shaped()


def test_an_epoch_is_scaled_from_its_steps(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(epoch.time, "process_time", clock)
    monkeypatch.setattr(epoch.time, "perf_counter", lambda: 2 * clock.now)
    taken: list[tuple[str, int]] = []

    def train(name: str, seconds: float):
        def run(steps: int) -> None:
            taken.append((name, steps))
            clock.now += seconds * steps

        return run

    found = epoch.timed({"a": train("a", 1.0), "b": train("b", 3.0)}, steps=5, of=50, turn=3)
    assert taken == [("a", 1), ("b", 1), ("a", 3), ("b", 3), ("a", 2), ("b", 2)]
    assert found == [epoch.Timing("a", 50.0, 100.0, 5, 50), epoch.Timing("b", 150.0, 300.0, 5, 50)]
    assert "| b | 150.00 | 300.00 | 5 | 50 | 3.00x |" in epoch.markdown(found)


def test_an_epoch_of_a_recipe(images, monkeypatch, tmp_path, capsys):
    small = epoch.RECIPES["hinton"].override(layers=(30, 20), held_out=100)
    monkeypatch.setitem(epoch.RECIPES, "hinton", small)
    path = tmp_path / "e.json"
    assert epoch.main(["--steps", "2", "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("recipe hinton; random images, 1 threads\n")
    times = json.loads(path.read_text())["times"]
    assert {t["who"] for t in times} == {
        "ffkern float32", "ffkern bfloat16", "eager float32, autograd", "eager float32, manual", "backprop float32",
        "backprop bfloat16",
    }  # fmt: skip
    assert all(t["steps"] == 2 and t["of"] == 3 and t["wall_seconds"] > 0 for t in times)


def test_no_time_of_an_epoch_for_a_wrong_loss(images, monkeypatch, capsys):
    monkeypatch.setitem(epoch.RECIPES, "hinton", epoch.RECIPES["hinton"].override(layers=(30, 20), held_out=100))
    honest = network.layer_loss

    def wrong(*arguments):
        objective, loss, h = honest(*arguments)
        return objective, 1.001 * loss, h

    monkeypatch.setattr(network, "layer_loss", wrong)
    assert epoch.main(["--steps", "2"]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("the first loss of eager float32, autograd is ")
    assert shown.out == ""


CHECKOUTS = {
    "mpezeshki/pytorch_forward_forward": {
        "main.py": """
import matplotlib.pyplot as plt
from torch import nn
from torchvision.datasets import MNIST
from torchvision.transforms import Compose, Lambda
from tqdm import tqdm
import helper

def overlay_y_on_x(x, y):
    return x

class Layer(nn.Linear):
    def train(self, x_pos, x_neg):
        for _ in tqdm(range(self.num_epochs)):
            helper.note(x_pos.shape[0])

class Net(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.layers = [Layer(*sizes[:2]).cuda()]

    def train(self, x_pos, x_neg):
        print("noise")
        for layer in self.layers:
            layer.train(x_pos, x_neg)
""",
    },
    "loeweX/Forward-Forward": {
        "src/__init__.py": "",
        "src/utils.py": """
import torch
import torchvision
from hydra.utils import get_original_cwd
from omegaconf import OmegaConf
from src import ff_model

def get_MNIST_partition(opt, partition):
    raise OSError("no network")

def get_model_and_optimizer(opt):
    print("noise")
    model = ff_model.FF_model(opt)
    return model, torch.optim.SGD(model.parameters(), lr=opt.training.learning_rate)
""",
        "src/ff_mnist.py": """
from src import utils

class FF_MNIST:
    def __init__(self, opt, partition):
        self.images = utils.get_MNIST_partition(opt, partition)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"pos_images": self.images[index][0]}, {"class_labels": self.images[index][1]}
""",
        "src/ff_model.py": """
import torch
import helper

class FF_model(torch.nn.Module):
    def __init__(self, opt):
        super().__init__()
        assert not opt.run_additional_inference
        self.layer = torch.nn.Linear(784, opt.model.hidden_dim)

    def forward(self, inputs, labels):
        helper.note(len(labels["class_labels"]))
        return {"Loss": self.layer(inputs["pos_images"].flatten(1)).sum()}
""",
    },
    "jesper-olsen/ff-py": {
        "mnist.py": "raise OSError('no files')",
        "main.py": """
import numpy as np
from scipy.special import expit as logistic
import helper
import mnist

MINLEVELSUP = 2
batches = mnist.make_batches("MNIST")
batch_size, inputs, numbatches = batches["batchdata"].shape
assert logistic(0.0) == 0.5
assert batches["batchtargets"].sum() == batch_size * numbatches
MAXEPOCH = 100
for epoch in range(0, MAXEPOCH):
    for batch in range(numbatches):
        helper.note(len(batches["batchdata"][:, :, batch]))
    print("noise")
    assert epoch < 1
raise SystemExit("evaluation")
""",
    },
}


@pytest.fixture(params=CHECKOUTS)
def checkout(request, tmp_path):
    """A tiny program with the same interface that notes how many images each of its steps gets."""
    for name, text in CHECKOUTS[request.param].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    notes = tmp_path / "notes"
    (tmp_path / "helper.py").write_text(
        f"def note(n):\n    with open({str(notes)!r}, 'a') as notes:\n        notes.write(f'{{n}} ')\n"
    )
    return request.param, tmp_path, notes


def test_other_programs_are_trained_as_they_are(checkout, images, capsys):
    name, path, notes = checkout
    peer = peers.recognise(path)
    assert peer.name == name
    before = dict(sys.modules), list(sys.path)
    x, y = images.train_x[:200], images.train_y[:200]
    train = peer.load(path, x.clone(), y)
    lost = [module for module, value in before[0].items() if sys.modules.get(module) is not value]
    stayed = {module for module in sys.modules if getattr(sys.modules[module], "__file__", "") == str(path / "main.py")}
    assert (lost, stayed, sys.path) == ([], set(), before[1])
    assert "helper" not in sys.modules
    train(3)  # more steps than a pass over these images has
    assert notes.read_text().split() == [str(min(peer.batch, 200))] * 3
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
def test_ffkern_trains_on_the_schedule_of_others(peer, dtype, images, monkeypatch):
    steps: list[int] = []
    for owner, method in ((FFLinear, "step"), (FFLinear, "step_shared"), (FFNet, "step")):
        honest = getattr(owner, method)
        counted = lambda self, x, *a, honest=honest, **k: (steps.append(len(x)), honest(self, x, *a, **k))[1]  # noqa: E731
        if not (owner is FFLinear and peer.batch == 100):
            monkeypatch.setattr(owner, method, counted)
    train = peer.ours(images.train_x[:200].to(dtype), images.train_y[:200])
    train(3)
    layers = {200: [200] * 3 + [400] * 3, 100: [100] * 3}  # of label variants one product serves two rows
    assert steps == layers[min(peer.batch, 200)]


def test_an_epoch_beside_another_program(checkout, images, monkeypatch, capsys):
    name, path, _ = checkout
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert epoch.main(["--steps", "2", "--peer", str(path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{name}: ")
    assert [line.split(" | ")[0] for line in shown.splitlines()[-4:-1]] == [
        "| ffkern float32", "| ffkern bfloat16", f"| {name}",
    ]  # fmt: skip


def test_an_unknown_program_and_other_threads_are_refused(images, tmp_path, monkeypatch, capsys):
    (tmp_path / "main.py").write_text("print()")
    assert epoch.main(["--peer", str(tmp_path)]) == 2
    known = ", ".join(CHECKOUTS)
    assert capsys.readouterr().err == (
        f"--peer is {tmp_path}, which holds no program known here; expected a checkout of {known}\n"
    )
    (tmp_path / "main.py").write_text(CHECKOUTS["jesper-olsen/ff-py"]["main.py"])
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert epoch.main(["--peer", str(tmp_path), "--threads", "1"]) == 2
    assert capsys.readouterr().err == ("OMP_NUM_THREADS is 4; expected 1, as --threads: NumPy's products obey it\n")
