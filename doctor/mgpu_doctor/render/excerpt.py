"""The lines of a source around a span, with carets under the words, on a terminal of a given width."""

from __future__ import annotations

from typing import NamedTuple

from mgpu_doctor.model.source import Location, Source, Span
from mgpu_doctor.render.clean import shown

MOST_LINES = 4
"""How many lines of a long span are shown."""

_TAB = "    "


class ExcerptLine(NamedTuple):
    """One line of a source as it is shown.

    ``text`` has tabs expanded and control characters replaced; ``caret_start`` and
    ``caret_width`` are in terminal cells (a CJK character takes two). ``number`` is None
    for the mark that stands for lines left out.
    """

    number: int | None
    text: str
    caret_start: int = 0
    caret_width: int = 0

    @property
    def carets(self) -> str:
        """Blanks and carets to print under the text; empty when nothing is marked."""
        return " " * self.caret_start + "^" * self.caret_width if self.caret_width else ""


def cells(text: str) -> int:
    """How many terminal cells a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def excerpt(location: Location, width: int = 100) -> tuple[ExcerptLine, ...]:
    """The lines that a location covers, each no wider than ``width`` cells, the marked words in sight."""
    source, span = location.in_file.source, location.in_file.span
    first = source.position(span.start).line
    last = source.position(max(span.start, span.end - 1)).line
    numbers = range(first, last + 1)
    if len(numbers) <= MOST_LINES:
        return tuple(_line(source, number, span, width) for number in numbers)
    head = [_line(source, number, span, width) for number in numbers[: MOST_LINES - 1]]
    left_out = len(numbers) - MOST_LINES
    mark = ExcerptLine(None, f"… {left_out} more line{'s' * (left_out != 1)} …")
    return (*head, mark, _line(source, last, span, width))


def _line(source: Source, number: int, span: Span, width: int) -> ExcerptLine:
    whole = source.line_span(number)
    text = source.slice(whole)
    start = min(max(span.start - whole.start, 0), len(text))
    end = min(max(span.end - whole.start, start), len(text))
    if text.endswith("\r") and span.end < whole.end:
        # A CRLF file: the carriage return is shown only where it is meant.
        text = text[:-1]
        end = min(end, len(text))
    # Blanks at either end of what is marked are not meant, unless they are all of it.
    inner = text[start:end].strip()
    if inner:
        start = text.index(inner, start)
        end = start + len(inner)
    text = shown(text)
    before, marked, after = (part.replace("\t", _TAB) for part in (text[:start], text[start:end], text[end:]))
    return _window(number, before, marked, after, max(width, 20))


def _window(number: int, before: str, marked: str, after: str, width: int) -> ExcerptLine:
    """Cut a line that is too wide so that the marked part stays in sight."""
    if cells(before) + cells(marked) + cells(after) <= width:
        return ExcerptLine(number, before + marked + after, cells(before), max(cells(marked), 1))
    lead = min(cells(before), max(width // 5, width - cells(marked) - cells(after) - 1))
    if cells(before) > lead:
        before = "…" + _last_cells(before, lead - 1)
    room = width - cells(before)
    if cells(marked) > room - 1:
        marked = _first_cells(marked, room - 1)
        return ExcerptLine(number, before + marked + "…", cells(before), max(cells(marked), 1))
    room -= cells(marked)
    if cells(after) > room:
        after = _first_cells(after, max(room - 1, 0)) + "…"
    return ExcerptLine(number, before + marked + after, cells(before), max(cells(marked), 1))


def _first_cells(text: str, width: int) -> str:
    if text.isascii():
        return text[:width]
    taken = 0
    for index, character in enumerate(text):
        taken += cells(character)
        if taken > width:
            return text[:index]
    return text


def _last_cells(text: str, width: int) -> str:
    if width <= 0:
        return ""
    if text.isascii():
        return text[-width:]
    taken = 0
    for index in range(len(text) - 1, -1, -1):
        taken += cells(text[index])
        if taken > width:
            return text[index + 1 :]
    return text
