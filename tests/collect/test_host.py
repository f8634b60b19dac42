"""The host, read out of file trees as Linux has them: control groups, containers, network, PCI bus, services, hub."""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path

import pytest

from mgpu_doctor.collect import host, hub, network, pci, places, services
from mgpu_doctor.collect.cgroup import Allowance, allowance
from mgpu_doctor.model.known import Unknown

GIB = 2**30


def make(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return str(root)


V2_MOUNT = "30 23 0:26 {top} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_version_2_takes_the_tightest_level(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/job.scope\n",
            "proc/self/mountinfo": "23 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + V2_MOUNT.format(top="/"),
            "sys/fs/cgroup/user.slice/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/user.slice/memory.current": f"{5 * GIB}\n",
            "sys/fs/cgroup/user.slice/memory.stat": f"anon 1\nfile 2\ninactive_file {GIB}\n",
            "sys/fs/cgroup/user.slice/cpu.max": "max 100000\n",
            "sys/fs/cgroup/user.slice/job.scope/memory.max": "max\n",
            "sys/fs/cgroup/user.slice/job.scope/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/user.slice/job.scope/pids.max": "512\n",
        },
    )
    assert allowance(root) == Allowance(8 * GIB, 4 * GIB, 1.5, 512)


def test_version_1_below_a_mounted_container(tmp_path: Path) -> None:
    """Without a namespace of its own a container's path is the host's, and its group is what is mounted."""
    root = make(
        tmp_path,
        {
            "proc/self/cgroup": "9:cpu,cpuacct:/docker/ab12\n4:memory:/docker/ab12/step\n1:name=systemd:/docker/ab12\n",
            "proc/self/mountinfo": (
                "31 23 0:29 /docker/ab12 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
                "32 23 0:30 /docker/ab12 /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
            ),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{4 * GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB}\n",
            "sys/fs/cgroup/memory/memory.stat": f"inactive_file 0\ntotal_inactive_file {2 * GIB}\n",
            "sys/fs/cgroup/memory/step/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    )
    assert allowance(root) == Allowance(4 * GIB, 3 * GIB, 0.5, None)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2_MOUNT.format(top="/")},
        {"proc/self/cgroup": "0::/../../other\n", "proc/self/mountinfo": V2_MOUNT.format(top="/../..")},
        {"proc/self/cgroup": "nonsense\n::\n", "proc/self/mountinfo": " - cgroup2\n1 2 3 - cgroup\n"},
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT.format(top="/"),
            "sys/fs/cgroup/memory.max": "max\n",
            "sys/fs/cgroup/cpu.max": "0 0\n",
            "sys/fs/cgroup/pids.max": "²\n",
        },
        {
            "proc/self/cgroup": "4:memory:/\n",
            "proc/self/mountinfo": "31 23 0:29 / /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/cpu.cfs_quota_us": "-1\n",
        },
    ],
    ids=["nothing", "no limits", "outside", "garbage", "unlimited 2", "unlimited 1"],
)
def test_no_limit_is_no_limit(tmp_path: Path, files: dict[str, str]) -> None:
    assert allowance(make(tmp_path, files)) == Allowance()


def test_memory(tmp_path: Path) -> None:
    root = make(tmp_path, {"proc/meminfo": "MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\n"})
    assert host.host_memory_gib(Allowance(), root) == 16
    assert host.host_memory_free_gib(Allowance(), root) == 8
    assert host.host_memory_gib(Allowance(memory=4 * GIB), root) == 4
    assert host.host_memory_free_gib(Allowance(memory_free=GIB), root) == 1
    assert host.host_memory_free_gib(Allowance(memory_free=100 * GIB), root) == 8
    assert host.host_memory_gib(Allowance(), str(tmp_path / "gone")) == Unknown("/proc/meminfo does not tell MemTotal")


