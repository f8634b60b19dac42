"""Distributions of checks, laid out as an installer would, without installing anything."""

from __future__ import annotations

import shutil
from pathlib import Path

FIXTURES = Path(__file__).resolve().parent / "fixtures"


def lay_out(site: Path, distribution: str, folder: str, package: str, *, broken: bool = False) -> None:
    """Put a package and its metadata into a directory on the path."""
    if broken:
        (site / package).mkdir()
        (site / package / "__init__.py").write_text("raise ImportError('its own dependency is missing')\n")
    else:
        shutil.copytree(FIXTURES / folder / "src" / package, site / package)
    info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mgpu_doctor.checks]\nmain = {package}:CHECKS\n")
