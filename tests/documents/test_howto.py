"""A how-to in two languages: every labelled fault is named at its place, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.model.finding import Finding, OutcomeKind, Severity
from mgpu_doctor.model.report import Report

HERE = Path(__file__).parent
DOCUMENT = "multi_gpu_howto.md"


@dataclass(frozen=True, slots=True)
class Fault:
    """A labelled fault: the lines of its command (counted from 1), and the slugs that name it, best first.

    ``also`` are consequences of the fault that may be named at the same place.
    """

    first: int
    last: int
    slugs: tuple[str, ...]
    also: tuple[str, ...]


def labelled() -> tuple[Fault, ...]:
    entries = json.loads((HERE / "multi_gpu_howto.faults.json").read_text(encoding="utf-8"))["faults"]
    return tuple(
        Fault(entry["lines"][0], entry["lines"][1], tuple(entry["slugs"]), tuple(entry.get("also", ())))
        for entry in entries
    )


@pytest.fixture(scope="module")
def report() -> Report:
    return diagnose(Request(mode="lint", files=(DOCUMENT,), directory=str(HERE)))


def alarms(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.severity is not Severity.ADVICE]


def line(finding: Finding) -> int:
    assert finding.location is not None
    return finding.location.source.position(finding.location.span.start).line


def stands_at(fault: Fault, finding: Finding) -> bool:
    return fault.first <= line(finding) <= fault.last


@pytest.mark.parametrize("fault", labelled(), ids=lambda fault: f"{fault.first}-{fault.slugs[0]}")
def test_every_labelled_fault_is_named_at_its_line(report: Report, fault: Fault) -> None:
    found = [(line(finding), finding.slug) for finding in report.findings]
    assert any(finding.slug in fault.slugs and stands_at(fault, finding) for finding in alarms(report)), found


def test_nothing_else_is_an_error_or_a_warning(report: Report) -> None:
    others = [
        finding
        for finding in alarms(report)
        if not any(finding.slug in (*f.slugs, *f.also) and stands_at(f, finding) for f in labelled())
    ]
    assert not [(line(finding), finding.slug, finding.message) for finding in others]


def test_no_check_crashes_and_the_whole_document_is_read(report: Report) -> None:
    assert not report.outcomes_of(OutcomeKind.CRASHED)
    assert not report.problems
    launched = [launch for launch in report.case.launches if launch.layers]
    assert len(launched) >= 28


def test_labels_fit_the_document() -> None:
    lines = (HERE / DOCUMENT).read_text(encoding="utf-8").splitlines()
    for fault in labelled():
        assert 1 <= fault.first <= fault.last <= len(lines)
        assert lines[fault.first - 1].strip()
