"""Reads a log once, from its beginning to its end, in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO

from mgpu_doctor.logs.causes import ECHO, Known, deciding
from mgpu_doctor.logs.lines import LONGEST, clean
from mgpu_doctor.model.log import LogHit, LogLine, LogReading
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass, field

TELLING = (
    b"rror",
    b"ERRO",
    b"FAILED",
    b"WARN",
    b"xcept",
    b"ailed",
    b"ailure",
    b"Killed",
    b"killed",
    b"signal",
    b"not found",
    b"denied",
    b"o such",
    b"unrecognized",
    b"imed out",
    b"imeout",
    b"fatal",
    b"Fatal",
    b"exit",
    b"annot",
    b"an't",
    b"core dumped",
    b"(local_rank:",
)
"""Of these words one stands in most lines that say why a run failed; signatures without any add their own."""

PIECE = 1 << 20
MOST_HITS = 400
"""Hits that are kept; a run that fails the same way on thousands of ranks needs no more to be understood."""
MOST_ERRORS = 20
MOST_REMEMBERED = 256

_ENDS = pattern(
    r"^(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Failure)(?:: .*|:?)$"
    r"|^(?:\S+: )?error: |\bFatal Python error\b|^terminate called|\bSegmentation fault\b|\bcore dumped\b"
    r"|^(?:\S+: )?line \d+: .*(?:command not found|No such file|Killed|syntax error|Permission denied)"
    r"|^(?:bash|sh|/\S+): .*(?:not found|No such file|Permission denied)"
)
"""A line that ends a failure: an exception with its message, a shell's or an argument parser's refusal."""

_FAILED = pattern(
    r"^Traceback \(most recent call last\)|\bexitcode *: *(?!0\b)-?\d+|exits with return code = (?!0\b)-?\d+"
    r"|exited with (?:exit )?code (?!0\b)-?\d+|\bFAILED$|ChildFailedError|slurmstepd: error|srun: error|oom-kill"
)
"""A line that shows that a run failed without saying why."""

_ROOT = pattern(r"^\s*rank +: (\d+) \(local_rank: \d+\)")
_ROOT_HEAD = "Root Cause (first observed failure)"


@dataclass(slots=True)
class _Found:
    name: str
    hits: list[LogHit] = field(default_factory=list)
    errors: list[LogLine] = field(default_factory=list)
    failed: bool = False
    seen: set[tuple[str, str | None, str]] = field(default_factory=set)
    root_at: int | None = None
    root: str | None = None


def read_log(name: str, stream: BinaryIO, known: tuple[Known, ...]) -> LogReading:
    """What a log says. The stream is read to its end; its bytes may be of any encoding and length."""
    found = _Found(name)
    counter = _Counter()
    seen: dict[bytes, None] = {}
    for number, raw in _telling_lines(_pieces(stream), telling_words(known), counter):
        if raw in seen:
            # Retries and warnings repeat a line by the thousand.
            continue
        seen[raw] = None
        if len(seen) > MOST_REMEMBERED:
            del seen[next(iter(seen))]
        _look(found, number, raw.decode("utf-8", "replace"), known)
    failed = found.failed or bool(found.errors)
    return LogReading(
        name,
        counter.lines,
        counter.bytes,
        deciding(found.hits, found.errors),
        tuple(found.errors),
        failed,
        _first(found),
    )


def _first(found: _Found) -> str | None:
    if found.root is not None:
        return found.root
    return next((line.rank for line in found.errors if line.rank is not None), None)


@dataclass(slots=True)
class _Counter:
    lines: int = 0
    bytes: int = 0


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
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
        if not cut and len(rest) + len(piece) <= 2 * PIECE:
            rest += piece
            continue
        yield rest + piece[:cut] if cut else rest + piece
        rest = piece[cut:] if cut else b""
    if rest:
        yield rest


def telling_words(known: Iterable[Known]) -> tuple[bytes, ...]:
    """What a line must hold one of to be looked at: the fewer words, the faster."""
    own = (one.literals for one in known if not any(word in one.line.encode() for word in TELLING))
    return (*TELLING, *sorted({text.encode() for texts in own for text in texts}))


def _telling_lines(pieces: Iterable[bytes], words: tuple[bytes, ...], counter: _Counter) -> Iterator[tuple[int, bytes]]:
    """The lines that hold a telling word, with their numbers."""
    for piece in pieces:
        counter.bytes += len(piece)
        places = sorted(_places(piece, words))
        counted_to, number, end = 0, counter.lines + 1, -1
        for place in places:
            if place < end:
                continue
            start = piece.rfind(b"\n", 0, place) + 1
            end = piece.find(b"\n", place)
            end = len(piece) if end < 0 else end
            number += piece.count(b"\n", counted_to, start)
            counted_to = start
            # Of a line that a progress bar overwrites, the state that holds the word.
            begin = max(piece.rfind(b"\r", start, place) + 1, start)
            stop = piece.find(b"\r", place, end)
            stop = end if stop < 0 or stop == end - 1 else stop
            end = stop
            yield number, piece[begin : min(stop, begin + 4 * LONGEST)]
        counter.lines += piece.count(b"\n") + (not piece.endswith(b"\n"))


def _places(piece: bytes, words: tuple[bytes, ...]) -> set[int]:
    found = set()
    for word in words:
        at = piece.find(word)
        while at >= 0:
            found.add(at)
            line_end = piece.find(b"\n", at)
            # One place a line is enough for each word.
            at = piece.find(word, line_end) if line_end >= 0 else -1
    return found


def _look(found: _Found, number: int, raw: str, known: tuple[Known, ...]) -> None:
    text, rank = clean(raw)
    _follow_summary(found, number, text)
    if ECHO.search(text):
        found.failed = True
        return
    if _FAILED.search(text):
        found.failed = True
    line = LogLine(found.name, number, rank, text)
    if len(found.errors) < MOST_ERRORS and _ENDS.search(text):
        found.errors.append(line)
    if len(found.hits) < MOST_HITS:
        _match(found, line, known)


def _match(found: _Found, line: LogLine, known: tuple[Known, ...]) -> None:
    for one in known:
        if one.literals and not any(text in line.text for text in one.literals):
            continue
        match = one.search.search(line.text)
        key = (one.code, line.rank, one.where)
        if match is not None and key not in found.seen:
            found.seen.add(key)
            found.hits.append(LogHit(one.code, line, match.start(), match.end(), one.weak, one.severity, one.where))


def _follow_summary(found: _Found, number: int, text: str) -> None:
    """Follow the summary that torchrun ends with (torch 2.6.0, errors/__init__.py ChildFailedError)."""
    if _ROOT_HEAD in text:
        found.root_at = number
    elif found.root_at is not None and number - found.root_at < 8:
        match = _ROOT.match(text)
        if match is not None:
            found.root = match.group(1)
            found.root_at = None