def test_processors() -> None:
    allowed = len(os.sched_getaffinity(0))
    assert host.cpu_count(Allowance()) == allowed
    assert host.cpu_count(Allowance(cpus=0.5)) == 0.5
    assert host.cpu_count(Allowance(cpus=10_000.0)) == allowed


def test_shared_memory(tmp_path: Path) -> None:
    size, free = host.shared_memory(str(tmp_path))
    assert isinstance(size, float)
    assert isinstance(free, float)
    assert size >= free > 0
    assert host.shared_memory("/dev/no-such-shm")[1] == Unknown("there is no /dev/no-such-shm")


def test_limits() -> None:
    limits = host.limits(Allowance())
    assert not isinstance(limits, Unknown)
    assert set(limits) == {
        f"{name}{end}" for name in ("memlock_kib", "nofile", "nproc", "stack_kib") for end in ("", "_hard")
    }
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert limits["nofile"] == (-1 if soft == resource.RLIM_INFINITY else soft)
    assert limits["nofile_hard"] == (-1 if hard == resource.RLIM_INFINITY else hard)
    grouped = host.limits(Allowance(memory=2 * GIB, processes=100))
    assert not isinstance(grouped, Unknown)
    assert (grouped["cgroup_memory_gib"], grouped["cgroup_pids"]) == (2, 100)


@pytest.mark.parametrize(
    ("files", "variables", "runtime"),
    [
        ([], {}, None),
        ([".dockerenv"], {}, "docker"),
        ([".dockerenv"], {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "docker"),
        (["run/.containerenv"], {}, "podman"),
        (["run/.containerenv"], {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "containerd"),
        ([], {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "containerd"),
        ([".singularity.d/env/x"], {}, "apptainer"),
        ([], {"SINGULARITY_CONTAINER": "/images/x.sif"}, "apptainer"),
        ([], {"container": "lxc"}, "lxc"),
        ([("run/systemd/container", "lxc-libvirt\n")], {}, "lxc"),
        ([("run/systemd/container", "systemd-nspawn\n")], {}, "systemd-nspawn"),
        ([("run/systemd/container", "wsl\n"), ("proc/sys/kernel/osrelease", "5.15-microsoft-WSL2\n")], {}, None),
    ],
)
def test_containers(
    tmp_path: Path, files: list[str | tuple[str, str]], variables: dict[str, str], runtime: str | None
) -> None:
    root = make(tmp_path, dict((item, "") if isinstance(item, str) else item for item in files))
    assert host.container(variables, root) == runtime


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "17"}, "slurm"),
        ({"SLURM_JOB_ID": "17", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "slurm"),
        ({"SLURM_CONF": "/etc/slurm.conf", "SLURM_JOB_ID": ""}, None),
        ({"PBS_JOBID": "3.head"}, "pbs"),
        ({"LSB_JOBID": "9"}, "lsf"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
    ],
)
def test_schedulers(variables: dict[str, str], name: str | None) -> None:
    assert host.scheduler(variables) == name


IF_INET6 = (
    "00000000000000000000000000000001 01 80 10 80       lo\n"
    "fe80000000000000021e67fffe0a0b0c 02 40 20 80     eth9\n"
    "20010db8000000000000000000000005 02 40 00 80     eth9\n"
    "fe80000000000000021e67fffe0a0b0d 03 40 20 80     eth8\n"
    "zz 1 2\n"
)


def test_interfaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path, {"proc/net/if_inet6": IF_INET6})
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth9"), (3, "eth8"), (4, "eth7")])
    assert network.interfaces(root) == {"lo": "127.0.0.1", "eth9": "2001:db8::5", "eth8": "", "eth7": ""}


def test_real_interfaces() -> None:
    found = network.interfaces()
    assert not isinstance(found, Unknown)
    assert found["lo"] == "127.0.0.1"


