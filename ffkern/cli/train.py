"""``ffkern train``: a recipe, what the command line changes of it, and a folder that keeps the run."""

from __future__ import annotations

import inspect
import json
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
import typer
from rich.console import Console
from rich.table import Table

from .. import checkpoint, data, optim
from .._eager import Agreement, EagerNet, compare_losses
from .._files import write_whole
from .._version import __version__
from ..callbacks import Claim, CSVLog, EarlyStop, Interruptible, Progress, TensorBoard
from ..recipes import RECIPES, Recipe
from ..trainer import Callback, History, Trainer
from ._say import complain, errors

__all__ = ["train"]

REQUIRED_ACCURACY = 95.0  # per cent, of a run with --compare-eager
COMPARED_STEPS = 50
INTERRUPTED = 130  # exit code of a run that Ctrl-C stopped, as shells know it
RESULT, TABLE, BOARD = "result.json", "metrics.csv", "tensorboard"  # in the folder of a run


def train(
    recipe: Annotated[
        Literal[tuple(RECIPES)] | None,  # type: ignore[valid-type]
        typer.Option(help="Where the settings come from. [default: digits]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to keep the run in: checkpoint, result, logs. Made if missing.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Folder of a run to go on with, with its own settings.", metavar="FOLDER")
    ] = None,
    save_every: Annotated[float, typer.Option(min=0, help="Seconds between checkpoints.")] = 30.0,
    csv: Annotated[bool, typer.Option("--csv", help=f"Write every epoch's figures to {TABLE} in the folder.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log them for TensorBoard in the folder.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads.")] = None,
    compare_eager: Annotated[
        bool,
        typer.Option(
            "--compare-eager",
            help="Train the same network in eager PyTorch too; compare times and first losses.",
        ),
    ] = False,
    require_accuracy: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=100,
            help="Exit with 1 below this test accuracy in %. [default: 95 with --compare-eager]",
        ),
    ] = None,
    json_path: Annotated[
        str | None,
        typer.Option("--json", metavar="PATH", help="Write the results as JSON; '-': print them."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no tables.")] = False,
    **settings: Any,
) -> None:
    """Train a network and print its test error.

    A recipe gives the settings; every one of them has an option that overrides it. With --out the run is saved as it
    goes: Ctrl-C, a crash or a lost machine lose nothing but the last seconds, and --resume ends with the same bits.
    """
    changed = {name: _parsed(name, value) for name, value in settings.items() if value is not None}
    given = (["recipe"] if recipe is not None else []) + list(changed)
    _check_places(out, resume, given, json_path, csv or tensorboard)
    saved = checkpoint.load(resume) if resume is not None else None
    chosen: Recipe = saved.recipe if saved is not None else RECIPES[recipe or "digits"].override(**changed)
    _check_comparison(chosen, compare_eager, out or resume)
    if require_accuracy is None and compare_eager:
        require_accuracy = REQUIRED_ACCURACY
    _use_threads(threads, saved)

    images = chosen.load()
    net = chosen.network(images.inputs, images.classes, chosen.strength(images), images.shape)
    interruptible = Interruptible()
    folder = saved.path.parent if saved is not None else out
    if chosen.patience and images.valid_x is None:
        raise typer.BadParameter(
            f"{chosen.patience}; expected held-out images to watch (--held-out)", param_hint="--patience"
        )
    callbacks: list[Callback] = [EarlyStop(chosen.patience)] if chosen.patience else []
    callbacks += [] if quiet else [Progress()]
    if folder is not None:
        callbacks.insert(0, Claim(folder))
        callbacks += [CSVLog(folder / TABLE)] if csv or (folder / TABLE).exists() else []
        callbacks += [TensorBoard(folder / BOARD)] if tensorboard or (folder / BOARD).exists() else []
        callbacks += [interruptible, checkpoint.Checkpointer(folder / checkpoint.NAME, chosen, images, save_every)]
    trainer = chosen.trainer(net, images, callbacks)
    if saved is not None:
        trainer.load_state_dict(saved.trainer)

    comparison = _Comparison(trainer, images, chosen) if compare_eager else None
    validation = None if images.valid_x is None or images.valid_y is None else (images.valid_x, images.valid_y)
    records = trainer.run(images.train_x, images.train_y, validation)
    if folder is not None:  # only now: a mistake leaves no folder behind
        folder.mkdir(parents=True, exist_ok=True)
    # In turn, epoch by epoch, so that both meet the same machine.
    unsaved = None
    try:
        for _ in records:
            if comparison is not None:
                comparison.train_epoch()
    except OSError as error:
        if not trainer.finished:
            raise
        unsaved = error  # what was learnt is still to be tested and shown
    if interruptible.interrupted and not trainer.finished:
        share = 100 * trainer.updates / trainer.total_updates
        raise typer.Exit(
            complain(
                f"stopped after {share:.1f} % of the updates; saved. `ffkern train --resume {folder}` goes on",
                INTERRUPTED,
            )
        )

    result = _result(trainer, images, chosen, comparison)
    if json_path == "-":
        print(json.dumps(result, indent=2))
    else:
        _show(result, chosen, History(trainer.history), comparison, quiet)
    if unsaved is not None:
        raise typer.Exit(complain(f"the end of the run was not saved: {unsaved}", 2))
    if folder is not None:
        write_whole(folder / RESULT, json.dumps(result, indent=2) + "\n")
    if json_path not in (None, "-"):
        write_whole(Path(json_path), json.dumps(result, indent=2) + "\n")
    code = 0
    if any(layer and not math.isfinite(layer.loss) for record in trainer.history for layer in record.layers):
        code = complain("a loss is not finite: the training diverged; a lower --lr may help", 1)
    if require_accuracy is not None:
        accuracy = 100 * (result["test_accuracy"] or 0.0)
        if not accuracy >= require_accuracy:
            code = complain(f"test accuracy is {accuracy:.2f} %; expected at least {require_accuracy:g} %", 1)
    if comparison is not None and not comparison.agreement.holds:
        code = complain(f"the losses of the first {COMPARED_STEPS} steps leave the bound", 1)
    raise typer.Exit(code)


# ------------------------------------------------------------ options made of the recipe's settings


def _option(name: str, kind: Any, text: str) -> inspect.Parameter:
    """A keyword option that is None unless given: then the recipe's value stays."""
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    plain = [part for part in parts if part is not NoneType]
    # Numbers that may be words, and lists of numbers, are read by _parsed.
    shown: Any = plain[0] if len(plain) == 1 and get_origin(plain[0]) is not tuple else str
    option = Annotated[shown | None, typer.Option("--" + name.replace("_", "-"), help=text, rich_help_panel="Recipe")]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)


