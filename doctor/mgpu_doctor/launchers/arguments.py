"""Splits a command line exactly as Python's argparse would, driven by a table of options.

The parsers of accelerate, torchrun and deepspeed are of one shape: options, then one
positional (the script) and a REMAINDER that takes all that follows it. The rules
followed here are those of ``argparse.ArgumentParser._parse_known_args`` (CPython 3.10
to 3.14): prefixes of long options where allowed, ``--a=b``, ``-ab`` for switches, ``-ab``
for a value, negative numbers, words with blanks, ``--``. Where argparse stops at the first
error, reading goes on here, so that every fault can be named; the split behind a fault is a best reading.

Words whose value is unknown are values where a value is due. Where an option or the script is
due, nobody can know what they are: the result then says so in ``opaque``, and reports no problem behind them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from mgpu_doctor.model.command import Piece, Word
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import Option, OptionSpec, ParseProblem
from mgpu_doctor.model.record import dataclass, field
from mgpu_doctor.model.source import Span

_TRUE = frozenset({"y", "yes", "t", "true", "on", "1"})
_FALSE = frozenset({"n", "no", "f", "false", "off", "0"})
_SWITCHES = frozenset(
    {"store_true", "store_false", "store_const", "append_const", "count", "help", "version", "check_env"}
)
_BAG_NAMES = ("ARG", "OPT", "FLAG", "PARAM", "CONFIG", "LAUNCH", "DIST", "EXTRA", "SETTING")
_PROGRAM_NAMES = ("SCRIPT", "FILE", "ENTRY", "PROG", "MAIN", "CODE", "MODULE", "_PY", "EXEC", "COMMAND", "CMD", "TASK")

AMBIGUITY_FIXED = ((3, 12, 8), (3, 13, 1))
"""From these releases on, argparse complains of an ambiguous prefix only where it takes it for an option.

