"""The built-in checks, one file per rule, one folder per family."""

from __future__ import annotations

from mgpu_doctor.authoring import Check

CHECKS: tuple[Check, ...] = ()
