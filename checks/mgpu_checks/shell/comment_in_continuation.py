"""A comment in the middle of a continued command ends it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.shell import BASH, Break, breaks, line_start, location_in, marks_of
from mgpu_doctor.authoring import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Reference,
    Rule,
    Severity,
    Span,
    insert,
    replace,
    report,
)

RULE = Rule(
    code="MGD805",
    slug="comment-in-continuation",
    title="A comment ends the command",
    severity=Severity.ERROR,
    summary="A comment in the middle of a continued command ends it.",
    why=(
        "A comment runs to the end of its line, and a backslash inside it joins nothing. The command ends "
        "at the comment, runs without the options below, and the next option is run as a command."
    ),
    bad=(
        Example(
            "a commented option",
            "torchrun --nproc_per_node 2 train.py \\\n  --lr 1e-4 \\\n  # --epochs 3 \\\n  --seed 1",
        ),
        Example(
            "two comments",
            lint=("run.sh",),
            files={"run.sh": "accelerate launch train.py \\\n  # first\n  --a 1 \\\n  # second\n  # third\n  --b 2\n"},
        ),
        Example("behind an option", "torchrun train.py \\\n  --lr 1e-4 # high \\\n  --seed 1"),
    ),
    good=(
        Example("at the end", "torchrun train.py \\\n  --lr 1e-4 \\\n  # --seed 1\n"),
        Example("above the command", "# lr 1e-4\ntorchrun train.py \\\n  --lr 1e-4"),
        Example("a number sign inside a word", "torchrun train.py \\\n  --tag a#b \\\n  --lr 1"),
        Example("another command follows", "torchrun train.py \\\n  --lr 1e-4 \\\n  # --seed 1\necho done"),
    ),
    sources=(
        Reference(BASH, "`echo a \\` newline `# b` newline `--c`: prints a, then `--c: command not found`", ran=True),
    ),
    fix="move the comment above the command",
    fixable=True,
)


def find(case: Case) -> Iterator[Finding]:
    """Breaks at a comment."""
    for one in breaks(case):
        if one.cause == "comment":
            yield _finding(one)


def _finding(one: Break) -> Finding:
    source = one.script.source
    comments = [mark.span for mark in marks_of(one.script, "comment") if one.gap.contains(mark.span)]
    first = one.fragment.words[0].shown
    shown = source.slice(comments[0])
    return report(
        RULE,
        f"The comment ends {one.head.words[0].shown}: `{first}` below it is run as a command of its own.",
        location_in(source, comments[0].start, comments[-1].end),
        evidence=(f"`{shown}` stands between lines of one command",),
        fix=Fix("move the comment above the command", _edits(one, comments), safe=True),
    )


def _edits(one: Break, comments: list[Span]) -> tuple[Edit, ...]:
    source = one.script.source
    text = source.text
    head = line_start(source, one.head.span.start)
    prefix = text[head : one.head.span.start]
    indent = prefix if re.fullmatch(r"[ \t>]*", prefix) else re.match(r"[ \t>]*", prefix).group()  # type: ignore[union-attr]
    edits = []
    joined = text[one.before.span.end : comments[0].start]
    for span in comments:
        note = source.slice(span).rstrip().rstrip("\\").rstrip()
        edits.append(insert(source, head, f"{indent}{note}\n"))
        start = line_start(source, span.start)
        if re.fullmatch(r"[ \t>]*", text[start : span.start]):
            edits.append(replace(source, Span(start, min(span.end + _newline(text, span.end), len(text))), ""))
        else:
            at = span.start
            while text[at - 1] in " \t":
                at -= 1
            edits.append(replace(source, Span(at, span.end), " \\"))
            joined = "\\"
    if "\\" not in joined:
        edits.append(insert(source, one.before.span.end, " \\"))
    return tuple(edits)


def _newline(text: str, at: int) -> int:
    return 2 if text.startswith("\r\n", at) else 1
