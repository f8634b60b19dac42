"""Which file of which package declares what, release after release."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mgpu_doctor.knowledge import tables
from mgpu_doctor.knowledge.reader import (
    MAXIMUM_FILE_SIZE,
    Names,
    ParserTable,
    UnreadableSourceError,
    parse_module,
    read_parser,
)

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
    options: list[object] = []
    abbreviations = True
    for module, function in LAUNCHERS[launcher][2]:
        found = read_parser(reading.names(module), (function,))
        options.extend(found.options)
        abbreviations &= found.abbreviations
    return ParserTable(tuple(options), abbreviations)  # type: ignore[arg-type]


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
    return found
