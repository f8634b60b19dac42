"""The verdict on a run: what was promised against what was seen, in one word and one sentence.

The order of the questions matters. Who the processes are comes first: two processes on one card, or processes that know
nothing of each other, are proven by what they say of themselves, and explain what fails behind it (NCCL refuses
two ranks on one GPU). Only where identities are sound is a failure a failure, and only where nothing failed and
everything was seen is it ``MULTI``.
"""

from __future__ import annotations

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import Launch
from mgpu_doctor.model.observation import Observation, RankSeen, StageSeen
from mgpu_doctor.model.observed import (
    asked_processes,
    bare_uuid,
    device_of,
    first_failure,
    group_count,
    joined,
    name_of,
    names_of,
    number_list,
    present,
    rank_numbered,
    shared_cards,
    shared_devices,
    short_uuid,
    stage,
    uuid_of,
    world_of,
    wrong_sums,
)
from mgpu_doctor.model.record import replace
from mgpu_doctor.model.verdict import (
    BROKEN,
    COPIES,
    CPU,
    MULTI,
    SHARED,
    SINGLE,
    UNKNOWN,
    Comparison,
    Verdict,
)

_PROOF = ("group", "device", "collective")
"""The stages of a probe without which nobody knows whether several GPUs work together."""

_DOING = {
    "start": "when the launcher started the processes",
    "identity": "before every process had said who it is",
    "group": "while the process group was formed",
    "device": "at the first work on the device",
    "solo": "while each worked alone",
    "together": "while all worked at once",
    "collective": "in the all_reduce",
    "links": "while data went from one to the other",
    "end": "when the processes ended",
}


def judge(observation: Observation, launch: Launch | None = None) -> Verdict:
    """The verdict. It never is ``MULTI`` unless every process was seen to work on a card of its own."""
    verdict = (
        _nobody(observation)
        or _copies(observation)
        or _shared(observation)
        or _broken(observation)
        or _on_cpu(observation)
        or _working(observation, launch)
    )
    return _compared(_with_failure(verdict, observation), observation, launch)


def _with_failure(verdict: Verdict, observation: Observation) -> Verdict:
    """A job that is wrong already by where its processes are may have failed on top of it: both are said."""
    if verdict.word not in (COPIES, SHARED):
        return verdict
    failure = _broken(observation)
    return verdict if failure is None else replace(verdict, sentence=f"{verdict.sentence}; besides, {failure.sentence}")


def _nobody(observation: Observation) -> Verdict | None:
    if present(observation):
        return None
    return Verdict(BROKEN, f"no process of the job reported{_why_given_up(observation)}", "start")


def _why_given_up(observation: Observation) -> str:
    if observation.launcher_error:
        return f": {observation.launcher_error.strip()}"
    if isinstance(observation.launcher_exit_code, int):
        return f": the launcher ended with exit status {observation.launcher_exit_code}"
    failure = first_failure(observation)
    return f": {failure.detail.strip()}" if failure is not None and failure.detail.strip() else ""


def _copies(observation: Observation) -> Verdict | None:
    """Processes that know nothing of each other: several groups, or several with the same rank."""
    ranks = present(observation)
    if len(ranks) < 2:
        return None
    groups = group_count(observation)
    if groups == len(ranks):
        where = _all_on_one(observation)
        believes = "each believes that it is alone and does the whole work"
        return Verdict(COPIES, f"{len(ranks)} processes that form no group: {believes}{where}")
    if groups is not None and groups > 1:
        size = world_of(ranks[0])
        return Verdict(COPIES, f"{len(ranks)} processes form {groups} groups of {size}: each group does the whole work")
    numbers = [rank.rank for rank in ranks if isinstance(rank.rank, int)]
    if len(set(numbers)) < len(numbers):
        twice = joined(f"rank {number}" for number in sorted(set(numbers)) if numbers.count(number) > 1)
        return Verdict(COPIES, f"several processes are {twice}: there is more than one group")
    return None


def _all_on_one(observation: Observation) -> str:
    shared = shared_devices(observation)
    if len(shared) == 1 and len(shared[0]) == len(present(observation)):
        return f", all on {device_of(shared[0][0])}"
    return ""