Before, every word of the command line counted, those behind the script too (CPython issue gh-58573)."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A launcher's command line, split.

    ``target`` is the word that argparse stores as the script, None when there is
    none; ``rest`` the words behind it; ``words`` those before it. ``stops`` is the option that
    makes the parser print something and exit (``--help``), None otherwise.
    """

    options: tuple[Option, ...]
    target: Word | None
    rest: tuple[Word, ...]
    words: tuple[Word, ...]
    problems: tuple[ParseProblem, ...]
    opaque: str | None = None
    stops: str | None = None


@dataclass(frozen=True, slots=True)
class _Match:
    """What one word means where an option may stand: a spec (None when there is no such option)."""

    spec: OptionSpec | None
    flag: str
    explicit: str | None = None
    attached: bool = False
    """The value is glued to a short option (``-t3``)."""


@dataclass(slots=True)
class _State:
    words: Sequence[Word]
    at: int = 0
    options: list[Option] = field(default_factory=list)
    problems: list[ParseProblem] = field(default_factory=list)
    opaque: str | None = None
    stops: str | None = None


class OptionTable:
    """The options of one parser, by spelling."""

    def __init__(self, specs: Iterable[OptionSpec], *, abbreviations: bool) -> None:
        self.specs = tuple(specs)
        self.abbreviations = abbreviations
        self.by_flag: dict[str, OptionSpec] = {}
        for spec in self.specs:
            for flag in spec.flags:
                self.by_flag.setdefault(flag, spec)

    def matches(self, text: str) -> tuple[_Match, ...] | None:
        """All readings of a word as an option; None when argparse would take it for a plain argument.

        More than one reading means that the prefix is ambiguous. A single
        reading with no spec is an option that the parser does not have.
        """
        if not text or text[0] != "-":
            return None
        if text in self.by_flag:
            return (_Match(self.by_flag[text], text),)
        if len(text) == 1:
            return None
        flag, equals, value = text.partition("=")
        if equals and flag in self.by_flag:
            return (_Match(self.by_flag[flag], flag, value),)
        found = self._prefixed(text)
        if found:
            return found
        if _looks_negative(text) or " " in text:
            return None
        return (_Match(None, text),)

    def _prefixed(self, text: str) -> tuple[_Match, ...]:
        if text.startswith("--"):
            if not self.abbreviations:
                return ()
            prefix, equals, value = text.partition("=")
            return tuple(
                _Match(spec, flag, value if equals else None)
                for flag, spec in self.by_flag.items()
                if flag.startswith(prefix)
            )
        short = text[:2]
        if short in self.by_flag:
            return (_Match(self.by_flag[short], short, text[2:], attached=True),)
        return ()


def parse_arguments(
    words: Sequence[Word],
    table: OptionTable,
    *,
    python: str | None = None,
    targets: bool = True,
    synonyms: dict[str, str] | None = None,
) -> Parsed:
    """Split the words behind a launcher's name.

    ``python`` is the version of the interpreter that runs the launcher, None when unknown: what
    differs between versions is then not reported. With ``targets`` False the parser has no
    positional arguments at all. ``synonyms`` maps spellings of other launchers to this one's.
    """
    state = _State(words)
    _read_options(state, table, synonyms or {}, targets=targets)
    own_end = state.at
    plain = state.at < len(words) and words[state.at].value == "--"
    behind = tuple(words[state.at + 1 :] if plain else words[state.at :])
    if state.stops is not None:
        behind, own_end = (), len(words)
    target, rest = (behind[0], behind[1:]) if behind else (None, ())
    if rest and rest[0].value == "--" and not plain:
        rest, plain = rest[1:], True
    if target is None and targets and state.stops is None and words:
        message = "the following arguments are required: the script to run"
        _report(state, "missing-target", message, words[-1].span)
    if rest and not plain:
        _report_ambiguous_rest(state, table, rest, python)
    own = tuple(words[: own_end + 1 if plain and own_end < len(words) and words[own_end].value == "--" else own_end])
    return Parsed(tuple(state.options), target, rest, own, tuple(state.problems), state.opaque, state.stops)


def _read_options(state: _State, table: OptionTable, synonyms: dict[str, str], *, targets: bool) -> None:
    """Read options until the script, ``--`` or the end; ``state.at`` stays in front of it."""
    while state.at < len(state.words) and state.stops is None:
        word = state.words[state.at]
        text = word.value
        if text == "--":
            return
        if text is None:
            place = _place_unknown(state, table)
            if place == "target":
                return
            state.at += place == "bag"
            continue
        found = table.matches(text)
        if found is not None:
            _take_option(state, table, found, word, synonyms)
        elif targets:
            return
        else:
            _report(state, "unexpected-argument", f"unrecognized arguments: {word.shown}", word.span)
            state.at += 1


def _take_option(
    state: _State, table: OptionTable, found: tuple[_Match, ...], word: Word, synonyms: dict[str, str]
) -> None:
    """Read one option and its values; ``state.at`` moves behind them."""
    state.at += 1
    if len(found) > 1:
        names = ", ".join(match.flag for match in found)
        _report(
            state,
            "ambiguous-option",
            f"ambiguous option: {word.shown} could match {names}",
            word.span,
            word.shown.partition("=")[0],
            tuple(match.flag for match in found),
        )
        if any(match.spec is not found[0].spec for match in found):
            if "=" not in word.shown and not _is_switch(found[0].spec):
                _skip_value(state, table)
            return
        # All readings are spellings of one option: what follows is read as meant.
    match = found[0]
    if match.spec is None:
        _unknown_option(state, table, word, synonyms)
        return
    if match.explicit is None:
        _values_behind(state, table, match, word)
    elif match.attached and _is_switch(match.spec):
        _cluster(state, table, match, word)
    else:
        _explicit_value(state, match, word)


def _explicit_value(state: _State, match: _Match, word: Word) -> None:
    spec = match.spec
    assert spec is not None
    value = match.explicit or ""
    if _is_switch(spec):
        _report(
            state,
            "unexpected-value",
            f"argument {_name(spec)}: ignored explicit argument {value!r}",
            word.span,
            match.flag,
        )
        return
    low, _high = _arity(spec)
    if low > 1:
        _report(state, "missing-value", f"argument {_name(spec)}: expected {low} arguments", word.span, match.flag)
        return
    part = _tail(word, len(word.value or "") - len(value), value)
    _store(state, spec, _written_flag(word, match), (part,), word.span)
    if not value and spec.type in ("int", "float") and state.at < len(state.words):
        # `--num_processes= 4`: refused; the number behind the blank is meant as the value, not as the script.
        following = state.words[state.at].value
        if following is not None and not isinstance(convert(following, spec.type), InvalidValue):
            state.at += 1


def _cluster(state: _State, table: OptionTable, match: _Match, word: Word) -> None:
    """Several short switches in one word: ``-mq``."""
    spec, flag, explicit = match.spec, match.flag, match.explicit or ""
    while spec is not None:
        if not _is_switch(spec):
            part = _tail(word, len(word.value or "") - len(explicit), explicit)
            _store(state, spec, flag, (part,), word.span)
            return
        if explicit.startswith(("=", "-")):
            break
        _store(state, spec, flag, (), word.span)
        if state.stops is not None:
            return
        if not explicit:
            return
        flag, explicit = "-" + explicit[0], explicit[1:]
        if flag not in table.by_flag:
            _report(
                state, "unexpected-value", f"ignored explicit argument {flag[1:] + explicit!r}", word.span, match.flag
            )
            return
        spec = table.by_flag[flag]
        if not explicit:
            if _is_switch(spec):
                _store(state, spec, flag, (), word.span)
            else:
                _values_behind(state, table, _Match(spec, flag), word)
            return
    _report(state, "unexpected-value", f"ignored explicit argument {explicit!r}", word.span, match.flag)


def _values_behind(state: _State, table: OptionTable, match: _Match, word: Word) -> None:
    """Take as many of the following words as the option's nargs asks for."""
    spec = match.spec
    assert spec is not None
    low, high = _arity(spec)
    start = state.at
    while state.at < len(state.words) and (high is None or state.at - start < high):
        if not _may_be_value(state.words[state.at], table):
            break
        state.at += 1
    taken = tuple(state.words[start : state.at])
    if len(taken) < low:
        wanted = f"{low} arguments"
        if spec.nargs in (None, "+"):
            wanted = "one argument" if spec.nargs is None else "at least one argument"
        # An unknown word that may vanish or multiply in front leaves no certainty about what follows.
        _report(
            state, "missing-value", f"argument {_name(spec)}: expected {wanted}", word.span, _written_flag(word, match)
        )
        return
    span = Span(word.span.start, taken[-1].span.end) if taken and taken[-1].span.end > word.span.start else word.span
    _store(state, spec, _written_flag(word, match), taken, span)


