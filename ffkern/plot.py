"""Pictures of training and of what was learnt: matplotlib figures, made without pyplot or other global state.

Every function returns a new ``matplotlib.figure.Figure``; :func:`save` writes one. Same input, same picture. Colours
are those of Okabe and Ito, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import io
import itertools
import math
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import _files
from . import negatives as _negatives
from .generator import LinearGenerator
from .nn import FFLinear, FFNet
from .trainer import EVALUATED_ROWS, EpochRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = [
    "curves",
    "goodness_histogram",
    "label_activity",
    "lesson",
    "negatives",
    "receptive_fields",
    "samples",
    "save",
]

WIDTH = 9.0  # inches; times DPI the pixels of a README's column
DPI = 110
RIGHT, WRONG, LIMIT = "#0072B2", "#D55E00", "#333333"  # rows with the true label, with a wrong one, the threshold
PALETTE = (RIGHT, WRONG, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GAP = 0.74  # grey between images, where there is no weight
MARKED = 30  # up to so many epochs every one gets a dot
DECADES = 1.5  # values that span more are drawn on a logarithmic axis
BINS = 60  # at most
QUANTILE = 0.995  # of the weights' sizes lies within the colours; what is beyond has the last one
KINDS = {
    "mean_sq": "mean of squared activities",
    "sum_sq": "sum of squared activities",
    "neg_mean_sq": "minus the mean of squared activities",
    "neg_sum_sq": "minus the sum of squared activities",
    "sum_abs": "sum of absolute activities",
}
FORMULAS = {
    "mean_sq": "mean $h^2$",
    "sum_sq": r"$\sum h^2$",
    "neg_mean_sq": "$-$mean $h^2$",
    "neg_sum_sq": r"$-\sum h^2$",
    "sum_abs": r"$\sum |h|$",
}
BLURRED = (0, 1, 2, 4, 8, 16)  # masks of so many blurs, beside the run's own
SHOWN_WRONG = 3  # wrong labels of an image, where a step takes all
CHAIN = (0, 1, 2, 3, 5, 10)  # passes through network and generator after which a sample is shown
LABELS = [("right label", "-"), ("wrong label", "--")]
ANSWERS = {"error": "all layers", "error_but_first": "all but the first", "error_softmax": "softmax head"}
FORMATS: dict[str, dict[str, Any]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


# ------------------------------------------------------------------------------------- training


class _Section(NamedTuple):
    """Consecutive epochs of one stage: places begin .. end on the epoch axis."""

    stage: str
    begin: int
    end: int


def curves(history: Sequence[EpochRecord], net: FFNet | None = None) -> Figure:
    """Loss, separation, goodness and rows kept of every layer, errors and the head's accuracy where recorded, by epoch.

    Args:
        history: records in the order of training, ``History.epochs``. Where a layer did not learn its line has a gap;
            the stages of greedy training stand beside one another, with their names on top.
        net: the network, for its thresholds and for what its goodness is.

    Raises:
        ValueError: the history is empty.
    """
    records = list(history)
    if not records:
        raise ValueError("history is empty; expected at least one EpochRecord")
    sections = _sections(records)
    place = np.arange(1.0, len(records) + 1)
    if len(sections) == 1:
        place = np.array([float(record.epoch) for record in records])
    depth = max(len(record.layers) for record in records)
    errors = _errors(records, place, depth)
    heads = [(x, record.head) for x, record in zip(place, records, strict=True) if record.head is not None]

    colours, dots = _colours(depth), len(records) <= MARKED

    def draw(axes: Axes, key: str, unit: float, **look: Any) -> Array:
        drawn = [_of_layer(records, i, key) * unit for i in range(depth)]
        for values, colour in zip(drawn, colours, strict=True):
            _line(axes, place, values, dots, color=colour, **look)
        return np.concatenate(drawn)

    def loss(axes: Axes) -> None:
        _scale(axes, draw(axes, "loss", 1))

    def separation(axes: Axes) -> None:
        draw(axes, "separation", 100)

    def goodness(axes: Axes) -> None:
        shown = [
            draw(axes, "goodness_pos", 1, linestyle="-"),
            draw(axes, "goodness_neg", 1, linestyle="--"),
        ]
        styles = [*LABELS]
        if net is not None:
            limits = [_layer(net, i).threshold for i in range(len(net.layers))]
            for i, limit in enumerate(limits if len(set(limits)) > 1 else limits[:1]):
                colour = LIMIT if len(set(limits)) == 1 else colours[i % depth]
                axes.axhline(limit, color=colour, linestyle=":", linewidth=1.2)
            shown.append(np.array(limits))
            styles.append(("threshold", ":"))
        _scale(axes, np.concatenate(shown))
        _legend_below(axes, [_handle(color=LIMIT, linestyle=dash, label=name) for name, dash in styles])

    def kept(axes: Axes) -> None:
        draw(axes, "kept_pos", 100, linestyle="-")
        draw(axes, "kept_neg", 100, linestyle="--")
        _legend_below(axes, [_handle(color=LIMIT, linestyle=dash, label=name) for name, dash in LABELS])

    def error(axes: Axes) -> None:
        for (name, (x, y)), colour, dash in zip(errors.items(), _colours(len(errors), 2), _dashes(), strict=False):
            label = ANSWERS.get(name, name.replace("_", " "))
            _line(axes, x, y, dots, color=colour, linestyle=dash, label=label)
        _scale(axes, np.concatenate([y for _, y in errors.values()]))
        _legend_below(axes, axes.get_legend_handles_labels()[0])

    def head(axes: Axes) -> None:
        seen = np.array([100 * record.accuracy for _, record in heads])
        _line(axes, np.array([x for x, _ in heads]), seen, dots, color=LIMIT)

    title, unit = "Goodness", "goodness, mean over rows"
    if net is not None:
        kind = _layer(net, 0).goodness
        title, unit = f"Goodness: {FORMULAS[kind]}", KINDS[kind]
    panels: list[tuple[str, str, Callable[[Axes], None]]] = [
        ("Loss of each layer", "loss, mean over steps", loss),
        ("Rows on their side of the threshold", "separation, %", separation),
        (title, unit, goodness),
        ("Rows whose gradient was added up", "rows kept, %", kept),
    ]
    if errors:
        panels.append(("Error on held-out images", "wrong answers, %", error))
    if heads:
        panels.append(("Softmax head on the training images", "accuracy, %", head))
    rows = -(-len(panels) // 2)
    figure = _figure(WIDTH, 2.9 * rows + 0.4)
    for i, (title, label, paint) in enumerate(panels):
        axes = figure.add_subplot(rows, 2, i + 1)
        paint(axes)
        _epoch_axis(axes, place, sections)
        axes.set_title(title, fontsize=10, pad=18 if len(sections) > 1 else 6)
        axes.set_ylabel(label, fontsize=9)
    handles = [_handle(color=colour, label=f"layer {i}") for i, colour in enumerate(colours)]
    if len(panels) % 2:
        axes = figure.add_subplot(rows, 2, len(panels) + 1)
        axes.set_axis_off()
        axes.legend(handles=handles, loc="center", ncols=-(-depth // 8), fontsize=10, frameon=False)
    else:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(depth, 8), fontsize=9, frameon=False)
    return figure


def _sections(records: Sequence[EpochRecord]) -> list[_Section]:
    """A new one begins where the stage changes or the epochs count anew. Places from 1."""
    result: list[_Section] = []
    before = None
    for place, record in enumerate(records, 1):
        if before is not None and before.stage == record.stage and before.epoch < record.epoch:
            result[-1] = result[-1]._replace(end=place)
        else:
            result.append(_Section(record.stage, place, place))
        before = record
    return result


def _of_layer(records: Sequence[EpochRecord], layer: int, key: str) -> Array:
    """One figure of one layer, by record; NaN where the layer did not learn."""
    seen = [record.layers[layer] if layer < len(record.layers) else None for record in records]
    return np.array([math.nan if item is None else float(getattr(item, key)) for item in seen])


def _errors(records: Sequence[EpochRecord], place: Array, depth: int) -> dict[str, tuple[Array, Array]]:
    """Places and per cent of each recorded error."""
    names = {name: None for record in records for name in record.validation or {} if "error" in name}
    if depth == 1:
        names.pop("error_but_first", None)  # the same as "error"
    result = {}
    for name in names:
        seen = [
            (x, 100 * record.validation[name])
            for x, record in zip(place, records, strict=True)
            if record.validation is not None and name in record.validation
        ]
        result[name] = (np.array([x for x, _ in seen]), np.array([y for _, y in seen]))
    return result


def _line(axes: Axes, x: Array, y: Array, dots: bool, **look: Any) -> None:
    """A line with gaps where y is NaN; a dot at each point, or only where a point has no neighbour."""
    known = np.concatenate(([False], np.isfinite(y), [False]))
    alone = np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:])
    marks: Any = None if dots else alone.tolist()
    axes.plot(x, y, marker="o", markersize=3, markevery=marks, linewidth=1.5, **look)


def _scale(axes: Axes, values: Array) -> None:
    """Logarithmic where finite values of one sign span decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    known = values[np.isfinite(values) & (values != 0)]
    size = np.abs(known)
    if not known.size or bool((known > 0).any()) == bool((known < 0).any()):
        return
    decades = float(np.log10(size.max() / size.min()))
    if decades < DECADES:
        return
    if known[0] < 0 or (values == 0).any():
        axes.set_yscale("symlog", linthresh=float(max(size.min(), size.max() / 1e4)))
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _epoch_axis(axes: Axes, place: Array, sections: Sequence[_Section]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(float(place[0]) - 0.5, float(place[-1]) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=8))
    name = "epoch" if len(sections) == 1 else "epoch, counted through the stages"
    if len({section.stage for section in sections}) < len(sections):  # a layer's turn comes again and again
        name = "record"
    axes.set_xlabel(name, fontsize=9)
    _plain(axes)
    if len(sections) == 1:
        return
    for section in sections:
        if section.begin > 1 and len(sections) <= 12:
            axes.axvline(section.begin - 0.5, color="#999999", linewidth=0.8)
        if (section.end - section.begin + 1) / len(place) >= 0.08:  # else there is no room for the name
            middle = (section.begin + section.end) / 2
            axes.text(
                middle, 1.02, section.stage, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=8,
                color="#555555",
            )  # fmt: skip


