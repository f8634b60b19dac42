"""From the inventory and a launch to the one map that says which GPU is which."""

from __future__ import annotations

from mgpu_doctor.launchers.devices import all_devices, visible_devices
from mgpu_doctor.model.device_map import DeviceMap, DeviceRow
from mgpu_doctor.model.facts import Facts, GpuProcess
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import Launch, VisibleDevices


def map_devices(facts: Facts, launch: Launch | None = None) -> DeviceMap | Unknown:
    """The map for a launch, or without one for the variables that the facts hold; Unknown without an inventory."""
    if isinstance(facts.gpus, Unknown):
        return facts.gpus
    order = _order(facts, launch)
    everything = all_devices(facts, order)
    visible = _visible(facts, launch, order)
    processes = facts.gpu_processes
    rows = tuple(
        DeviceRow(
            gpu=gpu,
            cuda_index=_in_order(gpu.index, everything),
            visible_index=_index_of(gpu.index, visible),
            ranks=_ranks_on(gpu.index, launch, visible),
            holders=None if isinstance(processes, Unknown) else _holders(gpu.index, processes),
        )
        for gpu in facts.gpus
    )
    text = None if isinstance(visible, Unknown) or visible.all else ",".join(visible.entries)
    return DeviceMap(rows, text, order, _without_device(launch))


def _order(facts: Facts, launch: Launch | None) -> str | None:
    variable = launch.command.variable("CUDA_DEVICE_ORDER") if launch is not None else None
    if variable is not None:
        return variable.value.value if variable.value is not None else None
    order = facts.variable("CUDA_DEVICE_ORDER")
    return order if isinstance(order, str) else None


def _visible(facts: Facts, launch: Launch | None, order: str | None) -> VisibleDevices | Unknown:
    if launch is not None:
        return launch.visible.value
    listed = facts.variable("CUDA_VISIBLE_DEVICES")
    if isinstance(listed, Unknown):
        return listed
    return all_devices(facts, order) if listed is None else visible_devices(listed, facts, order)


def _in_order(index: int, devices: VisibleDevices | Unknown) -> int | Unknown:
    found = _index_of(index, devices)
    return Unknown("CUDA's order is not known") if found is None else found


def _index_of(index: int, devices: VisibleDevices | Unknown) -> int | Unknown | None:
    """The position of a GPU in a list; None when the list surely lacks it."""
    if isinstance(devices, Unknown):
        return devices
    for position, physical in enumerate(devices.physical):
        if physical == index:
            return position
    return next((physical for physical in devices.physical if isinstance(physical, Unknown)), None)


def _ranks_on(index: int, launch: Launch | None, visible: VisibleDevices | Unknown) -> tuple[int, ...]:
    if launch is None or isinstance(launch.ranks, Unknown):
        return ()
    if len(launch.ranks) == 1 and launch.spread.known == "split" and not isinstance(visible, Unknown):
        return (launch.ranks[0].rank,) if index in visible.physical else ()
    return tuple(rank.rank for rank in launch.ranks if rank.physical_index == index)


def _holders(index: int, processes: tuple[GpuProcess, ...]) -> tuple[GpuProcess, ...]:
    return tuple(process for process in processes if process.gpu == index)


def _without_device(launch: Launch | None) -> tuple[int, ...]:
    if launch is None or isinstance(launch.ranks, Unknown):
        return ()
    return tuple(rank.rank for rank in launch.ranks if isinstance(rank.visible_index, Unknown))
