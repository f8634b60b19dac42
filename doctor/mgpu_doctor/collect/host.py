"""The host around the GPUs: memory, limits, network interfaces, container, platform."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping

from mgpu_doctor.model.known import Unknown

GIB = 2**30
_SIOCGIFADDR = 0x8915


def host_memory_gib() -> float | Unknown:
    """Memory of the host in GiB, or of the control group where that allows less."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            total = int(next(line for line in file if line.startswith("MemTotal:")).split()[1]) * 1024
    except (OSError, ValueError, IndexError, StopIteration):
        return Unknown("/proc/meminfo cannot be read")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(name, encoding="ascii") as file:
                total = min(total, int(file.read()))
        except (OSError, ValueError):  # "max" means no limit
            continue
    return round(total / GIB, 2)


def shm_gib() -> float | Unknown:
    """Size of /dev/shm in GiB."""
    try:
        found = os.statvfs("/dev/shm")  # noqa: S108 - looked at, not written
    except (OSError, AttributeError):
        return Unknown("there is no /dev/shm")
    return round(found.f_blocks * found.f_frsize / GIB, 4)


def limits() -> dict[str, object] | Unknown:
    """Soft limits of this process: ``memlock_kib``, ``nofile``, ``nproc``; -1 for unlimited."""
    try:
        import resource
    except ImportError:
        return Unknown("this platform has no resource limits")
    memlock = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return {
        "memlock_kib": -1 if memlock == resource.RLIM_INFINITY else memlock // 1024,
        "nofile": _limit(resource.getrlimit(resource.RLIMIT_NOFILE)[0], resource.RLIM_INFINITY),
        "nproc": _limit(resource.getrlimit(resource.RLIMIT_NPROC)[0], resource.RLIM_INFINITY),
    }


def _limit(value: int, unlimited: int) -> int:
    return -1 if value == unlimited else value


def interfaces() -> dict[str, str] | Unknown:
    """Network interfaces by name with their first IPv4 address, empty without one."""
    try:
        import fcntl

        names = [name for _, name in socket.if_nameindex()]
    except (ImportError, OSError, AttributeError):
        return Unknown("the network interfaces cannot be listed")
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        for name in names:
            try:
                answer = fcntl.ioctl(asker.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                found[name] = ""
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    return found


def container(variables: Mapping[str, str]) -> str | None:
    """The container runtime that this process runs in, None when no sign of one is seen."""
    if os.path.exists("/.dockerenv"):
        return "docker"
    if os.path.exists("/run/.containerenv"):
        return "podman"
    if os.path.exists("/singularity") or os.path.exists("/.singularity.d"):
        return "apptainer"
    return "containerd" if "KUBERNETES_SERVICE_HOST" in variables else None


def platform() -> str:
    """The platform in the words of ``platform.platform()``, as far as uname tells."""
    found = os.uname()
    return f"{found.sysname}-{found.release}-{found.machine}"
