"""From the visible list to physical GPUs: what CUDA_VISIBLE_DEVICES means, and which rank gets which device."""

from __future__ import annotations

from mgpu_doctor.model.facts import Facts, Gpu
from mgpu_doctor.model.known import Setting, Unknown
from mgpu_doctor.model.launch import RankPlacement, VisibleDevices

MOST_RANKS = 4096
"""A table of ranks longer than this is not made."""

NO_INVENTORY = Unknown("no inventory of GPUs")


def read_visible_list(text: str) -> tuple[str, ...]:
    """The entries of CUDA_VISIBLE_DEVICES that count, as the CUDA runtime and torch read them.

    A number may have anything behind its digits; the first entry that is no number (or
    is negative) ends the list; a repeated entry empties it; a list that begins
    with ``GPU-`` or ``MIG-`` holds only such entries (torch 2.13.0, cuda/__init__.py
    _parse_visible_devices(); CUDA C++ Programming Guide, "CUDA Environment Variables").
    """
    for prefix in ("GPU-", "MIG-"):
        if text.startswith(prefix):
            return _until_invalid(tuple(part if part.startswith(prefix) else None for part in text.split(",")))
    return _until_invalid(tuple(_leading_number(part.strip()) for part in text.split(",")))


def _until_invalid(parts: tuple[str | None, ...]) -> tuple[str, ...]:
    kept: list[str] = []
    for part in parts:
        if part is None:
            break
        if part in kept:
            return ()
        kept.append(part)
    return tuple(kept)


def _leading_number(part: str) -> str | None:
    digits = part[1:] if part[:1] == "+" else part
    end = 0
    while end < len(digits) and digits[end].isdecimal():
        end += 1
    return str(int(digits[:end])) if end else None


def visible_devices(text: str, facts: Facts, order: str | None = None) -> VisibleDevices:
    """What a process sees under this list on this machine.

    ``order`` is CUDA_DEVICE_ORDER. Without an inventory the entries are kept and their physical numbers
    are unknown. An index beyond the inventory ends the list.
    """
    entries = read_visible_list(text)
    if isinstance(facts.gpus, Unknown):
        return VisibleDevices(entries, tuple(NO_INVENTORY for _ in entries))
    kept: list[str] = []
    physical: list[int | Unknown] = []
    for entry in entries:
        found = _physical(entry, facts.gpus, order)
        if found is None:
            break
        kept.append(entry)
        physical.append(found)
    return VisibleDevices(tuple(kept), tuple(physical))


def all_devices(facts: Facts, order: str | None = None) -> VisibleDevices | Unknown:
    """Every GPU of the inventory, in CUDA's order."""
    if isinstance(facts.gpus, Unknown):
        return Unknown(f"the GPUs of the machine are not known: {facts.gpus.reason}")
    entries = tuple(str(index) for index in range(len(facts.gpus)))
    physical = tuple(_physical(entry, facts.gpus, order) for entry in entries)
    return VisibleDevices(entries, tuple(NO_INVENTORY if found is None else found for found in physical), all=True)


def _physical(entry: str, gpus: tuple[Gpu, ...], order: str | None) -> int | Unknown | None:
    """nvidia-smi's index of an entry; None when the machine has no such device."""
    if entry.isdecimal():
        return _by_index(int(entry), gpus, order)
    uuids = [gpu.uuid for gpu in gpus]
    if entry.startswith("MIG-"):
        return _by_mig(entry, gpus)
    if entry.upper() == "GPU-":
        return None
    # The driver ignores the case of a UUID and takes a prefix that is unambiguous (driver 580.159.04, ran).
    matching = [gpu.index for gpu in gpus if isinstance(gpu.uuid, str) and _begins(gpu.uuid, entry)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        return None
    if any(isinstance(uuid, Unknown) for uuid in uuids):
        return Unknown("the UUIDs of the GPUs are not known")
    return None


def _begins(uuid: str, entry: str) -> bool:
    return uuid.lower().startswith(entry.lower())


def _by_index(index: int, gpus: tuple[Gpu, ...], order: str | None) -> int | Unknown | None:
    in_bus_order = sorted(gpus, key=lambda gpu: gpu.index)
    if index >= len(in_bus_order):
        return None
    models = {gpu.name for gpu in gpus if isinstance(gpu.name, str)}
    if len(models) > 1 and order != "PCI_BUS_ID":
        return Unknown("the GPUs are of different models and CUDA_DEVICE_ORDER is not PCI_BUS_ID")
    return in_bus_order[index].index


def _by_mig(entry: str, gpus: tuple[Gpu, ...]) -> int | Unknown | None:
    unknown = False
    for gpu in gpus:
        if isinstance(gpu.mig, Unknown):
            unknown = True
        elif any(_begins(uuid, entry) for uuid in gpu.mig):
            return gpu.index
    return Unknown("the MIG instances are not known") if unknown else None


def place_ranks(
    processes_per_node: Setting[int],
    nodes: Setting[int],
    node_rank: Setting[int],
    visible: Setting[VisibleDevices],
    facts: Facts,
) -> tuple[RankPlacement, ...] | Unknown:
    """One process a local index: rank → ``cuda:local_rank`` → physical GPU, for every rank of the job.

    Other nodes' physical devices are unknown: only this machine's are.
    """
    per_node, count = processes_per_node.value, nodes.value
    if isinstance(per_node, Unknown):
        return per_node
    if isinstance(count, Unknown):
        return count
    if per_node * count > MOST_RANKS:
        return Unknown(f"{per_node * count} ranks are too many to list")
    here = 0 if count == 1 else node_rank.known
    return tuple(
        _place(node, local, per_node, visible.value if node == here else Unknown("another machine"), facts)
        for node in range(count)
        for local in range(per_node)
    )


def _place(node: int, local: int, per_node: int, visible: VisibleDevices | Unknown, facts: Facts) -> RankPlacement:
    rank = node * per_node + local
    if isinstance(visible, Unknown):
        return RankPlacement(rank, local, node, local, visible, visible)
    if local >= len(visible.entries):
        none = Unknown(f"only {len(visible.entries)} devices are visible")
        return RankPlacement(rank, local, node, none, none, none)
    physical = visible.physical[local]
    uuid: str | Unknown = NO_INVENTORY
    if isinstance(physical, Unknown):
        uuid = physical
    else:
        gpu = facts.gpu(physical)
        uuid = gpu.uuid if gpu is not None else NO_INVENTORY
    return RankPlacement(rank, local, node, local, physical, uuid)
