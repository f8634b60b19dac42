"""Syntax → the commands that a shell would run, in the order in which it would run them."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

from mgpu_doctor.model.command import (
    Command,
    Mark,
    Redirect,
    Script,
    Surroundings,
    SyntaxProblem,
    Variable,
    Word,
    Wrapper,
)
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass, field, replace
from mgpu_doctor.model.source import Excerpt, Location, Source, Span
from mgpu_doctor.shell.expand import Early, Expander, brace_alternatives
from mgpu_doctor.shell.parser import parse
from mgpu_doctor.shell.state import Bit, Bits, Cell, FieldWord, Place, State, as_word, span_of, text_of, unknown_cell
from mgpu_doctor.shell.syntax import (
    Arithmetic,
    ArrayNode,
    Assignment,
    Compound,
    Function,
    Here,
    Item,
    Node,
    Parameter,
    Parsed,
    RedirectNode,
    Simple,
    WordNode,
)
from mgpu_doctor.shell.wrappers import SHELLS, Effect, Peeled, base_name, peel, tail

Follow = Callable[[str, Command], "Source | None"]

MOST_COMMANDS = 5000
"""Commands beyond which a text is no longer followed (functions that call each other)."""
DEEPEST_CALL = 8
"""Nesting of functions, texts in texts and scripts in scripts."""

_SURE = frozenset(
    {
        "cd",
        "pushd",
        "popd",
        "export",
        "set",
        "source",
        ".",
        "unset",
        "shopt",
        "ulimit",
        "echo",
        "umask",
        "module",
        "true",
        ":",
    }
)
_ALLOWED_NAME = pattern(r"[A-Za-z_]\w*", re.ASCII)
_SCRIPT_NAME = pattern(r"(?:\.{0,2}/|[\w.-]+/)?[^\s]*\.(?:sh|bash|sbatch|slurm)$|\.{1,2}/[^\s]+$")
_DIRECTIVE = pattern(r"#(?:SBATCH|PBS|BSUB|\$|COBALT|PJM)\s+-.*")


@dataclass(frozen=True, slots=True)
class Context:
    """How the text that is being walked is reached."""

    conditional: bool = False
    repeated: bool = False
    background: bool = False
    pipeline: tuple[int, int] = (0, 1)
    wrappers: tuple[Wrapper, ...] = ()
    called_from: Command | None = None
    redirects: tuple[Redirect, ...] = ()
    depth: int = 0
    calls: tuple[str, ...] = ()


@dataclass(slots=True)
class Outcome:
    """What a walk gathers: commands, assignments, and the scripts that were followed."""

    commands: list[Command] = field(default_factory=list)
    assignments: list[Variable] = field(default_factory=list)
    followed: list[Script] = field(default_factory=list)
    paths: tuple[str, ...] = ()


def read_script(excerpt: Excerpt, state: State, context: Context, follow: Follow | None, outcome: Outcome) -> Script:
    """Parse and walk one text; ``outcome`` gathers the scripts that its commands call."""
    parsed = parse(excerpt.text)
    early = excerpt.around.early if excerpt.around is not None else ()
    walker = Walker(excerpt, parsed, state, follow, outcome, early)
    walker.items(parsed.items, context)
    walker.uncalled_functions(context)
    marks = tuple(Mark(m.kind, span_of(excerpt, m.start, m.end), m.detail) for m in parsed.marks)
    problems = tuple(SyntaxProblem(t.message, span_of(excerpt, t.start, t.end)) for t in parsed.troubles if t.sure)
    return Script(
        excerpt, tuple(outcome.commands), problems, marks, tuple(outcome.assignments), _directives(excerpt, parsed)
    )


def _directives(excerpt: Excerpt, parsed: Parsed) -> tuple[tuple[str, Span], ...]:
    if "#SBATCH" not in excerpt.text and "#PBS" not in excerpt.text and "#BSUB" not in excerpt.text:
        return ()
    out = []
    for mark in parsed.marks:
        if mark.kind == "comment":
            text = excerpt.text[mark.start : mark.end]
            if _DIRECTIVE.match(text):
                out.append((text.rstrip(), span_of(excerpt, mark.start, mark.end)))
    return tuple(out)


class Walker:
    """Walks one text's syntax in one state."""

    def __init__(
        self,
        excerpt: Excerpt,
        parsed: Parsed,
        state: State,
        follow: Follow | None,
        outcome: Outcome,
        early: Early = (),
    ) -> None:
        self.excerpt = excerpt
        self.parsed = parsed
        self.state = state
        self.follow = follow
        self.outcome = outcome
        self.early = early
        self.defined: dict[str, tuple[Function, State]] = {}
        self.called: set[str] = set()
        self.locals: list[dict[str, Cell | None]] = []
        self.prefix: tuple[Variable, ...] = ()

    # ---------------------------------------------------------------- lists

    def items(self, items: Sequence[Item], context: Context) -> None:
        """Run a list of pipelines."""
        at = 0
        while at < len(items):
            end = at + 1
            while end < len(items) and items[end].joined:
                end += 1
            chain = items[at:end]
            if chain[-1].background:
                outer = self.state
                self.state = outer.copy()
                self.chain(chain, replace(context, background=True))
                self.state = outer
            else:
                self.chain(chain, context)
            if self.state.dead and end < len(items):
                self.state.dead = False
                context = replace(context, conditional=True)
            at = end

    def chain(self, chain: Sequence[Item], context: Context) -> None:
        """Pipelines joined by ``&&`` and ``||``."""
        sure = True
        for number, item in enumerate(chain):
            if not number or (item.joined == "&&" and sure):
                self.pipeline(item, context)
                sure = sure and _is_sure(item)
                if number and self.state.dead:
                    return
                continue
            before = self.state
            self.state = before.copy()
            self.pipeline(item, replace(context, conditional=True))
            after = self.state
            self.state = before
            if after.dead:
                after.dead = False
                sure = item.joined == "||"
                continue
            before.merge([before.copy(), after])
            sure = False if item.joined == "&&" else sure

    def pipeline(self, item: Item, context: Context) -> None:
        count = len(item.commands)
        if count == 1:
            self.node(item.commands[0], context)
            return
        for index, node in enumerate(item.commands):
            outer = self.state
            self.state = outer.copy()
            self.node(node, replace(context, pipeline=(index, count)))
            self.state = outer

    def node(self, node: Node, context: Context) -> None:
        if len(self.outcome.commands) > MOST_COMMANDS:
            return
        if isinstance(node, Simple):
            self.simple(node, context)
        elif isinstance(node, Function):
            self.state.functions[node.name] = node
            self.defined[node.name] = (node, self.state.copy())
        else:
            self.compound(node, context)

    # ---------------------------------------------------------------- compound commands

    def compound(self, node: Compound, context: Context) -> None:
        if node.redirects:
            context = replace(context, redirects=(*context.redirects, *self.redirects(node.redirects)))
        kind = node.kind
        if kind == "subshell":
            outer = self.state
            self.state = outer.copy()
            self.items(node.branches[0], context)
            self.state = outer
        elif kind == "group":
            self.items(node.branches[0], context)
        elif kind == "if":
            self.if_branches(node, context)
        elif kind == "case":
            self.alternatives(node.branches, replace(context, conditional=True), complete=False)
        elif kind in ("for", "while", "until", "select"):
            self.loop(node, context)

    def if_branches(self, node: Compound, context: Context) -> None:
        branches = node.branches
        self.items(branches[0], context)
        results: list[State] = []
        current = self.state
        inner = replace(context, conditional=True)
        at = 0
        while at + 1 < len(branches):
            if at:
                self.state = current = current.copy()
                self.items(branches[at], inner)
            self.state = current.copy()
            self.items(branches[at + 1], inner)
            results.append(self.state)
            at += 2
        self.state = current.copy()
        if at < len(branches):
            self.items(branches[at], inner)
        results.append(self.state)
        self.state = current
        current.merge(results)

    def alternatives(self, branches: Sequence[Sequence[Item]], context: Context, *, complete: bool) -> None:
        before = self.state
        results = [] if complete else [before.copy()]
        for branch in branches:
            self.state = before.copy()
            self.items(branch, context)
            results.append(self.state)
        self.state = before
        if results:
            before.merge(results)

    def loop(self, node: Compound, context: Context) -> None:
        inner = replace(context, conditional=True, repeated=True)
        single: Bits | None = None
        if node.kind == "for" and node.words is not None:
            words = self.expander().words(node.words)
            if len(words) == 1 and not words[0].splits and words[0].value is not None:
                single = words[0].bits
                inner = replace(context)
            elif not words:
                return
        before = self.state.copy()
        if single is None:
            for name in _assigned_names(node.branches, node.expression):
                self.state.cells[name] = unknown_cell(name, self.state.cells.get(name), exported=self.is_exported(name))
        if node.name is not None:
            location = self.location(node.start, node.start)
            if single is not None:
                self.assign(node.name, single, location, "assignment", record=False)
            else:
                self.state.cells[node.name] = unknown_cell(node.name, None, exported=self.is_exported(node.name))
        condition, body = node.branches
        self.items(condition, replace(context, repeated=True))
        self.items(body, inner)
        if single is None:
            self.state.dead = False
            self.state.merge([before, self.state.copy()])

    # ---------------------------------------------------------------- functions

    def call(self, name: str, words: list[FieldWord], context: Context) -> None:
        """A call of a function: its body with these positional parameters."""
        function = self.state.functions[name]
        self.called.add(name)
        if name in context.calls or len(context.calls) >= DEEPEST_CALL:
            return
        known = not any(word.splits for word in words[1:])
        outer = self.state.positional
        self.state.positional = tuple(word.bits for word in words[1:]) if known else None
        self.locals.append({})
        self.node(function.body, replace(context, calls=(*context.calls, name)))
        for local, cell in self.locals.pop().items():
            if cell is None:
                self.state.cells.pop(local, None)
            else:
                self.state.cells[local] = cell
        self.state.positional = outer
        self.state.dead = False

    def uncalled_functions(self, context: Context) -> None:
        """Bodies of functions that the text never calls, read once with unknown parameters."""
        outer = self.state
        for name, (function, state) in list(self.defined.items()):
            if name in self.called:
                continue
            self.state = state
            self.state.positional = None
            self.called.add(name)
            self.locals.append({})
            self.node(function.body, replace(context, conditional=True, calls=(*context.calls, name)))
            self.locals.pop()
        self.state = outer

    # ---------------------------------------------------------------- simple commands

    def expander(self) -> Expander:
        return Expander(self.excerpt, self.state, self.early, self.default_assigned)

    def default_assigned(self, name: str, bits: Bits, location: Location) -> None:
        self.assign(name, bits, location, "default")

    def location(self, start: int, end: int) -> Location:
        return Location(self.excerpt.source, span_of(self.excerpt, start, end))

    def simple(self, node: Simple, context: Context) -> None:
        expander = self.expander()
        words: list[FieldWord] = []
        declared: list[Assignment] = []
        plain = True
        for item in node.words:
            if isinstance(item, Assignment):
                declared.append(item)
                plain = False
                words.append(self.assignment_word(item))
            else:
                words.extend(expander.word(item))
        if not words:
            for assignment in node.assignments:
                self.shell_assignment(assignment)
            return
        redirects = (*context.redirects, *self.redirects(node.redirects))
        prefix = self.prefix_variables(node.assignments)
        lead = tuple(as_word(word) for one in node.lead for word in expander.word(one))
        wrappers = context.wrappers
        if lead:
            wrappers = (*wrappers, Wrapper("time", lead))
        heres = [self.parsed.heres[r.here] for r in node.redirects if r.here is not None]
        frame = Frame(node.start, node.end, prefix, redirects, wrappers, next((h for h in heres if h), None))
        self.run(words, frame, context, self.state, declared if not plain else [])

    def run(  # noqa: C901 - one branch for each form
        self,
        words: list[FieldWord],
        frame: Frame,
        context: Context,
        state: State,
        declared: Sequence[Assignment] = (),
    ) -> None:
        """Run words: peel wrappers off, and see what is left."""
        wrapped = False
        while True:
            peeled = peel(words) if len(frame.wrappers) < 16 else None
            if peeled is None:
                break
            own = tuple(as_word(word) for word in words[: peeled.own])
            if not own:
                break
            if not wrapped:
                state = state.copy()
                for variable in frame.prefix:
                    state.cells[variable.name] = self.prefix_cell(variable)
                frame = replace(frame, prefix=())
                wrapped = True
            frame = replace(frame, wrappers=(*frame.wrappers, Wrapper(peeled.name, own)))
            self.apply(peeled, state)
            if peeled.text is not None:
                self.text_command(words, peeled, frame, context, state)
                return
            words = words[peeled.own :]
        name = words[0].value if words else None
        if name is None or not words:
            if words:
                self.emit(words, frame, context, state)
            return
        if not wrapped and name in state.functions:
            self.function_call(name, words, frame, context)
            return
        handler = (
            _BUILTINS.get(name) if not wrapped or frame.wrappers[-1].name in ("command", "builtin", "time") else None
        )
        if handler is not None:
            command = self.emit(words, frame, context, state)
            handler(self, words, declared, command, context)
            return
        command = self.emit(words, frame, context, state)
        self.called_script(words, command, frame, context, state)

    def function_call(self, name: str, words: list[FieldWord], frame: Frame, context: Context) -> None:
        outer = {variable.name: self.state.cells.get(variable.name) for variable in frame.prefix}
        for variable in frame.prefix:
            self.state.cells[variable.name] = self.prefix_cell(variable)
        self.call(name, words, replace(context, redirects=frame.redirects, wrappers=frame.wrappers))
        for key, cell in outer.items():
            if cell is None:
                self.state.cells.pop(key, None)
            else:
                self.state.cells[key] = cell

    def emit(self, words: list[FieldWord], frame: Frame, context: Context, state: State) -> Command:
        """Record a command."""
        environment, shell_only = variables(state)
        command = Command(
            source=self.excerpt.source,
            span=span_of(self.excerpt, frame.start, frame.end),
            words=tuple(as_word(word) for word in words),
            environment=(*environment, *frame.prefix),
            shell_only=(*state.lost, *shell_only) if state.lost else shell_only,
            wrappers=frame.wrappers,
            redirects=frame.redirects,
            background=context.background,
            pipeline=context.pipeline,
            directory=state.directory,
            conditional=context.conditional,
            repeated=context.repeated,
            called_from=context.called_from,
            unset_all=state.cut,
        )
        self.outcome.commands.append(command)
        return command

    def redirects(self, nodes: Iterable[RedirectNode]) -> tuple[Redirect, ...]:
        out = []
        for node in nodes:
            target = None
            if node.target is not None:
                if node.here is not None:
                    bit = Bit(self.excerpt.text[node.target.start : node.target.end], "", None, True)
                    one = FieldWord((bit,), False, self.excerpt, node.target.start, node.target.end)
                    target = as_word(one)
                else:
                    words = self.expander().word(node.target)
                    target = as_word(words[0]) if words else None
            out.append(Redirect(node.operator, span_of(self.excerpt, node.start, node.end), target))
        return tuple(out)

    # ---------------------------------------------------------------- assignments

    def is_exported(self, name: str) -> bool:
        cell = self.state.cells.get(name)
        if cell is not None:
            # What has been unset is set anew without its export.
            return cell.exported and cell.variable.value is not None
        return self.state.inherits(name) and not self.state.cut

    def variable(self, name: str, bits: Bits, location: Location | None, scope: str) -> Variable:
        place = location.span if location is not None else Span(0, 0)
        word = as_word(FieldWord(bits, False, self.excerpt, 0, 0))
        return Variable(name, replace(word, span=place, origin=None), scope, location)

    def assign(
        self,
        name: str,
        bits: Bits,
        location: Location | None,
        scope: str,
        *,
        items: tuple[Bits, ...] | None = None,
        value_span: Span | None = None,
        record: bool = True,
    ) -> None:
        """Set a shell variable."""
        exported = self.is_exported(name) or self.state.export_all or scope in ("export", "env", "prefix")
        if scope == "assignment" and exported:
            scope = "export"
        variable = self.variable(name, bits, location, scope)
        if value_span is not None and variable.value is not None:
            variable = replace(variable, value=replace(variable.value, span=value_span))
        self.state.cells[name] = Cell(bits, items, exported and items is None, variable)
        if record:
            self.outcome.assignments.append(variable)

    def shell_assignment(
        self, node: Assignment, *, exported: bool = False, local: bool = False, declared: bool = False
    ) -> None:
        """``NAME=value`` that stays in the shell, or one given to ``export``."""
        name = node.name
        if local and self.locals:
            self.locals[-1].setdefault(name, self.state.cells.get(name))
        location = self.location(node.start, node.end)
        scope = "export" if exported else "assignment"
        span = span_of(self.excerpt, node.value.start, node.value.end)
        old = self.state.cells.get(name)
        if isinstance(node.value, ArrayNode):
            self.array_assignment(node, node.value, old, location, scope, span)
            return
        value = node.value
        if declared:
            # An argument of a builtin: braces are expanded, and of several assignments the last one counts.
            value = replace(value, parts=brace_alternatives(value.parts)[-1])
        bits = self.expander().value(value)
        if node.subscript is not None:
            self.element_assignment(node, old, bits, location)
            return
        if node.append:
            if old is not None and old.items is not None:
                first = (*(old.items[0] if old.items else ()), *bits)
                self.assign(name, first, location, scope, items=(first, *old.items[1:]), value_span=span)
                return
            if old is None:
                text = None if self.state.opaque else self.expander().inherited(name)
                before: Bits = (Bit(text, f"${name}", name),)
                if text is None and self.expander().never_set(name):
                    before = ()
            else:
                before = old.bits or ()
            bits = (*before, *bits)
        self.assign(name, bits, location, scope, value_span=span)

    def array_assignment(
        self, node: Assignment, value: ArrayNode, old: Cell | None, location: Location, scope: str, span: Span
    ) -> None:
        items: list[Bits] = []
        known = True
        expander = self.expander()
        for number, (index, word) in enumerate(value.items):
            if index is not None:
                known = known and index.strip() == str(number)
                items.append(expander.value(word))
                continue
            for expanded in expander.word(word):
                known = known and not expanded.splits
                items.append(expanded.bits)
        if node.append:
            if old is None or (old.items is None and (old.bits is None or any(b.text is None for b in old.bits))):
                known = known and old is not None and old.bits is None
            else:
                items = [*(old.items if old.items is not None else (old.bits or (),)), *items]
        unknown = (Bit(None, f"${node.name}", node.name),)
        if not known:
            self.assign(node.name, unknown, location, scope, value_span=span)
            return
        flat: list[Bit] = []
        for number, one in enumerate(items):
            if number:
                flat.append(Bit(" ", " "))
            flat.extend(one)
        self.assign(node.name, tuple(flat), location, scope, items=tuple(items), value_span=span)

    def element_assignment(self, node: Assignment, old: Cell | None, bits: Bits, location: Location) -> None:
        expander = self.expander()
        index = None
        if node.subscript is not None and re.fullmatch(r"\s*\d+\s*|\s*\w+\s*", node.subscript):
            from mgpu_doctor.shell.arithmetic import evaluate

            index = evaluate(node.subscript, expander.number)
        items = list(old.items) if old is not None and old.items is not None else None
        if old is not None and old.bits is None:
            items = []
        if index is not None and items is not None and 0 <= index <= len(items) and not node.append:
            items[index : index + 1] = [bits]
            flat = tuple(bit for one in items for bit in one)
            self.assign(node.name, flat, location, "assignment", items=tuple(items))
            return
        unknown = (Bit(None, f"${node.name}", node.name),)
        self.assign(node.name, unknown, location, "assignment")

    def assignment_word(self, node: Assignment) -> FieldWord:
        """An assignment as a word of ``export`` or ``declare``."""
        head = self.excerpt.text[node.start : node.value.start]
        start = Bit(head, head, None, False, Place(self.excerpt, node.start, node.value.start), True)
        bits: Bits
        if isinstance(node.value, ArrayNode):
            raw = self.excerpt.text[node.value.start : node.value.end]
            bits = (start, Bit(None, raw, node.name, True))
        else:
            bits = (start, *self.expander().value(node.value))
        return FieldWord(bits, False, self.excerpt, node.start, node.end)

    def prefix_variables(self, nodes: Sequence[Assignment]) -> tuple[Variable, ...]:
        out = []
        for node in nodes:
            if isinstance(node.value, ArrayNode):
                continue
            bits = self.expander().value(node.value)
            if node.append:
                old = self.state.cells.get(node.name)
                bits = (*(old.bits or () if old is not None else (Bit(None, f"${node.name}", node.name),)), *bits)
            variable = self.variable(node.name, bits, self.location(node.start, node.end), "prefix")
            span = span_of(self.excerpt, node.value.start, node.value.end)
            if variable.value is not None:
                variable = replace(variable, value=replace(variable.value, span=span))
            out.append(variable)
            self.outcome.assignments.append(variable)
        return tuple(out)

    def prefix_cell(self, variable: Variable) -> Cell:
        bits = _bits_of(variable, self.excerpt)
        return Cell(bits, None, True, variable)

    # ---------------------------------------------------------------- wrappers

    def apply(self, peeled: Peeled, state: State) -> None:
        """What a wrapper does to the environment and the directory."""
        outer = dict(state.cells)
        for effect in peeled.effects:
            self.effect(effect, state, outer)
        if peeled.text is not None and peeled.name != "env -S":
            # A new shell: it sees exported variables alone, and none of the functions.
            state.cells = {name: cell for name, cell in state.cells.items() if cell.exported or cell.bits is None}
            state.functions = {}
            state.export_all = False
        if peeled.place is not None:
            state.away = state.directory = state.environment = Unknown(f"the command runs {peeled.place}")
        if peeled.directory is not None:
            value = peeled.directory.value
            if value is None:
                state.directory = Unknown("the directory is not known")
            elif state.away is None:
                state.directory = join_directory(state.directory, value)

    def effect(self, effect: Effect, state: State, outer: dict[str, Cell]) -> None:
        kind, name = effect.kind, effect.name
        if kind in ("clear", "cut", "drop"):
            lost = [cell.variable for cell in state.cells.values() if cell.exported and cell.bits is not None]
            state.lost = (*state.lost, *lost)
            state.cells = {key: cell for key, cell in state.cells.items() if not cell.exported}
            state.cut = True
        elif kind == "unset" and name:
            variable = Variable(name, None, "env", self.word_location(effect.word))
            state.cells[name] = Cell(None, None, True, variable)
        elif kind == "pass" and name:
            cell = outer.get(name)
            if cell is not None and cell.bits is not None and cell.exported:
                state.cells[name] = cell
                state.lost = tuple(variable for variable in state.lost if variable.name != name)
            else:
                state.cells[name] = unknown_cell(name, None, exported=True)
        elif kind in ("unknown", "text") and name:
            name, _, text = name.partition("=")
            bits: Bits = (Bit(text, text),) if kind == "text" else (Bit(None, f"${name}", name),)
            state.cells[name] = Cell(bits, None, True, self.variable(name, bits, None, "env"))
        elif kind == "set" and name and effect.word is not None:
            word = tail(effect.word, effect.offset) if effect.offset else effect.word
            variable = self.variable(name, word.bits, self.word_location(effect.word), "env")
            span = span_of(word.excerpt, word.start, word.end)
            if variable.value is not None:
                variable = replace(variable, value=replace(variable.value, span=span))
            state.cells[name] = Cell(word.bits, None, True, variable)
            self.outcome.assignments.append(variable)

    def word_location(self, word: FieldWord | None) -> Location | None:
        return None if word is None else Location(word.excerpt.source, span_of(word.excerpt, word.start, word.end))

    # ---------------------------------------------------------------- text in text

    def text_command(
        self, words: list[FieldWord], peeled: Peeled, frame: Frame, context: Context, state: State
    ) -> None:
        """``bash -c TEXT``, ``ssh HOST TEXT``, ``env -S TEXT``."""
        assert peeled.text is not None
        if context.depth >= DEEPEST_CALL:
            return
        if peeled.name == "ssh":
            pieces: list[Bit] = []
            for number, word in enumerate(words[peeled.text :]):
                if number:
                    pieces.append(Bit(" ", " "))
                pieces.extend(word.bits)
            bits = tuple(pieces)
        else:
            bits = words[peeled.text].bits
        if all(bit.text is None for bit in bits):
            self.emit(words[peeled.text :], frame, context, state)
            return
        behind = words[peeled.arguments :] if peeled.arguments is not None else []
        if peeled.name == "env -S":
            bits = (*bits, *(bit for word in behind for bit in (Bit(" ", " "), *word.bits)))
        elif not any(word.splits for word in behind):
            state.positional = tuple(word.bits for word in behind[1:])
        else:
            state.positional = None
        anchor = words[peeled.text]
        self.nested(bits, anchor, frame, context, state)

    def nested(self, bits: Bits, anchor: FieldWord, frame: Frame, context: Context, state: State) -> None:
        """Walk the text that bits hold, with places in the source as exact as they can be."""
        if any(one.text is not None and one.text.endswith("\\") and two.text is None for one, two in pairwise(bits)):
            # The backslash quotes whatever the unknown begins with, and if it is empty, what follows.
            state.opaque = True
            return
        excerpt, early = compose(bits, anchor)
        inner = Walker(excerpt, parse(excerpt.text), state, self.follow, self.outcome, early)
        inner.locals = self.locals
        inner.items(
            inner.parsed.items,
            replace(context, wrappers=frame.wrappers, redirects=frame.redirects, depth=context.depth + 1),
        )
        inner.uncalled_functions(replace(context, depth=context.depth + 1))

    def here_text(self, here: Here, frame: Frame, context: Context, state: State) -> None:
        """A shell that reads a here-document."""
        bits = self.expander().text(here.parts)
        if context.depth >= DEEPEST_CALL:
            return
        self.nested(bits, FieldWord(bits, False, self.excerpt, here.start, here.end), frame, context, state)

    def called_script(
        self, words: list[FieldWord], command: Command, frame: Frame, context: Context, state: State
    ) -> None:
        """A shell script that the command runs: a here-document, or a file when it can be read."""
        name = words[0].value or ""
        base = base_name(name)
        if base in SHELLS and frame.here is not None and all((w.value or "").startswith("-") for w in words[1:]):
            self.here_text(frame.here, self.child_frame(frame, command), context, self.child(state, words, 1))
            return
        if base == "ssh" and frame.here is not None:
            inner = self.child(state, words, len(words))
            inner.cells = {}
            inner.cut = True
            inner.away = inner.directory = inner.environment = Unknown("the command runs on another host")
            self.here_text(frame.here, self.child_frame(frame, command), context, inner)
            return
        if base == "sbatch":
            self.batch(words, command, frame, context, state)
            return
        at = self.script_index(words, base)
        if at is None or self.follow is None or context.depth >= DEEPEST_CALL:
            return
        path = words[at].value
        if path is None:
            return
        source = self.follow(path, command)
        if source is not None:
            self.follow_source(source, command, context, self.child(state, words, at + 1, frame.prefix))

    def batch(self, words: list[FieldWord], command: Command, frame: Frame, context: Context, state: State) -> None:
        """``sbatch``: a here-document, ``--wrap TEXT`` or a file."""
        for number, word in enumerate(words):
            value = word.value
            if value == "--wrap" and number + 1 < len(words):
                text = words[number + 1]
                self.nested(
                    text.bits, text, self.child_frame(frame, command), context, self.child(state, words, len(words))
                )
                return
            if word.bits and (word.bits[0].text or "").startswith("--wrap="):
                text = tail(word, len("--wrap="))
                self.nested(
                    text.bits, text, self.child_frame(frame, command), context, self.child(state, words, len(words))
                )
                return
        if frame.here is not None:
            self.here_text(frame.here, self.child_frame(frame, command), context, self.child(state, words, len(words)))
            return
        if self.follow is None or context.depth >= DEEPEST_CALL:
            return
        for number, word in enumerate(words[1:], 1):
            value = word.value
            if value is not None and _SCRIPT_NAME.match(value) and not value.startswith("-"):
                source = self.follow(value, command)
                if source is not None:
                    self.follow_source(source, command, context, self.child(state, words, number + 1, frame.prefix))
                return

    def child_frame(self, frame: Frame, command: Command) -> Frame:
        """The frame of a text that a command reads: the command is a wrapper around what stands in it."""
        name = base_name(command.words[0].shown)
        return replace(frame, wrappers=(*frame.wrappers, Wrapper(name, command.words)), prefix=(), here=None)

    def child(self, state: State, words: list[FieldWord], first: int, prefix: tuple[Variable, ...] = ()) -> State:
        """The state of a new shell that is given the words from ``first`` on."""
        inner = state.copy()
        inner.cells = {name: cell for name, cell in inner.cells.items() if cell.exported or cell.bits is None}
        for variable in prefix:
            inner.cells[variable.name] = self.prefix_cell(variable)
        inner.functions = {}
        inner.export_all = False
        inner.dead = False
        rest = words[first:]
        inner.positional = None if any(word.splits for word in rest) else tuple(word.bits for word in rest)
        return inner

    def script_index(self, words: list[FieldWord], base: str) -> int | None:
        """Which word names the script that is run."""
        if base in SHELLS:
            at = 1
            while at < len(words):
                value = words[at].value
                if value is None:
                    return None
                if value in ("-o", "+o", "-O", "+O", "--rcfile", "--init-file"):
                    at += 2
                elif value.startswith(("-", "+")) and len(value) > 1:
                    at += 1
                else:
                    return at
            return None
        name = words[0].value or ""
        if _SCRIPT_NAME.match(name) and not name.endswith((".py", ".exe", ".pl", ".rb", ".js")) and "/" in name:
            return 0
        return None

    def follow_source(
        self, source: Source, command: Command, context: Context, state: State, *, sourced: bool = False
    ) -> None:
        """Read a script that is run or sourced; its commands are in a script of their own."""
        key = source.path or source.name
        if key in self.outcome.paths or len(self.outcome.paths) >= DEEPEST_CALL:
            return
        inner = Outcome(followed=self.outcome.followed, paths=(*self.outcome.paths, key))
        reached = Context(
            conditional=context.conditional,
            repeated=context.repeated,
            background=context.background,
            called_from=command,
            depth=context.depth + 1,
        )
        if not sourced:
            reached = replace(reached, wrappers=command.wrappers)
        script = read_script(Excerpt.whole(source), state, reached, self.follow, inner)
        self.outcome.followed.append(script)

    # ---------------------------------------------------------------- builtins

    def export(self, words: list[FieldWord], declared: Sequence[Assignment]) -> None:
        flags = "".join((word.value or "")[1:] for word in words[1:] if (word.value or "").startswith("-"))
        if "n" in flags:
            for word in words[1:]:
                self.set_exported(word.value, exported=False)
            return
        if "f" in flags or "p" in flags:
            return
        for assignment in declared:
            self.shell_assignment(assignment, exported=True, declared=True)
        own = {assignment.start for assignment in declared}
        for word in words[1:]:
            if word.start in own and word.excerpt is self.excerpt:
                continue
            value = word.value
            if value is None or value.startswith("-"):
                self.export_computed(word)
            elif _ALLOWED_NAME.fullmatch(value):
                self.set_exported(value, exported=True)

    def export_computed(self, word: FieldWord) -> None:
        """``export "NAME=…"`` or ``export $PAIR``: the name is known when it stands in front."""
        first = word.bits[0].text if word.bits else None
        if first and "=" in first and _ALLOWED_NAME.fullmatch(first.split("=", 1)[0]):
            name = first.split("=", 1)[0]
            rest = tail(word, len(name) + 1)
            self.assign(name, rest.bits, self.word_location(word), "export")

    def set_exported(self, name: str | None, *, exported: bool) -> None:
        if name is None or not _ALLOWED_NAME.fullmatch(name):
            return
        cell = self.state.cells.get(name)
        if cell is None:
            if exported and not self.state.inherits(name):
                # Exported without a value: whether it has one depends on the caller.
                return
            cell = unknown_cell(name, None, exported=exported)
        scope = "export" if exported else "assignment"
        variable = replace(cell.variable, scope=scope)
        self.state.cells[name] = replace(cell, exported=exported, variable=variable)
        if exported:
            self.outcome.assignments.append(variable)

    def declare(self, words: list[FieldWord], declared: Sequence[Assignment]) -> None:
        flags = "".join((word.value or "")[1:] for word in words[1:] if (word.value or "").startswith("-"))
        local = words[0].value == "local" or (
            bool(self.locals) and words[0].value in ("declare", "typeset") and "g" not in flags
        )
        special = bool(set(flags) & set("ainAul"))
        for assignment in declared:
            self.shell_assignment(assignment, exported="x" in flags, local=local, declared=True)
            if special and not (isinstance(assignment.value, ArrayNode) and "A" not in flags and "i" not in flags):
                self.make_unknown(assignment.name)
        for word in words[1:]:
            value = word.value
            if value and _ALLOWED_NAME.fullmatch(value):
                if local and self.locals:
                    self.locals[-1].setdefault(value, self.state.cells.get(value))
                if "x" in flags:
                    self.set_exported(value, exported=True)
                elif "a" in flags and value not in self.state.cells:
                    cell = unknown_cell(value, None, exported=False)
                    self.state.cells[value] = replace(cell, bits=None, items=None)
                elif local:
                    self.make_unset(value, None)

    def make_unknown(self, name: str) -> None:
        self.state.cells[name] = unknown_cell(name, self.state.cells.get(name), exported=self.is_exported(name))

    def make_unset(self, name: str, location: Location | None) -> None:
        exported = self.is_exported(name)
        self.state.cells[name] = Cell(None, None, exported, Variable(name, None, "export", location))

    def unset(self, words: list[FieldWord]) -> None:
        for word in words[1:]:
            value = word.value
            if value and _ALLOWED_NAME.fullmatch(value):
                self.make_unset(value, self.word_location(word))
                cell = self.state.cells[value]
                # A child must not see an inherited one either.
                self.state.cells[value] = replace(cell, exported=True)
                self.state.functions.pop(value, None)
            elif value and "[" in value:
                self.make_unknown(value.split("[")[0])

    def set_options(self, words: list[FieldWord]) -> None:
        at = 1
        while at < len(words):
            value = words[at].value
            if value is None:
                if words[at].splits:
                    self.state.positional = None
                return
            if value == "--":
                rest = words[at + 1 :]
                self.state.positional = None if any(w.splits for w in rest) else tuple(w.bits for w in rest)
                return
            if value in ("-o", "+o") and at + 1 < len(words):
                if words[at + 1].value == "allexport":
                    self.state.export_all = value == "-o"
                at += 2
                continue
            if value.startswith(("-", "+")) and len(value) > 1:
                if "a" in value[1:] and value[1:].isalpha():
                    self.state.export_all = value[0] == "-"
                at += 1
                if value[1:].endswith("o"):
                    at += 1
                continue
            rest = words[at:]
            self.state.positional = None if any(w.splits for w in rest) else tuple(w.bits for w in rest)
            return

    def change_directory(self, words: list[FieldWord]) -> None:
        operands = [word for word in words[1:] if word.value is None or not re.fullmatch(r"-[LPe@]+|--", word.value)]
        if self.state.away is not None:
            return
        if not operands:
            self.state.directory = Unknown("it is the home directory")
            return
        word = operands[0]
        value = word.value
        if value is None or value == "-" or len(operands) > 1:
            self.state.directory = Unknown(f"`cd {word.word.written}` goes to a directory that is not known")
            return
        if not value.startswith("/"):
            cdpath = self.state.cells.get("CDPATH")
            if cdpath is not None and cdpath.bits is not None:
                self.state.directory = Unknown("CDPATH is set")
                return
        self.state.directory = join_directory(self.state.directory, value)

    def shift(self, words: list[FieldWord]) -> None:
        if self.state.positional is None:
            return
        value = words[1].value if len(words) > 1 else "1"
        if value is None or not value.isdigit():
            self.state.positional = None
            return
        if int(value) <= len(self.state.positional):
            self.state.positional = self.state.positional[int(value) :]

    def evaluate(self, words: list[FieldWord], command: Command, context: Context) -> None:
        """``eval``: its words, joined by blanks, are read as text in this shell."""
        bits: list[Bit] = []
        for number, word in enumerate(words[1:]):
            if number:
                bits.append(Bit(" ", " "))
            bits.extend(word.bits)
        if not bits or all(bit.text is None for bit in bits) or context.depth >= DEEPEST_CALL:
            self.state.opaque = True
            return
        anchor = replace(
            words[1], end=max(words[-1].end, words[1].end) if words[-1].excerpt is words[1].excerpt else words[1].end
        )
        frame = Frame(0, 0, (), command.redirects, (*command.wrappers, Wrapper("eval", command.words[:1])), None)
        self.outcome.commands.remove(command)
        self.nested(tuple(bits), anchor, frame, context, self.state)

    def source(self, words: list[FieldWord], command: Command, context: Context) -> None:
        value = words[1].value if len(words) > 1 else None
        source = self.follow(value, command) if value is not None and self.follow is not None else None
        if source is None:
            if value is None or not re.search(
                r"(?:activate|conda\.sh|\.bashrc|\.bash_profile|\.profile|set_env\.sh)$", value
            ):
                self.state.opaque = True
            return
        state = self.state
        outer = state.positional
        if len(words) > 2:
            state.positional = None if any(w.splits for w in words[2:]) else tuple(w.bits for w in words[2:])
        self.follow_source(source, command, context, state, sourced=True)
        state.positional = outer

    def read(self, words: list[FieldWord]) -> None:
        for word in words[1:]:
            value = word.value
            if value and _ALLOWED_NAME.fullmatch(value):
                self.make_unknown(value)

    def printf(self, words: list[FieldWord]) -> None:
        for number, word in enumerate(words):
            if word.value == "-v" and number + 1 < len(words) and words[number + 1].value:
                self.make_unknown(words[number + 1].value or "")

    def leave(self) -> None:
        self.state.dead = True


