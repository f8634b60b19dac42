"""What an observation amounts to, short of a verdict: who shares a card, who forms a group, whose sum is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import Launch
from mgpu_doctor.model.observation import LinkSeen, Observation, RankSeen, StageSeen

_COUNTS = ("num_processes", "nproc_per_node", "num_gpus")
"""Options by which launchers are asked for a number of processes."""

_SUM_TOLERANCE = 1e-6
"""Relative error that a sum in single precision may have without anything being wrong."""

_SHORTEST_MS = 0.05
"""Milliseconds below which a timing says more about the timer than about the GPU."""


def present(observation: Observation) -> tuple[RankSeen, ...]:
    """The processes that reported."""
    return tuple(rank for rank in observation.ranks if rank.state != "missing")


def world_of(rank: RankSeen) -> int | None:
    """The size of the group that a process believes to be part of; None when that was not seen.

    A process that finished and was told nothing is alone.
    """
    if isinstance(rank.world_size, int):
        return rank.world_size
    if isinstance(rank.rank, Unknown) and rank.state == "done":
        return 1
    return None


def group_count(observation: Observation) -> int | None:
    """How many groups the processes form; None when that cannot be told."""
    ranks = present(observation)
    worlds = {world_of(rank) for rank in ranks}
    if len(worlds) != 1:
        return None
    (world,) = worlds
    if world is None or world < 1:
        return None
    return max(1, math.ceil(len(ranks) / world))


def bare_uuid(uuid: str) -> str:
    """A UUID for comparing: torch leaves out the ``GPU-`` that NVML and nvidia-smi write."""
    return uuid.strip().lower().removeprefix("gpu-")


def uuid_of(rank: RankSeen) -> str | None:
    """The UUID of a process's device, made comparable; None when it is not known or there is no device."""
    return (bare_uuid(rank.uuid) or None) if isinstance(rank.uuid, str) else None


def ranks_by_device(observation: Observation) -> Mapping[str, tuple[RankSeen, ...]]:
    """The processes on each device that is known, by its UUID, in the order of first sight."""
    found: dict[str, list[RankSeen]] = {}
    for rank in present(observation):
        uuid = uuid_of(rank)
        if uuid is not None:
            found.setdefault(uuid, []).append(rank)
    return {uuid: tuple(ranks) for uuid, ranks in found.items()}


def shared_devices(observation: Observation) -> tuple[tuple[RankSeen, ...], ...]:
    """The groups of processes that share one device (equal UUIDs)."""
    return tuple(ranks for ranks in ranks_by_device(observation).values() if len(ranks) > 1)


def shared_cards(observation: Observation) -> tuple[tuple[RankSeen, ...], ...]:
    """The groups of processes on one card: equal UUIDs, or MIG instances at one PCI address of one host."""
    cards: dict[tuple[str, str], list[RankSeen]] = {}
    for rank in present(observation):
        uuid = uuid_of(rank)
        if uuid is None:
            continue
        key = ("", uuid)
        if uuid.startswith("mig-") and isinstance(rank.pci_bus_id, str) and isinstance(rank.host, str):
            key = (rank.host, rank.pci_bus_id.lower())
        cards.setdefault(key, []).append(rank)
    return tuple(tuple(ranks) for ranks in cards.values() if len(ranks) > 1)


def name_of(rank: RankSeen) -> str:
    """``rank 3``, or ``process 4711`` for one that was given no rank."""
    if isinstance(rank.rank, int):
        return f"rank {rank.rank}"
    return f"process {rank.pid}" if isinstance(rank.pid, int) else "a process"


def names_of(ranks: Iterable[RankSeen]) -> str:
    """``ranks 0, 1 and 2``; processes without a rank by their ids."""
    every = [*ranks]
    numbers = sorted(rank.rank for rank in every if isinstance(rank.rank, int))
    if len(numbers) == len(set(numbers)) == len(every):
        return number_list(numbers)
    pids = [str(rank.pid) for rank in every if isinstance(rank.pid, int)]
    if len(pids) == len(every):
        return f"process{'es' * (len(pids) > 1)} {joined(pids)}"
    return f"{len(every)} process{'es' * (len(every) != 1)}"


def number_list(ranks: Iterable[int]) -> str:
    """``rank 3``, ``ranks 0, 1 and 2``, ``ranks 0-7``."""
    numbers = sorted(set(ranks))
    if len(numbers) > 3 and numbers == [*range(numbers[0], numbers[-1] + 1)]:
        return f"ranks {numbers[0]}-{numbers[-1]}"
    return f"rank{'s' * (len(numbers) != 1)} {joined(str(number) for number in numbers)}"


