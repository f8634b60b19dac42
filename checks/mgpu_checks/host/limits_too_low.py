"""Limits of this shell that a job of this size meets: open files, processes, processors."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.host import Job, jobs
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    report,
)

FILES_FEW = 256
FILES_MANY_RANKS = 1024
MANY_RANKS = 128
THREADS_EACH = 64

_EIGHT = "torchrun --nproc_per_node 8 train.py"
_LARGE = "torchrun --nnodes 32 --node_rank 0 --nproc_per_node 8 --master_addr 10.0.0.5 --master_port 29500 train.py"

RULE = Rule(
    code="MGD710",
    slug="limits-too-low",
    title="A limit is too low for this job",
    severity=Severity.WARNING,
    summary="Open files, processes or processors of this shell are too few for the ranks that the command starts.",
    why=(
        "NCCL opens sockets and files for every peer: with some hundred ranks the usual 1024 open files a process do "
        "not suffice. A limit of processes counts threads, of which each rank has dozens. A job that was given one "
        "processor for eight ranks (Slurm's default is one a task) trains, but waits for its data all the time."
    ),
    bad=(
        Example("more ranks than processors", _EIGHT, facts={"cpu_count": 1}),
        Example("hundreds of ranks and 1024 files", _LARGE, facts={"limits": {"nofile": 1024}}),
        Example("hardly any files", _EIGHT, facts={"limits": {"nofile": 64}}),
        Example("few processes", _EIGHT, facts={"limits": {"nproc": 200}}),
        Example("few processes in a container", _EIGHT, facts={"limits": {"nproc": -1, "cgroup_pids": 100}}),
    ),
    good=(
        Example("a usual machine", _EIGHT, facts={"cpu_count": 96, "limits": {"nofile": 1024, "nproc": 515000}}),
        Example("no limit", _LARGE, facts={"limits": {"nofile": -1, "nproc": -1}}),
        Example("a large limit", _LARGE, facts={"limits": {"nofile": 65536}}),
        Example("a processor each", _EIGHT, facts={"cpu_count": 8}),
        Example("one process on one processor", "python train.py", facts={"cpu_count": 1}),
        Example("the machine alone", facts={"cpu_count": 1, "limits": {"nofile": 64, "nproc": 10}}),
        Example("not known", _EIGHT),
        Example("ranks on a machine without GPUs", _EIGHT, facts={"cpu_count": 2, "gpus": []}),
        Example("whose GPUs are not known", _EIGHT, facts={"cpu_count": 2, "gpus": None}),
        Example("ranks on the CPU", "CUDA_VISIBLE_DEVICES= torchrun --nproc_per_node 2 t.py", facts={"cpu_count": 1}),
    ),
    sources=(
        Reference(
            "NCCL 2.30 user guide, troubleshooting/runtime_and_mpi_issues, File Descriptors",
            "many descriptors at scale: a 144-rank job may need over 32K a process; nofile 131072",
        ),
        Reference(
            "torch 2.13.0, utils/data/dataloader.py",
            "`Too many open files. Communication with the workers is no longer possible`; warns when workers outnumber "
            "the processors of the affinity",
        ),
        Reference("Linux 6.8, setrlimit(2), RLIMIT_NPROC", "counts the threads of the real user"),
        Reference("Slurm 23.11, sbatch(1), --cpus-per-task", "without it one processor is given to each task"),
    ),
    fix="ulimit -n 65536; ask the scheduler for processors (--cpus-per-task)",
    signatures=(
        Signature(
            r"Too many open files(?:\. Communication with the workers is no longer possible)?",
            "torch 2.13.0, utils/data/dataloader.py; errno EMFILE in NCCL's messages",
            "RuntimeError: Too many open files. Communication with the workers is no longer possible. Please increase "
            "the limit using `ulimit -n` in the shell or change the sharing strategy",
        ),
        Signature(
            r"can't start new thread|pthread_create failed: Resource temporarily unavailable|Thread creation "
            r"failed: Resource temporarily unavailable",
            "Python 3.11 and glibc 2.35 at the limit of processes (ulimit -u, pids.max)",
            "RuntimeError: can't start new thread",
        ),
        Signature(
            r"received 0 items of ancdata",
            "Python 3.11, multiprocessing/reduction.py recvfds(), at the limit of open files",
            "RuntimeError: received 0 items of ancdata",
        ),
        Signature(
            r"pthread_create failed for thread \d+ of \d+: Resource temporarily unavailable",
            "OpenBLAS 0.3, at the limit of processes (public reports)",
            "OpenBLAS blas_thread_init: pthread_create failed for thread 31 of 64: Resource temporarily unavailable",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """Jobs of several ranks that are larger than the shell's limits."""
    said = set()
    for job in jobs(case):
        if job.processes > 1:
            for finding in (_processors(case, job), _files(case, job), _processes(case, job)):
                if finding is not None and finding.subject not in said:
                    # Said once, at the first command that meets it.
                    said.add(finding.subject)
                    yield finding


def _processors(case: Case, job: Job) -> Finding | None:
    have = case.facts.cpu_count
    if isinstance(have, Unknown) or have >= job.processes or isinstance(case.facts.gpus, Unknown):
        return None
    asks = "ask the scheduler for more (--cpus-per-task, the pod's cpu limit)"
    return report(
        RULE,
        f"{job.processes} ranks share {have:g} processor{'s' if have != 1 else ''}: each rank drives its GPU with at "
        "least one thread, and data-loader workers come on top, so that the GPUs wait.",
        job.place,
        subject="processors",
        evidence=(f"processors that may be used here: {have:g}",),
        fix=Fix(asks if case.facts.scheduler is not None else "give the job more processors"),
    )


def _limit(case: Case, name: str) -> float | None:
    limits = case.facts.limits
    value = None if isinstance(limits, Unknown) else limits.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value < 0:
        return None
    return value


def _files(case: Case, job: Job) -> Finding | None:
    most, ranks = _limit(case, "nofile"), job.launch.world_size.known or job.processes
    if most is None or not (most <= FILES_FEW or (ranks >= MANY_RANKS and most <= FILES_MANY_RANKS)):
        return None
    return report(
        RULE,
        f"A process may have {most:g} files open (ulimit -n), but NCCL opens sockets for each of the {ranks} ranks' "
        "connections, and data loaders use files too: `Too many open files`.",
        job.place,
        subject="open files",
        evidence=(f"nofile: {most:g}",),
        fix=Fix("raise it in the shell or the job script", commands=("ulimit -n 65536",)),
    )


def _processes(case: Case, job: Job) -> Finding | None:
    named = ((_limit(case, "nproc"), "ulimit -u"), (_limit(case, "cgroup_pids"), "the control group's pids.max"))
    known = {limit: name for limit, name in named if limit is not None}
    if not known or min(known) >= THREADS_EACH * job.processes:
        return None
    most = min(known)
    return report(
        RULE,
        f"There may be {most:g} processes and threads ({known[most]}), {most / job.processes:.0f} for each of "
        f"{job.processes} ranks: torch and NCCL start dozens in each, and a start of a thread then fails.",
        job.place,
        subject="processes",
        evidence=(f"{known[most]}: {most:g}",),
        fix=Fix("raise it (docker: --pids-limit=-1)", commands=("ulimit -u unlimited",)),
    )
