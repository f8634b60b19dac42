"""The text of nvidia-smi: its table (drivers 367 to 580), ``-q``, and ``--query-… --format=csv`` with a header."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from mgpu_doctor.model.log import SmiGpu
from mgpu_doctor.model.pattern import pattern

MOST_BYTES = 4 << 20
"""More is not read: a table takes some hundred bytes a GPU."""

_GPU_ROW = pattern(
    r"^\|\s*(\d+)\s+(\S.*?)\s+(?:On|Off|N/A)\s*\|\s*([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f])\s"
)
_USE_ROW = pattern(r"^\|.*\|\s*(\d+)MiB\s*/\s*(\d+)MiB\s*\|\s*(?:(\d+)%|N/A|ERR)?")
_PROCESS_ROW = pattern(
    r"^\|\s+(\d+)\s+(?:(?:N/A|\d+)\s+(?:N/A|\d+)\s+)?(\d+)\s+(C|G|C\+G|M\+C|M\+C\+G)\s+\S.*?\s(?:(\d+)MiB|N/A)\s*\|\s*$"
)
_Q_GPU = pattern(r"^GPU ([0-9A-Fa-f]{8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f])\s*$")
_Q_VALUE = pattern(r"^\s+([A-Za-z][\w .()-]*?)\s*: (.*?)\s*$")
_NUMBER = pattern(r"\d+")


def is_smi(text: str) -> bool:
    """Whether a text comes from nvidia-smi."""
    head = text[:4096]
    return (
        ("| NVIDIA-SMI " in head and "Driver Version" in head)
        or "==============NVSMI LOG==============" in head
        or _csv_header(head) is not None
    )


def read_smi(text: str) -> tuple[SmiGpu, ...]:
    """The GPUs that the text shows, in its order; empty when it shows none."""
    if "NVSMI LOG" in text[:4096]:
        return _from_query(text.splitlines())
    if _csv_header(text[:4096]) is not None:
        return _from_csv(text.splitlines())
    return _from_table(text.splitlines())


def _from_table(lines: list[str]) -> tuple[SmiGpu, ...]:
    gpus: dict[int, SmiGpu] = {}
    pids: dict[int, list[int]] = {}
    last: tuple[int, str, str] | None = None
    for line in lines:
        found = _GPU_ROW.match(line)
        if found is not None:
            last = (int(found.group(1)), found.group(2), found.group(3).lower())
            continue
        found = _USE_ROW.match(line)
        if found is not None and last is not None:
            used, total, percent = (int(value) if value else None for value in found.groups())
            gpus[last[0]] = SmiGpu(*last, used, total, percent)
            last = None
            continue
        found = _PROCESS_ROW.match(line)
        if found is not None and "C" in found.group(3):
            pids.setdefault(int(found.group(1)), []).append(int(found.group(2)))
    told = bool(pids) or any("No running processes found" in line for line in lines)
    return _with_pids(gpus.values(), pids if told else None)


def _with_pids(gpus: Iterable[SmiGpu], pids: Mapping[int, list[int]] | None) -> tuple[SmiGpu, ...]:
    """The GPUs with their processes. A list without any is not believed while memory is held, as in a container."""
    gpus = tuple(gpus)
    held = any(gpu.memory_used is not None and gpu.is_idle is False for gpu in gpus)
    if pids is None or (held and not any(pids.values())):
        return gpus
    return tuple(
        SmiGpu(
            gpu.index,
            gpu.name,
            gpu.bus_id,
            gpu.memory_used,
            gpu.memory_total,
            gpu.utilization,
            tuple(dict.fromkeys(pids.get(gpu.index, ()))),
        )
        for gpu in gpus
    )


def _from_query(lines: list[str]) -> tuple[SmiGpu, ...]:
    gpus: list[SmiGpu] = []
    pids: dict[int, list[int]] = {}
    values: dict[str, str] = {}
    bus: str | None = None
    section = ""
    pid: int | None = None
    for line in (*lines, "GPU 00000000:00:00.0"):
        found = _Q_GPU.match(line)
        if found is not None:
            if bus is not None:
                gpus.append(_queried(len(gpus), bus, values))
            bus, values, section = found.group(1).lower(), {}, ""
            continue
        found = _Q_VALUE.match(line)
        if found is None:
            section = line.strip() or section
            continue
        name, value = found.groups()
        values.setdefault(f"{section}/{name}", value)
        if name == "Process ID" and value.isdigit():
            pid = int(value)
        elif name == "Type" and pid is not None:
            if "C" in value:
                pids.setdefault(len(gpus), []).append(pid)
            pid = None
    told = bool(pids) or any(re.match(r"\s+Processes\s*: None", line) for line in lines)
    return _with_pids(gpus, pids if told else None)


def _queried(index: int, bus: str, values: Mapping[str, str]) -> SmiGpu:
    name = next((value for key, value in values.items() if key.endswith("/Product Name")), None)
    return SmiGpu(
        index,
        name,
        bus,
        _number(values.get("FB Memory Usage/Used")),
        _number(values.get("FB Memory Usage/Total")),
        _number(values.get("Utilization/Gpu") or values.get("Utilization/GPU")),
    )


def _number(text: str | None) -> int | None:
    found = _NUMBER.match(text.strip()) if text is not None else None
    return int(found.group()) if found is not None else None


def _csv_header(text: str) -> tuple[str, ...] | None:
    for line in text.splitlines()[:3]:
        names = tuple(name.split("[")[0].strip() for name in line.split(","))
        if {"memory.used", "utilization.gpu"} & {*names}:
            return names
    return None


def _from_csv(lines: list[str]) -> tuple[SmiGpu, ...]:
    names: tuple[str, ...] | None = None
    gpus: list[SmiGpu] = []
    for line in lines:
        if names is None:
            names = _csv_header(line)
            continue
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(names):
            continue
        row = dict(zip(names, cells, strict=True))
        index = _number(row.get("index"))
        gpus.append(
            SmiGpu(
                len(gpus) if index is None else index,
                row.get("name"),
                row.get("pci.bus_id", "").lower() or None,
                _number(row.get("memory.used")),
                _number(row.get("memory.total")),
                _number(row.get("utilization.gpu")),
            )
        )
    return tuple(gpus)
