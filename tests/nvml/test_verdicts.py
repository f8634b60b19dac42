"""The whole program on simulated machines: a healthy one is left alone, a sick one is named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from mgpu_doctor.model.facts import Facts, GpuProcess
from nvml.machines import HEALTHY, HGX, card, cards_of, consumer, hopper, machine
from nvml.simulated import error, require_compiler, simulated_nvml

pytestmark = pytest.mark.usefixtures("compiler")

ABOUT_GPUS = ("MGD2", "MGD703", "MGD704", "MGD705", "MGD706", "MGD707", "MGD711")
"""The other rules about hosts would judge the machine that the tests run on."""

PROGRAM = """
import os
import torch
import torch.distributed as dist

torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group("nccl")
model = torch.nn.Linear(1, 1).cuda()
"""


@pytest.fixture(scope="session")
def compiler() -> None:
    require_compiler()


def findings(
    described: Facts, directory: Path, *arguments: str, faults: Mapping[str, str] | None = None
) -> dict[str, str]:
    """What ``check`` says of a machine's GPUs: messages by code."""
    (directory / "train.py").write_text(PROGRAM)
    with simulated_nvml(described, directory, faults) as env:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            env.pop(name, None)
        done = subprocess.run(
            [sys.executable, "-m", "mgpu_doctor", "check", "--format", "json", *arguments],
            env=env,
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    report = json.loads(done.stdout)
    assert report["crashed"] == []
    found: dict[str, str] = {}
    for finding in report["findings"]:
        if finding["code"].startswith(ABOUT_GPUS):
            found[finding["code"]] = found.get(finding["code"], "") + json.dumps(finding)
    return found


def for_all(described: Facts) -> str:
    return f"torchrun --nproc-per-node {len(cards_of(described))} train.py"


@pytest.mark.parametrize("name", sorted(HEALTHY))
def test_a_healthy_machine(name: str, tmp_path: Path) -> None:
    described = HEALTHY[name]
    assert findings(described, tmp_path) == {}
    command = for_all(described)
    found = findings(described, tmp_path, "--cmd", command)
    # Without a bridge consumer cards do work together, only slower.
    assert set(found) <= ({"MGD704"} if "consumer" in name else set()), found


def test_a_card_that_is_to_be_replaced(tmp_path: Path) -> None:
    found = findings(machine(hopper(0), hopper(1, remap_failed=True), nvswitch=True), tmp_path)
    assert set(found) == {"MGD705"}
    assert "GPU 1" in found["MGD705"]


def test_a_card_that_is_hot_and_one_with_few_lanes(tmp_path: Path) -> None:
    described = machine(
        hopper(0, clock_events=("hw_slowdown", "hw_thermal_slowdown"), temperature_c=96),
        hopper(1, pcie_width=4),
        hopper(2),
        nvswitch=True,
    )
    found = findings(described, tmp_path)
    assert set(found) == {"MGD705"}
    assert "96" in found["MGD705"]
    assert "4 of 16 lanes" in found["MGD705"]


def test_a_fabric_that_has_not_been_started(tmp_path: Path) -> None:
    described = machine(*(hopper(index, fabric_state="not started") for index in range(8)), nvswitch=True)
    assert set(findings(described, tmp_path)) == {"MGD703"}


def test_one_process_for_each_card_only(tmp_path: Path) -> None:
    described = machine(card(0, compute_mode="Prohibited"), card(1))
    assert "MGD706" in findings(described, tmp_path, "--cmd", for_all(described))


def test_a_card_that_is_in_use(tmp_path: Path) -> None:
    described = machine(card(0, memory_used_gib=40.0), card(1), gpu_processes=(GpuProcess(0, 1, memory_gib=40.0),))
    found = findings(described, tmp_path, "--cmd", for_all(described))
    assert set(found) == {"MGD215"}
    assert "40.0 GiB" in found["MGD215"]


def test_more_ranks_than_cards(tmp_path: Path) -> None:
    assert set(findings(machine(card(0)), tmp_path, "--cmd", "torchrun --nproc-per-node 2 train.py")) == {"MGD207"}


def test_a_card_that_the_machine_does_not_have(tmp_path: Path) -> None:
    command = "CUDA_VISIBLE_DEVICES=0,8 torchrun --nproc-per-node 2 train.py"
    assert "MGD203" in findings(HGX, tmp_path, "--cmd", command)


def test_two_models(tmp_path: Path) -> None:
    described = machine(consumer(0, "NVIDIA GeForce RTX 3060", 12.0), consumer(1, "NVIDIA RTX A6000", 48.0))
    command = "CUDA_VISIBLE_DEVICES=1 torchrun --nproc-per-node 1 train.py"
    assert "MGD209" in findings(described, tmp_path, "--cmd", command)


def test_ranks_on_instances(tmp_path: Path) -> None:
    described = HEALTHY["MIG"]
    assert "MGD210" in findings(described, tmp_path, "--cmd", "torchrun --nproc-per-node 2 train.py")


def test_versions_that_do_not_match(tmp_path: Path) -> None:
    found = findings(HGX, tmp_path, faults={"init": error(18)})
    assert set(found) == {"MGD711"}
    assert "Driver/library version mismatch" in found["MGD711"]


def test_a_lost_card(tmp_path: Path) -> None:
    found = findings(HGX, tmp_path, faults={"3.handle": error(15)})
    assert "GPU 3" in " ".join(found.values())
