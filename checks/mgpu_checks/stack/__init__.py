"""What is installed, against the machine and the command: the rules of this family, and what they share.

These rules judge the machine alone when no command is given. With a command they judge only launches that use
torch on this machine's GPUs with the packages that the facts describe: a container, another host, another
environment (``uv run`` and the like) or a job on the CPU has its own packages and devices.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mgpu_doctor.authoring import Case, Gpu, Launch, Layer, Unknown, pattern

_ELSEWHERE = frozenset(
    {"docker", "podman", "nerdctl", "nvidia-docker", "docker-compose", "kubectl", "oc", "apptainer", "singularity",
     "enroot", "ssh", "ray"}
)  # fmt: skip
"""Wrappers behind which another machine's or container's packages are used."""

_OTHER_ENVIRONMENT = pattern(r"(?:uv|uv tool|conda|mamba|micromamba|poetry|pipenv|pdm|hatch|pixi|rye|pipx) run")
_THIS_MACHINE = "this machine"

TORCH_FRAMEWORKS = frozenset(
    {"llamafactory", "transformers", "accelerate", "deepspeed", "trl", "swift", "axolotl", "fastchat", "vllm",
     "sglang", "verl", "openrlhf", "colossalai", "megatron", "torchtune", "lightning", "lmdeploy", "lm_eval"}
)  # fmt: skip
"""Frameworks that compute with torch, by the names that a target has."""

_USES_GPU = (
    "accelerator", "trainer", "lightning-trainer", "deepspeed-initialize", "deepspeed-inference", "fsdp", "run-exp",
    "set-device", "cuda-device", "cuda-device-default", "cuda-call", "device-map", "process-index-as-device",
    "data-parallel", "colossalai-launch",
)  # fmt: skip
"""What a program's text shows when it computes on GPUs."""

_TRUE = frozenset({"true", "1", "yes", "y", "t", "on"})


def users(case: Case) -> tuple[Launch | None, ...]:
    """The launches that use torch on this machine's GPUs; ``(None,)`` when there is no command, only the machine."""
    if case.launches:
        return tuple(launch for launch in case.launches if uses_gpus(case, launch))
    return (None,) if is_machine_alone(case) else ()


def is_machine_alone(case: Case) -> bool:
    """Whether there is no command to judge by, only the machine."""
    return not case.launches and case.mode != "lint" and next(case.commands, None) is None


def uses_gpus(case: Case, launch: Launch) -> bool:
    """Whether a launch surely computes with torch on GPUs of the machine that the facts describe."""
    if not is_here(case, launch) or on_cpu(launch):
        return False
    target = launch.target
    program = target.program
    if not isinstance(program, Unknown):
        text = program.source.text
        return program.first(*_USES_GPU) is not None or "cuda" in text or "nccl" in text
    if launch.distributed_layers:
        return True
    return target.framework in TORCH_FRAMEWORKS and launch.purpose.known not in (None, "other")


def is_here(case: Case, launch: Launch) -> bool:
    """Whether a launch runs on this machine with the packages that the facts describe."""
    live = case.facts.origin == _THIS_MACHINE
    for wrapper in launch.command.wrappers:
        if wrapper.name.split()[0] in _ELSEWHERE or (live and _OTHER_ENVIRONMENT.fullmatch(wrapper.name)):
            return False
    known = case.facts.python.executable
    for layer in launch.layers:
        typed = layer.command_words[0].value if layer.command_words else None
        if live and typed and typed.startswith("/") and not isinstance(known, Unknown):
            return typed.rpartition("/")[0] == known.rpartition("/")[0]
    return True


def on_cpu(launch: Launch) -> bool:
    """Whether a launch is told to leave the GPUs alone."""
    visible = launch.visible.known
    if visible is not None and not visible.all and not visible.entries:
        return True
    layer = launch.layer("accelerate")
    if layer is not None and _accelerate_on_cpu(layer):
        return True
    for name in ("use_cpu", "no_cuda", "cpu"):
        argument = launch.target.argument(name)
        if argument is not None and (not argument.values or str(argument.value).lower() in _TRUE):
            return True
        if any(config.get(name) is True for config in launch.target.configs):
            return True
    device = launch.target.argument("device")
    accelerator = launch.command.variable("DS_ACCELERATOR")
    return (device is not None and device.value == "cpu") or (accelerator is not None and accelerator.text == "cpu")


def _accelerate_on_cpu(layer: Layer) -> bool:
    if layer.option("cpu") is not None or layer.option("use_cpu") is not None:
        return True
    return layer.config is not None and layer.config.get("use_cpu") is True


def nvidia_gpus(case: Case) -> tuple[Gpu, ...] | Unknown:
    """The machine's GPUs, those of other makers left out."""
    gpus = case.facts.gpus
    if isinstance(gpus, Unknown):
        return gpus
    return tuple(gpu for gpu in gpus if isinstance(gpu.name, Unknown) or not _OTHER_MAKERS.search(gpu.name))


_OTHER_MAKERS = pattern(r"(?i)\b(?:amd|instinct|radeon|intel|ascend|gaudi)\b")


def candidates(case: Case, launch: Launch | None) -> tuple[tuple[Gpu, ...], bool]:
    """The GPUs that a launch may use, and whether it surely uses all of them."""
    gpus = case.require(nvidia_gpus(case))
    if launch is None:
        return gpus, False
    if not isinstance(launch.ranks, Unknown) and len(launch.ranks) > 1:
        placed = [rank.physical_index for rank in launch.ranks]
        if not any(isinstance(index, Unknown) for index in placed):
            return tuple(gpu for gpu in gpus if gpu.index in placed), True
    visible = launch.visible.known
    if visible is not None and not visible.all:
        chosen = [index for index in visible.physical if not isinstance(index, Unknown)]
        if len(chosen) == len(visible.physical):
            return tuple(gpu for gpu in gpus if gpu.index in chosen), False
    return gpus, False


