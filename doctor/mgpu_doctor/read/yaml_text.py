"""YAML as a tree whose scalars keep the place of every character.

The structure comes from PyYAML's events (libyaml's where it is built in): no values are constructed,
aliases lead to the node that they name, and depth and size are bounded. A file is read document by document, so
that one which YAML refuses (a template of Helm or Jinja) hides no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass, replace
from mgpu_doctor.model.source import Source, Span
from mgpu_doctor.read.passage import Passage, joined

MOST_NODES = 100_000
"""Nodes read from one document; no file of commands comes near."""
DEEPEST = 60
LARGEST = 2 * 1024 * 1024
"""Characters above which a file is not looked into: definitions and locks that machines write."""

_DOCUMENT = pattern(r"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_HEADER = pattern(r"[|>](?:[+-]?[1-9]?|[1-9][+-])[ \t]*(?:#[^\n]*)?\r?(?:\n|\Z)")
_ESCAPE = pattern(r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|\r?\n[ \t]*|.)", re.DOTALL)
_BREAK = pattern(r"[ \t]*\r?\n(?:[ \t]*\r?\n)*[ \t]*")
_ESCAPED = {
    "0": "\0", "a": "\a", "b": "\b", "t": "\t", "\t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r",
    "e": "\x1b", " ": " ", '"': '"', "/": "/", "\\": "\\", "N": "\x85", "_": "\xa0", "L": "\u2028", "P": "\u2029",
}  # fmt: skip
"""YAML 1.1, 5.7: what a letter behind a backslash stands for."""


@dataclass(frozen=True, slots=True)
class Scalar:
    """A scalar: ``value`` as YAML reads it, ``style`` (None for a plain one, else ``'``, ``"``, ``|``, ``>``)."""

    source: Source
    value: str
    style: str | None
    span: Span

    @property
    def passage(self) -> Passage:
        """The value with the place of every character."""
        return _passage(self)

    @property
    def is_null(self) -> bool:
        """Whether it is no text but the absence of any."""
        return self.style is None and self.value in ("", "~", "null", "Null", "NULL")


@dataclass(slots=True)
class Sequence:
    """A list."""

    items: list[Node]
    span: Span


@dataclass(slots=True)
class Mapping:
    """Keys and values, in the order of the file; keys that are no scalars are left out."""

    entries: list[tuple[Scalar, Node]]
    span: Span

    def get(self, key: str) -> Node | None:
        """The value of a key, the last one when it is given twice; merged keys (``<<``) count behind own ones."""
        for name, value in reversed(self.entries):
            if name.value == key:
                return value
        for name, value in self.entries:
            if name.value == "<<" and name.style is None:
                for merged in value.items if isinstance(value, Sequence) else [value]:
                    # One level: a chain of merges is rare, and a cycle must not be followed.
                    found = (
                        next((v for k, v in merged.entries if k.value == key), None)
                        if isinstance(merged, Mapping)
                        else None
                    )
                    if found is not None:
                        return found
        return None

    def has(self, *keys: str) -> bool:
        """Whether all the keys are there."""
        return all(self.get(key) is not None for key in keys)


Node = Scalar | Sequence | Mapping


@dataclass(frozen=True, slots=True)
class Document:
    """One document: its ``root``, None when it is empty or cannot be read; ``blocks`` are its block scalars."""

    root: Node | None
    is_empty: bool = False
    blocks: tuple[Span, ...] = ()


def read_documents(source: Source) -> Iterator[Document]:
    """The documents of a file, in order."""
    import yaml

    text = source.text
    if len(text) > LARGEST:
        return
    start = 1 if text.startswith("\ufeff") else 0
    starts = [start, *(match.start() for match in _DOCUMENT.finditer(text) if match.start() > start)]
    for number, begin in enumerate(starts):
        end = starts[number + 1] if number + 1 < len(starts) else len(text)
        try:
            reader = _Reader(source, begin, end)
            root = reader.root()
        except (yaml.YAMLError, ValueError, StopIteration, _TooMuch):
            yield Document(None)
        else:
            yield Document(root, root is None, tuple(reader.blocks))


def documents(source: Source) -> Iterator[Node]:
    """The roots of the documents that can be read, in order."""
    for document in read_documents(source):
        if document.root is not None:
            yield document.root


class _TooMuch(Exception):  # noqa: N818 - it ends the reading of one document
    """A document is larger or deeper than files of commands are."""


class _Reader:
    """Events → nodes for one document."""

    def __init__(self, source: Source, begin: int, end: int) -> None:
        import yaml

        base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self.source = source
        self.begin = begin
        self.events = yaml.parse(source.text[begin:end], Loader=base)
        self.anchors: dict[str, tuple[Node, int, int]] = {}
        """What an alias stands for, with the count of its nodes and how deep they are nested."""
        self.blocks: list[Span] = []
        self.count = 0
        self.deepest = 0

    def root(self) -> Node | None:
        """The document's node, None when it is empty."""
        import yaml

        for event in self.events:
            if isinstance(event, yaml.NodeEvent):
                node = self.node(event, 0)
                # What stands behind it decides whether YAML takes the document at all.
                for _rest in self.events:
                    pass
                return node
        return None

    def node(self, event: Any, depth: int) -> Node:
        """The node that begins with an event."""
        import yaml

        if isinstance(event, yaml.AliasEvent):
            # An alias inside its own node names nothing yet. What it leads to counts as often as it stands.
            if event.anchor not in self.anchors:
                raise _TooMuch
            found, count, height = self.anchors[event.anchor]
            self.step(count, depth + height)
            return found
        self.step(1, depth)
        count, self.deepest, outer = self.count, depth, self.deepest
        node = self.fresh(event, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = (node, self.count - count + 1, self.deepest - depth)
        self.deepest = max(outer, self.deepest)
        return node

    def step(self, count: int, depth: int) -> None:
        """Refuse to go further than files of commands do."""
        self.count += count
        self.deepest = max(self.deepest, depth)
        if self.count > MOST_NODES or depth > DEEPEST:
            raise _TooMuch

    def fresh(self, event: Any, depth: int) -> Node:
        """A node that is no alias."""
        import yaml

        span = Span(event.start_mark.index + self.begin, event.end_mark.index + self.begin)
        if isinstance(event, yaml.ScalarEvent):
            if not event.style:
                # libyaml's mark stands behind the blanks and line breaks that follow.
                text = self.source.text[span.start : span.end]
                span = Span(span.start, span.start + len(text.rstrip(" \t\r\n")))
            if event.style in ("|", ">"):
                self.blocks.append(span)
            return Scalar(self.source, event.value, event.style or None, span)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(span, depth)
        return self.mapping(span, depth)

    def sequence(self, span: Span, depth: int) -> Sequence:
        import yaml

        items: list[Node] = []
        end = span.end
        event: Any
        for event in self.events:
            end = event.end_mark.index + self.begin
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self.node(event, depth + 1))
        return Sequence(items, Span(span.start, end))

    def mapping(self, span: Span, depth: int) -> Mapping:
        import yaml

        entries: list[tuple[Scalar, Node]] = []
        end = span.end
        event: Any
        for event in self.events:
            end = event.end_mark.index + self.begin
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self.node(event, depth + 1)
            value = self.node(next(self.events), depth + 1)
            if isinstance(key, Scalar):
                entries.append((key, value))
        return Mapping(entries, Span(span.start, end))


# ---------------------------------------------------------------- scalars


def _passage(scalar: Scalar) -> Passage:
    """The characters of a scalar with their places; all at its start where its form is not understood."""
    text, span = scalar.source.text, scalar.span
    found: Passage | None
    if scalar.style is None:
        found = _folded_flow(Passage.of(text, span.start, span.end), "plain")
    elif scalar.style == "'":
        inner = _folded_flow(Passage.of(text, span.start + 1, span.end - 1), "single")
        found = replace(inner, whole=span)
    elif scalar.style == '"':
        found = replace(_folded_flow(Passage.of(text, span.start + 1, span.end - 1), "double"), whole=span)
    else:
        found = _block(scalar)
    if found is not None and found.text == scalar.value:
        return found
    return Passage(scalar.value, (span.start,) * len(scalar.value), (), span)


def _folded_flow(raw: Passage, kind: str) -> Passage:
    """A plain or quoted scalar: line breaks folded, escapes read."""
    parts: list[Passage] = []
    at = 0
    text = raw.text
    while at < len(text):
        character = text[at]
        if kind == "double" and character == "\\":
            match = _ESCAPE.match(text, at)
            if match is None:
                return Passage("", ())
            parts.append(Passage(_unescaped(match.group()), raw.places[at : at + 1]))
            if not parts[-1].text:
                parts.pop()
            at = match.end()
            continue
        if kind == "single" and text.startswith("''", at):
            parts.append(raw.cut(at + 1, at + 2))
            at += 2
            continue
        if character in " \t\r\n":
            match = _BREAK.match(text, at)
            if match is not None:
                count = match.group().count("\n")
                place = raw.places[at + match.group().index("\n")]
                parts.append(Passage(" " if count == 1 else "\n" * (count - 1), (place,) * max(1, count - 1)))
                at = match.end()
                continue
            end = at + 1
            while end < len(text) and text[end] in " \t\r":
                end += 1
        else:
            end = at + 1
            while end < len(text) and text[end] not in " \t\r\n\\'":
                end += 1
        parts.append(raw.cut(at, end))
        at = end
    return joined(parts)


def _unescaped(escape: str) -> str:
    letter = escape[1]
    if letter in "xuU":
        try:
            return chr(int(f"0x{escape[2:]}", 0)) if len(escape) > 2 else letter
        except (ValueError, OverflowError):
            return letter
    if letter in "\r\n":
        return ""
    return _ESCAPED.get(letter, letter)


def _block(scalar: Scalar) -> Passage | None:
    """A literal or folded block: its lines without their indentation, folded as YAML folds them."""
    text, span = scalar.source.text, scalar.span
    header = _HEADER.match(text, span.start)
    if header is None:
        return None
    lines = _lines(text, header.end(), span.end)
    indicator = re.search(r"[1-9]", header.group().partition("#")[0])
    widths = range(1, min(_indentation(text, lines), DEEPEST) + 1) if indicator else [_indentation(text, lines)]
    chomping = next((mark for mark in "+-" if mark in header.group().partition("#")[0]), "")
    for width in widths:
        found = _unfolded(text, lines, width, folded=scalar.style == ">", chomping=chomping)
        if found.text == scalar.value:
            return found
    return None


def _lines(text: str, start: int, end: int) -> list[tuple[int, int, int]]:
    """Start, end without its line break, and the break's place (-1 for none), for each line up to ``end``."""
    out = []
    while start < end:
        stop = text.find("\n", start)
        if stop < 0:
            out.append((start, len(text), -1))
            break
        last = stop - 1 if stop > start and text[stop - 1] == "\r" else stop
        out.append((start, last, last))
        start = stop + 1
    return out


def _indentation(text: str, lines: list[tuple[int, int, int]]) -> int:
    for start, end, _break in lines:
        content = text[start:end]
        if content.strip(" "):
            return len(content) - len(content.lstrip(" "))
    return max((end - start for start, end, _break in lines), default=0)


def _unfolded(text: str, lines: list[tuple[int, int, int]], width: int, *, folded: bool, chomping: str) -> Passage:
    """The lines as one text. Follows PyYAML 6.0.2, scanner.py scan_block_scalar()."""
    characters: list[str] = []
    places: list[int] = []
    pending: list[int] = []
    """The places of line breaks since the last line with content."""
    before = ""
    for start, end, stop in lines:
        content = text[start + width : end]
        if not content and not text[start:end].strip(" "):
            pending.extend([stop] if stop >= 0 else [])
            continue
        if text[start : start + width].strip(" "):
            break
        if characters or pending:
            fold = folded and before and before not in " \t" and content[0] not in " \t"
            if not before or not fold:
                kept = pending
            else:
                kept = pending[1:] if len(pending) > 1 else []
                if not kept:
                    characters.append(" ")
                    places.append(pending[0])
            characters.append("\n" * len(kept))
            places.extend(kept)
        characters.append(content)
        places.extend(range(start + width, end))
        pending = [stop] if stop >= 0 else []
        before = content[0]
    if before and chomping != "-":
        kept = pending if chomping == "+" else pending[:1]
        characters.append("\n" * len(kept))
        places.extend(kept)
    elif not before and chomping == "+":
        characters.append("\n" * len(pending))
        places.extend(pending)
    return Passage("".join(characters), tuple(places))
