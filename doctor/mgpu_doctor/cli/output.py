"""Where the text goes: the format that fits the place, colour or none, and pipes that close early."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

FORMATS = ("rich", "plain", "json", "github")
CLOSED_PIPE_EXIT = 141
"""128 + SIGPIPE, as the shell reports for any program whose reader has gone."""


def chosen_format(asked: str | None) -> str:
    """The format asked for; without one ``rich`` on a terminal and ``plain`` elsewhere."""
    if asked is not None:
        return asked
    if os.environ.get("FORCE_COLOR"):
        return "rich"
    return "rich" if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else "plain"


_PLAINER = str.maketrans("✓✗●■○·█▉▊▋▌▍▎▏─│└├×→…“”", '+xo#-.########-|``x>.""')
"""What stands for our own signs where the terminal has no word for them."""


def _writable(text: str, encoding: str) -> str:
    """The text as far as an encoding goes: an ASCII or Latin-1 terminal gets plainer signs, never a traceback."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAINER).encode(encoding, "replace").decode(encoding)
    return text


def emit(text: str) -> None:
    """Write text to standard output; leave quietly when the reader has gone."""
    try:
        stream = sys.stdout
        encoding = stream.encoding or "utf-8"
        stream.write(_writable(text, encoding))
        stream.flush()
    except BrokenPipeError:
        # What is still buffered must not be flushed into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(CLOSED_PIPE_EXIT) from None


def emit_lines(lines: Iterable[str]) -> None:
    """Write lines to standard output."""
    emit("".join(f"{line}\n" for line in lines))


def emit_json(document: Mapping[str, Any]) -> None:
    """Write a document as JSON."""
    from mgpu_doctor.render.json import dump

    emit(dump(document, pretty=sys.stdout.isatty()))


def emit_rich(draw: Callable[[Console], None], *, colour: bool = True, dense: bool = False) -> None:
    """Draw on a console that is as wide and as colourful as standard output, then write it at once.

    ``dense`` leaves at most one empty line between others.
    """
    from io import StringIO

    from rich.console import Console

    buffer = StringIO()
    console = Console(
        file=buffer,
        force_terminal=sys.stdout.isatty() or bool(os.environ.get("FORCE_COLOR")),
        no_color=True if not colour else None,
        width=_width(),
        markup=False,
        emoji=False,
        highlight=False,
    )
    draw(console)
    text = "\n".join(line.rstrip() for line in buffer.getvalue().split("\n"))
    if dense:
        while "\n\n\n" in text:
            text = text.replace("\n\n\n", "\n\n")
    emit(text.lstrip("\n"))


def _width() -> int | None:
    """The terminal's width, COLUMNS first; between 20 and 120 cells, beyond which lines are hard to read."""
    columns = os.environ.get("COLUMNS", "")
    try:
        width = int(columns) if columns.isdigit() else os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return None
    return min(max(width, 20), 120)
