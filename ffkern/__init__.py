"""ffkern: fused Forward-Forward layers for PyTorch, NumPy and CuPy.

net = ffkern.FFNet([784, 500, 500], classes=10)
opt = ffkern.optim.Adam(net.parameters(), lr=0.03)
net.step(images, labels, opt)          # every layer learns from this batch, no backward pass
net.predict(images)                    # the label with the highest goodness

Everything is imported when it is first used, so that ``ffkern.arrays`` and ``ffkern.FFClassifier`` run without torch.
``import ffkern.ops`` registers the operations ``torch.ops.ffkern.*``; everything that needs them does it by itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import arrays, callbacks, checkpoint, data, nn, ops, optim, recipes, reference, trainer
    from ._info import info
    from .classifier import FFClassifier
    from .nn import FFHead, FFLinear, FFNet
    from .trainer import History, Trainer

_MODULES = (
    "arrays",
    "callbacks",
    "checkpoint",
    "classifier",
    "data",
    "nn",
    "ops",
    "optim",
    "recipes",
    "reference",
    "trainer",
)
_FROM = {
    "FFClassifier": "classifier",
    "FFHead": "nn",
    "FFLinear": "nn",
    "FFNet": "nn",
    "History": "trainer",
    "Trainer": "trainer",
    "info": "_info",
}

__all__ = [
    "FFClassifier",
    "FFHead",
    "FFLinear",
    "FFNet",
    "History",
    "Trainer",
    "__version__",
    "arrays",
    "callbacks",
    "checkpoint",
    "data",
    "info",
    "nn",
    "ops",
    "optim",
    "recipes",
    "reference",
    "trainer",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _FROM:
        value = getattr(importlib.import_module(f".{_FROM[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'ffkern' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
