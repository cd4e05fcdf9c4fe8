"""ffkern's side of each case, behind the same few methods as the competitors."""

from __future__ import annotations

import torch
from torch import Tensor

import ffkern
from ffkern.nn import _stored

from .cases import CLASSES, LABEL_VALUE, PredictCase, PredictData, StepCase, StepData
from .eager import EPS, THRESHOLD


class FusedStep:
    """FFLinear.step, or step_shared where the rows are label variants of the same images.

    The norms of the input rows are not given, although a layer below would supply them: eager has
    to compute them as well.
    """

    def __init__(self, case: StepCase, data: StepData, *, lr: float = 1e-3) -> None:
        self.data = data
        device = data.weight.device
        self.layer = ffkern.FFLinear(case.inputs, case.units, norm="rms", eps=EPS, threshold=THRESHOLD, device="meta")
        self.layer.weight = torch.nn.Parameter(data.weight.clone())
        self.layer.bias = torch.nn.Parameter(data.bias.clone())
        self.optimiser = ffkern.optim.Adam(self.layer.parameters(), lr=lr)
        self.keep: tuple[Tensor, Tensor] | None = None
        if case.keep:
            self.keep = (
                # As the next layer reads it.
                torch.empty(case.rows, case.units, device=device, dtype=_stored(data.rows)),
                torch.empty(case.rows, device=device),
            )

    def __call__(self) -> None:
        data = self.data
        if data.images is None:
            self.layer.step(data.rows, data.sign, self.optimiser, keep=self.keep)
            return
        assert data.labels is not None
        assert data.overlay is not None
        self.layer.step_shared(
            data.images,
            data.labels,
            data.sign,
            self.optimiser,
            classes=CLASSES,
            overlay=data.overlay,
            keep=self.keep,
        )

    @property
    def last_loss(self) -> Tensor:
        return torch.tensor(self.layer.metrics()["loss"], dtype=torch.float64)

    def set_lr(self, lr: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"].fill_(lr)

    def results(self) -> dict[str, Tensor]:
        with torch.no_grad():
            found = {"goodness": self.layer.activities(self.data.rows)[1]}
        state = self.optimiser.state
        found["weight moment"] = state[self.layer.weight]["slots"][0]
        found["bias moment"] = state[self.layer.bias]["slots"][0]
        if self.keep is not None:
            found["activities"] = self.keep[0]
        return found


class FusedPredict:
    """FFNet.predict."""

    def __init__(self, case: PredictCase, data: PredictData) -> None:
        self.images = data.images
        layers = []
        for weight, bias in zip(data.weights, data.biases, strict=True):
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], device="meta")
            linear.weight, linear.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
            layers.append(ffkern.FFLinear.from_linear(linear, norm="rms", eps=EPS))
        net = ffkern.FFNet(layers, CLASSES, label_value=LABEL_VALUE)
        self.net = net.to(data.images.device)

    def goodness(self, images: Tensor) -> Tensor:
        """[L, N, C]"""
        return self.net.goodness(images)

    def __call__(self) -> Tensor:
        return self.net.predict(self.images)