@dataclass(frozen=True, slots=True)
class Frame:
    """What surrounds the words of a simple command."""

    start: int
    end: int
    prefix: tuple[Variable, ...]
    redirects: tuple[Redirect, ...]
    wrappers: tuple[Wrapper, ...]
    here: Here | None


_Handler = Callable[[Walker, "list[FieldWord]", "Sequence[Assignment]", Command, Context], None]
_BUILTINS: Mapping[str, _Handler] = {
    "export": lambda walker, words, declared, _command, _context: walker.export(words, declared),
    "declare": lambda walker, words, declared, _command, _context: walker.declare(words, declared),
    "typeset": lambda walker, words, declared, _command, _context: walker.declare(words, declared),
    "local": lambda walker, words, declared, _command, _context: walker.declare(words, declared),
    "readonly": lambda walker, words, declared, _command, _context: walker.declare(words, declared),
    "unset": lambda walker, words, _declared, _command, _context: walker.unset(words),
    "set": lambda walker, words, _declared, _command, _context: walker.set_options(words),
    "cd": lambda walker, words, _declared, _command, _context: walker.change_directory(words),
    "pushd": lambda walker, words, _declared, _command, _context: walker.change_directory(words),
    "popd": lambda walker, _words, _declared, _command, _context: setattr(
        walker.state, "directory", Unknown("`popd` goes back to a directory that is not followed")
    ),
    "shift": lambda walker, words, _declared, _command, _context: walker.shift(words),
    "eval": lambda walker, words, _declared, command, context: walker.evaluate(words, command, context),
    "source": lambda walker, words, _declared, command, context: walker.source(words, command, context),
    ".": lambda walker, words, _declared, command, context: walker.source(words, command, context),
    "read": lambda walker, words, _declared, _command, _context: walker.read(words),
    "mapfile": lambda walker, words, _declared, _command, _context: walker.read(words),
    "readarray": lambda walker, words, _declared, _command, _context: walker.read(words),
    "getopts": lambda walker, words, _declared, _command, _context: walker.read(words),
    "let": lambda walker, words, _declared, _command, _context: walker.read(
        [
            replace(word, bits=(Bit(name, name),))
            for word in words
            for name in re.findall(r"[A-Za-z_]\w*", word.value or "")
        ]
    ),
    "printf": lambda walker, words, _declared, _command, _context: walker.printf(words),
    "exit": lambda walker, _words, _declared, _command, _context: walker.leave(),
    "return": lambda walker, _words, _declared, _command, _context: walker.leave(),
}


