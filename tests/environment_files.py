"""Files of Python environments and shared libraries for tests, made by hand: nothing in them runs."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path


def executable(path: Path, text: str = "\x7fELF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def make_site(site: Path, *distributions: str) -> Path:
    """A directory of packages; each name is that of a directory of metadata, or ``name-version`` for a whole one."""
    for name in distributions:
        if name.endswith("-info"):
            (site / name).mkdir(parents=True)
        else:
            distribution(site, *name.rsplit("-", 1))
    site.mkdir(parents=True, exist_ok=True)
    return site


def distribution(site: Path, name: str, version: str, *lines: str, **files: str) -> Path:
    """A distribution's ``.dist-info`` with further header lines; ``WHEEL=text``, ``direct_url__json=text``: files."""
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    headers = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines]
    (folder / "METADATA").write_text("\n".join(headers) + "\n\nRequires-Dist: nothing, this is the description\n")
    for file, text in files.items():
        (folder / file.replace("__", ".")).write_text(text)
    return folder


def make_venv(top: Path, *distributions: str, system: bool = False) -> Path:
    """A virtual environment of CPython 3.11.7; its interpreter's path is returned."""
    python = executable(top / "bin" / "python")
    (top / "pyvenv.cfg").write_text(
        f"home = {top.parent}/base/bin\ninclude-system-site-packages = {str(system).lower()}\nversion = 3.11.7\n"
    )
    make_site(site_of(top), *distributions)
    return python


def site_of(top: Path) -> Path:
    return top / "lib" / "python3.11" / "site-packages"


def make_library(
    path: Path,
    *,
    needed: tuple[str, ...] = (),
    soname: str | None = None,
    rpath: str | None = None,
    runpath: str | None = None,
    sections: Mapping[str, bytes] | None = None,
) -> Path:
    """A 64 bit little-endian ELF file that is nothing but headers and these parts."""
    texts = bytearray(b"\0")
    entries = []
    for tag, value in (*((1, name) for name in needed), (14, soname), (15, rpath), (29, runpath)):
        if value is not None:
            entries.append((tag, len(texts)))
            texts += value.encode() + b"\0"
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in (*entries, (0, 0)))
    parts = [("", b"", 0), (".dynamic", dynamic, 6), (".dynstr", bytes(texts), 3)]
    for name, content in (sections or {}).items():
        if name == ".dynstr":
            parts[2] = (name, bytes(texts) + content, 3)
        else:
            parts.append((name, content, 1))
    names = b"\0".join(name.encode() for name, _, _ in parts) + b"\0.shstrtab\0"
    parts.append((".shstrtab", names, 3))
    body, rows = bytearray(), []
    for name, content, kind in parts:
        at = 0 if not name else names.index(b"\0" + name.encode() + b"\0") + 1
        rows.append(struct.pack("<IIQQQQIIQQ", at, kind, 0, 0, 64 + len(body), len(content), 2, 0, 1, 0))
        body += content
    header = (
        b"\x7fELF\x02\x01\x01"
        + bytes(9)
        + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, len(rows), len(rows) - 1)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + bytes(body) + b"".join(rows))
    return path
