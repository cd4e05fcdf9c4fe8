"""Makes docs/results/ and the tables of docs/reproduction.md again: python docs/reproduction.py RUNS, a folder that
`ffkern reproduce` wrote. What RUNS does not hold stays as it was.
"""

from __future__ import annotations

import json
import sys
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

from ffkern import checkpoint, plot
from ffkern._files import write_whole
from ffkern.cli._say import clock
from ffkern.cli.reproduce import published
from ffkern.cli.runs import RESULT
from ffkern.plot import ANSWERS
from ffkern.recipes import RECIPES
from ffkern.recipes.questions import QUESTIONS
from ffkern.trainer import EpochRecord

DOCS = Path(__file__).parent
TO_REACH = {  # test errors in %
    "supervised": {"error_but_first": 1.40},
    "supervised-fast": {"error_but_first": 1.50},
    "hinton": {"error_but_first": 1.47, "error_softmax": 1.50},
    "supervised-jitter": {"error_but_first": 0.75},
    "unsupervised": {"error_softmax": 1.50},
    "fashion": {"error_but_first": 10.5},
    "article": {"error": 4.74},
}
COPIED = ("test", "seconds", "threads", "machine", "torch", "ffkern", "date", "command", "path")  # of result.json


# ------------------------------------------------------------ what the runs say


def read(place: Path) -> tuple[dict[str, Any], dict[str, Any], list[EpochRecord]] | None:
    """Settings, figures and history of one run; None for a folder without one."""
    if (place / RESULT).is_file():
        result = json.loads((place / RESULT).read_text())
        recipe, history = result["recipe"], [EpochRecord.from_dict(_numbers(fields)) for fields in result["epochs"]]
        run = {"seed": recipe["seed"], "done": True, **{name: result[name] for name in COPIED if name in result}}
    elif (place / checkpoint.NAME).is_file():
        saved = checkpoint.load(place)
        recipe, history = saved.recipe.as_dict(), saved.history
        one_stage = recipe["schedule"] == "simultaneous"
        standing = f"epoch {len(history)} of {recipe['epochs']}" if one_stage else "begun"
        seconds = sum(record.seconds for record in history)
        run = {
            "seed": recipe["seed"],
            "done": False,
            "standing": standing,
            "seconds": seconds,
            "threads": saved.threads,
        }
    else:
        return None
    run["held_out"] = history[-1].validation if history else None
    own = Path(recipe["dataset"]).name  # a file's path is that of one machine
    run["command"] = run.get("command", "").replace(recipe["dataset"], own)
    return recipe | {"folder": None, "dataset": own}, run, history


def _numbers(content: Any, key: str = "") -> Any:
    """Figures as they were: JSON has null for those that are no number."""
    if isinstance(content, dict):
        return {name: _numbers(value, name) for name, value in content.items()}
    if isinstance(content, list):
        return [_numbers(value) for value in content]
    return nan if content is None and key not in ("", "head", "validation") else content


def collect(runs: Path, results: Path) -> None:
    """Writes results/NAME.json and .png of every recipe that has runs, and results/questions.json."""
    results.mkdir(exist_ok=True)
    for folder in sorted(path for path in runs.iterdir() if path.is_dir() and path.name != "questions"):
        found = _seeds(folder)
        if not found:
            continue
        settings, _, history = found[0]
        del settings["seed"]
        _write(results / f"{folder.name}.json", {"settings": settings, "runs": [run for _, run, _ in found]})
        if history:
            plot.save(plot.curves(history), results / f"{folder.name}.png")
    asked = {folder.name: _seeds(folder) for folder in sorted(runs.glob("questions/*"))}
    answers = {name: [run for _, run, _ in found] for name, found in asked.items() if found}
    if answers:
        _write(results / "questions.json", answers)


def _seeds(folder: Path) -> list[tuple[dict[str, Any], dict[str, Any], list[EpochRecord]]]:
    found = []
    for place in folder.glob("seed-*"):
        try:
            found.append(read(place))
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
    runs = sorted((one for one in found if one is not None), key=lambda one: int(one[1]["seed"]))
    same = [one for one in runs if one[0] | {"seed": 0} == runs[0][0] | {"seed": 0}]
    for _, run, _ in (one for one in runs if one not in same):
        print(
            f"left out: seed {run['seed']} in {folder} has other settings than seed {same[0][1]['seed']}",
            file=sys.stderr,
        )
    return same


def _write(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(content, indent=1) + "\n")


# ------------------------------------------------------------ what the page shows


