"""Several ranks on MIG instances, although one process sees one instance only."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.devices import VISIBLE, elements, elsewhere, on_cpu, ranks_here, reaching
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Launch,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    Variable,
    report,
)

_PAIR = "MIG-00000000-1111-2222-3333-444444444444,MIG-00000001-1111-2222-3333-444444444444"
_SLICED = [
    {
        "index": 0,
        "name": "NVIDIA A100-SXM4-80GB",
        "memory_gib": 80,
        "uuid": "GPU-00000000-1111-2222-3333-444444444444",
        "mig": ["MIG-00000000-1111-2222-3333-444444444444", "MIG-00000001-1111-2222-3333-444444444444"],
    }
]

RULE = Rule(
    code="MGD210",
    slug="mig-multi-process",
    title="Several ranks on MIG instances",
    severity=Severity.ERROR,
    summary="A CUDA process sees a single MIG instance, so that ranks with one shared list all use the first.",
    why=(
        "CUDA enumerates one MIG instance per process, whatever the list names. Every rank of a launcher gets the same "
        "list, so that rank 1 looks for `cuda:1`, which does not exist, or all ranks share the first instance. "
        "Instances also have no peer-to-peer and NCCL refuses two ranks on one GPU."
    ),
    bad=(
        Example("two instances, two ranks", f"CUDA_VISIBLE_DEVICES={_PAIR} torchrun --nproc_per_node 2 train.py"),
        Example("a sliced GPU", "torchrun --nproc_per_node 2 train.py", facts={"gpus": _SLICED}),
        Example(
            "inherited list",
            "accelerate launch --multi_gpu --num_processes 2 train.py",
            facts={"env": {"CUDA_VISIBLE_DEVICES": _PAIR}},
        ),
    ),
    good=(
        Example("one instance, one process", f"CUDA_VISIBLE_DEVICES={_PAIR.partition(',')[0]} python run.py"),
        Example("one rank", "torchrun --nproc_per_node 1 train.py", facts={"gpus": _SLICED}),
        Example("whole GPUs", "torchrun --nproc_per_node 2 train.py"),
    ),
    sources=(
        Reference(
            "CUDA programming guide 13.0, CUDA environment variables, CUDA_VISIBLE_DEVICES",
            "only single MIG instance enumeration is supported",
        ),
        Reference(
            "NVIDIA MIG user guide, driver 580, CUDA device enumeration", "a process enumerates one compute instance"
        ),
    ),
    fix="start one process per instance, each with its own CUDA_VISIBLE_DEVICES, or turn MIG off for the job",
    signatures=(
        Signature(
            r"device >= 0 && device < num_gpus INTERNAL ASSERT FAILED",
            "pytorch/pytorch issue 130181 (torch 2.3.1), aten/src/ATen/cuda/CUDAContext.cpp",
            "RuntimeError: device >= 0 && device < num_gpus INTERNAL ASSERT FAILED at "
            '"../aten/src/ATen/cuda/CUDAContext.cpp":49, please report a bug to PyTorch. device=1, num_gpus=1',
            weak=True,
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """Multi-process launches whose devices are MIG instances."""
    for launch in case.launches:
        ranks = ranks_here(launch)
        if ranks is None or ranks < 2 or on_cpu(case, launch) or elsewhere(launch.command):
            continue
        variable = reaching(case, launch, VISIBLE)
        if variable is not None and variable.text is None:
            continue
        named = [element for element in elements(variable.text or "") if element.kind == "mig"] if variable else []
        if named:
            yield _listed(launch, variable, ranks, len(named))
            continue
        sliced = _sliced(case, launch)
        if sliced:
            yield _on_sliced(launch, ranks, sliced)


def _listed(launch: Launch, variable: Variable | None, ranks: int, count: int) -> Finding:
    location = variable.location if variable is not None else None
    return report(
        RULE,
        f"{ranks} processes get one list of {count} MIG instance(s), and each of them sees the first alone: only one "
        "instance works, and cuda:1 does not exist.",
        location or launch.command.locate(launch.command.words[0].span),
        fix=Fix("start one process per instance, each with its own CUDA_VISIBLE_DEVICES"),
    )


def _sliced(case: Case, launch: Launch) -> tuple[int, ...]:
    """The chosen GPUs that are cut into MIG instances."""
    gpus, visible = case.facts.gpus, launch.visible.value
    if isinstance(gpus, Unknown) or isinstance(visible, Unknown):
        return ()
    chosen = {index for index in visible.physical if isinstance(index, int)}
    return tuple(gpu.index for gpu in gpus if gpu.index in chosen and not isinstance(gpu.mig, Unknown) and gpu.mig)


def _on_sliced(launch: Launch, ranks: int, sliced: tuple[int, ...]) -> Finding:
    return report(
        RULE,
        f"{ranks} processes start, but GPU {', '.join(map(str, sliced))} "
        f"{'are' if len(sliced) > 1 else 'is'} cut into MIG instances, of which a process sees one.",
        launch.processes_per_node.origin.location or launch.command.locate(launch.command.words[0].span),
        fix=Fix(
            "start one process per instance, or turn MIG off for the job",
            commands=tuple(f"nvidia-smi -i {index} -mig 0" for index in sliced),
        ),
    )
