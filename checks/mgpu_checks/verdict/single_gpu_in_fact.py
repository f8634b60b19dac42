"""Several ranks work on one physical GPU: it looks like a multi-GPU job and is a single-GPU job."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.verdict import each_rank, place_of, probed, seen_in, subject_of
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    RankSeen,
    Reference,
    Rule,
    Severity,
    Signature,
    observed,
    report,
)

RULE = Rule(
    code="MGD901",
    slug="single-gpu-in-fact",
    title="Several ranks on one GPU",
    severity=Severity.ERROR,
    summary="Ranks that should have a GPU each report the same device UUID.",
    why=(
        "The device UUID is the proof: whatever the ranks, the world size and the log say, ranks with one UUID share "
        "one GPU. They take turns on it, so that N ranks are no faster than one, and they share its memory. NCCL "
        "usually refuses it at the first collective, but what needs no NCCL (batch prediction, gloo, a job before its "
        "first collective) runs on as if all were well."
    ),
    bad=(
        Example(
            "two ranks, one card",
            "torchrun --nproc-per-node 2 train.py",
            observation=probed([0, 0], {"collective": "failed"}, solo_ms=[1.43, 1.43], together_ms=[3.6, 3.6]),
        ),
        Example(
            "four ranks on two cards",
            "torchrun --nproc-per-node 4 train.py",
            observation=probed([0, 1, 0, 1]),
        ),
    ),
    good=(
        Example("a card each", "torchrun --nproc-per-node 2 train.py", observation=probed([0, 1])),
        Example("the same card model, other UUIDs", observation=probed([4, 5, 6, 7])),
        Example("one process", "python train.py", observation=probed([3])),
        Example(
            "two MIG instances of one card are two devices",
            observation=probed([0, 0], uuid=["MIG-11111111-0000", "MIG-22222222-0000"]),
        ),
        Example(
            "on the CPU there is no device to share",
            "torchrun --nproc-per-node 2 train.py",
            observation=probed([0, 0], uuid=[None, None], on_gpu=False),
        ),
    ),
    sources=(
        Reference(
            "torch 2.11.0+cu130 on one NVIDIA H100, two ranks on it",
            "the same matrix product takes 1.43 ms while one rank works and 3.6 ms while both do",
            ran=True,
        ),
        Reference(
            "NCCL 2.28.9, src/init.cc initTransportsRank()",
            "two ranks of one host with one bus id are refused: Duplicate GPU detected",
            ran=True,
        ),
        Reference(
            "NCCL 2.30.7, src/init.cc initTransportsRank()",
            "two ranks of one host with one UUID are refused unless NCCL_MULTI_RANK_GPU_ENABLE=1 is set",
        ),
    ),
    fix="Give each rank a GPU of its own, or start as many ranks as there are GPUs",
    signatures=(
        Signature(
            r"Duplicate GPU detected : rank \d+ and rank \d+ both on CUDA device",
            "NCCL 2.28.9, src/init.cc initTransportsRank()",
            "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 60",
        ),
        Signature(
            r"Multiple Ranks are using the same GPU/Partition",
            "NCCL 2.30.7, src/init.cc initTransportsRank()",
            "Multiple Ranks are using the same GPU/Partition. Set NCCL_MULTI_RANK_GPU_ENABLE=1 to enable this "
            "configuration.",
        ),
    ),
    seen=("run",),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each device that several ranks of one group share."""
    seen = seen_in(case)
    if observed.group_count(seen) not in (None, 1):
        # Copies that know nothing of each other are another cause.
        return
    for ranks in observed.shared_devices(seen):
        yield report(
            RULE,
            f"{observed.sentence(observed.names_of(ranks))} run on one GPU, {observed.device_of(ranks[0])}: it looks "
            f"like {len(ranks)} GPUs and is one{_slowed(ranks)}.",
            place_of(case),
            subject=subject_of(case),
            evidence=each_rank(ranks),
            fix=_fix(ranks),
        )


def _slowed(ranks: tuple[RankSeen, ...]) -> str:
    factors = [factor for rank in ranks if (factor := observed.contention(rank)) is not None]
    if not factors:
        return ""
    return f"; the same work takes {observed.lower_middle(factors):.1f} times as long as alone"


def _fix(ranks: tuple[RankSeen, ...]) -> Fix:
    counts = {rank.device_count for rank in ranks}
    count = next(iter(counts))
    if len(counts) == 1 and isinstance(count, int) and 0 < count < len(ranks):
        several = count > 1
        sees = f"each rank sees {count} GPU{'s' * several}"
        return Fix(f"make {len(ranks)} GPUs visible, or start {count} process{'es' * several}: {sees}")
    return Fix("let each rank take the GPU of its LOCAL_RANK, and give the job a GPU for each rank")
