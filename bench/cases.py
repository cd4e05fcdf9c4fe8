"""What is measured: the cases, and the data that all candidates of a case share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ffkern.data import Dataset
from ffkern.recipes import RECIPES, Recipe

CLASSES = 10
LABEL_VALUE = 1.0
IMAGE = 784


@dataclass(frozen=True)
class Precision:
    """How products are computed. On a CPU: float32 or bfloat16.

    Args:
        dtype: of rows, images and activities.
        float32: torch.set_float32_matmul_precision while this is measured.
        unit: largest relative error of one rounding of a product's operand.
    """

    name: str
    dtype: torch.dtype
    float32: str
    unit: float


PRECISIONS = (
    Precision("float32", torch.float32, "highest", 2.0**-24),
    Precision("tf32", torch.float32, "high", 2.0**-11),
    Precision("bfloat16", torch.bfloat16, "highest", 2.0**-8),
    Precision("float16", torch.float16, "highest", 2.0**-11),
)


@dataclass(frozen=True)
class StepCase:
    """One greedy training step of one layer: forward, loss, gradient, Adam.

    Args:
        batch: positive rows; there are as many negative ones.
        shared: the first layer's rows are label variants of the same images, and ffkern is told so.
        keep: the activities are returned for the next layer.
    """

    batch: int
    inputs: int
    units: int
    shared: bool = False
    keep: bool = False

    @property
    def name(self) -> str:
        ending = ("/shared" if self.shared else "") + ("/keep" if self.keep else "")
        return f"step/{self.inputs}-{self.units}/b{self.batch}{ending}"

    @property
    def rows(self) -> int:
        return 2 * self.batch

    @property
    def in_features(self) -> int:
        return self.inputs

    @property
    def out_features(self) -> int:
        return self.units


@dataclass(frozen=True)
class _Sizes:
    """Of a network, from its inputs to the units of its last layer."""

    sizes: tuple[int, ...]

    @property
    def in_features(self) -> int:
        return self.sizes[0]

    @property
    def out_features(self) -> int:
        return self.sizes[-1]


@dataclass(frozen=True)
class PredictCase(_Sizes):
    """The best of ten labels for every image: the goodness of all layers under each label."""

    images: int

    @property
    def name(self) -> str:
        return f"predict/{'-'.join(map(str, self.sizes))}/n{self.images}"

    @property
    def rows(self) -> int:
        return self.images


# A 300th and a 30th of the usual rates: at full rate a unit that rounding switches on or off is soon all that a
# comparison sees. With Hinton's rule weights are compared too; their change has to stand out from a weight's rounding.
_ADAM = Recipe("", "", {}, optimiser="adam", lr=1e-3 / 300, head_lr=1e-3 / 300, decay="none", head="none")
NETWORKS = {
    "uniform": _ADAM,
    "hard": _ADAM.override(negatives="hard", head="all_but_first"),
    "hinton": RECIPES["hinton"].override(lr=0.01 / 30, head_lr=0.1 / 30, decay="none", held_out=0),
}


@dataclass(frozen=True)
class NetworkCase(_Sizes):
    """One step of all layers on a mini-batch.

    Args:
        sizes: inputs, then units of each layer.
        batch: images; each is a positive row and a negative one.
        kind: "uniform": wrong labels drawn uniformly, no head; "hard": drawn by the softmax head, which learns too;
            "hinton": that with Hinton's goodness, optimiser and peer normalisation. The first two train with Adam.
    """

    batch: int
    kind: str

    @property
    def name(self) -> str:
        inputs, *units = self.sizes
        layers = f"{units[0]}x{len(units)}" if len(set(units)) == 1 else "-".join(map(str, units))
        return f"network/{inputs}-{layers}/b{self.batch}/{self.kind}"

    @property
    def recipe(self) -> Recipe:
        return NETWORKS[self.kind].override(layers=self.sizes[1:], batch_size=self.batch)

    @property
    def rows(self) -> int:
        return 2 * self.batch


Case = StepCase | PredictCase | NetworkCase


@dataclass(frozen=True)
class StepData:
    """Inputs of a step.

    rows [2B, K]: positive rows, then negative ones; for a shared first layer with the label laid
    over them. images [B, K] and labels [2, B] are what ffkern's shared layer takes instead.
    """

    rows: Tensor
    sign: Tensor
    weight: Tensor
    bias: Tensor
    images: Tensor | None = None
    labels: Tensor | None = None
    overlay: Tensor | None = None


@dataclass(frozen=True)
class PredictData:
    images: Tensor
    weights: list[Tensor]
    biases: list[Tensor]


SIZES = ((IMAGE, 500), (IMAGE, 2000), (2000, 2000))
BATCHES = (100, 512, 5000)


def full_cases() -> list[Case]:
    cases: list[Case] = []
    for inputs, units in SIZES:
        for batch in BATCHES:
            cases.append(StepCase(batch, inputs, units))
            if inputs == IMAGE:
                cases.append(StepCase(batch, inputs, units, shared=True))
    cases.append(StepCase(5000, 2000, 2000, keep=True))
    cases.append(PredictCase((IMAGE, 500, 500), 10000))
    cases.append(PredictCase((IMAGE, 2000, 2000, 2000, 2000), 1000))
    cases.append(NetworkCase((IMAGE, *[2000] * 4), 100, "hard"))
    cases.append(NetworkCase((IMAGE, *[1000] * 3), 100, "hinton"))
    return cases


def quick_cases() -> list[Case]:
    return [
        StepCase(100, IMAGE, 500),
        StepCase(100, IMAGE, 500, shared=True),
        StepCase(100, IMAGE, 2000),
        StepCase(100, 2000, 2000),
        StepCase(512, IMAGE, 2000),
        StepCase(512, IMAGE, 2000, shared=True),
        PredictCase((IMAGE, 500, 500), 1000),
        NetworkCase((IMAGE, *[1000] * 3), 100, "hinton"),
    ]


def gpu_cases() -> list[StepCase | PredictCase]:
    """Steps and predictions on a GPU, each in every precision; single operations are in operations.py."""
    return [
        StepCase(100, IMAGE, 500),
        StepCase(100, IMAGE, 500, shared=True),
        StepCase(512, IMAGE, 2000, shared=True),
        StepCase(512, 2000, 2000),
        StepCase(5000, 2000, 2000),
        StepCase(5000, 2000, 2000, keep=True),
        PredictCase((IMAGE, 500, 500), 10000),
        PredictCase((IMAGE, 2000, 2000, 2000, 2000), 1000),
    ]


def find_case(name: str) -> Case:
    """The case of that name, among all that the naming scheme can express."""
    kind, sizes, amount, *flags = name.split("/")
    runs = [[*map(int, run.split("x")), 1][:2] for run in sizes.split("-")]  # 2000x4 is 2000 four times
    features = tuple(units for units, times in runs for _ in range(times))
    if kind == "network":
        return NetworkCase(features, int(amount[1:]), *flags)
    if kind == "predict":
        return PredictCase(features, int(amount[1:]))
    inputs, units = features
    return StepCase(int(amount[1:]), inputs, units, "shared" in flags, "keep" in flags)


def wants_compile(case: Case) -> bool:
    """Compiling takes longer than timing; the largest batch has nothing new to show."""
    return isinstance(case, PredictCase) or (case.batch <= 512 and not (isinstance(case, StepCase) and case.keep))


def wants_memory(case: Case) -> bool:
    return isinstance(case, StepCase) and case.batch >= 5000


def step_data(case: StepCase, device: str = "cpu", dtype: torch.dtype = torch.float32) -> StepData:
    """Sparse images in [0, 1], or activities as a ReLU layer makes them; the same on every call.

    Rows and images are rounded to ``dtype``, for every candidate and for the exact answer; weights stay float32.
    """
    random = torch.Generator().manual_seed(1)
    sign = torch.ones(case.rows)
    sign[case.batch :] = -1
    weight, bias = _linear(case.inputs, case.units, random)
    images = labels = overlay = None
    if case.shared:
        images = _images(case.batch, case.inputs, random)
        right = torch.randint(CLASSES, (case.batch,), generator=random)
        wrong = (right + torch.randint(1, CLASSES, (case.batch,), generator=random)) % CLASSES
        labels = torch.stack((right, wrong))
        overlay = torch.tensor([LABEL_VALUE, LABEL_VALUE / CLASSES])
        rows = images.repeat(2, 1)
        rows[:, :CLASSES] = 0
        rows[torch.arange(case.rows), labels.reshape(-1)] = LABEL_VALUE
    elif case.inputs == IMAGE:
        rows = _images(case.rows, case.inputs, random)
    else:
        rows = torch.randn(case.rows, case.inputs, generator=random).relu_()

    def put(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device)

    if images is not None:
        images = images.to(dtype)
    return StepData(
        rows.to(device, dtype),
        sign.to(device),
        weight.to(device),
        bias.to(device),
        put(images),
        put(labels),
        put(overlay),
    )


def predict_data(
    case: PredictCase,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    weights: torch.dtype | None = None,
) -> PredictData:
    """Images in ``dtype``, and so are the weights unless told otherwise: nothing is trained, nobody needs float32."""
    random = torch.Generator().manual_seed(1)
    images = _images(case.images, case.sizes[0], random).to(device, dtype)
    layers = [_linear(i, o, random) for i, o in zip(case.sizes, case.sizes[1:], strict=False)]
    return PredictData(images, [w.to(device, weights or dtype) for w, _ in layers], [b.to(device) for _, b in layers])


def network_data(case: NetworkCase, dtype: torch.dtype = torch.float32) -> Dataset:
    """The mini-batch as the training part of a data set; the same on every call."""
    random = torch.Generator().manual_seed(1)
    images = _images(case.batch, case.sizes[0], random).to(dtype)
    labels = torch.randint(CLASSES, (case.batch,), generator=random)
    return Dataset("random", images, labels, images[:0], labels[:0], CLASSES)


def _images(count: int, inputs: int, random: torch.Generator) -> Tensor:
    images = torch.rand(count, inputs, generator=random)
    return images.masked_fill_(torch.rand(count, inputs, generator=random) > 0.2, 0.0)


def _linear(inputs: int, units: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """As torch.nn.Linear draws them."""
    bound = inputs**-0.5
    weight = torch.empty(units, inputs).uniform_(-bound, bound, generator=random)
    return weight, torch.empty(units).uniform_(-bound, bound, generator=random)
