"""The schedule of the first widely read article: greedy, a thousand updates of a layer on every mini-batch.

Three mini-batches of 20,000 images are gone through once; on each of them the first layer takes all its updates, then
the second. Wrong labels are drawn once for a mini-batch.
"""

from .recipe import Recipe

ARTICLE = Recipe(
    name="article",
    source="N. Sherstnev's notebook, after M. Pezeshki's code: L2 norm, mean of squares, threshold, Adam at 0.03",
    published={"error": 4.74},
    dataset="mnist",
    scaling="mean",
    layers=(512, 512),
    label_value="max",
    norm="l2",
    eps=1e-4,
    goodness="mean_sq",
    threshold=3.0,
    schedule="greedy-batch",
    iterations=1000,
    batch_size=20_000,
    epochs=1,
    optimiser="adam",
    lr=0.03,
    decay="none",
)
