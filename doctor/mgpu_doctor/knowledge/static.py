"""Reads what installed or unpacked packages declare, file by file as :mod:`mgpu_doctor.knowledge.layout` places it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from mgpu_doctor.knowledge import tables
from mgpu_doctor.knowledge.dataclass_fields import read_fields
from mgpu_doctor.knowledge.declared import ParserTable, UnreadableSourceError
from mgpu_doctor.knowledge.layout import GROUPS, LAUNCHERS, OUTSIDE, SUBCOMMANDS, Reading, Tables
from mgpu_doctor.knowledge.reader import Names, parse_module, read_parser
from mgpu_doctor.model.launch import OptionSpec

P = ParamSpec("P")
T = TypeVar("T")


def _bounded(read: Callable[P, T]) -> Callable[P, T]:
    """The reader, with source that refers to itself without end refused as unreadable."""

    @wraps(read)
    def reader(*arguments: P.args, **keywords: P.kwargs) -> T:
        try:
            return read(*arguments, **keywords)
        except RecursionError as error:
            raise UnreadableSourceError("the source refers to itself without end") from error

    return reader


def names_of(reading: Reading, module: str) -> Names:
    """A module's names.

    Raises:
        UnreadableSourceError: when there is no such module, or no Python.
    """
    text = reading.module(module)
    if text is None:
        raise UnreadableSourceError(f"there is no {module}")
    return parse_module(text, module, reading.module)


@_bounded
def read_launcher(launcher: str, reading: Reading) -> ParserTable:
    """The parser of a launcher.

    Raises:
        UnreadableSourceError: when its source is not there or not as expected.
    """
    options: list[OptionSpec] = []
    abbreviations = True
    for module, function in LAUNCHERS[launcher][1]:
        found = read_parser(names_of(reading, module), (function,))
        options.extend(found.options)
        abbreviations &= found.abbreviations
    return ParserTable(tuple(options), abbreviations)


@_bounded
def read_llamafactory(reading: Reading, group: str) -> tuple[OptionSpec, ...]:
    """LLaMA-Factory's own arguments of a parser, transformers' left out; without further spellings.

    Raises:
        UnreadableSourceError: when its source is not there or not as expected.
    """
    names = names_of(reading, "llamafactory.hparams.parser")
    listed = next(
        (
            node.value
            for node in names.tree.body
            if isinstance(node, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id == GROUPS[group] for target in node.targets)
        ),
        None,
    )
    if not isinstance(listed, ast.List):
        raise UnreadableSourceError(f"llamafactory.hparams.parser has no list {GROUPS[group]}")
    found: dict[str, OptionSpec] = {}
    for element in listed.elts:
        name = element.id if isinstance(element, ast.Name) else ""
        if name == "Seq2SeqTrainingArguments":
            continue
        for spec in read_fields(names, name, OUTSIDE - {name}):
            found[spec.dest] = spec
    return tuple(found.values())


@_bounded
def read_training_arguments(reading: Reading, class_name: str) -> tuple[OptionSpec, ...]:
    """The fields of transformers' ``TrainingArguments`` or ``Seq2SeqTrainingArguments``; without further spellings.

    Raises:
        UnreadableSourceError: when the source is not there or not as expected.
    """
    module = "transformers.training_args"
    if class_name == "Seq2SeqTrainingArguments":
        module = "transformers.training_args_seq2seq"
    return read_fields(names_of(reading, module), class_name)


def takes_dashes(reading: Reading) -> bool:
    """Whether HfArgumentParser also takes ``--some-name`` for a field ``some_name`` (transformers, hf_argparser.py)."""
    return "long_options" in (reading.module("transformers.hf_argparser") or "")


def read_subcommands(package: str, reading: Reading) -> tuple[str, ...]:
    """The sub-commands that a console command's source compares its first argument with.

    One that only raises NotImplementedError is none. Empty when the source is not as expected.
    """
    found: list[str] = []
    for module in SUBCOMMANDS.get(package, ()):
        try:
            names = names_of(reading, module)
        except UnreadableSourceError:
            continue
        for node in ast.walk(names.tree):
            found.extend(_commands(node))
    return tuple(dict.fromkeys(found))


def _commands(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(target, ast.Name) and target.id in {"COMMAND_MAP", "ROUTE_MAPPING"} for target in targets):
            return [str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)]
    if isinstance(node, ast.ClassDef) and node.name == "Command":
        return [
            str(statement.value.value)
            for statement in node.body
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        ]
    if isinstance(node, ast.If) and not any(isinstance(statement, ast.Raise) for statement in node.body):
        test = node.test
        if (
            isinstance(test, ast.Compare)
            and isinstance(test.left, ast.Name)
            and test.left.id == "command"
            and isinstance(test.ops[0], ast.Eq)
            and isinstance(test.comparators[0], ast.Constant)
        ):
            return [str(test.comparators[0].value)]
    return []


def read_tables(package: str, reading: Reading) -> Tables:
    """Everything that is tabled of one release of a package.

    Raises:
        UnreadableSourceError: when a part that must be there is not.
    """
    found: Tables = {}
    for launcher, (owner, _) in LAUNCHERS.items():
        if owner == package:
            table = read_launcher(launcher, reading)
            found[launcher] = [tables.encode(option) for option in table.options]
            found[f"{launcher}:abbreviations"] = ["yes" if table.abbreviations else "no"]
    if package == "llamafactory":
        train = read_llamafactory(reading, "train")
        found["fields:train"] = [tables.encode(spec) for spec in train]
        for group in ("infer", "eval"):
            # Nearly all of them are the training parser's too: those are only named.
            fields = read_llamafactory(reading, group)
            found[f"names:{group}"] = [spec.dest for spec in fields]
            found[f"fields:{group}"] = [tables.encode(spec) for spec in fields if spec not in train]
    if package == "transformers":
        own = read_training_arguments(reading, "TrainingArguments")
        both = read_training_arguments(reading, "Seq2SeqTrainingArguments")
        found["fields:TrainingArguments"] = [tables.encode(spec) for spec in own]
        found["fields:Seq2SeqTrainingArguments"] = [tables.encode(spec) for spec in both if spec not in own]
        found["dashes"] = ["yes" if takes_dashes(reading) else "no"]
    subcommands = read_subcommands(package, reading)
    if subcommands:
        found["subcommands"] = list(subcommands)
    return found
