"""Runs checks over a case and keeps them apart: one that crashes or lacks a fact leaves the others alone."""

from __future__ import annotations

from collections.abc import Iterable

from mgpu_doctor.model.case import Case, Skip
from mgpu_doctor.model.finding import Finding, Outcome, OutcomeKind
from mgpu_doctor.model.record import replace
from mgpu_doctor.model.rule import Check


def examine(case: Case, checks: Iterable[Check]) -> tuple[Outcome, ...]:
    """One outcome for each check, in order."""
    return tuple(_outcome(case, check) for check in checks)


def _outcome(case: Case, check: Check) -> Outcome:
    rule = check.rule
    findings: list[Finding] = []
    reason = None
    try:
        reason = _collect(case, check, findings)
    except Exception as error:  # noqa: BLE001 - whatever a check raises must not end the examination
        return Outcome(rule.code, rule.slug, OutcomeKind.CRASHED, tuple(findings), _describe(error), check.distribution)
    kind = OutcomeKind.FINDINGS if findings else OutcomeKind.OK if reason is None else OutcomeKind.SKIPPED
    return Outcome(rule.code, rule.slug, kind, tuple(findings), reason, check.distribution)


def _collect(case: Case, check: Check, findings: list[Finding]) -> str | None:
    """Fill ``findings``; answer with the reason when the check could not look at everything.

    A check that lacks a fact about one launch may know enough about the others,
    so it then looks at each launch alone.
    """
    try:
        findings.extend(_checked(check, case))
    except Skip as skip:
        if len(case.launches) < 2:
            return skip.reason
    else:
        return None
    reason = None
    seen = set(findings)
    for launch in case.launches:
        try:
            for finding in _checked(check, replace(case, launches=(launch,))):
                if finding not in seen:
                    seen.add(finding)
                    findings.append(finding)
        except Skip as skip:
            reason = reason or skip.reason
    return reason


def _checked(check: Check, case: Case) -> Iterable[Finding]:
    for finding in check.find(case):
        if not isinstance(finding, Finding):
            raise TypeError(f"find() gave {finding!r}, which is not a Finding")
        if finding.code != check.rule.code:
            raise ValueError(f"find() gave a finding with the code {finding.code}")
        yield finding


def _describe(error: Exception) -> str:
    """The error and the innermost place it was raised at, in one line."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = ""
    if trace is not None:
        file = trace.tb_frame.f_code.co_filename.replace("\\", "/").rsplit("/", 1)[-1]
        place = f" ({file}:{trace.tb_lineno})"
    return f"{type(error).__name__}: {error}{place}"
