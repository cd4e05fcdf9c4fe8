"""Mutants of the CUDA kernels, on the software driver, against the tests that CI runs.

The tests are collected once. Each mutant then has a process of its own, a copy of this one, whose driver loads the
changed PTX; it runs tests that execute the place of the mistake, until one fails. Which tests execute what, and how
long they take, is found out first, without a mistake; all of them have to pass then, and at the end once more, alone,
those that have caught one.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import re
import resource
import select
import signal
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import emulated
import pytest
from _pytest.runner import runtestprotocol
from emulated import toolkit

from mutation import ptx, survivors
from mutation.outcomes import UNREACHED, Outcome, Outcomes, digest

ROOT = toolkit.ROOT
FOLDER = ROOT / "build" / "mutation"
LOG = FOLDER / "cuda.log"  # what processes that died have said
IMAGES = [
    *((name, arch) for name in ("f16", "f32", "rows", "labels", "head") for arch in ("75", "80")),
    ("bf16", "80"),
    ("tf32", "80"),
    ("hopper", "90a"),
]
FAMILIES = {
    "forward": r"ffkern_forward_(?!.*_tma$)",
    "gradient": r"ffkern_gradient_(?!.*_tma$)",
    "Hopper forward": r"ffkern_forward_.*_tma$",
    "Hopper gradient": r"ffkern_gradient_.*_tma$",
    "rows": "rows",
    "labels": "labels",
    "head": "head",
}
TESTS = ["test_cuda_emulated.py", "test_ops.py", "test_lessons.py", "test_unsupervised.py", "test_cuda_training.py"]
SEED = "20221213"  # of the tests' inputs: a mutant's outcome can be repeated
# Of tests, in seconds that they take without a mistake, for a mutant that is not caught; and when the command runs once
# more and nobody has said why it survives.
SECONDS, LONGER = 6.0, 60.0
PATIENCE = 60  # seconds of the processor after which a mutant hangs, and so is caught
OPTIONS = {"threads": 1, "max_instructions": 20_000_000}  # of the software driver
# Tests that take longer than all that a mutant gets, or more instructions.
TOO_LONG = "several_chunks or over_many_rows or rows_with_peer or wide_layers or several_blocks or half_and_half"
TOO_LONG += " or does_not_notice"


def version() -> str:
    """Of the kernels, the compiler, the driver, the package and the tests."""
    folders = ["csrc/cuda", "csrc/core", "csrc/binding", "ffkern", "tests/emulated", "tests/ptxsim"]
    files = {path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix not in (".so", ".pyc")}
    used = ("conftest", "op_cases", "every_operation", "tolerance", "nested")
    files |= {ROOT / "tests" / name for name in (*TESTS, *(f"{name}.py" for name in used))}
    compiler = subprocess.run([toolkit.nvcc(), "--version"], capture_output=True, check=True).stdout
    return digest([path for path in sorted(files) if path.is_file()], compiler)


def listing(name: str, arch: str, version: str) -> ptx.Listing:
    """An image's PTX with lines; kept for the next time."""
    path = FOLDER / f"{name}.{arch}.{version}.ptx"
    if not path.is_file():
        for old in FOLDER.glob(f"{name}.{arch}.*"):
            old.unlink()
        FOLDER.mkdir(parents=True, exist_ok=True)
        made = path.with_suffix(f".{os.getpid()}")
        gencode = f"arch=compute_{arch},code=compute_{arch}"
        flags = ["-ptx", "-lineinfo", "-gencode", gencode, "-std=c++20", "-O3", f"-I{ROOT / 'csrc'}"]
        command = [toolkit.nvcc(), *flags, "-o", str(made), str(ROOT / f"csrc/cuda/{name}.cu")]
        subprocess.run(command, check=True)
        made.rename(path)
    return ptx.Listing(path.read_text(), "" if name in FAMILIES else f"{name}.cu")


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Args:
        family: of :data:`FAMILIES`.
        site: where.
        name: which no other has.
        kernels: (target, kernel) that have it.
    """

    family: str
    site: ptx.Site
    name: str
    kernels: frozenset[tuple[str, str]] = field(repr=False)


@functools.cache
def _lines(file: str) -> list[str]:
    found = [path for part in ("cuda", "core") for path in (ROOT / "csrc" / part).glob(file)]
    return found[0].read_text().splitlines() if found else []


def source(file: str, line: int) -> str:
    """A line of the source, so that the name of a mutant stays when lines above it come and go."""
    lines = _lines(file)
    return f"{file}: {lines[line - 1].split('//')[0].strip() if lines else ''}"


def _family(image: str, kernel: str) -> str:
    return next(family for family, pattern in FAMILIES.items() if image == pattern or re.match(pattern, kernel))


class Modules:
    """The PTX of all images, and the mutants of it."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.listings = {(name, arch): listing(name, arch, version) for name, arch in IMAGES}
        self.mutants = self._mutants()
        self.names = [mutant.name for mutant in self.mutants]
        self._image = {self._key("\n".join(one.lines)): key for key, one in self.listings.items()}

    @staticmethod
    def _key(text: str) -> tuple[str, str]:
        target = re.search(r"\.target (\w+)", text)
        first = ptx.ENTRY.search(text)
        assert target is not None
        assert first is not None
        return target[1], first[1]

    def _mutants(self) -> list[Mutant]:
        kernels: dict[tuple[str, ptx.Site], set[tuple[str, str]]] = {}
        for (image, arch), one in self.listings.items():
            for kernel, places in one.places.items():
                for site in places:
                    kernels.setdefault((_family(image, kernel), site), set()).add((f"sm_{arch}", kernel))
        names: dict[str, int] = {}
        found = []
        for (family, site), of in sorted(kernels.items(), key=lambda item: (item[0][0], *item[0][1].order())):
            name = f"{family}, {site.kind}: {source(site.file, site.line)}"
            if site.inlined:
                name += f" BY {source(*site.inlined)}"
            names[name] = names.get(name, 0) + 1
            found.append(Mutant(family, site, f"{name} ({names[name]})" if names[name] > 1 else name, frozenset(of)))
        return found

    def numbers(self) -> dict[tuple[str, str], dict[int, int]]:
        """For every target and kernel the line of each instruction that a mutant changes, and the mutant's number."""
        number = {(mutant.family, mutant.site): i for i, mutant in enumerate(self.mutants)}
        return {
            (f"sm_{arch}", kernel): {
                index + 1: number[_family(image, kernel), site] for site, of in places.items() for index in of
            }
            for (image, arch), one in self.listings.items()
            for kernel, places in one.places.items()
        }

    def instead(self, mutant: Mutant | None) -> Callable[[str], str | None]:
        """What the driver loads for a module: without a mutant the listing, which has to be the module."""

        def load(text: str) -> str | None:
            one = self.listings[self._image[self._key(text)]]
            if mutant is None:
                assert ptx.bare(text) == one.lines, "the shipped PTX is not what -lineinfo gives"
                return "\n".join(one.lines) + "\n"
            kernels = {kernel for _, kernel in mutant.kernels} & one.places.keys()
            return one.mutant(mutant.site, kernels) if kernels else None

        return load


