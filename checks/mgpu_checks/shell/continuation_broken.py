"""Blanks, or blanks and a comment, stand behind the backslash that should join two lines."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.shell import BASH, line_end, location_in, looks_like_option, marks_of, scripts_that_mean_to_launch
from mgpu_doctor.authoring import (
    Case,
    Command,
    Example,
    Finding,
    Fix,
    Mark,
    Reference,
    Rule,
    Script,
    Severity,
    Signature,
    Span,
    replace,
    report,
)

RULE = Rule(
    code="MGD802",
    slug="continuation-broken",
    title="A blank behind the backslash breaks the command",
    severity=Severity.ERROR,
    summary="Blanks, or blanks and a comment, stand behind the backslash that should join two lines.",
    why=(
        "A backslash joins two lines only when the newline follows it at once. With a blank between, "
        "the blank is quoted "
        "and becomes an argument of its own, the command ends there, and the next line is run as a command."
    ),
    bad=(
        Example("a blank behind it", "torchrun --nproc_per_node 2 \\ \n  train.py --lr 1e-4"),
        Example(
            "a comment behind it",
            "torchrun --nproc_per_node 2 train.py \\\n  --lr 1e-4 \\ # learning rate\n  --epochs 3",
        ),
        Example(
            "in a script",
            lint=("run.sh",),
            files={"run.sh": "CUDA_VISIBLE_DEVICES=0,1 \\  \naccelerate launch train.py \\\n  --lr 1\n"},
        ),
        Example(
            "in a document",
            lint=("README.md",),
            files={"README.md": "```bash\naccelerate launch --num_processes 2 \\\t\n    train.py\n```\n"},
        ),
    ),
    good=(
        Example("a newline behind it", "torchrun --nproc_per_node 2 \\\n  train.py"),
        Example("an escaped blank in a path", "python train.py --data /data/my\\ set --lr 1"),
        Example("inside quotes", "python train.py --note 'one \\ \ntwo'"),
        Example("another command", lint=("a.sh",), files={"a.sh": "echo a \\ \necho b\npython train.py\n"}),
    ),
    sources=(
        Reference(
            BASH, "`printf '<%s>' a \\ ` + newline + `b`: prints <a>< > and then looks for a command b", ran=True
        ),
        Reference(BASH, "`printf '<%s>' a \\ # c`: prints <a>< #><c>, the comment becomes arguments", ran=True),
    ),
    fix="delete what stands behind the backslash",
    fixable=True,
    signatures=(
        Signature(
            r"error: unrecognized arguments:(?: \S+)*  +\S|error: unrecognized arguments:$",
            "Python 3.11, argparse: an argument that begins with a blank, or is one (bash 5.2, ran)",
            "train.py: error: unrecognized arguments:  --deepspeed ds.json",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """Backslashes with blanks behind them in or above a launch."""
    for script, launches in scripts_that_mean_to_launch(case):
        for mark in marks_of(script, "escaped-blank"):
            command = next(
                (c for c in script.commands if c.span.contains(mark.span) or c.span.overlaps(mark.span)), None
            )
            if command is None or not _matters(script, command, launches, mark):
                continue
            yield _finding(script, command, mark)


def _matters(script: Script, command: Command, launches: tuple[Command, ...], mark: Mark) -> bool:
    if (
        any(command is launch for launch in launches)
        or not (command.words[0].value or "x").strip()
        or looks_like_option(command)
    ):
        return True
    after = min((c for c in script.commands if c.span.start >= mark.span.end), key=lambda c: c.span, default=None)
    return after is not None and looks_like_option(after)


def _finding(script: Script, command: Command, mark: Mark) -> Finding:
    source = script.source
    text = source.text
    start = mark.span.start
    end = line_end(source, mark.span.end)
    comment = text[mark.span.end : end].rstrip("\r") if mark.detail == "#" else ""
    below = re.match(r"[ \t>]*(\S*)", text[end + 1 :])
    following = below.group(1) if below else ""
    behind = (
        "a comment" if comment else "a blank" if mark.span.end - start == 2 else f"{mark.span.end - start - 1} blanks"
    )
    if _new_command(following) or not following:
        edits = (replace(source, Span(_trimmed(text, start), mark.span.end), " " if comment else ""),)
        title, safe = "delete the backslash", not comment
    else:
        edits = (replace(source, Span(start + 1, mark.span.end + len(comment)), ""),)
        title, safe = ("delete the comment" if comment else "delete the blanks"), not comment
    effect = f"`{following}` on the next line is run as a command of its own" if following else "it joins nothing"
    name = command.words[0].shown.strip() or "the command"
    return report(
        RULE,
        f"{behind[0].upper()}{behind[1:]} behind the backslash: {name} ends here and {effect}.",
        location_in(source, start, mark.span.end + len(comment)),
        fix=Fix(title, edits, safe=safe),
    )


def _trimmed(text: str, at: int) -> int:
    while at > 0 and text[at - 1] in " \t":
        at -= 1
    return at


def _new_command(word: str) -> bool:
    """Whether the next line surely begins a command of its own."""
    return word in {
        "echo",
        "export",
        "cd",
        "wait",
        "done",
        "fi",
        "sleep",
        "exit",
        "python",
        "torchrun",
        "accelerate",
        "#",
        "```",
    }
