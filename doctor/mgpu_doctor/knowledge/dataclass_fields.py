"""Reads the arguments of dataclass parsers (transformers' HfArgumentParser) out of Python source text.

The rules by which a field becomes an option are those of transformers 4.52.4 and 5.23.0,
``hf_argparser.py``, ``_parse_dataclass_field``.
"""

from __future__ import annotations

import ast

from mgpu_doctor.knowledge.declared import BOOLEAN, COMPUTED, UnreadableSourceError
from mgpu_doctor.knowledge.reader import (
    Names,
    enumeration,
    evaluate,
    find_class,
    plain,
    statements,
)
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import OptionSpec
from mgpu_doctor.model.record import replace


def read_fields(names: Names, class_name: str, outside: frozenset[str] = frozenset()) -> tuple[OptionSpec, ...]:
    """The fields of a dataclass, its bases' first, one option each (see :func:`with_spellings`).

    ``outside`` names base classes of other packages; their fields are left out.

    Raises:
        UnreadableSourceError: when the class or one of its other bases is not found.
    """
    fields: dict[str, OptionSpec] = {}
    for node, where in reversed(_lineage(names, class_name, outside)):
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                spec = _field(statement, where)
                if spec is not None:
                    fields[spec.dest] = spec
                elif _is_hidden(statement):
                    fields.pop(statement.target.id, None)
    return tuple(fields.values())


def _lineage(names: Names, class_name: str, outside: frozenset[str]) -> list[tuple[ast.ClassDef, Names]]:
    """The class and its bases in the order in which attributes are looked up (no diamonds are expected)."""
    found = find_class(class_name, names)
    if found is None:
        raise UnreadableSourceError(f"there is no class {class_name} in {names.module}")
    out = [found]
    node, where = found
    for base in node.bases:
        name = _aliased(base.id, where) if isinstance(base, ast.Name) else "object"
        if name not in outside | {"object"}:
            known = {known.name for known, _ in out}
            out.extend(item for item in _lineage(where, name, outside) if item[0].name not in known)
    return out


def _aliased(name: str, names: Names) -> str:
    """What a module-level ``name = other`` stands for; in an ``if … else`` the last one, which is the usual case."""
    for node in reversed(statements(names.tree.body)):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Name)
            and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
        ):
            return node.value.id
    return name


def _is_hidden(statement: ast.AnnAssign) -> bool:
    call = statement.value
    return isinstance(call, ast.Call) and any(
        keyword.arg == "init" and isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        for keyword in call.keywords
    )


def _field(statement: ast.AnnAssign, names: Names) -> OptionSpec | None:
    assert isinstance(statement.target, ast.Name)
    annotation = _unquoted(statement.annotation)
    if _name(annotation) == "ClassVar" or _is_hidden(statement):
        return None
    has_default, default, extras = _default(statement.value, names)
    spec = _typed(statement.target.id, annotation, default if has_default else None, names, has_default)
    if spec is None:
        return None
    listed = extras.get("choices")
    if spec.choices is None and isinstance(listed, list):
        spec = replace(spec, choices=tuple(plain(choice) for choice in listed))
    aliases = extras.get("aliases", [])
    names_given = [str(item) for item in (aliases if isinstance(aliases, list) else [aliases])]
    return replace(spec, flags=(f"--{spec.dest}", *names_given), required=spec.required and not has_default)


def _default(value: ast.expr | None, names: Names) -> tuple[bool, object, dict[object, object]]:
    """Whether there is a default, the default, and the metadata, which is handed to ``add_argument``."""
    if value is None:
        return False, None, {}
    if not (isinstance(value, ast.Call) and _name(value.func) == "field"):
        return True, plain(evaluate(value, names)), {}
    given = {keyword.arg: keyword.value for keyword in value.keywords if keyword.arg}
    metadata = evaluate(given.get("metadata"), names)
    extras = metadata if isinstance(metadata, dict) else {}
    if "default" in given:
        return True, plain(evaluate(given["default"], names)), extras
    if "default_factory" in given:
        return True, _made(given["default_factory"], names), extras
    return False, None, extras


