"""What is known about the packages that take part, release by release."""

from __future__ import annotations

from typing import Protocol

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import OptionSpec, Release


class Knowledge(Protocol):
    """Answers about releases of packages, from installed files or shipped tables; imports none of them."""

    def release(self, package: str) -> Release:
        """The release of a package that the reasoning is about (distribution name, e.g. ``accelerate``)."""
        ...

    def options(self, launcher: str) -> tuple[OptionSpec, ...] | Unknown:
        """The option table of ``accelerate launch``, ``deepspeed``, ``torchrun`` or ``torch.distributed.launch``."""
        ...

    def allows_abbreviations(self, launcher: str) -> bool:
        """Whether this release's parser takes unambiguous prefixes of long options."""
        ...

    def releases_with(self, launcher: str, flag: str) -> tuple[str, ...]:
        """The known releases whose launcher has an option spelt exactly so, oldest first; empty when none has."""
        ...

    def fields(self, package: str, group: str | None = None) -> tuple[OptionSpec, ...] | Unknown:
        """Arguments of a framework's dataclass parser.

        ``("llamafactory", "train")`` or ``("llamafactory", "infer")``: those of that parser, transformers' included;
        ``("transformers", "TrainingArguments")``.
        """
        ...

    def subcommands(self, package: str) -> tuple[str, ...] | Unknown:
        """Sub-commands of a console command (``llamafactory``)."""
        ...

    def console_scripts(self, package: str) -> tuple[str, ...]:
        """Console commands that a distribution installs."""
        ...

    def script_owner(self, command: str) -> str | None:
        """The distribution that installs a console command, None when no known one does."""
        ...

    def module_kind(self, module: str) -> str | Unknown:
        """What ``python -m MODULE`` would find.

        ``module`` (runs, with or without a main block), ``package`` (has ``__main__``),
        ``package-without-main``, ``missing`` (its distribution is known and has no such module).
        """
        ...

    def variable_readers(self, name: str) -> tuple[str, ...] | Unknown:
        """The packages (with version) that read an environment variable; empty when known that none does."""
        ...

    def known_variables(self) -> frozenset[str]:
        """Every environment variable that some known package reads."""
        ...
