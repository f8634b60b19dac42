"""JSON with the place of every string, as far as it is asked for; the rest is passed over unread.

A notebook may hold many megabytes of images: what lies between two brackets costs one regular expression.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from mgpu_doctor.model.pattern import pattern

_BLANK = pattern(r"[ \t\r\n]*")
_STRING = pattern(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NESTED = pattern(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]|"', re.DOTALL)
_SCALAR = pattern(r"[^\s,\]}\[{\":]+")


class Damaged(Exception):  # noqa: N818 - it is where reading ends, and kept as a value
    """The JSON cannot be read at an offset."""

    def __init__(self, at: int, what: str) -> None:
        super().__init__(what)
        self.at = at
        self.what = what


class RawString(NamedTuple):
    """A JSON string: where its opening and behind where its closing quotation mark stands, and what it says."""

    start: int
    end: int
    value: str


def string(text: str, at: int) -> RawString:
    """The string at ``at``.

    Raises:
        Damaged: JSON has no such string.
    """
    end = skip(text, at)
    try:
        return RawString(at, end, json.loads(text[at:end]))
    except ValueError as error:
        raise Damaged(at, f"this string cannot be read ({error})") from error


def members(text: str, at: int) -> Iterator[tuple[str, int]]:
    """The members of the object at ``at``: key and where the value begins."""
    if text[at : at + 1] != "{":
        raise Damaged(at, "an object is expected here")
    at = blank(text, at + 1)
    while text[at : at + 1] != "}":
        if text[at : at + 1] != '"':
            raise Damaged(at, "a key is expected here")
        end = skip(text, at)
        key = text[at + 1 : end - 1]
        at = blank(text, end)
        if text[at : at + 1] != ":":
            raise Damaged(at, "a colon is expected here")
        at = blank(text, at + 1)
        yield key, at
        at = _next(text, skip(text, at), "}")


def items(text: str, at: int) -> Iterator[int]:
    """Where the items of the array at ``at`` begin."""
    if text[at : at + 1] != "[":
        raise Damaged(at, "a list is expected here")
    at = blank(text, at + 1)
    while text[at : at + 1] != "]":
        yield at
        at = _next(text, skip(text, at), "]")


def _next(text: str, at: int, closing: str) -> int:
    at = blank(text, at)
    if text[at : at + 1] == ",":
        at = blank(text, at + 1)
        if text[at : at + 1] != closing:
            return at
        raise Damaged(at, "a comma with nothing behind it")
    if text[at : at + 1] != closing:
        raise Damaged(at, f"a comma or {closing} is expected here")
    return at


def blank(text: str, at: int) -> int:
    """Behind the blanks at ``at``."""
    match = _BLANK.match(text, at)
    return match.end() if match else at


def skip(text: str, at: int) -> int:
    """Where the value at ``at`` ends. Numbers and strings in it are passed over, not read."""
    first = text[at : at + 1]
    if first == '"':
        whole = _STRING.match(text, at)
        if whole is None:
            raise Damaged(at, "this string does not end")
        return whole.end()
    if first in ("{", "["):
        depth = 0
        for match in _NESTED.finditer(text, at):
            mark = match.group()
            if mark in ("{", "["):
                depth += 1
            elif mark in ("}", "]"):
                depth -= 1
                if depth == 0:
                    return match.end()
            elif mark == '"':
                raise Damaged(match.start(), "this string does not end")
        raise Damaged(at, f"this {first} is never closed")
    scalar = _SCALAR.match(text, at)
    if scalar is None:
        raise Damaged(at, "a value is expected here")
    return scalar.end()
