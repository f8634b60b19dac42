"""The lines of a script end in carriage return and newline, as Windows writes them."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.shell import BASH, location_in, marks_of, scripts_that_mean_to_launch
from mgpu_doctor.authoring import Case, Example, Finding, Fix, Reference, Rule, Severity, Signature, replace, report

RULE = Rule(
    code="MGD806",
    slug="crlf-line-endings",
    title="Carriage returns at the ends of lines",
    severity=Severity.ERROR,
    summary="The lines of a script end in carriage return and newline, as Windows writes them.",
    why=(
        "The shell takes the carriage return for a character of the last word: `train.py\\r` does not exist, "
        "`--lr 1\\r` is no number, and a backslash before it no longer joins two lines."
    ),
    bad=(
        Example(
            "a script", lint=("run.sh",), files={"run.sh": "#!/bin/bash\r\ntorchrun --nproc_per_node 2 train.py\r\n"}
        ),
        Example("a continued command", "torchrun --nproc_per_node 2 \\\r\n  train.py\r\n"),
    ),
    good=(
        Example("newlines alone", lint=("run.sh",), files={"run.sh": "torchrun --nproc_per_node 2 train.py\n"}),
        Example(
            "a document, which people read in a browser",
            lint=("README.md",),
            files={"README.md": "```bash\r\ntorchrun --nproc_per_node 2 train.py\r\n```\r\n"},
        ),
        Example("no launch", lint=("a.sh",), files={"a.sh": "echo a\r\n"}),
    ),
    sources=(
        Reference(
            BASH, "`printf '<%s>' a\\r`: the argument is `a\\r`; a backslash before \\r\\n joins nothing", ran=True
        ),
    ),
    fix="delete the carriage returns (dos2unix)",
    fixable=True,
    signatures=(
        Signature(
            r"\$'\\r': command not found|near unexpected token `\$'\\r''|\^M: bad interpreter"
            r"|^: invalid option(?: name)?$",
            "bash 5.2, a script whose lines end in carriage returns (ran)",
            "run.sh: line 2: $'\\r': command not found",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """Scripts with carriage returns."""
    for script, launches in scripts_that_mean_to_launch(case):
        marks = marks_of(script, "carriage-return")
        touched = [m for m in marks if any(c.span.start <= m.span.start <= c.span.end + 1 for c in launches)]
        if not touched:
            continue
        source = script.source
        first = touched[0].span
        lines = "1 line ends" if len(marks) == 1 else f"{len(marks)} lines end"
        yield report(
            RULE,
            f"{lines} in a carriage return: it becomes part of the last word, and breaks continued lines.",
            location_in(source, max(first.start - 1, 0), first.end),
            fix=Fix(
                "delete the carriage returns",
                tuple(replace(source, mark.span, "") for mark in marks),
                commands=(f"sed -i 's/\\r$//' {source.path}",) if source.path else (),
                safe=True,
            ),
        )
