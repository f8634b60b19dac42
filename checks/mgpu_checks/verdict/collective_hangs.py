"""A collective does not return."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.verdict import MOST_LINES, place_of, probed, seen_in, subject_of
from mgpu_checks.verdict.cure import fix_by_cure
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Observation,
    RankSeen,
    Reference,
    Rule,
    Severity,
    Signature,
    StageSeen,
    observed,
    report,
)

_ALONE = {
    "device": "the first work on its device",
    "solo": "a matrix product, while the others rested",
    "together": "a matrix product, while all worked",
}
"""Steps in which no rank waits for another: one that hangs there hangs in its device or driver."""

_STAGES = {
    "group": "forming the process group",
    "collective": "an all_reduce",
    "links": "data sent from GPU to GPU",
}

RULE = Rule(
    code="MGD905",
    slug="collective-hangs",
    title="A collective does not return",
    severity=Severity.ERROR,
    summary="Ranks wait for each other and none goes on.",
    why=(
        "A collective ends when every rank of the group has taken part. When data does not get from one to another, "
        "all wait, with the GPUs at 100 % and no message, until torch gives up after 10 minutes (NCCL) or 30 (gloo). "
        "The probe waits seconds, says which step did not end, for whom, and what it tried against it."
    ),
    bad=(
        Example(
            "one pair that cannot talk, and a setting that helps",
            "torchrun --nproc-per-node 2 train.py",
            observation=probed(
                [0, 1],
                {"collective": "hung"},
                state=["hung", "hung"],
                stage=["collective", "collective"],
                stack=[["distributed_c10d.py:2810 in all_reduce"], ["distributed_c10d.py:2810 in all_reduce"]],
                cured_by="NCCL_P2P_DISABLE=1",
            ),
        ),
        Example("a rank that hangs by itself", observation=probed([0, 1], {"solo": "hung"}, state=["done", "hung"])),
        Example("the group does not form", observation=probed([0, 1], {"group": "hung"}, state=["hung", "hung"])),
    ),
    good=(
        Example("all came back", "torchrun --nproc-per-node 2 train.py", observation=probed([0, 1])),
        Example(
            "it failed, which is another thing",
            observation=probed([0, 1], {"collective": "failed"}, state=["failed", "failed"]),
        ),
        Example(
            "the others wait for one that died",
            "torchrun --nproc-per-node 2 train.py",
            observation=probed([0, 1], {"collective": "hung"}, state=["failed", "hung"]),
        ),
    ),
    sources=(
        Reference(
            "torch 2.7.1, distributed/distributed_c10d.py init_process_group()",
            "the timeout is 10 minutes for NCCL and 30 minutes for other backends by default",
        ),
        Reference(
            "NCCL 2.28.9, src/graph/paths.cc ncclGetUserP2pLevel()",
            "NCCL_P2P_DISABLE takes peer-to-peer copies out of use",
        ),
    ),
    fix="Take out of use what does not carry the data",
    seen=("run",),
    signatures=(
        Signature(
            r"watchdog got stuck for \d+ seconds without making progress|Heartbeat monitor timed out! Process "
            r"will be terminated|Terminating the process after attempting to dump debug info, due to",
            "torch 2.5.1, 2.6.0 and 2.9.1, ProcessGroupNCCL.cpp; the monitor's own time-out in public reports",
            "[F ProcessGroupNCCL.cpp:1169] [PG 0 Rank 1] [PG 0 Rank 1] ProcessGroupNCCL's watchdog got stuck for "
            "600 seconds without making progress in monitoring enqueued collectives.",
        ),
        Signature(
            r"wait timeout after \d+ms, keys: |Timeout waiting for key: |store->get\('[^']*'\) got error: "
            r"(?:Timeout|wait timeout|Socket Timeout)",
            "torch 2.0.1 to 2.13.0, TCPStore.cpp and ProcessGroupNCCL.cpp: a peer never came",
            "torch.distributed.DistStoreError: wait timeout after 600000ms, keys: /default_pg/0//cuda//timeout_check/0",
        ),
        Signature(
            r"gloo/\S+ Timed out waiting \d+ms for (?:recv|send) operation",
            "torch 2.13.0, gloo/transport/tcp/unbound_buffer.cc in libtorch_cpu",
            "RuntimeError: [../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting "
            "1800000ms for recv operation to complete",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for the first step between ranks that did not end."""
    seen = seen_in(case)
    if any(rank.state in ("failed", "killed", "missing") for rank in seen.ranks):
        # Waiting for a dead process is a consequence.
        return
    step = observed.first_failure(seen)
    if step is None or step.state != "hung" or step.name not in {**_STAGES, **_ALONE}:
        return
    hung = _hung(seen, step)
    seconds = f" within {step.seconds:.0f} s" if isinstance(step.seconds, int | float) else ""
    if step.name in _ALONE:
        yield report(
            RULE,
            f"{observed.sentence(observed.names_of(hung) if hung else 'a rank')} did not come back{seconds} from "
            f"{_ALONE[step.name]}: every collective of the job would wait for it.",
            place_of(case),
            subject=subject_of(case),
            evidence=[*_stacks(hung)],
            fix=Fix("look at that GPU: `mgpu-doctor check` and `nvidia-smi -q` say how it is, a reset may be needed"),
        )
        return
    yield report(
        RULE,
        f"{observed.sentence(_STAGES[step.name])} did not come back{seconds}: {_who(hung, step)}. "
        "The job would hang at the same place.",
        place_of(case),
        subject=subject_of(case),
        evidence=[*_stacks(hung), *_pairs(seen), *_tried(seen, step)],
        fix=fix_by_cure(case, seen) or _fix(seen, step),
    )


