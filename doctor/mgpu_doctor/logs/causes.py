"""The signatures of all rules, ready to be searched for, and the lines that only repeat what another rank said."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass
from mgpu_doctor.model.rule import Check

ECHO = pattern(
    # torch 2.6.0, distributed/elastic/multiprocessing/api.py and errors/__init__.py; accelerate 1.7.0 launch.py;
    # deepspeed 0.16.9 launcher/launch.py; NCCL 2.21 when its peer is gone.
    r"Sending process \d+ closing signal"
    r"|torch\.distributed\.elastic\.multiprocessing\.errors\.(?:ChildFailedError|SignalException)"
    r"|ChildFailedError: *$"
    r"|subprocess\.CalledProcessError: Command "
    r"|\[launch\.py:\d+:sigkill_handler\] Killing subprocess"
    r"|exitcode *: -15 |\(exitcode: -15\)|Signal 15 \(SIGTERM\) received"
    r"|ncclRemoteError|connection closed by remote peer|Connection closed by peer|Connection reset by peer"
    r"|Broken pipe|terminate called after throwing an instance of 'c10::DistBackendError'"
    r"|resource_tracker: There appear to be \d+ leaked"
    r"|To prevent data inconsistency, we are taking the entire process down"
)
"""What the others print, and the launcher, when one rank has failed."""


@dataclass(frozen=True, slots=True)
class Known:
    """One signature of one rule, compiled. ``literal`` is a text that every line it fits contains."""

    code: str
    search: re.Pattern[str]
    literal: str
    weak: bool
    where: str


def known_causes(checks: Iterable[Check]) -> tuple[Known, ...]:
    """Every signature of the given checks."""
    return tuple(
        Known(check.rule.code, re.compile(one.pattern), literal_of(one.pattern), one.weak, one.where)
        for check in checks
        for one in check.rule.signatures
    )


def literal_of(expression: str) -> str:
    """The longest text that everything which a regular expression finds must contain; may be empty."""
    from re import _parser as parser  # type: ignore[attr-defined]

    best = run = ""
    for operation, argument in parser.parse(expression):
        if str(operation) == "LITERAL":
            run += chr(argument)
        else:
            best, run = max(best, run, key=len), ""
    return max(best, run, key=len)
