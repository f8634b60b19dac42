"""Observations for tests: a healthy one to spoil, and hypothesis strategies for any."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.observation import LinkSeen, Observation, RankSeen, StageSeen

STAGES = ("start", "identity", "group", "device", "solo", "together", "collective", "links", "end")
UUIDS = tuple(f"GPU-0000000{index}-1111-2222-3333-444444444444" for index in range(8))


def rank(number: int, world: int = 2, **over: Any) -> RankSeen:
    """A healthy rank on the GPU of its number."""
    values: dict[str, Any] = {
        "rank": number,
        "local_rank": number,
        "world_size": world,
        "pid": 4000 + number,
        "host": "node1",
        "device_count": 8,
        "device_index": number,
        "device_name": "NVIDIA A100-SXM4-80GB",
        "uuid": UUIDS[number % 8],
        "pci_bus_id": f"00000000:0{number}:00.0",
        "physical_index": number % 8,
        "solo_ms": 1.43,
        "together_ms": 1.45,
        "master": "127.0.0.1:29500",
    }
    return RankSeen(**(values | over))


def stages(**states: str) -> tuple[StageSeen, ...]:
    """All stages, well but for the named ones."""
    return tuple(StageSeen(name, states.get(name, "ok"), seconds=1.0) for name in STAGES)


def healthy(count: int = 2, **over: Any) -> Observation:
    """A probe of so many ranks, each on a GPU of its own."""
    values: dict[str, Any] = {
        "kind": "probe",
        "command": f"torchrun --nproc-per-node {count} train.py",
        "ranks": tuple(rank(number, count) for number in range(count)),
        "promised_processes": count,
        "promised_uuids": UUIDS[:count],
        "backend": "nccl",
        "stages": stages(),
        "sum_expected": count * (count + 1) / 2,
        "sum_measured": (count * (count + 1) / 2,) * count,
        "links": tuple(
            LinkSeen(a, b, peer_access=True, gib_per_s=200.0, transport="P2P/CUMEM")
            for a in range(count)
            for b in range(a + 1, count)
        ),
        "idle_uuids": (),
        "seconds": 12.5,
        "launcher_exit_code": 0,
        "versions": {"torch": "2.11.0+cu130", "nccl": "2.28.9"},
    }
    return Observation(**(values | over))


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_UNKNOWN = _TEXT.map(Unknown)
_WHOLE = st.integers(-1, 9)
_NUMBER = st.one_of(st.floats(0, 1e3), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0]))
_UUID = st.one_of(st.sampled_from([*UUIDS[:3], "mig-1", "MIG-2", "", " ", UUIDS[0][4:]]), _UNKNOWN, st.none())


def _or_unknown(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(strategy, _UNKNOWN)


any_rank = st.builds(
    RankSeen,
    rank=_or_unknown(_WHOLE),
    local_rank=_or_unknown(_WHOLE),
    world_size=_or_unknown(_WHOLE),
    pid=_or_unknown(_WHOLE),
    host=_or_unknown(st.sampled_from(["a", "b"])),
    visible=st.one_of(_TEXT, _UNKNOWN, st.none()),
    device_count=_or_unknown(_WHOLE),
    device_index=st.one_of(_WHOLE, _UNKNOWN, st.none()),
    device_name=_or_unknown(_TEXT),
    uuid=_UUID,
    pci_bus_id=_or_unknown(st.sampled_from(["0:1", "0:2"])),
    physical_index=_or_unknown(_WHOLE),
    master=st.one_of(_TEXT, _UNKNOWN, st.none()),
    state=st.sampled_from(["done", "done", "done", "failed", "killed", "hung", "missing"]),
    stage=_or_unknown(st.sampled_from(STAGES)),
    exit_code=st.one_of(_WHOLE, _UNKNOWN, st.none()),
    signal=st.one_of(st.none(), _TEXT),
    error=st.one_of(st.none(), _TEXT),
    stack=st.lists(_TEXT, max_size=3).map(tuple),
    solo_ms=_or_unknown(_NUMBER),
    together_ms=_or_unknown(_NUMBER),
)

any_link = st.builds(
    LinkSeen,
    a=_WHOLE,
    b=_WHOLE,
    peer_access=_or_unknown(st.booleans()),
    gib_per_s=_or_unknown(_NUMBER),
    transport=_or_unknown(st.sampled_from(["P2P/CUMEM", "SHM/direct", "NET/Socket", "what"])),
)

any_stage = st.builds(
    StageSeen,
    name=st.sampled_from([*STAGES, "more"]),
    state=st.sampled_from(["ok", "ok", "ok", "failed", "hung", "skipped"]),
    seconds=_or_unknown(_NUMBER),
    ranks=st.lists(_WHOLE, max_size=3).map(tuple),
    detail=_TEXT,
)

any_observation = st.builds(
    Observation,
    kind=st.sampled_from(["probe", "watch"]),
    command=_TEXT,
    ranks=st.lists(any_rank, max_size=4).map(tuple),
    promised_processes=_or_unknown(_WHOLE),
    promised_uuids=_or_unknown(st.lists(st.one_of(st.sampled_from(UUIDS[:3]), _UNKNOWN), max_size=4).map(tuple)),
    on_gpu=st.booleans(),
    backend=_or_unknown(st.sampled_from(["nccl", "gloo"])),
    stages=st.one_of(st.just(stages()), st.lists(any_stage, max_size=9).map(tuple)),
    sum_expected=_or_unknown(_NUMBER),
    sum_measured=_or_unknown(st.lists(_NUMBER, max_size=4).map(tuple)),
    all_reduce_gib_per_s=_or_unknown(_NUMBER),
    links=st.lists(any_link, max_size=4).map(tuple),
    idle_uuids=_or_unknown(st.lists(st.sampled_from(UUIDS), max_size=3).map(tuple)),
    bad_pairs=st.lists(st.tuples(_WHOLE, _WHOLE), max_size=3).map(tuple),
    cured_by=st.one_of(st.none(), st.just("NCCL_P2P_DISABLE=1"), _TEXT),
    seconds=_or_unknown(_NUMBER),
    launcher_exit_code=st.one_of(_WHOLE, _UNKNOWN, st.none()),
    launcher_error=st.one_of(st.none(), _TEXT),
    output=st.lists(_TEXT, max_size=3).map(tuple),
    versions=st.dictionaries(_TEXT, _TEXT, max_size=2),
    notes=st.lists(_TEXT, max_size=2).map(tuple),
)