def _who(hung: tuple[RankSeen, ...], step: StageSeen) -> str:
    """Who does not take part, where that is known, and who waits."""
    absent = tuple(rank for rank in hung if rank.rank in step.ranks)
    waiting = tuple(rank for rank in hung if rank not in absent)
    if not absent or not waiting:
        return f"{observed.names_of(hung) if hung else 'the ranks'} still wait{'s' * (len(hung) == 1)}"
    part = f"{observed.names_of(absent)} {'does' if len(absent) == 1 else 'do'} not take part"
    return f"{part}, {observed.names_of(waiting)} wait{'s' * (len(waiting) == 1)}"


def _hung(seen: Observation, step: StageSeen) -> tuple[RankSeen, ...]:
    hung = tuple(rank for rank in seen.ranks if rank.state == "hung")
    return hung or tuple(rank for rank in seen.ranks if rank.rank in step.ranks)


def _stacks(ranks: tuple[RankSeen, ...]) -> Iterator[str]:
    for rank in ranks[:MOST_LINES]:
        where = f": {' > '.join(rank.stack[-3:])}" if rank.stack else ""
        yield f"{observed.name_of(rank)} on {observed.device_of(rank)}{where}"
    if len(ranks) > MOST_LINES:
        yield f"and {len(ranks) - MOST_LINES} more"


def _pairs(seen: Observation) -> Iterator[str]:
    for a, b in seen.bad_pairs[:MOST_LINES]:
        yield f"ranks {a} and {b} ({_devices(seen, a, b)}) cannot talk to each other, the other pairs can"


def _devices(seen: Observation, *ranks: int) -> str:
    found = (observed.rank_numbered(seen, rank) for rank in ranks)
    return observed.joined(observed.device_of(rank) if rank is not None else "an unknown device" for rank in found)


def _tried(seen: Observation, step: StageSeen) -> Iterator[str]:
    if step.detail:
        yield step.detail
    if seen.cured_by:
        yield f"with {seen.cured_by} it came back"


def _fix(seen: Observation, step: StageSeen) -> Fix | None:
    if seen.bad_pairs:
        a, b = seen.bad_pairs[0]
        return Fix(f"leave one of {_devices(seen, a, b)} out, or look at the link between them")
    if step.name == "group":
        return Fix("look at the address and the port that the ranks were told, and whether all of them can reach it")
    return None
