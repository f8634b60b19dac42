"""The command line. Each verb is a module of its own, imported when it is used."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and leave with its exit code."""
    from mgpu_doctor.cli.edge import run

    sys.exit(run(sys.argv[1:] if arguments is None else arguments))
