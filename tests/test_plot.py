"""Plots: the data that is drawn, not only that something is."""

import importlib.util
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="plots need matplotlib")

import ffkern
from ffkern import plot, reference
from ffkern.generator import LinearGenerator
from ffkern.trainer import EpochRecord, HeadRecord, LayerRecord

CLASSES, SIDE, IMAGES = 4, 5, 300
INPUTS = SIDE * SIDE


def make_net(widths=(17, 9), label="concat", **options):
    return ffkern.FFNet([INPUTS, *widths], CLASSES, label=label, **options)


def make_data(images=IMAGES):
    x, y = torch.rand(images, INPUTS), torch.randint(CLASSES, (images,))
    x[torch.arange(images), 8 + 4 * y] += 3  # a pixel tells the label
    return x, y


def forward(net, x, labels):
    """[(h, goodness)] of every layer in float64, from the definitions."""
    overlay = net.overlay.double()
    put = reference.concat_label if net.label == "concat" else reference.overlay_label
    h, result = put(x.double(), labels, net.classes, overlay), []
    for layer in net.layers:
        h, goodness, _, _ = reference.layer_forward(
            h, layer.weight.detach().double(), layer.bias.detach().double(), None, layer.norm, layer.eps, layer.goodness
        )
        result.append((h, goodness))
    return result


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def panel(figure, title):
    (found,) = [axes for axes in figure.axes if axes.get_title().startswith(title)]
    return found


def lines(axes):
    """Drawn lines with a dot on their points, which sets them apart from thresholds and borders of stages."""
    return [line for line in axes.lines if line.get_marker() == "o"]


def pixels(axes):
    """What the first image on these axes shows; NaN where it shows nothing."""
    return np.ma.filled(axes.images[0].get_array(), np.nan)


def stretched(image):
    """From black to white."""
    return (image - image.min()) / (image.max() - image.min())


def layer_record(value, scale=1.0):
    return LayerRecord(0.5 + value, scale * (2 + value), scale * (1 + value), 0.1 * value, 0.2 * value, 0.3 * value)


def record(epoch, stage="all", layers=(), head=None, validation=None):
    return EpochRecord(epoch, stage, tuple(layers), head, 1.0, validation)


# ---------------------------------------------------------------- curves


def test_curves_draw_the_records():
    history = [
        record(
            e,
            layers=[layer_record(0.1 * e), layer_record(0.3 * e)],
            head=HeadRecord(1.0, 0.2 * e),
            validation={"error": 0.5 / e, "error_but_first": 0.6 / e, "error_softmax": 0.7 / e},
        )
        for e in (1, 2, 3)
    ]
    figure = plot.curves(history)
    for title, keys, unit in (
        ("Loss", ["loss"], 1),
        ("Rows on", ["separation"], 100),
        ("Rows whose", ["kept_pos", "kept_neg"], 100),
        ("Goodness", ["goodness_pos", "goodness_neg"], 1),
    ):
        drawn = lines(panel(figure, title))
        wanted = [[unit * getattr(r.layers[i], key) for r in history] for key in keys for i in range(2)]
        assert [line.get_ydata().tolist() for line in drawn] == [pytest.approx(values) for values in wanted]
        assert all(line.get_xdata().tolist() == [1, 2, 3] for line in drawn)
        assert [line.get_color() for line in drawn] == list(plot.PALETTE[:2]) * len(keys)
        assert [line.get_linestyle() for line in drawn] == ["-", "-", "--", "--"][: len(drawn)]
    error = panel(figure, "Error")
    assert {line.get_label(): line.get_ydata().tolist() for line in lines(error)} == {
        "all layers": pytest.approx([50, 25, 50 / 3]),
        "all but the first": pytest.approx([60, 30, 20]),
        "softmax head": pytest.approx([70, 35, 70 / 3]),
    }
    (head,) = lines(panel(figure, "Softmax head"))
    assert head.get_ydata().tolist() == pytest.approx([20, 40, 60])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["layer 0", "layer 1"]


def test_curves_of_greedy_stages_stand_side_by_side():
    history = [record(e, "layer 0", [layer_record(e), None]) for e in (1, 2)]
    history += [record(e, "layer 1", [None, layer_record(10 + e)], validation={"error": 0.1 * e}) for e in (1, 2)]
    history += [record(1, "head", [None, None], HeadRecord(0.3, 0.9))]
    figure = plot.curves(history)
    loss = panel(figure, "Loss")
    first, second = lines(loss)
    assert first.get_ydata().tolist() == pytest.approx([1.5, 2.5, *[math.nan] * 3], nan_ok=True)
    assert second.get_ydata().tolist() == pytest.approx([math.nan, math.nan, 11.5, 12.5, math.nan], nan_ok=True)
    assert second.get_xdata().tolist() == [1, 2, 3, 4, 5]
    assert [(text.get_text(), text.get_position()[0]) for text in loss.texts] == [
        ("layer 0", 1.5),
        ("layer 1", 3.5),
        ("head", 5),
    ]
    borders = [line.get_xdata()[0] for line in loss.lines if line not in (first, second)]
    assert borders == [2.5, 4.5]
    assert loss.get_xlabel() == "epoch, counted through the stages"
    (error,) = lines(panel(figure, "Error"))
    assert (error.get_xdata().tolist(), error.get_ydata().tolist()) == ([3, 4], pytest.approx([10, 20]))
    (head,) = lines(panel(figure, "Softmax head"))
    assert (head.get_xdata().tolist(), head.get_ydata().tolist()) == ([5], [pytest.approx(90)])


