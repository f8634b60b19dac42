"""The NVIDIA driver is older than what the installed torch's CUDA needs."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.stack import is_linux, numbers, nvidia_gpus, torch_cuda, users, variable, version
from mgpu_checks.stack.torch_builds import install_command, minimum_driver, runs_on_driver
from mgpu_doctor.authoring import Case, Example, Finding, Fix, Launch, Reference, Rule, Severity, Signature, report

_OLD = {"driver": "470.57.02"}
_ON_GPU = {"train.py": 'import torch\n\nmodel = torch.nn.Linear(8, 8).to("cuda")\n'}

RULE = Rule(
    code="MGD502",
    slug="driver-too-old",
    title="The driver is too old for this torch",
    severity=Severity.ERROR,
    summary="torch was built for a CUDA major version that the NVIDIA driver does not run.",
    why=(
        "A torch built for CUDA 12 needs a driver of branch 525 or newer, one for CUDA 13 branch 580, one for CUDA 11 "
        "branch 450. Within a major version older drivers do (CUDA's minor version compatibility): cu124 runs on "
        'driver 525. With an older driver torch says "The NVIDIA driver on your system is too old" and '
        "`torch.cuda.is_available()` is False. Upgrade the driver, or install a torch for an older CUDA."
    ),
    bad=(
        Example("CUDA 12 on driver 470", "python train.py", files=_ON_GPU, facts=_OLD),
        Example("the machine alone", facts=_OLD),
        Example(
            "CUDA 13 on driver 570",
            "torchrun --nproc_per_node 8 train.py",
            facts={"packages": {"torch": "2.13.0+cu130"}, "torch_cuda": "13.0", "driver": "570.133.20"},
        ),
        Example(
            "before minor version compatibility",
            "python train.py",
            files=_ON_GPU,
            facts={"packages": {"torch": "1.12.1+cu102"}, "torch_cuda": "10.2", "driver": "418.126.02"},
        ),
    ),
    good=(
        Example(
            "an older driver of the same major version",
            "python train.py",
            files=_ON_GPU,
            facts={"driver": "525.147.05"},
        ),
        Example(
            "the forward-compatibility package",
            facts={**_OLD, "env": {"LD_LIBRARY_PATH": "/usr/local/cuda/compat"}},
        ),
        Example("a container may bring its own libcuda", facts={**_OLD, "container": {"runtime": "docker"}}),
        Example("the driver library says that it does", facts={**_OLD, "driver_cuda": "12.4"}),
        Example("nothing runs on GPUs", "python prepare.py", files={"prepare.py": "print(1)\n"}, facts=_OLD),
        Example("a CPU build", facts={**_OLD, "packages": {"torch": "2.4.1+cpu"}, "torch_cuda": None}),
    ),
    sources=(
        Reference(
            "NVIDIA CUDA Compatibility, release 590, Minor Version Compatibility",
            "minimum drivers: CUDA 11.x 450, 12.x 525, 13.x 580; 10.0 410.48, 10.1 418.39, 10.2 440.33",
        ),
        Reference(
            "NVIDIA CUDA Compatibility, release 590, Forward Compatibility",
            "the package cuda-compat lets newer toolkits run on older drivers of data-centre GPUs",
        ),
        Reference(
            "pytorch commit 01a6a16d, c10/cuda/CUDAFunctions.cpp device_count_impl()",
            "cudaErrorInsufficientDriver: The NVIDIA driver on your system is too old (found version N)",
        ),
    ),
    fix="upgrade the driver, or install a torch for an older CUDA",
    signatures=(
        Signature(
            r"The NVIDIA driver on your system is too old \(found version \d+\)",
            "pytorch commit 01a6a16d, c10/cuda/CUDAFunctions.cpp device_count_impl()",
            "RuntimeError: The NVIDIA driver on your system is too old (found version 11040). Please update your GPU "
            "driver by downloading and installing a new version",
        ),
        Signature(
            r"CUDA driver version is insufficient for CUDA runtime version",
            "CUDA 12.4 runtime, cudaErrorInsufficientDriver",
            "RuntimeError: CUDA error: CUDA driver version is insufficient for CUDA runtime version",
        ),
        Signature(
            r"forward compatibility was attempted on non supported HW|\bError 804\b",
            "CUDA 11.7 runtime, cudaErrorCompatNotSupportedOnDevice: the container's newer CUDA on an older driver",
            "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility was "
            "attempted on non supported HW",
        ),
        Signature(
            r"provided PTX was compiled with an unsupported toolchain",
            "CUDA 11.7 runtime, cudaErrorUnsupportedPtxVersion",
            "RuntimeError: CUDA error: the provided PTX was compiled with an unsupported toolchain.",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """The driver against torch's CUDA, when something would compute on GPUs."""
    found = users(case)
    if not found:
        return
    torch = version(case, "torch")
    cuda = case.require(torch_cuda(case))
    gpus = case.require(nvidia_gpus(case))
    if torch is None or cuda is None or not gpus:
        return
    driver = case.require(case.facts.driver)
    minimum = minimum_driver(cuda)
    if minimum is None or runs_on_driver(cuda, driver) is not False or _may_be_compatible(case, found[0], cuda):
        return
    # The full numbers are those of Linux.
    shown = minimum if is_linux(case) else minimum[:1]
    wanted = ".".join(f"{part:02}" if at else str(part) for at, part in enumerate(shown))
    install = install_command(case, torch, gpus)
    older = (Fix("or install torch for a CUDA that this driver runs", commands=(install,)),) if install else ()
    yield report(
        RULE,
        f"torch {torch} is built for CUDA {cuda}, which needs driver {wanted} or newer; this machine has {driver}: "
        'torch finds no GPU and says "The NVIDIA driver on your system is too old".',
        subject=f"driver {driver}",
        fix=Fix(f"upgrade the driver to {minimum[0]} or newer"),
        alternatives=older,
    )


def _may_be_compatible(case: Case, launch: Launch | None, cuda: str) -> bool:
    """Whether the libcuda in use may be newer than the kernel's driver (the package cuda-compat)."""
    if "compat" in (variable(case, launch, "LD_LIBRARY_PATH") or ""):
        return True
    shipped = case.facts.driver_cuda
    if isinstance(shipped, str):
        return numbers(shipped)[:1] >= numbers(cuda)[:1]
    return isinstance(case.facts.container, str)
