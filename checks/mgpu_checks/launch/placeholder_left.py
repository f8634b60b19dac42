"""A placeholder of the documentation is still in the command."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_doctor.authoring import (
    Case,
    Command,
    Example,
    Finding,
    Fix,
    Launch,
    Location,
    Reference,
    Rule,
    Severity,
    Span,
    Word,
    pattern,
    report,
)

_PATTERNS = (
    r"(?<![A-Za-z0-9])(?:YOUR|REPLACE|INSERT|ENTER)_[A-Z][A-Z0-9_]*",
    r"/?ABS(?:OLUTE)?/PATH(?:/TO)?\b[\w./-]*|/PATH/TO\b[\w./-]*|(?<!\w)PATH_TO_\w+",
    r"(?<![\w])/?path/to/[\w./-]*|/your/(?:path|model|data)[\w./-]*|(?<![\w])/absolute/path[\w./-]*",
    (
        r"(?i:(?<![a-z0-9])<(?:your|path|the|insert|model|data|dataset|output|name|num|host|ip|port|master)"
        r"[a-z0-9 _./-]*>)"
    ),
    r"(?<![A-Za-z0-9_-])your[-_](?:model|data|dataset|path|project|script|token|username|org|name|hf)[a-z0-9_-]*",
    r"(?<![\w$])\{[A-Z]{3,}(?:_[A-Z]+)*\}|(?<![\w/-])path[-_]to[-_]\w+|(?<![\w.])(?:xxx?\.){2,3}xxx?(?![\w.])",
    r"(?<![\w.])\d{1,3}\.\d{1,3}\.(?:x{1,3}|\d{1,3})\.x{1,3}(?![\w.])|(?:^|=)(?:\.{3}|…)$",
    r"(?:^|=)(?:MASTER|HEAD|MAIN)_(?:NODE_)?IP(?::\d+)?$",
    r"(?<![A-Za-z0-9_])CHANGE_?ME(?![A-Za-z0-9_])|(?<![A-Za-z0-9_])FIXME(?![A-Za-z0-9_])",
)
_LOUD = 2
"""How many of the patterns are conspicuous enough to be mentioned where a text is a template for others."""

_BRACKETED = pattern(r"(?<![<&\d])<[A-Za-z][A-Za-z0-9 _./-]*>(?![>&])")

_RUN = "torchrun --nproc-per-node 4 train.py --output_dir out"
_FILES = {"train.py": "import torch\n"}

RULE = Rule(
    code="MGD121",
    slug="placeholder-left",
    title="A placeholder is still in the command",
    severity=Severity.ERROR,
    summary="`YOUR_DATASET_NAME`, `/path/to/model` or `<path>` instead of a value",
    why=(
        "Documentation writes placeholders where every reader has another value. Copied as they are, they fail late: "
        "the launcher starts all processes, each imports its libraries, and only then the data set or the model is not "
        "found. `<path>` is worse: the shell reads it as two redirections. In documents and in files of examples, "
        "where "
        "placeholders belong, a conspicuous one is mentioned as advice only."
    ),
    bad=(
        Example("a name in capitals", f"{_RUN} --dataset YOUR_DATASET_NAME", files=_FILES),
        Example("a path", f"{_RUN} --model_name_or_path /path/to/model", files=_FILES),
        Example("a path in capitals", f"{_RUN} --dataset_dir=/ABS/PATH/TO/datasets", files=_FILES),
        Example("angle brackets: the shell redirects", f"{_RUN} --model <model> --epochs 3", files=_FILES),
        Example("dots for a value", "torchrun --nnodes=... --nproc-per-node=8 train.py", files=_FILES),
        Example(
            "a name in capitals for an address",
            "torchrun --nnodes 2 --rdzv_endpoint=HEAD_IP:29500 train.py",
            files=_FILES,
        ),
        Example("angle brackets in quotes", f"{_RUN} --master_addr '<master ip>'", files=_FILES),
    ),
    good=(
        Example("values", f"{_RUN} --dataset demo --model_name_or_path /models/base", files=_FILES),
        Example("a real redirection", f"{_RUN} --epochs 3 < answers.txt > log.txt", files=_FILES),
        Example(
            "a variable of that name",
            "MASTER_IP=10.0.0.1\ntorchrun --nnodes 2 --node_rank 0 --master_addr $MASTER_IP train.py",
            files=_FILES,
        ),
        Example("a folder that is called path", f"{_RUN} --model ./path/model", files=_FILES),
        Example("a template in a value", f"{_RUN} --prompt '<image>Describe {{task}}.'", files=_FILES),
        Example("an option that is called so", f"{_RUN} --path-to-model out/net.pkl --your-name me", files=_FILES),
        Example(
            "filled in by Python",
            lint=("a.py",),
            files={"a.py": 'import os\nos.system(f"torchrun train.py --data {DATA_DIR} --model {YOUR_MODEL}")\n'},
        ),
        Example("a pattern of tags", f"{_RUN} --special_tokens '<s> </s> <pad>'", files=_FILES),
    ),
    sources=(
        Reference(
            "bash 5.2, manual, section 3.6 Redirections",
            "an unquoted <word> reads from a file of that name and writes to the word behind it",
        ),
        Reference(
            "llamafactory 0.9.3, data/parser.py get_dataset_list()",
            "'Undefined dataset YOUR_DATASET_NAME in dataset_info.json.', raised after every rank has started",
        ),
    ),
    fix="Write the value that is meant",
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each placeholder in the words of a launch."""
    for launch in case.launches:
        quiet = case.mode == "lint" or launch.command.source.kind in ("markdown", "rst")
        for text, place in _placeholders(launch, launch.command.source.kind in ("markdown", "rst")):
            yield report(
                RULE,
                f"{text} is a placeholder: it has to be replaced before the command can work",
                place,
                severity=Severity.ADVICE if quiet else Severity.ERROR,
                fix=Fix(f"Write a value in place of {text}"),
            )


def _placeholders(launch: Launch, quiet: bool) -> Iterator[tuple[str, Location]]:
    command = launch.command
    pattern = re.compile("|".join(_PATTERNS[:_LOUD] if quiet else _PATTERNS))
    for word in _words(command):
        found = pattern.search(_written(word)) if word.origin is None else None
        if found is not None:
            yield found.group(), command.locate(_inside(command, word, found.group()))
    if not quiet and command.redirects:
        yield from _redirected(command)


def _words(command: Command) -> Iterator[Word]:
    for wrapper in command.wrappers:
        yield from wrapper.words
    yield from command.words
    for variable in command.environment:
        if variable.scope in ("prefix", "env") and variable.value is not None:
            yield variable.value


def _written(word: Word) -> str:
    """The word as it is shown, without what a program fills in before the shell reads it: ``{name}`` in an f-string."""
    if not any(piece.early for piece in word.pieces):
        return word.shown
    return "".join(piece.written if piece.text is None else piece.text for piece in word.pieces if not piece.early)


def _inside(command: Command, word: Word, text: str) -> Span:
    """Where the placeholder stands in its word; the whole word when its text was written another way."""
    at = command.source.slice(word.span).find(text)
    return word.span if at < 0 else Span(word.span.start + at, word.span.start + at + len(text))


def _redirected(command: Command) -> Iterator[tuple[str, Location]]:
    """``<name>`` that the shell takes for redirections: ``<`` directly in front of a name, ``>`` directly behind."""
    starts = {redirect.span.start for redirect in command.redirects if redirect.operator == "<"}
    for found in _BRACKETED.finditer(command.source.text, command.span.start):
        if found.start() in starts:
            yield found.group(), command.locate(Span(*found.span()))
