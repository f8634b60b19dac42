"""Facts from a JSON file, and facts as one.

Two forms share their keys, so one reader serves both: the plain form that people write by hand, and
the form that :func:`dump_facts` writes, which adds ``schema`` (its version) and ``unknown`` (for each
key that could not be found out, the reason). Whatever is absent is unknown; ``null`` means unknown
too, except where "there is none" is an answer: ``torch_cuda``, ``container``, ``nvcc``, ``cuda_home``,
``fabric_manager_version`` and ``accelerate_default_config``.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from mgpu_doctor.collect.environment import masked
from mgpu_doctor.errors import InputError
from mgpu_doctor.model.facts import (
    SCHEMA_VERSION,
    Facts,
    Gpu,
    GpuProcess,
    ModelInfo,
    PathInfo,
    PortHolder,
    PythonInfo,
)
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.source import Location, Source, Span

LARGEST = 16 * 1024 * 1024
"""Bytes above which a facts file is refused."""

SILENT = Unknown("the facts file does not say")

Reader = Callable[[Any, str], Any]


class _WrongTypeError(Exception):
    """A value of the wrong type; the text says which key and what was expected."""


def load_facts(path: str) -> Facts:
    """The facts in a file of either form.

    Raises:
        InputError: the file cannot be read, is no JSON object (with line and column), is too
            large, was written by a later version, or holds a value of the wrong type (the key is named).
    """
    text = _read(path)
    source = Source(path, text, "json", path)
    return _facts(_parse(source), source)


def _read(path: str) -> str:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path}: is a directory, not a facts file")
        with open(path, "rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        raise InputError(f"{path!r}: is no path") from error
    if len(raw) > LARGEST:
        raise InputError(f"{path}: is larger than {LARGEST // 1024 // 1024} MiB, which no facts file is")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start})") from error


def _parse(source: Source) -> dict[str, Any]:
    try:
        data = json.loads(source.text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        at = Location(source, Span(error.pos, error.pos))
        raise InputError(f"{at}: not JSON: {error.msg}", location=at) from error
    except (_WrongTypeError, RecursionError, ValueError) as error:
        reason = str(error) if isinstance(error, _WrongTypeError) else "nested too deeply or a number too long"
        raise InputError(f"{source.name}: not usable JSON: {reason}") from error
    if not isinstance(data, dict):
        raise InputError(f"{source.name}: a facts file holds a JSON object, not {_kind(data)}")
    return data


def _refuse_constant(name: str) -> NoReturn:
    raise _WrongTypeError(f"{name} is no JSON number")


def _facts(data: dict[str, Any], source: Source) -> Facts:
    schema = data.get("schema", SCHEMA_VERSION)
    if schema != SCHEMA_VERSION:
        raise InputError(
            f"{source.name}: has schema {schema!r}, this mgpu-doctor reads schema {SCHEMA_VERSION}",
            hint="write it again with `mgpu-doctor facts` of this version, or upgrade",
        )
    try:
        return _read_document(data, source.name)
    except _WrongTypeError as error:
        raise InputError(f"{source.name}: {error}") from error


def _read_document(data: dict[str, Any], origin: str) -> Facts:
    reasons = _texts(data.get("unknown") or {}, "unknown")
    values: dict[str, Any] = {"origin": origin}
    for key, (name, reader) in _KEYS.items():
        value = data.get(key)
        if value is not None:
            values[name] = reader(value, key)
        elif key in data and key in _NULLABLE:
            values[name] = None
        elif key in reasons:
            values[name] = Unknown(reasons[key])
        else:
            values[name] = SILENT
    values["python"] = _python(data.get("python") or {}, "python")
    values["free_ports"] = _ports(data.get("free_ports") or [], "free_ports")
    other = {key: value for key, value in data.items() if key not in _TAKEN}
    return Facts(**values, other=other or None)


def _kind(value: object) -> str:
    names = {bool: "true or false", str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _refuse(value: object, key: str, wanted: str) -> NoReturn:
    raise _WrongTypeError(f"{key} must be {wanted}, not {_kind(value)}")


def _text(value: Any, key: str) -> str:
    return value if isinstance(value, str) else _refuse(value, key, "text")


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _refuse(value, key, "a number")
    try:
        return float(value)
    except OverflowError:
        raise _WrongTypeError(f"{key} is too large a number") from None


def _whole(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        _refuse(value, key, "a whole number")
    return int(value)


def _flag(value: Any, key: str) -> bool:
    return value if isinstance(value, bool) else _refuse(value, key, "true or false")


def _anything(value: Any, _key: str) -> object:
    return value


def _object(value: Any, key: str) -> dict[str, Any]:
    return value if isinstance(value, dict) else _refuse(value, key, "an object")


def _items(value: Any, key: str) -> list[Any]:
    return value if isinstance(value, list) else _refuse(value, key, "a list")


def _texts(value: Any, key: str) -> dict[str, str]:
    """An object of texts; a null in it is left out."""
    return {name: _text(item, f"{key}.{name}") for name, item in _object(value, key).items() if item is not None}


def _text_list(value: Any, key: str) -> tuple[str, ...]:
    return tuple(_text(item, f"{key}[{at}]") for at, item in enumerate(_items(value, key)))


def _optional(item: dict[str, Any], name: str, key: str, reader: Reader) -> Any:
    value = item.get(name)
    return SILENT if value is None else reader(value, f"{key}.{name}")


def _packages(value: Any, key: str) -> dict[str, str]:
    return {_normalised(name): version for name, version in _texts(value, key).items()}


def _normalised(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _requirements(value: Any, key: str) -> dict[str, tuple[str, ...]]:
    return {_normalised(name): _text_list(item, f"{key}.{name}") for name, item in _object(value, key).items()}


def _environment(value: Any, key: str) -> dict[str, str]:
    """Variables; what looks like a secret is masked as soon as it is read."""
    found = {}
    for name, item in _object(value, key).items():
        if item is None:
            continue
        if isinstance(item, int) and not isinstance(item, bool):
            item = str(item)  # noqa: PLW2901 - a number written by hand means its digits
        found[name] = masked(name, _text(item, f"{key}.{name}"))
    return found


def _names(value: Any, key: str) -> frozenset[str]:
    return frozenset(_text_list(value, key))


def _gpus(value: Any, key: str) -> tuple[Gpu, ...]:
    found = tuple(_gpu(item, f"{key}[{at}]", at) for at, item in enumerate(_items(value, key)))
    if len({gpu.index for gpu in found}) < len(found):
        raise _WrongTypeError(f"{key}: two GPUs have the same index")
    return tuple(sorted(found, key=lambda gpu: gpu.index))


def _gpu(value: Any, key: str, at: int) -> Gpu:
    item = _object(value, key)
    return Gpu(
        index=_whole(item.get("index", at), f"{key}.index"),
        name=_optional(item, "name", key, _text),
        uuid=_optional(item, "uuid", key, _text),
        memory_gib=_optional(item, "memory_gib", key, _number),
        compute_capability=_optional(item, "compute_capability", key, _capability),
        pci_bus_id=_optional(item, "pci_bus_id", key, _text),
        mig=_optional(item, "mig", key, _text_list),
    )


def _capability(value: Any, key: str) -> tuple[int, int]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(float(value))
    parts = value if isinstance(value, list) else _text(value, key).split(".")
    try:
        major, minor = parts
        return int(major), int(minor)
    except (TypeError, ValueError):
        raise _WrongTypeError(f'{key} must be like "8.0", not {value!r}') from None


def _gpu_processes(value: Any, key: str) -> tuple[GpuProcess, ...]:
    return tuple(_gpu_process(item, f"{key}[{at}]") for at, item in enumerate(_items(value, key)))


def _gpu_process(value: Any, key: str) -> GpuProcess:
    item = _object(value, key)
    return GpuProcess(
        gpu=_whole(item.get("gpu"), f"{key}.gpu"),
        pid=_optional(item, "pid", key, _whole),
        command=_optional(item, "command", key, _text),
        memory_gib=_optional(item, "memory_gib", key, _number),
    )


def _holders(value: Any, key: str) -> dict[int, PortHolder]:
    """``{"29500": {"pid": 1, "command": "…"}}``, or a list of ports whose holders are unknown."""
    if isinstance(value, list):
        return {port: PortHolder(port, SILENT, SILENT) for port in _ports(value, key)}
    found = {}
    for name, item in _object(value, key).items():
        where = f"{key}.{name}"
        if not (name.isascii() and name.isdigit() and len(name) < 6 and int(name) < 65536):
            raise _WrongTypeError(f"{where}: a port is a number from 0 to 65535")
        holder = _object(item or {}, where)
        port = int(name)
        found[port] = PortHolder(
            port, _optional(holder, "pid", where, _whole), _optional(holder, "command", where, _text)
        )
    return found


def _ports(value: Any, key: str) -> tuple[int, ...]:
    found = tuple(_whole(item, f"{key}[{at}]") for at, item in enumerate(_items(value, key)))
    if any(not 0 <= port < 65536 for port in found):
        raise _WrongTypeError(f"{key}: a port is a number from 0 to 65535")
    return found


def _python(value: Any, key: str) -> PythonInfo:
    item = _object(value, key)
    return PythonInfo(
        executable=_optional(item, "executable", key, _text),
        prefix=_optional(item, "prefix", key, _text),
        version=_optional(item, "version", key, _text),
    )


def _container(value: Any, key: str) -> str:
    if isinstance(value, str):
        return value
    return _text(_object(value, key).get("runtime", "container"), f"{key}.runtime")


def _interfaces(value: Any, key: str) -> dict[str, str]:
    """``{name: address}``; an interface without an address has an empty one."""
    return {name: _text(item or "", f"{key}.{name}") for name, item in _object(value, key).items()}


def _reachable(value: Any, key: str) -> dict[str, bool]:
    return {name: _flag(item, f"{key}.{name}") for name, item in _object(value, key).items() if item is not None}


def _paths(value: Any, key: str) -> dict[str, PathInfo]:
    return {name: _path(item or {}, f"{key}.{name}") for name, item in _object(value, key).items()}


def _path(value: Any, key: str) -> PathInfo:
    item = _object(value, key)
    return PathInfo(
        mode=_optional(item, "mode", key, _text),
        kind=_optional(item, "kind", key, _text),
        free_gib=_optional(item, "free_gib", key, _number),
    )


def _models(value: Any, key: str) -> dict[str, ModelInfo]:
    return {name: _model(item or {}, f"{key}.{name}") for name, item in _object(value, key).items()}


def _model(value: Any, key: str) -> ModelInfo:
    item = _object(value, key)
    return ModelInfo(parameters=_optional(item, "parameters", key, _number), dtype=_optional(item, "dtype", key, _text))


_KEYS: Mapping[str, tuple[str, Reader]] = {
    "gpus": ("gpus", _gpus),
    "gpu_processes": ("gpu_processes", _gpu_processes),
    "driver": ("driver", _text),
    "platform": ("platform", _text),
    "packages": ("packages", _packages),
    "requirements": ("package_requirements", _requirements),
    "wheels": ("wheels", _packages),
    "conda": ("conda", _texts),
    "torch_cuda": ("torch_cuda", _text),
    "torch_cxx11abi": ("torch_cxx11abi", _flag),
    "nvcc": ("nvcc", _text),
    "cuda_home": ("cuda_home", _text),
    "env": ("environment", _environment),
    "env_names": ("environment_names", _names),
    "which": ("which", _texts),
    "shebangs": ("shebangs", _texts),
    "paths": ("paths", _paths),
    "ports_in_use": ("ports_in_use", _holders),
    "interfaces": ("interfaces", _interfaces),
    "network": ("reachable", _reachable),
    "accelerate_default_config": ("accelerate_default_config", _text),
    "models": ("models", _models),
    "hub_cache": ("hub_cache", _text_list),
    "host_memory_gib": ("host_memory_gib", _number),
    "shm_gib": ("shm_gib", _number),
    "limits": ("limits", _object),
    "container": ("container", _container),
    "nvswitch": ("nvswitch", _flag),
    "topology": ("topology", _anything),
    "iommu": ("iommu", _text),
    "pci_acs": ("pci_acs", _texts),
    "infiniband": ("infiniband", _anything),
    "services": ("services", _texts),
    "fabric_manager_version": ("fabric_manager_version", _text),
}
"""Key in the file → field of :class:`Facts`, and how its value is read."""

_NULLABLE = {
    "torch_cuda",
    "container",
    "nvcc",
    "cuda_home",
    "fabric_manager_version",
    "accelerate_default_config",
}
_TAKEN = {*_KEYS, "python", "free_ports", "schema", "unknown"}


def dump_facts(facts: Facts) -> dict[str, object]:
    """The facts as a document that :func:`load_facts` reads back: equal, but for where they come from.

    Values of variables that look like secrets are masked. Reasons are kept for whole keys;
    an unknown part of a value is left out.
    """
    out: dict[str, object] = {"schema": SCHEMA_VERSION}
    unknown = {}
    python = _shown(
        {"executable": facts.python.executable, "prefix": facts.python.prefix, "version": facts.python.version}
    )
    if python:
        out["python"] = python
    for key, (name, _) in _KEYS.items():
        value = getattr(facts, name)
        if isinstance(value, Unknown):
            if value != SILENT:
                unknown[key] = value.reason
        else:
            out[key] = _plain(key, value)
    if facts.free_ports:
        out["free_ports"] = list(facts.free_ports)
    if unknown:
        out["unknown"] = unknown
    return {**out, **{key: value for key, value in (facts.other or {}).items() if key not in out}}


def _plain(key: str, value: Any) -> object:
    writer = _WRITERS.get(key)
    if writer is not None and value is not None:
        return writer(value)
    if isinstance(value, Mapping):
        return {name: list(item) if isinstance(item, tuple) else item for name, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _shown(items: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in items.items() if not isinstance(value, Unknown)}


def _plain_gpu(gpu: Gpu) -> dict[str, object]:
    capability = gpu.compute_capability
    return _shown(
        {
            "index": gpu.index,
            "name": gpu.name,
            "uuid": gpu.uuid,
            "memory_gib": gpu.memory_gib,
            "compute_capability": capability if isinstance(capability, Unknown) else "{}.{}".format(*capability),
            "pci_bus_id": gpu.pci_bus_id,
            "mig": gpu.mig if isinstance(gpu.mig, Unknown) else list(gpu.mig),
        }
    )


def _plain_process(process: GpuProcess) -> dict[str, object]:
    return _shown(
        {"gpu": process.gpu, "pid": process.pid, "command": process.command, "memory_gib": process.memory_gib}
    )


_WRITERS: Mapping[str, Callable[[Any], object]] = {
    "gpus": lambda gpus: [_plain_gpu(gpu) for gpu in gpus],
    "gpu_processes": lambda processes: [_plain_process(process) for process in processes],
    "env": lambda items: {name: masked(name, text) for name, text in items.items()},
    "env_names": sorted,
    "container": lambda runtime: {"runtime": runtime},
    "ports_in_use": lambda holders: {
        str(port): _shown({"pid": holder.pid, "command": holder.command}) for port, holder in holders.items()
    },
    "paths": lambda paths: {
        path: _shown({"mode": info.mode, "kind": info.kind, "free_gib": info.free_gib}) for path, info in paths.items()
    },
    "models": lambda models: {
        name: _shown({"parameters": info.parameters, "dtype": info.dtype}) for name, info in models.items()
    },
}
