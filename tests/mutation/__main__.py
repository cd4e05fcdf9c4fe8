"""Would the tests notice?  PYTHONPATH=tests python -m mutation cuda | cpu | sample

cuda    every mutant of the CUDA kernels, on the software driver; writes the tables of docs/kernels.md and the sample
        that CI repeats. Goes on where it was stopped.
cpu     a sample of mutants of the CPU kernels; writes the table of docs/testing.md
sample  the 50 of CI: each against the test that caught it
"""

from __future__ import annotations

import argparse
import sys
import time

from mutation import cpu, cuda, report
from mutation.outcomes import Outcome


def say(outcome: Outcome, left: int) -> None:
    if not outcome.caught:
        print(f"survived: {outcome.mutant}", flush=True)
    if left % 50 == 0:
        print(f"{time.strftime('%H:%M:%S')}  {left} left", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mutation", description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("cuda", "cpu", "sample"))
    parser.add_argument("--workers", type=int, help="processes side by side, of CUDA; default: one a core")
    arguments = parser.parse_args()
    if arguments.what == "cpu" and arguments.workers:
        parser.error("--workers with cpu; expected none, as it compiles one mistake after the other")
    if arguments.what == "cpu":
        outcomes = cpu.main()
        return int(not report.enough(outcomes, 0.95))
    if arguments.what == "sample":
        known = report.known()
        outcomes = cuda.repeat(known, say, workers=arguments.workers)
        wrong = [outcome.mutant for outcome in outcomes if not outcome.caught]
        print(f"{len(outcomes) - len(wrong)} of {len(outcomes)} caught again")
        return int(bool(wrong))
    outcomes = cuda.main(cuda.FOLDER / "cuda.jsonl", say, workers=arguments.workers)
    unexplained = report.write(outcomes)
    for name in unexplained:
        print(f"nobody has said why it survives: {name}")
    return int(not report.enough(outcomes, 0.9))


if __name__ == "__main__":
    sys.exit(main())
