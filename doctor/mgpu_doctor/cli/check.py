"""``mgpu-doctor check``."""

from __future__ import annotations

from dataclasses import replace

import click

from mgpu_doctor.cli.options import CommandBehindDashes, Shared, shared_options


@click.command(cls=CommandBehindDashes, options_metavar="[OPTIONS]", short_help="Check the machine and a command.")
@click.argument("files", nargs=-1, metavar="[FILE]... [-- COMMAND]")
@click.option("--cmd", metavar="TEXT", help="The command as one text, as it would be typed.")
@click.option("--python", metavar="PATH", help="The interpreter whose environment counts.")
@shared_options
def check(files: tuple[str, ...], cmd: str | None, python: str | None, behind: tuple[str, ...], shared: Shared) -> int:
    """Check this machine, and the given command or files against it.

    \b
    mgpu-doctor check
    mgpu-doctor check -- torchrun --nproc-per-node 4 train.py
    mgpu-doctor check --cmd "CUDA_VISIBLE_DEVICES=4,5 accelerate launch train.py"
    mgpu-doctor check --facts node17.json train.sbatch
    """  # noqa: D301
    from mgpu_doctor.cli.session import conclude, requested

    given = [name for name, value in (("FILE", files), ("--cmd", cmd is not None), ("-- COMMAND", behind)) if value]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other: give one of them")
    request = replace(requested(shared, "check"), command=cmd, argv=behind, files=files, python=python)
    return conclude(request, shared)