def variables(state: State) -> tuple[tuple[Variable, ...], tuple[Variable, ...]]:
    """What reaches a child, and what stays in the shell."""
    environment = []
    shell_only = []
    for cell in state.cells.values():
        if cell.exported:
            environment.append(cell.variable)
        elif cell.bits is not None and cell.variable.location is not None:
            shell_only.append(cell.variable)
    return tuple(environment), tuple(shell_only)


def join_directory(current: str | Unknown | None, step: str) -> str | Unknown | None:
    """Where ``cd step`` leads from ``current``."""
    if step.startswith("/"):
        return step
    if isinstance(current, Unknown):
        return current
    parts = [part for part in (current or "").split("/") if part] if current and not current.startswith("/") else None
    if parts is None and current:
        parts = [part for part in current.split("/") if part]
    out = list(parts or [])
    for part in step.split("/"):
        if part in ("", "."):
            continue
        if part == ".." and out and out[-1] != "..":
            out.pop()
        else:
            out.append(part)
    joined = "/".join(out)
    if current and current.startswith("/"):
        return "/" + joined
    return joined or None


def compose(bits: Bits, anchor: FieldWord) -> tuple[Excerpt, Early]:
    """The text that bits hold, as an excerpt of the anchor's source, and the ranges that an outer shell expands."""
    source = anchor.excerpt.source
    outer = span_of(anchor.excerpt, anchor.start, anchor.end)
    text: list[str] = []
    anchors: list[tuple[int, int]] = []
    early: list[tuple[int, int, str]] = []
    at = 0
    for bit in bits:
        if bit.text is not None:
            piece = bit.text
        else:
            name = bit.variable if bit.variable and _ALLOWED_NAME.fullmatch(bit.variable) else "_"
            piece = "${" + name + "}"
            early.append((at, at + len(piece), bit.own or bit.written))
        if not piece:
            continue
        place = bit.place
        if place is None or place.excerpt.source is not source:
            span = outer
            anchors.extend((at + n, min(span.start + n, max(span.end - 1, span.start))) for n in range(len(piece)))
        elif bit.exact and bit.text is not None:
            anchors.extend(_exact_anchors(place, len(piece), at))
        else:
            span = place.span
            last = max(span.end - 1, span.start)
            anchors.extend((at + n, min(span.start + n, last)) for n in range(len(piece)))
        text.append(piece)
        at += len(piece)
    return Excerpt(source, "".join(text), tuple(anchors) or ((0, outer.start),), "bash"), tuple(early)


