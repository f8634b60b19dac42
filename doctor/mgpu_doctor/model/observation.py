"""What was seen of a job that ran, by the probe or by watching: each part a value, or why it is not known."""

from __future__ import annotations

from collections.abc import Mapping

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.record import dataclass, field

NOT_SEEN = Unknown("it was not observed")


@dataclass(frozen=True, slots=True)
class RankSeen:
    """One process of the job, as it described itself.

    ``rank``, ``local_rank`` and ``world_size`` are what the launcher told it (Unknown where it told nothing: such a
    process believes that it is alone). ``state`` is ``done``, ``failed`` (it raised; ``error``), ``killed`` (it
    ended by ``signal``), ``hung`` (it did not leave ``stage`` within the deadline) or ``missing`` (promised, but never
    reported).
    """

    rank: int | Unknown
    local_rank: int | Unknown = NOT_SEEN
    world_size: int | Unknown = NOT_SEEN
    pid: int | Unknown = NOT_SEEN
    host: str | Unknown = NOT_SEEN
    visible: str | Unknown | None = NOT_SEEN
    """Its CUDA_VISIBLE_DEVICES; None when unset."""
    device_count: int | Unknown = NOT_SEEN
    """How many CUDA devices it sees."""
    device_index: int | Unknown | None = NOT_SEEN
    """The ``cuda:N`` that it works on; None for a process on the CPU."""
    device_name: str | Unknown = NOT_SEEN
    uuid: str | Unknown | None = NOT_SEEN
    """UUID of the physical device that it works on (a MIG instance has its own); None for a process on the CPU."""
    pci_bus_id: str | Unknown = NOT_SEEN
    physical_index: int | Unknown = NOT_SEEN
    """nvidia-smi's number of that device."""
    master: str | Unknown | None = NOT_SEEN
    """``address:port`` of the rendezvous that it was told; None when it was told none."""
    state: str = "done"
    stage: str | Unknown = NOT_SEEN
    """The last stage that it entered."""
    exit_code: int | Unknown | None = NOT_SEEN
    signal: str | None = None
    error: str | None = None
    """The last line of its error."""
    stack: tuple[str, ...] = ()
    """Where it stood when it hung, innermost frame last: ``train.py:12 in main``."""
    solo_ms: float | Unknown = NOT_SEEN
    """Milliseconds for the measured work while all other ranks rested."""
    together_ms: float | Unknown = NOT_SEEN
    """Milliseconds for the same work while all ranks worked."""


@dataclass(frozen=True, slots=True)
class LinkSeen:
    """The way between two ranks' devices: ``a`` and ``b`` are ranks, the smaller first."""

    a: int
    b: int
    peer_access: bool | Unknown = NOT_SEEN
    """Whether the driver lets one device read the other's memory."""
    gib_per_s: float | Unknown = NOT_SEEN
    """Bandwidth from a to b while the other pairs rested."""
    transport: str | Unknown = NOT_SEEN
    """What NCCL chose, in its own words: ``P2P/CUMEM``, ``SHM/direct``, ``NET/Socket`` …"""


@dataclass(frozen=True, slots=True)
class StageSeen:
    """One step of the observation.

    ``name``: ``start`` (the launcher starts processes), ``identity``, ``group`` (the process group forms), ``device``
    (the first work on the device), ``solo``, ``together``, ``collective`` (all_reduce), ``links``, ``end``. ``state``:
    ``ok``, ``failed``, ``hung``, ``skipped``. ``ranks`` are those that failed or hung in it.
    """

    name: str
    state: str
    seconds: float | Unknown = NOT_SEEN
    ranks: tuple[int, ...] = ()
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Observation:
    """All that was seen of one job.

    ``kind`` is ``probe`` or ``watch``; ``command`` what was run, as one line. ``promised_processes`` and
    ``promised_uuids`` (by rank) are what the launch said beforehand, Unknown where it could not say. ``on_gpu`` is
    False for a run on the CPU, which proves the launch but not the GPUs. ``launcher_exit_code`` is None while it ran or
    when it was ended by us.
    """

    kind: str
    command: str
    ranks: tuple[RankSeen, ...]
    promised_processes: int | Unknown = NOT_SEEN
    promised_uuids: tuple[str | Unknown, ...] | Unknown = NOT_SEEN
    on_gpu: bool = True
    backend: str | Unknown = NOT_SEEN
    """Who did the collectives: ``nccl`` or ``gloo``."""
    stages: tuple[StageSeen, ...] = ()
    sum_expected: float | Unknown = NOT_SEEN
    sum_measured: tuple[float, ...] | Unknown = NOT_SEEN
    """What all_reduce gave on each rank."""
    all_reduce_gib_per_s: float | Unknown = NOT_SEEN
    """Bus bandwidth of all_reduce over all ranks (algorithm bandwidth × 2(n-1)/n, as nccl-tests counts it)."""
    links: tuple[LinkSeen, ...] = ()
    idle_uuids: tuple[str, ...] | Unknown = NOT_SEEN
    """Devices that the job can see and that none of its processes holds."""
    bad_pairs: tuple[tuple[int, int], ...] = ()
    """Pairs of ranks that could not talk to each other while all others could."""
    cured_by: str | None = None
    """The setting under which a hang or wrong result went away: ``NCCL_P2P_DISABLE=1``."""
    seconds: float | Unknown = NOT_SEEN
    launcher_exit_code: int | Unknown | None = NOT_SEEN
    launcher_error: str | None = None
    """The line of the launcher's output that says why it gave up."""
    output: tuple[str, ...] = ()
    """The last lines that launcher and workers wrote."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of what did the work: ``torch``, ``nccl``, ``cuda``, ``python``."""
    notes: tuple[str, ...] = ()
