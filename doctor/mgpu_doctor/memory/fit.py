"""The cards that a launch works on, and whether what it needs fits them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.memory import GIB, CardRoom, MemoryFit

if TYPE_CHECKING:
    from mgpu_doctor.model.case import Case
    from mgpu_doctor.model.facts import Gpu
    from mgpu_doctor.model.launch import Launch


def memory_fit(case: Case, launch: Launch) -> MemoryFit | Unknown:
    """The room on the cards of a launch; Unknown where the cards or their memory are not known."""
    gpus = case.facts.gpus
    if isinstance(gpus, Unknown):
        return gpus
    used = _used(launch, gpus)
    if isinstance(used, Unknown):
        return used
    rooms = [_room(gpu) for gpu in used]
    if not rooms:
        return Unknown("no GPU is used")
    known = [room for room in rooms if room is not None]
    if len(known) < len(rooms):
        return Unknown("the memory of the GPUs is not known")
    certain = not isinstance(_placed(launch, gpus), Unknown)
    return MemoryFit(tuple(known), certain)


def _used(launch: Launch, gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...] | Unknown:
    """The GPUs that ranks work on; all of the machine's where only their number is known."""
    if any(gpu.mig_mode is True or gpu.mig for gpu in gpus):
        return Unknown("the size of the MIG instances is not known")
    nodes = launch.nodes.known
    if nodes != 1 and nodes is not None and len(gpus) == 0:
        return Unknown("the GPUs of the other nodes are not known")
    placed = _placed(launch, gpus)
    return gpus if isinstance(placed, Unknown) else placed


def _placed(launch: Launch, gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...] | Unknown:
    by_index = {gpu.index: gpu for gpu in gpus}
    devices = launch.visible.known
    if launch.spread.known == "split" and launch.world_size.known == 1:
        if devices is None:
            return Unknown("the visible list is not known")
        indices: list[int | Unknown] = list(devices.physical)
    elif isinstance(launch.ranks, Unknown):
        return launch.ranks
    else:
        indices = [rank.physical_index for rank in launch.ranks if rank.node == 0]
    found = tuple(by_index[index] for index in indices if isinstance(index, int) and index in by_index)
    if not found or len(found) < len(indices):
        return Unknown("which GPUs are used is not known")
    return found


def _room(gpu: Gpu) -> CardRoom | None:
    if isinstance(gpu.memory_gib, Unknown):
        return None
    total = round(gpu.memory_gib * GIB)
    used = gpu.memory_used_gib
    free = None if isinstance(used, Unknown) else max(0, total - round(used * GIB))
    return CardRoom(gpu.index, total, free)
