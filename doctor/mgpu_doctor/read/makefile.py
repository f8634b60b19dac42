"""Commands in Makefiles and justfiles: the recipes, each line as its own shell reads it.

GNU Make 4.4, manual chapters 5 "Writing Recipes" and 6 "How to Use Variables": a recipe's lines begin with
a tab, each goes to a shell of its own unless ``.ONESHELL`` is given, ``@``, ``-`` and ``+`` in front are not part of
it, ``$$`` is the shell's ``$``, and a variable may be set on the command line, which wins over the file. just 1.36:
recipes are indented, ``{{…}}`` is filled in, a recipe that begins with ``#!`` is one script.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mgpu_doctor.model.command import Surroundings, Variable
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.source import Excerpt, Source
from mgpu_doctor.read.passage import Passage, excerpt_of, joined, setting

_ASSIGNMENT = pattern(
    r"(?P<lead>(?:(?:export|override|private)[ \t]+)*)(?P<name>[\w.-]+)[ \t]*"
    r"(?P<how>:{0,3}=|\?=|\+=|!=)[ \t]*(?P<value>[^\n]*)"
)
_EXPORT = pattern(r"(?P<lead>export)[ \t]+(?P<name>[\w.-]+)[ \t]*(?P<how>:{0,3}=|\?=)[ \t]*(?P<value>[^\n]*)")
_RULE = pattern(r"[^\s#=:][^=#\n]*?::?(?![=:])|[^\s#=:]+:(?!=)")
_USE = pattern(r"\$\$|\$\((?P<round>[\w.-]+)\)|\$\{(?P<curly>[\w.-]+)\}|\$(?=[({])|\$(?P<one>[^\s({$])")
_JUST_RECIPE = pattern(r"@?[A-Za-z_][\w-]*(?:[ \t][^\n:=]*(?:=[^\n:]*)?)?:(?!=)")
_LONGEST = 2000
"""Characters of a reference with others inside; none that people write comes near."""
_MOST_OPEN = 20
"""References without an end in one line, beyond which the rest of it is left as it is."""
_JUST_USE = pattern(r"\{\{\{\{|\{\{(?:(?!\}\}|\{\{).){0,500}\}\}")


def excerpts(source: Source) -> tuple[Excerpt, ...]:
    """The recipes' commands, in order."""
    return tuple(_justfile(source) if source.kind == "justfile" else _makefile(source))


def _lines(source: Source) -> list[Passage]:
    out = []
    at = 0
    for line in source.text.split("\n"):
        out.append(Passage.of(source.text, at, at + len(line.removesuffix("\r"))))
        at += len(line) + 1
    return out


# ---------------------------------------------------------------- make


def _makefile(source: Source) -> Iterator[Excerpt]:
    lines = _lines(source)
    known = _literals(lines)
    exported = tuple(_exported(source, lines))
    oneshell = any(re.match(r"\.ONESHELL[ \t]*:", line.text) for line in lines)
    around = Surroundings(exported)
    recipe: list[Passage] = []
    in_recipe = in_define = False
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        text = line.text
        if in_define or re.match(r"[ ]*(?:override[ \t]+)?define\b", text):
            in_define = not re.match(r"[ \t]*endef\b", text)
            continue
        if text.startswith("\t") and in_recipe:
            parts = [line.cut(1)]
            while _goes_on(parts[-1].text) and at < len(lines):
                more = lines[at]
                parts.append(more.cut(1) if more.text.startswith("\t") else more)
                at += 1
            recipe.append(joined(parts, "\n"))
            continue
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        if re.match(r"[ ]*(?:ifeq|ifneq|ifdef|ifndef|else|endif)\b", text):
            continue
        yield from _recipe(source, recipe, known, around, oneshell=oneshell)
        recipe = []
        while _goes_on(lines[at - 1].text) and at < len(lines):
            at += 1
        in_recipe = _ASSIGNMENT.match(text) is None and _RULE.match(text) is not None
        behind = _inline_recipe(line) if in_recipe else None
        if behind is not None:
            recipe.append(behind)
    yield from _recipe(source, recipe, known, around, oneshell=oneshell)


def _goes_on(line: str) -> bool:
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _inline_recipe(line: Passage) -> Passage | None:
    """``target: prerequisites ; command``."""
    _, found, behind = line.text.partition(";")
    return line.cut(len(line.text) - len(behind)) if found and behind.strip() else None


def _literals(lines: Sequence[Passage]) -> dict[str, str | None]:
    """Variables that are set once, to a text without references; None for the others."""
    found: dict[str, str | None] = {}
    for line in lines:
        match = _ASSIGNMENT.match(line.text) if not line.text.startswith("\t") else None
        if match is None:
            continue
        name, value = match["name"], match["value"].partition("#")[0].strip()
        literal = match["how"] in ("=", ":=", "::=", ":::=") and "$" not in value and not value.endswith("\\")
        found[name] = value if literal and name not in found else None
    return found


