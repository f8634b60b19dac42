"""Characters that look like ASCII and are not: typographic dashes and quotes, other blanks, full-width signs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.shell import BASH, marks_of, scripts_that_mean_to_launch
from mgpu_doctor.authoring import (
    Case,
    Command,
    Edit,
    Evidence,
    Example,
    Finding,
    Fix,
    Mark,
    Reference,
    Rule,
    Script,
    Severity,
    Span,
    replace,
    report,
)

RULE = Rule(
    code="MGD807",
    slug="typographic-characters",
    title="Typographic characters in a command",
    severity=Severity.ERROR,
    summary=(
        "Characters that look like ASCII and are not: typographic dashes and quotes, other blanks, full-width signs."
    ),
    why=(
        "Word processors and chat programs turn `--` into a dash, straight quotes into curly ones and blanks into "
        "no-break spaces. To the shell these are letters: `—lr` is no option, curly quotes stay in the value, and a "
        "no-break space does not separate arguments."
    ),
    bad=(
        Example("a dash for two hyphens", "torchrun \u2014nproc_per_node 2 train.py"),
        Example("curly quotes", "python train.py --note \u201ctwo words\u201d"),
        Example("a no-break space", "torchrun --nproc_per_node\u00a02 train.py --lr\u00a01"),
        Example("a no-break space behind the launcher", "torchrun\u00a0--nproc_per_node 2 train.py"),
        Example("a full-width comma", "CUDA_VISIBLE_DEVICES=0\uff0c1 python train.py"),
        Example("in an export", "export HF_ENDPOINT=\u201chttps://example.org\u201d\npython train.py"),
    ),
    good=(
        Example("inside quotes", 'python train.py --note "a \u2014 \u201cb\u201d"'),
        Example("in a comment", "# first \u2014 second\npython train.py"),
        Example("plain", "torchrun --nproc_per_node 2 train.py"),
        Example("a name in another script", "python train.py --data \u6570\u636e.json"),
    ),
    sources=(
        Reference(
            BASH, "`printf '<%s>' \u201ca b\u201d` prints <\u201ca><b\u201d>; U+00A0 does not separate words", ran=True
        ),
    ),
    fix="type the ASCII characters",
    fixable=True,
)

_QUOTES = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\uff07", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\uff02", '"'),
}
_INVISIBLE = frozenset("\u200b\u2060\ufeff")
_SIGNS = {
    "\uff0c": ",",
    "\uff1a": ":",
    "\uff0f": "/",
    "\uff3f": "_",
    "\uff1d": "=",
    "\uff5c": "|",
    "\uff06": "&",
    "\uff1b": ";",
    "\uff3c": "\\",
}
_NAMES = {
    "\u2014": "an em dash",
    "\u2013": "an en dash",
    "\u2212": "a minus sign",
    "\u00a0": "a no-break space",
    "\u3000": "an ideographic space",
    "\u200b": "a zero-width space",
    "\ufeff": "a byte order mark",
}


def find(case: Case) -> Iterator[Finding]:
    """Look-alikes in launches and in the assignments that reach them."""
    for script, launches in scripts_that_mean_to_launch(case):
        marks = marks_of(script, "typographic")
        if not marks:
            continue
        taken: set[Mark] = set()
        for command in launches:
            spans = _spans(script, command)
            found = [m for m in marks if m not in taken and any(span.contains(m.span) for span in spans)]
            taken.update(found)
            if found:
                yield _finding(script, command, found)


def _spans(script: Script, command: Command) -> list[Span]:
    """The command's own text, the assignments that reach it, and the texts that its words come from."""
    spans = [command.span]
    locations = [variable.location for variable in (*command.environment, *command.shell_only)]
    spans += [location.span for location in locations if location is not None and location.source == script.source]
    spans += [
        word.origin.span for word in command.words if word.origin is not None and word.origin.source == script.source
    ]
    return spans


def _finding(script: Script, command: Command, marks: list[Mark]) -> Finding:
    source = script.source
    edits = [edit for mark in marks if (edit := _edit(script, mark)) is not None]
    first = marks[0]
    name = _named(first.detail)
    more = f", and {len(marks) - 1} more" if len(marks) > 1 else ""
    return (
        report(
            RULE,
            f"{name[0].upper()}{name[1:]} (U+{ord(first.detail):04X}){more}: {command.words[0].shown} "
            f"does not read it as {_meaning(script, first)}.",
            command.locate(first.span),
            related=[
                Evidence(f"{_named(m.detail)} (U+{ord(m.detail):04X})", command.locate(m.span)) for m in marks[1:8]
            ],
            fix=Fix("type the ASCII characters", tuple(edits), safe=len(edits) == len(marks)),
        )
        if source
        else report(RULE, name)
    )


def _named(char: str) -> str:
    if char in _NAMES:
        return _NAMES[char]
    if char in _QUOTES:
        return "a typographic quotation mark"
    if char in _SIGNS:
        return "a full-width sign"
    return "a typographic dash" if _is_dash(char) else "an unusual blank"


def _is_dash(char: str) -> bool:
    return "\u2010" <= char <= "\u2015" or char in "\u2212\ufe58\ufe63\uff0d"


def _meaning(script: Script, mark: Mark) -> str:
    plain = _plain(script, mark)
    return "a separator" if plain in (" ", "") else f"`{plain}`"


def _plain(script: Script, mark: Mark) -> str:
    char = mark.detail
    if char in _QUOTES:
        return _QUOTES[char]
    if char in _INVISIBLE:
        return ""
    if char in _SIGNS:
        return _SIGNS[char]
    if not _is_dash(char):
        return " "
    text = script.source.text
    before = text[mark.span.start - 1 : mark.span.start]
    after = re.match(r"[\w-]*", text[mark.span.end :])
    word = after.group() if after else ""
    if before.strip() and before not in "\u00a0\u3000":
        return "-"
    if word.startswith("-"):
        return "-"
    return "-" if len(word) == 1 else "--"


def _edit(script: Script, mark: Mark) -> Edit | None:
    plain = _plain(script, mark)
    text = script.source.text
    if not plain.strip() and plain and text[mark.span.end : mark.span.end + 1] in " \t":
        plain = ""
    return replace(script.source, mark.span, plain)
