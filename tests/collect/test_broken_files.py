"""Files of the kernel and of packages that hold anything at all: an answer or a reason, never an exception."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from any_facts import ANY_FACTS
from mgpu_doctor.collect import host, hub, network, pci, services
from mgpu_doctor.collect.anonymise import anonymised
from mgpu_doctor.collect.cgroup import Allowance, allowance
from mgpu_doctor.collect.facts_file import dump_facts, load_facts
from mgpu_doctor.model.facts import Facts

FILES = (
    "proc/self/cgroup",
    "proc/self/mountinfo",
    "proc/meminfo",
    "proc/net/if_inet6",
    "proc/cmdline",
    "proc/1/comm",
    "run/nvidia-fabricmanager/nv-fabricmanager.pid",
    "run/systemd/container",
    "sys/fs/cgroup/memory.max",
    "sys/fs/cgroup/memory.current",
    "sys/fs/cgroup/memory.stat",
    "sys/fs/cgroup/cpu.max",
    "sys/fs/cgroup/pids.max",
    "sys/class/infiniband/mlx5_0/ports/1/state",
    "sys/class/iommu/dmar0",
    "sys/devices/pci0000:00/0000:00:01.0/config",
    "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/class",
    "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/vendor",
    "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/iommu_group/type",
    "var/lib/dpkg/status",
)
PLAUSIBLE = (
    b"0::/\n4:memory:/x\n",
    b"30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    b"MemTotal: 1 kB\nMemAvailable: x\n",
    b"9223372036854775807\n",
    b"max 100000\n",
    b"0x10de\n",
    b"0x030200\n",
    b"4: ACTIVE\n",
    b"Package: nvidia-fabricmanager-570\nStatus: install ok installed\nVersion: \n",
    b"\x0d\x00\x01\x00" * 1024,
    "²³\u2028\n".encode(),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(FILES), st.binary(max_size=64) | st.sampled_from(PLAUSIBLE), max_size=8))
def test_any_content_is_survived(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    top = tmp_path_factory.mktemp("root")
    devices = top / "sys/bus/pci/devices"
    devices.mkdir(parents=True)
    for name, content in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    bridge = top / "sys/devices/pci0000:00/0000:00:01.0"
    for place in (bridge, bridge / "0000:01:00.0"):
        (devices / place.name).symlink_to(place)
    root = str(top)
    group = allowance(root)
    for looked in (
        lambda: host.host_memory_gib(group, root),
        lambda: host.host_memory_free_gib(group, root),
        lambda: host.limits(group),
        lambda: host.cpu_count(group),
        lambda: host.container({}, root),
        lambda: network.interfaces(root),
        lambda: network.infiniband(root),
        lambda: pci.nvswitch(root),
        lambda: pci.iommu(root),
        lambda: pci.access_control(root),
        lambda: services.fabric_manager(None, root),
        lambda: services.fabric_manager_version(None, root),
    ):
        looked()


@pytest.mark.parametrize("kind", ["directory", "loop", "dangling"])
def test_files_that_are_none(tmp_path: Path, kind: str) -> None:
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "directory":
            path.mkdir()
        else:
            path.symlink_to(path if kind == "loop" else tmp_path / "gone")
    root = str(tmp_path)
    assert allowance(root) == Allowance()
    assert services.fabric_manager_version("docker", root) is not None
    for looked in (pci.nvswitch, pci.iommu, pci.access_control, network.interfaces, network.infiniband):
        looked(root)
    assert hub.cached({"HF_HUB_CACHE": f"{root}/proc/meminfo/hub"}) is not None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(ANY_FACTS)
def test_any_facts_can_be_anonymised(tmp_path_factory: pytest.TempPathFactory, facts: Facts) -> None:
    hidden = anonymised(facts, users=["someone"], hosts=["some.host"])
    file = tmp_path_factory.mktemp("facts") / "facts.json"
    file.write_text(json.dumps(dump_facts(hidden)), encoding="utf-8")
    assert dump_facts(load_facts(str(file))) == dump_facts(hidden)
