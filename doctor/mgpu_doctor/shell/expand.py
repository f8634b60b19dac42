"""Words before expansion → the words that a program receives."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import pairwise

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import replace
from mgpu_doctor.model.source import Excerpt, Location
from mgpu_doctor.shell.arithmetic import evaluate
from mgpu_doctor.shell.state import Bit, Bits, Cell, FieldWord, Place, State, span_of, text_of
from mgpu_doctor.shell.syntax import (
    Arithmetic,
    Literal,
    Parameter,
    Part,
    Placeholder,
    Substitution,
    WordNode,
)

Early = tuple[tuple[int, int, str], ...]
"""Ranges of a text that an outer shell expands before it is read, with what is written there."""

_NAME_GOES_ON = pattern(r"\w+", re.ASCII)
MOST = 4096
"""Words and characters beyond which an expansion is left unknown (``{1..100000}``)."""

_ELISION = frozenset({"...", "…", "....", "[...]", "……"})
_GLOB = pattern(r"[*?]|\[[^\]]+\]")
_OPTION_LIKE = pattern(r"-|[A-Za-z_][\w.+-]*=")
_RANGE = pattern(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?|([A-Za-z])\.\.([A-Za-z])(?:\.\.(-?\d+))?", re.ASCII)


class Expander:
    """Expands words of one text in one state.

    ``early`` are ranges of the text that an outer shell expands before this one reads it.
    ``assigned`` is called for ``${NAME:=value}``.
    """

    def __init__(
        self,
        excerpt: Excerpt,
        state: State,
        early: Early = (),
        assigned: Callable[[str, Bits, Location], None] | None = None,
    ) -> None:
        self.excerpt = excerpt
        self.state = state
        self.early = early
        self.assigned = assigned

    # ---------------------------------------------------------------- words

    def words(self, nodes: Iterable[WordNode]) -> list[FieldWord]:
        """The words that a list of words becomes."""
        out: list[FieldWord] = []
        for node in nodes:
            out.extend(self.word(node))
        return out

    def word(self, node: WordNode) -> list[FieldWord]:
        """The words that one word becomes: none, one or several."""
        parts = node.parts
        if len(parts) == 1 and isinstance(parts[0], Literal) and not self.early:
            only = parts[0]
            if only.quoted or not set(only.text) & set("{*?[~…."):
                return [FieldWord((self.literal(only),), False, self.excerpt, node.start, node.end)]
            if only.text in _ELISION:
                bit = Bit(None, only.text, "...", False, self.place(only.start, only.end))
                return [FieldWord((bit,), True, self.excerpt, node.start, node.end)]
        out = []
        for alternative in brace_alternatives(parts):
            out.extend(self.fields(alternative, node))
            if len(out) > MOST:
                break
        return out

    def fields(self, parts: tuple[Part, ...], node: WordNode) -> list[FieldWord]:  # noqa: C901 - one branch for each form
        """Expansion and splitting of one word."""
        done: list[tuple[list[Bit], bool]] = []
        current: list[Bit] = []
        exists = False
        splits = False

        def finish() -> None:
            nonlocal current, exists, splits
            if exists:
                done.append((current, splits))
            current, exists, splits = [], False, False

        for number, part in enumerate(parts):
            if isinstance(part, Literal):
                bits = self.literals(part)
                if number == 0 and not part.quoted and part.text.startswith("~"):
                    bits = self.tilde(bits)
                current.extend(bits)
                exists = exists or bool(part.text) or part.quoted
                continue
            groups = self.expansion(part)
            quoted = part.quoted
            for index, group in enumerate(groups):
                if index:
                    finish()
                if quoted:
                    current.extend(group)
                    exists = True
                    continue
                for bit in group:
                    if bit.text is None:
                        current.append(bit)
                        exists = True
                        splits = splits or not bit.quoted
                    elif bit.quoted:
                        current.append(bit)
                        exists = True
                    elif self.custom_separator(bit.text):
                        current.append(replace(bit, text=None))
                        exists = splits = True
                    else:
                        for position, piece in enumerate(split_bit(bit)):
                            if position:
                                finish()
                            if piece is not None:
                                current.append(piece)
                                exists = True
            if quoted and isinstance(part, Parameter) and not groups:
                # "$@" and "${A[@]}" without elements leave nothing, unless other text stands in the word.
                exists = exists or any(
                    isinstance(other, Literal) and other.quoted for other in parts if other is not part
                )
            if isinstance(part, Parameter) and self.many_unknown(part, groups):
                splits = True
        finish()
        many = len(done) > 1
        out = []
        for bits, split in done:
            shown = self.globbed(tuple(bits))
            if many:
                shown = tuple(
                    replace(bit, written=bit.own if bit.text is None else bit.text)
                    if bit.variable and bit.own is not None
                    else bit
                    for bit in shown
                )
            out.append(FieldWord(shown, split, self.excerpt, node.start, node.end))
        return out

    def many_unknown(self, part: Parameter, groups: list[Bits]) -> bool:
        """Whether an array expansion's number of words is unknown."""
        several = (
            part.name == "@"
            or part.subscript == "@"
            or (not part.quoted and (part.name == "*" or part.subscript == "*"))
        )
        return (
            several and len(groups) == 1 and any(bit.text is None and bit.written.startswith("$") for bit in groups[0])
        )

    def value(self, node: WordNode) -> Bits:
        """The text that an assignment gives: expansion without splitting."""
        out: list[Bit] = []
        for number, part in enumerate(node.parts):
            if isinstance(part, Literal):
                bits = self.literals(part)
                if number == 0 and not part.quoted and part.text.startswith("~"):
                    bits = self.tilde(bits)
                elif not part.quoted and ":~" in part.text:
                    bits = [Bit(None, part.text, "HOME", False, self.place(part.start, part.end))]
                out.extend(bits)
            else:
                out.extend(self.joined(self.expansion(part), part))
        return tuple(out)

    def joined(self, groups: list[Bits], part: Part) -> list[Bit]:
        """Several words put into one text, with blanks between."""
        out: list[Bit] = []
        for index, group in enumerate(groups):
            if index:
                out.append(Bit(" ", " ", None, True, self.place(part.start, part.end)))
            out.extend(group)
        return out

    def text(self, parts: tuple[Part, ...]) -> Bits:
        """Parts as one text (a here-document, an operand)."""
        return self.value(WordNode(parts, 0, 0))

    # ---------------------------------------------------------------- parts

    def place(self, start: int, end: int) -> Place:
        """A place in this text."""
        return Place(self.excerpt, start, end)

    def literal(self, part: Literal) -> Bit:
        """A literal as a bit."""
        return Bit(part.text, part.text, None, part.quoted, Place(self.excerpt, part.start, part.end), part.exact)

    def literals(self, part: Literal) -> list[Bit]:
        """A literal; where an outer shell expands inside it, the parts around and in between."""
        bit = self.literal(part)
        if not self.early:
            return [bit]
        out = []
        at = part.start
        for start, end, _written in self.early:
            if end <= at or part.end <= start:
                continue
            if not part.exact:
                return [self.early_bit(start, end, part.quoted)]
            if at < start:
                out.append(_cut(bit, at - part.start, start - part.start))
            out.append(self.early_bit(start, end, part.quoted))
            at = min(end, part.end)
        if at < part.end or not out:
            out.append(_cut(bit, at - part.start, part.end - part.start) if part.exact else bit)
        return out

    def early_bit(self, start: int, end: int, quoted: bool) -> Bit:
        """What an outer shell puts here: unknown."""
        written = next((text for first, last, text in self.early if first <= start < last), "")
        name = self.excerpt.text[start:end].strip("${}") or "$("
        return Bit(None, written or self.excerpt.text[start:end], name, quoted, self.place(start, end), False, True)

    def is_early(self, part: Part) -> bool:
        """Whether an outer shell expands a part."""
        return any(start <= part.start < end for start, end, _written in self.early)

    def tilde(self, bits: list[Bit]) -> list[Bit]:
        """Bits that begin with ``~``, with the home directory in its place as far as it is known."""
        first = bits[0]
        if first.text is None:
            return bits
        user = re.match(r"~[^/:]*", first.text)
        assert user is not None
        end = user.end()
        rest = [_cut(first, end, len(first.text))] if end < len(first.text) else []
        home = self.lookup("HOME") if end == 1 else None
        text = home.text if home is not None else None
        if text is None and end == 1 and self.state.inherits("HOME"):
            text = self.inherited("HOME")
        place = None if first.place is None else replace(first.place, end=first.place.start + end)
        return [Bit(text, first.text[:end], "HOME", True, place), *rest, *bits[1:]]

    def expansion(self, part: Part) -> list[Bits]:
        """What an expansion gives: one group of bits, or several words for ``$@`` and arrays."""
        if isinstance(part, Literal):
            return [(self.literal(part),)]
        if self.early and self.is_early(part):
            return [(self.early_bit(part.start, part.end, part.quoted),)]
        if isinstance(part, Placeholder):
            return [(Bit(None, self.raw(part), "<", True, self.place(part.start, part.end)),)]
        if isinstance(part, Substitution):
            # What stands for one character or an undecodable one is a single word.
            quoted = part.quoted or part.kind in ("<(", "$'", "*")
            name = {"${": "${", "<(": "<(", "*": "*"}.get(part.kind, "$(")
            return [(Bit(None, self.raw(part), name, quoted, self.place(part.start, part.end)),)]
        if isinstance(part, Arithmetic):
            value = evaluate(part.expression, self.number)
            text = None if value is None else str(value)
            return [(Bit(text, self.raw(part), "$((", part.quoted, self.place(part.start, part.end)),)]
        return self.parameter(part)

    def raw(self, part: Part) -> str:
        """A part as it is written."""
        return self.excerpt.text[part.start : part.end]

    def number(self, name: str) -> str | None:
        """A variable's text for arithmetic, ``0`` when it is unset, None when unknown."""
        cell = self.lookup(name)
        if cell is None:
            return self.inherited(name) if self.state.inherits(name) and not self.state.opaque else None
        return "0" if cell.bits is None else cell.text

    def unknown(self, part: Parameter) -> list[Bits]:
        """An expansion whose result is not known."""
        name = part.name
        return [(Bit(None, self.raw(part), name, part.quoted, self.place(part.start, part.end)),)]

    def lookup(self, name: str) -> Cell | None:
        """The variable as the text has set it, None when it never has."""
        return self.state.cells.get(name)

    def inherited(self, name: str) -> str | None:
        """A variable's text in the inherited environment, None when it is not known to be there."""
        environment = self.state.environment
        if isinstance(environment, Unknown) or self.state.cut:
            return None
        return environment.get(name)

    def parameter(self, part: Parameter) -> list[Bits]:
        """What a parameter expands to."""
        if part.indirect:
            return self.unknown(part)
        found = self.stored(part)
        if found is not None and _is_unknown_whole(found):
            found = None
        if part.length:
            return self.measured(part, found)
        operator = part.operator
        if operator in (":-", "-", ":=", "=", ":+", "+", ":?", "?"):
            return self.defaulted(part, found)
        if found is None:
            return self.unknown(part)
        if operator == ":":
            return self.sliced(part, found)
        if operator:
            return self.changed(part, found)
        return self.labelled(part, found)

    def stored(self, part: Parameter) -> list[Bits] | None:
        """The words that a parameter holds; None when unknown, no words at all when it is unset."""
        name = part.name
        positional = self.state.positional
        if name in ("@", "*"):
            return None if positional is None else self.several(part, list(positional), name)
        if name == "#":
            return None if positional is None else [(Bit(str(len(positional)), str(len(positional))),)]
        if name.isdigit():
            if positional is None or name == "0":
                return None
            index = int(name)
            return [positional[index - 1]] if 0 < index <= len(positional) else []
        if not (name[0].isalpha() or name[0] == "_") or name in ("RANDOM", "SECONDS", "LINENO", "PWD", "OLDPWD"):
            return None
        cell = self.lookup(name)
        if cell is None:
            text = None if self.state.opaque else self.inherited(name)
            return None if text is None else [(Bit(text, text),)]
        if cell.bits is None:
            return []
        if part.subscript is not None:
            return self.element(part, cell)
        return [cell.items[0]] if cell.items else [cell.bits] if cell.items is None else []

    def element(self, part: Parameter, cell: Cell) -> list[Bits] | None:
        """The elements that a subscript chooses; None when unknown."""
        if cell.bits is None:
            return []
        items = cell.items
        if items is None:
            if any(bit.text is None for bit in cell.bits):
                return None
            items = (cell.bits,)
        if part.subscript in ("@", "*"):
            return self.several(part, list(items), part.subscript)
        index = evaluate(part.subscript or "", self.number)
        if index is None:
            return None
        if index < 0:
            index += len(items)
        return [items[index]] if 0 <= index < len(items) else []

    def several(self, part: Parameter, items: list[Bits], kind: str) -> list[Bits]:
        """The words of ``@`` or ``*``."""
        if kind == "*" and part.quoted and items and not part.length and part.operator != ":":
            return [self.starred(part, items)]
        return items

    def starred(self, part: Parameter, items: list[Bits]) -> Bits:
        """``"$*"``: one word, the elements joined by the first character of IFS."""
        separator = " "
        custom = self.lookup("IFS")
        if custom is not None and custom.bits is not None:
            text = custom.text
            if text is None:
                return (Bit(None, self.raw(part), part.name, True, self.place(part.start, part.end)),)
            separator = text[:1]
        out: list[Bit] = []
        for index, item in enumerate(items):
            if index and separator:
                out.append(Bit(separator, separator, part.name, True, self.place(part.start, part.end)))
            out.extend(item)
        return tuple(out)

    def labelled(self, part: Parameter, found: list[Bits]) -> list[Bits]:
        """Known words as the result of this expansion: the first bit is written as the expansion."""
        if not found:
            if part.name in ("@", "*") or part.subscript in ("@", "*"):
                return []
            return [(Bit("", self.raw(part), part.name, part.quoted, self.place(part.start, part.end)),)]
        out = []
        name = part.name
        for index, bits in enumerate(found):
            group = []
            for number, bit in enumerate(bits):
                written = self.raw(part) if number == 0 and index == 0 else "" if len(found) == 1 else bit.written
                place = bit.place or self.place(part.start, part.end)
                exact = bit.exact and bit.place is not None
                variable = bit.variable if bit.text is None else name
                own = bit.own
                if own is None:
                    # A value that is all one expansion goes by its variable's name: $IP for IP=$(hostname -I).
                    own = self.raw(part) if len(bits) == 1 and bit.text is None else bit.written
                group.append(Bit(bit.text, written, variable, part.quoted, place, exact, bit.early, own))
            if not bits:
                group.append(Bit("", self.raw(part), name, part.quoted, self.place(part.start, part.end)))
            out.append(tuple(group))
        return out

    def measured(self, part: Parameter, found: list[Bits] | None) -> list[Bits]:
        """``${#NAME}``: a length or a number of elements."""
        text: str | None = None
        if found is not None:
            if part.subscript in ("@", "*") or part.name in ("@", "*"):
                text = str(len(found))
            else:
                value = text_of(found[0]) if found else ""
                text = None if value is None else str(len(value))
        return [(Bit(text, self.raw(part), part.name, part.quoted, self.place(part.start, part.end)),)]

    def defaulted(self, part: Parameter, found: list[Bits] | None) -> list[Bits]:
        """``${NAME:-word}`` and its kin."""
        operator = part.operator
        if found is None and self.never_set(part.name):
            found = []
        if found is None:
            return self.unknown(part)
        several = part.name in ("@", "*") or part.subscript in ("@", "*")
        is_set = bool(found)
        if operator.startswith(":") and is_set:
            texts = [text_of(bits) for bits in found]
            if None in texts and not any(bit.text for bits in found for bit in bits):
                return self.unknown(part)
            is_set = any(text is None or text for text in texts)
            if several and len(found) > 1:
                is_set = True
        kind = operator[-1]
        if kind == "+":
            return self.operand(part) if is_set else self.labelled(part, [])
        if is_set:
            return self.labelled(part, found)
        if kind == "?":
            return self.unknown(part)
        result = self.operand(part)
        if kind == "=" and self.assigned is not None and part.subscript is None:
            flat = tuple(bit for group in result for bit in group)
            self.assigned(part.name, flat, Location(self.excerpt.source, span_of(self.excerpt, part.start, part.end)))
            # The variable's new value is what is expanded, so quotes in the word no longer protect it.
            result = [tuple(replace(bit, quoted=part.quoted) for bit in group) for group in result]
        return result

    def never_set(self, name: str) -> bool:
        """Whether nothing in the text sets a variable and the inherited environment is known and lacks it."""
        state = self.state
        if name in state.cells or state.opaque or isinstance(state.environment, Unknown):
            return False
        return (name[0].isalpha() or name[0] == "_") and name not in state.environment

    def operand(self, part: Parameter) -> list[Bits]:
        """The word behind the operator, as the expansion's result."""
        out: list[Bit] = []
        for piece in part.arguments[0] if part.arguments else ():
            if isinstance(piece, Literal):
                out.extend(
                    replace(bit, variable=bit.variable or part.name, quoted=piece.quoted or part.quoted)
                    for bit in self.literals(piece)
                )
            else:
                out.extend(self.joined(self.expansion(piece), piece))
        if not out:
            return self.labelled(part, [])
        first = replace(out[0], written=self.raw(part))
        return [(first, *(replace(bit, written="") for bit in out[1:]))]

    def result(self, part: Parameter, text: str | None, source: Bits = ()) -> Bits:
        """A computed text; its place is where the text that it was made from was written."""
        place = next((bit.place for bit in source if bit.place is not None), None) or self.place(part.start, part.end)
        return (Bit(text, self.raw(part), part.name, part.quoted, place),)

    def sliced(self, part: Parameter, found: list[Bits]) -> list[Bits]:  # noqa: C901 - one branch for each form
        """``${NAME:offset:length}``, of a text or of an array."""
        numbers: list[int | None] = []
        for argument in part.arguments:
            text = text_of(self.text(argument))
            numbers.append(None if text is None else evaluate(text, self.number))
        if None in numbers or len(numbers) > 2 or not numbers:
            return self.unknown(part)
        offset, length = numbers[0], numbers[1] if len(numbers) > 1 else None
        assert offset is not None
        if part.subscript in ("@", "*"):
            chosen = _slice_items(found, offset, length)
            if chosen is None:
                return self.unknown(part)
            if (part.subscript == "*" and part.quoted) and chosen:
                chosen = [self.starred(part, chosen)]
            return self.labelled(part, chosen)
        if part.name in ("@", "*"):
            if offset <= 0:
                return self.unknown(part)
            chosen = _slice_items(found, offset - 1, length)
            if chosen is None:
                return self.unknown(part)
            if part.name == "*" and part.quoted and chosen:
                chosen = [self.starred(part, chosen)]
            return self.labelled(part, chosen)
        text = text_of(found[0]) if found else ""
        if text is None:
            return self.unknown(part)
        start = offset if offset >= 0 else len(text) + offset
        if start < 0:
            return [self.result(part, "", found[0] if found else ())]
        end = len(text) if length is None else start + length if length >= 0 else len(text) + length
        if length is not None and length < 0 and end < start:
            return self.unknown(part)
        return [self.result(part, text[start:end], found[0] if found else ())]

    def changed(self, part: Parameter, found: list[Bits]) -> list[Bits]:
        """Removal, replacement and case."""
        operator = part.operator
        if operator == "@":
            return self.unknown(part)
        pattern = self.pattern(part.arguments[0] if part.arguments else ())
        if pattern is None:
            return self.unknown(part)
        replacement: str | None = ""
        if len(part.arguments) > 1:
            replacement = text_of(self.text(part.arguments[1]))
            if replacement is None or "&" in replacement or "\\" in replacement or len(part.arguments) > 2:
                return self.unknown(part)
        out = []
        for bits in found or [()]:
            text = text_of(bits)
            if text is None or len(text) > MOST:
                return self.unknown(part)
            new = _changed(operator, text, pattern, replacement or "")
            if new is None:
                return self.unknown(part)
            out.append(self.result(part, new, bits))
        return out

    def pattern(self, parts: tuple[Part, ...]) -> list[str] | None:
        """A glob pattern as a list of regular expressions, one per element; None when it is unknown or special."""
        out: list[str] = []
        for part in parts:
            bits = self.literals(part) if isinstance(part, Literal) else self.joined(self.expansion(part), part)
            for bit in bits:
                if bit.text is None:
                    return None
                quoted = bit.quoted if not isinstance(part, Literal) else part.quoted and not self.pattern_quoted(part)
                if quoted:
                    out.extend(re.escape(char) for char in bit.text)
                    continue
                elements = _pattern_elements(bit.text)
                if elements is None:
                    return None
                out.extend(elements)
        return out

    def pattern_quoted(self, part: Literal) -> bool:
        """Whether a literal counts as quoted only because the whole expansion stands in double quotes."""
        before = self.excerpt.text[part.start - 1 : part.start]
        return before not in ("'", '"', "\\") and part.exact

    # ---------------------------------------------------------------- after expansion

    def custom_separator(self, text: str) -> bool:
        """Whether IFS was changed so that splitting this text cannot be followed."""
        cell = self.lookup("IFS")
        if cell is None or cell.bits is None:
            return False
        separators = cell.text
        if separators is None:
            return True
        return separators != " \t\n" and bool(set(text) & (set(separators) | set(" \t\n")))

    def globbed(self, bits: Bits) -> Bits:
        """Bits with file name patterns made unknown: which files lie there is not known."""
        if not any(bit.text and not bit.quoted and _GLOB.search(bit.text) for bit in bits):
            return bits
        start = "".join(bit.text or "" for bit in bits[:1])
        if _OPTION_LIKE.match(start):
            # A pattern that begins like an option matches no file that anybody has.
            return bits
        return tuple(
            replace(bit, text=None, variable=bit.variable or "*")
            if bit.text and not bit.quoted and _GLOB.search(bit.text)
            else bit
            for bit in bits
        )


