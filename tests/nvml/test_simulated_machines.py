"""The GPUs of many machines, collected through the real nvidia-ml-py from a library that stands in for the driver's."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pynvml
import pytest

from mgpu_doctor.model.facts import Facts, GpuProcess
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.record import replace
from nvml.machines import HGX, card, cards_of, consumer, hopper, machine, pairs
from nvml.simulated import CALLS, HANGS, error, require_compiler, simulated_nvml

pytestmark = pytest.mark.usefixtures("compiler")

GPU_IS_LOST = 15
NO_PERMISSION = 4
DRIVER_NOT_LOADED = 9
VERSION_MISMATCH = 18
UNKNOWN_ERROR = 999

COLLECT = """
import pickle, sys, time
from mgpu_doctor.collect.gpus import inventory
start = time.perf_counter()
found = inventory(deadline_s=float(sys.argv[1]), pairs=sys.argv[2] == "True", root=sys.argv[3])
took = time.perf_counter() - start
sys.stdout.buffer.write(pickle.dumps(({name: getattr(found, name) for name in found.__match_args__}, took)))
"""


@pytest.fixture(scope="session")
def compiler() -> None:
    require_compiler()


def collect(
    described: Facts,
    directory: Path,
    faults: Mapping[str, str] | None = None,
    *,
    deadline_s: float = 30,
    with_pairs: bool = True,
    old_driver: bool = False,
    root: Path | None = None,
) -> tuple[dict[str, Any], float, int]:
    """What the collector reports, how long it took, and how many questions NVML was asked.

    ``root`` is where the signs of a driver are looked for; without it there are none but the library.
    """
    with simulated_nvml(described, directory, faults, old_driver=old_driver) as env:
        done = subprocess.run(
            [sys.executable, "-c", COLLECT, str(deadline_s), str(with_pairs), str(root or directory)],
            env=env,
            capture_output=True,
            check=True,
            timeout=60,
        )
        calls = Path(env[CALLS])
        found, took = pickle.loads(done.stdout)
        return found, took, int(calls.read_text()) if calls.exists() else 0


@pytest.mark.parametrize(
    "described",
    [
        pytest.param(HGX, id="eight A100 behind NVSwitch"),
        pytest.param(machine(*map(hopper, range(8)), path="NV18", nvswitch=True), id="eight H100"),
        pytest.param(
            machine(
                consumer(0, "NVIDIA GeForce RTX 3060", 12.0),
                consumer(1, "NVIDIA RTX A6000", 48.0, memory_used_gib=3.25, utilization_percent=97),
                path="PHB",
                peer_access={"0-1": "chipset not supported"},
            ),
            id="two models without peer access",
        ),
        pytest.param(
            machine(
                *(card(index, nvlinks=(True,) * 4) for index in range(4)),
                topology={"0-1": "NV4", "0-2": "NODE", "0-3": "SYS", "1-2": "PXB", "1-3": "PIX", "2-3": "NV4"},
            ),
            id="pairs joined by bridges",
        ),
        pytest.param(machine(card(0, nvlinks=(False,) * 12)), id="one card without its bridge"),
        pytest.param(
            machine(
                card(
                    0,
                    mig_mode=True,
                    mig=("MIG-aaaaaaaa-0000-0000-0000-000000000000", "MIG-bbbbbbbb-0000-0000-0000-000000000000"),
                    mig_profiles=("1g.10gb", "3g.40gb"),
                    utilization_percent=Unknown("NVML does not tell: Not Supported"),
                )
            ),
            id="MIG instances",
        ),
        pytest.param(machine(card(0, mig_mode=True)), id="MIG without instances"),
        pytest.param(
            machine(
                hopper(0, ecc_uncorrected=7, pages_pending=True, fabric_state="not started"),
                hopper(1, remap_failed=True, clock_events=("hw_slowdown", "hw_thermal_slowdown"), temperature_c=96),
                hopper(2, pcie_width=4, pcie_generation=1, fabric_state="completed: Unknown Error"),
                hopper(
                    3, compute_mode="Exclusive_Process", nvlinks=(True,) * 17 + (False,), fabric_state="in progress"
                ),
                topology={**pairs(4, "NV18"), "0-3": "NV17", "1-3": "NV17", "2-3": "NV17"},
                peer_access={**pairs(4, "ok"), "0-1": "topology not supported", "2-3": "disabled by regkey"},
                nvswitch=True,
            ),
            id="sick cards",
        ),
        pytest.param(
            machine(
                card(
                    0,
                    compute_capability=(7, 0),
                    nvlinks=(),
                    remap_failed=Unknown("this card retires pages and remaps no rows"),
                    pages_pending=True,
                )
            ),
            id="a card that retires pages",
        ),
    ],
)
def test_what_the_machine_has_is_what_is_found(described: Facts, tmp_path: Path) -> None:
    found, _, _ = collect(described, tmp_path)
    assert found["gpus"] == described.gpus
    for name in ("driver", "driver_cuda", "topology", "peer_access", "nvswitch"):
        assert found[name] == getattr(described, name)
    assert found["processes"] == ()
    assert found["nvml_error"] is None


def test_few_questions(tmp_path: Path) -> None:
    """Each takes up to a millisecond on a real card; ``check`` asks eight cards."""
    _, _, with_pairs = collect(HGX, tmp_path)
    found, _, without = collect(HGX, tmp_path, with_pairs=False)
    assert found["topology"] == Unknown("pairs of GPUs were not asked for")
    assert with_pairs - without == 28
    assert without <= 8 * 36 + 8
    _, _, hoppers = collect(machine(*map(hopper, range(8)), nvswitch=True), tmp_path, with_pairs=False)
    assert hoppers <= 8 * 26 + 8


def test_profiles_that_no_name_tells(tmp_path: Path) -> None:
    described = machine(card(0, mig_mode=True, mig=("MIG-a", "MIG-b"), mig_profiles=("1g.10gb", "3g.40gb")))
    faults = {
        "0.mig.0.name": error(3),
        "0.mig.0.shape": "1 9728",
        "0.mig.1.name": "NVIDIA A100-SXM4-80GB",
        "0.mig.1.shape": "3 40192",
    }
    found, _, _ = collect(described, tmp_path, faults)
    assert found["gpus"] == described.gpus


def test_instances_that_may_not_be_listed(tmp_path: Path) -> None:
    found, _, _ = collect(machine(card(0, mig_mode=True)), tmp_path, {"0.mig_most": error(NO_PERMISSION)})
    hidden = Unknown("NVML does not tell: Insufficient Permissions")
    assert found["gpus"] == (card(0, mig_mode=True, mig=hidden, mig_profiles=hidden),)


def test_processes(tmp_path: Path) -> None:
    living = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    memory = Unknown("NVML does not tell")
    described = machine(
        card(0, memory_used_gib=30.0),
        card(1),
        gpu_processes=(
            GpuProcess(0, living.pid, memory_gib=20.0),
            GpuProcess(0, gone.pid, memory_gib=memory),
            GpuProcess(1, zombie.pid, memory_gib=1.5),
        ),
    )
    try:
        found, _, _ = collect(described, tmp_path)
    finally:
        living.kill()
        living.wait()
        zombie.wait()
    first, second, third = found["processes"]
    assert [one.gpu for one in found["processes"]] == [0, 0, 1]
    assert (first.pid, first.memory_gib, second.memory_gib, third.memory_gib) == (living.pid, 20.0, memory, 1.5)
    if os.readlink("/proc/self/ns/pid") != "pid:[4026531836]":
        assert all(isinstance(one.alive, Unknown) for one in found["processes"])
        pytest.skip("in a PID namespace of its own nobody can be told dead from hidden")
    assert (first.alive, second.alive, third.alive) == (True, False, False)
    assert "time.sleep(600)" in first.command
    assert first.parent == os.getpid()
    assert isinstance(second.command, Unknown)
    assert isinstance(second.parent, Unknown)


def test_processes_in_a_pid_namespace_of_its_own(tmp_path: Path) -> None:
    """There a number may be a stranger's: nothing is said of it, and nobody is called dead."""
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    trial = subprocess.run([*unshare, "true"], capture_output=True, check=False) if shutil.which("unshare") else None
    if trial is None or trial.returncode:
        pytest.skip("this system lets nobody start a PID namespace")
    described = machine(
        card(0), gpu_processes=(GpuProcess(0, 1, memory_gib=2.0), GpuProcess(0, 4194303, memory_gib=3.0))
    )
    with simulated_nvml(described, tmp_path) as env:
        done = subprocess.run(
            [*unshare, sys.executable, "-c", COLLECT, "30", "True", "/"],
            env=env,
            capture_output=True,
            check=True,
            timeout=60,
        )
    found, _ = pickle.loads(done.stdout)
    assert [(one.pid, one.memory_gib) for one in found["processes"]] == [(1, 2.0), (4194303, 3.0)]
    for one in found["processes"]:
        for value in (one.alive, one.command, one.parent, one.user):
            assert isinstance(value, Unknown)


