"""Facts from a JSON file, and facts as one.

Two forms share their keys, so one reader serves both: the plain form that people write by hand, and
the form that :func:`dump_facts` writes, which adds ``schema`` (its version) and ``unknown`` (for each
key that could not be found out, the reason). Whatever is absent is unknown; ``null`` means unknown
too, except where "there is none" is an answer (:data:`NULLABLE`). ``docs/facts.md`` describes every key.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NoReturn

from mgpu_doctor.collect import facts_values as form
from mgpu_doctor.collect.environment import hide_secrets
from mgpu_doctor.collect.facts_values import SILENT, Reader, WrongTypeError
from mgpu_doctor.errors import InputError
from mgpu_doctor.model.facts import SCHEMA_VERSION, Facts
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.source import Location, Source, Span

__all__ = ["SILENT", "dump_facts", "load_facts"]

STANDARD_INPUT = "-"

LARGEST = 16 * 1024 * 1024
"""Bytes above which a facts file is refused."""


def load_facts(path: str) -> Facts:
    """The facts in a file of either form, or on standard input (``-``).

    Raises:
        InputError: the file cannot be read, is no JSON object (with line and column), is too
            large, was written by a later version, or holds a value of the wrong type (the key is named).
    """
    text = _read(path)
    name = "<stdin>" if path == STANDARD_INPUT else path
    source = Source(name, text, "json", path)
    return _facts(_parse(source), source)


def _read(path: str) -> str:
    raw = _standard_input() if path == STANDARD_INPUT else _bytes_of(path)
    if len(raw) > LARGEST:
        raise InputError(f"{path}: is larger than {LARGEST // 1024 // 1024} MiB, which no facts file is")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start})") from error


@cache
def _standard_input() -> bytes:
    """Standard input, which can be read once but is asked for as often as a command is looked at."""
    return sys.stdin.buffer.read(LARGEST + 1)


def _bytes_of(path: str) -> bytes:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path}: is a directory, not a facts file")
        with open(path, "rb") as file:
            return file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        raise InputError(f"{path!r}: is no path") from error


def _parse(source: Source) -> dict[str, Any]:
    try:
        data = json.loads(source.text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        at = Location(source, Span(error.pos, error.pos))
        raise InputError(f"{at}: not JSON: {error.msg}", location=at) from error
    except (WrongTypeError, RecursionError, ValueError) as error:
        reason = str(error) if isinstance(error, WrongTypeError) else "nested too deeply or a number too long"
        raise InputError(f"{source.name}: not usable JSON: {reason}") from error
    if not isinstance(data, dict):
        raise InputError(f"{source.name}: a facts file holds a JSON object, not {form.kind_of(data)}")
    return data


def _refuse_constant(name: str) -> NoReturn:
    raise WrongTypeError(f"{name} is no JSON number")


def _facts(data: dict[str, Any], source: Source) -> Facts:
    schema = data.get("schema", SCHEMA_VERSION)
    if schema != SCHEMA_VERSION:
        raise InputError(
            f"{source.name}: has schema {schema!r}, this mgpu-doctor reads schema {SCHEMA_VERSION}",
            hint="write it again with `mgpu-doctor facts` of this version, or upgrade",
        )
    try:
        return _read_document(data, source.name)
    except WrongTypeError as error:
        raise InputError(f"{source.name}: {error}") from error


def _read_document(data: dict[str, Any], origin: str) -> Facts:
    reasons = form.read_texts(data.get("unknown") or {}, "unknown")
    values: dict[str, Any] = {"origin": origin}
    for key, (name, reader) in _KEYS.items():
        value = data.get(key)
        if value is not None:
            values[name] = reader(value, key)
        elif key in data and key in NULLABLE:
            values[name] = None
        elif key in reasons:
            values[name] = Unknown(reasons[key])
        else:
            values[name] = SILENT
    values["python"] = form.read_python(data.get("python") or {}, "python")
    values["free_ports"] = form.read_ports(data.get("free_ports") or [], "free_ports")
    other = {key: value for key, value in data.items() if key not in _TAKEN}
    return Facts(**values, other=other or None)


_KEYS: Mapping[str, tuple[str, Reader]] = {
    "gpus": ("gpus", form.read_gpus),
    "gpu_processes": ("gpu_processes", form.read_gpu_processes),
    "driver": ("driver", form.read_text),
    "driver_module": ("driver_module", form.read_text),
    "driver_cuda": ("driver_cuda", form.read_text),
    "nvml_error": ("nvml_error", form.read_text),
    "device_nodes": ("device_nodes", form.read_text_list),
    "xid_errors": ("xid_errors", form.read_xid_errors),
    "topology": ("topology", form.read_topology),
    "peer_access": ("peer_access", form.read_peer_access),
    "nvswitch": ("nvswitch", form.read_flag),
    "fabric_manager_version": ("fabric_manager_version", form.read_text),
    "services": ("services", form.read_texts),
    "iommu": ("iommu", form.read_iommu),
    "pci_acs": ("pci_acs", form.read_texts),
    "infiniband": ("infiniband", form.read_infiniband),
    "platform": ("platform", form.read_text),
    "container": ("container", form.read_container),
    "scheduler": ("scheduler", form.read_word),
    "cpu_count": ("cpu_count", form.read_number),
    "host_memory_gib": ("host_memory_gib", form.read_number),
    "host_memory_free_gib": ("host_memory_free_gib", form.read_number),
    "shm_gib": ("shm_gib", form.read_number),
    "shm_free_gib": ("shm_free_gib", form.read_number),
    "limits": ("limits", form.read_limits),
    "paths": ("paths", form.read_paths),
    "interfaces": ("interfaces", form.read_interfaces),
    "network": ("reachable", form.read_reachable),
    "ports_in_use": ("ports_in_use", form.read_holders),
    "env": ("environment", form.read_environment),
    "env_names": ("environment_names", form.read_names),
    "which": ("which", form.read_which),
    "shebangs": ("shebangs", form.read_texts),
    "packages": ("packages", form.read_packages),
    "package_copies": ("package_copies", form.read_package_copies),
    "requirements": ("package_requirements", form.read_requirements),
    "wheels": ("wheels", form.read_packages),
    "conda": ("conda", form.read_texts),
    "torch_cuda": ("torch_cuda", form.read_text),
    "torch_cxx11abi": ("torch_cxx11abi", form.read_flag),
    "extension_abis": ("extension_abis", form.read_flags),
    "torch_archs": ("torch_archs", form.read_text_list),
    "torch_nccl": ("torch_nccl", form.read_text),
    "nccl_libraries": ("nccl_libraries", form.read_nccl_libraries),
    "nvcc": ("nvcc", form.read_text),
    "cuda_home": ("cuda_home", form.read_text),
    "accelerate_default_config": ("accelerate_default_config", form.read_text),
    "hub_cache_path": ("hub_cache_path", form.read_text),
    "hub_cache": ("hub_cache", form.read_text_list),
    "models": ("models", form.read_models),
}
"""Key in the file → field of :class:`Facts`, and how its value is read."""

NULLABLE = frozenset(
    {
        "nvml_error",
        "driver_module",
        "torch_cuda",
        "torch_nccl",
        "container",
        "scheduler",
        "nvcc",
        "cuda_home",
        "fabric_manager_version",
        "accelerate_default_config",
    }
)
"""Keys whose ``null`` is an answer: there is none. Anywhere else it means unknown."""

_TAKEN = {*_KEYS, "python", "free_ports", "schema", "unknown", "tool", "taken"}


def dump_facts(facts: Facts) -> dict[str, object]:
    """The facts as a document that :func:`load_facts` reads back: equal, but for where they come from.

    Values of variables that look like secrets are masked. ``site_packages`` has no key: directories of this machine
    can be read on this machine alone.
    """
    out: dict[str, object] = {"schema": SCHEMA_VERSION}
    unknown = {}
    python = form.plain_record(facts.python)
    if python:
        out["python"] = python
    for key, (name, _) in _KEYS.items():
        value = getattr(facts, name)
        if isinstance(value, Unknown):
            if value != SILENT:
                unknown[key] = value.reason
        else:
            writer: Callable[[Any], object] = _WRITERS.get(key) or form.plain
            out[key] = None if value is None else writer(value)
    if facts.free_ports:
        out["free_ports"] = list(facts.free_ports)
    if unknown:
        out["unknown"] = unknown
    return {**out, **{key: value for key, value in (facts.other or {}).items() if key not in out}}


_WRITERS: Mapping[str, Callable[[Any], object]] = {
    "env": form.plain_environment,
    "accelerate_default_config": hide_secrets,
    "container": lambda runtime: {"runtime": runtime},
    "ports_in_use": form.plain_holders,
}
"""Keys whose form in the file is not simply the value's own."""
