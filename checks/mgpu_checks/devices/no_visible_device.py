"""No GPU is visible to a job that needs one."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.devices import (
    VISIBLE,
    elsewhere,
    environment_alone,
    gpu_count,
    listed,
    on_cpu,
    ranks_here,
    reaching,
    uses_cuda,
)
from mgpu_checks.rendezvous import allocation
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Gpu,
    Launch,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    Variable,
    report,
)

_CUDA = "import torch\n\nmodel = torch.nn.Linear(8, 8).cuda()\n"
_EITHER = (
    'import torch\n\ndevice = "cuda" if torch.cuda.is_available() else "cpu"\n'
    "model = torch.nn.Linear(8, 8).to(device)\n"
)

RULE = Rule(
    code="MGD216",
    slug="no-visible-device",
    title="No GPU is visible",
    severity=Severity.ERROR,
    summary="The list of devices is empty, -1 or NoDevFiles, or the machine shows no GPU, but the job needs one.",
    why=(
        "An empty CUDA_VISIBLE_DEVICES, `-1` and Slurm's `NoDevFiles` hide every GPU. For a run on the CPU that is the "
        "usual way; a launcher or a program that needs a GPU stops with `No CUDA GPUs are available` or falls back "
        "to the CPU and takes a hundred times as long."
    ),
    bad=(
        Example("hidden from deepspeed", "CUDA_VISIBLE_DEVICES='' deepspeed train.py"),
        Example(
            "Slurm gave none",
            "torchrun --nproc_per_node 2 train.py",
            facts={"env": {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}},
        ),
        Example(
            "hidden from a program that needs one", "CUDA_VISIBLE_DEVICES=-1 python run.py", files={"run.py": _CUDA}
        ),
        Example(
            "the card by its name",
            "python run.py",
            files={"run.py": "import torch\n\nmodel = torch.nn.Linear(8, 8).to('cuda')\n"},
            facts={"gpus": []},
        ),
        Example("hidden from whatever is started here", facts={"env": {"CUDA_VISIBLE_DEVICES": ""}}),
        Example(
            "MIG mode without an instance",
            "torchrun --nproc_per_node 2 train.py",
            facts={"gpus": [{"index": 0, "memory_gib": 80, "mig_mode": True, "mig": []}]},
        ),
        Example("the same without a command", facts={"gpus": [{"index": 0, "mig_mode": True, "mig": []}]}),
        Example(
            "a machine without GPUs", "accelerate launch --multi_gpu --num_processes 2 train.py", facts={"gpus": []}
        ),
    ),
    good=(
        Example("a run on the CPU", "CUDA_VISIBLE_DEVICES= python run.py"),
        Example("a program that can do both", "CUDA_VISIBLE_DEVICES=-1 python run.py", files={"run.py": _EITHER}),
        Example("accelerate on the CPU", "CUDA_VISIBLE_DEVICES= accelerate launch --cpu --num_processes 2 train.py"),
        Example("visible", "CUDA_VISIBLE_DEVICES=0 deepspeed train.py"),
        Example(
            "another maker's GPUs",
            "python train.py",
            files={"train.py": _CUDA},
            facts={"gpus": [], "packages": {"torch": "2.5.1+rocm6.2"}},
        ),
        Example(
            "an extension that takes the place of CUDA",
            "python train.py",
            files={"train.py": _CUDA},
            facts={"gpus": [], "packages": {"torch": "2.6.0", "torch-npu": "2.6.0"}},
        ),
        Example(
            "submitted on a machine without GPUs",
            "sbatch job.sh",
            files={"job.sh": "#!/bin/bash\n#SBATCH --gres=gpu:4\nsrun deepspeed train.py\n", "train.py": _CUDA},
            facts={"gpus": []},
        ),
        Example(
            "an allocation asked for on a machine without GPUs",
            "srun -N1 --gres=gpu:4 deepspeed train.py",
            files={"train.py": _CUDA},
            facts={"gpus": []},
        ),
        Example(
            "the card only where it is asked for",
            "python run.py",
            files={"run.py": "import torch\n\nif build().wants_gpu:\n    torch.nn.Linear(8, 8).to('cuda')\n"},
            facts={"gpus": []},
        ),
        Example("a machine alone", facts={"env": {}}),
        Example("a CPU machine alone", facts={"gpus": [], "env": {"CUDA_VISIBLE_DEVICES": "-1"}}),
        Example("a sliced GPU", facts={"gpus": [{"index": 0, "mig_mode": True, "mig": ["MIG-0"]}]}),
        Example("ranks of a program that may use gloo", "CUDA_VISIBLE_DEVICES= torchrun --nproc_per_node 2 ranks.py"),
    ),
    sources=(
        Reference(
            "driver 580.159.04 with one H200",
            "an empty list, -1 and NoDevFiles leave no device (cuInit: CUDA_ERROR_NO_DEVICE)",
            ran=True,
        ),
        Reference(
            "deepspeed 0.16.9, launcher/runner.py main()", "no device: Unable to proceed, no GPU resources available"
        ),
        Reference("NVIDIA MIG user guide, driver 580", "without an instance a GPU in MIG mode runs no CUDA work"),
        Reference(
            "accelerate 1.15.0",
            "--multi_gpu --num_processes 4 without a GPU: four processes, each believing that it is alone",
            ran=True,
        ),
    ),
    fix="name the GPUs, ask the scheduler for some, or say that the run is for the CPU",
    signatures=(
        Signature(
            r"No CUDA GPUs are available|no CUDA-capable device is detected",
            "torch 2.6.0, c10/cuda/CUDAFunctions.cpp; CUDA 12.8, cudaGetErrorString(cudaErrorNoDevice)",
            "RuntimeError: No CUDA GPUs are available",
        ),
        Signature(
            r"Unable to proceed, no GPU resources available",
            "deepspeed 0.16.9 and 0.19.8, launcher/runner.py main()",
            "RuntimeError: Unable to proceed, no GPU resources available",
        ),
        Signature(
            r"^ValueError: Cuda is not available\.$",
            "torch 1.13.1 to 2.13.0, distributed/run.py, --nproc-per-node gpu",
            "ValueError: Cuda is not available.",
        ),
    ),
)

_HIDES = frozenset({"", "-1", "nodevfiles", "none", "void"})


def find(case: Case) -> Iterator[Finding]:
    """Launches that need a GPU and see none; without a command, an environment that hides the GPUs there are."""
    yield from _alone(case)
    for launch in case.launches:
        variable = reaching(case, launch, VISIBLE)
        if variable is not None and variable.text is not None and variable.text.strip().lower() in _HIDES:
            why = _needs(case, launch) or _slurm(launch, variable)
            if why is not None:
                shown = variable.text or "''"
                yield report(
                    RULE,
                    f"{VISIBLE}={shown} hides every GPU, but {why}.",
                    variable.location,
                    subject=None if variable.location is not None else f"{VISIBLE} in the environment",
                    fix=Fix("name the GPUs that the job shall use, or ask the scheduler for them"),
                )
            continue
        empty = _only_empty(case, launch)
        if empty and (_needs(case, launch) or (ranks_here(launch) or 1) > 1):
            yield report(
                RULE,
                f"GPU {listed(empty)}, which the job would use, {'are' if len(empty) > 1 else 'is'} in MIG mode "
                "without any instance: no CUDA device is there.",
                launch.command.locate(launch.command.words[0].span),
                fix=_whole(empty[0]),
            )
            continue
        if variable is None and _is_without(case, launch):
            why = _needs(case, launch)
            if why is not None:
                yield report(
                    RULE,
                    f"The machine shows no GPU, but {why}.",
                    launch.command.locate(launch.command.words[0].span),
                    evidence=(f"GPUs known from {case.facts.origin}: none",),
                    fix=Fix("run it where GPUs are visible: nvidia-smi -L has to list them"),
                )


def _is_without(case: Case, launch: Launch) -> bool:
    """Whether the machine that a launch runs on is known to have no GPU of any maker.

    A batch job runs on a node that the scheduler chooses, not on the one where it is submitted; so does what srun
    starts.
    """
    if elsewhere(launch.command) or gpu_count(case) != 0 or allocation(case, launch) is not None:
        return False
    if launch.layer("srun") is not None or any(
        w.name.split()[0] in {"srun", "salloc"} for w in launch.command.wrappers
    ):
        return False
    packages = case.facts.packages
    if isinstance(packages, Unknown):
        return True
    build = packages.get("torch", "").partition("+")[2]
    return not build.startswith(("rocm", "xpu")) and not _OTHER_MAKERS & set(packages)


_OTHER_MAKERS = frozenset(
    {"torch-npu", "torch-mlu", "torch-musa", "habana-torch-plugin", "intel-extension-for-pytorch", "torch-neuronx",
     "torch-xla"}
)  # fmt: skip
"""Extensions of torch that bring other accelerators, which NVML does not list."""


def _alone(case: Case) -> Iterator[Finding]:
    gpus, text = case.facts.gpus, environment_alone(case, VISIBLE)
    if isinstance(gpus, Unknown) or not gpus:
        return
    if text is not None and text.strip().lower() in _HIDES:
        yield report(
            RULE,
            f"{VISIBLE}={text or chr(39) * 2} in the environment hides all {len(gpus)} GPU(s): what is started here "
            "works on the CPU, or stops.",
            subject=f"{VISIBLE} in the environment",
            severity=Severity.ADVICE,
            fix=Fix("unset it where a GPU is wanted", commands=(f"unset {VISIBLE}",)),
        )
    empty = [gpu.index for gpu in gpus if _in_pieces(gpu)]
    if empty and not case.launches:
        yield report(
            RULE,
            f"GPU {listed(empty)} {'are' if len(empty) > 1 else 'is'} in MIG mode without any instance: CUDA programs "
            f"cannot use {'them' if len(empty) > 1 else 'it'}.",
            subject=f"GPU {listed(empty)}",
            severity=Severity.ADVICE if len(empty) < len(gpus) else Severity.WARNING,
            fix=_whole(empty[0]),
        )


def _in_pieces(gpu: Gpu) -> bool:
    """Whether the GPU is in MIG mode and has no instance."""
    return gpu.mig_mode is True and gpu.mig == ()


def _whole(index: int) -> Fix:
    return Fix(
        "create instances, or switch MIG off",
        commands=(f"sudo nvidia-smi mig -i {index} -cgi 0 -C", f"sudo nvidia-smi -i {index} -mig 0"),
    )


def _only_empty(case: Case, launch: Launch) -> tuple[int, ...]:
    """The GPUs that a launch sees, when all of them are in MIG mode without any instance."""
    visible = launch.visible.value
    if isinstance(visible, Unknown) or not visible.physical or elsewhere(launch.command) or on_cpu(case, launch):
        return ()
    found = [case.facts.gpu(index) if isinstance(index, int) else None for index in visible.physical]
    if not all(gpu is not None and _in_pieces(gpu) for gpu in found):
        return ()
    return tuple(gpu.index for gpu in found if gpu is not None)


def _needs(case: Case, launch: Launch) -> str | None:
    """Why the launch cannot do without a GPU; None when it may be meant for the CPU."""
    accelerator = reaching(case, launch, "DS_ACCELERATOR")
    if launch.layer("deepspeed") is not None:
        return "deepspeed starts nothing without one" if accelerator is None else None
    accelerate = launch.layer("accelerate")
    if accelerate is not None:
        config = accelerate.config
        if accelerate.option("cpu") is not None or (config is not None and config.get("use_cpu") is True):
            return None
        if accelerate.option("multi_gpu") is not None or (
            config is not None and config.get("distributed_type") == "MULTI_GPU"
        ):
            return "accelerate is told to use several GPUs"
    if uses_cuda(launch):
        return "the program uses CUDA without asking whether it is there"
    return None


def _slurm(launch: Launch, variable: Variable) -> str | None:
    """Slurm's own word for a job without GPUs; a launcher of several ranks does not run in such a job on purpose."""
    ranks = ranks_here(launch)
    if (variable.text or "").lower() == "nodevfiles" and ranks is not None and ranks > 1:
        return f"{ranks} ranks start (Slurm sets this value in a job that asked for no GPU)"
    return None
