"""Applying fixes to a text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mgpu_doctor.model.finding import Edit, Finding
from mgpu_doctor.model.source import Source, Span


def apply_edits(text: str, edits: Iterable[Edit]) -> str:
    """The text after the edits; of two edits that overlap, the one given first is applied.

    Edits are applied at their offsets in ``text``. Two insertions at one place are both
    applied, in the order given; the same edit given twice is applied once.
    """
    chosen: list[Edit] = []
    for edit in edits:
        if edit not in chosen and not any(_collide(edit.span, other.span) for other in chosen):
            chosen.append(edit)
    return _splice(text, chosen)


def choose_edits(findings: Sequence[Finding], source: Source, *, only_safe: bool = False) -> tuple[Edit, ...]:
    """Every edit of the findings' fixes to a source that can be applied together, earlier findings first.

    A fix is taken whole or not at all: a fix that touches another file too, or that
    overlaps one already taken, is left out.
    """
    chosen: list[Edit] = []
    for finding in findings:
        fix = finding.fix
        if fix is None or not fix.edits or (only_safe and not fix.safe):
            continue
        if any(edit.source is not source and edit.source != source for edit in fix.edits):
            continue
        new = [edit for edit in fix.edits if edit not in chosen]
        if not any(_collide(edit.span, other.span) for edit in new for other in chosen):
            chosen.extend(new)
    return tuple(chosen)


def mended(findings: Sequence[Finding], source: Source, *, only_safe: bool = False) -> str | None:
    """The source's text with the fixes applied, None when none can be applied or nothing changes."""
    edits = choose_edits(findings, source, only_safe=only_safe)
    text = _splice(source.text, edits)
    return text if text != source.text else None


def _collide(one: Span, other: Span) -> bool:
    if one.overlaps(other):
        return True
    # An insertion inside a replaced range has lost its place; at the range's border it has not.
    inside = other.start < one.start < other.end if one.start == one.end else False
    around = one.start < other.start < one.end if other.start == other.end else False
    return inside or around


def _splice(text: str, edits: Iterable[Edit]) -> str:
    parts: list[str] = []
    at = 0
    # Stable: insertions at one offset keep their order and stand in front of a replacement there.
    for edit in sorted(edits, key=lambda edit: (edit.span.start, edit.span.end)):
        parts += (text[at : edit.span.start], edit.replacement)
        at = edit.span.end
    parts.append(text[at:])
    return "".join(parts)
