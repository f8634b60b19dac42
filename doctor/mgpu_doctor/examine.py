"""Runs checks over a case and keeps them apart: one that crashes or lacks a fact leaves the others alone."""

from __future__ import annotations

from collections.abc import Iterable

from mgpu_doctor.model.case import Case, Skip
from mgpu_doctor.model.facts import NO_FACTS, NOT_LOOKED
from mgpu_doctor.model.finding import Finding, Outcome, OutcomeKind
from mgpu_doctor.model.launch import Launch
from mgpu_doctor.model.record import replace
from mgpu_doctor.model.rule import AnyCheck, Wants


def examine(case: Case, checks: Iterable[AnyCheck]) -> tuple[Outcome, ...]:
    """One outcome for each check, in order."""
    return tuple(_outcome(case, check) for check in checks)


def _outcome(case: Case, check: AnyCheck) -> Outcome:
    code, slug = check.code, check.slug
    if check.wants is not None and not _has_any(case, check.wants):
        # A fault of the machine is not excluded by not looking at one.
        if not check.wants.machine:
            return Outcome(code, slug, OutcomeKind.OK, (), None, check.distribution)
        return Outcome(code, slug, OutcomeKind.SKIPPED, (), NOT_LOOKED.reason, check.distribution)
    findings: list[Finding] = []
    reason = None
    try:
        reason = _collect(case, check, findings)
    except Exception as error:  # noqa: BLE001 - whatever a check raises must not end the examination
        return Outcome(code, slug, OutcomeKind.CRASHED, tuple(findings), _describe(error), check.distribution)
    kind = OutcomeKind.FINDINGS if findings else OutcomeKind.OK if reason is None else OutcomeKind.SKIPPED
    return Outcome(code, slug, kind, tuple(findings), reason, check.distribution)


def _has_any(case: Case, wants: Wants) -> bool:
    """Whether the case has something that the check could speak about."""
    return (
        (wants.machine and case.facts.origin != NO_FACTS.origin)
        or (wants.command and any(script.commands or script.problems for script in case.scripts))
        or (wants.run and case.observation is not None)
        or (wants.log and bool(case.logs))
        or (bool(wants.names) and any(_named(launch, wants.names) for launch in case.launches))
        or (bool(wants.text) and _contains(case, wants.text))
    )


def _named(launch: Launch, names: frozenset[str]) -> bool:
    return launch.target.framework in names or any(layer.launcher in names for layer in launch.layers)


def _contains(case: Case, texts: tuple[str, ...]) -> bool:
    sources = {id(source): source for source in (*case.sources, *(script.source for script in case.scripts))}
    return any(text in source.text for source in sources.values() for text in texts)


def _collect(case: Case, check: AnyCheck, findings: list[Finding]) -> str | None:
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


def _checked(check: AnyCheck, case: Case) -> Iterable[Finding]:
    for finding in check.find(case):
        if not isinstance(finding, Finding):
            raise TypeError(f"find() gave {finding!r}, which is not a Finding")
        if finding.code != check.code:
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
