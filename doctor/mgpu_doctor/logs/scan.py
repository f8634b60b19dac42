"""Finds the few lines of a log that are worth a look, a piece at a time.

Most of a log is the same few lines over and over with other numbers. So lines are told apart by their shape, which is
the line without its digits: each shape is searched once for telling words, and whoever has none is never looked at
again. What costs is new text, not length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO

from mgpu_doctor.logs.lines import LONGEST
from mgpu_doctor.model.record import dataclass, field

TELLING = (
    b"rror",
    b"ERRO",
    b"FAILED",
    b"WARN",
    b"xcept",
    b"ailed",
    b"ailure",
    b"illed",
    b"ignal",
    b"not found",
    b"denied",
    b"o such",
    b"nrecognized",
    b"imed out",
    b"imeout",
    b"atal",
    b"exit",
    b"annot",
    b"an't",
    b"core dumped",
    b"(local_rank:",
)
"""Of these words one stands in most lines that say why a run failed; signatures without any add their own."""

PIECE = 1 << 18
MOST_SHAPES = 20_000
MOST_LOOKS = 1_000
"""Looks at lines of one shape: what a thousand of them have not told, the next does not either."""

_DIGITS = b"0123456789"
_PLAIN = bytes.maketrans(b"\r", b"\n")
_NEVER_DULL = b"(local_rank:"
"""torchrun lists every failed rank before the one that failed first."""


@dataclass(slots=True)
class Counter:
    """What was read so far."""

    lines: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _Shapes:
    words: tuple[bytes, ...]
    dull: set[bytes] = field(default_factory=set)
    looks: dict[bytes, int] = field(default_factory=dict)


def shape_of(text: bytes) -> bytes:
    """A line or word without its digits."""
    return text.translate(None, _DIGITS)


def pieces(stream: BinaryIO) -> Iterator[bytes]:
    """The stream in pieces that end with a line, or that are a part of one too long to matter; UTF-16 as UTF-8."""
    rest = b""
    encoding: str | None = None
    first = True
    while piece := stream.read(PIECE):
        if first and piece[:2] in (b"\xff\xfe", b"\xfe\xff"):
            encoding = "utf-16-le" if piece[:2] == b"\xff\xfe" else "utf-16-be"
            piece = piece[2:]
        first = False
        if encoding is not None:
            odd = stream.read(1) if len(piece) % 2 else b""
            piece = (piece + odd).decode(encoding, "replace").encode("utf-8", "replace")
        cut = piece.rfind(b"\n") + 1
        if not cut and len(rest) + len(piece) <= 8 * PIECE:
            rest += piece
            continue
        yield rest + piece[:cut] if cut else rest + piece
        rest = piece[cut:] if cut else b""
    if rest:
        yield rest


def telling_lines(
    pieces: Iterable[bytes], words: tuple[bytes, ...], counter: Counter
) -> Iterator[tuple[int, bytes, tuple[bytes, ...]]]:
    """The lines that hold a telling word: number from 1, text, the words; of a progress bar each state that holds one.

    ``words`` have no digits (:func:`shape_of`).
    """
    shapes = _Shapes(words)
    for piece in pieces:
        counter.bytes += len(piece)
        found = _worth_a_look(piece, shapes)
        if found:
            yield from _lines_of(piece, found, shapes, counter.lines + 1)
        counter.lines += piece.count(b"\n") + (not piece.endswith(b"\n"))


def _worth_a_look(piece: bytes, shapes: _Shapes) -> dict[bytes, tuple[bytes, ...]]:
    new = set(piece.translate(_PLAIN, _DIGITS).split(b"\n"))
    new -= shapes.dull
    text = b"\n".join(new)
    present = [word for word in shapes.words if word in text]
    found = {}
    for shape in new if present else ():
        held = tuple([word for word in present if word in shape])
        if held:
            found[shape] = held
    if len(shapes.dull) > MOST_SHAPES:
        shapes.dull.clear()
    shapes.dull.update(shape for shape in new if shape not in found and len(shape) < LONGEST)
    return found


def _lines_of(
    piece: bytes, found: dict[bytes, tuple[bytes, ...]], shapes: _Shapes, first: int
) -> Iterator[tuple[int, bytes, tuple[bytes, ...]]]:
    for number, line in enumerate(piece.split(b"\n"), first):
        for state in line.split(b"\r") if b"\r" in line else (line,):
            shape = state.translate(None, _DIGITS)
            held = found.get(shape)
            if held is None:
                continue
            looks = shapes.looks[shape] = shapes.looks.get(shape, 0) + 1
            if looks > MOST_LOOKS and _NEVER_DULL not in shape:
                shapes.dull.add(shape)
                del shapes.looks[shape]
                del found[shape]
                continue
            if len(shapes.looks) > MOST_SHAPES:
                shapes.looks.clear()
            yield number, state[: 4 * LONGEST], held
