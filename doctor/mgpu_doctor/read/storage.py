"""Whether a path could be written to on this machine, found out without writing."""

from __future__ import annotations

import os
import stat

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.model_folder import Storage


def look_at_storage(full: str) -> Storage | Unknown:
    """The nearest existing part of an absolute path, whether this user may write there, and what is free there.

    ``os.access`` asks the kernel, which knows of read-only file systems and access lists as well.
    """
    at, whole = full, True
    while True:
        try:
            status = os.stat(at)
        except (FileNotFoundError, NotADirectoryError):
            above = os.path.dirname(at)
            if above == at:
                return Unknown(f"nothing of {full} exists")
            at, whole = above, False
        except (OSError, ValueError) as error:
            return Unknown(f"{at} cannot be looked at: {getattr(error, 'strerror', None) or error}")
        else:
            break
    is_directory = stat.S_ISDIR(status.st_mode)
    rights = os.W_OK | os.X_OK if is_directory else os.W_OK
    return Storage(
        at,
        "directory" if is_directory else "file",
        whole,
        os.access(at, rights),
        _free_gib(at),
        stat.filemode(status.st_mode),
    )


def _free_gib(path: str) -> float | Unknown:
    if not hasattr(os, "statvfs"):
        return Unknown("the system does not tell how much is free")
    try:
        found = os.statvfs(path)
    except OSError as error:
        return Unknown(f"what is free at {path} cannot be asked: {error.strerror}")
    if found.f_blocks == 0:
        return Unknown(f"the file system at {path} counts no blocks")
    return found.f_bavail * found.f_frsize / (1 << 30)
