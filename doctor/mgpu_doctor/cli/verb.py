"""What a verb takes, as data. click makes help and messages from it, the quick reader plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mgpu_doctor.cli.output import FORMATS
from mgpu_doctor.model.record import dataclass

FAIL_ON = ("error", "warning", "advice", "never")


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a verb.

    ``metavar`` None makes it a switch; ``choices`` are the only values taken; ``many``
    means that it may be repeated, each time with a list joined by commas.
    """

    flag: str
    help: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    many: bool = False
    required: bool = False

    @property
    def name(self) -> str:
        """The key of its value in :attr:`Given.options`."""
        return self.flag.lstrip("-").replace("-", "_")


@dataclass(frozen=True, slots=True)
class Given:
    """What was given to a verb: its positional words, the command behind ``--``, and the options."""

    words: tuple[str, ...]
    behind: tuple[str, ...]
    options: Mapping[str, Any]

    def text(self, name: str) -> str | None:
        """The value of an option that takes one, None when absent."""
        value = self.options.get(name)
        return None if value is None else str(value)

    def switch(self, name: str) -> bool:
        """Whether a switch was given."""
        return bool(self.options.get(name))

    def names(self, name: str) -> tuple[str, ...]:
        """The values of an option that takes lists."""
        values: tuple[str, ...] = self.options.get(name) or ()
        return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb: ``run`` does it and returns the exit code; ``words`` says in the help what stands behind it.

    ``examples`` are command lines for the help. ``dashes`` means that a launch command may stand behind ``--``.
    """

    name: str
    help: str
    words: str
    options: tuple[Option, ...]
    run: Callable[[Given], int]
    examples: tuple[str, ...] = ()
    dashes: bool = False
    least_words: int = 0
    most_words: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a verb's module lies, and its line in the help: known without importing it."""

    module: str
    help: str


VERBS = {
    "explain": Place("mgpu_doctor.cli.explain", "Say what a launch command would really do, or what a rule means."),
    "check": Place("mgpu_doctor.cli.check", "Check this machine, and a command or files against it."),
    "lint": Place("mgpu_doctor.cli.lint", "Find faulty launch commands in scripts and documents."),
    "probe": Place("mgpu_doctor.cli.probe", "Find out in seconds whether GPUs truly work in parallel."),
    "logs": Place("mgpu_doctor.cli.logs", "Find the root cause in the output of a failed run."),
    "facts": Place("mgpu_doctor.cli.facts", "Write down this machine as JSON, for elsewhere and for bug reports."),
    "rules": Place("mgpu_doctor.cli.rules", "List the rules."),
    "new-check": Place("mgpu_doctor.cli.new_check", "Write the skeleton of a new check."),
}
"""The verbs, the most used first."""


def load_verb(name: str) -> Verb:
    """The verb of that name, its module imported."""
    from importlib import import_module

    verb = import_module(VERBS[name].module).VERB
    assert isinstance(verb, Verb)
    return verb


FORMAT = Option("--format", "Default: rich on a terminal, plain elsewhere.", "FORMAT", FORMATS)
NO_COLOR = Option("--no-color", "No colour (as NO_COLOR does).")
PYTHON = Option("--python", "The interpreter whose environment counts.", "PATH")
SELECTION = (
    Option("--select", "Only these rules: codes, slugs, families (MGD3), joined by commas.", "RULES", many=True),
    Option("--ignore", "Not these rules; wins over --select.", "RULES", many=True),
    Option("--fail-on", "The least severity that makes the exit status 1. Default: error.", "LEVEL", FAIL_ON),
)
SHARED = (
    FORMAT,
    *SELECTION,
    Option("--facts", "The machine as a facts file (- for standard input); none judges the text alone.", "FILE|none"),
    Option("--show-commands", "Also say what each launch command would do."),
    NO_COLOR,
)
"""The options of every verb that diagnoses."""
