"""The signatures of all rules, ready to be searched for, and the lines that only repeat what another rank said."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any

from mgpu_doctor.model.finding import Severity
from mgpu_doctor.model.log import LogHit, LogLine
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass
from mgpu_doctor.model.rule import AnyCheck

ECHO = pattern(
    # torch 2.6.0, distributed/elastic/multiprocessing/api.py and errors/__init__.py; accelerate 1.7.0 launch.py;
    # deepspeed 0.16.9 launcher/launch.py; NCCL 2.21 when its peer is gone.
    r"Sending process \d+ closing signal"
    r"|torch\.distributed\.elastic\.multiprocessing\.errors\.(?:ChildFailedError|SignalException)"
    r"|ChildFailedError: *$"
    r"|subprocess\.CalledProcessError: Command (?!.*died with <Signals)"
    r"|\[launch\.py:\d+:sigkill_handler\] Killing subprocess"
    r"|exitcode *: -15 |\(exitcode: -15\)|Signal 15 \(SIGTERM\) received|died, exit code: -15"
    r"|ncclRemoteError|terminate called after throwing an instance of 'c10::DistBackendError'"
    r"|To prevent data inconsistency, we are taking the entire process down"
    r"|^(?:[\w.]+\.)?\w+Error: .*(?:[Cc]onnection (?:closed|reset) by (?:remote )?peer|Broken pipe)"
    r"|got error: (?:Connection reset by peer|Broken pipe|failed to recv)"
)
"""What the others print, and the launcher, when one rank has failed."""

HUSH = pattern(
    r"connection closed by remote peer|Connection closed by peer|Connection reset by peer|Broken pipe"
    r"|resource_tracker: There appear to be \d+ leaked"
)
"""What processes print that lose their peers, for good reasons or bad: it says nothing about the run."""


AFTERMATH = frozenset({"MGD313", "MGD902", "MGD905", "MGD909"})
"""Causes whose lines are also printed by ranks that are left waiting when another one fails."""


IMPLIED = {"MGD403": frozenset({"MGD408"}), "MGD307": frozenset({"MGD313"})}
"""Causes whose lines are printed as well when another one is the reason: offline mode reads like no network."""


@dataclass(frozen=True, slots=True)
class Known:
    """One signature of one rule, compiled, with a line that it fits.

    Every line it fits contains one of ``literals``, unless there are none.
    """

    code: str
    search: re.Pattern[str]
    literals: tuple[str, ...]
    weak: bool
    where: str
    severity: Severity
    line: str


def known_causes(checks: Iterable[AnyCheck]) -> tuple[Known, ...]:
    """Every signature of the given checks."""
    return tuple(
        Known(
            check.rule.code,
            re.compile(one.pattern),
            literals_of(one.pattern),
            one.weak,
            one.where,
            one.severity or check.rule.severity,
            one.line,
        )
        for check in checks
        for one in check.rule.signatures
    )


def literals_of(expression: str) -> tuple[str, ...]:
    """Texts of which everything that a regular expression finds contains at least one; empty when there are none.

    The longer the shortest of them, the better they tell lines apart.
    """
    if sys.version_info >= (3, 11):
        from re import _parser as parser  # type: ignore[attr-defined]
    else:
        import sre_parse as parser

    parsed: Any = parser.parse(expression)
    return _literals(parsed)


def _literals(parsed: Iterable[tuple[object, Any]]) -> tuple[str, ...]:
    candidates: list[tuple[str, ...]] = []
    run = ""
    for operation, argument in parsed:
        name = str(operation)
        if name == "LITERAL":
            run += chr(argument)
            continue
        candidates.append((run,))
        run = ""
        if name == "BRANCH":
            branches = [_literals(branch) for branch in argument[1]]
            if all(branches):
                candidates.append(tuple(text for branch in branches for text in branch))
        elif name == "SUBPATTERN":
            candidates.append(_literals(argument[3]))
        elif name == "MAX_REPEAT" and argument[0] > 0:
            candidates.append(_literals(argument[2]))
    candidates.append((run,))
    best = max(candidates, key=lambda texts: min(map(len, texts), default=0))
    return best if all(best) else ()


def deciding(
    hits: Iterable[LogHit], errors: Iterable[LogLine], *, failed: bool = True, ended_well: bool = False, lines: int = 0
) -> tuple[LogHit, ...]:
    """The hits that say why a run failed.

    A line that fits many causes counts only when no line names one, and when the run has ``failed`` or the log of
    ``lines`` lines ends there. What ranks print that are left waiting counts only when no error, known or not, came
    before. After a run that ``ended_well`` no fault counts; what is less than an error does.
    """
    specific = _without_implied(_most_specific(hits))
    if ended_well:
        return tuple(hit for hit in specific if hit.severity is not Severity.ERROR and not hit.weak)
    strong = tuple(hit for hit in specific if not hit.weak and hit.severity is not Severity.ADVICE)
    roots = tuple(hit for hit in strong if hit.code not in AFTERMATH)
    if roots:
        return roots
    first_error = min((line.number for line in errors), default=None)
    waiting = tuple(hit for hit in strong if first_error is None or hit.line.number <= first_error)
    weak = (hit for hit in specific if hit.weak and hit.severity is not Severity.ADVICE)
    fitting = (hit for hit in weak if failed or hit.severity is not Severity.ERROR or hit.line.number >= lines)
    return waiting or tuple(fitting) or _advice(specific, failed=failed)


def _without_implied(hits: tuple[LogHit, ...]) -> tuple[LogHit, ...]:
    implied = {code for hit in hits for code in IMPLIED.get(hit.code, ())}
    return tuple(hit for hit in hits if hit.code not in implied)


def _advice(hits: Iterable[LogHit], *, failed: bool) -> tuple[LogHit, ...]:
    return () if failed else tuple(hit for hit in hits if hit.severity is Severity.ADVICE)


def _most_specific(hits: Iterable[LogHit]) -> tuple[LogHit, ...]:
    """Of several causes on one line the one whose signature explains most of it."""
    best: dict[tuple[int, str | None], LogHit] = {}
    for hit in hits:
        key = (hit.line.number, hit.line.rank)
        other = best.get(key)
        if other is None or (hit.weak, other.end - other.start) < (other.weak, hit.end - hit.start):
            best[key] = hit
    return tuple(best.values())
