"""Learning without labels from negatives that a linear generator makes of the network's own activities."""

from dataclasses import replace

from .unsupervised import UNSUPERVISED

GENERATOR = replace(
    UNSUPERVISED,
    name="generator",
    source='arXiv 2212.13345, section "Relationship to Generative Adversarial Networks"; rates chosen here',
    published={},
    layers=(500, 500),
    head="all",
    negatives="generated",
    generator_lr=0.001,
    epochs=10,
    lr=0.03,
)
