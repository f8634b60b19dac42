"""Fixes for commands that stand inside another language: only those that arrive as they are meant.

A rule writes shell text. In a JSON string that text needs escapes, in a block of YAML its second line needs
the indentation, in a Makefile ``$`` is ``$$``, and an element of a list is no part of a line. Instead of knowing
every form, a fix is tried: the file is read again with the edit in it, and the fix is kept when the commands that are
found then are the ones that the rule meant.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator

from mgpu_doctor.mend import apply_edits
from mgpu_doctor.model.finding import Edit, Finding, Fix
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import replace
from mgpu_doctor.model.source import Excerpt, Source, Span

Read = Callable[[Source], tuple[Excerpt, ...]]

_ASSIGNED = pattern(r"[A-Za-z_]\w*=", re.ASCII)

KINDS = frozenset({"yaml", "dockerfile", "makefile", "justfile"})
"""Kinds of sources whose commands are written in another language than the shell's."""


def landed(findings: Iterable[Finding], read: Read) -> list[Finding]:
    """The findings, their edits written as the language around them wants it, or left out when that cannot be done."""
    known: dict[int, tuple[Excerpt, ...]] = {}
    out = []
    for finding in findings:
        if finding.fix is not None and _concerned(finding.fix, read, known):
            finding = replace(finding, fix=_landed(finding.fix, read, known))  # noqa: PLW2901 - the finding as it is shown
        if any(_concerned(fix, read, known) for fix in finding.alternatives):
            others = tuple(
                _landed(fix, read, known) if _concerned(fix, read, known) else fix for fix in finding.alternatives
            )
            finding = replace(finding, alternatives=others)  # noqa: PLW2901 - the finding as it is shown
        out.append(finding)
    return out


def _concerned(fix: Fix, read: Read, known: dict[int, tuple[Excerpt, ...]]) -> bool:
    """Whether an edit changes text of such a language: a file, or a block of a document."""
    return any(edit.source.kind in KINDS or _in_block(edit, read, known) for edit in fix.edits)


def _in_block(edit: Edit, read: Read, known: dict[int, tuple[Excerpt, ...]]) -> bool:
    if edit.source.kind not in ("markdown", "rst"):
        return False
    for excerpt in _excerpts(edit.source, read, known):
        if excerpt.around is not None:
            places = [excerpt.locate(0, 1), excerpt.locate(len(excerpt.text) - 1, len(excerpt.text))]
            places += [one.location.span for one in excerpt.around.variables if one.location is not None]
            if min(place.start for place in places) <= edit.span.start <= max(place.end for place in places):
                return True
    return False


def _excerpts(source: Source, read: Read, known: dict[int, tuple[Excerpt, ...]]) -> tuple[Excerpt, ...]:
    if id(source) not in known:
        known[id(source)] = read(source)
    return known[id(source)]


def _landed(fix: Fix, read: Read, known: dict[int, tuple[Excerpt, ...]]) -> Fix:
    source = fix.edits[0].source
    if all(edit.source is source for edit in fix.edits):
        excerpts = _excerpts(source, read, known)
        wide = tuple(_widened(edit, excerpts) for edit in fix.edits)
        for edits in (*_spellings(source, fix.edits), *(_spellings(source, wide) if wide != fix.edits else ())):
            if _arrives(source, excerpts, fix.edits, edits, read):
                return replace(fix, edits=edits)
    return replace(fix, edits=(), safe=False)


def _widened(edit: Edit, excerpts: tuple[Excerpt, ...]) -> Edit:
    """With the whole of what stands for the last character: a quotation mark and its backslash."""
    for excerpt in excerpts:
        place = _place(excerpt, edit.span) if edit.span.start < edit.span.end else None
        if place is None or place.end >= len(excerpt.text):
            continue
        end = excerpt.locate(place.end, place.end).start
        between = edit.source.text[edit.span.end : end]
        if between and len(between) < 8 and not any(c.isspace() for c in between):
            return replace(edit, span=Span(edit.span.start, end))
    return edit


def _spellings(source: Source, edits: tuple[Edit, ...]) -> Iterator[tuple[Edit, ...]]:
    """The edits in every form that a language around them may want; the plain one first."""
    seen = set()
    for spell in (_plain, _indented, _escaped, _doubled, _for_make, _elements, _elements_inside):
        found = tuple(replace(edit, replacement=spell(source, edit)) for edit in edits)
        key = tuple(edit.replacement for edit in found)
        if key not in seen:
            seen.add(key)
            yield found


def _plain(_source: Source, edit: Edit) -> str:
    return edit.replacement


def _indented(source: Source, edit: Edit) -> str:
    line = source.slice(source.line_span(source.position(edit.span.start).line))
    return edit.replacement.replace("\n", "\n" + line[: len(line) - len(line.lstrip())])


def _escaped(_source: Source, edit: Edit) -> str:
    return json.dumps(edit.replacement, ensure_ascii=False)[1:-1]


def _doubled(_source: Source, edit: Edit) -> str:
    return edit.replacement.replace("'", "''")


def _for_make(_source: Source, edit: Edit) -> str:
    return edit.replacement.replace("$", "$$").replace("\n", "\n\t")


