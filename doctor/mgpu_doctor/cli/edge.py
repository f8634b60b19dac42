"""The program's edge: every error becomes one clear line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mgpu_doctor.cli import quick
from mgpu_doctor.errors import MgpuDoctorError

USAGE_EXIT = 2
INTERRUPT_EXIT = 130
INCOMPLETE_EXIT = 3
TRACEBACK_VARIABLE = "MGPU_DOCTOR_TRACEBACK"


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
    except Exception as error:
        # Whatever it is, people get one line and scripts get "incomplete".
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        complain(f"a fault of mgpu-doctor itself: {_described(error)}", f"{TRACEBACK_VARIABLE}=1 shows the traceback")
        return INCOMPLETE_EXIT


def _described(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" ({os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno})" if trace is not None else ""
    return f"{type(error).__name__}: {error}{place}"


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
