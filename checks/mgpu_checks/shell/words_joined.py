"""No blank stands before the backslash, and the next line begins at its very start: two arguments become one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.shell import BASH, marks_of
from mgpu_doctor.authoring import (
    Case,
    Command,
    Example,
    Finding,
    Fix,
    Reference,
    Rule,
    Script,
    Severity,
    Span,
    insert,
    pattern,
    report,
)

RULE = Rule(
    code="MGD808",
    slug="words-joined",
    title="Two arguments are joined into one",
    severity=Severity.ERROR,
    summary=(
        "No blank stands before the backslash, and the next line begins at its very start: two arguments become one."
    ),
    why=(
        "Backslash and newline are removed without leaving anything behind. `--lr 1\\` above `--epochs 3` is "
        "`--lr 1--epochs 3`: the first option gets a wrong value and the second is gone."
    ),
    bad=(
        Example("a value and an option", "torchrun --nproc_per_node 2 train.py --lr 1\\\n--epochs 3"),
        Example("the launcher's name", "torchrun\\\n--nproc_per_node 2 train.py"),
        Example("the script", lint=("a.sh",), files={"a.sh": "accelerate launch train.py\\\n--lr 1 \\\n--epochs 3\n"}),
    ),
    good=(
        Example("a blank before it", "torchrun train.py --lr 1 \\\n--epochs 3"),
        Example("blanks on the next line", "torchrun train.py --lr 1\\\n  --epochs 3"),
        Example("a path cut in two", "torchrun train.py --data /data/very/\\\nlong --epochs 3"),
        Example("inside quotes", 'torchrun train.py --note "a\\\n--b"'),
    ),
    sources=(Reference(BASH, "`printf '<%s>' a\\` newline `--b` prints <a--b>", ran=True),),
    fix="put a blank before the backslash",
    fixable=True,
)

_MEANS_TO_LAUNCH = pattern(
    r"(?:\S*/)?(?:torchrun|accelerate|deepspeed|llamafactory-cli|python[\d.]*|launch)(?=\\|\s|$)"
)


def find(case: Case) -> Iterator[Finding]:
    """Continuations inside a word of a launch."""
    launching = {id(launch.command) for launch in case.launches}
    for script in case.scripts:
        marks = marks_of(script, "continuation")
        if not marks:
            continue
        for command in script.commands:
            text = script.source.slice(command.span)
            if id(command) in launching or _MEANS_TO_LAUNCH.match(text):
                yield from _in_command(script, command)


def _in_command(script: Script, command: Command) -> Iterator[Finding]:
    source = script.source
    words = [*command.words, *(word for wrapper in command.wrappers for word in wrapper.words)]
    for mark in marks_of(script, "continuation"):
        word = next(
            (w for w in words if w.origin is None and w.span.start < mark.span.start and mark.span.end < w.span.end),
            None,
        )
        if word is None or source.text[mark.span.start - 1] in " \t":
            continue
        left = source.text[word.span.start : mark.span.start]
        right = source.text[mark.span.end : word.span.end]
        if any(char in left for char in "'\"`(") or not re.match(r"--?[A-Za-z]", right):
            continue
        yield report(
            RULE,
            f"The shell sees `{word.shown}`: `{left}` and `{right}` are joined, because no blank separates them.",
            command.locate(Span(word.span.start, word.span.end)),
            fix=Fix("put a blank before the backslash", (insert(source, mark.span.start, " "),), safe=True),
        )
