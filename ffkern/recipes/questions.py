"""Questions about Forward-Forward learning that a short run answers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .digits import DIGITS
from .recipe import Recipe

__all__ = ["QUESTIONS", "Question"]


@dataclass(frozen=True)
class Question:
    """What is asked, and the run that answers."""

    words: str
    recipe: Recipe


QUESTIONS: dict[str, Question] = {
    "greedy": Question("Do layers learn as well one after the other?", replace(DIGITS, schedule="greedy")),
    "every-wrong-label": Question("Is it better to learn from all wrong labels?", replace(DIGITS, negatives="all")),
}