def _exact_anchors(place: Place, length: int, at: int) -> list[tuple[int, int]]:
    """Anchors for text that stands in an excerpt unchanged."""
    start = place.start
    out = [(at, span_of(place.excerpt, start, start).start)]
    anchors = place.excerpt.anchors
    first = bisect_right(anchors, (start, 1 << 62))
    last = bisect_left(anchors, (start + length, -1))
    out.extend((at + inner - start, outer) for inner, outer in anchors[first:last])
    return out


def _bits_of(variable: Variable, excerpt: Excerpt) -> Bits:
    del excerpt
    if variable.value is None:
        return ()
    return tuple(Bit(p.text, p.written, p.variable, p.quoted, None, False, p.early) for p in variable.value.pieces)


def _is_sure(item: Item) -> bool:
    """Whether a pipeline surely succeeds, or its failure is the whole text's: ``cd``, ``export``, assignments."""
    if len(item.commands) != 1 or item.negated:
        return False
    node = item.commands[0]
    if not isinstance(node, Simple):
        return False
    if not node.words:
        return True
    first = node.words[0]
    if isinstance(first, Assignment) or len(first.parts) != 1:
        return False
    return getattr(first.parts[0], "text", None) in _SURE


def _assigned_names(branches: Sequence[Sequence[Item]], expression: str) -> set[str]:
    """Every name that the bodies of a loop may assign."""
    names = set(re.findall(r"[A-Za-z_]\w*", expression))
    pending: list[Node] = [node for branch in branches for item in branch for node in item.commands]
    while pending:
        node = pending.pop()
        if isinstance(node, Function):
            pending.append(node.body)
        elif isinstance(node, Compound):
            if node.name:
                names.add(node.name)
            names.update(re.findall(r"[A-Za-z_]\w*", node.expression))
            pending.extend(inner for branch in node.branches for item in branch for inner in item.commands)
        else:
            names.update(assignment.name for assignment in node.assignments)
            names.update(word.name for word in node.words if isinstance(word, Assignment))
            names.update(_names_given(node))
    return names


