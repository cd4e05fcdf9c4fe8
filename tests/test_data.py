"""The digits set, its split, and batches."""

import sys

import pytest
import torch
from sklearn.datasets import load_digits

from ffkern import data


@pytest.fixture(scope="module")
def digits():
    return data.digits()


def test_digits_are_those_of_scikit_learn_once_each(digits):
    pixels, targets = load_digits(return_X_y=True)
    x = torch.cat((digits.train_x, digits.test_x))
    y = torch.cat((digits.train_y, digits.test_y))
    assert (x.dtype, y.dtype, digits.classes, digits.inputs) == (torch.float32, torch.int64, 10, 64)
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


def test_standardised_uses_training_statistics_alone(digits):
    scaled = digits.standardised()
    train, test = digits.train_x.double(), digits.test_x.double()
    mean = train.mean(0)
    scale = (train - mean).square().mean().sqrt()
    torch.testing.assert_close(scaled.train_x.double(), (train - mean) / scale, atol=2e-6, rtol=0)
    torch.testing.assert_close(scaled.test_x.double(), (test - mean) / scale, atol=2e-6, rtol=0)
    constant = (digits.train_x == 0).all(0)
    assert constant.any()
    assert (scaled.train_x[:, constant] == 0).all()
    assert torch.equal(scaled.train_y, digits.train_y)


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


def test_missing_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"run `pip install ffkern\[digits\]`"):
        data.digits()
