"""The straight line for the output of a run: log → telling lines → findings."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import BinaryIO, cast

from mgpu_doctor.examine import examine
from mgpu_doctor.logs import known_causes, read_log
from mgpu_doctor.logs.findings import findings_of
from mgpu_doctor.logs.parallel import parallel_findings
from mgpu_doctor.model.case import Case
from mgpu_doctor.model.facts import NO_FACTS
from mgpu_doctor.model.finding import Finding, Outcome, OutcomeKind
from mgpu_doctor.model.log import LogReading, SmiReading
from mgpu_doctor.model.record import replace
from mgpu_doctor.model.report import Problem, Report
from mgpu_doctor.model.rule import AnyCheck
from mgpu_doctor.registry import Registry
from mgpu_doctor.settings import Settings

STANDARD_INPUT = "<stdin>"


def diagnose_logs(
    paths: Iterable[str], registry: Registry, settings: Settings, smi_paths: Iterable[str] = ()
) -> Report:
    """What the given logs say; ``-`` is standard input. A file that cannot be read becomes a problem of the report.

    ``smi_paths`` are files with nvidia-smi's text; those among ``paths`` are known by their beginning.
    """
    checks = tuple(check for check in registry.checks if settings.selects(check.code, check.slug))
    known = known_causes(checks)
    readings: list[LogReading] = []
    shown: list[SmiReading] = []
    problems: list[Problem] = []
    for path, is_smi_file in (*((path, False) for path in paths), *((path, True) for path in smi_paths)):
        try:
            smi = _smi(path, sure=is_smi_file)
            if smi is not None:
                shown.append(smi)
            elif path == "-":
                readings.append(read_log(STANDARD_INPUT, sys.stdin.buffer, known))
            else:
                with open(path, "rb") as stream:
                    readings.append(read_log(path, cast("BinaryIO", stream), known))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            problems.append(Problem("input", path, f"{path}: cannot be read: {reason.lower()}"))
    return _report(tuple(readings), tuple(shown), checks, settings, (*problems, *registry.problems))


def _smi(path: str, *, sure: bool) -> SmiReading | None:
    """The text of nvidia-smi in a file; None when it is something else, which is an error if it was said to be that."""
    from mgpu_doctor.logs.smi import MOST_BYTES, is_smi, read_smi

    if path == "-":
        if not sure:
            return None
        text = sys.stdin.buffer.read(MOST_BYTES).decode("utf-8", "replace")
    else:
        if not sure and not os.path.isfile(path):
            # A pipe can be read but once.
            return None
        with open(path, "rb") as stream:
            text = stream.read(MOST_BYTES).decode("utf-8", "replace") if sure else _beginning(stream)
            if not sure and is_smi(text):
                text += stream.read(MOST_BYTES).decode("utf-8", "replace")
    gpus = read_smi(text) if is_smi(text) else ()
    if sure and not gpus:
        raise ValueError("it is no text of nvidia-smi (the table, -q, or --query-gpu=… --format=csv with its header)")
    return SmiReading(STANDARD_INPUT if path == "-" else path, gpus) if gpus else None


def _beginning(stream: BinaryIO) -> str:
    return stream.read(4096).decode("utf-8", "replace")


def _report(
    readings: tuple[LogReading, ...],
    shown: tuple[SmiReading, ...],
    checks: tuple[AnyCheck, ...],
    settings: Settings,
    problems: tuple[Problem, ...],
) -> Report:
    rules = {check.code: check.rule for check in checks}
    found = [finding for reading in readings for finding in findings_of(reading, rules)]
    # With several logs it is not known which of them ran on that machine.
    gpus = shown[0].gpus if len(shown) == 1 and len(readings) == 1 else None
    found += [finding for reading in readings for finding in parallel_findings(reading, gpus, rules)]
    case = _case(readings, shown)
    outcomes = tuple(
        _outcome(outcome, found)
        for outcome in examine(case, (check for check in checks if _looks_at_logs(check, found)))
    )
    every = [finding for outcome in outcomes for finding in outcome.findings]
    ordered = sorted(every, key=lambda finding: (_log_number(finding, readings), _line(finding)))
    return Report("logs", case, tuple(ordered), (), outcomes, problems, (), settings.fail_on)


def _case(readings: tuple[LogReading, ...], shown: tuple[SmiReading, ...]) -> Case:
    from mgpu_doctor.knowledge import PackageKnowledge
    from mgpu_doctor.read.workspace import LocalWorkspace

    nowhere = LocalWorkspace(os.curdir, NO_FACTS, judge_only_text=True)
    return Case((), (), (), NO_FACTS, nowhere, PackageKnowledge(NO_FACTS), "logs", logs=readings, smi=shown)


def _looks_at_logs(check: AnyCheck, found: Iterable[Finding]) -> bool:
    rule = check.rule
    return bool(rule.signatures) or "log" in rule.seen or any(finding.code == rule.code for finding in found)


def _outcome(outcome: Outcome, found: Iterable[Finding]) -> Outcome:
    own = tuple(finding for finding in found if finding.code == outcome.code)
    if not own:
        return (
            outcome if outcome.kind is not OutcomeKind.SKIPPED else replace(outcome, kind=OutcomeKind.OK, reason=None)
        )
    return replace(outcome, kind=OutcomeKind.FINDINGS, findings=(*own, *outcome.findings), reason=None)


def _log_number(finding: Finding, readings: tuple[LogReading, ...]) -> int:
    names = [reading.name for reading in readings]
    name = finding.location.source.name if finding.location is not None else finding.subject
    return names.index(name) if name in names else len(names)


def _line(finding: Finding) -> int:
    return finding.location.source.position(finding.location.span.start).line if finding.location is not None else 0
