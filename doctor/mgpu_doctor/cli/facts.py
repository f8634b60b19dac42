"""``mgpu-doctor facts``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mgpu_doctor.cli.verb import PYTHON, Given, Option, Verb
from mgpu_doctor.errors import InputError

if TYPE_CHECKING:
    from mgpu_doctor.model.facts import Facts

_SLOW_S = 1.0
"""Seconds after which a terminal is told what takes so long."""

_USUAL_PORT = 29500


def run(given: Given) -> int:
    """Write down this machine; always 0, for what could not be found out is written down as well."""
    with _patience():
        facts = _this_machine(given.text("python"))
        if given.switch("anonymise"):
            facts = _anonymised(facts)
        text = _document(facts)
    output = given.text("output")
    if output is None or output == "-":
        from mgpu_doctor.cli.output import emit

        emit(text)
    else:
        _write(output, text)
    return 0


def _this_machine(python: str | None) -> Facts:
    from mgpu_doctor.collect.machine import this_machine
    from mgpu_doctor.collect.ports import with_ports

    ports = {_USUAL_PORT}
    named = os.environ.get("MASTER_PORT", "")
    if named.isascii() and named.isdigit() and len(named) < 6:
        ports.add(int(named))
    return with_ports(this_machine(python=python), ports)


def _anonymised(facts: Facts) -> Facts:
    from mgpu_doctor.collect.anonymise import anonymised
    from mgpu_doctor.collect.host import own_names

    users, hosts = own_names(os.environ)
    return anonymised(facts, users, hosts)


def _document(facts: Facts) -> str:
    import json
    from datetime import datetime, timezone

    from mgpu_doctor import __version__
    from mgpu_doctor.collect.facts_file import dump_facts

    document: dict[str, Any] = dump_facts(facts)
    about = {
        "schema": document.pop("schema"),
        "tool": {"name": "mgpu-doctor", "version": __version__},
        "taken": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    # Plain ASCII survives every terminal, mail and paste.
    return json.dumps({**about, **document}, indent=2) + "\n"


@contextmanager
def _patience() -> Iterator[None]:
    """Tell a terminal after a while that the machine is slow, and take the line back at the end."""
    if not sys.stderr.isatty():
        yield
        return
    from threading import Timer

    said: list[str] = []

    def say() -> None:
        said.append("looking at this machine ...")
        print(said[0], end="", file=sys.stderr, flush=True)

    timer = Timer(_SLOW_S, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if said:
            print("\r" + " " * len(said[0]) + "\r", end="", file=sys.stderr, flush=True)


def _write(path: str, text: str) -> None:
    """Write a file in one piece: whoever reads it meanwhile sees the old one or the new one, never a part.

    Raises:
        InputError: it cannot be written.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            # A pipe or a device is written to, not replaced; a directory is refused by the system.
            with open(path, "w", encoding="ascii") as file:
                file.write(text)
            return
        target = os.path.realpath(path)
        fresh = f"{target}.{os.getpid()}.new"
        try:
            with open(fresh, "x", encoding="ascii") as file:
                file.write(text)
            os.replace(fresh, target)
        except BaseException:
            if os.path.exists(fresh):
                os.unlink(fresh)
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from error


VERB = Verb(
    "facts",
    "Write down this machine as JSON: for --facts elsewhere, and for bug reports. Nothing is run, imported or sent; "
    "access tokens and passwords are masked. docs/facts.md describes every key.",
    "",
    (
        Option("--anonymise", "Replace names of users and hosts, addresses and GPU UUIDs by stand-ins."),
        PYTHON,
        Option("--output", "Write to this file instead of standard output.", "FILE"),
    ),
    run,
    (
        "mgpu-doctor facts > node17.json",
        "mgpu-doctor check --facts node17.json -- torchrun --nproc-per-node 8 train.py",
        "srun -N1 mgpu-doctor facts | mgpu-doctor check --facts - train.sbatch",
        "mgpu-doctor facts --anonymise --output report.json",
    ),
    most_words=0,
)
