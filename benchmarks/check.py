#!/usr/bin/env python3
"""How long ``mgpu-doctor check`` takes from start to exit, against what people run today to describe a machine.

The peers are ``python -m torch.utils.collect_env`` and ``accelerate env``, run in turn with it on the same machine.
Prints how many times faster it is and exits 1 below the promise. ``--python`` names an interpreter that has torch and
accelerate.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROMISES = {"torch.utils.collect_env": 10.0, "accelerate env": 20.0}
"""How many times faster it is at least."""

_BESIDE = Path(sys.executable).parent / "mgpu-doctor"
_PROGRAM = str(_BESIDE) if _BESIDE.exists() else shutil.which("mgpu-doctor") or "mgpu-doctor"
_OURS = "mgpu-doctor check"


def programs(python: Path) -> dict[str, list[str]]:
    """The command line of each contestant."""
    return {
        _OURS: [_PROGRAM, "check", "--python", str(python), "--format", "plain"],
        "torch.utils.collect_env": [str(python), "-m", "torch.utils.collect_env"],
        "accelerate env": [str(python), "-m", "accelerate.commands.accelerate_cli", "env"],
    }


def measure(python: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each run of each contestant; the first round warms the file cache and does not count."""
    commands = programs(python)
    times: dict[str, list[float]] = {name: [] for name in commands}
    # Without byte code, as nobody runs it, the time would be the compiler's.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    for turn in range(rounds + 1):
        for name, command in commands.items():
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, env=environment, check=False)
            took = time.perf_counter() - start
            if done.returncode not in (0, 1) or (done.returncode == 1 and name != _OURS):
                raise SystemExit(f"{name} failed: {done.stderr.decode(errors='replace')}")
            if turn:
                times[name].append(took)
    return times


def main() -> int:
    """Print the table, and fail below a promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="has torch and accelerate")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    times = measure(arguments.python, arguments.rounds)
    ours = statistics.median(times[_OURS])
    print(f"{'program':<26}{'median ms':>11}{'times ours':>12}{'promised':>10}")
    failed = False
    for name, taken in times.items():
        median = statistics.median(taken)
        promise = PROMISES.get(name)
        failed |= promise is not None and median / ours < promise
        print(f"{name:<26}{median * 1000:>11.0f}{median / ours:>12.1f}{promise or '':>10}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
