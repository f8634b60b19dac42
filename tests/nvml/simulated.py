"""Machines with GPUs, simulated below NVML: the real collector, the real nvidia-ml-py, and a library that answers.

``simulated_nvml.c`` stands in for ``libnvidia-ml.so.1``. nvidia-ml-py loads that name with ``ctypes.CDLL``, so a
directory in ``LD_LIBRARY_PATH`` is all it takes; nothing of the program under test is replaced. Any command can be run
on such a machine::

    from nvml.simulated import machine_of, simulated_nvml

    with simulated_nvml(machine_of(eight_a100), tmp_path) as env:
        subprocess.run([sys.executable, "-m", "mgpu_doctor", "check", "--cmd", "…"], env=env, …)

A machine is described with the types of :mod:`mgpu_doctor.model.facts`, in the same words that the collector reports:
what goes in must come out. Unknown fields are answered with "Not Supported". ``faults`` overrides single answers by
their keys in ``simulated_nvml.c``: ``{"2.handle": error(15), "3.temperature": HANGS}``. Call :func:`require_compiler`
first: the library is compiled once for each test session.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from mgpu_doctor.model.facts import Facts, Gpu, GpuProcess
from mgpu_doctor.model.known import Unknown

SOURCE = Path(__file__).with_name("simulated_nvml.c")
HANGS = "@"
"""An answer that never comes."""

GIB = 2**30
RESERVE_GIB = 0.5
"""What the simulated driver keeps for itself; it is not used by anybody."""

CALLS = "SIMULATED_NVML_CALLS"
"""Variable that names the file into which the library writes how many questions it was asked."""

_COMPUTE_MODES = ("Default", "Exclusive_Thread", "Prohibited", "Exclusive_Process")
_FABRIC = ("not supported", "not started", "in progress", "completed")
_EVENTS = {
    "gpu_idle": 0x1,
    "applications_clocks_setting": 0x2,
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
    "display_clock_setting": 0x100,
}
_LEVELS = {"PIX": 10, "PXB": 20, "PHB": 30, "NODE": 40, "SYS": 50}
_PEERS = (
    "ok",
    "chipset not supported",
    "GPU not supported",
    "topology not supported",
    "disabled by regkey",
    "not supported",
    "unknown",
)


def error(code: int) -> str:
    """The answer that fails with this nvmlReturn_t."""
    return f"!{code}"


@functools.cache
def library(old_driver: bool = False) -> Path:
    """The directory of the compiled library; ``old_driver`` lacks the functions that came after the 470 series.

    Raises:
        RuntimeError: there is no C compiler, or it fails.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or not sys.platform.startswith("linux"):
        raise RuntimeError("the simulated NVML needs Linux and a C compiler")
    directory = Path(tempfile.mkdtemp(prefix="simulated-nvml-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    flags = ["-DOLD_DRIVER"] if old_driver else []
    done = subprocess.run(
        [compiler, *flags, "-shared", "-fPIC", "-O1", "-o", str(directory / "libnvidia-ml.so.1"), str(SOURCE)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the simulated NVML cannot be compiled: {done.stderr}")
    return directory


def require_compiler() -> None:
    """Skip the test where the library cannot be built; a compiler that refuses it is a failure."""
    if not sys.platform.startswith("linux") or shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("the simulated NVML needs Linux and a C compiler")


@contextmanager
def simulated_nvml(
    machine: Facts, directory: Path, faults: Mapping[str, str] | None = None, *, old_driver: bool = False
) -> Iterator[dict[str, str]]:
    """The variables under which every program sees this machine's GPUs. ``directory`` takes two small files."""
    description = directory / "nvml.txt"
    answers = {**answers_of(machine), **(faults or {})}
    description.write_text("".join(f"{key}={value}\n" for key, value in answers.items()), encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
    env["LD_LIBRARY_PATH"] = str(library(old_driver))
    env["SIMULATED_NVML"] = str(description)
    env[CALLS] = str(directory / "calls.txt")
    yield env


def answers_of(machine: Facts) -> dict[str, str]:
    """What the library answers on a machine, by key."""
    assert not isinstance(machine.gpus, Unknown)
    answers = {"count": str(len(machine.gpus))}
    if isinstance(machine.driver, str):
        answers["driver"] = machine.driver
        answers["nvml_version"] = f"13.{machine.driver}"
    if isinstance(machine.driver_cuda, str):
        major, _, minor = machine.driver_cuda.partition(".")
        answers["cuda"] = str(int(major) * 1000 + int(minor) * 10)
    for gpu in machine.gpus:
        answers.update({f"{gpu.index}.{key}": value for key, value in _card(gpu).items()})
    answers.update(_links(machine))
    answers.update(_pairs(machine))
    if not isinstance(machine.gpu_processes, Unknown):
        for gpu in machine.gpus:
            held = [one for one in machine.gpu_processes if one.gpu == gpu.index]
            answers[f"{gpu.index}.compute"] = " ".join(map(_process, held))
            answers[f"{gpu.index}.graphics"] = ""
    return answers


def _process(process: GpuProcess) -> str:
    memory = process.memory_gib
    return f"{process.pid}:{'-' if isinstance(memory, Unknown) else int(memory * GIB)}"


def _card(gpu: Gpu) -> dict[str, str]:
    found: dict[str, str] = {}
    plain = {
        "name": gpu.name,
        "uuid": gpu.uuid,
        "pci": gpu.pci_bus_id,
        "utilization": gpu.utilization_percent,
        "temperature": gpu.temperature_c,
        "ecc": gpu.ecc_uncorrected,
        "pcie_generation": gpu.pcie_generation,
        "pcie_generation_max": gpu.pcie_generation_max,
        "pcie_width": gpu.pcie_width,
        "pcie_width_max": gpu.pcie_width_max,
    }
    found.update({key: str(value) for key, value in plain.items() if not isinstance(value, Unknown)})
    if not isinstance(gpu.compute_capability, Unknown):
        found["compute_capability"] = "{} {}".format(*gpu.compute_capability)
    if not isinstance(gpu.memory_gib, Unknown):
        used = 0.0 if isinstance(gpu.memory_used_gib, Unknown) else gpu.memory_used_gib
        found["memory"] = " ".join(str(int(amount * GIB)) for amount in (gpu.memory_gib, RESERVE_GIB, used))
    if not isinstance(gpu.compute_mode, Unknown):
        found["compute_mode"] = str(_COMPUTE_MODES.index(gpu.compute_mode))
    if not isinstance(gpu.clock_events, Unknown):
        found["clock_events"] = str(sum(_EVENTS[name] for name in gpu.clock_events))
    if not isinstance(gpu.pages_pending, Unknown):
        if isinstance(gpu.remap_failed, Unknown):
            found["pages_pending"] = str(int(gpu.pages_pending))
        else:
            found["remapped"] = f"{int(gpu.pages_pending)} {int(gpu.remap_failed)}"
    if not isinstance(gpu.fabric_state, Unknown):
        state, failed, _ = gpu.fabric_state.partition(": ")
        found["fabric"] = f"{_FABRIC.index(state)} {999 if failed else 0}"
    if not isinstance(gpu.mig_mode, Unknown):
        found.update(_mig(gpu))
    return found


def _mig(gpu: Gpu) -> dict[str, str]:
    assert not isinstance(gpu.mig, Unknown)
    assert not isinstance(gpu.mig_profiles, Unknown)
    found = {"mig_mode": str(int(gpu.mig_mode is True)), "mig_most": "7"}
    for at, (uuid, profile) in enumerate(zip(gpu.mig, gpu.mig_profiles, strict=True)):
        found[f"mig.{at}.uuid"] = uuid
        found[f"mig.{at}.name"] = f"{gpu.name} MIG {profile}"
    return found


def _links(machine: Facts) -> dict[str, str]:
    """The ports of each GPU: to a switch where the machine has any, otherwise to the peers that the topology names."""
    assert not isinstance(machine.gpus, Unknown)
    found: dict[str, str] = {}
    for gpu in machine.gpus:
        if isinstance(gpu.nvlinks, Unknown):
            continue
        ends = [f"2 00000000:{0xC0:02X}:00.0"] * len(gpu.nvlinks) if machine.nvswitch is True else _peers(machine, gpu)
        ends += ["255 -"] * (len(gpu.nvlinks) - len(ends))
        for port, (up, end) in enumerate(zip(gpu.nvlinks, ends, strict=True)):
            found[f"{gpu.index}.nvlink.{port}"] = f"{int(up)} {end}"
    return found


def _peers(machine: Facts, gpu: Gpu) -> list[str]:
    assert not isinstance(machine.gpus, Unknown)
    ends: list[str] = []
    for other in machine.gpus:
        path = _path(machine, gpu, other)
        if path.startswith("NV"):
            ends += [f"0 {other.pci_bus_id}"] * int(path[2:])
    return ends


def _path(machine: Facts, gpu: Gpu, other: Gpu) -> str:
    if gpu.index == other.index or isinstance(machine.topology, Unknown):
        return ""
    if isinstance(machine.topology, str):
        return machine.topology
    return machine.topology.get("{}-{}".format(*sorted((gpu.index, other.index))), "")


def _pairs(machine: Facts) -> dict[str, str]:
    found: dict[str, str] = {}
    if isinstance(machine.topology, Mapping):
        found.update(
            {f"{pair}.ancestor": str(_LEVELS.get(path, _LEVELS["SYS"])) for pair, path in machine.topology.items()}
        )
    if not isinstance(machine.peer_access, Unknown):
        found.update({f"{pair}.peer": str(_PEERS.index(state)) for pair, state in machine.peer_access.items()})
    return found
