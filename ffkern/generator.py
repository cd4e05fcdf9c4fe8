"""A generator of images that has no hidden units of its own: it borrows the activities of the network it is to fool."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .nn import FFNet

__all__ = ["LinearGenerator", "generated"]


class LinearGenerator(nn.Module):
    """Normalised activities of all layers -> logits of the pixels, by a linear map that learns by the delta rule.

    Both networks share the hidden units, and only the discriminator shapes them: the generator's one layer needs no
    backpropagation, and nothing flows back from it. It begins at 0, where every pixel is 0.5.

    Args:
        pixels: inputs of an image, in 0 .. 1: a pixel is the mean of a Bernoulli variable.
        widths: units of each layer of the network.
        lr: learning rate. The activities of a row have sum(widths) as their squared length, so a larger network
            needs a smaller one.

    Source: Hinton, arXiv 2212.13345, section "Relationship to Generative Adversarial Networks".
    """

    def __init__(self, pixels: int, widths: Sequence[int], *, lr: float = 0.003) -> None:
        super().__init__()
        if not lr >= 0:
            raise ValueError(f"lr is {lr}; expected a number >= 0")
        self.lr = float(lr)
        self.weight = nn.Parameter(torch.zeros(pixels, sum(widths)))
        self.bias = nn.Parameter(torch.zeros(pixels))

    @torch.no_grad()
    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Images, float32 [N, pixels], from the activities [N, M_l] that ``FFNet.features`` returns."""
        return torch.addmm(self.bias, self._rows(features), self.weight.T).sigmoid_()

    @torch.no_grad()
    def learn(self, features: Sequence[Tensor], images: Tensor) -> None:
        """One step down the cross-entropy of the pixels, a sum over pixels and a mean over rows, in place.

        Args:
            features: [N, M_l] as for :meth:`forward`. images: [N, pixels] that they came from, in 0 .. 1.
        """
        rows = self._rows(features)
        error = (self(features) - images) / max(images.shape[0], 1)
        self.weight.addmm_(error.T, rows, alpha=-self.lr)
        self.bias.sub_(error.sum(0), alpha=self.lr)

    def between(self, features: Sequence[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images from activities that lie between two rows: share * row + (1 - share) * the one before it.

        Args:
            features: as for :meth:`forward`. generator: on their device; one share a row is drawn, from 0 .. 1.

        Returns:
            float32 [N, pixels] images, and the shares, [N, 1].
        """
        count, device = features[0].shape[0], features[0].device
        share = torch.rand(count, 1, generator=generator, device=device)
        return self([h.roll(1, 0).lerp(h, share) for h in map(Tensor.float, features)]), share

    @staticmethod
    def _rows(features: Sequence[Tensor]) -> Tensor:
        return torch.cat([h.detach().float() for h in features], 1)


def generated(x: Tensor, generator: torch.Generator, *, net: FFNet) -> Tensor:
    """Negatives of ``net.generator``, which then learns one step from the images: ``negatives=`` of a Trainer.

    Between two rows' activities, so that most negatives lie between data and none is an image.

    Args:
        x: [N, K] images in random order, in 0 .. 1. A batch of one image is mixed with itself.
        generator: on the device of x; N numbers are drawn.
        net: with label="none" and a :class:`LinearGenerator` of its widths as ``net.generator``: checkpoints hold it.

    Returns:
        [N, K] images in the dtype of x.
    """
    artist = net.generator
    if not isinstance(artist, LinearGenerator):
        raise TypeError(f"net.generator is a {type(artist).__name__}; expected a LinearGenerator")
    features = net.features(x)
    images, _ = artist.between(features, generator)
    artist.learn(features, x.flatten(1))
    return images.to(x.dtype)
