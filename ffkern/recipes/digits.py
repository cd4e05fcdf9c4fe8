"""Small real digits that come with scikit-learn: the first run on a new machine, seconds long."""

from .recipe import Recipe

DIGITS = Recipe(
    name="digits",
    source="settings by cross-validation inside the training images",
    published={},
    dataset="digits",
    scaling="mean-image",
    layers=(500, 500),
    label="concat",  # 8x8 images have no border to write a label over
    batch_size=50,
    epochs=40,
    lr=0.003,
)