def test_curves_of_layers_that_take_turns():
    history = [record(1 + i // 2, f"layer {i % 2}", [layer_record(i), None][:: 1 - 2 * (i % 2)]) for i in range(40)]
    loss = panel(plot.curves(history), "Loss")
    first, second = lines(loss)
    assert first.get_ydata()[::2].tolist() == pytest.approx([0.5 + i for i in range(0, 40, 2)])
    assert np.isnan(first.get_ydata()[1::2]).all()
    assert first.get_markevery() == list(range(0, 40, 2))  # points without a neighbour would be invisible
    assert second.get_markevery() == list(range(1, 40, 2))
    assert len(loss.lines) == 2
    assert not loss.texts
    assert loss.get_xlabel() == "record"


def test_curves_dot_only_lone_points_of_long_runs():
    history = [record(e, layers=[layer_record(0.01 * e) if e != 20 and e != 22 else None]) for e in range(1, 41)]
    (line,) = lines(panel(plot.curves(history), "Loss"))
    assert line.get_markevery() == [20]  # epoch 21
    (line,) = lines(panel(plot.curves(history[:25]), "Loss"))
    assert line.get_markevery() is None


def test_curves_of_a_resumed_run_keep_its_epochs():
    history = [record(e, layers=[layer_record(e)]) for e in (6, 7)]
    loss = panel(plot.curves(history), "Loss")
    assert lines(loss)[0].get_xdata().tolist() == [6, 7]
    assert loss.get_xlabel() == "epoch"
    assert not loss.texts
    again = panel(plot.curves([*history, *history]), "Loss")
    assert lines(again)[0].get_xdata().tolist() == [1, 2, 3, 4]
    assert [text.get_text() for text in again.texts] == ["all", "all"]


def test_curves_of_one_epoch_and_one_layer():
    history = [record(1, layers=[layer_record(1)], validation={"error": 0.25, "error_but_first": 0.25})]
    figure = plot.curves(history)
    (line,) = lines(panel(figure, "Loss"))
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([1], [1.5])
    assert panel(figure, "Loss").get_xlim() == (0.5, 1.5)
    (error,) = lines(panel(figure, "Error"))  # without the first layer there is nothing
    assert error.get_label() == "all layers"
    assert len([axes for axes in figure.axes if axes.get_title()]) == 5
    figure.draw_without_rendering()


@pytest.mark.parametrize(
    ("sign", "zero", "scale"), [(1, False, "log"), (-1, False, "symlog"), (1, True, "symlog"), (0, False, "linear")]
)
def test_goodness_over_decades_is_logarithmic(sign, zero, scale):
    sizes = [0.01, 1.0, 100.0]
    values = [v * (sign or (-1) ** i) for i, v in enumerate(sizes)]
    layers = [LayerRecord(0.5, value, 0.0 if zero else value, 0.5, 1.0, 1.0) for value in values]
    figure = plot.curves([record(e, layers=[layer]) for e, layer in enumerate(layers, 1)])
    assert panel(figure, "Goodness").get_yscale() == scale
    assert panel(figure, "Loss").get_yscale() == "linear"
    if sign < 0:
        figure.draw_without_rendering()


def test_curves_know_thresholds_and_goodness_from_the_network():
    history = [record(e, layers=[layer_record(e), layer_record(e)]) for e in (1, 2)]

    def limits(net):
        axes = panel(plot.curves(history, net), "Goodness")
        return [(line.get_ydata()[0], line.get_color()) for line in axes.lines if line not in lines(axes)], axes

    same, axes = limits(make_net(threshold=1.5))
    assert same == [(1.5, plot.LIMIT)]
    assert (axes.get_title(), axes.get_ylabel()) == ("Goodness: mean $h^2$", "mean of squared activities")
    other, axes = limits(make_net(goodness="neg_sum_sq", threshold="width"))
    assert other == [(17, plot.PALETTE[0]), (9, plot.PALETTE[1])]
    assert axes.get_title() == r"Goodness: $-\sum h^2$"
    assert axes.get_ylabel() == "minus the sum of squared activities"


def test_every_kind_of_goodness_has_words():
    assert set(plot.KINDS) == set(plot.FORMULAS) == set(reference.GOODNESS)


def test_curves_of_diverged_training_can_be_drawn():
    bad = LayerRecord(math.nan, math.inf, math.nan, 0.5, 1.0, math.nan)
    plot.curves([record(1, layers=[bad]), record(2, layers=[bad])]).draw_without_rendering()


def test_curves_of_nothing():
    with pytest.raises(ValueError, match="history is empty; expected at least one EpochRecord"):
        plot.curves([])


# ---------------------------------------------------------------- goodness


def shifted(net, x, y):
    """The net after some steps: right and wrong labels no longer have the same goodness."""
    opt = ffkern.optim.Adam(net.layers.parameters(), lr=0.02)
    for _ in range(40):
        net.step(x, y, opt, generator=generator())
    return net


@pytest.mark.parametrize("label", ["concat", "overlay"])
@pytest.mark.parametrize("kind", ["mean_sq", "neg_sum_sq"])
def test_histogram_counts_the_goodness_of_the_reference(label, kind, monkeypatch):
    monkeypatch.setattr(plot, "EVALUATED_ROWS", 128)  # in parts, the last one smaller
    x, y = make_data()
    net = shifted(make_net(label=label, goodness=kind, threshold=-1.5 if kind.startswith("neg") else 0.7), x, y)
    figure = plot.goodness_histogram(net, x, y, generator(), title="Over all")
    wrong = reference.wrong_labels(y, CLASSES, torch.rand(IMAGES, generator=generator()))
    assert figure.get_suptitle() == "Over all"
    assert len(figure.axes) == 2
    for i, axes in enumerate(figure.axes):
        layer = net.layers[i]
        values = {"right": forward(net, x, y)[i][1], "wrong": forward(net, x, wrong)[i][1]}
        drawn = {p.get_label().split()[0]: p.get_data() for p in axes.patches if p.get_label().endswith(" label")}
        assert set(drawn) == {"right", "wrong"}
        for name, (counts, edges, _) in drawn.items():
            seen = values[name].numpy()
            assert counts.sum() == IMAGES
            # a value within rounding of an edge may fall to its other side
            near = (np.abs(seen[:, None] - edges[1:-1]) < 1e-4 * max(np.abs(edges).max(), 1)).any(1).sum()
            assert np.abs(counts - np.histogram(seen.clip(edges[0], edges[-1]), edges)[0]).sum() <= 2 * near
            assert near < IMAGES / 5
        together = torch.cat((values["right"], values["wrong"]))
        edges = drawn["right"][1]
        assert len(edges) == 25  # isqrt(2 * 300) bins
        assert (edges[0], edges[-1]) == pytest.approx(
            (float(together.min()), float(together.max())), rel=1e-4, abs=1e-4
        )
        assert np.array_equal(edges, drawn["wrong"][1])
        (limit,) = axes.lines
        assert list(limit.get_xdata()) == [layer.threshold] * 2
        assert axes.get_xlabel() == f"goodness: {plot.KINDS[kind]}"

        # what lies closer than rounding may be seen on either side
        limit, close = layer.threshold, 1e-5 * float(together.abs().max())
        pairs = values["right"][:, None] - values["wrong"]
        margins = torch.cat((values["right"] - limit, limit - values["wrong"]))
        words = axes.get_title().replace(",", "").split()
        assert words[:3] == ["Layer", f"{i}:", "AUC"]
        for told, differences in ((float(words[3]), pairs), (float(words[5]) / 100, margins)):
            least, most = (float((differences > edge).double().mean()) for edge in (close, -close))
            assert least - 6e-4 <= told <= most + 6e-4
            assert i > 0 or most - least < 0.05  # the second layer may be all but constant
        # so that the test sees right and wrong exchanged
        assert i > 0 or np.abs(drawn["right"].values - drawn["wrong"].values).sum() > 20


def test_histogram_repeats_itself_and_leaves_the_global_generator_alone():
    net, (x, y) = make_net(), make_data(60)
    before = torch.get_rng_state()

    def counts(seed):
        figure = plot.goodness_histogram(net, x, y, generator(seed))
        return [p.get_data().values.tolist() for axes in figure.axes for p in axes.patches]

    assert counts(1) == counts(1)
    assert counts(1) != counts(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_auc_counts_ties_half():
    assert plot._auc(np.array([1.0, 2.0]), np.array([1.0, 0.0])) == 0.875
    assert plot._auc(np.array([0.0]), np.array([0.0, 1.0, 2.0])) == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda x, y: ([1], y), TypeError, "x is a list; expected a tensor"),
        (lambda x, y: (x, y.float()), ValueError, "y is float32; expected int64"),
        (lambda x, y: (x, y[1:]), ValueError, r"y has shape \[5\]; expected \[6\], one label for each image"),
        (lambda x, y: (x, y + CLASSES), ValueError, r"y holds \d; expected 0 to 3"),
        (lambda x, y: (x, y - 9), ValueError, r"y holds -\d; expected 0 to 3"),
        (lambda x, y: (x[:0], y[:0]), ValueError, r"x has shape \[0, 25\]; expected \[N, 25\] with at least one image"),
        (lambda x, y: (x[:, 1:], y), ValueError, r"x has shape \[6, 24\]; expected \[N, 25\]"),
        (lambda x, y: (x * math.nan, y), ValueError, "goodness of layer 0 is NaN or infinite for some row"),
    ],
)
def test_histogram_refuses(spoil, error, message):
    with pytest.raises(error, match=message):
        plot.goodness_histogram(make_net(), *spoil(*make_data(6)))


