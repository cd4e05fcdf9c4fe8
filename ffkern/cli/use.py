"""``ffkern eval`` and ``ffkern predict``: a saved network at work."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from torch import Tensor

from .. import checkpoint, data
from .._files import write_whole
from ..data.pictures import read_pictures
from ..nn import FFNet
from ..trainer import EVALUATED_ROWS, evaluate
from ._say import complain, errors

__all__ = ["evaluate_command", "predict"]

Run = Annotated[Path, typer.Argument(help="Folder of a run, or a checkpoint file.", metavar="RUN", show_default=False)]


def evaluate_command(
    run: Run,
    part: Annotated[Literal["test", "train", "held-out"], typer.Option(help="Which images.")] = "test",
    dataset: Annotated[
        str | None, typer.Option(help="Other data than the run's: a name, or an .npz file of arrays.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Error of a saved network, by every way of answering."""
    if threads is not None:
        torch.set_num_threads(threads)
    saved = checkpoint.load(run)
    images = saved.data() if dataset is None else data.load(dataset)
    x, y = {
        "test": (images.test_x, images.test_y),
        "train": (images.train_x, images.train_y),
        "held-out": (images.valid_x, images.valid_y),
    }[part]
    if x is None or y is None or not len(y):
        raise typer.BadParameter(f"{images.name} has no {part} images", param_hint="--part")
    if dataset is not None:
        if tuple(images.shape) != tuple(saved.shape):
            raise typer.BadParameter(f"has images of {images.shape}; expected {saved.shape}", param_hint="--dataset")
        if images.classes > saved.net.classes:
            raise typer.BadParameter(
                f"has {images.classes} classes; expected at most {saved.net.classes} classes", param_hint="--dataset"
            )
        x = saved.scaling.apply(x)
    found = evaluate(saved.net, x, y)
    if as_json:
        print(json.dumps({"dataset": images.name, "part": part, "images": len(y), **found}, indent=2))
    else:
        print(f"{images.name}, {len(y)} {part} images: {errors(found)}")


def predict(
    run: Run,
    files: Annotated[
        list[Path], typer.Argument(help="Images (PNG, JPEG, ...) and .npy arrays of images.", show_default=False)
    ],
    invert: Annotated[
        bool | None,
        typer.Option(
            "--invert/--no-invert",
            help="Swap light and dark; by default where a grey picture has a light border.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the labels to this .npy file as well.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Machine-readable, with the goodness of every label.")
    ] = False,
) -> None:
    """Label of pictures and arrays, by every way of answering."""
    saved = checkpoint.load(run)
    answers: list[dict[str, Any]] = []
    for path in files:
        rows, changes = read_pictures(path, saved.shape, invert)
        for change in changes:
            complain(f"{path}: {change}", 0)
        for i, answer in enumerate(_answers(saved.net, saved.scaling.apply(rows))):
            answers.append({"file": str(path) if len(rows) == 1 else f"{path}[{i}]", **answer})
    if out is not None:
        labels = torch.tensor([answer["label"] for answer in answers])
        write_whole(out, _npy(labels))
    if as_json:
        print(json.dumps(answers, indent=2))
        return
    for answer in answers:
        ways = [f"all but the first layer {answer['label_but_first']}"] if "label_but_first" in answer else []
        if "label_softmax" in answer:
            ways.append(f"softmax head {answer['label_softmax']} ({100 * answer['probability']:.1f} %)")
        print(f"{answer['file']}: {answer['label']}  (second choice {answer['second']}; {', '.join(ways)})")


def _answers(net: FFNet, rows: Tensor) -> list[dict[str, Any]]:
    result = []
    for x in rows.split(EVALUATED_ROWS):
        goodness = net.goodness(x)
        chance = net.logits(x).softmax(1) if net.head is not None else None
        but_first = None if net.label == "none" else net.votes(goodness, "all_but_first").argmax(1)
        scores = chance if chance is not None and but_first is None else net.votes(goodness)
        ranked = scores.argsort(dim=1, descending=True, stable=True)
        for i in range(len(x)):
            answer: dict[str, Any] = {"label": int(ranked[i, 0]), "second": int(ranked[i, min(1, net.classes - 1)])}
            if but_first is not None:  # else the head alone knows labels
                answer["label_but_first"] = int(but_first[i])
            answer["goodness"] = goodness[:, i].tolist()
            if chance is not None:
                answer |= {"label_softmax": int(chance[i].argmax()), "probability": float(chance[i].max())}
            result.append(answer)
    return result


def _npy(values: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values.numpy())
    return buffer.getvalue()
