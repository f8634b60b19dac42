"""Environment markers (PEP 508): whether a requirement counts for an interpreter.

Nearly all markers compare versions and names; those are judged here, without loading ``packaging``, which takes
longer than everything else that is read about packages. It decides about all others.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping

from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.version import version_key

_TOKEN = pattern(
    r"\s*(?:(?P<open>\()|(?P<close>\))|(?P<text>'[^']*'|\"[^\"]*\")|(?P<order><=|>=|==|!=|<|>)|(?P<word>[A-Za-z_.]+))"
)
_PLAIN_VERSION = pattern(r"\d+(?:\.\d+)*\Z")
_VERSIONS = frozenset({"python_version", "python_full_version", "implementation_version"})


class _UnusualError(Exception):
    """A marker that is left to ``packaging``."""


class Markers:
    """Markers for a CPython of one version on this machine; each is judged once."""

    def __init__(self, version: str) -> None:
        machine = os.uname()
        self.variables = {
            "python_version": ".".join(version.split(".")[:2]),
            "python_full_version": version,
            "os_name": os.name,
            "sys_platform": sys.platform,
            "platform_system": machine.sysname,
            "platform_machine": machine.machine,
            "platform_release": machine.release,
            "platform_version": machine.version,
            "platform_python_implementation": "CPython",
            "implementation_name": "cpython",
            "implementation_version": version,
            "extra": "",
        }
        self._judged: dict[str, bool] = {}

    def hold(self, marker: str) -> bool:
        """Whether a marker is true; True for one that nobody can read: the requirement was written to count."""
        known = self._judged.get(marker)
        if known is None:
            known = self._judged[marker] = holds(marker, self.variables)
        return known


def holds(marker: str, variables: Mapping[str, str]) -> bool:
    """Whether a marker is true under these variables."""
    try:
        value, rest = _either(_tokens(marker), variables)
    except (_UnusualError, IndexError, ValueError, RecursionError):
        return _by_packaging(marker, variables)
    return _by_packaging(marker, variables) if rest else value


def _by_packaging(marker: str, variables: Mapping[str, str]) -> bool:
    from packaging.markers import InvalidMarker, Marker, UndefinedComparison, UndefinedEnvironmentName

    try:
        return Marker(marker).evaluate(dict(variables))
    except (InvalidMarker, UndefinedComparison, UndefinedEnvironmentName, ValueError, RecursionError):
        return True


def _tokens(marker: str) -> list[tuple[str, str]]:
    found = []
    at = 0
    text = marker.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise _UnusualError
        found.append((match.lastgroup, match[match.lastgroup]))
        at = match.end()
    return found


def _either(tokens: list[tuple[str, str]], variables: Mapping[str, str]) -> tuple[bool, list[tuple[str, str]]]:
    value, rest = _both(tokens, variables)
    while rest and rest[0] == ("word", "or"):
        other, rest = _both(rest[1:], variables)
        value = value or other
    return value, rest


def _both(tokens: list[tuple[str, str]], variables: Mapping[str, str]) -> tuple[bool, list[tuple[str, str]]]:
    value, rest = _one(tokens, variables)
    while rest and rest[0] == ("word", "and"):
        other, rest = _one(rest[1:], variables)
        value = value and other
    return value, rest


def _one(tokens: list[tuple[str, str]], variables: Mapping[str, str]) -> tuple[bool, list[tuple[str, str]]]:
    if tokens[0][0] == "open":
        value, rest = _either(tokens[1:], variables)
        if rest[0][0] != "close":
            raise _UnusualError
        return value, rest[1:]
    (kind, name), (order_kind, order), (text_kind, text) = tokens[:3]
    if kind != "word" or order_kind != "order" or text_kind != "text" or name not in variables:
        raise _UnusualError
    return _compare(name, order, text[1:-1], variables[name]), tokens[3:]


def _compare(name: str, order: str, wanted: str, value: str) -> bool:
    if name in _VERSIONS:
        if not (_PLAIN_VERSION.match(wanted) and _PLAIN_VERSION.match(value)):
            raise _UnusualError
        left, right = version_key(value), version_key(wanted)
        return {
            "==": left == right,
            "!=": left != right,
            "<": left < right,
            ">": left > right,
            "<=": left <= right,
            ">=": left >= right,
        }[order]
    if order not in ("==", "!="):
        raise _UnusualError
    if name == "extra":
        wanted, value = (re.sub(r"[-_.]+", "-", item).lower() for item in (wanted, value))
    return (value == wanted) == (order == "==")
