"""How each value of a facts file is read and written.

A reader takes the JSON value and the key that it stands under, for messages. Objects with fixed keys may carry
``unknown``, as the whole document does: for each of their keys that could not be found out, the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from mgpu_doctor.collect.compute_capability import compute_capability_of
from mgpu_doctor.collect.environment import hide_secrets, masked
from mgpu_doctor.model.facts import (
    Gpu,
    GpuProcess,
    ModelInfo,
    PackageCopy,
    PathInfo,
    PortHolder,
    PythonInfo,
    XidError,
)
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.pattern import pattern

SILENT = Unknown("the facts file does not say")

UNNAMED = "unnamed"
"""The name of the one InfiniBand device of which a file says no more than that it is there."""

Reader = Callable[[Any, str], Any]

_YES = frozenset({"enabled", "yes", "on", "true"})
_NO = frozenset({"disabled", "no", "off", "false"})
_COMPUTE_MODES = ("Default", "Exclusive_Thread", "Exclusive_Process", "Prohibited")
_PAIR = pattern(r"(?:GPU)?(\d{1,4})\s*-\s*(?:GPU)?(\d{1,4})")
_PORT_STATE = pattern(r"\d+:\s*")
_NCCL_FILE = pattern(r"libnccl\.so\.(\d+\.\d+(?:\.\d+)?)$")


class WrongTypeError(Exception):
    """A value of the wrong type; the text says which key and what was expected."""


def kind_of(value: object) -> str:
    """What JSON calls a value, for messages."""
    names = {bool: "true or false", str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _refuse(value: object, key: str, wanted: str) -> NoReturn:
    raise WrongTypeError(f"{key} must be {wanted}, not {kind_of(value)}")


def read_text(value: Any, key: str) -> str:
    """A text."""
    return value if isinstance(value, str) else _refuse(value, key, "text")


def read_number(value: Any, key: str) -> float:
    """A number, whole or not."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _refuse(value, key, "a number")
    try:
        return float(value)
    except OverflowError:
        raise WrongTypeError(f"{key} is too large a number") from None


