"""Quotation marks become part of a value, because nothing removes them there."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.shell import BASH, is_knob, region_of
from mgpu_doctor.authoring import (
    Case,
    Command,
    Edit,
    Evidence,
    Example,
    Finding,
    Fix,
    Location,
    Reference,
    Rule,
    Script,
    Severity,
    Source,
    Span,
    Variable,
    Word,
    pattern,
    replace,
    report,
)

RULE = Rule(
    code="MGD809",
    slug="quotes-kept",
    title="Quotation marks stay in the value",
    severity=Severity.ERROR,
    summary="Quotation marks become part of a value, because nothing removes them there.",
    why=(
        "The shell removes the quotation marks that it reads in the text of a command. Those that "
        "come out of a variable, or "
        'that stand inside other quotes, are ordinary characters: the program receives `"a` and `b"`.'
    ),
    bad=(
        Example(
            "options kept in a string", "ARGS=\"--lr 1 --note 'two words'\"\ntorchrun --nproc_per_node 2 train.py $ARGS"
        ),
        Example("quotes inside quotes", "export HF_ENDPOINT=\"'https://example.org'\"\npython train.py"),
        Example("escaped quotes", 'MASTER_ADDR=\\"10.0.0.1\\" torchrun --nnodes 2 train.py'),
        Example("for a container", "docker run --gpus all -e 'NCCL_SOCKET_IFNAME=\"eth0\"' img python train.py"),
        Example(
            "a magic in a document",
            lint=("a.md",),
            files={"a.md": "```\n%env NCCL_SOCKET_IFNAME='eth0'\n!torchrun train.py\n```\n"},
        ),
        Example("IPython's %env", '%env CUDA_VISIBLE_DEVICES="0,1"\n!torchrun --nproc_per_node 2 train.py', facts=None),
    ),
    good=(
        Example("IPython's %env without any", "%env CUDA_VISIBLE_DEVICES=0,1\n!torchrun --nproc_per_node 2 train.py"),
        Example("an array keeps words apart", 'ARGS=(--lr 1 --note "two words")\ntorchrun train.py "${ARGS[@]}"'),
        Example("eval removes them", "ARGS=\"--note 'two words'\"\neval torchrun train.py $ARGS"),
        Example("JSON", 'python train.py --config \'{"a": "b"}\''),
        Example("JSON in a variable", 'C=\'{"a":"b"}\'\npython train.py --config $C'),
        Example("removed by the shell", 'export HF_ENDPOINT="https://example.org"\npython train.py'),
        Example("an apostrophe", 'python train.py --note "it\'s"'),
    ),
    sources=(
        Reference("IPython 8.37, core/magics/osm.py set_env()", "os.environ[var] = val, the rest of the line"),
        Reference(BASH, "`A=\"x 'y z'\"; printf '<%s>' $A` prints <x><'y><z'>", ran=True),
        Reference(BASH, "`A=\"'x'\" printenv A` prints 'x' with its quotation marks", ran=True),
    ),
    fix="keep the options in an array; write the value with one pair of quotation marks",
)


_MAGIC = pattern(
    r"""^[ \t]*%(?:env|set_env)[ \t]+([A-Za-z_]\w*)(?:=|[ \t]+)(?P<value>"[^"\n]*"|'[^'\n]*')[ \t]*$""", re.MULTILINE
)
"""IPython's way to set a variable, which takes the rest of the line as it is."""


def _in_magic(script: Script, last: int) -> Iterator[Finding]:
    """``%env NAME="value"`` above a launch in a notebook."""
    text, offset = region_of(script)
    for match in _MAGIC.finditer(text) if "%" in text else ():
        span = Span(offset + match.start("value"), offset + match.end("value"))
        if span.start < last:
            yield report(
                RULE,
                f"%env keeps the quotation marks: {match.group(1)} becomes {match.group('value')} with them.",
                Location(script.source, span),
                fix=Fix("write it without them", (replace(script.source, span, match.group("value")[1:-1]),)),
            )


def find(case: Case) -> Iterator[Finding]:
    """Values with quotation marks in launches and their environment."""
    seen: set[Location] = set()
    launching = {id(launch.command): launch.command for launch in case.launches}
    for script in case.scripts:
        starts = [command.span.start for command in script.commands if id(command) in launching]
        yield from _in_magic(script, max(starts, default=-1))
    for launch in case.launches:
        command = launch.command
        yield from _in_words(command)
        for variable in command.environment:
            location = variable.location
            if location is None or location in seen or not is_knob(variable.name):
                continue
            seen.add(location)
            if location.source.slice(location.span).startswith("%"):
                continue  # a notebook's magic, told above
            finding = _in_variable(variable, location)
            if finding is not None:
                yield finding


def _in_words(command: Command) -> Iterator[Finding]:
    """Words that came out of an unquoted variable with a quotation mark at one end."""
    words = command.words
    for number, word in enumerate(words):
        text = word.value
        if text is None or word.origin is None or any(piece.quoted for piece in word.pieces):
            continue
        quote = text[:1] if text[:1] in ("'", '"') else _behind_equals(text)
        if not quote or (len(text) > 1 and text.endswith(quote) and text.count(quote) == 2 and _is_data(text)):
            continue
        end = next(
            (w for w in words[number:] if w.value is not None and w.value.endswith(quote) and w.origin is not None),
            None,
        )
        if end is None:
            continue
        shown = " ".join(f"<{w.shown}>" for w in words[number : words.index(end) + 1])
        yield report(
            RULE,
            f"The quotation marks come out of a variable and stay: the program receives {shown}.",
            command.locate(word.span),
            related=(Evidence("written here", word.origin),),
            fix=Fix('keep the options in an array: ARGS=(…), used as "${ARGS[@]}"'),
        )
        return


def _behind_equals(text: str) -> str:
    match = re.match(r"--?[\w-]+=(['\"])", text)
    return match.group(1) if match else ""


def _is_data(text: str) -> bool:
    return text[1:2] in "{[" if len(text) > 1 else False


def _in_variable(variable: Variable, location: Location) -> Finding | None:
    text = variable.text
    if text is None or len(text) < 2 or text[0] not in "'\"" or text[-1] != text[0] or text.count(text[0]) != 2:
        return None
    if variable.name == "CUDA_VISIBLE_DEVICES":
        return None  # the list of devices has a rule of its own
    inner = text[1:-1]
    edit = _edit(variable.value, location.source, text, inner) if variable.value is not None else None
    return report(
        RULE,
        f"{variable.name} is {text} with its quotation marks: who reads it does not remove them.",
        location,
        fix=Fix(f"write {variable.name}={inner}", () if edit is None else (edit,), safe=edit is not None),
    )


def _edit(value: Word, source: Source, text: str, inner: str) -> Edit | None:
    span = Span(value.span.start, value.span.end)
    written = source.slice(span)
    at = written.find(text)
    if at >= 0:
        return replace(source, Span(span.start + at, span.start + at + len(text)), inner)
    if re.fullmatch(r"\\(['\"])[^'\"\\]*\\\1", written):
        return replace(source, span, f"{written[1]}{inner}{written[1]}")
    return None
