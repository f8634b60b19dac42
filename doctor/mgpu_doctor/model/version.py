"""Versions of packages, in the order of PEP 440.

Nearly every version met is plain numbers, perhaps with a local part (``2.6.0+cu124``): those are
compared here, without loading ``packaging``, which decides about all others (``2.1.0a0``, ``1.0.post1``).
"""

from __future__ import annotations

import re
from functools import lru_cache

from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass

Key = tuple[tuple[int, ...], int, str]


@lru_cache(maxsize=512)
def version_key(text: str) -> Key:
    """A sort key: ``1.10.0`` after ``1.9.1``, ``1.0rc1`` before ``1.0``, ``1.0`` equal to ``1.0.0``.

    Local parts are ignored. Text that is no version sorts first.
    """
    public = text.strip().lstrip("vV").partition("+")[0]
    parts = public.split(".")
    if all(part.isdecimal() for part in parts):
        return _trimmed(tuple(int(part) for part in parts)), _FINAL, ""
    from packaging.version import InvalidVersion, Version

    try:
        version = Version(public)
    except InvalidVersion:
        return (), _NONE, public
    if version.is_prerelease:
        stage, number = version.pre or ("", 0)
        # Development releases come before every stage; the numbers are padded so that text sorts as numbers do.
        order = f"{stage}{number:09}" + ("" if version.dev is None else f".dev{version.dev:09}")
        return _trimmed(version.release), _EARLY if version.pre else _DEVELOPMENT, order or f"{version.dev:09}"
    return _trimmed(version.release), _FINAL if version.post is None else _LATER, f"{version.post or 0:09}"


_NONE, _DEVELOPMENT, _EARLY, _FINAL, _LATER = range(5)


def _trimmed(numbers: tuple[int, ...]) -> tuple[int, ...]:
    end = len(numbers)
    while end and numbers[end - 1] == 0:
        end -= 1
    return numbers[:end]


def release_numbers(text: str) -> tuple[int, ...]:
    """The numbers of a version: ``2.6.0+cu124`` gives (2, 6, 0); empty when it is no version."""
    public = text.strip().lstrip("vV").partition("+")[0]
    parts = public.split(".")
    if all(part.isdecimal() for part in parts):
        return tuple(int(part) for part in parts)
    from packaging.version import InvalidVersion, Version

    try:
        return Version(public).release
    except InvalidVersion:
        return ()


def is_before(text: str | None, *wanted: int) -> bool | None:
    """Whether a version is older than a release; None when the version is not known or is none.

    A pre-release of ``wanted`` is older than it.
    """
    if text is None:
        return None
    key = version_key(text)
    if key[1] == _NONE:
        return None
    return key < (_trimmed(wanted), _FINAL, "")


_CLAUSE = pattern(r"\s*(===|~=|==|!=|<=|>=|<|>)\s*([\w.!+*-]+)\s*")
_REQUIREMENT = pattern(r"\s*([A-Za-z0-9][\w.-]*)\s*(?:\[[^\]]*\])?\s*\(?([^;()@]*)\)?\s*(?:;(.*))?")


def satisfies(version: str, specifiers: str) -> bool | None:
    """Whether a version fulfils ``>=2.0,<3``; None when either cannot be read. No specifier at all is fulfilled.

    Versions are compared as ``packaging.version`` orders them, local parts left out: ``2.1.0a0`` is not ``>=2.1.0``,
    ``2.6.0+cu124`` is ``<=2.6.0``. Pre-releases are compared like all others.
    """
    key = version_key(version)
    if key[1] == _NONE:
        return None
    answers = [_fulfils(key, clause) for clause in specifiers.split(",") if clause.strip()]
    if False in answers:
        return False
    return None if None in answers else True


def _fulfils(key: Key, clause: str) -> bool | None:
    found = _CLAUSE.fullmatch(clause)
    if found is None:
        return None
    operator, text = found.group(1), found.group(2)
    if operator in ("==", "!=") and text.endswith(".*"):
        return _starts_with(key, text[:-2]) if operator == "==" else not _starts_with(key, text[:-2])
    wanted = version_key(text)
    if wanted[1] == _NONE:
        return None
    if operator == "~=":
        return key >= wanted and _starts_with(key, text.rpartition(".")[0])
    answers = {
        "===": key == wanted,
        "==": key == wanted,
        "!=": key != wanted,
        "<=": key <= wanted,
        ">=": key >= wanted,
        "<": key < wanted,
        ">": key > wanted,
    }
    return answers[operator]


def _starts_with(key: Key, text: str) -> bool:
    wanted = release_numbers(text)
    padded = key[0] + (0,) * (len(wanted) - len(key[0]))
    return padded[: len(wanted)] == wanted


@dataclass(frozen=True, slots=True)
class Requirement:
    """A line of a distribution's metadata: normalised name, specifiers (may be empty), and its marker, if any."""

    name: str
    specifiers: str
    marker: str | None


def read_requirement(text: str) -> Requirement | None:
    """``torch>=2.0; extra == "gpu"`` taken apart; None for a direct reference (``pkg @ https://…``) and for no line."""
    found = _REQUIREMENT.fullmatch(text)
    if found is None:
        return None
    name = re.sub(r"[-_.]+", "-", found.group(1)).lower()
    marker = found.group(3)
    return Requirement(name, found.group(2).strip(), marker.strip() if marker else None)
