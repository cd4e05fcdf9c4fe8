"""The open questions: one change at a time from one base, each of them trainable."""

import math
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch

from ffkern import data, trainer
from ffkern.plain import PlainNet
from ffkern.recipes import QUESTIONS, RECIPES, Recipe
from ffkern.recipes.questions import BASE

COMPANIONS = {"threshold", "temperature", "lr", "momentum", "peer", "weight_decay"}  # what may go with one change
RUNS = [question.recipe for question in QUESTIONS.values()]
every_question = pytest.mark.parametrize("slug", QUESTIONS)


@every_question
def test_a_question_is_one_change_in_words(slug):
    words, recipe = QUESTIONS[slug].words, QUESTIONS[slug].recipe
    assert recipe.name == slug
    assert slug not in RECIPES
    assert words
    assert Recipe.from_dict(recipe.as_dict()) == recipe
    now, base = recipe.as_dict(), BASE.as_dict()
    changed = {name for name in now if now[name] != base[name]} - {"name"}
    assert len(changed - COMPANIONS) <= 1, changed
    if len(changed) > 1:  # then the words have to say so
        assert "with" in words, (slug, changed)


def test_they_are_all_different_and_the_base_is_one():
    recipes = [replace(recipe, name="") for recipe in RUNS]
    assert len(set(map(repr, recipes))) == len(recipes)
    assert replace(BASE, name="") in recipes


def test_every_choice_is_asked_for():
    kinds = get_type_hints(Recipe)
    for name in ("goodness", "activation", "pair_loss", "between"):
        assert {getattr(recipe, name) for recipe in RUNS} == set(get_args(kinds[name])), name
    assert {recipe.negatives for recipe in RUNS} == {"uniform", "hard", "all"}
    assert {recipe.phase for recipe in RUNS} == {0, 10, 100, 1000}
    assert {recipe.weight_noise for recipe in RUNS} == {0.0, 0.1, 0.5}
    assert {recipe.regions for recipe in RUNS} == {1, 2}


@every_question
def test_a_few_updates_of_each(slug):
    """At the true sizes of layers, with weights that are finite and moved in every layer."""
    recipe = QUESTIONS[slug].recipe
    x, y = torch.rand(200, 784), torch.arange(200) % 10
    images = data.Dataset("mnist", x, y, x[:9], y[:9], 10, (1, 28, 28)).scaled(recipe.scaling)
    net = recipe.network(784, 10, recipe.strength(images), images.shape)
    assert isinstance(net, PlainNet) == recipe.plain
    before = [layer.weight.detach().clone() for layer in net.layers]
    recipe = replace(recipe, epochs=1, held_out=0)
    history = recipe.trainer(net, images).fit(images.train_x, images.train_y)
    assert all(math.isfinite(layer.loss) for layer in history.epochs[-1].layers)
    for old, layer in zip(before, net.layers, strict=True):
        assert bool(layer.weight.isfinite().all())
        assert not torch.equal(old, layer.weight)
    assert set(trainer.evaluate(net, images.test_x, images.test_y)) == {"error", "error_but_first", "error_softmax"}
