#!/usr/bin/env python3
"""How long ``mgpu-doctor explain`` takes from start to exit, against importing click and rich alone.

Prints the ratios and exits 1 when one is above its limit. The programs are run in turn, so that a
slow moment of the machine meets all of them. ``--verbose`` also names the slowest imports.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = "torchrun --nproc_per_node 2 train.py"
LIMITS = {"terminal": 2.0, "json": 1.2}
"""Largest ratio of whole-process times to the baseline's."""

_BESIDE = Path(sys.executable).parent / "mgpu-doctor"
_PROGRAM = str(_BESIDE) if _BESIDE.exists() else shutil.which("mgpu-doctor") or "mgpu-doctor"
_EXPLAIN = [_PROGRAM, "explain", COMMAND, "--facts", "none"]
PROGRAMS = {
    "baseline": [sys.executable, "-c", "import click, rich.console"],
    "terminal": [*_EXPLAIN, "--format", "rich"],
    "json": [*_EXPLAIN, "--format", "json"],
}


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of each run of each program."""
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    # Without byte code, as nobody runs it, the time would be the compiler's.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["COLUMNS"] = "100"
    with tempfile.TemporaryDirectory() as empty:
        _take_turns(rounds, times, environment, empty)
    return times


def _take_turns(rounds: int, times: dict[str, list[float]], environment: dict[str, str], directory: str) -> None:
    for turn in range(rounds + 1):
        for name, command in PROGRAMS.items():
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, env=environment, cwd=directory, check=False)
            took = time.perf_counter() - start
            if done.returncode not in (0, 1):
                raise SystemExit(f"{name} failed: {done.stderr.decode()}")
            if turn:
                # The first turn warms the file cache and writes the byte code.
                times[name].append(took)


def imports(name: str, most: int = 25) -> str:
    """The slowest imports of a program by their own time in microseconds."""
    program = PROGRAMS[name]
    command = [sys.executable, "-X", "importtime", *(program[1:] if program[0] == sys.executable else program)]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stderr.splitlines()
    rows = [line.removeprefix("import time:").split("|") for line in lines if line.startswith("import time:")]
    timed = [(int(own), module.strip()) for own, _, module in rows if own.strip().isdigit()]
    total = sum(own for own, _ in timed)
    slowest = sorted(timed, reverse=True)[:most]
    return "\n".join([f"{len(timed)} imports, {total} µs", *(f"{own:8} {module}" for own, module in slowest)])


def main() -> int:
    """Print the table, and fail above a limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    times = measure(arguments.rounds)
    base = times["baseline"]
    print(f"{'program':<10}{'median ms':>11}{'min ms':>9}{'ratio':>8}{'of mins':>9}{'limit':>8}")
    failed = False
    for name, taken in times.items():
        ratio = statistics.median(taken) / statistics.median(base)
        quietest = min(taken) / min(base)
        limit = LIMITS.get(name)
        failed |= limit is not None and ratio > limit
        shown = f"{limit:.1f}" if limit else "-"
        median_ms, min_ms = statistics.median(taken) * 1e3, min(taken) * 1e3
        print(f"{name:<10}{median_ms:>11.1f}{min_ms:>9.1f}{ratio:>8.2f}{quietest:>9.2f}{shown:>8}")
    if arguments.verbose:
        for name in PROGRAMS:
            print(f"\n{name}: {imports(name)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
