"""The host around the GPUs: the rules of this family, and what they share.

A fault of the machine is reported without a command as well. With commands it is reported only where one of them
would meet it: :func:`jobs` says who they are and how many processes and GPUs each puts to work on this machine.
"""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.devices import elsewhere, on_cpu, program_of, reaching, uses_cuda
from mgpu_doctor.authoring import (
    TORCHRUN_NAMES,
    Case,
    Gpu,
    Launch,
    Location,
    Unknown,
    Wrapper,
    dataclass,
    release_numbers,
)

ENGINES = frozenset({"docker", "podman", "nvidia-docker", "nerdctl"})
"""Container engines whose containers have a /dev/shm and a network of their own unless told otherwise."""

_SPLITS_OVER = ("tensor_parallel_size", "tp", "tp_size")
_STAGES = ("pipeline_parallel_size", "pp", "pp_size")
_SERVERS = frozenset({"vllm", "sglang"})
_TRAINERS = frozenset({"llamafactory", "transformers", "swift", "trl"})


@dataclass(frozen=True, slots=True)
class Job:
    """A launch that works on the machine the facts describe.

    ``processes`` is how many processes of it work on one node, ``gpus`` how many GPUs of the node it uses together;
    both at least 1. ``physical`` are nvidia-smi's indices of the GPUs that it uses or may use, None when unknown.
    """

    launch: Launch
    processes: int
    gpus: int
    physical: frozenset[int] | None

    @property
    def place(self) -> Location:
        """The words that name the launcher, or the program where there is none."""
        return place_of(self.launch)


def jobs(case: Case) -> Iterator[Job]:
    """The launches that use GPUs of this machine; those in a container, elsewhere or on the CPU are left out."""
    if case.facts.gpus == ():
        return
    for launch in case.launches:
        if elsewhere(launch.command) or on_cpu(case, launch):
            continue
        processes = processes_of(launch)
        split = split_over(launch)
        yield Job(launch, max(processes, split), max(min(processes, 512), split), _physical(launch, processes, split))


def processes_of(launch: Launch) -> int:
    """How many processes of the job work on one node; 1 where no launcher of ranks is seen or it does not tell."""
    ranked = launch.distributed_layers or launch.layer("mpirun", "srun") is not None
    return (launch.processes_per_node.known or 1) if ranked else 1


def split_over(launch: Launch) -> int:
    """How many GPUs an inference server spreads one model over, a process on each; 1 for all other programs."""
    if launch.target.framework not in _SERVERS and (launch.target.value or "").split(".")[0] not in _SERVERS:
        return 1
    return _number(launch, _SPLITS_OVER) * _number(launch, _STAGES)


def _number(launch: Launch, names: tuple[str, ...]) -> int:
    argument = launch.target.argument(*names)
    text = argument.value if argument is not None else None
    return int(text) if text is not None and text.isascii() and text.isdigit() and 0 < int(text) < 1025 else 1


def _physical(launch: Launch, processes: int, split: int) -> frozenset[int] | None:
    """Of a launcher's ranks, those that they select; of any other launch, all that it can see."""
    if processes > 1 and split == 1 and launch.distributed_layers and not isinstance(launch.ranks, Unknown):
        own = {rank.physical_index for rank in launch.ranks if rank.node == 0}
        found = frozenset(index for index in own if isinstance(index, int))
        return found if len(found) == len(own) else None
    visible = launch.visible.value
    if isinstance(visible, Unknown) or any(isinstance(index, Unknown) for index in visible.physical):
        return None
    return frozenset(index for index in visible.physical if isinstance(index, int))


def place_of(launch: Launch) -> Location:
    """The words that name the innermost launcher that somebody typed; the program where there is none."""
    for layer in reversed(launch.layers):
        if not layer.implied and layer.command_words:
            return launch.command.locate(layer.span)
    return launch.command.locate(launch.command.words[0].span if launch.command.words else launch.command.span)