def test_infiniband(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        {
            "sys/class/infiniband/mlx5_0/ports/1/state": "4: ACTIVE\n",
            "sys/class/infiniband/mlx5_0/ports/2/state": "1: DOWN\n",
            "sys/class/infiniband/mlx5_0/device/infiniband_verbs/uverbs0/dev": "231:192\n",
            "dev/infiniband/uverbs0": "",
            "sys/class/infiniband/mlx5_1/ports/1/state": "4: ACTIVE\n",
            "sys/class/infiniband/mlx5_1/device/infiniband_verbs/uverbs1/dev": "231:193\n",
            "sys/class/infiniband/mlx5_2/ports/1/state": "1: DOWN\n",
            "sys/class/infiniband/mlx5_3/node_guid": "0\n",
        },
    )
    assert network.infiniband(root) == {
        "mlx5_0": "ACTIVE",
        "mlx5_1": network.NO_DEVICE_FILE,
        "mlx5_2": "DOWN",
        "mlx5_3": "",
    }
    assert network.infiniband(make(tmp_path / "none", {"sys/class/net/lo/mtu": ""})) == {}
    assert network.infiniband(str(tmp_path / "nowhere")) == Unknown("/sys is not mounted")


def bus(root: Path, devices: dict[str, tuple[str, str, str]]) -> str:
    """PCI devices as sysfs lists them: address → (place below /sys/devices, vendor, class)."""
    top = root / "sys/bus/pci/devices"
    top.mkdir(parents=True)
    (root / "sys/class/iommu").mkdir(parents=True)
    for name, (place, vendor, kind) in devices.items():
        home = root / "sys/devices" / place
        make(home, {"vendor": f"{vendor}\n", "class": f"{kind}\n"})
        (top / name).symlink_to(home)
    return str(root)


def space(control: int | None) -> bytes:
    """An extended configuration space whose list holds another capability first, then (unless None) ACS at 0x150."""
    data = bytearray(4096)
    data[0x100:0x104] = (0x0001 | 2 << 16 | 0x150 << 20 if control is not None else 0x0001 | 2 << 16).to_bytes(
        4, "little"
    )
    if control is not None:
        data[0x150:0x154] = (0x000D | 1 << 16).to_bytes(4, "little")
        data[0x156:0x158] = control.to_bytes(2, "little")
    return bytes(data)


ROOT_PORT = "pci0000:00/0000:00:01.0"
GPU_BUS = {
    "0000:00:01.0": (ROOT_PORT, "0x8086", "0x060400"),
    "0000:01:00.0": (f"{ROOT_PORT}/0000:01:00.0", "0x1000", "0x060400"),
    "0000:02:00.0": (f"{ROOT_PORT}/0000:01:00.0/0000:02:00.0", "0x10de", "0x030200"),
    "0000:03:00.0": ("pci0000:00/0000:03:00.0", "0x8086", "0x020000"),
}


def test_nvswitch(tmp_path: Path) -> None:
    cards = {"0000:02:00.0": ("pci0000:00/0000:02:00.0", "0x10de", "0x030000")}
    switch = {"0000:05:00.0": ("pci0000:00/0000:05:00.0", "0x10de", "0x068000")}
    assert pci.nvswitch(bus(tmp_path / "a", {**GPU_BUS, **switch})) is True
    assert pci.nvswitch(bus(tmp_path / "b", cards)) is False
    assert isinstance(pci.nvswitch(bus(tmp_path / "c", GPU_BUS)), Unknown)
    assert pci.nvswitch(bus(tmp_path / "d", {})) is False
    assert pci.nvswitch(str(tmp_path / "e")) == Unknown("/sys does not show the PCI bus")


