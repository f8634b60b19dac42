"""What a probe shows, as rows of words: the same for the terminal and for plain lines."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from mgpu_doctor.model.facts import Facts
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.observation import LinkSeen, Observation, RankSeen
from mgpu_doctor.model.observed import (
    bare_uuid,
    contention,
    device_of,
    name_of,
    names_of,
    present,
    rank_numbered,
    shared_cards,
    short_uuid,
    uuid_of,
    wrong_sums,
)
from mgpu_doctor.model.report import Report
from mgpu_doctor.model.verdict import BROKEN, COPIES, CPU, MULTI, SHARED, SINGLE, UNKNOWN, Comparison, Verdict
from mgpu_doctor.render.clean import one_line

MOST_RANKS = 16
"""How many ranks are listed one by one; of more, the first and the last are."""

MOST_LINKS = 28
"""All pairs of eight GPUs; of more, the slowest are listed."""

MOST_OUTPUT = 12
"""How many of the last lines of output are shown of a job that broke."""

DOING = {
    "start": "the launcher starts the processes",
    "identity": "every process says who and where it is",
    "device": "first work on each GPU",
    "solo": "each GPU works alone",
    "together": "all GPUs work at once",
    "group": "the process group forms",
    "collective": "all_reduce with a checked sum",
    "links": "data goes from GPU to GPU",
    "end": "everything is ended",
}
"""What happens in each stage, in the order in which a probe goes through them."""

MEANING = {
    MULTI: "several GPUs work together",
    SINGLE: "one process",
    SHARED: "several processes, one card",
    COPIES: "several processes, no group",
    CPU: "no GPU took part",
    BROKEN: "it does not work",
    UNKNOWN: "cannot tell",
}


class Seat(NamedTuple):
    """One process: who it is, and the columns of its device and of the promised one (None when not known or none)."""

    name: str
    column: int | None
    promised: int | None
    shared: bool


class Placement(NamedTuple):
    """Processes against devices; ``columns`` are the devices' names, ``idle`` those of which nobody uses."""

    columns: tuple[str, ...]
    seats: tuple[Seat, ...]
    idle: frozenset[int]


class Timing(NamedTuple):
    """One process's work alone and while all work: milliseconds, None when not measured."""

    name: str
    alone: float | None
    together: float | None
    factor: float | None


class Way(NamedTuple):
    """The way between two ranks' devices."""

    ranks: str
    devices: str
    peer: str
    transport: str
    speed: float | None


class Step(NamedTuple):
    """One stage and how it went."""

    name: str
    state: str
    seconds: float | None
    detail: str


def doing(stage: str) -> str:
    """What is being done, for the line that shows progress; a text that is no stage as it is."""
    names = [*DOING]
    if stage not in DOING:
        return one_line(stage)
    return f"probing {names.index(stage) + 1}/{len(names)}: {DOING[stage]}"


def command_line(observation: Observation) -> str:
    """What was run."""
    return one_line(observation.command)


def circumstances(observation: Observation) -> tuple[str, ...]:
    """How long it took and with what: ``12.5 s``, ``torch 2.11.0``, ``nccl``."""
    parts = []
    seconds = finite(observation.seconds)
    if seconds is not None:
        parts.append(f"{seconds:.1f} s")
    parts += [f"{name} {version}" for name, version in observation.versions.items()]
    if isinstance(observation.backend, str):
        parts.append(f"over {observation.backend}")
    return tuple(one_line(part) for part in parts)


