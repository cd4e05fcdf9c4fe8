"""``ffkern reproduce``: published figures measured again, each run in a folder of its own."""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from .. import checkpoint, data
from .._files import write_whole
from ..recipes import RECIPES, Recipe, budget
from ..recipes.questions import BASE, QUESTIONS
from ..trainer import RECORDED_UPDATES, evaluate
from . import runs
from ._say import ANSWERS, clock, complain, errors
from ._settings import add_settings, changes, given, options, written
from .data import here
from .plot import drawn

__all__ = ["measured", "published", "reproduce", "standing_of"]

# The most valuable first; a recipe that is not named here comes after them.
ORDER = (
    "supervised",
    "hinton",
    "unsupervised",
    "supervised-jitter",
    "fashion",
    "supervised-fast",
    "article",
    "supervised-jitter-paper",
)
PLOTS = "plots"  # in the folder of a run
TOLD_BYTES = 150  # of changed settings in the name of a folder; file systems take 255 in all
UNITS = {"s": 1, "m": 60, "h": 3600}
MEASURED_SECONDS, MEASURED_UPDATES, MEASURED_IMAGES = 2.0, 50, 200  # at most, to estimate a run's time
PICTURES_SECONDS = 6.0  # of a run, beside the passes over the test images


def reproduce(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="Recipes, `questions`, or `all` recipes.", show_default=False),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="What can be reproduced, and what of it is done.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the runs: NAME/seed-0, ... Made if missing.")] = Path(
        "runs/reproduce"
    ),
    seeds: Annotated[str, typer.Option(help="Seeds to run in turn: 0,1,2.")] = "0",
    time_budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="TIME", help="Scale down to 90s, 10m or 2h for the whole command."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads.")] = None,
    json_path: Annotated[
        str | None, typer.Option("--json", metavar="PATH", help="Write the figures as JSON; '-': print them.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No announcement, no progress.")] = False,
    **settings: Any,
) -> None:
    """Train what was published, and print the measured errors beside the published ones.

    Ctrl-C, a crash or a lost machine lose nothing but the last seconds: the same command goes on where a run stopped,
    and shows one that is done. A run with other settings than the recipe's has a folder of its own.
    """
    begun = time.monotonic()
    changed = given(settings)
    if listing:
        unused = {"NAME...": " ".join(names or []), "--budget": time_budget, "--threads": threads, "--json": json_path}
        unused |= {_option(name): new for name, new in changed.items() if name != "folder"}
        for hint, value in unused.items():
            if value not in (None, ""):
                raise typer.BadParameter(f"{value}; expected none with --list", param_hint=hint)
        Console(highlight=False, soft_wrap=True).print(_listed(out, changed.get("folder")))
        return
    runs.check_json(json_path)
    numbers = _numbers(seeds)
    seconds = None if time_budget is None else _seconds(time_budget)
    tasks = [_Task.of(name, changed) for name in _expanded(names or [])]
    shares = None if seconds is None else _Shares(begun + seconds, list(tasks), len(numbers))
    if time_budget is not None:
        sharing = len(tasks) * len(numbers)
        for task in tasks:
            task.folder += f"+budget={time_budget}" + (f"-of-{sharing}" if sharing > 1 else "")

    default = torch.get_num_threads()
    done: dict[str, list[dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    for task in tasks:
        if shares is not None and task.name in shares.left_out:
            continue
        try:
            late = shares is not None and task is not tasks[0] and time.monotonic() >= shares.ends
            if late and not (out / task.folder).is_dir():  # else what is there is shown, or goes on
                raise ValueError("the budget was used up before its turn")
            done[task.name] = list(_runs(task, numbers, out, shares, threads, quiet))
        except (ValueError, OSError, ModuleNotFoundError, RuntimeError, MemoryError) as error:
            if isinstance(error, typer.Exit) or len(tasks) == 1:
                raise
            failed[task.name] = str(error).split("\n")[0]
            continue
        finally:
            torch.set_num_threads(default)
            if shares is not None:
                shares.waiting.remove(task)
        if task.question is None and json_path != "-":
            _show(task, done[task.name])
    if json_path != "-":
        asked = [task for task in tasks if task.question is not None and task.name in done]
        if asked:
            _show_answers(asked, done)
    left_out = [] if shares is None else shares.left_out
    if json_path is not None:
        shown = [_plain(task, done[task.name]) for task in tasks if task.name in done]
        text = json.dumps({"done": shown, "failed": failed, "left_out": left_out}, indent=2)
        if json_path == "-":
            print(text)
        else:
            write_whole(Path(json_path), text + "\n")
    for name, why in failed.items():
        complain(f"{name} failed: {why}", 1)
    if shares is not None and left_out:
        complain(
            f"left out: {', '.join(left_out)}; the budget is {time_budget}, expected at least {shares.more} s more", 1
        )
    codes = [runs.diverged(result) for results in done.values() for result in results]
    raise typer.Exit(max([*codes, int(bool(failed or left_out))]))


add_settings(reproduce, without=("seed",))


# ------------------------------------------------------------ what is asked for


@dataclass
class _Task:
    """A recipe to run, once for each seed."""

    name: str  # of the recipe, or of the question
    base: Recipe  # as it is committed
    chosen: Recipe  # with the settings of the command line
    folder: str  # below --out
    command: str
    question: str | None = None

    @classmethod
    def of(cls, name: str, changed: dict[str, Any]) -> _Task:
        """A task by the name of a recipe, or "questions/..."; its folder's name says what was changed of it.

        Raises:
            typer.BadParameter: a question would no longer be the one that its words ask.
            ValueError: a setting has no such value, or there is nothing to be patient about.
        """
        kind, _, key = name.rpartition("/")
        base, question = (QUESTIONS[key].recipe, QUESTIONS[key].words) if kind else (RECIPES[name], None)
        if question is not None:
            fixed = {"layers", *changes(base, BASE)}  # its thresholds are numbers for so many units
            for setting in (setting for setting in changed if setting in fixed):
                new, old = written(changed[setting]), written(getattr(base, setting))
                raise typer.BadParameter(
                    f"{new}; expected none with questions, for {name} has {old}", param_hint=_option(setting)
                )
        chosen = base.override(**changed)
        if chosen.patience and not chosen.held_out:  # now, not after loading and timing
            raise ValueError(f"patience is {chosen.patience}; expected held-out images to watch (--held-out)")
        # A path has only its end here. Should two paths meet in one name, the check of the settings tells them apart.
        told = "".join(
            f"+{n}={re.sub('[^A-Za-z0-9.,_-]', '', Path(new).name)}" for n, (new, _) in changes(chosen, base).items()
        )
        if len(told) > TOLD_BYTES:
            told = f"{told[: TOLD_BYTES - 10]}..{hashlib.sha256(told.encode()).hexdigest()[:8]}"
        return cls(name, base, chosen, name + told, f"ffkern reproduce {kind or name}", question)


@dataclass
class _Shares:
    """What is left of a budget, in equal shares for those that wait; the last of them give way to the first."""

    ends: float  # on the clock of time.monotonic
    waiting: list[_Task]  # the one at work, then those to come
    seeds: int
    left_out: list[str] = field(default_factory=list)
    more: int = 0  # seconds that the budget lacks for these, at least

    def scaled(self, recipe: Recipe, begun: float, pace: Callable[[Recipe], budget.Pace]) -> Recipe:
        """The recipe of the first that waits, scaled down to its share; the last are left out if it needs theirs too.

        Args:
            begun: when its share began, which the pace counts from.

        Raises:
            ValueError: all that is left is too short for it; then nobody is left out.
        """
        narrow, left = self.waiting[0].question is None, max(self.ends - begun, 0.0)
        while True:
            sharing = len(self.waiting) * self.seeds
            try:
                return budget.scale(recipe, left / sharing, pace, narrow=narrow)
            except budget.TooShortError as short:
                fitting = min(int(left / (short.needed * self.seeds)), len(self.waiting) - 1)
                if not fitting and sharing == 1:
                    raise
                if not fitting:
                    names = [(len(self.waiting), "recipe"), (self.seeds, "seed")]
                    parts = "".join(f" / {_counted(n, what)}" for n, what in names if n > 1)
                    raise ValueError(f"{short}; its share of the budget, {left:.0f} s{parts}") from short
                self.more = max(self.more, math.ceil(short.needed * sharing - left))
                self.left_out[:0] = [task.name for task in self.waiting[fitting:]]
                del self.waiting[fitting:]


def _option(setting: str) -> str:
    return "--" + setting.replace("_", "-")


def published() -> list[str]:
    """The recipes with a published figure, in the order of `all`."""
    names = [name for name, recipe in RECIPES.items() if recipe.published]
    return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def _expanded(names: list[str]) -> list[str]:
    """The names with `all` and `questions` spelt out, each once."""
    groups = {"all": published(), "questions": [f"questions/{key}" for key in QUESTIONS]}
    known = [*published(), *groups]
    for name in names:
        if name in RECIPES and name not in known:
            raise typer.BadParameter(
                f"{name!r} has no published figure; `ffkern train --recipe {name}` trains it", param_hint="NAME..."
            )
        if name not in known:
            raise typer.BadParameter(f"{name!r}; expected {', '.join(known[:-1])} or {known[-1]}", param_hint="NAME...")
    if not names:
        raise typer.BadParameter(f"none; expected {', '.join(known)}, or --list", param_hint="NAME...")
    return list(dict.fromkeys(one for name in names for one in groups.get(name, [name])))


def _numbers(seeds: str) -> list[int]:
    parts = seeds.split(",")
    if not all(re.fullmatch("[0-9]{1,18}", part) for part in parts) or len({*map(int, parts)}) < len(parts):
        raise typer.BadParameter(f"{seeds!r}; expected different numbers such as 0,1,2", param_hint="--seeds")
    return [int(part) for part in parts]


def _seconds(text: str) -> float:
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smh])", text)
    if found is None or not float(found[1]):
        raise typer.BadParameter(f"{text!r}; expected a time such as 90s, 10m or 2h", param_hint="--budget")
    return float(found[1]) * UNITS[found[2]]


