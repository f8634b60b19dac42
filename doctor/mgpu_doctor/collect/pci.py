"""The PCI bus between the GPUs, from sysfs: NVSwitches, the IOMMU, access control services of bridges."""

from __future__ import annotations

import os
from collections.abc import Iterable

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.pattern import pattern

_NVIDIA = "0x10de"
_GRAPHICS, _ACCELERATOR, _OTHER_BRIDGE = "0x0300", "0x0302", "0x0680"
"""Beginnings of class codes (PCI Code and ID Assignment Specification): a card with outputs, one without, an
NVSwitch (Linux lists those of HGX A100 and H100 as "Bridge: NVIDIA Corporation")."""

_ACS = 0x000D
_REDIRECTS = 0x04 | 0x08
"""Requests or completions between peers are sent up to the root (linux/pci_regs.h: PCI_ACS_RR, PCI_ACS_CR)."""

_ADDRESS = pattern(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_PASSTHROUGH = pattern(r"(?:^|\s)(?:iommu=pt|iommu\.passthrough=1)(?:\s|$)")
_NO_SYSFS = Unknown("/sys does not show the PCI bus")


def devices(root: str = "") -> dict[str, tuple[str, str]] | Unknown:
    """Address → (vendor, class) of every PCI device: ``{"0000:3b:00.0": ("0x10de", "0x030200")}``."""
    top = _top(root)
    try:
        names = sorted(os.listdir(top))
    except OSError:
        return _NO_SYSFS
    return {name: (_word(f"{top}/{name}/vendor"), _word(f"{top}/{name}/class")) for name in names}


def nvswitch(root: str = "") -> bool | Unknown:
    """Whether GPUs of this machine are joined by NVSwitches; Unknown where they might be, out of sight.

    Those of the first three generations (up to HGX H200) are PCI devices; those of the fourth are managed over
    InfiniBand bridges, and a virtual machine may not see what its host keeps (NVIDIA, Fabric Manager User Guide 2.3,
    sections 1.3 and 5). Cards with outputs have none.
    """
    found = devices(root)
    if isinstance(found, Unknown):
        return found
    ours = [kind for vendor, kind in found.values() if vendor == _NVIDIA]
    if any(kind.startswith(_OTHER_BRIDGE) for kind in ours) or _listed(f"{root}/proc/driver/nvidia-nvswitch/devices"):
        return True
    if any(kind.startswith(_ACCELERATOR) for kind in ours):
        return Unknown("no NVSwitch shows on the PCI bus, where those of a later generation or of a host do not show")
    return False


def iommu(root: str = "") -> str | Unknown:
    """``disabled``, ``passthrough`` (on, but devices reach memory directly) or ``enabled``.

    Decided by the NVIDIA devices where there are any: one without a group has no IOMMU in front of it, and the type of
    a group is ``identity`` for passthrough, ``DMA`` or ``DMA-FQ`` otherwise
    (Linux, Documentation/ABI/testing/sysfs-kernel-iommu_groups).
    """
    if not os.path.isdir(f"{root}/sys/class/iommu"):
        return Unknown("/sys does not tell of any IOMMU")
    if not _listed(f"{root}/sys/class/iommu"):
        return "disabled"
    found = devices(root)
    ours = () if isinstance(found, Unknown) else tuple(_gpus(found))
    types = {_word(f"{_top(root)}/{name}/iommu_group/type") for name in ours} - {""}
    if types:
        return "passthrough" if types == {"identity"} else "enabled"
    if ours and not any(os.path.exists(f"{_top(root)}/{name}/iommu_group") for name in ours):
        return "disabled"
    return "passthrough" if _PASSTHROUGH.search(_word(f"{root}/proc/cmdline")) else "enabled"


def access_control(root: str = "") -> dict[str, str] | Unknown:
    """Bridges above NVIDIA devices with access control services: ``{"0000:00:01.1": "enabled"}``.

    ``enabled`` when traffic between peers is redirected to the root, which slows it down or breaks it (NCCL, user
    guide, Troubleshooting, "PCI Access Control Services"). The setting stands in the extended configuration space,
    which only root may read.
    """
    found = devices(root)
    if isinstance(found, Unknown):
        return found
    states: dict[str, str] = {}
    for bridge in sorted({bridge for name in _gpus(found) for bridge in _bridges(root, name)}):
        space = _configuration(f"{_top(root)}/{bridge}/config")
        if len(space) <= 256:
            return Unknown("the PCI configuration space of bridges can be read by root only")
        control = _acs_control(space)
        if control is not None:
            states[bridge] = "enabled" if control & _REDIRECTS else "disabled"
    return states


def _gpus(found: dict[str, tuple[str, str]]) -> Iterable[str]:
    wanted = (_GRAPHICS, _ACCELERATOR)
    return (name for name, (vendor, kind) in found.items() if vendor == _NVIDIA and kind.startswith(wanted))


def _bridges(root: str, name: str) -> list[str]:
    """The bridges above a device: its place in sysfs names them one inside the other."""
    *above, _ = os.path.realpath(f"{_top(root)}/{name}").split("/")
    return [part for part in above if _ADDRESS.fullmatch(part)]


def _configuration(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(4096)
    except OSError:
        return b""


def _acs_control(space: bytes) -> int | None:
    """The ACS control register; None for a device without the capability.

    The extended capabilities are a list that begins at 0x100: 16 bits of identity, 4 of version, 12 of the next
    one's offset (linux/pci_regs.h: PCI_EXT_CAP_ID, PCI_EXT_CAP_NEXT, PCI_ACS_CTRL).
    """
    at = 0x100
    for _ in range(96):
        if not 0x100 <= at <= len(space) - 8:
            return None
        header = int.from_bytes(space[at : at + 4], "little")
        if header & 0xFFFF == _ACS:
            return int.from_bytes(space[at + 6 : at + 8], "little")
        at = header >> 20 & 0xFFC
    return None


def _top(root: str) -> str:
    return f"{root}/sys/bus/pci/devices"


def _listed(directory: str) -> bool:
    try:
        return bool(os.listdir(directory))
    except OSError:
        return False


def _word(path: str) -> str:
    """The text of a small file, empty when it cannot be read."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(4096).strip()
    except OSError:
        return ""
