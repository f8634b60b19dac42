"""Shell scripts: one text, with the scheduler's directives in it, is one excerpt."""

from __future__ import annotations

from mgpu_doctor.model.source import Excerpt, Source


def excerpts(source: Source) -> tuple[Excerpt, ...]:
    """The whole text; a byte order mark at its start is left out."""
    if source.text.startswith("\ufeff"):
        return (Excerpt(source, source.text[1:], ((0, 1),), "bash"),)
    return (Excerpt.whole(source),)
