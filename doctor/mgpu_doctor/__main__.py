"""``python -m mgpu_doctor``."""

from __future__ import annotations

from mgpu_doctor.cli import main

main()
