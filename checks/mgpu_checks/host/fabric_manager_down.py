"""A machine with NVSwitches whose fabric manager does not run, or does not fit the driver."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.host import in_container, jobs
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

SERVICE = "nvidia-fabricmanager"

_DOWN = {"nvswitch": True, "services": {SERVICE: "failed"}, "driver": "570.133.20"}
_H100 = {"name": "NVIDIA H100 80GB HBM3", "memory_gib": 80, "compute_capability": "9.0"}
_UP = [{**_H100, "index": index, "fabric_state": "completed"} for index in range(8)]

RULE = Rule(
    code="MGD703",
    slug="fabric-manager-down",
    title="The fabric manager does not run",
    severity=Severity.ERROR,
    summary="A machine with NVSwitches without a fabric manager that runs and has the driver's version.",
    why=(
        "On machines whose GPUs are joined by NVSwitches (HGX, DGX) the fabric manager sets the switches up. Until it "
        "has, CUDA does not start: `CUDA error 802: system not yet initialized`. It refuses to run beside a driver of "
        "another version, which is what a driver update without its fabric manager package leaves behind. nvidia-smi "
        "lists all GPUs nevertheless."
    ),
    bad=(
        Example("failed, with an old package", facts={**_DOWN, "fabric_manager_version": "570.124.06"}),
        Example("failed, the version not known", "torchrun --nproc_per_node 8 train.py", facts=_DOWN),
        Example("not started", facts={**_DOWN, "services": {SERVICE: "inactive"}}),
        Example("not installed", facts={**_DOWN, "services": {SERVICE: "not installed"}}),
        Example(
            "a GPU that is not registered",
            facts={"nvswitch": True, "gpus": [*_UP[:7], {**_H100, "index": 7, "fabric_state": "in progress"}]},
        ),
        Example(
            "a registration that failed",
            facts={"nvswitch": True, "gpus": [{**_H100, "index": 0, "fabric_state": "completed: Invalid State"}]},
        ),
        Example(
            "updated, not yet started again",
            facts={**_DOWN, "services": {SERVICE: "active"}, "fabric_manager_version": "570.172.08"},
        ),
    ),
    good=(
        Example(
            "it runs",
            facts={**_DOWN, "services": {SERVICE: "active"}, "fabric_manager_version": "570.133.20", "gpus": _UP},
        ),
        Example("no NVSwitch", facts={"nvswitch": False, "services": {SERVICE: "inactive"}}),
        Example("a machine of which nothing is known"),
        Example("it runs elsewhere: the GPUs are registered", facts={**_DOWN, "services": {}, "gpus": _UP}),
        Example(
            "in a container, where the host's services are not seen",
            facts={"nvswitch": True, "services": {}, "container": {"runtime": "docker"}},
        ),
        Example("one GPU in a container of a registered machine", facts={"nvswitch": True, "gpus": _UP[:1]}),
        Example("run by the GPU operator", facts={**_DOWN, "services": {SERVICE: "inactive"}, "gpus": _UP}),
    ),
    sources=(
        Reference(
            "NVIDIA Fabric Manager user guide, driver 570",
            "CUDA initialization fails with cudaErrorSystemNotReady until the fabric manager has set the system up; it "
            "aborts when the loaded driver's version does not fit",
        ),
        Reference(
            "CUDA 12.8, cudaErrorSystemNotReady (802)", "verify that all required driver daemons are actively running"
        ),
        Reference(
            "NVML 12.570, nvmlDeviceGetGpuFabricInfo",
            "state of the registration: not supported, not started, in progress, completed (with a status)",
        ),
        Reference(
            "NVIDIA/NVSentinel issue 883 (2026)",
            "runs as a systemd service, or as a child of the GPU operator's driver container",
        ),
    ),
    fix="install the fabric manager of exactly the driver's version, then systemctl enable --now nvidia-fabricmanager",
    signatures=(
        Signature(
            r"system not yet initialized",
            "CUDA 12.8, cudaGetErrorString(cudaErrorSystemNotReady)",
            "ggml_cuda_init: failed to initialize CUDA: system not yet initialized",
        ),
        Signature(
            r"CUDA_ERROR_SYSTEM_NOT_READY|cudaErrorSystemNotReady|Error 802\b",
            "CUDA 12.8, error 802; torch 2.6.0, c10/cuda: `Unexpected error from cudaGetDeviceCount() … Error 802`",
            "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized",
        ),
    ),
)

_STOPPED = {"failed", "inactive", "dead", "not installed"}


def find(case: Case) -> Iterator[Finding]:
    """Machines with NVSwitches, judged by what the GPUs say of the fabric and by the service."""
    facts = case.facts
    if facts.nvswitch is not True or (case.launches and not any(jobs(case))):
        return
    states = _states(case)
    waiting = {index: state for index, state in states.items() if state != "completed"}
    service = facts.services.get(SERVICE) if not isinstance(facts.services, Unknown) else None
    versions = _mismatch(case)
    registered = bool(states) and not waiting
    if service in _STOPPED and not (registered and service != "failed"):
        yield _stopped(case, service, versions, waiting, registered=registered)
    elif waiting:
        yield _waiting(case, waiting)
    elif versions is not None and (service == "active" or not registered):
        yield _other_version(*versions, running=service == "active")


def _states(case: Case) -> dict[int, str]:
    """What the GPUs that take part in the fabric say of their registration."""
    gpus = () if isinstance(case.facts.gpus, Unknown) else case.facts.gpus
    found = {gpu.index: gpu.fabric_state.lower() for gpu in gpus if isinstance(gpu.fabric_state, str)}
    return {index: state for index, state in found.items() if state != "not supported"}


def _mismatch(case: Case) -> tuple[str, str] | None:
    """The fabric manager's and the driver's version where they differ."""
    manager, driver = case.facts.fabric_manager_version, case.facts.driver
    if not isinstance(manager, str) or not isinstance(driver, str):
        return None
    own, other = _plain(manager), _plain(driver)
    return (own, other) if own and other and own != other else None


def _plain(version: str) -> str:
    """A version without a package's revision: ``570.133.20-1`` → ``570.133.20``."""
    match = re.search(r"\d+(?:\.\d+)+", version)
    return match.group(0) if match else ""


