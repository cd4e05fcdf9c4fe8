"""Other people's Forward-Forward programs, trained from a checkout of theirs as they are.

Each is imported and fed images that lie in memory; what it would need for downloads, pictures and progress bars is
replaced by something that does nothing. Only its training steps are timed: the preparation of its batches is done
beforehand, which is in its favour. Beside it stands ffkern with the same layers, batch, norm, goodness and optimiser.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from ffkern import optim
from ffkern.data import Dataset
from ffkern.nn import FFNet
from ffkern.recipes import RECIPES

from .network import FusedNetwork

Train = Callable[[int], None]  # so many steps
CLASSES = 10


@dataclass(frozen=True)
class Peer:
    """How a program is recognised, and how it is trained.

    Args:
        name: its repository.
        file, words: it is a checkout of this one if that file is there and has these words.
        settings: what it trains, in words.
        batch, images: of a step, and of an epoch.
        load: from the checkout and images [batch, 784] in 0 .. 1 with labels, what trains it.
        ours: from images and labels, what trains ffkern in the same way.
    """

    name: str
    file: str
    words: str
    settings: str
    batch: int
    images: int
    load: Callable[[Path, Tensor, Tensor], Train]
    ours: Callable[[Tensor, Tensor], Train]


def recognise(checkout: Path) -> Peer:
    """Raises ValueError if the folder holds no program that is known here."""
    for peer in PEERS:
        path = checkout / peer.file
        if path.is_file() and peer.words in path.read_text(encoding="utf-8"):
            return peer
    names = ", ".join(peer.name for peer in PEERS)
    raise ValueError(f"--peer is {checkout}, which holds no program known here; expected a checkout of {names}")


# ------------------------------------------------------------ importing


@contextlib.contextmanager
def foreign(checkout: Path, stubs: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Imports find the checkout and the stubs first, and print nothing; afterwards both are forgotten."""
    names = [path.stem for path in checkout.iterdir() if path.suffix == ".py" or path.is_dir()]
    hidden = {name: m for name, m in sys.modules.items() if name in stubs or name.split(".")[0] in names}
    for name in hidden:
        del sys.modules[name]
    for name, contents in stubs.items():
        module = ModuleType(name)
        module.__dict__.update(contents, __path__=[])
        sys.modules[name] = module
        above, _, last = name.rpartition(".")
        if above:
            setattr(sys.modules[above], last, module)
    sys.path.insert(0, str(checkout))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        sys.path.remove(str(checkout))
        for name in [name for name in sys.modules if name in stubs or name.split(".")[0] in names]:
            del sys.modules[name]
        sys.modules.update(hidden)


def nothing(*_: Any, **__: Any) -> None:
    """Stands for what is not needed."""


def quietly(train: Train) -> Train:
    def run(steps: int) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            train(steps)

    return run


# ------------------------------------------------------------ the programs


def _load_pezeshki(checkout: Path, x: Tensor, y: Tensor) -> Train:
    """A step: one update of every layer, layer after layer, on all images; a run of them ends with a forward pass."""
    stubs: dict[str, dict[str, Any]] = {
        "matplotlib": {},
        "matplotlib.pyplot": {},
        "tqdm": {"tqdm": iter},
        "torchvision": {},
        "torchvision.datasets": {"MNIST": nothing, "FashionMNIST": nothing},
        "torchvision.transforms": dict.fromkeys(("Compose", "ToTensor", "Normalize", "Lambda"), nothing),
    }
    with foreign(checkout, stubs), mock.patch.object(torch.nn.Module, "cuda", lambda self: self):
        main = importlib.import_module("main")
        net = main.Net([x.shape[1], 500, 500])
        x = (x - 0.1307) / 0.3081
        rows = main.overlay_y_on_x(x, y), main.overlay_y_on_x(x, y[torch.randperm(len(y))])

    def train(steps: int) -> None:
        for layer in net.layers:
            layer.num_epochs = steps
        net.train(*rows)

    return quietly(train)


def _like_pezeshki(x: Tensor, y: Tensor) -> Train:
    net = FFNet([x.shape[1], 500, 500], CLASSES, label_value="max", norm="l2", eps=1e-4, threshold=2.0)
    opt = optim.Adam(net.parameters(), lr=0.03)
    x = (x - 0.1307) / 0.3081
    variants = torch.stack((y, y[torch.randperm(len(y))]))

    def train(steps: int) -> None:
        for index in range(len(net.layers)):
            lesson = net.lesson(index, x, variants)
            for _ in range(steps):
                lesson(opt)

    return train


