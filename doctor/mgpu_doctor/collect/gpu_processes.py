"""Who the processes are that NVML lists: command, owner, parent, and whether they still exist.

NVML names processes by number. NVIDIA's open kernel module translates the numbers into the caller's PID namespace and
leaves out those that it does not hold (kernel-open/nvidia/os-interface.c, os_find_ns_pid); not every driver need do so,
and then the numbers are the host's. So in a container a number may be a stranger's: it is trusted only when the process
of that number holds a GPU's device file, and no process is ever called dead there.
"""

from __future__ import annotations

import os

from mgpu_doctor.model.facts import GpuProcess
from mgpu_doctor.model.known import Unknown

INITIAL_PID_NAMESPACE = "pid:[4026531836]"
"""The namespace that the kernel starts with: PROC_PID_INIT_INO of linux/proc_ns.h, 0xEFFFFFFC."""

DEVICE_FILES = ("/dev/nvidia", "/dev/dxg")
"""Beginnings of the names of GPUs' device files."""

GIB = 2**30
MOST_FILES = 4096
_LARGEST_PASSWD = 1024 * 1024


def sees_all_processes() -> bool:
    """Whether process numbers mean here what they mean to the driver: no container, no WSL, no other's /proc."""
    try:
        initial = os.readlink("/proc/self/ns/pid") == INITIAL_PID_NAMESPACE
        return initial and os.readlink("/proc/self") == str(os.getpid()) and not os.path.exists("/dev/dxg")
    except OSError:
        return False


def describe(gpu: int, pid: int, used: int | None, all_seen: bool) -> GpuProcess:
    """What can be told of the process that holds ``used`` bytes (None when NVML does not tell) of a GPU."""
    memory: float | Unknown = Unknown("NVML does not tell") if used is None else round(used / GIB, 2)
    if not all_seen and not _holds_gpu(pid):
        hidden = Unknown("this process runs in a PID namespace of its own and may not see others")
        return GpuProcess(gpu, pid, hidden, memory, hidden, hidden, hidden)
    from mgpu_doctor.collect.ports import command_of

    stat = _stat(pid)
    alive = _exists(pid, stat) if all_seen else True
    gone = Unknown(f"process {pid} cannot be looked at")
    return GpuProcess(
        gpu=gpu,
        pid=pid,
        command=command_of(pid),
        memory_gib=memory,
        user=_owner(pid),
        alive=alive,
        parent=int(stat[1]) if stat is not None else gone,
    )


def _exists(pid: int, stat: list[str] | None) -> bool | Unknown:
    """Whether the process exists. /proc may hide other users' processes, kill(2) does not."""
    if pid <= 0:
        return Unknown(f"{pid} is no process number")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    except (OSError, OverflowError) as error:
        return Unknown(f"process {pid} cannot be asked for: {error}")
    # A zombie whose other threads still run is no corpse yet.
    return not (stat is not None and stat[0] in ("Z", "X") and stat[17] == "1")


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third on: state, parent, …; the 18th of them is the number of threads."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read(4096).decode("utf-8", "replace")
    except OSError:
        return None
    # The second field, the name in brackets, may hold anything.
    fields = text.rpartition(")")[2].split()
    return fields if len(fields) > 17 and fields[1].isdigit() else None


def _holds_gpu(pid: int) -> bool:
    """Whether the process of this number, seen from here, has a GPU's device file open."""
    base = f"/proc/{pid}/fd"
    try:
        names = os.listdir(base)[:MOST_FILES]
    except OSError:
        return False
    for name in names:
        try:
            if os.readlink(f"{base}/{name}").startswith(DEVICE_FILES):
                return True
        except OSError:
            continue
    return False


def _owner(pid: int) -> str | Unknown:
    """The owner's name out of /etc/passwd, or the number: other directories of users would be asked over a network."""
    try:
        number = os.stat(f"/proc/{pid}").st_uid
    except OSError as error:
        return Unknown(f"process {pid} cannot be looked at: {error.strerror}")
    try:
        with open("/etc/passwd", "rb") as file:
            lines = file.read(_LARGEST_PASSWD).decode("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        fields = line.split(":")
        if len(fields) > 2 and fields[2] == str(number):
            return fields[0]
    return str(number)
