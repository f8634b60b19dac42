"""GPU memory that no living process accounts for."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.host import concerned_gpus, in_container, on_windows, under_wsl
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Gpu,
    GpuProcess,
    Reference,
    Rule,
    Severity,
    Skip,
    Unknown,
    report,
)

LEAST_GIB = 2.0
"""Less than this may be a display, a driver's reserve or a process that is just ending."""
LEAST_SHARE = 0.2
DESKTOP_SHARE = 0.5
"""Of a card that may drive a display: NVML's list of compute processes leaves out those that only draw."""
BUSY_PERCENT = 5
_DRAWS = ("GeForce", "RTX", "TITAN", "Quadro")
_COHERENT = ("GH200", "GB200", "GB300", "GB10")
"""GPUs whose memory the kernel hands out as its own: what is used there need not belong to a GPU process."""

_TITAN = {"name": "NVIDIA TITAN Xp", "memory_gib": 12, "compute_capability": "6.1"}
_HELD = [{**_TITAN, "index": 0, "memory_used_gib": 10.7}, {**_TITAN, "index": 1, "memory_used_gib": 0.0}]

RULE = Rule(
    code="MGD707",
    slug="orphaned-gpu-memory",
    title="GPU memory is held by nobody that lives",
    severity=Severity.WARNING,
    summary="Memory of a GPU is in use, but no living process is listed for it.",
    why=(
        "A job that was killed in the middle can leave processes behind that hold its memory: data-loader workers, "
        "ranks of a dead launcher, a process stuck in the driver. nvidia-smi may not list them, and the next job "
        "finds the GPU full. They keep the device file open, by which they can be found."
    ),
    bad=(
        Example("no process is listed", facts={"gpus": _HELD, "gpu_processes": []}),
        Example(
            "a process that is gone",
            facts={
                "gpus": _HELD,
                "gpu_processes": [{"gpu": 0, "pid": 4127, "command": "python", "memory_gib": 10.6, "alive": False}],
            },
        ),
        Example(
            "the job would use it", "CUDA_VISIBLE_DEVICES=0 python t.py", facts={"gpus": _HELD, "gpu_processes": []}
        ),
        Example(
            "more than the listed ones hold",
            facts={"gpus": _HELD, "gpu_processes": [{"gpu": 0, "pid": 77, "command": "python", "memory_gib": 0.4}]},
        ),
    ),
    good=(
        Example(
            "nothing is used", facts={"gpus": [{**_TITAN, "index": 0, "memory_used_gib": 0.0}], "gpu_processes": []}
        ),
        Example(
            "a process accounts for it",
            facts={"gpus": _HELD, "gpu_processes": [{"gpu": 0, "pid": 77, "command": "python", "memory_gib": 10.3}]},
        ),
        Example(
            "a process of which NVML does not tell how much",
            facts={"gpus": _HELD, "gpu_processes": [{"gpu": 0, "pid": 77, "command": "python"}]},
        ),
        Example("another GPU", "CUDA_VISIBLE_DEVICES=1 python t.py", facts={"gpus": _HELD, "gpu_processes": []}),
        Example(
            "a container sees no processes of others",
            facts={"gpus": _HELD, "gpu_processes": [], "container": {"runtime": "docker"}},
        ),
        Example("Windows", facts={"gpus": _HELD, "gpu_processes": [], "platform": "Windows-10-10.0.22631"}),
        Example(
            "a desktop",
            facts={
                "gpus": [{"index": 0, "name": "NVIDIA GeForce RTX 4070", "memory_gib": 12, "memory_used_gib": 3.1}],
                "gpu_processes": [],
            },
        ),
        Example(
            "somebody draws",
            facts={"gpus": [{**_HELD[0], "utilization_percent": 71}], "gpu_processes": []},
        ),
        Example(
            "a sliced GPU",
            facts={
                "gpus": [{"index": 0, "memory_gib": 80, "memory_used_gib": 40, "mig_mode": True}],
                "gpu_processes": [],
            },
        ),
        Example("not known", facts={"gpus": _HELD, "gpu_processes": None}),
    ),
    sources=(
        Reference(
            "NVML 12.570, nvmlDeviceGetMemoryInfo_v2 and nvmlDeviceGetComputeRunningProcesses",
            "used memory without the driver's reserve; the processes with a compute context and what they hold",
        ),
        Reference("pytorch/pytorch issue 5736", "10.7 of 12 GiB in use, no process listed: workers of a killed job"),
        Reference(
            "NVIDIA container toolkit 1.17",
            "inside a container NVML does not list the processes of other PID namespaces",
        ),
    ),
    fix="find who keeps the device open (fuser -v /dev/nvidia*), end it, or reset the GPU",
)