def test_graphics_and_compute_are_one_process(tmp_path: Path) -> None:
    faults = {"0.compute": "4194300:1073741824 4194301:-", "0.graphics": "4194300:2147483648 4194302:-"}
    found, _, _ = collect(machine(card(0)), tmp_path, faults)
    held = [(one.pid, one.memory_gib) for one in found["processes"]]
    silent = Unknown("NVML does not tell")
    assert held == [(4194300, 2.0), (4194301, silent), (4194302, silent)]


def test_processes_that_may_not_be_seen(tmp_path: Path) -> None:
    found, _, _ = collect(HGX, tmp_path, {"5.compute": error(NO_PERMISSION)})
    assert found["processes"] == Unknown("NVML does not tell: Insufficient Permissions")
    assert found["gpus"] == HGX.gpus


def test_a_lost_card_hides_no_other(tmp_path: Path) -> None:
    found, _, _ = collect(HGX, tmp_path, {"3.handle": error(GPU_IS_LOST)})
    lost = found["gpus"][3]
    assert lost.uuid == lost.temperature_c == lost.nvlinks == Unknown("NVML cannot reach it: GPU is lost")
    assert [one for one in found["gpus"] if one.index != 3] == [one for one in cards_of(HGX) if one.index != 3]
    assert found["processes"] == ()
    assert "0-3" not in found["topology"]
    assert len(found["topology"]) == len(found["peer_access"]) == 21
    assert found["nvml_error"] == "GPU is lost (GPU 3)"


