"""Mistakes in the sources of the CPU kernels, one at a time: the parity suite has to notice each.

    PYTHONPATH=tests python -m mutation cpu

A mutant is one classic mistake at one place. ``RULES`` finds the places by regular expressions, so that no list of
lines has to follow the code: some three thousand. A run takes as many of each kind, those whose names have the
smallest digests: a sample that is random and yet always the same. Each is compiled as the package is, without CUDA, in
a copy of the sources, where ninja rebuilds what includes the file. The tests run on that library until one fails.

Not counted: what does not compile, and what compiles to the same machine code. ``EQUIVALENT`` explains the mutants that
change the code and nothing that was promised.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from emulated.toolkit import ROOT, build_tool

from bench.report import put_between_markers
from mutation.outcomes import Outcome, Outcomes, digest, score

__all__ = ["EQUIVALENT", "Mutant", "Workshop", "main", "mutants"]

TESTS = ROOT / "tests"
SUITE = ("test_ops.py", "test_pairs.py", "test_properties.py::test_operation", "test_lessons.py")
MARKERS = "<!-- cpu-mutants:begin -->", "<!-- cpu-mutants:end -->"
SAMPLE = 70
QUIET = 60.0  # seconds without a new test after which a mutant hangs; the slowest test takes a tenth

# ------------------------------------------------------------------------------- where mistakes are made

WITHOUT = {
    "core/api.h": "a macro",
    "core/build.h": "a declaration",
    "core/types.h": "names and defaults",
    "cpu/kernels.h": "declarations and defaults",
    "cpu/isa.cpp": "chooses kernels and computes nothing",
}
# Functions that decide how work is cut, which changes the time that it takes.
SPEED = {
    "cpu/gemm.cpp": ["choose_grid"],
    "cpu/grid.h": ["product_tasks", "choose_grid"],
    "cpu/hybrid.cpp": ["slices_of"],
    "cpu/learn.cpp": ["update_block", "low_slices"],
    "cpu/lessons.h": ["most_kept"],
    "cpu/pairs.cpp": ["choose_grid"],
    "cpu/predict.cpp": ["BlockPlan"],
    "cpu/provider.h": ["slice_count"],
}
# Code behind these conditions runs on processors with these flags (/proc/cpuinfo); others leave its mutants out.
NEEDS = {
    "FFKERN_LEVEL == 2": "avx512f",
    "FFKERN_LEVEL == 1": "avx2",
    "AVX512BF16__": "avx512_bf16",
    "FFKERN_TILES == 1": "amx_bf16",
}
# Kernels of one purpose by their files, and words in the names of tests that are likely to notice: those run first.
FAMILIES = {
    "formulas": (r"core/", ""),
    "rows": (r"vec\.|row_kernels", ""),
    "float32 product": (r"gemm|grid", "product"),
    "bfloat16 product": (r"pair", "pack_weight or test_pairs"),
    "layer": (r"layer\.|rows\.|arena|provider", ""),
    "learning": (r"learn\.", "step or update or grad"),
    "rows left out": (r"lessons", "left_out or leaves_out or test_lessons"),
    "prediction": (r"predict", "predict"),
    "head": (r"head", "head"),
    "labels": (r"labels", "labels"),
    "hybrid images": (r"hybrid", "hybrid"),
    "threads": (r"threads", ""),
}


@dataclass(frozen=True)
class Mutant:
    """A mistake: ``text`` instead of the characters [start, end) of ``file`` (below csrc/)."""

    file: str
    start: int
    end: int
    text: str
    kind: str
    name: str

    def apply(self, source: str) -> str:
        return source[: self.start] + self.text + source[self.end :]

    @property
    def family(self) -> str:
        return next(name for name, (files, _) in FAMILIES.items() if re.search(files, self.file))

    @property
    def likely(self) -> str:
        return FAMILIES[self.family][1]


def _blank(source: str) -> str:
    """The source, as long as it was, with spaces for comments, strings, directives, templates and constants."""
    parts = (
        r"//[^\n]*",
        r"/\*.*?\*/",
        r'"(?:\\.|[^"\\\n])*"',
        r"^[ \t]*#(?:\\\n|[^\n])*",
        r"^[ \t]*(?:template|using|typedef|extern|namespace|static_assert|(?:static |inline )*constexpr int(?:64_t)? k)"
        r"[^\n]*",
        r"^constexpr bool draws.*?^static_assert.*?;\n\n",
    )
    return re.sub(
        "|".join(parts), lambda found: re.sub(r"[^\n]", " ", found.group()), source, flags=re.MULTILINE | re.DOTALL
    )


def _closing(code: str, at: int) -> int:
    """Behind the bracket that closes the one at ``at``."""
    depth = 0
    for i in range(at, len(code)):
        depth += (code[i] in "([{") - (code[i] in ")]}")
        if depth == 0:
            return i + 1
    raise ValueError(f"an open bracket at {at}")


def _arguments(code: str, at: int) -> list[tuple[int, int]]:
    """Where the arguments of the call lie whose bracket is at ``at``."""
    end, depth, starts = _closing(code, at) - 1, 0, [at + 1]
    for i in range(at + 1, end):
        depth += (code[i] in "([{") - (code[i] in ")]}")
        if code[i] == "," and depth == 0:
            starts.append(i + 1)
    stops = [*(start - 1 for start in starts[1:]), end]
    spans = zip(starts, stops, strict=True)
    return [(a + len(code[a:b]) - len(code[a:b].lstrip()), a + len(code[a:b].rstrip())) for a, b in spans]


Change = tuple[int, int, str]


def _negate(code: str, found: re.Match[str]) -> Iterator[Change]:
    start, end = found.end() - 1, _closing(code, found.end() - 1)
    if ";" not in code[start:end]:
        yield start, end, f"(!{code[start:end]})"


def _without_addend(code: str, found: re.Match[str]) -> Iterator[Change]:
    spans = _arguments(code, found.end() - 1)
    if len(spans) == 3:
        a, b, _ = (code[s:e] for s, e in spans)
        yield found.start(), _closing(code, found.end() - 1), f"(({a}) * ({b}))"


def _swap(code: str, found: re.Match[str]) -> Iterator[Change]:
    """Two arguments that follow each other; not the factors of fma(), whose order changes nothing."""
    spans = _arguments(code, found.end() - 1)[found.group().startswith(("fma", "fnma")) :]
    for a, b in pairwise(spans):
        one, two = code[slice(*a)], code[slice(*b)]
        if one != two and all(re.fullmatch(r"[\w.\->\[\]]+", text) for text in (one, two)):
            yield a[0], b[1], f"{two}, {one}"


def _sub(text: str) -> Callable[[str, re.Match[str]], Iterator[Change]]:
    def change(_: str, found: re.Match[str]) -> Iterator[Change]:
        yield found.start(), found.end(), found.expand(text)

    return change


VALUE = r"[\w.]+(?:->\w+)*(?:\[[^\[\]]*\]|\([^()]*\))*"
FOR = r"for \([^;()]*(?:\([^()]*\)[^;()]*)*; "
# Kind of the mistake, where it can be made, and what stands there then. Loops over whole blocks (``j + step <= n``) are
# left alone by "comparison" and "index": what they leave over goes to the loop behind them, in another order.
RULES: list[tuple[str, str, Callable[[str, re.Match[str]], Iterator[Change]]]] = [
    ("bound", rf"({FOR}[^;<]*) < ", _sub(r"\1 <= ")),
    ("bound", rf"({FOR}[^;<]* < [^;]+);", _sub(r"\1 - 1;")),
    ("bound", rf"({FOR}[^;<+]*) \+ [^;<]+ <= ", _sub(r"\1 < ")),
    ("tail", r"for \(; (\w+) < ", _sub(r"for (; false && \1 < ")),
    ("minmax", r"\bstd::min\b", _sub("std::max")),
    ("minmax", r"\bstd::max\b", _sub("std::min")),
    ("minmax", r"([\w.\- ]+) < ([\w.* ]+) \? (?=\1 : |[\w.]+ - |[\w.]+ : )", _sub(r"\1 > \2 ? ")),
    ("comparison", r" < (?![^;\n]*\?)", _sub(" <= ")),
    ("comparison", r" > (?![^;\n]*\? a : )", _sub(" >= ")),
    ("comparison", r" <= ", _sub(" < ")),
    ("comparison", r" >= ", _sub(" > ")),
    ("comparison", r" == ", _sub(" != ")),
    ("comparison", r" != ", _sub(" == ")),
    ("condition", r"\bif \(", _negate),
    ("condition", r" && ", _sub(" || ")),
    ("condition", r" \|\| ", _sub(" && ")),
    ("accumulation", r" \+= ", _sub(" = ")),
    ("accumulation", r"\bfma\(", _without_addend),
    ("scale", rf"(?<=[\w)\]]) [*/] {VALUE}", _sub("")),
    ("sign", r"(?<=[\w)\]]) - (?=[\w(])(?!1\b(?!\.))", _sub(" + ")),
    ("sign", r"(?<=[\w)\]]) \+ (?=[\w(])(?!1\b(?!\.))", _sub(" - ")),
    ("sign", r"(?:(?<=[(])|(?<=[?:=,] )|(?<=return ))-(?=[\w(])(?!-)", _sub("")),
    ("index", r" [+-] 1\b(?!\.)", _sub("")),
    ("index", r"(?<=\w)\[([a-z]\w*)\](?!\[?\]? ?[=;]? ?\{)", _sub(r"[\1 + 1]")),
    ("constant", r"\b\d+\.\d+f?\b", _sub(r"(\g<0> + 1)")),
    ("mask", r"first_lanes\(n\)", _sub("first_lanes(n - 1)")),
    ("mask", r"first_lanes\(n\)", _sub("first_lanes(n + 1)")),
    ("mask", r"_CMP_GT_OQ", _sub("_CMP_GE_OQ")),
    ("bits", r"(<<|>>) (\w+)", _sub(r"\1 (\2 + 1)")),
    ("bits", r"\b0x[0-9a-fA-F]+u?\b", _sub(r"(\g<0> ^ 1)")),
    ("arguments", r"\b[a-z_]\w+\((?=[^()])", _swap),
    ("statement", r"(?m)^ +((?!return|throw|const |static |using |case )[\w.\->:]+\([^\n]*\);)$", _sub(";")),
    ("statement", r"(?m)^ +((?:\+\+|--)[\w.\->\[\]]+;)$", _sub(";")),
    ("statement", r"(?m)^ +([\w.\->]+(?:\[[^\n=]*\])? [+\-]?= [^\n]*;)$", _sub(";")),
    ("synchronisation", r"memory_order_(?:acquire|release|acq_rel)", _sub("memory_order_relaxed")),
    ("synchronisation", r"const std::lock_guard lock\(\w+\);", _sub("")),
]


def _flags() -> str:
    return Path("/proc/cpuinfo").read_text()


def _left_out(source: str, code: str, speed: list[str]) -> Iterator[tuple[int, int]]:
    """Spans without mutants: what this machine does not run, and what only decides on speed."""
    flags, open_, at = _flags(), [], 0
    for line in source.splitlines(keepends=True):
        words = line.strip()
        if words.startswith("#if"):
            open_.append((at, words))
        elif words.startswith(("#el", "#endif")) and open_:
            start, condition = open_.pop()
            wanted = [flag for text, flag in NEEDS.items() if text in condition]
            if any(not re.search(rf"\b{flag}\b", flags) for flag in wanted):
                yield start, at
            if words.startswith("#el"):
                open_.append((at, words))
        at += len(line)
    for name in speed:
        found = re.search(rf"(?m)^ *[\w:<>,*& =]*\b{name}\(", code)
        assert found, f"there is no {name}() any more"
        end = _closing(code, found.end() - 1)
        body = re.compile(r"[^;{]*(\{)").match(code, end)  # a call's lambda lies between its brackets
        yield found.start(), _closing(code, body.start(1)) if body else end


def _of(file: str) -> Iterator[Mutant]:
    source = (ROOT / "csrc" / file).read_text()
    code = _blank(source)
    out = list(_left_out(source, code, SPEED.get(file, [])))
    heads = [(m.end() - 1, _closing(code, m.end() - 1)) for m in re.finditer(r"\bfor \(", code)]
    seen: dict[tuple[int, int, str], str] = {}
    names: dict[str, int] = {}
    for kind, pattern, change in RULES:
        for found in re.finditer(pattern, code):
            for start, end, text in change(code, found):
                if kind == "statement":
                    start = found.start(1)
                here = any(a <= start < b for a, b in heads)
                if here and kind in ("comparison", "accumulation", "sign", "index", "scale"):
                    continue  # "bound" has the loops
                if any(a <= start < b for a, b in out) or (start, end, text) in seen:
                    continue
                seen[start, end, text] = kind
                yield _named(file, source, Mutant(file, start, end, text, kind, ""), names)


def _named(file: str, source: str, mutant: Mutant, names: dict[str, int]) -> Mutant:
    """The line as it is and as it becomes; a line that is there twice has a number."""
    begin = source.rfind("\n", 0, mutant.start) + 1
    end = source.find("\n", mutant.end)
    before = " ".join(source[begin:end].split())
    after = " ".join((source[begin : mutant.start] + mutant.text + source[mutant.end : end]).split())
    name = f"{file}: {before} => {after}"
    names[name] = names.get(name, 0) + 1
    number = f" ({names[name]})" if names[name] > 1 else ""
    return Mutant(mutant.file, mutant.start, mutant.end, mutant.text, mutant.kind, name + number)


@cache
def mutants() -> tuple[Mutant, ...]:
    """All of them, in the order in which samples take them."""
    files = [*(ROOT / "csrc" / "core").glob("*.h"), *(ROOT / "csrc" / "cpu").glob("*.*")]
    names = sorted(str(path.relative_to(ROOT / "csrc")) for path in files)
    every = [mutant for name in names if name not in WITHOUT for mutant in _of(name)]
    every.sort(key=lambda mutant: hashlib.sha256(mutant.name.encode()).digest())
    ranks = Counter[str]()
    order = {}
    for mutant in every:
        order[mutant] = ranks[mutant.kind], mutant.kind
        ranks[mutant.kind] += 1
    return tuple(sorted(every, key=order.__getitem__))


# ------------------------------------------------------------------------------- how they are tried


class _Reporter:
    """Tells which test runs, and which fails; a plugin of pytest."""

    def __init__(self, send: Connection, likely: str) -> None:
        self.send, self.likely = send, likely.split(" or ")

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=lambda item: not any(word in item.nodeid for word in self.likely))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.send.send((nodeid, None))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.send.send((report.nodeid, str(crash.message if crash else report.longrepr)))


def _run(package: str, suite: Sequence[str], likely: str, send: Connection) -> None:
    """Tests on a package, in a process of its own."""
    import pytest
    import torch

    torch.set_num_threads(1)
    os.environ["FFKERN_TEST_SEED"] = "1"
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        options = ["-c", f"{ROOT / 'pyproject.toml'}", "--rootdir", str(ROOT), "-o", f"pythonpath={package} {TESTS}"]
        options += ["-x", "-p", "no:cacheprovider", "-m", "not emulated and not gpu"]
        status = pytest.main([*options, *(str(TESTS / name) for name in suite)], plugins=[_Reporter(send, likely)])
    assert Path(sys.modules["ffkern"].__file__ or "").is_relative_to(package)
    send.send(("end", str(int(status))))


class Workshop:
    """A copy of the sources, built once, in which one file at a time is wrong.

    Args:
        folder: of the copy; what is built there is used again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.wrong = folder, ""
        for path in [ROOT / "CMakeLists.txt", ROOT / "ffkern" / "_version.py", *(ROOT / "csrc").rglob("*.*")]:
            self._write(str(path.relative_to(ROOT)), path.read_text())
        for path in (TESTS / "cpp").glob("*.cpp"):
            self._write(str(path.relative_to(ROOT)), path.read_text())
        for path in (ROOT / "ffkern").rglob("*.py"):
            self._write(f"package/{path.relative_to(ROOT)}", path.read_text())
        torch = next(iter(getattr(find_spec("torch"), "submodule_search_locations", None) or [""]))
        self._configure("plain", "-DFFKERN_TORCH=ON", f"-DFFKERN_TORCH_DIR={torch}")
        problem = self._ninja("plain", "_C")
        assert not problem, problem
        self.usual = self._install("_C.so", "libffkern.so")
        self.context = multiprocessing.get_context("forkserver")  # torch is imported once, ffkern anew each time
        self.context.set_forkserver_preload(["torch"])

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        if not path.is_file() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def _configure(self, build: str, *options: str) -> None:
        tools = build_tool("cmake"), "-S", str(self.folder), "-B", str(self.folder / build), "-G", "Ninja"
        ninja = f"-DCMAKE_MAKE_PROGRAM={build_tool('ninja')}"
        subprocess.run(
            [*tools, ninja, "-DBUILD_SHARED_LIBS=ON", "-DFFKERN_CUDA=OFF", *options], check=True, capture_output=True
        )

    def _ninja(self, build: str, *targets: str) -> str:
        """What went wrong."""
        command = [build_tool("ninja"), "-C", str(self.folder / build), *targets]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.stdout if done.returncode else ""

    def _install(self, *names: str) -> str:
        """A digest of the library."""
        for name in names:
            built, path = self.folder / "plain" / name, self.folder / "package" / "ffkern" / name
            path.unlink(missing_ok=True)  # a process that has it loaded keeps it
            shutil.copy2(built, path)
        return hashlib.sha256((self.folder / "plain" / "libffkern.so").read_bytes()).hexdigest()

    def build(self, mutant: Mutant | None) -> str:
        """Builds the library with a mistake, or none; returns why there is nothing to try."""
        if self.wrong:
            self._write(f"csrc/{self.wrong}", (ROOT / "csrc" / self.wrong).read_text())
        self.wrong = mutant.file if mutant else ""
        if mutant:
            self._write(f"csrc/{mutant.file}", mutant.apply((ROOT / "csrc" / mutant.file).read_text()))
        if problem := self._ninja("plain", "ffkern"):
            if "error:" not in problem:
                raise RuntimeError(problem)
            return "does not compile"
        same = self._install("libffkern.so") == self.usual
        return "the same machine code" if mutant and same else ""

    def verdict(self, mutant: Mutant | None) -> str:
        """Which test notices the mistake, and what it says; nothing if none does.

        Threads have the C++ tests, and ThreadSanitizer; torch brings threads of its own to the others.
        """
        if mutant and mutant.family == "threads":
            return self._cpp("thread") or self._cpp("address")
        return self.tests(SUITE, mutant.likely if mutant else "") or self._cpp("address")

    def tests(self, suite: Sequence[str], likely: str = "") -> str:
        """The same of Python's tests: files, or ``file::test``.

        Args:
            likely: to notice: their names have one of these words (``a or b``), and they run first.
        """
        receive, send = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_run, args=(str(self.folder / "package"), suite, likely, send))
        process.start()
        send.close()
        running, said = "the import", ""
        try:
            while receive.poll(QUIET):
                name, text = receive.recv()
                if name == "end":
                    if text not in ("0", "1"):  # 1: a test has failed
                        raise RuntimeError(f"pytest ended with status {text}")
                    return said
                running = name
                if text is not None:
                    said = said or f"{name}: {text.partition(chr(10))[0]}"
            return said or f"{running}: hangs"
        except EOFError:
            process.join()
            if not said and (process.exitcode or 0) >= 0:  # else a signal, by what the mistake did
                raise RuntimeError(f"{running}: ended with status {process.exitcode}") from None
            return said or f"{running}: ended with status {process.exitcode}"
        finally:
            process.kill()
            process.join()

    def _cpp(self, sanitizer: str) -> str:
        """The C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer ("address"), or ThreadSanitizer."""
        flags = "-fsanitize=thread"
        if sanitizer == "address":
            flags = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
        if not (self.folder / sanitizer / "build.ninja").is_file():
            self._configure(sanitizer, f"-DCMAKE_CXX_FLAGS={flags}", "-DCMAKE_CXX_FLAGS_RELEASE=-O1")
        tests = ("test_core", "test_threads", "test_kernels")
        problem = self._ninja(sanitizer, *tests)
        assert not problem, problem
        for test in tests:
            try:
                program = [self.folder / sanitizer / test]
                done = subprocess.run(program, capture_output=True, text=True, timeout=QUIET)
            except subprocess.TimeoutExpired:
                return f"{test}: hangs"
            if done.returncode or " 0 failures" not in done.stdout:
                lines = (done.stderr + done.stdout).strip().splitlines()
                return f"{test} ({sanitizer}): {next((line for line in lines if line.strip('= ')), 'ended')}"
        return ""


