"""The parts of a shell text: words with their quoting, simple commands, and what holds them together.

All offsets count code points of the text that was parsed (an excerpt's text),
not of the source it was taken from.
"""

from __future__ import annotations

from typing import TypeAlias, Union

from mgpu_doctor.model.record import dataclass


@dataclass(frozen=True, slots=True)
class Literal:
    """Text that stands for itself. ``exact``: character ``i`` stands at ``start + i``."""

    text: str
    start: int
    end: int
    quoted: bool = False
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Parameter:
    """``$NAME``, ``${NAME…}``, ``$1``, ``$@`` …

    ``subscript`` is what stands in brackets (``@`` for ``${A[@]}``). ``operator`` is
    one of ``:-``, ``-``, ``:=``, ``=``, ``:?``, ``?``, ``:+``, ``+``, ``#``, ``##``, ``%``, ``%%``, ``/``,
    ``//``, ``/#``, ``/%``, ``^``, ``^^``, ``,``, ``,,``, ``@``, ``:`` (a slice), or empty; ``arguments`` are its
    words.
    """

    name: str
    start: int
    end: int
    quoted: bool = False
    subscript: str | None = None
    operator: str = ""
    arguments: tuple[tuple[Part, ...], ...] = ()
    length: bool = False
    indirect: bool = False


@dataclass(frozen=True, slots=True)
class Substitution:
    """``$(…)``, a backquoted command, or ``<(…)``: its result is unknown."""

    start: int
    end: int
    quoted: bool = False
    kind: str = "$("
    body: tuple[Item, ...] = ()


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """``$((expression))``."""

    expression: str
    start: int
    end: int
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Placeholder:
    """``<path to model>``: what documents write where the reader puts something."""

    start: int
    end: int
    quoted: bool = False


Part: TypeAlias = Union[Literal, Parameter, Substitution, Arithmetic, Placeholder]  # noqa: UP007 - evaluated


@dataclass(frozen=True, slots=True)
class WordNode:
    """One word before expansion."""

    parts: tuple[Part, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ArrayNode:
    """``( … )`` behind ``NAME=``: words with their index as written, None for the next one."""

    items: tuple[tuple[str | None, WordNode], ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """``NAME=value``, ``NAME+=value``, ``NAME[i]=value``, ``NAME=( … )``."""

    name: str
    subscript: str | None
    append: bool
    value: WordNode | ArrayNode
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Here:
    """A here-document's body. ``parts`` holds its expansions unless the delimiter was quoted."""

    parts: tuple[Part, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class RedirectNode:
    """A redirection; ``here`` is the number of its here-document in :attr:`Parsed.heres`."""

    operator: str
    target: WordNode | None
    start: int
    end: int
    here: int | None = None


@dataclass(frozen=True, slots=True)
class Simple:
    """A simple command: ``lead`` (``time``), assignments, words, redirections.

    ``words`` may hold assignments where a declaration builtin (``export``, ``declare`` …) takes them.
    """

    lead: tuple[WordNode, ...]
    assignments: tuple[Assignment, ...]
    words: tuple[WordNode | Assignment, ...]
    redirects: tuple[RedirectNode, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Compound:
    """A compound command.

    ``kind``: ``subshell``, ``group``, ``for``, ``select``, ``while``, ``until``, ``if``,
    ``case``, ``test``, ``arithmetic``. ``branches`` are its bodies: for ``if`` condition and body in
    turn, the last body alone when there is an ``else``; for loops the condition (or an empty list) and the body.
    ``name`` is a loop's variable, ``words`` what it runs over (None: the positional parameters).
    """

    kind: str
    branches: tuple[tuple[Item, ...], ...]
    redirects: tuple[RedirectNode, ...]
    start: int
    end: int
    name: str | None = None
    words: tuple[WordNode, ...] | None = None
    expression: str = ""


@dataclass(frozen=True, slots=True)
class Function:
    """A function's definition."""

    name: str
    body: Node
    start: int
    end: int


Node: TypeAlias = Union[Simple, Compound, Function]  # noqa: UP007 - evaluated


@dataclass(frozen=True, slots=True)
class Item:
    """A pipeline in a list. ``joined`` is the operator before it: empty, ``&&`` or ``||``."""

    joined: str
    commands: tuple[Node, ...]
    background: bool
    negated: bool = False


@dataclass(frozen=True, slots=True)
class RawMark:
    """A lexical event, see :class:`mgpu_doctor.model.command.Mark`."""

    kind: str
    start: int
    end: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A place where the shell would refuse the text. ``sure`` is False where it may be our own shortcoming."""

    message: str
    start: int
    end: int
    sure: bool = True


@dataclass(frozen=True, slots=True)
class Parsed:
    """A whole text."""

    items: tuple[Item, ...]
    heres: tuple[Here | None, ...]
    marks: tuple[RawMark, ...]
    troubles: tuple[Trouble, ...]
