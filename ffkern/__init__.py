"""ffkern: fused Forward-Forward layers for PyTorch.

net = ffkern.FFNet([784, 500, 500], classes=10)
opt = ffkern.optim.Adam(net.parameters(), lr=0.03)
net.step(images, labels, opt)          # every layer learns from this batch, no backward pass
net.predict(images)                    # the label with the highest goodness
"""

from . import callbacks, checkpoint, data, nn, ops, optim, recipes, reference, trainer
from ._info import info
from ._version import __version__
from .nn import FFHead, FFLinear, FFNet
from .trainer import History, Trainer

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
