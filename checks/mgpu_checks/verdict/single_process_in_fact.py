"""One process runs although several were asked for."""

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
    RankSeen,
    Reference,
    Rule,
    Severity,
    Signature,
    observed,
    report,
)

RULE = Rule(
    code="MGD902",
    slug="single-process-in-fact",
    title="One process where several were asked for",
    severity=Severity.ERROR,
    summary="The world size is 1 although more processes were asked for.",
    why=(
        "Launchers fall back to one process without a word and with exit status 0: accelerate does so when it sees at "
        "most one GPU, or when its configuration file says so; options behind the script go to the script. The job "
        "then runs on one GPU, takes N times as long, and its effective batch is N times smaller."
    ),
    bad=(
        Example(
            "four asked for, one came",
            "accelerate launch --num_processes 4 train.py",
            observation={**probed([0], device_count=[1]), "promised_processes": 4},
        ),
        Example(
            "on the processors alone",
            "accelerate launch --cpu --num_processes 4 train.py",
            observation={**probed([0], device_count=[0], uuid=[None], on_gpu=False), "promised_processes": 4},
        ),
        Example(
            "two promised, one came",
            observation={**probed([0]), "promised_processes": 2},
        ),
    ),
    good=(
        Example("as many as asked for", "torchrun --nproc-per-node 2 train.py", observation=probed([0, 1])),
        Example("one was asked for", "accelerate launch --num_processes 1 train.py", observation=probed([0])),
        Example(
            "the others never came, which is no fall-back",
            "torchrun --nproc-per-node 2 train.py",
            observation={**probed([0], world_size=[2], state=["hung"]), "promised_processes": 2},
        ),
        Example("a model spread over all GPUs by one process", "llamafactory-cli chat c.yaml", observation=probed([0])),
    ),
    sources=(
        Reference(
            "accelerate 1.15.0, accelerate launch --num_processes 4 with at most one visible GPU",
            "one process is started, exit status 0, no word about it",
            ran=True,
        ),
        Reference(
            "accelerate 1.7.0 and 1.15.0, commands/launch.py launch_command(): every launcher of several processes"
            " asks for not args.cpu",
            "accelerate launch --cpu --num_processes 4 starts one process, exit status 0 (seen with 1.15.0)",
            ran=True,
        ),
        Reference(
            "accelerate 1.7.0, accelerate launch --config_file NO.yaml --num_processes 4",
            "one process is started, exit status 0",
            ran=True,
        ),
    ),
    fix="Find what turned the launch into one process: visible GPUs, the configuration file, the place of the options",
    seen=("run",),
    signatures=(
        Signature(
            r"^Distributed environment: (?:DistributedType\.)?NO\b",
            "accelerate 0.20.3 to 1.15.0, state.py PartialState.__repr__()",
            "Distributed environment: NO",
            severity=Severity.ADVICE,
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding when a single process came where several were meant."""
    seen = seen_in(case)
    launch = launch_of(case)
    ranks = observed.present(seen)
    wanted = _wanted(seen, launch)
    if len(seen.ranks) != 1 or len(ranks) != 1 or wanted < 2 or observed.world_of(ranks[0]) != 1:
        return
    yield report(
        RULE,
        f"One process ran, on {observed.device_of(ranks[0])}, though {wanted} were asked for: its world size is 1"
        f"{_wasted(ranks[0])}.",
        place_of(case),
        subject=subject_of(case),
        evidence=[*each_rank(ranks), *_sees(ranks[0])],
        fix=_fix(launch, ranks[0], wanted),
    )


def _wanted(seen: Observation, launch: Launch | None) -> int:
    promised = seen.promised_processes if isinstance(seen.promised_processes, int) else 0
    return max(promised, observed.asked_processes(launch) or 0)


def _wasted(rank: RankSeen) -> str:
    others = rank.device_count - 1 if isinstance(rank.device_count, int) else 0
    return f", and {others} GPU{'s' * (others != 1)} that it sees will do nothing" if others > 0 else ""


def _sees(rank: RankSeen) -> Iterator[str]:
    if isinstance(rank.device_count, int):
        yield f"it sees {rank.device_count} GPU{'s' * (rank.device_count != 1)}"


def _fix(launch: Launch | None, rank: RankSeen, wanted: int) -> Fix | None:
    accelerate = launch.layer("accelerate") if launch is not None else None
    if accelerate is not None and accelerate.option("cpu") is not None:
        return Fix("leave --cpu out: with it accelerate starts one process")
    if isinstance(rank.device_count, int) and rank.device_count < 2:
        return Fix(f"make {wanted} GPUs visible to the launcher: it sees {rank.device_count}")
    if accelerate is not None:
        return Fix("give --multi_gpu, or a configuration file that says distributed_type: MULTI_GPU")
    return None
