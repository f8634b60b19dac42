"""The rules about the machine beyond their examples: healthy machines, thresholds, fixes, and what programs do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from judging import found, mended
from mgpu_checks import CHECKS
from mgpu_checks.devices import device_order_ambiguous, visible_devices_malformed, visible_devices_misspelt
from mgpu_checks.host import (
    fabric_manager_down,
    gpu_unhealthy,
    limits_too_low,
    memlock_too_small,
    nccl_setting_harmful,
    nvml_unavailable,
    orphaned_gpu_memory,
    peer_to_peer_broken,
    platform_without_nccl,
    shm_too_small,
)
from mgpu_checks.rendezvous import network_isolated
from mgpu_doctor.authoring import Finding, Severity
from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.registry import Registry
from oracle_environments import ENVIRONMENTS, requires_oracle, run_parser

TRAINER = {
    "t.py": "from transformers import HfArgumentParser, Trainer, TrainingArguments\n"
    "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\nTrainer(args=args).train()\n"
}
MANY_NODES = "torchrun --nnodes 2 --node_rank 0 --nproc_per_node 8 --master_addr 10.0.0.5 --master_port 29500 t.py"


def gpu(index: int, name: str, memory: float, **more: object) -> dict[str, object]:
    return {
        "index": index,
        "name": name,
        "memory_gib": memory,
        "uuid": f"GPU-0000000{index}-1111-2222-3333-444444444444",
        "pci_bus_id": f"00000000:{index + 16:02X}:00.0",
        "memory_used_gib": 0.0,
        "mig_mode": False,
        "mig": [],
        "compute_mode": "Default",
        "utilization_percent": 0,
        "clock_events": ["gpu_idle"],
        "pcie_generation": 1,
        "pcie_generation_max": 4,
        "pcie_width": 16,
        "pcie_width_max": 16,
        "nvlinks": [],
        "fabric_state": "not supported",
        **more,
    }


GEFORCE, H100 = "NVIDIA GeForce RTX 4090", "NVIDIA H100 80GB HBM3"
DGX_GPU = {
    "compute_capability": "9.0",
    "ecc_uncorrected": 0,
    "pages_pending": False,
    "remap_failed": False,
    "nvlinks": [True] * 18,
    "fabric_state": "completed",
}
QUIET: dict[str, object] = {
    "driver": "550.54.15",
    "platform": "Linux-6.8.0-x86_64",
    "env": {},
    "env_names": [],
    "gpu_processes": [],
    "container": None,
    "scheduler": None,
    "nvml_error": None,
    "xid_errors": [],
    "ports_in_use": {},
    "accelerate_default_config": None,
    "shm_gib": 31.0,
    "cpu_count": 16,
    "interfaces": {"lo": "127.0.0.1", "eth0": "10.0.0.5"},
    "infiniband": {},
    "limits": {"nofile": 1024, "nofile_hard": 1048576, "memlock_kib": 8192, "nproc": 127000},
    "packages": {"torch": "2.6.0+cu124", "accelerate": "1.7.0", "transformers": "4.52.4"},
    "torch_cuda": "12.4",
}
IDLE = {"memory_used_gib": 0.9, "utilization_percent": 3}

HEALTHY: dict[str, dict[str, object]] = {
    "a laptop that draws its desktop, asleep": {
        **QUIET,
        "gpus": [
            gpu(
                0,
                "NVIDIA GeForce RTX 4060 Laptop GPU",
                8,
                memory_used_gib=1.1,
                pcie_width=8,
                pcie_width_max=16,
                clock_events=["sw_power_cap"],
            )
        ],
    },
    "a desktop with two cards in halved slots": {
        **QUIET,
        "gpus": [gpu(0, GEFORCE, 24, pcie_width=8, **IDLE), gpu(1, GEFORCE, 24, pcie_width=8)],
        "topology": {"0-1": "PHB"},
        "peer_access": {"0-1": "chipset not supported"},
        "iommu": "enabled",
        "nvswitch": False,
    },
    "a CI machine without GPUs, in a container": {
        **QUIET,
        "gpus": [],
        "container": {"runtime": "docker"},
        "shm_gib": 0.0625,
        "cpu_count": 2,
        "limits": {"nofile": 1048576, "memlock_kib": 64},
    },
    "a container on a GPU machine that was given none": {
        **QUIET,
        "gpus": None,
        "container": {"runtime": "docker"},
        "shm_gib": 0.0625,
        "device_nodes": [],
        "driver_module": "550.54.15",
        "nvml_error": "NVML Shared Library Not Found",
    },
    "a workstation under WSL": {
        **QUIET,
        "gpus": [gpu(0, GEFORCE, 24, memory_used_gib=13.0)],
        "platform": "Linux-5.15.153.1-microsoft-standard-WSL2-x86_64-with-glibc2.35",
        "gpu_processes": None,
    },
    "two GPUs of a Slurm job": {
        **QUIET,
        "gpus": [gpu(0, H100, 80, **DGX_GPU), gpu(1, H100, 80, **DGX_GPU)],
        "scheduler": "slurm",
        "env": {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_JOB_ID": "77", "RANK": "0", "WORLD_SIZE": "2"},
        "env_names": ["CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "RANK", "WORLD_SIZE"],
        "nvswitch": True,
        "topology": {"0-1": "NV18"},
        "infiniband": {"mlx5_0": "ACTIVE"},
        "limits": {"memlock_kib": -1, "nofile": 131072, "nproc": -1},
    },
    "a DGX": {
        **QUIET,
        "gpus": [gpu(index, H100, 80, **DGX_GPU) for index in range(8)],
        "nvswitch": True,
        "services": {"nvidia-fabricmanager": "active"},
        "fabric_manager_version": "550.54.15",
        "topology": {f"{a}-{b}": "NV18" for a in range(8) for b in range(a + 1, 8)},
        "peer_access": {f"{a}-{b}": "ok" for a in range(8) for b in range(a + 1, 8)},
        "infiniband": {f"mlx5_{index}": "ACTIVE" for index in range(8)},
        "iommu": "enabled",
        "pci_acs": {"0000:00:01.1": "enabled"},
        "limits": {"memlock_kib": -1, "nofile": 1024, "nofile_hard": 1048576, "nproc": -1},
        "cpu_count": 224,
        "shm_gib": 1007.0,
    },
    "a pod with all GPUs of a node and a larger /dev/shm": {
        **QUIET,
        "gpus": [gpu(index, H100, 80, **DGX_GPU, memory_used_gib=61.0) for index in range(8)],
        "container": {"runtime": "containerd"},
        "scheduler": "kubernetes",
        "nvswitch": True,
        "services": {},
        "shm_gib": 64.0,
        "env": {"WORLD_SIZE": "16", "RANK": "8", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"},
    },
    "a Mac": {**QUIET, "gpus": [], "platform": "Darwin-23.5.0-arm64", "cpu_count": 10, "limits": {"nofile": 256}},
    "a Windows desktop": {**QUIET, "gpus": [gpu(0, GEFORCE, 24, **IDLE)], "platform": "Windows-11-10.0.22631"},
}


@pytest.mark.parametrize("machine", HEALTHY)
@pytest.mark.parametrize("command", [None, "python t.py"])
def test_a_healthy_machine_is_clean(machine: str, command: str | None, tmp_path: Path) -> None:
    for code, severity, message in judge(HEALTHY[machine], command, tmp_path):
        assert severity is Severity.ADVICE, f"{code}: {message}"


@pytest.mark.parametrize(
    ("machine", "command"),
    [
        ("a desktop with two cards in halved slots", "torchrun --nproc_per_node 2 t.py"),
        ("two GPUs of a Slurm job", "torchrun --nproc_per_node 2 t.py"),
        ("a DGX", "torchrun --nproc_per_node 8 t.py"),
        ("a DGX", "CUDA_VISIBLE_DEVICES=4,5 torchrun --nproc_per_node 2 t.py"),
        ("a DGX", MANY_NODES),
        ("a pod with all GPUs of a node and a larger /dev/shm", "torchrun --nproc_per_node 8 t.py"),
    ],
)
def test_ranks_on_a_healthy_machine_are_clean(machine: str, command: str, tmp_path: Path) -> None:
    for code, severity, message in judge(HEALTHY[machine], command, tmp_path):
        assert severity is Severity.ADVICE, f"{code}: {message}"


def judge(facts: Mapping[str, object], command: str | None, top: Path) -> list[tuple[str, Severity, str]]:
    """What all rules together say."""
    (top / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    work = top / "work"
    work.mkdir()
    (work / "t.py").write_text("import torch\n\nif torch.cuda.is_available():\n    torch.ones(1).cuda()\n", "utf-8")
    request = Request(command=command, facts=str(top / "facts.json"), directory=str(work))
    report = diagnose(request, Registry(CHECKS, ()))
    assert not [outcome for outcome in report.outcomes if outcome.kind.value == "crashed"]
    return [(finding.code, finding.severity, finding.message) for finding in report.findings]


@pytest.mark.parametrize(
    ("size", "severity"),
    [(0.0156, Severity.ERROR), (0.0625, Severity.WARNING), (0.07, None), (1.0, None)],
)
def test_how_small_shared_memory_may_be(size: float, severity: Severity | None) -> None:
    facts = {"shm_gib": size, "container": {"runtime": "docker"}}
    for command in (None, "torchrun --nproc_per_node 8 train.py"):
        assert severities(found(shm_too_small, command, facts=facts)) == ([] if severity is None else [severity])


def test_a_fault_of_the_machine_is_said_once_for_many_commands() -> None:
    command = "torchrun --nproc_per_node 2 a.py\ntorchrun --nproc_per_node 2 b.py\n"
    facts = {
        "shm_gib": 0.0156,
        "gpus": [gpu(0, "NVIDIA RTX 5880 Ada Generation", 48), gpu(1, "NVIDIA RTX 5880 Ada Generation", 48)],
        "topology": "PHB",
        "pci_acs": {"0000:00:01.1": "enabled"},
        "cpu_count": 1,
        "infiniband": {"mlx5_0": "ACTIVE"},
        "limits": {"memlock_kib": 64},
    }
    many = f"{MANY_NODES}\n{MANY_NODES}"
    for rule, text in ((shm_too_small, command), (peer_to_peer_broken, command), (limits_too_low, command)):
        assert len(found(rule, text, facts=facts)) == 1
    assert len(found(memlock_too_small, many, facts=facts)) == 1


def test_a_new_container_gets_the_option_behind_run() -> None:
    (finding,) = found(shm_too_small, "sudo docker run --gpus all img torchrun --nproc_per_node 2 t.py", known=False)
    assert mended(finding) == "sudo docker run --shm-size=1g --gpus all img torchrun --nproc_per_node 2 t.py"
    (finding,) = found(
        network_isolated,
        f"docker run --gpus all img {MANY_NODES}",
        known=False,
    )
    assert mended(finding).startswith("docker run --network=host --gpus all img torchrun")


def test_the_machine_is_named_where_there_is_no_command() -> None:
    (finding,) = found(shm_too_small, None, facts={"shm_gib": 0.0625})
    assert (finding.location, finding.subject) == (None, "/dev/shm")
    (finding,) = found(
        gpu_unhealthy, None, facts={"gpus": [{"index": 3, "name": "NVIDIA A100-SXM4-80GB", "remap_failed": True}]}
    )
    assert (finding.location, finding.subject, finding.severity) == (None, "GPU 3", Severity.ERROR)


@pytest.mark.parametrize("address", ["0000:3b:00", "00000000:3B:00.0", "0000:3B:00.0", "3b:00.0"])
def test_a_fault_is_ascribed_to_its_gpu_however_the_address_is_written(address: str) -> None:
    facts = {
        "gpus": [
            {"index": 0, "name": "a", "pci_bus_id": "00000000:1A:00.0"},
            {"index": 1, "name": "a", "pci_bus_id": "00000000:3B:00.0"},
        ],
        "xid_errors": [{"pci_bus_id": address, "code": 79, "text": "GPU has fallen off the bus."}],
    }
    (finding,) = found(gpu_unhealthy, None, facts=facts)
    assert finding.subject == "GPU 1"
    assert finding.severity is Severity.ERROR
    assert found(gpu_unhealthy, "CUDA_VISIBLE_DEVICES=0 python t.py", facts=facts) == ()


def test_a_container_on_the_machine_may_get_any_of_its_gpus() -> None:
    facts = {"gpus": [{"index": 0, "name": "a"}, {"index": 1, "name": "a", "remap_failed": True}]}
    assert found(gpu_unhealthy, "docker run --gpus all img python t.py", facts=facts)
    assert not found(gpu_unhealthy, "ssh gpu7 python t.py", facts=facts)


def test_a_card_that_is_gone_is_named_by_its_address() -> None:
    facts = {
        "gpus": [{"index": 0, "name": "a", "pci_bus_id": "00000000:1A:00.0"}],
        "xid_errors": [{"pci_bus_id": "0000:3b:00", "code": 79, "text": ""}],
    }
    (finding,) = found(gpu_unhealthy, None, facts=facts)
    assert finding.subject == "GPU at 0000:3b:00"


@pytest.mark.parametrize("code", [13, 31, 43, 45, 63, 68, 92, 94])
def test_faults_of_programs_are_not_the_gpus(code: int) -> None:
    facts = {
        "gpus": [{"index": 0, "name": "a", "pci_bus_id": "00000000:1A:00.0"}],
        "xid_errors": [{"pci_bus_id": "0000:1a:00", "code": code, "text": "text"}],
    }
    assert found(gpu_unhealthy, None, facts=facts) == ()


@pytest.mark.parametrize(
    ("states", "service", "severity"),
    [
        (["completed", "completed"], "active", None),
        (["completed", "completed"], "inactive", None),
        (["completed", "completed"], "failed", Severity.WARNING),
        (["completed", "in progress"], "active", Severity.ERROR),
        (["not supported", "not supported"], "inactive", Severity.ERROR),
        (["not supported", "not supported"], "active", None),
    ],
)
def test_the_gpus_own_word_on_the_fabric_counts_more_than_the_service(
    states: list[str], service: str, severity: Severity | None
) -> None:
    gpus = [gpu(index, H100, 80, fabric_state=state) for index, state in enumerate(states)]
    facts = {"gpus": gpus, "nvswitch": True, "services": {"nvidia-fabricmanager": service}}
    assert severities(found(fabric_manager_down, None, facts=facts)) == ([] if severity is None else [severity])


def test_versions_of_the_fabric_manager_are_compared_without_the_packages_revision() -> None:
    facts = {
        "gpus": [gpu(0, H100, 80)],
        "nvswitch": True,
        "driver": "570.133.20",
        "services": {"nvidia-fabricmanager": "failed"},
    }
    (finding,) = found(fabric_manager_down, None, facts={**facts, "fabric_manager_version": "570.133.20-1"})
    assert "570.133.20" not in finding.message
    (finding,) = found(fabric_manager_down, None, facts={**facts, "fabric_manager_version": "570.124.06-1"})
    assert "570.124.06" in finding.message
    assert "570.133.20" in finding.message


def test_memory_of_dead_processes_is_named_once() -> None:
    facts = {
        "gpus": [gpu(0, "NVIDIA A100-SXM4-80GB", 80, memory_used_gib=40.0)],
        "gpu_processes": [{"gpu": 0, "pid": 4127, "command": "python", "memory_gib": 39.5, "alive": False}],
    }
    (finding,) = found(orphaned_gpu_memory, None, facts=facts)
    assert "4127" in finding.message


@pytest.mark.parametrize(
    ("torch", "silent"), [("2.3.1+cu121", True), ("2.4.0+cu121", False), ("2.6.0+cu124", False), ("2.13.0", False)]
)
def test_torchrun_on_windows_by_release(torch: str, silent: bool) -> None:
    facts = {"platform": "Windows-11-10.0.22631", "packages": {"torch": torch, "accelerate": "1.7.0"}}
    findings = found(platform_without_nccl, "torchrun --nproc_per_node 2 train.py", facts=facts)
    assert not findings if silent else severities(findings) == [Severity.ERROR]


def test_settings_in_the_text_are_advice_and_left_over_ones_are_warnings() -> None:
    (typed,) = found(nccl_setting_harmful, "CUDA_LAUNCH_BLOCKING=1 python t.py")
    (inherited,) = found(nccl_setting_harmful, "python t.py", facts={"env": {"CUDA_LAUNCH_BLOCKING": "1"}})
    (alone,) = found(nccl_setting_harmful, None, facts={"env": {"CUDA_LAUNCH_BLOCKING": "1"}})
    assert severities((typed, inherited, alone)) == [Severity.ADVICE, Severity.WARNING, Severity.WARNING]
    assert mended(typed) == "python t.py"
    assert inherited.subject == alone.subject == "CUDA_LAUNCH_BLOCKING in the environment"


def test_a_pair_that_may_hang_is_a_warning_with_the_way_around() -> None:
    facts = {
        "gpus": [gpu(0, "NVIDIA RTX 5880 Ada Generation", 48), gpu(1, "NVIDIA RTX 5880 Ada Generation", 48)],
        "topology": "PHB",
        "pci_acs": {"0000:00:01.1": "enabled"},
        "iommu": "enabled",
    }
    (finding,) = found(peer_to_peer_broken, "torchrun --nproc_per_node 2 train.py", facts=facts)
    assert finding.severity is Severity.WARNING
    assert mended(finding) == "NCCL_P2P_DISABLE=1 torchrun --nproc_per_node 2 train.py"


CARDS = ["NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 3090", "NVIDIA A100-SXM4-80GB", "Quadro RTX 4000"]
DRIVERS = ["525.147.05", "535.183.01", "550.40.07", "550.54.15", "570.133.20"]

_ASK_ACCELERATE = """
from accelerate.utils import environment
import accelerate
result = []
for name, driver in payload:
    environment.get_gpu_info = lambda name=name: ([name, name], 2)
    environment.get_driver_version = lambda driver=driver: driver
    result.append(environment.check_cuda_p2p_ib_support())
