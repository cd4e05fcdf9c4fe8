"""ffkern: fused Forward-Forward layers for PyTorch.

    net = ffkern.FFNet([784, 500, 500], classes=10)
    opt = ffkern.optim.Adam(net.parameters(), lr=0.03)
    net.step(images, labels, opt)          # every layer learns from this batch, no backward pass
    net.predict(images)                    # the label with the highest goodness
"""

from . import nn, ops, optim, reference
from ._version import __version__
from .nn import FFHead, FFLinear, FFNet

__all__ = ["FFHead", "FFLinear", "FFNet", "__version__", "nn", "ops", "optim", "reference"]
