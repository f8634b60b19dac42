"""Launches that an editor starts: the configurations in ``.vscode/launch.json``.

JSON with comments and trailing commas, as Visual Studio Code reads it ("Python debugging in VS Code", launch
configurations): ``module`` or ``program`` with ``args``, ``env`` and ``cwd``, run by the interpreter chosen there.
``${…}`` is filled in by the editor and stays unknown.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence

from mgpu_doctor.model.command import Surroundings, Variable
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.source import Excerpt, Source, Span
from mgpu_doctor.read import json_text
from mgpu_doctor.read.json_text import Damaged
from mgpu_doctor.read.passage import Passage, joined, setting, spelled
from mgpu_doctor.read.python_documents import NAMES_LAUNCHER
from mgpu_doctor.read.python_literals import own_source

_COMMENT = pattern(
    r"(?P<string>\"[^\"\\]*(?:\\.[^\"\\]*)*\")|//[^\n]*|/\*.*?\*/|,(?=\s*(?:(?://[^\n]*|/\*.*?\*/)\s*)*[\]}])",
    re.DOTALL,
)
_ESCAPE = pattern(r"\\(?:u[0-9a-fA-F]{4}|.)")
_FILLED = pattern(r"\$\{[^{}]*\}")
_LAUNCHERS = frozenset({"torchrun", "deepspeed", "accelerate", "llamafactory-cli", "lmf", "swift", "axolotl", "tune"})


def excerpts(source: Source) -> tuple[Excerpt, ...]:
    """The configurations that launch something, in order; none in a file that is damaged."""
    if NAMES_LAUNCHER.search(source.text) is None:
        return ()
    text = _COMMENT.sub(_blanked, source.text)
    found: list[Excerpt] = []
    try:
        start = json_text.blank(text, 0)
        for key, place in json_text.members(text, start):
            if key == "configurations":
                for item in json_text.items(text, place):
                    found.extend(_configuration(source, text, item))
    except Damaged:
        return ()
    return tuple(found)


def texts(source: Source) -> Sequence[str]:
    """The text of every command's source, to compare with what an edit should have made of them."""
    return [excerpt.source.text for excerpt in excerpts(source)]


def _blanked(match: re.Match[str]) -> str:
    return match.group() if match["string"] else re.sub(r"[^\n]", " ", match.group())


def _configuration(source: Source, text: str, at: int) -> Iterator[Excerpt]:
    members = dict(json_text.members(text, at))
    passages = {
        key: _string(text, members[key]) for key in ("type", "request", "module", "program", "cwd") if key in members
    }
    kind, request = passages.get("type"), passages.get("request")
    if kind is None or kind.text not in ("python", "debugpy") or (request is not None and request.text != "launch"):
        return
    words = _words(text, members, passages.get("module"), passages.get("program"))
    if not words:
        return
    command = joined(words, " ")
    if NAMES_LAUNCHER.search(command.text) is None:
        return
    around = Surroundings(tuple(_environment(source, text, members)), directory=_directory(passages.get("cwd")))
    found = own_source(source, command, around, "vscode")
    if found is not None:
        yield found


def _words(text: str, members: Mapping[str, int], module: Passage | None, program: Passage | None) -> list[Passage]:
    """The command's words, spelled for a shell."""
    head = module or program
    if head is None or not head.text:
        return []
    python = Passage("python", (head.places[0],) * len("python"))
    if module is not None:
        words = [python, Passage("-m", (head.places[0],) * 2), module]
    elif posixpath.basename(head.text) in _LAUNCHERS:
        words = [head]
    else:
        words = [python, head]
    words = [spelled([word]) for word in words]
    at = members.get("args")
    if at is None:
        return words
    if text[at] == '"':
        # One string is split by the shell of the terminal.
        return [*words, _string(text, at) or Passage("", ())]
    return [*words, *(spelled([word]) for word in (_string(text, item) for item in json_text.items(text, at)) if word)]


def _string(text: str, at: int) -> Passage | None:
    """A string with the place of every character, ``${…}`` in it unknown; None for any other value."""
    if text[at : at + 1] != '"':
        return None
    raw = json_text.string(text, at)
    places: list[int] = []
    here = raw.start + 1
    for match in _ESCAPE.finditer(text, here, raw.end - 1):
        places.extend(range(here, match.start()))
        places.append(match.start())
        here = match.end()
    places.extend(range(here, raw.end - 1))
    if len(places) != len(raw.value):
        return None
    passage = Passage(raw.value, tuple(places), (), Span(raw.start, raw.end))
    return passage.filled_in(_FILLED)


def _environment(source: Source, text: str, members: Mapping[str, int]) -> Iterator[Variable]:
    at = members.get("env")
    if at is None or text[at] != "{":
        return
    for name, place in json_text.members(text, at):
        value = _string(text, place)
        span = Span(place, json_text.skip(text, place))
        yield setting(source, name, None if value is None or value.early else value, span, "export")


def _directory(cwd: Passage | None) -> str | Unknown | None:
    """Where it runs; None for the folder that is open in the editor."""
    if cwd is None or (
        cwd.early and cwd.early[0][2] in ("${workspaceFolder}", "${workspaceRoot}") and len(cwd.early) == 1
    ):
        behind = "" if cwd is None else cwd.text[cwd.early[0][1] :].strip("/")
        return behind or None
    return Unknown("the editor fills in the directory") if cwd.early else cwd.text