result = {"version": accelerate.__version__, "supported": result}
"""


@pytest.mark.oracle
@pytest.mark.parametrize("environment", [pytest.param(name, marks=requires_oracle(name)) for name in ENVIRONMENTS])
def test_accelerates_own_refusal(environment: str) -> None:
    cases = [(card, driver) for card in CARDS for driver in DRIVERS]
    answer = run_parser(environment, _ASK_ACCELERATE, cases)
    ours = []
    for card, driver in cases:
        facts = {
            "gpus": [gpu(0, card, 24), gpu(1, card, 24)],
            "driver": driver,
            "packages": {"torch": "2.6.0", "accelerate": answer["version"], "transformers": "4.52.4"},
        }
        findings = found(peer_to_peer_broken, "torchrun --nproc_per_node 2 t.py", facts=facts, files=TRAINER)
        ours.append(not findings)
    assert dict(zip(map(tuple, cases), ours, strict=True)) == dict(
        zip(map(tuple, cases), answer["supported"], strict=True)
    )


ALLOCATOR = [
    "expandable_segments:True",
    "expandable_segments:False",
    "expandable_segments:true",
    "expandable_segments:1",
    "max_split_size_mb:128",
    "max_split_size_mb=128",
    "garbage_collection_threshold:0.8,max_split_size_mb:512",
]

_ASK_TORCH = """
import torch
result = []
for text in payload:
    try:
        torch._C._accelerator_setAllocatorSettings(text)
        result.append(True)
    except (ValueError, RuntimeError):
        result.append(False)
