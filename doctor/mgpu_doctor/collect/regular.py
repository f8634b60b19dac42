"""Regular files, read up to a limit: whoever opens a pipe or a device may wait for ever."""

from __future__ import annotations

import os


def read_bytes(path: str, most: int) -> bytes | None:
    """The beginning of a file; None when it is no regular file or cannot be read."""
    try:
        if not os.path.isfile(path):
            return None
        with open(path, "rb") as file:
            return file.read(most)
    except (OSError, ValueError):
        return None


def read_text(path: str, most: int) -> str | None:
    """The same as text, lines ended as on Unix; what is no UTF-8 is replaced."""
    raw = read_bytes(path, most)
    return None if raw is None else raw.replace(b"\r\n", b"\n").decode("utf-8", "replace")
