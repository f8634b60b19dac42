"""Launch commands in Python files: calls that start processes, commands kept in strings and lists, documentation.

Nothing is run. A command is put together from what the text shows: literals, f-strings, ``%`` and ``format``, lists
that are added, names that are assigned once in their scope. Whatever else goes into it is unknown, and
stands in the command as it is written. Docstrings, usage texts and comments are read as documents: a line that is
a whole launch command.

How calls become processes is as in CPython 3.11 (``subprocess``, ``os.exec*``, ``os.spawn*``,
``asyncio.create_subprocess_*``).
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from mgpu_doctor.model.command import Surroundings, Variable
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.source import Excerpt, Source
from mgpu_doctor.read.passage import Passage, setting
from mgpu_doctor.read.python_documents import NAMES_LAUNCHER, PROSE, in_comments, in_document
from mgpu_doctor.read.python_literals import Lines, decoded, own_source
from mgpu_doctor.read.python_values import Scope, Values, dotted, spelled_words

_WORDS: tuple[tuple[bytes, str], ...] = (
    (b"torchrun", ""),
    (b"torch.distributed.", r"(?:run|launch)\b"),
    (b"accelerate", r"[\"' ,-]+launch|\.commands"),
    (b"deepspeed", r"[\"' ]"),
    (b"llamafactory", r"-cli|\.cli"),
    (b"lmf", r"[\"' ]"),
    (b"swift", r"[\"' ]"),
    (b"axolotl", r"[\"' ]"),
    (b"xtuner", r"[\"' ]"),
    (b"colossalai", r"[\"' ]"),
    (b"horovodrun", ""),
    (b"tune run", ""),
    (b"CUDA_VISIBLE_DEVICES=", r"[\w,{}$]+ +\S*python"),
    (b"srun", r"[\"' ]"),
    (b"mpirun", r"[\"' ]"),
    (b"mpiexec", r"[\"' ]"),
)
"""What a launch holds at least one of, each with what must follow: a word is found many times faster than a pattern."""
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
    r"(?:(?:nohup|sudo|time|exec|env|srun|mpirun|mpiexec|timeout|uv run|poetry run|conda run|numactl"
    r"|cd\s+\S+\s*(?:&&|;))"
    r"(?:\s+(?:-\S+|[A-Za-z_]\w*=\S*|\d\S*))*\s+)*"
    r"(?:\S*/)?(?:(?:torchrun|accelerate(?:-launch|\s+launch)|deepspeed(?:\.pt)?|llamafactory-cli|lmf|swift|axolotl|xtuner"
    r"|colossalai\s+run|horovodrun|tune\s+run)(?=\s)"
    r"|(?:python[\d.]*|\"?\$\{_\w*\}\"?)\s+(?:-u\s+)?-m\s+(?:torch\.distributed\.(?:run|launch)|accelerate\.commands\.launch"
    r"|deepspeed\.launcher\.runner)(?=\s))"
)
_FIELDS_FIRST = pattern(r"\s*(?:\$\{_\w*\}[ \t]+)+(?!-)")
_COMMAND_LINE = pattern(r"(?:llamafactory-cli|lmf|swift|axolotl|xtuner)$")
_PROGRAM = pattern(r"\.(?:py|pyz|sh)(?![\w.])|(?:^|\s)(?:-m|--module)\s|\*")
_TARGET = pattern(
    r"\S+\.(?:py|pyz|sh|ya?ml|json)(?![\w.])|\s-m\s+[\w.]+|\$\{_\w*\}|\b(?:sft|pt|rlhf|infer|train|chat|export|eval|dpo|deploy|api|webui)\b"
)
_MESSAGES = pattern(
    r"(?:.*\.)?(?:print|debug|info|warn|warning|error|critical|exception|log|write|echo|secho|rank0_print|rank_zero_info|add_argument"
    r"|fail|skip|skipTest|startswith|endswith|split|replace|find|index|count|compile|search|match|sub|get|require|require_version"
    r"|join|Markdown|md|markdown|append_text|is_available|find_spec|import_module|which|Field|add_parser"
    r"|\w*(?:Error|Exception|Warning|Exit|Parser))\Z"
)
_USAGE = frozenset({"epilog", "description", "usage", "help"})


def mentions_launch(text: str | bytes) -> bool:
    """Whether a Python file can hold a launch at all: one pass over its bytes."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return any(
        word in data and (not behind or re.search(rb"%b(?:%b)" % (re.escape(word), behind.encode()), data) is not None)
        for word, behind in _WORDS
    )


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
        found.extend(in_comments(source, tree))
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


