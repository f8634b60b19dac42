"""What a command line would start, for tests: words in, launch out, without a shell or a machine."""

from __future__ import annotations

import shlex
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from mgpu_doctor.knowledge import PackageKnowledge
from mgpu_doctor.launchers.resolver import resolve
from mgpu_doctor.model.command import Command, Piece, Variable, Word, Wrapper
from mgpu_doctor.model.facts import Facts, Gpu
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import Launch
from mgpu_doctor.model.source import Location, Source, Span
from mgpu_doctor.read.workspace import LocalWorkspace

PACKAGES = {
    "torch": "2.6.0+cu124",
    "accelerate": "1.7.0",
    "deepspeed": "0.16.9",
    "transformers": "4.52.4",
    "llamafactory": "0.9.3",
}
EIGHT = tuple(Gpu(index, "NVIDIA A100", f"GPU-0000000{index}-aaaa", 80.0) for index in range(8))
HOST = Facts("facts.json", gpus=EIGHT, environment={}, packages=PACKAGES, accelerate_default_config=None)
"""Eight equal GPUs, nothing in the environment, known releases."""


def with_packages(**versions: str) -> Facts:
    """The host with other releases of some packages."""
    return replace(HOST, packages={**PACKAGES, **versions})


def words_of(text: str, start: int = 0) -> tuple[Word, ...]:
    """Words as a shell would make them; one that begins with ``$`` is an expansion of unknown value."""
    out = []
    at = start
    for token in shlex.split(text[start:], posix=True):
        found = max(text.find(token, at), at)
        span = Span(found, found + len(token))
        at = span.end
        if "$" in token:
            before, _dollar, name = token.partition("$")
            pieces = (Piece(before, before),) if before else ()
            out.append(Word(span, (*pieces, Piece(None, f"${name}", name.strip("{}"))), splits=True))
        else:
            out.append(Word(span, (Piece(token, token),)))
    return tuple(out)


def command(text: str, wrapper: str | None = None) -> Command:
    """A command with assignments in front of it; ``wrapper`` stands before both."""
    source = Source("<command>", text, "command")
    words = words_of(text)
    environment = []
    while words and "=" in words[0].shown and not words[0].shown.startswith("-"):
        name, _equals, value = words[0].shown.partition("=")
        start = words[0].span.start + len(name) + 1
        word = Word(Span(start, words[0].span.end), (Piece(value, value),))
        environment.append(Variable(name, word, "prefix", Location(source, words[0].span)))
        words = words[1:]
    wrappers = (Wrapper(wrapper.split()[0], words_of(wrapper)),) if wrapper is not None else ()
    return Command(source, Span(0, len(text)), words, tuple(environment), wrappers=wrappers)


def launch(text: str, facts: Facts = HOST, directory: Path | None = None, wrapper: str | None = None) -> Launch:
    """What the command would start; the working directory is empty unless one is given."""
    found = try_launch(text, facts, directory, wrapper)
    assert found is not None, f"{text!r} launches nothing"
    return found


def try_launch(
    text: str, facts: Facts = HOST, directory: Path | None = None, wrapper: str | None = None
) -> Launch | None:
    """What the command would start, None when that is nothing."""
    root = str(directory) if directory is not None else "/nonexistent-directory"
    packages = {} if isinstance(facts.packages, Unknown) else facts.packages
    knowledge = _knowledge(tuple(sorted(packages.items())))
    return resolve(command(text, wrapper), facts, knowledge, LocalWorkspace(root, facts))


@lru_cache(maxsize=16)
def _knowledge(packages: tuple[tuple[str, str], ...]) -> PackageKnowledge:
    return PackageKnowledge(Facts("facts.json", packages=dict(packages)))
