"""N GPUs at once take much longer than each of them alone."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.verdict import MOST_LINES, place_of, probed, seen_in, subject_of
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Observation,
    RankSeen,
    Reference,
    Rule,
    Severity,
    Unknown,
    observed,
    report,
)

_CONTENDED = 1.5
"""Together over alone from which GPUs hinder each other: two ranks on one card measure 2.5, separate GPUs 1."""

RULE = Rule(
    code="MGD906",
    slug="no-speed-up",
    title="GPUs that hinder each other",
    severity=Severity.WARNING,
    summary="The same work takes much longer when all GPUs work at once.",
    why=(
        "Each rank multiplies matrices on a GPU of its own; no data goes between them. On separate GPUs that takes as "
        "long together as alone. When it takes much longer, the GPUs share something: too few CPU cores to feed them, "
        "a power limit, virtual GPUs cut from one card, or other people's work."
    ),
    bad=(
        Example(
            "two cards, each half as fast when both work",
            "torchrun --nproc-per-node 2 train.py",
            observation=probed([0, 1], solo_ms=[1.4, 1.5], together_ms=[2.9, 2.8]),
        ),
    ),
    good=(
        Example("as fast as alone", observation=probed([0, 1], solo_ms=[1.43, 1.44], together_ms=[1.45, 1.43])),
        Example(
            "a little slower, as under a power limit",
            "torchrun --nproc-per-node 4 train.py",
            observation=probed([0, 1, 2, 3], solo_ms=[1.4] * 4, together_ms=[1.6, 1.7, 1.6, 1.7]),
        ),
        Example(
            "one of several is held up by something of its own",
            observation=probed([0, 1, 2], solo_ms=[1.4] * 3, together_ms=[1.4, 1.4, 9.0]),
        ),
        Example(
            "ranks on one card are another cause",
            observation=probed([0, 0], solo_ms=[1.43, 1.43], together_ms=[3.6, 3.6]),
        ),
        Example(
            "CPU cores are shared by nature",
            observation=probed([0, 1], on_gpu=False, uuid=[None, None], solo_ms=[10.0, 10.0], together_ms=[20.0, 20.0]),
        ),
    ),
    sources=(
        Reference(
            "torch 2.11.0+cu130 on NVIDIA H100",
            "a matrix product takes 1.43 ms alone and 3.6 ms when a second rank works on the same card",
            ran=True,
        ),
    ),
    fix="Find out what the GPUs share: CPU cores, power, other jobs",
    seen=("run",),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding when most GPUs of their own are much slower together."""
    seen = seen_in(case)
    ranks = observed.present(seen)
    if not seen.on_gpu or len(ranks) < 2 or observed.shared_cards(seen):
        return
    if any(observed.uuid_of(rank) is None for rank in ranks):
        return
    timed = [(rank, factor) for rank in ranks if (factor := observed.contention(rank)) is not None]
    if len(timed) < 2:
        case.require(_untimed(ranks))
        return
    factor = observed.lower_middle(factor for _, factor in timed)
    if factor < _CONTENDED:
        return
    alone = observed.middle(rank.solo_ms for rank, _ in timed if isinstance(rank.solo_ms, float | int))
    yield report(
        RULE,
        f"With all {len(ranks)} GPUs at work the same matrix product takes {factor:.1f} times as long as with one "
        f"({alone:.2f} ms alone): together they do the work of {len(ranks) / factor:.1f}.",
        place_of(case),
        subject=subject_of(case),
        evidence=[*_timings(timed), *_suspects(case, seen)],
    )


def _untimed(ranks: tuple[RankSeen, ...]) -> Unknown | None:
    return next((rank.together_ms for rank in ranks if isinstance(rank.together_ms, Unknown)), None)


def _timings(timed: list[tuple[RankSeen, float]]) -> Iterator[str]:
    for rank, factor in timed[:MOST_LINES]:
        name = f"{observed.name_of(rank)} on {observed.device_of(rank)}"
        yield f"{name}: {rank.solo_ms:.2f} ms alone, {rank.together_ms:.2f} ms together ({factor:.1f} times)"
    if len(timed) > MOST_LINES:
        yield f"and {len(timed) - MOST_LINES} more"


def _suspects(case: Case, seen: Observation) -> Iterator[str]:
    """What the machine's facts say about things that GPUs share."""
    cores = case.facts.cpu_count
    if isinstance(cores, float | int) and cores < len(seen.ranks):
        yield f"{len(seen.ranks)} ranks share {cores:g} processors"
