"""What expressions of a Python file spell: strings and lists of words, put together from what the text shows.

Names are followed to the only value that their scope gives them. What is not known stands as it is written.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence

from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass, field
from mgpu_doctor.model.source import Span
from mgpu_doctor.read.passage import Passage, joined, spelled
from mgpu_doctor.read.python_literals import Lines, decoded, places_for, shown, unknown_at

_PERCENT = pattern(r"%(?:\((\w+)\))?[-+ #0]*\d*(?:\.\d+)?[sdrifgxX%]")
_FORMAT = pattern(r"\{\{|\}\}|\{[^{}]*\}")
_DEEPEST = 8
"""Names that are followed one through the other."""


@dataclass(slots=True)
class Scope:
    """A function's or the module's names: what they are assigned, None for what has no single value."""

    body: ast.AST
    outer: Scope | None
    values: dict[str, ast.expr | None] = field(default_factory=dict)
    grown: set[str] = field(default_factory=set)
    """Lists and strings that something is added to after their assignment."""
    environment: list[ast.Assign] = field(default_factory=list)
    """``os.environ[X] = …`` that surely runs, in order."""

    def find(self, name: str) -> tuple[Scope, ast.expr | None] | None:
        """The nearest scope that knows a name, and the only value that it gives it; None when no scope does."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope, scope.values[name]
            scope = scope.outer
        return None


