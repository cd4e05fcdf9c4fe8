"""The paper's supervised network: Hinton's program at four layers of 2000 units, all 60,000 training images."""

from dataclasses import replace

from .hinton import HINTON

SUPERVISED = replace(
    HINTON,
    name="supervised",
    source="arXiv 2212.13345, section 3.3; settings of the program that accompanies it",
    published={"error_but_first": 1.36},
    held_out=0,
    layers=(2000, 2000, 2000, 2000),
    precision="bfloat16",
    epochs=60,
)