def _in_child(work: Callable[[], Any]) -> tuple[int, int]:
    """Process and pipe of a copy of this one that does the work and writes what it returns as JSON."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    status = 1
    try:
        os.close(reading)
        null, log = os.open(os.devnull, os.O_RDWR), os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for stream, where in enumerate((null, null, log)):
            os.dup2(where, stream)
        with os.fdopen(writing, "w") as pipe:
            json.dump(work(), pipe)
        status = 0
    except BaseException:  # whatever it is: a copy must not go on as pytest
        traceback.print_exc()
    finally:
        os._exit(status)


def _result(pid: int, pipe: int) -> Any:
    """What the copy returned, or the signal that a wrong kernel ended it with.

    Raises:
        RuntimeError: the copy failed for another reason.
    """
    with os.fdopen(pipe) as file:
        text = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 0:
        return json.loads(text)
    if -code in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGXCPU):
        return f"ends with {signal.Signals(-code).name}"
    raise RuntimeError(f"a process ended with {code}; see {LOG}")


def _failure(item: pytest.Item) -> str | None:
    """The first line of what a test said, or None if it passed."""
    for report in runtestprotocol(item, log=False, nextitem=None):
        if report.failed:
            text = str(report.longrepr)
            said = re.search(r"^E[ \t]+(\S.*)$", text, re.M)
            return said[1] if said else (text.splitlines() or ["it fails"])[-1]
    return None


Say = Callable[[Outcome, int], None]


class Run:
    """A pytest plugin that runs mutants where pytest runs tests.

    Args:
        modules: the PTX.
        mutants: which of them.
        outcomes: those that were run before are left out.
        say: is told of each outcome and how many are left.
        workers: processes side by side; default: one a core.
        known: the test of each mutant; without them tests are chosen by what they execute.

    Attributes:
        broken: tests that fail without a mistake. With one nothing is run.
    """

    def __init__(self, modules: Modules, mutants: Sequence[Mutant], outcomes: Outcomes, say: Say,
                 workers: int | None = None, known: dict[str, str] | None = None) -> None:  # fmt: skip
        self.modules, self.mutants, self.outcomes, self.say, self.known = modules, mutants, outcomes, say, known
        self.workers = workers or os.cpu_count() or 1
        self.broken: list[str] = []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("the tests cannot be collected")
        self.driver = emulated.load()
        items = {item.nodeid: item for item in session.items}
        executed = self._baseline(items)
        if self.broken:
            return True
        found = self.outcomes.found
        waiting = [(mutant, SECONDS) for mutant in self.mutants if mutant.name not in found]
        waiting += [(m, LONGER) for m in self.mutants if m.name in found and _unexplained(found[m.name])]
        running: dict[int, tuple[int, Mutant, float]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    mutant, seconds = waiting.pop(0)
                    known = self.known is not None
                    names = [self.known[mutant.name]] if known else self._chosen(mutant, executed, seconds)
                    work = functools.partial(self._first_failure, mutant, [items[name] for name in names])
                    pid, pipe = _in_child(work)
                    running[pipe] = pid, mutant, time.monotonic()
                for pipe in select.select(list(running), [], [])[0]:
                    pid, mutant, begun = running.pop(pipe)
                    by = _result(pid, pipe)
                    took = round(time.monotonic() - begun, 2)
                    outcome = Outcome(mutant.name, mutant.family, mutant.site.kind, by not in ("", UNREACHED), by, took)
                    self.outcomes.add(outcome)
                    self.say(outcome, len(waiting) + len(running))
        finally:
            for pid, *_ in running.values():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        self._check(items)
        return True

    def _first_failure(self, mutant: Mutant | None, items: list[pytest.Item]) -> str:
        """The test that fails first and what it says, or what Outcome.by says of a survivor."""
        resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE, PATIENCE + 5))
        with self.driver.driver_options(**OPTIONS), self.driver.driver_on_load(self.modules.instead(mutant)):
            for item in items:
                if (said := _failure(item)) is not None:
                    return f"{item.nodeid}: {said}"[:300]
        return "" if items else UNREACHED

    def _check(self, items: dict[str, pytest.Item]) -> None:
        """Whoever caught a mutant has to pass without one, alone and under the same conditions."""
        wanted = {mutant.name for mutant in self.mutants}
        caught = [outcome.by.split(": ")[0] for outcome in self.outcomes.found.values() if outcome.mutant in wanted]
        for name in sorted({name for name in caught if name in items}):
            if said := _result(*_in_child(functools.partial(self._first_failure, None, [items[name]]))):
                self.broken.append(said)

    def _baseline(self, items: dict[str, pytest.Item]) -> dict[str, tuple[float, set[int]]]:
        """Seconds of every test and the numbers of the mutants whose instructions it executes; of tests with any."""
        if self.known is not None:
            return {}
        path = self.outcomes.path.with_suffix(".tests.json")
        version = {"version": self.modules.version, "tests": sorted(items), "mutants": self.modules.names}
        kept = json.loads(path.read_text()) if path.is_file() else {}
        if {name: kept.get(name) for name in version} != version:
            kept = version | {"executed": _result(*_in_child(lambda: self._executed(list(items.values()))))}
            path.write_text(json.dumps(kept))
        self.broken += [f"{name}: {said}" for name, (_, said, _) in kept["executed"].items() if said is not None]
        return {name: (seconds, set(found)) for name, (seconds, _, found) in kept["executed"].items() if found}

    def _executed(self, items: list[pytest.Item]) -> dict[str, tuple[float, str | None, list[int]]]:
        """Of every test: seconds, what failed, and the mutants by number."""
        numbers = self.modules.numbers()
        result = {}
        options = self.driver.driver_options(**OPTIONS, coverage=1)
        with options, self.driver.driver_on_load(self.modules.instead(None)):
            for item in items:
                self.driver.driver_executed()
                begun = time.perf_counter()
                said = _failure(item)
                seconds = time.perf_counter() - begun
                executed = self.driver.driver_executed().items()
                found = {numbers[key][line] for key, lines in executed for line in lines & numbers[key].keys()}
                result[item.nodeid] = round(seconds, 4), said, sorted(found)
        return result

    def _chosen(self, mutant: Mutant, executed: dict[str, tuple[float, set[int]]], seconds: float) -> list[str]:
        """Tests that execute the place: for half of the time those of every function in turn, quick functions first,
        then the quickest of the others."""
        number = self.modules.names.index(mutant.name)
        functions: dict[str, list[str]] = {}
        for name, (_, found) in executed.items():
            if number in found:
                functions.setdefault(name.split("[")[0], []).append(name)
        for names in functions.values():  # far from each other, and always the same
            names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
        order = sorted(functions.values(), key=lambda names: executed[names[0]][0])
        turns = max(map(len, order), default=0)
        chosen = [names[turn] for turn in range(turns) for names in order if turn < len(names)]
        half = _within(chosen, executed, seconds / 2)
        others = sorted(set(chosen) - set(half), key=lambda name: (executed[name][0], name))
        return half + _within(others, executed, seconds / 2)


def _unexplained(outcome: Outcome) -> bool:
    return not outcome.caught and outcome.by != UNREACHED and not survivors.reason(outcome.mutant)


def _within(names: list[str], executed: dict[str, tuple[float, set[int]]], seconds: float) -> list[str]:
    until = itertools.accumulate(executed[name][0] for name in names)
    return [name for name, used in zip(names, until, strict=True) if used < seconds]


def _pytest(run: Run, arguments: Sequence[str]) -> None:
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # loads what every process would load anew: a second of it
    torch.use_deterministic_algorithms(False)
    options = [
        "-q",
        "-s",
        "--tb=line",
        "-p",
        "no:cacheprovider",
        "-m",
        "emulated",
        "-k",
        f"not opcheck and not test_fake and not ({TOO_LONG})",
    ]
    with emulated.environment(FFKERN_TEST_SEED=SEED):
        code = pytest.main(["-c", str(ROOT / "pyproject.toml"), *options, *arguments], plugins=[run])
    if code == pytest.ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if run.broken or code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"tests fail without a mistake: {run.broken[:5] or code}")


def main(path: Path, say: Say, *, workers: int | None = None) -> list[Outcome]:
    """Runs all mutants and returns their outcomes, those of an earlier run included.

    Args:
        path: of the file of outcomes.
        say: is told of each outcome and how many are left.
        workers: processes side by side; default: one a core.

    Raises:
        RuntimeError: tests fail, or cannot be collected, without any mistake.
    """
    modules = Modules(version())
    outcomes = Outcomes(path, f"{modules.version} {digest([Path(ptx.__file__)])} {SECONDS}")
    _pytest(Run(modules, modules.mutants, outcomes, say, workers), [str(ROOT / "tests" / name) for name in TESTS])
    return [outcomes.found[name] for name in modules.names]


def repeat(known: dict[str, str], say: Say, *, workers: int | None = None) -> list[Outcome]:
    """Runs some mutants anew, each against one test.

    Args:
        known: a mutant's name and its test.

    Raises:
        ValueError: a mutant is no longer there.
        RuntimeError: a test fails without a mistake.
    """
    modules = Modules(version())
    if gone := sorted(known.keys() - set(modules.names)):
        raise ValueError(f"the code of these mutants has changed: {gone}; python -m mutation cuda chooses others")
    mutants = [mutant for mutant in modules.mutants if mutant.name in known]
    with tempfile.TemporaryDirectory() as folder:
        outcomes = Outcomes(Path(folder) / "sample.jsonl", "")
        _pytest(
            Run(modules, mutants, outcomes, say, workers, known), sorted({str(ROOT / test) for test in known.values()})
        )
    return [outcomes.found[mutant.name] for mutant in mutants]