def _elements(_source: Source, edit: Edit) -> str:
    """Words as elements of a list in JSON or YAML."""
    text = edit.replacement
    try:
        words = shlex.split(text)
    except ValueError:
        return text
    spelled = ", ".join(json.dumps(word, ensure_ascii=False) for word in words)
    if edit.span.start == edit.span.end and words:
        return f", {spelled}" if text[:1] == " " else f"{spelled}, "
    return spelled


def _elements_inside(source: Source, edit: Edit) -> str:
    """Words in front of, or behind, a word of a list, put inside its quotation marks."""
    mark = source.text[edit.span.start - 1 : edit.span.start]
    try:
        words = shlex.split(edit.replacement)
    except ValueError:
        return edit.replacement
    if mark not in ("'", '"') or edit.span.start != edit.span.end or not words:
        return edit.replacement
    spelled = [json.dumps(word, ensure_ascii=False)[1:-1] if mark == '"' else word.replace("'", "''") for word in words]
    return "".join(f"{word}{mark}, {mark}" for word in spelled)


def _arrives(
    source: Source, before: tuple[Excerpt, ...], meant: tuple[Edit, ...], edits: tuple[Edit, ...], read: Read
) -> bool:
    """Whether the file with the edits holds the commands that were meant, and otherwise the same ones as before."""
    after = read(replace(source, text=apply_edits(source.text, edits)))
    if len(after) != len(before):
        return False
    touched = [False] * len(meant)
    for one, other in zip(before, after, strict=True):
        inside = []
        for number, edit in enumerate(meant):
            place = _place(one, edit.span)
            if place is not None:
                touched[number] = True
                inside.append(replace(edit, span=place))
        if not _same(one, _with_stand_ins(one, apply_edits(one.text, inside)), other):
            return False
    rest = [edit for number, edit in enumerate(meant) if not touched[number]]
    return _settings_arrive(before, after, rest)


def _same(before: Excerpt, wanted: str, found: Excerpt) -> bool:
    if wanted == found.text:
        return True
    if before.around is None or not before.around.words:
        return False
    try:
        words, found_words = shlex.split(wanted), shlex.split(found.text)
        apart = list(shlex.shlex(wanted, posix=True, punctuation_chars=True))
    except ValueError:
        return False
    # Nothing but words can be said there: no assignment in front, no second command, no redirection.
    plain = "\n" not in wanted and bool(words) and _ASSIGNED.match(words[0]) is None
    return plain and not any(set(word) <= set("();<>|&") for word in apart if word) and words == found_words


def _with_stand_ins(excerpt: Excerpt, text: str) -> str:
    """What is filled in beforehand is, in a rule's text, what the author wrote."""
    for start, end, written in excerpt.around.early if excerpt.around is not None else ():
        text = text.replace(written, excerpt.text[start:end])
    return text


def _place(excerpt: Excerpt, span: Span) -> Span | None:
    """The range of an excerpt's text that stands at a span of the source; None when there is no such range."""
    starts = _offsets(excerpt, span.start)
    if span.start == span.end:
        behind = [offset + 1 for offset in _offsets(excerpt, span.start - 1)]
        found = starts[:1] or behind[-1:]
        return Span(found[0], found[0]) if found else None
    ends = _offsets(excerpt, span.end - 1)
    if not starts or not ends or ends[-1] < starts[0]:
        return None
    return Span(starts[0], ends[-1] + 1)


def _offsets(excerpt: Excerpt, place: int) -> list[int]:
    """Where in an excerpt's text the character at a place of the source stands."""
    out = []
    anchors = excerpt.anchors
    for number, (offset, start) in enumerate(anchors):
        end = anchors[number + 1][0] if number + 1 < len(anchors) else len(excerpt.text)
        if start <= place < start + end - offset:
            out.append(offset + place - start)
    # A quotation mark that is not written stands where the word begins: what is written there comes first.
    same = [offset for offset in out if excerpt.text[offset] == excerpt.source.text[place : place + 1]]
    return sorted(same or out)


def _settings_arrive(before: tuple[Excerpt, ...], after: tuple[Excerpt, ...], edits: list[Edit]) -> bool:
    """Whether edits outside every text change values of variables, as they are meant, and nothing else."""
    old, new = _settings(before), _settings(after)
    if [place[:2] for place in old] != [place[:2] for place in new]:
        return False
    for (number, name, text, span), (_, _, found, _) in zip(old, new, strict=True):
        del number, name
        wanted = text
        for edit in edits:
            if span is not None and span.contains(edit.span):
                part = edit.source.slice(edit.span)
                if wanted is None or not part or part not in wanted:
                    return False
                wanted = wanted.replace(part, edit.replacement, 1)
        if wanted != found:
            return False
    places = [span for *_, span in old if span is not None]
    return all(any(span.contains(edit.span) for span in places) for edit in edits)


def _settings(excerpts: tuple[Excerpt, ...]) -> list[tuple[int, str, str | None, Span | None]]:
    return [
        (number, variable.name, variable.text, variable.value.span if variable.value is not None else None)
        for number, excerpt in enumerate(excerpts)
        for variable in (excerpt.around.variables if excerpt.around is not None else ())
    ]
