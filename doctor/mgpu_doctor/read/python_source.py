"""Launch commands in Python files: calls that start processes, commands kept in strings and lists, documentation.

Nothing is run. A command is put together from what the text shows: literals, f-strings, ``%`` and ``format``, lists
that are added, names that are assigned once in their scope. Whatever else goes into it is unknown, and
stands in the command as it is written. Docstrings, usage texts and comments are read as documents: a line that is
a whole launch command.

How calls become processes is as in CPython 3.11 (``subprocess``, ``os.exec*``, ``os.spawn*``, ``asyncio.create_subprocess_*``).
"""

from __future__ import annotations

import ast
import re
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from mgpu_doctor.model.command import Surroundings, Variable
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass, field, replace
from mgpu_doctor.model.source import Excerpt, Source, Span
from mgpu_doctor.read.passage import STAND_IN, Passage, anchors_of, excerpt_of, joined, setting, spelled

_NAMES = (
    r"torchrun|torch\.distributed\.(?:run|launch)|accelerate|deepspeed|llamafactory-cli|lmf|swift|axolotl|xtuner|colossalai"
    r"|horovodrun|mpirun|mpiexec|srun|tune"
)
_WORDS = pattern(
    rb"torchrun|torch\.distributed\.(?:run|launch)|accelerate[\"' ,-]+launch|accelerate\.commands|\bdeepspeed[\"' ]"
    rb"|llamafactory-cli|llamafactory\.cli|\blmf[\"' ]|\bswift[\"' ]|\baxolotl[\"' ]|\bxtuner[\"' ]|\bcolossalai[\"' ]|horovodrun|\btune run"
    rb"|CUDA_VISIBLE_DEVICES=[\w,{}$]+ +\S*python|\bsrun[\"' ]|\bmpirun[\"' ]|\bmpiexec[\"' ]"
)
_STARTING = frozenset(
    {
        "subprocess.run", "subprocess.call", "subprocess.Popen", "subprocess.check_call", "subprocess.check_output",
        "subprocess.getoutput", "subprocess.getstatusoutput", "os.system", "os.popen",
        "asyncio.create_subprocess_shell", "asyncio.subprocess.create_subprocess_shell", "pexpect.spawn", "pexpect.run",
    }
)  # fmt: skip
"""What takes a command as its first argument."""
_SPREAD = frozenset({"asyncio.create_subprocess_exec", "asyncio.subprocess.create_subprocess_exec"})
"""What takes the words of a command as its arguments."""
_EXEC = pattern(r"os\.(?:exec|spawn|posix_spawn)(?P<how>l?v?)p?e?\Z")

_IS_LAUNCH = pattern(
    r"\s*[\"']?(?:(?:\$\{_\w*\}|[A-Za-z_]\w*=(?:'[^']*'|\"[^\"]*\"|[^\s'\"])*)\s+)*"
    r"(?:(?:nohup|sudo|time|exec|env|srun|mpirun|mpiexec|timeout|uv run|poetry run|conda run|numactl|cd\s+\S+\s*(?:&&|;))"
    r"(?:\s+(?:-\S+|[A-Za-z_]\w*=\S*|\d\S*))*\s+)*"
    r"(?:\S*/)?(?:(?:torchrun|accelerate(?:-launch|\s+launch)|deepspeed(?:\.pt)?|llamafactory-cli|lmf|swift|axolotl|xtuner"
    r"|colossalai\s+run|horovodrun|tune\s+run)(?=\s)"
    r"|(?:python[\d.]*|\"?\$\{_\w*\}\"?)\s+(?:-u\s+)?-m\s+(?:torch\.distributed\.(?:run|launch)|accelerate\.commands\.launch"
    r"|deepspeed\.launcher\.runner)(?=\s))"
)
_FIELDS_FIRST = pattern(r"\s*(?:\$\{_\w*\}[ \t]+)+(?!-)")
_HAS_LAUNCHER = pattern(rf"(?<![\w.-])(?:{_NAMES})(?![\w=.-])")
_TARGET = pattern(
    r"\S+\.(?:py|pyz|sh|ya?ml|json)(?![\w.])|\s-m\s+[\w.]+|\$\{_\w*\}|\b(?:sft|pt|rlhf|infer|train|chat|export|eval|dpo|deploy|api|webui)\b"
)
_PROSE = pattern(
    r"(?<!\S)(?:to|for|the|is|are|was|with|or|and|will|can|which|that|you|your|we|if|by|does|doesn't|does not|use|uses|using"
    r"|requires?|should|must|when|not|has|have|as|an?|of|on|instead|only|because|launcher)(?!\S)"
)
_MESSAGES = pattern(
    r"(?:.*\.)?(?:print|debug|info|warn|warning|error|critical|exception|log|write|echo|secho|rank0_print|rank_zero_info|add_argument"
    r"|fail|skip|skipTest|startswith|endswith|split|replace|find|index|count|compile|search|match|sub|get|require|require_version"
    r"|join|Markdown|md|markdown|append_text|is_available|find_spec|import_module|which|Field|add_parser)\Z"
)
_USAGE = frozenset({"epilog", "description", "usage", "help"})
_PERCENT = pattern(r"%(?:\((\w+)\))?[-+ #0]*\d*(?:\.\d+)?[sdrifgxX%]")
_FORMAT = pattern(r"\{\{|\}\}|\{[^{}]*\}")
_LITERAL = pattern(r"(?P<prefix>[A-Za-z]{0,2})(?P<quote>\"\"\"|'''|\"|')")
_ESCAPE = pattern(
    r"\\(?:\r\n|\n|\r|[0-7]{1,3}|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|N\{[^}\n]*\}|.)", re.DOTALL
)
_SIMPLE = {
    "\\": "\\", "'": "'", '"': '"', "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"
}  # fmt: skip
_NEWLINE = pattern(r"\r\n|\r|\n")
_DEEPEST = 8
"""Names that are followed one through the other."""
_LONGEST = 60
"""Characters of an expression that is shown in a command."""

