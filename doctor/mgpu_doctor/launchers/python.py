"""The Python interpreter's own command line, and tools that only wrap it (coverage, debugpy).

The interpreter stops reading options at the first word that is no option, at ``-c`` and at
``-m``; everything behind belongs to the program (CPython 3.13, Python/getopt.c and
Python/initconfig.c config_parse_cmdline).
"""

from __future__ import annotations

from mgpu_doctor.launchers.chain import Context, Peeled, Plan
from mgpu_doctor.model.command import Piece, Word
from mgpu_doctor.model.launch import Layer
from mgpu_doctor.model.record import replace
from mgpu_doctor.model.source import Span

LAUNCHER = "python"

_WITH_VALUE = "cmWXQ"
_FLAGS = "bBdEhiIOPqRsStuvVxJ3?"
_LONG_WITH_VALUE = frozenset({"--check-hash-based-pycs"})
_PROGRAM_NAMES = ("SCRIPT", "FILE", "ENTRY", "PROG", "MAIN", "CODE", "_PY", "TASK")
"""Parts of variables' names by which people keep the program itself, not its options."""

_NOTHING_RUNS = frozenset({"--help", "--version", "--help-env", "--help-xoptions", "--help-all"})


def is_interpreter(word: str | None) -> bool:
    """Whether a program's name or path is a Python interpreter's: ``python``, ``python3``, ``/x/bin/python3.11``."""
    if word is None:
        return False
    name = word.replace("\\", "/").rsplit("/", 1)[-1].lower().removesuffix(".exe")
    for stem in ("python", "pypy"):
        if name.startswith(stem):
            tail = name[len(stem) :]
            return tail in ("", "w") or tail.rstrip("t").replace(".", "").isdigit()
    return False


def names_interpreter(word: Word) -> bool:
    """Whether a word that may hold expansions names an interpreter.

    ``$PYTHON``, ``${PYTHON_BIN}`` and ``$(which python)`` count, and ``$CONDA_PREFIX/bin/python``.
    """
    if is_interpreter(word.value):
        return True
    if word.value is not None:
        return False
    written = word.written.strip()
    if is_interpreter(written):
        return True
    if written.startswith("$(") and written.endswith(")"):
        inner = written[2:-1].split()
        return len(inner) > 1 and inner[0] in {"which", "command", "type"} and is_interpreter(inner[-1])
    name = written.strip("${}").split(":-")[0]
    parts = name.upper().split("_")
    return written.startswith("$") and name.replace("_", "").isalnum() and any(is_interpreter(p.lower()) for p in parts)


def peel(words: tuple[Word, ...], form: str, context: Context) -> Peeled | None:  # noqa: ARG001 - a launcher's signature
    """Split an interpreter's options from what it runs; None when the words are not an interpreter's.

    The layer's ``argument_words`` are the interpreter's options with ``-m`` or ``-c`` included.
    """
    if form != "command" or not words or not names_interpreter(words[0]):
        return None
    own: list[Word] = []
    at = 1
    while at < len(words):
        text = words[at].value
        if text is None:
            return _after_unknown(words, own, at)
        if text == "-" or not text.startswith("-"):
            break
        if text == "--":
            own.append(words[at])
            at += 1
            break
        letter, offset = _value_option(text)
        if letter in ("c", "m"):
            return _program(words, own, at, "module" if letter == "m" else "inline", offset)
        takes_next = offset == len(text) if letter else text in _LONG_WITH_VALUE
        own.extend(words[at : at + 1 + takes_next])
        at += 1 + takes_next
        if text in _NOTHING_RUNS or (letter is None and text[:2] in {"-h", "-V", "-?"}):
            return Peeled(_layer(words[:1], own), (), "none")
    rest = words[at:]
    form = "none" if not rest else "inline" if rest[0].value == "-" else "script"
    return Peeled(_layer(words[:1], own), rest, form)


def plan(layer: Layer, before: Plan, context: Context) -> Plan:  # noqa: ARG001 - a launcher's signature
    """Each process that runs an interpreter stays one process."""
    return before


def cut(word: Word, start: int, end: int | None) -> Word:
    """A part of a word's text as a word of its own; its span is exact when the word is written without quotes.

    ``start`` and ``end`` count characters of the known text; both must lie before its first unknown piece.
    """
    pieces: list[Piece] = []
    at = 0
    for piece in word.pieces:
        if piece.text is None:
            if end is None:
                pieces.append(piece)
            continue
        low, high = max(start - at, 0), len(piece.text) if end is None else min(end - at, len(piece.text))
        if low < high:
            whole = low == 0 and high == len(piece.text)
            pieces.append(piece if whole else replace(piece, text=piece.text[low:high], written=piece.text[low:high]))
        at += len(piece.text)
    span = word.span
    if word.origin is None and word.is_literal and len(word.shown) == span.end - span.start:
        stop = span.end if end is None else span.start + end
        span = Span(span.start + start, stop)
    return replace(word, pieces=tuple(pieces), span=span)


def _value_option(text: str) -> tuple[str | None, int]:
    """The first letter in a cluster such as ``-uc`` that takes a value, and where that value starts."""
    for index, letter in enumerate(text[1:], start=1):
        if letter in _WITH_VALUE:
            return letter, index + 1
        if letter not in _FLAGS:
            break
    return None, len(text)


def _program(words: tuple[Word, ...], own: list[Word], at: int, form: str, offset: int) -> Peeled:
    """The rest behind ``-m`` or ``-c``; the name may be attached (``-mpkg``)."""
    if offset == len(words[at].shown):
        rest = words[at + 1 :]
        return Peeled(_layer(words[:1], [*own, words[at]]), rest, form if rest else "none")
    rest = (cut(words[at], offset, None), *words[at + 1 :])
    return Peeled(_layer(words[:1], [*own, cut(words[at], 0, offset)]), rest, form)


def _after_unknown(words: tuple[Word, ...], own: list[Word], at: int) -> Peeled:
    """What follows a word that is not known: a script when it looks like one, opaque when it may be options."""
    word = words[at]
    names = " ".join(name.upper() for name in word.unknown_variables)
    is_named = word.written.endswith(".py") or (word.pieces[-1].text or "").endswith(".py")
    if not word.splits or is_named or any(part in names for part in _PROGRAM_NAMES):
        return Peeled(_layer(words[:1], own), words[at:], "script")
    for index in range(at, len(words)):
        text = words[index].value
        if text == "-m" and index + 1 < len(words):
            return Peeled(_layer(words[:1], [*own, *words[at : index + 1]]), words[index + 1 :], "module")
        if text is not None and text.endswith(".py"):
            return Peeled(_layer(words[:1], [*own, *words[at:index]]), words[index:], "script")
    return Peeled(
        replace(_layer(words[:1], own), opaque=f"the value of {word.written} is not known"), words[at:], "script"
    )


def _layer(name: tuple[Word, ...], own: list[Word]) -> Layer:
    return Layer(LAUNCHER, name, tuple(own))
