"""Text with a name, and positions in it.

Every position in the program is an offset in code points into the text of a
:class:`Source`, exactly as the file holds it (carriage returns included).
Line and column are computed only when something is shown.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from mgpu_doctor.model.record import dataclass

if TYPE_CHECKING:
    from mgpu_doctor.model.command import Surroundings


class Span(NamedTuple):
    """A half-open range ``[start, end)`` of offsets into one source's text."""

    start: int
    end: int

    def overlaps(self, other: Span) -> bool:
        """Whether the two ranges share a character; empty ranges share none."""
        return self.start < other.end and other.start < self.end

    def contains(self, other: Span) -> bool:
        """Whether ``other`` lies wholly inside this range."""
        return self.start <= other.start and other.end <= self.end


class Position(NamedTuple):
    """A place as people count it: line and column both start at 1, columns in code points."""

    line: int
    column: int


@lru_cache(maxsize=64)
def _line_starts(text: str) -> tuple[int, ...]:
    starts = [0]
    at = text.find("\n")
    while at >= 0:
        starts.append(at + 1)
        at = text.find("\n", at + 1)
    return tuple(starts)


@dataclass(frozen=True, slots=True)
class Source:
    """A text that commands are read from.

    ``name`` is what people are shown: the path as the user gave it,
    ``<command>`` for a command line, ``<stdin>`` for standard input.
    ``kind`` says how the text is read (``command``, ``shell``, ``markdown``,
    ``python``, ``yaml``, ``json``, ``log`` …). ``path`` is the file it came from, None when there is none.
    ``first_line`` is the number of the text's first line in that file: a log is too long to be held as a whole.
    """

    name: str
    text: str
    kind: str
    path: str | None = None
    first_line: int = 1
    within: Excerpt | None = None
    """For a text that stands inside another (the cells of a notebook, a string of a program): the same text as an
    excerpt of that source. Lines and columns are then counted in the file that holds it."""

    def position(self, offset: int) -> Position:
        """Line and column of an offset; offsets outside the text are moved to its nearest end."""
        offset = max(0, min(offset, len(self.text)))
        if self.within is not None:
            return self.within.source.position(self.within.locate(offset, offset).start)
        starts = _line_starts(self.text)
        line = bisect_right(starts, offset)
        return Position(line + self.first_line - 1, offset - starts[line - 1] + 1)

    def slice(self, span: Span) -> str:
        """The text that a span covers."""
        return self.text[span.start : span.end]

    def line_span(self, line: int) -> Span:
        """The range of a line (counted as :meth:`position` does) without its newline.

        Raises ``IndexError`` for a line that the text does not have.
        """
        starts = _line_starts(self.text)
        if self.within is not None:
            # The first line of this text that begins on that line of the file, or else the one that goes on there.
            number = bisect_left(starts, line, key=lambda start: self.position(start).line)
            begins = number < len(starts) and self.position(starts[number]).line == line
            line = number + 1 if begins else number
        line -= self.first_line - 1
        if line < 1:
            raise IndexError(line)
        start = starts[line - 1]
        end = starts[line] - 1 if line < len(starts) else len(self.text)
        return Span(start, end)

    @property
    def line_count(self) -> int:
        """How many lines the text has; a text without a newline has one."""
        return len(_line_starts(self.text))


@dataclass(frozen=True, slots=True)
class Location:
    """A span in a source: where something was seen."""

    source: Source
    span: Span

    @property
    def in_file(self) -> Location:
        """The same place in the file, for a source that stands inside another; itself otherwise."""
        place = self
        while place.source.within is not None:
            place = Location(place.source.within.source, place.source.within.cover(*place.span))
        return place

    def __str__(self) -> str:
        position = self.source.position(self.span.start)
        return f"{self.source.name}:{position.line}:{position.column}"


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A piece of a source that is text of one language, with the way back to the source.

    A shell block in an indented Markdown list loses its indentation, a command
    inside a JSON string loses its escapes; ``anchors`` keeps, for each run of
    characters copied unchanged, ``(offset in text, offset in source.text)``,
    sorted, the first at offset 0. Between two anchors both offsets advance together.
    """

    source: Source
    text: str
    anchors: tuple[tuple[int, int], ...] = ((0, 0),)
    language: str = "bash"
    """``bash``, or ``console`` for a transcript with prompts and output."""
    around: Surroundings | None = None
    """What the file says about the shell that reads the text; None when the file is that text alone."""

    @classmethod
    def whole(cls, source: Source, language: str = "bash") -> Excerpt:
        """The whole text of a source."""
        return cls(source, source.text, ((0, 0),), language)

    def locate(self, start: int, end: int) -> Span:
        """The span in the source that holds ``text[start:end]``."""
        if end <= start:
            at = self._offset(start)
            return Span(at, at)
        return Span(self._offset(start), self._offset(end - 1) + 1)

    def cover(self, start: int, end: int) -> Span:
        """The smallest span in the source that holds all of ``text[start:end]``, whatever its order there."""
        span = self.locate(start, end)
        first, last = min(span), max(span)
        inside = (bisect_right(self.anchors, (start, 1 << 62)), bisect_right(self.anchors, (end - 1, 1 << 62)))
        for index in range(*inside):
            text_offset, source_offset = self.anchors[index]
            before, outer = self.anchors[index - 1]
            first = min(first, source_offset)
            last = max(last, source_offset + 1, outer + text_offset - before if before >= start else 0)
        return Span(first, last)

    def _offset(self, offset: int) -> int:
        index = bisect_right(self.anchors, (offset, 1 << 62)) - 1
        text_offset, source_offset = self.anchors[max(index, 0)]
        return source_offset + offset - text_offset