"""


@pytest.mark.oracle
@pytest.mark.parametrize("environment", [pytest.param("old", marks=requires_oracle("old"))])
def test_what_torchs_allocator_takes(environment: str) -> None:
    taken = run_parser(environment, _ASK_TORCH, ALLOCATOR)
    ours = [
        not found(nccl_setting_harmful, f"PYTORCH_CUDA_ALLOC_CONF={text} python t.py", known=False)
        for text in ALLOCATOR
    ]
    assert ours == taken


def test_an_environment_is_judged_without_a_command() -> None:
    (finding,) = found(visible_devices_malformed, None, facts={"env": {"CUDA_VISIBLE_DEVICES": "0-3"}})
    assert finding.subject == "CUDA_VISIBLE_DEVICES in the environment"
    assert found(visible_devices_malformed, None, facts={"env": {"CUDA_VISIBLE_DEVICES": "0,1"}}) == ()
    (finding,) = found(visible_devices_misspelt, None, facts={"env": {"CUDA_VISABLE_DEVICES": "0"}})
    assert finding.subject == "CUDA_VISABLE_DEVICES"


def test_different_gpus_are_advice_until_somebody_chooses_by_index() -> None:
    mixed = [gpu(0, "NVIDIA GeForce RTX 3060", 12), gpu(1, "NVIDIA RTX A6000", 48)]
    judged = {
        name: severities(found(device_order_ambiguous, None, facts={"gpus": mixed, "env": variables}))
        for name, variables in {
            "nothing": {},
            "an index": {"CUDA_VISIBLE_DEVICES": "1"},
            "both": {"CUDA_VISIBLE_DEVICES": "0,1"},
            "a name": {"CUDA_VISIBLE_DEVICES": "GPU-00000001"},
            "ordered": {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        }.items()
    }
    assert judged == {
        "nothing": [Severity.ADVICE],
        "an index": [Severity.WARNING],
        "both": [],
        "a name": [],
        "ordered": [],
    }


def severities(findings: tuple[Finding, ...]) -> list[Severity]:
    return [finding.severity for finding in findings]


def test_a_fabric_manager_that_is_not_there_is_to_be_installed() -> None:
    facts = {"nvswitch": True, "driver": "570.133.20", "services": {"nvidia-fabricmanager": "not installed"}}
    (finding,) = found(fabric_manager_down, None, facts=facts)
    assert finding.fix is not None
    assert "install the fabric manager 570.133.20" in finding.fix.title
    assert finding.fix.commands == ("sudo systemctl enable --now nvidia-fabricmanager",)


def test_services_of_the_host_are_not_started_from_inside_a_container() -> None:
    gpu = {"index": 0, "name": "NVIDIA H200", "fabric_state": "in progress"}
    facts = {"nvswitch": True, "container": {"runtime": "containerd"}, "gpus": [gpu]}
    (finding,) = found(fabric_manager_down, None, facts=facts)
    assert finding.fix is not None
    assert finding.fix.commands == ()
    assert finding.fix.title.startswith("on the host")


def test_a_container_that_lost_its_gpus_is_started_anew() -> None:
    (inside,) = found(nvml_unavailable, None, facts={"container": "docker", "nvml_error": "Unknown Error"})
    (outside,) = found(nvml_unavailable, None, facts={"container": None, "nvml_error": "Unknown Error"})
    assert inside.fix is not None
    assert outside.fix is not None
    assert "start the container anew" in inside.fix.title
    assert "container" not in outside.fix.title


@pytest.mark.parametrize(("accelerate", "helps"), [("0.26.1", False), ("0.30.1", True)])
def test_a_new_driver_is_no_cure_for_an_accelerate_that_does_not_ask_for_it(accelerate: str, helps: bool) -> None:
    cards = [{"index": index, "name": "NVIDIA GeForce RTX 4090", "memory_gib": 24} for index in range(2)]
    facts = {
        "gpus": cards,
        "driver": "535.154.05",
        "packages": {"torch": "2.2.2+cu121", "accelerate": accelerate, "transformers": "4.41.2"},
    }
    (finding,) = found(peer_to_peer_broken, "torchrun --nproc_per_node 2 t.py", files=TRAINER, facts=facts)
    (other,) = finding.alternatives
    assert other.title.startswith("install a driver") is helps
