"""From the telling lines of a log to findings: the root first, what follows from it not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mgpu_doctor.model.finding import Evidence, Finding, Fix
from mgpu_doctor.model.log import LogHit, LogReading
from mgpu_doctor.model.rule import Rule

MOST = 4
"""Causes that are named for one log."""

MOST_PLACES = 3


def findings_of(reading: LogReading, rules: Mapping[str, Rule]) -> tuple[Finding, ...]:
    """The causes that a log gives away, the first to show first."""
    causes = _by_cause(reading.hits)
    return tuple(_finding(rules[code], reading, hits) for code, hits in list(causes.items())[:MOST])


def _by_cause(hits: Iterable[LogHit]) -> dict[str, list[LogHit]]:
    causes: dict[str, list[LogHit]] = {}
    for hit in hits:
        causes.setdefault(hit.code, []).append(hit)
    return causes


def _finding(rule: Rule, reading: LogReading, hits: list[LogHit]) -> Finding:
    first = hits[0]
    cause = rule.summary[:1].upper() + rule.summary[1:].rstrip(".")
    ranks = sorted({int(hit.line.rank) for hit in hits if hit.line.rank is not None})
    who = ""
    if len(ranks) > 1:
        who = f" {len(ranks)} ranks say so, rank {first.line.rank or ranks[0]} first."
    elif ranks and reading.first_failed_rank == str(ranks[0]):
        who = f" Rank {ranks[0]} was the first to fail."
    further = [Evidence(hit.line.text.strip(), hit.location) for hit in hits[1 : 1 + MOST_PLACES] if not ranks]
    severity = min((hit.severity for hit in hits), key=lambda severity: severity.rank)
    lead = cause if severity.rank <= rule.severity.rank else f"Perhaps, where more was asked for: {cause}"
    doubt = [Evidence("other causes leave this line too: see what stands above it")] if first.weak else []
    return Finding(
        code=rule.code,
        slug=rule.slug,
        severity=severity,
        message=f"{lead}.{who}",
        location=first.location,
        evidence=(Evidence(f"such a line is printed by {first.where}"), *doubt, *further),
        fix=Fix(rule.fix) if rule.fix is not None else None,
        title=rule.title,
    )
