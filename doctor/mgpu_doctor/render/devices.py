"""The map of the GPUs in words: one row a card, ready for a table or for lines."""

from __future__ import annotations

from typing import NamedTuple

from mgpu_doctor.model.device_map import DeviceMap, DeviceRow
from mgpu_doctor.model.facts import GpuProcess
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.render.clean import one_line

_LONGEST_COMMAND = 32
_USED_GIB = 0.5
"""Memory in use below this is not worth a word: a context, a desktop."""


class DeviceWords(NamedTuple):
    """One GPU as text; an empty text means that there is nothing to say, ``?`` that it is not known."""

    number: str
    model: str
    uuid: str
    pci: str
    cuda: str
    visible: str
    ranks: str
    used: str


def device_words(devices: DeviceMap) -> tuple[DeviceWords, ...]:
    """Every row of a map."""
    return tuple(_words(row) for row in devices.rows)


def map_note(devices: DeviceMap) -> str:
    """Under which order and list the numbers hold, in one line."""
    visible = "all are visible" if devices.visible is None else f"CUDA_VISIBLE_DEVICES={devices.visible or '(empty)'}"
    order = ""
    if devices.order is not None:
        order = f"; CUDA_DEVICE_ORDER={devices.order}"
    elif mixed(devices):
        order = "; CUDA numbers the fastest first, nvidia-smi by PCI bus"
    left = ""
    if devices.without_device:
        several = len(devices.without_device) > 1
        left = f"; rank{'s' * several} {ranges(devices.without_device)} without a GPU"
    return one_line(f"{visible}{order}{left}")


def mixed(devices: DeviceMap) -> bool:
    """Whether the GPUs are of different models."""
    return len({row.gpu.name for row in devices.rows if isinstance(row.gpu.name, str)}) > 1


def ranges(numbers: tuple[int, ...]) -> str:
    """``0-3, 6`` for 0, 1, 2, 3, 6."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def short_bus_id(bus_id: str) -> str:
    """A PCI address as ``lspci`` writes it: NVML's has four more zeros in its domain."""
    domain, colon, rest = bus_id.partition(":")
    return (domain[-4:] + colon + rest).lower()


def short_uuid(uuid: str) -> str:
    """The part of a device UUID that tells it apart on one machine."""
    head, dash, rest = uuid.partition("-")
    return head + dash + rest.split("-", 1)[0] if dash else uuid


def _words(row: DeviceRow) -> DeviceWords:
    gpu = row.gpu
    visible = row.visible_index
    return DeviceWords(
        number=str(gpu.index),
        model=one_line(gpu.name) if isinstance(gpu.name, str) else "?",
        uuid=one_line(short_uuid(gpu.uuid)) if isinstance(gpu.uuid, str) else "?",
        pci=one_line(short_bus_id(gpu.pci_bus_id)) if isinstance(gpu.pci_bus_id, str) else "?",
        cuda="?" if isinstance(row.cuda_index, Unknown) else str(row.cuda_index),
        visible="?" if isinstance(visible, Unknown) else "hidden" if visible is None else f"cuda:{visible}",
        ranks=ranges(row.ranks),
        used=one_line(_used(row)),
    )


def _used(row: DeviceRow) -> str:
    used, total = row.gpu.memory_used_gib, row.gpu.memory_gib
    holders = [holder for holder in row.holders or () if not _small(holder)]
    if isinstance(used, Unknown):
        used = sum(h.memory_gib for h in holders if not isinstance(h.memory_gib, Unknown))
    if used < _USED_GIB and not holders:
        return "free" if row.holders is not None else ""
    amount = f"{used:.1f}" + (f" of {total:.0f} GiB" if not isinstance(total, Unknown) else " GiB")
    if not holders:
        return amount
    more = f" and {len(holders) - 1} more" if len(holders) > 1 else ""
    return f"{amount}, {_holder(holders[0])}{more}"


def _small(holder: GpuProcess) -> bool:
    return not isinstance(holder.memory_gib, Unknown) and holder.memory_gib < _USED_GIB


def _holder(holder: GpuProcess) -> str:
    command = holder.command if isinstance(holder.command, str) else "a process"
    if len(command) > _LONGEST_COMMAND:
        command = command[: _LONGEST_COMMAND - 1].rstrip() + "…"
    who = [f"pid {holder.pid}"] if isinstance(holder.pid, int) else []
    who += [holder.user] if isinstance(holder.user, str) else []
    return command + (f" ({', '.join(who)})" if who else "")
