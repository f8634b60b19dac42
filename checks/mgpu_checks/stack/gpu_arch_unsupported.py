"""The installed torch holds no code for the machine's GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.stack import failing, shown_gpus, torch_cuda, users, version
from mgpu_checks.stack.torch_builds import built_archs, install_command, newer_command, runs
from mgpu_doctor.authoring import Case, Example, Finding, Fix, Reference, Rule, Severity, Signature, Unknown, report

_RTX_5090 = {"gpus": [{"index": 0, "name": "NVIDIA GeForce RTX 5090", "compute_capability": "12.0"}]}
_H100 = {"gpus": [{"index": 0, "name": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0"}]}
_P100 = {"gpus": [{"index": 0, "name": "Tesla P100-PCIE-16GB", "compute_capability": "6.0"}]}
_CU130 = {"packages": {"torch": "2.13.0+cu130"}, "torch_cuda": "13.0", "driver": "580.95.05"}
_CU124 = {"packages": {"torch": "2.5.1+cu124"}, "torch_cuda": "12.4"}
_CU128 = {"torch_cuda": "12.8", "driver": "570.124.06"}
_ON_GPU = {"train.py": 'import torch\n\nmodel = torch.nn.Linear(8, 8).to("cuda")\n'}

RULE = Rule(
    code="MGD503",
    slug="gpu-arch-unsupported",
    title="torch has no code for this GPU",
    severity=Severity.ERROR,
    summary="The GPU's compute capability is in none of the architectures that the torch build was compiled for.",
    why=(
        "A torch build holds machine code for a list of architectures (`torch.cuda.get_arch_list()`). Code for sm_80 "
        "runs on 8.0, 8.6 and 8.9 but not on 9.0; only PTX (`compute_90`) can be translated for newer GPUs. Without a "
        'match torch warns that the GPU "is not compatible with the current PyTorch installation", and the first '
        'kernel fails with "no kernel image is available for execution on the device".'
    ),
    bad=(
        Example("a Blackwell card and CUDA 12.4", "python train.py", files=_ON_GPU, facts={**_RTX_5090, **_CU124}),
        Example("the machine alone", facts={**_RTX_5090, **_CU124}),
        Example(
            "an H100 and CUDA 11.7",
            "torchrun --nproc_per_node 1 train.py",
            facts={**_H100, "packages": {"torch": "2.0.1+cu117"}, "torch_cuda": "11.7"},
        ),
        Example("an old card and a new torch", facts={**_P100, **_CU130}),
        Example(
            "PyPI's wheel, by what it brings along",
            "python train.py",
            files=_ON_GPU,
            facts={
                **_RTX_5090,
                "packages": {"torch": "2.6.0", "nvidia-cuda-runtime-cu12": "12.4.127"},
                "torch_cuda": "12.4",
            },
        ),
        Example(
            "a Volta card and the CUDA 12.8 of torch 2.7",
            facts={"gpus": [{"index": 0, "compute_capability": "7.0"}], "packages": {"torch": "2.7.0+cu128"}, **_CU128},
        ),
        Example(
            "a Pascal card and CUDA 12.8",
            "python train.py",
            files=_ON_GPU,
            facts={**_P100, "packages": {"torch": "2.8.0+cu128"}, **_CU128},
        ),
        Example("by the build's own list", facts={**_H100, "torch_archs": ["sm_80", "sm_86"]}),
    ),
    good=(
        Example(
            "code of the same major version", facts={"gpus": [{"index": 0, "compute_capability": "8.9"}], **_CU124}
        ),
        Example("PTX is translated", facts={**_RTX_5090, "torch_archs": ["sm_80", "sm_90", "compute_90"]}),
        Example("code of exactly this architecture", facts={**_H100, "torch_archs": ["sm_80", "sm_90a"]}),
        Example(
            "an old display card beside the others",
            facts={
                "gpus": [
                    {"index": 0, "name": "NVIDIA A100", "compute_capability": "8.0"},
                    {"index": 1, "name": "NVIDIA GeForce GT 710", "compute_capability": "3.5"},
                ],
                **_CU124,
            },
        ),
        Example(
            "a Volta card and the CUDA 12.8 of torch 2.8",
            facts={"gpus": [{"index": 0, "compute_capability": "7.0"}], "packages": {"torch": "2.8.0+cu128"}, **_CU128},
        ),
        Example(
            "a Pascal card and CUDA 12.6",
            facts={**_P100, "packages": {"torch": "2.9.1+cu126"}, "torch_cuda": "12.6"},
        ),
        Example(
            "a nightly", facts={**_RTX_5090, "packages": {"torch": "2.7.0.dev20250310+cu126"}, "torch_cuda": "12.6"}
        ),
        Example(
            "a build whose list is not known",
            facts={**_RTX_5090, "packages": {"torch": "2.6.0"}, "torch_cuda": "12.4"},
        ),
        Example("nothing runs on GPUs", "python a.py", files={"a.py": "print(1)\n"}, facts={**_RTX_5090, **_CU124}),
    ),
    sources=(
        Reference(
            "pytorch/builder, release/1.11 … release/2.5, manywheel/build_cuda.sh",
            "TORCH_CUDA_ARCH_LIST of the wheels for each CUDA version; none has PTX",
        ),
        Reference(
            "pytorch v2.6.0 … v2.11.0, .ci/manywheel/build_cuda.sh; commit 00c7a380; RELEASE.md, CUDA Support Matrix",
            "12.6 holds 5.0 to 9.0; 12.8 holds 7.5 (2.8 to 2.10: 7.0) to 12.0; 13.0 holds 7.5 to 12.0",
        ),
        Reference(
            "torch 2.7.0+cu128, 2.10.0+cu128, 2.11.0+cu126 and 2.11.0+cu128 (pytorch issue 182250)",
            "torch.cuda.get_arch_list() agrees with the build script",
        ),
        Reference("torch 2.13.0, cuda/__init__.py PYTORCH_RELEASES_CODE_CC", "architectures of the wheels of 2.13"),
        Reference(
            "torch 2.13.0, cuda/__init__.py DEVICE_REQUIREMENT and _check_capability()",
            "code for X.Y runs on X.Z with Z >= Y; otherwise a warning that there are no kernels for the GPU",
        ),
        Reference(
            "torch 2.4.1, cuda/__init__.py _check_cubins()",
            '"… with CUDA capability sm_… is not compatible with the current PyTorch installation"',
        ),
    ),
    fix="install a build of torch that was compiled for this GPU",
    signatures=(
        Signature(
            r"with CUDA capability sm_\d+ is not compatible with the current PyTorch installation",
            "torch 2.4.1 and 2.13.0, cuda/__init__.py _check_cubins()",
            "NVIDIA GeForce RTX 5090 with CUDA capability sm_120 is not compatible with the current PyTorch "
            "installation.",
        ),
        Signature(
            r"no kernel image is available for execution on the device",
            "CUDA 12.4 runtime, cudaErrorNoKernelImageForDevice; seen through torch 2.4.1",
            "RuntimeError: CUDA error: no kernel image is available for execution on the device",
        ),
        Signature(
            r"does not include kernels for this GPU",
            "torch 2.13.0, cuda/__init__.py _warn_unsupported_code()",
            "Your installed torch==2.13.0+cu130 does not include kernels for this GPU. Reinstall the same version "
            "against a CUDA build that does, e.g.:",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """The GPUs that something would use, against the architectures in torch."""
    found = users(case)
    if not found:
        return
    torch = version(case, "torch")
    cuda = case.require(torch_cuda(case))
    if torch is None or cuda is None:
        return
    archs = case.require(built_archs(case, torch, cuda))
    for launch in found:
        gpus = failing(case, launch, lambda capability: not runs(archs, capability))
        if not gpus:
            continue
        install = install_command(case, torch, gpus) or newer_command(case, torch, gpus)
        newest = any(
            not isinstance(gpu.compute_capability, Unknown) and gpu.compute_capability[0] >= 10 for gpu in gpus
        )
        title = (
            "install a torch for CUDA 12.8 or newer" if newest else "install a build of torch that holds code for it"
        )
        fix = Fix(title, commands=(install,) if install else ())
        yield report(
            RULE,
            f"torch {torch} holds code for {', '.join(archs)} and none for {shown_gpus(gpus)}: the first kernel fails "
            'with "no kernel image is available for execution on the device".',
            subject=f"torch {torch}",
            fix=fix,
        )
        return
