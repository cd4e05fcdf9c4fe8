"""A training step of ffkern.arrays against the same step in NumPy, on one thread, without torch.

python -m bench.arrays [seconds for each case]

Networks of one and two layers on images of 784 inputs, with Adam. The label lies over the first ten inputs of an image,
once right (a positive row) and once wrong (a negative row). The NumPy side is written as one would who knows NumPy:
float32 throughout, no temporary where `out` saves one, Adam in place. It comes stacked (one pass over all rows) and
separate (positive rows, then negative ones); the faster counts. Before anything is timed both sides train from the same
weights and have to agree.

Times are CPU seconds of the process, in which both sides take turns: on one thread of a quiet machine the same as wall
time, and less disturbed by others on a busy one.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy loads its BLAS

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402

from ffkern import arrays  # noqa: E402

from .timing import per_round_ratio, round_robin, summarise  # noqa: E402

Matrix = npt.NDArray[np.float32]
INPUTS, CLASSES = 784, 10
CASES = [(units, batch) for batch in (100, 512) for units in ((500,), (2000,), (500, 500))]
THRESHOLD, EPS = 2.0, 1e-8
BETA1, BETA2 = 0.9, 0.999
TURN = 10  # steps that a side takes before the other's turn
STANDING = 1e-9  # learning rate while timing: all the work of an update, and the same work every time


class Data:
    """Images, labels [2, N] (right, wrong) and the weights that both sides start from."""

    def __init__(self, units: tuple[int, ...], batch: int) -> None:
        random = np.random.default_rng(0)
        self.images = random.random((batch, INPUTS), np.float32)
        self.images[self.images < 0.8] = 0  # as sparse as handwriting; neither side makes use of it
        right = random.integers(0, CLASSES, batch)
        self.labels = np.stack([right, (right + 1 + random.integers(0, CLASSES - 1, batch)) % CLASSES])
        self.sign = np.repeat(np.float32([1, -1]), batch)
        sizes = list(zip(units, (INPUTS, *units), strict=False))
        self.weights = [random.standard_normal(s, np.float32) / np.float32(s[1] ** 0.5) for s in sizes]


# ---------------------------------------------------------------- NumPy


class Layer:
    """A layer with Adam."""

    def __init__(self, weight: Matrix, lr: float) -> None:
        self.lr, self.steps = lr, 0
        self.parameters = [weight.copy(), np.zeros(len(weight), np.float32)]
        self.first = [np.zeros_like(p) for p in self.parameters]
        self.second = [np.zeros_like(p) for p in self.parameters]
        self.spare = [np.empty_like(p) for p in self.parameters]

    def forward(self, x: Matrix, length: Matrix) -> tuple[Matrix, Matrix, Matrix]:
        """Normalised rows, activities, their squared lengths."""
        rows = x / (length / np.float32(x.shape[1] ** 0.5) + np.float32(EPS))[:, None]
        h = rows @ self.parameters[0].T
        h += self.parameters[1]
        np.maximum(h, 0, out=h)
        return rows, h, np.einsum("ij,ij->i", h, h)

    def gradient(self, rows: Matrix, h: Matrix, squares: Matrix, sign: Matrix, total: int) -> list[Matrix]:
        logit = sign * (squares / np.float32(h.shape[1]) - np.float32(THRESHOLD))
        coef = -sign / (1 + np.exp(logit)) * np.float32(2 / h.shape[1] / total)
        dz = h * coef[:, None]
        return [dz.T @ rows, dz.sum(0)]

    def update(self, gradients: list[Matrix]) -> None:
        self.steps += 1
        rate = np.float32(self.lr * (1 - BETA2**self.steps) ** 0.5 / (1 - BETA1**self.steps))
        eps = np.float32(EPS * (1 - BETA2**self.steps) ** 0.5)
        for p, g, m, v, t in zip(self.parameters, gradients, self.first, self.second, self.spare, strict=True):
            m *= np.float32(BETA1)
            np.multiply(g, np.float32(1 - BETA1), out=t)
            m += t
            v *= np.float32(BETA2)
            np.multiply(g, g, out=t)
            t *= np.float32(1 - BETA2)
            v += t
            np.sqrt(v, out=t)
            t += eps
            np.divide(m, t, out=t)
            t *= rate
            p -= t


class NumpyStep:
    """`parts`: 1 for all rows at once, 2 for positive rows and negative rows apart."""

    def __init__(self, data: Data, lr: float, parts: int) -> None:
        self.data, self.layers, self.parts = data, [Layer(w, lr) for w in data.weights], parts
        self.x = np.empty((len(data.sign), INPUTS), np.float32)

    def write_labels(self) -> None:
        images, labels = self.data.images, self.data.labels.reshape(-1)
        self.x[: len(images)] = self.x[len(images) :] = images
        self.x[:, :CLASSES] = 0
        self.x[np.arange(len(labels)), labels] = 1

    def __call__(self) -> None:
        self.write_labels()
        inputs = np.split(self.x, self.parts)
        lengths = [np.sqrt(np.einsum("ij,ij->i", x, x)) for x in inputs]
        signs = np.split(self.data.sign, self.parts)
        for layer in self.layers:
            passes = [layer.forward(x, n) for x, n in zip(inputs, lengths, strict=True)]
            grads = [layer.gradient(*p, s, len(self.x)) for p, s in zip(passes, signs, strict=True)]
            for other in grads[1:]:
                for mine, more in zip(grads[0], other, strict=True):
                    mine += more
            layer.update(grads[0])
            inputs, lengths = [p[1] for p in passes], [np.sqrt(p[2]) for p in passes]

    def state(self) -> list[Matrix]:
        return [a for layer in self.layers for a in (layer.parameters[0], layer.first[0], layer.second[0])]


# ---------------------------------------------------------------- ffkern.arrays


class FusedStep:
    def __init__(self, data: Data, lr: float) -> None:
        self.data = data
        self.layers = [arrays.Trained(w.copy(), np.zeros(len(w), np.float32), lr=lr) for w in data.weights]
        rows = len(data.sign)
        kept = [(np.empty((rows, len(w)), np.float32), np.empty(rows, np.float32)) for w in data.weights]
        self.kept = [*kept[:-1], None]  # what the next layer reads

    def __call__(self) -> None:
        d = self.data
        arrays.shared_step(self.layers[0], d.images, d.labels, d.sign, classes=CLASSES, out=self.kept[0])
        for layer, before, out in zip(self.layers[1:], self.kept, self.kept[1:], strict=False):
            assert before is not None
            arrays.layer_step(layer, before[0], d.sign, x_norm=before[1], out=out)

    def state(self) -> list[Matrix]:
        return [a for t in self.layers for a in (t.weight, t.weight_state[0], t.weight_state[1])]


# ---------------------------------------------------------------- comparison


def check(data: Data, steps: int = 3, lr: float = 0.01) -> None:
    """Raises unless both sides learn the same: moments to rounding, weights to a hundredth of a step.

    Adam turns even a gradient that is all rounding error into a whole step, so a few weights may differ by more.
    """
    fused = FusedStep(data, lr)
    for parts in (1, 2):
        plain = NumpyStep(data, lr, parts)
        if parts == 1:
            for _ in range(steps):
                fused()
        for _ in range(steps):
            plain()
        for index, (a, b, start) in enumerate(
            zip(fused.state(), plain.state(), np.repeat(range(len(data.weights)), 3), strict=True)
        ):
            difference = np.abs(a - b)
            weights = index % 3 == 0
            off = float(np.mean(difference > (0.01 * lr if weights else 1e-3 * np.abs(b).max())))
            moved = bool(np.abs(b - data.weights[start]).max() > lr) if weights else bool(b.any())
            if off > 1e-3 or not moved:
                raise RuntimeError(f"the two sides disagree in {off:.2%} of array {index}: nothing was timed")


def cpu_seconds(call: Callable[[], object]) -> float:
    """Of one step out of a few in a row: in training, too, a step finds what the one before has left in the caches."""
    begin = time.process_time()
    for _ in range(TURN):
        call()
    return (time.process_time() - begin) / TURN


def measure(units: tuple[int, ...], batch: int, seconds: float) -> float:
    """Prints a line; returns how many times as long the faster NumPy takes."""
    data = Data(units, batch)
    check(data)
    sides = {
        "ffkern": FusedStep(data, STANDING),
        "numpy stacked": NumpyStep(data, STANDING, 1),
        "numpy separate": NumpyStep(data, STANDING, 2),
    }
    times = round_robin(sides, seconds=seconds, warmups=3, sample=cpu_seconds)
    medians = {name: summarise(t).median for name, t in times.items()}
    best = min((n for n in medians if n != "ffkern"), key=medians.__getitem__)
    ratio = per_round_ratio(times[best], times["ffkern"])
    text = ", ".join(f"{name} {1e3 * median:.2f} ms" for name, median in medians.items())
    name = "-".join(map(str, (INPUTS, *units)))
    print(f"{name}, batch {batch}: {text}; {best} / ffkern = {ratio:.2f} ({len(times[best])} rounds)", flush=True)
    return ratio


def main(seconds: float = 10.0) -> None:
    arrays.set_num_threads(1)
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    versions = f"ffkern on {arrays._arrays.cpu_path()[0]}, NumPy {np.__version__} with {blas['name']} {blas['version']}"
    print(f"Adam, one thread; {versions}; medians of CPU time")
    for units, batch in CASES:
        measure(units, batch, seconds)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]))