# ------------------------------------------------------------ the runs of a task


def _runs(
    task: _Task, seeds: list[int], out: Path, shares: _Shares | None, threads: int | None, quiet: bool
) -> Iterator[dict[str, Any]]:
    """The result of each seed: read if its run is done, else trained from where it stands."""
    begun, default = time.monotonic(), torch.get_num_threads()
    places = {seed: out / task.folder / f"seed-{seed}" for seed in seeds}
    settings = {seed: _settings_in(place) for seed, place in places.items()}
    there = None
    if shares is not None:  # what a budget chose is for all seeds
        known = map(_settings_in, sorted((out / task.folder).glob("seed-*")))
        there = next((found for found in known if found is not None), None)
    chosen = task.chosen if there is None else _as_scaled(task.chosen, there)
    for seed, found in settings.items():
        if found is not None:
            _check_same(places[seed], found, chosen.override(seed=seed))
    left = [seed for seed, place in places.items() if not (place / runs.RESULT).is_file()]
    images = chosen.load() if left else None

    @cache
    def pace(layers: tuple[int, ...]) -> budget.Pace:
        assert images is not None
        return measured(task.chosen.override(layers=layers), images, pictures=task.question is None)

    def pace_now(recipe: Recipe) -> budget.Pace:
        """With what loading and measuring have taken, which is part of the budget too."""
        found = pace(recipe.layers)
        return budget.Pace(found.fixed + time.monotonic() - begun, found.unit)

    for seed, place in places.items():
        if images is None or seed not in left:
            _say(quiet, f"{task.name}, seed {seed}: done before, in {place}")
            yield _result(place)
        else:
            saved = checkpoint.load(place) if settings[seed] is not None else None
            torch.set_num_threads(default)
            runs.use_threads(threads, saved)
            if shares is not None and there is None and seed == seeds[0]:
                chosen = shares.scaled(chosen, begun, pace_now)
            wanted = chosen.override(seed=seed)
            if not quiet:
                _announce(task, wanted, images, budget.duration(wanted, pace(wanted.layers)), saved)
            yield _trained(task, wanted, images, place, saved, quiet)
        if task.question is None and not (place / PLOTS).is_dir() and (place / checkpoint.NAME).is_file():
            try:
                list(drawn(checkpoint.load(place), place / PLOTS))
            except (ModuleNotFoundError, ValueError) as error:  # the figures stand without
                complain(f"no more pictures of {place}: {error}", 0)


