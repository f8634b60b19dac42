"""What a check says: findings, evidence, fixes, and the outcome of a check."""

from __future__ import annotations

from enum import Enum

from mgpu_doctor.model.record import dataclass
from mgpu_doctor.model.source import Location, Source, Span


class Severity(Enum):
    """How bad it is. ERROR: it will fail, hang or do something else than written.

    WARNING: wasteful, fragile or likely wrong. ADVICE: worth knowing.
    """

    ERROR = "error"
    WARNING = "warning"
    ADVICE = "advice"

    @property
    def rank(self) -> int:
        """0 for the worst, growing with harmlessness."""
        return ("error", "warning", "advice").index(self.value)


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace a span of a source by other text; an empty span inserts."""

    source: Source
    span: Span
    replacement: str


@dataclass(frozen=True, slots=True)
class Fix:
    """How to mend it: edits to the text, commands to run, or words alone.

    ``safe`` means that applying the edits cannot change what the author meant;
    only safe fixes are applied without being asked for. Edits of one fix never overlap.
    """

    title: str
    edits: tuple[Edit, ...] = ()
    commands: tuple[str, ...] = ()
    safe: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """One fact that a finding rests on; ``location`` when it stands in a text."""

    text: str
    location: Location | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault, with the place, what was seen, and the way out.

    ``code``, ``slug`` and ``severity`` are those of the rule unless the check
    says otherwise (some causes are errors in one release and warnings in
    another). ``message`` says what is wrong with numbers, then why it matters.
    ``location`` is where in the text, None for a fact of the machine, which ``subject`` then names.
    """

    code: str
    slug: str
    severity: Severity
    message: str
    location: Location | None = None
    subject: str | None = None
    evidence: tuple[Evidence, ...] = ()
    related: tuple[Evidence, ...] = ()
    fix: Fix | None = None
    alternatives: tuple[Fix, ...] = ()
    title: str = ""


class OutcomeKind(Enum):
    """The four states of a check, never mixed up."""

    OK = "ok"
    FINDINGS = "findings"
    SKIPPED = "skipped"
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one check. ``reason`` explains a skip or a crash; ``distribution`` is whose check it is."""

    code: str
    slug: str
    kind: OutcomeKind
    findings: tuple[Finding, ...] = ()
    reason: str | None = None
    distribution: str = "mgpu-doctor"