def _may_be_value(word: Word, table: OptionTable) -> bool:
    text = word.value
    if text is None:
        # `--n $N`: whatever N is, the author means a value here.
        prefix = word.known_prefix
        return not prefix.startswith("--")
    return text != "--" and table.matches(text) is None


def _store(state: _State, spec: OptionSpec, flag: str, values: tuple[Word, ...], span: Span) -> None:
    if spec.action in ("help", "version"):
        state.stops = flag
        return
    converted: object
    if _is_switch(spec):
        converted = {"store_true": True, "store_false": False, "check_env": True}.get(
            spec.action, spec.const if spec.const is not None else True
        )
    else:
        parts = [_convert(state, spec, flag, word) for word in values]
        single = spec.nargs in (None, "?")
        converted = (parts[0] if parts else spec.const) if single else tuple(parts)
    state.options.append(Option(spec, flag, values, span, converted))


def _convert(state: _State, spec: OptionSpec, flag: str, word: Word) -> object:
    text = word.value
    if text is None:
        return Unknown(f"{word.written} is not known here")
    if text == "--":
        return Unknown("argparse drops -- or keeps it as the value, depending on Python's version")
    value = convert(text, spec.type)
    if isinstance(value, InvalidValue):
        message = f"argument {_name(spec)}: invalid {spec.type} value: {text!r}"
        _report(state, "invalid-value", message, word.span, flag)
        return Unknown(message)
    if spec.choices is not None and not isinstance(value, Unknown) and value not in spec.choices:
        chosen = ", ".join(repr(choice) for choice in spec.choices)
        message = f"argument {_name(spec)}: invalid choice: {text!r} (choose from {chosen})"
        near = _near(text, [str(choice) for choice in spec.choices])
        _report(state, "invalid-choice", message, word.span, flag, near)
        return Unknown(message)
    return value


@dataclass(frozen=True, slots=True)
class InvalidValue:
    """A text that the declared type refuses."""

    text: str


def convert(text: str, kind: str | None) -> object:
    """A value after the type that the parser declares, :class:`InvalidValue` where it refuses.

    Types that are not known by name give :class:`Unknown`: they may accept anything.
    """
    try:
        if kind in (None, "str"):
            return text
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
        if kind == "bool":
            return bool(text)
        if kind == "str_to_bool":
            return _str_to_bool(text)
    except ValueError:
        return InvalidValue(text)
    return Unknown(f"the value of type {kind} is not read")