@pytest.mark.parametrize(("threshold", "temperature"), [(2.0, 1.0), (-3.0, 0.5), (500.0, 20.0)])
def test_lesson_draws_the_loss_and_its_derivative(threshold, temperature):
    loss, coefficient = plot.lesson(threshold, temperature).axes
    for sign, name in ((1.0, "right label"), (-1.0, "wrong label")):
        (left,) = [line for line in loss.lines if line.get_label() == name]
        (right,) = [line for line in coefficient.lines if line.get_label() == name]
        goodness = torch.from_numpy(left.get_xdata())
        assert goodness[0] < threshold < goodness[-1]
        assert torch.equal(goodness, torch.from_numpy(right.get_xdata()))
        one = torch.ones_like(goodness)
        _, coef, _ = reference.local_loss(goodness, sign * one, one, threshold, temperature)
        each = [
            float(reference.local_loss(goodness[i : i + 1], sign * one[:1], one[:1], threshold, temperature)[0])
            for i in range(0, len(goodness), 50)
        ]
        assert right.get_ydata() == pytest.approx(coef.numpy(), rel=1e-9)
        assert left.get_ydata()[::50].tolist() == pytest.approx(each, rel=1e-9)
        assert left.get_color() == right.get_color() == {1.0: plot.RIGHT, -1.0: plot.WRONG}[sign]
    for axes in (loss, coefficient):
        (limit,) = [line for line in axes.lines if line.get_label().startswith("threshold")]
        assert list(limit.get_xdata()) == [threshold] * 2
    assert (loss.get_xlim()[0] >= 0) == (threshold > 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((math.inf, 1), "threshold is inf; expected a finite number"),
        ((1, 0), "temperature is 0; expected a finite number > 0"),
        ((1, math.nan), "temperature is nan"),
    ],
)
def test_lesson_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot.lesson(*arguments)


# ---------------------------------------------------------------- activities


