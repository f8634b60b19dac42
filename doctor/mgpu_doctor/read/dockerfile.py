"""Commands in Dockerfiles: ``RUN``, ``CMD`` and ``ENTRYPOINT`` in shell and exec form, here-documents, ``ENV``.

After the Dockerfile reference (docs.docker.com/reference/dockerfile, syntax 1.10): a line ends with the escape
character to go on; comment lines and blank lines between its parts are left out; the exec form is JSON and
runs no shell; ``ENV`` holds for all that follows in its stage, ``ARG`` for the build alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from mgpu_doctor.model.command import Surroundings, Variable, Wrapper
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass, field, replace
from mgpu_doctor.model.source import Excerpt, Source, Span
from mgpu_doctor.read.passage import STAND_IN, Passage, excerpt_of, joined, setting, spelled

_ESCAPE = pattern(r"\s*#\s*escape\s*=\s*([`\\])\s*$", re.IGNORECASE)
_WORD = pattern(r"[ \t]*([A-Za-z]+)(?:[ \t]+|$)")
_FLAG = pattern(r"--[a-z][\w-]*(?:=\S*)?[ \t]+")
_HERE = pattern(r"<<(-?)[ \t]*(['\"]?)([A-Za-z_]\w*)\2")
_PAIR = pattern(r"[ \t]*([A-Za-z_][\w.]*)=")
_USED = pattern(r"\$\{[^}\n]{0,500}\}|\$[A-Za-z_]\w*", re.ASCII)
_TEMPLATE = pattern(r"\{\{(?:(?!\}\}|\{\{).){0,500}\}\}|\{%(?:(?!%\}).){0,500}%\}", re.DOTALL)
_JOIN = pattern(r"\\\n")
_JSON_STRING = pattern(r'"(?:[^"\\\n]|\\.)*"')


@dataclass(frozen=True, slots=True)
class _Instruction:
    """One instruction: its name in capitals, what stands behind it, and its here-documents."""

    name: str
    rest: Passage
    heres: tuple[Passage, ...] = ()


@dataclass(slots=True)
class _Stage:
    """What ENV and ARG have set so far, and the entry point and command that count in the end."""

    variables: dict[str, Variable] = field(default_factory=dict)
    arguments: dict[str, Variable] = field(default_factory=dict)
    shell: str = "sh"
    entrypoint: _Instruction | None = None
    command: _Instruction | None = None


def excerpts(source: Source) -> tuple[Excerpt, ...]:
    """The commands that building or starting the image runs, in order."""
    found: list[Excerpt] = []
    stages: dict[str, dict[str, Variable]] = {}
    stage = _Stage()
    for one in _instructions(source):
        if one.name == "FROM":
            found.extend(_started(source, stage))
            stage = _from(one, stages)
        else:
            found.extend(_instruction(source, one, stage))
    found.extend(_started(source, stage))
    return tuple(sorted(found, key=lambda excerpt: excerpt.anchors[0][1]))


def _from(one: _Instruction, stages: dict[str, dict[str, Variable]]) -> _Stage:
    """A stage that begins with what an earlier one has set."""
    words = [word for word in one.rest.text.split() if not word.startswith("--")]
    stage = _Stage(dict(stages.get(words[0].lower(), {})) if words else {})
    if len(words) > 2 and words[1].lower() == "as":
        stages[words[2].lower()] = stage.variables
    return stage


def _instruction(source: Source, one: _Instruction, stage: _Stage) -> Iterator[Excerpt]:
    """The commands of an instruction that runs some; the others change the stage."""
    inner = _named(one.rest) if one.name == "ONBUILD" else one
    if inner is not None and inner.name == "RUN":
        yield from _run(source, replace(inner, heres=one.heres), stage)
    else:
        _take(source, one, stage)


def _take(source: Source, one: _Instruction, stage: _Stage) -> None:
    """What an instruction changes for those below."""
    if one.name == "ENV":
        for variable in _environment(source, one):
            stage.variables[variable.name] = variable
    elif one.name == "ARG":
        name = one.rest.text.partition("=")[0]
        # A build argument may be given another value than its default.
        if re.fullmatch(r"\w+", name.strip()):
            stage.arguments[name.strip()] = setting(source, name.strip(), None, one.rest.span)
    elif one.name == "SHELL":
        words = _exec_form(one.rest)
        stage.shell = words[0].text.rsplit("/", 1)[-1] if words else ""
    elif one.name == "ENTRYPOINT":
        stage.entrypoint, stage.command = one, None
    elif one.name == "CMD":
        stage.command = one


def _around(stage: _Stage, *, building: bool) -> Surroundings:
    variables = dict(stage.variables)
    if building:
        # Of one name ENV always wins over ARG.
        variables = {**stage.arguments, **variables}
    return Surroundings(tuple(variables.values()), (Wrapper("docker image", ()),), "inside a container")


def _run(source: Source, one: _Instruction, stage: _Stage) -> Iterator[Excerpt]:
    around = _around(stage, building=True)
    words = _exec_form(one.rest)
    if words is not None:
        yield from _excerpt(source, spelled(words), around)
        return
    if stage.shell not in ("sh", "bash", "dash", "zsh", "ksh"):
        return
    if one.heres and _HERE.match(one.rest.text.strip()):
        text = one.heres[0]
        shebang = re.match(r"#!\s*(\S+)(?:\s+(\S+))?", text.text)
        program = (shebang.group(2) or shebang.group(1)).rsplit("/", 1)[-1] if shebang else "sh"
        if program in ("sh", "bash", "dash", "zsh", "ksh"):
            yield from _excerpt(source, text, around)
        return
    yield from _excerpt(source, joined((one.rest, *one.heres), "\n"), around)


def _started(source: Source, stage: _Stage) -> Iterator[Excerpt]:
    """What starting the image runs: the entry point with the command as its arguments."""
    entry, command = stage.entrypoint, stage.command
    if entry is not None:
        words = _exec_form(entry.rest)
        around = _around(stage, building=False)
        if words is None:
            # The shell form ignores CMD.
            yield from _excerpt(source, entry.rest, around)
            return
        given = _exec_form(command.rest) if command is not None else None
        yield from _excerpt(source, spelled([*words, *(given or ())]), around)
    elif command is not None:
        words = _exec_form(command.rest)
        passage = command.rest if words is None else spelled(words)
        yield from _excerpt(source, passage, _around(stage, building=False))


def _excerpt(source: Source, passage: Passage, around: Surroundings) -> Iterator[Excerpt]:
    excerpt = excerpt_of(source, passage.filled_in(_TEMPLATE), around)
    if excerpt is not None:
        yield excerpt


# ---------------------------------------------------------------- instructions


def _instructions(source: Source) -> Iterator[_Instruction]:
    text = source.text
    lines = _lines(text)
    escape = _escape_character(text, lines)
    at = 0
    while at < len(lines):
        parts, at = _whole(text, lines, at, escape)
        named = _named(joined(_as_lines(parts), "")) if parts else None
        if named is None:
            continue
        heres = []
        if named.name in ("RUN", "COPY", "ADD", "ONBUILD"):
            for match in _HERE.finditer(named.rest.text):
                body, at = _here(text, lines, at, match.group(3), strip=bool(match.group(1)))
                heres.append(body)
        yield replace(named, heres=tuple(heres))


def _escape_character(text: str, lines: Sequence[tuple[int, int]]) -> str:
    """What the directives at the top choose to end a line that goes on."""
    for start, end in lines:
        directive = _ESCAPE.match(text[start:end])
        if directive:
            return directive.group(1)
        if not re.match(r"\s*#\s*\w+\s*=", text[start:end]):
            break
    return "\\"


def _whole(text: str, lines: Sequence[tuple[int, int]], at: int, escape: str) -> tuple[list[Passage], int]:
    """The lines of the instruction that begins at a line, none for a comment, and the index behind them."""
    start, end = lines[at]
    at += 1
    if _left_out(text[start:end]):
        return [], at
    parts = [Passage.of(text, start, end)]
    while _goes_on(parts[-1].text, escape) and at < len(lines):
        parts[-1] = _without_escape(parts[-1], escape)
        while at < len(lines) and _left_out(text[lines[at][0] : lines[at][1]]):
            at += 1
        if at < len(lines):
            parts.append(Passage.of(text, *lines[at]))
            at += 1
    return parts, at


def _lines(text: str) -> list[tuple[int, int]]:
    out = []
    at = 1 if text.startswith("\ufeff") else 0
    for line in text[at:].split("\n"):
        out.append((at, at + len(line.removesuffix("\r"))))
        at += len(line) + 1
    return out


def _goes_on(line: str, escape: str) -> bool:
    # moby/buildkit, frontend/dockerfile/parser/parser.go, lineContinuationRegex: an escaped escape ends the line.
    text = line.rstrip(" \t")
    return text.endswith(escape) and text[-2:-1] != escape


def _without_escape(line: Passage, escape: str) -> Passage:
    return line.cut(0, line.text.rstrip(" \t").rindex(escape))


def _left_out(line: str) -> bool:
    """Whether a line between the parts of an instruction is none of it."""
    return not line.strip() or line.lstrip().startswith("#")


def _as_lines(parts: Sequence[Passage]) -> list[Passage]:
    """The parts, joined as a shell joins lines: what a shell says about such joins can still be said."""
    out: list[Passage] = []
    for number, part in enumerate(parts):
        out.append(part)
        if number + 1 < len(parts):
            end = part.places[-1] + 1 if part.places else parts[number + 1].places[0]
            out.append(Passage("\\\n", (end, end + 1)))
    return out


def _named(line: Passage) -> _Instruction | None:
    match = _WORD.match(line.text)
    if match is None:
        return None
    name = match.group(1)
    at = _skipped(line.text, match.end())
    while name.upper() in ("RUN", "FROM", "COPY", "ADD", "HEALTHCHECK"):
        flag = _FLAG.match(line.text, at)
        if flag is None:
            break
        at = _skipped(line.text, flag.end())
    return _Instruction(name.upper(), line.cut(at))


def _skipped(text: str, at: int) -> int:
    match = re.compile(r"(?:[ \t]|\\\n)*").match(text, at)
    return match.end() if match else at


def _here(text: str, lines: Sequence[tuple[int, int]], at: int, word: str, *, strip: bool) -> tuple[Passage, int]:
    """A here-document's lines and the index behind its end."""
    parts = []
    while at < len(lines):
        start, end = lines[at]
        at += 1
        if strip:
            start += len(text[start:end]) - len(text[start:end].lstrip("\t"))
        if text[start:end] == word:
            break
        parts.append(Passage.of(text, start, end))
    return joined(parts, "\n"), at


