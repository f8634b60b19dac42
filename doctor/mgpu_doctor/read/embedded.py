"""Files of other languages that hold commands, as files and as blocks of a document."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mgpu_doctor.model.command import Surroundings, Variable
from mgpu_doctor.model.record import replace
from mgpu_doctor.model.source import Excerpt, Location, Source, Span

LANGUAGES = {
    "yaml": "yaml",
    "yml": "yaml",
    "dockerfile": "dockerfile",
    "docker": "dockerfile",
    "makefile": "makefile",
    "make": "makefile",
    "just": "justfile",
    "justfile": "justfile",
}
"""What a document calls a block in one of these languages."""


def read_embedded(source: Source) -> tuple[Excerpt, ...]:
    """The commands in a YAML file, a Dockerfile, a Makefile or a justfile."""
    return _reader(source.kind)(source)


def _reader(kind: str) -> Callable[[Source], tuple[Excerpt, ...]]:
    if kind == "yaml":
        from mgpu_doctor.read import yaml_commands

        return yaml_commands.excerpts
    if kind == "dockerfile":
        from mgpu_doctor.read import dockerfile

        return dockerfile.excerpts
    from mgpu_doctor.read import makefile

    return makefile.excerpts


def commands_in_block(block: Excerpt, kind: str) -> Iterator[Excerpt]:
    """The commands in a block of a document, with their places in the document."""
    inner = Source(block.source.name, block.text, kind, block.source.path)
    for excerpt in read_embedded(inner):
        yield Excerpt(
            block.source,
            excerpt.text,
            _anchors(block, excerpt),
            excerpt.language,
            _around(block, excerpt.around or Surroundings()),
        )


def _anchors(block: Excerpt, excerpt: Excerpt) -> tuple[tuple[int, int], ...]:
    """Both ways one behind the other, character by character; runs are joined."""
    out: list[tuple[int, int]] = []
    expected = -1
    for offset in range(len(excerpt.text)):
        inner = excerpt.locate(offset, offset).start
        place = block.locate(inner, inner).start
        if place != expected:
            out.append((offset, place))
        expected = place + 1
    return tuple(out)


def _around(block: Excerpt, around: Surroundings) -> Surroundings:
    return replace(around, variables=tuple(_moved(block, variable) for variable in around.variables))


def _moved(block: Excerpt, variable: Variable) -> Variable:
    value = variable.value
    if value is not None:
        value = replace(value, span=_place(block, value.span))
    location = variable.location
    if location is not None:
        location = Location(block.source, _place(block, location.span))
    return replace(variable, value=value, location=location)


def _place(block: Excerpt, span: Span) -> Span:
    return block.locate(span.start, span.end)
