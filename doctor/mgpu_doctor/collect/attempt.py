"""Looks at the machine that cannot spoil each other: what fails or hangs leaves a reason behind, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.record import dataclass

T = TypeVar("T")

DEADLINE_S = 20.0
"""Seconds after which a look is given up. A dead network file system keeps whoever touches it waiting for ever."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the machine: the facts that it fills, and how."""

    fields: tuple[str, ...]
    ask: Callable[[], Mapping[str, Any]]


def attempt(question: Callable[[], T]) -> T | Unknown:
    """The answer, or why there is none: a machine can be broken in ways that nobody thought of."""
    try:
        return question()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is about one fact alone
        return failed(error)


def failed(error: Exception) -> Unknown:
    """Why a look brought nothing."""
    return Unknown(f"looking for it failed: {type(error).__name__}: {error}")


def look_at_all(looks: Iterable[Look], deadline_s: float = DEADLINE_S) -> Iterator[Mapping[str, Any]]:
    """What each look finds, in order, all looking at once; where one fails or is late, the reason for all its facts."""
    from threading import Thread
    from time import monotonic

    until = monotonic() + deadline_s
    running = []
    for look in looks:
        answers: list[Mapping[str, Any]] = []
        # A system call that hangs cannot be interrupted, so it waits in a thread that dies with the program.
        thread = Thread(target=_ask, args=(look, answers), name=f"look-{look.fields[0]}", daemon=True)
        thread.start()
        running.append((look, answers, thread))
    for look, answers, thread in running:
        thread.join(max(until - monotonic(), 0))
        late = Unknown(f"the machine did not answer within {deadline_s:g} s")
        yield answers[0] if answers else dict.fromkeys(look.fields, late)


def _ask(look: Look, answers: list[Mapping[str, Any]]) -> None:
    try:
        answers.append(look.ask())
    except Exception as error:  # noqa: BLE001 - a broken machine raises anything
        answers.append(dict.fromkeys(look.fields, failed(error)))
