"""The files around a command, as far as they may be looked at."""

from __future__ import annotations

from typing import Protocol

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.model_folder import ModelFolder, Storage
from mgpu_doctor.model.program import ConfigFile, Program
from mgpu_doctor.model.source import Source


class Workspace(Protocol):
    """Answers about files, relative to the directory a command runs in; reads text, runs nothing.

    ``directory`` is :attr:`Command.directory`. Every answer is :class:`Unknown`
    where the machine that the command is meant for is not this one.
    """

    def kind(self, path: str, directory: str | Unknown | None = None) -> str | Unknown:
        """``file``, ``directory`` or ``missing``."""
        ...

    def read(self, path: str, kind: str, directory: str | Unknown | None = None) -> Source | Unknown:
        """A text file as a source of that kind; Unknown with the reason when it cannot be read."""
        ...

    def names(self, path: str, directory: str | Unknown | None = None) -> tuple[str, ...] | Unknown:
        """The names in a directory, sorted."""
        ...

    def program(self, path: str, directory: str | Unknown | None = None) -> Program | Unknown:
        """What a Python file shows."""
        ...

    def config(self, path: str, role: str, directory: str | Unknown | None = None) -> ConfigFile:
        """A YAML or JSON file in a role; never raises, says in the result what is wrong."""
        ...

    def model_folder(self, path: str, directory: str | Unknown | None = None) -> ModelFolder | Unknown:
        """What lies in a model's folder; Unknown when it is none, or cannot be looked at."""
        ...

    def storage(self, path: str, directory: str | Unknown | None = None) -> Storage | Unknown:
        """Where something would be written to, whether that is allowed and what is free there."""
        ...

    def resolve(self, path: str) -> str | Unknown:
        """An absolute path with its links followed, as this machine has them; Unknown for any other."""
        ...
