"""Ready-made training runs: one short file each, with its source and the published figure."""

from .article import ARTICLE
from .digits import DIGITS
from .fashion import FASHION
from .generator import GENERATOR
from .hinton import HINTON
from .questions import QUESTIONS
from .recipe import Recipe
from .supervised import SUPERVISED
from .supervised_fast import SUPERVISED_FAST
from .supervised_jitter import SUPERVISED_JITTER, SUPERVISED_JITTER_PAPER
from .unsupervised import UNSUPERVISED

__all__ = ["QUESTIONS", "RECIPES", "Recipe"]

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        DIGITS,
        ARTICLE,
        HINTON,
        SUPERVISED,
        SUPERVISED_FAST,
        SUPERVISED_JITTER,
        SUPERVISED_JITTER_PAPER,
        UNSUPERVISED,
        GENERATOR,
        FASHION,
    )
}