class _Root(NamedTuple):
    """An expression that may be a command, where it stands, and the call that starts a process with it, if one does."""

    node: ast.expr
    scope: Scope
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
        self.lines = Lines(source.text)
        self.imports: dict[str, str] = {}
        self.roots: list[_Root] = []
        self.documents: list[ast.Constant] = []
        self.values = Values(self.text, self.lines, self.imports)
        self.collect(tree, Scope(tree, None), [])

    # ------------------------------------------------------------ collection

    def collect(self, tree: ast.Module, scope: Scope, _: list[ast.stmt]) -> None:
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

    def block(self, body: Iterable[ast.stmt], scope: Scope, *, sure: bool) -> None:
        """The names that a function's statements assign, without those of functions inside it."""
        for statement in body:
            if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                scope.values[statement.name] = None
                continue
            self.names_of(statement, scope, sure=sure)
            for inner in _inner_bodies(statement):
                self.block(inner, scope, sure=sure and isinstance(statement, (ast.With, ast.AsyncWith)))

    def names_of(self, statement: ast.stmt, scope: Scope, *, sure: bool) -> None:
        """What one statement assigns, adds to, imports, or puts into the environment."""
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            self.imported(statement)
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                self.assigned(target, statement.value, scope)
            if sure and any(_is_variable(target) for target in statement.targets):
                scope.environment.append(statement)
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            self.assigned(statement.target, statement.value, scope)
        elif isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
            scope.grown.add(statement.target.id)
        elif isinstance(statement, ast.Expr):
            name, _, method = (
                dotted(statement.value.func).rpartition(".") if isinstance(statement.value, ast.Call) else ("", "", "")
            )
            if method in ("append", "extend", "insert"):
                scope.grown.add(name)
        else:
            for target in _bound(statement):
                self.assigned(target, None, scope)

    def assigned(self, target: ast.expr, value: ast.expr | None, scope: Scope) -> None:
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

    def statement(self, statement: ast.stmt, scope: Scope) -> Iterator[tuple[list[ast.stmt], Scope]]:
        """Note the roots in one statement; answers with the bodies inside it and their scopes."""
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            self.docstring(statement.body)
            inner = scope
            if not isinstance(statement, ast.ClassDef):
                inner = Scope(statement, scope)
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

    def expression(self, node: ast.expr, scope: Scope, *, ignored: bool = False) -> None:
        """Note what may be a command in an expression, outermost first."""
        if isinstance(node, ast.Call):
            self.call(node, scope, ignored=ignored)
            return
        if isinstance(node, (ast.Compare, ast.Lambda)):
            return
        text = isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
        if not ignored and (text or isinstance(node, (ast.List, ast.Tuple, ast.BinOp))):
            self.roots.append(_Root(node, scope, node.lineno))
        if isinstance(node, (ast.JoinedStr, ast.Constant)):
            return
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.comprehension):
                self.expression(child.iter, scope, ignored=ignored)
            elif isinstance(child, ast.expr) and not _is_part(node, child):
                self.expression(child, scope, ignored=ignored)

    def call(self, node: ast.Call, scope: Scope, *, ignored: bool) -> None:
        """Note what may be a command in a call: what it starts, what it puts together, its arguments."""
        name = self.values.called(node.func)
        root = self.started(node, name, scope)
        if root is not None:
            self.roots.append(root)
        elif not ignored and _may_be_text(node):
            self.roots.append(_Root(node, scope, node.lineno))
            return
        ignored = ignored or (root is None and _MESSAGES.match(name) is not None)
        self.expression_of_callee(node.func, scope)
        for argument in node.args:
            if root is None or argument is not root.node:
                self.expression(argument, scope, ignored=ignored)
        for keyword in node.keywords:
            if keyword.arg in _USAGE and isinstance(keyword.value, ast.Constant):
                if isinstance(keyword.value.value, str) and "\n" in keyword.value.value:
                    self.documents.append(keyword.value)
            elif root is None or keyword.value is not root.node:
                self.expression(keyword.value, scope, ignored=ignored)

    def expression_of_callee(self, node: ast.expr, scope: Scope) -> None:
        while isinstance(node, ast.Attribute):
            node = node.value
        if isinstance(node, ast.Call):
            self.expression(node, scope, ignored=True)

    def started(self, node: ast.Call, name: str, scope: Scope) -> _Root | None:
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
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMES_LAUNCHER.search(node.value):
                return True
            if isinstance(node, ast.Name) and isinstance(root.node, (ast.BinOp, ast.List, ast.Tuple)):
                held = root.scope.find(node.id)
                if held is not None and held[1] is not None and node.id not in held[0].grown:
                    span = self.lines.span(held[1])
                    if span.end - span.start < 20_000 and NAMES_LAUNCHER.search(self.text, span.start, span.end):
                        return True
        return False

    def command(self, root: _Root) -> _Found | None:
        """The command that a root spells; None when it is none that anybody could be sure of."""
        self.values.visited = set()
        words = self.values.words(root.node, root.scope, 0)
        listed = words is not None
        text = spelled_words(words) if words is not None else self.values.string(root.node, root.scope, 0)
        if text is None or not text.text.strip():
            return None
        if not listed:
            # Variables and the like that are put in front of the command.
            lead = _FIELDS_FIRST.match(text.text)
            text = text.cut(lead.end()) if lead is not None else text
        if root.call is None:
            if not _IS_LAUNCH.match(text.text) or not _is_whole(text.text, listed=listed):
                return None
            if words is not None and not _PROGRAM.search(text.text):
                # A list may be the beginning of a command that goes on elsewhere.
                text = spelled_words([*words, (self.values.several(root.node, "{…}"), True)])
        elif not NAMES_LAUNCHER.search(text.text) or (
            not listed and isinstance(root.node, ast.Constant) and not NAMES_LAUNCHER.search(text.text)
        ):
            return None
        return _Found(text, frozenset(self.values.visited))

    def emit(self, passage: Passage, around: Surroundings) -> Iterator[Excerpt]:
        """A command as an excerpt of a source of its own."""
        found = own_source(self.source, passage, around, "python")
        if found is not None:
            yield found

    def around(self, root: _Root) -> Surroundings:
        """The environment and directory that the file gives the process."""
        variables: dict[str, Variable] = {}
        scope: Scope | None = root.scope
        scopes: list[Scope] = []
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
                value = self.values.string(keyword.value, root.scope, 0)
                known = value is not None and not value.early
                directory = value.text if value is not None and known else Unknown("cwd= is only known when it runs")
                if isinstance(keyword.value, ast.Constant) and keyword.value.value is None:
                    directory = None
            elif keyword.arg == "env":
                self.environment(keyword.value, root.scope, variables)
        return Surroundings(tuple(variables.values()), directory=directory)

    def environment(self, node: ast.expr, scope: Scope, variables: dict[str, Variable]) -> None:
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
        elif isinstance(node, ast.Call) and dotted(node.func) == "dict":
            for keyword in node.keywords:
                if keyword.arg is not None:
                    self.named(keyword.arg, keyword.value, scope, variables)

    def variable(self, key: ast.expr, value: ast.expr, scope: Scope, variables: dict[str, Variable]) -> None:
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            self.named(key.value, value, scope, variables)

    def named(self, name: str, value: ast.expr, scope: Scope, variables: dict[str, Variable]) -> None:
        if re.fullmatch(r"[A-Za-z_]\w*", name):
            text = self.values.string(value, scope, 0)
            known = text if text is not None and not text.early else None
            variables[name] = setting(self.source, name, known, self.lines.span(value), "export")

    # ------------------------------------------------------------ documentation

    def document(self, node: ast.Constant) -> Iterator[Excerpt]:
        """The commands in a docstring or a usage text."""
        passage = decoded(self.text, self.lines.span(node), document=True)
        if NAMES_LAUNCHER.search(passage.text) or "python" in passage.text:
            yield from in_document(self.source, passage)