def _made(factory: ast.expr, names: Names) -> object:
    if isinstance(factory, ast.Name) and factory.id in {"list", "dict"}:
        return [] if factory.id == "list" else {}
    if isinstance(factory, ast.Lambda):
        return plain(evaluate(factory.body, names))
    return COMPUTED


def _typed(dest: str, annotation: ast.expr, default: object, names: Names, has_default: bool) -> OptionSpec | None:
    kind = _chosen_type(annotation)
    flags = (f"--{dest}",)
    name = _name(kind)
    if name == "Literal" and isinstance(kind, ast.Subscript):
        choices = [evaluate(node, names) for node in _arguments(kind)]
        return _choice(dest, choices, default, has_default)
    members = enumeration(name, names) if isinstance(kind, ast.Name | ast.Attribute) else {}
    if members:
        return _choice(dest, [plain(value) for value in members.values()], default, has_default)
    if name == "bool":
        if default is None and has_default and _is_optional(annotation):
            return OptionSpec(dest, flags, type=BOOLEAN)
        return OptionSpec(dest, flags, nargs="?", type=BOOLEAN, default=default if has_default else False, const=True)
    if name == "Union":
        inner = {_name(node) for node in _members(annotation)}
        if inner == {"bool", "None"}:
            if default is None and has_default:
                return OptionSpec(dest, flags, type=BOOLEAN)
            return OptionSpec(dest, flags, nargs="?", type=BOOLEAN, default=default, const=True)
        return OptionSpec(dest, flags, type="Union", default=default, required=not has_default)
    if name in {"list", "List"}:
        element = _name(_arguments(kind)[0]) if isinstance(kind, ast.Subscript) else None
        # Only a default that a factory makes is handed on to the parser.
        made = default if isinstance(default, list | Unknown) else None
        return OptionSpec(dest, flags, nargs="+", type=element, default=made, required=not has_default)
    return OptionSpec(
        dest, flags, type=name.lower() if name == "Dict" else name, default=default, required=not has_default
    )


def _choice(dest: str, choices: list[object], default: object, has_default: bool) -> OptionSpec:
    known = None if any(isinstance(choice, Unknown) for choice in choices) else tuple(choices)
    texts = known is not None and all(isinstance(choice, str) for choice in known)
    return OptionSpec(
        dest,
        (f"--{dest}",),
        type="str" if texts else "choice",
        choices=known,
        default=default,
        required=not has_default,
    )


def _chosen_type(annotation: ast.expr) -> ast.expr:
    """The one type of a union that the parser converts to; the union itself where it keeps it."""
    members = _members(annotation)
    if len(members) < 2:
        return members[0]
    names = [_name(member) for member in members]
    if "None" not in names:
        return members[0] if names[1] == "str" else members[1]
    if "bool" not in names:
        return members[0] if names[1] == "None" else members[1]
    return ast.Name("Union")


def _members(annotation: ast.expr) -> list[ast.expr]:
    """The members of a union, nested ones flattened, duplicates gone, ``None`` as a constant."""
    annotation = _unquoted(annotation)
    out: list[ast.expr] = []
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        out = _members(annotation.left) + _members(annotation.right)
    elif isinstance(annotation, ast.Subscript) and _name(annotation) == "Optional":
        out = [*_members(annotation.slice), ast.Constant(None)]
    elif isinstance(annotation, ast.Subscript) and _name(annotation) == "Union":
        out = [member for node in _arguments(annotation) for member in _members(node)]
    else:
        return [annotation]
    unique: dict[str, ast.expr] = {}
    for member in out:
        unique.setdefault(ast.dump(member), member)
    return list(unique.values())


def _is_optional(annotation: ast.expr) -> bool:
    return any(_name(member) == "None" for member in _members(annotation))


def _arguments(node: ast.Subscript) -> list[ast.expr]:
    return list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]


def _unquoted(node: ast.expr) -> ast.expr:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            return ast.parse(node.value, mode="eval").body
        except (SyntaxError, ValueError):
            return node
    return node


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Subscript):
        return _name(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Constant):
        return "None" if node.value is None else str(node.value)
    return node.id if isinstance(node, ast.Name) else ""