@pytest.mark.parametrize("label", ["concat", "overlay"])
def test_label_activity_draws_the_activities_of_the_reference(label):
    net = make_net(label=label, widths=(17, 9, 6))
    image = torch.rand(INPUTS)
    figure = plot.label_activity(net, image, 2, 1)
    expected = {name: forward(net, image[None], torch.tensor([name])) for name in (2, 1)}
    bars = panel(figure, "Mean activity")
    right, wrong = bars.containers
    for name, drawn in ((2, right), (1, wrong)):
        assert [bar.get_height() for bar in drawn] == pytest.approx(
            [float(h.mean()) for h, _ in expected[name]], rel=1e-4, abs=1e-6
        )
    assert [text.get_text() for text in bars.get_legend().get_texts()] == ["label 2 (right)", "label 1 (wrong)"]
    assert max(abs(a.get_height() - b.get_height()) for a, b in zip(right, wrong, strict=True)) > 1e-3
    for i in range(3):
        strip = panel(figure, f"Layer {i}")
        (h_right, g_right), (h_wrong, g_wrong) = expected[2][i], expected[1][i]
        rows = pixels(strip)
        assert rows.shape == (2, net.layers[i].out_features)
        assert (np.diff(rows[0] - rows[1]) <= 0).all()
        both = torch.cat((h_right, h_wrong)).T.numpy()  # units with their two activities, as a set
        key = np.lexsort(both.round(4).T)
        drawn = np.asarray(rows).T
        assert drawn[np.lexsort(drawn.round(4).T)].sum(0) == pytest.approx(both[key].sum(0), rel=1e-4, abs=1e-5)
        assert np.sort(drawn @ [1, 1.7]) == pytest.approx(np.sort(both @ [1, 1.7]), rel=1e-4, abs=1e-5)
        words = strip.get_title().replace(",", "").split()
        assert [float(words[3]), float(words[5])] == pytest.approx([float(g_right), float(g_wrong)], rel=0.01)
    wanted = image.double().reshape(SIDE, SIDE).numpy()
    assert pixels(panel(figure, "The image")) == pytest.approx(stretched(wanted))


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ((24,), None),
        ((4, 6), (4, 6)),
        ((1, 4, 6), (4, 6)),
        ((1, 1, 6, 4), (6, 4)),
        ((25,), (5, 5)),
        ((27,), (3, 3, 3)),
        ((3, 2, 4), (2, 4, 3)),
    ],
)
def test_image_is_shown_if_it_is_one(shape, shown):
    image = torch.rand(shape)
    net = ffkern.FFNet([image.numel(), 8], CLASSES, label="concat")
    figure = plot.label_activity(net, image, 0, 1)
    pictures = [axes for axes in figure.axes if axes.get_title().startswith("The image")]
    if shown is None:
        assert not pictures
        return
    assert pixels(pictures[0]).shape == shown
    wanted = image.double().reshape(shown if len(shown) == 2 else (3, *shown[:2])).numpy()
    wanted = wanted if len(shown) == 2 else wanted.transpose(1, 2, 0)
    assert pixels(pictures[0]) == pytest.approx(stretched(wanted))


@pytest.mark.parametrize(
    ("image", "right", "wrong", "error", "message"),
    [
        (torch.rand(24), 0, 1, ValueError, r"image has shape \[24\]; expected one image of 25 elements"),
        (torch.rand(2, 25), 0, 1, ValueError, r"image has shape \[2, 25\]"),
        ([0.0] * 25, 0, 1, TypeError, "image is a list; expected a tensor of 25 elements"),
        (torch.rand(25), 4, 1, ValueError, "right is 4; expected a label, 0 to 3"),
        (torch.rand(25), 0, -1, ValueError, "wrong is -1; expected a label, 0 to 3"),
        (torch.rand(25), 2, 2, ValueError, "wrong is 2, the right label; expected another one"),
    ],
)
def test_label_activity_refuses(image, right, wrong, error, message):
    with pytest.raises(error, match=message):
        plot.label_activity(make_net(), image, right, wrong)


# ---------------------------------------------------------------- weights


def tiles(mosaic, count, columns, height, width):
    """The images of a mosaic, cut out again."""
    places = [divmod(i, columns) for i in range(count)]
    cut = [(1 + r * (height + 1), 1 + c * (width + 1)) for r, c in places]
    return np.stack([mosaic[top : top + height, left : left + width] for top, left in cut])


@pytest.mark.parametrize("label", ["concat", "overlay"])
@pytest.mark.parametrize("chosen", ["norm", "even"])
def test_fields_are_the_weights(label, chosen):
    net = make_net(label=label, widths=(17,))
    weight = net.layers[0].weight.detach().double()
    of_label, of_image = weight[:, :CLASSES].numpy(), weight[:, CLASSES:].numpy()
    figure = plot.receptive_fields(net, (1, SIDE, SIDE), count=11, chosen=chosen)
    units = np.argsort(-np.linalg.norm(of_image, axis=1))[:11] if chosen == "norm" else np.arange(11) * 17 // 11
    drawn = panel(figure, "Weights of the image").images[0]
    mosaic = pixels(panel(figure, "Weights of the image"))
    shown = tiles(mosaic, 11, 4, SIDE, SIDE).reshape(11, -1)
    if label == "overlay":
        assert np.isnan(shown[:, :CLASSES]).all()
        shown = shown[:, CLASSES:]
    assert np.array_equal(shown, of_image[units])
    assert np.isfinite(mosaic).sum() == shown.size  # between the images there is nothing
    assert mosaic.shape == (3 * (SIDE + 1) + 1, 4 * (SIDE + 1) + 1)
    low, high = drawn.get_clim()
    assert -low == high == pytest.approx(np.quantile(np.abs(of_image[units]), 0.995))
    beside = panel(figure, "Weights of the label").images[0]
    assert np.array_equal(beside.get_array(), of_label[units])
    assert beside.get_clim() == (-np.abs(of_label[units]).max(), np.abs(of_label[units]).max())
    assert (
        figure.get_suptitle()
        == f"Layer 0: 11 of 17 units, {'largest norm first' if chosen == 'norm' else 'evenly chosen'}"
    )


def test_fields_of_a_higher_layer_are_products():
    net = make_net(widths=(17, 9))
    figure = plot.receptive_fields(net, (1, SIDE, SIDE), layer=1, chosen="even")
    product = (net.layers[1].weight.double() @ net.layers[0].weight.double()).detach().numpy()
    mosaic = pixels(panel(figure, "Weights of the image"))
    assert tiles(mosaic, 9, 3, SIDE, SIDE).reshape(9, -1) == pytest.approx(product[:, CLASSES:])
    assert pixels(panel(figure, "Weights of the label")) == pytest.approx(product[:, :CLASSES])
    assert figure.get_suptitle() == "Layer 1 through the layers below, without ReLU: all 9 units, evenly chosen"


