"""``ffkern plot``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import typer

from .. import checkpoint
from .. import plot as figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 6  # images whose negatives or samples are drawn


def plot(
    run: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run.", show_default=False)],
    kind: Annotated[
        Literal["curves", "goodness", "activity", "fields", "negatives", "samples", "all"],
        typer.Option(help="What to draw."),
    ] = "all",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pictures; by default RUN/plots.", show_default=False)
    ] = None,
    image: Annotated[int, typer.Option(min=0, help="Test image whose activities are drawn, from 0.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the wrong labels in the histogram of goodness, and of negatives.")] = 0,
) -> None:
    """Draw the training curves of a run, what its network learnt, and from which negatives.

    The wrong label of the activities is the wrong one that the network finds best.
    """
    saved = checkpoint.load(run)
    folder = out if out is not None else (run if run.is_dir() else run.parent) / "plots"
    for path in drawn(saved, folder, kind, image, seed):
        print(path)


def drawn(saved: checkpoint.Saved, folder: Path, kind: str = "all", image: int = 0, seed: int = 0) -> Iterator[Path]:
    """Pictures of a run, one by one as they are written into the folder; all that the run allows, or one kind.

    Args:
        kind, image, seed: options of ``ffkern plot``.
    """
    net, data = saved.net, saved.data()
    part, x, y = "test", data.test_x, data.test_y
    if not len(y):
        part, x, y = "training", data.train_x, data.train_y
    if image >= len(y):
        raise typer.BadParameter(f"{image}; expected 0 to {len(y) - 1}, a {part} image", param_hint="--image")

    def draws() -> torch.Generator:
        return torch.Generator(y.device).manual_seed(seed)

    def goodness() -> Figure:
        return figures.goodness_histogram(net, x, y, draws(), title=f"{data.name}: {len(y):,} {part} images")

    def activity() -> Figure:
        right = int(y[image])
        scores = net(x[image : image + 1])[0]
        scores[right] = -torch.inf
        return figures.label_activity(net, x[image].reshape(saved.shape), right, int(scores.argmax()))

    def negatives() -> Figure:
        generator, recipe = draws(), saved.recipe
        rows = torch.randperm(len(data.train_y), generator=generator)[:ROWS]
        examples = data.train_x[rows], data.train_y[rows], saved.shape
        return figures.negatives(net, *examples, generator, kind=recipe.negatives, blurs=recipe.blurs)

    draw: dict[str, Callable[[], Figure]] = {
        "curves": lambda: figures.curves(saved.history, net),
        "goodness": goodness,
        "activity": activity,
        "fields": lambda: figures.receptive_fields(net, saved.shape),
        "negatives": negatives,
        "samples": lambda: figures.samples(net, x[:ROWS], saved.shape, draws()),
    }
    # What such a network cannot have, by what it is.
    other = {"goodness", "activity"} if net.label == "none" else set[str]()
    if saved.recipe.negatives != "generated":
        other.add("samples")
    if kind in other:
        what = "sees no labels" if kind != "samples" else "has no generator"
        raise typer.BadParameter(f"{kind}; expected another kind for a network that {what}", param_hint="--kind")
    wanted: list[str] = [kind]
    if kind == "all":  # then what cannot be drawn is left out
        no_picture = "" if saved.shape[0] in (1, 3) else f"the images have {saved.shape[0]} channels"
        lacking = {
            "curves": "" if saved.history else "the run has no finished epoch",
            "fields": no_picture,
            "negatives": no_picture,
        }
        for name, why in lacking.items():
            if why:
                print(f"ffkern: no {name}: {why}", file=sys.stderr)
        wanted = [name for name in draw if not lacking.get(name) and name not in other]
    for name in wanted:
        yield figures.save(draw[name](), folder / f"{name}.png")
