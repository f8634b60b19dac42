"""A piece of a file as text, each character with the place where it is written.

Texts inside YAML scalars, JSON strings and joined lines lose indentation, escapes and line ends on the way to
the shell. A passage keeps, for each character, the offset of what stands for it in the source, and becomes an
:class:`~mgpu_doctor.model.source.Excerpt` in the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from mgpu_doctor.model.command import Piece, Surroundings, Variable, Word
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass, replace
from mgpu_doctor.model.source import Excerpt, Location, Source, Span

STAND_IN = "${_}"
"""What the shell reads where something that is not known is filled in before it reads the text."""

_BARE = pattern(r"(?![A-Za-z_]\w*=)[\w@%+=:,./-]+\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Passage:
    """``text``, the source offset of each of its characters, and the ranges in it that are filled in beforehand.

    ``early`` are ranges of ``text`` that hold :data:`STAND_IN`, with what is written there. ``whole`` is the
    place with what encloses it: the quotation marks of a scalar. ``words`` marks a text made by :func:`spelled`.
    """

    text: str
    places: tuple[int, ...]
    early: tuple[tuple[int, int, str], ...] = ()
    whole: Span | None = None
    words: bool = False

    @classmethod
    def of(cls, text: str, start: int, end: int) -> Passage:
        """A range of a source's text as it is."""
        return cls(text[start:end], tuple(range(start, end)))

    @property
    def span(self) -> Span:
        """From the first character's place to behind the last one's."""
        if self.whole is not None:
            return self.whole
        if not self.places:
            return Span(0, 0)
        return Span(self.places[0], max(self.places[-1], self.places[0]) + 1)

    def cut(self, start: int, end: int | None = None) -> Passage:
        """A part of it; ranges that are filled in are kept when they lie inside."""
        end = len(self.text) if end is None else end
        early = tuple((a - start, b - start, w) for a, b, w in self.early if start <= a and b <= end)
        return Passage(self.text[start:end], self.places[start:end], early)

    def stripped(self) -> Passage:
        """Without the blanks around it."""
        start = len(self.text) - len(self.text.lstrip())
        return self.cut(start, max(start, len(self.text.rstrip())))

    def filled_in(self, expression: re.Pattern[str]) -> Passage:
        """With a stand-in for every match."""
        return self.replaced(expression, lambda _match: None)

    def replaced(self, expression: re.Pattern[str], by: Callable[[re.Match[str]], str | None]) -> Passage:
        """With other text for every match: None stands for something that is not known."""
        if expression.search(self.text) is None:
            return self
        parts: list[Passage] = []
        at = 0
        for match in expression.finditer(self.text):
            if any(start < match.end() and match.start() < end for start, end, _ in self.early):
                continue
            new = by(match)
            places = self.places[match.start() : match.end()]
            parts.append(self.cut(at, match.start()))
            if new is None:
                stand_in = ((0, len(STAND_IN), match.group()),)
                parts.append(Passage(STAND_IN, _spread(places, len(STAND_IN)), stand_in))
            else:
                # What is kept of the text stands at the end of the match: $$ is its second dollar.
                kept = places[len(places) - len(new) :] if match.group().endswith(new) else _spread(places, len(new))
                if len(new) == 1 and kept and (not match.start() or self.text[match.start() - 1].isspace()):
                    # A word of its own begins where the reference does.
                    kept = places[:1]
                parts.append(Passage(new, kept))
            at = match.end()
        parts.append(self.cut(at))
        return replace(joined(parts), words=self.words)


def _spread(places: Sequence[int], length: int) -> tuple[int, ...]:
    """Places for text of another length: the first ones, the rest of them at the last."""
    if not length:
        return ()
    return (*(places[min(n, len(places) - 1)] for n in range(length - 1)), places[-1])


def joined(parts: Iterable[Passage], separator: str = "") -> Passage:
    """Passages one behind the other; a separator stands where the part before it ends."""
    text: list[str] = []
    places: list[int] = []
    early: list[tuple[int, int, str]] = []
    at = 0
    for number, part in enumerate(parts):
        if number and separator:
            text.append(separator)
            places.extend([(places[-1] + 1 if places else part.span.start)] * len(separator))
            at += len(separator)
        early.extend((start + at, end + at, written) for start, end, written in part.early)
        text.append(part.text)
        places.extend(part.places)
        at += len(part.text)
    return Passage("".join(text), tuple(places), tuple(early))


def spelled(words: Sequence[Passage]) -> Passage:
    """Words that no shell reads, as text that a shell splits into the same words."""
    return replace(joined([_quoted(word) for word in words], " "), words=True)


def _quoted(word: Passage) -> Passage:
    span = word.span
    plain = word
    for start, end, _written in reversed(word.early):
        plain = Passage(plain.text[:start] + plain.text[end:], ())
    if plain.text and _BARE.match(plain.text):
        if not word.early:
            return Passage(word.text, word.places)
        return joined([_mark('"', span.start), Passage(word.text, word.places, word.early), _mark('"', span.end - 1)])
    if "'" not in word.text:
        return joined([_mark("'", span.start), Passage(word.text, word.places, word.early), _mark("'", span.end - 1)])
    parts = [_mark('"', span.start)]
    ends = {start: end for start, end, _ in word.early}
    index = 0
    while index < len(word.text):
        end = ends.get(index, index + 1)
        if index not in ends and word.text[index] in '"$`\\':
            parts.append(_mark("\\", word.places[index]))
        parts.append(word.cut(index, end))
        index = end
    return joined([*parts, _mark('"', span.end - 1)])


def _mark(text: str, place: int) -> Passage:
    return Passage(text, (place,) * len(text))


def excerpt_of(
    source: Source, passage: Passage, around: Surroundings | None = None, language: str = "bash"
) -> Excerpt | None:
    """The passage as an excerpt; None when there is no text in it."""
    if not passage.text.strip():
        return None
    if passage.early or passage.words:
        around = replace(around or Surroundings(), early=passage.early, words=passage.words)
    return Excerpt(source, passage.text, anchors_of(passage.places), language, around)


def anchors_of(places: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The runs of characters that stand one behind the other in the source."""
    out: list[tuple[int, int]] = []
    expected = -1
    for offset, place in enumerate(places):
        if place != expected:
            out.append((offset, place))
        expected = place + 1
    return tuple(out) or ((0, 0),)


def setting(source: Source, name: str, value: Passage | None, place: Span, scope: str = "env") -> Variable:
    """A variable that the file sets for its commands; ``value`` is None when it is not known.

    ``place`` covers the whole entry.
    """
    if value is None:
        pieces: tuple[Piece, ...] = (Piece(None, f"${name}", name),)
        span = place
    else:
        pieces = _pieces(value)
        span = value.span if value.places or value.whole is not None else place
    return Variable(name, Word(span, pieces), scope, Location(source, place))


def _pieces(value: Passage) -> tuple[Piece, ...]:
    out: list[Piece] = []
    at = 0
    for start, end, written in value.early:
        if at < start:
            out.append(Piece(value.text[at:start], value.text[at:start], None, True))
        out.append(Piece(None, written, "_", True, True))
        at = end
    if at < len(value.text) or not out:
        out.append(Piece(value.text[at:], value.text[at:], None, True))
    return tuple(out)