def _is_unknown_whole(found: list[Bits]) -> bool:
    """Whether a stored value is nothing but one unknown that stands for the variable itself."""
    return len(found) == 1 and len(found[0]) == 1 and found[0][0].text is None and found[0][0].place is None


def _cut(bit: Bit, start: int, end: int) -> Bit:
    """A part of a bit with known text."""
    assert bit.text is not None
    text = bit.text[start:end]
    place = bit.place
    if bit.exact and place is not None:
        place = replace(place, start=place.start + start, end=place.start + end)
    return replace(bit, text=text, written=text, place=place)


def split_bit(bit: Bit) -> list[Bit | None]:
    """A bit cut at blanks. None stands for nothing: a leading or trailing one separates from what stands beside."""
    text = bit.text or ""
    if not text:
        return [None]
    if not re.search(r"[ \t\n]", text):
        return [bit]
    out: list[Bit | None] = []
    at = 0
    for match in re.finditer(r"[ \t\n]+", text):
        out.append(_cut(bit, at, match.start()) if match.start() > at else None)
        at = match.end()
    out.append(_cut(bit, at, len(text)) if at < len(text) else None)
    return out


def _slice_items(found: list[Bits], offset: int, length: int | None) -> list[Bits] | None:
    if offset < 0:
        offset += len(found)
        if offset < 0:
            return []
    if length is not None and length < 0:
        return None
    return found[offset:] if length is None else found[offset : offset + length]


