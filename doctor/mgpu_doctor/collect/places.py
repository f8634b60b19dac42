"""The directories that a job writes to: how they are, and what is free on their disks."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress

from mgpu_doctor.collect.hub import cache_path
from mgpu_doctor.model.facts import PathInfo
from mgpu_doctor.model.known import Unknown

GIB = 2**30


def paths(variables: Mapping[str, str]) -> dict[str, PathInfo]:
    """The working directory, the hub's cache, and where temporary files go.

    A directory that is not there yet has the kind ``missing``; what is free, and whether it can be written, is that of
    the nearest directory above it, where it would be made.
    """
    return {path: _look(path) for path in _wanted(variables)}


def _wanted(variables: Mapping[str, str]) -> Iterable[str]:
    found = []
    # The working directory may have been removed.
    with suppress(OSError):
        found.append(os.getcwd())
    found.append(cache_path(variables))
    # tempfile.gettempdir(): TMPDIR, TEMP, TMP, then /tmp.
    found.append(next((variables[name] for name in ("TMPDIR", "TEMP", "TMP") if variables.get(name)), "/tmp"))  # noqa: S108
    return dict.fromkeys(path for path in found if os.path.isabs(path))


def _look(path: str) -> PathInfo:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        above = _existing(path)
        nothing = Unknown("it does not exist")
        return PathInfo(nothing, "missing", _free(above), _is_writable(above))
    except (OSError, ValueError) as error:
        hidden = Unknown(f"it cannot be looked at: {getattr(error, 'strerror', None) or error}")
        return PathInfo(hidden, hidden, hidden, hidden)
    kind = "directory" if stat.S_ISDIR(status.st_mode) else "file"
    return PathInfo(stat.filemode(status.st_mode), kind, _free(path), _is_writable(path))


def _existing(path: str) -> str:
    """The nearest directory above a path that is there."""
    above = os.path.dirname(path)
    while above != os.path.dirname(above) and not os.path.isdir(above):
        above = os.path.dirname(above)
    return above


def _free(path: str) -> float | Unknown:
    try:
        found = os.statvfs(path)
    except (OSError, AttributeError):
        return Unknown("the file system does not tell")
    if not found.f_blocks:
        return Unknown("the file system counts no blocks")
    return round(found.f_bavail * found.f_frsize / GIB, 2)


def _is_writable(path: str) -> bool:
    """Whether this user may write there; the kernel knows of read-only file systems and access lists as well."""
    return os.access(path, os.W_OK | (os.X_OK if os.path.isdir(path) else 0))
