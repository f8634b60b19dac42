"""Commands in notebooks: ``!`` lines, shell cells, Markdown cells, and calls in Python cells that start processes.

The format is nbformat 3 and 4 (nbformat 5.10.4, ``nbformat/v3``, ``nbformat/v4``): JSON whose cells hold their text as
one string or as a list of lines. The text of the code cells, escapes resolved, makes one source with the way
back to the file, so that what is read from it needs to know nothing of JSON.

What IPython does with a cell is that of IPython 8.12.3 (``core/inputtransformer2.py``, ``core/magics/script.py``,
``utils/text.py``): every ``!`` line is a shell of its own; ``%cd``, ``%env`` and ``os.environ`` change the process
that starts them; ``{…}`` and ``$name`` in a ``!`` line are filled in by Python first.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from mgpu_doctor.errors import InputError
from mgpu_doctor.model.command import Surroundings, Variable
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass, field
from mgpu_doctor.model.source import Excerpt, Location, Source, Span
from mgpu_doctor.read import json_text
from mgpu_doctor.read.json_text import Damaged, RawString
from mgpu_doctor.read.markdown import Line, begins_like_a_launch, is_python
from mgpu_doctor.read.passage import Passage, excerpt_of, setting

_WORDS = (
    "torchrun", "torch.distributed", "accelerate", "deepspeed", "llamafactory", "axolotl", "xtuner", "colossalai",
    "horovodrun", "composer", "tune run", "uv run",
)  # fmt: skip
_SHORT_WORDS = ("lmf", "swift", "srun", "mpirun", "mpiexec")
"""Words that other words, and images written as text, may hold."""
_PYTHON = pattern(r"python[\d.]*[ \t]+[^\s\"]")
_ESCAPE = pattern(r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)")

_SHELLS = frozenset({"bash", "sh", "zsh", "ksh", "dash", "shell", "shellscript"})
_SHELL_FILE = pattern(r"(?:-a[ \t]+|--append[ \t]+)?[\"']?(\S+\.(?:sh|bash|sbatch|slurm))[\"']?\s*$")
_TRANSPARENT = frozenset({"time", "timeit", "capture", "prun", "skip", "wandb", "notify", "px", "stopwatch"})
"""Cell magics below which a cell is still Python."""

_BANG = pattern(
    r"(?P<indent>[ \t]*)(?:[A-Za-z_][\w., ]*?[ \t]*=[ \t]*)?(?:!{1,2}(?!=)|%(?:sx|system)[ \t]+)[ \t]*(?=\S)"
)
_MAGIC = pattern(r"[ \t]*%(?P<name>cd|env|set_env|pushd|popd)\b[ \t]*(?P<rest>[^\n]*)")
_AUTOMAGIC_CD = pattern(r"(?P<name>cd)[ \t]+(?P<rest>[\w./~-][^\s=(,]*)[ \t]*$")
_CHDIR = pattern(r"(?P<indent>[ \t]*)os\.chdir\([ \t]*(?P<rest>.*?)[ \t]*\)[ \t]*(?:#.*)?$")
_ENVIRON = pattern(
    r"(?P<indent>[ \t]*)os\.environ\[[ \t]*(['\"])(?P<name>\w+)\2[ \t]*\][ \t]*=(?!=)[ \t]*"
    r"(?P<rest>[^\n]*?)[ \t]*(?:#[^'\"\n]*)?$"
)
_LITERAL = pattern(r"(['\"])((?:(?!\1)[^\\\n])*)\1$")
_TRIPLE = pattern(r"\"\"\"|'''")
_FILLED = pattern(r"\{\{|\}\}|\$\$|\$?\{[^{}\n]*\}|\$[\w.]+")
_LOOSE_OPTION = pattern(r"[ \t]*--?[A-Za-z]")


@dataclass(frozen=True, slots=True)
class RawCell:
    """A cell as the file has it: its kind, its language when it says one, and its strings."""

    kind: str
    language: str
    strings: tuple[RawString, ...]


class Cell(NamedTuple):
    """A code cell's range in the text of all, and the language that it says it is in (empty: the notebook's)."""

    start: int
    end: int
    language: str


@dataclass(frozen=True, slots=True)
class Notebook:
    """``code`` is the text of all code cells, ``documents`` are the Markdown cells; each knows its way back."""

    code: Source
    cells: tuple[Cell, ...]
    documents: tuple[Source, ...]
    language: str

    @property
    def pieces(self) -> tuple[Source, ...]:
        """Every text in the notebook."""
        return (self.code, *self.documents)


def mentions_launch(text: str) -> bool:
    """Whether a notebook can hold a launch at all: a look at the bytes that costs next to nothing."""
    if any(word in text for word in _WORDS) or _PYTHON.search(text) is not None:
        return True
    return any(word in text and re.search(rf"\b{word}\b", text) is not None for word in _SHORT_WORDS)


def require_whole(source: Source) -> None:
    """Refuse a notebook whose JSON is damaged, unless it holds nothing that could be a launch.

    Raises:
        InputError: with the place.
    """
    if not mentions_launch(source.text):
        return
    found = _raw_cells(source.text)
    if isinstance(found, Damaged):
        place = Location(source, Span(found.at, found.at))
        raise InputError(f"{place}: not a whole notebook: {found.what}", location=place)


def excerpts(source: Source) -> tuple[Excerpt, ...]:
    """The shell texts in a notebook, in order; none in one that is damaged."""
    notebook = read(source)
    if notebook is None:
        return ()
    from mgpu_doctor.read import markdown

    found: list[Excerpt] = []
    if mentions_launch(notebook.code.text):
        cells = _Reader(notebook).excerpts()
        found.extend(sorted(cells, key=lambda one: one.source.position(one.locate(0, 1).start)))
    for document in notebook.documents:
        if mentions_launch(document.text):
            found.extend(markdown.excerpts(document))
    return tuple(found)


def read(source: Source) -> Notebook | None:
    """The texts of a notebook; None when it is damaged or holds nothing that could be a launch."""
    return _read(source) if mentions_launch(source.text) else None


def _read(source: Source) -> Notebook | None:
    found = _raw_cells(source.text)
    if isinstance(found, Damaged):
        return None
    raw, language = found
    code = _Text()
    cells = []
    documents = []
    for cell in raw:
        if cell.kind == "code":
            start = code.length
            for string in cell.strings:
                code.add(source.text, string)
            cells.append(Cell(start, code.length, cell.language))
            code.end_cell()
        elif cell.kind == "markdown":
            one = _Text()
            for string in cell.strings:
                one.add(source.text, string)
            documents.append(one.source(source, "markdown"))
    return Notebook(code.source(source, "notebook"), tuple(cells), tuple(documents), language)


@dataclass(slots=True)
class _Text:
    """Strings of a JSON text, escapes resolved, one behind the other."""

    parts: list[str] = field(default_factory=list)
    anchors: list[tuple[int, int]] = field(default_factory=list)
    length: int = 0
    last: int = 0

    def add(self, text: str, string: RawString) -> None:
        """One string more."""
        start, end, value = string.start + 1, string.end, string.value
        self.anchors.append((self.length, start))
        if len(value) != end - 1 - start:
            shorter = 0
            for match in _ESCAPE.finditer(text, start, end - 1):
                here = self.length + match.start() - start - shorter
                self.anchors.append((here, match.start()))
                shorter += match.end() - match.start() - 1
                self.anchors.append((here + 1, match.end()))
        self.parts.append(value)
        self.length += len(value)
        self.last = end - 1

    def end_cell(self) -> None:
        """A blank line behind a cell, placed at the end of its last string."""
        self.anchors.extend(((self.length, self.last), (self.length + 1, self.last)))
        self.parts.append("\n\n")
        self.length += 2

    def source(self, file: Source, kind: str) -> Source:
        """The text as a source that stands in the file."""
        text = "".join(self.parts)
        anchors = tuple(dict(self.anchors).items()) or ((0, 0),)
        return Source(file.name, text, kind, file.path, 1, Excerpt(file, text, (*anchors, (self.length, self.last))))


# ---------------------------------------------------------------- JSON


@lru_cache(maxsize=2)
def _raw_cells(text: str) -> tuple[tuple[RawCell, ...], str] | Damaged:
    """The cells and the notebook's language, or where the JSON is damaged."""
    try:
        return _whole(text)
    except Damaged as damage:
        return damage


