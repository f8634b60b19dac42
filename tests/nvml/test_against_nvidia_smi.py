"""On a machine with GPUs: what is collected is what nvidia-smi says."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mgpu_doctor.collect.gpus import Inventory, inventory
from mgpu_doctor.collect.machine import this_machine
from mgpu_doctor.model.facts import Gpu
from mgpu_doctor.model.known import Unknown

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        shutil.which("nvidia-smi") is None or not Path("/dev/nvidiactl").exists(), reason="there is no NVIDIA GPU"
    ),
]


def _dotted(capability: tuple[int, int] | Unknown) -> object:
    return capability if isinstance(capability, Unknown) else "{}.{}".format(*capability)


_COLUMNS: dict[str, Callable[[Gpu], object]] = {
    "name": lambda gpu: gpu.name,
    "uuid": lambda gpu: gpu.uuid,
    "pci.bus_id": lambda gpu: gpu.pci_bus_id,
    "compute_cap": lambda gpu: _dotted(gpu.compute_capability),
    "compute_mode": lambda gpu: gpu.compute_mode,
    "mig.mode.current": lambda gpu: "Enabled" if gpu.mig_mode else "Disabled",
    "ecc.errors.uncorrected.volatile.total": lambda gpu: gpu.ecc_uncorrected,
    "pcie.link.gen.max": lambda gpu: gpu.pcie_generation_max,
    "pcie.link.width.current": lambda gpu: gpu.pcie_width,
    "pcie.link.width.max": lambda gpu: gpu.pcie_width_max,
}
"""What does not change between two looks."""

_EVENTS = (
    "gpu_idle",
    "applications_clocks_setting",
    "sw_power_cap",
    "hw_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
    "sw_thermal_slowdown",
    "sync_boost",
)


@pytest.fixture(scope="module")
def found() -> Inventory:
    return inventory(deadline_s=60)


def ask(*columns: str) -> list[dict[str, str]]:
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={','.join(columns)}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def cards(found: Inventory) -> tuple[Gpu, ...]:
    assert not isinstance(found.gpus, Unknown)
    return found.gpus


def told(text: str) -> bool:
    return not text.startswith("[") and text != "N/A"


def test_every_column(found: Inventory) -> None:
    rows = ask("index", *_COLUMNS)
    assert [int(row["index"]) for row in rows] == [gpu.index for gpu in cards(found)]
    for row, gpu in zip(rows, cards(found), strict=True):
        for column, read in _COLUMNS.items():
            if told(row[column]):
                assert str(read(gpu)) == row[column], column
            elif column != "mig.mode.current":
                assert isinstance(read(gpu), Unknown), column


def test_memory(found: Inventory) -> None:
    for row, gpu in zip(ask("memory.total", "memory.used"), cards(found), strict=True):
        if told(row["memory.total"]):
            assert gpu.memory_gib == pytest.approx(int(row["memory.total"]) / 1024, abs=0.01)
            assert gpu.memory_used_gib == pytest.approx(int(row["memory.used"]) / 1024, abs=0.5)


def test_clock_events(found: Inventory) -> None:
    columns = [f"clocks_event_reasons.{name}" for name in _EVENTS]
    try:
        rows = ask(*columns)
    except subprocess.CalledProcessError:
        pytest.skip("this nvidia-smi has older names for them")
    for row, gpu in zip(rows, cards(found), strict=True):
        active = {name for name in _EVENTS if row[f"clocks_event_reasons.{name}"] == "Active"}
        assert not isinstance(gpu.clock_events, Unknown)
        assert set(gpu.clock_events) - {"gpu_idle"} == active - {"gpu_idle"}


def test_versions(found: Inventory) -> None:
    (version, *_) = ask("driver_version")
    assert found.driver == version["driver_version"]
    assert found.nvml_error is None
    plain = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=True).stdout
    assert f"CUDA Version: {found.driver_cuda}" in plain


def test_topology(found: Inventory) -> None:
    assert not isinstance(found.topology, Unknown)
    assert found.topology == matrix("-m")


def test_peer_access(found: Inventory) -> None:
    words = {
        "OK": "ok",
        "CNS": "chipset not supported",
        "GNS": "GPU not supported",
        "TNS": "topology not supported",
        "DR": "disabled by regkey",
        "NS": "not supported",
        "U": "unknown",
    }
    assert found.peer_access == {pair: words[word] for pair, word in matrix("-p2p", "r").items()}


def matrix(*arguments: str) -> dict[str, str]:
    """The upper half of a matrix of ``nvidia-smi topo``, by pair."""
    done = subprocess.run(["nvidia-smi", "topo", *arguments], capture_output=True, text=True, check=True)
    header, *lines = done.stdout.splitlines()
    count = len(re.findall(r"GPU[0-9]+", header))
    pairs = {}
    for line in lines:
        name, *row = line.split() or [""]
        if re.fullmatch(r"GPU[0-9]+", name):
            first = int(name[3:])
            pairs.update({f"{first}-{second}": row[second] for second in range(first + 1, count)})
    return pairs


def test_signs_of_the_driver() -> None:
    facts = this_machine(frozenset({"gpus"}))
    assert facts.driver_module == facts.driver
    assert facts.device_nodes
    assert isinstance(facts.xid_errors, (tuple, Unknown))
