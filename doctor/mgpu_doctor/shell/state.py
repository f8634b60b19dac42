"""What a shell knows at one moment: variables, positional parameters, functions, directory."""

from __future__ import annotations

from collections.abc import Mapping

from mgpu_doctor.model.command import Piece, Variable, Word
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.record import dataclass, field, replace
from mgpu_doctor.model.source import Excerpt, Location, Span
from mgpu_doctor.shell.syntax import Function


@dataclass(frozen=True, slots=True)
class Place:
    """A range of an excerpt's text."""

    excerpt: Excerpt
    start: int
    end: int

    @property
    def span(self) -> Span:
        """The range in the source."""
        return span_of(self.excerpt, self.start, self.end)


def span_of(excerpt: Excerpt, start: int, end: int) -> Span:
    """The span in the source that holds a range of an excerpt; in order even where the excerpt is pieced together."""
    span = excerpt.locate(start, end)
    if span.start <= span.end:
        return span
    return Span(span.end - 1, span.start + 1)


@dataclass(frozen=True, slots=True)
class Bit:
    """A part of an expanded word, with the place where its text was written.

    ``exact``: character ``i`` of the text stands at ``place.start + i``. ``early``: an outer
    shell expands it before this text is read. ``own`` is how the text is written where it comes from,
    for a bit that came out of a variable.
    """

    text: str | None
    written: str
    variable: str | None = None
    quoted: bool = False
    place: Place | None = None
    exact: bool = False
    early: bool = False
    own: str | None = None


Bits = tuple[Bit, ...]


@dataclass(frozen=True, slots=True)
class FieldWord:
    """A word after expansion, splitting and so on, with where it stands."""

    bits: Bits
    splits: bool
    excerpt: Excerpt
    start: int
    end: int

    @property
    def value(self) -> str | None:
        """The exact text, None when a part is unknown."""
        return text_of(self.bits)

    @property
    def word(self) -> Word:
        """The word as the model has it."""
        return as_word(self)


def text_of(bits: Bits) -> str | None:
    """The exact text of bits, None when a part is unknown."""
    out = []
    for bit in bits:
        if bit.text is None:
            return None
        out.append(bit.text)
    return "".join(out)


def as_word(one: FieldWord) -> Word:
    """The model's word for an expanded one."""
    pieces: list[Piece] = []
    for bit in one.bits:
        piece = Piece(bit.text, bit.written, bit.variable, bit.quoted, bit.early)
        last = pieces[-1] if pieces else None
        if (
            last is not None
            and last.variable is None
            and piece.variable is None
            and last.quoted == piece.quoted
            and last.text is not None
            and piece.text is not None
        ):
            pieces[-1] = Piece(last.text + piece.text, last.written + piece.written, None, last.quoted, last.early)
        else:
            pieces.append(piece)
    span = span_of(one.excerpt, one.start, one.end)
    return Word(span, tuple(pieces), _origin(one), one.splits)


def _origin(one: FieldWord) -> Location | None:
    """Where the text of a word that comes out of an expansion was written."""
    bits = one.bits
    first = bits[0] if bits else None
    if first is None or first.variable is None or first.place is None:
        return None
    if any(bit.variable is None and bit.text for bit in bits):
        return None
    excerpt, start, end = first.place.excerpt, first.place.start, first.place.end
    if excerpt is one.excerpt and one.start <= start and end <= one.end:
        return None
    for bit in bits[1:]:
        if bit.place is None or bit.place.excerpt is not excerpt or bit.place.start < end:
            break
        end = bit.place.end
    return Location(excerpt.source, span_of(excerpt, start, end))


@dataclass(frozen=True, slots=True)
class Cell:
    """A variable. ``bits`` is None when it is known to be unset; ``items`` holds an array's elements.

    An array whose elements are not known has ``items`` None and an unknown bit.
    """

    bits: Bits | None
    items: tuple[Bits, ...] | None
    exported: bool
    variable: Variable

    @property
    def text(self) -> str | None:
        """The exact text, None when it is unset or unknown."""
        return None if self.bits is None else text_of(self.bits)


@dataclass(slots=True)
class State:
    """A shell's state; :meth:`copy` starts a subshell."""

    environment: Mapping[str, str] | Unknown
    cells: dict[str, Cell] = field(default_factory=dict)
    positional: tuple[Bits, ...] | None = None
    functions: dict[str, Function] = field(default_factory=dict)
    directory: str | Unknown | None = None
    export_all: bool = False
    opaque: bool = False
    """A text that could not be read was sourced: variables not assigned since then may have any value."""
    dead: bool = False
    """The shell has exited on this path."""
    cut: bool = False
    """Only what is assigned here reaches children (another host, a container, ``sudo``)."""
    away: Unknown | None = None
    """Why paths mean nothing here: another host, a container."""
    lost: tuple[Variable, ...] = ()
    """Variables that were set above and dropped by a wrapper on the way here."""

    def copy(self) -> State:
        """A state of its own with the same content."""
        return replace(self, cells=dict(self.cells), functions=dict(self.functions))

    def inherits(self, name: str) -> bool:
        """Whether a variable is known to be in the inherited environment."""
        return not isinstance(self.environment, Unknown) and name in self.environment

    def merge(self, others: list[State]) -> None:
        """Go on from several possible states; what they disagree on becomes unknown."""
        alive = [state for state in others if not state.dead]
        if not alive:
            alive, self.dead = others, True
        else:
            self.dead = False
        first, rest = alive[0], alive[1:]
        cells = dict(first.cells)
        for state in rest:
            for name in {*cells, *state.cells}:
                cells[name] = _join(name, cells.get(name), state.cells.get(name))
        self.cells = cells
        self.functions = {name: body for state in reversed(alive) for name, body in state.functions.items()}
        same = all(state.directory == first.directory for state in rest)
        self.directory = first.directory if same else Unknown("it depends on which branch runs")
        self.positional = first.positional if all(state.positional == first.positional for state in rest) else None
        self.export_all = any(state.export_all for state in alive)
        self.opaque = any(state.opaque for state in alive)


def _join(name: str, one: Cell | None, other: Cell | None) -> Cell:
    if one is not None and other is not None:
        if one is other:
            return one
        same = one.text == other.text and (one.text is not None or one.bits is other.bits)
        if same and one.exported == other.exported and one.items == other.items:
            return one
    cells = [cell for cell in (one, other) if cell is not None]
    return unknown_cell(name, cells[-1], exported=any(cell.exported for cell in cells))


def unknown_cell(name: str, like: Cell | None, *, exported: bool) -> Cell:
    """A variable whose value is not known; keeps the place of the assignment that was seen."""
    bit = Bit(None, f"${name}", name)
    location = like.variable.location if like is not None else None
    scope = "export" if exported else "assignment"
    if like is not None and like.variable.scope not in ("assignment", "export"):
        scope = like.variable.scope
    span = location.span if location is not None else Span(0, 0)
    word = Word(span, (Piece(None, f"${name}", name),))
    return Cell((bit,), None, exported, Variable(name, word, scope, location))