def _add_settings() -> None:
    """Gives :func:`train` an option for every setting of a recipe, where Typer looks for them."""
    kinds = get_type_hints(Recipe)
    options = [_option(f.name, kinds[f.name], f.metadata["help"]) for f in Recipe.settings()]
    signature = inspect.signature(train, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    train.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    train.__annotations__ = {p.name: p.annotation for p in (*own, *options)}


_add_settings()


def _parsed(name: str, value: Any) -> Any:
    """The value of a setting from what the command line holds."""
    hint = "--" + name.replace("_", "-")
    if name == "layers":
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise typer.BadParameter(f"{value!r}; expected numbers of units such as 500,500", param_hint=hint)
        return tuple(map(int, parts))
    if name == "folder" or (name == "dataset" and value.endswith(".npz")):
        return str(Path(value).absolute())  # a run is to be found again from another folder
    words = {"threshold": "width", "label_value": "max"}
    if name in words and value != words[name]:
        try:
            return float(value)
        except ValueError:
            raise typer.BadParameter(f"{value!r}; expected a number or {words[name]!r}", param_hint=hint) from None
    return value


def _check_places(out: Path | None, resume: Path | None, given: list[str], json_path: str | None, logs: bool) -> None:
    if json_path not in (None, "-") and (Path(json_path).is_dir() or not Path(json_path).absolute().parent.is_dir()):
        raise typer.BadParameter(f"{json_path!r}; expected '-' or a file in a folder that exists", param_hint="--json")
    if resume is not None:
        if out is not None:
            raise typer.BadParameter(
                f"'{out}'; expected none with --resume, which goes on in its folder", param_hint="--out"
            )
        if given:
            names = ", ".join("--" + name.replace("_", "-") for name in given)
            raise typer.BadParameter(f"goes on with the run's own settings; expected no {names}", param_hint="--resume")
    if out is not None and (out / checkpoint.NAME).exists():
        raise typer.BadParameter(
            f"'{out}' holds a run; `ffkern train --resume {out}` goes on with it, or name another folder",
            param_hint="--out",
        )
    if out is not None and out.exists() and not out.is_dir():
        raise typer.BadParameter(f"'{out}' is a file; expected a folder", param_hint="--out")
    if logs and out is None and resume is None:
        raise typer.BadParameter(
            "there is no folder to write to; expected --out FOLDER", param_hint="--csv/--tensorboard"
        )


def _check_comparison(chosen: Recipe, compare_eager: bool, folder: Path | None) -> None:
    if not compare_eager:
        return
    if chosen.precision != "float32":
        raise typer.BadParameter(
            f"the comparison is one of float32; expected --precision float32, not {chosen.precision}",
            param_hint="--compare-eager",
        )
    if chosen.plain or chosen.phase:
        raise typer.BadParameter(
            f"eager PyTorch has the kernels' settings alone, and no phases; expected --phase 0 and --path fused, "
            f"not {chosen.phase} and {chosen.path_taken}",
            param_hint="--compare-eager",
        )
    plain = chosen.schedule == "simultaneous" and chosen.negatives != "hard" and chosen.optimiser == "adam"
    if not plain or chosen.shift or chosen.weight_decay or chosen.head_weight_decay or chosen.peer:
        raise typer.BadParameter(
            "compares runs that see the same negatives with every layer on every batch; expected "
            "--negatives uniform or all, --schedule simultaneous, --optimiser adam, no shift, peers or weight decay",
            param_hint="--compare-eager",
        )
    if folder is not None:
        raise typer.BadParameter(
            "a comparison is not saved; expected no --out, no --resume", param_hint="--compare-eager"
        )


def _use_threads(threads: int | None, saved: checkpoint.Saved | None) -> None:
    if saved is not None and threads is not None and threads != saved.threads:
        complain(f"--threads {threads}, but the run began with {saved.threads}: its last bits will differ", 0)
    wanted = threads if threads is not None else saved.threads if saved is not None else None
    if wanted is not None:
        torch.set_num_threads(wanted)


# ------------------------------------------------------------ eager PyTorch beside it


class _Comparison:
    """The same training in eager PyTorch: the first losses of both, and the time of every epoch."""

    def __init__(self, trainer: Trainer, images: data.Dataset, chosen: Recipe) -> None:
        self.images, self.seconds = images, list[float]()
        self.agreement: Agreement = compare_losses(
            trainer.net,
            images.train_x,
            images.train_y,
            lr=chosen.lr,
            negatives=chosen.negatives,
            batch_size=chosen.batch_size,
            seed=chosen.seed,
            steps=COMPARED_STEPS,
        )
        self.eager = EagerNet(trainer.net, chosen.lr, chosen.negatives, chosen.head_lr if trainer.net.head else None)
        self._epochs = self._train(trainer, chosen.decay == "linear")

    def train_epoch(self) -> None:
        self.seconds.append(next(self._epochs))

    def _train(self, trainer: Trainer, decay: bool) -> Iterator[float]:
        generator = torch.Generator().manual_seed(trainer.seed)
        scheduler = optim.linear_decay(self.eager.opt, trainer.epochs) if decay else None
        while True:
            start = time.perf_counter()
            self.eager.train_epoch(self.images.train_x, self.images.train_y, trainer.batch_size, generator).tolist()
            if scheduler is not None:
                scheduler.step()
            yield time.perf_counter() - start

    def as_dict(self) -> dict[str, Any]:
        found = self.agreement
        return {
            "test_accuracy": 1 - self.eager.error(self.images.test_x, self.images.test_y),
            "seconds": sum(self.seconds),
            "median_epoch_seconds": median(self.seconds) if self.seconds else None,
            "compared_steps": found.ffkern.shape[0],
            "deviation_ffkern": float(found.ffkern.max()),
            "deviation_eager": float(found.eager.max()),
            "largest_share_of_bound": float((found.ffkern / found.bound).max()),
            "within_bound": found.holds,
        }


# ------------------------------------------------------------ results


def _result(trainer: Trainer, images: data.Dataset, chosen: Recipe, comparison: _Comparison | None) -> dict[str, Any]:
    history = History(trainer.history)
    tested = trainer.evaluate(images.test_x, images.test_y) if len(images.test_y) else None
    return {
        "recipe": chosen.as_dict(),
        "path": chosen.path_taken,
        "ffkern": __version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "train_images": len(images.train_y),
        "held_out_images": 0 if images.valid_y is None else len(images.valid_y),
        "test_images": len(images.test_y),
        "finished": trainer.finished,
        "test": tested,
        "test_accuracy": None if tested is None else 1 - next(iter(tested.values())),  # by goodness, where labels have one
        "seconds": history.seconds,
        "median_epoch_seconds": median(r.seconds for r in history.epochs) if history.epochs else None,
        "eager": None if comparison is None else comparison.as_dict(),
        "epochs": history.as_dicts(),
    }


def _show(
    result: dict[str, Any], chosen: Recipe, history: History, comparison: _Comparison | None, quiet: bool
) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if not quiet:
        console.print(
            f"{chosen.dataset}: {result['train_images']} training and {result['test_images']} "
            f"test images; layers of {', '.join(map(str, chosen.layers))} units"
        )
        console.print(f"path           {result['path']}")
        console.print(_table(history))
    if not result["finished"]:
        console.print("stopped early, by the held-out images")
    tested = result["test"]
    console.print(f"test error     {errors(tested)}" if tested is not None else "there are no test images")
    if chosen.published:
        own = RECIPES.get(chosen.name)
        same = own is not None and own.override(seed=chosen.seed, folder=chosen.folder) == chosen
        other = "" if same else ", with other settings than here"
        console.print(f"published      {errors(chosen.figures)}{other} ({chosen.source})")
    threads = torch.get_num_threads()
    line = f"training time  ffkern {result['seconds']:.2f} s ({chosen.epochs} epochs, {threads} threads)"
    eager = result["eager"]
    if eager is None or comparison is None:
        console.print(line)
        return
    console.print(f"{line}, eager PyTorch {eager['seconds']:.2f} s")
    ours, theirs = result["median_epoch_seconds"], eager["median_epoch_seconds"]
    if ours:  # medians: a disturbance of the machine in some epochs does not count
        console.print(f"median epoch   ffkern {1e3 * ours:.1f} ms, eager {1e3 * theirs:.1f} ms: {theirs / ours:.2f}x")
    console.print(f"eager's test error  {100 * (1 - eager['test_accuracy']):.2f} %")
    verdict = "within" if eager["within_bound"] else "OUTSIDE"
    console.print(
        f"first {eager['compared_steps']} steps  largest deviation of a layer's loss from float64: "
        f"ffkern {eager['deviation_ffkern']:.1e}, eager {eager['deviation_eager']:.1e}; {verdict} "
        f"the bound of 2 x eager's + 2^-23 (at most {eager['largest_share_of_bound']:.2f} of it)"
    )


def _table(history: History) -> Table:
    """The last epoch of every layer."""
    table = Table("layer", "loss", "goodness of positives", "of negatives", "separation", "kept +", "kept -", "epochs")
    last = {}
    for record in history.epochs:
        for i, layer in enumerate(record.layers):
            if layer is not None:
                last[i] = (layer, record.epoch)
    for i, (layer, epoch) in sorted(last.items()):
        table.add_row(
            str(i),
            f"{layer.loss:.4f}",
            f"{layer.goodness_pos:.3f}",
            f"{layer.goodness_neg:.3f}",
            f"{100 * layer.separation:.1f} %",
            f"{100 * layer.kept_pos:.1f} %",
            f"{100 * layer.kept_neg:.1f} %",
            str(epoch),
        )
    return table
