"""Which model a launch loads, as path or hub id."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpu_doctor.model.known import Unknown

NO_MODEL = Unknown("no model is named whose size could be found")

if TYPE_CHECKING:
    from mgpu_doctor.memory.arguments import Arguments
    from mgpu_doctor.model.launch import Launch

_NAMES = ("model_name_or_path", "model", "model_path", "pretrained_model_name_or_path", "model_id", "base_model")


def names_model(launch: Launch) -> bool:
    """Whether a launch names a model at all; asked before anything costly is imported."""
    target = launch.target
    if target.argument(*_NAMES) is not None:
        return True
    if any(config.has(name) for config in target.configs for name in _NAMES):
        return True
    return not isinstance(target.program, Unknown) and target.program.first("model-name") is not None


def model_of(launch: Launch, arguments: Arguments) -> str | Unknown | None:
    """The model that is named by an argument or in the program's text; None when none is named."""
    for name in _NAMES:
        value = arguments.given.get(name)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, Unknown):
            return value
    program = launch.target.program
    if isinstance(program, Unknown):
        return None
    named = {seen.detail for seen in program.all("model-name")}
    if len(named) > 1:
        return Unknown(f"the program names {len(named)} models")
    return next(iter(named), None)
