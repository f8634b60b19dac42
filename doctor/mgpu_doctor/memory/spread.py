"""The device map of one process that spreads a model, out of what is known of the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpu_doctor.memory.module_tree import Tree, build_tree
from mgpu_doctor.memory.placement import Device, balanced_memory, place, placement
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.memory import GIB, Placement
from mgpu_doctor.model.version import release_numbers

if TYPE_CHECKING:
    from mgpu_doctor.memory.loading import Loading
    from mgpu_doctor.memory.weights import Weights
    from mgpu_doctor.model.case import Case
    from mgpu_doctor.model.launch import Launch

_KINDS = ("auto", "balanced", "balanced_low_0", "sequential")
_FIRST, _LAST = (4, 48), (5, 6)
"""The releases of transformers whose modules and maps are known."""
_CONTEXT = (GIB // 5, GIB)
"""What a CUDA context takes of a card before the map is made, at least and at most."""


def spread_of(case: Case, launch: Launch, weights: Weights, loading: Loading) -> Placement | Unknown:
    """Which modules go to which card; Unknown where that hangs on something that is not known."""
    kind = map_kind(launch)
    if kind is None:
        return Unknown("the device map is not one that is computed")
    if not weights.tensors or weights.architecture is None or weights.config is None:
        return Unknown("the model's files were not read")
    if weights.quantised is not None or loading.bits is not None or loading.name not in {"bf16", "fp16", "fp32"}:
        return Unknown("in which dtype the modules are loaded is not known")
    release = case.knowledge.release("transformers")
    numbers = release_numbers(release.version) if release.certain and release.version else ()
    if not numbers or not _FIRST <= numbers[:2] <= _LAST:
        return Unknown("the device map of this release of transformers is not known")
    new = numbers >= (5,)
    element = 4 if loading.name == "fp32" else 2
    tree = build_tree(weights.tensors, weights.architecture, weights.config, element, new=new)
    if isinstance(tree, Unknown):
        return tree
    return _both(case, launch, tree, kind, new=new)


def map_kind(launch: Launch) -> str | None:
    """How a launch spreads its model: ``auto``, ``balanced``, ``balanced_low_0``, ``sequential``; None: otherwise."""
    if launch.target.framework == "llamafactory":
        return "auto"
    program = launch.target.program
    if isinstance(program, Unknown):
        return None
    kinds = {seen.detail for seen in program.all("device-map")}
    return next(iter(kinds)) if len(kinds) == 1 and kinds <= {*_KINDS} else None


def _both(case: Case, launch: Launch, tree: Tree, kind: str, *, new: bool) -> Placement | Unknown:
    """The map for the smallest and the largest CUDA context; only one that both give is told."""
    found = []
    for context in _CONTEXT:
        memory = _free(case, launch, context, new=new)
        if isinstance(memory, Unknown):
            return memory
        room = memory if kind == "sequential" else balanced_memory(tree, memory, low_zero=kind == "balanced_low_0")
        found.append(place(tree, room))
    if found[0] != found[1]:
        return Unknown("the map hangs on how much memory the CUDA context takes")
    return placement(tree, found[0])


def _free(case: Case, launch: Launch, context: int, *, new: bool) -> dict[Device, float] | Unknown:
    """What is free on each visible card and on the host, in bytes."""
    devices = launch.visible.known
    if devices is None or not devices.physical:
        return Unknown("the visible GPUs are not known")
    room: dict[Device, float] = {}
    for index, physical in enumerate(devices.physical):
        gpu = case.facts.gpu(physical) if isinstance(physical, int) else None
        if gpu is None or isinstance(gpu.memory_gib, Unknown):
            return Unknown("the memory of the visible GPUs is not known")
        used = 0.0 if isinstance(gpu.memory_used_gib, Unknown) else gpu.memory_used_gib
        room[index] = max(0.0, (gpu.memory_gib - used) * GIB - context)
    host = case.facts.host_memory_free_gib
    room["cpu"] = float("inf") if isinstance(host, Unknown) else host * GIB * (0.9 if new else 1)
    return room