def test_a_card_that_is_lost_while_it_is_asked(tmp_path: Path) -> None:
    found, _, _ = collect(HGX, tmp_path, {f"3.{key}": error(GPU_IS_LOST) for key in ("utilization", "temperature")})
    assert found["gpus"][3].uuid == card(3).uuid
    assert found["gpus"][3].temperature_c == Unknown("NVML does not tell: GPU is lost")
    assert found["nvml_error"] == "GPU is lost (GPU 3)"


def test_one_question_that_fails_spoils_no_other(tmp_path: Path) -> None:
    silent = Unknown("NVML does not tell: Unknown Error")
    fields = {"name": "name", "temperature": "temperature_c", "ecc": "ecc_uncorrected", "pcie_width": "pcie_width"}
    for key, field in fields.items():
        found, _, _ = collect(machine(card(0)), tmp_path, {f"0.{key}": error(UNKNOWN_ERROR)})
        assert found["gpus"] == (card(0, **{field: silent}),)


def test_versions_that_do_not_match(tmp_path: Path) -> None:
    found, _, _ = collect(HGX, tmp_path, {"init": error(VERSION_MISMATCH)})
    assert found["nvml_error"] == "Driver/library version mismatch (library 13.580.159.04)"
    assert found["gpus"] == found["driver"] == Unknown(f"NVML cannot start: {found['nvml_error']}")


def test_versions_that_do_not_match_are_both_named(tmp_path: Path) -> None:
    module = tmp_path / "proc" / "driver" / "nvidia" / "version"
    module.parent.mkdir(parents=True)
    module.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.07  Sat Feb 17 22:55:48 UTC 2024\n")
    found, _, _ = collect(HGX, tmp_path, {"init": error(VERSION_MISMATCH)}, root=tmp_path)
    assert found["nvml_error"] == ("Driver/library version mismatch (kernel module 535.161.07, library 13.580.159.04)")