def _shared(observation: Observation) -> Verdict | None:
    """Several processes on one card."""
    cards = shared_cards(observation)
    if not cards:
        return None
    total = len(present(observation))
    if len(cards) == 1 and len(cards[0]) == total:
        ranks = cards[0]
        where = device_of(ranks[0]) if _one_device(ranks) else f"{total} MIG instances of one card"
        return Verdict(SHARED, f"{total} processes run on {where}: it looks like {total} GPUs and is one")
    parts = [
        f"{names_of(ranks)} on {device_of(ranks[0]) if _one_device(ranks) else 'MIG instances of one card'}"
        for ranks in cards
    ]
    return Verdict(SHARED, f"of {total} processes several share a card: {joined(parts)}")


def _one_device(ranks: tuple[RankSeen, ...]) -> bool:
    return len({uuid_of(rank) for rank in ranks}) == 1


def _broken(observation: Observation) -> Verdict | None:
    """Something failed, hung, never came, or gave a wrong result."""
    absent = [rank for rank in observation.ranks if rank.state == "missing"]
    if absent:
        seen = len(present(observation))
        text = f"{len(absent)} of {seen + len(absent)} processes never reported{_why_given_up(observation)}"
        return Verdict(BROKEN, text, "identity")
    failure = first_failure(observation)
    bad = tuple(rank for rank in observation.ranks if rank.state != "done")
    if not bad and (failure is None or failure.name == "collective"):
        wrong = _wrong(observation)
        if wrong is not None:
            return wrong
    if failure is not None:
        return Verdict(BROKEN, _failure_sentence(observation, failure), failure.name)
    if bad:
        where = bad[0].stage if isinstance(bad[0].stage, str) else "end"
        return Verdict(BROKEN, f"{_fates(bad)} {_DOING.get(where, f'in {where}')}", where)
    return _disagreeing(observation) or _half_on_cpu(observation)


def _failure_sentence(observation: Observation, failure: StageSeen) -> str:
    doing = _DOING.get(failure.name, f"in the stage {failure.name}")
    # Processes that others were waiting for tell more than those that waited.
    fallen = tuple(rank for rank in observation.ranks if rank.state in ("failed", "killed"))
    if fallen:
        return f"{_fates(fallen)} {doing}"
    hung = [number for number in failure.ranks if rank_numbered(observation, number) is not None]
    if failure.state == "hung":
        who = number_list(hung) if hung else "the job"
        seconds = f" within {failure.seconds:.0f} s" if isinstance(failure.seconds, float | int) else ""
        return f"{who} did not come back{seconds} {doing}"
    detail = failure.detail.strip() or (observation.launcher_error or "").strip()
    return f"{doing}: {detail}" if detail else f"it failed {doing}"


def _fates(ranks: tuple[RankSeen, ...]) -> str:
    """What became of processes: the first one's end in its own words, and how many more."""
    first, others = ranks[0], len(ranks) - 1
    more = f" (and {others} more)" if others else ""
    if first.state == "killed":
        return f"{name_of(first)}{more} was killed by {first.signal or 'a signal'}"
    if first.state == "hung":
        return f"{names_of(ranks)} did not come back"
    return f"{name_of(first)}{more} failed" + (f" with “{first.error.strip()}”" if first.error else "")


def _wrong(observation: Observation) -> Verdict | None:
    places = wrong_sums(observation)
    if not places or isinstance(observation.sum_measured, Unknown):
        return None
    value = observation.sum_measured[places[0]]
    text = (
        f"all_reduce gave {value:g} where {observation.sum_expected:g} is right, on {len(places)} of "
        f"{len(observation.sum_measured)} ranks"
    )
    return Verdict(BROKEN, text, "collective")


def _disagreeing(observation: Observation) -> Verdict | None:
    worlds = {world for rank in present(observation) if (world := world_of(rank)) is not None}
    if len(worlds) > 1:
        sizes = joined(str(world) for world in sorted(worlds))
        return Verdict(BROKEN, f"the processes were told different group sizes: {sizes}", "group")
    return None


def _half_on_cpu(observation: Observation) -> Verdict | None:
    ranks = present(observation)
    idle = tuple(rank for rank in ranks if rank.uuid is None)
    if 0 < len(idle) < len(ranks) and any(uuid_of(rank) is not None for rank in ranks):
        return Verdict(BROKEN, f"{names_of(idle)} found no GPU and worked on the CPU, the others on GPUs", "device")
    return None


