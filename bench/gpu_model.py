"""Predicts times on GPUs from what the emulator counts: docs/gpu-model.md. Predicted, never measured.

python -m bench.gpu_model            counts again (minutes), writes bench/gpu-counts.json and the page
python -m bench.gpu_model --render   writes the page from the stored counts (seconds)

The model is a roofline for each launch; :func:`predict` is all of it. Constants that no datasheet has are
:data:`ASSUMPTIONS`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import gpu_counts
from .cases import CLASSES, IMAGE, Case, PredictCase, StepCase, find_case
from .gpu_counts import ELEMENT, Counts, Device, EagerCounts, FusedCounts, Launch
from .report import table, write_aside

ROOT = Path(__file__).resolve().parents[1]
COUNTS = ROOT / "bench" / "gpu-counts.json"
PAGE = ROOT / "docs" / "gpu-model.md"

STEPS = (
    *(StepCase(batch, IMAGE, units, shared=True) for units in (500, 2000) for batch in (100, 512)),
    *(StepCase(batch, 2000, 2000) for batch in (100, 512, 2048)),
)
# As many images as ten blocks of a prediction take.
PREDICTIONS = (PredictCase((IMAGE, 500, 500), 4190), PredictCase((IMAGE, 2000, 2000, 2000, 2000), 1040))
SHOWN = (("step/784-2000/b512/shared", "bf16"), ("step/2000-2000/b2048", "bf16"), ("step/784-500/b100/shared", "f32"))


@dataclass(frozen=True)
class Assumptions:
    """What no datasheet says.

    Args:
        gap: us between the end of a launch and the start of the next, in a graph or in a full stream.
        host: us that the host takes to enqueue one launch, of ffkern or of eager.
        drain: us of a wave of blocks in which no limit is busy: first loads on their way, last stores.
        dram: share of the peak that memory delivers.
        cache: share of L2 that keeps what the next step reads again.
    """

    gap: float = 1.0
    host: float = 2.5
    drain: float = 1.0
    dram: float = 0.9
    cache: float = 0.5


ASSUMPTIONS = Assumptions()
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of L2, for the range of a ratio


@dataclass(frozen=True)
class Card:
    """A GPU at its boost clock.

    Args:
        clock: GHz.
        bf16, tf32: TFLOP/s of the tensor cores, dense, float32 sums.
        mma: share of them that mma.sync reaches.
        fp32_lanes, fp64_lanes: multiply-adds of a multiprocessor and clock.
        dram: GB/s. l2: MB. l2_clock: bytes a clock that L2 delivers to all multiprocessors.
        shared: KiB of shared memory of a multiprocessor. threads, blocks: resident on one, at most.
        cache: share of L2 that keeps what the next step reads again.
    """

    name: str
    device: Device
    clock: float
    bf16: float
    tf32: float
    mma: float
    fp32_lanes: int
    fp64_lanes: int
    dram: float
    l2: float
    l2_clock: int
    shared: int
    threads: int
    blocks: int
    cache: float = ASSUMPTIONS.cache

    @property
    def multiprocessors(self) -> int:
        return self.device.multiprocessors

    def flops_clock(self, dtype: str, wide: bool = False) -> float:
        """FLOPs of mma.sync of a multiprocessor and clock, of wgmma if wide, or of FFMA."""
        if dtype == "f32":
            return 2.0 * self.fp32_lanes
        peak = self.bf16 if dtype == "bf16" else self.tf32
        return (1.0 if wide else self.mma) * peak * 1e3 / (self.multiprocessors * self.clock)

    def product_flops(self, dtype: str) -> float:
        """TFLOP/s that a library's product is given: the whole peak."""
        if dtype == "f32":
            return 2e-3 * self.fp32_lanes * self.multiprocessors * self.clock
        return self.bf16 if dtype == "bf16" else self.tf32

    @property
    def l2_rate(self) -> float:
        """GB/s."""
        return self.l2_clock * self.clock

    @property
    def dram_rate(self) -> float:
        """GB/s that memory is assumed to deliver."""
        return ASSUMPTIONS.dram * self.dram

    def keeps(self, working_set: int) -> bool:
        return working_set <= self.cache * self.l2 * 1e6


CARDS = (
    Card("A100 SXM 80GB", Device("sm_80", 108, 163 << 10), 1.41, 312, 156, 1.0, 64, 32, 2039, 40, 5120, 164, 2048, 32),
    Card("H100 SXM", Device("sm_90", 132, 227 << 10), 1.83, 989.4, 494.7, 0.62, 128, 64, 3350, 50, 5120, 228, 2048, 32),
    Card("RTX 4090", Device("sm_89", 128, 99 << 10), 2.52, 165.2, 82.6, 1.0, 128, 2, 1008, 72, 2048, 100, 1536, 24),
)

# ------------------------------------------------------------ the model


@dataclass(frozen=True)
class Prediction:
    """Predicted us of a launch: each limit alone, and all together."""

    launch: Launch
    waves: int
    limits: dict[str, float]

    @property
    def limit(self) -> str:
        """What is busy longest; the drain, if nothing is busy as long as that."""
        longest = max(self.limits, key=self.limits.__getitem__)
        return longest if self.limits[longest] > self.waves * ASSUMPTIONS.drain else "drain"

    @property
    def us(self) -> float:
        return self.waves * ASSUMPTIONS.drain + max(self.limits.values())


