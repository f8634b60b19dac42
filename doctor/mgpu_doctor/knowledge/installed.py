"""Finds distributions in directories of packages by reading names and metadata; imports nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

MAXIMUM_METADATA = 1_000_000
"""Bytes of a METADATA or .pth file that are read at most."""


class Distribution(NamedTuple):
    """An installed distribution: where its metadata lies and which directory it was found in."""

    version: str
    site: Path
    metadata: Path


def normalise(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return "-".join(part for part in name.lower().replace("_", "-").replace(".", "-").split("-") if part)


def find_distributions(sites: tuple[str, ...]) -> dict[str, Distribution]:
    """Every distribution by normalised name; the first directory that has it wins, as on ``sys.path``."""
    found: dict[str, Distribution] = {}
    if not sites:
        return found
    from pathlib import Path

    for site in sites:
        try:
            names = sorted(os.listdir(site))
        except OSError:
            continue
        for name in names:
            stem, ending = os.path.splitext(name)
            if ending not in {".dist-info", ".egg-info"} or "-" not in stem:
                continue
            project, version = stem.split("-")[:2]
            found.setdefault(normalise(project), Distribution(version, Path(site), Path(site, name)))
    return found


def source_roots(sites: tuple[str, ...]) -> tuple[Path, ...]:
    """The directories that modules are imported from: the given ones, and those that ``.pth`` files add.

    An editable install (``pip install -e``) leaves such a file with the project's path.
    """
    from pathlib import Path

    roots = [Path(site) for site in sites]
    for site in sites:
        try:
            names = sorted(name for name in os.listdir(site) if name.endswith(".pth"))
        except OSError:
            continue
        for name in names:
            for line in _lines(Path(site, name)):
                if line.startswith(("import ", "import\t", "#")) or not line:
                    continue
                root = Path(site, line)
                if root.is_dir() and root not in roots:
                    roots.append(root)
    return tuple(roots)


def entry_points(distribution: Distribution, group: str) -> dict[str, str]:
    """Names and targets of a distribution's entry points in a group."""
    found: dict[str, str] = {}
    inside = False
    for line in _lines(distribution.metadata / "entry_points.txt"):
        if line.startswith("["):
            inside = line == f"[{group}]"
        elif inside and "=" in line:
            name, _, target = line.partition("=")
            found[name.strip()] = target.strip()
    return found


def requirements(distribution: Distribution) -> tuple[str, ...]:
    """The requirements that a distribution declares, as written (``transformers<=4.52.4,>=4.45.0``)."""
    mark = "Requires-Dist:"
    found = _lines(distribution.metadata / "METADATA") or _lines(distribution.metadata / "PKG-INFO")
    return tuple(line[len(mark) :].strip() for line in found if line.startswith(mark))


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > MAXIMUM_METADATA:
            return []
        return [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return []
