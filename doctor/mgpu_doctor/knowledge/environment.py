"""Finds the environment variables that Python source reads; imports and runs none of it."""

from __future__ import annotations

import ast

from mgpu_doctor.model.pattern import pattern

_NAME = pattern(r"[A-Z][A-Z0-9_]{2,}\Z")
_WRITERS = frozenset({"setenv", "putenv", "unsetenv"})


def read_variables(text: str) -> set[str]:
    """Names of the environment variables that a module's text reads.

    A name that is put together counts when its parts are literal in the same function
    (``prefix + "X"``); where only the beginning is, it stands with a star: ``FSDP_*``. Text that is
    no Python gives the empty set.
    """
    if "env" not in text:
        return set()
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return set()
    found: set[str] = set()
    for scope, outer in _scopes(tree, {}):
        literals = {**outer, **_literals(scope)}
        for node in _own(scope):
            for part in _candidates(node):
                found |= {name for name in _texts(part, literals) if _NAME.match(name.removesuffix("*"))}
    return found


def _scopes(scope: ast.AST, outer: dict[str, set[str]]) -> list[tuple[ast.AST, dict[str, set[str]]]]:
    """The module and every function in it, each with the literals of what surrounds it."""
    out = [(scope, outer)]
    inner = {**outer, **_literals(scope)}
    for node in _own(scope):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            out.extend(_scopes(node, inner))
    return out


def _own(scope: ast.AST) -> list[ast.AST]:
    """The nodes of a scope without those inside its functions; the functions themselves are among them."""
    out: list[ast.AST] = []
    waiting = list(ast.iter_child_nodes(scope))
    while waiting:
        node = waiting.pop()
        out.append(node)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))
    return out


def _candidates(node: ast.AST) -> list[ast.expr]:
    """The expressions that name a variable which this node reads."""
    if isinstance(node, ast.Call):
        function = _dotted(node.func)
        last = function.rpartition(".")[2].lower()
        if last in _WRITERS:
            return []
        if "environ" in function or "env" in last:
            return [
                *node.args[:1],
                *(keyword.value for keyword in node.keywords if keyword.arg in {"key", "name", "env"}),
            ]
        return []
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and "environ" in _dotted(node.value):
        return [node.slice]
    if isinstance(node, ast.Compare) and any("environ" in _dotted(other) for other in node.comparators):
        return [node.left]
    return []


def _literals(scope: ast.AST) -> dict[str, set[str]]:
    """Texts that simple names are given in a scope, loops over literal lists included."""
    out: dict[str, set[str]] = {}
    for node in _own(scope):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    out.setdefault(target.id, set()).update(_texts(node.value, {}))
        elif isinstance(node, ast.For | ast.comprehension) and isinstance(node.target, ast.Name):
            out.setdefault(node.target.id, set()).update(_texts(node.iter, {}))
    return out


def _texts(node: ast.expr, literals: dict[str, set[str]]) -> set[str]:
    if isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, str) else set()
    if isinstance(node, ast.Name):
        return literals.get(node.id, set())
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return set().union(*(_texts(element, literals) for element in node.elts)) if node.elts else set()
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _joined(_texts(node.left, literals), _texts(node.right, literals))
    if isinstance(node, ast.JoinedStr):
        out = {""}
        for value in node.values:
            inner = value.value if isinstance(value, ast.FormattedValue) else value
            out = _joined(out, _texts(inner, literals))
        return out
    return set()


def _joined(left: set[str], right: set[str]) -> set[str]:
    if not left:
        return set()
    ends = right or {"*"}
    return {text if text.endswith("*") else text + end for text in left for end in ends if len(left) * len(ends) < 400}


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Call):
        return _dotted(node.func)
    return node.id if isinstance(node, ast.Name) else ""
