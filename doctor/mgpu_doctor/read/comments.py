"""Launch commands in the comments of a file that holds none otherwise: how a configuration is to be used."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.source import Excerpt, Source, Span
from mgpu_doctor.read.markdown import whole_command
from mgpu_doctor.read.passage import Passage, excerpt_of, joined

_COMMENT = pattern(r"^[ \t]*#+(?!!)[ \t]?(?P<text>[^\n]*)$", re.MULTILINE)
_PROSE = pattern(r"(?<!\S)(?:to|for|the|is|are|with|or|and|will|can|which|that|you)(?!\S)|[.:,]$")
_PROMPT = pattern(r"\$[ \t]+")


def commands_in_comments(source: Source, taken: Sequence[Span] = ()) -> Iterator[Excerpt]:
    """Comments on lines of their own that are a whole launch command, continued lines joined.

    ``taken`` are ranges of the text in which a ``#`` begins no comment: block scalars.
    """
    lines = [
        (match, Passage.of(source.text, match.start("text"), match.start("text") + len(match["text"].rstrip())))
        for match in _COMMENT.finditer(source.text)
        if not any(span.start <= match.start() < span.end for span in taken)
    ]
    at = 0
    while at < len(lines):
        parts = [lines[at][1].stripped()]
        prompt = _PROMPT.match(parts[0].text)
        if prompt:
            parts[0] = parts[0].cut(prompt.end())
        end = at + 1
        while parts[-1].text.endswith("\\") and end < len(lines) and _follows(source, lines[end - 1][0], lines[end][0]):
            parts.append(lines[end][1])
            end += 1
        plain = " ".join(part.text.rstrip("\\").strip() for part in parts)
        if not parts[-1].text.endswith("\\") and whole_command(plain) and not _PROSE.search(plain):
            excerpt = excerpt_of(source, joined(parts, "\n"))
            if excerpt is not None:
                yield excerpt
                at = end
                continue
        at += 1


def _follows(source: Source, one: re.Match[str], other: re.Match[str]) -> bool:
    """Whether a comment stands on the line below another."""
    return source.text.count("\n", one.start("text"), other.start("text")) == 1