def resident(launch: Launch, card: Card) -> int:
    """Blocks that fit a multiprocessor at once. A block takes 1 KiB of shared memory more than it asks for."""
    bounds = [card.threads // launch.threads, card.blocks, card.shared * 1024 // (launch.shared + 1024)]
    return max(1, min([*bounds, launch.fit] if launch.fit else bounds))


def busiest_blocks(launch: Launch, card: Card) -> int:
    """Blocks, or tiles of fewer blocks, that the multiprocessor with most of them gets."""
    return -(-launch.pieces // card.multiprocessors)


def fill(launch: Launch, card: Card) -> float:
    """Mean work of the multiprocessors in units of the busiest one's."""
    return launch.pieces / (busiest_blocks(launch, card) * card.multiprocessors)


def predict(launch: Launch, dtype: str, dram_bytes: int, card: Card) -> Prediction:
    """The roofline of one launch. dram_bytes: what it moves to and from memory beyond L2."""
    waves = -(-launch.blocks // (card.multiprocessors * resident(launch, card)))
    busiest = busiest_blocks(launch, card) / launch.pieces
    clocks = {  # of that multiprocessor
        "fp32": launch.fp32 * 32 / card.fp32_lanes,
        "fp64": launch.fp64 * 32 / card.fp64_lanes,
        "L1": launch.wavefronts + launch.loads / 4,
        "issue": (launch.instructions - launch.moves) / 4,
    }
    if launch.flops:
        clocks["tensor"] = launch.flops / card.flops_clock(dtype, launch.wide)
    limits = {name: busiest * count / card.clock * 1e-3 for name, count in clocks.items()}
    limits["L2"] = 32 * launch.l2_sectors / card.l2_rate * 1e-3
    limits["DRAM"] = dram_bytes / card.dram_rate * 1e-3
    return Prediction(launch, waves, limits)


@dataclass(frozen=True)
class Total:
    """Predicted us of a sequence of launches.

    Args:
        launches: how many. l2, dram: bytes from and to L2 and memory; eager's are those that it moves, wherever.
        busy: us of the launches, without what lies between them.
    """

    launches: int
    l2: int
    dram: int
    busy: float

    @property
    def graph(self) -> float:
        return self.busy + self.launches * ASSUMPTIONS.gap

    @property
    def stream(self) -> float:
        return max(self.graph, self.launches * ASSUMPTIONS.host)


def working_set(case: Case, dtype: str) -> int:
    """Bytes that a step or a block of a prediction reads or writes at all."""
    e = ELEMENT[dtype]
    if isinstance(case, PredictCase):
        rows = gpu_counts.block_images(case) * CLASSES
        widths = list(zip(case.sizes, case.sizes[1:], strict=False))
        return e * (rows // CLASSES * case.sizes[0] + sum(k * m for k, m in widths) + 2 * rows * max(case.sizes[1:-1]))
    weights = case.inputs * case.units * (12 + (2 if dtype == "bf16" else 0))
    images = case.batch if case.shared else case.rows
    operand = e * images * case.units if case.shared else 0
    return weights + e * (images * case.inputs + case.rows * case.units) + operand


def reads(case: Case, dtype: str, launches: Sequence[Launch]) -> list[int]:
    """Bytes that each launch reads, each byte once: by formula for what is large, as counted for the rest."""
    e = ELEMENT[dtype]
    forwards = _forward_shapes(case)
    found = []
    for launch in launches:
        kind = launch.kernel.split("_")[0]
        if kind == "forward":
            rows, inputs, units = next(forwards)
            found.append(e * inputs * (rows + units) + 4 * units)
        elif kind == "sums" and isinstance(case, StepCase):
            found.append(e * case.rows * case.units)
        elif kind == "gradient" and isinstance(case, StepCase):
            images = case.batch if case.shared else case.rows
            found.append(e * images * (case.units + case.inputs) + 12 * case.units * case.inputs)
        else:
            found.append(32 * launch.loads)
    return found


def _forward_shapes(case: Case) -> Iterator[tuple[int, int, int]]:
    """Rows, inputs and units of the forward products, in order."""
    if isinstance(case, StepCase):
        yield case.batch if case.shared else case.rows, case.inputs, case.units
        return
    rows = gpu_counts.block_images(case)
    for layer, (inputs, units) in enumerate(zip(case.sizes, case.sizes[1:], strict=False)):
        yield rows * (CLASSES if layer else 1), inputs, units


def predict_launches(counts: FusedCounts, card: Card) -> list[Prediction]:
    case = find_case(counts.case)
    kept = card.keeps(working_set(case, counts.dtype))
    moved = reads(case, counts.dtype, counts.launches)
    return [
        predict(launch, counts.dtype, 0 if kept else read + launch.stored, card)
        for launch, read in zip(counts.launches, moved, strict=True)
    ]


def fused_total(counts: FusedCounts, card: Card) -> Total:
    predicted, n = predict_launches(counts, card), counts.repeats
    case = find_case(counts.case)
    kept = card.keeps(working_set(case, counts.dtype))
    read = 0 if kept else sum(reads(case, counts.dtype, counts.launches)) + sum(p.launch.stored for p in predicted)
    sectors = sum(p.launch.l2_sectors for p in predicted)
    return Total(n * len(predicted), n * 32 * sectors, n * read, n * sum(p.us for p in predicted))


def eager_working_set(case: Case, dtype: str) -> int:
    """Rows and their normalised copy; weights, gradients and state; as many matrices of activities as live at once."""
    e = ELEMENT[dtype]
    if isinstance(case, PredictCase):
        widest = max(case.sizes)
        weights = sum(k * m for k, m in zip(case.sizes, case.sizes[1:], strict=False))
        return e * (4 * case.images * widest + weights)
    return 16 * case.inputs * case.units + e * case.rows * (2 * case.inputs + 6 * case.units)


def eager_total(counts: EagerCounts, dtype: str, card: Card, fused_adam: bool) -> Total:
    """Eager: a product is as fast as the peak or its bytes, everything else as its bytes."""
    case = find_case(counts.case)
    rate = card.l2_rate if card.keeps(eager_working_set(case, dtype)) else card.dram_rate
    adam, adam_bytes = (counts.fused_adam, counts.fused_adam_bytes) if fused_adam else (counts.adam, counts.adam_bytes)
    launches = len(counts.products) + counts.others + adam
    moved = counts.bytes + adam_bytes
    busy = moved / rate * 1e-3 + launches * ASSUMPTIONS.drain
    for product in counts.products:
        busy += max(product.bytes / rate * 1e-3, product.flops / card.product_flops(dtype) * 1e-6)
        moved += product.bytes
    return Total(launches, 0, moved, busy)


def of_card(counts: Counts, case: str, dtype: str, card: Card) -> FusedCounts:
    """The counts whose plan the launch code would choose on this card."""
    found = [c for c in counts.fused if (c.case, c.dtype) == (case, dtype)]
    step = find_case(case)
    wanted = gpu_counts.plan(step, dtype, card.device) if isinstance(step, StepCase) else None
    for candidate in found:
        if candidate.plan == wanted and candidate.device in ("", card.device.emulated):
            return candidate
    raise ValueError(f"{case} {dtype}: nothing counted for {card.name}, {wanted}")


def of_eager(counts: Counts, case: str, dtype: str) -> EagerCounts:
    """tf32 moves what float32 moves."""
    wanted = "f32" if dtype == "tf32" else dtype
    return next(c for c in counts.eager if (c.case, c.dtype) == (case, wanted))


# ------------------------------------------------------------ the page


def us(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def mega(value: float) -> str:
    return f"{value / 1e6:.1f}" if value < 1e8 else f"{value / 1e6:,.0f}"


def claim(holds: bool, text: str) -> None:
    """The page's words are fixed: what they say of the counts is asked here, so that they cannot contradict them."""
    if not holds:
        raise ValueError(f"the counts no longer say that {text}: write that part of the page anew")


LIMITS = ("DRAM", "L2", "tensor", "fp32", "fp64", "L1", "issue")


def launch_table(counts: FusedCounts, card: Card) -> str:
    rows = []
    for p in predict_launches(counts, card):
        cells = [us(p.limits[name]) if p.limits.get(name, 0.0) >= 0.005 else "-" for name in LIMITS]
        marked = [f"**{cell}**" if name == p.limit else cell for name, cell in zip(LIMITS, cells, strict=True)]
        name = p.launch.kernel.replace(f"_{counts.dtype}_", " ")
        placed = [f"{p.launch.blocks}", f"{p.waves}", f"{100 * fill(p.launch, card):.0f} %"]
        rows.append([f"`{name}`", *placed, *marked, us(p.us)])
    total = fused_total(counts, card)
    rows.append(["graph", *[""] * (3 + len(LIMITS)), us(total.graph)])
    return table(["launch", "blocks", "waves", "fill", *LIMITS, "us"], rows)


SUMMARY = (
    "case",
    "dtype",
    "launches",
    "L2 MB",
    "DRAM MB",
    "graph us",
    "stream us",
    "eager: launches",
    "MB",
    "graph us",
    "stream us",
    "ratio, graph",
    "ratio, stream",
)


def compared() -> Iterator[tuple[Case, str]]:
    """Cases and dtypes of the summaries. Predictions have no tf32."""
    cases: tuple[Case, ...] = (*STEPS, *PREDICTIONS)
    for case in cases:
        for dtype in gpu_counts.DTYPES:
            if isinstance(case, StepCase) or dtype != "tf32":
                yield case, dtype


def ratio(fused: FusedCounts, eager: EagerCounts, card: Card, way: str) -> str:
    """Eager with fused Adam over ffkern, and from where to where it moves with the share of L2 that is kept: a cliff
    where one side's step just fits."""

    def at(share: float) -> str:
        other = replace(card, cache=share)
        theirs, ours = eager_total(eager, fused.dtype, other, True), fused_total(fused, other)
        return f"{getattr(theirs, way) / getattr(ours, way):.1f}"

    values = sorted({at(share) for share in SHARES}, key=float)
    return at(card.cache) if len(values) == 1 else f"{at(card.cache)} ({values[0]} to {values[-1]})"


def summary_table(counts: Counts, card: Card) -> str:
    """Eager with torch's default optimiser / with fused=True; ratios are of the latter to ffkern."""
    rows = []
    for case, dtype in compared():
        ours = fused_total(of_card(counts, case.name, dtype, card), card)
        eager = of_eager(counts, case.name, dtype)
        totals = [eager_total(eager, dtype, card, fused_adam) for fused_adam in (False, True)]
        shown = totals if isinstance(case, StepCase) else totals[:1]
        rows.append(
            [
                case.name,
                dtype,
                f"{ours.launches}",
                mega(ours.l2),
                mega(ours.dram) if ours.dram else "-",
                us(ours.graph),
                us(ours.stream),
                " / ".join(f"{t.launches}" for t in shown),
                " / ".join(mega(t.dram) for t in shown),
                " / ".join(us(t.graph) for t in shown),
                " / ".join(us(t.stream) for t in shown),
                ratio(of_card(counts, case.name, dtype, card), eager, card, "graph"),
                ratio(of_card(counts, case.name, dtype, card), eager, card, "stream"),
            ]
        )
    return table(SUMMARY, rows, 2)


def _tile(instance: str) -> tuple[int, int]:
    """Rows and columns of an instance's tile."""
    rows, columns = instance.split("x")[:2]
    return int(rows), int(columns)


def tiles(launch: Launch, rows: int, columns: int, dtype: str) -> str:
    """How the blocks of a product cover its result."""
    height, width = _tile(launch.kernel.split(f"_{dtype}_")[1])
    down, across = -(-rows // height), -(-columns // width)
    claim(launch.pieces == down * across, f"{launch.kernel} has a block for each of {down} x {across} tiles")
    return f"{down} x {across} tiles"


def tile_table(counts: Counts) -> str:
    """The forward product of 1024 rows by the chosen tile, and by both of the design that all cards have."""
    case, rows = STEPS[-2].name, []
    header = ("blocks", "fill", "us")
    for dtype in gpu_counts.DTYPES:
        common = {
            _tile(c.plan.forward): c
            for c in counts.fused
            if c.plan and (c.case, c.dtype) == (case, dtype) and not c.plan.forward.endswith("_tma")
        }
        claim(set(common) == {(128, 128), (64, 64)}, f"{case} {dtype} is counted with two tiles")
        for card in CARDS:
            own = of_card(counts, case, dtype, card)
            predicted = [
                next(p for p in predict_launches(of, card) if p.launch.kernel.startswith("forward_"))
                for of in (own, common[128, 128], common[64, 64])
            ]
            claim(
                predicted[0].us == min(p.us for p in predicted),
                f"the tile chosen for {case} in {dtype} on {card.name} is the fastest",
            )
            cells = [[f"{p.launch.blocks}", f"{100 * fill(p.launch, card):.0f} %", us(p.us)] for p in predicted[1:]]
            name = predicted[0].launch.kernel.split(f"_{dtype}_")[1]
            rows.append([dtype, card.name, f"`{name}`", us(predicted[0].us), *cells[0], *cells[1]])
    columns = [f"{tile}: {h}" for tile in (128, 64) for h in header]
    return table(["dtype", "card", "chosen", "chosen: us", *columns], rows, 3)


def cards_table() -> str:
    def row(name: str, *values: object) -> list[str]:
        return [name, *(f"{value:,}" if isinstance(value, int) else f"{value}" for value in values)]

    rows = [
        row("multiprocessors", *(c.multiprocessors for c in CARDS)),
        row("boost clock, GHz", *(c.clock for c in CARDS)),
        row("bf16 tensor, dense, float32 sums, TFLOP/s", *(c.bf16 for c in CARDS)),
        row("tf32 tensor, dense, TFLOP/s", *(c.tf32 for c in CARDS)),
        row("FFMA lanes a multiprocessor", *(c.fp32_lanes for c in CARDS)),
        row("float64 lanes a multiprocessor", *(c.fp64_lanes for c in CARDS)),
        row("memory, GB/s", *(c.dram for c in CARDS)),
        row("L2, MB", *(c.l2 for c in CARDS)),
        row("shared memory a multiprocessor, KiB", *(c.shared for c in CARDS)),
        row("resident threads, blocks", *(f"{c.threads:,}, {c.blocks}" for c in CARDS)),
        row("**assumed** share of tensor peak of `mma.sync`", *(c.mma for c in CARDS)),
        row("**assumed** L2, bytes a clock", *(c.l2_clock for c in CARDS)),
        row("*so* FLOPs a clock and multiprocessor, bf16", *(f"{c.flops_clock('bf16'):,.0f}" for c in CARDS)),
        row(
            "*so* clocks an `m16n8k16` and scheduler, at least",
            *(f"{4 * 4096 / c.flops_clock('bf16'):.1f}" for c in CARDS),
        ),
        row("*so* FFMA, TFLOP/s", *(f"{c.product_flops('f32'):.1f}" for c in CARDS)),
        row("*so* L2, GB/s", *(f"{c.l2_rate:,.0f}" for c in CARDS)),
    ]
    return table(["", *(c.name for c in CARDS)], rows)


def worked_example(counts: Counts) -> str:
    """Forward and gradient of 4096 rows on the first card, with every number."""
    card, case = CARDS[0], STEPS[-1]
    of = of_card(counts, case.name, "bf16", card)
    forward, gradient = (
        next(p for p in predict_launches(of, card) if p.launch.kernel.startswith(kind))
        for kind in ("forward", "gradient")
    )
    read = reads(case, "bf16", of.launches)[[p.kernel for p in of.launches].index(forward.launch.kernel)]
    f, g = forward.launch, gradient.launch
    chip, clock, rate = card.multiprocessors, card.clock, card.flops_clock("bf16")
    each = busiest_blocks(f, card)
    lines = [
        f"forward    blocks {f.blocks} = {tiles(f, case.rows, case.units, 'bf16')}; {resident(f, card)} resident; "
        f"waves = ceil({f.blocks} / {chip}) = {forward.waves}; the busiest multiprocessor gets {each}",
        f"  tensor   {f.flops:,} FLOPs / {f.blocks} x {each} / ({rate:,.0f} a clock x {clock} GHz) "
        f"= {us(forward.limits['tensor'])} us",
        f"  issue    ({f.instructions:,} - {f.moves:,}) / {f.blocks} x {each} / (4 a clock x {clock} GHz) "
        f"= {us(forward.limits['issue'])} us",
        f"  L1       ({f.wavefronts:,} wavefronts + {f.loads:,} / 4) / {f.blocks} x {each} / (1 a clock x {clock} GHz) "
        f"= {us(forward.limits['L1'])} us",
        f"  L2       {f.l2_sectors:,} sectors x 32 / {card.l2_rate:,.0f} GB/s = {us(forward.limits['L2'])} us",
        f"  DRAM     ({read:,} read once + {f.stored:,} written) / ({ASSUMPTIONS.dram} x {card.dram:,} GB/s) "
        f"= {us(forward.limits['DRAM'])} us",
        f"  time     {forward.waves} x {ASSUMPTIONS.drain} + max of these = {us(forward.us)} us: {forward.limit}",
        f"gradient   blocks {g.blocks} = {tiles(g, case.units, case.inputs, 'bf16')}, {gradient.waves} waves",
        f"  tensor   {us(gradient.limits['tensor'])} us    issue  ({g.instructions:,} - {g.moves:,}) / {g.blocks} x "
        f"{busiest_blocks(g, card)} / (4 x {clock}) = {us(gradient.limits['issue'])} us",
        f"  time     {gradient.waves} x {ASSUMPTIONS.drain} + max = {us(gradient.us)} us: {gradient.limit}",
    ]
    return "\n".join("    " + line for line in lines) + "\n"


def named(counts: Counts, case: str, dtype: str, card: Card, kernel: str) -> Prediction:
    """The prediction of one kernel of a step."""
    return next(
        p for p in predict_launches(of_card(counts, case, dtype, card), card) if p.launch.kernel.startswith(kernel)
    )


def per_mma(p: Prediction) -> float:
    """Instructions a scheduler issues for one m16n8k16."""
    return (p.launch.instructions - p.launch.moves) / (p.launch.flops / 4096)


def each_card(values: Sequence[Prediction], limit: str) -> str:
    return ", ".join(f"{c.name} {us(p.limits[limit])}" for c, p in zip(CARDS, values, strict=True))


def named_on_each(counts: Counts, case: str, kernel: str) -> list[Prediction]:
    """In bfloat16, on each card."""
    return [named(counts, case, "bf16", card, kernel) for card in CARDS]


def issue_binds(counts: Counts) -> str:
    large = STEPS[-1].name
    a100, _, rtx = CARDS
    gradients = named_on_each(counts, large, "gradient")
    claim(
        [p.limit for p in gradients] == ["issue", "L2", "tensor"],
        f"the bfloat16 gradient of {large} is bound by issue on A100, by L2 on H100, by the tensor cores on RTX 4090",
    )
    warps = resident(gradients[0].launch, a100) * gradients[0].launch.threads // 128
    claim(warps == 2, f"the bfloat16 gradient of {large} has two warps a scheduler")
    forward = named(counts, large, "bf16", a100, "forward")
    near = [forward.limits[limit] for limit in ("tensor", "L1")]
    claim(
        min(near) > 0.95 * max(near) and max(near) == max(forward.limits.values()),
        f"two limits of the forward product of {large} on A100 are within a few per cent of each other",
    )
    return f"""**The bfloat16 gradient of {large} is bound by instruction issue on A100, not by the tensor
        cores.** It issues {per_mma(gradients[0]):.1f} instructions for each `m16n8k16`, the forward product
        {per_mma(forward):.1f}; a scheduler has {4 * 4096 / a100.flops_clock("bf16"):.1f} clocks for one on A100,
        {4 * 4096 / rtx.flops_clock("bf16"):.0f} on RTX 4090. On H100 `wgmma` takes {per_mma(gradients[1]):.1f}
        instructions for as much. us by
        issue: {each_card(gradients, "issue")}; by the tensor cores: {each_card(gradients, "tensor")}. This is the first
        that a measurement can refute, because PTX stands in for machine code: compare `smsp__inst_executed` with the
        count. A time near the tensor cores' means that ptxas needs far fewer instructions than PTX has. A time well
        above the issue's means that two warps a scheduler do not hide their latency: then more warps would help, and
        fewer instructions would not. In the forward product on A100 tensor cores and L1 are within a few per cent of
        each other ({" and ".join(map(us, near))} us), so its time says little about which of them it is."""


def hopper_waits_for_l2(counts: Counts) -> str:
    large, (_, h100, _) = STEPS[-1].name, CARDS
    products = [named(counts, large, "bf16", h100, kind) for kind in ("forward", "gradient")]
    claim([p.launch.wide for p in products] == [True, True], f"the products of {large} on H100 are Hopper's own")
    claim([p.limit for p in products] == ["L2", "L2"], f"the products of {large} on H100 are bound by L2")
    limits = (("L2", "L2"), ("tensor", "the tensor cores"), ("issue", "issue"))
    (name,) = {p.launch.kernel.split("_bf16_")[1] for p in products}
    tiles = products[1].launch.pieces
    claim(tiles < h100.multiprocessors, f"the gradient of {large} leaves multiprocessors of H100 without a tile")
    told = "; ".join(
        f"{kind} " + ", ".join(f"{us(p.limits[limit])} by {name}" for limit, name in limits)
        for kind, p in zip(("forward", "gradient"), products, strict=True)
    )
    return f"""**Hopper's own products wait for L2.** {large} in bf16 on H100, `{name}`, us: {told}. The rate of L2 is
        taken from A100; a time near the tensor cores' says that it is higher. The gradient has {tiles} tiles for
        {h100.multiprocessors} multiprocessors; `FFKERN_CUDA_PRODUCT` shows whether the narrow one, which leaves none
        idle, takes longer as predicted."""


def small_steps(counts: Counts) -> str:
    small, h100 = STEPS[0].name, CARDS[1]
    step = of_card(counts, small, "bf16", h100)
    predicted = predict_launches(step, h100)
    total, waves = fused_total(step, h100), sum(p.waves for p in predicted)
    constants = total.launches * ASSUMPTIONS.gap + waves * ASSUMPTIONS.drain
    claim(constants > total.graph / 2, f"{small} on H100 is constants")
    short = [p.limit for p in predicted if p.launch.kernel.startswith(("rows", "finish"))]
    claim(short == ["drain", "drain"], f"rows and finish of {small} do next to nothing")
    return f"""**Small steps are constants.** Of the {us(total.graph)} us of {small} in bf16 on H100 {us(constants)} are
        `gap` and `drain`, both guessed. A graph of half or twice that time says what these are, and nothing about
        the kernels: fit them to `rows` and `finish`, which do next to nothing, and render the page again."""


def idle_multiprocessors(counts: Counts) -> str:
    a100, h100, _ = CARDS
    small, prediction = STEPS[0].name, PREDICTIONS[1].name
    few = named(counts, small, "bf16", a100, "forward").launch
    deep = predict_launches(of_card(counts, prediction, "bf16", h100), h100)[3].launch
    claim(deep.kernel.startswith("forward"), f"the fourth launch of {prediction} is a forward product")
    fills = fill(few, a100), fill(deep, h100)
    claim(max(fills) < 0.8, "the forward product leaves multiprocessors idle")
    claim(few.blocks < a100.multiprocessors, f"{small} has fewer blocks than A100 has multiprocessors")
    claim(min(ratios(counts)) < 1, "there are ratios below 1")
    return f"""**Idle multiprocessors.** The forward product is not split. {small} has {few.blocks} blocks, so
        {100 * fills[0]:.0f} % of A100's {a100.multiprocessors} multiprocessors work; {prediction} gives H100
        {deep.pieces} tiles a layer for {h100.multiprocessors}, {100 * fills[1]:.0f} %. Ratios below 1 come from here,
        and from eager's products, which have neither tiles nor rounds in this model. `FFKERN_CUDA_PRODUCT` with the
        small tile shows whether rounds cost what is said here."""


def ratios(counts: Counts) -> list[float]:
    """Eager over ffkern as graphs, of all that is compared."""
    return [
        eager_total(of_eager(counts, of.case, of.dtype), of.dtype, card, True).graph / fused_total(of, card).graph
        for card in CARDS
        for of in (of_card(counts, case.name, dtype, card) for case, dtype in compared())
    ]


def float64_binds(counts: Counts) -> str:
    shared, rtx = STEPS[3].name, CARDS[2]
    sums = named_on_each(counts, shared, "sums")
    bound = [p.limit == "fp64" for p in sums]
    claim(bound == [False, False, True], f"sums of {shared} is bound by float64 on RTX 4090 alone")
    return f"""**`sums` is slow where float64 is.** us of its float64 additions, {shared} in bf16:
        {each_card(sums, "fp64")}. If `sums` takes no longer on the consumer card than its other limits, the count of
        float64 instructions or the rate of {rtx.fp64_lanes} lanes is wrong."""


def kept_in_l2(counts: Counts) -> str:
    kept = {card.keeps(working_set(case, dtype)) for case, dtype in compared() for card in CARDS}
    claim(kept == {True, False}, "some steps stay in L2 and some do not")
    return """**Which steps stay in L2.** Those with `-` under DRAM are predicted without traffic to memory from the
        second step on. `dram__bytes` above a tenth of the L2 column refutes the share of L2 assumed here; the time then
        goes up by the bytes over the memory's rate at most. RTX 4090's L2 is one piece and may keep more than
        assumed."""


def sectors(_: Counts) -> str:
    return """**Sectors.** `lts__t_sectors` of a product should be the counted copies and stores, plus the weights and
        their state in a gradient, within a few per cent. This is no matter of speed: if it is not so, the emulator
        counts wrongly, and [kernels.md](kernels.md#counted) with it."""


def occupancy(counts: Counts) -> str:
    a100, _, rtx = CARDS
    narrow = named(counts, STEPS[1].name, "bf16", rtx, "gradient").launch
    claim(_tile(narrow.kernel.split("_bf16_")[1]) == (64, 64), "RTX 4090 is led to the gradient of 64 x 64")
    claim(narrow.threads == 4 * 32, "a block of the gradient of 64 x 64 is four warps")
    blocks = resident(narrow, rtx), resident(narrow, a100)
    claim(blocks[0] == 1 < blocks[1], "one block of the gradient of 64 x 64 fits RTX 4090, more fit A100")
    return f"""**Occupancy.** `gradient 64x64x64` in bfloat16 asks for {narrow.shared:,} bytes of shared memory and
        takes 1,024 more, so 1 block fits the {rtx.shared} KiB of RTX 4090 and {blocks[1]} fit A100: four warps on a
        multiprocessor hide less than the model believes."""


REFUTATIONS = (
    issue_binds,
    hopper_waits_for_l2,
    small_steps,
    idle_multiprocessors,
    float64_binds,
    kept_in_l2,
    sectors,
    occupancy,
)


def refutations(counts: Counts) -> str:
    """Numbered, the most exposed first."""
    return "\n".join(paragraph(f"{number}. {item(counts)}") for number, item in enumerate(REFUTATIONS, 1))


def paragraph(text: str) -> str:
    """Wrapped as an item of a list."""
    return textwrap.fill(" ".join(text.split()), 118, subsequent_indent="   ", break_on_hyphens=False)


def page(counts: Counts) -> str:
    a = ASSUMPTIONS
    predictions = {case.name for case in PREDICTIONS}
    claim(
        {c.repeats for c in counts.fused if c.case in predictions} == {10},
        "a prediction is ten equal blocks of images",
    )
    claim(
        {c.fused_adam for c in counts.eager if c.case not in predictions} == {2},
        "a fused optimiser is two launches",
    )
    shown = []
    for case, dtype in SHOWN:
        for card in CARDS:
            shown.append(f"{case}, {dtype}, {card.name}: predicted, not measured (us)\n")
            shown.append(launch_table(of_card(counts, case, dtype, card), card))
    summaries = []
    for card in CARDS:
        summaries += [f"### {card.name}: predicted, not measured\n", summary_table(counts, card)]
    return f"""\
# GPU model: predicted, not measured

No kernel of ffkern has run on a GPU yet. This page says beforehand how long each should take, from counts of the
emulator and peak figures of three cards, so that a first measurement can confirm or refute it. **Every time and every
ratio below is predicted, not measured.** `python -m bench.gpu_model` counts again and writes this page and
`bench/gpu-counts.json`; with `--render` it writes the page from the stored counts.

## Model

For each launch, in us:

    time   = waves x drain + max(DRAM, L2, tensor, fp32, fp64, L1, issue)
    waves  = ceil(blocks / (multiprocessors x resident blocks))
    graph  = sum of times + launches x gap                 a captured step, replayed
    stream = max(graph, launches x host)                   launched one by one

    of the whole chip      DRAM    bytes read once and written / ({a.dram} x memory rate); 0 if the step stays in L2
                           L2      32 x sectors / L2 rate
    of the multiprocessor  tensor  FLOPs of mma / (FLOPs a clock)
    with most blocks,      fp32    32 x instructions / lanes
    ceil(blocks /          fp64    32 x instructions / lanes
    multiprocessors)       L1      wavefronts of shared memory + sectors of plain loads / 4: 128 bytes a clock
    of them                issue   (instructions - moves) / 4: one a clock and scheduler

A step stays in L2 if all that it reads or writes fits {a.cache} of it; else every launch reads its operands from memory
and writes its results there. Sectors are those of copies, stores and plain loads; the plain loads of a forward product
(biases, label columns) are left to the first-level cache.

Resident blocks: the least of the threads and blocks that a multiprocessor holds, its shared memory over that of a block
plus 1 KiB, and the blocks that a product's launch bounds leave registers for.

*Counted*, by executing the PTX: blocks, sectors, bytes written, wavefronts with their bank conflicts, FLOPs of matrix
instructions with their padding, and instructions by kind. Every launch of every step below was executed whole, nothing
is extrapolated, except that a prediction of ten equal blocks of images was counted on one of them. *By formula*: bytes
read once, as in [kernels.md](kernels.md#the-products-loop).

The PTX is that of compute_80 on all three cards, and of compute_90a where H100 has products of its own, whose blocks
walk through more tiles than there are blocks. Instances and splits were chosen by the launch code on emulated
devices with 108 (sm_80), 132 (sm_90) and 128 multiprocessors (sm_89).

## Cards

{cards_table()}
Sources: NVIDIA A100 Tensor Core GPU data sheet (80GB SXM) and architecture white paper; H100 Tensor Core GPU data sheet
(SXM5) and Hopper white paper; Ada GPU architecture white paper (RTX 4090); resident threads, blocks and shared memory
from the CUDA C++ Programming Guide. Rates without structured sparsity. H100 runs everything at the clock of its tensor
figure, 1.83 GHz; its FFMA figure of 67 TFLOP/s is for 1.98.

Assumed, not from a data sheet:

| | | why this value |
|---|---|---|
| `gap` | {a.gap} us | between dependent launches of a graph or a full stream; commonly about 1 |
| `host` | {a.host} us | to enqueue a launch, commonly 2 to 3; the same for eager, which takes more |
| `drain` | {a.drain} us a wave | two trips to memory and a barrier or two, before and behind the work |
| memory | {a.dram} of the peak | what streaming kernels reach |
| L2 kept | {a.cache} of its size | A100 and H100 have two halves that may both hold a line |
| `mma.sync` on H100 | {CARDS[1].mma} of the peak | the peak is that of `wgmma`; a guess |
| `wgmma` | the peak | as long as power allows the clock |
| L2 bytes a clock | above | A100: white paper; H100: taken from A100; RTX 4090: a guess |
| machine code | as many instructions as PTX without moves | ptxas both fuses and adds |
| eager's products | the whole peak, no padding, no waves | in favour of eager |

## One example, with its numbers

{STEPS[-1].name} (4096 rows), bf16, {CARDS[0].name}: predicted, not measured.

{worked_example(counts)}
## Launches

In us; the limit that binds is bold. None is bold where the launch is shorter than its drain. Fill: mean work of the
multiprocessors in units of the busiest one's.

{chr(10).join(shown)}
## The choice of a tile

The forward product of {STEPS[-2].name} with the tile that is chosen, and with those of 128 x 128 and 64 x 64
that all cards have: predicted, not measured (us).

{tile_table(counts)}
The rule ([kernels.md](kernels.md#instances)) knows tiles and passes over the banks of shared memory, and no more. In
every row it leads to the fastest of what the card has.

## ffkern against eager PyTorch

`step/K-M/bB`: B positive and B negative rows, Adam; `shared`: the first layer, two label variants an image. `predict`:
all ten labels of `n` images. Eager is `bench/eager.py` under torch {counts.torch}, positive and negative rows stacked.
Its launches are operations that are neither views nor the host's, its bytes those of the tensors that they take and
return. In bf16 it keeps float32 weights, casts them in every step and computes all else in bfloat16, which moves fewer
bytes than autocast does. It is given L2's rate where all that it touches stays there, else the memory's. Its optimiser:
torch's default, one launch a `_foreach_` operation / `fused=True`, two launches. Ratio: eager with fused Adam over
ffkern; in brackets, its range for shares of L2 from {SHARES[0]} to {SHARES[-1]}, where it moves: whether a step's
memory stays in L2 is all or nothing in this model, and the largest ratios stand where ffkern's step just fits and
eager's does not. MB are of 10^6 bytes. The labels are laid over eager's rows beforehand in a step, and by eager itself
in a prediction.

{chr(10).join(summaries)}
Beyond that eager is favoured: its dispatcher and autograd cost nothing here, and its products reach the peak of the
data sheet without padding or rounds, which no library does at these sizes. Python in front of ffkern's step costs
nothing either: a small step launched from Python takes as long as Python does.

## What a measurement would refute

{refutations(counts)}

A product that takes 1.0 to 1.5 times its prediction confirms it, because the model has no latency in the loop. Below
0.9 a count or a peak is wrong; above 2 something binds that the model does not have.

## Left out

- Latency inside the loops: how well few warps hide `ldmatrix`, `cp.async` and barriers from each other.
- L2 as it is: hits and misses, two partitions, conflicts; every sector counts as a hit, and plain loads miss the
  first-level cache, except in the forward product.
- Clocks under load and power limits: large products run below the boost clock.
- DRAM: rows, refresh, reads and writes in turn, beyond one factor.
- Instructions that PTX hides: divisions and square roots of Adam and of `rows`, 64-bit addresses. Integer and float32
  instructions share lanes on consumer cards; here they do not.
- Overlap of a launch with the end of the one before.
- The host: Python, dispatcher, allocator, for either side.
"""


def load(path: Path = COUNTS) -> Counts:
    return gpu_counts.from_json(json.loads(path.read_text(encoding="utf-8")))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_model", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--render", action="store_true", help="from the stored counts, without counting again")
    if not parser.parse_args(argv).render:
        counted = gpu_counts.count_all(STEPS, PREDICTIONS, gpu_counts.DTYPES, [card.device for card in CARDS])
        text = json.dumps(dataclasses.asdict(counted), indent=None, separators=(",", ":"))
        write_aside(COUNTS, (text.replace('{"kernel"', '\n{"kernel"').replace('{"case"', '\n{"case"') + "\n").encode())
    write_aside(PAGE, page(load()).encode())


if __name__ == "__main__":
    main()