def _pattern_elements(text: str) -> list[str] | None:
    out: list[str] = []
    at = 0
    while at < len(text):
        char = text[at]
        if char == "*":
            out.append("(?s:.*)")
        elif char == "?":
            out.append("(?s:.)")
        elif char == "[" or (char in "+@!" and text[at + 1 : at + 2] == "("):
            return None
        else:
            out.append(re.escape(char))
        at += 1
    return out


def _changed(operator: str, text: str, pattern: list[str], replacement: str) -> str | None:
    joined = "".join(pattern)
    if operator in ("^", "^^", ",", ",,"):
        if pattern:
            return None
        change = str.upper if operator[0] == "^" else str.lower
        return change(text) if len(operator) == 2 else change(text[:1]) + text[1:]
    if operator in ("#", "##"):
        lengths = range(len(text) + 1) if operator == "#" else range(len(text), -1, -1)
        return next((text[n:] for n in lengths if re.fullmatch(joined, text[:n])), text)
    if operator in ("%", "%%"):
        lengths = range(len(text), -1, -1) if operator == "%" else range(len(text) + 1)
        return next((text[:n] for n in lengths if re.fullmatch(joined, text[n:])), text)
    if not pattern:
        return replacement + text if operator == "/#" else text + replacement if operator == "/%" else text
    if operator == "/#":
        found = re.match(joined, text)
        return replacement + text[found.end() :] if found else text
    if operator == "/%":
        at = next((n for n in range(len(text) + 1) if re.fullmatch(joined, text[n:])), None)
        return text if at is None else text[:at] + replacement
    if joined.count(".*") and operator == "//":
        return None
    return re.sub(joined, lambda _: replacement, text, count=0 if operator == "//" else 1)