class Values:
    """Reads expressions of one file. ``visited`` holds the literals that were used since it was emptied."""

    def __init__(self, text: str, lines: Lines, imports: Mapping[str, str]) -> None:
        self.text = text
        self.lines = lines
        self.imports = imports
        self.visited: set[int] = set()

    def called(self, node: ast.expr) -> str:
        """The dotted name of what is called, imports resolved."""
        name = dotted(node)
        head, dot, rest = name.partition(".")
        return self.imports[head] + dot + rest if head in self.imports else name

    # ------------------------------------------------------------ strings

    def string(self, node: ast.expr, scope: Scope, depth: int) -> Passage | None:
        """The text of an expression; None when it is no text, or nothing of it is known."""
        if isinstance(node, ast.Constant):
            return self.constant(node)
        if isinstance(node, ast.JoinedStr):
            self.visited.add(id(node))
            return decoded(self.text, self.lines.span(node))
        if isinstance(node, ast.BinOp):
            left = self.string(node.left, scope, depth)
            if isinstance(node.op, ast.Mod):
                return None if left is None else self.percent(left, node.right, scope, depth)
            right = self.string(node.right, scope, depth) if isinstance(node.op, ast.Add) else None
            if not isinstance(node.op, ast.Add) or (left is None and right is None):
                return None
            return joined([left or self.stand_in(node.left), right or self.stand_in(node.right)])
        if isinstance(node, ast.Call):
            return self.string_of_call(node, scope, depth)
        if isinstance(node, (ast.Name, ast.Attribute)) and self.called(node) == "sys.executable":
            return self.interpreter(node)
        return self.string_of_name(node, scope, depth) if isinstance(node, ast.Name) else None

    def constant(self, node: ast.Constant) -> Passage | None:
        """A literal string, or a number as it is written."""
        if isinstance(node.value, str):
            self.visited.add(id(node))
            return decoded(self.text, self.lines.span(node))
        span = self.lines.span(node)
        if isinstance(node.value, (int, float)) and self.text[span.start : span.end] == str(node.value):
            return Passage.of(self.text, *span) if not isinstance(node.value, bool) else None
        return None

    def string_of_name(self, node: ast.Name, scope: Scope, depth: int) -> Passage | None:
        """The only text that a name is given; what is added to it later is unknown."""
        held = self.held(node, scope, depth)
        value = self.string(held[1], held[0], depth + 1) if held is not None else None
        if held is None or value is None or node.id not in held[0].grown:
            return value
        return joined([value, _blank_at(value), self.stand_in(node)])

    def held(self, node: ast.Name, scope: Scope, depth: int) -> tuple[Scope, ast.expr] | None:
        """The only value that a name is given, and the scope in which it is."""
        found = scope.find(node.id) if depth < _DEEPEST else None
        return None if found is None or found[1] is None else (found[0], found[1])

    def string_of_call(self, node: ast.Call, scope: Scope, depth: int) -> Passage | None:
        """What a call makes of a text: ``str``, ``format``, ``join`` and the like."""
        function = node.func
        name = self.called(function)
        first = node.args[0] if node.args else None
        if name == "str" and first is not None:
            return self.string(first, scope, depth)
        if name in ("textwrap.dedent", "inspect.cleandoc") and first is not None:
            return self.string(first, scope, depth)
        if not isinstance(function, ast.Attribute):
            return None
        if function.attr in ("strip", "rstrip", "lstrip"):
            return self.string(function.value, scope, depth)
        if function.attr == "format":
            left = self.string(function.value, scope, depth)
            return None if left is None else self.formatted(left, node, scope, depth)
        if function.attr == "join" and first is not None and isinstance(function.value, ast.Constant):
            words = self.words(first, scope, depth) if function.value.value == " " else None
            # What is joined is text for a shell again: nothing is quoted.
            return None if words is None else joined([word for word, _ in words], " ")
        return None

    def interpreter(self, node: ast.expr) -> Passage:
        """``sys.executable``: python."""
        span = self.lines.span(node)
        return Passage("python", places_for(span, len("python")))

    def stand_in(self, node: ast.expr, written: str | None = None) -> Passage:
        """What stands for an expression that is not known."""
        span = self.lines.span(node)
        expression = self.text[span.start : span.end]
        return unknown_at(span, expression, written or shown("{" + expression + "}"))

    def percent(self, left: Passage, right: ast.expr, scope: Scope, depth: int) -> Passage:
        """``"…%s…" % …``."""
        values = list(right.elts) if isinstance(right, ast.Tuple) else [right]
        number = 0
        parts: list[Passage] = []
        at = 0
        for match in _PERCENT.finditer(left.text):
            if any(start <= match.start() < end for start, end, _ in left.early):
                continue
            parts.append(left.cut(at, match.start()))
            at = match.end()
            if match.group() == "%%":
                parts.append(left.cut(match.start(), match.start() + 1))
                continue
            value = values[number] if match.group(1) is None and number < len(values) else None
            number += 1
            known = self.string(value, scope, depth + 1) if value is not None else None
            if known is not None:
                parts.append(known)
            else:
                span = left.cut(match.start(), match.end()).span
                held = self.stand_in(value) if value is not None else None
                shown = held.early[0][2] if held is not None else match.group()
                parts.append(unknown_at(span, shown, shown))
        parts.append(left.cut(at))
        return joined(parts)

    def formatted(self, left: Passage, call: ast.Call, scope: Scope, depth: int) -> Passage:
        """``"…{}…".format(…)``."""
        number = 0
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        parts: list[Passage] = []
        at = 0
        for match in _FORMAT.finditer(left.text):
            if any(start < match.end() and match.start() < end for start, end, _ in left.early):
                continue
            parts.append(left.cut(at, match.start()))
            at = match.end()
            mark = match.group()
            if mark in ("{{", "}}"):
                parts.append(left.cut(match.start(), match.start() + 1))
                continue
            name = re.split(r"[:!.\[]", mark[1:-1])[0]
            value: ast.expr | None = named.get(name)
            if not name or name.isdigit():
                index = int(name) if name else number
                number += not name
                value = call.args[index] if index < len(call.args) else None
            known = self.string(value, scope, depth + 1) if value is not None and mark[1:-1] == name else None
            if known is not None:
                parts.append(known)
            else:
                span = left.cut(match.start(), match.end()).span
                shown = self.stand_in(value).early[0][2] if value is not None and not name else mark
                parts.append(unknown_at(span, shown, shown))
        parts.append(left.cut(at))
        return joined(parts)

    # ------------------------------------------------------------ lists

    def words(self, node: ast.expr, scope: Scope, depth: int) -> list[tuple[Passage, bool]] | None:
        """The words of a list, each with whether it stands for any number of them; None for what is no list."""
        if isinstance(node, (ast.List, ast.Tuple)):
            self.visited.add(id(node))
            return [word for element in node.elts for word in self.element(element, scope, depth)]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            left, right = self.words(node.left, scope, depth), self.words(node.right, scope, depth)
            if left is None and right is None:
                return None
            return [*(left or [(self.several(node.left), True)]), *(right or [(self.several(node.right), True)])]
        if isinstance(node, ast.Name):
            held = self.held(node, scope, depth)
            words = self.words(held[1], held[0], depth + 1) if held is not None else None
            if held is not None and words is not None and node.id in held[0].grown:
                return [*words, (self.several(node), True)]
            return words
        return self.words_of_call(node, scope, depth) if isinstance(node, ast.Call) else None

    def element(self, node: ast.expr, scope: Scope, depth: int) -> list[tuple[Passage, bool]]:
        """The words of one element of a list."""
        if isinstance(node, ast.Starred):
            inner = self.words(node.value, scope, depth + 1)
            return inner if inner is not None else [(self.several(node), True)]
        return [(self.string(node, scope, depth) or self.stand_in(node), False)]

    def words_of_call(self, node: ast.Call, scope: Scope, depth: int) -> list[tuple[Passage, bool]] | None:
        """The words that ``list``, ``shlex.split`` and ``split`` give."""
        name = self.called(node.func)
        if name in ("list", "tuple") and len(node.args) == 1:
            return self.words(node.args[0], scope, depth)
        text = None
        if name == "shlex.split" and node.args:
            text = self.string(node.args[0], scope, depth)
        elif isinstance(node.func, ast.Attribute) and node.func.attr == "split":
            first = node.args[0] if node.args else None
            if first is None or (isinstance(first, ast.Constant) and first.value in (" ", None)):
                text = self.string(node.func.value, scope, depth)
        return None if text is None else [(word, False) for word in _split(text, shell=name == "shlex.split")]

    def several(self, node: ast.expr, written: str | None = None) -> Passage:
        """What stands for a list that is not known."""
        span = self.lines.span(node)
        if written is not None:
            return unknown_at(Span(span.end - 1, span.end), written, written)
        star = "" if isinstance(node, ast.Starred) else "*"
        return self.stand_in(node, shown("{" + star + self.text[span.start : span.end] + "}"))


