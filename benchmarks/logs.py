#!/usr/bin/env python3
"""How fast ``mgpu-doctor logs`` reads: megabytes a second of processor time, for a long run's log and for the worst.

The first log is what long runs write (losses, steps, NCCL's channels, progress bars, a warning now and then), the
second is text that never repeats. Exits 1 when the first is read slower than ``--least``, or takes more memory
than ``--most`` MiB beyond what the program holds anyway.
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator

from mgpu_doctor.logs import known_causes, read_log
from mgpu_doctor.registry import load_checks

MEGABYTE = 1_000_000


def long_run(dice: random.Random, step: int) -> str:
    """A line of a long run."""
    kind = dice.random()
    if kind < 0.5:
        return f"{{'loss': {dice.random():.4f}, 'grad_norm': {dice.random():.4f}, 'epoch': {step / 1000:.2f}}}\n"
    if kind < 0.7:
        rank, peer = step % 8, (step + 1) % 8
        return (
            f"gpu{rank:02}:{step}:{step + 7} [{rank}] NCCL INFO Channel {step % 16:02}/0 : {rank}[{rank}] -> {peer}\n"
        )
    if kind < 0.9:
        return f"[rank{step % 8}]: step {step}/100000 tokens/s {dice.random() * 1e4:.1f} mem 40.1GB\n"
    if kind < 0.97:
        return f" {step % 100}%|{'#' * (step % 10)} | {step}/100000 [01:02<03:04, 1.21it/s]\r"
    if kind < 0.995:
        return f"W0101 01:02:03.000000 77 torch/x.py:12] step {step}: a row of the dataset is too long\n"
    return f"/opt/env/lib/python3.11/site-packages/x.py:12: UserWarning: an error rate of {step} is high\n"


def all_new(dice: random.Random, step: int) -> str:
    """A line that no other is like."""
    words = (("token", "words", "model", "answer", "because", "rank", "loss")[dice.randrange(7)] for _ in range(12))
    return f"{''.join(map(chr, dice.choices(range(97, 123), k=12)))} {step} {' '.join(words)}\n"


class Log(io.RawIOBase):
    """A log of a given size that is made up as it is read."""

    def __init__(self, line: Callable[[random.Random, int], str], size: int) -> None:
        super().__init__()
        self.left = size
        self.blocks = self._blocks(line)

    @staticmethod
    def _blocks(line: Callable[[random.Random, int], str]) -> Iterator[bytes]:
        dice = random.Random(1)
        made = ["".join(line(dice, 4000 * block + row) for row in range(4000)).encode() for block in range(40)]
        while True:
            yield from made

    def read(self, size: int = -1) -> bytes:
        """A block, whatever ``size`` is asked for."""
        del size
        if self.left <= 0:
            return b""
        block = next(self.blocks)
        self.left -= len(block)
        return block


def measure(line: Callable[[random.Random, int], str], size: int) -> tuple[float, float]:
    """Megabytes a second, and how many MiB the program grew by."""
    known = known_causes(load_checks().checks)
    log = Log(line, size)
    next(log.blocks)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    read_log("made up", log, known)  # type: ignore[arg-type]
    took = time.process_time() - start
    return size / MEGABYTE / took, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> int:
    """Print both speeds, and fail below the promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--least", type=float, default=100.0, help="megabytes a second for the log of a long run")
    parser.add_argument("--most", type=float, default=64.0, help="MiB of memory that reading it may take")
    arguments = parser.parse_args()
    speed, memory = measure(long_run, arguments.megabytes * MEGABYTE)
    print(f"a long run's log: {speed:.0f} MB/s, {memory:.0f} MiB")
    worst, _ = measure(all_new, arguments.megabytes * MEGABYTE // 10)
    print(f"text that never repeats: {worst:.0f} MB/s")
    return 0 if speed >= arguments.least and memory <= arguments.most else 1


if __name__ == "__main__":
    sys.exit(main())
