"""Finds the checks: every installed distribution may bring some, through one entry-point group.

The built-in checks arrive the same way as anybody else's.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass
from mgpu_doctor.model.report import Problem
from mgpu_doctor.model.rule import AnyCheck, Check, DeferredCheck, Rule

GROUP = "mgpu_doctor.checks"
BUILT_IN = "mgpu-doctor"
_CODE = pattern(r"[A-Z]{2,6}[0-9]{3}\Z")
_SLUG = pattern(r"[a-z0-9]+(?:-[a-z0-9]+)*\Z")


class _EntryPoint(NamedTuple):
    distribution: str
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Registry:
    """The usable checks, sorted by code, and what could not be used and why."""

    checks: tuple[AnyCheck, ...]
    problems: tuple[Problem, ...]

    def find(self, name: str) -> AnyCheck | None:
        """The check with this code or slug, in any case; None when there is none."""
        wanted = name.strip().lower()
        return next((c for c in self.checks if wanted in (c.code.lower(), c.slug)), None)


def load_checks(paths: Iterable[str] | None = None) -> Registry:
    """Every check of every installed distribution.

    ``paths`` are the directories to search, ``sys.path`` by default. A distribution whose
    checks cannot be imported, or that claims a code or slug already taken, becomes a
    problem and leaves the others alone.
    """
    checks: list[AnyCheck] = []
    problems: list[Problem] = []
    taken: dict[str, str] = {}
    for entry in _entry_points(sys.path if paths is None else paths):
        try:
            offered = _load(entry)
        except Exception as error:  # noqa: BLE001 - a plugin may fail in any way; the others must go on
            problems.append(_problem(entry, f"cannot be loaded: {type(error).__name__}: {error}"))
            continue
        for check in offered:
            refusal = _refusal(check, taken)
            if refusal is not None:
                problems.append(_problem(entry, refusal))
                continue
            taken[check.code] = taken[check.slug] = entry.distribution
            checks.append(check)
    checks.sort(key=lambda check: check.code)
    return Registry(tuple(checks), tuple(problems))


def _problem(entry: _EntryPoint, message: str) -> Problem:
    return Problem("plugin", entry.distribution, message)


def _load(entry: _EntryPoint) -> tuple[AnyCheck, ...]:
    from importlib import import_module

    module_name, _, attribute = entry.value.partition(":")
    found = import_module(module_name.strip())
    for part in filter(None, attribute.split("[", maxsplit=1)[0].strip().split(".")):
        found = getattr(found, part)
    offered = tuple(found)
    if entry.distribution == BUILT_IN:
        return offered
    return tuple(_owned(check, entry) for check in offered)


def _owned(check: object, entry: _EntryPoint) -> Check:
    """A third party's check under the name of its distribution."""
    if not isinstance(check, (Check, DeferredCheck)) or not isinstance(check.rule, Rule):
        raise TypeError(f"{entry.value} holds {check!r}, which is not a Check")
    return Check(check.rule, check.find, entry.distribution)


def _refusal(check: AnyCheck, taken: dict[str, str]) -> str | None:
    if not _CODE.match(check.code):
        return f"code {check.code!r} is not letters and three digits, like ABC123"
    if not _SLUG.match(check.slug):
        return f"{check.code}: slug {check.slug!r} is not lower-case words joined by hyphens"
    for name in (check.code, check.slug):
        if name in taken:
            return f"{name} is already taken by {taken[name]}; this check is left out"
    return None


def _entry_points(paths: Iterable[str]) -> list[_EntryPoint]:
    """The group's entry points, the built-in ones first, then by distribution.

    Reads ``entry_points.txt`` of each ``*.dist-info`` itself: the standard library's reader takes
    over 30 ms in an environment with a few hundred packages, this one under 3.
    """
    found: dict[tuple[str, str], _EntryPoint] = {}
    for path in paths:
        for distribution, text in _entry_point_texts(path or "."):
            for name, value in _section(text):
                # As for imports, the first directory on the path wins.
                found.setdefault((distribution, name), _EntryPoint(distribution, name, value))
    return sorted(found.values(), key=lambda entry: (entry.distribution != BUILT_IN, entry))


def _entry_point_texts(path: str) -> Iterator[tuple[str, str]]:
    try:
        names = os.listdir(path)
    except OSError:
        return
    for name in names:
        if not name.endswith((".dist-info", ".egg-info")):
            continue
        try:
            with open(f"{path}/{name}/entry_points.txt", "rb") as file:
                data = file.read(1 << 20)
        except OSError:
            continue
        if GROUP.encode() in data:
            yield _distribution_name(name), data.decode("utf-8", "replace")


def _distribution_name(directory: str) -> str:
    return re.sub(r"[-_.]+", "-", directory.split("-", maxsplit=1)[0].removesuffix(".egg")).lower()


def _section(text: str) -> Iterator[tuple[str, str]]:
    inside = False
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("["):
            inside = line == f"[{GROUP}]"
        elif inside and "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            yield name.strip(), value.strip()
