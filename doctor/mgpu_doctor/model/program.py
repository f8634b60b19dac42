"""What files say without being run: configuration files and Python programs."""

from __future__ import annotations

from collections.abc import Mapping

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.record import dataclass
from mgpu_doctor.model.source import Location, Source, Span


@dataclass(frozen=True, slots=True)
class ConfigValue:
    """A scalar, list or mapping in a configuration file, with the span of its key and value.

    ``value`` is the plain Python value (mappings and lists hold plain values).
    """

    path: tuple[str, ...]
    value: object
    key_span: Span
    span: Span


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A YAML or JSON file that takes part in a launch, read without executing anything.

    ``role``: ``accelerate``, ``deepspeed``, ``llamafactory``, ``fsdp`` …. ``values`` holds
    every mapping entry by its path of keys. ``problem`` says why it could not
    be read (with its place), None when it was; ``exists`` is False for a file that is not there. ``unseen`` is True
    where the problem is ours alone (a file that we may not open or that is too large): its reader may take it.
    ``repeated`` are entries that a later one of the same name in the same mapping replaces.
    """

    role: str
    name: str
    source: Source | None
    values: Mapping[tuple[str, ...], ConfigValue]
    data: object = None
    problem: str | None = None
    problem_span: Span | None = None
    exists: bool | Unknown = True
    unseen: bool = False
    repeated: tuple[ConfigValue, ...] = ()

    def get(self, *path: str) -> object:
        """The plain value at a path of keys, None when absent."""
        found = self.values.get(path)
        return found.value if found is not None else None

    def has(self, *path: str) -> bool:
        """Whether the file has a value (null included) at this path."""
        return path in self.values

    def locate(self, *path: str) -> Location | None:
        """Where key and value stand, None when absent or without a source."""
        found = self.values.get(path)
        if found is None or self.source is None:
            return None
        return Location(self.source, Span(found.key_span.start, found.span.end))


@dataclass(frozen=True, slots=True)
class ScriptOption:
    """An option that a Python program declares with argparse or in a dataclass."""

    flags: tuple[str, ...]
    span: Span
    required: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """A fact seen in a program's source: ``kind``, an optional detail, and where.

    The kinds are listed in :mod:`mgpu_doctor.read.program`.
    """

    kind: str
    detail: str
    span: Span
    order: int = 0
    """Position among the program's top-level statements, for facts about order."""


@dataclass(frozen=True, slots=True)
class Program:
    """What a Python file's text shows, by parsing it and never running it.

    ``imports`` are the absolute names of imported modules; ``options`` those
    declared with argparse; ``strict_options`` is True when the parser refuses
    options that it does not declare, None when there is no parser to see.
    ``seen`` are further facts, in source order.
    """

    source: Source
    imports: frozenset[str]
    options: tuple[ScriptOption, ...] = ()
    strict_options: bool | None = None
    seen: tuple[Seen, ...] = ()

    def all(self, *kinds: str) -> tuple[Seen, ...]:
        """The facts of these kinds, in source order."""
        return tuple(seen for seen in self.seen if seen.kind in kinds)

    def first(self, *kinds: str) -> Seen | None:
        """The first fact of one of these kinds, or None."""
        for seen in self.seen:
            if seen.kind in kinds:
                return seen
        return None

    def imports_any(self, *packages: str) -> bool:
        """Whether one of these packages or a module inside it is imported."""
        return any(name == p or name.startswith(p + ".") for name in self.imports for p in packages)

    def locate(self, seen: Seen | ScriptOption) -> Location:
        """Where a fact stands."""
        return Location(self.source, seen.span)