def table(found: dict[str, Any]) -> str:
    """Every recipe with a published figure, then the runs with other settings."""
    lines = [
        "| recipe | test error by | published | to reach | measured | seeds | time of a seed | threads | |",
        "|---|---|---:|---:|---|---|---:|---|---|",
    ]
    for name in [*published(), *sorted(found.keys() - set(published()))]:
        recipe, _, changed = name.partition("+")
        runs = found[name]["runs"] if name in found else []
        done, left = [run for run in runs if run["done"]], [run for run in runs if not run["done"]]
        known = found[name]["settings"]["published"] if name in found else RECIPES[recipe].published
        reach = {} if changed else TO_REACH.get(recipe, {})
        answers = [answer for answer in ANSWERS if answer in known]
        tests = [run["test"] or {} for run in done]
        cells = [
            f"`{recipe}`" + (f", {changed.replace('+', ', ').replace('=', ' ')}" if changed else ""),
            "<br>".join(ANSWERS[answer] for answer in answers),
            "<br>".join(f"{known[answer]:.2f} %" for answer in answers),
            "<br>".join(f"{reach[answer]:.2f} %" if answer in reach else "-" for answer in answers),
            "<br>".join(measured([test[answer] for test in tests if answer in test]) for answer in answers),
            ", ".join(str(run["seed"]) for run in done) or "-",
            clock(fmean(run["seconds"] for run in done)) if done else "-",
            ", ".join(sorted({str(run["threads"]) for run in done})) or "-",
            "; ".join(["done"] * bool(done) + [standing(run) for run in left]) or "not run yet",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def section(name: str, found: dict[str, Any] | None, pictured: bool) -> str:
    """Commands, machine, date and errors of one recipe's runs, and the curves if there is a picture of them."""
    if found is None:
        return f"Not run yet: `ffkern reproduce {name}`."
    lines = []
    for run in found["runs"]:
        if run["done"]:
            facts = (run["machine"], f"torch {run['torch']}", f"ffkern {run['ffkern']}", run["date"])
            lines.append(f"- `{run['command']}`: {clock(run['seconds'])}; {', '.join(facts)}")
            every = {ANSWERS[answer]: error for answer, error in (run["test"] or {}).items()}
            lines[-1] += "".join(f"; {100 * error:.2f} % by {answer}" for answer, error in every.items())
        else:
            lines.append(f"- {standing(run)}")
    picture = f"![training curves of seed {found['runs'][0]['seed']}](results/{name}.png)"
    return "\n".join([*lines, "", picture] if pictured else lines)


def questions(found: dict[str, list[dict[str, Any]]]) -> str:
    """Every question, with errors as mean (least - largest) over its seeds."""
    lines = ["| question | path | " + " | ".join(ANSWERS.values()) + " | seeds | |", "|---|---|---:|---:|---:|---|---|"]
    order = list(QUESTIONS)
    for name in sorted(
        found, key=lambda name: order.index(key) if (key := name.partition("+")[0]) in order else len(order)
    ):
        runs = found[name]
        key, _, changed = name.partition("+")
        words = QUESTIONS[key].words if key in QUESTIONS else key
        done = [run for run in runs if run["done"]]
        cells = [words + (f" ({changed})" if changed else ""), str(done[0].get("path") or "-") if done else "-"]
        for answer in ANSWERS:
            values = [100 * run["test"][answer] for run in done if answer in (run["test"] or {})]
            spread = f" ({min(values):.2f} - {max(values):.2f})" if len(values) > 1 else ""
            cells.append(f"{fmean(values):.2f} %{spread}" if values else "-")
        cells.append(", ".join(str(run["seed"]) for run in done) or "-")
        cells.append("; ".join(["done"] * bool(done) + [standing(run) for run in runs if not run["done"]]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) if found else "None is answered yet: `ffkern reproduce questions`."


def measured(errors: list[float]) -> str:
    """Mean and each seed."""
    if not errors:
        return "-"
    each = f" ({', '.join(f'{100 * error:.2f}' for error in errors)})" if len(errors) > 1 else ""
    return f"{100 * fmean(errors):.2f} %{each}"


def standing(run: dict[str, Any]) -> str:
    """Of a run that is not over: how far it is. Its error is known on held-out images alone."""
    held = "".join(f", {100 * e:.2f} % of held-out images by {ANSWERS[a]}" for a, e in (run["held_out"] or {}).items())
    return f"seed {run['seed']}: {run['standing']}, can be resumed{held}"


def filled(text: str, name: str, body: str) -> str:
    """The text with a new part between the marks of that name."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the page has no part {begin} ... {end}; expected one")
    head, rest = text.split(begin)
    return f"{head}{begin}\n{body}\n{end}{rest.split(end)[1]}"


def main(runs: Path, docs: Path = DOCS) -> None:
    """Collects what the runs say, then writes the page from all that docs/results holds."""
    if not runs.is_dir():
        raise FileNotFoundError(f"RUNS is {runs}; expected a folder that `ffkern reproduce` wrote")
    results, page = docs / "results", docs / "reproduction.md"
    collect(runs, results)
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    asked = found.pop("questions", {})
    text = filled(page.read_text(), "results", table(found))
    for name in published():
        text = filled(text, name, section(name, found.get(name), (results / f"{name}.png").is_file()))
    write_whole(page, filled(text, "questions", questions(asked)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
