"""Would the tests notice? Kernels with one mistake each, and the cases that have to find it.

``ptx`` makes the mistakes in the PTX of the CUDA kernels and ``cuda`` runs them on the software driver; ``cpu`` makes
and runs them in the C++ sources of the CPU kernels. ``outcomes`` keeps what was found, so that a run that was stopped
goes on. ``PYTHONPATH=tests python -m mutation`` is the command.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for the package and the benchmarks
