"""String literals of Python as text with the place of every character, and what stands for what is not known.

Literals are read as in CPython 3.11, "Lexical analysis", sections 2.4.1 to 2.4.3; ``ast`` gives the place of an
expression as lines and columns in bytes.
"""

from __future__ import annotations

import ast
import re

from mgpu_doctor.model.command import Surroundings
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import replace
from mgpu_doctor.model.source import Excerpt, Source, Span
from mgpu_doctor.read.passage import STAND_IN, Passage, anchors_of, excerpt_of, joined

_LITERAL = pattern(r"(?P<prefix>[A-Za-z]{0,2})(?P<quote>\"\"\"|'''|\"|')")
_ESCAPE = pattern(
    r"\\(?:\r\n|\n|\r|[0-7]{1,3}|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|N\{[^}\n]*\}|.)", re.DOTALL
)
_SIMPLE = {
    "\\": "\\", "'": "'", '"': '"', "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"
}  # fmt: skip
_NEWLINE = pattern(r"\r\n|\r|\n")
_LONGEST = 60
"""Characters of an expression that is shown in a command."""


class Lines:
    """Offsets of the places that ``ast`` gives as a line and a column in bytes."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.starts = [0, *(match.end() for match in _NEWLINE.finditer(text))]
        self.ascii = text.isascii()
        # A byte order mark is no part of what ast counts.
        self.mark = 1 if text.startswith("\ufeff") else 0

    def offset(self, line: int, column: int) -> int:
        """The offset of a column, counted in bytes, of a line, counted from 1."""
        start = self.starts[min(line, len(self.starts)) - 1] + (self.mark if line == 1 else 0)
        if self.ascii:
            return start + column
        end = self.starts[line] if line < len(self.starts) else len(self.text)
        return start + len(self.text[start:end].encode("utf-8", "surrogatepass")[:column].decode("utf-8", "ignore"))

    def span(self, node: ast.expr | ast.stmt) -> Span:
        """Where an expression stands."""
        end_line, end_column = node.end_lineno or node.lineno, node.end_col_offset or node.col_offset
        return Span(self.offset(node.lineno, node.col_offset), self.offset(end_line, end_column))


def decoded(text: str, span: Span, *, document: bool = False) -> Passage:
    """The string that the literals in a span make, with the place of every character.

    In a ``document`` a backslash at the end of a line stays: people copy the command as the file shows it.
    """
    parts: list[Passage] = []
    at = span.start
    while at < span.end:
        character = text[at]
        if character == "#":
            found = text.find("\n", at, span.end)
            at = span.end if found < 0 else found
            continue
        literal = _LITERAL.match(text, at)
        if literal is None or literal.end() > span.end:
            at += 1
            continue
        quote = literal["quote"]
        start = literal.end()
        raw = "r" in literal["prefix"].lower()
        formatted = "f" in literal["prefix"].lower() or "t" in literal["prefix"].lower()
        end = _literal_end(text, start, quote, span.end)
        parts.append(_body(text, start, end, raw=raw, formatted=formatted, document=document))
        at = end + len(quote)
    whole = joined(parts)
    return replace(whole, whole=span)


def _literal_end(text: str, at: int, quote: str, limit: int) -> int:
    while at < limit:
        if text[at] == "\\":
            at += 2
        elif text.startswith(quote, at):
            return at
        else:
            at += 1
    return limit


def _body(text: str, start: int, end: int, *, raw: bool, formatted: bool, document: bool) -> Passage:
    """The text between the quotation marks."""
    out: list[str] = []
    places: list[int] = []
    early: list[tuple[int, int, str]] = []
    at = start
    while at < end:
        character = text[at]
        if character == "\\" and not raw:
            match = _ESCAPE.match(text, at, end)
            if match is None:
                break
            value = _escaped(match.group()[1:])
            if document and match.group()[1:] in ("\n", "\r\n"):
                value = match.group()
                places.extend(range(at, match.end()))
            else:
                places.extend([at] * (len(value) - 1) + [match.end() - 1] * min(len(value), 1))
            out.append(value)
            at = match.end()
        elif formatted and character in "{}":
            if text[at + 1 : at + 2] == character:
                out.append(character)
                places.append(at)
                at += 2
                continue
            stop = _field_end(text, at, end)
            begin = len(places)
            mark = _stand_in(text[at:stop])
            out.append(mark)
            places.extend(min(at + n, stop - 1) for n in range(len(mark) - 1))
            places.append(stop - 1)
            early.append((begin, begin + len(mark), shown(text[at:stop])))
            at = stop
        else:
            out.append(character)
            places.append(at)
            at += 1
    return Passage("".join(out), tuple(places), tuple(early))


def _escaped(code: str) -> str:
    first = code[0]
    if first in _SIMPLE:
        return _SIMPLE[first]
    if first in "\r\n":
        return ""
    try:
        if first in "xuU":
            return chr(int(code[1:], 16))
        if first in "01234567":
            return chr(int(code, 8))
    except ValueError:
        pass
    return "\\" + code


def _field_end(text: str, at: int, end: int) -> int:
    """Behind the brace that closes a field of an f-string."""
    depth = 0
    while at < end:
        character = text[at]
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
            if depth <= 0:
                return at + 1
        elif character in "'\"":
            close = text.find(character, at + 1, end)
            at = at if close < 0 else close
        at += 1
    return end


def _stand_in(expression: str) -> str:
    """What the shell reads in the place of an expression: a variable whose name says what the author called it."""
    name = re.fullmatch(r"\{?\*?(?:\w+\.)*([A-Za-z_]\w*)(?:\(\))?(?:![rsa])?(?::[^}]*)?\}?", expression)
    return STAND_IN if name is None else "${_" + name.group(1) + "}"


def shown(text: str) -> str:
    """An expression as it is shown in a command: on one line, and not too long."""
    short = " ".join(text.split())
    return short if len(short) <= _LONGEST else short[: _LONGEST - 2] + "…}"


def unknown_at(span: Span, expression: str, written: str) -> Passage:
    """What stands for an expression, at a place of its own."""
    mark = _stand_in(expression)
    return Passage(mark, places_for(span, len(mark)), ((0, len(mark), written),))


def places_for(span: Span, length: int) -> tuple[int, ...]:
    """Places for so many characters that stand for a span."""
    last = max(span.end - 1, span.start)
    return (*(min(span.start + n, last) for n in range(length - 1)), last)


def own_source(source: Source, passage: Passage, around: Surroundings | None, kind: str) -> Excerpt | None:
    """A command as the text of a source that stands in the file, whole as an excerpt."""
    if not passage.text.strip():
        return None
    # In the source's text stand-ins are what the file has.
    parts: list[str] = []
    places: list[int] = []
    inner: list[int] = []
    at = 0
    for start, end, written in (*passage.early, (len(passage.text), len(passage.text), "")):
        inner.extend(range(len(places), len(places) + start - at))
        parts.append(passage.text[at:start])
        places.extend(passage.places[at:start])
        begin = len(places)
        parts.append(written)
        if written:
            first, last = passage.places[start], passage.places[end - 1]
            places.extend(min(first + n, last) for n in range(len(written) - 1))
            places.append(last)
            inner.extend(min(begin + n, begin + len(written) - 1) for n in range(end - start - 1))
            inner.append(begin + len(written) - 1)
        at = end
    text = "".join(parts)
    end = max(places) + 1
    own = Source(
        source.name, text, kind, source.path, 1, Excerpt(source, text, (*anchors_of(places), (len(text), end)))
    )
    return excerpt_of(own, Passage(passage.text, tuple(inner), passage.early), around)
