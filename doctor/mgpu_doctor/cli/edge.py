"""The program's edge: every error becomes one clear line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mgpu_doctor.cli import quick
from mgpu_doctor.errors import MgpuDoctorError

USAGE_EXIT = 2
INTERRUPT_EXIT = 130


def run(arguments: Sequence[str]) -> int:
    """Run the program and return its exit code."""
    try:
        read = quick.read(arguments)
        if read is not None:
            verb, given = read
            return verb.run(given)
        from mgpu_doctor.cli.program import run_with_click

        return run_with_click(arguments)
    except MgpuDoctorError as error:
        complain(error.message, error.hint)
        return USAGE_EXIT
    except KeyboardInterrupt:
        return INTERRUPT_EXIT


def complain(message: str, hint: str | None) -> None:
    """Say what is wrong on standard error."""
    from mgpu_doctor.render.clean import shown

    lines = [f"mgpu-doctor: error: {shown(message)}"]
    if hint:
        lines.append(f"  hint: {shown(hint)}")
    try:
        print(
            "\n".join(lines)
            .encode("ascii" if sys.stderr.encoding is None else sys.stderr.encoding, "replace")
            .decode(),
            file=sys.stderr,
        )
    except OSError:
        # Nobody listens any more; the exit code still says it.
        return