@pytest.mark.parametrize("code", [DRIVER_NOT_LOADED, NO_PERMISSION, UNKNOWN_ERROR])
def test_whatever_nvml_says_where_a_driver_is(code: int, tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    found, _, _ = collect(HGX, tmp_path, {"init": error(code)}, root=tmp_path)
    words = {DRIVER_NOT_LOADED: "Driver Not Loaded", NO_PERMISSION: "Insufficient Permissions"}
    assert found["nvml_error"] == words.get(code, "Unknown Error")


def test_cards_that_a_job_may_not_use(tmp_path: Path) -> None:
    """NVML counts them, but nvidia-smi and CUDA number the others from 0."""
    described = machine(
        *map(hopper, range(4)), path="NV18", nvswitch=True, gpu_processes=(GpuProcess(3, 4194300, memory_gib=1.0),)
    )
    denied = {"0.handle": error(NO_PERMISSION), "2.handle": error(NO_PERMISSION)}
    found, _, _ = collect(described, tmp_path, denied)
    assert found["gpus"] == (
        hopper(0, uuid=hopper(1).uuid, pci_bus_id=hopper(1).pci_bus_id),
        hopper(1, uuid=hopper(3).uuid, pci_bus_id=hopper(3).pci_bus_id),
    )
    assert [one.gpu for one in found["processes"]] == [1]
    assert found["topology"] == {"0-1": "NV18"}
    assert found["peer_access"] == {"0-1": "ok"}
    late = Unknown("NVML did not answer within 3 s")
    found, _, _ = collect(described, tmp_path, {**denied, "3.handle": HANGS}, deadline_s=3)
    assert found["gpus"] == found["processes"] == late


def test_a_library_without_hardware_is_no_fault(tmp_path: Path) -> None:
    found, _, _ = collect(HGX, tmp_path, {"init": error(DRIVER_NOT_LOADED)})
    assert found["nvml_error"] == Unknown(
        "no NVIDIA GPU or driver is seen on this machine (NVML says: Driver Not Loaded)"
    )


@pytest.mark.parametrize("key", ["init", "count", "driver"])
def test_nvml_that_hangs_before_it_lists_the_cards(key: str, tmp_path: Path) -> None:
    late = Unknown("NVML did not answer within 1 s")
    start = time.monotonic()
    found, took, _ = collect(HGX, tmp_path, {key: HANGS}, deadline_s=1)
    assert found["gpus"] == found["processes"] == found["topology"] == late
    assert found["nvml_error"] == late.reason
    assert took < 3
    # The program ends although a thread of it is still waiting.
    assert time.monotonic() - start < 15


@pytest.mark.parametrize("key", ["handle", "temperature", "compute"])
def test_nvml_that_hangs_at_one_card(key: str, tmp_path: Path) -> None:
    late = Unknown("NVML did not answer within 3 s")
    found, _, _ = collect(HGX, tmp_path, {f"5.{key}": HANGS}, deadline_s=3)
    assert [one for one in found["gpus"] if one.index != 5] == [one for one in cards_of(HGX) if one.index != 5]
    stuck = found["gpus"][5]
    seen = {"handle": (late, late), "temperature": (card(5).uuid, late), "compute": (card(5).uuid, 31)}
    assert (stuck.uuid, stuck.temperature_c, stuck.fabric_state) == (
        *seen[key],
        "not supported" if key == "compute" else late,
    )
    assert found["driver"] == "580.159.04"
    assert found["processes"] == found["topology"] == late
    assert found["nvml_error"] == "NVML did not answer within 3 s (GPU 5)"


def test_an_old_driver(tmp_path: Path) -> None:
    """Functions that it lacks leave their own fields unknown; for some there is an older one."""
    absent = Unknown("NVML does not tell: Function Not Found")
    described = machine(
        card(
            0,
            remap_failed=Unknown("this card retires pages and remaps no rows"),
            fabric_state=absent,
            nvlinks=(True,) * 4,
        ),
        card(1, remap_failed=Unknown("NVML does not tell: Not Supported"), fabric_state=absent, nvlinks=(True,) * 4),
        gpu_processes=(GpuProcess(1, 4194300, memory_gib=1.0),),
        driver="470.256.02",
    )
    found, _, _ = collect(described, tmp_path, {"1.pages_pending": error(3)}, old_driver=True)
    first, second = cards_of(described)
    assert found["gpus"] == (
        first,
        replace(second, pages_pending=Unknown("NVML does not tell: Not Supported")),
    )
    if hasattr(pynvml, "nvmlDeviceGetComputeRunningProcesses_v2"):
        assert [one.memory_gib for one in found["processes"]] == [1.0]
    else:  # nvidia-ml-py before 12.550
        assert found["processes"] == absent
    assert found["topology"] == Unknown("NVML does not tell where a link leads: Function Not Found")
    assert found["nvml_error"] is None


@pytest.mark.parametrize(
    ("described", "devices", "code", "words"),
    [
        pytest.param(
            machine(card(0, memory_used_gib=40.0), card(1), gpu_processes=(GpuProcess(0, 1, memory_gib=40.0),)),
            "0,1",
            "MGD215",
            "40.0 GiB",
            id="a card in use",
        ),
        pytest.param(
            machine(consumer(0, "NVIDIA GeForce RTX 3060", 12.0), consumer(1, "NVIDIA RTX A6000", 48.0)),
            "1",
            "MGD209",
            "3060",
            id="two models",
        ),
        pytest.param(machine(card(0)), "0,1", "MGD203", "1 GPU", id="one card only"),
    ],
)
def test_check_names_what_the_machine_shows(
    described: Facts, devices: str, code: str, words: str, tmp_path: Path
) -> None:
    """The whole program on a simulated machine."""
    (tmp_path / "train.py").write_text("import torch.distributed as dist\ndist.init_process_group()\n")
    command = f"CUDA_VISIBLE_DEVICES={devices} torchrun --nproc-per-node {len(devices.split(','))} train.py"
    arguments = ["check", "--format", "json", "--select", "MGD203,MGD209,MGD215", "--cmd", command]
    with simulated_nvml(described, tmp_path) as env:
        done = subprocess.run(
            [sys.executable, "-m", "mgpu_doctor", *arguments],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    (finding,) = json.loads(done.stdout)["findings"]
    assert finding["code"] == code
    assert words in json.dumps(finding)


def test_the_machine_of_the_facts_file(tmp_path: Path) -> None:
    """All that is collected of GPUs reaches the facts."""
    code = (
        "import pickle, sys; from mgpu_doctor.collect.machine import this_machine; "
        "facts = this_machine(frozenset({'gpus'})); "
        "sys.stdout.buffer.write(pickle.dumps({name: getattr(facts, name) for name in facts.__match_args__}))"
    )
    with simulated_nvml(HGX, tmp_path) as env:
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True, timeout=60)
    facts = pickle.loads(done.stdout)
    for name in ("gpus", "gpu_processes", "driver", "driver_cuda", "topology", "peer_access", "nvswitch"):
        assert facts[name] == getattr(HGX, name)
    assert facts["nvml_error"] is None
    if not Path("/dev/nvidiactl").exists():
        hidden = Unknown("the driver answers, but this cannot be seen from here")
        assert facts["driver_module"] == facts["device_nodes"] == hidden


def test_check_ends_although_nvml_hangs(tmp_path: Path) -> None:
    with simulated_nvml(HGX, tmp_path, {"init": HANGS}) as env:
        done = subprocess.Popen(
            [sys.executable, "-m", "mgpu_doctor", "check", "--cmd", "torchrun --nproc-per-node 2 train.py"],
            env=env,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            done.communicate(timeout=40)
        except subprocess.TimeoutExpired:
            done.send_signal(signal.SIGKILL)
            done.communicate()
            raise
    assert done.returncode in (0, 1)


def test_a_job_without_any_card(tmp_path: Path) -> None:
    """The driver answers, and lists nothing that this process may use: that is known, not unknown."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    denied = {"0.handle": error(NO_PERMISSION), "1.handle": error(NO_PERMISSION)}
    found, _, _ = collect(machine(card(0), card(1)), tmp_path, denied, root=tmp_path)
    assert found["gpus"] == found["processes"] == found["device_nodes"] == ()
    assert found["topology"] == found["peer_access"] == {}
    assert found["nvml_error"] is None