def _whole(text: str) -> tuple[tuple[RawCell, ...], str]:
    cells: list[RawCell] = []
    language = ""
    at = json_text.blank(text, 1 if text.startswith("\ufeff") else 0)
    for key, value in json_text.members(text, at):
        if key == "cells":
            cells.extend(_cell(text, item) for item in json_text.items(text, value))
        elif key == "worksheets":
            for sheet in json_text.items(text, value):
                for inner, place in json_text.members(text, sheet):
                    if inner == "cells":
                        cells.extend(_cell(text, item) for item in json_text.items(text, place))
        elif key == "metadata":
            language = _language(text[value : json_text.skip(text, value)])
    end = json_text.blank(text, json_text.skip(text, at))
    if end < len(text):
        raise Damaged(end, "text behind the closing brace")
    return tuple(cells), language


def _language(metadata: str) -> str:
    try:
        data = json.loads(metadata)
    except ValueError:
        return ""
    for name, key in (("language_info", "name"), ("kernelspec", "language"), ("kernelspec", "name")):
        value = data.get(name)
        if isinstance(value, dict) and isinstance(value.get(key), str):
            return str(value[key]).lower()
    return ""


def _cell(text: str, at: int) -> RawCell:
    kind, language = "", ""
    strings: tuple[RawString, ...] = ()
    for key, value in json_text.members(text, at):
        if key == "cell_type" and text[value] == '"':
            kind = text[value + 1 : json_text.skip(text, value) - 1]
        elif key in ("source", "input"):
            places = tuple(json_text.items(text, value)) if text[value] == "[" else (value,)
            strings = tuple(json_text.string(text, place) for place in places if text[place] == '"')
        elif key == "metadata":
            found = re.search(r'"languageId"\s*:\s*"([\w-]+)"', text[value : json_text.skip(text, value)])
            language = found.group(1).lower() if found else ""
    return RawCell(kind, language, strings)


