"""What the control groups of this process allow: memory, processors and the number of processes.

A group's limit holds for all that is below it, so every level from the process's own group upwards counts; inside a
container only the levels that are mounted there can be seen. Versions 1 and 2 lie side by side on some hosts. Files and
their meaning: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from mgpu_doctor.model.record import dataclass

_DEEPEST = 64
"""Levels beyond which no hierarchy of groups is followed."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """The tightest limits over all levels; None where no level sets one.

    ``memory`` and ``memory_free`` in bytes: what may be used, and what is left of it (caches that the kernel can drop
    count as left); ``cpus`` in processors, ``processes`` in tasks.
    """

    memory: int | None = None
    memory_free: int | None = None
    cpus: float | None = None
    processes: int | None = None


def allowance(root: str = "") -> Allowance:
    """The limits of this process's control groups; ``root`` is where ``/proc`` and ``/sys`` lie, for tests."""
    memory: list[int] = []
    free: list[int] = []
    cpus: list[float] = []
    processes: list[int] = []
    for group in _groups(root):
        limit = _first_number(group, "memory.max", "memory.limit_in_bytes")
        # Version 1 writes "unlimited" as the largest number of pages that fits.
        if limit is not None and limit < 2**60:
            memory.append(limit)
            used = _first_number(group, "memory.current", "memory.usage_in_bytes")
            if used is not None:
                free.append(max(limit - max(used - _droppable(group), 0), 0))
        cpus += _processors(group)
        tasks = _first_number(group, "pids.max")
        if tasks is not None:
            processes.append(tasks)
    return Allowance(
        min(memory, default=None), min(free, default=None), min(cpus, default=None), min(processes, default=None)
    )


def _groups(root: str) -> Iterator[str]:
    """The directories of this process's groups and of all above them, of every hierarchy that matters."""
    own = _own_groups(root)
    for kind, top, mounted, options in _mounts(root):
        if kind == "cgroup2":
            path = own.get("")
        else:
            path = next((own[name] for name in ("memory", "cpu", "pids") if name in options and name in own), None)
        if path is None:
            continue
        yield from _upwards(root + mounted, _below(path, top))


def _own_groups(root: str) -> dict[str, str]:
    """Controller → path of this process's group; the empty name is version 2's (``/proc/self/cgroup``)."""
    found = {}
    for line in _lines(f"{root}/proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon:
            for name in controllers.split(","):
                found[name] = path
    return found


def _mounts(root: str) -> Iterator[tuple[str, str, str, frozenset[str]]]:
    """Each mounted hierarchy: its kind, the group that is mounted, where, its options (``/proc/self/mountinfo``)."""
    for line in _lines(f"{root}/proc/self/mountinfo"):
        before, dash, behind = line.partition(" - ")
        parts, more = before.split(), behind.split()
        if dash and len(parts) > 4 and more and more[0] in ("cgroup", "cgroup2"):
            yield more[0], parts[3], parts[4], frozenset(more[-1].split(","))


def _below(path: str, top: str) -> str:
    """A group's path below the one that is mounted; empty where it lies outside of it (``/../x``)."""
    if path == top or not path.startswith("/") or "/.." in path:
        return ""
    if top == "/":
        return path.strip("/")
    return path[len(top) :].strip("/") if path.startswith(f"{top}/") else ""


def _upwards(mounted: str, below: str) -> Iterator[str]:
    parts = [part for part in below.split("/") if part][:_DEEPEST]
    for count in range(len(parts), -1, -1):
        yield os.path.join(mounted, *parts[:count])


def _first_number(group: str, *names: str) -> int | None:
    """The number in the first of the files that holds one; ``max`` is none."""
    for name in names:
        text = "".join(_lines(os.path.join(group, name), 1)).strip()
        if text.isascii() and text.isdigit() and len(text) < 25:
            return int(text)
    return None


def _droppable(group: str) -> int:
    """Bytes of file caches that are not in use; tools for containers subtract them from what is used (docker stats)."""
    found = {}
    for line in _lines(os.path.join(group, "memory.stat")):
        name, _, number = line.strip().partition(" ")
        if name in ("inactive_file", "total_inactive_file") and number.isascii() and number.isdigit():
            found[name] = int(number)
    return found.get("total_inactive_file", found.get("inactive_file", 0))


def _processors(group: str) -> list[float]:
    """Quota over period: ``cpu.max`` holds both, version 1 has a file for each (-1 is no limit)."""
    words = "".join(_lines(os.path.join(group, "cpu.max"), 1)).split()
    if len(words) == 2:
        quota, period = (int(word) if word.isascii() and word.isdigit() else None for word in words)
    else:
        quota = _first_number(group, "cpu.cfs_quota_us")
        period = _first_number(group, "cpu.cfs_period_us")
    return [round(quota / period, 3)] if quota and period else []


def _lines(path: str, most: int = 10_000) -> list[str]:
    """The first lines of a small file of the kernel's; none when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return [line.rstrip("\n") for line, _ in zip(file, range(most), strict=False)]
    except (OSError, ValueError):
        return []
