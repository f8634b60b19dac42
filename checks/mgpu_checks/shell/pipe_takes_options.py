"""Options of the launch stand behind a pipe, ``&`` or ``;`` and go to another command."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from mgpu_checks.shell import BASH, breaks
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
    Word,
    insert,
    pattern,
    replace,
    report,
)

RULE = Rule(
    code="MGD813",
    slug="pipe-takes-options",
    title="Options behind a pipe go to another command",
    severity=Severity.ERROR,
    summary="Options of the launch stand behind a pipe, `&` or `;` and go to another command.",
    why=(
        "A pipe, `&` or `;` ends the launch command. What follows belongs to the next command: "
        "`tee log.txt --lr 1` does not know --lr, and the training runs without it."
    ),
    bad=(
        Example("behind tee", "torchrun --nproc_per_node 2 train.py 2>&1 | tee log.txt --lr 1e-4"),
        Example("on the next line", "accelerate launch train.py --a 1 2>&1 | tee log.txt \\\n  --lr 1e-4 --seed 1"),
        Example("behind an ampersand", "nohup torchrun train.py > log 2>&1 & --lr 1e-4"),
    ),
    good=(
        Example("before the pipe", "torchrun --nproc_per_node 2 train.py --lr 1e-4 2>&1 | tee log.txt"),
        Example("tee's own options", "torchrun train.py 2>&1 | tee -a --output-error=warn log.txt"),
        Example("behind a redirection they still belong to the command", "torchrun train.py > log --lr 1e-4"),
        Example("another program's", "torchrun train.py 2>&1 | grep --line-buffered loss"),
    ),
    sources=(
        Reference("coreutils 9.1, tee --help", "options -a, -i, -p, --output-error, --help, --version"),
        Reference(BASH, "`echo a > f --b` writes `a --b` to f: a redirection does not end the words", ran=True),
    ),
    fix="move the options in front of the pipe",
    fixable=True,
)

_TEE = pattern(r"-[aip]+$|--(?:append|ignore-interrupts|output-error(?:=.*)?|help|version)$")


def find(case: Case) -> Iterator[Finding]:
    """Pipelines of a launch into ``tee`` with options that are not its own; options behind ``&`` and ``;``."""
    launching = {id(launch.command) for launch in case.launches}
    for script in case.scripts:
        commands = sorted(script.commands, key=lambda command: command.span)
        for launch, after in pairwise(commands):
            if id(launch) in launching and after.name == "tee" and after.pipeline[0] == launch.pipeline[0] + 1:
                yield from _behind_tee(script, launch, after)
    for one in breaks(case):
        if one.cause == "separator":
            first = one.fragment.words[0]
            yield report(
                RULE,
                f"`{first.shown}` stands behind the end of {one.head.words[0].shown} and is run as a "
                "command of its own.",
                one.fragment.locate(one.fragment.span),
                fix=_moved(one.script, one.head, one.fragment.words, one.fragment.words[0].span.start),
            )


def _behind_tee(script: Script, launch: Command, tee: Command) -> Iterator[Finding]:
    for number, word in enumerate(tee.words[1:], 1):
        start = word.known_prefix
        if not re.match(r"--?[A-Za-z]", start) or _TEE.match(start):
            continue
        yield report(
            RULE,
            f"`{word.shown}` goes to tee: {launch.words[0].shown} runs without it.",
            tee.locate(Span(word.span.start, tee.words[-1].span.end)),
            fix=_moved(script, launch, tee.words[number:], tee.words[number - 1].span.end),
        )
        return


def _moved(script: Script, launch: Command, words: tuple[Word, ...], cut: int) -> Fix:
    source = script.source
    end = words[-1].span.end
    text = source.text[words[0].span.start : end]
    joined = re.sub(r"[ \t]*\\\r?\n[ \t>]*", " ", text)
    start = cut
    while start > 0 and source.text[start - 1] in " \t":
        start -= 1
    at = launch.words[-1].span.end
    edits = (insert(source, at, f" {joined}"), replace(source, Span(max(start, at), end), ""))
    return Fix("move the options in front of the pipe", edits)
