"""``!cd`` and ``!export`` in a notebook do not last."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.shell import region_of
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Reference,
    Rule,
    Script,
    Severity,
    Span,
    pattern,
    replace,
    report,
)

RULE = Rule(
    code="MGD812",
    slug="notebook-shell-state",
    title="!cd and !export do not last",
    severity=Severity.ERROR,
    summary="`!cd` and `!export` in a notebook do not last.",
    why=(
        "Every `!` line runs in a shell of its own that ends with the line. A directory or variable "
        "that it sets is gone "
        "when the next line launches the job: `%cd` and `%env` change the notebook's own process."
    ),
    bad=(
        Example("a directory", "!cd work\n!torchrun --nproc_per_node 2 train.py"),
        Example("a variable", "!export CUDA_VISIBLE_DEVICES=0,1\n!python train.py"),
        Example("set alone", "!CUDA_VISIBLE_DEVICES=0,1\n!python train.py"),
        Example("in a document", lint=("a.md",), files={"a.md": "```\n!cd work\n!torchrun train.py\n```\n"}),
        Example(
            "in a notebook",
            lint=("a.ipynb",),
            files={
                "a.ipynb": '{"cells": [{"cell_type": "code", "source": ["!cd work"]}, '
                '{"cell_type": "code", "source": ["!torchrun --nproc_per_node 2 train.py"]}], "metadata": {}}'
            },
        ),
        Example("in a cell", lint=("a.md",), files={"a.md": "```python\nx = 1\n!cd work\n!torchrun train.py\n```\n"}),
    ),
    good=(
        Example("on one line", "!cd work && torchrun --nproc_per_node 2 train.py"),
        Example("magic", "%cd work\n!torchrun --nproc_per_node 2 train.py"),
        Example(
            "a magic in a notebook",
            lint=("a.ipynb",),
            files={
                "a.ipynb": '{"cells": [{"cell_type": "code", "source": ["%cd work\\n", "!ls\\n", '
                '"!torchrun --nproc_per_node 2 train.py"]}], "metadata": {}}'
            },
        ),
        Example("a shell script", "cd work\ntorchrun --nproc_per_node 2 train.py"),
        Example("no launch", "!cd work\n!ls"),
        Example("set for the command", "!A=1 torchrun --nproc_per_node 2 train.py"),
    ),
    sources=(
        Reference("IPython 8.12.3", "every `!` line is a new process: neither cd nor export lasts", ran=True),
        Reference("IPython 8.12.3", "%cd and %env change the kernel's own process, quotation marks included", ran=True),
    ),
    fix="write %cd or %env",
    fixable=True,
)

_LINE = pattern(
    r"^[ \t]*!(?:(cd)[ \t]+([^\n;&|]+?)"
    r"|(export[ \t]+)?([A-Za-z_]\w*)=((?:'[^'\n]*'|\"[^\"\n]*\"|[^\s'\";&|])*))[ \t]*$",
    re.MULTILINE,
)


def find(case: Case) -> Iterator[Finding]:
    """``!`` lines that set something, above a ``!`` line that launches."""
    launching = {id(launch.command) for launch in case.launches}
    for script in case.scripts:
        last = max(
            (c.span.start for c in script.commands if id(c) in launching and _is_banged(script, c.span)), default=-1
        )
        if last < 0:
            continue
        text, offset = region_of(script)
        for match in _LINE.finditer(text):
            if offset + match.start() < last:
                yield _finding(script, match, offset)


def _is_banged(script: Script, span: Span) -> bool:
    text = script.source.text
    start = text.rfind("\n", 0, span.start) + 1
    return text[start : span.end].lstrip().startswith("!")


def _finding(script: Script, match: re.Match[str], offset: int) -> Finding:
    start = match.start() + match.group().index("!")
    span = Span(offset + start, offset + match.end())
    if match.group(1):
        what, new = f"the directory {match.group(2)}", f"%cd {match.group(2)}"
    else:
        what, new = match.group(4), f"%env {match.group(4)}={match.group(5)}"
    return report(
        RULE,
        f"The `!` line runs in a shell of its own: {what} is gone before the launch below.",
        next(iter((script.commands[0].locate(span),))),
        fix=Fix(f"write {new}", (replace(script.source, span, new),), safe=True),
    )