_LAUNCH_LINE = pattern(
    r"(?:[A-Za-z_]\w*=(?:'[^']*'|\"[^\"]*\"|[^\s'\"])*[ \t]+)*"
    r"(?:(?:nohup|sudo|time|exec|env|srun|mpirun|mpiexec|timeout|uv run|poetry run|conda run|numactl)"
    r"(?:[ \t]+(?:-\S+|[A-Za-z_]\w*=\S*|\d\S*))*[ \t]+)*"
    r"(?:\S*/)?(?:(?P<launcher>torchrun|accelerate(?:-launch|[ \t]+launch)|deepspeed(?:\.pt)?|llamafactory-cli|lmf|swift|axolotl"
    r"|xtuner|colossalai[ \t]+run|horovodrun|tune[ \t]+run)(?=[ \t])|(?P<python>python[\d.]*)(?=[ \t]))(?P<rest>[^\n]*)"
)
_LEAD = pattern(
    r"(?:[$>%#][ \t]+|>>>[ \t]+|!|[-*][ \t]+|(?:usage|example|examples|run|launch|e\.g\.|run with|command|launch with)[ \t]*:[ \t]*)*",
    re.IGNORECASE,
)
_COMMENT = pattern(r"^(?P<lead>[ \t]*#+(?!!)[ \t]?)(?P<text>[^\n]*)$", re.MULTILINE)


