"""The header of a safetensors file against the file's size: nothing else of the file is read.

A file is eight bytes (the header's length, little-endian), the header (JSON: each tensor's dtype, shape and place in
the data), and the data, which the last tensor has to end. safetensors 0.3.0 to 0.8.0, tensor.rs: a header above
100,000,000 bytes is HeaderTooLarge, one that ends behind the file InvalidHeaderLength, a file under eight bytes
HeaderTooSmall, and a last tensor that does not end with the file MetadataIncompleteBuffer (since 0.6.0 in words:
"incomplete metadata, file not fully covered").
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from math import prod
from typing import BinaryIO

from mgpu_doctor.model.model_folder import FileFault, Tensor
from mgpu_doctor.model.record import dataclass

LARGEST_HEADER = 100_000_000
"""Bytes above which safetensors itself refuses a header."""

LARGEST_READ = 16 * 1024 * 1024
"""Bytes above which a header is not read here: a hundred thousand tensors take less."""

MOST_DIMENSIONS = 64
"""Dimensions that a tensor can have in torch."""

POINTER = b"version https://git-lfs.github.com/spec/v1"
"""How a git-lfs pointer begins (git-lfs, docs/spec.md)."""

_LENGTH = 8
_POINTER_READ = 256
_PAGES = (b"<!doctype html", b"<html")


@dataclass(frozen=True, slots=True)
class Header:
    """A sound file: its size in bytes, its tensors and how many elements they have; None when no header was read."""

    size: int
    elements: int | None
    tensors: tuple[Tensor, ...] | None = None


def read_header(path: str, name: str, largest: int = LARGEST_READ) -> Header | FileFault:
    """What the beginning of a safetensors file tells; ``name`` is what a fault calls the file.

    A header of more than ``largest`` bytes is measured, not read.
    """
    try:
        size = regular_size(path)
        if size is None:
            return FileFault(name, "unreadable", "is no regular file")
        with open(path, "rb") as file:
            return _judge(file, name, size, largest)
    except (OSError, ValueError) as error:
        return unreadable(name, path, error)


def regular_size(path: str) -> int | None:
    """The size of a regular file in bytes; None for anything else, which must not be opened (a pipe would block)."""
    status = os.stat(path)
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def unreadable(name: str, path: str, error: OSError | ValueError) -> FileFault:
    """The fault of a file that could not be opened."""
    if isinstance(error, FileNotFoundError):
        if os.path.islink(path):
            return FileFault(name, "missing", "is a link that leads nowhere")
        return FileFault(name, "missing", "does not exist")
    return FileFault(name, "unreadable", f"cannot be read: {getattr(error, 'strerror', None) or error}")


def foreign_start(start: bytes, name: str, size: int) -> FileFault | None:
    """The fault of a file of any kind that is empty, a git-lfs pointer or a web page; None for anything else."""
    if size == 0:
        return FileFault(name, "empty", "is empty")
    if start.startswith(POINTER):
        return FileFault(name, "pointer", f"is a git-lfs pointer{_announced(start)}, {amount(size)} long")
    if start[:64].lstrip().lower().startswith(_PAGES):
        return FileFault(name, "page", f"is a web page of {amount(size)}, not the file")
    return None


def _announced(start: bytes) -> str:
    """The size that a pointer names for the file it stands for."""
    for line in start.splitlines():
        key, _, value = line.partition(b" ")
        if key == b"size" and value.isdigit() and len(value) < 20:
            return f" in the place of {amount(int(value))}"
    return ""


def _judge(file: BinaryIO, name: str, size: int, largest: int) -> Header | FileFault:
    start = file.read(_POINTER_READ)
    fault = foreign_start(start, name, size)
    if fault is not None:
        return fault
    if size < _LENGTH:
        return FileFault(name, "cut", f"has {size} bytes; the header alone takes more")
    length = int.from_bytes(start[:_LENGTH], "little")
    begins = start[_LENGTH:].lstrip()[:1]
    if length > LARGEST_HEADER or (begins and begins != b"{"):
        return FileFault(name, "foreign", "does not begin like a safetensors file")
    if _LENGTH + length > size:
        return FileFault(name, "cut", f"ends after {amount(size)}, inside its header of {amount(length)}")
    if length > largest:
        return Header(size, None)
    file.seek(_LENGTH)
    return _compare(file.read(length), name, size)


def _compare(raw: bytes, name: str, size: int) -> Header | FileFault:
    try:
        tensors = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        return FileFault(name, "foreign", "has a header that is no JSON")
    if not isinstance(tensors, dict):
        return FileFault(name, "foreign", "has a header that is no JSON object")
    described = _described(tensors)
    if described is None:
        return FileFault(name, "foreign", "has a header that does not describe tensors")
    end, elements, found = described
    whole = _LENGTH + len(raw) + end
    if size < whole:
        missing = f"{amount(whole - size)} of {amount(whole)} are missing"
        return FileFault(name, "cut", f"is cut off: {missing}")
    if size > whole:
        return FileFault(name, "longer", f"has {amount(size - whole)} more than its header announces")
    return Header(size, elements, found)


def _described(tensors: Mapping[str, object]) -> tuple[int, int, tuple[Tensor, ...]] | None:
    """Where the last tensor ends, how many elements all have, and the tensors; None when an entry is no tensor."""
    end = elements = 0
    found: list[Tensor] = []
    for key, entry in tensors.items():
        if key == "__metadata__":
            continue
        if not isinstance(entry, dict):
            return None
        offsets, shape = _sizes(entry.get("data_offsets")), _sizes(entry.get("shape"))
        if offsets is None or shape is None or len(offsets) != 2 or len(shape) > MOST_DIMENSIONS:
            return None
        end = max(end, offsets[1])
        elements += prod(shape)
        found.append(Tensor(key, str(entry.get("dtype")), tuple(shape)))
    return end, elements, tuple(found)


def _sizes(value: object) -> list[int] | None:
    """A list of numbers that fit 64 bits; None for anything else."""
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 1 << 64 for item in value):
        return None
    return value


def amount(count: int) -> str:
    """A number of bytes as people read it: ``512 bytes``, ``4.6 GiB``."""
    if count < 1 << 20:
        return "1 byte" if count == 1 else f"{count:,} bytes"
    return f"{count / (1 << 20):.1f} MiB" if count < 1 << 30 else f"{count / (1 << 30):.1f} GiB"
