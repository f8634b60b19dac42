"""Which file of which package declares what, release after release."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mgpu_doctor.knowledge import tables
from mgpu_doctor.knowledge.declared import MAXIMUM_FILE_SIZE
from mgpu_doctor.model.launch import OptionSpec

if TYPE_CHECKING:
    from pathlib import Path

Tables = dict[str, list[object]]
"""Records by table name."""

LAUNCHERS: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "accelerate": ("accelerate", (("accelerate.commands.launch", "launch_command_parser"),)),
    "deepspeed": ("deepspeed", (("deepspeed.launcher.runner", "parse_args"),)),
    "torchrun": ("torch", (("torch.distributed.run", "get_args_parser"),)),
    "torch.distributed.launch": (
        "torch",
        (("torch.distributed.run", "get_args_parser"), ("torch.distributed.launch", "parse_args")),
    ),
}
"""Launcher → package, and the functions (module, name) that build its parser."""

ALIASES = {
    "accelerate launch": "accelerate",
    "torch.distributed.run": "torchrun",
}
"""Other names of a launcher with the same options."""


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


GROUPS = {
    "train": "_TRAIN_ARGS",
    "infer": "_INFER_ARGS",
    "eval": "_EVAL_ARGS",
}
"""LLaMA-Factory's parsers (hparams/parser.py): which list of dataclasses each is made of."""

OUTSIDE = frozenset({"Seq2SeqTrainingArguments", "TrainingArguments"})
"""Base classes that transformers has and LLaMA-Factory's dataclasses build on."""


def tabled_llamafactory(group: str, place: int) -> tuple[OptionSpec, ...] | None:
    """LLaMA-Factory's own arguments of a parser in the tabled release with this index; None when it has none."""
    train = tables.options("llamafactory", "fields:train", place)
    if group == "train":
        return train
    names = tables.values("llamafactory", f"names:{group}", place)
    if names is None or train is None:
        return None
    known = {spec.dest: spec for spec in (*train, *(tables.options("llamafactory", f"fields:{group}", place) or ()))}
    return tuple(known[name] for name in names)


SUBCOMMANDS = {
    "llamafactory": ("llamafactory.cli", "llamafactory.launcher"),
    "ms_swift": ("swift.cli.main",),
}
"""The modules that name a console command's sub-commands, by package."""


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