def _version() -> str:
    """Of kernels and tests. A mutant's name says all of itself."""
    paths = [*(ROOT / "csrc" / "cpu").glob("*.*"), *(ROOT / "csrc" / "core").glob("*.*"), *(TESTS / "cpp").glob("*")]
    paths += [TESTS / name.partition("::")[0] for name in SUITE]
    paths += [TESTS / name for name in ("conftest.py", "op_cases.py", "properties.py", "tolerance.py")]
    return digest(sorted(paths))


def main(out: Path = ROOT / "build" / "mutation") -> list[Outcome]:
    """Tries mutants until SAMPLE of them count, and goes on where an earlier run stopped. Their table goes into
    docs/testing.md.

    Args:
        out: folder of the copy that is built, and of the outcomes.

    Raises AssertionError if the tests fail without a mistake.
    """
    workshop, known = Workshop(out / "cpu"), Outcomes(out / "cpu.jsonl", _version())
    if not known.found:
        workshop.build(None)
        said = workshop.verdict(None)
        assert not said, f"the tests fail without a mistake: {said}"
    idle = Counter[str]()
    counted: list[Outcome] = []
    for mutant in mutants():
        if len(counted) == SAMPLE:
            break
        if mutant.name in EQUIVALENT:
            idle["explained"] += 1
            continue
        if mutant.name not in known.found:
            start = time.monotonic()
            why = workshop.build(mutant)
            said = "" if why else workshop.verdict(mutant)
            seconds = round(time.monotonic() - start, 1)
            known.add(Outcome(mutant.name, mutant.family, why or mutant.kind, bool(said), said[:300], seconds))
            print(f"{seconds:6.1f} s  {why or said[:100] or 'SURVIVED'}  {mutant.name}", flush=True)
        outcome = known.found[mutant.name]
        if outcome.kind == mutant.kind:
            counted.append(outcome)
        else:
            idle[outcome.kind] += 1
    table = score(counted)
    print(table, f"not counted: {dict(idle)}", *(f"survived: {o.mutant}" for o in counted if not o.caught), sep="\n")
    page = ROOT / "docs" / "testing.md"
    page.write_text(put_between_markers(page.read_text(), table, *MARKERS))
    return counted


