"""Settings from ``mgpu-doctor.toml`` or ``[tool.mgpu-doctor]`` in ``pyproject.toml``.

The nearest file upwards from the working directory counts; the search ends at a repository's root.
Options on the command line win over the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from mgpu_doctor.errors import InputError
from mgpu_doctor.model.record import dataclass, field
from mgpu_doctor.suppress import matches

FILE_NAME = "mgpu-doctor.toml"
_FAIL_ON = ("error", "warning", "advice", "never")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a project decides once.

    ``select`` empty means every rule; ``ignore`` wins over it. Both take codes, slugs and
    families (``MGD3``). ``per_file_ignores`` maps glob patterns (relative to the settings
    file) to such names. ``fail_on`` is the least severity that makes the exit code 1.
    ``facts`` names a facts file used when none is given; ``path`` is the settings file, None when there is none.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    per_file_ignores: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fail_on: str = "error"
    facts: str | None = None
    path: str | None = None

    def selects(self, code: str, slug: str) -> bool:
        """Whether a rule is wanted at all."""
        if any(matches(name, code, slug) for name in self.ignore):
            return False
        return not self.select or any(matches(name, code, slug) for name in self.select)

    def ignored_in(self, path: str, code: str, slug: str) -> bool:
        """Whether a rule is switched off for a file."""
        if not self.per_file_ignores:
            return False
        from fnmatch import fnmatch

        base = os.path.dirname(self.path) if self.path else os.getcwd()
        relative = os.path.relpath(os.path.abspath(path), base).replace(os.sep, "/")
        return any(
            matches(name, code, slug)
            for pattern, names in self.per_file_ignores.items()
            if fnmatch(relative, pattern) or fnmatch(os.path.basename(relative), pattern)
            for name in names
        )


def load_settings(directory: str) -> Settings:
    """The settings in force for a directory.

    Raises:
        InputError: a settings file that is not TOML, or has an unknown key or a wrong type; names the place.
    """
    for path, table in _candidates(os.path.abspath(directory)):
        with open(path, "rb") as file:
            data = file.read()
        if table and b"mgpu-doctor" not in data:
            continue
        document = _parse(path, data)
        if not table:
            return _build(path, document)
        found = document.get("tool", {}).get("mgpu-doctor")
        if found is not None:
            return _build(path, found)
    return Settings()


def _candidates(directory: str) -> Iterable[tuple[str, bool]]:
    while True:
        for name, table in ((FILE_NAME, False), ("pyproject.toml", True)):
            path = os.path.join(directory, name)
            if os.path.isfile(path) and os.access(path, os.R_OK):
                yield path, table
        parent = os.path.dirname(directory)
        if parent == directory or os.path.exists(os.path.join(directory, ".git")):
            return
        directory = parent


def _parse(path: str, data: bytes) -> dict[str, Any]:
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        document: dict[str, Any] = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    return document


def _build(path: str, table: object) -> Settings:
    if not isinstance(table, dict):
        raise InputError(f"{path}: the settings are not a table")
    known = {name.replace("_", "-"): name for name in Settings.__match_args__ if name != "path"}
    values: dict[str, Any] = {"path": path}
    for key, value in table.items():
        name = known.get(key.replace("_", "-"))
        if name is None:
            raise InputError(f"{path}: unknown setting {key!r}", hint=_suggestion(key, known))
        values[name] = _converted(path, key, name, value)
    return Settings(**values)


def _suggestion(key: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(key, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else "known settings: " + ", ".join(sorted(known))


def _converted(path: str, key: str, name: str, value: object) -> object:
    if name in ("select", "ignore"):
        return _names(path, key, value)
    if name == "per_file_ignores":
        if not isinstance(value, dict):
            raise InputError(f"{path}: {key!r} is not a table of pattern = [rules]")
        return {pattern: _names(path, f"{key}.{pattern}", names) for pattern, names in value.items()}
    if not isinstance(value, str):
        raise InputError(f"{path}: {key!r} is not a string")
    if name == "fail_on" and value not in _FAIL_ON:
        raise InputError(f"{path}: {key!r} is {value!r}", hint="one of " + ", ".join(_FAIL_ON))
    if name == "facts" and value != "none":
        return os.path.join(os.path.dirname(path), value)
    return value


def _names(path: str, key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{path}: {key!r} is not a list of rule codes or slugs")
    return tuple(value)
