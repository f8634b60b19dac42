# ruff: noqa: ARG002 - the protocols give the signatures
"""What the launchers' tests need around a command: a plan of one process, tables of knowledge, files in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mgpu_doctor.launchers.chain import Context, Plan
from mgpu_doctor.model.command import Command, Piece, Variable, Word
from mgpu_doctor.model.facts import NO_FACTS, Facts, Gpu
from mgpu_doctor.model.known import Origin, Setting, Unknown
from mgpu_doctor.model.launch import Engine, Layer, OptionSpec, Release, VisibleDevices
from mgpu_doctor.model.model_folder import ModelFolder, Storage
from mgpu_doctor.model.program import ConfigFile, Program
from mgpu_doctor.model.source import Location, Source, Span
from mgpu_doctor.read.config import read_config, unread_config
from mgpu_doctor.read.program import read_program

HERE = Origin("default", "test")


class Tables:
    """A :class:`Knowledge` that knows the versions it is given."""

    def __init__(self, versions: Mapping[str, str] | None = None, modules: Mapping[str, str] | None = None) -> None:
        self.versions = dict(versions or {})
        self.modules = dict(modules or {})

    def release(self, package: str) -> Release:
        version = self.versions.get(package)
        return Release(package, version, "the test says so", version is not None)

    def options(self, launcher: str) -> tuple[OptionSpec, ...] | Unknown:
        if launcher != "torchrun":
            return Unknown("not in this test")
        return (
            OptionSpec("nnodes", ("--nnodes",), action="env", type="str", default="1:1"),
            OptionSpec(
                "nproc_per_node", ("--nproc-per-node", "--nproc_per_node"), action="env", type="str", default="1"
            ),
            OptionSpec("rdzv_endpoint", ("--rdzv-endpoint", "--rdzv_endpoint"), action="env", type="str", default=""),
            OptionSpec("standalone", ("--standalone",), action="store_true"),
            OptionSpec("training_script", (), type="str"),
        )

    def releases_with(self, launcher: str, flag: str) -> tuple[str, ...]:
        return ()

    def allows_abbreviations(self, launcher: str) -> bool:
        return True

    def fields(self, package: str, group: str | None = None) -> tuple[OptionSpec, ...] | Unknown:
        return Unknown("not in this test")

    def subcommands(self, package: str) -> tuple[str, ...] | Unknown:
        return Unknown("not in this test")

    def console_scripts(self, package: str) -> tuple[str, ...]:
        return ()

    def script_owner(self, command: str) -> str | None:
        return None

    def module_kind(self, module: str) -> str | Unknown:
        return self.modules.get(module, Unknown("not in this test"))

    def variable_readers(self, name: str) -> tuple[str, ...] | Unknown:
        return Unknown("not in this test")

    def known_variables(self) -> frozenset[str]:
        return frozenset()


class Files:
    """A :class:`Workspace` of texts by path; what is not there is missing."""

    def __init__(self, texts: Mapping[str, str] | None = None) -> None:
        self.texts = dict(texts or {})

    def kind(self, path: str, directory: str | Unknown | None = None) -> str | Unknown:
        if path.startswith("/"):
            return Unknown("another machine")
        if path in self.texts:
            return "file"
        return "directory" if any(name.startswith(path.rstrip("/") + "/") for name in self.texts) else "missing"

    def read(self, path: str, kind: str, directory: str | Unknown | None = None) -> Source | Unknown:
        text = self.texts.get(path)
        return Unknown(f"there is no file {path}") if text is None else Source(path, text, kind, path)

    def names(self, path: str, directory: str | Unknown | None = None) -> tuple[str, ...] | Unknown:
        return tuple(sorted(self.texts))

    def program(self, path: str, directory: str | Unknown | None = None) -> Program | Unknown:
        source = self.read(path, "python", directory)
        return source if isinstance(source, Unknown) else read_program(source)

    def config(self, path: str, role: str, directory: str | Unknown | None = None) -> ConfigFile:
        source = self.read(path, "config", directory)
        if isinstance(source, Unknown):
            return unread_config(path, role, source.reason, False)
        return read_config(source, role)

    def model_folder(self, path: str, directory: str | Unknown | None = None) -> ModelFolder | Unknown:
        return Unknown("a text holds no model")

    def storage(self, path: str, directory: str | Unknown | None = None) -> Storage | Unknown:
        return Unknown("texts lie on no disk")

    def resolve(self, path: str) -> str | Unknown:
        return path


def words_of(text: str, offset: int = 0) -> tuple[Word, ...]:
    """Words separated by single blanks; ``$NAME`` is unknown, ``$@NAME`` unknown in number as well."""
    out = []
    at = offset
    for part in text.split(" "):
        splits = part.startswith("$@")
        piece = Piece(None, part, part.lstrip("$@")) if part.startswith("$") else Piece(part, part)
        out.append(Word(Span(at, at + len(part)), (piece,), splits=splits))
        at += len(part) + 1
    return tuple(out)


def command_of(text: str, environment: Mapping[str, str] | None = None) -> Command:
    """A command with variables in front, as ``A=1 cmd`` would be read."""
    prefix = "".join(f"{name}={value} " for name, value in (environment or {}).items())
    source = Source("<command>", prefix + text, "command")
    variables = []
    at = 0
    for name, value in (environment or {}).items():
        end = at + len(name) + 1 + len(value)
        word = Word(Span(at + len(name) + 1, end), (Piece(value, value),))
        variables.append(Variable(name, word, "prefix", Location(source, Span(at, end))))
        at = end + 1
    span = Span(0, len(source.text))
    return Command(source, span, words_of(text, len(prefix)), tuple(variables))


def context_of(
    command: Command | str,
    *,
    environment: Mapping[str, str] | None = None,
    versions: Mapping[str, str] | None = None,
    modules: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
    gpus: int | None = None,
    facts: Facts = NO_FACTS,
) -> Context:
    """A context around a command."""
    if isinstance(command, str):
        command = command_of(command, environment)
    if gpus is not None:
        facts = replace(facts, origin="host.json", gpus=tuple(Gpu(index) for index in range(gpus)), environment={})
    return Context(command, facts, Tables(versions, modules), Files(files))


def one_process(visible: int | None = None) -> Plan:
    """One process; ``visible`` devices, or all of a machine nobody knows."""
    entries = tuple(str(index) for index in range(visible or 0))
    devices = VisibleDevices(entries, tuple(range(visible or 0)), all=visible is None)
    return Plan(
        processes_per_node=Setting(1, HERE),
        nodes=Setting(1, HERE),
        node_rank=Setting(0, HERE),
        visible=Setting(devices, HERE),
        rendezvous=None,
        engine=Setting(Engine("none"), HERE),
        groups=Setting(False, HERE),
    )


def given(layer: Layer) -> dict[str, str | None]:
    """A layer's options as text."""
    return {option.dest: option.value for option in layer.options}
