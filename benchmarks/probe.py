#!/usr/bin/env python3
"""How long a probe on the CPU takes from start to end, against importing torch once with the same interpreter.

Prints medians for 1, 2 and 4 workers, and exits 1 when one is above three seconds plus twice the time of the
import. ``--python`` names the interpreter (one of the oracles by default); the runs take turns.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from mgpu_doctor.model.facts import Facts
from mgpu_doctor.probe import ProbePlan, probe

ORACLE = Path(__file__).resolve().parent.parent / ".oracles" / "new" / "bin" / "python"
OWN_SECONDS = 3.0
WORKERS = (1, 2, 4)


def probe_once(python: str, workers: int) -> float:
    """Seconds of one probe, all its stages passed."""
    start = time.perf_counter()
    seen = probe(ProbePlan(None, Facts(), workers, python, "/", cpu=True))
    took = time.perf_counter() - start
    bad = [stage for stage in seen.stages if stage.state not in ("ok", "skipped")]
    if bad:
        raise SystemExit(f"the probe failed: {bad}")
    return took


def import_once(python: str) -> float:
    """Seconds of a process that imports torch."""
    start = time.perf_counter()
    subprocess.run([python, "-c", "import torch.distributed"], check=True)
    return time.perf_counter() - start


def main() -> int:
    """Print the table, and fail above the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python", default=str(ORACLE))
    arguments = parser.parse_args()
    imports: list[float] = []
    times: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    import_once(arguments.python)
    for _ in range(arguments.rounds):
        imports.append(import_once(arguments.python))
        for workers in WORKERS:
            times[workers].append(probe_once(arguments.python, workers))
    limit = OWN_SECONDS + 2 * statistics.median(imports)
    print(f"import torch: {statistics.median(imports):.2f} s, limit: {limit:.2f} s")
    failed = False
    for workers, taken in times.items():
        print(f"{workers} workers: median {statistics.median(taken):.2f} s, least {min(taken):.2f} s")
        failed |= statistics.median(taken) > limit
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
