"""GPUs without a card: signs of a driver, names of links; simulated machines are in ``tests/nvml``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mgpu_doctor.collect import driver, gpus
from mgpu_doctor.collect.machine import this_machine
from mgpu_doctor.collect.topology import SWITCH, Links, bonded_links, path_name
from mgpu_doctor.model.known import Unknown

A, B, C = (f"00000000:{bus}:00.0" for bus in ("3B", "5E", "AF"))


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def plug(root: Path, address: str, vendor: str = "0x10de", kind: str = "0x030200", bound: str = "nvidia") -> None:
    place = root / "sys/bus/pci/devices" / address
    place.mkdir(parents=True)
    (place / "vendor").write_text(vendor + "\n")
    (place / "class").write_text(kind + "\n")
    held_by = root / "sys/bus/pci/drivers" / bound
    held_by.mkdir(parents=True, exist_ok=True)
    (place / "driver").symlink_to(held_by)


def test_no_sign_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a sign NVML is not even loaded.
    monkeypatch.setitem(sys.modules, "pynvml", None)
    plug(tmp_path, "0000:00:02.0", vendor="0x8086", kind="0x030000", bound="i915")
    plug(tmp_path, "0000:00:0a.0", kind="0x040300", bound="snd_hda_intel")
    found = gpus.inventory(variables={}, root=str(tmp_path))
    assert found.gpus == found.nvml_error == found.processes == driver.NOTHING_SEEN
    assert driver.module_version(str(tmp_path)) is None
    assert isinstance(driver.device_nodes(str(tmp_path)), Unknown)


def test_where_nothing_is_nvidias_nothing_is_missing() -> None:
    if driver.nvidia_seen(os.environ):
        pytest.skip("this machine has NVIDIA hardware, or its driver")
    facts = this_machine(frozenset({"gpus"}))
    assert facts.driver_module is None
    for value in (facts.gpus, facts.nvml_error, facts.device_nodes, facts.xid_errors, facts.topology):
        assert value == driver.NOTHING_SEEN


def test_a_card_without_a_driver_is_a_fault(tmp_path: Path) -> None:
    if Path("/dev/nvidiactl").exists() or driver.library_installed({}):
        pytest.skip("this machine has a driver")
    plug(tmp_path, "0000:3b:00.0", bound="nouveau")
    plug(tmp_path, "0000:5e:00.0", kind="0x030000", bound="nouveau")
    found = gpus.inventory(variables={}, root=str(tmp_path))
    assert found.nvml_error == (
        "NVML Shared Library Not Found (2 NVIDIA GPUs on the PCI bus: 0000:3b:00.0, 0000:5e:00.0)"
    )
    assert found.gpus == Unknown(f"NVML cannot start: {found.nvml_error}")


def test_a_card_for_a_virtual_machine_is_not_ours(tmp_path: Path) -> None:
    plug(tmp_path, "0000:3b:00.0", bound="vfio-pci")
    assert driver.hardware(str(tmp_path)) == ()
    assert gpus.inventory(variables={}, root=str(tmp_path)).nvml_error == driver.NOTHING_SEEN


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.07  Sat Feb 17 22:55:48 UTC 2024\n", "535.161.07"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (dvs)\nGCC 12\n",
            "580.159.04",
        ),
        ("NVRM version: NVIDIA UNIX aarch64 Kernel Module  550.54\n", "550.54"),
    ],
)
def test_module_version(text: str, version: str, tmp_path: Path) -> None:
    touch(tmp_path, "proc/driver/nvidia/version")
    (tmp_path / "proc/driver/nvidia/version").write_text(text)
    assert driver.module_version(str(tmp_path)) == version


def test_module_version_that_is_not_told(tmp_path: Path) -> None:
    touch(tmp_path, "dev/nvidiactl")
    assert isinstance(driver.module_version(str(tmp_path)), Unknown)
    touch(tmp_path, "sys/module/nvidia/version")
    (tmp_path / "sys/module/nvidia/version").write_text("470.256.02\n")
    assert driver.module_version(str(tmp_path)) == "470.256.02"
    touch(tmp_path, "proc/driver/nvidia/version")
    (tmp_path / "proc/driver/nvidia/version").write_bytes(b"\xff\xfe gibberish")
    assert isinstance(driver.module_version(str(tmp_path)), Unknown)


def test_device_nodes(tmp_path: Path) -> None:
    touch(tmp_path, *(f"dev/{name}" for name in ("nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm", "nvidia0", "null")))
    assert driver.device_nodes(str(tmp_path)) == ("/dev/nvidia0", "/dev/nvidia2", "/dev/nvidia10")
    touch(tmp_path, "dev/dxg")
    assert isinstance(driver.device_nodes(str(tmp_path)), Unknown)


def test_nvswitch(tmp_path: Path) -> None:
    assert not driver.nvswitch_seen(str(tmp_path))
    touch(tmp_path, "sys/bus/pci/drivers/nvidia-nvswitch/bind")
    assert not driver.nvswitch_seen(str(tmp_path))
    touch(tmp_path, "sys/bus/pci/drivers/nvidia-nvswitch/0000:c1:00.0")
    assert driver.nvswitch_seen(str(tmp_path))


def test_the_library_is_found_as_the_loader_finds_it(tmp_path: Path) -> None:
    assert not driver.library_installed({"LD_LIBRARY_PATH": f":/nowhere:{tmp_path}"}, str(tmp_path))
    touch(tmp_path, "libnvidia-ml.so.1")
    assert driver.library_installed({"LD_LIBRARY_PATH": f":/nowhere:{tmp_path}"}, str(tmp_path))
    assert not driver.library_installed({}, str(tmp_path))
    touch(tmp_path, "etc/ld.so.cache")
    (tmp_path / "etc/ld.so.cache").write_bytes(
        b"glibc-ld.so.cache1.1\0\1libnvidia-ml.so.1\0/usr/lib/libnvidia-ml.so.1\0"
    )
    assert driver.library_installed({}, str(tmp_path))


def up(count: int, **peers: int) -> Links:
    return Links((True,) * count, peers)


@pytest.mark.parametrize(
    ("first", "second", "links"),
    [
        (up(12, **{SWITCH: 12}), up(12, **{SWITCH: 12}), 12),
        (up(18, **{SWITCH: 17}), up(18, **{SWITCH: 18}), 17),
        (up(6, **{B: 2, C: 4}), up(6, **{A: 2, C: 4}), 2),
        (up(4, **{C: 4}), up(4, **{C: 4}), 0),
        (Links((), {}), Links((), {}), 0),
        (Links((False,) * 4, {}), up(4, **{A: 4}), 0),
    ],
)
def test_links_of_a_pair(first: Links, second: Links, links: int) -> None:
    assert bonded_links(first, second, (A, B)) == links
    assert path_name(links, 30) == (f"NV{links}" if links else "PHB")


def test_a_pair_of_which_one_end_is_not_known() -> None:
    unknown = Unknown("NVML does not tell")
    for first, second in ((unknown, up(4)), (up(4), Links((True,), unknown))):
        links = bonded_links(first, second, (A, B))
        assert links == unknown
        assert path_name(links, 10) == unknown


@pytest.mark.parametrize(
    ("level", "word"), [(0, "PIX"), (10, "PIX"), (20, "PXB"), (30, "PHB"), (40, "NODE"), (50, "SYS")]
)
def test_names_of_levels(level: int, word: str) -> None:
    assert path_name(0, level) == word


def test_a_level_that_is_not_known() -> None:
    assert isinstance(path_name(0, 60), Unknown)
    assert path_name(0, Unknown("no")) == Unknown("no")
