"""The installed torch was built without CUDA, on a machine with NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.stack import nvidia_gpus, shown_gpus, torch_cuda, users, version
from mgpu_checks.stack.torch_builds import install_command
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

_CPU = {"packages": {"torch": "2.3.1+cpu", "transformers": "4.45.2"}, "torch_cuda": None}
_ON_GPU = {"train.py": 'import torch\n\nmodel = torch.nn.Linear(8, 8).to("cuda")\n'}

RULE = Rule(
    code="MGD501",
    slug="torch-without-cuda",
    title="This torch has no CUDA",
    severity=Severity.ERROR,
    summary="torch is a CPU build, so that no program sees the machine's GPUs.",
    why=(
        "torch comes in builds for the CPU and for each CUDA version. In a CPU build `torch.version.cuda` is None and "
        '`torch.cuda.is_available()` is False whatever the driver does: programs stop with "Torch not compiled with '
        'CUDA enabled", or fall back to the CPU without a word. On Windows the wheels of PyPI are CPU builds, and '
        "conda may choose one to satisfy another package."
    ),
    bad=(
        Example("a wheel of the CPU index", "python train.py", files=_ON_GPU, facts=_CPU),
        Example("the machine alone", facts=_CPU),
        Example(
            "conda chose it",
            "python train.py",
            files=_ON_GPU,
            facts={
                "packages": {"torch": "1.9.0"},
                "torch_cuda": None,
                "conda": {"pytorch": "1.9.0=py3.8_cpu_0"},
            },
        ),
        Example("under a launcher", "accelerate launch --multi_gpu --num_processes 8 train.py", facts=_CPU),
        Example("LLaMA-Factory", "llamafactory-cli train --stage sft --do_train true", facts=_CPU),
    ),
    good=(
        Example("a CUDA build", "python train.py", files=_ON_GPU),
        Example("no NVIDIA GPU", "python train.py", files=_ON_GPU, facts={**_CPU, "gpus": []}),
        Example(
            "another maker's GPU",
            "python train.py",
            files=_ON_GPU,
            facts={
                "packages": {"torch": "2.4.1+rocm6.1"},
                "torch_cuda": None,
                "gpus": [{"index": 0, "name": "AMD Instinct MI300X"}],
            },
        ),
        Example("the job is meant for the CPU", "accelerate launch --cpu train.py", files=_ON_GPU, facts=_CPU),
        Example("the GPUs are hidden", "CUDA_VISIBLE_DEVICES= python train.py", files=_ON_GPU, facts=_CPU),
        Example("a program without GPUs", "python prepare.py", files={"prepare.py": "import torch\n"}, facts=_CPU),
        Example("a container has its own torch", "docker run --gpus all image python train.py", facts=_CPU),
        Example("torch is not installed", facts={"packages": {"numpy": "2.1.0"}, "torch_cuda": None}),
    ),
    sources=(
        Reference(
            "torch 2.4.1, PyPI's wheel for Windows, torch/version.py",
            "__version__ = '2.4.1+cpu', cuda is None, while the metadata say 2.4.1",
        ),
        Reference(
            "torch 2.13.0+cpu, cuda/__init__.py _lazy_init()",
            'torch.zeros(1).cuda() raises AssertionError "Torch not compiled with CUDA enabled"',
            ran=True,
        ),
    ),
    fix="install a build of torch with CUDA",
    signatures=(
        Signature(
            r"AssertionError: Torch not compiled with CUDA enabled",
            "torch 2.13.0, cuda/__init__.py _lazy_init()",
            "AssertionError: Torch not compiled with CUDA enabled",
        ),
        Signature(
            r"Attempting to deserialize object on a CUDA device but torch\.cuda\.is_available\(\) is False",
            "torch 2.4.1 and 2.13.0, serialization.py _validate_device()",
            "RuntimeError: Attempting to deserialize object on a CUDA device but torch.cuda.is_available() is False. "
            "If you are running on a CPU-only machine, please use torch.load with map_location=torch.device('cpu') "
            "to map your storages to the CPU.",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """The installed torch, when something would compute on GPUs with it."""
    if not users(case):
        return
    torch = version(case, "torch")
    gpus = case.require(nvidia_gpus(case))
    if torch is None or not gpus or case.require(torch_cuda(case)) is not None:
        return
    install = _conda_command(case) or install_command(case, torch, gpus)
    fix = Fix("install a build of torch with CUDA", commands=(install,) if install else ())
    yield report(
        RULE,
        f"torch {torch} is built without CUDA, on a machine with {shown_gpus(gpus)}: torch.cuda.is_available() is "
        'False, and programs run on the CPU or stop with "Torch not compiled with CUDA enabled".',
        subject=f"torch {torch}",
        evidence=tuple(_evidence(case)),
        fix=fix,
    )


def _conda_command(case: Case) -> str | None:
    """What makes conda choose a build with CUDA, where it was conda that installed torch."""
    conda = case.facts.conda
    found = None if isinstance(conda, Unknown) else conda.get("pytorch")
    if not found:
        return None
    version, _, build = found.partition("=")
    # pytorch's own channel names its builds py3.8_cpu_0, conda-forge cpu_generic_py312…
    channels = "-c pytorch -c nvidia" if build.startswith("py") else "-c conda-forge"
    return f'conda install {channels} "pytorch={version}=*cuda*"'


def _evidence(case: Case) -> Iterator[str]:
    conda = case.facts.conda
    if isinstance(conda, dict) and "pytorch" in conda:
        yield f"conda installed pytorch {conda['pytorch']}"
    if case.facts.torch_cuda is None:
        yield "torch.version.cuda is None"
