"""Findings about a text that stands inside another, told of the file: places, and fixes as the file writes them.

What is read from a notebook's cells or a program's strings is judged as the plain text that it is. A fix of
that text must be escaped on its way back, and there are fixes that cannot be written there at all (an option more
in what is a list of words). So each fix is made in the file's text, the file is read again, and only when
exactly the fixed text comes out is it offered.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from mgpu_doctor.mend import apply_edits
from mgpu_doctor.model.finding import Edit, Evidence, Finding, Fix
from mgpu_doctor.model.record import replace
from mgpu_doctor.model.source import Excerpt, Location, Source, Span

_MOST_EDITS = 4
"""Edits of one fix whose ways of being written are all tried."""


def in_file(finding: Finding) -> Finding:
    """The finding with every place in a file; fixes that cannot be written there keep their title alone."""
    if not _is_inside(finding):
        return finding
    return replace(
        finding,
        location=finding.location and finding.location.in_file,
        evidence=tuple(_evidence(one) for one in finding.evidence),
        related=tuple(_evidence(one) for one in finding.related),
        fix=finding.fix and _fix(finding.fix),
        alternatives=tuple(_fix(fix) for fix in finding.alternatives),
    )


def _is_inside(finding: Finding) -> bool:
    """Whether any place of a finding stands inside another text."""
    places = [finding.location, *(one.location for one in (*finding.evidence, *finding.related))]
    fixes = [fix for fix in (finding.fix, *finding.alternatives) if fix is not None]
    sources = [place.source for place in places if place is not None]
    sources += [edit.source for fix in fixes for edit in fix.edits]
    return any(source.within is not None for source in sources)


def _evidence(evidence: Evidence) -> Evidence:
    return evidence if evidence.location is None else replace(evidence, location=evidence.location.in_file)


def _fix(fix: Fix) -> Fix:
    inside: dict[int, list[Edit]] = {}
    edits: list[Edit] = []
    for edit in fix.edits:
        if edit.source.within is None:
            edits.append(edit)
        else:
            inside.setdefault(id(edit.source), []).append(edit)
    for group in inside.values():
        written = _written(group)
        if written is None:
            return replace(fix, edits=(), safe=False)
        edits.extend(written)
    return replace(fix, edits=tuple(edits))


def _written(edits: Sequence[Edit]) -> tuple[Edit, ...] | None:
    """Edits of a text inside a file as edits of the file; None when the file has no way to write them."""
    source = edits[0].source
    within = source.within
    if within is None or within.source.within is not None or len(edits) > _MOST_EDITS:
        return None
    before = _texts(within.source)
    expected = apply_edits(source.text, edits)
    at = [number for number, text in enumerate(before) if text == source.text]
    for choice in product(*(tuple(_ways(within, edit)) for edit in edits)):
        changed = replace(within.source, text=apply_edits(within.source.text, choice))
        after = _texts(changed)
        different = [number for number, text in enumerate(after) if number < len(before) and text != before[number]]
        if len(after) == len(before) and len(different) == 1 and different[0] in at and after[different[0]] == expected:
            return choice
    return None


def _ways(within: Excerpt, edit: Edit) -> Iterator[Edit]:
    """The ways in which an edit may be written in the file: where an insertion goes, what is escaped."""
    start, end = edit.span
    spans = [within.locate(start, end)]
    if start < end:
        # The last character may be written as an escape.
        spans.append(Span(spans[0].start, within.locate(end, end).start))
    elif start > 0:
        spans.append(Span(*[within.locate(start - 1, start).end] * 2))
    replacements = [edit.replacement]
    if within.source.kind in ("notebook", "vscode"):
        replacements = [json.dumps(edit.replacement, ensure_ascii=False)[1:-1]]
    elif edit.replacement:
        escaped = edit.replacement.replace("\\", "\\\\").replace("\n", "\\n")
        replacements += [escaped, escaped.replace('"', '\\"'), escaped.replace("'", "\\'")]
    for span in dict.fromkeys(spans):
        if span.start <= span.end:
            for replacement in dict.fromkeys(replacements):
                yield Edit(within.source, span, replacement)


def _texts(source: Source) -> Sequence[str]:
    """The texts inside a file, in order."""
    if source.kind == "notebook":
        from mgpu_doctor.read import notebook

        return notebook.texts(source)
    if source.kind == "python":
        from mgpu_doctor.read import python_source

        return python_source.texts(source)
    if source.kind == "vscode":
        from mgpu_doctor.read import vscode

        return vscode.texts(source)
    return ()


def places_in_file(places: Iterable[tuple[Source, Span]]) -> Iterator[tuple[Source, Span]]:
    """Places of commands in the files that hold them."""
    for source, span in places:
        if source.within is None:
            yield source, span
        else:
            place = Location(source, span).in_file
            yield place.source, place.span
