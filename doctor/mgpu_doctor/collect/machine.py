"""The facts of this machine: only what is asked for is looked at."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from mgpu_doctor.collect.environment import relevant
from mgpu_doctor.model.facts import Facts
from mgpu_doctor.model.known import Unknown

ORIGIN = "this machine"

UNASKED = Unknown("not looked at: nothing needed it")

LARGEST_CONFIG = 1024 * 1024

ALL = frozenset({"environment", "gpus", "packages", "ports", "interfaces", "accelerate_config", "host"})
"""Everything that can be asked for."""


def this_machine(needs: frozenset[str] = ALL, python: str | None = None) -> Facts:
    """What is asked for about this machine; the rest is Unknown.

    ``needs`` are names out of :data:`ALL`; ``packages`` includes the interpreter and the commands on PATH.
    ``python`` is the interpreter (or the directory of an environment) whose packages count,
    None for the one that a command would use.
    """
    variables = os.environ
    values: dict[str, Any] = {}
    for need in sorted(needs):
        values.update(_LOOKS[need](variables, python))
    return Facts(**{**_unasked(), **values})


def _unasked() -> dict[str, Any]:
    names = (
        "gpus",
        "gpu_processes",
        "driver",
        "platform",
        "packages",
        "torch_cuda",
        "environment",
        "which",
        "shebangs",
        "ports_in_use",
        "interfaces",
        "accelerate_default_config",
        "host_memory_gib",
        "shm_gib",
        "limits",
        "container",
        "environment_names",
        "conda",
    )
    return {"origin": ORIGIN, **dict.fromkeys(names, UNASKED)}


def _environment(variables: Mapping[str, str], _python: str | None) -> dict[str, Any]:
    return {"environment": relevant(variables), "environment_names": frozenset(variables)}


def _gpus(_variables: Mapping[str, str], _python: str | None) -> dict[str, Any]:
    from mgpu_doctor.collect.gpus import inventory

    found = inventory()
    return {"gpus": found.gpus, "gpu_processes": found.processes, "driver": found.driver}


def _packages(variables: Mapping[str, str], python: str | None) -> dict[str, Any]:
    from mgpu_doctor.collect.packages import commands_on_path, find_environment, shebangs_of, torch_cuda

    places = commands_on_path(variables.get("PATH"))
    found = find_environment(python, places, variables)
    return {
        "python": found.python,
        "packages": found.packages,
        "site_packages": found.sites,
        "conda": found.conda,
        "torch_cuda": torch_cuda(found),
        "which": places,
        "shebangs": shebangs_of(places.values()),
    }


def _ports(_variables: Mapping[str, str], _python: str | None) -> dict[str, Any]:
    from mgpu_doctor.collect.ports import listening_ports

    return {"ports_in_use": listening_ports()}


def _interfaces(_variables: Mapping[str, str], _python: str | None) -> dict[str, Any]:
    from mgpu_doctor.collect.host import interfaces

    return {"interfaces": interfaces()}


def _host(variables: Mapping[str, str], _python: str | None) -> dict[str, Any]:
    from mgpu_doctor.collect import host

    return {
        "platform": host.platform(),
        "host_memory_gib": host.host_memory_gib(),
        "shm_gib": host.shm_gib(),
        "limits": host.limits(),
        "container": host.container(variables),
    }


def _accelerate_config(variables: Mapping[str, str], _python: str | None) -> dict[str, Any]:
    return {"accelerate_default_config": accelerate_default_config(variables)}


def accelerate_default_config(variables: Mapping[str, str]) -> str | Unknown | None:
    """The text of the configuration file that ``accelerate launch`` takes when none is named; None without one.

    accelerate 0.20.3 to 1.15.0, commands/config/config_args.py: ``default_config.yaml`` in ``accelerate`` below
    HF_HOME, or below ``huggingface`` in XDG_CACHE_HOME, or below ``~/.cache/huggingface``.
    """
    cache = variables.get("HF_HOME")
    if cache is None:
        cache = os.path.join(variables.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    path = os.path.join(os.path.expanduser(cache), "accelerate", "default_config.yaml")
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            raw = file.read(LARGEST_CONFIG + 1)
    except OSError as error:
        return Unknown(f"{path} cannot be read: {error.strerror}")
    if len(raw) > LARGEST_CONFIG:
        return Unknown(f"{path} is too large for a configuration file")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return Unknown(f"{path} is not UTF-8 text")


_LOOKS: Mapping[str, Callable[[Mapping[str, str], str | None], dict[str, Any]]] = {
    "environment": _environment,
    "gpus": _gpus,
    "packages": _packages,
    "ports": _ports,
    "interfaces": _interfaces,
    "accelerate_config": _accelerate_config,
    "host": _host,
}
