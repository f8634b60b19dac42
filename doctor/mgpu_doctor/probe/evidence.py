"""Reading what launchers, interpreters and NCCL wrote."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Sequence

LARGEST_LOG = 8 << 20

_PARSER = re.compile(r"^[\w.+ /-]{1,80}: error: .+")
_EXCEPTION = re.compile(
    r"^(?:\[rank\d+\]: ?)?((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Timeout|NotFound)\b.*)"
)
_SUMMARIES = ("ChildFailedError", "CalledProcessError", "SignalException", "SystemExit")
_LOOSE = re.compile(
    r"(?:No module named|command not found|[Ee]rror while finding|No such file or directory|^\w*Error\b)"
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')
_WAY = re.compile(rb"(\d+)\[[0-9a-fx]+\] -> (\d+)\[[0-9a-fx]+\](?: \[(?:send|receive)\])? via ([A-Z0-9]+/[^\s/]+)")


def error_line(lines: Sequence[str]) -> str | None:
    """The line that says why a program gave up: the parser's, the last exception's, or the last that looks like one.

    What torch's elastic agent and subprocess only sum up is passed over as long as there is another line.
    """
    lines = [_COLOUR.sub("", line) for line in lines]
    for line in reversed(lines):
        if _PARSER.match(line.strip()):
            return line.strip()
    summary = None
    for line in reversed(lines):
        match = _EXCEPTION.match(line.strip())
        if match is None:
            continue
        if not any(name in match.group(1).partition(":")[0] for name in _SUMMARIES):
            return match.group(1)
        summary = summary or match.group(1)
    loose = next((line.strip() for line in reversed(lines) if _LOOSE.search(line)), None)
    last = next((line.strip() for line in reversed(lines) if line.strip()), None)
    return loose or summary or last


def nccl_transports(paths: Iterable[str]) -> dict[tuple[int, int], str]:
    """The way that NCCL chose from one rank to another, out of its own files: ``P2P/CUMEM``, ``NET/Socket``.

    The lines read ``Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM`` (NCCL, src/transport/p2p.cc, shm.cc and net.cc).
    """
    found: dict[tuple[int, int], str] = {}
    for path in paths:
        try:
            with open(path, "rb") as file:
                data = file.read(LARGEST_LOG)
        except OSError:
            continue
        for match in _WAY.finditer(data):
            found.setdefault((int(match.group(1)), int(match.group(2))), match.group(3).decode("ascii", "replace"))
    return found


def parsed_dump(path: str) -> tuple[str, ...]:
    """The main thread's frames out of what ``faulthandler`` wrote, innermost last; empty when there are none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 20)
    except OSError:
        return ()
    best: tuple[str, ...] = ()
    for block in re.split(r"^(?:Current thread|Thread) .*$", text, flags=re.MULTILINE):
        frames = [match for line in block.splitlines() if (match := _FRAME.match(line))]
        shown = tuple(f"{m.group(1)}:{m.group(2)} in {m.group(3)}" for m in reversed(frames))
        if shown and shown[0].endswith("in <module>"):
            return shown
        best = best or shown
    return best


def short_frames(frames: Iterable[str], directory: str) -> tuple[str, ...]:
    """Frames with paths that can be read: inside the packages' directory, or the file's name alone.

    ``directory`` is where our worker lies; its own way to the stage is left out.
    """
    out: list[str] = []
    for frame in frames:
        if frame.startswith(directory) and frame.endswith(" in attempt"):
            # What stands before is how our worker came to its work.
            out.clear()
            continue
        path, colon, rest = frame.rpartition(":")
        if "site-packages/" in path:
            path = path.rpartition("site-packages/")[2]
        elif path.startswith(directory):
            path = f"mgpu-doctor/{os.path.basename(path)}"
        else:
            path = os.path.basename(path)
        out.append(f"{path}{colon}{rest}")
    return tuple(out)


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