# -------------------------------------------------------------------- braces


def brace_alternatives(parts: tuple[Part, ...]) -> list[tuple[Part, ...]]:
    """The words that brace expansion makes of one word."""
    if not any(isinstance(part, Literal) and not part.quoted and "{" in part.text for part in parts):
        return [parts]
    units = _units(parts)
    expanded = _expand_units(units, 0)
    if expanded is None or len(expanded) > MOST:
        return [parts]
    if len(expanded) == 1:
        return [parts]
    return [_joined_units(one) for one in expanded]


_Unit = Part


def _units(parts: tuple[Part, ...]) -> list[_Unit]:
    out: list[_Unit] = []
    for part in parts:
        if isinstance(part, Literal) and not part.quoted and part.exact:
            out.extend(Literal(char, part.start + n, part.start + n + 1) for n, char in enumerate(part.text))
        else:
            out.append(part)
    return out


def _char(unit: _Unit) -> str:
    return unit.text if isinstance(unit, Literal) and not unit.quoted and len(unit.text) == 1 else ""


def _expand_units(units: list[_Unit], depth: int) -> list[list[_Unit]] | None:
    """Every word that the units stand for; None when there are too many."""
    if depth > 8:
        return None
    at = 0
    while at < len(units):
        if _char(units[at]) == "{":
            found = _brace_at(units, at)
            if found is not None:
                end, choices = found
                rest = _expand_units(units[end:], depth + 1)
                if rest is None:
                    return None
                middle: list[list[_Unit]] = []
                for choice in choices:
                    inner = _expand_units(choice, depth + 1)
                    if inner is None:
                        return None
                    middle.extend(inner)
                if len(middle) * len(rest) > MOST:
                    return None
                return [units[:at] + one + tail for one in middle for tail in rest]
        at += 1
    return [units]


