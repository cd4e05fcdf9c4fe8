"""What became of each mutant: a line of JSON each, written as it is found, and the tables made of them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["UNREACHED", "Outcome", "Outcomes", "digest", "score"]

UNREACHED = "no test executes it"


@dataclass(frozen=True)
class Outcome:
    """One mutant's.

    Args:
        mutant: its name, which no other has: family, place and mistake.
        family: of kernels.
        kind: class of the mistake, such as "barrier".
        caught: whether a case failed.
        by: the case that failed first and the first line of what it said; UNREACHED, or empty, for a survivor.
        seconds: the mutant took.
    """

    mutant: str
    family: str
    kind: str
    caught: bool
    by: str
    seconds: float


def digest(files: Iterable[Path], more: bytes = b"") -> str:
    """Of the contents of files, in this order."""
    found = hashlib.sha256(more)
    for path in files:
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


class Outcomes:
    """A file of outcomes of one version of kernels and cases.

    Args:
        path: of the file; made if it is missing, and begun anew if it is of another version.
        version: of everything that an outcome depends on, such as a digest of the sources.
    """

    def __init__(self, path: Path, version: str) -> None:
        self.path = path
        self.found: dict[str, Outcome] = {}
        lines = path.read_text().splitlines() if path.is_file() else []
        if lines and json.loads(lines[0]) == {"version": version}:
            for line in lines[1:]:
                try:
                    outcome = Outcome(**json.loads(line))
                except json.JSONDecodeError:  # the run was stopped while it wrote
                    continue
                self.found[outcome.mutant] = outcome
            if not path.read_bytes().endswith(b"\n"):
                with path.open("a") as file:
                    file.write("\n")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"version": version}) + "\n")

    def add(self, outcome: Outcome) -> None:
        self.found[outcome.mutant] = outcome
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")


def score(outcomes: Iterable[Outcome]) -> str:
    """A table of the mutants caught of all, by family and kind, in Markdown."""
    every, caught = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for outcome in outcomes:
        for key in ((outcome.family, outcome.kind), (outcome.family, ""), ("", outcome.kind), ("", "")):
            every[key] += 1
            caught[key] += outcome.caught

    def cell(family: str, kind: str) -> str:
        key = (family, kind)
        return f"{caught[key]}/{every[key]}" if every[key] else ""

    families, kinds = (sorted({key[i] for key in every} - {""}) for i in range(2))
    head = ["caught of all", *kinds, "together", ""]
    lines = [head, ["---"] * len(head)]
    for family in [*families, ""]:
        part = 100 * caught[family, ""] / max(1, every[family, ""])
        lines.append([family or "together", *(cell(family, kind) for kind in [*kinds, ""]), f"{part:.0f} %"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
