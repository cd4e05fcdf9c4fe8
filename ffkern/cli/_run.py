"""The application: its commands in the order of the help, and what becomes of a user's mistake.

The modules beside this one hold plain functions; here they become commands.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .._version import __version__
from . import data
from ._say import complain
from .info import bench, info
from .plot import plot
from .reproduce import reproduce
from .train import train
from .use import evaluate_command, predict

__all__ = ["run"]

app = typer.Typer(
    name="ffkern",
    help="Fused Forward-Forward learning: train, test, look at what was learnt, measure.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


sets = typer.Typer(help="Data sets: which there are, fetching one, what is in it.", no_args_is_help=True)
sets.command("list")(data.list_sets)
sets.command()(data.fetch)
sets.command()(data.info)

app.command()(train)
app.command("eval")(evaluate_command)
app.command()(predict)
app.command()(plot)
app.command()(reproduce)
app.add_typer(sets, name="data")
app.command()(info)
app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(bench)


def run(argv: list[str]) -> int:
    """Exit code of the command. A user's mistake gives one message and 2, never a traceback."""
    try:
        app(argv, prog_name="ffkern")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        return complain(str(error), 2)
    except (RuntimeError, MemoryError, OverflowError) as error:  # torch refuses sizes and seeds beyond its range
        return complain(str(error).split("\n")[0], 2)
    return 0
