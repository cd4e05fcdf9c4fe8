"""The tables of docs/kernels.md, and the sample that CI repeats."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from bench.report import put_between_markers
from mutation import survivors
from mutation.outcomes import UNREACHED, Outcome, score

__all__ = ["SAMPLE", "enough", "known", "reason", "sample", "section", "write"]

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "kernels.md"
SAMPLE = Path(__file__).with_name("sample.json")
MARKERS = "<!-- mutants:begin -->", "<!-- mutants:end -->"
COUNT = 50
GAP, OPEN = "a gap: no test executes the place", "open: tests execute the place, and nobody has said why none fails"
NOT_MODELLED = {"fence"}  # kinds that the software driver cannot notice, whatever the tests do


def _modelled(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.kind not in NOT_MODELLED]


def enough(outcomes: Sequence[Outcome], part: float) -> bool:
    """Whether this part of the mutants that can be noticed are caught."""
    modelled = _modelled(outcomes)
    return sum(outcome.caught for outcome in modelled) >= part * len(modelled)


def reason(outcome: Outcome) -> str:
    """Why a mutant survives."""
    why = survivors.reason(outcome.mutant)
    return why or (GAP if outcome.by == UNREACHED else OPEN)


def section(outcomes: Sequence[Outcome]) -> str:
    """Scores, and the survivors by reason, in Markdown."""
    modelled = _modelled(outcomes)
    caught = sum(outcome.caught for outcome in modelled)
    minutes = sum(outcome.seconds for outcome in outcomes) / 60
    lines = [
        score(outcomes),
        "",
        f"{caught} of {len(modelled)} mutants of kinds that the software driver models are caught"
        f" ({100 * caught / max(1, len(modelled)):.1f} %), in {minutes:.0f} minutes of one core. Of the survivors"
        f" {sum(outcome.by == UNREACHED for outcome in outcomes)} are at places that no test executes.",
        "",
        "| survivors | why |",
        "|---:|---|",
    ]
    reasons: dict[str, list[str]] = {}
    for outcome in outcomes:
        if not outcome.caught:
            reasons.setdefault(reason(outcome), []).append(outcome.mutant)
    ordered = sorted(reasons, key=lambda why: -len(reasons[why]))
    lines += [f"| {len(reasons[why])} | {why} |" for why in ordered]
    lines += ["", "<details><summary>All of them</summary>", ""]
    for why in ordered:
        lines += [f"{why}:", "", *(f"- `{name}`" for name in sorted(reasons[why])), ""]
    return "\n".join([*lines, "</details>"])


def sample(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Caught mutants and the tests that caught them: as many of each family, those whose names have the smallest
    digests, so that the sample stays when the code around it changes."""
    families: dict[str, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: hashlib.sha256(outcome.mutant.encode()).digest()):
        if outcome.caught and "::" in outcome.by:
            families.setdefault(outcome.family, []).append(outcome)
    turns = max(map(len, families.values()), default=0)
    order = [of[turn] for turn in range(turns) for of in families.values() if turn < len(of)]
    return {outcome.mutant: outcome.by.split(": ")[0] for outcome in sorted(order[:COUNT], key=lambda o: o.mutant)}


def known() -> dict[str, str]:
    """The stored sample."""
    return json.loads(SAMPLE.read_text())


def write(outcomes: Sequence[Outcome]) -> list[str]:
    """Writes page and sample; returns the survivors that no rule explains."""
    PAGE.write_text(put_between_markers(PAGE.read_text(), section(outcomes), *MARKERS))
    SAMPLE.write_text(json.dumps(sample(outcomes), indent=1) + "\n")
    return [outcome.mutant for outcome in outcomes if not outcome.caught and reason(outcome) in (GAP, OPEN)]
