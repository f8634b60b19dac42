"""Which file of which package declares what, release after release."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

from mgpu_doctor.knowledge import tables
from mgpu_doctor.knowledge.dataclass_fields import read_fields
from mgpu_doctor.knowledge.reader import (
    MAXIMUM_FILE_SIZE,
    Names,
    ParserTable,
    UnreadableSourceError,
    parse_module,
    read_parser,
)
from mgpu_doctor.model.launch import OptionSpec

Tables = dict[str, list[object]]
"""Records by table name."""

LAUNCHERS: dict[str, tuple[str, str, tuple[tuple[str, str], ...]]] = {
    "accelerate": (
        "accelerate",
        "accelerate.commands.launch",
        (("accelerate.commands.launch", "launch_command_parser"),),
    ),
    "deepspeed": ("deepspeed", "deepspeed.launcher.runner", (("deepspeed.launcher.runner", "parse_args"),)),
    "torchrun": ("torch", "torch.distributed.run", (("torch.distributed.run", "get_args_parser"),)),
    "torch.distributed.launch": (
        "torch",
        "torch.distributed.launch",
        (("torch.distributed.run", "get_args_parser"), ("torch.distributed.launch", "parse_args")),
    ),
}
"""Launcher → distribution, module, and the functions that build its parser."""

ALIASES = {
    "accelerate launch": "accelerate",
    "torch.distributed.run": "torchrun",
    "torch.distributed.launcher": "torchrun",
}


class Reading:
    """Reads modules under some folders and remembers what it has read."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = tuple(roots)
        self.texts: dict[str, str] = {}
        """What was read, by path relative to its root."""

    def module(self, name: str) -> str | None:
        """The text of a module or package; None when there is none or it cannot be read."""
        stem = name.removesuffix(".__init__").replace(".", "/")
        for relative in (f"{stem}.py", f"{stem}/__init__.py"):
            text = self.file(relative)
            if text is not None:
                return text
        return None

    def file(self, relative: str) -> str | None:
        """The text of a file by its path below a root; None when there is none or it is too large."""
        if relative in self.texts:
            return self.texts[relative]
        for root in self.roots:
            path = root / relative
            try:
                if not path.is_file() or path.stat().st_size > MAXIMUM_FILE_SIZE:
                    continue
                text = path.read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            self.texts[relative] = text
            return text
        return None

    def names(self, module: str) -> Names:
        """A module's names.

        Raises:
            UnreadableSourceError: when there is no such module, or no Python.
        """
        text = self.module(module)
        if text is None:
            raise UnreadableSourceError(f"there is no {module}")
        return parse_module(text, module, self.module)


def read_launcher(launcher: str, reading: Reading) -> ParserTable:
    """The parser of a launcher.

    Raises:
        UnreadableSourceError: when its source is not there or not as expected.
    """
    options: list[OptionSpec] = []
    abbreviations = True
    for module, function in LAUNCHERS[launcher][2]:
        found = read_parser(reading.names(module), (function,))
        options.extend(found.options)
        abbreviations &= found.abbreviations
    return ParserTable(tuple(options), abbreviations)


GROUPS = {
    "train": "_TRAIN_ARGS",
    "infer": "_INFER_ARGS",
    "eval": "_EVAL_ARGS",
}
"""LLaMA-Factory's parsers (hparams/parser.py): which list of dataclasses each is made of."""

OUTSIDE = frozenset({"Seq2SeqTrainingArguments", "TrainingArguments"})


def read_llamafactory(reading: Reading, group: str) -> tuple[OptionSpec, ...]:
    """LLaMA-Factory's own arguments of a parser, transformers' left out; without further spellings.

    Raises:
        UnreadableSourceError: when its source is not there or not as expected.
    """
    names = reading.names("llamafactory.hparams.parser")
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


def tabled_llamafactory(group: str, place: int) -> tuple[OptionSpec, ...] | None:
    """The same from the tables, for the release with this index; None when it has no such parser."""
    train = tables.options("llamafactory", "fields:train", place)
    if group == "train":
        return train
    names = tables.values("llamafactory", f"names:{group}", place)
    if names is None or train is None:
        return None
    known = {spec.dest: spec for spec in (*train, *(tables.options("llamafactory", f"fields:{group}", place) or ()))}
    return tuple(known[name] for name in names)


def read_training_arguments(reading: Reading, class_name: str) -> tuple[OptionSpec, ...]:
    """The fields of transformers' ``TrainingArguments`` or ``Seq2SeqTrainingArguments``; without further spellings.

    Raises:
        UnreadableSourceError: when the source is not there or not as expected.
    """
    module = "transformers.training_args"
    if class_name == "Seq2SeqTrainingArguments":
        module = "transformers.training_args_seq2seq"
    return read_fields(reading.names(module), class_name)


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
            names = reading.names(module)
        except UnreadableSourceError:
            continue
        for node in ast.walk(names.tree):
            found.extend(_commands(node))
    return tuple(dict.fromkeys(found))


SUBCOMMANDS = {
    "llamafactory": ("llamafactory.cli", "llamafactory.launcher"),
    "ms_swift": ("swift.cli.main",),
    "accelerate": ("accelerate.commands.accelerate_cli",),
}


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


MODULE_ROOTS = {
    "accelerate": ("accelerate",),
    "deepspeed": ("deepspeed/launcher",),
    "llamafactory": ("llamafactory",),
    "torch": ("torch/distributed",),
    "ms_swift": ("swift/cli",),
    "trl": ("trl",),
}
"""The folders whose modules are tabled, by package."""


def read_modules(package: str, roots: Sequence[Path]) -> tuple[str, ...]:
    """Every module below the package's tabled folders, as ``name kind`` (see :func:`kind_of`)."""
    out: list[str] = []
    for root in roots:
        for folder in MODULE_ROOTS.get(package, ()):
            top = folder.partition("/")[0]
            if top != folder:
                out.append(f"{top} {kind_of(top, roots)}")
            for path in sorted((root / folder).rglob("*.py")):
                relative = path.relative_to(root).with_suffix("")
                if path.name == "__init__.py":
                    has_main = (path.parent / "__main__.py").is_file()
                    name = ".".join(relative.parent.parts)
                    out.append(f"{name} {'package' if has_main else 'package-without-main'}")
                elif path.stem != "__main__":
                    out.append(f"{'.'.join(relative.parts)} module")
    return tuple(out)


def kind_of(module: str, roots: Sequence[Path]) -> str:
    """What ``python -m MODULE`` finds: ``module``, ``package``, ``package-without-main`` or ``missing``."""
    for root in roots:
        path = root.joinpath(*module.split("."))
        if path.is_dir() and (path / "__init__.py").is_file():
            return "package" if (path / "__main__.py").is_file() else "package-without-main"
        if path.with_name(f"{path.name}.py").is_file():
            return "module"
    return "missing"


def read_tables(package: str, reading: Reading) -> Tables:
    """Everything that is tabled of one release of a package.

    Raises:
        UnreadableSourceError: when a part that must be there is not.
    """
    found: Tables = {}
    for launcher, (owner, _, _) in LAUNCHERS.items():
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
