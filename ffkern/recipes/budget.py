"""A recipe scaled down to a time: fewer epochs first, then narrower layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .recipe import Recipe

__all__ = ["SCALED", "Pace", "TooShortError", "duration", "length", "scale"]

SCALED = ("epochs", "iterations", "layers")  # settings that a budget may change
MARGIN = 0.15  # of the time is left for what was not measured: start, checkpoints, logs, other processes
# Fewer than so many are not worth it while layers can be narrower: the rate has to rise from nothing and to fall
# again, and iterations on one mini-batch begin with hundreds in which little is learnt.
FEWEST = {"epochs": 20, "iterations": 200}
NARROWEST = 250  # units


@dataclass(frozen=True)
class Pace:
    """How fast a run is: seconds that do not depend on its length, and seconds a unit of :func:`length`."""

    fixed: float
    unit: float


class TooShortError(ValueError):
    """Not even the least run fits a time.

    Args:
        text: what is said.
        needed: seconds that would do.
    """

    def __init__(self, text: str, needed: int) -> None:
        super().__init__(text)
        self.needed = needed


def length(recipe: Recipe) -> str:
    """The setting that a run's time is proportional to: "epochs", or "iterations" with the schedule "greedy-batch"."""
    return "iterations" if recipe.schedule == "greedy-batch" else "epochs"


def duration(recipe: Recipe, pace: Pace) -> float:
    """Seconds that the recipe takes at this pace."""
    return pace.fixed + int(getattr(recipe, length(recipe))) * pace.unit


def scale(recipe: Recipe, seconds: float, pace: Callable[[Recipe], Pace], *, narrow: bool = True) -> Recipe:
    """The recipe, or the best smaller one that takes at most so many seconds, a margin left free.

    A recipe that fits stays as it is. Else it gets as many epochs as fit (the decay of the rate scales with them),
    but at least 20, or its own number if that is less; where these do not fit, layers of half the width, at least 250
    units each, and so on; with the narrowest layers as many epochs as fit. With the schedule "greedy-batch" iterations
    stand for epochs, at least 200.

    Args:
        seconds: for the whole run.
        pace: of a recipe on this machine; asked again for every width.
        narrow: whether layers may become narrower. False keeps what is said of their width true.

    Raises:
        TooShortError: not even one epoch with the narrowest layers fits; the text says how many seconds it takes.
    """
    name, usable = length(recipe), (1 - MARGIN) * seconds
    wanted = int(getattr(recipe, name))
    least, one = min(wanted, FEWEST[name]), min(wanted, 1)
    while True:
        now = pace(recipe)
        if duration(recipe, now) <= usable:
            return recipe
        halved = tuple(min(units, max(NARROWEST, units // 2)) for units in recipe.layers)
        narrower = halved if narrow else recipe.layers
        if now.fixed + one * now.unit <= usable:
            fitting = max(one, math.floor((usable - now.fixed) / now.unit))
            if fitting >= least or narrower == recipe.layers:
                return recipe.override(**{name: fitting})
        elif narrower == recipe.layers:
            needed = math.ceil((now.fixed + one * now.unit) / (1 - MARGIN))
            what = name.removesuffix("s") if one == 1 else name
            raise TooShortError(
                f"the budget leaves {seconds:.0f} s for {recipe.name}; expected at least {needed} s: {one} {what} with "
                f"layers of {', '.join(map(str, recipe.layers))} units",
                needed,
            )
        recipe = recipe.override(layers=narrower)
