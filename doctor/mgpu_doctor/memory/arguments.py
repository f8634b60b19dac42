"""The arguments that a launch gives to its program, for what memory depends on.

From the command line, and from the file that LLaMA-Factory takes as its first argument; ``name=value`` behind it wins.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mgpu_doctor.model.launch import Launch

_TRUE = frozenset({"true", "1", "yes", "t", "y", "on"})
_FALSE = frozenset({"false", "0", "no", "f", "n", "off"})
_ELIDED = pattern(r"^(?:\.{3}.*|…+|\[.*\]|<.*>)$")
_FILES = ("llamafactory", "arguments")
_ENDINGS = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Arguments:
    """Values by name, :class:`Unknown` for one that is not known statically.

    ``complete`` is False when there may be more arguments than can be seen.
    """

    given: Mapping[str, object]
    complete: bool

    def value(self, name: str, default: object = None) -> object:
        """The value given, else the default where it is certain that none is given, else Unknown."""
        if name in self.given:
            return self.given[name]
        return default if self.complete else Unknown(f"whether {name} is given is not known")

    def truth(self, name: str, default: bool = False) -> bool | Unknown:
        """A switch, as transformers' string_to_bool reads it."""
        value = self.value(name, default)
        if isinstance(value, (bool, Unknown)):
            return value
        text = str(value).lower()
        if text in _TRUE:
            return True
        return False if text in _FALSE else Unknown(f"{name} is neither true nor false")

    def number(self, name: str, default: float | None = None) -> float | Unknown | None:
        """A number; None when it is not given and has no default."""
        value = self.value(name, default)
        if value is None or isinstance(value, Unknown):
            return value
        if isinstance(value, bool):
            return Unknown(f"{name} has no value")
        try:
            return float(str(value))
        except ValueError:
            return Unknown(f"{name} is no number")

    def text(self, name: str, default: str | None = None) -> str | Unknown | None:
        """A text; None when it is not given and has no default."""
        value = self.value(name, default)
        if value is None or isinstance(value, (str, Unknown)):
            return value
        return str(value)

    def is_off(self, *names: str) -> bool:
        """Whether it is certain that none of these switches is on."""
        return all(self.truth(name) is False for name in names)

    def lacks(self, *names: str) -> bool:
        """Whether it is certain that none of these is given."""
        return self.complete and not any(name in self.given for name in names)


def read_arguments(launch: Launch) -> Arguments:
    """What a launch gives to its program, the last word winning."""
    target = launch.target
    found: dict[str, object] = {}
    complete = not any(word.splits or _ELIDED.match(word.shown) for word in target.argument_words)
    config = next((config for config in target.configs if config.role in _FILES), None)
    if config is not None:
        complete = complete and config.exists is True and config.problem is None and config.source is not None
        found.update((path[0], entry.value) for path, entry in config.values.items() if len(path) == 1)
        found = {name: value for name, value in found.items() if value is not None}
    elif target.argument_words and target.argument_words[0].shown.endswith(_ENDINGS):
        complete = False
    for argument, behind in zip_longest(target.arguments, target.arguments[1:]):
        name = argument.name
        if name is None:
            continue
        if argument.values:
            value = argument.values[0].value
            found[name] = Unknown(f"the value of {argument.values[0].written} is not known") if value is None else value
        elif behind is not None and behind.name is None and any(word.splits for word in behind.values):
            found[name] = Unknown(f"the value of {argument.flag} is not known")
        elif name.startswith("no_"):
            found[name[3:]] = False
        else:
            found[name] = True
    return Arguments(found, complete)
