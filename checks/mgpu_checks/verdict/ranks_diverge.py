"""Some ranks wait at a collective that others never reach."""

from __future__ import annotations

from mgpu_doctor.authoring import Example, Reference, Rule, Severity, Signature, only_signatures

_TIMEOUT = (
    "[E ProcessGroupNCCL.cpp:629] [Rank {rank}] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=2, "
    "OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600041 milliseconds before timing out."
)

RULE = Rule(
    code="MGD909",
    slug="ranks-diverge",
    title="Ranks wait for others that never come",
    severity=Severity.ERROR,
    summary="a collective timed out: some ranks reached it and others did not",
    why=(
        "A collective ends only when every rank takes part. When one rank is still tokenising the data set, saves "
        "alone while the others go on, ran out of data earlier or took another branch, the rest waits until the "
        "time-out (ten minutes by default, thirty before torch 2.2) and then all are ended. The rank that printed "
        "nothing is the one to look at; `py-spy dump` on its process shows where it stands."
    ),
    bad=(Example("NCCL's watchdog", log=_TIMEOUT.format(rank=4) + "\n" + _TIMEOUT.format(rank=5) + "\n"),),
    good=(
        Example("one rank failed and the others only waited", log="[rank0]: KeyError: 'x'\n" + _TIMEOUT.format(rank=1)),
        Example("a time-out of something else", log="requests.exceptions.ReadTimeout: timed out\n"),
    ),
    sources=(
        Reference(
            "torch 2.0.1 and 2.6.0, torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp",
            "'[Rank N] Watchdog caught collective operation timeout: WorkNCCL(…) ran for … milliseconds'",
        ),
        Reference(
            "torch 2.13.0, distributed/constants.py",
            "default_pg_nccl_timeout is ten minutes; the time-out of other backends thirty",
        ),
    ),
    fix=(
        "let every rank take part: prepare data once beforehand (or under main_process_first), save on all ranks, give "
        "each rank equally many batches; a longer --ddp_timeout only helps where the wait is expected"
    ),
    signatures=(
        Signature(
            r"Watchdog caught collective operation timeout",
            "torch 2.0.1 and 2.6.0, ProcessGroupNCCL.cpp",
            _TIMEOUT.format(rank=4),
        ),
        Signature(
            r"monitoredBarrier.*(?:timed out|failed to pass)|failed to pass monitoredBarrier|Detected mismatch "
            r"between collectives on ranks",
            "torch 2.9.1, torch/csrc/distributed/c10d/ProcessGroupGloo.cpp and ProcessGroupWrapper.cpp",
            "RuntimeError: Detected mismatch between collectives on ranks. Rank 1 is running collective: "
            "CollectiveFingerPrint(SequenceNumber=3, OpType=BARRIER)",
        ),
    ),
    seen=("log",),
)

find = only_signatures
