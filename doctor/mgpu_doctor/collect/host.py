"""The host around the GPUs: memory, processors, limits, container, scheduler, platform.

``root`` is the directory that ``/proc``, ``/sys`` and the like are looked for in: empty for this machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from mgpu_doctor.collect.cgroup import Allowance
from mgpu_doctor.model.known import Unknown

GIB = 2**30

_SCHEDULERS = (
    ("SLURM_JOB_ID", "slurm"),
    ("SLURM_JOBID", "slurm"),
    ("PBS_JOBID", "pbs"),
    ("LSB_JOBID", "lsf"),
    ("KUBERNETES_SERVICE_HOST", "kubernetes"),
)
"""Variables by which a process knows whose job it is part of (sbatch(1), qsub(1B), bsub(1), Kubernetes' "Connecting
Applications with Services")."""


def host_memory_gib(group: Allowance, root: str = "") -> float | Unknown:
    """Memory of the host in GiB, or of the control group where that allows less."""
    total = _memory("MemTotal", root)
    if isinstance(total, Unknown):
        return total
    return _gib(total if group.memory is None else min(total, group.memory))


def host_memory_free_gib(group: Allowance, root: str = "") -> float | Unknown:
    """Memory that could be had without swapping, in GiB, within the control group's limit."""
    free = _memory("MemAvailable", root)
    if isinstance(free, Unknown):
        return free
    return _gib(free if group.memory_free is None else min(free, group.memory_free))


def _memory(name: str, root: str) -> int | Unknown:
    """A line of ``/proc/meminfo`` in bytes."""
    try:
        with open(f"{root}/proc/meminfo", encoding="ascii", errors="replace") as file:
            return int(next(line for line in file if line.startswith(f"{name}:")).split()[1]) * 1024
    except (OSError, ValueError, IndexError, StopIteration):
        return Unknown(f"/proc/meminfo does not tell {name}")


def _gib(size: int) -> float:
    return round(size / GIB, 2)


def cpu_count(group: Allowance) -> float | Unknown:
    """Processors that this process may use: its affinity, which cpusets narrow, and the control group's quota."""
    try:
        allowed: float = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        allowed = os.cpu_count() or 0
    if not allowed:
        return Unknown("the system does not tell its number of processors")
    return allowed if group.cpus is None else min(allowed, group.cpus)


def shared_memory(path: str = "/dev/shm") -> tuple[float | Unknown, float | Unknown]:  # noqa: S108 - never written
    """Size of /dev/shm and what is free of it, in GiB."""
    try:
        found = os.statvfs(path)
    except (OSError, AttributeError):
        missing = Unknown(f"there is no {path}")
        return missing, missing
    if not found.f_blocks:
        unlimited = Unknown(f"{path} is mounted without a limit of its own")
        return unlimited, unlimited
    return round(found.f_blocks * found.f_frsize / GIB, 4), round(found.f_bavail * found.f_frsize / GIB, 4)


def limits(group: Allowance) -> dict[str, object] | Unknown:
    """Limits of this process; -1 for unlimited.

    ``memlock_kib``, ``nofile`` (open files), ``nproc`` (the user's processes and threads) and ``stack_kib`` are the
    soft limits in force; with ``_hard`` behind the name, how far this user may raise them. ``cgroup_memory_gib`` and
    ``cgroup_pids`` are there only where a control group sets them.
    """
    try:
        import resource
    except ImportError:
        return Unknown("this platform has no resource limits")
    found: dict[str, object] = {}
    for name, what, unit in (
        ("memlock_kib", resource.RLIMIT_MEMLOCK, 1024),
        ("nofile", resource.RLIMIT_NOFILE, 1),
        ("nproc", resource.RLIMIT_NPROC, 1),
        ("stack_kib", resource.RLIMIT_STACK, 1024),
    ):
        try:
            values = resource.getrlimit(what)
        except (OSError, ValueError):
            continue
        for key, value in zip((name, f"{name}_hard"), values, strict=True):
            found[key] = -1 if value == resource.RLIM_INFINITY else value // unit
    if group.memory is not None:
        found["cgroup_memory_gib"] = _gib(group.memory)
    if group.processes is not None:
        found["cgroup_pids"] = group.processes
    return found


def container(variables: Mapping[str, str], root: str = "") -> str | None:
    """The runtime of the container that this process runs in, None when no sign of one is seen.

    ``docker``, ``podman``, ``apptainer``, ``containerd`` (any runtime below Kubernetes), ``lxc``,
    ``systemd-nspawn``. The Windows Subsystem for Linux is no container: the platform names it.

    Signs: ``/.dockerenv`` (moby, daemon/initlayer/setup_unix.go); ``/.singularity.d`` and the two variables
    (apptainer, user guide, "Environment and metadata"); ``/run/.containerenv`` (podman-run(1); CRI-O writes it too, so
    Kubernetes is asked first); ``container`` in the environment and ``/run/systemd/container`` (systemd, "The
    Container Interface").
    """
    if os.path.exists(f"{root}/.dockerenv"):
        return "docker"
    if os.path.exists(f"{root}/.singularity.d") or {"APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"} & variables.keys():
        return "apptainer"
    if "KUBERNETES_SERVICE_HOST" in variables:
        return "containerd"
    if os.path.exists(f"{root}/run/.containerenv"):
        return "podman"
    named = _first_line(f"{root}/run/systemd/container") or variables.get("container", "")
    for sign, runtime in (("lxc", "lxc"), ("nspawn", "systemd-nspawn"), ("podman", "podman"), ("docker", "docker")):
        if sign in named:
            return runtime
    return None


def scheduler(variables: Mapping[str, str]) -> str | None:
    """Whose job this process is part of: ``slurm``, ``pbs``, ``lsf``, ``kubernetes``; None outside any."""
    return next((name for variable, name in _SCHEDULERS if variables.get(variable)), None)


def own_names(variables: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of this process's user, and of this machine: what a report is not to give away."""
    users = [variables.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")]
    try:
        import pwd

        users.append(pwd.getpwuid(os.getuid()).pw_name)
    except (ImportError, KeyError, AttributeError):
        pass  # a user without an account, as in containers
    hosts = (variables.get("HOSTNAME", ""), os.uname().nodename if hasattr(os, "uname") else "")
    return tuple(filter(None, users)), tuple(filter(None, hosts))


def platform() -> str | Unknown:
    """The platform in the words of ``platform.platform()``, which itself would start a program to find more."""
    if not hasattr(os, "uname"):
        import sys

        version = getattr(sys, "getwindowsversion", lambda: None)()
        return f"Windows-{version.major}-{version.major}.{version.minor}.{version.build}" if version else sys.platform
    found = os.uname()
    if found.sysname == "Darwin":
        from platform import mac_ver

        return f"macOS-{mac_ver()[0] or found.release}-{found.machine}"
    return f"{found.sysname}-{found.release}-{found.machine}"


def _first_line(path: str) -> str:
    """The first line of a small file, empty when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline(4096).strip()
    except (OSError, ValueError):
        return ""
