"""Faults of GPUs that the driver wrote to the kernel log (Xid), as far as this user may read it.

The log is asked of the kernel itself (syslog(2), as dmesg does); where that is refused, the files that a logging daemon
keeps are read, if they are plain text that this user may read. Both reach back only as far as they are kept.
"""

from __future__ import annotations

import os
import re

from mgpu_doctor.model.facts import XidError
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.pattern import pattern

LARGEST_LOG = 2 * 1024 * 1024
"""Bytes that are read of a log, the newest."""

MOST_ERRORS = 200
"""The newest faults that are kept: a broken card can write thousands."""

_LONGEST_TEXT = 300
_FILES = ("var/log/kern.log", "var/log/messages")

# linux/syslog: SYSLOG_ACTION_READ_ALL and SYSLOG_ACTION_SIZE_BUFFER
_READ_ALL = 3
_SIZE_BUFFER = 10

# "NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."; without "PCI:" in
# the example of NVIDIA's "XID Errors" (R384 to R545, "Viewing Xid Error Messages").
_XID = pattern(
    r"NVRM: Xid \((?:PCI:)?(?P<domain>[0-9a-fA-F]{4,8}):(?P<bus>[0-9a-fA-F]{2}):(?P<device>[0-9a-fA-F]{2})"
    r"(?:\.(?P<function>[0-9]))?\): (?P<code>[0-9]{1,4})(?:, *(?P<text>[^\n]*))?"
)
_BOOT = pattern(r"^.*\bkernel: .*\] Linux version .*$", re.MULTILINE)


def xid_errors(root: str = "/") -> tuple[XidError, ...] | Unknown:
    """The faults since the machine was started, oldest first; Unknown without permission to read any log."""
    text = _ring_buffer() if root == "/" else None
    if text is None:
        text = _log_file(root)
    if text is None:
        return Unknown("no permission to read the kernel log")
    return read_xid_errors(text)


def read_xid_errors(text: str) -> tuple[XidError, ...]:
    """The faults in a kernel log's text, each address in NVML's form: ``00000000:3B:00.0``."""
    found = []
    for match in _XID.finditer(text):
        function = match["function"] or "0"
        address = f"{int(match['domain'], 16):08X}:{match['bus'].upper()}:{match['device'].upper()}.{function}"
        found.append(XidError(address, int(match["code"]), (match["text"] or "").strip()[:_LONGEST_TEXT]))
    return tuple(found[-MOST_ERRORS:])


def since_boot(text: str) -> str:
    """The part of a log file that was written since the kernel was last started."""
    starts = [match.start() for match in _BOOT.finditer(text)]
    return text[starts[-1] :] if starts else text


def _ring_buffer() -> str | None:
    """The newest part of the kernel's own log; None when it may not be read."""
    try:
        import ctypes

        read = ctypes.CDLL(None).klogctl
        size = min(read(_SIZE_BUFFER, None, 0), LARGEST_LOG)
        if size <= 0:
            return None
        buffer = ctypes.create_string_buffer(size)
        length = read(_READ_ALL, buffer, size)
    except (ImportError, OSError, AttributeError, ValueError):
        return None
    return buffer.raw[:length].decode("utf-8", "replace") if length >= 0 else None


def _log_file(root: str) -> str | None:
    for name in _FILES:
        text = _tail(os.path.join(root, name))
        if text is not None:
            return since_boot(text)
    return None


def _tail(path: str) -> str | None:
    """The end of a log file; None when it cannot be read or is no text."""
    try:
        with open(path, "rb") as file:
            if not os.path.isfile(path):
                return None
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LARGEST_LOG))
            raw = file.read(LARGEST_LOG)
    except OSError:
        return None
    return None if b"\0" in raw else raw.decode("utf-8", "replace")