def _load_loewe(checkout: Path, x: Tensor, y: Tensor) -> Train:
    """Its settings, but for the pass over all labels that it makes at every step to print an accuracy."""
    stubs: dict[str, dict[str, Any]] = {
        "hydra": {"main": nothing},
        "hydra.utils": {"get_original_cwd": nothing},
        "omegaconf": {"OmegaConf": None, "DictConfig": None},
        "torchvision": {},
    }
    batch = LOEWE.batch
    settings = SimpleNamespace(
        seed=42,
        device="cpu",
        run_additional_inference=False,
        input=SimpleNamespace(batch_size=batch),
        model=SimpleNamespace(peer_normalization=0.03, momentum=0.9, hidden_dim=1000, num_layers=3),
        training=SimpleNamespace(
            learning_rate=1e-3,
            weight_decay=3e-4,
            momentum=0.9,
            downstream_learning_rate=1e-2,
            downstream_weight_decay=3e-3,
        ),
    )
    images = [(image.reshape(1, 28, 28), int(label)) for image, label in zip(x, y, strict=True)]
    with foreign(checkout, stubs):
        utils = importlib.import_module("src.utils")
        utils.get_MNIST_partition = lambda *_: images
        samples = importlib.import_module("src.ff_mnist").FF_MNIST(settings, "train")
        batches = cycle(list(torch.utils.data.DataLoader(samples, batch_size=batch, drop_last=True)))
        model, optimizer = utils.get_model_and_optimizer(settings)

    def train(steps: int) -> None:
        for inputs, labels in islice(batches, steps):
            optimizer.zero_grad()
            model(inputs, labels)["Loss"].backward()
            optimizer.step()

    return train


def _like_loewe(x: Tensor, y: Tensor) -> Train:
    return _hinton(
        x, y, optimiser="sgd", negatives="uniform", lr=1e-3, weight_decay=3e-4, head_lr=1e-2, head_weight_decay=3e-3
    )


def _load_olsen(checkout: Path, x: Tensor, y: Tensor) -> Train:
    """A script without functions to call: its statements before the loop over epochs, then that loop for one epoch."""
    batch = OLSEN.batch
    given = x.numpy().reshape(-1, batch, x.shape[1]).transpose(1, 2, 0).copy()
    targets = np.eye(CLASSES, dtype=np.float32)[y.numpy()].reshape(-1, batch, CLASSES).transpose(1, 2, 0)
    stubs = {"mnist": {"make_batches": lambda _: {"batchdata": given, "batchtargets": targets}}}
    with contextlib.suppress(ImportError):
        importlib.import_module("scipy.special")
    if "scipy.special" not in sys.modules:
        stubs |= {"scipy": {}, "scipy.special": {"expit": lambda a: 1 / (1 + np.exp(-a))}}
    path = checkout / OLSEN.file
    statements = ast.parse(path.read_text(encoding="utf-8")).body
    loop = next(i for i, s in enumerate(statements) if isinstance(s, ast.For) and ast.unparse(s.target) == "epoch")
    names: dict[str, Any] = {"__name__": "peer"}
    before, epoch = (
        compile(ast.Module(part, []), str(path), "exec") for part in (statements[:loop], statements[loop : loop + 1])
    )
    with foreign(checkout, stubs):
        exec(before, names)

    def train(steps: int) -> None:
        whole, rest = divmod(steps, given.shape[2])
        for count in [given.shape[2]] * whole + [rest] * bool(rest):
            names.update(MAXEPOCH=1, numbatches=count)
            exec(epoch, names)

    return quietly(train)


def _like_olsen(x: Tensor, y: Tensor) -> Train:
    return _hinton(x, y, weight_decay=0.002)


def _hinton(x: Tensor, y: Tensor, **settings: Any) -> Train:
    """Steps of the recipe `hinton` with these settings, batch after batch."""
    recipe = RECIPES["hinton"].override(decay="none", **settings)
    network = FusedNetwork(recipe, Dataset("peer", x, y, x[:0], y[:0], CLASSES))
    size = recipe.batch_size
    batches = cycle(list(zip(x.split(size), y.split(size), strict=True)))

    def train(steps: int) -> None:
        for images, labels in islice(batches, steps):
            network.step(images, labels)

    return train


PEZESHKI = Peer(
    "mpezeshki/pytorch_forward_forward",
    "main.py",
    "class Layer(nn.Linear)",
    "784-500-500, a layer after the other, all 50,000 images an update, Adam",
    50_000,
    50_000,
    _load_pezeshki,
    _like_pezeshki,
)
LOEWE = Peer(
    "loeweX/Forward-Forward",
    "src/ff_model.py",
    "class FF_model(",
    "784-1000-1000-1000, all layers, 100 images an update, peer normalisation, softmax head, SGD",
    100,
    50_000,
    _load_loewe,
    _like_loewe,
)
OLSEN = Peer(
    "jesper-olsen/ff-py",
    "main.py",
    "MINLEVELSUP",
    "784-1000-1000-1000, all layers, 100 images an update, hard negatives, NumPy",
    100,
    50_000,
    _load_olsen,
    _like_olsen,
)
PEERS = (PEZESHKI, LOEWE, OLSEN)