def spelled_words(words: Sequence[tuple[Passage, bool]]) -> Passage:
    """Words as text that a shell splits into the same words; what stands for several is not quoted."""
    return joined([word if several else spelled([word]) for word, several in words], " ")


def _blank_at(text: Passage) -> Passage:
    return Passage(" ", (max(text.span.end - 1, 0),))


def _split(text: Passage, *, shell: bool) -> Iterator[Passage]:
    """The words of ``str.split()`` or ``shlex.split()``."""
    expression = r"(?:[^\s\"'\\]|\\.|\"(?:[^\"\\]|\\.)*\"|'[^']*')+" if shell else r"\S+"
    for match in re.finditer(expression, text.text, re.DOTALL):
        word = text.cut(match.start(), match.end())
        if shell and re.search(r"[\"'\\]", word.text):
            plain = word.text
            if len(plain) > 1 and plain[0] == plain[-1] and plain[0] in "\"'" and plain[0] not in plain[1:-1]:
                word = word.cut(1, len(plain) - 1)
            else:
                word = word.replaced(re.compile(r"\\(.)|[\"']", re.DOTALL), lambda m: m.group(1) or "")
        yield word


def dotted(node: ast.expr) -> str:
    """``a.b.c`` as text, ``.c`` where it is an attribute of something that has no name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        parts.append(node.id)
    elif parts:
        parts.append("")
    return ".".join(reversed(parts))
