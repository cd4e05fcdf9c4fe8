"""FFClassifier: scikit-learn's own checks, what it learns, and what it refuses."""

from __future__ import annotations

import pickle
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine, make_blobs, make_circles
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from ffkern import FFClassifier, arrays


def small(**settings: Any) -> FFClassifier:
    return FFClassifier(**{"hidden_layer_sizes": (30, 20), "max_iter": 30, "random_state": 0, **settings})


def same(a: FFClassifier, b: FFClassifier) -> bool:
    mine, others = [*a.coefs_, *a.intercepts_], [*b.coefs_, *b.intercepts_]
    return all(np.array_equal(x, y) for x, y in zip(mine, others, strict=True)) and a.loss_curve_ == b.loss_curve_


@pytest.fixture
def blobs() -> tuple[Any, Any]:
    x, y = make_blobs(120, n_features=4, centers=3, random_state=0)
    return x, y


# ---------------------------------------------------------------- scikit-learn


@parametrize_with_checks([small(hidden_layer_sizes=(50, 50)), small(hidden_layer_sizes=50, batch_size=10)])
def test_estimator(estimator: Any, check: Any) -> None:
    check(estimator)


def test_works_without_torch() -> None:
    code = (
        "import sys, numpy as np, ffkern\n"
        "x = np.eye(4, dtype=np.float32)\n"
        "ffkern.FFClassifier((8,), max_iter=2).fit(x, [0, 1, 0, 1]).predict_proba(x)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_says_how_to_install_scikit_learn() -> None:
    code = "import sys; sys.modules['sklearn'] = sys.modules['sklearn.base'] = None; from ffkern import FFClassifier"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert 'pip install "ffkern[data]"' in result.stderr


# ---------------------------------------------------------------- learning


def test_digits_with_default_settings() -> None:
    train_x, test_x, train_y, test_y = train_test_split(*load_digits(return_X_y=True), random_state=0)
    assert FFClassifier(random_state=0).fit(train_x, train_y).score(test_x, test_y) >= 0.95


@pytest.mark.parametrize("scale", [1 / 16, 1000.0, 1e-6])
def test_scale_of_the_data_does_not_matter(scale: float) -> None:
    train_x, test_x, train_y, test_y = train_test_split(*load_digits(return_X_y=True), random_state=1)
    model = FFClassifier((50, 50), max_iter=30, random_state=0).fit(scale * train_x, train_y)
    assert model.score(scale * test_x, test_y) >= 0.9


@pytest.mark.parametrize(
    ("load", "least"),
    [(load_iris, 0.93), (load_wine, 0.95), (load_breast_cancer, 0.95)],
    ids=["iris", "wine", "cancer"],
)
def test_tables(load: Any, least: float) -> None:
    x, y = load(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    model = make_pipeline(StandardScaler(), FFClassifier((100,), random_state=0))
    assert cross_val_score(model, x[order], y[order], cv=3).mean() >= least


@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_two_features(shift: float) -> None:
    x, y = make_circles(400, noise=0.1, factor=0.4, random_state=0)
    train_x, test_x, train_y, test_y = train_test_split(x + np.array([shift, 0]), y, random_state=0)
    model = make_pipeline(StandardScaler(), FFClassifier((100, 100), random_state=0))
    assert model.fit(train_x, train_y).score(test_x, test_y) > 0.95


def test_attributes(blobs: tuple[Any, Any]) -> None:
    x, y = blobs
    model = small().fit(x, y)
    assert [w.shape for w in model.coefs_] == [(30, 3 + 4), (20, 30)]
    assert [b.shape for b in model.intercepts_] == [(30,), (20,)]
    assert all(w.dtype == np.float32 for w in [*model.coefs_, *model.intercepts_])
    assert model.n_iter_ == len(model.loss_curve_) == 30
    assert model.loss_curve_[-1] < model.loss_curve_[0] / 2
    assert model.label_value_ == pytest.approx(0.3 * np.sqrt((x**2).sum(1).mean()), rel=1e-5)


def test_probabilities_rank_labels_as_predict_does(blobs: tuple[Any, Any]) -> None:
    x, y = blobs
    model = small(max_iter=2).fit(x, y)
    proba = model.predict_proba(x)
    assert proba.dtype == np.float64
    assert proba.shape == (120, 3)
    np.testing.assert_allclose(proba.sum(1), 1)
    assert (model.classes_[proba.argmax(1)] == model.predict(x)).all()


def test_goodness_is_that_of_the_layers(blobs: tuple[Any, Any]) -> None:
    x, y = blobs
    model = small().fit(x, y)
    best = []
    for code in range(3):
        h = np.concatenate([np.zeros((120, 3)), x], axis=1)
        h[:, code] = model.label_value_
        total = np.zeros(120)
        for weight, bias in zip(model.coefs_, model.intercepts_, strict=True):
            h = h / np.sqrt((h**2).mean(1, keepdims=True))
            h = np.maximum(h @ weight.T.astype(np.float64) + bias, 0)
            total += (h**2).mean(1)
        best.append(total)
    odds = np.exp((np.array(best) - np.max(best, axis=0)) / model.temperature).T
    np.testing.assert_allclose(model.predict_proba(x), odds / odds.sum(1, keepdims=True), atol=1e-3)


def test_rows_do_not_see_each_other(blobs: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = blobs
    model = small().fit(x, y)
    whole = model.predict_proba(x)
    single = np.concatenate([model.predict_proba(row[None]) for row in x])
    monkeypatch.setattr("ffkern.classifier.ROWS_AT_ONCE", 7)
    np.testing.assert_array_equal(model.predict_proba(x), whole)
    np.testing.assert_array_equal(single, whole)


@pytest.mark.parametrize("threads", [1, 2])
def test_same_seed_same_bits(blobs: tuple[Any, Any], threads: int) -> None:
    x, y = blobs
    before = arrays.get_num_threads()
    arrays.set_num_threads(threads)
    try:
        assert same(small().fit(x, y), small().fit(x, y))
        assert not same(small().fit(x, y), small(random_state=1).fit(x, y))
    finally:
        arrays.set_num_threads(before)


def test_any_labels(blobs: tuple[Any, Any]) -> None:
    x, y = blobs
    names = np.array(["low", "middle", "high"])
    by_name, by_number = small().fit(x, names[y]), small().fit(x, np.array([7, 9, -2])[y])
    assert by_name.classes_.tolist() == ["high", "low", "middle"]
    assert by_number.classes_.tolist() == [-2, 7, 9]
    assert set(by_name.predict(x)) == set(names)
    assert (by_name.predict(x) == names[y]).mean() == (by_number.predict(x) == np.array([7, 9, -2])[y]).mean()
    assert by_name.score(x, names[y]) > 0.9
    assert by_name.score(x, names[y], sample_weight=np.arange(120)) > 0.9


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64, np.uint8])
def test_any_dtype(dtype: Any) -> None:
    x = np.abs(np.random.RandomState(0).normal(size=(40, 3)) * 30).astype(dtype)
    y = np.arange(40) % 2
    assert same(small().fit(x, y), small().fit(x.astype(np.float32), y))
    assert same(small().fit(np.asfortranarray(x), y), small().fit(x, y))


def test_does_not_touch_its_data(blobs: tuple[Any, Any]) -> None:
    x, y = blobs
    x = x.astype(np.float32)
    before = x.copy(), y.copy()
    small().fit(x, y).predict(x)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(y, before[1])


# ---------------------------------------------------------------- learning on


def test_partial_fit_goes_on_as_fit_would(blobs: tuple[Any, Any]) -> None:
    x, y = blobs
    model = small()
    for _ in range(30):
        model.partial_fit(x, y, classes=[0, 1, 2])
    assert same(model, small().fit(x, y))
    assert same(model.fit(x, y), small().fit(x, y))
    assert same(small(max_iter=29).fit(x, y).partial_fit(x, y), small().fit(x, y))


def test_partial_fit_of_a_part_of_the_classes(blobs: tuple[Any, Any]) -> None:
    x, y = blobs
    model = small().partial_fit(x[y == 1], y[y == 1], classes=[2, 0, 1])
    for _ in range(30):
        for label in (0, 2, 1):
            model.partial_fit(x[y == label], y[y == label])
    assert model.n_iter_ == 91
    assert model.classes_.tolist() == [0, 1, 2]
    assert model.predict_proba(x).shape == (120, 3)


def by_joblib(model: FFClassifier, folder: Path) -> FFClassifier:
    """As scikit-learn's models are usually kept; arrays that were one and the same are two after that."""
    joblib.dump(model, folder / "model")
    return joblib.load(folder / "model")


@pytest.mark.parametrize(
    "stored", [lambda model, _: pickle.loads(pickle.dumps(model)), by_joblib, lambda model, _: deepcopy(model)]
)
def test_a_stored_model_goes_on_with_the_same_bits(stored: Any, blobs: tuple[Any, Any], tmp_path: Path) -> None:
    x, y = blobs
    model = small(max_iter=3).fit(x, y)
    copy = stored(model, tmp_path)
    np.testing.assert_array_equal(copy.predict_proba(x), model.predict_proba(x))
    assert same(copy.partial_fit(x, y), model.partial_fit(x, y))
    assert (copy.predict_proba(x) == model.predict_proba(x)).all()
    with pytest.raises(NotFittedError):
        clone(model).predict(x)


def test_learning_rate_can_change_between_calls(blobs: tuple[Any, Any]) -> None:
    x, y = blobs
    model = small().partial_fit(x, y, classes=[0, 1, 2])
    before = model.coefs_[0].copy()
    model.set_params(learning_rate_init=1e-12).partial_fit(x, y)
    np.testing.assert_allclose(model.coefs_[0], before, atol=1e-9)


# ---------------------------------------------------------------- edges


def test_one_class_is_the_answer(blobs: tuple[Any, Any]) -> None:
    x, _ = blobs
    model = small().fit(x, ["only"] * 120)
    assert set(model.predict(x)) == {"only"}
    assert (model.predict_proba(x) == 1).all()
    assert model.loss_curve_ == [0.0] * 30


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_constant_features(value: float) -> None:
    model = small().fit(np.full((20, 3), value), np.arange(20) % 2)
    assert np.isfinite(model.predict_proba(np.full((2, 3), value))).all()


def test_single_feature() -> None:
    x = np.linspace(-1, 1, 100)[:, None]
    y = (x[:, 0] > 0).astype(int)
    assert small(max_iter=100).fit(x, y).score(x, y) > 0.95


def test_single_row() -> None:
    assert small().partial_fit([[1.0, 2.0]], [1], classes=[0, 1]).predict([[1.0, 2.0]]) == [1]


def test_outlying_rows_at_prediction() -> None:
    x, y = make_blobs(60, n_features=2, centers=2, random_state=0)
    proba = small().fit(x, y).predict_proba([[0.0, 0.0], [1e18, -1e18], [1e-30, 0.0]])
    assert np.isfinite(proba).all()


def test_predict_before_fit() -> None:
    with pytest.raises(NotFittedError):
        small().predict([[1.0]])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_iter": 0}, "max_iter is 0; expected an integer of at least 1"),
        ({"max_iter": 2.5}, "max_iter is 2.5; expected an integer"),
        ({"batch_size": 0}, "batch_size is 0; expected an integer of at least 1, or 'auto'"),
        ({"batch_size": "large"}, "batch_size is 'large'; expected"),
        ({"hidden_layer_sizes": ()}, r"hidden_layer_sizes is \(\); expected units of one layer or more"),
        ({"hidden_layer_sizes": (10, 0)}, r"hidden_layer_sizes is \(10, 0\); expected"),
        ({"hidden_layer_sizes": "wide"}, "hidden_layer_sizes is 'wide'; expected"),
        ({"learning_rate_init": 0}, "learning_rate_init is 0; expected a number above 0"),
        ({"temperature": -1.0}, "temperature is -1.0; expected a number above 0"),
        ({"label_scale": float("inf")}, "label_scale is inf; expected a number above 0"),
        ({"threshold": float("nan")}, "threshold is nan; expected a finite number"),
        ({"threshold": "width"}, "threshold is 'width'; expected a finite number"),
    ],
)
def test_refuses_settings(blobs: tuple[Any, Any], setting: dict[str, Any], message: str) -> None:
    x, y = blobs
    with pytest.raises(ValueError, match=message):
        small(**setting).fit(x, y)
    with pytest.raises(ValueError, match=message):
        small(**setting).partial_fit(x, y, classes=[0, 1, 2])


def test_refuses_labels_out_of_place(blobs: tuple[Any, Any]) -> None:
    x, y = blobs
    with pytest.raises(ValueError, match="classes is None; expected all labels"):
        small().partial_fit(x, y)
    with pytest.raises(ValueError, match=r"y holds \[2\]; expected labels among classes: \[0, 1\]"):
        small().partial_fit(x, y, classes=[0, 1])
    model = small().fit(x, y)
    with pytest.raises(ValueError, match=r"y holds \[5\]; expected labels among classes"):
        model.partial_fit(x, np.full(120, 5))
    with pytest.raises(ValueError, match=r"classes is \[0 1\]; expected \[0 1 2\] as before"):
        model.partial_fit(x, y, classes=[0, 1])
    assert same(model, small().fit(x, y))


def test_refuses_lengths_that_float32_cannot_hold() -> None:
    with pytest.raises(ValueError, match="X has a row whose length is not finite in float32"):
        small().fit([[1e30, 1e30], [0.0, 1.0]], [0, 1])