def _str_to_bool(text: str) -> int:
    """As accelerate 1.7.0, utils/environment.py str_to_bool()."""
    lowered = text.lower()
    if lowered in _TRUE:
        return 1
    if lowered in _FALSE:
        return 0
    raise ValueError(text)


def _unknown_option(state: _State, table: OptionTable, word: Word, synonyms: dict[str, str]) -> None:
    """Report it, and guess whether the next word is its value so that the script is still found."""
    flag, equals, _value = word.shown.partition("=")
    near = suggest(flag, table, synonyms)
    _report(state, "unknown-option", f"unrecognized arguments: {word.shown}", word.span, flag, near)
    if equals or state.at >= len(state.words):
        return
    spec = table.by_flag.get(near[0]) if near else None
    following = state.words[state.at]
    later = state.words[state.at + 1 : state.at + 40]
    if spec is not None and _is_switch(spec):
        # `--deepspeed ds.json` brings a file, `-m package.module` for `--module` the target.
        means_value = following.shown.endswith((".json", ".yaml", ".yml"))
    else:
        means_value = spec is not None or not _looks_like_program(following)
    if means_value and (spec is not None or any(_looks_like_program(word) for word in later)):
        _skip_value(state, table)


def _skip_value(state: _State, table: OptionTable) -> None:
    if state.at < len(state.words) and _may_be_value(state.words[state.at], table):
        state.at += 1


def suggest(flag: str, table: OptionTable, synonyms: dict[str, str] | None = None) -> tuple[str, ...]:
    """The spellings that this parser has nearest to a mistyped one, nearest first."""
    meant = (synonyms or {}).get(flag.replace("_", "-"))
    if meant is not None and meant in table.by_flag:
        return (meant,)
    plain = flag.lstrip("-").replace("-", "_").lower()
    same = [known for known in table.by_flag if known.lstrip("-").replace("-", "_").lower() == plain]
    if same:
        return tuple(_like(flag, same))
    if len(plain) < 3:
        return ()
    by_plain: dict[str, list[str]] = {}
    for known in table.by_flag:
        by_plain.setdefault(known.lstrip("-").replace("-", "_").lower(), []).append(known)
    near = _near(plain, list(by_plain))
    return tuple(_like(flag, by_plain[name])[0] for name in near)


def _like(flag: str, spellings: list[str]) -> list[str]:
    """Spellings sorted so that those with the author's own dash or underscore come first."""
    dashed = "-" in flag.lstrip("-")
    return sorted(spellings, key=lambda known: ("-" in known.lstrip("-")) != dashed)


def _near(text: str, known: Sequence[str]) -> tuple[str, ...]:
    from difflib import get_close_matches

    return tuple(get_close_matches(text, known, n=3, cutoff=0.78))


def _place_unknown(state: _State, table: OptionTable) -> str:
    """What a word of unknown value is where an option or the script may stand: ``option``, ``bag`` or ``target``.

    An ``option`` has been taken; a ``bag`` holds any number of options.
    """
    word = state.words[state.at]
    prefix = word.known_prefix
    if prefix.startswith("-"):
        flag, equals, _value = prefix.partition("=")
        found = table.matches(flag) if equals else None
        if found is not None and len(found) == 1 and found[0].spec is not None and not _is_switch(found[0].spec):
            state.at += 1
            part = _unknown_tail(word, len(flag) + 1)
            _store(state, found[0].spec, flag, (part,), word.span)
            return "option"
        if equals and found is not None and state.opaque is None:
            _take_option(state, table, found, word, {})
            return "option"
        _make_opaque(state, word)
        return "bag"
    if prefix or _ends_like_program(word):
        return "target"
    names = " ".join(name.upper() for name in word.unknown_variables)
    if any(part in names for part in _PROGRAM_NAMES):
        return "target"
    if _reads_as_bag(state, names, word):
        _make_opaque(state, word)
        return "bag"
    _make_opaque(state, word)
    return "target"


def _reads_as_bag(state: _State, names: str, word: Word) -> bool:
    """Whether an unknown word more likely holds options than the script: by its name, or by what follows."""
    if any(part in names for part in _BAG_NAMES):
        return True
    later = state.words[state.at + 1 :]
    if any(_looks_like_program(other) for other in later[:40]):
        return True
    return word.splits and bool(later) and not (later[0].value or "-").startswith("-")