def _trained(
    task: _Task, wanted: Recipe, images: data.Dataset, place: Path, saved: checkpoint.Saved | None, quiet: bool
) -> dict[str, Any]:
    outcome = runs.keep(
        wanted,
        images,
        place,
        saved,
        command=" ".join([task.command, *options(wanted, task.base), f"--seeds {wanted.seed}"]),
        again="The same command goes on",
        csv=True,
        quiet=quiet,
    )
    if outcome.unsaved is not None:
        raise OSError(f"the end of the run in {place} was not saved: {outcome.unsaved}")
    if outcome.interrupted:
        raise typer.Exit(complain("stopped; saved. The same command goes on", runs.INTERRUPTED))
    return outcome.result


def _settings_in(place: Path) -> dict[str, Any] | None:
    """The settings of the run that the folder holds, if it holds one."""
    if (place / runs.RESULT).is_file():
        recipe: dict[str, Any] = _result(place)["recipe"]
        return recipe
    return checkpoint.load(place).recipe.as_dict() if (place / checkpoint.NAME).exists() else None


def _result(place: Path) -> dict[str, Any]:
    path = place / runs.RESULT
    try:
        result = json.loads(path.read_text())
        if isinstance(result["recipe"], dict):
            return dict(result)
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is damaged; remove it, and the run is evaluated again")


