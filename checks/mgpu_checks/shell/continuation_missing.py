"""A line of options stands under a launch command that has no backslash at its end."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.shell import BASH, Break, breaks
from mgpu_doctor.authoring import (
    Case,
    Edit,
    Evidence,
    Example,
    Finding,
    Fix,
    Reference,
    Rule,
    Severity,
    Signature,
    Span,
    insert,
    replace,
    report,
)

RULE = Rule(
    code="MGD803",
    slug="continuation-missing",
    title="A backslash is missing at the end of the line",
    severity=Severity.ERROR,
    summary="A line of options stands under a launch command that has no backslash at its end.",
    why=(
        "Without the backslash the command ends at the end of its line and runs without the options below. "
        "The shell then tries to run the first of them as a command and says `command not found`."
    ),
    bad=(
        Example("the script stands below", "torchrun --nproc_per_node 2\n    train.py --lr 1e-4", facts=None),
        Example("one line", "torchrun --nproc_per_node 2 train.py\n  --lr 1e-4"),
        Example(
            "in the middle",
            lint=("run.sh",),
            files={"run.sh": "accelerate launch train.py \\\n    --a 1\n    --b 2 \\\n    --c 3\n    --d 4\n"},
        ),
        Example("two backslashes", "torchrun --nproc_per_node 2 train.py \\\\\n  --lr 1e-4"),
        Example(
            "options left out in a document",
            lint=("a.md",),
            files={"a.md": "```bash\ntorchrun train.py \\\n    --lr 1 \\\n    ...\n    --epochs 3\n```\n"},
        ),
        Example("dotted names", "python -m trainer.main \\\n  data.path=a\n  model.path=b"),
    ),
    good=(
        Example("a program of its own", "torchrun --nproc_per_node 2 train.py\n./score.py --all", facts=None),
        Example("with backslashes", "torchrun --nproc_per_node 2 train.py \\\n  --lr 1e-4"),
        Example("another command below", "torchrun --nproc_per_node 2 train.py\nls -l"),
        Example("a list in prose below", lint=("a.sh",), files={"a.sh": "python train.py\n\n- one\n"}),
        Example("not under a launch", lint=("a.sh",), files={"a.sh": "python train.py\necho x\n--lr 1\n"}),
    ),
    sources=(Reference(BASH, "`echo a` newline `--b`: prints a, then `--b: command not found`", ran=True),),
    fix="end the line above with a backslash",
    fixable=True,
    signatures=(
        Signature(
            r"line \d+: (?:--?[A-Za-z][\w-]*|[A-Za-z_]\w*(?:[.-]\w+)+=\S*): command not found",
            "bash 5.2: an option stands at the beginning of a command (ran)",
            "run.sh: line 2: --lr: command not found",
        ),
        Signature(
            r"^(?:\S+: \d+: )(?:\S+: )?--?[A-Za-z][\w-]*: not found",
            "dash 0.5.12: an option stands at the beginning of a command (ran)",
            "run.sh: 42: --deepspeed: not found",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """Breaks at a plain newline, one finding for each launch."""
    groups: dict[int, list[Break]] = {}
    for one in breaks(case):
        if one.cause == "newline":
            groups.setdefault(id(one.head), []).append(one)
    for group in groups.values():
        yield _finding(group)


def _finding(group: list[Break]) -> Finding:
    one = group[0]
    first = one.fragment.words[0]
    rest = len(group) - 1
    more = f" (and {rest} more line{'s' * (rest > 1)})" if rest else ""
    left_out = any(other.before.words[-1].shown in {"...", "…"} for other in group)
    doubled = _is_doubled(one)
    what = "two backslashes, which are one that is an argument" if doubled else "no backslash"
    return report(
        RULE,
        f"`{first.shown}`{more} does not belong to {one.head.words[0].shown}: "
        f"the line above has {what}, so the command ends there.",
        one.fragment.locate(one.fragment.span),
        # Where a document leaves options out, the reader writes this line anew.
        severity=Severity.WARNING if left_out else None,
        related=[Evidence("and here", other.fragment.locate(other.fragment.span)) for other in group[1:6]],
        fix=Fix(
            f"end the line above with {'one' if doubled else 'a'} backslash",
            tuple(_mended(other) for other in group),
            safe=True,
        ),
    )


def _is_doubled(one: Break) -> bool:
    return one.before.words[-1].shown == "\\" and one.before.words[-1].span.end == one.before.span.end


def _mended(one: Break) -> Edit:
    source, end = one.script.source, one.before.span.end
    if _is_doubled(one):
        return replace(source, Span(end - 1, end), "")
    return insert(source, end, " \\")