def concerned_gpus(case: Case) -> tuple[Gpu, ...]:
    """The GPUs to judge: all without a command, else those that a job uses or may use."""
    gpus = case.require(case.facts.gpus)
    if not case.launches:
        return gpus
    if any(_in_local_container(launch) for launch in case.launches):
        return gpus
    wanted: set[int] = set()
    for job in jobs(case):
        if job.physical is None:
            return gpus
        wanted |= job.physical
    return tuple(gpu for gpu in gpus if gpu.index in wanted)


def _in_local_container(launch: Launch) -> bool:
    """Whether a container on this machine gets GPUs of it, by numbers of its own."""
    local = ENGINES | {"apptainer", "singularity"}
    return any(wrapper.name.split()[0] in local for wrapper in launch.command.wrappers)


def gpu_count(case: Case) -> int:
    """How many GPUs the machine has; 0 when that is not known."""
    return 0 if isinstance(case.facts.gpus, Unknown) else len(case.facts.gpus)


def in_container(case: Case) -> bool:
    """Whether the facts were taken inside a container."""
    return isinstance(case.facts.container, str)


def on_windows(case: Case) -> bool:
    """Whether the machine runs Windows itself (WSL is Linux)."""
    platform = case.facts.platform
    return isinstance(platform, str) and platform.lower().startswith("windows")


def under_wsl(case: Case) -> bool:
    """Whether it is Linux inside Windows, where NVML knows no processes."""
    platform = case.facts.platform
    return isinstance(platform, str) and ("microsoft" in platform.lower() or "wsl" in platform.lower())


def engine_wrapper(launch: Launch) -> Wrapper | None:
    """The ``docker run`` (or its like) that makes a new container for the command; None where there is none."""
    for wrapper in launch.command.wrappers:
        words = wrapper.name.split()
        if words[0] in ENGINES and words[-1] == "run":
            return wrapper
    return None


def wrapper_options(wrapper: Wrapper, *flags: str) -> tuple[str | None, ...]:
    """The values of a container engine's options, in order; None for a value that is not known."""
    found: list[str | None] = []
    words = wrapper.words
    for at, word in enumerate(words):
        text = word.value if word.value is not None else word.known_prefix
        for flag in flags:
            if text == flag and word.value is not None:
                found.append(words[at + 1].value if at + 1 < len(words) else None)
            elif text.startswith(flag + "="):
                found.append(None if word.value is None else text[len(flag) + 1 :])
    return tuple(found)


def variable(case: Case, launch: Launch | None, name: str) -> str | None:
    """What a variable is for the launch, or in the environment when there is none; None when unset or unknown."""
    if launch is not None:
        found = reaching(case, launch, name)
        return None if found is None else found.text
    value = case.facts.variable(name)
    return value if isinstance(value, str) else None


def numbers(version: str | Unknown | None) -> tuple[int, ...]:
    """A version's leading numbers: ``550.40.07`` → (550, 40, 7); empty when it is not known."""
    return release_numbers(version) if isinstance(version, str) else ()


def through_torchrun(launch: Launch) -> bool:
    """Whether torch's own launcher starts the ranks, by whatever name."""
    return any(layer.launcher in TORCHRUN_NAMES for layer in launch.distributed_layers)


def trains_with_library(launch: Launch) -> bool:
    """Whether the program surely runs accelerate's PartialState: a Trainer, or accelerate itself."""
    if launch.target.framework in _TRAINERS and launch.purpose.known == "train":
        return True
    if launch.target.framework == "llamafactory" and launch.target.subcommand == "train":
        return True
    program = program_of(launch)
    if program is None:
        return False
    return program.first("accelerator", "trainer") is not None or program.imports_any("accelerate", "trl")


def needs_gpu(launch: Launch) -> bool:
    """Whether the launch surely works on a GPU."""
    return uses_cuda(launch) is True or split_over(launch) > 1 or launch.layer("deepspeed") is not None
