"""Reads argument parsers out of Python source text; imports and runs none of it.

Shared by the runtime, which reads the installed packages, and by ``tools/generate_knowledge.py``,
which makes the shipped tables, so that both see the same thing. What an expression
evaluates to is worked out only for literals, constants of the same package and the few
comprehensions that launchers use; everything else is :class:`Unknown`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import lru_cache

from mgpu_doctor.knowledge.declared import COMPUTED, MAXIMUM_FILE_SIZE, ParserTable, UnreadableSourceError
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import OptionSpec
from mgpu_doctor.model.record import dataclass, field, replace

SWITCHES = frozenset({"store_true", "store_false", "store_const", "help", "version", "count", "append_const"})
_NARGS = {"REMAINDER": "...", "PARSER": "A...", "ZERO_OR_MORE": "*", "ONE_OR_MORE": "+", "OPTIONAL": "?"}

ReadModule = Callable[[str], "str | None"]
"""Gives the text of a module by its dotted name, None when there is none."""


@dataclass(slots=True)
class Names:
    """What the names of one module stand for, as far as its text tells."""

    module: str
    tree: ast.Module
    read: ReadModule
    local: Mapping[str, object] = field(default_factory=dict)
    depth: int = 0

    def inside(self, local: Mapping[str, object]) -> Names:
        """The same names with some more."""
        return Names(self.module, self.tree, self.read, {**self.local, **local}, self.depth)


def parse_module(text: str, module: str, read: ReadModule, depth: int = 0) -> Names:
    """The names of a module's text.

    Raises:
        UnreadableSourceError: when the text is too large or no Python.
    """
    if len(text) > MAXIMUM_FILE_SIZE:
        raise UnreadableSourceError(f"{module} is too large to be read")
    try:
        tree = _tree(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UnreadableSourceError(f"{module} is not Python that can be read: {error}") from error
    return Names(module, tree, read, depth=depth)


@lru_cache(maxsize=64)
def _tree(text: str) -> ast.Module:
    return ast.parse(text)


def evaluate(node: ast.expr | None, names: Names) -> object:
    """The value of an expression, :class:`Unknown` when its text alone does not tell."""
    if node is None:
        return None
    method = _EVALUATORS.get(type(node))
    return method(node, names) if method is not None else COMPUTED


def _constant(node: ast.Constant, names: Names) -> object:  # noqa: ARG001
    return node.value


def _sequence(node: ast.List | ast.Tuple | ast.Set, names: Names) -> object:
    out: list[object] = []
    for element in node.elts:
        if isinstance(element, ast.Starred):
            inner = evaluate(element.value, names)
            if not isinstance(inner, list | tuple):
                return COMPUTED
            out.extend(inner)
            continue
        value = evaluate(element, names)
        if isinstance(value, Unknown):
            return COMPUTED
        out.append(value)
    return out


def _dictionary(node: ast.Dict, names: Names) -> object:
    out: dict[object, object] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        plain = evaluate(key, names) if key is not None else COMPUTED
        if not isinstance(plain, str | int | float | bool | type(None)):
            return COMPUTED
        out[plain] = evaluate(value, names)
    return out


def _joined(node: ast.BinOp, names: Names) -> object:
    left, right = evaluate(node.left, names), evaluate(node.right, names)
    if isinstance(node.op, ast.Add):
        if isinstance(left, str) and isinstance(right, str):
            return left + right
        if isinstance(left, list) and isinstance(right, list):
            return left + right
    if isinstance(left, int | float) and isinstance(right, int | float):
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Pow) and 0 <= right <= 64:
            return left**right
    return COMPUTED


def _negated(node: ast.UnaryOp, names: Names) -> object:
    value = evaluate(node.operand, names)
    if isinstance(node.op, ast.USub) and isinstance(value, int | float):
        return -value
    if isinstance(node.op, ast.Not) and isinstance(value, bool):
        return not value
    return COMPUTED


def _named(node: ast.Name, names: Names) -> object:
    if node.id in names.local:
        return names.local[node.id]
    return constant(node.id, names)


def _attribute(node: ast.Attribute, names: Names) -> object:
    if isinstance(node.value, ast.Name):
        if node.value.id in names.local:
            held = names.local[node.value.id]
            if isinstance(held, _Member):
                return {"value": held.value, "name": held.name}.get(node.attr, COMPUTED)
            return COMPUTED
        if node.attr in _NARGS and node.value.id in {"argparse", "ap"}:
            return _NARGS[node.attr]
        members = enumeration(node.value.id, names)
        if node.attr in members:
            return _Member(node.attr, members[node.attr])
    if isinstance(node.value, ast.Attribute) and node.attr == "value":
        inner = evaluate(node.value, names)
        if isinstance(inner, _Member):
            return inner.value
    return COMPUTED


def _call(node: ast.Call, names: Names) -> object:
    function = node.func
    if isinstance(function, ast.Attribute) and not node.args and function.attr in {"lower", "upper", "strip"}:
        text = evaluate(function.value, names)
        if isinstance(text, str):
            return {"lower": text.lower, "upper": text.upper, "strip": text.strip}[function.attr]()
    if isinstance(function, ast.Attribute) and function.attr in {"keys", "values"} and not node.args:
        mapping = evaluate(function.value, names)
        if isinstance(mapping, dict):
            return list(mapping if function.attr == "keys" else mapping.values())
    if isinstance(function, ast.Name) and function.id in {"list", "tuple", "sorted"} and len(node.args) == 1:
        value = evaluate(node.args[0], names)
        if isinstance(value, dict):
            value = list(value)
        if isinstance(value, list):
            return sorted(value, key=str) if function.id == "sorted" else value
    return COMPUTED


def _comprehension(node: ast.ListComp, names: Names) -> object:
    if len(node.generators) != 1 or node.generators[0].ifs or not isinstance(node.generators[0].target, ast.Name):
        return COMPUTED
    generator = node.generators[0]
    items: object = evaluate(generator.iter, names)
    if isinstance(items, Unknown) and isinstance(generator.iter, ast.Name):
        items = [_Member(name, value) for name, value in enumeration(generator.iter.id, names).items()]
    if not isinstance(items, list) or not items:
        return COMPUTED
    target = node.generators[0].target.id
    out = [evaluate(node.elt, names.inside({target: item})) for item in items]
    return COMPUTED if any(isinstance(value, Unknown) for value in out) else out


@dataclass(frozen=True, slots=True)
class _Member:
    """A member of an enumeration."""

    name: str
    value: object


_EVALUATORS: dict[type[ast.AST], Callable[..., object]] = {
    ast.Constant: _constant,
    ast.List: _sequence,
    ast.Tuple: _sequence,
    ast.Set: _sequence,
    ast.Dict: _dictionary,
    ast.BinOp: _joined,
    ast.UnaryOp: _negated,
    ast.Name: _named,
    ast.Attribute: _attribute,
    ast.Call: _call,
    ast.ListComp: _comprehension,
}


def constant(name: str, names: Names) -> object:
    """The value of a module-level name, following imports inside the same package."""
    if name in _NARGS and _imports(name, names, "argparse"):
        return _NARGS[name]
    for node in names.tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return evaluate(node.value, names)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            return evaluate(node.value, names)
    other = imported_from(name, names)
    if other is not None:
        return constant(other[1], other[0])
    return COMPUTED


def enumeration(name: str, names: Names) -> dict[str, object]:
    """Members of an enumeration class by name; empty when there is none of that name."""
    for node in names.tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            bases = {_last(base) for base in node.bases}
            if not any(base.endswith("Enum") for base in bases):
                return {}
            return {
                statement.targets[0].id: evaluate(statement.value, names)
                for statement in node.body
                if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
            }
    other = imported_from(name, names)
    return enumeration(other[1], other[0]) if other is not None else {}


def find_class(name: str, names: Names) -> tuple[ast.ClassDef, Names] | None:
    """A class by name, in the module or where the module imports it from."""
    for node in names.tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node, names
    other = imported_from(name, names)
    return find_class(other[1], other[0]) if other is not None else None


def imported_from(name: str, names: Names) -> tuple[Names, str] | None:
    """The module that a name is imported from, read, and its name there; None when it is not or cannot be."""
    if names.depth >= 6:
        return None
    for node in statements(names.tree.body):
        if not isinstance(node, ast.ImportFrom):
            continue
        for alias in node.names:
            if (alias.asname or alias.name) != name:
                continue
            module = absolute(node, names.module)
            for candidate in (module, f"{module}.__init__"):
                text = names.read(candidate)
                if text is not None:
                    try:
                        return parse_module(text, candidate, names.read, names.depth + 1), alias.name
                    except UnreadableSourceError:
                        return None
    return None


def statements(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements of a module, those inside if and try included."""
    out: list[ast.stmt] = []
    for node in body:
        out.append(node)
        if isinstance(node, ast.If | ast.Try):
            out.extend(statements(node.body))
            out.extend(statements(node.orelse))
    return out


