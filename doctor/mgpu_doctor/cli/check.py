"""``mgpu-doctor check``."""

from __future__ import annotations

import os

from mgpu_doctor.cli.verb import PYTHON, SHARED, Given, Option, Verb
from mgpu_doctor.errors import UsageError

_LONGEST_PATH = 4095
"""Bytes of a path on Linux (PATH_MAX without the NUL)."""


def run(given: Given) -> int:
    """Check the machine, and the command or files."""
    from mgpu_doctor.cli.session import conclude

    command = given.text("cmd")
    kinds = (("FILE", given.words), ("--cmd", command is not None), ("-- COMMAND", given.behind))
    several = [name for name, value in kinds if value]
    if len(several) > 1:
        raise UsageError(f"{' and '.join(several)} exclude each other", hint="give one of them")
    _refuse_commands(given.words)
    if not given.switch("probe"):
        return conclude("check", given, command=command, argv=given.behind, files=given.words)
    from mgpu_doctor.cli.probe import observer, refuse_facts

    refuse_facts(given)
    return conclude(
        "check",
        given,
        observer(given),
        command=command,
        argv=given.behind,
        files=given.words,
        facts="this machine",
    )


def _refuse_commands(words: tuple[str, ...]) -> None:
    """A command in quotation marks stands where files are expected: say where it belongs."""
    for word in words:
        name, blank, _ = word.strip().partition(" ")
        if blank and not os.path.lexists(word[:_LONGEST_PATH]):
            shown = word if len(word) < 40 else f"{name} …"
            raise UsageError(f"there is no file {shown!r}", hint='a command goes behind --cmd: check --cmd "…"')


VERB = Verb(
    "check",
    "Check this machine, and the given command or files against it.",
    "[FILE]... [-- COMMAND]",
    (
        Option("--cmd", "The command as one text, as it would be typed.", "TEXT"),
        Option("--probe", "Also run it for seconds, as the verb probe does."),
        PYTHON,
        *SHARED,
    ),
    run,
    (
        "mgpu-doctor check",
        "mgpu-doctor check -- torchrun --nproc-per-node 4 train.py",
        'mgpu-doctor check --cmd "CUDA_VISIBLE_DEVICES=4,5 accelerate launch train.py"',
        "mgpu-doctor check --probe -- torchrun --nproc-per-node 4 train.py",
        "mgpu-doctor check --facts node17.json train.sbatch",
    ),
    dashes=True,
)
