"""Which GPU is which: the numbers under which nvidia-smi, CUDA, a visible list and the ranks know it."""

from __future__ import annotations

from mgpu_doctor.model.facts import Gpu, GpuProcess
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.record import dataclass


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """One physical GPU under all its names.

    ``gpu.index`` is nvidia-smi's number. ``cuda_index`` is CUDA's when no list restricts it, under the device order in
    force. ``visible_index`` is the ``cuda:N`` of the processes that the map is about, None when they do not see it.
    ``ranks`` are those that work on it; ``holders`` the processes that hold its memory, None when that is not known.
    """

    gpu: Gpu
    cuda_index: int | Unknown
    visible_index: int | Unknown | None
    ranks: tuple[int, ...]
    holders: tuple[GpuProcess, ...] | None


@dataclass(frozen=True, slots=True)
class DeviceMap:
    """All GPUs of the machine, for one launch or for the shell that was asked from.

    ``visible`` is the list in force as text, None when all are visible; ``order`` CUDA_DEVICE_ORDER, None when unset.
    ``without_device`` are the ranks on this node that get no GPU.
    """

    rows: tuple[DeviceRow, ...]
    visible: str | None
    order: str | None
    without_device: tuple[int, ...] = ()