# ------------------------------------------------------------------------------------- goodness


def goodness_histogram(
    net: FFNet, x: Tensor, y: Tensor, generator: torch.Generator | None = None, *, title: str | None = None
) -> Figure:
    """Goodness of rows with the right label and with a wrong one drawn uniformly, a histogram for each layer.

    The titles tell the area under the ROC curve (AUC: how often a right row has the higher goodness than a wrong one)
    and the separation (share of rows on their side of the threshold).

    Args:
        x: [N, ...] images. y: int64 [N], their true labels.
        generator: of the wrong labels, on the device of y; default torch's global one.
        title: over the whole figure.
    """
    net._labelled("goodness of a wrong label")
    _check_labels(net, x, y)
    right, wrong = _goodness_of_rows(net, x, y, generator)
    depth = right.shape[0]
    columns = min(depth, 2)
    rows = -(-depth // columns)
    limits = [_layer(net, i).threshold for i in range(depth)]
    name_of_limit = f"threshold {limits[0]:g}" if len(set(limits)) == 1 else "threshold"
    bins = min(max(math.isqrt(2 * right.shape[1]), 10), BINS)
    figure = _figure(WIDTH * (0.3 + 0.35 * columns), 3.2 * rows + (0.8 if title else 0.5))
    for i in range(depth):
        limit, positive, negative = limits[i], right[i], wrong[i]
        axes = figure.add_subplot(rows, columns, i + 1)
        edges = np.histogram_bin_edges(np.concatenate((positive, negative)), bins)
        for values, colour, name in ((negative, WRONG, "wrong label"), (positive, RIGHT, "right label")):
            counts, _ = np.histogram(values, edges)
            axes.stairs(counts, edges, fill=True, color=colour, alpha=0.45)
            axes.stairs(counts, edges, color=colour, linewidth=1.3, label=name)
        axes.axvline(limit, color=LIMIT, linestyle=":", linewidth=1.5, label=name_of_limit)
        above, below = (positive > limit).mean(), (negative < limit).mean()
        axes.set_title(
            f"Layer {i}: AUC {_auc(positive, negative):.3f}, separation {50 * (above + below):.1f} %", fontsize=10
        )
        axes.set_xlabel(f"goodness: {KINDS[_layer(net, i).goodness]}", fontsize=9)
        if i % columns == 0:
            axes.set_ylabel(f"rows (of {len(positive):,} each)", fontsize=9)
        _plain(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _goodness_of_rows(net: FFNet, x: Tensor, y: Tensor, generator: torch.Generator | None) -> tuple[Array, Array]:
    """Goodness [L, N] under the right labels and under drawn wrong ones."""
    wrong = net.wrong_labels(y, "uniform", generator)[0]
    parts = [
        torch.stack((net.goodness(images, right), net.goodness(images, drawn)), 2)
        for images, right, drawn in zip(
            x.split(EVALUATED_ROWS), y.split(EVALUATED_ROWS), wrong.split(EVALUATED_ROWS), strict=True
        )
    ]
    rows = torch.cat(parts, 1).double().cpu().numpy()
    if not np.isfinite(rows).all():
        layer = int(np.flatnonzero(~np.isfinite(rows).all((1, 2)))[0])
        raise ValueError(
            f"the goodness of layer {layer} is NaN or infinite for some rows of x; expected finite numbers"
        )
    return rows[:, :, 0], rows[:, :, 1]


def _auc(positive: Array, negative: Array) -> float:
    """Share of pairs in which the positive row has the higher goodness; a tie counts half."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.mean() / 2 / len(negative))


def lesson(threshold: float = 2.0, temperature: float = 1.0) -> Figure:
    """What a row teaches, by its goodness g: the loss softplus(-s (g - threshold) / temperature) and d loss / d g.

    s is +1 for a row with the right label, -1 for one with a wrong one. The coefficient d loss / d g scales the row's
    part in the gradient; a row far on its side of the threshold has next to none.
    """
    if not math.isfinite(threshold):
        raise ValueError(f"threshold is {threshold}; expected a finite number")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature is {temperature}; expected a finite number > 0")
    low, high = threshold - 8 * temperature, threshold + 8 * temperature
    if threshold > 0:
        low = max(low, 0.0)  # there is no goodness below 0 but with the negated kinds, whose threshold is negative
    goodness = np.linspace(low, high, 401)
    figure = _figure(WIDTH, 3.6)
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    for sign, colour, name in ((1, RIGHT, "right label"), (-1, WRONG, "wrong label")):
        logit = sign * (goodness - threshold) / temperature
        coefficient = -sign / temperature * np.exp(-np.logaddexp(0, logit))
        left.plot(goodness, np.logaddexp(0, -logit), color=colour, linewidth=1.8, label=name)
        right.plot(goodness, coefficient, color=colour, linewidth=1.8, label=name)
        right.fill_between(goodness, coefficient, color=colour, alpha=0.18, linewidth=0)
    for axes in (left, right):
        axes.axvline(threshold, color=LIMIT, linestyle=":", linewidth=1.5, label=f"threshold {threshold:g}")
        axes.set_xlim(low, high)
        axes.set_xlabel("goodness g of a row", fontsize=9)
        _plain(axes)
    right.axhline(0, color="#999999", linewidth=0.8)
    steepest = 1 / temperature
    right.set_ylim(-1.12 * steepest, 1.12 * steepest)
    inside = threshold + 0.6 * temperature
    for x, y, side, colour, text in (
        (high, 0.5, "right", WRONG, "wrong label, high goodness:\npushed down "),
        (inside, -0.62, "left", RIGHT, "right label, low goodness:\npushed up"),
        (high, -0.28, "right", RIGHT, "right label, high goodness:\nlearnt, teaches little "),
    ):
        right.text(x, y * steepest, text, ha=side, va="center", color=colour, fontsize=8)
    left.set_title(rf"Loss of a row, softplus$(-s\,(g-\theta)/T)$, T = {temperature:g}", fontsize=10)
    left.set_ylabel("loss", fontsize=9)
    right.set_title("What it teaches: its coefficient in the gradient", fontsize=10)
    right.set_ylabel(r"$\partial$ loss / $\partial$ g", fontsize=9)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


# ------------------------------------------------------------------------------------ activities


@torch.no_grad()
def label_activity(net: FFNet, image: Tensor, right: int, wrong: int) -> Figure:
    """Activities of every layer for one image with its right and with a wrong label, before normalisation.

    Bars: mean activity of each layer. Strips: every unit, sorted by its activity under the right label minus that
    under the wrong one. The image is shown if it has a shape [H, W], [1, H, W] or [3, H, W], or a square number of
    inputs.

    Args:
        image: one image, with as many elements as the network takes inputs.
        right, wrong: labels, 0 .. classes - 1.
    """
    inputs = _inputs(net)
    if not isinstance(image, Tensor):
        raise TypeError(f"image is a {type(image).__name__}; expected a tensor of {inputs} elements")
    if image.numel() != inputs:
        raise ValueError(f"image has shape {list(image.shape)}; expected one image of {inputs} elements")
    for name, label in (("right", right), ("wrong", wrong)):
        if not 0 <= operator.index(label) < net.classes:
            raise ValueError(f"{name} is {label}; expected a label, 0 to {net.classes - 1}")
    if right == wrong:
        raise ValueError(f"wrong is {wrong}, the right label; expected another one")
    row = image.reshape(1, -1)
    labels = torch.tensor([[right], [wrong]], device=image.device)
    kept = net._activities(net._images(row), labels, net._overlay(row))
    activity = [h.double().cpu().numpy() for h, _ in kept]  # [2, M] each
    depth = len(activity)
    goodness = net.goodness(row)[:, 0].double().cpu().numpy()

    picture = _picture(image)
    figure = _figure(WIDTH, max(3.6, 1.15 * depth + 0.8) if picture is None else max(4.4, 1.15 * depth + 0.8))
    outer = figure.add_gridspec(1, 2, width_ratios=(1, 1.9))
    left = outer[0].subgridspec(1 if picture is None else 2, 1)
    if picture is not None:
        axes = figure.add_subplot(left[0])
        axes.imshow(picture, cmap="gray")
        axes.set_axis_off()
        axes.set_title(f"The image, label {right}", fontsize=10)
    axes = figure.add_subplot(left[-1])
    for offset, k, colour, name in ((-0.2, 0, RIGHT, f"{right} (right)"), (0.2, 1, WRONG, f"{wrong} (wrong)")):
        means = [float(h[k].mean()) for h in activity]
        bars = axes.bar(np.arange(depth) + offset, means, 0.4, color=colour, label=f"label {name}")
        if depth <= 4:
            axes.bar_label(bars, fmt="%.2g", fontsize=7, padding=1)
    axes.set_xticks(range(depth), [f"layer {i}" if depth <= 4 else str(i) for i in range(depth)])
    if depth > 4:
        axes.set_xlabel("layer", fontsize=9)
    axes.set_title("Mean activity of the units", fontsize=10)
    axes.margins(y=0.15)
    axes.set_ylim(bottom=0)
    _legend_below(axes, axes.get_legend_handles_labels()[0])
    _plain(axes)

    strips = outer[1].subgridspec(depth, 1)
    kind = KINDS[_layer(net, 0).goodness]
    for i, h in enumerate(activity):
        axes = figure.add_subplot(strips[i])
        order = np.argsort(h[1] - h[0], kind="stable")
        drawn = axes.imshow(
            h[:, order], aspect="auto", cmap="Greys", vmin=0, vmax=float(h.max()) or 1.0, interpolation="nearest"
        )
        axes.set_yticks((0, 1), (f"label {right} (right)", f"label {wrong} (wrong)"))
        axes.get_yticklabels()[0].set_color(RIGHT)
        axes.get_yticklabels()[1].set_color(WRONG)
        axes.tick_params(labelsize=8)
        axes.set_title(
            f"Layer {i}: goodness {goodness[i, right]:.3g} right, {goodness[i, wrong]:.3g} wrong, "
            f"threshold {_layer(net, i).threshold:g}",
            fontsize=9,
        )
        figure.colorbar(drawn, ax=axes, pad=0.01, fraction=0.04).ax.tick_params(labelsize=7)
        if i == depth - 1:
            axes.set_xlabel("units, sorted by activity under the right minus under the wrong label", fontsize=8)
    figure.suptitle(f"Activities under the right and a wrong label (goodness: {kind})", fontsize=11)
    return figure


def _picture(image: Tensor) -> Array | None:
    """[H, W] or [H, W, 3] in 0 .. 1, or None for what is no picture."""
    shape = tuple(size for i, size in enumerate(image.shape) if not (size == 1 and i < image.dim() - 2))
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 3) or (len(shape) == 2 and 1 in shape):
        count = image.numel()
        channels = next((c for c in (1, 3) if count % c == 0 and math.isqrt(count // c) ** 2 * c == count), None)
        if channels is None or count < 4:
            return None
        side = math.isqrt(count // channels)
        shape = (side, side) if channels == 1 else (3, side, side)
    pixels: Array = image.detach().double().cpu().reshape(shape).numpy()
    low, high = pixels.min(), pixels.max()
    pixels = (pixels - low) / (high - low if high > low else 1.0)
    return pixels if pixels.ndim == 2 else np.moveaxis(pixels, 0, 2)


# ------------------------------------------------------------------------------------- negatives


class _Column(NamedTuple):
    title: str
    pictures: Tensor  # [N, channels * rows * width]; NaN where nothing is
    captions: Sequence[str] = ()


class _Bars(NamedTuple):
    title: str
    heights: Array  # [N, classes], in 0 .. 1
    marked: Sequence[int]  # which of them has the colour of wrong labels


@torch.no_grad()
def negatives(
    net: FFNet,
    x: Tensor,
    y: Tensor,
    shape: Sequence[int],
    generator: torch.Generator,
    *,
    kind: str = "uniform",
    blurs: int = 6,
) -> Figure:
    """What a network learns to refuse: images as positive rows and the negative ones drawn beside them, as in a step.

    With a label: the right and a wrong label, written where the network reads them (label="concat": in rows of pixels
    above the image); of "hard" ones also the probabilities they were drawn from, of "all" some. Without: the image, the
    one before it, mask and hybrid, and below how masks grow with their blurs; or what the generator makes between them.

    Args:
        x: [N, ...] images, a row of pictures each. y: int64 [N], their true labels.
        shape: (channels, height, width) of the images; channels 1, or 3 for red, green and blue.
        generator: of the negatives, on the device of x.
        kind: "uniform", "hard" or "all" wrong labels; with label="none" "hybrid" or "generated" images.
        blurs: of the masks of hybrids.
    """
    _check_labels(net, x, y)
    _check_shape(net, shape)
    allowed = ("hybrid", "generated") if net.label == "none" else ("uniform", "hard", "all")
    if kind not in allowed:
        raise ValueError(
            f"kind is {kind!r}; expected {' or '.join(map(repr, allowed))} for a network with label={net.label!r}"
        )
    x = x.flatten(1)
    columns: list[_Column | _Bars]
    if kind == "hybrid":
        mixed, mask = _negatives.hybrid(x, generator, shape=shape, blurs=blurs)
        chosen = torch.where(mask.repeat(1, shape[0]), x.max(), x.min())
        columns = [_Column("mask", chosen), _Column("hybrid", mixed)]
    elif kind == "generated":
        made, share = _artist(net).between(net.features(x), generator)
        columns = [_Column("generated between", made, [f"{100 * s:.0f} % of the image" for s in share[:, 0].tolist()])]
    else:
        columns = _wrong_labels(net, x, y, shape, generator, kind)
    if net.label == "none":
        columns = [_Column("image", x), _Column("the one before", x.roll(1, 0)), *columns]
    figure, place = _gallery(columns, shape, panel=kind == "hybrid")
    if kind == "hybrid":
        strip = place[x.shape[0], :].subgridspec(1, len({*BLURRED, blurs}))
        seed = int(torch.randint(2**31, (1,), generator=generator, device=x.device))
        for i, number in enumerate(sorted({*BLURRED, blurs})):  # the same bits, blurred more and more
            bits = torch.Generator(x.device).manual_seed(seed)
            _, mask = _negatives.hybrid(x[:1], bits, shape=shape, blurs=number)
            axes = figure.add_subplot(strip[i])
            axes.imshow(mask.reshape(*shape[1:]).cpu().numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            _bare(axes)
            axes.set_title(f"{number} blurs" + (" (here)" if number == blurs else ""), fontsize=8)
    figure.suptitle(f"Negatives: {kind}", fontsize=11)
    return figure


def _wrong_labels(
    net: FFNet, x: Tensor, y: Tensor, shape: Sequence[int], generator: torch.Generator, kind: str
) -> list[_Column | _Bars]:
    """Images with their right and their wrong labels, and what hard ones are drawn from."""
    bars = []
    if kind == "hard":
        logits = net.logits(x)
        u = torch.rand(x.shape[0], generator=generator, device=x.device)
        wrong = torch.ops.ffkern.hard_labels(logits, y, u)[None]
        chance = logits.double().scatter(1, y[:, None], -torch.inf).softmax(1).cpu().numpy()
        bars.append(_Bars("probability of wrong labels", chance, wrong[0].tolist()))
    else:
        wrong = net.wrong_labels(y, kind, generator)[:SHOWN_WRONG]
    variants = [("right label", y), *(("wrong label", labels) for labels in wrong)]
    columns = [
        _Column(title, _labelled(net, x, labels, shape), [f"label {label}" for label in labels.tolist()])
        for title, labels in variants
    ]
    return [*columns, *bars]


@torch.no_grad()
def samples(net: FFNet, x: Tensor, shape: Sequence[int], generator: torch.Generator) -> Figure:
    """What the network's generator makes: image -> activities -> image, again and again, from images and from noise.

    The picture after one pass is the reconstruction. Pixels are means, in 0 .. 1.

    Args:
        x: [N, ...] images, a row of pictures each; as many rows begin with uniform noise.
        shape: (channels, height, width) of the images.
        generator: of the noise, on the device of x.
    """
    _check_shape(net, shape)
    artist, x = _artist(net), x.flatten(1).float()
    now = torch.cat((x, torch.rand(x.shape, generator=generator, device=x.device)))
    columns, done = [], 0
    for passes in CHAIN:
        for _ in range(passes - done):
            now = artist(net.features(now))
        done = passes
        title = {0: "images, then noise", 1: "after 1 pass"}.get(passes, f"{passes} passes")
        columns.append(_Column(title, now))
    figure, _ = _gallery(columns, shape)
    figure.suptitle("Samples of the generator", fontsize=11)
    return figure


def _gallery(columns: Sequence[_Column | _Bars], shape: Sequence[int], panel: bool = False) -> tuple[Figure, GridSpec]:
    """Columns side by side, all pictures on one scale of grey, and their grid; ``panel`` leaves a row below."""
    pictures = [column.pictures.double() for column in columns if isinstance(column, _Column)]
    every = torch.cat([part.flatten() for part in pictures])
    every = every[every.isfinite()]
    low, high = float(every.min()), float(every.max())
    grey = _matplotlib().colormaps["gray"].with_extremes(bad=(GAP, GAP, GAP))
    rows = pictures[0].shape[0]
    figure = _figure(WIDTH, 1.25 * (rows + panel) + 0.5)
    place = figure.add_gridspec(rows + panel, len(columns))
    for i, j in itertools.product(range(rows), range(len(columns))):
        column, axes = columns[j], figure.add_subplot(place[i, j])
        if i == 0:
            axes.set_title(column.title, fontsize=10)
        if isinstance(column, _Bars):
            classes = column.heights.shape[1]
            axes.bar(range(classes), column.heights[i], color=["#999999"] * classes)
            axes.patches[column.marked[i]].set_color(WRONG)
            axes.set_xticks(range(0, classes, -(-classes // 10)))
            axes.set_ylim(0, 1)
            _plain(axes)
            continue
        picture = pictures[j][i].reshape(shape[0], -1, shape[2]).cpu().numpy()
        shown = (picture - low) / (high - low or 1.0)
        shown = shown[0] if shape[0] == 1 else np.nan_to_num(np.moveaxis(shown, 0, 2), nan=GAP)
        axes.imshow(shown, cmap=grey, vmin=0, vmax=1, interpolation="nearest")
        _bare(axes)
        if column.captions:
            axes.set_xlabel(column.captions[i], fontsize=8)
    return figure, place


def _labelled(net: FFNet, x: Tensor, labels: Tensor, shape: Sequence[int]) -> Tensor:
    """Images [N, K] with the label over the first pixels, or with rows of pixels above that hold it."""
    overlay = net._overlay(x)
    if net.label == "overlay":
        written: Tensor = torch.ops.ffkern.overlay_label(x, labels, net.classes, overlay)
        return written
    channels, _, width = shape
    written = torch.ops.ffkern.concat_label(x[:, :0], labels, net.classes, overlay)
    above = x.new_full((x.shape[0], channels, -(-net.classes // width) * width), math.nan)
    above[:, :, : net.classes] = written[:, None]
    return torch.cat((above, x.reshape(x.shape[0], channels, -1)), 2).flatten(1)


def _artist(net: FFNet) -> LinearGenerator:
    artist = getattr(net, "generator", None)
    if not isinstance(artist, LinearGenerator):
        raise ValueError("net has no generator; expected one that learnt with negatives='generated'")
    return artist


# --------------------------------------------------------------------------------------- weights


@torch.no_grad()
def receptive_fields(
    net: FFNet, shape: Sequence[int], *, layer: int = 0, count: int = 64, chosen: str = "norm"
) -> Figure:
    """Incoming weights of units as images, row by row, with the weights of the label inputs beside them.

    Weight 0 is white (grey in colour images); one scale, the same on both sides of 0, serves all units and ends at the
    99.5th percentile of the weights' sizes. With label="overlay" the pixels that the label replaces are blanked.

    Args:
        shape: (channels, height, width) of the images; channels 1, or 3 for red, green and blue.
        layer: above 0 the weights are multiplied with those of all layers below, as if there were no ReLU.
        count: units at most.
        chosen: "norm": those with the longest weight vectors, longest first; "even": evenly over all, in their order.
    """
    depth = len(net.layers)
    _check_shape(net, shape)
    if not 0 <= operator.index(layer) < depth:
        raise ValueError(f"layer is {layer}; expected 0 to {depth - 1}")
    if operator.index(count) < 1:
        raise ValueError(f"count is {count}; expected at least 1")
    if chosen not in ("norm", "even"):
        raise ValueError(f"chosen is {chosen!r}; expected 'norm' or 'even'")

    weight = _layer(net, 0).weight.detach().double()
    for i in range(1, layer + 1):
        weight = _layer(net, i).weight.detach().double() @ weight
    if not bool(weight.isfinite().all()):
        raise ValueError(f"net has NaN or infinite weights up to layer {layer}; expected finite numbers")
    overlaid, labelled = net.label == "overlay", net.label != "none"
    of_label, of_image = weight.split((net.classes, weight.shape[1] - net.classes), 1) if labelled else (weight, weight)
    units, count = weight.shape[0], min(count, weight.shape[0])
    if chosen == "norm":
        order = of_image.norm(dim=1).argsort(descending=True, stable=True)[:count]
    else:
        order = torch.arange(count, device=weight.device) * units // count
    fields = of_image[order].cpu().numpy()
    if overlaid:
        fields = np.concatenate((np.full((count, net.classes), np.nan), fields), 1)
    columns = math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    largest = float(np.nanmax(np.abs(fields))) or 1.0
    limit = float(np.nanquantile(np.abs(fields), QUANTILE)) or largest
    mosaic, centres_x, centres_y = _mosaic(fields.reshape(count, *shape), columns, limit)

    colours = _diverging()
    side = 5.6
    figure = _figure(WIDTH, side * mosaic.shape[0] / mosaic.shape[1] + 1.3)
    grid = figure.add_gridspec(1, 1 + labelled, width_ratios=(3.2, 1)[: 1 + labelled])
    left = figure.add_subplot(grid[0])
    drawn = left.imshow(mosaic, cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest")
    left.set_xticks(centres_x, [str(i + 1) for i in range(columns)])
    left.set_yticks(centres_y, [str(i + 1) for i in range(rows)])
    left.tick_params(length=0, labelsize=8)
    for spine in left.spines.values():
        spine.set_visible(False)
    blanked = ", label inputs blanked" if overlaid else ""
    left.set_title(f"Weights of the image inputs{blanked}", fontsize=10)
    if mosaic.ndim == 2:
        extend = "both" if largest > limit else "neither"
        bar = figure.colorbar(drawn, ax=left, location="bottom", shrink=0.6, pad=0.01, extend=extend)
        bar.ax.tick_params(labelsize=8)
        bar.set_label("weight", fontsize=8)
    else:
        left.set_xlabel(f"grey: 0; full colour: a weight of {limit:.2g}", fontsize=8)

    if labelled:
        _label_weights(figure.add_subplot(grid[1]), of_label[order].cpu().numpy(), columns)

    which = "largest norm first" if chosen == "norm" else "evenly chosen"
    through = " through the layers below, without ReLU" if layer else ""
    number = f"all {units} units" if count == units else f"{count} of {units} units"
    figure.suptitle(f"Layer {layer}{through}: {number}, {which}", fontsize=11)
    return figure


def _label_weights(axes: Axes, labels: Array, columns: int) -> None:
    """Weights of the label inputs, [units, classes], a row for each unit; gaps after every row of images."""
    count, classes = labels.shape
    bound = float(np.abs(labels).max()) or 1.0
    drawn = axes.imshow(labels, cmap=_diverging(), vmin=-bound, vmax=bound, aspect="auto", interpolation="nearest")
    ends = np.arange(columns, count, columns) - 0.5
    for end in ends:
        axes.axhline(end, color=(GAP, GAP, GAP), linewidth=2.5)
    starts = np.concatenate(([-0.5], ends))
    stops = np.concatenate((ends, [count - 0.5]))
    axes.set_yticks((starts + stops) / 2, [str(i + 1) for i in range(len(starts))])
    step = -(-classes // 10)
    axes.set_xticks(range(0, classes, step))
    axes.tick_params(length=0, labelsize=8)
    axes.set_title("Weights of the label inputs", fontsize=10)
    axes.set_xlabel("label", fontsize=8)
    axes.set_ylabel("row of images on the left", fontsize=8)
    bar = axes.figure.colorbar(drawn, ax=axes, location="bottom", pad=0.01)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("weight", fontsize=8)


def _mosaic(fields: Array, columns: int, limit: float) -> tuple[Array, Array, Array]:
    """Images [n, C, H, W] side by side with a pixel between: [rows, columns(, 3)], and the tiles' centres.

    One channel: the weights, NaN between. Three: colours in 0 .. 1.
    """
    count, channels, height, width = fields.shape
    rows = -(-count // columns)
    mosaic = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), np.nan)
    for i, field in enumerate(fields):
        top, first = i // columns * (height + 1) + 1, i % columns * (width + 1) + 1
        mosaic[top : top + height, first : first + width] = np.moveaxis(field, 0, 2)
    x = np.arange(columns) * (width + 1) + (width + 1) / 2
    y = np.arange(rows) * (height + 1) + (height + 1) / 2
    if channels == 1:
        return mosaic[:, :, 0], x, y
    mosaic = np.clip(0.5 + mosaic / (2 * limit), 0, 1)
    mosaic[np.isnan(mosaic).any(2)] = 1.0
    return mosaic, x, y


# ----------------------------------------------------------------------------------------- file


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes a figure beside ``path`` and renames it, so that a failure leaves what was there. Makes the folder.

    Args:
        path: its suffix is the format: .png, .svg or .pdf.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"path is {str(path)!r}; expected a name that ends in {', '.join(FORMATS)}")
    buffer = io.BytesIO()
    with _matplotlib().rc_context({"svg.hashsalt": "ffkern"}):  # the same file every time
        figure.savefig(buffer, dpi=DPI, format=suffix[1:], metadata=FORMATS[suffix])
    path.parent.mkdir(parents=True, exist_ok=True)
    _files.write_whole(path, buffer.getvalue())
    return path


# --------------------------------------------------------------------------------------- helpers


def _matplotlib() -> ModuleType:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plots are drawn by matplotlib, which is not installed: run `pip install ffkern[plot]`"
        ) from error
    return matplotlib


def _figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    _matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.06))


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def _bare(axes: Axes) -> None:
    """A picture: no ticks, no frame."""
    axes.set_xticks(())
    axes.set_yticks(())
    for spine in axes.spines.values():
        spine.set_visible(False)


def _colours(count: int, skip: int = 0) -> list[Any]:
    """So many colours; beyond the palette, steps from dark to light."""
    if skip + count <= len(PALETTE):
        return list(PALETTE[skip : skip + count])
    return list(_matplotlib().colormaps["viridis"](np.linspace(0, 0.9, count)))


def _diverging() -> Any:
    """Blue, white at 0, red; grey where there is no weight."""
    return _matplotlib().colormaps["RdBu_r"].with_extremes(bad=(GAP, GAP, GAP))


def _dashes() -> Iterator[str]:
    while True:
        yield from ("-", "--", "-.", ":")


def _handle(**look: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linewidth=2, **look)


def _legend_below(axes: Axes, handles: list[Any]) -> None:
    """Below the axis' label, where no line runs."""
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, fontsize=8, frameon=False)


def _layer(net: FFNet, index: int) -> FFLinear:
    layer = net.layers[index]
    assert isinstance(layer, FFLinear)
    return layer


def _inputs(net: FFNet) -> int:
    """Inputs of one image, without room that was added for the label."""
    return _layer(net, 0).in_features - (net.classes if net.label == "concat" else 0)


def _check_shape(net: FFNet, shape: Sequence[int]) -> None:
    inputs = _inputs(net)
    if len(shape) != 3 or min(shape) < 1 or math.prod(shape) != inputs or shape[0] not in (1, 3):
        raise ValueError(
            f"shape is {tuple(shape)}; expected (channels, height, width) of {inputs} inputs, with 1 or 3 channels"
        )


def _check_labels(net: FFNet, x: Tensor, y: Tensor) -> None:
    for name, given in (("x", x), ("y", y)):
        if not isinstance(given, Tensor):
            raise TypeError(f"{name} is a {type(given).__name__}; expected a tensor")
    if x.dim() < 2 or x.shape[0] == 0:
        raise ValueError(f"x has shape {list(x.shape)}; expected [N, {_inputs(net)}] with at least one image")
    if y.dtype != torch.int64:
        raise ValueError(f"y is {str(y.dtype).removeprefix('torch.')}; expected int64")
    if list(y.shape) != [x.shape[0]]:
        raise ValueError(f"y has shape {list(y.shape)}; expected [{x.shape[0]}], one label for each image")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= net.classes:
        raise ValueError(f"y holds {low if low < 0 else high}; expected 0 to {net.classes - 1}")
