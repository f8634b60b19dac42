"""One GPU is clearly slower than its peers."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.verdict import place_of, probed, seen_in, subject_of
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Gpu,
    Observation,
    RankSeen,
    Reference,
    Rule,
    Severity,
    Unknown,
    observed,
    report,
)

_SLOW = 1.3
"""Times as long as its peers' from which a GPU counts as slow; GPUs of one model differ by a few per cent."""

RULE = Rule(
    code="MGD907",
    slug="slow-rank",
    title="One GPU is slower than the others",
    severity=Severity.WARNING,
    summary="The same work alone takes one rank clearly longer than the others.",
    why=(
        "Data-parallel ranks wait for each other at every step, so the whole job goes at the pace of the slowest. A "
        "card that is slower while it works alone is hot, limited in power, used by somebody else, badly connected or "
        "faulty. Of two ranks one can say that they differ, not which one is out of order."
    ),
    bad=(
        Example(
            "one of four",
            "torchrun --nproc-per-node 4 train.py",
            observation=probed(
                [0, 1, 2, 3], solo_ms=[1.43, 1.45, 2.6, 1.44], device_name=["NVIDIA A100-SXM4-80GB"] * 4
            ),
        ),
        Example(
            "two that differ",
            "torchrun --nproc-per-node 2 train.py",
            observation=probed([0, 1], solo_ms=[1.4, 2.2], device_name=["NVIDIA A100-SXM4-80GB"] * 2),
        ),
    ),
    good=(
        Example("all alike", observation=probed([0, 1, 2, 3], solo_ms=[1.43, 1.45, 1.44, 1.44])),
        Example(
            "a few per cent",
            "torchrun --nproc-per-node 2 train.py",
            observation=probed([0, 1], solo_ms=[1.4, 1.6], device_name=["NVIDIA A100-SXM4-80GB"] * 2),
        ),
        Example(
            "slow alone, and as fast as the others when all work: it was waking up",
            observation=probed(
                [0, 1], solo_ms=[1.4, 2.6], together_ms=[1.4, 1.4], device_name=["NVIDIA A100-SXM4-80GB"] * 2
            ),
        ),
        Example(
            "ranks on one card are another cause",
            observation=probed([0, 0], solo_ms=[1.4, 2.6]),
        ),
        Example("on the CPU", observation=probed([0, 1], on_gpu=False, uuid=[None, None], solo_ms=[10.0, 20.0])),
    ),
    sources=(
        Reference(
            "torch 2.7.1, nn/parallel/distributed.py DistributedDataParallel",
            "gradients are averaged over all ranks at every step, so each step ends with the slowest rank",
        ),
        Reference(
            "torch 2.11.0+cu130 on NVIDIA H100",
            "the same matrix product takes 1.43 ms in either of two ranks that work one after the other",
            ran=True,
        ),
    ),
    fix="Look at the slow card: temperature, clocks, power, other processes, its PCIe link",
    seen=("run",),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each GPU that is much slower alone than the middle of its peers."""
    seen = seen_in(case)
    ranks = observed.present(seen)
    if not seen.on_gpu or len(ranks) < 2 or observed.shared_cards(seen):
        return
    timed = [(rank, time) for rank in ranks if (time := observed.solo_ms(rank)) is not None]
    if len(timed) < 2:
        untimed = next((rank.solo_ms for rank in ranks if isinstance(rank.solo_ms, Unknown)), None)
        case.require(untimed)
        return
    for rank, time in timed:
        others = observed.middle(other for peer, other in timed if peer is not rank)
        if time >= _SLOW * others and _is_slow_together(rank, ranks):
            yield _finding(case, seen, rank, time, others, of_two=len(timed) == 2)


def _is_slow_together(rank: RankSeen, ranks: tuple[RankSeen, ...]) -> bool:
    """Whether it is slower than its peers while all work, too: what was slow once may have been waking up."""
    own = observed.together_ms(rank)
    peers = [time for peer in ranks if peer is not rank and (time := observed.together_ms(peer)) is not None]
    return own is None or not peers or own >= _SLOW * observed.middle(peers)


def _finding(case: Case, seen: Observation, rank: RankSeen, time: float, others: float, *, of_two: bool) -> Finding:
    names = {peer.device_name for peer in seen.ranks}
    alike = len(names) == 1 and isinstance(next(iter(names)), str)
    who = f"{observed.name_of(rank)} on {observed.device_of(rank)}"
    than = "the other rank needs" if of_two else "the others need"
    why = "" if alike else ", and the models differ or are not known: the faster wait for it at every step"
    doubt = "; of two alone one cannot tell which is out of order" if of_two and alike else ""
    return report(
        RULE,
        f"{observed.sentence(who)} needs {time:.2f} ms alone for what {than} {others:.2f} ms for "
        f"({time / others:.1f} times){doubt}{why}.",
        place_of(case),
        subject=subject_of(case),
        severity=Severity.WARNING if alike else Severity.ADVICE,
        evidence=[*_models(seen, alike=alike), *_suspects(case, rank)],
    )


def _models(seen: Observation, *, alike: bool) -> Iterator[str]:
    if not alike:
        for rank in seen.ranks[:8]:
            if isinstance(rank.device_name, str):
                yield f"{observed.name_of(rank)}: {rank.device_name}"


def _suspects(case: Case, rank: RankSeen) -> Iterator[str]:
    """What the machine's facts say about that card."""
    gpu = _gpu(case, rank)
    if gpu is None:
        return
    lowered = () if isinstance(gpu.clock_events, Unknown) else gpu.clock_events
    held_back = [event for event in lowered if event not in ("gpu_idle", "applications_clocks_setting")]
    if held_back:
        yield f"its clocks are lowered: {', '.join(held_back)}"
    if isinstance(gpu.temperature_c, int):
        yield f"it has {gpu.temperature_c} °C"
    if not isinstance(case.facts.gpu_processes, Unknown):
        for process in case.facts.gpu_processes:
            if process.gpu == gpu.index:
                what = f" ({process.command})" if isinstance(process.command, str) else ""
                yield f"process {process.pid if isinstance(process.pid, int) else 'of somebody else'}{what} uses it too"


def _gpu(case: Case, rank: RankSeen) -> Gpu | None:
    if isinstance(case.facts.gpus, Unknown):
        return None
    uuid = observed.uuid_of(rank)
    matching = (gpu for gpu in case.facts.gpus if isinstance(gpu.uuid, str) and observed.bare_uuid(gpu.uuid) == uuid)
    return next(matching, None)
