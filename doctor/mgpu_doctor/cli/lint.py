"""``mgpu-doctor lint``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator

from mgpu_doctor.cli.verb import SHARED, Given, Option, Verb

_NOT_ENTERED = frozenset({"node_modules", "__pycache__", "site-packages", "venv", "build", "dist"})
_ENTERED = frozenset({".github", ".gitlab", ".circleci", ".buildkite", ".azure-pipelines", ".ci", ".vscode"})
"""Hidden directories that hold workflows, and launches that an editor starts."""


def run(given: Given) -> int:
    """Lint files, the files in directories, or standard input."""
    from mgpu_doctor.cli.session import conclude

    named = tuple(path for path in given.words if path != "-")
    files = tuple(dict.fromkeys(expanded(named if given.words else ["."])))
    if "-" not in given.words:
        return conclude("lint", given, files=files)
    from mgpu_doctor.read.text import kind_of

    name = given.text("stdin_filename") or "<stdin>"
    text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    return conclude("lint", given, files=files, text=text, text_name=name, text_kind=kind_of(name) or "shell")


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
            if kind_of(path) is not None and os.path.isfile(path):
                yield path


def _is_entered(top: str, name: str) -> bool:
    if name.startswith(".") and name not in _ENTERED:
        return False
    # A virtual environment under any name.
    return name not in _NOT_ENTERED and not os.path.exists(os.path.join(top, name, "pyvenv.cfg"))


VERB = Verb(
    "lint",
    "Find faulty launch commands in scripts, documents, notebooks, Python files, workflows, manifests, Dockerfiles and "
    "Makefiles. Directories are searched for such files, hidden ones passed over but for those of workflows and "
    "editors. Only the text is judged, not this machine, unless --facts names one.",
    "[PATH]...",
    (Option("--stdin-filename", "What standard input (-) is called; its ending says how it is read.", "NAME"), *SHARED),
    run,
    (
        "mgpu-doctor lint",
        "mgpu-doctor lint scripts/train.sh README.md",
        "mgpu-doctor lint --format json --show-commands docs/",
        "cat run.sh | mgpu-doctor lint -",
    ),
)