def test_fields_of_colour_images():
    net = ffkern.FFNet([3 * 4 * 6, 5], CLASSES, label="overlay")
    figure = plot.receptive_fields(net, (3, 4, 6), chosen="even")
    weight = net.layers[0].weight.detach().double().reshape(5, 3, 4, 6).numpy()
    limit = np.quantile(np.abs(weight.reshape(5, -1)[:, CLASSES:]), 0.995)
    wanted = (0.5 + weight / (2 * limit)).clip(0, 1).transpose(0, 2, 3, 1)
    shown = tiles(pixels(panel(figure, "Weights of the image")), 5, 3, 4, 6)
    assert (shown[:, 0, :CLASSES] == 1).all()
    wanted[:, 0, :CLASSES] = 1
    assert shown == pytest.approx(wanted)


def test_fields_of_zero_weights_can_be_drawn():
    net = make_net()
    torch.nn.init.zeros_(net.layers[0].weight)
    figure = plot.receptive_fields(net, (1, SIDE, SIDE))
    figure.draw_without_rendering()
    assert panel(figure, "Weights of the image").images[0].get_clim() == (-1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (1, 5, 4)}, r"shape is \(1, 5, 4\); expected \(channels, height, width\) of 25 inputs"),
        ({"shape": (5, 5)}, r"shape is \(5, 5\)"),
        ({"shape": (25, 1, 1)}, r"shape is \(25, 1, 1\); .* with 1 or 3 channels"),
        ({"shape": (1, -5, -5)}, "shape is"),
        ({"layer": 2}, "layer is 2; expected 0 to 1"),
        ({"layer": -1}, "layer is -1; expected 0 to 1"),
        ({"count": 0}, "count is 0; expected at least 1"),
        ({"chosen": "best"}, "chosen is 'best'; expected 'norm' or 'even'"),
    ],
)
def test_fields_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        plot.receptive_fields(make_net(), **{"shape": (1, 5, 5), **options})


def test_fields_refuse_weights_that_are_not_finite():
    net = make_net()
    net.layers[1].weight.data[2, 3] = math.nan
    plot.receptive_fields(net, (1, 5, 5))
    with pytest.raises(ValueError, match="net has NaN or infinite weights up to layer 1; expected finite numbers"):
        plot.receptive_fields(net, (1, 5, 5), layer=1)