# ---------------------------------------------------------------- cells


class _Reader:
    """Reads the code cells one after the other, as the kernel would run them from top to bottom."""

    def __init__(self, notebook: Notebook) -> None:
        self.notebook = notebook
        self.source = notebook.code
        self.text = notebook.code.text
        self.variables: dict[str, Variable] = {}
        self.directory: str | Unknown | None = None

    def excerpts(self) -> Iterator[Excerpt]:
        """The shell texts of every code cell."""
        for cell in self.notebook.cells:
            yield from self.cell(cell)

    def cell(self, cell: Cell) -> Iterator[Excerpt]:
        text = self.text[cell.start : cell.end]
        language = cell.language or self.notebook.language
        start = cell.start + len(text) - len(text.lstrip())
        head = self.text[start : self.line_end(start, cell.end)]
        if head.startswith("%%"):
            name, _, rest = head[2:].strip().partition(" ")
            if name in _TRANSPARENT:
                start += len(head) + 1
            else:
                yield from self.cell_magic(name, rest.strip(), start + len(head) + 1, cell.end)
                return
        elif head.strip() in ("%sh", "%bash"):
            # Databricks: the magic in the first line is for the whole cell.
            yield from self.shell(start + len(head) + 1, cell.end)
            return
        elif language in _SHELLS or (language != "r" and self.is_unmarked_shell(start, cell.end)):
            yield from self.shell(start, cell.end)
            return
        if start < cell.end:
            yield from self.python(start, cell.end)

    def line_end(self, start: int, end: int) -> int:
        found = self.text.find("\n", start, end)
        return end if found < 0 else found

    def cell_magic(self, name: str, rest: str, start: int, end: int) -> Iterator[Excerpt]:
        if name == "script":
            words = [word for word in rest.split() if not word.startswith("-")]
            name = posixpath.basename(words[0]) if words else ""
        if name in _SHELLS or name in ("!", "sx", "system"):
            yield from self.shell(start, end)
        elif name in ("writefile", "file") and _SHELL_FILE.match(rest) and start < end:
            found = excerpt_of(self.source, Passage.of(self.text, start, end))
            if found is not None:
                yield found

    def is_unmarked_shell(self, start: int, end: int) -> bool:
        """Whether a cell is shell text that nothing marks: it begins like a launch, and is no Python."""
        text = self.text[start:end]
        if not mentions_launch(text):
            return False
        lines = [Line(line, 0) for line in text.split("\n")]
        if any(_BANG.match(line.text) for line in lines):
            return False
        return begins_like_a_launch(lines) and not is_python(lines)

    def shell(self, start: int, end: int) -> Iterator[Excerpt]:
        found = excerpt_of(self.source, Passage.of(self.text, start, end), self.around())
        if found is not None and mentions_launch(found.text):
            yield found

    def around(self) -> Surroundings:
        return Surroundings(tuple(self.variables.values()), directory=self.directory)

    # ------------------------------------------------------------ Python cells

    def python(self, start: int, end: int) -> Iterator[Excerpt]:
        """The lines of a Python cell that IPython hands to a shell, and the calls that start processes."""
        at = start
        quotes = ""
        blanked: list[str] = []
        while at < end:
            stop = self.line_end(at, end)
            line = self.text[at:stop]
            if not quotes:
                bang = _BANG.match(line)
                if bang is not None:
                    stop = self.command_end(at, end)
                    blanked.append(bang["indent"] + "0" + "\n" * self.text.count("\n", at, stop))
                    yield from self.command(at + bang.end(), stop)
                    at = stop + 1
                    continue
                if self.magic(line, at):
                    blanked.append(line[: len(line) - len(line.lstrip())] + "0")
                    at = stop + 1
                    continue
                if line.lstrip().startswith(("%", "?")):
                    line = line[: len(line) - len(line.lstrip())] + "0"
            blanked.append(line)
            quotes = _quotes_after(line, quotes)
            at = stop + 1
        yield from self.calls("\n".join(blanked), start)

    def calls(self, text: str, start: int) -> Iterator[Excerpt]:
        """The calls that start processes in a cell whose magics have been blanked out."""
        from mgpu_doctor.read import python_source

        if not python_source.mentions_launch(text):
            return
        line = self.text.count("\n", 0, start)
        starts = [0, *(match.end() for match in re.finditer("\n", self.text))]
        own = [0, *(match.end() for match in re.finditer("\n", text))]
        anchors = tuple(
            (offset, max(start, starts[line + number]) if number else start) for number, offset in enumerate(own)
        )
        cell = Source(self.source.name, text, "python", self.source.path, 1, Excerpt(self.source, text, anchors))
        yield from python_source.excerpts(cell, documents=False)

    def command_end(self, at: int, end: int) -> int:
        """Where a ``!`` line ends: behind its continued lines, and behind options below that were meant to be its."""
        while True:
            stop = self.line_end(at, end)
            line = self.text[at:stop]
            below = stop + 1
            if below >= end:
                return stop
            continued = line.endswith("\\") or (line.rstrip().endswith("\\") and line.strip() != "\\")
            if not continued and not _LOOSE_OPTION.match(self.text[below : self.line_end(below, end)]):
                return stop
            at = below

    def command(self, start: int, end: int) -> Iterator[Excerpt]:
        """The shell text of one ``!`` line."""
        passage = Passage.of(self.text, start, end).replaced(_FILLED, _filled)
        found = excerpt_of(self.source, passage, self.around())
        if found is not None:
            yield found

    def magic(self, line: str, at: int) -> bool:
        """Take in what a line changes in the kernel's process; whether it is a magic at all."""
        match = _MAGIC.match(line) or _AUTOMAGIC_CD.match(line)
        if match is not None:
            start = at + match.start("rest")
            if match["name"] in ("env", "set_env"):
                self.env(match["rest"].rstrip(), start, Span(at + len(line) - len(line.lstrip()), at + len(line)))
            else:
                self.cd(match["name"], match["rest"].strip())
            return True
        chdir = _CHDIR.match(line)
        if chdir is not None:
            literal = _LITERAL.match(chdir["rest"])
            sure = literal is not None and not chdir["indent"]
            self.cd("cd", literal.group(2) if literal is not None and sure else "$")
        environ = _ENVIRON.match(line)
        if environ is not None:
            self.environ(environ, at)
        return False

    def cd(self, name: str, path: str) -> None:
        path = path.strip("\"'")
        if name != "cd" or not path or path[0] in "-~" or re.search(r"[${]", path):
            self.directory = Unknown("the notebook changes its directory to one that only running it shows")
        elif path.startswith("/") or self.directory is None:
            self.directory = posixpath.normpath(path)
        elif not isinstance(self.directory, Unknown):
            self.directory = posixpath.normpath(posixpath.join(self.directory, path))

    def env(self, rest: str, start: int, place: Span) -> None:
        """``%env NAME=value`` and ``%env NAME value``."""
        match = re.match(r"(\w+)(?:[ \t]*=[ \t]*|[ \t]+)(\S.*)", rest)
        if match is None:
            return
        name = match.group(1)
        value = None
        if not re.search(r"[${]", match.group(2)):
            value = Passage.of(self.text, start + match.start(2), start + match.end(2))
        self.variables[name] = setting(self.source, name, value, place, "export")

    def environ(self, match: re.Match[str], at: int) -> None:
        """``os.environ["NAME"] = "value"``."""
        name = match["name"]
        place = Span(at + len(match["indent"]), at + match.end("rest"))
        literal = _LITERAL.match(match["rest"])
        value = None
        if literal is not None and not match["indent"]:
            start = at + match.start("rest") + literal.start(2)
            value = Passage.of(self.text, start, start + len(literal.group(2)))
        self.variables[name] = setting(self.source, name, value, place, "export")


def _filled(match: re.Match[str]) -> str | None:
    """What IPython puts in the place of ``{…}`` or ``$name``: None for what only Python knows."""
    return {"{{": "{", "}}": "}", "$$": "$"}.get(match.group())


def _quotes_after(line: str, quotes: str) -> str:
    """The triple quotes that are open behind a line, given those that are open before it."""
    if '"""' not in line and "'''" not in line:
        return quotes
    if not quotes and line.lstrip().startswith("#"):
        return quotes
    for match in _TRIPLE.finditer(line):
        if not quotes:
            quotes = match.group()
        elif quotes == match.group():
            quotes = ""
    return quotes


def texts(source: Source) -> Sequence[str]:
    """The text of every piece, to compare with what an edit should have made of them."""
    notebook = _read(source)
    return [piece.text for piece in notebook.pieces] if notebook is not None else ()