def failing(case: Case, launch: Launch | None, fails: Callable[[tuple[int, int]], bool]) -> tuple[Gpu, ...]:
    """The GPUs whose compute capability fails, when the job surely meets one: empty when it may use others alone."""
    gpus, all_used = candidates(case, launch)
    known = [gpu for gpu in gpus if not isinstance(gpu.compute_capability, Unknown)]
    if gpus and not known:
        case.require(gpus[0].compute_capability)
    found = tuple(gpu for gpu in known if _fails(gpu, fails))
    return found if all_used or len(found) == len(gpus) else ()


def _fails(gpu: Gpu, fails: Callable[[tuple[int, int]], bool]) -> bool:
    capability = gpu.compute_capability
    return not isinstance(capability, Unknown) and fails(capability)


def shown_gpus(gpus: tuple[Gpu, ...]) -> str:
    """GPUs for people: ``8 x Tesla V100-SXM2-32GB (compute capability 7.0)``."""
    kinds: dict[str, int] = {}
    for gpu in gpus:
        name = "GPU" if isinstance(gpu.name, Unknown) else gpu.name
        if not isinstance(gpu.compute_capability, Unknown):
            name += f" (compute capability {gpu.compute_capability[0]}.{gpu.compute_capability[1]})"
        kinds[name] = kinds.get(name, 0) + 1
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in kinds.items())


def version(case: Case, name: str) -> str | None:
    """The installed version of a distribution; None when it is absent. Skips when the packages are not known."""
    return case.require(case.facts.packages).get(name)


def torch_cuda(case: Case) -> str | Unknown | None:
    """The CUDA version that the installed torch was built for (``12.4``); None for a build without CUDA.

    From the build itself where it was read, else from the local part of its version (``+cu124``, ``+cpu``; torch
    2.4.1's wheels of download.pytorch.org), else from conda's build string (``py3.8_cpu_0``,
    ``py3.10_cuda12.1_cudnn8.9.2_0``, conda-forge's ``cuda118_py310h…`` and ``cpu_mkl_py310h…``), else from the CUDA
    runtime that PyPI's wheel brings along. A build for other accelerators is Unknown.
    """
    facts = case.facts
    installed = facts.package_version("torch")
    local = "" if isinstance(installed, Unknown) else installed.partition("+")[2]
    if local.startswith(("rocm", "xpu")):
        return Unknown("torch is built for another maker's GPUs")
    if not isinstance(facts.torch_cuda, Unknown):
        return facts.torch_cuda
    if local == "cpu":
        return None
    tag = re.fullmatch(r"cu(\d+)(\d)(?:\.\w+)*", local)
    if tag:
        return f"{tag.group(1)}.{tag.group(2)}"
    build = _conda_build(case)
    if build is not None:
        return _cuda_of_build(build)
    return facts.torch_cuda if local else runtime_package(case) or facts.torch_cuda


def runtime_package(case: Case) -> str | None:
    """The CUDA version of the runtime that pip installed for PyPI's torch; None when that does not tell.

    PyPI's wheels for Linux on x86-64 have no local version; they pin NVIDIA's packages of one CUDA release:
    ``nvidia-cuda-runtime-cu12==12.4.127`` (metadata of torch 2.6.0 and 2.9.1).
    """
    packages = case.facts.packages
    if isinstance(packages, Unknown) or _conda_build(case) is not None or not is_linux(case) or is_arm(case):
        return None
    found = {
        name: packages[name] for name in ("nvidia-cuda-runtime-cu11", "nvidia-cuda-runtime-cu12") if name in packages
    }
    if len(found) != 1:
        return None
    return ".".join(next(iter(found.values())).split(".")[:2])


def is_arm(case: Case) -> bool:
    """Whether the machine is an ARM one, as far as its platform tells."""
    machine = case.facts.platform
    return isinstance(machine, str) and ("aarch64" in machine.lower() or "arm64" in machine.lower())


def is_linux(case: Case) -> bool:
    """Whether the machine runs Linux, or nothing tells what it runs."""
    machine = case.facts.platform
    return isinstance(machine, Unknown) or machine.lower().startswith("linux")


def _conda_build(case: Case) -> str | None:
    conda = case.facts.conda
    if isinstance(conda, Unknown):
        return None
    found = conda.get("pytorch") or conda.get("libtorch")
    return found.partition("=")[2] if found else None


def _cuda_of_build(build: str) -> str | Unknown | None:
    if re.search(r"(?:^|_)cpu(?:_|$)", build):
        return None
    dotted = re.search(r"cuda(\d+)\.(\d+)", build)
    plain = re.search(r"cuda(\d\d)(\d)(?!\d)", build)
    found = dotted or plain
    return f"{found.group(1)}.{found.group(2)}" if found else Unknown(f"conda's build {build} does not tell")


def numbers(text: str | None) -> tuple[int, ...]:
    """The leading numbers of a version, driver or CUDA: ``525.60.13`` gives (525, 60, 13); empty for none."""
    found = re.match(r"\d+(?:\.\d+)*", text.strip() if text else "")
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def variable(case: Case, launch: Launch | None, name: str) -> str | None:
    """The value of a variable that reaches the launch, or is set on the machine; None when unset or unknown."""
    if launch is not None:
        found = launch.command.variable(name)
        if found is not None:
            return found.text
    inherited = case.facts.variable(name)
    return inherited if isinstance(inherited, str) else None


def known_driver(case: Case) -> str | None:
    """The driver's version, None when unknown."""
    return case.facts.driver if isinstance(case.facts.driver, str) else None
