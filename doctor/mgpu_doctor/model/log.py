"""What the output of a run says: the lines that give a cause away, and who failed first."""

from __future__ import annotations

from mgpu_doctor.model.finding import Severity
from mgpu_doctor.model.record import dataclass
from mgpu_doctor.model.source import Location, Source, Span


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a log: its number from 1, the rank that wrote it (None when the line does not tell), its text.

    ``text`` has no colours, no rank prefix and no time stamp; of a line that a progress bar overwrote it is the last
    state.
    """

    log: str
    number: int
    rank: str | None
    text: str

    @property
    def location(self) -> Location:
        """The whole line as a place in the log."""
        return self.place(0, len(self.text))

    def place(self, start: int, end: int) -> Location:
        """A part of the line as a place in the log."""
        return Location(Source(self.log, self.text, "log", self.log, self.number), Span(start, end))


@dataclass(frozen=True, slots=True)
class LogHit:
    """A line that fits a rule's signature; ``start`` and ``end`` say where in its text."""

    code: str
    line: LogLine
    start: int
    end: int
    weak: bool
    severity: Severity
    where: str
    """The release that prints such a line, as the signature names it."""

    @property
    def location(self) -> Location:
        """The part of the line that gave it away."""
        return self.line.place(self.start, self.end)


@dataclass(frozen=True, slots=True)
class LogReading:
    """What one log says.

    ``hits`` are the lines that say why it failed, in the order of the log, the first of each signature and rank: the
    echoes of other ranks are left out. ``errors`` are the first few lines that
    end a failure of any kind, whether or not a rule knows them; ``failed`` says that the run did not end well.
    """

    name: str
    lines: int
    bytes: int
    hits: tuple[LogHit, ...]
    errors: tuple[LogLine, ...]
    failed: bool
    first_failed_rank: str | None = None
    """The rank that the launcher itself names as the first to fail, else that of the first error."""