def test_fields_of_a_network_without_labels():
    net = make_net(label="none")
    (left, bar) = plot.receptive_fields(net, (1, SIDE, SIDE), count=4, chosen="even").axes
    assert bar.get_xlabel() == "weight"
    weight = net.layers[0].weight.detach().numpy()
    shown = tiles(pixels(left), 4, 2, SIDE, SIDE)
    for i, tile in enumerate(shown):
        assert tile.flatten() == pytest.approx(weight[i * 17 // 4])


# ---------------------------------------------------------------- negatives


SHAPE = (1, SIDE, SIDE)


def shown(figure, titles):
    """The pictures of each column, as they were before they were put on one scale: up to two numbers for all."""
    rows = {}
    for axes in figure.axes:
        where = axes.get_subplotspec()
        if axes.images and where.get_gridspec().ncols == len(titles):
            rows.setdefault(where.colspan.start, []).append((pixels(axes), axes.get_title(), axes.get_xlabel()))
    assert [rows[j][0][1] for j in range(len(titles))] == titles
    return [[picture for picture, _, _ in rows[j]] for j in sorted(rows)], [
        [caption for _, _, caption in rows[j]] for j in sorted(rows)
    ]


def on_scale(columns):
    """Columns of images [H, W] as the figure shows them: black is the lowest value of all, white the highest."""
    every = np.concatenate([np.ravel(image) for column in columns for image in column])
    low, high = np.nanmin(every), np.nanmax(every)
    return [[(np.asarray(image, dtype=float) - low) / (high - low) for image in column] for column in columns]


def assert_pictures(got, wanted):
    for one, other in zip(got, on_scale(wanted), strict=True):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert a == pytest.approx(b, abs=1e-6, nan_ok=True)


def written(net, x, labels):
    """The image with its label where the network reads it."""
    overlay = net.overlay
    if net.label == "overlay":
        return [image.reshape(SIDE, SIDE).numpy() for image in reference.overlay_label(x, labels, CLASSES, overlay)]
    above = np.full((len(x), 1, SIDE), np.nan)
    above[:, 0, :CLASSES] = reference.concat_label(x, labels, CLASSES, overlay)[:, :CLASSES].numpy()
    return list(np.concatenate((above, x.reshape(-1, SIDE, SIDE).numpy()), 1))


@pytest.mark.parametrize("label", ["concat", "overlay"])
def test_negatives_are_the_labels_that_a_step_draws(label):
    net, (x, y) = make_net(label=label), make_data(3)
    figure = plot.negatives(net, x, y, SHAPE, generator())
    wrong = reference.wrong_labels(y, CLASSES, torch.rand(3, generator=generator()))
    got, captions = shown(figure, ["right label", "wrong label"])
    assert_pictures(got, [written(net, x, y), written(net, x, wrong)])
    assert captions == [[f"label {i}" for i in labels.tolist()] for labels in (y, wrong)]
    assert figure.get_suptitle() == "Negatives: uniform"


def test_negatives_of_all_wrong_labels_are_some():
    net, (x, y) = make_net(), make_data(2)
    got, captions = shown(
        plot.negatives(net, x, y, SHAPE, generator(), kind="all"), ["right label"] + 3 * ["wrong label"]
    )
    wrong = reference.all_wrong_labels(y, CLASSES)
    assert len(wrong) == plot.SHOWN_WRONG == 3
    assert_pictures(got, [written(net, x, labels) for labels in (y, *wrong)])
    assert captions[1:] == [[f"label {i}" for i in labels.tolist()] for labels in wrong]


def test_hard_negatives_come_with_their_probabilities():
    net, (x, y) = make_net(head_layers="all"), make_data(5)
    torch.nn.init.normal_(net.head.weight)
    figure = plot.negatives(net, x, y, SHAPE, generator(), kind="hard")
    logits = net.logits(x)
    wrong = reference.hard_labels(logits, y, torch.rand(5, generator=generator()))
    bars = [axes for axes in figure.axes if axes.patches]
    assert bars[0].get_title() == "probability of wrong labels"
    for i, axes in enumerate(bars):
        heights = [bar.get_height() for bar in axes.patches]
        others = [label for label in range(CLASSES) if label != y[i]]
        weights = [math.exp(logits[i, label]) for label in others]
        assert heights[y[i]] == 0
        assert [heights[label] for label in others] == pytest.approx([w / sum(weights) for w in weights], rel=1e-5)
        from matplotlib.colors import to_hex

        drawn = [to_hex(bar.get_facecolor()).upper() == plot.WRONG for bar in axes.patches]
        assert drawn == [label == wrong[i] for label in range(CLASSES)]
    captions = [axes.get_xlabel() for axes in figure.axes if axes.images]
    assert sorted(captions) == sorted(f"label {i}" for i in (*y.tolist(), *wrong.tolist()))
    figure.draw_without_rendering()


def test_hybrids_are_shown_with_what_they_are_made_of():
    net, (x, y) = make_net(label="none"), make_data(4)
    figure = plot.negatives(net, x, y, SHAPE, (draws := generator()), kind="hybrid", blurs=3)
    again = generator()
    drawn = torch.stack((torch.randint(2**63 - 1, (1,), generator=again), torch.zeros(1, dtype=torch.int64))).flatten()
    before = x[[3, 0, 1, 2]]
    mixed, mask, _ = reference.hybrid_images(x, before, drawn, SIDE, SIDE, 3)
    got, _ = shown(figure, ["image", "the one before", "mask", "hybrid"])
    masks = torch.where(mask, x.max(), x.min())
    assert_pictures(got, [[image.reshape(SIDE, SIDE).numpy() for image in part] for part in (x, before, masks, mixed)])
    below = {axes.get_title(): pixels(axes) for axes in figure.axes if "blurs" in axes.get_title()}
    assert list(below) == [f"{n} blurs" + " (here)" * (n == 3) for n in sorted({*plot.BLURRED, 3})]
    seed = torch.randint(2**31, (1,), generator=again)
    assert torch.equal(draws.get_state(), again.get_state())
    bits = torch.randint(2**63 - 1, (1,), generator=generator(int(seed)))
    for name, picture in below.items():
        _, mask, _ = reference.hybrid_images(
            x[:1], x[:1], torch.cat((bits, torch.zeros_like(bits))), SIDE, SIDE, int(name.split()[0])
        )
        assert np.array_equal(picture, mask.reshape(SIDE, SIDE).numpy())
    figure.draw_without_rendering()


def make_artist():
    net = make_net(label="none", head_layers="all")
    net.generator = LinearGenerator(INPUTS, (17, 9))
    torch.nn.init.normal_(net.generator.weight)
    return net


def test_generated_negatives_are_shown_beside_the_images_they_lie_between():
    net, (x, y) = make_artist(), make_data(3)
    got, captions = shown(
        plot.negatives(net, x, y, SHAPE, generator(), kind="generated"),
        ["image", "the one before", "generated between"],
    )
    before = {name: value.clone() for name, value in net.state_dict().items()}
    made, share = net.generator.between(net.features(x), generator())
    assert_pictures(got, [[image.reshape(SIDE, SIDE).numpy() for image in part] for part in (x, x[[2, 0, 1]], made)])
    assert captions[2] == [f"{100 * part:.0f} % of the image" for part in share[:, 0].tolist()]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())  # it only looks


def test_samples_are_a_chain_from_images_and_from_noise():
    net, (x, _) = make_artist(), make_data(2)
    figure = plot.samples(net, x, SHAPE, generator())
    now, wanted = torch.cat((x, torch.rand(2, INPUTS, generator=generator()))), []
    for passes in range(max(plot.CHAIN) + 1):
        if passes in plot.CHAIN:
            wanted.append([image.reshape(SIDE, SIDE).numpy() for image in now])
        now = net.generator(net.features(now))
    titles = ["images, then noise", "after 1 pass", *(f"{n} passes" for n in plot.CHAIN[2:])]
    assert_pictures(shown(figure, titles)[0], wanted)
    figure.draw_without_rendering()


@pytest.mark.parametrize("label", ["concat", "overlay", "none"])
def test_negatives_of_colour_images(label):
    net = ffkern.FFNet([3 * INPUTS, 8], CLASSES, label=label)
    x, y = torch.rand(2, 3 * INPUTS), torch.tensor([0, 3])
    kind = "hybrid" if label == "none" else "uniform"
    figure = plot.negatives(net, x.bfloat16(), y, (3, SIDE, SIDE), generator(), kind=kind)
    picture = pixels(figure.axes[0])
    assert picture.shape == (SIDE + (label == "concat"), SIDE, 3)
    assert np.isfinite(picture).all()
    assert (picture.min(), picture.max()) >= (0, 0)
    figure.draw_without_rendering()


@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        (
            "concat",
            {"kind": "hybrid"},
            "kind is 'hybrid'; expected 'uniform' or 'hard' or 'all' for a network with label=",
        ),
        (
            "none",
            {"kind": "uniform"},
            "kind is 'uniform'; expected 'hybrid' or 'generated' for a network with label='none'",
        ),
        ("none", {"kind": "generated"}, "net has no generator; expected one that learnt with negatives='generated'"),
        ("none", {"kind": "hybrid", "shape": (1, 5, 4)}, r"shape is \(1, 5, 4\); expected \(channels, height, width\)"),
        ("concat", {"y": torch.tensor([0, 9])}, "y holds 9; expected 0 to 3"),
    ],
)
def test_negatives_refuse(label, options, message):
    x, y = make_data(2)
    options = {"y": y, "shape": SHAPE, **options}
    with pytest.raises(ValueError, match=message):
        plot.negatives(make_net(label=label), x, generator=generator(), **options)


