"""Negative images for learning without labels: what looks like data from near, and not from afar."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import ops as _ops  # noqa: F401  registers torch.ops.ffkern

__all__ = ["hybrid"]


def hybrid(x: Tensor, generator: torch.Generator, *, shape: Sequence[int], blurs: int = 6) -> tuple[Tensor, Tensor]:
    """Pieces of two images each: mask * image + (1 - mask) * the one before it in the batch.

    Strokes stay as they are within the large blobs of the mask, so only correlations over long distances tell such an
    image from a real one.

    Args:
        x: [N, K] images in random order, on any device. A batch of one image is mixed with itself.
        generator: on the device of x; one number is drawn, the masks follow from it.
        shape: (channels, height, width) of a row.
        blurs: how often random bits are blurred before they are cut at one half: more of them, larger blobs.

    Returns:
        [N, K] images in the dtype of x, and the masks, bool [N, height * width].

    Source: Hinton, arXiv 2212.13345, section 3.2; one operation, ``ffkern::hybrid_images_``, makes masks and images.
    """
    if len(shape) != 3 or x.dim() != 2 or math.prod(shape) != x.shape[1]:
        raise ValueError(f"shape is {tuple(shape)} and x is {list(x.shape)}; expected (C, H, W) and [N, C * H * W]")
    seed = torch.randint(2**63 - 1, (1,), generator=generator, device=x.device)
    drawn = torch.cat((seed, torch.zeros_like(seed)))
    images: Tensor
    images, masks = torch.ops.ffkern.hybrid_images_(x, x.roll(1, 0), drawn, shape[1], shape[2], blurs)
    return images, masks
