"""What a run shows of a cause: helpers of the rules that read an observation, and of rules elsewhere that are confirmed
by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from mgpu_doctor.authoring import Case, Finding, Launch, Location, Observation, RankSeen, observed

NOTHING_RUN = "nothing was run: `mgpu-doctor probe -- COMMAND` looks at it"

MOST_LINES = 8
"""How many processes are listed one by one in the evidence."""


def seen_in(case: Case) -> Observation:
    """What was seen of the job when it ran; ends the check with a skip where nothing was run."""
    from mgpu_doctor.authoring import Skip

    if case.observation is None:
        raise Skip(NOTHING_RUN)
    return case.observation


def launch_of(case: Case) -> Launch | None:
    """The launch that an observation belongs to; None for a probe of the machine itself."""
    return case.launches[0] if len(case.launches) == 1 else None


def place_of(case: Case) -> Location | None:
    """Where the number of processes is said, or the command; None for a probe of the machine itself."""
    launch = launch_of(case)
    if launch is None:
        return None
    return launch.processes_per_node.origin.location or launch.command.locate(launch.command.words[0].span)


def subject_of(case: Case) -> str | None:
    """What a finding without a place is about."""
    return None if launch_of(case) is not None else "the probe"


def each_rank(ranks: Iterable[RankSeen]) -> Iterator[str]:
    """A line for each process, saying who it is: ``rank 1: process 4711 on GPU 0 (GPU-1a2b3c4d)``."""
    every = [*ranks]
    for rank in every[:MOST_LINES]:
        name = observed.name_of(rank)
        pid = f"process {rank.pid} on " if isinstance(rank.pid, int) and isinstance(rank.rank, int) else ""
        yield f"{name}: {pid}{observed.device_of(rank)}"
    if len(every) > MOST_LINES:
        yield f"and {len(every) - MOST_LINES} more"


def confirmed(findings: Iterable[Finding], evidence: Iterable[str]) -> Iterator[Finding]:
    """The findings with what a run showed of them."""
    import dataclasses

    from mgpu_doctor.authoring import Evidence

    shown = tuple(Evidence(f"measured: {text}") for text in evidence)
    for finding in findings:
        yield dataclasses.replace(finding, evidence=(*finding.evidence, *shown))


def probed(devices: Iterable[int], /, stages: Mapping[str, str] | None = None, **over: object) -> dict[str, object]:
    """An example's observation: one group of ranks on GPUs of the standard host, given by nvidia-smi's numbers.

    ``stages`` are those that did not go well (name → state). Of the further keys, lists called ``solo_ms``,
    ``together_ms``, ``state``, ``stack`` and the like belong to the ranks, one entry for each.
    """
    numbers = [*devices]
    each = {name: over.pop(name) for name in [*over] if name in _OF_RANKS}
    ranks: list[dict[str, object]] = []
    for rank, device in enumerate(numbers):
        ranks.append(
            {
                "rank": rank,
                "world_size": len(numbers),
                "pid": 4000 + rank,
                "host": "node1",
                "uuid": f"GPU-0000000{device}-1111-2222-3333-444444444444",
                "physical_index": device,
                **{name: values[rank] for name, values in each.items() if isinstance(values, list)},
            }
        )
    steps = [{"name": name, "state": state} for name, state in (stages or {}).items()]
    seen: dict[str, object] = {"kind": "probe", "promised_processes": len(numbers), "ranks": ranks}
    return {**seen, **({"stages": steps} if steps else {}), **over}


_OF_RANKS = frozenset(
    {"solo_ms", "together_ms", "state", "stage", "stack", "world_size", "rank", "uuid", "error"}
    | {"device_count", "device_name", "visible"}
)
