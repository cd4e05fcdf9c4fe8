"""The supervised network on Fashion-MNIST, whose authors did not try it."""

from dataclasses import replace

from .supervised import SUPERVISED

FASHION = replace(
    SUPERVISED,
    name="fashion",
    source="the paper's network; compared with jesper-olsen/forward-forward-rs (3x1000, jitter), the best public MLP",
    published={"error_but_first": 10.5},
    dataset="fashion-mnist",
)
