"""``mgpu-doctor explain``."""

from __future__ import annotations

import sys
from dataclasses import replace

import click

from mgpu_doctor.cli.options import CommandBehindDashes, Shared, shared_options


@click.command(cls=CommandBehindDashes, options_metavar="[OPTIONS]")
@click.argument("text", nargs=-1, metavar='"COMMAND" | RULE | - | -- COMMAND')
@click.option("--python", metavar="PATH", help="The interpreter whose environment counts.")
@shared_options
def explain(text: tuple[str, ...], python: str | None, behind: tuple[str, ...], shared: Shared) -> int:
    """Say what a launch command would really do, or what a rule means.

    \b
    mgpu-doctor explain "CUDA_VISIBLE_DEVICES=4,5 deepspeed --num_gpus 2 train.py"
    mgpu-doctor explain --facts none -- torchrun --nproc-per-node 2 train.py
    mgpu-doctor explain - < command.txt
    mgpu-doctor explain MGD201
    mgpu-doctor explain visible-devices-ignored
    """  # noqa: D301
    if text and behind:
        raise click.UsageError("give the command once: in quotes, or behind --")
    if not text and not behind:
        raise click.UsageError(
            'nothing to explain: give a command in quotes, or a rule, as in explain "torchrun train.py"'
        )
    if len(text) == 1 and _may_be_rule(text[0]):
        from mgpu_doctor.cli.rules import explain_rule

        if explain_rule(text[0], shared):
            return 0
    from mgpu_doctor.cli.session import conclude, requested

    request = replace(requested(shared, "explain"), python=python)
    if behind or len(text) > 1:
        return conclude(replace(request, argv=behind or text), shared)
    command = _standard_input() if text[0] == "-" else text[0]
    return conclude(replace(request, command=command), shared)


def _may_be_rule(text: str) -> bool:
    import re

    return re.fullmatch(r"[A-Za-z]{2,6}[0-9]{3}|[a-z0-9]+(-[a-z0-9]+)+", text.strip()) is not None


def _standard_input() -> str:
    return sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
