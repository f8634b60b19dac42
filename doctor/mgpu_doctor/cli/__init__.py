"""The command line. Each verb is a module of its own, imported when it is used."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and leave with its exit code."""
    # A run makes many objects and drops few: collecting cycles as often as a server does costs a tenth of the time.
    gc.set_threshold(100_000, 50, 50)
    try:
        from mgpu_doctor.cli.edge import run
    except KeyboardInterrupt:
        # Interrupted before there is an edge that says so calmly.
        sys.exit(_INTERRUPTED)

    sys.exit(run(sys.argv[1:] if arguments is None else arguments))
