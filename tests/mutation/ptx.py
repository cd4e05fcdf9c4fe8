"""One mistake in a kernel: where its PTX synchronises, decides or computes a place, and what it would be without.

``nvcc -lineinfo`` says for every instruction which source line it comes from, and where that line was inlined. All
instructions of one kind with the same two lines are one site: an unrolled loop has copies of it, and so have the
instances of a template. A mutant is one site, changed in all its copies, as a mistake in the source would be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

__all__ = ["KINDS", "Listing", "Site", "bare", "changed"]

LOCATION = re.compile(r"\.loc\s+(\d+) (\d+) (\d+)(?:.*inlined_at (\d+) (\d+) \d+)?")
FILE = re.compile(r'\s*\.file\s+(\d+) "(?:.*/)?([^/"]+)"')
ENTRY = re.compile(r"\.visible \.entry (\w+)\(")
# What -lineinfo adds, and lines that say nothing.
ADDED = re.compile(r"\.(?:loc|file)\b|$|//|\$L__(?:tmp|func|info)\w*:")
# Numbers that no index reaches: CUDA's own exp, log and division, which have the line that calls them.
LIBRARY = re.compile(
    r"^(?:setp|add|sub|selp|min|max|and|shr|shl)\.\w.*\b(?:1048575|-?1[0-9]{8,}|-?2[0-9]{9}|-102[23]|-?278|508)\b"
)
DEBUG = "\n\t.section"  # where tables of names begin, behind the last kernel

Change = Callable[[re.Match[str]], str]


def _shifted(step: Callable[[int], int]) -> Change:
    """The immediate of an instruction, changed; the pattern has a head, the number and a tail."""
    return lambda found: f"{found[1]}{step(int(found[2], 0))}{found[3]}"


def _halved(mask: int) -> int:
    return mask << 1 if mask < 0 else mask >> 1


WIDER = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt", "eq": "ne", "ne": "eq"}
OPPOSITE = {"lt": "geu", "le": "gtu", "gt": "leu", "ge": "ltu", "eq": "neu", "ne": "equ", "num": "nan", "nan": "num"}
OPPOSITE |= {other: one for one, other in OPPOSITE.items()}
BYTES = {"8": 1, "16": 2, "32": 4, "64": 8}


def _next_element(found: re.Match[str]) -> str:
    """A load or store one element further: [r+12] of v2.f32 becomes [r+20]."""
    size = BYTES[found["bits"]] * int(found["vector"] or 1)
    return f"{found[1]}+{int(found['offset'] or 0) + size}]{found['rest']}"


# Kind, what is changed, and into what. An instruction is of the first kind that it matches.
KINDS: list[tuple[str, re.Pattern[str], Change]] = [
    (kind, re.compile(pattern), change)
    for kind, pattern, change in [
        ("barrier", r"(?:bar\.sync|barrier\.sync|bar\.warp\.sync)[^;]*;", lambda _: ""),
        ("barrier", r"bar\.red\.popc\.u32 (%r\d+), 0, (%p\d+);", lambda f: f"selp.u32 {f[1]}, 1, 0, {f[2]};"),
        ("wait", r"((?:cp\.async|wgmma)\.wait_group\S* )(\d+)(;)", _shifted(lambda n: n + 1)),
        ("wait", r"(?:cp\.async|wgmma)\.commit_group[^;]*;", lambda _: ""),
        ("wait", r"\{\.reg \.pred p; mbarrier\.try_wait.*selp\.b32 (%r\d+), .*\}", lambda f: f"mov.b32 {f[1]}, 1;"),
        ("arrival", r"mbarrier\.arrive\.shared[^;]*;", lambda _: ""),
        ("arrival", r"(mbarrier\.arrive\.expect_tx[^;]*, )(%?\w+)(;)", lambda f: f"{f[1]}16{f[3]}"),
        ("arrival", r"(mbarrier\.init[^;]*, )(%?\w+)(;)", lambda f: f"{f[1]}2{f[3]}"),
        ("proxy", r"fence\.proxy\.async[^;]*;", lambda _: ""),
        ("fence", r"(?:fence|membar|wgmma\.fence)\b[^;]*;", lambda _: ""),
        ("predicate", r"@!?%p\d+\s+bra[^;]*;", lambda _: ""),
        ("predicate", r"selp\.(\w+)\s+(%\w+), ([^,]+), [^;]*;", lambda f: f"mov.{f[1]} {f[2]}, {f[3]};"),
        ("predicate", r"(?:or|and|xor)\.pred\s+(%p\d+), (%p\d+), [^;]*;", lambda f: f"mov.pred {f[1]}, {f[2]};"),
        ("predicate", r"not\.pred\s+(%p\d+), (%p\d+);", lambda f: f"mov.pred {f[1]}, {f[2]};"),
        ("predicate", r"setp\.(\w+)(\.f\d+.*)", lambda f: f"setp.{OPPOSITE[f[1]]}{f[2]}"),
        ("bound", r"setp\.(\w+)(\.[sub]\d+.*)", lambda f: f"setp.{WIDER[f[1]]}{f[2]}"),
        ("bound", r"(?:min|max)\.([su]\d+)\s+(%\w+), ([^,]+), [^;]*;", lambda f: f"mov.{f[1]} {f[2]}, {f[3]};"),
        ("lane", r"(and\.b(?:32|64)\s+%\w+, %\w+, )(-?\d+)(;)", _shifted(_halved)),
        ("lane", r"(sh[lr]\.[bsu](?:32|64)\s+%\w+, %\w+, )(\d+)(;)", _shifted(lambda n: n + 1)),
        ("lane", r"xor\.b(\d+)\s+(%\w+), (%\w+), [^;]*;", lambda f: f"mov.b{f[1]} {f[2]}, {f[3]};"),
        ("lane", r"(bfi\.b32\s+[^;]*, )(\d+)(, \d+;)", _shifted(lambda n: n + 1)),
        ("shuffle", r"shfl\.sync\.bfly\.b32\s+(%\w+)\|%p\d+, (%\w+), [^;]*;", lambda f: f"mov.b32 {f[1]}, {f[2]};"),
        ("copy", r"(cp\.async\.c[ag]\.shared\.global \[%\w+)(\], \[%\w+\], )(\d+)(, [^;]*;)",
         lambda f: f"{f[1]}+{f[3]}{f[2]}{f[3]}{f[4]}"),
        ("copy", r"(cp\.async\.bulk\.tensor\.\d.*\{)(%\w+)((?:, %\w+)?\}.*)", lambda f: f"{f[1]}0{f[3]}"),
        ("copy", r"(ldmatrix\S* \{[^}]*\}, \[%\w+)(\];)", lambda f: f"{f[1]}+16{f[2]}"),
        ("index", r"(add\.s(?:32|64)\s+%\w+, %\w+, )(-?\d+)(;)", _shifted(lambda n: n + (n & -n))),
        ("index", r"(mad\.lo\.s32|mad\.wide\.\w+)(\s+%\w+, [^,]+, [^,]+), [^;]*;", lambda f: f"{f[1]}{f[2]}, 0;"),
        ("index", r"((?:ld|st)\.(?:shared|global)(?:\.v(?P<vector>[24]))?\.[bsuf](?P<bits>\d+)\s+[^\[]*\[%\w+)"
                  r"(?:\+(?P<offset>-?\d+))?\](?P<rest>.*)", _next_element),
    ]
]  # fmt: skip


@dataclass(frozen=True)
class Site:
    """A place of the source as the compiler left it.

    Args:
        kind: of :data:`KINDS`.
        file, line: of the source.
        inlined: file and line of the call that it was inlined by.
    """

    kind: str
    file: str
    line: int
    inlined: tuple[str, int] | None

    def order(self) -> tuple[str, int, str, int, str]:
        return self.file, self.line, *(self.inlined or ("", 0)), self.kind


def _lines(text: str) -> list[str]:
    """Up to the tables behind the last kernel, with one space where there are more."""
    return [" ".join(line.split()) for line in text.split(DEBUG, 1)[0].splitlines()]


def bare(text: str) -> list[str]:
    """The lines of a module that do something: the same with -lineinfo and without."""
    return [line for line in _lines(text) if not ADDED.match(line)]


class Listing:
    """A module that was compiled with -lineinfo.

    Args:
        text: the module.
        entries: file that does nothing but instantiate kernels: that something was inlined there does not make a site
            of its own.

    Attributes:
        lines: what the module holds without it.
        places: for every kernel and site the indices of the lines.
    """

    def __init__(self, text: str, entries: str = "") -> None:
        self.lines: list[str] = []
        self.places: dict[str, dict[Site, list[int]]] = {}
        files: dict[str, str] = {}
        for line in text.splitlines():
            if found := FILE.match(line):
                files[found[1]] = found[2]
        kernel, at, inlined = "", ("", 0), None
        for line in _lines(text):
            if found := LOCATION.match(line):
                at = files[found[1]], int(found[2])
                caller = files.get(found[4], entries)
                inlined = None if caller == entries else (caller, int(found[5]))
            if ADDED.match(line):
                continue
            if found := ENTRY.search(line):
                kernel = found[1]
            elif kernel and at[1] and (found := _mistake(line)):  # line 0: made by the compiler
                self.places.setdefault(kernel, {}).setdefault(Site(found[0], *at, inlined), []).append(len(self.lines))
            self.lines.append(line)

    def mutant(self, site: Site, kernels: Iterable[str]) -> str:
        """The module with that site changed in these kernels."""
        lines = list(self.lines)
        for kernel in kernels:
            for index in self.places[kernel].get(site, ()):
                lines[index] = changed(lines[index])
        return "\n".join(lines) + "\n"


def _mistake(line: str) -> tuple[str, re.Pattern[str], Change] | None:
    return None if LIBRARY.search(line) else next((one for one in KINDS if one[1].search(line)), None)


def changed(line: str) -> str:
    """An instruction with the mistake of its kind.

    Raises:
        ValueError: it is of none.
    """
    found = _mistake(line)
    if found is None:
        raise ValueError(f"line is {line!r}; expected an instruction of {sorted({kind for kind, *_ in KINDS})}")
    _, pattern, change = found
    return pattern.sub(change, line, count=1)
