"""Hinton's own program: all layers at once, hard negatives, threshold = width, peer normalisation.

50,000 training images; a softmax head on all layers but the first draws the negatives and answers in one pass.
"""

from .recipe import Recipe

HINTON = Recipe(
    name="hinton",
    source="G. Hinton's MATLAB program to arXiv 2212.13345 (ffnew.m)",
    published={"error_but_first": 1.44, "error_softmax": 1.47},
    dataset="mnist",
    held_out=10_000,
    layers=(1000, 1000, 1000),
    norm="rms",
    goodness="sum_sq",
    threshold="width",
    peer=0.03,
    init="normal",
    head="all_but_first",
    negatives="hard",
    batch_size=100,
    epochs=100,
    optimiser="ema",
    lr=0.01,
    momentum=0.9,
    weight_decay=0.001,
    head_lr=0.1,
    head_weight_decay=0.003,
)
