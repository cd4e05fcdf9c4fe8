"""A scikit-learn classifier that learns by Forward-Forward, on NumPy and CuPy arrays. No torch is imported here."""

# ruff: noqa: N803  (scikit-learn calls the data X)

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import arrays

try:
    from sklearn.base import BaseEstimator, ClassifierMixin  # type: ignore[import-untyped]
    from sklearn.metrics import accuracy_score  # type: ignore[import-untyped]
    from sklearn.utils import check_random_state  # type: ignore[import-untyped]
    from sklearn.utils.multiclass import check_classification_targets  # type: ignore[import-untyped]
    from sklearn.utils.validation import (  # type: ignore[import-untyped]
        check_consistent_length,
        check_is_fitted,
        column_or_1d,
        validate_data,
    )
except ImportError as error:
    raise ImportError(
        f'FFClassifier needs scikit-learn 1.6 or newer: run `pip install "ffkern[data]"`. Cause: {error}'
    ) from error

__all__ = ["FFClassifier"]

Array = arrays.Array
ROWS_AT_ONCE = 8192  # of a prediction: what it holds beside its result does not grow with the data


class FFClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Forward-Forward network as a scikit-learn classifier.

    Every layer learns alone, from each mini-batch in turn: the rows with their true label in front should have a high
    goodness (the mean of the squared activities), the same rows with a random wrong label a low one. Nothing is
    propagated backwards. The answer is the label whose goodness, summed over the layers, is the highest.

    X is a NumPy array (or whatever scikit-learn makes one of) and the CPU learns in float32, or a floating CuPy array
    and its GPU learns, on the tensor cores if X is float16. Weights, and the results of predict_proba, are where X is;
    so are predicted labels, unless they are strings. Labels y may be in either place. Values on a GPU are not looked
    at before prediction: a row with NaN has NaN probabilities.

    The scale of X does not matter (1e-6 to 1e18), the scales of its columns to each other do: standardise columns of
    different units.

    Args:
        hidden_layer_sizes: units of each layer; the label needs no layer of its own.
        threshold: goodness that tells right labels from wrong ones, in mean squares per unit.
        temperature: how far from the threshold a row still teaches. It is small because goodness is a mean over many
            units, and divides the goodness in predict_proba too.
        label_scale: length of the label in front of a row, in units of the typical (root mean square) length of the
            rows of the first data seen.
        learning_rate_init: Adam's learning rate, constant.
        batch_size: rows in a mini-batch; "auto" is a 25th of the rows, but 16 to 200. Batches of a pass differ in
            size by one row at most, so none is larger than this.
        max_iter: passes over the data in fit.
        random_state: seed, or generator, of the first weights, the order of the rows and the wrong labels.

    Attributes:
        classes_: the labels, sorted.
        coefs_, intercepts_: float32 weights [units, inputs] and biases [units] of each layer. The first inputs of the
            first layer are the labels, in the order of classes_; the features follow.
        label_value_: what the label is written with.
        n_iter_: passes over the data so far.
        loss_curve_: local loss in each pass, mean over rows and layers.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.

    Same data, seed and number of threads (``ffkern.arrays.set_num_threads``): same bits. With a single class there is
    no wrong label and nothing to learn; it is the answer. Probabilities are a softmax over the labels' goodness divided
    by the temperature: ordered as the answers are, not calibrated.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> from sklearn.model_selection import train_test_split
        >>> from ffkern import FFClassifier
        >>> train_x, test_x, train_y, test_y = train_test_split(*load_digits(return_X_y=True), random_state=0)
        >>> FFClassifier(random_state=0).fit(train_x, train_y).score(test_x, test_y) > 0.95
        True

    Source: G. Hinton, The Forward-Forward Algorithm: Some Preliminary Investigations, arXiv 2212.13345 (2022),
    sections 2 and 3.3.
    """

    def __init__(
        self,
        hidden_layer_sizes: Any = (500, 500),
        *,
        threshold: float = 0.3,
        temperature: float = 0.01,
        label_scale: float = 0.3,
        learning_rate_init: float = 0.001,
        batch_size: int | str = "auto",
        max_iter: int = 100,
        random_state: Any = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.threshold = threshold
        self.temperature = temperature
        self.label_scale = label_scale
        self.learning_rate_init = learning_rate_init
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.random_state = random_state

    # ------------------------------------------------------------ learning

    def fit(self, X: Any, y: Any) -> FFClassifier:
        """Learns from the start: max_iter passes over the rows X [n, features] with labels y [n]."""
        sizes = self._checked_parameters()
        rows, labels = self._lesson(X, y, reset=True)
        with arrays._at(rows):
            rows = self._begin(rows, np.unique(labels), sizes)
            codes = self._codes(labels)
            for _ in range(self.max_iter):
                self._pass(rows, codes)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> FFClassifier:
        """Learns on: one pass over these rows. The first call fixes the classes, of which these rows may hold a part.

        So many calls with the same data do what fit does with so many passes.
        """
        sizes = self._checked_parameters()
        first = not hasattr(self, "_layers")
        if first and classes is None:
            raise ValueError("classes is None; expected all labels that will ever come, on the first call")
        rows, labels = self._lesson(X, y, reset=first)
        known = None if classes is None else np.unique(column_or_1d(_on_host(classes)))
        if not first and known is not None and not np.array_equal(known, self.classes_):
            raise ValueError(f"classes is {known}; expected {self.classes_} as before, or None")
        seen = known if first else self.classes_
        self._refuse_unknown(labels, seen)
        with arrays._at(rows):
            rows = self._begin(rows, seen, sizes) if first else self._with_room(rows)
            self._pass(rows, self._codes(labels))
        return self

    def _begin(self, rows: Array, classes: Any, sizes: list[int]) -> Array:
        """Everything that is there before the first pass; returns the rows with room for the label."""
        self.classes_ = classes
        rows = self._with_room(rows)
        self.label_value_ = self._label_value(rows)
        self._random = check_random_state(self.random_state)
        xp = arrays._library(rows)
        inputs, self._layers = rows.shape[1], []
        for units in sizes:
            bound = 1 / math.sqrt(inputs)  # as torch.nn.Linear begins
            weight, bias = (
                xp.asarray(self._random.uniform(-bound, bound, shape), dtype=xp.float32)
                for shape in ((units, inputs), (units,))
            )
            self._layers.append(arrays.Trained(weight, bias, lr=self.learning_rate_init))
            inputs = units
        self.n_iter_ = 0
        self.loss_curve_: list[float] = []
        return rows

    # The very arrays that learn: copies would part from them when a model is stored and loaded.
    @property
    def coefs_(self) -> list[Array]:
        return [layer.weight for layer in self._layers]

    @property
    def intercepts_(self) -> list[Array]:
        return [layer.bias for layer in self._layers]

    def _label_value(self, rows: Array) -> float:
        """A share of the length of a row, whatever the unit and the number of the features. The layer divides a row by
        its length, label included: a much longer label would drown the features, a much shorter one would be lost."""
        xp, classes = arrays._library(rows), len(self.classes_)
        probe = xp.zeros((1, rows.shape[1]), dtype=xp.float32)
        norms = _on_host(arrays.shared_base(rows, probe, classes=classes).rest_norm).astype(np.float64)
        length = float(np.sqrt(np.mean(norms**2)))
        if not math.isfinite(length):
            raise ValueError("X has a row whose length is not finite in float32 (NaN, infinity, or above 1e19)")
        return self.label_scale * length if length > 0 else 1.0

    def _label(self) -> dict[str, Any]:
        return {"classes": len(self.classes_), "on_value": self.label_value_}

    def _with_room(self, rows: Array) -> Array:
        """[n, classes + features]; what is in the labels' columns does not matter."""
        xp = arrays._library(rows)
        labels = xp.zeros((rows.shape[0],), dtype=xp.int64)
        return arrays.concat_label(rows, labels, classes=len(self.classes_))

    def _codes(self, labels: Any) -> Any:
        return np.searchsorted(self.classes_, labels).astype(np.int64)

    def _pass(self, rows: Array, codes: Any) -> None:
        losses = [0.0]
        if len(self.classes_) > 1:
            for layer in self._layers:
                layer.lr = self.learning_rate_init
                layer.stats[...] = 0
            batches = self._batches(rows.shape[0])
            kept = self._activities(rows, -(-rows.shape[0] // batches))
            for batch, labels, sign in self._variants(rows, codes, batches):
                self._step(batch, labels, sign, kept)
            losses = [float(_on_host(layer.stats)[0]) / batches for layer in self._layers]
        self.loss_curve_.append(float(np.mean(losses)))
        self.n_iter_ += 1

    def _batches(self, count: int) -> int:
        """Number of mini-batches that so many rows make."""
        size = min(200, max(16, count // 25)) if self.batch_size == "auto" else self.batch_size
        return -(-count // int(size))

    def _activities(self, rows: Array, images: int) -> list[tuple[Array, Array]]:
        """Memory for what a layer passes on to the next."""
        xp = arrays._library(rows)
        return [
            (
                xp.empty((2 * images, layer.weight.shape[0]), dtype=rows.dtype),
                xp.empty((2 * images,), dtype=xp.float32),
            )
            for layer in self._layers[:-1]
        ]

    def _variants(self, rows: Array, codes: Any, batches: int) -> Iterator[tuple[Array, Array, Array]]:
        """Batches in random order, each with right and wrong labels [2, b] and their signs [2 b]."""
        xp, classes = arrays._library(rows), len(self.classes_)
        order = self._random.permutation(len(codes))
        wrong = (codes + 1 + self._random.randint(classes - 1, size=len(codes))) % classes
        for chosen in np.array_split(order, batches):
            sign = np.repeat(np.array([1, -1], dtype=np.float32), len(chosen))
            labels = np.stack((codes[chosen], wrong[chosen]))
            yield xp.take(rows, xp.asarray(chosen), axis=0), xp.asarray(labels), xp.asarray(sign)

    def _step(self, batch: Array, labels: Array, sign: Array, kept: list[tuple[Array, Array]]) -> None:
        """Every layer learns from this batch; each sees the activities from before the layer below moved."""
        settings: dict[str, Any] = {"threshold": self.threshold, "temperature": self.temperature}
        outs = [(h[: sign.shape[0]], norm[: sign.shape[0]]) for h, norm in kept]
        first, *others = self._layers
        arrays.shared_step(first, batch, labels, sign, **self._label(), **settings, out=outs[0] if outs else None)
        for index, layer in enumerate(others):
            h, norm = outs[index]
            out = outs[index + 1] if index + 1 < len(outs) else None
            arrays.layer_step(layer, h, sign, x_norm=norm, **settings, out=out)

    # ------------------------------------------------------------ prediction

    def predict(self, X: Any) -> Array:
        """The label with the highest goodness for every row [n]."""
        goodness = self._goodness(X)
        xp = arrays._library(goodness)
        with arrays._at(goodness):
            best = xp.argmax(goodness, axis=1)
            if xp is np or self.classes_.dtype.kind not in "biuf":
                return self.classes_[_on_host(best)]
            return xp.take(xp.asarray(self.classes_), best, axis=0)

    def predict_proba(self, X: Any) -> Array:
        """Softmax over the labels' goodness, float64 [n, classes] in the order of classes_. Not calibrated."""
        goodness = self._goodness(X)
        xp = arrays._library(goodness)
        with arrays._at(goodness):
            goodness = xp.asarray(goodness, dtype=xp.float64)
            odds = xp.exp((goodness - xp.max(goodness, axis=1, keepdims=True)) / self.temperature)
            return odds / xp.sum(odds, axis=1, keepdims=True)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Share of the rows X whose label in y is predicted."""
        guess = _on_host(self.predict(X))
        return float(accuracy_score(_on_host(y), guess, sample_weight=_on_host(sample_weight)))

    def _goodness(self, X: Any) -> Array:
        """float32 [n, classes], summed over the layers."""
        check_is_fitted(self)
        rows = self._rows(X, reset=False)
        xp, classes = arrays._library(rows), len(self.classes_)
        with arrays._at(rows):
            goodness = xp.empty((rows.shape[0], classes), dtype=xp.float32)
            for start in range(0, rows.shape[0], ROWS_AT_ONCE):
                part = slice(start, start + ROWS_AT_ONCE)
                padded = self._with_room(rows[part])
                layers = arrays.predict_goodness(padded, self.coefs_, self.intercepts_, **self._label())
                goodness[part] = xp.sum(layers, axis=0)
            return goodness

    # ------------------------------------------------------------ arguments

    def _lesson(self, X: Any, y: Any, *, reset: bool) -> tuple[Array, Any]:
        """Rows where they are, labels on the host."""
        labels = _on_host(y)
        if arrays._is_cuda(X):
            rows = self._rows(X, reset=reset)
            labels = column_or_1d(labels, warn=True)
            check_consistent_length(rows, labels)
        else:
            rows, labels = validate_data(self, X, labels, dtype=np.float32, reset=reset)
            rows = rows if reset else self._beside_weights(rows)
        check_classification_targets(labels)
        return rows, labels

    def _rows(self, X: Any, *, reset: bool) -> Array:
        """float32 rows on the CPU, float32 or float16 ones on a GPU, with as many features as before."""
        if arrays._is_cuda(X):
            rows = _device_rows(X)
            validate_data(self, rows, skip_check_array=True, reset=reset)
        else:
            rows = validate_data(self, X, dtype=np.float32, reset=reset)
        return rows if reset else self._beside_weights(rows)

    def _beside_weights(self, rows: Array) -> Array:
        places = ["in main memory", "on a GPU"]
        here, there = arrays._is_cuda(rows), arrays._is_cuda(self.coefs_[0])
        if here != there:
            raise ValueError(f"X is {places[here]}; expected it {places[there]}, where fit found its data")
        return rows

    def _refuse_unknown(self, labels: Any, classes: Any) -> None:
        unknown = np.setdiff1d(labels, classes)
        if len(unknown):
            raise ValueError(f"y holds {unknown.tolist()}; expected labels among classes: {classes.tolist()}")

    def _checked_parameters(self) -> list[int]:
        """Refuses what no training could use; returns the sizes of the layers."""
        for name in ("temperature", "label_scale", "learning_rate_init"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 < value < math.inf:
                raise ValueError(f"{name} is {value!r}; expected a number above 0")
        if not _is_number(self.threshold) or not math.isfinite(self.threshold):
            raise ValueError(f"threshold is {self.threshold!r}; expected a finite number")
        if not _is_count(self.max_iter):
            raise ValueError(f"max_iter is {self.max_iter!r}; expected an integer of at least 1")
        if self.batch_size != "auto" and not _is_count(self.batch_size):
            raise ValueError(f"batch_size is {self.batch_size!r}; expected an integer of at least 1, or 'auto'")
        sizes = self.hidden_layer_sizes
        sizes = [sizes] if isinstance(sizes, numbers.Integral) else sizes
        if not isinstance(sizes, (list, tuple, np.ndarray)) or not len(sizes) or not all(map(_is_count, sizes)):
            raise ValueError(f"hidden_layer_sizes is {self.hidden_layer_sizes!r}; expected units of one layer or more")
        return [int(size) for size in sizes]


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1


def _on_host(array: Any) -> Any:
    """NumPy's array of one on a GPU; anything else as it is."""
    if not arrays._is_cuda(array):
        return array
    return array.get() if hasattr(array, "get") else np.asarray(array)


def _device_rows(X: Array) -> Array:
    """What validate_data would refuse, as far as it can be seen without reading the values."""
    if len(X.shape) != 2:
        raise ValueError(f"X has shape {list(X.shape)}; expected [rows, features]")
    if 0 in X.shape:
        raise ValueError(f"X has shape {list(X.shape)}; expected at least one row and one feature")
    dtype = str(X.dtype).rpartition(".")[2]
    if dtype not in ("float16", "float32", "float64"):
        raise TypeError(f"X is {dtype}; expected float32, or another floating dtype")
    xp = arrays._library(X)
    with arrays._at(X):
        return xp.asarray(X, dtype=xp.float32) if dtype == "float64" else X
