"""What the doctor makes of workers on GPUs: identity by UUID, who does the collectives, links; the driver's words."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mgpu_doctor.model.facts import Facts, Gpu
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.observation import Observation
from mgpu_doctor.probe import worker
from mgpu_doctor.probe.measure import Measurement
from mgpu_doctor.probe.session import opened
from mgpu_doctor.probe.start import Start
from probing import left_of, scratch, stage, states

UUIDS = ("GPU-aaaa0000-0000-0000-0000-000000000000", "GPU-bbbb0000-0000-0000-0000-000000000000", "GPU-cccc0000-0-0-0-0")
FACTS = Facts(gpus=tuple(Gpu(index + 4, uuid=uuid) for index, uuid in enumerate(UUIDS)))
SPAWN = """
import os, subprocess, sys
def start(rank):
    told = dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=sys.argv[3], MASTER_ADDR="h", MASTER_PORT="1")
    return subprocess.Popen([sys.executable, sys.argv[1], sys.argv[2]], env={**os.environ, **told})
children = [start(rank) for rank in range(int(sys.argv[3]))]
sys.exit(max(child.wait() for child in children))
"""


def seen_with(indices: tuple[int, ...], uuids: tuple[str, ...] = UUIDS, facts: Facts = FACTS) -> Observation:
    stand_in = str(Path(__file__).with_name("stand_in_worker.py"))
    environment = {**os.environ, "STAND_IN_DEVICES": json.dumps({"index": indices, "uuids": uuids})}
    with scratch() as place:
        with opened("feedabba", 40, cpu=False) as session:
            argv = (sys.executable, "-c", SPAWN, stand_in, session.worker, str(len(indices)))
            start = Start(argv, environment, "/", "three ranks", len(indices), Unknown("not said"))
            seen = Measurement(session, start, facts, lambda _: None).run()
        assert left_of(place) == []
    return seen


def test_three_ranks_on_three_devices() -> None:
    seen = seen_with((0, 1, 2))
    assert set(states(seen).values()) == {"ok"}
    assert (seen.on_gpu, seen.backend) == (True, "nccl")
    assert [one.uuid for one in seen.ranks] == [*UUIDS]
    assert [one.physical_index for one in seen.ranks] == [4, 5, 6]
    assert [one.device_index for one in seen.ranks] == [0, 1, 2]
    assert seen.ranks[1].pci_bus_id == "0000:bB:00.0"
    assert seen.sum_measured == (6.0, 6.0, 6.0)
    assert seen.all_reduce_gib_per_s == pytest.approx(1000 * 4 / 3)
    assert [(link.a, link.b, link.peer_access) for link in seen.links] == [(0, 1, True), (0, 2, False), (1, 2, True)]
    assert [link.gib_per_s for link in seen.links] == [2.0, 2.0, 2.0]
    assert [link.transport for link in seen.links] == ["SHM/direct", "P2P/CUMEM", "P2P/CUMEM"]
    assert seen.idle_uuids == ()
    assert seen.versions["nccl"] == "2.28.9"
    assert seen.notes == ()


def test_ranks_on_one_device_are_measured_without_nccl() -> None:
    seen = seen_with((0, 0), UUIDS[:1])
    assert [one.uuid for one in seen.ranks] == [UUIDS[0], UUIDS[0]]
    assert [(one.solo_ms, one.together_ms) for one in seen.ranks] == [(1.43, 3.6), (1.43, 3.6)]
    assert seen.backend == "gloo"
    assert states(seen)["group"] == "ok"
    assert "two ranks on one device" in stage(seen, "group").detail
    assert states(seen)["collective"] == states(seen)["links"] == "skipped"
    assert not any(one.state in ("failed", "hung") for one in seen.stages)
    (note,) = seen.notes
    assert note.startswith("Local rank 1 has no device of its own, 1 being visible")


def test_instances_of_one_gpu_are_one_device_to_nccl() -> None:
    seen = seen_with((0, 1), ("MIG-a1", "MIG-a2"))
    assert [one.uuid for one in seen.ranks] == ["MIG-a1", "MIG-a2"]
    assert seen.backend == "gloo"
    assert states(seen)["collective"] == "skipped"


def test_devices_that_nobody_uses_are_idle() -> None:
    assert seen_with((0, 1)).idle_uuids == (UUIDS[2],)


def test_a_device_that_the_inventory_lacks_has_no_number() -> None:
    seen = seen_with((0, 1), facts=Facts())
    assert all(isinstance(one.physical_index, Unknown) for one in seen.ranks)
    mig = Facts(gpus=(Gpu(7, uuid="GPU-x", mig=(UUIDS[1],)),))
    assert [one.physical_index for one in seen_with((1, 1), facts=mig).ranks] == [7, 7]


DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuGetErrorName(int e, const char **s) { *s = "CUDA_ERROR_SYSTEM_NOT_READY"; return e == 802 ? 0 : 1; }
int cuDeviceGetCount(int *n) { *n = 2; return 0; }
int cuDeviceGet(int *d, int i) { *d = i + 10; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, d == 10 ? "NVIDIA H200" : "MIG 1g.18gb", n); return 0; }
int cuDeviceGetPCIBusId(char *s, int n, int d) { strncpy(s, "0000:1B:00.0", n); return 0; }
int cuDeviceGetUuid(unsigned char *u, int d) { for (int i = 0; i < 16; i++) u[i] = i; return 0; }
int cuDeviceGetUuid_v2(unsigned char *u, int d) { for (int i = 0; i < 16; i++) u[i] = d == 10 ? i : 16 + i; return 0; }
int cuDeviceCanAccessPeer(int *can, int a, int b) { *can = a == 10 && b == 11; return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("status", [0, 802])
def test_the_driver_is_asked_as_its_interface_wants(tmp_path: Path, status: int) -> None:
    (tmp_path / "driver.c").write_text(DRIVER.replace("INIT", str(status)))
    library = str(tmp_path / "libcuda.so.1")
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", library, str(tmp_path / "driver.c")], check=True)
    code = (
        "import importlib.util, json, sys\n"
        "spec = importlib.util.spec_from_file_location('w', sys.argv[1])\n"
        "w = importlib.util.module_from_spec(spec); spec.loader.exec_module(w)\n"
        "d = w.Driver(); print(json.dumps([d.error, d.devices(), d.peers()]))"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, worker.__file__], env=environment, capture_output=True, text=True, check=True
    )
    error, devices, peers = json.loads(done.stdout)
    if status:
        assert (error, devices, peers) == ("CUDA_ERROR_SYSTEM_NOT_READY", [], [])
        return
    assert error is None
    assert [device["uuid"] for device in devices] == [
        "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f",
        "MIG-10111213-1415-1617-1819-1a1b1c1d1e1f",
    ]
    assert devices[0] == {**devices[0], "index": 0, "name": "NVIDIA H200", "bus": "0000:1B:00.0"}
    assert peers == [[0, 1, True]]


def test_nccls_own_words_are_passed_on() -> None:
    error = RuntimeError(
        "NCCL error in: x.cpp:1, invalid usage, NCCL version 2.28.9\nncclInvalidUsage: This usually reflects …\n"
        "Last error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 60\n"
    )
    text = worker.told_of(error)
    assert text.startswith("RuntimeError: NCCL error in: x.cpp:1")
    assert text.endswith("Last error: Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 60")
    assert worker.told_of(KeyError()) == "KeyError"
