"""A compute mode that lets one process alone, or none, work on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.host import Job, jobs, split_over, variable
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Gpu,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    report,
)

_GPU = {"name": "Tesla V100-SXM2-32GB", "memory_gib": 32, "compute_capability": "7.0"}
_EXCLUSIVE = {"gpus": [{**_GPU, "index": index, "compute_mode": "Exclusive_Process"} for index in range(2)]}
_PROHIBITED = {"gpus": [{**_GPU, "index": index, "compute_mode": "Prohibited"} for index in range(2)]}
_HELD = {**_EXCLUSIVE, "gpu_processes": [{"gpu": 0, "pid": 4127, "command": "python serve.py", "memory_gib": 3.0}]}

RULE = Rule(
    code="MGD706",
    slug="compute-mode-exclusive",
    title="The compute mode keeps processes out",
    severity=Severity.ERROR,
    summary="Several processes on a GPU in Exclusive_Process mode, or any on a Prohibited one.",
    why=(
        "In the mode `Exclusive_Process` the first process that opens a GPU keeps all others out; in `Prohibited` "
        "nobody may use it. The others stop with `CUDA-capable device(s) is/are busy or unavailable`. Schedulers set "
        "the mode so that jobs do not share cards, which is fine for one rank a GPU."
    ),
    bad=(
        Example("two ranks on one GPU", "CUDA_VISIBLE_DEVICES=0 mpirun -np 2 python t.py", facts=_EXCLUSIVE),
        Example("somebody is there already", "torchrun --nproc_per_node 2 t.py", facts=_HELD),
        Example("prohibited", "torchrun --nproc_per_node 2 t.py", facts=_PROHIBITED),
        Example("all GPUs prohibited", facts=_PROHIBITED),
    ),
    good=(
        Example("one rank a GPU", "torchrun --nproc_per_node 2 t.py", facts=_EXCLUSIVE),
        Example("the machine alone", facts=_EXCLUSIVE),
        Example("one process", "python t.py", facts=_EXCLUSIVE),
        Example(
            "the multi-process service shares it",
            "CUDA_VISIBLE_DEVICES=0 mpirun -np 2 python t.py",
            facts={**_EXCLUSIVE, "gpu_processes": [{"gpu": 0, "pid": 9, "command": "nvidia-cuda-mps-server"}]},
        ),
        Example("one card kept for the display", facts={"gpus": [{**_PROHIBITED["gpus"][0]}, {**_GPU, "index": 1}]}),
        Example("another GPU is held", "CUDA_VISIBLE_DEVICES=1 torchrun --nproc_per_node 1 t.py", facts=_HELD),
    ),
    sources=(
        Reference(
            "driver 550, nvidia-smi(1), Compute Mode",
            "Exclusive_Process: one context per device, usable from several threads; Prohibited: no contexts",
        ),
        Reference(
            "CUDA 12.8, cudaErrorDevicesUnavailable (46)",
            "devices are busy or unavailable, often due to the modes Prohibited or Exclusive_Process",
        ),
        Reference("CUDA MPS guide R550", "with the MPS server several processes share a GPU in Exclusive_Process mode"),
    ),
    fix="one process a GPU, another GPU, or nvidia-smi -c DEFAULT (as root)",
    signatures=(
        Signature(
            r"CUDA-capable device\(s\) is/are busy or unavailable",
            "CUDA 12.8, cudaGetErrorString(cudaErrorDevicesUnavailable)",
            "RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        ),
        Signature(
            r"all CUDA-capable devices are busy or unavailable",
            "CUDA 9 to 11.2 runtime, cudaErrorDevicesUnavailable",
            "RuntimeError: CUDA error: all CUDA-capable devices are busy or unavailable",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """Jobs that a mode keeps out; without a command, a machine on which no GPU may be used."""
    if not case.launches:
        yield from _machine(case)
        return
    for job in jobs(case):
        finding = _prohibited(case, job) or _crowded(case, job) or _held(case, job)
        if finding is not None:
            yield finding


def _machine(case: Case) -> Iterator[Finding]:
    gpus = case.require(case.facts.gpus)
    if gpus and all(gpu.compute_mode == "Prohibited" for gpu in gpus):
        yield report(
            RULE,
            f"All {len(gpus)} GPUs are in the compute mode Prohibited: no CUDA program can use them.",
            subject="compute mode",
            fix=_fix(gpus),
        )


def _chosen(case: Case, job: Job, mode: str) -> tuple[Gpu, ...]:
    """The GPUs in that mode that the job uses; those of a process that may choose among several are left out."""
    gpus = () if isinstance(case.facts.gpus, Unknown) else case.facts.gpus
    if job.physical is None or (job.processes == 1 and len(job.physical) > 1):
        return ()
    return tuple(gpu for gpu in gpus if gpu.index in job.physical and gpu.compute_mode == mode)


def _prohibited(case: Case, job: Job) -> Finding | None:
    found = _chosen(case, job, "Prohibited")
    if not found:
        return None
    names = ", ".join(str(gpu.index) for gpu in found)
    return report(
        RULE,
        f"GPU {names} {'are' if len(found) > 1 else 'is'} in the compute mode Prohibited: no CUDA program can use "
        f"{'them' if len(found) > 1 else 'it'}.",
        job.place,
        subject=f"GPU {names}",
        fix=_fix(found),
    )


def _crowded(case: Case, job: Job) -> Finding | None:
    """Several processes for which one exclusive GPU is there; ranks that count devices by themselves are MGD207's."""
    only = _chosen(case, job, "Exclusive_Process")
    crowd = job.processes > 1 and not job.launch.distributed_layers and split_over(job.launch) == 1
    if not crowd or len(only) != 1 or job.physical != frozenset({only[0].index}) or _shared(case, job):
        return None
    index = only[0].index
    return report(
        RULE,
        f"{job.processes} processes would use GPU {index}, but its compute mode is Exclusive_Process: the first one "
        "keeps the others out (`CUDA-capable device(s) is/are busy or unavailable`).",
        job.place,
        subject=f"GPU {index}",
        fix=_fix(only),
    )


def _held(case: Case, job: Job) -> Finding | None:
    """A process that is on an exclusive GPU already."""
    holders = case.facts.gpu_processes
    if isinstance(holders, Unknown) or _shared(case, job):
        return None
    found = {gpu.index: gpu for gpu in _chosen(case, job, "Exclusive_Process")}
    taken = [one for one in holders if one.gpu in found and one.alive is not False]
    if not taken:
        return None
    one = taken[0]
    who = one.command if isinstance(one.command, str) else "another process"
    pid = f" (pid {one.pid})" if isinstance(one.pid, int) else ""
    return report(
        RULE,
        f"{who}{pid} is on GPU {one.gpu}, whose compute mode is Exclusive_Process: nobody else gets in until it ends.",
        job.place,
        subject=f"GPU {one.gpu}",
        fix=Fix("wait for it, or choose another GPU"),
    )


def _shared(case: Case, job: Job) -> bool:
    """Whether NVIDIA's multi-process service lets several processes in."""
    if variable(case, job.launch, "CUDA_MPS_PIPE_DIRECTORY") is not None:
        return True
    holders = case.facts.gpu_processes
    return not isinstance(holders, Unknown) and any("nvidia-cuda-mps" in str(one.command) for one in holders)


def _fix(gpus: tuple[Gpu, ...]) -> Fix:
    return Fix(
        "set the default mode, where the machine's owner agrees",
        commands=tuple(f"sudo nvidia-smi -i {gpu.index} -c DEFAULT" for gpu in gpus),
    )
