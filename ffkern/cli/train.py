"""``ffkern train``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from .. import data, optim
from .._eager import Agreement, EagerNet, compare_losses
from ..nn import FFNet
from ..trainer import History, Trainer
from ._say import complain

REQUIRED_ACCURACY = 95.0  # per cent, of a run with --compare-eager
COMPARED_STEPS = 50
HEAD_LR = 0.01


def train(
    dataset: Annotated[Literal["digits"], typer.Option(help="What to learn.")] = "digits",
    layers: Annotated[
        list[str] | None, typer.Option(help="Units of the layers: 500,500, or the option repeated.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 40,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 50,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = 0.003,
    decay: Annotated[bool, typer.Option(help="Let the rate fall linearly over the second half of the epochs.")] = True,
    negatives: Annotated[
        Literal["uniform", "hard", "all"], typer.Option(help="Wrong labels to learn from.")
    ] = "uniform",
    schedule: Annotated[
        Literal["simultaneous", "greedy"],
        typer.Option(help="All layers on every batch, or one by one."),
    ] = "simultaneous",
    norm: Annotated[
        Literal["rms", "l2", "none"], typer.Option(help="Length that a layer divides its input by.")
    ] = "rms",
    goodness: Annotated[
        Literal["mean_sq", "sum_sq", "neg_mean_sq", "neg_sum_sq", "sum_abs"],
        typer.Option(help="Goodness of a layer's activities."),
    ] = "mean_sq",
    threshold: Annotated[str, typer.Option(help="Goodness to separate at: a number, or 'width'.")] = "2",
    head: Annotated[
        bool | None,
        typer.Option("--head/--no-head", help="Softmax head; by default only for hard negatives."),
    ] = None,
    standardise: Annotated[
        bool, typer.Option(help="Subtract the mean image, divide by the standard deviation.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of the weights, the order and the negatives.")] = 0,
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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, no tables.")] = False,
) -> None:
    """Train a network and print its test accuracy.

    The defaults were chosen by cross-validation inside the training images.
    """
    with_head = negatives == "hard" if head is None else head
    if compare_eager and (negatives == "hard" or schedule == "greedy"):
        raise typer.BadParameter(
            "compares runs that see the same negatives with every layer on every batch; expected "
            "--negatives uniform or all, and --schedule simultaneous",
            param_hint="--compare-eager",
        )
    if json_path not in (None, "-") and (Path(json_path).is_dir() or not Path(json_path).absolute().parent.is_dir()):
        raise typer.BadParameter(f"{json_path!r}; expected '-' or a file in a folder that exists", param_hint="--json")
    sizes, limit = _sizes(layers or ["500,500"]), _threshold(threshold)
    if threads is not None:
        torch.set_num_threads(threads)
    if require_accuracy is None and compare_eager:
        require_accuracy = REQUIRED_ACCURACY

    images = data.digits()
    if standardise:
        images = images.standardised()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = FFNet(
            [images.inputs, *sizes],
            images.classes,
            label="concat",
            head_layers="all" if with_head else None,
            norm=norm,
            goodness=goodness,
            threshold=limit,
        )
    opt = optim.Adam(net.layers.parameters(), lr=lr)
    head_opt = optim.Adam(net.head.parameters(), lr=HEAD_LR) if net.head is not None else None
    trainer = Trainer(
        net,
        opt,
        schedule=schedule,
        negatives=negatives,
        batch_size=batch_size,
        epochs=epochs,
        seed=seed,
        head_opt=head_opt,
        scheduler=_decay([opt], epochs) if decay else None,
        progress=not quiet,
    )
    agreement = eager = None
    if compare_eager:
        agreement = compare_losses(
            net,
            images.train_x,
            images.train_y,
            lr=lr,
            negatives=negatives,
            batch_size=batch_size,
            seed=seed,
            steps=COMPARED_STEPS,
        )
        eager = EagerNet(net, lr, negatives, HEAD_LR if with_head else None)
    eager_seconds = []
    records = []
    eager_epochs = _eager_epochs(eager, images, trainer, decay) if eager is not None else None
    # In turn, epoch by epoch, so that both meet the same machine.
    for record in trainer.run(images.train_x, images.train_y):
        records.append(record)
        if eager_epochs is not None:
            eager_seconds.append(next(eager_epochs))
    history = History(records)
    tested = trainer.evaluate(images.test_x, images.test_y)

    accuracy = 100 * (1 - tested["error"])
    result: dict[str, Any] = {
        "dataset": images.name,
        "train_images": len(images.train_y),
        "test_images": len(images.test_y),
        "settings": {
            "layers": sizes,
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": lr,
            "decay": decay,
            "negatives": negatives,
            "schedule": schedule,
            "norm": norm,
            "goodness": goodness,
            "threshold": limit,
            "head": with_head,
            "standardise": standardise,
            "seed": seed,
            "threads": torch.get_num_threads(),
        },
        "test": tested,
        "test_accuracy": accuracy / 100,
        "seconds": history.seconds,
        "median_epoch_seconds": median(r.seconds for r in records) if records else None,
        "eager": None,
        "epochs": history.as_dicts(),
    }
    if eager is not None and agreement is not None:
        result["eager"] = {
            "test_accuracy": 1 - eager.error(images.test_x, images.test_y),
            "seconds": sum(eager_seconds),
            "median_epoch_seconds": median(eager_seconds) if eager_seconds else None,
            "compared_steps": agreement.ffkern.shape[0],
            "deviation_ffkern": float(agreement.ffkern.max()),
            "deviation_eager": float(agreement.eager.max()),
            "largest_share_of_bound": float((agreement.ffkern / agreement.bound).max()),
            "within_bound": agreement.holds,
        }
    _write_json(result, json_path)
    if json_path != "-":
        _show(result, history, agreement, quiet)
    code = 0
    if require_accuracy is not None and not accuracy >= require_accuracy:
        code = complain(f"test accuracy is {accuracy:.2f} %; expected at least {require_accuracy:g} %", 1)
    if agreement is not None and not agreement.holds:
        code = complain(f"the losses of the first {COMPARED_STEPS} steps leave the bound", 1)
    raise typer.Exit(code)


def _sizes(given: list[str]) -> list[int]:
    """[500, 500] from "500,500" or "500" "500"."""
    parts = [part.strip() for text in given for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(
            f"{','.join(given)!r}; expected numbers of units such as 500,500", param_hint="--layers"
        )
    return [int(part) for part in parts]


def _threshold(given: str) -> float | str:
    if given == "width":
        return given
    try:
        return float(given)
    except ValueError:
        raise typer.BadParameter(f"{given!r}; expected a number or 'width'", param_hint="--threshold") from None


def _decay(opts: list[torch.optim.Optimizer], epochs: int) -> list[LRScheduler]:
    """Constant for half of the epochs, then linearly down towards 5 %; every stage anew."""
    half = max(epochs, 1) / 2

    def factor(done: int) -> float:
        done %= max(epochs, 1)
        return 1.0 if done < half else 1 - 0.95 * (done - half) / half

    return [LambdaLR(opt, factor) for opt in opts]


def _eager_epochs(eager: EagerNet, images: data.Dataset, trainer: Trainer, decay: bool) -> Iterator[float]:
    """Trains epoch after epoch and gives the seconds of each."""
    generator = torch.Generator().manual_seed(trainer.seed)
    schedulers = _decay([eager.opt], trainer.epochs) if decay else []
    while True:
        start = time.perf_counter()
        eager.train_epoch(images.train_x, images.train_y, trainer.batch_size, generator).tolist()
        for scheduler in schedulers:
            scheduler.step()
        yield time.perf_counter() - start


def _write_json(result: dict[str, Any], path: str | None) -> None:
    if path is None:
        return
    text = json.dumps(result, indent=2)
    if path == "-":
        print(text)
    else:
        Path(path).write_text(text + "\n")


def _show(result: dict[str, Any], history: History, agreement: Agreement | None, quiet: bool) -> None:
    console = Console(highlight=False, soft_wrap=True)
    settings = result["settings"]
    if not quiet:
        console.print(
            f"{result['dataset']}: {result['train_images']} training and {result['test_images']} "
            f"test images; layers of {', '.join(map(str, settings['layers']))} units"
        )
        console.print(_table(history))
    tested = result["test"]
    answers = [f"{100 * (1 - tested['error']):.2f} % by goodness of all layers"]
    if len(settings["layers"]) > 1:
        answers.append(f"{100 * (1 - tested['error_but_first']):.2f} % of all but the first")
    if "error_softmax" in tested:
        answers.append(f"{100 * (1 - tested['error_softmax']):.2f} % by the softmax head")
    console.print(f"test accuracy  {', '.join(answers)}")
    line = (
        f"training time  ffkern {result['seconds']:.2f} s ({settings['epochs']} epochs, {settings['threads']} threads)"
    )
    eager = result["eager"]
    if eager is None or agreement is None:
        console.print(line)
        return
    console.print(f"{line}, eager PyTorch {eager['seconds']:.2f} s")
    ours, theirs = result["median_epoch_seconds"], eager["median_epoch_seconds"]
    if ours:  # medians: a disturbance of the machine in some epochs does not count
        console.print(f"median epoch   ffkern {1e3 * ours:.1f} ms, eager {1e3 * theirs:.1f} ms: {theirs / ours:.2f}x")
    console.print(f"eager's test accuracy  {100 * eager['test_accuracy']:.2f} %")
    verdict = "within" if eager["within_bound"] else "OUTSIDE"
    console.print(
        f"first {eager['compared_steps']} steps  largest deviation of a layer's loss from float64: "
        f"ffkern {eager['deviation_ffkern']:.1e}, eager {eager['deviation_eager']:.1e}; {verdict} "
        f"the bound of 2 x eager's + 2^-23 (at most {eager['largest_share_of_bound']:.2f} of it)"
    )


def _table(history: History) -> Table:
    """The last epoch of every layer."""
    table = Table("layer", "loss", "goodness of positives", "of negatives", "separation", "epochs")
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
            str(epoch),
        )
    return table