def joined(parts: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *head, last = [*parts] or [""]
    return f"{', '.join(head)} and {last}" if head else last


def sentence(text: str) -> str:
    """A text that begins with a capital letter, and is the same otherwise."""
    return text[:1].upper() + text[1:]


def short_uuid(uuid: str) -> str:
    """The part of a UUID that tells it apart on one machine."""
    kind, dash, rest = uuid.strip().partition("-")
    if dash and kind.upper() in ("GPU", "MIG"):
        return f"{kind.upper()}-{rest.split('-', 1)[0]}"
    return f"GPU-{kind}" if dash else uuid


def device_of(rank: RankSeen) -> str:
    """``GPU 3 (GPU-1a2b3c4d)``: as much of a process's device as is known; ``the CPU``."""
    if rank.uuid is None:
        return "the CPU"
    number = f"GPU {rank.physical_index}" if isinstance(rank.physical_index, int) else ""
    short = short_uuid(rank.uuid) if isinstance(rank.uuid, str) else ""
    if number and short:
        return f"{number} ({short})"
    return number or short or "an unknown device"


def wrong_sums(observation: Observation) -> tuple[int, ...]:
    """The places in ``sum_measured`` that differ from what was expected; empty when nothing was measured."""
    expected, measured = observation.sum_expected, observation.sum_measured
    if isinstance(expected, Unknown) or isinstance(measured, Unknown):
        return ()
    allowed = abs(expected) * _SUM_TOLERANCE
    # A NaN compares as false, and so counts as wrong.
    return tuple(place for place, value in enumerate(measured) if not abs(value - expected) <= allowed)


def contention(rank: RankSeen) -> float | None:
    """How many times longer the same work takes a process while the others work too; None when not measured."""
    solo, together = rank.solo_ms, rank.together_ms
    if isinstance(solo, Unknown) or isinstance(together, Unknown):
        return None
    if not (math.isfinite(solo) and math.isfinite(together)) or solo < _SHORTEST_MS or together <= 0:
        return None
    return together / solo


def solo_ms(rank: RankSeen) -> float | None:
    """Milliseconds of a process's work alone; None when not measured, or too short to mean anything."""
    return _meaning(rank.solo_ms)


def together_ms(rank: RankSeen) -> float | None:
    """Milliseconds of the same work while all work; None when not measured, or too short to mean anything."""
    return _meaning(rank.together_ms)


def _meaning(time: float | Unknown) -> float | None:
    if isinstance(time, Unknown) or not math.isfinite(time) or time < _SHORTEST_MS:
        return None
    return time


def middle(values: Iterable[float]) -> float:
    """The median; of an even number of values the mean of the two in the middle."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def lower_middle(values: Iterable[float]) -> float:
    """The median; of an even number of values the smaller of the two in the middle."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


def stage(observation: Observation, name: str) -> StageSeen | None:
    """The stage of that name, None when it was not reached."""
    return next((one for one in observation.stages if one.name == name), None)


def first_failure(observation: Observation) -> StageSeen | None:
    """The first stage that failed or hung."""
    return next((one for one in observation.stages if one.state not in ("ok", "skipped")), None)


def rank_numbered(observation: Observation, number: int) -> RankSeen | None:
    """The process with that rank; None when there is none, or more than one."""
    found = [rank for rank in observation.ranks if rank.rank == number]
    return found[0] if len(found) == 1 else None


def goes_direct(link: LinkSeen) -> bool | None:
    """Whether NCCL moves data between two devices without a detour through the host; None when not seen."""
    word = "" if isinstance(link.transport, Unknown) else link.transport.strip().upper().partition("/")[0]
    return {"P2P": True, "NVLS": True, "SHM": False, "NET": False}.get(word)


def asked_processes(launch: Launch | None) -> int | None:
    """The number of processes that the command's own words ask a launcher for; None when they ask for none.

    None too for a command that is, or may be, for several machines: what is seen is one machine's share.
    """
    if launch is None or launch.nodes.known != 1:
        return None
    given = (layer.option(name) for layer in launch.layers for name in _COUNTS)
    values = [option.value or "" for option in given if option is not None]
    return max((int(value) for value in values if value.isascii() and value.isdecimal()), default=None)
