"""Makes the figures of docs/training.md again: python docs/figures.py RUN, with a finished run of the hinton recipe.

Also the table of thresholds, between its marks in docs/training.md: the digits recipe at many thresholds, error on 347
held-out training images at the last epoch, mean of seeds 0, 1, 2.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import torch

from ffkern import checkpoint, plot
from ffkern.recipes import RECIPES, Recipe

DOCS = Path(__file__).parent
MEANS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SUMS = (2.0, 50.0, 125.0, 250.0, 500.0, 1000.0)  # of 500 units
SEEDS = (0, 1, 2)


def held_out_error(recipe: Recipe) -> float:
    images = recipe.load()
    net = recipe.network(images.inputs, images.classes, recipe.strength(images))
    trainer = recipe.trainer(net, images)
    trainer.fit(images.train_x, images.train_y)
    return trainer.evaluate(images.valid_x, images.valid_y)["error"]


def thresholds() -> str:
    digits = RECIPES["digits"].override(held_out=347)
    lines = ["| goodness | threshold | a unit | error on held-out images |", "|---|---:|---:|---:|"]
    for goodness, tried in (("mean_sq", MEANS), ("sum_sq", SUMS)):
        for threshold in tried:
            errors = [held_out_error(digits.override(goodness=goodness, threshold=threshold, seed=s)) for s in SEEDS]
            unit = threshold if goodness == "mean_sq" else threshold / 500
            lines.append(f"| {goodness} | {threshold:g} | {unit:g} | {100 * statistics.mean(errors):.1f} % |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def goodness() -> None:
    """Goodness of rows with the right and a wrong label, before and after training."""
    digits = RECIPES["digits"]
    images = digits.load()
    net = digits.network(images.inputs, images.classes, digits.strength(images))
    generator = torch.Generator()
    before = plot.goodness_histogram(
        net, images.test_x, images.test_y, generator.manual_seed(0), title="before training"
    )
    plot.save(before, DOCS / "goodness-before.png")
    digits.trainer(net, images).fit(images.train_x, images.train_y)
    after = plot.goodness_histogram(net, images.test_x, images.test_y, generator.manual_seed(0), title="after training")
    plot.save(after, DOCS / "goodness-after.png")


def run(path: Path) -> None:
    """Pictures of a trained network."""
    saved = checkpoint.load(path)
    images = saved.data()
    plot.save(plot.curves(saved.history, saved.net), DOCS / "hinton-curves.png")
    histogram = plot.goodness_histogram(saved.net, images.test_x, images.test_y, torch.Generator().manual_seed(0))
    plot.save(histogram, DOCS / "hinton-goodness.png")
    wrong = int(saved.net(images.test_x[:1])[0].argsort(descending=True)[1])
    plot.save(
        plot.label_activity(saved.net, images.test_x[0], int(images.test_y[0]), wrong), DOCS / "hinton-activity.png"
    )
    plot.save(plot.receptive_fields(saved.net, saved.shape), DOCS / "hinton-fields.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    plot.save(plot.lesson(2.0, 1.0), DOCS / "lesson.png")
    goodness()
    if len(sys.argv) > 1:
        run(Path(sys.argv[1]))
    page = DOCS / "training.md"
    begin, end = "<!-- threshold:begin -->\n", "<!-- threshold:end -->"
    text = page.read_text()
    head, rest = text.split(begin)
    page.write_text(head + begin + thresholds() + "\n" + end + rest.split(end)[1])