def absolute(node: ast.ImportFrom, module: str) -> str:
    """The absolute name of the module of a ``from … import``."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    kept = parts[: len(parts) - node.level]
    return ".".join([*kept, *(node.module or "").split(".")]).strip(".")


def _imports(name: str, names: Names, module: str) -> bool:
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == module
        and any((alias.asname or alias.name) == name for alias in node.names)
        for node in names.tree.body
    )


def _last(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def read_parser(names: Names, functions: tuple[str, ...]) -> ParserTable:
    """The parser that functions of a module build, in the order of their ``add_argument`` calls.

    Raises:
        UnreadableSourceError: when a function is missing or adds no argument.
    """
    options: list[OptionSpec] = []
    abbreviations = True
    both_spellings = False
    for wanted in functions:
        function = _function(names.tree, wanted)
        if function is None:
            raise UnreadableSourceError(f"{names.module} has no function {wanted}")
        before = len(options)
        for call in _calls(function):
            name = _last(call.func)
            if name in _PARSERS:
                both_spellings |= name == "CustomArgumentParser"
                abbreviations &= evaluate(_keyword(call, "allow_abbrev"), names) is not False
                if name == "ArgumentParser" and evaluate(_keyword(call, "add_help"), names) is not False:
                    options.append(_HELP)
            elif name == "add_argument":
                options.append(_custom_option(call, names) if both_spellings else _option(call, names))
        if len(options) == before:
            raise UnreadableSourceError(f"{wanted} of {names.module} adds no argument")
    if _HELP in options and sum(option.dest == "help" for option in options) > 1:
        options.remove(_HELP)
    return ParserTable(tuple(options), abbreviations)


_PARSERS = frozenset({"ArgumentParser", "CustomArgumentParser", "add_parser"})
_HELP = OptionSpec("help", ("-h", "--help"), "help", 0, default="==SUPPRESS==")


def _function(tree: ast.Module, name: str) -> ast.FunctionDef | None:
    return next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name), None)


def _calls(function: ast.FunctionDef) -> list[ast.Call]:
    found = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    return sorted(found, key=lambda node: (node.lineno, node.col_offset))


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((item.value for item in call.keywords if item.arg == name), None)


def _receiver(call: ast.Call) -> ast.expr:
    return call.func.value if isinstance(call.func, ast.Attribute) else call.func


def _custom_option(call: ast.Call, names: Names) -> OptionSpec:
    """The option as accelerate's CustomArgumentParser declares it (accelerate 1.7.0, commands/utils.py).

    Every spelling with ``_`` is also taken with ``-``; of constants other than True only in a group. Its
    own _StoreTrueAction, which the parser makes, defaults to None; argparse's, which an argument group makes
    first, to False.
    """
    option = _option(call, names)
    in_group = _last(_receiver(call)) != "parser"
    if option.action not in {"store", "store_true", *(("store_const", "store_false") if in_group else ())}:
        return option
    if option.action == "store_true" and _keyword(call, "default") is None and not in_group:
        option = replace(option, default=None)
    flags: list[str] = []
    for flag in option.flags:
        flags.append(flag)
        if "_" in flag[2:]:
            flags.append(flag.replace("_", "-"))
    return replace(option, flags=tuple(flags))


def _option(call: ast.Call, names: Names) -> OptionSpec:
    given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    strings = tuple(text for text in (evaluate(argument, names) for argument in call.args) if isinstance(text, str))
    flags = tuple(text for text in strings if text.startswith("-"))
    action = _action(given.get("action"))
    nargs = evaluate(given.get("nargs"), names)
    default = evaluate(given.get("default"), names)
    const = evaluate(given.get("const"), names)
    if action in {"env-switch", "store_true"}:
        nargs, const = 0, True
        if "default" not in given:
            default = False
    elif action == "store_false":
        nargs, const = 0, False
        if "default" not in given:
            default = True
    elif action in SWITCHES:
        nargs = 0
        if action in {"help", "version"}:
            default = "==SUPPRESS=="
    choices = evaluate(given.get("choices"), names)
    return OptionSpec(
        dest=_destination(evaluate(given.get("dest"), names), flags, strings),
        flags=flags,
        action="env" if action == "env-switch" else action,
        nargs=nargs if isinstance(nargs, str | int) else None,
        type=_last(given["type"]) or None if "type" in given else None,
        choices=tuple(plain(choice) for choice in choices) if isinstance(choices, list) else None,
        default=plain(default),
        required=evaluate(given.get("required"), names) is True or (not flags and nargs not in {"?", "*", "..."}),
        const=plain(const),
        help=None,
    )


def plain(value: object) -> object:
    """The value without this module's own types: an enumeration's member is its value, a set its list."""
    if isinstance(value, _Member):
        return plain(value.value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value if isinstance(value, str | int | float | bool | Unknown | type(None)) else COMPUTED


def _action(node: ast.expr | None) -> str:
    if node is None:
        return "store"
    if isinstance(node, ast.Constant):
        return str(node.value)
    # torch 1.13 … 2.13, distributed/argparse_util.py: env takes one value, check_env is a switch.
    return {"env": "env", "check_env": "env-switch"}.get(_last(node), _last(node) or "store")


def _destination(dest: object, flags: tuple[str, ...], strings: tuple[str, ...]) -> str:
    """The attribute, by argparse's own rule: the first long option, else the first."""
    if isinstance(dest, str):
        return dest
    if not flags:
        return strings[0] if strings else ""
    first = next((flag for flag in flags if flag.startswith("--")), flags[0])
    return first.lstrip("-").replace("-", "_")
