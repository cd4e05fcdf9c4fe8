"""ffkern: fused Forward-Forward layers for PyTorch, NumPy and CuPy.

net = ffkern.FFNet([784, 500, 500], classes=10)
opt = ffkern.optim.Adam(net.parameters(), lr=0.03)
net.step(images, labels, opt)          # every layer learns from this batch, no backward pass
net.predict(images)                    # the label with the highest goodness

Everything is imported when it is first used, so that ``ffkern.arrays`` and ``ffkern.FFClassifier`` run without torch.
``import ffkern.ops`` registers the operations ``torch.ops.ffkern.*``; everything that needs them does it by itself.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import arrays as arrays
    from . import callbacks, checkpoint, data, nn, ops, optim, recipes, reference, trainer
    from ._info import info
    from .classifier import FFClassifier as FFClassifier
    from .nn import FFHead, FFLinear, FFNet
    from .trainer import History, Trainer

# What is found in another module than the one of its own name.
_FROM = {
    "FFClassifier": "classifier",
    "FFHead": "nn",
    "FFLinear": "nn",
    "FFNet": "nn",
    "History": "trainer",
    "Trainer": "trainer",
    "info": "_info",
}
# Without what needs more than torch and NumPy: FFClassifier (scikit-learn), arrays (a build with Python's headers).
__all__ = [
    "FFHead",
    "FFLinear",
    "FFNet",
    "History",
    "Trainer",
    "__version__",
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
    module = _FROM.get(name, name)
    if module == name and (name.startswith("_") or importlib.util.find_spec(f"{__name__}.{name}") is None):
        raise AttributeError(f"module 'ffkern' has no attribute {name!r}")
    found = importlib.import_module(f".{module}", __name__)
    if module != name:
        found = globals()[name] = getattr(found, name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_FROM, "arrays"})
