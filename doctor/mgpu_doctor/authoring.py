"""Everything that a check may import.

A check is one file: a docstring with the cause, a ``RULE``, and a pure function
``find(case)``. It looks at nothing but the :class:`Case` it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mgpu_doctor.model import observed
from mgpu_doctor.model.case import Case, Skip
from mgpu_doctor.model.command import Command, Mark, Piece, Script, Variable, Word, Wrapper
from mgpu_doctor.model.facts import Gpu, GpuProcess, ModelInfo, PackageCopy, XidError
from mgpu_doctor.model.finding import Edit, Evidence, Finding, Fix, Severity
from mgpu_doctor.model.known import Origin, Setting, Unknown
from mgpu_doctor.model.launch import (
    RANK_LAUNCHERS,
    TORCHRUN_NAMES,
    Argument,
    Launch,
    Layer,
    Option,
    OptionSpec,
    ParseProblem,
    RankPlacement,
    Release,
    Target,
    VisibleDevices,
)
from mgpu_doctor.model.memory import GIB, CardRoom, MemoryFit, MemoryNeed, MemoryPart, Placement, gib
from mgpu_doctor.model.model_folder import FileFault, ModelFolder, Storage
from mgpu_doctor.model.observation import LinkSeen, Observation, RankSeen, StageSeen
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.program import ConfigFile, ConfigValue, Program, Seen
from mgpu_doctor.model.record import dataclass
from mgpu_doctor.model.rule import AnyCheck, Check, DeferredCheck, Example, Reference, Rule, Signature, Wants
from mgpu_doctor.model.source import Location, Source, Span
from mgpu_doctor.model.version import Requirement, is_before, read_requirement, release_numbers, satisfies

__all__ = [
    "GIB",
    "RANK_LAUNCHERS",
    "TORCHRUN_NAMES",
    "AnyCheck",
    "Argument",
    "CardRoom",
    "Case",
    "Check",
    "Command",
    "ConfigFile",
    "ConfigValue",
    "DeferredCheck",
    "Edit",
    "Evidence",
    "Example",
    "FileFault",
    "Finding",
    "Fix",
    "Gpu",
    "GpuProcess",
    "Launch",
    "Layer",
    "LinkSeen",
    "Location",
    "Mark",
    "MemoryFit",
    "MemoryNeed",
    "MemoryPart",
    "ModelFolder",
    "ModelInfo",
    "Observation",
    "Option",
    "OptionSpec",
    "Origin",
    "PackageCopy",
    "ParseProblem",
    "Piece",
    "Placement",
    "Program",
    "RankPlacement",
    "RankSeen",
    "Reference",
    "Release",
    "Requirement",
    "Rule",
    "Script",
    "Seen",
    "Setting",
    "Severity",
    "Signature",
    "Skip",
    "Source",
    "Span",
    "StageSeen",
    "Storage",
    "Target",
    "Unknown",
    "Variable",
    "VisibleDevices",
    "Wants",
    "Word",
    "Wrapper",
    "XidError",
    "closest",
    "dataclass",
    "delete_words",
    "gib",
    "insert",
    "is_before",
    "memory_fit",
    "memory_need",
    "observed",
    "only_signatures",
    "pattern",
    "read_requirement",
    "release_numbers",
    "replace",
    "report",
    "satisfies",
]


def memory_need(case: Case, launch: Launch) -> MemoryNeed | Unknown:
    """What a launch needs of each card and of the host, as ranges; Unknown with the reason where nothing tells."""
    from mgpu_doctor.memory.model_used import NO_MODEL, names_model

    if not names_model(launch):
        return NO_MODEL
    from mgpu_doctor.memory import need

    return need.memory_need(case, launch)


def memory_fit(case: Case, launch: Launch) -> MemoryFit | Unknown:
    """The room on the cards that a launch works on."""
    from mgpu_doctor.memory import fit

    return fit.memory_fit(case, launch)


def only_signatures(case: Case) -> Iterator[Finding]:
    """``find`` of a rule that is known by its signatures in logs alone."""
    del case
    yield from ()


def report(
    rule: Rule,
    message: str,
    location: Location | None = None,
    *,
    subject: str | None = None,
    severity: Severity | None = None,
    evidence: Iterable[Evidence | str] = (),
    related: Iterable[Evidence] = (),
    fix: Fix | None = None,
    alternatives: Iterable[Fix] = (),
) -> Finding:
    """A finding of a rule; ``evidence`` given as text needs no place. ``severity`` overrides the rule's."""
    return Finding(
        code=rule.code,
        slug=rule.slug,
        title=rule.title,
        severity=severity or rule.severity,
        message=message,
        location=location,
        subject=subject,
        evidence=tuple(Evidence(item) if isinstance(item, str) else item for item in evidence),
        related=tuple(related),
        fix=fix,
        alternatives=tuple(alternatives),
    )


def replace(source: Source, span: Span, text: str) -> Edit:
    """An edit that replaces a span."""
    return Edit(source, span, text)


def insert(source: Source, offset: int, text: str) -> Edit:
    """An edit that inserts text."""
    return Edit(source, Span(offset, offset), text)


def delete_words(source: Source, span: Span) -> Edit:
    """An edit that removes words together with the blanks in front of them.

    When the words stand first on a continued line, the blanks stay and the line's own ending
    (blanks, backslash, newline) goes instead, so that no empty continued line is left.
    """
    text = source.text
    start, end = span
    while start > 0 and text[start - 1] in " \t":
        start -= 1
    if start > 0 and text[start - 1] == "\n":
        after = end
        while after < len(text) and text[after] in " \t":
            after += 1
        if text.startswith("\\\n", after):
            return Edit(source, Span(start, after + 2), "")
        if after >= len(text) or text[after] == "\n":
            # The last line of a continued command: the backslash above must go too.
            before = start - 1
            if before > 0 and text[before - 1] == "\\":
                before -= 1
                while before > 0 and text[before - 1] in " \t":
                    before -= 1
                return Edit(source, Span(before, end), "")
    elif start == 0:
        start = span.start
        while end < len(text) and text[end] in " \t":
            end += 1
    return Edit(source, Span(start, end), "")


def closest(word: str, known: Iterable[str], limit: int = 3) -> tuple[str, ...]:
    """The known spellings nearest to a mistyped one, nearest first; empty when none is near."""
    names = [*known]
    if not names:
        return ()
    from difflib import get_close_matches

    return tuple(get_close_matches(word, names, n=limit, cutoff=0.75))
