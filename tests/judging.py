"""One rule judging one command, for the tests of what a rule's own examples do not show."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from mgpu_doctor.authoring import Check, Example, Finding
from mgpu_doctor.mend import apply_edits
from mgpu_doctor.testing import run_example


def found(
    module: ModuleType,
    command: str | None,
    *,
    files: Mapping[str, str] | None = None,
    facts: Mapping[str, object] | None = None,
    known: bool = True,
    lint: tuple[str, ...] = (),
) -> tuple[Finding, ...]:
    """The findings of a rule; ``facts`` override the standard host, ``known=False`` takes the host away."""
    check = Check(module.RULE, module.find)
    given = dict(facts or {}) if known else None
    report = run_example(check, Example("test", command, files=files or {}, facts=given, lint=lint))
    (outcome,) = report.outcomes
    assert outcome.kind.value != "crashed", outcome.reason
    return report.findings


def mended(finding: Finding) -> str:
    """The text after the finding's fix."""
    assert finding.fix is not None
    assert finding.fix.edits
    return apply_edits(finding.fix.edits[0].source.text, finding.fix.edits)
