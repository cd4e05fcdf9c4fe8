"""Hinton's Forward-Forward program for MNIST (`ffnew.m`), transcribed to NumPy in float64.

An oracle for the tests.  It follows the program's own formulation, which differs from ffkern's in
every detail that could hide a mistake: weights are [inputs, units]; gradients point uphill,
(1 - p) y for a positive and -p y for a negative case, with no factor 2; they are summed over two
separate passes and divided by the number of images; states are normalised explicitly and the
label is drawn in a loop.  Nothing is imported from ffkern.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

TINY = float(np.exp(-100.0))


def normalise_rows(a: Array) -> Array:
    """Scale each row to a mean square of 1."""
    size: Array = TINY + np.sqrt(np.mean(a**2, axis=1, keepdims=True))
    return a / size


def logistic(a: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -a))


def softmax(a: Array) -> Array:
    e: Array = np.exp(a - a.max(axis=1, keepdims=True))
    total: Array = e.sum(axis=1, keepdims=True)
    return e / total


def gain(epoch: int, max_epoch: int) -> float:
    """Multiplier of the learning rate, epochs from 1: constant, then linear to zero."""
    return 1.0 if epoch <= max_epoch / 2 else (1 + 2 * (max_epoch - epoch)) / max_epoch


def choose_from(probabilities: Array, u: Array) -> Labels:
    """For each row the first column at which the running sum passes u."""
    chosen = np.full(len(probabilities), -1, dtype=np.int64)
    for n, row in enumerate(probabilities):
        running = 0.0
        for label, probability in enumerate(row):
            running += probability
            if u[n] < running:
                chosen[n] = label
                break
    return chosen


@dataclass
class HintonNet:
    """The state of the program: forward weights and the softmax that reads the label."""

    weights: list[Array]  # [inputs, units] of each hidden layer
    biases: list[Array]
    classes: int
    rate: float = 0.01
    decay: float = 0.001
    head_rate: float = 0.1
    head_decay: float = 0.003
    smoothing: float = 0.9
    peer: float = 0.03
    temperature: float = 1.0
    label_strength: float = 1.0
    first_head_layer: int = 1  # the first hidden layer does not feed the softmax
    means: list[Array] = field(init=False)
    weight_grads: list[Array] = field(init=False)
    bias_grads: list[Array] = field(init=False)
    head: list[Array] = field(init=False)
    head_grads: list[Array] = field(init=False)
    log: dict[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        widths = [w.shape[1] for w in self.weights]
        self.means = [np.full(width, 0.5) for width in widths]
        self.weight_grads = [np.zeros_like(w) for w in self.weights]
        self.bias_grads = [np.zeros_like(b) for b in self.biases]
        above = widths[self.first_head_layer :]
        self.head = [np.zeros((width, self.classes)) for width in above]
        self.head_grads = [np.zeros((width, self.classes)) for width in above]

    def with_label(self, images: Array, label: Array) -> Array:
        data: Array = images.copy()
        data[:, : self.classes] = self.label_strength * label
        return data

    def states(self, data: Array) -> tuple[list[Array], list[Array]]:
        """States of each hidden layer, and the normalised input of each (one more at the end)."""
        inputs, states = [normalise_rows(data)], []
        for w, b in zip(self.weights, self.biases, strict=True):
            states.append(np.maximum(0.0, inputs[-1] @ w + b))
            inputs.append(normalise_rows(states[-1]))
        return states, inputs

    def label_logits(self, images: Array) -> tuple[Array, list[Array]]:
        neutral = np.full((len(images), self.classes), 1.0 / self.classes)
        _, inputs = self.states(self.with_label(images, neutral))
        used = inputs[1 + self.first_head_layer :]
        logits = np.zeros((len(images), self.classes))
        for a, w in zip(used, self.head, strict=True):
            logits = logits + a @ w
        return logits, used

    def energies(self, images: Array) -> Array:
        """[layers, images, classes]: sum of squared states with each label in turn."""
        result = np.zeros((len(self.weights), len(images), self.classes))
        for label in range(self.classes):
            states, _ = self.states(self.with_label(images, np.eye(self.classes)[label]))
            for layer, y in enumerate(states):
                result[layer, :, label] = (y**2).sum(axis=1)
        return result

    def step(self, images: Array, labels: Labels, u: Array, epsgain: float = 1.0) -> None:
        """One minibatch; u are the uniform numbers that choose the wrong labels."""
        cases, layers = len(images), range(len(self.weights))
        targets = np.eye(self.classes)[labels]

        # positive pass
        states, inputs = self.states(self.with_label(images, targets))
        positive_w, positive_b = [], []
        for layer in layers:
            y = states[layer]
            p = logistic(((y**2).sum(axis=1) - y.shape[1]) / self.temperature)
            uphill = (1 - p)[:, None] * y
            self.means[layer] = 0.9 * self.means[layer] + 0.1 * y.mean(axis=0)
            uphill = uphill + self.peer * (self.means[layer].mean() - self.means[layer])
            positive_w.append(inputs[layer].T @ uphill)
            positive_b.append(uphill.sum(axis=0))

        # neutral pass: the softmax, its update, and the wrong labels it suggests
        logits, used = self.label_logits(images)
        error = targets - softmax(logits)
        for i, a in enumerate(used):
            self.head_grads[i] = self.smoothing * self.head_grads[i] + (1 - self.smoothing) * (a.T @ error) / cases
            change = self.head_grads[i] - self.head_decay * self.head[i]
            self.head[i] = self.head[i] + epsgain * self.head_rate * change
        wrong = choose_from(softmax(logits - 1000.0 * targets), u)

        # negative pass
        states, inputs = self.states(self.with_label(images, np.eye(self.classes)[wrong]))
        raw_w, raw_b = [], []
        for layer in layers:
            y = states[layer]
            p = logistic(((y**2).sum(axis=1) - y.shape[1]) / self.temperature)
            uphill = -p[:, None] * y
            raw_w.append((positive_w[layer] + inputs[layer].T @ uphill) / cases)
            raw_b.append((positive_b[layer] + uphill.sum(axis=0)) / cases)

        # all layers move at once
        keep = self.smoothing
        for layer in layers:
            self.weight_grads[layer] = keep * self.weight_grads[layer] + (1 - keep) * raw_w[layer]
            self.bias_grads[layer] = keep * self.bias_grads[layer] + (1 - keep) * raw_b[layer]
            self.biases[layer] = self.biases[layer] + epsgain * self.rate * self.bias_grads[layer]
            change = self.weight_grads[layer] - self.decay * self.weights[layer]
            self.weights[layer] = self.weights[layer] + epsgain * self.rate * change
        self.log = {"logits": logits, "wrong": wrong, "raw_w": raw_w, "raw_b": raw_b}
