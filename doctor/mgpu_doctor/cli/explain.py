"""``mgpu-doctor explain``."""

from __future__ import annotations

import sys

from mgpu_doctor.cli.verb import PYTHON, SHARED, Given, Verb
from mgpu_doctor.errors import UsageError

_HINT = 'for instance: mgpu-doctor explain "torchrun --nproc-per-node 2 train.py"'


def run(given: Given) -> int:
    """Explain a command, or a rule."""
    words = given.words
    if words and given.behind:
        raise UsageError("two commands are given", hint="give one: in quotes, or behind --")
    if not words and not given.behind:
        raise UsageError("nothing to explain", hint=_HINT)
    if len(words) == 1 and _may_be_rule(words[0]):
        from mgpu_doctor.cli.rules import explain_rule

        if explain_rule(words[0], given):
            return 0
    from mgpu_doctor.cli.session import conclude

    if given.behind or len(words) > 1:
        return conclude("explain", given, argv=given.behind or words)
    return conclude("explain", given, command=_standard_input() if words[0] == "-" else words[0])


def _may_be_rule(text: str) -> bool:
    """Whether a text is one word that looks like a rule's code or slug."""
    bare = text.strip().replace("-", "")
    return bare.isascii() and bare.isalnum() and ("-" in text or bare[-3:].isdigit())


def _standard_input() -> str:
    return sys.stdin.buffer.read().decode("utf-8", "surrogateescape")


VERB = Verb(
    "explain",
    "Say what a launch command would really do, or what a rule means.",
    '"COMMAND" | RULE | - | -- COMMAND',
    (PYTHON, *SHARED),
    run,
    (
        'mgpu-doctor explain "CUDA_VISIBLE_DEVICES=4,5 deepspeed --num_gpus 2 train.py"',
        "mgpu-doctor explain --facts none -- torchrun --nproc-per-node 2 train.py",
        "mgpu-doctor explain - < command.txt",
        "mgpu-doctor explain MGD201",
        "mgpu-doctor explain visible-devices-ignored",
    ),
    dashes=True,
)
