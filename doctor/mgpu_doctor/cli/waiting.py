"""A line on the terminal for work that takes longer than a moment, gone when it is done."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE_S = 0.7
"""Seconds without a word: most work is done by then."""


class Waiting:
    """What is being done, shown once it lasts; :meth:`say` may be called from any thread."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._shown = False
        self._done = False

    def say(self, text: str) -> None:
        """Something else is being done now."""
        self._text = text
        if self._shown and not self._done:
            self._write()

    def show(self) -> None:
        """Begin to be seen: it has lasted."""
        if not self._done:
            self._shown = True
            self._write()

    def _write(self) -> None:
        sys.stderr.write(f"\r\x1b[K{self._text} …")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away; nothing is shown from here on."""
        self._done = True
        if self._shown:
            self._shown = False
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


@contextmanager
def waiting(text: str, patience_s: float = PATIENCE_S) -> Iterator[Waiting]:
    """Say on a terminal what is being done, from ``patience_s`` seconds on; elsewhere say nothing."""
    note = Waiting(text)
    if not sys.stderr.isatty():
        yield note
        return
    from threading import Timer

    timer = Timer(patience_s, note.show)
    timer.daemon = True
    timer.start()
    try:
        yield note
    finally:
        timer.cancel()
        note.clear()