def test_iommu(tmp_path: Path) -> None:
    def machine(name: str, kind: str | None, cmdline: str, *, on: bool = True, gpus: bool = True) -> str:
        root = bus(tmp_path / name, GPU_BUS if gpus else {})
        make(tmp_path / name, {"proc/cmdline": cmdline})
        if on:
            make(tmp_path / name, {"sys/class/iommu/dmar0/x": ""})
        if kind is not None:
            make(tmp_path / name, {"sys/bus/pci/devices/0000:02:00.0/iommu_group/type": f"{kind}\n"})
        return root

    assert pci.iommu(machine("off", None, "ro quiet", on=False)) == "disabled"
    assert pci.iommu(machine("dma", "DMA-FQ", "ro iommu=pt")) == "enabled"
    assert pci.iommu(machine("identity", "identity", "ro")) == "passthrough"
    assert pci.iommu(machine("no group", None, "ro")) == "disabled"
    assert pci.iommu(machine("other", None, "ro iommu=pt quiet", gpus=False)) == "passthrough"
    assert pci.iommu(machine("another", None, "ro swiommu=ptx", gpus=False)) == "enabled"
    assert isinstance(pci.iommu(str(tmp_path / "nowhere")), Unknown)


def test_access_control(tmp_path: Path) -> None:
    """Redirection of requests (0x04) counts; source validation (0x01) alone does not detour anything."""

    def machine(name: str, *spaces: bytes) -> str:
        root = bus(tmp_path / name, GPU_BUS)
        for bridge, data in zip(("0000:00:01.0", "0000:01:00.0"), spaces, strict=True):
            (tmp_path / name / "sys/bus/pci/devices" / bridge / "config").write_bytes(data)
        return root

    assert pci.access_control(machine("on", space(0x1D), space(0x01))) == {
        "0000:00:01.0": "enabled",
        "0000:01:00.0": "disabled",
    }
    assert pci.access_control(machine("without", space(None), space(0))) == {"0000:01:00.0": "disabled"}
    assert pci.access_control(machine("zeros", bytes(4096), b"\xff" * 4096)) == {}
    assert pci.access_control(machine("user", bytes(64), bytes(64))) == Unknown(
        "the PCI configuration space of bridges can be read by root only"
    )
    assert pci.access_control(bus(tmp_path / "no gpu", {})) == {}


def test_fabric_manager(tmp_path: Path) -> None:
    host_files = {"proc/1/comm": "systemd\n", "proc/77/comm": "python\n"}
    unit = {"usr/lib/systemd/system/nvidia-fabricmanager.service": "[Unit]\n"}
    process = {"proc/812/comm": "nv-fabricmanage\n"}
    pid = {"run/nvidia-fabricmanager/nv-fabricmanager.pid": "812\n"}
    assert services.fabric_manager(None, make(tmp_path / "a", {**host_files, **unit, **process})) == "active"
    assert services.fabric_manager("docker", make(tmp_path / "b", {**process, **pid})) == "active"
    assert services.fabric_manager(None, make(tmp_path / "c", {**host_files, **unit, **pid})) == "inactive"
    assert services.fabric_manager(None, make(tmp_path / "d", host_files)) == "not installed"
    assert isinstance(services.fabric_manager("docker", make(tmp_path / "e", host_files)), Unknown)
    assert isinstance(services.fabric_manager(None, make(tmp_path / "f", {"proc/1/comm": "tini\n"})), Unknown)


DPKG = """Package: nvidia-driver-570
Status: install ok installed
Version: 570.124.06-0ubuntu1

Package: nvidia-fabricmanager-{branch}
Status: {status}
Description: manages
 Version: 1.2.3
Version: 570.124.06-1

"""


def test_version_of_the_fabric_manager(tmp_path: Path) -> None:
    def listed(name: str, text: str) -> str:
        return make(tmp_path / name, {"var/lib/dpkg/status": text})

    installed = listed("a", DPKG.format(branch=570, status="install ok installed"))
    assert services.fabric_manager_version(None, installed) == "570.124.06"
    assert isinstance(services.fabric_manager_version("docker", installed), Unknown)
    assert (
        services.fabric_manager_version(None, listed("b", DPKG.format(branch=570, status="deinstall ok config-files")))
        is None
    )
    by_hand = make(tmp_path / "c", {"var/lib/dpkg/status": "", "usr/bin/nv-fabricmanager": ""})
    assert services.fabric_manager_version(None, by_hand) == Unknown("it was not installed as a package")
    assert isinstance(services.fabric_manager_version(None, str(tmp_path / "rpm")), Unknown)


