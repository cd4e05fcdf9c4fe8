"""Scaling a recipe down to a time, against a search through all that is allowed."""

import itertools
import math

import pytest

from ffkern.recipes import RECIPES
from ffkern.recipes.budget import FEWEST, MARGIN, NARROWEST, Pace, TooShortError, duration, length, scale

BASES = {
    "hinton": RECIPES["hinton"],
    "uneven": RECIPES["hinton"].override(layers=(3000, 600, 90), epochs=33),
    "short": RECIPES["hinton"].override(epochs=7),
    "none": RECIPES["hinton"].override(epochs=0),
    "narrow": RECIPES["hinton"].override(layers=(40, 250)),
    "article": RECIPES["article"],
    "few iterations": RECIPES["article"].override(iterations=30, layers=(1000,)),
}


def widths(layers):
    """Every width that may be tried, the widest first."""
    tried = [layers]
    while any(units > NARROWEST for units in layers):
        layers = tuple(units if units <= NARROWEST else max(NARROWEST, units // 2) for units in layers)
        tried.append(layers)
    return tried


def searched(recipe, seconds, pace):
    """(layers, length) by trying all of them; None if nothing fits."""
    name = length(recipe)
    wanted = getattr(recipe, name)

    tried = [(layers, pace(layers)) for layers in widths(recipe.layers)]
    usable = seconds * (1 - MARGIN)
    for layers, now in tried:
        for count in range(wanted, min(wanted, FEWEST[name]) - 1, -1):
            if now.fixed + count * now.unit <= usable:
                return layers, count
    for count in range(wanted, min(wanted, 1) - 1, -1):
        if now.fixed + count * now.unit <= usable:
            return layers, count
    return None


@pytest.mark.parametrize("name", BASES)
def test_the_rule_is_the_best_that_is_allowed(name):
    recipe, found = BASES[name], set()
    for fixed, unit, power in itertools.product((0.0, 11.0), (1e-5, 1.3), (0, 2)):

        def pace(layers, fixed=fixed, unit=unit, power=power):
            return Pace(fixed + sum(layers) * 1e-4, unit * (sum(layers) / 1000) ** power)

        whole = duration(recipe, pace(recipe.layers))
        for seconds in [0.0, 0.01, *(whole * 1.3**k for k in range(-20, 2, 2)), 1e9]:
            best = searched(recipe, seconds, pace)
            if best is None:
                with pytest.raises(ValueError, match=f"the budget leaves {seconds:.0f} s for {recipe.name}; expected"):
                    scale(recipe, seconds, lambda asked: pace(asked.layers))
                found.add("refused")
                continue
            scaled = scale(recipe, seconds, lambda asked: pace(asked.layers))
            assert (scaled.layers, getattr(scaled, length(recipe))) == best
            assert duration(scaled, pace(scaled.layers)) <= seconds * (1 - MARGIN) * (1 + 1e-12)
            assert scaled == recipe.override(**{"layers": scaled.layers, length(recipe): best[1]})  # nothing else
            found.add("whole" if scaled == recipe else "narrower" if scaled.layers != recipe.layers else "shorter")
    assert {"whole", "refused"} <= found
    assert ("shorter" in found) == (getattr(recipe, length(recipe)) > FEWEST[length(recipe)])
    assert "narrower" in found or name == "narrow"


def test_the_least_budget_that_a_refusal_names_is_enough():
    def pace(recipe):
        return Pace(3.3, sum(recipe.layers) / 200)

    with pytest.raises(ValueError, match="expected at least") as refused:
        scale(RECIPES["hinton"], 1, pace)
    least = int(str(refused.value).split("at least ")[1].split(" s")[0])
    assert scale(RECIPES["hinton"], least, pace).epochs == 1
    with pytest.raises(ValueError, match="1 epoch with layers of 250, 250, 250 units"):
        scale(RECIPES["hinton"], least - 1, pace)


def test_layers_that_may_not_be_narrower_stay():
    def pace(recipe):
        return Pace(0.0, sum(recipe.layers) / 1000)

    recipe, least = RECIPES["hinton"], 3 / (1 - MARGIN)  # of one epoch
    assert scale(recipe, 7.5 * least, pace).layers == (250,) * 3
    assert scale(recipe, 7.5 * least, pace, narrow=False) == recipe.override(epochs=7)
    with pytest.raises(TooShortError, match="1 epoch with layers of 1000, 1000, 1000 units") as refused:
        scale(recipe, 0.9 * least, pace, narrow=False)
    assert refused.value.needed == math.ceil(least)


def test_every_width_is_measured_once_and_no_more_than_needed():
    asked = []

    def pace(recipe):
        asked.append(recipe.layers)
        return Pace(0.0, math.prod(recipe.layers) ** (1 / 3) / 1000)

    assert scale(RECIPES["hinton"], 1e6, pace) == RECIPES["hinton"]
    assert asked == [(1000,) * 3]
    asked.clear()
    assert scale(RECIPES["hinton"], 20 * 0.5 / (1 - MARGIN) + 1e-6, pace).layers == (500,) * 3
    assert asked == [(1000,) * 3, (500,) * 3]
