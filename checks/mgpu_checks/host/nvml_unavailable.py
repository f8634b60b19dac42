"""The driver cannot be talked to: versions that do not fit, no driver, or no device files in a container."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.host import Job, in_container, jobs, needs_gpu, trains_with_library
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Reference,
    Rule,
    Severity,
    Signature,
    report,
)

_MISMATCH = {"gpus": None, "driver_module": "550.54.15", "nvml_error": "Driver/library version mismatch"}
_BARE: dict[str, object] = {
    "gpus": None,
    "device_nodes": [],
    "driver_module": "550.54.15",
    "container": {"runtime": "docker"},
}
_CUDA = {"run.py": "import torch\n\nmodel = torch.nn.Linear(8, 8).cuda()\n"}

RULE = Rule(
    code="MGD711",
    slug="nvml-unavailable",
    title="The NVIDIA driver does not answer",
    severity=Severity.ERROR,
    summary="NVML does not start on a machine that has a driver, or a container lacks the GPUs' device files.",
    why=(
        "After an update of the driver the kernel still runs the old module while the libraries are new: `nvidia-smi` "
        "and CUDA refuse to start until the machine is booted. Without a loaded module nothing works either. "
        "A container that was started without the NVIDIA runtime has no device files: programs see no GPU."
    ),
    bad=(
        Example("updated, not booted", facts=_MISMATCH),
        Example("with a command", "torchrun --nproc_per_node 2 train.py", facts=_MISMATCH),
        Example("no module", facts={"gpus": None, "nvml_error": "Driver Not Loaded", "driver_module": None}),
        Example("a container without GPUs", "python run.py", files=_CUDA, facts=_BARE),
        Example(
            "a container without the driver's libraries",
            "torchrun --nproc_per_node 2 train.py",
            facts={**_BARE, "nvml_error": "NVML Shared Library Not Found"},
        ),
    ),
    good=(
        Example("it works", facts={"nvml_error": None}),
        Example("a machine without a driver", facts={"gpus": []}),
        Example("nothing is known", facts={"gpus": None}),
        Example("a container that needs no GPU", facts=_BARE),
        Example(
            "nor one without the driver's libraries", facts={**_BARE, "nvml_error": "NVML Shared Library Not Found"}
        ),
        Example("a program that needs none", "python run.py", files={"run.py": "print(1)\n"}, facts=_BARE),
        Example("a run on the CPU", "CUDA_VISIBLE_DEVICES= python t.py", facts=_MISMATCH),
    ),
    sources=(
        Reference(
            "NVML 12.570, nvmlErrorString",
            "Driver/library version mismatch: the kernel module and the user-space library are of different releases",
        ),
        Reference(
            "nvidia-ml-py 12.570, pynvml.py NVMLError",
            "Driver Not Loaded, NVML Shared Library Not Found, Insufficient Permissions, GPU is lost",
        ),
        Reference(
            "NVIDIA container toolkit 1.17",
            "adds /dev/nvidia* and the driver's libraries when --gpus or its runtime is used",
        ),
    ),
    fix="boot the machine after a driver update; in a container use --gpus all (NVIDIA container toolkit)",
    signatures=(
        Signature(
            r"Failed to initialize NVML: (?:Driver/library version mismatch|Driver Not Loaded|Unknown Error|GPU access "
            r"blocked by the operating system)",
            "nvidia-smi 535 and later (public reports)",
            "Failed to initialize NVML: Driver/library version mismatch",
        ),
        Signature(
            r"NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver",
            "nvidia-smi 470 and later (public reports)",
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
            "NVIDIA driver is installed and running.",
        ),
        Signature(
            r"could not select device driver \"\" with capabilities: \[\[gpu\]\]",
            "Docker 20.10 to 27 without the NVIDIA container toolkit",
            'docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]].',
        ),
        Signature(
            r"system has unsupported display driver / cuda driver combination|\bError 803\b",
            "CUDA 11.7 runtime, cudaErrorSystemDriverMismatch",
            "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 803: system has unsupported display "
            "driver / cuda driver combination",
        ),
        Signature(
            r"Found no NVIDIA driver on your system",
            "torch 1.13.1 to 2.9.1, c10/cuda/CUDAFunctions.cpp",
            "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and "
            "installed a driver from http://www.nvidia.com/Download/index.aspx",
        ),
        Signature(
            r"NVMLError_(?:LibraryNotFound|DriverNotLoaded|LibRmVersionMismatch)|^(?:\S+: "
            r")?nvidia-container-cli: (?:initialization|detection) error",
            "nvidia-ml-py 12 and 13; libnvidia-container 1.8 and later (public reports)",
            "pynvml.NVMLError_LibraryNotFound: NVML Shared Library Not Found",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """NVML's own error; device files that a container lacks."""
    needing = list(jobs(case))
    if case.launches and not needing:
        return
    error = case.facts.nvml_error
    if isinstance(error, str):
        if in_container(case) and _left_outside(case, error):
            yield from _container(case, needing)
        elif not re.search(r"GPU is lost|fallen off", error, re.IGNORECASE):
            yield _broken(case, error)
        return
    if _left_outside(case, "") and in_container(case) and not case.facts.gpus:
        yield from _container(case, needing)