def _make_opaque(state: _State, word: Word) -> None:
    if state.opaque is None:
        state.opaque = f"{word.written} may hold options or the script: its value is not known here"


def _looks_like_program(word: Word) -> bool:
    text = word.shown
    return not text.startswith("-") and (text.endswith((".py", ".pyz", ".sh", ".ipynb")) or _ends_like_program(word))


def _ends_like_program(word: Word) -> bool:
    """``$DIR/train.py``: whatever the variable holds, this is a path and no option."""
    if not word.pieces:
        return False
    last = word.pieces[-1]
    return last.text is not None and (last.text.endswith(".py") or "/" in last.text)


def _report(
    state: _State, kind: str, message: str, span: Span, flag: str | None = None, suggestions: tuple[str, ...] = ()
) -> None:
    if state.opaque is None:
        state.problems.append(ParseProblem(kind, message, span, flag, suggestions))


def _report_ambiguous_rest(state: _State, table: OptionTable, rest: Sequence[Word], python: str | None) -> None:
    """Older argparse refuses an ambiguous prefix among the script's own arguments."""
    if not table.abbreviations or python is None or not _scans_all(python):
        return
    for word in rest:
        text = word.value
        if text == "--":
            return
        found = table.matches(text) if text is not None else None
        if found is not None and len(found) > 1:
            names = ", ".join(match.flag for match in found)
            message = f"ambiguous option: {text} could match {names}"
            suggestions = tuple(match.flag for match in found)
            _report(state, "ambiguous-option", message, word.span, str(text).partition("=")[0], suggestions)
            return


def _scans_all(python: str) -> bool:
    numbers = [int(part) for part in re.findall(r"\d+", python)[:3]]
    if len(numbers) < 2:
        return False
    version = (*numbers, 0, 0, 0)[:3]
    if version[:2] == (3, 12):
        return len(numbers) == 3 and version < AMBIGUITY_FIXED[0]
    if version[:2] == (3, 13):
        return len(numbers) == 3 and version < AMBIGUITY_FIXED[1]
    return version[:2] < (3, 12)


def _written_flag(word: Word, match: _Match) -> str:
    """The option as typed, an abbreviation left as it is."""
    if match.attached:
        return match.flag
    return word.shown.partition("=")[0] if match.explicit is not None else word.shown


def _tail(word: Word, skip: int, text: str) -> Word:
    """The value of ``--a=b`` as a word of its own."""
    length = word.span.end - word.span.start
    known = word.value or ""
    start = word.span.start + skip if length == len(known) else word.span.start
    if length != len(known):
        # Quotes in the word: the value's place is known only from its end.
        start = max(word.span.start, word.span.end - len(text) - (length - len(known)))
    quoted = any(piece.quoted for piece in word.pieces)
    return Word(Span(start, word.span.end), (Piece(text, text, quoted=quoted),), word.origin)


def _unknown_tail(word: Word, skip: int) -> Word:
    pieces: list[Piece] = []
    left = skip
    for piece in word.pieces:
        if left <= 0 or piece.text is None:
            pieces.append(piece)
            left = 0
        elif len(piece.text) > left:
            written = piece.written[left:] if piece.written == piece.text else piece.text[left:]
            pieces.append(Piece(piece.text[left:], written, piece.variable, piece.quoted))
            left = 0
        else:
            left -= len(piece.text)
    start = min(word.span.start + skip, word.span.end)
    return Word(Span(start, word.span.end), tuple(pieces), word.origin, word.splits)


def _is_switch(spec: OptionSpec | None) -> bool:
    return spec is not None and (spec.action in _SWITCHES or spec.nargs == 0)


def _arity(spec: OptionSpec) -> tuple[int, int | None]:
    """The least and the largest number of values; None for any number."""
    nargs = spec.nargs
    if _is_switch(spec):
        return (0, 0)
    if nargs is None:
        return (1, 1)
    if isinstance(nargs, int):
        return (nargs, nargs)
    return {"?": (0, 1), "*": (0, None), "+": (1, None)}.get(nargs, (0, None))


def _name(spec: OptionSpec) -> str:
    return "/".join(spec.flags) or spec.dest


@lru_cache(maxsize=256)
def _looks_negative(text: str) -> bool:
    return re.match(r"^-\d+$|^-\d*\.\d+$", text) is not None
