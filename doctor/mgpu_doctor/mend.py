"""Applies fixes to a text."""

from __future__ import annotations

from collections.abc import Iterable

from mgpu_doctor.model.finding import Edit, Finding, Fix
from mgpu_doctor.model.source import Source


def apply_edits(text: str, edits: Iterable[Edit]) -> str:
    """The text with edits applied; of two that touch the same characters the first one given wins."""
    taken: list[Edit] = []
    for edit in edits:
        if not any(_clash(edit, other) for other in taken):
            taken.append(edit)
    for edit in sorted(taken, key=lambda edit: edit.span, reverse=True):
        text = text[: edit.span.start] + edit.replacement + text[edit.span.end :]
    return text


def _clash(one: Edit, other: Edit) -> bool:
    """Whether two edits touch the same characters, or insert at the same place."""
    if one.span == other.span:
        return True
    return one.span.overlaps(other.span) or (
        # An insertion strictly inside a replaced range has lost its place.
        other.span.start < one.span.start == one.span.end < other.span.end
        or one.span.start < other.span.start == other.span.end < one.span.end
    )


def choose_fixes(findings: Iterable[Finding], source: Source, *, only_safe: bool = False) -> tuple[Fix, ...]:
    """The fixes that can be applied to one source together, worst finding first; a fix is taken whole or not at all."""
    chosen: list[Fix] = []
    taken: list[Edit] = []
    for finding in findings:
        fix = finding.fix
        if fix is None or not fix.edits or (only_safe and not fix.safe):
            continue
        if any(edit.source.name != source.name for edit in fix.edits):
            continue
        new = [edit for edit in fix.edits if edit not in taken]
        if any(_clash(edit, other) for edit in new for other in taken):
            continue
        taken.extend(new)
        chosen.append(fix)
    return tuple(chosen)


def mend(source: Source, findings: Iterable[Finding], *, only_safe: bool = False) -> str:
    """The source's text with every compatible fix applied."""
    fixes = choose_fixes(findings, source, only_safe=only_safe)
    return apply_edits(source.text, [edit for fix in fixes for edit in fix.edits])
