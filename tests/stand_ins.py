"""Small stand-ins for the parts of a case that a test does not care about."""

from __future__ import annotations

from typing import cast

from mgpu_doctor.model.case import Case
from mgpu_doctor.model.command import Command, Piece, Word
from mgpu_doctor.model.facts import NO_FACTS
from mgpu_doctor.model.knowledge import Knowledge
from mgpu_doctor.model.known import Origin, Setting, Unknown
from mgpu_doctor.model.launch import Engine, Launch, Target, VisibleDevices
from mgpu_doctor.model.source import Source, Span
from mgpu_doctor.model.workspace import Workspace

UNASKED = Origin("default", "not asked")


def empty_case() -> Case:
    """A case without texts, files or machine; a check that asks for files or knowledge fails at once."""
    return Case((), (), (), NO_FACTS, cast("Workspace", None), cast("Knowledge", None))


def command_of(text: str) -> Command:
    """A command whose words are separated by single blanks and hold nothing but literal text."""
    source = Source("<command>", text, "command")
    words = []
    at = 0
    for part in text.split(" "):
        words.append(Word(Span(at, at + len(part)), (Piece(part, part),)))
        at += len(part) + 1
    return Command(source, Span(0, len(text)), tuple(words))


def launches_of(*texts: str) -> Case:
    """A case with one launch for each command, nothing about it known."""
    launches = tuple(_launch(command_of(text)) for text in texts)
    return Case((), (), launches, NO_FACTS, cast("Workspace", None), cast("Knowledge", None))


def _launch(command: Command) -> Launch:
    unknown_int: Setting[int] = Setting(Unknown("not asked"), UNASKED)
    unknown_text: Setting[str] = Setting(Unknown("not asked"), UNASKED)
    visible: Setting[VisibleDevices] = Setting(Unknown("not asked"), UNASKED)
    return Launch(
        command=command,
        layers=(),
        target=Target("none", None, None),
        processes_per_node=unknown_int,
        nodes=unknown_int,
        node_rank=unknown_int,
        world_size=unknown_int,
        visible_before=visible,
        visible=visible,
        rendezvous=None,
        engine=Setting(Engine("none"), UNASKED),
        purpose=unknown_text,
        spread=unknown_text,
        ranks=Unknown("not asked"),
        groups=Setting(Unknown("not asked"), UNASKED),
    )
