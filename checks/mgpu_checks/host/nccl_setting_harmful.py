"""Settings left over from an earlier trouble that slow a job down or take away its safeguards."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from mgpu_checks.devices import elsewhere, on_cpu, reaching, without_variable
from mgpu_checks.host import Job, gpu_count, jobs, processes_of, split_over
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Launch,
    Reference,
    Rule,
    Severity,
    Unknown,
    Variable,
    dataclass,
    is_before,
    report,
)

_NVLINK = {"topology": "NV12"}
_MANY = "torchrun --nnodes 2 --node_rank 0 --nproc_per_node 8 --master_addr 10.0.0.5 --master_port 29500 train.py"

RULE = Rule(
    code="MGD709",
    slug="nccl-setting-harmful",
    title="A setting left over does harm",
    severity=Severity.WARNING,
    summary="NCCL_, TORCH_ or CUDA_ settings that slow this job down on this machine, or take its safeguards away.",
    why=(
        "Switches that helped once tend to stay in a profile or a script. Without P2P, GPUs with NVLink talk through "
        "host memory at a tenth of the speed; without InfiniBand, nodes talk over plain sockets. "
        "CUDA_LAUNCH_BLOCKING=1 makes the processor wait for every kernel. With TORCH_NCCL_ASYNC_ERROR_HANDLING=0 the "
        "ranks that are left wait for ever when one dies. NCCL's own manual says that its debugging variables are "
        "not for production."
    ),
    bad=(
        Example("P2P off on a machine with NVLink", f"NCCL_P2P_DISABLE=1 {_MANY}", facts=_NVLINK),
        Example("inherited", "torchrun --nproc_per_node 8 t.py", facts={**_NVLINK, "env": {"NCCL_P2P_DISABLE": "1"}}),
        Example("the machine alone", facts={**_NVLINK, "env": {"NCCL_P2P_DISABLE": "1"}}),
        Example(
            "InfiniBand off where its ports are up",
            f"NCCL_IB_DISABLE=1 {_MANY}",
            facts={"infiniband": {"mlx5_0": "ACTIVE"}},
        ),
        Example(
            "neither P2P nor shared memory",
            "NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1 torchrun --nproc_per_node 4 train.py",
            facts=None,
        ),
        Example("left over from debugging", "python t.py", facts={"env": {"CUDA_LAUNCH_BLOCKING": "1"}}),
        Example(
            "nobody ends a job whose rank died",
            "torchrun --nproc_per_node 8 t.py",
            facts={"env": {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}},
        ),
        Example(
            "an allocator's option that torch refuses",
            "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:true torchrun --nproc_per_node 2 t.py",
            facts=None,
        ),
        Example("an allocator's option without its colon", "PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb=128 python t.py"),
        Example(
            "an allocator's option that this torch does not know",
            "python t.py",
            facts={
                "packages": {"torch": "2.0.1+cu118"},
                "env": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
            },
        ),
        Example(
            "every collective is checked",
            "torchrun --nproc_per_node 8 t.py",
            facts={"env": {"TORCH_DISTRIBUTED_DEBUG": "DETAIL"}},
        ),
    ),
    good=(
        Example("P2P off without NVLink", f"NCCL_P2P_DISABLE=1 {_MANY}", facts={"topology": "PHB"}),
        Example("P2P off, the way between the GPUs not known", f"NCCL_P2P_DISABLE=1 {_MANY}"),
        Example("0 is off", f"NCCL_P2P_DISABLE=0 {_MANY}", facts=_NVLINK),
        Example("one process", "NCCL_P2P_DISABLE=1 python t.py", facts=_NVLINK),
        Example(
            "InfiniBand off on one node",
            "NCCL_IB_DISABLE=1 torchrun --nproc_per_node 8 t.py",
            facts={"infiniband": {"mlx5_0": "ACTIVE"}},
        ),
        Example(
            "InfiniBand off where its ports are down",
            f"NCCL_IB_DISABLE=1 {_MANY}",
            facts={"infiniband": {"mlx5_0": "DOWN"}},
        ),
        Example("information", "torchrun --nproc_per_node 8 t.py", facts={"env": {"NCCL_DEBUG": "INFO"}}),
        Example("kernels as they come", "python t.py", facts={"env": {"CUDA_LAUNCH_BLOCKING": "0"}}),
        Example(
            "the default",
            "torchrun --nproc_per_node 8 t.py",
            facts={"env": {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1", "TORCH_DISTRIBUTED_DEBUG": "INFO"}},
        ),
        Example(
            "an allocator's options",
            "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True,max_split_size_mb:128 python t.py",
        ),
        Example("not known", "PYTORCH_CUDA_ALLOC_CONF=$CONF python t.py", facts=None),
        Example("on the CPU", "CUDA_LAUNCH_BLOCKING=1 CUDA_VISIBLE_DEVICES= python t.py"),
    ),
    sources=(
        Reference(
            "NCCL 2.30 user guide, env, NCCL_P2P_DISABLE, NCCL_SHM_DISABLE, NCCL_IB_DISABLE",
            "without P2P no direct access over NVLink or PCI; without SHM the network instead of host memory; without "
            "IB plain sockets",
        ),
        Reference(
            "NCCL 2.30 user guide, env, Debugging",
            "fine for experiments, but should generally not be set for production code",
        ),
        Reference(
            "CUDA programming guide 12.8, asynchronous execution, CUDA_LAUNCH_BLOCKING",
            "disables asynchronous launches; for debugging only",
        ),
        Reference(
            "torch 2.13.0 documentation, torch_nccl_environment_variables",
            "TORCH_NCCL_ASYNC_ERROR_HANDLING=0: no handling of asynchronous NCCL errors; the default tears down",
        ),
        Reference(
            "torch 2.6.0, csrc/distributed/c10d/ProcessGroupNCCL.hpp", "NCCL_ASYNC_ERROR_HANDLING is read as the same"
        ),
        Reference(
            "torch 2.13.0 documentation, distributed, TORCH_DISTRIBUTED_DEBUG",
            "DETAIL may impact the performance and should only be used when debugging",
        ),
        Reference(
            "torch 2.0.1+cu117 and 2.5.1+cu124, libc10_cuda.so; pytorch pull request 99933 and issue 123505",
            "expandable_segments came between 2.0 and 2.1; before, `Unrecognized CachingAllocator option`",
        ),
        Reference(
            "torch 2.13.0, PYTORCH_CUDA_ALLOC_CONF",
            "`expandable_segments:true`: ValueError Expected 'True' or 'False'; `max_split_size_mb=128`: Index out of "
            "bounds in ConfigTokenizer",
            ran=True,
        ),
    ),
    fix="leave the setting out, or give it only where it is needed",
)


@dataclass(frozen=True, slots=True)
class Scene:
    """What a setting is judged against: the launch (None for the machine alone) and the GPUs it would use."""

    case: Case
    launch: Launch | None
    job: Job | None
    processes: int

    def text(self, name: str) -> str | None:
        """A variable as the launch, or the shell, has it; None when unset or unknown."""
        found = self.variable(name)
        return None if found is None else found.text

    def variable(self, name: str) -> Variable | None:
        """The variable itself where a text sets it; inherited ones have no place."""
        if self.launch is not None:
            return reaching(self.case, self.launch, name)
        return None

    def has(self, name: str, *values: str) -> bool:
        """Whether a variable has one of these values."""
        if self.launch is None:
            return self.case.facts.variable(name) in values
        return self.text(name) in values


@dataclass(frozen=True, slots=True)
class Setting:
    """A variable, when it does harm, and how: ``debug`` is one that may be meant where the text itself sets it."""

    name: str
    harmful: Callable[[Scene], str | None]
    debug: bool = False


def _p2p(scene: Scene) -> str | None:
    if not scene.has("NCCL_P2P_DISABLE", "1") or scene.processes < 2 or not _nvlink(scene):
        return None
    return "these GPUs are joined by NVLink, and NCCL then goes through host memory instead, many times slower"


def _nvlink(scene: Scene) -> bool:
    """Whether all the GPUs in question are known to be joined by NVLink."""
    topology, gpus = scene.case.facts.topology, scene.case.facts.gpus
    if isinstance(topology, str):
        return topology.upper().startswith("NV")
    if isinstance(gpus, Unknown):
        return False
    physical = scene.job.physical if scene.job is not None else None
    own = [gpu.index for gpu in gpus if physical is None or gpu.index in physical]
    if not isinstance(topology, Unknown):
        pairs = [f"{one}-{other}" for at, one in enumerate(own) for other in own[at + 1 :]]
        return bool(pairs) and all(topology.get(pair, "").upper().startswith("NV") for pair in pairs)
    return scene.case.facts.nvswitch is True and len(own) > 1


def _shm(scene: Scene) -> str | None:
    if not scene.has("NCCL_SHM_DISABLE", "1") or not scene.has("NCCL_P2P_DISABLE", "1") or scene.processes < 2:
        return None
    return "NCCL_P2P_DISABLE=1 is set as well: GPUs of one machine then talk over the network"


def _ib(scene: Scene) -> str | None:
    devices = scene.case.facts.infiniband
    if not scene.has("NCCL_IB_DISABLE", "1") or scene.launch is None or isinstance(devices, Unknown):
        return None
    active = sorted(name for name, state in devices.items() if state == "ACTIVE")
    if not active or (scene.launch.nodes.known or 1) < 2:
        return None
    return f"InfiniBand is up ({', '.join(active)}), but the {scene.launch.nodes.known} nodes then talk over sockets"


def _blocking(scene: Scene) -> str | None:
    if not scene.has("CUDA_LAUNCH_BLOCKING", "1"):
        return None
    return "the processor waits for every kernel and nothing overlaps; it is meant for debugging"


def _uncached(scene: Scene) -> str | None:
    if not scene.has("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"):
        return None
    return "torch then asks the driver for every tensor's memory, which waits for the GPU; it is meant for debugging"


def _unhandled(name: str) -> Callable[[Scene], str | None]:
    def harmful(scene: Scene) -> str | None:
        if not scene.has(name, "0") or scene.processes < 2:
            return None
        return "when a rank dies, the others then wait for ever instead of ending with an error"

    return harmful


def _detail(scene: Scene) -> str | None:
    if not scene.has("TORCH_DISTRIBUTED_DEBUG", "DETAIL") or scene.processes < 2:
        return None
    return "every collective is checked across all ranks first, which costs time; it is meant for debugging"


def _allocator(name: str) -> Callable[[Scene], str | None]:
    def harmful(scene: Scene) -> str | None:
        text = scene.text(name) if scene.launch is not None else scene.case.facts.variable(name)
        if not isinstance(text, str):
            return None
        wrong = re.search(r"\b(\w+)=", text)
        if wrong is not None:
            return f"option and value are joined by a colon ({wrong.group(1)}:…); torch stops at the first use of a GPU"
        wrong = re.search(r"\bexpandable_segments\s*:\s*(\w+)", text)
        torch = scene.case.facts.package_version("torch")
        if wrong is not None and isinstance(torch, str) and is_before(torch, 2, 1):
            return f"torch {torch} does not know expandable_segments (2.1 does) and stops at the first use of a GPU"
        if wrong is not None and wrong.group(1) not in {"True", "False"}:
            return f"torch takes True or False there, not `{wrong.group(1)}`, and stops with a ValueError"
        return None

    return harmful


SETTINGS = (
    Setting("NCCL_P2P_DISABLE", _p2p),
    Setting("NCCL_SHM_DISABLE", _shm),
    Setting("NCCL_IB_DISABLE", _ib),
    Setting("CUDA_LAUNCH_BLOCKING", _blocking, debug=True),
    Setting("PYTORCH_NO_CUDA_MEMORY_CACHING", _uncached, debug=True),
    Setting("TORCH_NCCL_ASYNC_ERROR_HANDLING", _unhandled("TORCH_NCCL_ASYNC_ERROR_HANDLING"), debug=True),
    Setting("NCCL_ASYNC_ERROR_HANDLING", _unhandled("NCCL_ASYNC_ERROR_HANDLING"), debug=True),
    Setting("TORCH_DISTRIBUTED_DEBUG", _detail, debug=True),
    Setting("PYTORCH_CUDA_ALLOC_CONF", _allocator("PYTORCH_CUDA_ALLOC_CONF")),
    Setting("PYTORCH_ALLOC_CONF", _allocator("PYTORCH_ALLOC_CONF")),
)


def find(case: Case) -> Iterator[Finding]:
    """Each setting once, where it is set; without a command, those of the environment."""
    seen = set()
    for scene in _scenes(case):
        for setting in SETTINGS:
            why = setting.harmful(scene)
            variable = scene.variable(setting.name)
            place = variable.location if variable is not None else None
            if why is not None and (setting.name, place) not in seen:
                seen.add((setting.name, place))
                yield _finding(scene, setting, why, variable)


def _scenes(case: Case) -> Iterator[Scene]:
    if not case.launches:
        if gpu_count(case):
            yield Scene(case, None, None, gpu_count(case))
        return
    own = {id(job.launch): job for job in jobs(case)}
    for launch in case.launches:
        if not elsewhere(launch.command) and not on_cpu(case, launch):
            processes = max(processes_of(launch), split_over(launch))
            yield Scene(case, launch, own.get(id(launch)), processes)


def _finding(scene: Scene, setting: Setting, why: str, variable: Variable | None) -> Finding:
    place = variable.location if variable is not None else None
    text = variable.text if variable is not None else scene.case.facts.variable(setting.name)
    edit = None if variable is None else without_variable(variable)
    fix = Fix(f"leave {setting.name} out", () if edit is None else (edit,))
    if place is None:
        fix = Fix("unset it, and take it out of the profile that sets it", commands=(f"unset {setting.name}",))
    return report(
        RULE,
        f"{setting.name}={text}: {why}.",
        place,
        subject=None if place is not None else f"{setting.name} in the environment",
        severity=Severity.ADVICE if setting.debug and place is not None else None,
        fix=fix,
    )