def _stopped(
    case: Case, service: str | None, versions: tuple[str, str] | None, waiting: dict[int, str], *, registered: bool
) -> Finding:
    why = ""
    if versions is not None:
        why = f" Its version is {versions[0]}, the driver's {versions[1]}: it runs beside exactly its own version only."
    evidence = [f"{SERVICE}: {service}"]
    evidence += [f"GPU {index}: {state}" for index, state in waiting.items()]
    return report(
        RULE,
        f"This machine has NVSwitches, but {SERVICE} {_SAID.get(str(service), f'is {service}')}: CUDA does not start "
        f"(error 802, system not yet initialized) or GPUs lose their NVLink.{why}",
        subject=SERVICE,
        severity=Severity.WARNING if registered else None,
        evidence=evidence,
        fix=_install(case) if service == "not installed" else _fix(case, versions),
    )


_SAID = {"failed": "has failed", "inactive": "does not run", "dead": "does not run"}


def _install(case: Case) -> Fix:
    driver = _plain(case.facts.driver) if isinstance(case.facts.driver, str) else ""
    version = f" {driver}, the driver's own version" if driver else " of exactly the driver's version"
    start = f"sudo systemctl enable --now {SERVICE}"
    return Fix(f"install the fabric manager{version}, then start it", commands=() if in_container(case) else (start,))


def _fix(case: Case, versions: tuple[str, str] | None) -> Fix:
    if in_container(case):
        return Fix("on the host: start the fabric manager of the driver's version, and look at its log")
    start = f"sudo systemctl restart {SERVICE}"
    if versions is None:
        return Fix("start it and look at its log", commands=(start, f"journalctl -u {SERVICE}"))
    return Fix(f"install the fabric manager {versions[1]}, the driver's own version, then start it", commands=(start,))


def _waiting(case: Case, waiting: dict[int, str]) -> Finding:
    names = ", ".join(map(str, sorted(waiting)))
    return report(
        RULE,
        f"GPU {names} {'are' if len(waiting) > 1 else 'is'} not registered with the NVSwitch fabric "
        f"({', '.join(sorted(set(waiting.values())))}): without it CUDA does not start there, or its NVLink does not "
        "work.",
        subject=f"GPU {names}",
        evidence=tuple(f"GPU {index}: {state}" for index, state in sorted(waiting.items())),
        fix=_fix(case, None),
    )


def _other_version(own: str, other: str, *, running: bool) -> Finding:
    then = "the next start of the machine or the service fails" if running else "it does not start"
    return report(
        RULE,
        f"The fabric manager has version {own}, the driver {other}: they must be the same, else {then}.",
        subject=SERVICE,
        severity=Severity.WARNING,
        evidence=(f"fabric manager: {own}", f"driver: {other}"),
        fix=Fix(f"install the fabric manager {other}"),
    )
