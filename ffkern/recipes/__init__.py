"""Ready-made training runs: one short file each, with its source and the published figure."""

from .article import ARTICLE
from .digits import DIGITS
from .hinton import HINTON
from .recipe import Recipe
from .supervised import SUPERVISED

__all__ = ["RECIPES", "Recipe"]

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (DIGITS, ARTICLE, HINTON, SUPERVISED)}
