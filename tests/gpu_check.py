"""Everything that a GPU has to say about ffkern, in one command: make gpu-check.

What machine it is; the operations' tests and those that need a GPU; compute-sanitizer; the benchmark, which writes
bench/results/<gpu>.json. A step that fails does not keep the next from running. What is printed is also in LOG.

Exit status: 0 nothing failed, 1 a step failed, 2 this machine or this build cannot run the kernels.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from emulated import toolkit

ROOT = Path(__file__).resolve().parents[1]
LOG = ROOT / "build" / "gpu-check.log"
OLDEST = (7, 5)  # compute capability
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
NO_SANITIZER = (
    "compute-sanitizer is not installed: it comes with the CUDA toolkit (set CUDA_HOME to it), or "
    "pip install nvidia-cuda-sanitizer-api"
)


@dataclass(frozen=True)
class Step:
    """A command of the check.

    Args:
        limit: seconds after which it counts as hanging; far more than it should take.
        variables: added to the environment.
        missing: why it cannot run here; empty: it can.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    variables: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""


@dataclass(frozen=True)
class Outcome:
    name: str
    state: str  # passed, failed or skipped
    seconds: float
    note: str = ""


Say = Callable[[str], None]


# ------------------------------------------------------------ the machine


def machine(torch: Any, facts: Mapping[str, Any], nvidia_smi: str) -> list[str]:
    """What the numbers to come belong to."""
    nvcc = facts["build"].get("nvcc", "none")
    images = ", ".join(map(str, facts["cuda"]["images"])) or "none"
    lines = [f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}"]
    lines.append(f"ffkern {facts['version']}, nvcc {nvcc}, CUDA kernels for {images}")
    lines.append(f"nvidia-smi: {nvidia_smi or 'not found'}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(index)
            lines.append(
                f"cuda:{index} {p.name}, compute capability {p.major}.{p.minor}, {p.multi_processor_count} "
                f"multiprocessors, {p.total_memory / 2**30:.0f} GiB, L2 {p.L2_cache_size / 2**20:.0f} MiB"
            )
    return lines


def refusal(torch: Any, facts: Mapping[str, Any]) -> str:
    """Why nothing can be checked here; empty: everything can."""
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is a build without CUDA: install a CUDA build (https://pytorch.org), then make "
            "gpu-check again. PYTHON=/path/to/python uses an interpreter that has one"
        )
    if not torch.cuda.is_available():
        return "torch sees no GPU: is there one, is its driver loaded (nvidia-smi), is CUDA_VISIBLE_DEVICES set?"
    if not facts["cuda"]["images"]:
        return "this build of ffkern has no CUDA kernels: FFKERN_CUDA=1 make gpu-check builds them, or says why not"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST:
        return f"compute capability {capability[0]}.{capability[1]}: ffkern's kernels need 7.5 or newer"
    return ""


def smi() -> str:
    """Name and driver of each GPU as nvidia-smi tells them."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(done.stdout.split("\n")).strip("; ")


# ------------------------------------------------------------ the steps


def steps(sanitizer: Path | None) -> list[Step]:
    pytest = (sys.executable, "-m", "pytest", "-m", "gpu", "-rs")
    own = str(Path("tests", "test_gpu.py"))
    bench = (sys.executable, "-m", "ffkern", "bench", "--device", "cuda")
    return [
        Step("operations against float64", (*pytest, f"--ignore={own}"), 300),
        Step("graphs, streams, allocator, torch.compile", (*pytest, own), 300),
        *(sanitized(tool, sanitizer) for tool in TOOLS),
        Step("benchmark", bench, 900),
    ]


def sanitized(tool: str, sanitizer: Path | None) -> Step:
    """Every operation under one tool. Each tensor is an allocation of its own, so that its end is a bound."""
    options = ["--tool", tool, "--error-exitcode", "1", "--launch-timeout", "300", "--print-limit", "20"]
    if tool == "memcheck":
        options += ["--report-api-errors", "no"]  # torch probes; an error of ours raises
    if tool != "initcheck":  # which has to see who else wrote
        options += ["--kernel-name", "kns=ffkern_"]
    script = (sys.executable, str(Path("tests", "every_operation.py")))
    command = (str(sanitizer or "compute-sanitizer"), *options, *script)
    missing = "" if sanitizer else NO_SANITIZER
    return Step(f"compute-sanitizer {tool}", command, 180, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, missing)


def find_sanitizer() -> Path | None:
    usual = Path("/usr/local/cuda/bin/compute-sanitizer")
    return toolkit.find("compute-sanitizer") or (usual if os.access(usual, os.X_OK) else None)


def run(step: Step, say: Say) -> Outcome:
    """Runs a step; whatever it prints is passed on as it comes."""
    if step.missing:
        return Outcome(step.name, "skipped", 0.0, step.missing)
    variables = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **step.variables}
    begin = time.monotonic()
    try:
        process = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that its children end with it
        )
    except OSError as error:
        return Outcome(step.name, "failed", 0.0, str(error))
    late = threading.Event()

    def stop() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(step.limit, stop)
    timer.start()
    try:
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                say(line.rstrip("\n"))
        status = process.returncode
    except BaseException:  # Ctrl-C: nothing stays behind
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        timer.cancel()
    seconds = time.monotonic() - begin
    if late.is_set():
        return Outcome(step.name, "failed", seconds, f"stopped after {step.limit:.0f} s")
    return Outcome(step.name, "failed" if status else "passed", seconds, f"exit status {status}" if status else "")


def check(planned: Sequence[Step], say: Say, runner: Callable[[Step, Say], Outcome] = run) -> int:
    """All steps, then the list of how they ended. Exit status."""
    outcomes = []
    for step in planned:
        say(f"\n==== {step.name}")
        if not step.missing:
            say(" ".join(step.command))
        outcome = runner(step, say)
        outcomes.append(outcome)
        say(f"---- {outcome.state}{': ' + outcome.note if outcome.note else ''}")
    say("")
    width = max(len(outcome.name) for outcome in outcomes)
    for outcome in outcomes:
        say(f"{outcome.name:{width}}  {outcome.state:7}  {outcome.seconds:6.1f} s  {outcome.note}".rstrip())
    total = sum(outcome.seconds for outcome in outcomes)
    failed = sum(outcome.state == "failed" for outcome in outcomes)
    say(f"{len(outcomes)} steps, {failed} failed, {total:.0f} s")
    return 1 if failed else 0


def speaker(log: TextIO) -> Say:
    def say(line: str) -> None:
        print(line, flush=True)
        log.write(line + "\n")
        log.flush()

    return say


def main() -> int:
    import torch

    from ffkern import _info

    facts = _info.info()
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("w", encoding="utf-8") as log:
        say = speaker(log)
        for line in machine(torch, facts, smi()):
            say(line)
        if reason := refusal(torch, facts):
            say(f"gpu-check: {reason}.")
            return 2
        status = check(steps(find_sanitizer()), say)
        say(f"open a pull request with the new file in bench/results, and attach {LOG.relative_to(ROOT)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