def comparisons(verdict: Verdict) -> tuple[Comparison, ...]:
    """Promised against measured; of many ranks the first and those that disagree."""
    ranks = [line for line in verdict.comparisons if line.subject.startswith("rank ")]
    if len(ranks) <= MOST_RANKS:
        return verdict.comparisons
    kept = {id(line) for line in ranks[: MOST_RANKS // 2]}
    kept.update(id(line) for line in [line for line in ranks if line.agree is False][:MOST_RANKS])
    return tuple(line for line in verdict.comparisons if line not in ranks or id(line) in kept)


def placement(observation: Observation, facts: Facts) -> Placement | None:
    """Which process is on which device; None where no device is known."""
    names: dict[str, str] = {}
    numbers = _numbers(facts)
    for rank in _by_device(observation):
        uuid = uuid_of(rank)
        if uuid is not None:
            names.setdefault(uuid, _column(rank))
    if not names:
        return None
    idle = () if isinstance(observation.idle_uuids, Unknown) else observation.idle_uuids
    promised = () if isinstance(observation.promised_uuids, Unknown) else observation.promised_uuids
    for uuid in (*idle, *(uuid for uuid in promised if isinstance(uuid, str))):
        names.setdefault(bare_uuid(uuid), numbers.get(bare_uuid(uuid), one_line(short_uuid(uuid))))
    columns = sorted(names, key=lambda uuid: (not names[uuid].isdecimal(), names[uuid].zfill(6)))
    shared = {id(rank) for ranks in shared_cards(observation) for rank in ranks}
    seats = []
    for rank in observation.ranks:
        uuid = uuid_of(rank)
        want = promised[rank.rank] if isinstance(rank.rank, int) and 0 <= rank.rank < len(promised) else None
        seats.append(
            Seat(
                name_of(rank),
                columns.index(uuid) if uuid is not None else None,
                columns.index(bare_uuid(want)) if isinstance(want, str) else None,
                id(rank) in shared,
            )
        )
    free = frozenset(columns.index(bare_uuid(uuid)) for uuid in idle)
    return Placement(tuple(names[uuid] for uuid in columns), tuple(seats), free)


def _numbers(facts: Facts) -> dict[str, str]:
    """nvidia-smi's numbers of the devices whose UUID is known."""
    gpus = () if isinstance(facts.gpus, Unknown) else facts.gpus
    return {bare_uuid(gpu.uuid): str(gpu.index) for gpu in gpus if isinstance(gpu.uuid, str)}


def _by_device(observation: Observation) -> list[RankSeen]:
    """Processes in the order of nvidia-smi's numbers, those without one behind."""

    def key(rank: RankSeen) -> tuple[bool, int]:
        number = rank.physical_index
        return (not isinstance(number, int), number if isinstance(number, int) else 0)

    return sorted(observation.ranks, key=key)


def _column(rank: RankSeen) -> str:
    is_instance = (uuid_of(rank) or "").startswith("mig-")
    if isinstance(rank.physical_index, int) and not is_instance:
        return str(rank.physical_index)
    return one_line(short_uuid(rank.uuid)) if isinstance(rank.uuid, str) else "?"


def fate_of(rank: RankSeen) -> str:
    """What became of a process that did not finish; empty for one that did."""
    stage = rank.stage if isinstance(rank.stage, str) else ""
    where = f" in {stage}" if stage else ""
    if rank.state == "done":
        return ""
    if rank.state == "missing":
        return "never reported"
    if rank.state == "killed":
        return one_line(f"killed by {rank.signal or 'a signal'}{where}")
    if rank.state == "hung":
        return one_line(f"did not come back{where}")
    return one_line(f"failed{where}" + (f": {rank.error}" if rank.error else ""))


def fates(observation: Observation) -> tuple[str, ...]:
    """What became of those that did not finish: one line for all that ended alike."""
    groups: dict[str, list[RankSeen]] = {}
    for rank in observation.ranks:
        fate = fate_of(rank)
        if fate:
            groups.setdefault(fate, []).append(rank)
    return tuple(f"{names_of(ranks)} {fate}" for fate, ranks in groups.items())


def timings(observation: Observation) -> tuple[Timing, ...]:
    """Alone against together, for every process of which either is known; processors say nothing about GPUs."""
    rows: list[Timing] = []
    if not observation.on_gpu:
        return ()
    for rank in present(observation):
        alone, together = finite(rank.solo_ms), finite(rank.together_ms)
        if alone is not None or together is not None:
            rows.append(Timing(name_of(rank), alone, together, contention(rank)))
    if len(rows) > MOST_RANKS:
        # Of many, the slowest say most.
        kept = sorted(rows, key=lambda row: -(row.together or row.alone or 0))[:MOST_RANKS]
        return tuple(row for row in rows if row in kept)
    return tuple(rows)


def ways(observation: Observation) -> tuple[Way, ...]:
    """The ways between devices; of too many the slowest."""
    links = [*observation.links]
    if len(links) > MOST_LINKS:
        slow = sorted(links, key=lambda link: finite(link.gib_per_s) or math.inf)[:MOST_LINKS]
        links = [link for link in links if link in slow]
    return tuple(_way(observation, link) for link in links)


def _way(observation: Observation, link: LinkSeen) -> Way:
    pair = [rank_numbered(observation, number) for number in (link.a, link.b)]
    devices = [_column(rank) if rank is not None and rank.uuid is not None else "" for rank in pair]
    peer = "?" if isinstance(link.peer_access, Unknown) else "yes" if link.peer_access else "no"
    transport = "?" if isinstance(link.transport, Unknown) else one_line(link.transport)
    between = " - ".join(devices) if all(devices) else ""
    return Way(f"{link.a} - {link.b}", between, peer, transport, finite(link.gib_per_s))


def steps(observation: Observation) -> tuple[Step, ...]:
    """The stages, as they went."""
    return tuple(
        Step(one_line(stage.name), one_line(stage.state), finite(stage.seconds), one_line(stage.detail))
        for stage in observation.stages
    )


def sum_line(observation: Observation) -> str | None:
    """What all_reduce gave, and how fast; None when it was not measured."""
    expected, measured = observation.sum_expected, observation.sum_measured
    speed = finite(observation.all_reduce_gib_per_s)
    if isinstance(expected, Unknown) or isinstance(measured, Unknown) or not measured:
        return None
    wrong = wrong_sums(observation)
    text = (
        f"{measured[wrong[0]]:g} instead of {expected:g} on {len(wrong)} of {len(measured)} ranks"
        if wrong
        else (f"the right sum ({expected:g}) on {'every rank' if len(measured) > 1 else 'the only rank'}")
    )
    return text + (f", {speed:.1f} GiB/s" if speed is not None and observation.on_gpu else "")


def last_output(report: Report) -> tuple[str, ...]:
    """The last lines that a job wrote which does not work; empty for all others."""
    observation, verdict = report.case.observation, report.verdict
    if observation is None or verdict is None or verdict.word not in (BROKEN, UNKNOWN):
        return ()
    lines = [one_line(line) for line in observation.output]
    return tuple([line for line in lines if line][-MOST_OUTPUT:])


def model_lines(report: Report) -> tuple[tuple[str, str], ...]:
    """Where the model of a command that is one process would lie: computed from its files, nothing is loaded."""
    launches = report.case.launches
    if len(launches) != 1 or launches[0].world_size.known != 1:
        return ()
    from mgpu_doctor.memory.model_used import names_model

    if not names_model(launches[0]):
        return ()
    from mgpu_doctor.render.memory import memory_lines

    lines = memory_lines(report.case, launches[0])
    return tuple((line.label, line.value) for line in lines if line.label in ("memory", "placement"))


def notes(observation: Observation) -> tuple[str, ...]:
    """What the probe has to say besides."""
    return tuple(one_line(note) for note in observation.notes)


def unexplained(report: Report) -> str | None:
    """What to do where a job does not work and no rule says why; None everywhere else."""
    if report.verdict is None or not report.verdict.failed or report.findings:
        return None
    observation = report.case.observation
    said = () if observation is None else (*observation.output, *(rank.error or "" for rank in observation.ranks))
    if any("No module named 'torch'" in line for line in said):
        return "the interpreter that runs the workers has no torch: --python PATH names one that has"
    if observation is not None and report.verdict.stage in ("start", "identity") and _hung(observation):
        return "no rule knows the cause; where the launcher or torch are only slow to load, --deadline 180 waits longer"
    return "no rule knows the cause; what was seen is above, and --save FILE keeps all of it"


def _hung(observation: Observation) -> bool:
    return any(stage.state == "hung" for stage in observation.stages)


def unlooked(report: Report) -> str | None:
    """How many rules could not look, on one line; None when all could."""
    from mgpu_doctor.model.finding import OutcomeKind

    count = len(report.outcomes_of(OutcomeKind.SKIPPED))
    if not count:
        return None
    return f"{count} rule{'s' * (count > 1)} could not look; --format json lists them with the reasons"


def finite(value: float | Unknown) -> float | None:
    """A number that can be shown."""
    return None if isinstance(value, Unknown) or not math.isfinite(value) else float(value)


def device_lines(observation: Observation) -> Iterator[tuple[str, str]]:
    """Each process and its device, in words."""
    for rank in _shortened(observation.ranks):
        if isinstance(rank, int):
            yield "", f"and {rank} more"
            continue
        name = one_line(rank.device_name) if isinstance(rank.device_name, str) else ""
        fate = fate_of(rank)
        parts = [one_line(device_of(rank)), name, fate]
        yield name_of(rank), ", ".join(part for part in parts if part)


def _shortened(ranks: tuple[RankSeen, ...]) -> Iterator[RankSeen | int]:
    """The first and last of many processes, those between them that did not finish, and how many are left out."""
    half = MOST_RANKS // 2
    if len(ranks) <= MOST_RANKS:
        yield from ranks
        return
    fallen = [rank for rank in ranks[half:-half] if rank.state != "done"][:MOST_RANKS]
    yield from ranks[:half]
    yield from fallen
    yield len(ranks) - MOST_RANKS - len(fallen)
    yield from ranks[-half:]
