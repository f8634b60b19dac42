"""Everything that is known when the rules look: the one input of the examination."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

from mgpu_doctor.model.command import Command, Script
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import Launch
from mgpu_doctor.model.record import dataclass
from mgpu_doctor.model.source import Source

if TYPE_CHECKING:
    from mgpu_doctor.model.facts import Facts
    from mgpu_doctor.model.knowledge import Knowledge
    from mgpu_doctor.model.log import LogReading, SmiReading
    from mgpu_doctor.model.observation import Observation
    from mgpu_doctor.model.workspace import Workspace

T = TypeVar("T")


class Skip(Exception):  # noqa: N818 - it is a signal, not an error
    """Raised by a check (through :meth:`Case.require`) that lacks a fact; the reason is shown."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Case:
    """One examination's input: texts, the launches they hold, and the machine.

    ``sources`` are the texts that the user gave; ``scripts`` every shell text
    read from them or followed from them; ``launches`` what their commands would
    do, in order. ``mode`` is the verb (``check``, ``explain``, ``lint``; a ``probe`` is judged as ``check``): in
    ``lint`` only the text is judged and nothing is known about the machine or the working directory.
    """

    sources: tuple[Source, ...]
    scripts: tuple[Script, ...]
    launches: tuple[Launch, ...]
    facts: Facts
    workspace: Workspace
    knowledge: Knowledge
    mode: str = "check"
    observation: Observation | None = None
    """What was seen of the job when it ran; None when nothing was run."""
    logs: tuple[LogReading, ...] = ()
    """What the output of runs says, under ``logs``."""
    smi: tuple[SmiReading, ...] = ()
    """What nvidia-smi showed, where its text was given to ``logs``."""

    @property
    def commands(self) -> Iterator[Command]:
        """Every command of every script, in order."""
        for script in self.scripts:
            yield from script.commands

    def require(self, value: T | Unknown) -> T:
        """The value, or end this check with a skip that gives the reason."""
        if isinstance(value, Unknown):
            raise Skip(value.reason)
        return value
