"""The built-in checks, one file per rule, one folder per family."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from mgpu_doctor.authoring import Check


def _load() -> tuple[Check, ...]:
    checks = []
    for info in pkgutil.walk_packages(__path__, __name__ + "."):
        if not info.ispkg:
            try:
                module = import_module(info.name)
                checks.append(Check(module.RULE, module.find))
            except Exception as error:
                import sys
                print("DEV: cannot load", info.name, repr(error), file=sys.stderr)
    return tuple(checks)


CHECKS: tuple[Check, ...] = _load()
