"""Peak memory of one candidate of one case, in an interpreter of its own.

Counted is what training adds to its inputs: the peak resident memory minus its level after the inputs
are built and before weights, optimiser and buffers exist. Code that a tiny case of the same kind
touches is paged in beforehand. On a GPU the allocator is asked instead (cuda_timing.py).

    python -m bench.memory step/2000-2000/b5000 ffkern
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = 3


def peak_in_child(case: str, candidate: str, threads: int) -> int:
    """Bytes. Raises RuntimeError with the child's last line if it fails."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "bench.memory", case, candidate]
    command += ["--threads", str(threads)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"{case}: measuring the memory of {candidate} failed: {last}")
    return int(json.loads(done.stdout)["peak_bytes"])


def reset_peak() -> bool:
    """Sets the kernel's high-water mark to the present level; False where that is not possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _measure(name: str, candidate: str) -> int:
    from .candidates import step_learners
    from .cases import StepCase, find_case, step_data

    case = find_case(name)
    assert isinstance(case, StepCase)
    tiny = StepCase(8, 32, 16, case.shared, case.keep)
    learner = step_learners(tiny, step_data(tiny))[candidate]()
    for _ in range(STEPS):
        learner()
    data = step_data(case)
    exact = reset_peak()
    # The highest level includes the peak of building the inputs: too large a level, too small a result.
    before = resident("VmRSS") if exact else _highest()
    learner = step_learners(case, data)[candidate]()
    for _ in range(STEPS):
        learner()
    return (resident("VmHWM") if exact else _highest()) - before


def _highest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("case")
    parser.add_argument("candidate")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    print(json.dumps({"peak_bytes": _measure(options.case, options.candidate)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
