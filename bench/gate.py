"""Is a candidate right? Decided against a float64 run before any of its times is believed.

Adam turns the rounding noise of a tiny gradient into a full step in either direction, so weights
are no measure. Compared are the losses, the goodness and Adam's first moments (averages of the
gradients) after a few steps, each by its largest error relative to its largest value.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# An error below two units in the last place of float32 (of the largest value) is not worth a
# comparison: storing a result costs half a unit, and so does storing what it is computed from.
FLOOR = 2.0**-22
STEPS = 3
LIMIT = 2.0  # ffkern's error, in units of eager's
# A competitor must compute the same thing, not equally well: a compiled Adam takes 1 - 0.999^t in
# float32 and loses four digits on the way (error 1e-5 where eager's is 3e-7).
RIVAL_LIMIT = 1000.0
LR_WHILE_TIMED = 1e-7  # the layer stays as it is, however many rounds: no saturated coefficients
CHECKED_IMAGES = 200  # of a prediction


def floor_of(unit: float) -> float:
    """Where an operand is rounded to fewer bits than float32 has, that rounding is not worth a comparison."""
    return max(FLOOR, unit if unit > 2.0**-24 else 0.0)


def rival_limit(floor: float) -> float:
    """RIVAL_LIMIT times float32's floor is 2.4e-4. With higher floors the same leeway would let anything in."""
    return max(8.0, RIVAL_LIMIT * FLOOR / floor)


class Learner(Protocol):
    @property
    def last_loss(self) -> Tensor: ...
    def __call__(self) -> None: ...
    def set_lr(self, lr: float) -> None: ...
    def results(self) -> dict[str, Tensor]: ...


class Judge(Protocol):
    def goodness(self, images: Tensor) -> Tensor: ...
    def __call__(self) -> Tensor: ...


Results = Mapping[str, Tensor]


@dataclass(frozen=True)
class Verdict:
    """The quantity that compares worst: errors relative to the largest value, and their ratio."""

    ratio: float
    quantity: str
    error: float
    eager_error: float
    note: str = ""

    def passes(self, limit: float = LIMIT) -> bool:
        return not self.note and self.ratio <= limit  # NaN does not pass

    def __str__(self) -> str:
        text = f"{self.quantity}: error {self.error:.2e}, eager's {self.eager_error:.2e}, ratio {self.ratio:.2f}"
        return f"{text}; {self.note}" if self.note else text


def learn(learner: Learner, steps: int = STEPS) -> dict[str, Tensor]:
    losses = []
    for _ in range(steps):
        learner()
        losses.append(learner.last_loss.double())
    return {"loss": torch.stack(losses), **learner.results()}


def compare(candidate: Results, eager: Sequence[Results], exact: Results, floor: float = FLOOR) -> Verdict:
    """The worst quantity of ``candidate``; eager's error is the largest of its forms, but no less than ``floor``."""
    worst = Verdict(0.0, "", 0.0, 0.0)
    for name, truth in exact.items():
        error = _error(candidate[name], truth)
        rival = max(_error(form[name], truth) for form in eager)
        ratio = error / max(rival, floor)
        if not worst.quantity or not ratio <= worst.ratio:
            worst = Verdict(ratio, name, error, rival)
        if ratio != ratio:  # nothing is worse than NaN
            return worst
    return worst


def compare_prediction(candidate: Judge, eager: Judge, exact: Judge, images: Tensor, floor: float = FLOOR) -> Verdict:
    """Goodness of every layer, image and label; then the winners, but for near ties."""
    truth, found = exact.goodness(images.double()), candidate.goodness(images)
    verdict = compare({"goodness": found}, [{"goodness": eager.goodness(images)}], {"goodness": truth}, floor)
    scores, winner = truth.sum(0), found.sum(0).argmax(1)
    behind = scores.amax(1) - scores.gather(1, winner[:, None])[:, 0]
    # Two sums over the layers, each as far off as a right candidate may be.
    tie = 2 * LIMIT * max(verdict.eager_error, floor) * truth.abs().max() * truth.shape[0]
    wrong = int((behind > tie).sum())
    if wrong:
        note = f"{wrong} of {len(winner)} winners differ"
        return Verdict(verdict.ratio, verdict.quantity, verdict.error, verdict.eager_error, note)
    return verdict


def credible(case: str, verdicts: Mapping[str, Verdict], limit: float = RIVAL_LIMIT) -> list[str]:
    """Who may be timed. A competitor that computes something else may not, and this is said."""
    names = []
    for name, verdict in verdicts.items():
        if name.startswith("ffkern") or verdict.passes(limit):  # whoever asks has judged ffkern
            names.append(name)
        else:
            print(f"{case}: {name} left out, its result is wrong: {verdict}", file=sys.stderr)
    return names


def some_images(images: Tensor) -> Tensor:
    """Those by which a prediction is judged."""
    return images[:: max(1, len(images) // CHECKED_IMAGES)]


def _error(value: Tensor, truth: Tensor) -> float:
    if value.shape != truth.shape:
        return float("nan")
    scale = float(truth.abs().max())
    return float((value.double() - truth).abs().max()) / (scale or 1.0)
