"""Signs of NVIDIA hardware and of its driver, without asking NVML: device files, the kernel module, the PCI bus.

A machine without NVIDIA hardware is healthy, one with hardware and no driver is not; these signs tell them apart.
``root`` is the directory below which ``/dev``, ``/proc`` and ``/sys`` are looked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.pattern import pattern

LIBRARY = "libnvidia-ml.so.1"
"""What nvidia-ml-py loads: pynvml.py of 11.525 to 13.615, ``CDLL("libnvidia-ml.so.1")``."""

NVIDIA_VENDOR = 0x10DE
DISPLAY_CLASS = 0x03
"""PCI class codes of display controllers begin with it, those of compute cards (0x0302) too."""

LARGEST_CACHE = 4 * 1024 * 1024

_SIGNS = ("dev/nvidiactl", "proc/driver/nvidia/version", "dev/dxg", "dev/nvhost-gpu")
"""One of these exists wherever NVML works: the driver, WSL, Tegra."""

_FOREIGN = ("dev/dxg", "dev/nvhost-gpu")
"""Where GPUs have no ``/dev/nvidia0``: WSL and Tegra."""

# It stands behind "NVIDIA UNIX x86_64 Kernel Module" or "NVIDIA UNIX Open Kernel Module for x86_64".
_MODULE = pattern(r"Kernel Module\b.*?\s(?P<version>[0-9]+\.[0-9]+(?:\.[0-9]+)?)(?=\s|$)")
_NODE = pattern(r"nvidia[0-9]+\Z")
_LIBRARY_FILE = pattern(r"libnvidia-ml\.so\.(?P<version>[0-9]+\.[0-9]+(?:\.[0-9]+)?)\s*$", re.MULTILINE)


NOTHING_SEEN = Unknown("no NVIDIA GPU or driver is seen on this machine")


def nvidia_seen(variables: Mapping[str, str], root: str = "/") -> bool:
    """Whether anything here is NVIDIA's: a running driver, its library, or a card."""
    return driver_present(root) or library_installed(variables, root) or bool(hardware(root))


def driver_present(root: str = "/") -> bool:
    """Whether there is a sign that a driver runs."""
    return any(os.path.exists(os.path.join(root, sign)) for sign in _SIGNS)


def library_installed(variables: Mapping[str, str], root: str = "/") -> bool:
    """Whether the dynamic loader would find NVML; nothing is loaded. False where it cannot be told."""
    for directory in variables.get("LD_LIBRARY_PATH", "").split(":"):
        if directory and os.path.exists(os.path.join(directory, LIBRARY)):
            return True
    # ld.so.cache(8) holds the names as plain text.
    return LIBRARY.encode() in _read(os.path.join(root, "etc/ld.so.cache"), LARGEST_CACHE)


def hardware(root: str = "/") -> tuple[str, ...]:
    """PCI addresses of NVIDIA's display controllers that are meant for this system: ``0000:3b:00.0``.

    A card that is handed through to a virtual machine (driver vfio-pci) belongs to that machine.
    """
    base = os.path.join(root, "sys/bus/pci/devices")
    try:
        names = sorted(os.listdir(base))
    except OSError:
        return ()
    found = []
    for name in names:
        if _hexadecimal(os.path.join(base, name, "vendor")) != NVIDIA_VENDOR:
            continue
        if (_hexadecimal(os.path.join(base, name, "class")) or 0) >> 16 != DISPLAY_CLASS:
            continue
        if os.path.basename(os.path.realpath(os.path.join(base, name, "driver"))) != "vfio-pci":
            found.append(name)
    return tuple(found)


def nvswitch_seen(root: str = "/") -> bool:
    """Whether the driver of NVSwitch chips holds one here.

    False says little: a virtual machine does not see the switches that its GPUs are linked by.
    """
    if os.path.exists(os.path.join(root, "dev/nvidia-nvswitch0")):
        return True
    for name in ("proc/driver/nvidia-nvswitch/devices", "sys/bus/pci/drivers/nvidia-nvswitch"):
        try:
            if any(":" in entry for entry in os.listdir(os.path.join(root, name))):
                return True
        except OSError:
            continue
    return False


def module_version(root: str = "/") -> str | Unknown | None:
    """Version of the loaded kernel module; None when none is loaded."""
    text = _read(os.path.join(root, "proc/driver/nvidia/version"), 4096).decode("utf-8", "replace")
    found = _MODULE.search(text)
    if found is not None:
        return found["version"]
    if text:
        return Unknown("/proc/driver/nvidia/version names no version")
    plain = _read(os.path.join(root, "sys/module/nvidia/version"), 64).decode("utf-8", "replace").strip()
    if plain:
        return plain
    if driver_present(root):
        return Unknown("the driver works, but its kernel module cannot be seen from here")
    return None


def device_nodes(root: str = "/") -> tuple[str, ...] | Unknown:
    """The device files of GPUs, in the order of their numbers."""
    if any(os.path.exists(os.path.join(root, sign)) for sign in _FOREIGN):
        return Unknown("on this platform GPUs have no device files of their own")
    try:
        names = os.listdir(os.path.join(root, "dev"))
    except OSError as error:
        return Unknown(f"/dev cannot be read: {error.strerror}")
    found = [name for name in names if _NODE.match(name)]
    return tuple(f"/dev/{name}" for name in sorted(found, key=lambda name: int(name[len("nvidia") :])))


def loaded_library_version() -> str | None:
    """Version of the NVML library that this process has loaded, by the name of its file."""
    found = _LIBRARY_FILE.search(_read("/proc/self/maps", LARGEST_CACHE).decode("utf-8", "replace"))
    return found["version"] if found is not None else None


def _read(path: str, most: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(most)
    except OSError:
        return b""


def _hexadecimal(path: str) -> int | None:
    try:
        return int(_read(path, 32), 16)
    except ValueError:
        return None