def _is_whole(text: str, *, listed: bool) -> bool:
    """Whether a text that begins like a launch is one: it has something to run, and is no sentence."""
    match = _IS_LAUNCH.match(text)
    rest = text[match.end() :] if match is not None else ""
    if _TARGET.search(" " + rest) is None or re.match(r"\s*(?:--help|-h|--version)\b", rest):
        return False
    if match is not None and _COMMAND_LINE.search(match.group()) and len(rest.split()) < 2:
        # A subcommand alone is the head of what is put together elsewhere.
        return False
    return listed or not _is_sentence(rest)


def _is_sentence(rest: str) -> bool:
    """Whether what stands behind a launcher's name is no command line: words of a language, a release, a remark."""
    if PROSE.search(rest.split("\n", 1)[0]) or re.match(r"\s+v?\d+(?:\.\d+)+", rest):
        return True
    bare = re.sub(r"'[^']*'|\"[^\"]*\"|\$\{[^}]*\}|\$\([^)]*\)", "", rest)
    return re.search(r"[()`]|[,:;](?:\s|$)", bare) is not None


# ---------------------------------------------------------------- trees


def _may_be_text(node: ast.Call) -> bool:
    """Whether a call puts a command together: ``.format``, ``.split``, ``join``, ``shlex.split``."""
    function = node.func
    if not isinstance(function, ast.Attribute):
        return False
    if function.attr == "split":
        return not node.args or dotted(function) == "shlex.split"
    return function.attr in ("format", "join", "strip")


def _is_variable(target: ast.expr) -> bool:
    """Whether ``os.environ[…]`` is assigned to."""
    return isinstance(target, ast.Subscript) and dotted(target.value) == "os.environ"


def _bound(statement: ast.stmt) -> list[ast.expr]:
    """The names that a loop or a ``with`` gives values that are not known."""
    if isinstance(statement, (ast.For, ast.AsyncFor)):
        return [statement.target]
    if isinstance(statement, (ast.With, ast.AsyncWith)):
        return [item.optional_vars for item in statement.items if item.optional_vars is not None]
    return []


def _is_part(node: ast.expr, child: ast.expr) -> bool:
    """Whether an expression is a word of the list, or a term of the sum, that stands around it."""
    if isinstance(node, (ast.List, ast.Tuple)):
        return isinstance(child, (ast.Constant, ast.JoinedStr))
    return isinstance(node, ast.BinOp) and not isinstance(child, (ast.Call, ast.IfExp))


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
