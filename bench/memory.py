"""Peak memory of one candidate of one case, in an interpreter of its own.

Counted is what training adds to its inputs: the peak resident memory minus its level after the inputs
are built and before weights, optimiser and buffers exist; of networks also what of it are parameters and what the
optimiser keeps about them. Code that a tiny case of the same kind
touches is paged in beforehand. On a GPU the allocator is asked instead (cuda_timing.py).

    python -m bench.memory step/2000-2000/b5000 ffkern
    python -m bench.memory network/784-2000x16/b5000/uniform backprop --precision bfloat16
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEPS = 3


@dataclass(frozen=True)
class Peak:
    """Bytes: all that training adds to its inputs, and how much of it are parameters and optimiser state."""

    beyond_inputs: int
    trained: int

    @property
    def working(self) -> int:
        return self.beyond_inputs - self.trained


def peak_in_child(case: str, candidate: str, threads: int, precision: str = "float32") -> Peak:
    """Raises RuntimeError with the child's last line if it fails."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "bench.memory", case, candidate]
    command += ["--threads", str(threads), "--precision", precision]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"{case}: measuring the memory of {candidate} failed: {last}")
    return Peak(**json.loads(done.stdout))


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


def _measure(name: str, candidate: str, precision: str) -> Peak:
    from .backprop import trainers
    from .candidates import step_learners
    from .cases import PRECISIONS, NetworkCase, StepCase, find_case, network_data, step_data
    from .network import trained_bytes

    case = find_case(name)
    (dtype,) = (p.dtype for p in PRECISIONS if p.name == precision)
    make: Any
    if isinstance(case, NetworkCase):
        tiny: Any = NetworkCase((32, 16, 16), 8, case.kind)
        make, inputs, steps = trainers, network_data, 2  # the second step has everything that a later one has
    else:
        assert isinstance(case, StepCase)
        tiny = StepCase(8, 32, 16, case.shared, case.keep)
        make, inputs, steps = step_learners, step_data, STEPS
    learner = make(tiny, inputs(tiny, dtype=dtype))[candidate]()
    for _ in range(steps):
        learner()
    data = inputs(case, dtype=dtype)
    exact = reset_peak()
    # The highest level includes the peak of building the inputs: too large a level, too small a result.
    before = resident("VmRSS") if exact else _highest()
    learner = make(case, data)[candidate]()
    for _ in range(steps):
        learner()
    peak = (resident("VmHWM") if exact else _highest()) - before
    return Peak(peak, trained_bytes(learner) if isinstance(case, NetworkCase) else 0)


def _highest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("case")
    parser.add_argument("candidate")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    print(json.dumps(asdict(_measure(options.case, options.candidate, options.precision))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
