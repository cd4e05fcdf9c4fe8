"""Recipes on the command line: an option for every setting, and settings as the words of a command."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from ..recipes import Recipe

__all__ = ["add_settings", "changes", "given", "options", "written"]

LEFT_OUT = ("folder", "seed")  # of what tells one set of settings from another


def add_settings(command: Callable[..., None], without: tuple[str, ...] = ()) -> None:
    """Gives a command with ``**settings`` an option for every setting of a recipe, where Typer looks for them."""
    kinds = get_type_hints(Recipe)
    settings = [f for f in Recipe.settings() if f.name not in without]
    options = [_option(f.name, kinds[f.name], f.metadata["help"]) for f in settings]
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    command.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*own, *options)}


def _option(name: str, kind: Any, text: str) -> inspect.Parameter:
    """A keyword option that is None unless given: then the recipe's value stays."""
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    plain = [part for part in parts if part is not NoneType]
    # Numbers that may be words, and lists of numbers, are read by _parsed.
    shown: Any = plain[0] if len(plain) == 1 and get_origin(plain[0]) is not tuple else str
    option = Annotated[shown | None, typer.Option("--" + name.replace("_", "-"), help=text, rich_help_panel="Recipe")]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)


def given(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that the command line names, as :meth:`Recipe.override` takes them."""
    return {name: _parsed(name, value) for name, value in settings.items() if value is not None}


def _parsed(name: str, value: Any) -> Any:
    """The value of a setting from what the command line holds."""
    hint = "--" + name.replace("_", "-")
    if name == "layers":
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise typer.BadParameter(f"{value!r}; expected numbers of units such as 500,500", param_hint=hint)
        return tuple(map(int, parts))
    if name == "folder" or (name == "dataset" and value.endswith(".npz")):
        return str(Path(value).resolve())  # a run is to be found again from another folder
    words = {"threshold": "width", "label_value": "max"}
    if name in words and value != words[name]:
        try:
            return float(value)
        except ValueError:
            raise typer.BadParameter(f"{value!r}; expected a number or {words[name]!r}", param_hint=hint) from None
    return value


def changes(chosen: Recipe, base: Recipe) -> dict[str, tuple[str, str]]:
    """What of the settings differs, as the command line writes it: name -> (value, value in base).

    Neither the seed nor the folder of the data sets counts.
    """
    names = [f.name for f in Recipe.settings() if f.name not in LEFT_OUT]
    pairs = {name: (getattr(chosen, name), getattr(base, name)) for name in names}
    return {name: (written(new), written(old)) for name, (new, old) in pairs.items() if new != old}


def options(chosen: Recipe, base: Recipe) -> list[str]:
    """The options that make `chosen` of `base`, but for the seed and the folder of the data sets."""
    words = ((f"--{name.replace('_', '-')}", shlex.quote(new)) for name, (new, _) in changes(chosen, base).items())
    return [word for pair in words for word in pair]


def written(value: Any) -> str:
    """The value of a setting as the command line writes it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
