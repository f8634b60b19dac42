"""Which shared library the dynamic loader would take, from files and variables alone.

The order is that of ld.so(8) (man-pages 6.03) and glibc 2.36, elf/dl-load.c ``_dl_map_object``: a library of that name
that LD_PRELOAD has loaded already; DT_RPATH of the library that asks and of the program, where the library that asks
has no DT_RUNPATH; LD_LIBRARY_PATH; DT_RUNPATH; the cache; the default directories.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Mapping

from mgpu_doctor.collect.elf import Library, read_library
from mgpu_doctor.collect.regular import read_bytes

CACHE = "/etc/ld.so.cache"

_DEFAULT_DIRECTORIES = (
    "/lib64",
    "/usr/lib64",
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib",
    "/usr/lib",
)
_LARGEST_CACHE = 16 * 1024 * 1024
_MAGIC = b"glibc-ld.so.cache1.1"


def copies(
    soname: str, asking: str, program: str | None, variables: Mapping[str, str], cache: str = CACHE
) -> tuple[str, ...]:
    """Every copy of a library that the loader could take, the one that it takes first.

    ``asking`` is the library that needs it, ``program`` the executable of the process (its DT_RPATH counts as well).
    """
    library = read_library(asking)
    if library is None:
        return ()
    found: dict[str, str] = {}
    for path in _candidates(soname, asking, library, program, variables, cache):
        real = os.path.realpath(path)
        # The loader passes over files for another kind of machine, as this reader does.
        if real not in found and read_library(real) is not None:
            found[real] = path
    return tuple(found.values())


def _candidates(
    soname: str, asking: str, library: Library, program: str | None, variables: Mapping[str, str], cache: str
) -> Iterator[str]:
    searched = [entry or "." for entry in _entries(variables.get("LD_LIBRARY_PATH", ""), ":;")]
    yield from _preloaded(soname, variables.get("LD_PRELOAD", ""), searched)
    if library.runpath is None:
        yield from _below(library.rpath, asking, soname)
        executable = read_library(os.path.realpath(program)) if program else None
        if executable is not None and program:
            yield from _below(executable.rpath, os.path.realpath(program), soname)
    for directory in searched:
        yield os.path.join(directory, soname)
    yield from _below(library.runpath, asking, soname)
    yield from cached_libraries(soname, cache)
    for directory in _DEFAULT_DIRECTORIES:
        yield os.path.join(directory, soname)


def _preloaded(soname: str, preload: str, searched: list[str]) -> Iterator[str]:
    for entry in _entries(preload, ": "):
        if soname.partition(".so")[0] not in os.path.basename(entry):
            continue
        places = [entry] if os.sep in entry else [os.path.join(directory, entry) for directory in searched]
        for place in places:
            library = read_library(place)
            if library is not None and library.soname == soname:
                yield place


def _entries(text: str, separators: str) -> list[str]:
    return re.split(f"[{re.escape(separators)}]", text) if text else []


def _below(search: str | None, origin: str, soname: str) -> Iterator[str]:
    # The loader does not resolve links in the path of a library: an environment may be made of links into a cache.
    here = os.path.dirname(os.path.abspath(origin))
    for entry in _entries(search or "", ":"):
        directory = entry.replace("${ORIGIN}", here).replace("$ORIGIN", here)
        if directory and "$" not in directory:
            yield _shortened(os.path.join(directory, soname))


def _shortened(path: str) -> str:
    """A path without ``..`` where that leads to the same place."""
    short = os.path.normpath(path)
    return short if os.path.realpath(short) == os.path.realpath(path) else path


def cached_libraries(soname: str, cache: str = CACHE) -> tuple[str, ...]:
    """Where the loader's cache says that a library lies, in its order; empty when it has none or cannot be read.

    The format is glibc's since 2.2 (sysdeps/generic/dl-cache.h ``struct cache_file_new``); an older table may stand
    in front of it.
    """
    found = []
    try:
        raw = read_bytes(cache, _LARGEST_CACHE) or b""
        start = raw.index(_MAGIC)
        (count,) = struct.unpack_from("<I", raw, start + len(_MAGIC))
        wanted = soname.encode() + b"\0"
        for _flags, key, value, _system, _hardware in struct.iter_unpack("<iIIIQ", raw[start + 48 :][: 24 * count]):
            if raw.startswith(wanted, start + key):
                end = raw.index(b"\0", start + value)
                found.append(raw[start + value : end].decode("utf-8", "surrogateescape"))
    except (ValueError, struct.error):
        return ()
    return tuple(found)