def _brace_at(units: list[_Unit], start: int) -> tuple[int, list[list[_Unit]]] | None:
    """The end and the alternatives of the braces that open at ``start``; None when they are plain text."""
    depth = 0
    commas = []
    for at in range(start, len(units)):
        char = _char(units[at])
        if char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                break
        elif char == "," and depth == 1:
            commas.append(at)
    else:
        return None
    if commas:
        edges = [start, *commas, at]
        return at + 1, [units[left + 1 : right] for left, right in pairwise(edges)]
    inside = units[start + 1 : at]
    text = "".join(_char(unit) for unit in inside)
    if len(text) != len(inside):
        return None
    sequence = _sequence(text)
    if sequence is None:
        return None
    first, last = units[start].start, units[at].end
    return at + 1, [[Literal(item, first, last, exact=False)] for item in sequence]


def _sequence(text: str) -> list[str] | None:
    match = _RANGE.fullmatch(text)
    if match is None:
        return None
    if match.group(1) is not None:
        first, last = int(match.group(1)), int(match.group(2))
        step = abs(int(match.group(3) or 1)) or 1
        if abs(last - first) // step > MOST:
            return None
        padded = any(re.match(r"-?0\d", number) for number in (match.group(1), match.group(2)))
        width = max(len(match.group(1)), len(match.group(2))) if padded else 0
        numbers = range(first, last + 1, step) if last >= first else range(first, last - 1, -step)
        return [f"{number:0{width}d}" if width else str(number) for number in numbers]
    if match.group(4).isupper() != match.group(5).isupper():
        return None
    one, other = ord(match.group(4)), ord(match.group(5))
    step = abs(int(match.group(6) or 1)) or 1
    codes = range(one, other + 1, step) if other >= one else range(one, other - 1, -step)
    return [chr(code) for code in codes]


def _joined_units(units: list[_Unit]) -> tuple[Part, ...]:
    """Units as parts: neighbouring characters together, and names with what braces put behind them (``$A{b,c}``)."""
    out: list[Part] = []
    for unit in units:
        last = out[-1] if out else None
        if not isinstance(unit, Literal) or unit.quoted:
            out.append(unit)
        elif isinstance(last, Literal) and not last.quoted and last.exact and unit.exact and last.end == unit.start:
            out[-1] = Literal(last.text + unit.text, last.start, unit.end)
        elif isinstance(last, Parameter) and _open_ended(last) and (more := _NAME_GOES_ON.match(unit.text)):
            out[-1] = replace(last, name=last.name + more.group())
            if more.end() < len(unit.text):
                out.append(replace(unit, text=unit.text[more.end() :], exact=False))
        else:
            out.append(unit)
    return tuple(out)


def _open_ended(part: Parameter) -> bool:
    """Whether a parameter is written ``$NAME``, so that letters behind it would belong to the name."""
    plain = not part.operator and part.subscript is None and not part.length and not part.indirect and not part.quoted
    return plain and part.end - part.start <= len(part.name) + 1 and (part.name[0].isalpha() or part.name[0] == "_")
