"""The result of a diagnosis: what the verbs show and what exit codes are made of."""

from __future__ import annotations

from mgpu_doctor.model.case import Case
from mgpu_doctor.model.device_map import DeviceMap
from mgpu_doctor.model.finding import Finding, Outcome, OutcomeKind, Severity
from mgpu_doctor.model.record import dataclass
from mgpu_doctor.model.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Suppressed:
    """A finding that a comment in the text accepts, with the author's reason."""

    finding: Finding
    reason: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that kept a part of the work from being done.

    ``kind``: ``input`` (a file that cannot be read), ``plugin`` (a distribution
    of checks that cannot be used), ``settings``, ``suppression`` (a comment that suppresses nothing).
    ``subject`` names the file or distribution.
    """

    kind: str
    subject: str
    message: str


@dataclass(frozen=True, slots=True)
class Report:
    """All that one diagnosis found, ready to be shown.

    ``findings`` are sorted: worst first, what stands in the command before what holds for the machine, then by
    place. ``outcomes`` has one entry for every check that was selected. ``unread`` names files that were
    given but hold no kind of text that is read.
    """

    mode: str
    case: Case
    findings: tuple[Finding, ...]
    suppressed: tuple[Suppressed, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    problems: tuple[Problem, ...] = ()
    unread: tuple[str, ...] = ()
    fail_on: str = "error"
    maps: tuple[DeviceMap, ...] = ()
    """Which GPU is which: one map for each launch, in their order, or one for the machine when nothing is launched;
    empty where the GPUs are not known."""
    verdict: Verdict | None = None
    """The verdict on what was seen when the job ran; None when nothing was run."""

    def outcomes_of(self, kind: OutcomeKind) -> tuple[Outcome, ...]:
        """The outcomes in one of the four states."""
        return tuple(outcome for outcome in self.outcomes if outcome.kind is kind)

    @property
    def exit_code(self) -> int:
        """0 nothing at or above ``fail_on``, 1 findings, 2 unreadable input, 3 incomplete (a check crashed).

        A run that is not what it was promised to be counts as a finding, one of which too little was seen as a crash.
        Unreadable input outranks findings, findings outrank a crash: a script that sees 0 knows that
        all was read, all checks ran, and nothing was found.
        """
        if any(problem.kind == "input" for problem in self.problems):
            return 2
        if self.fail_on != "never":
            limit = Severity(self.fail_on).rank
            if any(finding.severity.rank <= limit for finding in self.findings):
                return 1
            if self.verdict is not None and self.verdict.failed:
                return 1
        if self.verdict is not None and self.verdict.undecided:
            return 3
        if self.outcomes_of(OutcomeKind.CRASHED) or any(problem.kind == "plugin" for problem in self.problems):
            return 3
        return 0
