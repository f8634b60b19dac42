"""Reads a command line that is plainly right, without click.

Importing click takes longer than a whole ``explain --format json``. Whatever is not plain (help, a
mistake, an unusual spelling) is left to click, which says the same of every line that is read here (tested).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mgpu_doctor.cli.verb import VERBS, Given, Option, Verb, load_verb


def read(arguments: Sequence[str]) -> tuple[Verb, Given] | None:
    """The verb and what it was given; None when click must look."""
    if not arguments or arguments[0] not in VERBS:
        return None
    verb = load_verb(arguments[0])
    given = _given(verb, list(arguments[1:]))
    return None if given is None else (verb, given)


def _given(verb: Verb, arguments: list[str]) -> Given | None:
    behind: list[str] = []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, behind = arguments[:at], arguments[at + 1 :]
        if not verb.dashes or not behind:
            return None
    options = {option.flag: option for option in verb.options}
    words: list[str] = []
    values: dict[str, Any] = {}
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-") or argument == "-":
            words.append(argument)
            continue
        flag, equals, value = argument.partition("=")
        option = options.get(flag)
        if option is None:
            return None
        if option.metavar is None:
            if equals:
                return None
            values[option.name] = True
            continue
        taken = value if equals else next(rest, None)
        if taken is None or not _is_plain(option, taken):
            return None
        values[option.name] = (*values.get(option.name, ()), taken) if option.many else taken
    return _complete(verb, Given(tuple(words), tuple(behind), values))


def _is_plain(option: Option, value: str) -> bool:
    if not value or (value.startswith("-") and value != "-"):
        return False
    return not option.choices or value in option.choices


def _complete(verb: Verb, given: Given) -> Given | None:
    if len(given.words) < verb.least_words or (verb.most_words is not None and len(given.words) > verb.most_words):
        return None
    if any(option.required and option.name not in given.options for option in verb.options):
        return None
    return given
