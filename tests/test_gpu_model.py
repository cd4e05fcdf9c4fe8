"""The model of times on GPUs: its arithmetic, its counts, and that docs/gpu-model.md is what they give.

The counts are compared with fresh ones of the software driver where that takes a second; nothing here is a time.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest
import torch

from bench import gpu_counts, gpu_model
from bench.cases import PredictCase, StepCase
from bench.gpu_counts import Counts, Device, Launch
from bench.gpu_model import ASSUMPTIONS, CARDS, Card

pytestmark = pytest.mark.emulated

A100, H100, RTX = CARDS
SHARED = StepCase(100, 784, 500, shared=True)
# One multiprocessor of round numbers: 1 GHz, 4096 FLOPs of mma and 2 x 32 of FFMA a clock, 1000 bytes a clock of L2.
TOY = Card("toy", Device("none", 1, 1 << 20), 1.0, 4.096, 2.048, 1.0, 32, 16, 100, 10, 1000, 100, 1024, 8)
EMPTY = Launch("rows", (1, 1, 1), 128, 0, *[0] * 11)


@pytest.fixture(scope="module")
def stored() -> Counts:
    return gpu_model.load()


def limits(dtype: str = "bf16", card: Card = TOY, dram_bytes: int = 0, **counts: int) -> dict[str, float]:
    return gpu_model.predict(dataclasses.replace(EMPTY, **counts), dtype, dram_bytes, card).limits


# ------------------------------------------------------------------------------- the page


def test_the_page_is_what_the_stored_counts_give(stored: Counts) -> None:
    assert gpu_model.PAGE.read_text(encoding="utf-8") == gpu_model.page(stored), (
        "docs/gpu-model.md is not up to date: python -m bench.gpu_model --render"
    )


def test_nothing_predicted_looks_measured() -> None:
    text = gpu_model.PAGE.read_text(encoding="utf-8")
    assert text.startswith("# GPU model: predicted, not measured\n")
    tables = re.findall(r"([^\n]+)\n\n\|([^\n]+)\|\n\| ?---", text)
    timed = [(before, header) for before, header in tables if re.search(r"\bus\b", header)]
    shown = len(gpu_model.SHOWN) * len(CARDS)
    assert len(timed) == shown + 1 + len(CARDS)
    for before, _ in timed:
        assert "predicted, not measured" in before
    for line in text.splitlines():
        assert len(line) <= 120 or line.startswith("|")


def recounted(counts: Counts, kernel: str, /, **changes: Any) -> Counts:
    """Counts in which launches of some kernels are others: numbers are factors."""

    def changed(launch: Launch) -> Launch:
        if not launch.kernel.startswith(kernel):
            return launch
        new = {k: int(getattr(launch, k) * v) if isinstance(v, float) else v for k, v in changes.items()}
        return dataclasses.replace(launch, **new)

    fused = [dataclasses.replace(c, launches=tuple(map(changed, c.launches))) for c in counts.fused]
    return dataclasses.replace(counts, fused=tuple(fused))


@pytest.mark.parametrize(
    ("kernel", "changes", "claim"),
    [
        ("gradient_bf16_128", {"instructions": 0.4}, "bound by issue on A100, by L2 on H100"),
        ("gradient_bf16_128", {"flops": 1.8}, "bound by issue on A100, by L2 on H100"),
        ("forward_bf16_128x256", {"copies": 0.8}, "are bound by L2"),
        ("forward_bf16_128x256", {"kernel": "forward_bf16_128x256x64_s4"}, "Hopper's own"),
        ("gradient_bf16_128x256", {"tiles": 264}, "without a tile"),
        ("forward_bf16_64", {"wavefronts": 1.5}, "on A100 SXM 80GB is the fastest"),
        ("gradient_bf16_128", {"fit": 2, "shared": 0.5}, "two warps a scheduler"),
        ("forward_bf16_128", {"wavefronts": 1.2}, "within a few per cent"),
        ("forward_bf16_128", {"grid": (500, 1, 1)}, "a block for each of 32 x 16 tiles"),
        ("finish", {"instructions": 15.0}, "next to nothing"),
        ("columns", {"instructions": 1000.0}, "is constants"),
        ("sums", {"fp64": 0.1}, "bound by float64 on RTX 4090 alone"),
        ("gradient_bf16_64", {"shared": 0.5}, "one block"),
        ("gradient_bf16_64", {"threads": 256}, "four warps"),
    ],
)
def test_a_recount_that_contradicts_the_words_is_refused(
    kernel: str, changes: dict[str, Any], claim: str, stored: Counts
) -> None:
    with pytest.raises(ValueError, match=f"the counts no longer say that .*{claim}"):
        gpu_model.page(recounted(stored, kernel, **changes))


def test_what_the_page_says_of_predictions_and_optimisers_is_asked(stored: Counts) -> None:
    fused = [dataclasses.replace(c, repeats=9) for c in stored.fused]
    with pytest.raises(ValueError, match="ten equal blocks"):
        gpu_model.page(dataclasses.replace(stored, fused=tuple(fused)))
    eager = [dataclasses.replace(c, fused_adam=3) for c in stored.eager]
    with pytest.raises(ValueError, match="two launches"):
        gpu_model.page(dataclasses.replace(stored, eager=tuple(eager)))


# ------------------------------------------------------------------------------- the counts


@pytest.mark.parametrize("dtype", gpu_counts.DTYPES)
@pytest.mark.parametrize("card", CARDS[:2], ids=lambda card: card.device.emulated)
def test_stored_counts_are_fresh(dtype: str, card: Card, stored: Counts) -> None:
    """If kernels or their launches change, the counts must be made again: python -m bench.gpu_model."""
    assert gpu_counts.count_step(SHARED, dtype, card.device) == gpu_model.of_card(stored, SHARED.name, dtype, card)


def test_stored_counts_of_the_large_tile_are_fresh(stored: Counts) -> None:
    case = StepCase(100, 2000, 2000)
    fresh = gpu_counts.count_step(case, "bf16", A100.device)
    assert fresh == gpu_model.of_card(stored, case.name, "bf16", A100)
    assert fresh.plan != gpu_model.of_card(stored, case.name, "bf16", H100).plan


def test_stored_counts_of_a_prediction_are_fresh(stored: Counts) -> None:
    fresh = gpu_counts.count_prediction(gpu_model.PREDICTIONS[0], "bf16", A100.device)
    assert fresh in stored.fused


def test_stored_counts_of_eager_are_fresh(stored: Counts) -> None:
    if torch.__version__.partition("+")[0] != stored.torch:
        pytest.skip(f"counted with torch {stored.torch}, whose operations may be others")
    for case in gpu_model.STEPS:
        assert gpu_counts.count_eager_step(case, "bf16") in stored.eager
        assert gpu_counts.count_eager_step(case, "f32") in stored.eager
    for case in gpu_model.PREDICTIONS:
        assert gpu_counts.count_eager_prediction(case, "f32") in stored.eager


def test_every_case_has_counts_for_every_card(stored: Counts) -> None:
    for card in CARDS:
        for dtype in gpu_counts.DTYPES:
            for case in gpu_model.STEPS:
                assert len(gpu_model.of_card(stored, case.name, dtype, card).launches) == (7 if case.shared else 6)
                assert gpu_model.of_eager(stored, case.name, dtype).products


def test_counts_survive_the_file(stored: Counts) -> None:
    assert gpu_counts.from_json(dataclasses.asdict(stored)) == stored


@pytest.mark.parametrize("device", [A100.device, H100.device], ids=lambda device: device.emulated)
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (StepCase(32, 64, 64), "bf16"),
        (StepCase(600, 64, 64), "bf16"),  # the batch is split as far as its rows allow
        (StepCase(300, 576, 384), "f32"),  # 54 tiles of the gradient: split until they fill the device
        (StepCase(128, 65, 300), "f32"),  # narrow copies
        (StepCase(32, 60, 500), "bf16"),  # of 8 bytes
        (StepCase(64, 1400, 1160), "bf16"),  # 110 large tiles of the gradient: two rounds of one device
        (StepCase(700, 40, 1280), "f32"),  # 110 of the forward product
    ],
    ids=str,
)
def test_the_rule_is_that_of_the_launch_code(case: StepCase, dtype: str, device: Device) -> None:
    """count_step compares the kernels that ran with the rule, and raises."""
    assert gpu_counts.count_step(case, dtype, device).plan == gpu_counts.plan(case, dtype, device)


def test_a_rule_that_is_wrong_is_found() -> None:
    wrong = dataclasses.replace(A100.device, multiprocessors=132)
    with pytest.raises(RuntimeError, match="the launch code chose"):
        gpu_counts.count_step(StepCase(64, 1400, 1160), "bf16", wrong)


def test_a_prediction_is_equal_blocks_of_images() -> None:
    from ffkern import ops

    case = PredictCase((16, 2000, 8), 208)
    assert gpu_counts.block_images(case) == 104
    both = gpu_counts.predict_launches(case, "bf16", A100.device, ops)
    one = gpu_counts.count_prediction(case, "bf16", A100.device)
    assert one.repeats == 2
    assert both == one.launches * 2
    with pytest.raises(ValueError, match="not a multiple of 104"):
        gpu_counts.count_prediction(PredictCase((16, 2000, 8), 209), "bf16", A100.device)


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_bytes_read_once_are_those_of_a_single_tile(dtype: str) -> None:
    """With one tile of the result nothing is read twice, so the copies are the operands."""
    case = StepCase(32, 64, 64)
    counts = gpu_counts.count_step(case, dtype, A100.device)
    found = dict(
        zip(
            [p.kernel.split("_")[0] for p in counts.launches],
            zip(counts.launches, gpu_model.reads(case, dtype, counts.launches), strict=True),
            strict=True,
        )
    )
    forward, read = found["forward"]
    assert 32 * forward.copies == read - 4 * case.units  # the biases are plain loads
    gradient, read = found["gradient"]
    state = 12 * case.units * case.inputs
    assert 32 * gradient.copies == read - state + 4 * case.rows  # and a factor a row
    assert 32 * gradient.loads >= state


def test_eager_launches() -> None:
    x, y = torch.ones(2, 4, 8, device="meta")
    step = torch.ones(())
    with gpu_counts._Recorder() as recorder:
        z = x + y
        z.t()
        z.add_(1)
        z.copy_(x)
        step.add_(1)  # of the host
        torch.mm(x, y.t())
        torch._foreach_mul_([x, y], 2.0)
    assert [(o.name, o.bytes, o.flops) for o in recorder.operations] == [
        ("add", 3 * 128, 0),
        ("add_", 2 * 128, 0),
        ("copy_", 2 * 128, 0),
        ("mm", 2 * 128 + 64, 2 * 4 * 8 * 4),
        ("_foreach_mul_", 4 * 128, 0),
    ]


# ------------------------------------------------------------------------------- the arithmetic


def test_each_limit() -> None:
    assert limits(flops=4096 * 1000)["tensor"] == pytest.approx(1.0)  # 1000 clocks of a ns
    assert limits("tf32", flops=4096 * 1000)["tensor"] == pytest.approx(2.0)
    assert limits(fp32=1000)["fp32"] == pytest.approx(1.0)
    assert limits(fp64=1000)["fp64"] == pytest.approx(2.0)
    assert limits(wavefronts=600, loads=1600)["L1"] == pytest.approx(1.0)
    assert limits(instructions=5000, moves=1000)["issue"] == pytest.approx(1.0)
    assert limits(stores=1000, copies=2000, loads=3000)["L2"] == pytest.approx(0.192)
    assert limits(dram_bytes=90_000)["DRAM"] == pytest.approx(90_000 / (ASSUMPTIONS.dram * 100) * 1e-3)


def test_forward_loads_stay_in_the_first_level_cache() -> None:
    forward = limits(kernel="forward_bf16_x", loads=3000, copies=1000)  # type: ignore[arg-type]
    assert forward["L2"] == pytest.approx(0.032)
    assert forward["L1"] == pytest.approx(0.75)


def test_waves_and_the_busiest_multiprocessor() -> None:
    card = dataclasses.replace(TOY, device=dataclasses.replace(TOY.device, multiprocessors=4))
    launch = dataclasses.replace(EMPTY, grid=(10, 1, 1), shared=49 * 1024, instructions=40_000)
    assert gpu_model.resident(launch, card) == 2  # 2 x (49 + 1) KiB
    p = gpu_model.predict(launch, "bf16", 0, card)
    assert p.waves == 2  # 8 blocks, then 2
    assert p.limits["issue"] == pytest.approx(3 * 1.0)  # 3 of 10 blocks, 1000 clocks each
    assert p.us == pytest.approx(2 * ASSUMPTIONS.drain + 3)
    assert gpu_model.fill(launch, card) == pytest.approx(10 / 12)
    assert p.limit == "issue"
    assert gpu_model.predict(EMPTY, "bf16", 0, card).limit == "drain"


def test_resident_blocks() -> None:
    assert gpu_model.resident(EMPTY, TOY) == 8
    assert gpu_model.resident(dataclasses.replace(EMPTY, threads=256), TOY) == 4
    assert gpu_model.resident(dataclasses.replace(EMPTY, fit=3), TOY) == 3
    assert gpu_model.resident(dataclasses.replace(EMPTY, shared=50_688), RTX) == 1
    assert gpu_model.resident(dataclasses.replace(EMPTY, shared=50_688), A100) == 3


def test_a_stream_is_bound_by_the_host_where_launches_are_short() -> None:
    short, long = gpu_model.Total(6, 0, 0, 1.0), gpu_model.Total(6, 0, 0, 100.0)
    assert short.graph == pytest.approx(1 + 6 * ASSUMPTIONS.gap)
    assert short.stream == pytest.approx(6 * ASSUMPTIONS.host)
    assert long.stream == long.graph


@pytest.mark.parametrize(
    ("card", "dtype", "teraflops"),
    [(A100, "bf16", 312), (A100, "f32", 19.5), (H100, "bf16", 0.62 * 989.4), (RTX, "tf32", 82.6), (RTX, "f32", 82.6)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_rates_a_clock_are_the_peaks(card: Card, dtype: str, teraflops: float) -> None:
    rate = card.flops_clock(dtype) * card.multiprocessors * card.clock * 1e-3
    assert rate == pytest.approx(teraflops, rel=2e-3)


def test_memory_counts_only_where_the_step_does_not_stay_in_l2(stored: Counts) -> None:
    small = gpu_model.of_card(stored, SHARED.name, "bf16", A100)
    large = gpu_model.of_card(stored, "step/2000-2000/b2048", "bf16", A100)
    assert gpu_model.fused_total(small, A100).dram == 0
    # x, W and its copy, h and the gradient's operands, three times the state: once each, and then some for what is
    # read again by a later launch.
    least = gpu_model.working_set(gpu_model.STEPS[-1], "bf16")
    assert least < gpu_model.fused_total(large, A100).dram < 3 * least


def test_eager_is_slower_by_its_bytes(stored: Counts) -> None:
    """Elementwise launches cost their bytes, products the larger of bytes and FLOPs."""
    counts = gpu_model.of_eager(stored, "step/2000-2000/b2048", "f32")
    total = gpu_model.eager_total(counts, "f32", A100, True)
    rate = ASSUMPTIONS.dram * A100.dram * 1e3  # bytes a us
    flops = sum(p.flops for p in counts.products)
    assert flops == 2 * (2 * 4096 * 2000 * 2000)
    expected = (counts.bytes + counts.fused_adam_bytes) / rate + flops / (19.4918e6)
    assert total.busy == pytest.approx(expected + total.launches * ASSUMPTIONS.drain, rel=1e-4)
    assert counts.fused_adam_bytes == 28 * (2000 * 2000 + 2000)
    assert counts.adam_bytes > counts.fused_adam_bytes
    assert math.isclose(total.dram, counts.bytes + counts.fused_adam_bytes + sum(p.bytes for p in counts.products))
