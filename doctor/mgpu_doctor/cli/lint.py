"""``mgpu-doctor lint``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace

import click

from mgpu_doctor.cli.options import Shared, shared_options

_NOT_ENTERED = frozenset({"node_modules", "__pycache__", "site-packages", "venv", "build", "dist"})


@click.command(options_metavar="[OPTIONS]")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--stdin-filename", metavar="NAME", default="<stdin>", help="What standard input (-) is called.")
@shared_options
def lint(paths: tuple[str, ...], stdin_filename: str, shared: Shared) -> int:
    """Find faulty launch commands in shell scripts and Markdown documents.

    Directories are searched for files of these kinds; hidden ones are passed over.
    Only the text is judged, not this machine, unless --facts says otherwise.

    \b
    mgpu-doctor lint
    mgpu-doctor lint scripts/train.sh README.md
    mgpu-doctor lint --format json --show-commands docs/
    cat run.sh | mgpu-doctor lint -
    """  # noqa: D301
    from mgpu_doctor.cli.session import conclude, requested

    request = requested(shared, "lint")
    named = tuple(path for path in paths if path != "-")
    if "-" in paths:
        from mgpu_doctor.read.text import kind_of

        text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
        kind = kind_of(stdin_filename) or "shell"
        request = replace(request, text=text, text_name=stdin_filename, text_kind=kind)
    files = tuple(dict.fromkeys(expanded(named if paths else ["."])))
    return conclude(replace(request, files=files), shared)


def expanded(paths: Iterable[str]) -> Iterator[str]:
    """The files that paths stand for: a file itself, a directory's files of the kinds that are read, sorted."""
    for path in paths:
        if os.path.isdir(path):
            yield from _inside(path)
        else:
            yield path


def _inside(directory: str) -> Iterator[str]:
    from mgpu_doctor.read.text import kind_of

    for top, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if _is_entered(top, name))
        for name in sorted(names):
            path = os.path.normpath(os.path.join(top, name))
            if kind_of(name) is not None and os.path.isfile(path):
                yield path


def _is_entered(top: str, name: str) -> bool:
    if name.startswith(".") and name != ".github":
        return False
    # A virtual environment under any name.
    return name not in _NOT_ENTERED and not os.path.exists(os.path.join(top, name, "pyvenv.cfg"))
