"""The candidates of a case by name. ``group`` or ``group/form``: a group counts by its fastest."""

from __future__ import annotations

from collections.abc import Callable

from .cases import PredictCase, PredictData, StepCase, StepData
from .eager import BATCH, FORMS, EagerPredict, EagerStep
from .floor import FloorPredict, FloorStep
from .fused import FusedPredict, FusedStep

GROUPS = ("ffkern", "eager", "eager_fused_adam", "compile", "floor")

Learner = FusedStep | EagerStep
Judge = FusedPredict | EagerPredict


def step_learners(
    case: StepCase, data: StepData, *, compiled: bool = False, few: bool = False
) -> dict[str, Callable[[], Learner]]:
    """Constructors of everything that learns; ``few``: one compiled candidate instead of four."""
    make: dict[str, Callable[[], Learner]] = {"ffkern": lambda: FusedStep(case, data)}
    for form in FORMS:
        make[f"eager/{form}"] = lambda form=form: EagerStep(case, data, form)
        make[f"eager_fused_adam/{form}"] = lambda form=form: EagerStep(
            case, data, form, fused=True
        )
    if compiled:
        for form in FORMS[:1] if few else FORMS:
            make[f"compile/{form}, fused Adam"] = lambda form=form: EagerStep(
                case, data, form, fused=True, compiled="loss"
            )
        for form in () if few else FORMS:
            make[f"compile/{form}, all"] = lambda form=form: EagerStep(
                case, data, form, compiled="all"
            )
    return make


def step_floors(case: StepCase, data: StepData) -> dict[str, FloorStep]:
    forms = ("images",) if case.shared else FORMS
    return {f"floor/{form}": FloorStep(case, data, form) for form in forms}


def predict_judges(
    case: PredictCase, data: PredictData, *, compiled: bool = False
) -> dict[str, Callable[[], Judge]]:
    make: dict[str, Callable[[], Judge]] = {
        "ffkern": lambda: FusedPredict(case, data),
        "eager/all images": lambda: EagerPredict(case, data, None),
    }
    batch = min(BATCH, case.images)
    if batch < case.images:
        make[f"eager/{batch} images"] = lambda: EagerPredict(case, data, batch)
    if compiled:
        make[f"compile/{batch} images"] = lambda: EagerPredict(case, data, batch, compiled=True)
    return make


def predict_floors(case: PredictCase, data: PredictData) -> dict[str, FloorPredict]:
    return {f"floor/{chunk} images": FloorPredict(case, data, chunk) for chunk in (64, 256)}