def find(case: Case) -> Iterator[Finding]:
    """GPUs with much more memory in use than living processes hold."""
    if isinstance(case.facts.gpus, Unknown):
        case.require(case.facts.gpus)
    held = [gpu for gpu in concerned_gpus(case) if _much(gpu)]
    gone = _gone(case)
    if not held and not gone:
        return
    if in_container(case) or on_windows(case) or under_wsl(case):
        raise Skip("NVML does not list the processes of others there")
    listed = case.require(case.facts.gpu_processes)
    wanted = {gpu.index for gpu in concerned_gpus(case)}
    for process in gone:
        if process.gpu in wanted:
            yield _dead(process)
    for gpu in held:
        here = [process for process in listed if process.gpu == gpu.index]
        if any(isinstance(process.memory_gib, Unknown) or process in gone for process in here):
            continue
        yield from _unaccounted(gpu, here)


def _much(gpu: Gpu) -> bool:
    used, total = gpu.memory_used_gib, gpu.memory_gib
    if isinstance(used, Unknown) or used < LEAST_GIB or gpu.mig_mode is True or bool(gpu.mig):
        return False
    if isinstance(gpu.name, str) and any(name in gpu.name for name in _COHERENT):
        return False
    if isinstance(gpu.utilization_percent, int) and gpu.utilization_percent > BUSY_PERCENT:
        return False
    return isinstance(total, Unknown) or used >= _share(gpu) * total


def _share(gpu: Gpu) -> float:
    """How much of a GPU's memory has to be in use by nobody before it is no display."""
    draws = not isinstance(gpu.name, str) or any(name in gpu.name for name in _DRAWS)
    return DESKTOP_SHARE if draws else LEAST_SHARE


def _gone(case: Case) -> list[GpuProcess]:
    """Listed processes that are known not to exist any more."""
    listed = case.facts.gpu_processes
    return [] if isinstance(listed, Unknown) else [process for process in listed if process.alive is False]


def _unaccounted(gpu: Gpu, here: list[GpuProcess]) -> Iterator[Finding]:
    used, total = gpu.memory_used_gib, gpu.memory_gib
    known = sum(process.memory_gib for process in here if isinstance(process.memory_gib, (int, float)))
    if isinstance(used, Unknown):
        return
    missing = used - known
    share = _share(gpu) * (0.0 if isinstance(total, Unknown) else total)
    if missing < LEAST_GIB or missing < share or missing < 0.3 * used:
        return
    of = "" if isinstance(total, Unknown) else f" of {total:g}"
    who = "no process is listed for it" if not here else f"the processes listed hold {known:.1f} GiB"
    yield report(
        RULE,
        f"GPU {gpu.index} has {used:.1f}{of} GiB in use, but {who}: a job that died may have left processes behind, "
        "and the next one finds the memory taken.",
        subject=f"GPU {gpu.index}",
        evidence=(f"memory in use: {used:g} GiB", f"processes listed: {len(here)}"),
        fix=_fix(gpu.index),
    )


def _dead(process: GpuProcess) -> Finding:
    pid = f" {process.pid}" if isinstance(process.pid, int) else ""
    what = f" ({process.command})" if isinstance(process.command, str) else ""
    memory = f"{process.memory_gib:.1f} GiB" if isinstance(process.memory_gib, (int, float)) else "memory"
    return report(
        RULE,
        f"Process{pid}{what} holds {memory} of GPU {process.gpu}, but it does not live any more: its memory comes back "
        "only when its last child or the driver lets go.",
        subject=f"GPU {process.gpu}",
        fix=_fix(process.gpu),
    )


def _fix(index: int) -> Fix:
    return Fix(
        "see who keeps the device open, end that process, and reset the GPU if nobody does",
        commands=(f"sudo fuser -v /dev/nvidia{index}", f"sudo nvidia-smi --gpu-reset -i {index}"),
    )
