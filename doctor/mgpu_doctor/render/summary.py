"""Counts and headings that every format shares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from mgpu_doctor.model.finding import Finding, OutcomeKind, Severity
from mgpu_doctor.model.report import Report
from mgpu_doctor.render.clean import one_line

FAMILIES = {
    "1": "launch",
    "2": "devices",
    "3": "rendezvous",
    "4": "files and hub",
    "5": "stack",
    "6": "engine",
    "7": "host",
    "8": "shell",
    "9": "verdict",
}
"""Built-in families by the first digit of their codes."""

_OF_LAUNCHES = ("launch", "devices", "rendezvous", "files and hub", "engine", "shell")
"""Built-in families that have little to look at where nothing is launched."""


class FamilyRow(NamedTuple):
    """How the checks of one family went; the four states add up to the number of checks."""

    name: str
    ok: int
    findings: int
    skipped: int
    crashed: int
    worst: Severity | None


def family(code: str) -> str:
    """The family that a code belongs to; a third party's family is its letters."""
    digits = code.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    letters = code[: len(code) - len(digits)]
    return FAMILIES.get(digits[:1], letters) if letters == "MGD" else letters


def family_rows(report: Report) -> tuple[FamilyRow, ...]:
    """One row for each family, in the order of codes.

    Where there is no launch, the families about launches are left out unless they have something to say: that all
    is well with a command that was not given would mislead.
    """
    bare = not report.case.launches and report.case.observation is None
    groups: dict[str, list[OutcomeKind]] = {}
    for outcome in report.outcomes:
        groups.setdefault(family(outcome.code), []).append(outcome.kind)
    rows = []
    for name, kinds in groups.items():
        found = [finding.severity for finding in report.findings if family(finding.code) == name]
        ok, findings, skipped, crashed = (kinds.count(kind) for kind in OutcomeKind)
        worst = min(found, key=lambda severity: severity.rank, default=None)
        if bare and name in _OF_LAUNCHES and ok == len(kinds):
            continue
        rows.append(FamilyRow(name, ok, findings, skipped, crashed, worst))
    return tuple(rows)


def unrecognised(report: Report) -> str | None:
    """That no launch command was found in what was given; None where one was, or nothing was given."""
    if report.case.launches or not report.case.sources:
        return None
    names = [one_line(source.name) for source in report.case.sources]
    texts = "this text" if names == ["<command>"] else names[0] if len(names) == 1 else f"these {len(names)} files"
    return f"no launch command is recognised in {texts}"


def states_line(row: FamilyRow) -> str:
    """``2 found, 14 ok, 1 could not look``."""
    counts = ((row.findings, "found"), (row.ok, "ok"), (row.skipped, "could not look"), (row.crashed, "crashed"))
    return ", ".join(f"{number} {name}" for number, name in counts if number)


def searched(report: Report) -> str:
    """What the findings are about: ``in 2 launch commands``."""
    if report.mode == "logs":
        logs = report.case.logs
        size = sum(reading.lines for reading in logs)
        return f"in {size} lines" + (f" of {len(logs)} logs" if len(logs) != 1 else "")
    commands = len(report.case.launches)
    if report.case.observation is not None and not commands and report.case.facts.origin == "none":
        return "in the saved probe"
    if not commands and not report.case.sources:
        return f"on {one_line(report.case.facts.origin)}"
    return f"in {commands} launch command{'s' * (commands != 1)}"


def count_line(findings: Iterable[Finding]) -> str:
    """``2 errors, 1 warning``; ``nothing found`` when there is none."""
    severities = [finding.severity for finding in findings]
    parts = []
    for severity, one, many in (
        (Severity.ERROR, "error", "errors"),
        (Severity.WARNING, "warning", "warnings"),
        (Severity.ADVICE, "piece of advice", "pieces of advice"),
    ):
        number = severities.count(severity)
        if number:
            parts.append(f"{number} {one if number == 1 else many}")
    return ", ".join(parts) or "nothing found"


def incomplete_lines(report: Report) -> tuple[str, ...]:
    """What kept the examination from being whole: crashed checks, plugins and files that cannot be used."""
    lines = [
        f"{outcome.code} {outcome.slug} of {outcome.distribution} crashed: {outcome.reason}"
        for outcome in report.outcomes_of(OutcomeKind.CRASHED)
    ]
    for problem in report.problems:
        if problem.kind in ("input", "settings") and problem.message.startswith(problem.subject):
            lines.append(problem.message)
        else:
            lines.append(f"{problem.subject}: {problem.message}")
    lines += [f"{name}: not read: no kind of text that can hold launch commands" for name in report.unread]
    return tuple(one_line(line) for line in lines)


def skipped_by_reason(report: Report) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Reasons for skipping with the codes they hold for, the commonest reason first."""
    groups: dict[str, list[str]] = {}
    for outcome in report.outcomes_of(OutcomeKind.SKIPPED):
        groups.setdefault(one_line(outcome.reason or "no reason given"), []).append(outcome.code)
    return tuple((reason, tuple(codes)) for reason, codes in sorted(groups.items(), key=lambda item: -len(item[1])))


def place(finding: Finding) -> str:
    """``path:line:column``, or what the finding is about when it stands in no text."""
    return one_line(str(finding.location) if finding.location is not None else finding.subject or "this machine")


def in_reading_order(report: Report) -> tuple[Finding, ...]:
    """The findings as they are shown: by place under ``lint``, where people go through a file, else worst first."""
    if report.mode != "lint":
        return report.findings
    return tuple(sorted(report.findings, key=_place_key))


def _place_key(finding: Finding) -> tuple[str, int, int]:
    location = finding.location
    if location is None:
        return ("", 0, finding.severity.rank)
    return (location.source.name, location.span.start, finding.severity.rank)
