"""The ways to other machines: network interfaces with their addresses, InfiniBand and RoCE devices."""

from __future__ import annotations

import os
import socket
import struct

from mgpu_doctor.model.known import Unknown

NO_DEVICE_FILE = "NO DEVICE FILE"
"""State of an InfiniBand device that the kernel lists but this process has no device file of, as in a container."""

_SIOCGIFADDR = 0x8915
_LINK_LOCAL = 0x20
"""Scope of an address that holds on one cable only (linux/ipv6.h)."""


def interfaces(root: str = "") -> dict[str, str] | Unknown:
    """Network interfaces by name with their first IPv4 address.

    An interface that has none shows its first IPv6 address that other networks can reach; without one it is empty.
    """
    try:
        import fcntl

        names = [name for _, name in socket.if_nameindex()]
    except (ImportError, OSError, AttributeError):
        return Unknown("the network interfaces cannot be listed")
    newer = _ipv6_addresses(root)
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        for name in names:
            try:
                answer = fcntl.ioctl(asker.fileno(), _SIOCGIFADDR, struct.pack("256s", os.fsencode(name)[:15]))
            except OSError:
                found[name] = newer.get(name, "")
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    return found


def _ipv6_addresses(root: str) -> dict[str, str]:
    """Interface → its first address beyond the link: ``address index prefix scope flags name``, all hexadecimal."""
    found: dict[str, str] = {}
    try:
        with open(f"{root}/proc/net/if_inet6", encoding="ascii", errors="surrogateescape") as file:
            lines = file.read(1 << 20).splitlines()
    except OSError:
        return found
    for line in lines:
        parts = line.split()
        try:
            address, scope, name = bytes.fromhex(parts[0]), int(parts[3], 16), parts[5]
            shown = socket.inet_ntop(socket.AF_INET6, address)
        except (IndexError, ValueError, OSError):
            continue
        if scope != _LINK_LOCAL:
            found.setdefault(name, shown)
    return found


def infiniband(root: str = "") -> dict[str, str] | Unknown:
    """State of the first port of each InfiniBand or RoCE device: ``{"mlx5_0": "ACTIVE"}``; empty without any.

    Linux, Documentation/ABI/stable/sysfs-class-infiniband: ``state`` holds ``4: ACTIVE``. A device is used through
    ``/dev/infiniband/uverbsN``; without that file its state is :data:`NO_DEVICE_FILE`.
    """
    top = f"{root}/sys/class/infiniband"
    if not os.path.isdir(f"{root}/sys/class"):
        return Unknown("/sys is not mounted")
    return {name: _state(root, os.path.join(top, name)) for name in _entries(top)}


def _state(root: str, device: str) -> str:
    files = _entries(os.path.join(device, "device", "infiniband_verbs"))
    if files and not any(os.path.exists(f"{root}/dev/infiniband/{name}") for name in files):
        return NO_DEVICE_FILE
    ports = sorted(_entries(os.path.join(device, "ports")), key=lambda port: (len(port), port))
    for port in ports[:1]:
        try:
            with open(os.path.join(device, "ports", port, "state"), encoding="ascii", errors="replace") as file:
                return file.readline(80).rpartition(":")[2].strip().upper()
        except OSError:
            break
    return ""


def _entries(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []
