"""The straight line for the output of a run: log → telling lines → findings."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import BinaryIO, cast

from mgpu_doctor.examine import examine
from mgpu_doctor.logs import known_causes, read_log
from mgpu_doctor.logs.findings import findings_of
from mgpu_doctor.model.case import Case
from mgpu_doctor.model.facts import NO_FACTS
from mgpu_doctor.model.finding import Finding, Outcome, OutcomeKind
from mgpu_doctor.model.log import LogReading
from mgpu_doctor.model.record import replace
from mgpu_doctor.model.report import Problem, Report
from mgpu_doctor.model.rule import AnyCheck
from mgpu_doctor.registry import Registry
from mgpu_doctor.settings import Settings

STANDARD_INPUT = "<stdin>"


def diagnose_logs(paths: Iterable[str], registry: Registry, settings: Settings) -> Report:
    """What the given logs say; ``-`` is standard input. A file that cannot be read becomes a problem of the report."""
    checks = tuple(check for check in registry.checks if settings.selects(check.code, check.slug))
    known = known_causes(checks)
    readings: list[LogReading] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            if path == "-":
                readings.append(read_log(STANDARD_INPUT, sys.stdin.buffer, known))
                continue
            with open(path, "rb") as stream:
                readings.append(read_log(path, cast("BinaryIO", stream), known))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            problems.append(Problem("input", path, f"{path}: cannot be read: {reason.lower()}"))
    return _report(tuple(readings), checks, settings, (*problems, *registry.problems))


def _report(
    readings: tuple[LogReading, ...], checks: tuple[AnyCheck, ...], settings: Settings, problems: tuple[Problem, ...]
) -> Report:
    rules = {check.code: check.rule for check in checks}
    found = [finding for reading in readings for finding in findings_of(reading, rules)]
    case = _case(readings)
    outcomes = tuple(
        _outcome(outcome, found) for outcome in examine(case, (check for check in checks if _looks_at_logs(check)))
    )
    every = [finding for outcome in outcomes for finding in outcome.findings]
    ordered = sorted(every, key=lambda finding: (_log_number(finding, readings), _line(finding)))
    return Report("logs", case, tuple(ordered), (), outcomes, problems, (), settings.fail_on)


def _case(readings: tuple[LogReading, ...]) -> Case:
    from mgpu_doctor.knowledge import PackageKnowledge
    from mgpu_doctor.read.workspace import LocalWorkspace

    nowhere = LocalWorkspace(os.curdir, NO_FACTS, judge_only_text=True)
    return Case((), (), (), NO_FACTS, nowhere, PackageKnowledge(NO_FACTS), "logs", logs=readings)


def _looks_at_logs(check: AnyCheck) -> bool:
    return bool(check.rule.signatures) or "log" in check.rule.seen


def _outcome(outcome: Outcome, found: Iterable[Finding]) -> Outcome:
    own = tuple(finding for finding in found if finding.code == outcome.code)
    if not own:
        return (
            outcome if outcome.kind is not OutcomeKind.SKIPPED else replace(outcome, kind=OutcomeKind.OK, reason=None)
        )
    return replace(outcome, kind=OutcomeKind.FINDINGS, findings=(*own, *outcome.findings), reason=None)


def _log_number(finding: Finding, readings: tuple[LogReading, ...]) -> int:
    names = [reading.name for reading in readings]
    name = finding.location.source.name if finding.location is not None else None
    return names.index(name) if name in names else len(names)


def _line(finding: Finding) -> int:
    return finding.location.source.position(finding.location.span.start).line if finding.location is not None else 0