def _on_cpu(observation: Observation) -> Verdict | None:
    """Everything went well, but no GPU took part."""
    ranks = present(observation)
    if observation.on_gpu and any(rank.uuid is not None for rank in ranks):
        return None
    why = ": this proves the launch, not the GPUs"
    shown = max((rank.device_count for rank in ranks if isinstance(rank.device_count, int)), default=0)
    if shown > 0:
        why = f": the driver shows {shown} GPU{'s' * (shown > 1)}, and torch works on none"
    elif observation.on_gpu or _gpus_promised(observation):
        why = ": no GPU took part"
    if len(ranks) == 1:
        return Verdict(CPU, f"one process on the CPU{why}")
    if group_count(observation) != 1:
        return Verdict(UNKNOWN, f"{len(ranks)} processes on the CPU; whether they form one group was not seen")
    if observation.kind == "probe" and not _is_ok(observation, "collective"):
        return Verdict(UNKNOWN, f"{len(ranks)} processes on the CPU; whether they can work together was not tried")
    return Verdict(CPU, f"{len(ranks)} processes form one group on the CPU{why}")


def _is_ok(observation: Observation, name: str) -> bool:
    seen = stage(observation, name)
    return seen is not None and seen.state == "ok"


def _working(observation: Observation, launch: Launch | None) -> Verdict:
    ranks = present(observation)
    world = world_of(ranks[0])
    if world is not None and world > len(ranks):
        if launch is not None and (launch.nodes.known or 1) > 1:
            text = f"{len(ranks)} of {world} processes were seen: the others run on other machines"
            return Verdict(UNKNOWN, text)
        return Verdict(BROKEN, f"{len(ranks)} of {world} processes reported, the others never came", "group")
    if len(ranks) == 1:
        return _single(observation, ranks[0], launch)
    unknown = [rank for rank in ranks if uuid_of(rank) is None]
    if unknown:
        text = f"{len(ranks)} processes work, but which card is under {names_of(unknown)} is not known"
        return Verdict(UNKNOWN, text)
    if group_count(observation) != 1:
        text = f"{len(ranks)} processes on {len(ranks)} GPUs; whether they form one group was not seen"
        return Verdict(UNKNOWN, text)
    untried = [name for name in _PROOF if not _is_ok(observation, name)]
    if observation.kind == "probe" and untried:
        text = f"{len(ranks)} processes on {len(ranks)} GPUs, but not everything was tried: {joined(untried)}"
        first = stage(observation, untried[0])
        return Verdict(UNKNOWN, f"{text} ({first.detail.strip()})" if first is not None and first.detail else text)
    done = ", and all_reduce gives the right sum" if observation.kind == "probe" else ""
    return Verdict(MULTI, f"{len(ranks)} processes form one group, each works on a GPU of its own{done}")


def _single(observation: Observation, rank: RankSeen, launch: Launch | None) -> Verdict:
    if launch is not None and launch.spread.known == "split":
        sees = f"{rank.device_count} GPUs" if isinstance(rank.device_count, int) else "the visible GPUs"
        tried = "; the probe worked on the first of them" if observation.kind == "probe" else ""
        if rank.device_count != 1:
            text = f"one process, which sees {sees} and may spread one model over them{tried}"
            return Verdict(SINGLE, text)
    return Verdict(SINGLE, f"one process on {device_of(rank)}")


def _compared(verdict: Verdict, observation: Observation, launch: Launch | None) -> Verdict:
    """The verdict with promised against measured."""
    processes = _processes(observation, launch)
    devices = _devices(observation, launch)
    lines = [processes, *devices, *_port(observation, launch)]
    decisive = [line.agree for line in (processes, *devices) if line.agree is not None]
    kept = all(decisive) if decisive else None
    sentence = verdict.sentence
    if verdict.word == CPU and _needs_gpus(observation):
        kept = False
    if verdict.word in (SINGLE, CPU) and processes.agree is False and len(present(observation)) == 1:
        sentence = f"one process on {device_of(present(observation)[0])}, though {processes.promised} were asked for"
        verdict = replace(verdict, word=SINGLE)
    elif verdict.word == CPU and processes.agree is False:
        sentence += f"; {processes.promised} processes were promised"
    elif verdict.word == SINGLE and processes.agree:
        sentence += ", as asked"
    elif verdict.word == MULTI and processes.agree is False:
        sentence += f", but {processes.promised} processes were promised"
    elif verdict.word == MULTI and kept is False:
        sentence += ", but not the GPUs that the launch promises"
    return replace(verdict, sentence=sentence, as_promised=kept, comparisons=tuple(lines))


