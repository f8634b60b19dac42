"""The last line of a command ends in a backslash."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.shell import BASH, location_in, marks_of, scripts_with_launches
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Launch,
    Mark,
    Reference,
    Rule,
    Script,
    Severity,
    Span,
    Word,
    pattern,
    replace,
    report,
)

RULE = Rule(
    code="MGD804",
    slug="continuation-dangling",
    title="The last line ends in a backslash",
    severity=Severity.WARNING,
    summary="The last line of a command ends in a backslash.",
    why=(
        "The backslash joins whatever line comes next. At the end of a text the shell waits for more; an empty line "
        "ends the command by luck; a command on the next line is swallowed and its words become arguments of this one."
    ),
    bad=(
        Example("at the end", "torchrun --nproc_per_node 2 train.py \\\n  --lr 1e-4 \\\n"),
        Example(
            "swallows the next command",
            lint=("run.sh",),
            files={"run.sh": "accelerate launch train.py \\\n  --lr 1 \\\npython eval.py --out o\n"},
        ),
        Example(
            "an empty line below",
            lint=("run.sh",),
            files={"run.sh": "torchrun train.py \\\n  --lr 1 \\\n\necho done\n"},
        ),
    ),
    good=(
        Example("no backslash", "torchrun --nproc_per_node 2 train.py \\\n  --lr 1e-4\n"),
        Example("python is an argument", "torchrun train.py \\\n  --interpreter \\\n  python"),
        Example("another command", lint=("a.sh",), files={"a.sh": "echo a \\\n\npython train.py\n"}),
    ),
    sources=(Reference(BASH, "`echo a \\` newline `echo b` prints `a echo b`", ran=True),),
    fix="delete the backslash",
    fixable=True,
)

_COMMANDS = pattern(
    r"(?:torchrun|accelerate|deepspeed|llamafactory-cli|python[\d.]*|echo|export|wait|done|fi|sleep|cd)"
)


def find(case: Case) -> Iterator[Finding]:
    """Backslashes that join nothing, or the next command."""
    for script, launches in scripts_with_launches(case):
        for mark in marks_of(script, "dangling"):
            if any(_ends_at(script, command.span, mark) for command in launches):
                yield report(
                    RULE,
                    "The backslash on the last line of the command joins nothing.",
                    location_in(script.source, mark.span.start, mark.span.start + 1),
                    fix=_fix(script, mark.span.start),
                )
        here = {id(command) for command in launches}
        for launch in case.launches:
            if id(launch.command) in here:
                yield from _swallowed(script, launch)


def _ends_at(script: Script, span: Span, mark: Mark) -> bool:
    if span.start < mark.span.start < span.end:
        return True
    return span.end <= mark.span.start and not script.source.text[span.end : mark.span.start].strip(" \t")


def _fix(script: Script, at: int) -> Fix:
    text = script.source.text
    start = at
    while start > 0 and text[start - 1] in " \t":
        start -= 1
    return Fix("delete the backslash", (replace(script.source, Span(start, at + 1), ""),), safe=True)


def _swallowed(script: Script, launch: Launch) -> Iterator[Finding]:
    text = script.source.text
    words = launch.target.argument_words
    for number, word in enumerate(words):
        if word.origin is not None or not _COMMANDS.fullmatch(word.value or ""):
            continue
        before = re.search(r"\\\r?\n([ \t>]*)$", text[: word.span.start])
        if before is None or not _begins_a_command(words, number) or not _at_the_head(text, launch, word):
            continue
        at = before.start()
        yield report(
            RULE,
            f"The backslash joins the next line: `{word.value}` and what follows become arguments of "
            f"{launch.command.words[0].shown}.",
            location_in(script.source, at, at + 1),
            severity=Severity.ERROR,
            fix=_fix(script, at),
        )
        return


def _begins_a_command(words: tuple[Word, ...], number: int) -> bool:
    """Whether a swallowed word is used as a command, not as the value of the option before it."""
    word = words[number].value or ""
    following = words[number + 1].value or "" if number + 1 < len(words) else ""
    if word.startswith("python"):
        return following.endswith(".py") or following in {"-m", "-c", "-u"}
    if word in {"torchrun", "accelerate", "deepspeed", "llamafactory-cli"}:
        return bool(following)
    return True


def _at_the_head(text: str, launch: Launch, word: Word) -> bool:
    """Whether the line begins in the column in which the launch begins."""
    column = launch.command.span.start - (text.rfind("\n", 0, launch.command.span.start) + 1)
    return word.span.start - (text.rfind("\n", 0, word.span.start) + 1) <= column
