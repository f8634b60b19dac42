"""GPUs that were given to the job and that none of its processes holds."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.verdict import each_rank, launch_of, place_of, probed, seen_in, subject_of
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Launch,
    Observation,
    Reference,
    Rule,
    Severity,
    Unknown,
    observed,
    report,
)

_UUIDS = [f"GPU-0000000{index}-1111-2222-3333-444444444444" for index in range(8)]

RULE = Rule(
    code="MGD903",
    slug="gpus-idle-in-fact",
    title="GPUs of the job do nothing",
    severity=Severity.WARNING,
    summary="GPUs that the command gives to the job are held by none of its processes.",
    why=(
        "The command names these GPUs, so nobody else is meant to use them, and no rank works on them. Either there "
        "are fewer ranks than GPUs, or several ranks went to one card."
    ),
    bad=(
        Example(
            "four GPUs named, two used",
            "CUDA_VISIBLE_DEVICES=0,1,2,3 torchrun --nproc-per-node 2 train.py",
            observation=probed([0, 1], idle_uuids=_UUIDS[2:4]),
        ),
        Example(
            "promised to a rank that went elsewhere",
            "torchrun --nproc-per-node 2 train.py",
            observation=probed([0, 0], promised_uuids=_UUIDS[:2], idle_uuids=[_UUIDS[1]]),
        ),
    ),
    good=(
        Example(
            "every named GPU is used",
            "CUDA_VISIBLE_DEVICES=2,3 torchrun --nproc-per-node 2 train.py",
            observation=probed([2, 3], idle_uuids=[]),
        ),
        Example(
            "the machine has more GPUs than the job was given",
            "torchrun --nproc-per-node 2 train.py",
            observation=probed([0, 1], promised_uuids=_UUIDS[:2], idle_uuids=_UUIDS[2:]),
        ),
        Example(
            "one process that would spread a model; the probe works on one GPU only",
            "CUDA_VISIBLE_DEVICES=0,1 llamafactory-cli chat c.yaml",
            observation=probed([0], idle_uuids=_UUIDS[1:2]),
        ),
        Example("nobody looked", observation=probed([0, 1])),
    ),
    sources=(
        Reference(
            "torch 2.7.1, cuda/__init__.py _lazy_init()",
            "a process has a context on a device from its first use of it; one that never uses a device holds none",
        ),
    ),
    fix="Start a rank for each GPU, or leave the GPUs to others",
    seen=("run",),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for all idle GPUs of a job of several processes."""
    seen = seen_in(case)
    idle = case.require(seen.idle_uuids)
    ranks = observed.present(seen)
    if not idle or not seen.on_gpu or (seen.kind == "probe" and len(ranks) < 2):
        return
    launch = launch_of(case)
    given = {observed.bare_uuid(uuid) for uuid in _given(seen, launch, idle)}
    wasted = [uuid for uuid in idle if observed.bare_uuid(uuid) in given]
    if not wasted:
        return
    names = observed.joined(_name(case, uuid) for uuid in wasted)
    yield report(
        RULE,
        f"{names} {'is' if len(wasted) == 1 else 'are'} given to the job, and none of its {len(ranks)} processes uses "
        f"{'it' if len(wasted) == 1 else 'them'}.",
        place_of(case),
        subject=subject_of(case),
        evidence=each_rank(ranks),
        fix=_fix(seen, f"start {len(ranks) + len(wasted)} processes, or leave {names} out"),
    )


def _fix(seen: Observation, title: str) -> Fix:
    return Fix("let each rank take a GPU of its own" if observed.shared_cards(seen) else title)


def _given(seen: Observation, launch: Launch | None, idle: tuple[str, ...]) -> tuple[str, ...]:
    """The devices that are meant for the job: promised to a rank, or all that it can see when a list names them."""
    if launch is not None:
        before = launch.visible_before.known
        if before is not None and not before.all and launch.visible_before.origin.kind == "variable":
            return idle
    promised = seen.promised_uuids
    return () if isinstance(promised, Unknown) else tuple(uuid for uuid in promised if isinstance(uuid, str))


def _name(case: Case, uuid: str) -> str:
    if not isinstance(case.facts.gpus, Unknown):
        for gpu in case.facts.gpus:
            if isinstance(gpu.uuid, str) and observed.bare_uuid(gpu.uuid) == observed.bare_uuid(uuid):
                return f"GPU {gpu.index}"
    return observed.short_uuid(uuid)