def _needs_gpus(observation: Observation) -> bool:
    """Whether a run on the CPU is not what was wanted: GPUs were promised, or are there."""
    counts = (rank.device_count for rank in observation.ranks)
    return _gpus_promised(observation) or any(isinstance(count, int) and count > 0 for count in counts)


def _gpus_promised(observation: Observation) -> bool:
    promised = observation.promised_uuids
    return not isinstance(promised, Unknown) and any(isinstance(uuid, str) for uuid in promised)


def _processes(observation: Observation, launch: Launch | None) -> Comparison:
    promised = observation.promised_processes
    if isinstance(promised, Unknown) and launch is not None:
        promised = launch.world_size.value
    count = len(present(observation))
    groups = group_count(observation)
    world = {world_of(rank) for rank in present(observation)}
    measured = f"{count}"
    if groups is not None and groups > 1:
        measured += f" in {groups} groups"
    elif len(world) == 1 and (size := next(iter(world))) is not None and size != count:
        measured += f" of a group of {size}"
    asked = asked_processes(launch)
    # What the words ask for counts against a run of one process even where the launch says beforehand that it is one.
    if asked is not None and asked > 1 and count == 1 and (isinstance(promised, Unknown) or promised < asked):
        return Comparison("processes", f"{asked}", measured, agree=False)
    if isinstance(promised, Unknown):
        return Comparison("processes", "not known", measured)
    return Comparison("processes", f"{promised}", measured, count == promised and groups in (None, 1))


def _devices(observation: Observation, launch: Launch | None) -> tuple[Comparison, ...]:
    """One line for each rank whose device was promised or seen."""
    promised = observation.promised_uuids
    wanted = () if isinstance(promised, Unknown) else promised
    lines = []
    for number in range(max(len(wanted), len(observation.ranks))):
        rank = rank_numbered(observation, number)
        if rank is None or not observation.on_gpu:
            continue
        want = wanted[number] if number < len(wanted) else Unknown("not promised")
        agree = None
        if isinstance(want, str) and not isinstance(rank.uuid, Unknown):
            agree = rank.uuid is not None and bare_uuid(want) == bare_uuid(rank.uuid)
        says = _promised_device(want, launch) if isinstance(want, str) else "not known"
        lines.append(Comparison(f"rank {number}", says, device_of(rank), agree))
    return tuple(lines)


def _promised_device(uuid: str, launch: Launch | None) -> str:
    """``GPU 3 (GPU-1a2b3c4d)`` where the launch knows the number."""
    placements = () if launch is None or isinstance(launch.ranks, Unknown) else launch.ranks
    for one in placements:
        if isinstance(one.uuid, str) and bare_uuid(one.uuid) == bare_uuid(uuid) and isinstance(one.physical_index, int):
            return f"GPU {one.physical_index} ({short_uuid(uuid)})"
    return short_uuid(uuid)


def _port(observation: Observation, launch: Launch | None) -> tuple[Comparison, ...]:
    """The port that the ranks were told: only that of a static rendezvous is known beforehand."""
    seen = {
        rank.master.rpartition(":")[2] for rank in present(observation) if isinstance(rank.master, str) and rank.master
    }
    if not seen:
        return ()
    measured = joined(sorted(seen))
    rendezvous = launch.rendezvous if launch is not None else None
    port = rendezvous.port.known if rendezvous is not None and rendezvous.port is not None else None
    if launch is None:
        # Nobody asked for a port.
        return ()
    if rendezvous is None or port is None:
        return (Comparison("port", "not known", measured),)
    if port == 0 or rendezvous.backend.known not in ("static", "env"):
        # The port of a c10d endpoint is the launchers' own; the ranks are given another.
        return (Comparison("port", "a free one", measured, agree=True),)
    return (Comparison("port", f"{port}", measured, seen == {f"{port}"}),)