_NAMING = frozenset(
    {"read", "unset", "mapfile", "readarray", "getopts", "printf", "let", "local", "declare", "export", "eval"}
)


def _names_given(node: Simple) -> set[str]:
    """Names that a builtin's words and ``${A:=x}`` may assign."""
    out: set[str] = set()
    first = node.words[0] if node.words else None
    naming = isinstance(first, WordNode) and any(getattr(part, "text", "") in _NAMING for part in first.parts)
    for word in node.words:
        parts = word.parts if isinstance(word, WordNode) else ()
        for part in parts:
            if isinstance(part, Parameter) and part.operator in (":=", "="):
                out.add(part.name)
            elif isinstance(part, Arithmetic):
                out.update(re.findall(r"([A-Za-z_]\w*)\s*(?:\+\+|--|[-+*/%]?=)", part.expression))
            elif naming and getattr(part, "text", None):
                out.update(re.findall(r"[A-Za-z_]\w*", getattr(part, "text", "")))
    return out


def new_state(environment: Mapping[str, str] | Unknown, positional: Sequence[Word] | None) -> State:
    """The state of a shell that begins to read a text."""
    state = State(environment)
    if positional is not None:
        state.positional = tuple(
            tuple(Bit(p.text, p.written, p.variable, p.quoted, None, False, p.early) for p in word.pieces)
            for word in positional
        )
    return state


def inherit(state: State, inherited: Iterable[Variable]) -> None:
    """Put variables that reach the text from its caller into the state."""
    for variable in inherited:
        bits = tuple(
            Bit(p.text, p.written, p.variable, p.quoted, None, False, p.early)
            for p in (variable.value.pieces if variable.value is not None else ())
        )
        state.cells[variable.name] = Cell(bits if variable.value is not None else None, None, True, variable)


def enter(state: State, around: Surroundings) -> None:
    """Put into the state what a file says about the shell that reads a text in it."""
    if around.place is not None:
        state.away = state.directory = state.environment = Unknown(f"the command runs {around.place}")
        state.cut = True
    elif around.directory is not None:
        state.directory = around.directory
    inherit(state, around.variables)


__all__ = ["Context", "Outcome", "enter", "inherit", "new_state", "read_script", "text_of"]
