"""For CuPy users: two Forward-Forward layers on scikit-learn's digits, on the GPU, without torch.

    pip install cupy-cuda13x "ffkern[data]"
    python examples/cupy_digits.py

Images, labels, weights and optimiser state are CuPy arrays and stay on the device; everything is queued on CuPy's
current stream, and the host waits only where it prints. In float16 the products run on the tensor cores; the weights
that learn stay float32.
"""

from __future__ import annotations

import cupy as cp
import numpy as np
from sklearn.datasets import load_digits

from ffkern import arrays as ff

CLASSES = 10


def main(images: int = 1797, epochs: int = 30, units: int = 500, batch: int = 64) -> float:
    """Trains on four fifths of the images; returns the accuracy on the others."""
    rng = np.random.default_rng(0)
    pixels, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(pixels))[:images]
    host = np.zeros((images, CLASSES + 64), np.float16)  # the label inputs stand before the pixels
    host[:, CLASSES:] = pixels[order] / 16
    x, y = cp.asarray(host), cp.asarray(labels[order])
    train = images * 4 // 5

    def layer(inputs: int) -> ff.Trained:
        bound = inputs**-0.5
        weight = rng.uniform(-bound, bound, (units, inputs)).astype(np.float32)
        return ff.Trained(cp.asarray(weight), cp.zeros((units,), dtype=cp.float32), lr=0.01)

    first, second = layer(CLASSES + 64), layer(units)
    h = cp.zeros((2 * batch, units), dtype=cp.float16)
    h_norm = cp.zeros((2 * batch,), dtype=cp.float32)
    sign = cp.asarray(np.repeat(np.float32([1, -1]), batch))  # right labels first, then wrong ones
    for _ in range(epochs):
        for rows in np.split(rng.permutation(train)[: train // batch * batch], train // batch):
            at = cp.asarray(rows)
            right, u = y[at], cp.asarray(rng.random(batch, np.float32))
            both = cp.concatenate([right[None], ff.wrong_labels(right, u, classes=CLASSES)[None]])
            ff.shared_step(first, x[at], both, sign, classes=CLASSES, out=(h, h_norm))
            ff.layer_step(second, h, sign, x_norm=h_norm)

    weights, biases = [first.weight, second.weight], [first.bias, second.bias]
    goodness = ff.predict_goodness(x[train:], weights, biases, classes=CLASSES)
    accuracy = float(cp.mean(cp.argmax(cp.sum(goodness, axis=0), axis=1) == y[train:]))
    print(f"test accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