def test_networks_without_labels_have_no_wrong_ones():
    x, y = make_data(2)
    with pytest.raises(RuntimeError, match="label is 'none': goodness of a wrong label needs a label among the inputs"):
        plot.goodness_histogram(make_net(label="none"), x, y)
    with pytest.raises(ValueError, match="net has no generator"):
        plot.samples(make_net(label="none"), x, SHAPE, generator())


# ---------------------------------------------------------------- files and matplotlib


def small(height):
    """A figure that is quick to write."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1))
    figure.add_subplot().bar([1, 2], [1, height])
    return figure


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_save_writes_the_same_bytes_every_time(tmp_path, suffix):
    first = plot.save(small(2), tmp_path / "new" / f"first.{suffix}")
    second = plot.save(small(2), str(tmp_path / f"second.{suffix}"))
    assert first == tmp_path / "new" / f"first.{suffix}"
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml", b"%PDF-")
    assert first.read_bytes() != plot.save(small(3), tmp_path / f"other.{suffix}").read_bytes()


def test_saved_picture_has_the_width_of_a_page(tmp_path):
    image = pytest.importorskip("PIL.Image")
    with image.open(plot.save(plot.lesson(), tmp_path / "lesson.png")) as picture:
        assert picture.format == "PNG"
        assert picture.width == 990
        assert len(picture.convert("L").getcolors()) > 50


def test_failing_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    figure = small(2)
    monkeypatch.setattr(figure, "savefig", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plot.save(figure, path)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["picture.png"])

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        plot.save(small(2), path)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["picture.png"])


@pytest.mark.parametrize("name", ["picture", "picture.jpg"])
def test_save_refuses_other_formats(tmp_path, name):
    with pytest.raises(ValueError, match=rf"path is '.*{name}'; expected a name that ends in \.png, \.svg, \.pdf"):
        plot.save(small(2), tmp_path / name)


def test_nothing_global_is_used(tmp_path, monkeypatch):
    import matplotlib

    before = dict(matplotlib.rcParams)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would raise
    plot.save(small(2), tmp_path / "small.svg")
    plot.lesson()
    plot.curves([record(1, layers=[layer_record(1)])])
    plot.receptive_fields(make_net(), (1, SIDE, SIDE))
    plot.label_activity(make_net(), torch.rand(INPUTS), 0, 1)
    plot.goodness_histogram(make_net(), *make_data(3))
    plot.negatives(make_net(), *make_data(3), SHAPE, generator())
    assert dict(matplotlib.rcParams) == before


def block(monkeypatch):
    """As if matplotlib were not installed."""
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    finder = SimpleNamespace(find_spec=lambda name, *_: missing() if name == "matplotlib" else None)

    def missing():
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])


def test_importing_needs_no_matplotlib(monkeypatch):
    block(monkeypatch)
    spec = importlib.util.spec_from_file_location("ffkern.plot_again", plot.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "matplotlib" not in sys.modules
    with pytest.raises(ModuleNotFoundError, match="No module"):
        import matplotlib  # noqa: F401


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot.curves([record(1, layers=[layer_record(1)])]),
        lambda: plot.curves([record(1, layers=[layer_record(1)] * 9)]),  # more layers than colours of our own
        lambda: plot.goodness_histogram(make_net(), *make_data(3)),
        lambda: plot.label_activity(make_net(), torch.rand(INPUTS), 0, 1),
        lambda: plot.receptive_fields(make_net(), (1, SIDE, SIDE)),
        lambda: plot.negatives(make_net(), *make_data(3), SHAPE, generator()),
        lambda: plot.samples(make_artist(), make_data(3)[0], SHAPE, generator()),
        lambda: plot.lesson(),
        lambda: plot.save(None, "picture.png"),
    ],
)
def test_without_matplotlib(draw, monkeypatch):
    block(monkeypatch)
    message = r"drawn by matplotlib, which is not installed: run `pip install ffkern\[plot\]`"
    with pytest.raises(ModuleNotFoundError, match=message):
        draw()


# ---------------------------------------------------------------- command


@pytest.fixture
def saved(monkeypatch):
    """A run as the command finds it; ``asked`` collects the paths it is loaded from."""
    command = pytest.importorskip("ffkern.cli.plot", reason="the command needs typer")
    x, y = make_data(20)
    images = SimpleNamespace(name="tiny", train_x=x, train_y=y, test_x=x[:9], test_y=y[:9])
    run = SimpleNamespace(
        net=make_net(),
        history=[record(1, layers=[layer_record(1), layer_record(2)])],
        shape=(1, 5, 5),
        recipe=SimpleNamespace(negatives="all", blurs=3),
        asked=[],
    )
    run.data = lambda: images
    run.images, run.plot = images, command.plot
    monkeypatch.setattr(command.checkpoint, "load", lambda path: run.asked.append(path) or run)
    return run


@pytest.fixture
def drawn(monkeypatch):
    """Calls of the functions that draw."""
    calls = {}

    def spy_on(name):
        draw = getattr(plot, name)

        def spy(*args, **options):
            calls[name] = (args, options)
            return draw(*args, **options)

        monkeypatch.setattr(plot, name, spy)

    for name in ("curves", "goodness_histogram", "label_activity", "receptive_fields", "negatives", "samples"):
        spy_on(name)
    monkeypatch.setattr(plot, "save", lambda figure, path: calls.setdefault("saved", []).append(path) or path)
    return calls


def test_command_writes_pictures(saved, tmp_path, capsys):
    saved.plot(tmp_path, kind="fields")
    assert capsys.readouterr() == (f"{tmp_path / 'plots' / 'fields.png'}\n", "")
    assert os.listdir(tmp_path) == ["plots"]
    assert (tmp_path / "plots" / "fields.png").read_bytes()[:4] == b"\x89PNG"


def test_command_draws_everything(saved, drawn, tmp_path, capsys):
    saved.plot(tmp_path, image=3)
    paths = [tmp_path / "plots" / f"{name}.png" for name in ("curves", "goodness", "activity", "fields", "negatives")]
    assert capsys.readouterr() == ("".join(f"{path}\n" for path in paths), "")
    assert drawn["saved"] == paths
    assert saved.asked == [tmp_path]
    assert drawn["curves"] == ((saved.history, saved.net), {})
    net, x, y, draws = drawn["goodness_histogram"][0]
    assert (net, x, y) == (saved.net, saved.images.test_x, saved.images.test_y)
    assert draws.initial_seed() == 0
    _, image, right, wrong = drawn["label_activity"][0]
    assert torch.equal(image, x[3].reshape(1, 5, 5))  # with its shape
    assert right == y[3]
    scores = saved.net(x)[3]
    assert all(scores[wrong] >= scores[i] for i in range(CLASSES) if i != right)
    assert wrong != right
    assert drawn["receptive_fields"] == ((saved.net, (1, 5, 5)), {})
    (net, x, y, shape, _), options = drawn["negatives"]
    assert (net, shape, options) == (saved.net, (1, 5, 5), {"kind": "all", "blurs": 3})
    rows = torch.randperm(20, generator=generator(0))[:6]
    assert torch.equal(x, saved.images.train_x[rows])
    assert torch.equal(y, saved.images.train_y[rows])


@pytest.mark.parametrize("kind", ["hybrid", "generated"])
def test_command_draws_what_a_network_without_labels_has(saved, drawn, tmp_path, capsys, kind):
    saved.recipe.negatives = kind
    saved.net = make_artist() if kind == "generated" else make_net(label="none", head_layers="all")
    saved.plot(tmp_path)
    names = ["curves", "fields", "negatives"] + ["samples"] * (kind == "generated")
    assert capsys.readouterr() == ("".join(f"{tmp_path / 'plots' / name}.png\n" for name in names), "")
    assert drawn["negatives"][1]["kind"] == kind
    if kind == "generated":
        assert torch.equal(drawn["samples"][0][1], saved.images.test_x[:6])


@pytest.mark.parametrize(
    ("kind", "why"), [("goodness", "sees no labels"), ("activity", "sees no labels"), ("samples", "has no generator")]
)
def test_command_says_what_a_network_cannot_have(saved, drawn, tmp_path, kind, why):
    typer = pytest.importorskip("typer")
    saved.recipe.negatives = "hybrid"
    saved.net = make_net(label="none", head_layers="all")
    with pytest.raises(typer.BadParameter, match=f"{kind}; expected another kind for a network that {why}"):
        saved.plot(tmp_path, kind=kind)
    assert not drawn.keys() - {"saved"}


def test_command_draws_what_is_asked(saved, drawn, tmp_path, capsys):
    file = tmp_path / "checkpoint.pt"
    saved.plot(file, kind="goodness", seed=7)
    assert capsys.readouterr().out == f"{tmp_path / 'plots' / 'goodness.png'}\n"
    assert set(drawn) == {"goodness_histogram", "saved"}
    assert drawn["goodness_histogram"][0][3].initial_seed() == 7
    saved.plot(file, kind="curves", out=tmp_path / "elsewhere")
    assert drawn["saved"][1:] == [tmp_path / "elsewhere" / "curves.png"]


def test_command_leaves_out_what_cannot_be_drawn(saved, drawn, tmp_path, capsys):
    saved.history, saved.shape = [], (5, 1, 5)
    saved.plot(tmp_path)
    out, err = capsys.readouterr()
    assert [Path(line).name for line in out.split()] == ["goodness.png", "activity.png"]
    assert err == (
        "ffkern: no curves: the run has no finished epoch\n"
        "ffkern: no fields: the images have 5 channels\n"
        "ffkern: no negatives: the images have 5 channels\n"
    )
    with pytest.raises(ValueError, match="history is empty"):
        saved.plot(tmp_path, kind="curves")


def test_command_takes_training_images_where_there_is_no_test(saved, drawn, tmp_path):
    saved.images.test_x, saved.images.test_y = saved.images.test_x[:0], saved.images.test_y[:0]
    saved.plot(tmp_path, kind="goodness")
    args, options = drawn["goodness_histogram"]
    assert args[1] is saved.images.train_x
    assert options == {"title": "tiny: 20 training images"}


def test_command_refuses_an_image_that_is_not_there(saved, tmp_path):
    typer = pytest.importorskip("typer")
    with pytest.raises(typer.BadParameter, match="9; expected 0 to 8, a test image"):
        saved.plot(tmp_path, image=9)
    assert os.listdir(tmp_path) == []


def test_command_reads_its_options(saved, drawn, tmp_path):
    typer, testing = pytest.importorskip("typer"), pytest.importorskip("typer.testing")
    app = typer.Typer()
    app.command()(saved.plot)
    run = testing.CliRunner().invoke
    given = [str(tmp_path), "--kind", "activity", "--out", str(tmp_path / "o"), "--image", "4", "--seed", "2"]
    result = run(app, given)
    assert (result.exit_code, result.output) == (0, f"{tmp_path / 'o' / 'activity.png'}\n")
    assert torch.equal(drawn["label_activity"][0][1].flatten(), saved.images.test_x[4])
    assert len(run(app, [str(tmp_path)]).output.split()) == 5
    assert run(app, [str(tmp_path), "--kind", "other"]).exit_code == 2
    assert run(app, [str(tmp_path), "--image", "-1"]).exit_code == 2
