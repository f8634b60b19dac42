"""From a command to what it would really start."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mgpu_doctor.launchers.resolver import resolve

__all__ = ["resolve"]


def __getattr__(name: str) -> object:
    if name == "resolve":
        from mgpu_doctor.launchers.resolver import resolve

        return resolve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
