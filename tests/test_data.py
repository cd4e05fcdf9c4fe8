"""Data sets in memory: the digits and their split, arrays, scaling, batches, shifts."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ffkern import data
from ffkern.data import Dataset, Scaling


@pytest.fixture(scope="module")
def digits():
    return data.digits()


def test_digits_are_those_of_scikit_learn_once_each(digits):
    pixels, targets = load_digits(return_X_y=True)
    x = torch.cat((digits.train_x, digits.test_x))
    y = torch.cat((digits.train_y, digits.test_y))
    assert (x.dtype, y.dtype, digits.classes, digits.inputs) == (torch.float32, torch.int64, 10, 64)
    assert digits.shape == (1, 8, 8)
    rows = sorted([*row, label] for row, label in zip(x.tolist(), y.tolist(), strict=True))
    wanted = sorted([*row, label] for row, label in zip((pixels / 16).tolist(), targets.tolist(), strict=True))
    assert rows == wanted


def test_split_is_stratified_and_repeats(digits):
    assert (len(digits.train_y), len(digits.test_y)) == (1347, 450)
    total = torch.cat((digits.train_y, digits.test_y)).bincount()
    share = total.double() * 450 / 1797
    assert (digits.test_y.bincount() - share).abs().max() < 1
    again, other = data.digits(0), data.digits(1)
    assert torch.equal(again.test_x, digits.test_x)
    assert torch.equal(again.train_y, digits.train_y)
    assert not torch.equal(other.test_x, digits.test_x)


def test_stratified_takes_the_largest_remainders():
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    chosen = data.stratified(labels, 4, seed=3)  # shares 2.0, 1.2, 0.8
    assert labels[chosen].bincount().tolist() == [2, 1, 1]


def test_missing_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"run `pip install ffkern\[data\]`"):
        data.digits()


# -------------------------------------------------------------------- scaling


def test_mean_image_scaling_uses_training_statistics_alone(digits):
    scaled = digits.scaled("mean-image")
    train, test = digits.train_x.double(), digits.test_x.double()
    mean = train.mean(0)
    scale = (train - mean).square().mean().sqrt()
    torch.testing.assert_close(scaled.train_x.double(), (train - mean) / scale, atol=2e-6, rtol=0)
    torch.testing.assert_close(scaled.test_x.double(), (test - mean) / scale, atol=2e-6, rtol=0)
    constant = (digits.train_x == 0).all(0)
    assert constant.any()
    assert (scaled.train_x[:, constant] == 0).all()
    assert torch.equal(scaled.train_y, digits.train_y)


def test_scaling_is_the_plain_formula_bit_for_bit(digits):
    for how, mean in (("mean-image", digits.train_x.mean(0)), ("mean", digits.train_x.mean())):
        centred = digits.train_x - mean
        scale = centred.square().mean().sqrt()
        scaled = digits.scaled(how)
        assert torch.equal(scaled.train_x, centred / scale)
        assert torch.equal(scaled.test_x, (digits.test_x - mean) / scale)
        assert torch.equal(scaled.scaling.mean, mean)
        assert torch.equal(scaled.scaling.scale, scale)
        assert torch.equal(scaled.scaling.apply(digits.test_x), scaled.test_x)
    assert digits.train_x.max() == 1  # the original is left alone


def test_scaling_covers_the_validation_part(digits):
    held = digits.held_out(300)
    scaled = held.scaled("mean")
    assert torch.equal(scaled.valid_x, (held.valid_x - held.train_x.mean()) / scaled.scaling.scale)
    assert not torch.equal(scaled.scaling.mean, digits.scaled("mean").scaling.mean)


def test_identity_gives_back_the_same_tensor(digits):
    x = torch.tensor([[-0.0, 1e-40, 3.0]])
    assert Scaling.fit(x, "none").apply(x) is x
    assert digits.scaling.apply(x) is x
    assert digits.scaled("none") is digits
    assert Scaling(torch.zeros(3), torch.tensor(1.0)).identity
    assert not Scaling(torch.tensor([0.0, 0.0, 1e-9]), torch.tensor(1.0)).identity
    assert not Scaling(torch.tensor(0.0), torch.tensor(2.0)).identity


def test_scaling_that_cannot_be_is_refused(digits):
    with pytest.raises(ValueError, match="how is 'mean_image'; expected one of 'none', 'mean-image', 'mean'"):
        digits.scaled("mean_image")
    with pytest.raises(ValueError, match="x has a standard deviation of 0 around its mean-image; expected more than 0"):
        Scaling.fit(torch.ones(4, 3), "mean-image")
    with pytest.raises(ValueError, match="the images are scaled already"):
        digits.scaled("mean").scaled("mean")


# -------------------------------------------------------------------- held-out images


def test_held_out_images_are_stratified_and_the_rest_keeps_its_order(digits):
    numbered = dataclasses.replace(digits, train_x=torch.arange(1347.0)[:, None].repeat(1, 64))
    held = numbered.held_out(200, seed=4)
    left, taken = held.train_x[:, 0].long(), held.valid_x[:, 0].long()
    assert (len(left), len(taken)) == (1147, 200)
    assert torch.equal(torch.cat((left, taken)).sort().values, torch.arange(1347))
    assert (left.diff() > 0).all()
    assert (taken.diff() > 0).all()
    assert torch.equal(held.train_y, digits.train_y[left])
    assert torch.equal(held.valid_y, digits.train_y[taken])
    assert (held.valid_y.bincount() - digits.train_y.bincount() * 200 / 1347).abs().max() < 1
    assert held.test_x is digits.test_x
    assert torch.equal(numbered.held_out(200, seed=4).valid_x, held.valid_x)
    assert not torch.equal(numbered.held_out(200, seed=5).valid_x, held.valid_x)


@pytest.mark.parametrize("count", [0, -1, 1347, 2.0, True])
def test_held_out_count_is_checked(digits, count):
    with pytest.raises(ValueError, match=f"count is {count}; expected an integer from 1 to 1346"):
        digits.held_out(count)


def test_holding_out_comes_once_and_before_scaling(digits):
    with pytest.raises(ValueError, match="the data set is scaled already"):
        digits.scaled("mean").held_out(5)
    with pytest.raises(ValueError, match="the data set has a validation part already"):
        digits.held_out(5).held_out(5)


# -------------------------------------------------------------------- arrays


def made(x, y=None, **more):
    return Dataset.from_arrays(x, np.arange(len(x)) % 3 if y is None else y, **more)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_bytes_are_divided_by_255_and_channels_come_first(convert):
    images = np.random.default_rng(1).integers(0, 256, (5, 4, 3, 3), np.uint8)
    images[0, 0, 0] = 0, 255, 1
    seen = made(convert(images))
    assert (seen.shape, seen.inputs, seen.train_x.dtype, seen.classes) == ((3, 4, 3), 36, torch.float32, 3)
    for n, h, w, c in np.ndindex(images.shape):
        assert seen.train_x[n, c * 12 + h * 3 + w] == np.float32(images[n, h, w, c]) / np.float32(255)
    grey = made(convert(images[..., 0].copy()))
    assert grey.shape == (1, 4, 3)
    assert torch.equal(grey.train_x, seen.train_x[:, :12])
    flat = made(convert(images.reshape(5, 36)))
    assert flat.shape == (1, 1, 36)
    assert flat.train_x[0, 1] == 1
    assert made(convert(images[..., :1].copy())).shape == (1, 4, 3)


@pytest.mark.parametrize("dtype", ["f2", "f4", "<f8", ">f4", ">f8", "g", "?"])
def test_floats_and_bools_are_taken_as_they_are(dtype):
    values = np.array([[0, 1, 0], [1, 1, 0]]) if dtype == "?" else np.array([[-1.5, 0.25, 300], [1, 2, 0]])
    seen = made(values.astype(dtype))
    assert seen.train_x.dtype == torch.float32
    assert seen.train_x.tolist() == values.tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.bool])
def test_tensors_of_any_float_type(dtype):
    values = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    seen = made(values.to(dtype).requires_grad_(dtype.is_floating_point))
    assert seen.train_x.dtype == torch.float32
    assert torch.equal(seen.train_x, values)
    assert not seen.train_x.requires_grad


def test_arrays_are_copied_and_need_not_be_contiguous_or_writable():
    images = np.arange(24, dtype=np.float32).reshape(4, 6)
    seen, tensor = made(images[::-1, ::2]), made(torch.from_numpy(images))
    fixed = np.arange(24, dtype=np.uint8).reshape(4, 6)
    fixed.flags.writeable = False
    assert made(fixed).train_x[3, 5] == np.float32(23 / 255)
    images[:] = -1
    assert seen.train_x[0].tolist() == [18, 20, 22]
    assert tensor.train_x[3].tolist() == [18, 19, 20, 21, 22, 23]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, ">i4", np.uint32, np.int64, np.uint64])
def test_labels_of_any_integer_type(dtype):
    x = np.zeros((4, 2), np.float32)
    labels = np.array([0, 3, 1, 3], dtype)
    seen = Dataset.from_arrays(x, labels, x, labels, name="mine", classes=7)
    assert (seen.name, seen.classes, seen.train_y.dtype) == ("mine", 7, torch.int64)
    assert seen.train_y.tolist() == seen.test_y.tolist() == [0, 3, 1, 3]
    assert Dataset.from_arrays(x, labels).classes == 4
    assert Dataset.from_arrays(x, torch.tensor([0, 3, 1, 3], dtype=torch.int16)).train_y.tolist() == [0, 3, 1, 3]


def test_without_a_test_part_it_is_empty():
    seen = made(np.zeros((4, 2, 5), np.uint8))
    assert (list(seen.test_x.shape), list(seen.test_y.shape), seen.test_y.dtype) == ([0, 10], [0], torch.int64)
    assert seen.valid_x is None


def test_the_largest_label_may_be_in_the_test_part():
    x = np.zeros((2, 2), np.float32)
    assert Dataset.from_arrays(x, np.array([0, 1]), x, np.array([5, 0])).classes == 6


X = np.zeros((3, 4), np.float32)
Y = np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (([[0.0]], Y), TypeError, "train_x is a list; expected a NumPy array or a tensor"),
        ((X, [0, 1, 2]), TypeError, "train_y is a list; expected a NumPy array or a tensor"),
        ((X.astype(object), Y), TypeError, "train_x is object; expected uint8, bool or floating-point"),
        ((X.astype(complex), Y), TypeError, "train_x is complex128; expected uint8, bool or"),
        ((X.astype(np.int32), Y), TypeError, "train_x is int32; expected uint8, bool or"),
        ((torch.zeros(3, 4, dtype=torch.int64), Y), TypeError, "train_x is int64; expected uint8, bool"),
        ((X.astype("U4"), Y), TypeError, "train_x is <U4; expected uint8, bool or"),
        ((X[0], Y), ValueError, r"train_x has shape \[4\]; expected \[N, K\], \[N, H, W\], or"),
        ((np.zeros((3, 3, 8, 8), np.uint8), Y), ValueError, "1, 3 or 4 channels, which come last"),
        ((np.zeros((3, 1, 1, 1, 1), np.uint8), Y), ValueError, r"train_x has shape \[3, 1, 1, 1, 1\]"),
        ((X[:0], Y[:0]), ValueError, r"train_x has shape \[0, 4\]; expected at least one image"),
        ((X[:, :0], Y), ValueError, r"train_x has shape \[3, 0\]; expected at least one image"),
        ((X, Y[:2]), ValueError, r"train_y has shape \[2\]; expected \[3\], one label for each image"),
        ((X, Y[:, None]), ValueError, r"train_y has shape \[3, 1\]; expected \[3\]"),
        ((X, Y - 1), ValueError, "train_y holds -1; expected labels from 0"),
        ((X, np.array([0, 1, 2**64 - 1], np.uint64)), ValueError, "holds 18446744073709551615; expected"),
        ((X, Y.astype(float)), TypeError, "train_y is float64; expected integers"),
        ((X, Y.astype(bool)), TypeError, "train_y is bool; expected integers"),
        ((X, torch.tensor([0.0, 1, 2])), TypeError, "train_y is float32; expected integers"),
        ((X, torch.tensor([True, False, True])), TypeError, "train_y is bool; expected integers"),
        ((X, Y, X), ValueError, "test_x is given without test_y; expected both or neither"),
        ((X, Y, None, Y), ValueError, "test_y is given without test_x; expected both or neither"),
        ((X, Y, X[:, :3], Y), ValueError, r"test_x has images of \(1, 1, 3\); expected \(1, 1, 4\) as in train_x"),
        ((X, Y, X, Y[:1]), ValueError, r"test_y has shape \[1\]; expected \[3\]"),
        ((X, Y, X, -Y), ValueError, "test_y holds -2; expected labels from 0"),
        ((X, Y, X[:0], Y[:0]), ValueError, r"test_x has shape \[0, 4\]; expected at least one"),
    ],
)
def test_bad_arrays_are_named(arguments, error, text):
    with pytest.raises(error, match=text):
        Dataset.from_arrays(*arguments)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_numbers_that_are_not_finite_are_named(bad):
    x = X.astype(np.float64)
    x[2, 1] = bad
    for given in (x, torch.from_numpy(x)):
        with pytest.raises(ValueError, match=r"train_x\[2\] holds NaN or a number beyond float32; expected finite"):
            Dataset.from_arrays(given, Y)


@pytest.mark.parametrize("classes", [2, 3.0, True, "3"])
def test_classes_must_hold_the_labels(classes):
    with pytest.raises(ValueError, match=f"classes is {classes!r}; expected an integer of at least 3"):
        Dataset.from_arrays(X, Y, classes=classes)


def test_shape_must_fit_the_rows(digits):
    assert Dataset("x", digits.train_x, digits.train_y, digits.test_x, digits.test_y, 10).shape == (1, 1, 64)
    with pytest.raises(ValueError, match=r"shape is \(3, 8, 8\); expected \(channels, height, width\) of 64 pixels"):
        dataclasses.replace(digits, shape=(3, 8, 8))


# -------------------------------------------------------------------- batches, shifts


def test_batches_give_every_row_once_with_its_label_and_repeat():
    x = torch.arange(23, dtype=torch.float32)[:, None].repeat(1, 4)
    y = torch.arange(23)
    generator = torch.Generator().manual_seed(5)
    epoch = list(data.batches(x, y, 10, generator))
    assert [len(labels) for _, labels in epoch] == [10, 10, 3]
    assert all(torch.equal(images[:, 0].long(), labels) for images, labels in epoch)
    order = torch.cat([labels for _, labels in epoch])
    assert order.sort().values.tolist() == list(range(23))
    assert torch.equal(order, torch.randperm(23, generator=torch.Generator().manual_seed(5)))
    following = torch.cat([labels for _, labels in data.batches(x, y, 10, generator)])
    assert not torch.equal(following, order)


def moved(image, shape, down, right, fill):
    """One image, pixel by pixel."""
    channels, height, width = shape
    out = []
    for c in range(channels):
        for row in range(height):
            for column in range(width):
                inside = 0 <= row - down < height and 0 <= column - right < width
                out.append(image[(c * height + row - down) * width + column - right] if inside else fill)
    return out


@pytest.mark.parametrize(("shape", "reach"), [((1, 5, 4), 1), ((2, 4, 5), 2), ((3, 2, 1), 3)])
def test_shift_is_the_slow_loop_and_draws_every_shift(shape, reach):
    x = torch.rand(700, int(np.prod(shape)))
    before = x.clone()
    seen = data.shift(x, shape, reach, torch.Generator().manual_seed(9), fill=0.5)
    span = range(-reach, reach + 1)
    found = set()
    for image, out in zip(x.tolist(), seen.tolist(), strict=True):
        visible = [(d, r) for d in span for r in span if abs(d) < shape[1] and abs(r) < shape[2]]
        matches = [at for at in visible if moved(image, shape, *at, 0.5) == out]
        if matches:
            assert len(matches) == 1
            found.update(matches)
        else:  # moved out of sight
            assert set(out) == {0.5}
            found.add("gone")
    assert found == set(visible) | ({"gone"} if len(visible) < len(span) ** 2 else set())
    assert torch.equal(x, before)


def test_shift_repeats_with_its_generator_and_reach_0_is_x(digits):
    one, two = (data.shift(digits.train_x, (1, 8, 8), 2, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    assert data.shift(digits.train_x, digits.shape, 0, generator) is digits.train_x
    assert torch.equal(generator.get_state(), state)
    batch = digits.train_x.t().contiguous().t()  # rows that are not contiguous
    assert torch.equal(data.shift(batch, (1, 8, 8), 2, torch.Generator().manual_seed(3)), one)


def test_shift_checks_its_arguments(digits):
    generator = torch.Generator()
    with pytest.raises(ValueError, match="reach is -1; expected an integer of at least 0"):
        data.shift(digits.train_x, (1, 8, 8), -1, generator)
    with pytest.raises(ValueError, match=r"shape is \(1, 8, 9\) and x is \[1347, 64\]; expected"):
        data.shift(digits.train_x, (1, 8, 9), 1, generator)


def test_numbers_too_large_to_scale_are_refused():
    """Their standard deviation overflows float32, and dividing by infinity would blank every image."""
    x = 1e30 * torch.rand(5, 4)
    with pytest.raises(ValueError, match="standard deviation of inf around its mean; expected more than 0, and finite"):
        data.Scaling.fit(x, "mean")