@pytest.mark.parametrize(
    ("variables", "path"),
    [
        ({"HOME": "/h"}, "/h/.cache/huggingface/hub"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x", "HF_HOME": "/hf"}, "/hf/hub"),
        ({"HOME": "/h", "HF_HOME": "~/hf"}, "/h/hf/hub"),
        ({"HOME": "/h", "HF_HOME": "/hf", "HUGGINGFACE_HUB_CACHE": "/old"}, "/old"),
        ({"HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "/new"}, "/new"),
        ({"HOME": "/h", "SCRATCH": "/s", "HF_HUB_CACHE": "$SCRATCH/hub"}, "/s/hub"),
        ({"HOME": "/h", "HF_HUB_CACHE": "${NOTHING}/hub"}, "${NOTHING}/hub"),
        ({"HOME": "/h", "HF_HOME": ""}, "hub"),
        ({"HOME": "/h", "XDG_CACHE_HOME": ""}, "huggingface/hub"),
    ],
)
def test_where_the_cache_lies(variables: dict[str, str], path: str) -> None:
    assert hub.cache_path(variables) == path


def test_what_the_cache_holds(tmp_path: Path) -> None:
    top = tmp_path / "hub"
    make(top, {"models--acme--base/blobs/1": "x", "models--acme--base/refs/main": "c0"})
    snapshot = top / "models--acme--base/snapshots/c0"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/1")
    make(top, {"models--gpt2/snapshots/c1/config.json": "{}", "datasets--acme--set/snapshots/c2/a.json": "[]"})
    (top / "models--acme--broken/snapshots/c3").mkdir(parents=True)
    (top / "models--acme--broken/snapshots/c3/model.safetensors").symlink_to("../../blobs/gone")
    (top / "models--acme--empty/snapshots").mkdir(parents=True)
    make(top, {"version.txt": "1", "spaces--acme--x/snapshots/c4/app.py": "", "models--/snapshots/c/x": ""})
    make(tmp_path / "old", {"models--acme--legacy/snapshots/c5/x.bin": "x"})
    variables = {"HF_HUB_CACHE": str(top)}
    found = ("acme/base", "datasets/acme/set", "gpt2")
    assert hub.cached(variables) == found
    assert hub.cached({**variables, "TRANSFORMERS_CACHE": str(tmp_path / "old")}) == (
        "acme/base",
        "acme/legacy",
        *found[1:],
    )
    assert hub.cached({"HF_HUB_CACHE": str(tmp_path / "none")}) == ()


def test_a_cache_that_cannot_be_read_through_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        make(tmp_path, {f"models--m{number}/snapshots/c/x": ""})
    variables = {"HF_HUB_CACHE": str(tmp_path)}
    assert hub.cached(variables, deadline_s=-1) == Unknown("the hub's cache is too large, or too slow to be read")
    monkeypatch.setattr(hub, "MOST_REPOSITORIES", 2)
    assert hub.cached(variables) == Unknown("the hub's cache is too large, or too slow to be read")


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t").mkdir(mode=0o700)
    variables = {"HF_HUB_CACHE": str(tmp_path / "not/yet"), "TMPDIR": str(tmp_path / "t")}
    found = places.paths(variables)
    assert list(found) == [str(tmp_path), str(tmp_path / "not/yet"), str(tmp_path / "t")]
    assert (found[str(tmp_path / "t")].mode, found[str(tmp_path / "t")].kind) == ("drwx------", "directory")
    missing = found[str(tmp_path / "not/yet")]
    assert missing.kind == "missing"
    assert missing.writable is True
    assert missing.free_gib == found[str(tmp_path)].free_gib != 0


def test_a_place_that_only_root_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not (path == "/" and mode & os.W_OK))
    assert places._look("/no-such-directory/hub").writable is False
