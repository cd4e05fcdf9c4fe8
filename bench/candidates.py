"""The candidates of a case by name. ``group`` or ``group/form``: a group counts by its fastest."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ffkern.data import Dataset

from . import network
from .cases import NetworkCase, PredictCase, PredictData, StepCase, StepData
from .eager import BATCH, FORMS, EagerPredict, EagerStep
from .floor import FloorNetwork, FloorPredict, FloorStep
from .fused import FusedPredict, FusedStep
from .network import EagerNetwork, FusedNetwork

GROUPS = ("ffkern", "eager", "eager_fused_adam", "compile", "floor")

Learner = FusedStep | EagerStep
Judge = FusedPredict | EagerPredict


def step_learners(
    case: StepCase, data: StepData, *, compiled: bool = False, few: bool = False
) -> dict[str, Callable[[], Learner]]:
    """Constructors of everything that learns; ``few``: one compiled candidate instead of four."""
    make: dict[str, Callable[[], Learner]] = {"ffkern": partial(FusedStep, case, data)}
    for form in FORMS:
        eager = partial(EagerStep, case, data, form)
        make[f"eager/{form}"] = eager
        make[f"eager_fused_adam/{form}"] = partial(eager, fused=True)
        if compiled and not (few and form != FORMS[0]):
            make[f"compile/{form}, fused Adam"] = partial(eager, fused=True, compiled="loss")
        if compiled and not few:
            make[f"compile/{form}, all"] = partial(eager, compiled="all")
    return make


def step_floors(case: StepCase, data: StepData) -> dict[str, FloorStep]:
    forms = ("images",) if case.shared else FORMS
    return {f"floor/{form}": FloorStep(case, data, form) for form in forms}


def predict_judges(case: PredictCase, data: PredictData, *, compiled: bool = False) -> dict[str, Callable[[], Judge]]:
    make: dict[str, Callable[[], Judge]] = {
        "ffkern": partial(FusedPredict, case, data),
        "eager/all images": partial(EagerPredict, case, data, None),
    }
    batch = min(BATCH, case.images)
    if batch < case.images:
        make[f"eager/{batch} images"] = partial(EagerPredict, case, data, batch)
    if compiled:
        make[f"compile/{batch} images"] = partial(EagerPredict, case, data, batch, compiled=True)
    return make


def predict_floors(case: PredictCase, data: PredictData) -> dict[str, FloorPredict]:
    return {f"floor/{chunk} images": FloorPredict(case, data, chunk) for chunk in (64, 256)}


def network_learners(
    case: NetworkCase, data: Dataset, *, compiled: bool = False, few: bool = False
) -> dict[str, Callable[[], FusedNetwork | EagerNetwork]]:
    """As step_learners."""
    recipe = case.recipe
    make: dict[str, Callable[[], FusedNetwork | EagerNetwork]] = {"ffkern": partial(FusedNetwork, recipe, data)}
    for form in network.FORMS:
        eager = partial(EagerNetwork, recipe, data, form)
        make[f"eager/{form}"] = eager
        make[f"eager_fused_adam/{form}"] = partial(eager, fused=True)
        if compiled and not (few and form != network.FORMS[-1]):
            make[f"compile/{form}, fused optimiser"] = partial(eager, fused=True, compiled=True)
    return make


def network_floors(case: NetworkCase, data: Dataset) -> dict[str, FloorNetwork]:
    return {"floor": FloorNetwork(case, data)}
