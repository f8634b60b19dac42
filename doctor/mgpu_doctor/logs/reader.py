"""Reads a log once, from its beginning to its end, in pieces."""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

from mgpu_doctor.logs.causes import ECHO, HUSH, Known, deciding
from mgpu_doctor.logs.lines import clean
from mgpu_doctor.logs.scan import TELLING, Counter, pieces, shape_of, telling_lines
from mgpu_doctor.logs.startup import WORDS, StartUp
from mgpu_doctor.model.log import LogHit, LogLine, LogReading
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass, field

MOST_HITS = 400
"""Hits that are kept; a run that fails the same way on thousands of ranks needs no more to be understood."""
MOST_ERRORS = 20
MOST_REMEMBERED = 256

_ENDS = pattern(
    r"^(?:[\w.-]+: )?(?:[\w.]+\.)?(?:[A-Z]\w*(?:Error|Exception|Failure|OutOfMemory|Timeout)|Exception|Error)"
    r"(?:: (?!-?[\d.]+%?$).*|:?)$|^(?:[a-z_]\w*\.)+[A-Z][a-zA-Z]+: \S"
    r"|^socket\.gaierror: "
    r"|^(?:\S+: ){0,2}error: (?!-?[\d.]+\b)|^Fatal Python error\b|^terminate called"
    r"|^(?:\S+: line \d+: +\d+ )?(?:Segmentation fault|Aborted|Bus error|Illegal instruction)\b"
    r"|^(?:\S+: )?line \d+: .*(?:command not found|No such file|Killed|syntax error|Permission denied)"
    r"|^(?:bash|sh|/\S+): .*(?:not found|No such file|Permission denied)"
    r"|\bterminated with exception: |EngineCore failed to start"
    r"|^mpirun has detected an attempt to run as root"
)
"""A line that ends a failure: an exception with its message, a shell's or an argument parser's refusal."""

_FAILED = pattern(
    r"^Traceback \(most recent call last\)|slurmstepd: error|srun: error|oom-kill"
    r"|The actor (?:died|is dead)|Worker exit type: SYSTEM_ERROR|\bdied, exit code: -\d"
    r"|\*\*\* Process received signal \*\*\*|ORTE was unable to reliably start"
)
"""A line that shows that a run failed without saying why."""

_FALLEN = pattern(
    r"\bexitcode *: *(?!0\b)-?\d+|exits with return code = (?!0\b)-?\d+|exited with (?:exit )?code (?!0\b)-?\d+"
    r"|\bFAILED$|ChildFailedError|CalledProcessError|oom[_-]kill"
)
"""A launcher's or the kernel's own word that a process has fallen."""

_ENDED_WELL = pattern(
    r"'train_runtime'|^\*{5} (?:train|eval|predict) metrics \*{5}|Process \d+ exits successfully"
    r"|`Trainer\.fit` stopped: |Local worker group finished \(SUCCEEDED\)"
)
"""The last words of a run that came to its end: transformers' trainer, deepspeed's launcher, Lightning, torchrun."""

ENDING = (b"'train_runtime'", b"***** ", b"exits successfully", b"`Trainer.fit`", b"(SUCCEEDED)")

_ROOT = pattern(r"^\s*rank +: (\d+) \(local_rank: \d+\)")
_ROOT_HEAD = "Root Cause (first observed failure)"


@dataclass(slots=True)
class _Found:
    name: str
    hits: list[LogHit] = field(default_factory=list)
    errors: list[LogLine] = field(default_factory=list)
    failed: bool = False
    fallen: bool = False
    last_failure: int = 0
    ended_well: int = 0
    seen: set[tuple[str, str | None, str]] = field(default_factory=set)
    root_at: int | None = None
    root: str | None = None
    start: StartUp = field(default_factory=StartUp)


def read_log(name: str, stream: BinaryIO, known: tuple[Known, ...]) -> LogReading:
    """What a log says. The stream is read to its end; its bytes may be of any encoding and length."""
    found = _Found(name)
    counter = Counter()
    seen: dict[bytes, None] = {}
    candidates = _Candidates(known)
    for number, raw, words in telling_lines(pieces(stream), candidates.words, counter):
        if raw in seen:
            # Retries and warnings repeat a line by the thousand.
            continue
        seen[raw] = None
        if len(seen) > MOST_REMEMBERED:
            del seen[next(iter(seen))]
        _look(found, number, raw.decode("utf-8", "replace"), candidates.of(words))
    failed = (found.failed or bool(found.errors)) and not _came_to_its_end(found)
    hits = deciding(found.hits, found.errors, failed=failed, ended_well=_came_to_its_end(found), lines=counter.lines)
    errors, parallel = tuple(found.errors), found.start.told()
    return LogReading(name, counter.lines, counter.bytes, hits, errors, failed, _first(found), parallel)


def _came_to_its_end(found: _Found) -> bool:
    return found.ended_well > found.last_failure and not found.fallen


def _first(found: _Found) -> str | None:
    if found.root is not None:
        return found.root
    return next((line.rank for line in found.errors if line.rank is not None), None)


def telling_words(known: Iterable[Known]) -> tuple[bytes, ...]:
    """What a line must hold one of to be looked at, without digits."""
    texts = {shape_of(text.encode()) for one in known for text in one.literals}
    own = {text for text in texts if not any(word in text for word in TELLING)}
    own = {text for text in own if not any(other in text for other in own if other != text)}
    return tuple(dict.fromkeys((*TELLING, *map(shape_of, (*ENDING, *WORDS)), *sorted(own))))


class _Candidates:
    """Which signatures a line can fit, by the telling words that it holds: a few of hundreds."""

    def __init__(self, known: tuple[Known, ...]) -> None:
        self.words = telling_words(known)
        self._known = known
        self._needs = [self._words_of(one) for one in known]
        self._by_words: dict[tuple[bytes, ...], tuple[Known, ...]] = {}

    def _words_of(self, one: Known) -> frozenset[bytes]:
        """A word for each of the signature's texts; empty when any line may fit."""
        texts = (shape_of(text.encode()) for text in one.literals)
        return frozenset(next(word for word in self.words if word in text) for text in texts)

    def of(self, words: tuple[bytes, ...]) -> tuple[Known, ...]:
        """The signatures that a line with these words can fit."""
        found = self._by_words.get(words)
        if found is None:
            needs = zip(self._known, self._needs, strict=True)
            found = tuple(one for one, need in needs if not need or not need.isdisjoint(words))
            self._by_words[words] = found
        return found


def _look(found: _Found, number: int, raw: str, known: tuple[Known, ...]) -> None:
    text, rank = clean(raw)
    _follow_summary(found, number, text)
    found.start.look(text)
    if _FALLEN.search(text):
        found.failed = found.fallen = True
    if ECHO.search(text):
        found.failed = True
        return
    if HUSH.search(text):
        return
    if _ENDED_WELL.search(text):
        found.ended_well = number
        return
    line = LogLine(found.name, number, rank, text)
    if _FAILED.search(text):
        found.failed = True
        found.last_failure = number
    if _ENDS.search(text):
        found.last_failure = number
        if len(found.errors) < MOST_ERRORS:
            found.errors.append(line)
    if len(found.hits) < MOST_HITS:
        _match(found, line, known)


def _match(found: _Found, line: LogLine, known: tuple[Known, ...]) -> None:
    for one in known:
        if one.literals and not any(text in line.text for text in one.literals):
            continue
        match = one.search.search(line.text)
        if match is None:
            continue
        found.last_failure = line.number
        key = (one.code, line.rank, one.where)
        if key not in found.seen:
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
