"""The shell refuses the text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.shell import BASH
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Location,
    Reference,
    Rule,
    Script,
    Severity,
    Signature,
    pattern,
    report,
)

RULE = Rule(
    code="MGD811",
    slug="syntax-error",
    title="The shell refuses the text",
    severity=Severity.ERROR,
    summary="The shell refuses the text.",
    why=(
        "A quotation mark or bracket that is never closed, or a keyword in the wrong place, stops the shell: "
        "it runs what stands above and nothing from there on."
    ),
    bad=(
        Example("a quotation mark", "torchrun --nproc_per_node 2 train.py --note 'two words"),
        Example("brackets", "torchrun --nproc_per_node 2 train.py --target_modules (q_proj)"),
        Example(
            "a loop without an end",
            lint=("run.sh",),
            files={"run.sh": "for lr in 1 2; do\n  torchrun train.py --lr $lr\n"},
        ),
        Example("a pipe without a command", lint=("run.sh",), files={"run.sh": "torchrun train.py |\n"}),
    ),
    good=(
        Example(
            "placeholders in a document",
            lint=("a.md",),
            files={"a.md": "```bash\npython train.py --a <x> (optional)\n```\n"},
        ),
        Example("a placeholder", "python train.py --model <path to model>"),
        Example("quoted brackets", "torchrun train.py --target_modules '(q_proj)'"),
        Example("a here-document", "cat > a.yaml <<EOF\nit's (fine\nEOF\npython train.py a.yaml"),
        Example("no launch", lint=("a.sh",), files={"a.sh": "echo 'a\n"}),
    ),
    sources=(Reference(BASH, "bash -n refuses every text of the examples that fire", ran=True),),
    signatures=(
        Signature(
            r"line \d+: (?:syntax error near unexpected token|syntax error: unexpected end of file|"
            r"unexpected EOF while looking for matching)",
            "bash 5.2 (ran)",
            "run.sh: line 1: syntax error near unexpected token `a'",
        ),
    ),
)

_LAUNCHES = pattern(
    r"torchrun|accelerate(?:-launch|\s+launch)|deepspeed|llamafactory-cli|python[\d.]*\s+\S*\.py|python[\d.]*\s+-m"
)


def find(case: Case) -> Iterator[Finding]:
    """The first problem of every script that launches something."""
    for script in case.scripts:
        if not script.problems or not _LAUNCHES.search(script.excerpt.text):
            continue
        # A string in a program may be a part of what is put together.
        if script.source.kind in {"markdown", "rst", "python"} or _is_sketch(script):
            continue
        problem = min(script.problems, key=lambda one: one.span)
        yield report(
            RULE,
            f"The shell refuses this: {problem.message}.",
            Location(script.source, problem.span),
            evidence=[f"and {len(script.problems) - 1} more places"] if len(script.problems) > 1 else (),
        )


def _is_sketch(script: Script) -> bool:
    """Whether the text is meant to be filled in."""
    return re.search(r"<[A-Za-z][\w ./-]*>|(?<!\S)\.\.\.(?!\S)|…", script.excerpt.text) is not None
