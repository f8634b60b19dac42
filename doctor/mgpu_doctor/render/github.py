"""Findings as GitHub workflow commands, which annotate the lines of a pull request."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_doctor.model.finding import Finding, Severity
from mgpu_doctor.model.report import Report
from mgpu_doctor.render.clean import clean, mask
from mgpu_doctor.render.summary import count_line, in_reading_order, incomplete_lines

_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.ADVICE: "notice"}


def github_lines(report: Report) -> Iterator[str]:
    """One line for each finding and for each thing that kept the examination from being whole."""
    if report.verdict is not None:
        level = "error" if report.verdict.failed else "warning" if report.verdict.undecided else "notice"
        yield f"::{level} title=mgpu-doctor probe {report.verdict.word}::{_data(report.verdict.sentence)}"
    for finding in in_reading_order(report):
        yield _annotation(finding)
    for line in incomplete_lines(report):
        yield f"::error title=mgpu-doctor::{_data(line)}"
    yield f"mgpu-doctor: {count_line(report.findings)}"


def _annotation(finding: Finding) -> str:
    properties = {}
    location = finding.location
    if location is not None:
        start, end = (location.source.position(offset) for offset in location.span)
        # GitHub ignores columns of an annotation that covers several lines.
        properties = {"file": location.source.name, "line": start.line, "endLine": end.line, "col": start.column}
        if end.line == start.line:
            properties["endColumn"] = end.column
    properties["title"] = f"{finding.code} {finding.slug}"
    text = finding.message
    if finding.fix is not None:
        text += f"\nFix: {finding.fix.title}"
    shown = ",".join(f"{key}={_property(str(value))}" for key, value in properties.items())
    return f"::{_LEVELS[finding.severity]} {shown}::{_data(text)}"


def _data(text: str) -> str:
    return mask(clean(text)).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
