"""Every image moved by up to two pixels, anew in each step.

First at the size of Hinton's program, within an hour on two cores; then as in the paper.
"""

from dataclasses import replace

from .hinton import HINTON
from .supervised import SUPERVISED

SUPERVISED_JITTER = replace(
    HINTON,
    name="supervised-jitter",
    source="settings of Hinton's program; compared with jesper-olsen/forward-forward-rs, 3x1000, the best public MLP",
    published={"error_but_first": 0.69},
    held_out=0,
    precision="bfloat16",
    shift=2,
    epochs=500,
)

SUPERVISED_JITTER_PAPER = replace(
    SUPERVISED,
    name="supervised-jitter-paper",
    source="arXiv 2212.13345, section 3.3, jittered images; settings of the program that accompanies it",
    published={"error_but_first": 0.64},
    shift=2,
    epochs=500,
)
