"""The CUDA toolkit that extensions would be compiled with: found as torch finds it, read and never run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from shutil import which

from mgpu_doctor.collect.regular import read_text
from mgpu_doctor.model.known import Unknown

DEFAULT_HOME = "/usr/local/cuda"

# CUDA_VERSION stands at the beginning of a header of a megabyte.
_LARGEST = 64 * 1024


def cuda_home(variables: Mapping[str, str], default: str = DEFAULT_HOME) -> str | None:
    """Where torch would look for the toolkit; None when it finds none.

    torch 1.13.1, 2.0.1, 2.5.1, 2.9.1, 2.13.0, utils/cpp_extension.py ``_find_cuda_home``: CUDA_HOME, CUDA_PATH, the
    directory above that of ``nvcc`` on PATH, /usr/local/cuda. A variable is taken as it is, whether it exists or not.
    """
    named = variables.get("CUDA_HOME") or variables.get("CUDA_PATH")
    # An empty CUDA_PATH is not None: torch then looks no further, and has an empty path.
    if named or variables.get("CUDA_PATH") is not None:
        return named or None
    compiler = which("nvcc", path=variables.get("PATH"))
    if compiler is not None:
        return os.path.dirname(os.path.dirname(compiler))
    return default if os.path.exists(default) else None


def nvcc_version(home: str | None) -> str | Unknown | None:
    """The version of the compiler in a toolkit, as ``nvcc -V`` would print it, without its build (``12.4``).

    None when there is no compiler. From ``version.json`` (CUDA 11.1 and later), ``version.txt`` (before), conda's
    record of ``cuda-nvcc``, or CUDA_VERSION in ``include/cuda.h``, in this order.
    """
    if not home or not os.path.isfile(os.path.join(home, "bin", "nvcc")):
        return None
    for place in dict.fromkeys((home, _home_behind(os.path.join(home, "bin", "nvcc")))):
        found = _from_json(place) or _from_text(place) or _from_conda(place) or _from_header(place)
        if found is not None:
            return found
    return Unknown(f"the files in {home} do not tell the version of its nvcc")


def _home_behind(compiler: str) -> str:
    """The toolkit that a link or a script in place of the compiler leads to; its own where it is neither."""
    from mgpu_doctor.collect.interpreter import wrapped

    real = os.path.realpath(wrapped(os.path.realpath(compiler)) or compiler)
    return os.path.dirname(os.path.dirname(real))


def _from_json(home: str) -> str | None:
    text = _read(os.path.join(home, "version.json"))
    try:
        found = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
    for part in ("cuda_nvcc", "nvcc", "cuda"):
        item = found.get(part) if isinstance(found, dict) else None
        version = item.get("version") if isinstance(item, dict) else None
        if isinstance(version, str):
            return _short(version)
    return None


def _from_text(home: str) -> str | None:
    match = re.search(r"CUDA Version (\d+\.\d+)", _read(os.path.join(home, "version.txt")) or "")
    return match[1] if match else None


def _from_conda(home: str) -> str | None:
    try:
        names = os.listdir(os.path.join(home, "conda-meta"))
    except OSError:
        return None
    found = {
        match[1]
        for name in names
        if (match := re.fullmatch(r"cuda-nvcc(?:_[^-]*|-tools|-impl)?-(\d+\.\d+)[.\d]*-[^-]+\.json", name))
    }
    return found.pop() if len(found) == 1 else None


def _from_header(home: str) -> str | None:
    match = re.search(
        r"^\s*#\s*define\s+CUDA_VERSION\s+(\d+)", _read(os.path.join(home, "include", "cuda.h")) or "", re.MULTILINE
    )
    if match is None:
        return None
    number = int(match[1])
    return f"{number // 1000}.{number % 1000 // 10}"


def _short(version: str) -> str | None:
    match = re.match(r"\d+\.\d+", version)
    return match[0] if match else None


def _read(path: str) -> str | None:
    return read_text(path, _LARGEST)