def _left_outside(case: Case, error: str) -> bool:
    """Whether a container was simply not given the machine's GPUs, which is fine for what needs none."""
    return case.facts.device_nodes == () or bool(re.search(r"Not Found|Not Loaded", error, re.IGNORECASE))


def _container(case: Case, needing: list[Job]) -> Iterator[Finding]:
    for job in needing:
        launch = job.launch
        if job.processes > 1 or needs_gpu(launch) or trains_with_library(launch):
            yield report(
                RULE,
                f"This container ({case.facts.container}) was not given the machine's GPUs: their device files "
                f"(/dev/nvidia0 …) or the driver's libraries are missing, and the program sees no GPU.",
                job.place,
                subject="/dev/nvidia*",
                fix=Fix("start the container with --gpus all, or with the NVIDIA runtime class in Kubernetes"),
            )
            return


def _broken(case: Case, error: str) -> Finding:
    module = case.facts.driver_module
    seen = [f"NVML: {error}"]
    if isinstance(module, str):
        seen.append(f"loaded kernel module: {module}")
    elif module is None:
        seen.append("no NVIDIA kernel module is loaded")
    message, fix, severity = _explained(case, error)
    return report(RULE, message, subject="NVIDIA driver", severity=severity, evidence=seen, fix=fix)


def _explained(case: Case, error: str) -> tuple[str, Fix, Severity]:
    lowered = error.lower()
    module = case.facts.driver_module
    if "mismatch" in lowered:
        loaded = f" ({module})" if isinstance(module, str) and module not in error else ""
        message = (
            f"NVML says `{error}`: the loaded kernel module{loaded} is not of the release of the installed libraries, "
            "as after an update of the driver. No CUDA program starts until they are the same."
        )
        return (
            message,
            Fix("boot the machine, or unload and load the module while nobody uses it", commands=("sudo reboot",)),
            Severity.ERROR,
        )
    if "not answer" in lowered or "timed out" in lowered:
        return (
            f"NVML did not come back ({error}): a driver in trouble, or one that is set up anew for each caller.",
            Fix("look at the kernel log; keep the driver loaded", commands=("sudo nvidia-smi -pm 1",)),
            Severity.WARNING,
        )
    if in_container(case) and "unknown error" in lowered:
        lost = "it has lost the GPUs that it was started with, as after `systemctl daemon-reload` on the host"
        return (
            f"NVML does not work in this container ({error}): {lost}; CUDA programs that start now see none.",
            Fix("start the container anew (docker restart); --device=/dev/nvidia0 … or CDI keeps it from happening"),
            Severity.ERROR,
        )
    where = "in this container" if in_container(case) else "on this machine"
    return (
        f"NVML does not work {where} ({error}): CUDA programs most likely see no GPU.",
        Fix("see what nvidia-smi and the kernel log say", commands=("nvidia-smi", "sudo dmesg | grep -i nvrm")),
        Severity.ERROR if case.launches or not _left_outside(case, error) else Severity.WARNING,
    )
