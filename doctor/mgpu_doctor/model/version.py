"""Versions of packages, in the order of PEP 440.

Nearly every version met is plain numbers, perhaps with a local part (``2.6.0+cu124``): those are
compared here, without loading ``packaging``, which decides about all others (``2.1.0a0``, ``1.0.post1``).
"""

from __future__ import annotations

from functools import lru_cache

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