def mentions_launch(text: str | bytes) -> bool:
    """Whether a Python file can hold a launch at all: one pass over its bytes."""
    return _WORDS.search(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")) is not None


def excerpts(source: Source, *, documents: bool = True) -> tuple[Excerpt, ...]:
    """The launch commands in a Python file, in order; none in one that Python 3 refuses.

    ``documents``: whether docstrings, usage texts and comments are read as well.
    """
    if not mentions_launch(source.text):
        return ()
    tree = _parsed(source.text)
    if tree is None:
        return ()
    found: list[Excerpt] = []
    try:
        found.extend(_Reader(source, tree).excerpts(documents=documents))
    except RecursionError:
        return ()
    if documents:
        found.extend(_in_comments(source, tree))
    return tuple(sorted(found, key=lambda one: one.source.position(one.locate(0, 1).start)))


def texts(source: Source) -> Sequence[str]:
    """The text of every command's source, to compare with what an edit should have made of them."""
    sources = {id(excerpt.source): excerpt.source for excerpt in excerpts(source)}
    return [one.text for one in sources.values()]


def _parsed(text: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


# ---------------------------------------------------------------- places


class _Lines:
    """Offsets of the places that ``ast`` gives as a line and a column in bytes."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.starts = [0, *(match.end() for match in _NEWLINE.finditer(text))]
        self.ascii = text.isascii()
        # A byte order mark is no part of what ast counts.
        self.mark = 1 if text.startswith("\ufeff") else 0

    def offset(self, line: int, column: int) -> int:
        start = self.starts[min(line, len(self.starts)) - 1] + (self.mark if line == 1 else 0)
        if self.ascii:
            return start + column
        end = self.starts[line] if line < len(self.starts) else len(self.text)
        return start + len(self.text[start:end].encode("utf-8", "surrogatepass")[:column].decode("utf-8", "ignore"))

    def span(self, node: ast.expr | ast.stmt) -> Span:
        end_line, end_column = node.end_lineno or node.lineno, node.end_col_offset or node.col_offset
        return Span(self.offset(node.lineno, node.col_offset), self.offset(end_line, end_column))


# ---------------------------------------------------------------- string literals


def _decoded(text: str, span: Span, *, document: bool = False) -> Passage:
    """The string that the literals in a span make, with the place of every character.

    In a ``document`` a backslash at the end of a line stays: people copy the command as the file shows it.
    """
    parts: list[Passage] = []
    at = span.start
    while at < span.end:
        character = text[at]
        if character == "#":
            found = text.find("\n", at, span.end)
            at = span.end if found < 0 else found
            continue
        literal = _LITERAL.match(text, at)
        if literal is None or literal.end() > span.end:
            at += 1
            continue
        quote = literal["quote"]
        start = literal.end()
        raw = "r" in literal["prefix"].lower()
        formatted = "f" in literal["prefix"].lower() or "t" in literal["prefix"].lower()
        end = _literal_end(text, start, quote, span.end)
        parts.append(_body(text, start, end, raw=raw, formatted=formatted, document=document))
        at = end + len(quote)
    whole = joined(parts)
    return replace(whole, whole=span)


def _literal_end(text: str, at: int, quote: str, limit: int) -> int:
    while at < limit:
        if text[at] == "\\":
            at += 2
        elif text.startswith(quote, at):
            return at
        else:
            at += 1
    return limit


def _body(text: str, start: int, end: int, *, raw: bool, formatted: bool, document: bool) -> Passage:
    """The text between the quotation marks."""
    out: list[str] = []
    places: list[int] = []
    early: list[tuple[int, int, str]] = []
    at = start
    while at < end:
        character = text[at]
        if character == "\\" and not raw:
            match = _ESCAPE.match(text, at, end)
            if match is None:
                break
            value = _escaped(match.group()[1:])
            if document and match.group()[1:] in ("\n", "\r\n"):
                value = match.group()
                places.extend(range(at, match.end()))
            else:
                places.extend([at] * (len(value) - 1) + [match.end() - 1] * min(len(value), 1))
            out.append(value)
            at = match.end()
        elif formatted and character in "{}":
            if text[at + 1 : at + 2] == character:
                out.append(character)
                places.append(at)
                at += 2
                continue
            stop = _field_end(text, at, end)
            begin = len(places)
            mark = _stand_in(text[at:stop])
            out.append(mark)
            places.extend(min(at + n, stop - 1) for n in range(len(mark) - 1))
            places.append(stop - 1)
            early.append((begin, begin + len(mark), _shown(text[at:stop])))
            at = stop
        else:
            out.append(character)
            places.append(at)
            at += 1
    return Passage("".join(out), tuple(places), tuple(early))


def _escaped(code: str) -> str:
    first = code[0]
    if first in _SIMPLE:
        return _SIMPLE[first]
    if first in "\r\n":
        return ""
    try:
        if first in "xuU":
            return chr(int(code[1:], 16))
        if first in "01234567":
            return chr(int(code, 8))
    except ValueError:
        pass
    return "\\" + code


def _field_end(text: str, at: int, end: int) -> int:
    """Behind the brace that closes a field of an f-string."""
    depth = 0
    while at < end:
        character = text[at]
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
            if depth <= 0:
                return at + 1
        elif character in "'\"":
            close = text.find(character, at + 1, end)
            at = at if close < 0 else close
        at += 1
    return end


def _stand_in(expression: str) -> str:
    """What the shell reads in the place of an expression: a variable whose name says what the author called it."""
    name = re.fullmatch(r"\{?\*?(?:\w+\.)*([A-Za-z_]\w*)(?:\(\))?(?:![rsa])?(?::[^}]*)?\}?", expression)
    return STAND_IN if name is None else "${_" + name.group(1) + "}"


def _shown(text: str) -> str:
    short = " ".join(text.split())
    return short if len(short) <= _LONGEST else short[: _LONGEST - 2] + "…}"


# ---------------------------------------------------------------- scopes


@dataclass(slots=True)
class _Scope:
    """A function's or the module's names: what they are assigned, None for what has no single value."""

    body: ast.AST
    outer: _Scope | None
    values: dict[str, ast.expr | None] = field(default_factory=dict)
    grown: set[str] = field(default_factory=set)
    """Lists and strings that something is added to after their assignment."""
    environment: list[ast.Assign] = field(default_factory=list)
    """``os.environ[X] = …`` that surely runs, in order."""

    def find(self, name: str) -> tuple[_Scope, ast.expr | None] | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope, scope.values[name]
            scope = scope.outer
        return None


class _Root(NamedTuple):
    """An expression that may be a command, the scope and statement it stands in, and whether a process starts with it."""

    node: ast.expr
    scope: _Scope
    line: int
    call: ast.Call | None = None
    spread: bool = False


class _Found(NamedTuple):
    text: Passage
    nodes: frozenset[int]


class _Reader:
    """Finds the commands of one file."""

    def __init__(self, source: Source, tree: ast.Module) -> None:
        self.source = source
        self.text = source.text
        self.tree = tree
        self.lines = _Lines(source.text)
        self.imports: dict[str, str] = {}
        self.roots: list[_Root] = []
        self.documents: list[ast.Constant] = []
        self.visited: set[int] = set()
        self.collect(tree, _Scope(tree, None), [])

    # ------------------------------------------------------------ collection

    def collect(self, tree: ast.Module, scope: _Scope, _: list[ast.stmt]) -> None:
        """Scopes, assignments, imports and the expressions that may be commands."""
        self.block(tree.body, scope, sure=True)
        self.docstring(tree.body)
        pending = [(tree.body, scope)]
        while pending:
            body, scope = pending.pop()
            for statement in body:
                pending.extend(self.statement(statement, scope))

    def docstring(self, body: Sequence[ast.stmt]) -> None:
        first = body[0] if body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            self.documents.append(first.value)

    def block(self, body: Iterable[ast.stmt], scope: _Scope, *, sure: bool) -> None:
        """The names that a function's statements assign, without those of functions inside it."""
        for statement in body:
            if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                scope.values[statement.name] = None
                continue
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                self.imported(statement)
            if isinstance(statement, ast.Assign):
                for target in statement.targets:
                    self.assigned(target, statement.value, scope)
                    if sure and isinstance(target, ast.Subscript) and _dotted(target.value) == "os.environ":
                        scope.environment.append(statement)
            elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
                self.assigned(statement.target, statement.value, scope)
            elif isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
                scope.grown.add(statement.target.id)
            elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                function = statement.value.func
                if (
                    isinstance(function, ast.Attribute)
                    and function.attr in ("append", "extend", "insert")
                    and isinstance(function.value, ast.Name)
                ):
                    scope.grown.add(function.value.id)
            elif isinstance(statement, (ast.For, ast.AsyncFor)):
                self.assigned(statement.target, None, scope)
            elif isinstance(statement, (ast.With, ast.AsyncWith)):
                for item in statement.items:
                    if item.optional_vars is not None:
                        self.assigned(item.optional_vars, None, scope)
            for inner in _inner_bodies(statement):
                self.block(inner, scope, sure=sure and isinstance(statement, (ast.With, ast.AsyncWith)))

    def assigned(self, target: ast.expr, value: ast.expr | None, scope: _Scope) -> None:
        if isinstance(target, ast.Name):
            scope.values[target.id] = None if target.id in scope.values else value
        elif isinstance(target, (ast.Tuple, ast.List)):
            for one in target.elts:
                self.assigned(one, None, scope)
        elif isinstance(target, ast.Starred):
            self.assigned(target.value, None, scope)

    def imported(self, statement: ast.Import | ast.ImportFrom) -> None:
        for alias in statement.names:
            if isinstance(statement, ast.ImportFrom):
                self.imports[alias.asname or alias.name] = f"{statement.module or ''}.{alias.name}"
            elif alias.asname:
                self.imports[alias.asname] = alias.name

    def statement(self, statement: ast.stmt, scope: _Scope) -> Iterator[tuple[list[ast.stmt], _Scope]]:
        """Note the roots in one statement; answers with the bodies inside it and their scopes."""
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            self.docstring(statement.body)
            inner = scope
            if not isinstance(statement, ast.ClassDef):
                inner = _Scope(statement, scope)
                arguments = statement.args
                every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                every += [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
                inner.values = {one.arg: None for one in every}
                self.block(statement.body, inner, sure=True)
            for expression in [*statement.decorator_list, *_defaults(statement)]:
                self.expression(expression, scope)
            yield statement.body, inner
            return
        if isinstance(statement, (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom)):
            return
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            return
        for expression in _expressions(statement):
            self.expression(expression, scope)
        for body in _inner_bodies(statement):
            yield body, scope

    def expression(self, node: ast.expr, scope: _Scope, *, ignored: bool = False) -> None:
        """Note what may be a command in an expression, outermost first."""
        if isinstance(node, ast.Call):
            name = self.called(node.func)
            root = self.started(node, name, scope)
            if root is not None:
                self.roots.append(root)
            elif not ignored and _may_be_text(node):
                self.roots.append(_Root(node, scope, node.lineno))
                return
            message = root is None and (
                _MESSAGES.match(name) is not None
                or re.search(r"(?:Error|Exception|Warning|Exit|Parser)$", name) is not None
            )
            self.expression_of_callee(node.func, scope)
            for argument in node.args:
                if root is None or argument is not root.node:
                    self.expression(argument, scope, ignored=ignored or message)
            for keyword in node.keywords:
                if keyword.arg in _USAGE and isinstance(keyword.value, ast.Constant):
                    if isinstance(keyword.value.value, str) and "\n" in keyword.value.value:
                        self.documents.append(keyword.value)
                    continue
                if root is None or keyword.value is not root.node:
                    self.expression(keyword.value, scope, ignored=ignored or message)
            return
        if isinstance(node, (ast.Compare, ast.Lambda)):
            return
        if not ignored and isinstance(node, (ast.List, ast.Tuple, ast.BinOp, ast.JoinedStr, ast.Constant)):
            if not isinstance(node, ast.Constant) or isinstance(node.value, str):
                self.roots.append(_Root(node, scope, node.lineno))
        if isinstance(node, (ast.JoinedStr, ast.Constant)):
            return
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                inside = isinstance(node, (ast.List, ast.Tuple)) and isinstance(child, (ast.Constant, ast.JoinedStr))
                part = isinstance(node, ast.BinOp) and not isinstance(child, (ast.Call, ast.IfExp))
                if not inside and not part:
                    self.expression(child, scope, ignored=ignored)
            elif isinstance(child, ast.comprehension):
                self.expression(child.iter, scope, ignored=ignored)

    def expression_of_callee(self, node: ast.expr, scope: _Scope) -> None:
        while isinstance(node, ast.Attribute):
            node = node.value
        if isinstance(node, ast.Call):
            self.expression(node, scope, ignored=True)

    def called(self, node: ast.expr) -> str:
        """The dotted name of what is called, imports resolved."""
        name = _dotted(node)
        head, dot, rest = name.partition(".")
        return self.imports[head] + dot + rest if head in self.imports else name

    def started(self, node: ast.Call, name: str, scope: _Scope) -> _Root | None:
        """The root for a call that starts a process."""
        arguments = node.args
        if name in _STARTING:
            first = (
                arguments[0] if arguments else next((k.value for k in node.keywords if k.arg in ("args", "cmd")), None)
            )
            return _Root(first, scope, node.lineno, node) if first is not None else None
        if name in _SPREAD and arguments:
            return _Root(ast.copy_location(ast.List(list(arguments), ast.Load()), node), scope, node.lineno, node)
        how = _EXEC.match(name)
        if how is None:
            return None
        skipped = 2 if ".spawn" in name and "posix" not in name else 1
        rest = list(arguments[skipped:])
        if how["how"] == "l" and rest:
            return _Root(ast.copy_location(ast.List(rest, ast.Load()), node), scope, node.lineno, node)
        return _Root(rest[0], scope, node.lineno, node) if rest else None

    # ------------------------------------------------------------ commands

    def excerpts(self, *, documents: bool) -> Iterator[Excerpt]:
        found: list[tuple[_Root, _Found]] = []
        for root in self.roots:
            if not self.worth_a_look(root):
                continue
            one = self.command(root)
            if one is not None:
                found.append((root, one))
        taken: set[int] = set()
        # A process that is started says most, then what is put together of most parts.
        for root, one in sorted(found, key=lambda pair: (pair[0].call is None, -len(pair[1].nodes))):
            if one.nodes & taken:
                continue
            taken |= one.nodes
            yield from self.emit(one.text, self.around(root))
        if documents:
            for node in self.documents:
                yield from self.document(node)

    def worth_a_look(self, root: _Root) -> bool:
        """Whether a root could be a command: it, or a name that it uses, mentions a launcher."""
        if root.call is not None:
            return True
        for node in ast.walk(root.node):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _HAS_LAUNCHER.search(node.value):
                return True
            if isinstance(node, ast.Name) and isinstance(root.node, (ast.BinOp, ast.List, ast.Tuple)):
                held = root.scope.find(node.id)
                if held is not None and held[1] is not None and node.id not in held[0].grown:
                    span = self.lines.span(held[1])
                    if span.end - span.start < 20_000 and _HAS_LAUNCHER.search(self.text, span.start, span.end):
                        return True
        return False

    def command(self, root: _Root) -> _Found | None:
        """The command that a root spells; None when it is none that anybody could be sure of."""
        self.visited = set()
        words = self.words(root.node, root.scope, 0)
        listed = words is not None
        text = spelled_words(words) if words is not None else self.string(root.node, root.scope, 0)
        if text is None or not text.text.strip():
            return None
        if not listed:
            # Variables and the like that are put in front of the command.
            lead = _FIELDS_FIRST.match(text.text)
            text = text.cut(lead.end()) if lead is not None else text
        if root.call is None:
            if not _IS_LAUNCH.match(text.text) or not _is_whole(text.text, listed=listed):
                return None
        elif not _HAS_LAUNCHER.search(text.text) or (
            not listed and isinstance(root.node, ast.Constant) and not _HAS_LAUNCHER.search(text.text)
        ):
            return None
        return _Found(text, frozenset(self.visited))

    def emit(self, passage: Passage, around: Surroundings) -> Iterator[Excerpt]:
        """A command as an excerpt of a source of its own."""
        found = _own_source(self.source, passage, around, "python")
        if found is not None:
            yield found

    def around(self, root: _Root) -> Surroundings:
        """The environment and directory that the file gives the process."""
        variables: dict[str, Variable] = {}
        scope: _Scope | None = root.scope
        scopes: list[_Scope] = []
        while scope is not None:
            scopes.append(scope)
            scope = scope.outer
        for one in reversed(scopes):
            for statement in one.environment:
                if statement.lineno < root.line:
                    target = statement.targets[0]
                    if isinstance(target, ast.Subscript):
                        self.variable(target.slice, statement.value, one, variables)
        directory: str | Unknown | None = None
        for keyword in root.call.keywords if root.call is not None else ():
            if keyword.arg == "cwd":
                value = self.string(keyword.value, root.scope, 0)
                known = value is not None and not value.early
                directory = value.text if value is not None and known else Unknown("cwd= is only known when it runs")
                if isinstance(keyword.value, ast.Constant) and keyword.value.value is None:
                    directory = None
            elif keyword.arg == "env":
                self.environment(keyword.value, root.scope, variables)
        return Surroundings(tuple(variables.values()), directory=directory)

    def environment(self, node: ast.expr, scope: _Scope, variables: dict[str, Variable]) -> None:
        """``env={**os.environ, "NAME": "value"}`` and ``dict(os.environ, NAME="value")``."""
        if isinstance(node, ast.Name):
            held = scope.find(node.id)
            if held is None or held[1] is None or node.id in held[0].grown:
                return
            node, scope = held[1], held[0]
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if key is not None:
                    self.variable(key, value, scope, variables)
        elif isinstance(node, ast.Call) and _dotted(node.func) == "dict":
            for keyword in node.keywords:
                if keyword.arg is not None:
                    self.named(keyword.arg, keyword.value, scope, variables)

    def variable(self, key: ast.expr, value: ast.expr, scope: _Scope, variables: dict[str, Variable]) -> None:
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            self.named(key.value, value, scope, variables)

    def named(self, name: str, value: ast.expr, scope: _Scope, variables: dict[str, Variable]) -> None:
        if re.fullmatch(r"[A-Za-z_]\w*", name):
            text = self.string(value, scope, 0)
            known = text if text is not None and not text.early else None
            variables[name] = setting(self.source, name, known, self.lines.span(value), "export")

    # ------------------------------------------------------------ strings

    def string(self, node: ast.expr, scope: _Scope, depth: int) -> Passage | None:  # noqa: C901 - one branch a form
        """The text of an expression; None when it is not one, or nothing of it is known."""
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str):
                self.visited.add(id(node))
                return _decoded(self.text, self.lines.span(node))
            if isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
                span = self.lines.span(node)
                text = str(node.value)
                return Passage.of(self.text, *span) if self.text[span.start : span.end] == text else None
            return None
        if isinstance(node, ast.JoinedStr):
            self.visited.add(id(node))
            return _decoded(self.text, self.lines.span(node))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            left, right = self.string(node.left, scope, depth), self.string(node.right, scope, depth)
            if left is None and right is None:
                return None
            return joined([left or self.stand_in(node.left), right or self.stand_in(node.right)])
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            left = self.string(node.left, scope, depth)
            return None if left is None else self.percent(left, node.right, scope, depth)
        if isinstance(node, ast.Call):
            return self.string_of_call(node, scope, depth)
        if isinstance(node, ast.Attribute) and self.called(node) == "sys.executable":
            return self.interpreter(node)
        if isinstance(node, ast.Name):
            if self.called(node) == "sys.executable":
                return self.interpreter(node)
            held = self.held(node, scope, depth)
            if held is not None:
                value = self.string(held[1], held[0], depth + 1)
                if value is not None and node.id in held[0].grown:
                    return joined([value, _blank_at(value), self.stand_in(node)])
                return value
        return None

    def held(self, node: ast.Name, scope: _Scope, depth: int) -> tuple[_Scope, ast.expr] | None:
        """The only value that a name is given, and the scope in which it is."""
        found = scope.find(node.id) if depth < _DEEPEST else None
        return None if found is None or found[1] is None else (found[0], found[1])

    def string_of_call(self, node: ast.Call, scope: _Scope, depth: int) -> Passage | None:
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
        span = self.lines.span(node)
        return Passage("python", _places(span, len("python")))

    def stand_in(self, node: ast.expr, written: str | None = None) -> Passage:
        """What stands for an expression that is not known."""
        span = self.lines.span(node)
        expression = self.text[span.start : span.end]
        return _unknown_at(span, expression, written or _shown("{" + expression + "}"))

    def percent(self, left: Passage, right: ast.expr, scope: _Scope, depth: int) -> Passage:
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
                parts.append(_unknown_at(span, shown, shown))
        parts.append(left.cut(at))
        return joined(parts)

    def formatted(self, left: Passage, call: ast.Call, scope: _Scope, depth: int) -> Passage:
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
                parts.append(_unknown_at(span, shown, shown))
        parts.append(left.cut(at))
        return joined(parts)

    # ------------------------------------------------------------ lists

    def words(self, node: ast.expr, scope: _Scope, depth: int) -> list[tuple[Passage, bool]] | None:
        """The words of a list, each with whether it stands for any number of them; None for what is no list."""
        if isinstance(node, (ast.List, ast.Tuple)):
            self.visited.add(id(node))
            out: list[tuple[Passage, bool]] = []
            for element in node.elts:
                if isinstance(element, ast.Starred):
                    inner = self.words(element.value, scope, depth + 1)
                    out.extend(inner if inner is not None else [(self.several(element), True)])
                else:
                    out.append((self.string(element, scope, depth) or self.stand_in(element), False))
            return out
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            left, right = self.words(node.left, scope, depth), self.words(node.right, scope, depth)
            if left is None and right is None:
                return None
            return [*(left or [(self.several(node.left), True)]), *(right or [(self.several(node.right), True)])]
        if isinstance(node, ast.Name):
            held = self.held(node, scope, depth)
            if held is None:
                return None
            words = self.words(held[1], held[0], depth + 1)
            if words is not None and node.id in held[0].grown:
                return [*words, (self.several(node), True)]
            return words
        if isinstance(node, ast.Call):
            name = self.called(node.func)
            if name in ("list", "tuple") and len(node.args) == 1:
                return self.words(node.args[0], scope, depth)
            text = None
            if name == "shlex.split" and node.args:
                text = self.string(node.args[0], scope, depth)
            elif isinstance(node.func, ast.Attribute) and node.func.attr == "split":
                blanks = not node.args or (isinstance(node.args[0], ast.Constant) and node.args[0].value in (" ", None))
                text = self.string(node.func.value, scope, depth) if blanks else None
            return None if text is None else [(word, False) for word in _split(text, shell=name == "shlex.split")]
        return None

    def several(self, node: ast.expr) -> Passage:
        """What stands for a list that is not known."""
        span = self.lines.span(node)
        star = "" if isinstance(node, ast.Starred) else "*"
        return self.stand_in(node, _shown("{" + star + self.text[span.start : span.end] + "}"))

    # ------------------------------------------------------------ documentation

    def document(self, node: ast.Constant) -> Iterator[Excerpt]:
        """The commands in a docstring or a usage text."""
        passage = _decoded(self.text, self.lines.span(node), document=True)
        if _HAS_LAUNCHER.search(passage.text) or "python" in passage.text:
            yield from _in_document(self.source, passage)


def _own_source(source: Source, passage: Passage, around: Surroundings | None, kind: str) -> Excerpt | None:
    """A command as the text of a source that stands in the file, whole as an excerpt."""
    if not passage.text.strip():
        return None
    # In the source's text stand-ins are what the file has.
    parts: list[str] = []
    places: list[int] = []
    inner: list[int] = []
    at = 0
    for start, end, written in (*passage.early, (len(passage.text), len(passage.text), "")):
        inner.extend(range(len(places), len(places) + start - at))
        parts.append(passage.text[at:start])
        places.extend(passage.places[at:start])
        begin = len(places)
        parts.append(written)
        if written:
            first, last = passage.places[start], passage.places[end - 1]
            places.extend(min(first + n, last) for n in range(len(written) - 1))
            places.append(last)
            inner.extend(min(begin + n, begin + len(written) - 1) for n in range(end - start - 1))
            inner.append(begin + len(written) - 1)
        at = end
    text = "".join(parts)
    end = max(places) + 1
    own = Source(
        source.name, text, kind, source.path, 1, Excerpt(source, text, (*anchors_of(places), (len(text), end)))
    )
    return excerpt_of(own, Passage(passage.text, tuple(inner), passage.early), around)


def spelled_words(words: Sequence[tuple[Passage, bool]]) -> Passage:
    """Words as text that a shell splits into the same words; what stands for several is not quoted."""
    return joined([word if several else spelled([word]) for word, several in words], " ")


def _unknown_at(span: Span, expression: str, shown: str) -> Passage:
    """What stands for an expression, at a place of its own."""
    mark = _stand_in(expression)
    return Passage(mark, _places(span, len(mark)), ((0, len(mark), shown),))


def _places(span: Span, length: int) -> tuple[int, ...]:
    last = max(span.end - 1, span.start)
    return (*(min(span.start + n, last) for n in range(length - 1)), last)


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


def _is_whole(text: str, *, listed: bool) -> bool:
    """Whether a text that begins like a launch is one: it has something to run, and is no sentence."""
    match = _IS_LAUNCH.match(text)
    rest = text[match.end() :] if match is not None else ""
    if _TARGET.search(" " + rest) is None or re.match(r"\s*(?:--help|-h|--version)\b", rest):
        return False
    return listed or _PROSE.search(rest.split("\n")[0]) is None


# ---------------------------------------------------------------- trees


def _dotted(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        parts.append(node.id)
    elif parts:
        parts.append("")
    return ".".join(reversed(parts))


def _may_be_text(node: ast.Call) -> bool:
    """Whether a call puts a command together: ``.format``, ``.split``, ``join``, ``shlex.split``."""
    function = node.func
    if not isinstance(function, ast.Attribute):
        return False
    if function.attr == "split":
        return not node.args or _dotted(function) == "shlex.split"
    return function.attr in ("format", "join", "strip")


def _inner_bodies(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        body = getattr(statement, name, None)
        if isinstance(body, list):
            yield body
    for handler in getattr(statement, "handlers", ()):
        yield handler.body
    for case in getattr(statement, "cases", ()):
        yield case.body


def _expressions(statement: ast.stmt) -> Iterator[ast.expr]:
    """The expressions of a statement itself, without those of the statements in it."""
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.expr):
            yield child
        elif isinstance(child, ast.withitem):
            yield child.context_expr


def _defaults(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> list[ast.expr]:
    if isinstance(node, ast.ClassDef):
        return []
    return [*node.args.defaults, *(one for one in node.args.kw_defaults if one is not None)]


# ---------------------------------------------------------------- documents


def _in_document(source: Source, passage: Passage) -> Iterator[Excerpt]:
    """Commands in a docstring: what Markdown takes from it, and lines of their own that are a whole launch."""
    from mgpu_doctor.read import markdown

    text = passage.text
    within = Excerpt(source, text, (*anchors_of(passage.places), (len(text), passage.span.end)))
    own = Source(source.name, text, "markdown", source.path, 1, within)
    taken: list[Span] = []
    for excerpt in markdown.excerpts(own):
        # A command named in a sentence is no instruction to run it.
        mentioned = text[: excerpt.locate(0, 1).start].endswith("`")
        if _names_launch(excerpt.text) and not mentioned:
            span = excerpt.locate(0, len(excerpt.text))
            taken.append(span)
            yield excerpt
    yield from _launch_lines(own, [match.span() for match in re.finditer(r"[^\n]+", text)], taken)


def _names_launch(text: str) -> bool:
    """Whether a shell text holds more than plain ``python``: a launcher, or the choice of a card."""
    return _HAS_LAUNCHER.search(text) is not None or "CUDA_VISIBLE_DEVICES=" in text


def _launch_lines(own: Source, lines: Sequence[tuple[int, int]], taken: Sequence[Span]) -> Iterator[Excerpt]:
    """Lines that are a launch command, with the lines that they are continued on."""
    at = 0
    while at < len(lines):
        start, end = lines[at]
        line = own.text[start:end].rstrip()
        begin = start + len(line) - len(line.lstrip())
        lead = _LEAD.match(own.text, begin, end)
        begin = lead.end() if lead is not None else begin
        match = _LAUNCH_LINE.match(own.text, begin, end)
        at += 1
        if match is None or any(span.start <= begin < span.end for span in taken):
            continue
        parts = [Passage.of(own.text, begin, start + len(line))]
        while parts[-1].text.endswith("\\") and at < len(lines):
            start, end = lines[at]
            parts.append(Passage.of(own.text, start, start + len(own.text[start:end].rstrip())))
            at += 1
        whole = joined(parts, "\n")
        if _is_written_out(match, whole.text):
            excerpt = excerpt_of(own, whole)
            if excerpt is not None:
                yield excerpt


def _is_written_out(match: re.Match[str], text: str) -> bool:
    """Whether a line that begins with a launcher is a command and no sentence about one."""
    flat = " ".join(part.strip().rstrip("\\") for part in text.split("\n"))
    rest = (
        flat[match.end("launcher") - match.start() :]
        if match["launcher"]
        else flat[match.end("python") - match.start() :]
    )
    first = rest.split("\n")[0]
    if (
        _PROSE.search(first)
        or re.search(r"[a-z]\.$|:$|,$", first.strip())
        or first.lstrip().startswith(("=", "(", ",", ":"))
    ):
        return False
    words = rest.split()
    if match["python"]:
        if re.match(r"\s+(?:-u\s+)?-m\s+(?:torch\.distributed\.(?:run|launch)|accelerate\.commands\.launch)\s", rest):
            return len(words) > 2
        return "CUDA_VISIBLE_DEVICES=" in flat[: match.start("python") - match.start()] and ".py" in rest
    launcher = match["launcher"].split()[0]
    if launcher in (
        "torchrun",
        "accelerate",
        "accelerate-launch",
        "deepspeed",
        "deepspeed.pt",
        "horovodrun",
        "colossalai",
    ):
        return re.search(r"\.py\b|\s(?:-m|--module)\s+\w|\.sh\b", rest) is not None or (
            words[:1] != [] and words[0].startswith("--") and re.search(r"<[\w ./-]+>|\$\w", rest) is not None
        )
    return len(words) > 1 and re.search(r"\s-|\.ya?ml|\.json|\.py|=", rest) is not None


def _in_comments(source: Source, tree: ast.Module) -> Iterator[Excerpt]:
    """Comments that are a launch command."""
    text = source.text
    if not any(_HAS_LAUNCHER.search(m["text"]) or "CUDA_VISIBLE" in m["text"] for m in _COMMENT.finditer(text)):
        return
    lines = _Lines(text)
    strings = sorted(
        lines.span(node)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Constant, ast.JoinedStr))
        and node.end_lineno != node.lineno
        and (isinstance(node, ast.JoinedStr) or isinstance(node.value, str))
    )
    starts = [span.start for span in strings]
    block: list[re.Match[str]] = []
    for match in _COMMENT.finditer(text):
        index = bisect_right(starts, match.start()) - 1
        if any(span.start <= match.start() < span.end for span in strings[max(index - 3, 0) : index + 1]):
            continue
        if block and match.start() != block[-1].end() + 1:
            yield from _comment_block(source, block)
            block = []
        block.append(match)
    yield from _comment_block(source, block)


def _comment_block(source: Source, block: Sequence[re.Match[str]]) -> Iterator[Excerpt]:
    """The commands in comments on consecutive lines."""
    if not block:
        return
    passage = joined(
        [Passage.of(source.text, m.start("text"), m.start("text") + len(m["text"].rstrip())) for m in block], "\n"
    )
    text = passage.text
    if not text.strip():
        return
    within = Excerpt(source, text, (*anchors_of(passage.places), (len(text), passage.span.end)))
    own = Source(source.name, text, "markdown", source.path, 1, within)
    yield from _launch_lines(own, [match.span() for match in re.finditer(r"[^\n]+", text)], ())
