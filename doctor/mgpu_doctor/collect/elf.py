"""Shared libraries (ELF, 64 bit, little-endian) as far as their headers tell: what they need and where they look.

Read by the tables of the System V ABI (generic ABI 4.1, chapters 4 and 5): only headers and the parts asked for,
however large the file is. A file that is no such library, or a damaged one, gives None.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

from mgpu_doctor.model.record import dataclass

_NEEDED, _SONAME, _RPATH, _RUNPATH = 1, 14, 15, 29
_DYNAMIC_SECTION = 6
_MOST_SECTIONS = 4096
_MOST_ENTRIES = 4096
_LONGEST_TEXT = 65536
_LARGEST_NAMES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Library:
    """What the dynamic section says. ``rpath`` and ``runpath`` are as written, None when there is none."""

    needed: tuple[str, ...]
    soname: str | None
    rpath: str | None
    runpath: str | None


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    kind: int
    offset: int
    size: int
    link: int


def read_library(path: str) -> Library | None:
    """What a library needs and where it looks for that; None when it cannot be read or is no such file."""
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            sections = _sections(file)
            return _dynamic(file, sections)
    except (OSError, struct.error, ValueError, IndexError):
        return None


def read_section(path: str, name: str, most: int) -> bytes | None:
    """The bytes of a section (``.rodata``), at most so many; None when there is none or the file cannot be read."""
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            for section in _sections(file):
                if section.name == name:
                    return _bytes(file, section.offset, min(section.size, most))
    except (OSError, struct.error, ValueError, IndexError):
        return None
    return None


def _sections(file: BinaryIO) -> list[_Section]:
    header = file.read(64)
    if header[:6] != b"\x7fELF\x02\x01":
        raise ValueError("no 64 bit little-endian ELF file")
    (start,) = struct.unpack_from("<Q", header, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", header, 0x3A)
    if size != 64 or not 0 < count <= _MOST_SECTIONS:
        raise ValueError("no section headers")
    raw = _bytes(file, start, size * count)
    rows = [struct.unpack_from("<IIQQQQII", raw, at * size) for at in range(count)]
    names = _bytes(file, rows[names_at][4], min(rows[names_at][5], _LARGEST_NAMES))
    return [_Section(_text(names, row[0]), row[1], row[4], row[5], row[6]) for row in rows]


def _dynamic(file: BinaryIO, sections: list[_Section]) -> Library | None:
    table = next((section for section in sections if section.kind == _DYNAMIC_SECTION), None)
    if table is None:
        return None
    texts = sections[table.link]
    raw = _bytes(file, table.offset, min(table.size, 16 * _MOST_ENTRIES))
    found: dict[int, list[str]] = {}
    for tag, value in struct.iter_unpack("<QQ", raw[: len(raw) // 16 * 16]):
        if tag == 0:
            break
        if tag in (_NEEDED, _SONAME, _RPATH, _RUNPATH) and value < texts.size:
            room = min(texts.size - value, _LONGEST_TEXT)
            found.setdefault(tag, []).append(_text(_bytes(file, texts.offset + value, room), 0))

    def only(tag: int) -> str | None:
        return found[tag][0] if tag in found else None

    return Library(tuple(found.get(_NEEDED, ())), only(_SONAME), only(_RPATH), only(_RUNPATH))


def _bytes(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _text(raw: bytes, at: int) -> str:
    return raw[at : raw.index(b"\0", at)].decode("utf-8", "surrogateescape")
