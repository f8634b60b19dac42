"""Integer expressions as ``$((…))`` computes them, where all their variables are known."""

from __future__ import annotations

import re
from collections.abc import Callable

from mgpu_doctor.model.pattern import pattern

_TOKEN = pattern(
    r"\s*(0[xX][0-9a-fA-F]+|\d+(?![\w#])|[A-Za-z_]\w*|\$\{?[A-Za-z_]\w*\}?|\*\*|<<(?!=)|>>(?!=)|<=|>=|==|!=|&&|\|\||[-+*/%()<>&|^!~?:])",
    re.ASCII,
)
_LEVELS = (
    ("||",),
    ("&&",),
    ("|",),
    ("^",),
    ("&",),
    ("==", "!="),
    ("<", ">", "<=", ">="),
    ("<<", ">>"),
    ("+", "-"),
    ("*", "/", "%"),
)
_LIMIT = 1 << 63


class _Unclear(Exception):  # noqa: N818 - leaves the evaluation
    pass


def evaluate(expression: str, lookup: Callable[[str], str | None]) -> int | None:
    """The value of an expression, None when it is not known or not followed.

    ``lookup`` gives a variable's text, None for an unknown one. Assignments, arrays and other bases are not followed.
    """
    tokens: list[str] = []
    at = 0
    stripped = expression.rstrip()
    while at < len(stripped):
        match = _TOKEN.match(stripped, at)
        if match is None or len(tokens) > 200:
            return None
        tokens.append(match.group(1))
        at = match.end()
    if not tokens:
        return 0
    try:
        reader = _Reader(tokens, lookup)
        value = reader.choice()
        return value if reader.at == len(tokens) else None
    except (_Unclear, RecursionError):
        return None


class _Reader:
    def __init__(self, tokens: list[str], lookup: Callable[[str], str | None]) -> None:
        self.tokens = tokens
        self.lookup = lookup
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def choice(self) -> int:
        condition = self.binary(0)
        if self.peek() != "?":
            return condition
        self.at += 1
        yes = self.choice()
        if self.peek() != ":":
            raise _Unclear
        self.at += 1
        no = self.choice()
        return yes if condition else no

    def binary(self, level: int) -> int:
        if level == len(_LEVELS):
            return self.power()
        left = self.binary(level + 1)
        while self.peek() in _LEVELS[level]:
            operator = self.peek()
            self.at += 1
            left = _apply(operator, left, self.binary(level + 1))
        return left

    def power(self) -> int:
        base = self.unary()
        if self.peek() != "**":
            return base
        self.at += 1
        exponent = self.power()
        if not 0 <= exponent < 64:
            raise _Unclear
        return _checked(base**exponent)

    def unary(self) -> int:
        token = self.peek()
        if token in {"-", "+", "!", "~"}:
            self.at += 1
            value = self.unary()
            return {"-": -value, "+": value, "!": int(not value), "~": ~value}[token]
        return self.atom()

    def atom(self) -> int:
        token = self.peek()
        self.at += 1
        if token == "(":  # noqa: S105 - no secret
            value = self.choice()
            if self.peek() != ")":
                raise _Unclear
            self.at += 1
            return value
        if token[:1].isdigit():
            return _number(token)
        name = token.strip("${}")
        if not name or not (name[0].isalpha() or name[0] == "_"):
            raise _Unclear
        text = self.lookup(name)
        if text is None or not re.fullmatch(r"-?\d+", text.strip(), re.ASCII):
            raise _Unclear
        text = text.strip()
        return -_number(text[1:]) if text.startswith("-") else _number(text)


def _number(text: str) -> int:
    try:
        if text[:2] in ("0x", "0X"):
            return _checked(int(text, 16))
        if len(text) > 1 and text[0] == "0":
            return _checked(int(text, 8))
        return _checked(int(text))
    except ValueError:
        raise _Unclear from None


def _checked(value: int) -> int:
    if not -_LIMIT <= value < _LIMIT:
        raise _Unclear
    return value


def _apply(operator: str, left: int, right: int) -> int:
    if operator in ("/", "%"):
        if right == 0:
            raise _Unclear
        quotient = abs(left) // abs(right)
        if (left < 0) != (right < 0):
            quotient = -quotient
        return _checked(quotient if operator == "/" else left - quotient * right)
    if operator in ("<<", ">>") and not 0 <= right < 63:
        raise _Unclear
    value = {
        "+": lambda: left + right,
        "-": lambda: left - right,
        "*": lambda: left * right,
        "<<": lambda: left << right,
        ">>": lambda: left >> right,
        "<": lambda: int(left < right),
        ">": lambda: int(left > right),
        "<=": lambda: int(left <= right),
        ">=": lambda: int(left >= right),
        "==": lambda: int(left == right),
        "!=": lambda: int(left != right),
        "&": lambda: left & right,
        "|": lambda: left | right,
        "^": lambda: left ^ right,
        "&&": lambda: int(bool(left) and bool(right)),
        "||": lambda: int(bool(left) or bool(right)),
    }[operator]()
    return _checked(value)