# ---------------------------------------------------------------- forms


def _exec_form(rest: Passage) -> list[Passage] | None:
    """The words of a JSON list; None for the shell form, which is all that is no such list."""
    rest = rest.replaced(_JOIN, lambda _match: "")
    text = rest.text.rstrip()
    if not text.lstrip().startswith("["):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        return None
    words = []
    for match, value in zip(_JSON_STRING.finditer(text), values, strict=False):
        inner = rest.cut(match.start() + 1, match.end() - 1)
        whole = Span(rest.places[match.start()], rest.places[match.end() - 1] + 1)
        if inner.text != value:
            inner = _decoded(inner, value)
        words.append(replace(inner, whole=whole))
    return words


def _decoded(inner: Passage, value: str) -> Passage:
    """A JSON string without its escapes."""
    text: list[str] = []
    places: list[int] = []
    for match in re.finditer(r"\\u[0-9A-Fa-f]{4}|\\.|[^\\]", inner.text, re.DOTALL):
        piece = match.group()
        text.append(json.loads(f'"{piece}"') if piece.startswith("\\") else piece)
        places.append(inner.places[match.start()])
    found = "".join(text)
    if found != value or len(found) != len(places):
        start = inner.places[0] if inner.places else 0
        return Passage(value, (start,) * len(value))
    return Passage(found, tuple(places))