def _whole(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        _refuse(value, key, "a whole number")
    return int(value)


def read_flag(value: Any, key: str) -> bool:
    """True or false."""
    return value if isinstance(value, bool) else _refuse(value, key, "true or false")


def _switch(value: Any, key: str) -> bool:
    """True or false, or nvidia-smi's words for them: Enabled, Disabled, Yes, No."""
    word = value.lower() if isinstance(value, str) else ""
    if word in _YES or word in _NO:
        return word in _YES
    return value if isinstance(value, bool) else _refuse(value, key, "true or false (or Enabled or Disabled)")


def _object(value: Any, key: str) -> dict[str, Any]:
    return value if isinstance(value, dict) else _refuse(value, key, "an object")


def _items(value: Any, key: str) -> list[Any]:
    return value if isinstance(value, list) else _refuse(value, key, "a list")


def read_texts(value: Any, key: str) -> dict[str, str]:
    """An object of texts; a null in it is left out."""
    return {name: read_text(item, f"{key}.{name}") for name, item in _object(value, key).items() if item is not None}


def read_text_list(value: Any, key: str) -> tuple[str, ...]:
    """A list of texts."""
    return tuple(read_text(item, f"{key}[{at}]") for at, item in enumerate(_items(value, key)))


def read_names(value: Any, key: str) -> frozenset[str]:
    """A list of texts whose order means nothing."""
    return frozenset(read_text_list(value, key))


def _flag_list(value: Any, key: str) -> tuple[bool, ...]:
    return tuple(read_flag(item, f"{key}[{at}]") for at, item in enumerate(_items(value, key)))


def _parts(item: dict[str, Any], key: str, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """The values of an object with fixed keys; each is Unknown where the object does not tell."""
    reasons = read_texts(item.get("unknown") or {}, f"{key}.unknown")
    found: dict[str, Any] = {}
    for name, reader in readers.items():
        value = item.get(name)
        if value is not None:
            found[name] = reader(value, f"{key}.{name}")
        else:
            found[name] = Unknown(reasons[name]) if name in reasons else SILENT
    return found


def read_packages(value: Any, key: str) -> dict[str, str]:
    """``{distribution: text}``, the names normalised."""
    return {_normalised(name): version for name, version in read_texts(value, key).items()}


def read_flags(value: Any, key: str) -> dict[str, bool]:
    """``{distribution: true or false}``, the names normalised; null for one of which that is not known."""
    found = _object(value, key).items()
    return {_normalised(name): read_flag(item, f"{key}.{name}") for name, item in found if item is not None}


def _normalised(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def read_requirements(value: Any, key: str) -> dict[str, tuple[str, ...]]:
    """``{distribution: [requirement, …]}``."""
    return {_normalised(name): read_text_list(item, f"{key}.{name}") for name, item in _object(value, key).items()}


def read_package_copies(value: Any, key: str) -> dict[str, tuple[PackageCopy, ...]]:
    """``{distribution: [{version, site}, …]}``."""
    return {_normalised(name): _copies(item, f"{key}.{name}") for name, item in _object(value, key).items()}


def _copies(value: Any, key: str) -> tuple[PackageCopy, ...]:
    found = []
    for at, entry in enumerate(_items(value, key)):
        where = f"{key}[{at}]"
        item = _object(entry, where)
        version, site = read_text(item.get("version"), f"{where}.version"), read_text(item.get("site"), f"{where}.site")
        found.append(PackageCopy(version, site))
    return tuple(found)


def read_environment(value: Any, key: str) -> dict[str, str]:
    """Variables; what looks like a secret is masked as soon as it is read."""
    found = {}
    for name, item in _object(value, key).items():
        if item is None:
            continue
        if isinstance(item, int) and not isinstance(item, bool):
            item = str(item)  # noqa: PLW2901 - a number written by hand means its digits
        found[name] = masked(name, read_text(item, f"{key}.{name}"))
    return found


def read_which(value: Any, key: str) -> dict[str, str | None]:
    """``{command: path}``; null for a command that is known not to be on PATH."""
    return {
        name: None if item is None else read_text(item, f"{key}.{name}") for name, item in _object(value, key).items()
    }


def read_gpus(value: Any, key: str) -> tuple[Gpu, ...]:
    """A list of GPUs, in nvidia-smi's order where they carry no index."""
    found = tuple(_gpu(item, f"{key}[{at}]", at) for at, item in enumerate(_items(value, key)))
    if len({gpu.index for gpu in found}) < len(found):
        raise WrongTypeError(f"{key}: two GPUs have the same index")
    return tuple(sorted(found, key=lambda gpu: gpu.index))


def _gpu(value: Any, key: str, at: int) -> Gpu:
    item = _object(value, key)
    parts = _parts(item, key, GPU_KEYS)
    if item.get("mig_devices") is not None:
        instances = _items(item["mig_devices"], f"{key}.mig_devices")
        parts.update(_mig(instances, f"{key}.mig_devices", parts))
    name = parts.get("name")
    if parts["compute_capability"] == SILENT and isinstance(name, str):
        parts["compute_capability"] = compute_capability_of(name) or SILENT
    return Gpu(index=_whole(item.get("index", at), f"{key}.index"), **parts)


def _mig(instances: list[Any], key: str, parts: dict[str, Any]) -> dict[str, Any]:
    """UUIDs and profiles out of ``mig_devices``, where ``mig`` and ``mig_profiles`` do not say it already."""
    uuids, profiles = [], []
    for at, value in enumerate(instances):
        item = _object(value, f"{key}[{at}]")
        uuids.append(read_text(item.get("uuid"), f"{key}[{at}].uuid"))
        if item.get("profile") is not None:
            profiles.append(read_text(item["profile"], f"{key}[{at}].profile"))
    found = {"mig": tuple(uuids), "mig_profiles": tuple(profiles) if len(profiles) == len(uuids) else SILENT}
    return {name: told for name, told in found.items() if isinstance(parts[name], Unknown)}


def _capability(value: Any, key: str) -> tuple[int, int]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(float(value))
    parts = value if isinstance(value, list) else read_text(value, key).split(".")
    try:
        major, minor = parts
        return int(major), int(minor)
    except (TypeError, ValueError):
        raise WrongTypeError(f'{key} must be like "8.0", not {value!r}') from None


def _compute_mode(value: Any, key: str) -> str:
    text = read_text(value, key)
    word = text.replace("-", "_").replace(" ", "_").lower()
    return next((mode for mode in _COMPUTE_MODES if mode.lower() == word), text)


def read_gpu_processes(value: Any, key: str) -> tuple[GpuProcess, ...]:
    """A list of processes on GPUs."""
    found = []
    for at, entry in enumerate(_items(value, key)):
        where = f"{key}[{at}]"
        item = _object(entry, where)
        found.append(GpuProcess(gpu=_whole(item.get("gpu"), f"{where}.gpu"), **_parts(item, where, PROCESS_KEYS)))
    return tuple(found)


def read_xid_errors(value: Any, key: str) -> tuple[XidError, ...]:
    """A list of faults that the driver wrote to the kernel log."""
    found = []
    for at, entry in enumerate(_items(value, key)):
        where = f"{key}[{at}]"
        item = _object(entry, where)
        bus, text = item.get("pci_bus_id") or "", item.get("text") or ""
        code = _whole(item.get("code"), f"{where}.code")
        found.append(XidError(read_text(bus, f"{where}.pci_bus_id"), code, read_text(text, f"{where}.text")))
    return tuple(found)


def read_holders(value: Any, key: str) -> dict[int, PortHolder]:
    """``{"29500": {"pid": 1, "command": "…"}}``, or a list of ports whose holders are unknown."""
    if isinstance(value, list):
        return {port: PortHolder(port, SILENT, SILENT) for port in read_ports(value, key)}
    found = {}
    for name, item in _object(value, key).items():
        where = f"{key}.{name}"
        if not (name.isascii() and name.isdigit() and len(name) < 6 and int(name) < 65536):
            raise WrongTypeError(f"{where}: a port is a number from 0 to 65535")
        found[int(name)] = PortHolder(int(name), **_parts(_object(item or {}, where), where, HOLDER_KEYS))
    return found


def read_ports(value: Any, key: str) -> tuple[int, ...]:
    """A list of TCP ports."""
    found = tuple(_whole(item, f"{key}[{at}]") for at, item in enumerate(_items(value, key)))
    if any(not 0 <= port < 65536 for port in found):
        raise WrongTypeError(f"{key}: a port is a number from 0 to 65535")
    return found


def read_python(value: Any, key: str) -> PythonInfo:
    """The interpreter."""
    return PythonInfo(**_parts(_object(value, key), key, PYTHON_KEYS))


def read_container(value: Any, key: str) -> str:
    """``{"runtime": "docker"}``, or the runtime alone."""
    if isinstance(value, str):
        return value
    return read_text(_object(value, key).get("runtime", "container"), f"{key}.runtime")


def read_interfaces(value: Any, key: str) -> dict[str, str]:
    """``{name: address}``; an interface without an address has an empty one."""
    return {name: read_text(item or "", f"{key}.{name}") for name, item in _object(value, key).items()}


def read_reachable(value: Any, key: str) -> dict[str, bool]:
    """``{host: whether it answers}``."""
    return {name: read_flag(item, f"{key}.{name}") for name, item in _object(value, key).items() if item is not None}


def read_paths(value: Any, key: str) -> dict[str, PathInfo]:
    """``{path: {mode, kind, free_gib}}``; null for a path of which no more is known than that it exists."""
    return {
        name: PathInfo(**_parts(_object(item or {}, f"{key}.{name}"), f"{key}.{name}", PATH_KEYS))
        for name, item in _object(value, key).items()
    }


def read_models(value: Any, key: str) -> dict[str, ModelInfo]:
    """``{name or path: {parameters, dtype}}``."""
    return {
        name: ModelInfo(**_parts(_object(item or {}, f"{key}.{name}"), f"{key}.{name}", MODEL_KEYS))
        for name, item in _object(value, key).items()
    }


def read_limits(value: Any, key: str) -> dict[str, object]:
    """``{name: number}``; ``"unlimited"`` is -1, and null is left out."""
    return {name: -1 if item == "unlimited" else item for name, item in _object(value, key).items() if item is not None}


def read_topology(value: Any, key: str) -> str | dict[str, str]:
    """One word for all pairs of GPUs, or a word for each pair."""
    if isinstance(value, str):
        return value
    pairs = value if isinstance(value, dict) else _refuse(value, key, "text or an object")
    return {_pair(name, key): read_text(item, f"{key}.{name}") for name, item in pairs.items() if item is not None}


def read_peer_access(value: Any, key: str) -> dict[str, str]:
    """A word for each pair of GPUs; true is ``ok``, false ``not supported``."""
    words = {True: "ok", False: "not supported"}
    return {
        _pair(name, key): words[item] if isinstance(item, bool) else read_text(item, f"{key}.{name}")
        for name, item in _object(value, key).items()
        if item is not None
    }


def _pair(name: str, key: str) -> str:
    """A pair of indices with the smaller first."""
    match = _PAIR.fullmatch(name)
    if match is None or not name.isascii():
        raise WrongTypeError(f'{key}.{name}: a pair of GPUs is written with their indices, as "0-1"')
    one, other = sorted(map(int, match.groups()))
    return f"{one}-{other}"


def read_iommu(value: Any, key: str) -> str:
    """``enabled``, ``passthrough`` or ``disabled``; true and false stand for the first and the last."""
    if isinstance(value, bool):
        return "enabled" if value else "disabled"
    return read_text(value, key).lower()


def read_infiniband(value: Any, key: str) -> dict[str, str]:
    """``{device: state}``, a list of devices whose state is not told, or whether there is any."""
    if isinstance(value, bool):
        return {UNNAMED: ""} if value else {}
    if isinstance(value, list):
        return dict.fromkeys(read_text_list(value, key), "")
    found = _object(value, key)
    return {name: _port_state(read_text(item or "", f"{key}.{name}")) for name, item in found.items()}


def _port_state(text: str) -> str:
    """The kernel's word for the state of a port: sysfs writes ``4: ACTIVE``."""
    number = _PORT_STATE.match(text)
    return (text[number.end() :] if number else text).upper()


def read_nccl_libraries(value: Any, key: str) -> dict[str, str]:
    """``{path: version}``, or a list of paths, whose versions are known where the file's name tells."""
    if isinstance(value, list):
        named = ((path, _NCCL_FILE.search(path)) for path in read_text_list(value, key))
        return {path: found.group(1) if found else "" for path, found in named}
    return {name: read_text(item or "", f"{key}.{name}") for name, item in _object(value, key).items()}


def read_word(value: Any, key: str) -> str:
    """A word whose case means nothing, in small letters."""
    return read_text(value, key).lower()


GPU_KEYS: Mapping[str, Reader] = {
    "name": read_text,
    "uuid": read_text,
    "memory_gib": read_number,
    "compute_capability": _capability,
    "pci_bus_id": read_text,
    "mig": read_text_list,
    "memory_used_gib": read_number,
    "mig_mode": _switch,
    "mig_profiles": read_text_list,
    "compute_mode": _compute_mode,
    "utilization_percent": _whole,
    "temperature_c": _whole,
    "ecc_uncorrected": _whole,
    "pages_pending": _switch,
    "remap_failed": _switch,
    "clock_events": read_text_list,
    "pcie_generation": _whole,
    "pcie_generation_max": _whole,
    "pcie_width": _whole,
    "pcie_width_max": _whole,
    "nvlinks": _flag_list,
    "fabric_state": read_text,
}
PROCESS_KEYS: Mapping[str, Reader] = {
    "pid": _whole,
    "command": read_text,
    "memory_gib": read_number,
    "user": read_text,
    "alive": read_flag,
    "parent": _whole,
}
PYTHON_KEYS: Mapping[str, Reader] = {"executable": read_text, "prefix": read_text, "version": read_text}
HOLDER_KEYS: Mapping[str, Reader] = {"pid": _whole, "command": read_text}
PATH_KEYS: Mapping[str, Reader] = {"mode": read_text, "kind": read_text, "free_gib": read_number, "writable": read_flag}
MODEL_KEYS: Mapping[str, Reader] = {"parameters": read_number, "dtype": read_text}


def plain(value: Any) -> Any:
    """A value as JSON has it, in the form that its reader takes back."""
    if hasattr(value, "__match_args__"):
        return plain_record(value)
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def plain_record(record: Any) -> dict[str, Any]:
    """A record's known parts, and under ``unknown`` why the others are not known."""
    out: dict[str, Any] = {}
    unknown = {}
    for name in record.__match_args__:
        value = getattr(record, name)
        if isinstance(value, Unknown):
            if value != SILENT:
                unknown[name] = value.reason
        elif name == "compute_capability":
            out[name] = "{}.{}".format(*value)
        elif name == "command":
            out[name] = hide_secrets(value)
        else:
            out[name] = plain(value)
    if unknown:
        out["unknown"] = unknown
    return out


def plain_holders(holders: Mapping[int, PortHolder]) -> dict[str, Any]:
    """Ports and their holders; the port stands in the key alone."""
    found = {}
    for port, holder in holders.items():
        parts = plain_record(holder)
        del parts["port"]
        found[str(port)] = parts
    return found


def plain_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables, masked once more: facts may have been made by hand."""
    return {name: masked(name, text) for name, text in variables.items()}
