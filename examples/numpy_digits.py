"""Two layers learn scikit-learn's digits by the Forward-Forward algorithm, with NumPy and without torch.

An image with its own label is a positive row, with a wrong one a negative row. Each layer learns to answer positive
rows with large activities and negative rows with small ones; nothing is propagated back.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ffkern import arrays as ff

CLASSES, UNITS, BATCH, EPOCHS, RATE = 10, 300, 100, 60, 0.01
random = np.random.default_rng(0)


def layer(inputs: int) -> ff.Trained:
    weight = random.standard_normal((UNITS, inputs), dtype=np.float32) / np.float32(inputs**0.5)
    return ff.Trained(weight, np.zeros(UNITS, np.float32), lr=RATE, optimiser="adam")


def main() -> None:
    pixels, labels = load_digits(return_X_y=True)
    room = np.zeros((len(pixels), CLASSES))  # the label goes in front of the pixels
    images = np.hstack([room, pixels / 16]).astype(np.float32)
    x, x_test, y, y_test = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)

    first, second = layer(x.shape[1]), layer(UNITS)
    sign = np.repeat(np.float32([1, -1]), BATCH)
    kept = np.empty((2 * BATCH, UNITS), np.float32), np.empty(2 * BATCH, np.float32)  # what the second layer sees
    for epoch in range(EPOCHS):
        first.lr = second.lr = RATE * (1 - epoch / EPOCHS)
        for rows in random.permutation(len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH):
            wrong = ff.wrong_labels(y[rows], random.random(BATCH, dtype=np.float32), classes=CLASSES)
            ff.shared_step(first, x[rows], np.stack([y[rows], wrong]), sign, classes=CLASSES, out=kept)
            ff.layer_step(second, kept[0], sign, x_norm=kept[1])

    weights, biases = [first.weight, second.weight], [first.bias, second.bias]
    goodness = ff.predict_goodness(x_test, weights, biases, classes=CLASSES)  # [layers, images, classes]
    answers = goodness.sum(0).argmax(1)
    print(f"test error {np.mean(answers != y_test):.2%} of {len(y_test)} images")


if __name__ == "__main__":
    main()