def _environment(source: Source, one: _Instruction) -> Iterator[Variable]:
    """``ENV A=1 B="2 3"``, or the old form ``ENV A the rest``."""
    text = one.rest.text
    if not _PAIR.match(text):
        name, _, behind = text.partition(" ")
        if re.fullmatch(r"\w+", name):
            start = len(text) - len(behind.lstrip())
            yield setting(source, name, _expanded(one.rest.cut(start).stripped()), one.rest.span)
        return
    at = 0
    while True:
        at = _skipped(text, at)
        match = _PAIR.match(text, at)
        if match is None:
            return
        value, end = _value(one.rest, match.end())
        place = Span(one.rest.places[match.start(1)], one.rest.places[max(match.start(1), end - 1)] + 1)
        yield setting(source, match.group(1), _expanded(value), place)
        at = end


def _value(rest: Passage, at: int) -> tuple[Passage, int]:
    """A value up to the next blank, its quotation marks and backslashes removed."""
    text = rest.text
    start, quote = at, ""
    parts: list[Passage] = []
    while at < len(text):
        character = text[at]
        if text.startswith("\\\n", at):
            if not quote:
                break
            at += 2
        elif quote and character == quote:
            quote, at = "", at + 1
        elif not quote and character in "'\"":
            quote, at = character, at + 1
        elif character == "\\" and quote != "'" and at + 1 < len(text):
            parts.append(rest.cut(at + 1, at + 2))
            at += 2
        elif not quote and character in " \t":
            break
        else:
            parts.append(rest.cut(at, at + 1))
            at += 1
    end_place = rest.places[at - 1] + 1 if at > start else rest.places[start - 1] + 1
    whole = Span(rest.places[start] if start < len(rest.places) and at > start else end_place, end_place)
    return replace(joined(parts), whole=whole), at


def _expanded(value: Passage) -> Passage:
    """What other variables give to a value is not known."""
    whole = value.whole
    found = value.filled_in(_USED)
    return replace(found, whole=whole) if found.text and STAND_IN in found.text else value
