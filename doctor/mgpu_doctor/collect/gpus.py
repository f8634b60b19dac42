"""GPUs, their driver and the processes on them, as NVML tells: without CUDA contexts, within a deadline."""

from __future__ import annotations

import os
import threading
from typing import Any

from mgpu_doctor.model.facts import Gpu, GpuProcess
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.record import dataclass

DEADLINE_S = 5.0
"""Seconds after which NVML is given up: a broken driver can keep it waiting for ever."""

_SIGNS = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg", "/dev/nvhost-gpu")
"""One of these exists wherever NVML can work: a driver, WSL, Tegra."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What NVML says. ``gpus`` is empty only when a working driver lists none."""

    gpus: tuple[Gpu, ...] | Unknown
    driver: str | Unknown
    processes: tuple[GpuProcess, ...] | Unknown


def inventory(deadline_s: float = DEADLINE_S) -> Inventory:
    """The GPUs of this machine; every part Unknown, with the reason, when NVML does not answer."""
    if os.name == "posix" and not any(os.path.exists(sign) for sign in _SIGNS):
        return _nothing("no NVIDIA driver is loaded on this machine")
    found: list[Inventory] = []
    # NVML cannot be interrupted, so it waits in a thread that dies with the program.
    thread = threading.Thread(target=lambda: found.append(_look()), name="nvml", daemon=True)
    thread.start()
    thread.join(deadline_s)
    return found[0] if found else _nothing(f"NVML did not answer within {deadline_s:g} s")


def _nothing(reason: str) -> Inventory:
    unknown = Unknown(reason)
    return Inventory(unknown, unknown, unknown)


def _look() -> Inventory:
    try:
        import pynvml
    except ImportError:
        return _nothing("the Python package nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
    except Exception as error:  # noqa: BLE001 - a broken driver raises more than NVMLError
        return _nothing(f"NVML cannot start: {_say(error)}")
    try:
        return _read(pynvml)
    except Exception as error:  # noqa: BLE001 - the same
        return _nothing(f"NVML failed: {_say(error)}")
    finally:
        _ask(pynvml.nvmlShutdown)


def _read(nvml: Any) -> Inventory:
    gpus: list[Gpu] = []
    processes: list[GpuProcess] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:
            gpus.append(Gpu(index, *([Unknown(f"NVML cannot reach it: {_say(error)}")] * 6)))
            continue
        gpus.append(_gpu(nvml, index, handle))
        processes.extend(_processes(nvml, index, handle))
    return Inventory(tuple(gpus), _ask(lambda: _decoded(nvml.nvmlSystemGetDriverVersion())), tuple(processes))


def _gpu(nvml: Any, index: int, handle: Any) -> Gpu:
    return Gpu(
        index=index,
        name=_ask(lambda: _decoded(nvml.nvmlDeviceGetName(handle))),
        uuid=_ask(lambda: _decoded(nvml.nvmlDeviceGetUUID(handle))),
        memory_gib=_ask(lambda: round(nvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30, 2)),
        compute_capability=_ask(lambda: tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle))),
        pci_bus_id=_ask(lambda: _decoded(nvml.nvmlDeviceGetPciInfo(handle).busId)),
        mig=_ask(lambda: _mig(nvml, handle)),
    )


def _mig(nvml: Any, handle: Any) -> tuple[str, ...]:
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError_NotSupported:
        return ()
    if current != nvml.NVML_DEVICE_MIG_ENABLE:
        return ()
    found = []
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except nvml.NVMLError:
            continue
        found.append(_decoded(nvml.nvmlDeviceGetUUID(instance)))
    return tuple(found)


def _processes(nvml: Any, index: int, handle: Any) -> list[GpuProcess]:
    from mgpu_doctor.collect.ports import command_of

    running = _ask(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    if isinstance(running, Unknown):
        return []
    found = []
    for process in running:
        used = process.usedGpuMemory
        found.append(
            GpuProcess(
                gpu=index,
                pid=process.pid,
                command=command_of(process.pid),
                memory_gib=Unknown("NVML does not tell") if used is None else round(used / 2**30, 2),
            )
        )
    return found


def _ask(question: Any) -> Any:
    """The answer, or why there is none: one query that fails does not spoil the others."""
    try:
        return question()
    except Exception as error:  # noqa: BLE001 - a missing symbol raises other than NVMLError
        return Unknown(f"NVML does not tell: {_say(error)}")


def _decoded(text: str | bytes) -> str:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else text


def _say(error: Exception) -> str:
    return str(error) or type(error).__name__
