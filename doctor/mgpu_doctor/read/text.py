"""Files into sources: what kind of text a file holds, and the text itself."""

from __future__ import annotations

import os
import stat

from mgpu_doctor.errors import InputError
from mgpu_doctor.model.source import Location, Source, Span

LARGEST = 20 * 1024 * 1024
"""Bytes above which a file is refused: no script or document that people write comes near."""

_KINDS = {
    ".sh": "shell",
    ".bash": "shell",
    ".zsh": "shell",
    ".ksh": "shell",
    ".sbatch": "shell",
    ".slurm": "shell",
    ".pbs": "shell",
    ".qsub": "shell",
    ".job": "shell",
    ".md": "markdown",
    ".markdown": "markdown",
    ".mdx": "markdown",
    ".rst": "rst",
    ".ipynb": "notebook",
    ".py": "python",
    ".yml": "yaml",
    ".yaml": "yaml",
    ".dockerfile": "dockerfile",
    ".containerfile": "dockerfile",
    ".mk": "makefile",
    ".just": "justfile",
}

_NAMES = {
    "dockerfile": "dockerfile",
    "containerfile": "dockerfile",
    "makefile": "makefile",
    "gnumakefile": "makefile",
    "justfile": "justfile",
    ".justfile": "justfile",
}
"""Files that a tool finds by their name: ``Dockerfile``, ``Dockerfile.gpu``, ``GNUmakefile`` …"""


def kind_of(path: str, head: bytes = b"") -> str | None:
    """How a file is read: by its ending, or by the shebang in its first bytes; None when it is not read at all."""
    ending = os.path.splitext(path)[1].lower()
    if ending in _KINDS:
        return _KINDS[ending]
    name = os.path.basename(path).lower()
    if name == "launch.json":
        return "vscode" if os.path.basename(os.path.dirname(path)) == ".vscode" else None
    named = _NAMES.get(name) or _NAMES.get(name.split(".")[0])
    if named is not None and ending not in (".py", ".ipynb", ".json", ".am", ".in", ".j2", ".dockerignore", ".txt"):
        return named
    if not ending and head.startswith(b"#!"):
        first = head.split(b"\n", 1)[0].split()
        names = {part.rsplit(b"/", 1)[-1] for part in first[:1] + first[1:2]} | {first[0][2:].rsplit(b"/", 1)[-1]}
        if names & {b"sh", b"bash", b"zsh", b"dash", b"ksh"}:
            return "shell"
    return None


def read_source(path: str, kind: str | None = None, name: str | None = None) -> Source | None:
    """A file as a source; None when it is of no kind that is read.

    ``kind`` skips the recognition. ``name`` is what people are shown, the path by default.

    Raises:
        InputError: missing, not a regular file, unreadable, empty, too large, binary, or not UTF-8; names the place.
    """
    shown = name or path
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise InputError(f"{shown}: {what}")
        if kind is None:
            kind = _recognise(path)
            if kind is None:
                return None
        if status.st_size > LARGEST:
            raise InputError(f"{shown}: {status.st_size / 2**20:.0f} MiB is more than a script or document can be")
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"{shown}: {error.strerror or error}") from error
    if (kind == "yaml" and not _is_text(data)) or (kind in _NAMES.values() and not data.strip()):
        # Settings and data of any kind have this ending: what is no text is no fault.
        return None
    return decode(data, shown, kind, path)


def _program(data: bytes, name: str, path: str | None) -> Source:
    """A Python file; without its text when there is no launch in it, or when Python would not read it as UTF-8."""
    from mgpu_doctor.read.python_source import mentions_launch

    try:
        text = data.decode("utf-8") if mentions_launch(data) and b"\0" not in data else ""
    except UnicodeDecodeError:
        text = ""
    return Source(name, text, "python", path)


def _is_text(data: bytes) -> bool:
    try:
        return bool(data.strip()) and b"\0" not in data and data.decode("utf-8") is not None
    except UnicodeDecodeError:
        return False


def _recognise(path: str) -> str | None:
    kind = kind_of(path)
    if kind is not None or os.path.splitext(path)[1]:
        return kind
    with open(path, "rb") as file:
        return kind_of(path, file.read(256))


def decode(data: bytes, name: str, kind: str, path: str | None = None) -> Source:
    """Bytes as a source of a kind.

    Raises:
        InputError: empty, binary, not UTF-8, or a damaged notebook; names the place.
    """
    if kind == "python":
        return _program(data, name, path)
    if not data.strip():
        raise InputError(f"{name}: empty")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{name}: UTF-16 text, which no shell reads", hint="save it as UTF-8")
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise InputError(f"{name}:{line}: binary data (a NUL byte)")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        good = Source(name, data[: error.start].decode("utf-8"), kind, path)
        end = len(good.text)
        place = Location(good, Span(end, end))
        raise InputError(
            f"{place}: not UTF-8 (byte 0x{data[error.start]:02x})", location=place, hint="save it as UTF-8"
        ) from error
    source = Source(name, text, kind, path)
    if kind == "notebook":
        from mgpu_doctor.read.notebook import require_whole

        require_whole(source)
    return source
