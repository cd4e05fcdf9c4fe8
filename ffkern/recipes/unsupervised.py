"""The paper's unsupervised network: it tells digits from hybrids of two, and only the softmax head sees labels."""

from dataclasses import replace

from .supervised import SUPERVISED

UNSUPERVISED = replace(
    SUPERVISED,
    name="unsupervised",
    source="arXiv 2212.13345, section 3.2; rates of the program that accompanies it",
    published={"error_softmax": 1.37},
    label="none",
    negatives="hybrid",
    epochs=100,
)