def _exported(source: Source, lines: Sequence[Passage]) -> Iterator[Variable]:
    """Variables that reach the recipes' commands."""
    for line in lines:
        match = _EXPORT.match(line.text)
        if match is not None and re.fullmatch(r"[A-Za-z_]\w*", match["name"]):
            value = line.cut(
                match.start("value"), match.start("value") + len(match["value"].partition("#")[0].rstrip())
            )
            place = line.cut(match.start("name"), max(match.end("how"), match.start("value") + len(value.text))).span
            plain = match["how"] != "?=" and "$" not in value.text
            yield setting(source, match["name"], value if plain else None, place, "export")


def _recipe(
    source: Source, recipe: Sequence[Passage], known: dict[str, str | None], around: Surroundings, *, oneshell: bool
) -> Iterator[Excerpt]:
    if not recipe:
        return
    commands = [_command(line, known) for line in recipe]
    for passage in [joined(commands, "\n")] if oneshell else commands:
        excerpt = excerpt_of(source, passage, around)
        if excerpt is not None:
            yield excerpt


def _command(line: Passage, known: dict[str, str | None]) -> Passage:
    """A recipe's line as the shell gets it."""
    prefix = re.match(r"[ \t]*[@+-]*[ \t@+-]*", line.text)
    line = line.cut(prefix.end() if prefix else 0)
    functions = _functions(line)

    def use(match: re.Match[str]) -> str | None:
        if match.group() == "$$":
            return "$"
        name = match["round"] or match["curly"]
        # A literal value is what the file says; a variable of the command line would win over it.
        return known.get(name) if name else None

    return functions.replaced(_USE, use)


def _functions(line: Passage) -> Passage:
    """With stand-ins for ``$(shell …)``, ``$(if …)`` and every reference with others inside."""
    parts: list[Passage] = []
    text = line.text
    at = start = open_ones = 0
    while at < len(text) and open_ones < _MOST_OPEN:
        if text.startswith("$$", at):
            at += 2
            continue
        match = re.compile(r"\$[({]").match(text, at)
        end = _closing(text, at + 1) if match else at
        open_ones += end < 0
        if match is None or end < 0 or re.fullmatch(r"[\w.-]+", text[at + 2 : end]):
            at = max(at + 1, end + 1 if match and end > 0 else at + 1)
            continue
        parts.append(line.cut(start, at))
        parts.append(line.cut(at, end + 1).filled_in(re.compile(r"(?s).+")))
        at = start = end + 1
    parts.append(line.cut(start))
    return joined(parts)


def _closing(text: str, at: int) -> int:
    """The index of the bracket that closes the one at ``at``; -1 when none does."""
    opening, closing = text[at], ")" if text[at] == "(" else "}"
    depth = 0
    for index in range(at, min(len(text), at + _LONGEST)):
        depth += (text[index] == opening) - (text[index] == closing)
        if not depth:
            return index
    return -1


# ---------------------------------------------------------------- just


def _justfile(source: Source) -> Iterator[Excerpt]:
    lines = _lines(source)
    exported: list[Variable] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        setting_line = re.match(r"export[ \t]+([A-Za-z_]\w*)[ \t]*:=[ \t]*(['\"])([^'\"\n]*)\2[ \t]*$", line.text)
        if setting_line:
            value = line.cut(setting_line.start(3), setting_line.end(3))
            exported.append(
                setting(source, setting_line.group(1), value, line.cut(setting_line.start(1)).span, "export")
            )
            continue
        if not _JUST_RECIPE.match(line.text):
            continue
        body = []
        while at < len(lines) and (not lines[at].text.strip() or lines[at].text[:1] in " \t"):
            body.append(lines[at])
            at += 1
        yield from _just_recipe(source, body, Surroundings(tuple(exported)))


def _just_recipe(source: Source, body: Sequence[Passage], around: Surroundings) -> Iterator[Excerpt]:
    width = next((len(line.text) - len(line.text.lstrip()) for line in body if line.text.strip()), 0)
    lines = [line.cut(min(width, len(line.text))) for line in body]
    first = next((line.text for line in lines if line.text.strip()), "")
    script = first.startswith("#!")
    if script and not re.search(r"(?:/|env\s+(?:-S\s+)?)(?:ba|z|da|k)?sh\b", first):
        return
    commands: list[Passage] = [joined(lines, "\n")] if script else []
    at = 0
    while at < len(lines) and not script:
        parts = [lines[at]]
        at += 1
        while _goes_on(parts[-1].text) and at < len(lines):
            parts.append(lines[at])
            at += 1
        prefix = re.match(r"[@-]*", parts[0].text)
        parts[0] = parts[0].cut(prefix.end() if prefix else 0)
        commands.append(joined(parts, "\n"))
    for command in commands:
        passage = command.replaced(_JUST_USE, lambda match: "{{" if match.group() == "{{{{" else None)
        excerpt = excerpt_of(source, passage, around)
        if excerpt is not None:
            yield excerpt
