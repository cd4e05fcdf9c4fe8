"""``ffkern train``: a recipe, what the command line changes of it, and a folder that keeps the run."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.table import Table

from .. import checkpoint, data, optim
from .._eager import Agreement, EagerNet, compare_losses
from .._files import write_whole
from ..recipes import RECIPES, Recipe
from ..trainer import Callback, EpochRecord, History, Trainer
from . import runs
from ._say import complain, errors
from ._settings import add_settings, given, options

__all__ = ["train"]

REQUIRED_ACCURACY = 95.0  # per cent, of a run with --compare-eager
COMPARED_STEPS = 50


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
    csv: Annotated[bool, typer.Option("--csv", help=f"Write every epoch's figures to {runs.TABLE} there.")] = False,
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
    changed = given(settings)
    _check_places(out, resume, (["recipe"] if recipe else []) + list(changed), json_path, csv or tensorboard)
    saved = checkpoint.load(resume) if resume is not None else None
    chosen: Recipe = saved.recipe if saved is not None else RECIPES[recipe or "digits"].override(**changed)
    _check_comparison(chosen, compare_eager, out or resume)
    if require_accuracy is None and compare_eager:
        require_accuracy = REQUIRED_ACCURACY
    runs.use_threads(threads, saved)

    images = chosen.load()
    folder = saved.path.parent if saved is not None else out
    comparison = _Comparison(images, chosen) if compare_eager else None
    done = runs.keep(
        chosen,
        images,
        folder,
        saved,
        command=_command(chosen),
        again=f"`ffkern train --resume {folder}` goes on",
        save_every=save_every,
        csv=csv,
        tensorboard=tensorboard,
        quiet=quiet,
        callbacks=[comparison] if comparison is not None else [],
    )
    result = done.result | {"eager": None if comparison is None else comparison.as_dict()}
    if json_path == "-":
        print(json.dumps(result, indent=2))
    else:
        _show(result, chosen, History(done.trainer.history), comparison, quiet)
    if done.unsaved is not None:
        raise typer.Exit(complain(f"the end of the run was not saved: {done.unsaved}", 2))
    if json_path not in (None, "-"):
        write_whole(Path(json_path), json.dumps(result, indent=2) + "\n")
    code = runs.diverged(result)
    if require_accuracy is not None:
        accuracy = 100 * (result["test_accuracy"] or 0.0)
        if not accuracy >= require_accuracy:
            code = complain(f"test accuracy is {accuracy:.2f} %; expected at least {require_accuracy:g} %", 1)
    if comparison is not None and not comparison.agreement.holds:
        code = complain(f"the losses of the first {COMPARED_STEPS} steps leave the bound", 1)
    raise typer.Exit(code)


add_settings(train)


def _command(chosen: Recipe) -> str:
    """The command that gives this run, whatever it was begun or gone on with."""
    base = RECIPES.get(chosen.name)
    recipe = ["--recipe", chosen.name] if base is not None else []
    return " ".join(["ffkern train", *recipe, *options(chosen, base or RECIPES["digits"]), f"--seed {chosen.seed}"])


def _check_places(out: Path | None, resume: Path | None, given: list[str], json_path: str | None, logs: bool) -> None:
    runs.check_json(json_path)
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
    plain = chosen.schedule == "simultaneous" and chosen.negatives in ("uniform", "all") and chosen.optimiser == "adam"
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


# ------------------------------------------------------------ eager PyTorch beside it


class _Comparison(Callback):
    """The same training in eager PyTorch: the first losses of both, and the time of every epoch.

    In turn with the run, epoch by epoch, so that both meet the same machine.
    """

    def __init__(self, images: data.Dataset, chosen: Recipe) -> None:
        self.images, self.chosen, self.seconds = images, chosen, list[float]()

    def on_start(self, trainer: Trainer) -> None:
        chosen = self.chosen
        self.agreement: Agreement = compare_losses(
            trainer.net,
            self.images.train_x,
            self.images.train_y,
            lr=chosen.lr,
            negatives=chosen.negatives,
            batch_size=chosen.batch_size,
            seed=chosen.seed,
            steps=COMPARED_STEPS,
        )
        self.eager = EagerNet(trainer.net, chosen.lr, chosen.negatives, chosen.head_lr if trainer.net.head else None)
        self._epochs = self._train(trainer, chosen.decay == "linear")

    def on_epoch(self, trainer: Trainer, record: EpochRecord) -> None:
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
            _figure(layer.goodness_pos, "{:.3f}"),
            _figure(layer.goodness_neg, "{:.3f}"),
            _figure(100 * layer.separation, "{:.1f} %"),
            _figure(100 * layer.kept_pos, "{:.1f} %"),
            _figure(100 * layer.kept_neg, "{:.1f} %"),
            str(epoch),
        )
    return table


def _figure(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)  # of rows that took no part
