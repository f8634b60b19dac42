"""/dev/shm has the 64 MB of a container's default: too little for NCCL's buffers and for data-loader workers."""

# ruff: noqa: S108 - /dev/shm is spoken of, not written to

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.devices import on_cpu
from mgpu_checks.host import (
    engine_wrapper,
    gpu_count,
    in_container,
    jobs,
    processes_of,
    split_over,
    wrapper_options,
)
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Launch,
    Location,
    Reference,
    Rule,
    Severity,
    Signature,
    Span,
    Wrapper,
    insert,
    report,
)

DEFAULT_GIB = 0.0645
"""A little above 64 MiB, what Docker, Podman and Kubernetes give a container that asks for nothing else."""
TINY_GIB = 0.06
NEEDED = "1g"

_INSIDE = {"container": {"runtime": "docker"}, "shm_gib": 0.0625}

RULE = Rule(
    code="MGD701",
    slug="shm-too-small",
    title="/dev/shm is too small",
    severity=Severity.ERROR,
    summary="/dev/shm is 64 MB or less, a container's default: too small for NCCL or data-loader workers.",
    why=(
        "Processes on one machine talk through /dev/shm: NCCL puts a buffer of 5 to 10 MB there for each channel "
        "between two GPUs that cannot reach each other directly, and data-loader workers hand over every batch through "
        "it. A container gets 64 MB unless it asks for more. NCCL then stops with `Error while creating shared memory "
        "segment`, a data loader with `Bus error`."
    ),
    bad=(
        Example("a pod with 16 MB", "torchrun --nproc_per_node 8 train.py", facts={**_INSIDE, "shm_gib": 0.0156}),
        Example("docker's default, seen inside", "torchrun --nproc_per_node 8 train.py", facts=_INSIDE),
        Example("the machine alone", facts=_INSIDE),
        Example("64 MB, written by hand", facts={**_INSIDE, "shm_gib": 0.064}),
        Example(
            "data-loader workers", "python train.py --dataloader_num_workers 8", facts=_INSIDE, files={"train.py": ""}
        ),
        Example("one model over four GPUs", "vllm serve acme/base-7b --tensor-parallel-size 4", facts=_INSIDE),
        Example("a new container", "docker run --gpus all --rm img torchrun --nproc_per_node 8 train.py", facts=None),
        Example(
            "a new container with MPI",
            "docker run --rm --net=host --runtime nvidia img mpirun --allow-run-as-root -np 4 python t.py",
            facts=None,
        ),
        Example(
            "a new container with the default written out",
            "podman run --device nvidia.com/gpu=all --shm-size 64m img torchrun --nproc_per_node 2 train.py",
            facts=None,
        ),
    ),
    good=(
        Example("enough", "torchrun --nproc_per_node 8 train.py", facts={**_INSIDE, "shm_gib": 64}),
        Example("one process", "python train.py", facts=_INSIDE, files={"train.py": ""}),
        Example("one GPU", facts={**_INSIDE, "gpus": [{"index": 0, "name": "NVIDIA A10", "memory_gib": 24}]}),
        Example("no GPU", facts={**_INSIDE, "gpus": []}),
        Example(
            "ranks on a machine without GPUs", "torchrun --nproc_per_node 2 train.py", facts={**_INSIDE, "gpus": []}
        ),
        Example("not known", "torchrun --nproc_per_node 8 train.py"),
        Example("asked for", "docker run --gpus all --shm-size=16g img torchrun --nproc_per_node 8 train.py"),
        Example("the host's", "docker run --gpus all --ipc=host img torchrun --nproc_per_node 8 train.py"),
        Example("mounted", "docker run --gpus all -v /dev/shm:/dev/shm img torchrun --nproc_per_node 8 train.py"),
        Example("not known, in a script", "docker run $FLAGS img torchrun --nproc_per_node 8 train.py", facts=None),
        Example("a container that runs already", "docker exec c torchrun --nproc_per_node 8 train.py", facts=None),
        Example("one process in a container", "docker run --gpus all img python train.py", facts=None),
        Example("Singularity shares it", "singularity exec --nv a.sif torchrun --nproc_per_node 8 t.py", facts=None),
        Example(
            "workers switched off", "python train.py --dataloader_num_workers 0", facts=_INSIDE, files={"train.py": ""}
        ),
    ),
    sources=(
        Reference(
            "NCCL 2.30 user guide, troubleshooting/runtime_and_mpi_issues, Shared memory",
            "if insufficient shared memory is available, NCCL fails to initialize; in Docker: --shm-size=1g",
        ),
        Reference(
            "NCCL 2.28.9, transport/shm.cc shmRecvSetup(); misc/shmutils.cc ncclShmOpen()",
            "each connection through shared memory gets the buffers of all protocols in a file under /dev/shm",
        ),
        Reference("Docker 27, docker run reference, --shm-size", "the default is 64 MB"),
        Reference(
            "torch 2.13.0, csrc/DataLoader.cpp and utils/data/dataloader.py",
            "a worker that gets SIGBUS: `insufficient shared memory (shm)`",
        ),
    ),
    fix="start the container with --shm-size=1g (or more) or --ipc=host; in Kubernetes mount a memory-backed emptyDir",
    signatures=(
        Signature(
            r"Error while (?:creating|attaching to) shared memory segment \S*nccl-",
            "NCCL 2.4.7 include/shm.h to 2.28.9 misc/shmutils.cc",
            "Error while creating shared memory segment /dev/shm/nccl-4VdX1p (size 9637888)",
        ),
        Signature(
            r"failed to extend /dev/shm/nccl-\S+ to \d+ bytes",
            "NCCL 2.14.3 to 2.28.9, misc/shmutils.cc",
            "NCCL WARN Error: failed to extend /dev/shm/nccl-03v824 to 4194660 bytes",
        ),
        Signature(
            r"Call to posix_fallocate failed ?: No space left on device",
            "NCCL 2.4.7, include/shm.h and include/core.h SYSCHECK",
            "host1:2201:2240 [0] include/shm.h:28 NCCL WARN Call to posix_fallocate failed : No space left on device",
        ),
        Signature(
            r"unable to allocate shared memory\(shm\) for file </torch_",
            "torch 2.11.0, data loader workers with a /dev/shm of 64 MB (ran)",
            "RuntimeError: unable to allocate shared memory(shm) for file </torch_1051_1824784400_0>: Resource "
            "temporarily unavailable (11)",
        ),
        Signature(
            r"might be caused by insufficient shared memory \(shm\)",
            "torch 2.13.0, csrc/DataLoader.cpp",
            "ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory "
            "(shm).",
        ),
        Signature(
            r"It is possible that dataloader's workers are out of shared memory",
            "torch 2.13.0, csrc/DataLoader.cpp",
            "RuntimeError: DataLoader worker (pid 572) is killed by signal: Bus error. It is possible that "
            "dataloader's workers are out of shared memory. Please try to raise your shared memory limit.",
        ),
        Signature(
            r"DataLoader worker \(pid\(?s?\)? ?\S+\) is killed by signal: Bus error",
            "torch 2.13.0, utils/data/dataloader.py and csrc/DataLoader.cpp",
            "RuntimeError: DataLoader worker (pid 20991) is killed by signal: Bus error. Details are lost due to "
            "multiprocessing.",
        ),
        Signature(
            r"Signal 7 \(SIGBUS\)|failed \(exitcode: -7\)|exitcode *: -7\b|Signal: Bus error \(7\)|Bus error "
            r"\(signal 7\)|signal 7 \(Bus error|return code = -7\b|\bBus error +\(core dumped\)",
            "torch 2.13.0, distributed/elastic (ran); bash 5.2: a mapped page without memory behind it",
            "  traceback : Signal 7 (SIGBUS) received by PID 467398",
            weak=True,
        ),
        Signature(
            r"unable to (?:write to|resize) file </torch_|unable to (?:mmap \d+ bytes from file|open shared "
            r"memory object) </torch_\S+ .*No space left",
            "torch 2.13.0, aten/src/ATen/MapAllocator.cpp in libtorch_cpu",
            "RuntimeError: unable to write to file </torch_4411_2891>",
        ),
        Signature(
            r"unable to mmap \d+ bytes from file </torch_",
            "torch 2.13.0, aten/src/ATen/MapAllocator.cpp in libtorch_cpu",
            "RuntimeError: unable to mmap 1048576 bytes from file </torch_55_1>: Cannot allocate memory (12)",
            weak=True,
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """A /dev/shm that is too small here, and new containers that would get such a one."""
    for launch in case.launches:
        wrapper = engine_wrapper(launch)
        if wrapper is not None:
            yield from _new_container(case, launch, wrapper)
    if not case.launches:
        yield from _machine(case)
        return
    for job in jobs(case):
        workers = _workers(job.launch)
        if job.processes < 2 and workers < 1:
            continue
        size = case.require(case.facts.shm_gib)
        if size <= DEFAULT_GIB:
            who = f"{job.processes} processes" if job.processes > 1 else f"{workers} data-loader workers"
            yield _here(case, size, who, job.place)
            return  # a fault of the machine is said once, at the first command that meets it


def _machine(case: Case) -> Iterator[Finding]:
    if gpu_count(case) < 2:
        return
    size = case.require(case.facts.shm_gib)
    if size <= DEFAULT_GIB:
        yield _here(case, size, f"a job on the {gpu_count(case)} GPUs", None)


def _here(case: Case, size: float, who: str, place: Location | None) -> Finding:
    inside = in_container(case)
    fix = Fix(
        f"start the container with --shm-size={NEEDED} or --ipc=host (Kubernetes: an emptyDir with medium: Memory on "
        "/dev/shm)"
    )
    if not inside:
        fix = Fix("make it larger", commands=(f"mount -o remount,size={NEEDED} /dev/shm",))
    return report(
        RULE,
        f"/dev/shm has {size * 1024:.0f} MB{_owner(case)}: too little for {who}. NCCL (buffers of up to 10 MB for each "
        "channel between GPUs without a direct path) and data-loader workers stop when it is full.",
        place,
        subject="/dev/shm",
        severity=Severity.ERROR if size < TINY_GIB else Severity.WARNING,
        evidence=(f"size of /dev/shm: {size:g} GiB",),
        fix=fix,
    )


def _owner(case: Case) -> str:
    return f" in this container ({case.facts.container})" if in_container(case) else ""


def _workers(launch: Launch) -> int:
    argument = launch.target.argument("dataloader_num_workers", "num_workers")
    text = argument.value if argument is not None else None
    return int(text) if text is not None and text.isascii() and text.isdigit() else 0


def _new_container(case: Case, launch: Launch, wrapper: Wrapper) -> Iterator[Finding]:
    processes = max(processes_of(launch), split_over(launch))
    if processes < 2 or on_cpu(case, launch) or _has_own(wrapper):
        return
    name = wrapper.words[0].shown
    place = launch.command.locate(Span(wrapper.words[0].span.start, wrapper.words[1].span.end))
    yield report(
        RULE,
        f"{name} gives the container 64 MB of /dev/shm, as neither --shm-size nor --ipc=host is given: too little for "
        f"NCCL between {processes} processes, and for data-loader workers.",
        place,
        severity=Severity.WARNING,
        evidence=("unless the engine's own configuration sets another default",),
        fix=_option(launch, wrapper),
    )


def _has_own(wrapper: Wrapper) -> bool:
    """Whether the container gets more than the default, or that cannot be told."""
    if any(word.splits or (word.value is None and not word.known_prefix) for word in wrapper.words):
        return True
    for value in wrapper_options(wrapper, "--shm-size"):
        if value is None or not _is_default(value):
            return True
    if any(value is None or value not in {"private", "shareable", "none", ""} for value in _ipc(wrapper)):
        return True
    mounts = wrapper_options(wrapper, "-v", "--volume", "--mount", "--tmpfs")
    return any(value is None or "/dev/shm" in value for value in mounts)


def _ipc(wrapper: Wrapper) -> tuple[str | None, ...]:
    return wrapper_options(wrapper, "--ipc")


def _is_default(text: str) -> bool:
    """Whether a size is 64 MB or less, in docker's notation (``64m``, ``67108864``)."""
    digits = text.lower().rstrip("b").rstrip("kmg")
    unit = text.lower().rstrip("b")[-1:]
    if not digits.isdigit():
        return False
    return int(digits) * {"k": 2**10, "m": 2**20, "g": 2**30}.get(unit, 1) <= 64 * 2**20


def _option(launch: Launch, wrapper: Wrapper) -> Fix:
    verb = next((word for word in wrapper.words if word.value == "run"), None)
    title = f"add --shm-size={NEEDED} (or --ipc=host)"
    if verb is None or verb.origin is not None or not verb.is_literal or wrapper_options(wrapper, "--shm-size"):
        return Fix(title)
    return Fix(title, (insert(launch.command.source, verb.span.end, f" --shm-size={NEEDED}"),))