def _as_scaled(recipe: Recipe, there: dict[str, Any]) -> Recipe:
    """The recipe as an earlier call with this budget scaled it, however fast the machine is now."""
    return Recipe.from_dict(recipe.as_dict() | {name: there[name] for name in budget.SCALED if name in there})


def _check_same(place: Path, there: dict[str, Any], wanted: Recipe) -> None:
    asked = wanted.as_dict()
    names = [f.name for f in Recipe.settings() if f.name != "folder" and there.get(f.name, "missing") != asked[f.name]]
    if names:
        told = ", ".join(f"{name} {there.get(name, 'missing')!r} there and {asked[name]!r} here" for name in names)
        raise ValueError(f"{place} holds a run with other settings ({told}); expected the same, or another --out")


# ------------------------------------------------------------ how long it takes


def measured(recipe: Recipe, images: data.Dataset, *, pictures: bool = True) -> budget.Pace:
    """The pace of a recipe on this machine and its present threads, from a few updates of a network thrown away.

    They are the first ones, in which every row still teaches: later epochs are faster where rows are left out.

    Args:
        pictures: whether those of the run count.
    """
    few = recipe.override(epochs=1, iterations=min(recipe.iterations, 3))
    net = few.network(images.inputs, images.classes, few.strength(images), images.shape)
    trainer, steps = few.trainer(net, images), math.ceil(len(images.train_y) / few.batch_size)

    def timed(batches: int) -> tuple[float, int]:
        """Seconds and updates."""
        rows, start = slice(batches * few.batch_size), time.perf_counter()
        trainer.fit(images.train_x[rows], images.train_y[rows])
        return time.perf_counter() - start, trainer.updates

    seconds, updates = timed(1)
    if seconds < MEASURED_SECONDS:  # else the first updates, slower than those to come, have to do
        seconds, updates = timed(max(1, min(int(MEASURED_SECONDS / seconds), MEASURED_UPDATES, steps)))
    of_unit = _updates(recipe.override(**{budget.length(recipe): 1}), images)
    records = of_unit / (RECORDED_UPDATES if recipe.schedule == "greedy-batch" else steps)

    x, y = (images.test_x, images.test_y) if len(images.test_y) else (images.train_x, images.train_y)
    start = time.perf_counter()
    evaluate(net, x[:MEASURED_IMAGES], y[:MEASURED_IMAGES])
    an_image = (time.perf_counter() - start) / min(MEASURED_IMAGES, len(y))
    held_out = 0 if images.valid_y is None else len(images.valid_y)
    # A histogram of goodness looks at every test image with two labels, an evaluation with all of them.
    passes = 1 + (2 / images.classes if pictures else 0)
    fixed = an_image * len(images.test_y) * passes + (PICTURES_SECONDS if pictures else 0)
    return budget.Pace(fixed, of_unit * seconds / updates + records * an_image * held_out)


def _updates(recipe: Recipe, images: data.Dataset) -> int:
    """Updates of a whole run."""
    trainer = recipe.trainer(
        recipe.network(images.inputs, images.classes, recipe.strength(images), images.shape), images
    )
    trainer.run(images.train_x, images.train_y)  # only begun: it counts them
    return trainer.total_updates


# ------------------------------------------------------------ what is said


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        print(text, file=sys.stderr)


def _announce(
    task: _Task, wanted: Recipe, images: data.Dataset, seconds: float, saved: checkpoint.Saved | None
) -> None:
    """What a run is about to do, on standard error."""
    ways = ["error", "error_but_first"] if wanted.label != "none" else []
    ways += ["error_softmax"] if wanted.head_layers is not None else []
    lines = {
        "source": wanted.source,
        "published": errors(task.base.figures) or "nothing",
        "measured": f"error on the {len(images.test_y):,} test images, once, at the last epoch ({wanted.epochs}), by "
        + ", ".join(ANSWERS[way] for way in ways),
    }
    if changed := _told(changes(wanted, task.base)):
        lines["changed"] = changed
    if saved is not None:
        done = saved.trainer["updates"] / max(_updates(wanted, images), 1)
        seconds *= 1 - done
        lines["goes on"] = f"after {100 * done:.1f} % of the updates"
    lines["time"] = f"about {clock(seconds)}, by a few updates with threads: {torch.get_num_threads()}"
    print(f"{task.name}, seed {wanted.seed}" + (f": {task.question}" if task.question else ""), file=sys.stderr)
    for name, text in lines.items():
        print(f"  {name:11}{text}", file=sys.stderr)