# Mutants that nobody can notice, and why.
EQUIVALENT: dict[str, str] = {
    "cpu/rows.h: if (layer.kind.norm == Norm::kNone && layer.classes == 0) return 0.0f; // r = 1 needs no norm => "
    "if (layer.kind.norm == Norm::kNone && layer.classes == 0) return (0.0f + 1); // r = 1 needs no norm": (
        "nobody reads this norm: r is 1, and length_of() measures for itself"
    ),
    "cpu/lessons.h: const double slope = std::fabs(static_cast<double>(coef) * goodness_slope(layer.kind.goodness, "
    "layer.units)); => const double slope = std::fabs(static_cast<double>(coef));": (
        "a factor that all masses share, and they are compared with their own mean"
    ),
    "cpu/pair_kernels.cpp: if (lanes > 0) store(out, add ? load(out, lanes) + acc[i][u] : acc[i][u], lanes); => "
    "if (lanes >= 0) store(out, add ? load(out, lanes) + acc[i][u] : acc[i][u], lanes);": "stores no lanes",
    "cpu/pair_kernels.cpp: if (left > 0) { => if (left >= 0) {": "a step of zeros more",
    "cpu/learn.cpp: const float h_norm = masses ? std::sqrt(kernels.sum_sq(h, layer.units)) : 0.0f; => "
    "const float h_norm = masses ? std::sqrt(kernels.sum_sq(h, layer.units)) : (0.0f + 1);": (
        "nobody reads this norm: without masses note() leaves it"
    ),
    "cpu/gemm.cpp: const int64_t tasks = product_tasks(provider, g.m * g.n * std::max(g.k, int64_t{1})); => "
    "const int64_t tasks = product_tasks(provider, g.m * g.n * std::min(g.k, int64_t{1}));": (
        "the number of tasks changes no bit, only the time"
    ),
}
