"""The line that says what is being done: only on a terminal, only when it lasts, and gone afterwards."""

from __future__ import annotations

import io
import sys
from threading import Event

import pytest

from mgpu_doctor.cli.waiting import waiting


class Terminal(io.StringIO):
    """A standard error that says it is a terminal, and tells when something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        count = super().write(text)
        self.written.set()
        return count


def test_it_is_shown_changed_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with waiting("asking NVML", patience_s=0) as note:
        assert terminal.written.wait(10)
        note.say("reading packages")
    assert terminal.getvalue() == "\r\x1b[Kasking NVML …\r\x1b[Kreading packages …\r\x1b[K"


def test_quick_work_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with waiting("asking NVML", patience_s=60) as note:
        note.say("reading packages")
    assert terminal.getvalue() == ""


def test_a_pipe_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    with waiting("asking NVML", patience_s=0), pytest.raises(ValueError, match="as usual"):
        raise ValueError("as usual")
    assert pipe.getvalue() == ""