def _told(changed: dict[str, tuple[str, str]]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {new} instead of {old}" for name, (new, old) in changed.items())


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _means(results: Iterable[dict[str, Any]]) -> dict[str, list[float]]:
    """Test errors of every way of answering, a value for each seed."""
    tests = [result["test"] or {} for result in results]
    return {name: [test[name] for test in tests] for name in ANSWERS if all(name in test for test in tests)}


def _changed(task: _Task, results: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    return changes(Recipe.from_dict(results[0]["recipe"]), task.base)


def _show(task: _Task, results: list[dict[str, Any]]) -> None:
    """Measured beside published."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{task.name}: {task.base.source}")
    if changed := _told(_changed(task, results)):
        console.print(f"changed: {changed}")
    seeds = [f"seed {result['recipe']['seed']}" for result in results]
    table = Table("test error by", box=None)
    for column in ("published", "measured", *(seeds if len(seeds) > 1 else []), "difference"):
        table.add_column(column, justify="right")
    found, figures = _means(results), task.base.figures
    for name, values in found.items():
        mean, known = fmean(values), figures.get(name)
        each = [_percent(value) for value in values] if len(values) > 1 else []
        compared = ["-", ""] if known is None else [_percent(known), f"{100 * (mean - known):+.2f}"]
        table.add_row(ANSWERS[name], compared[0], _percent(mean), *each, compared[1])
    console.print(table if found else "there are no test images")
    times = ", ".join(clock(result["seconds"]) for result in results)
    stopped = "" if all(result["finished"] for result in results) else "; stopped early, by the held-out images"
    console.print(f"training {times}{stopped}")


def _show_answers(tasks: list[_Task], done: dict[str, list[dict[str, Any]]]) -> None:
    """What was changed of all questions, or of which, and the table."""
    console = Console(highlight=False, soft_wrap=True)
    told: dict[str, list[str]] = {}
    for task in tasks:
        told.setdefault(_told(_changed(task, done[task.name])), []).append(task.name)
    for changed, names in told.items():
        if changed:
            console.print(f"changed: {changed}" + (f" ({', '.join(names)})" if len(told) > 1 else ""))
    console.print(_answers(tasks, done))


def _answers(tasks: list[_Task], done: dict[str, list[dict[str, Any]]]) -> Table:
    """The questions, with errors as mean (least - largest) over the seeds."""
    table = Table("question", "path", *ANSWERS.values(), box=None)
    for task in tasks:
        results = done[task.name]
        found = _means(results)
        row = [_range(found[name]) if name in found else "-" for name in ANSWERS]
        table.add_row(task.question, str(results[0].get("path", "-")), *row)
    return table


def _range(values: list[float]) -> str:
    spread = f" ({100 * min(values):.2f} - {100 * max(values):.2f})" if len(values) > 1 else ""
    return _percent(fmean(values)) + spread


def _plain(task: _Task, results: list[dict[str, Any]]) -> dict[str, Any]:
    """The same for programs."""
    return {
        "name": task.name,
        "question": task.question,
        "source": task.base.source,
        "changed": _changed(task, results),
        "published": task.base.figures,
        "measured": {name: fmean(values) for name, values in _means(results).items()},
        "runs": [{name: value for name, value in result.items() if name != "epochs"} for result in results],
    }


def _listed(out: Path, folder: str | None) -> Table:
    """The recipes with published figures."""
    table = Table("name", "what", "data here", "run", box=None)
    for name in published():
        recipe = RECIPES[name]
        places = [*sorted(out.glob(f"{name}/seed-*")), *sorted(out.glob(f"{name}+*/seed-*"))]
        layers = ",".join(map(str, recipe.layers))
        size = f"{recipe.dataset}, {_counted(recipe.epochs, 'epoch')}, layers {layers}"
        what = f"{errors(recipe.figures)}\n{size}\n{recipe.source}"
        standing = "\n".join(
            f"{place.parent.name.removeprefix(name)} {place.name} {standing_of(place)}".strip() for place in places
        )
        table.add_row(name, what, here(recipe.dataset, folder), standing or "not begun")
    return table


def standing_of(place: Path) -> str:
    """How far the run in a folder has come."""
    if (place / runs.RESULT).is_file():
        return "done"
    if not (place / runs.TABLE).is_file():
        return "not begun"
    try:
        settings = _settings_in(place)
    except ValueError:
        return "damaged"
    if settings is None or settings["schedule"] != "simultaneous":
        return "begun"
    records = len((place / runs.TABLE).read_text().splitlines()) - 1
    return f"{records} of {_counted(settings['epochs'], 'epoch')}"
