"""Services that GPUs depend on, and how they are, without asking systemd: from process files and packages."""

from __future__ import annotations

import os

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.pattern import pattern

FABRIC_MANAGER = "nvidia-fabricmanager"
"""The systemd service; its program is ``nv-fabricmanager``."""

_PID_FILE = "run/nvidia-fabricmanager/nv-fabricmanager.pid"
"""NVIDIA, Fabric Manager User Guide, "Fabric Manager Service File" (PIDFile)."""

_UNITS = ("etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
_PACKAGE = pattern(r"(?:nvidia|cuda-drivers)-fabricmanager(?:-\d+)?")
_UPSTREAM = pattern(r"(?:\d+:)?(\d+(?:\.\d+)+)")
_MOST_PROCESSES = 50_000
_LARGEST_STATUS = 64 * 1024 * 1024


def fabric_manager(container: str | None, root: str = "") -> str | Unknown:
    """State of the fabric manager: ``active``, ``inactive``, or ``not installed``.

    Active when its process is seen, whoever started it. That there is no such process means something only where
    all processes can be seen: outside containers, on a machine that systemd runs. Whether it failed or was never
    started cannot be told without systemd.
    """
    if _runs(root):
        return "active"
    if container is not None:
        return Unknown("processes outside the container cannot be seen")
    if _word(f"{root}/proc/1/comm") != "systemd":
        return Unknown("the processes of the machine cannot be seen, or systemd does not run it")
    unit = f"{FABRIC_MANAGER}.service"
    installed = any(os.path.lexists(f"{root}/{place}/{unit}") for place in _UNITS)
    return "inactive" if installed else "not installed"


def _runs(root: str) -> bool:
    """Whether a process is called as the program is; the kernel keeps 15 characters of a name."""
    wanted = "nv-fabricmanager"[:15]
    number = _word(f"{root}/{_PID_FILE}")
    if number.isascii() and number.isdigit() and _word(f"{root}/proc/{number}/comm") == wanted:
        return True
    try:
        names = [name for name in os.listdir(f"{root}/proc") if name.isascii() and name.isdigit()]
    except OSError:
        return False
    return any(_word(f"{root}/proc/{name}/comm") == wanted for name in names[:_MOST_PROCESSES])


def fabric_manager_version(container: str | None, root: str = "") -> str | Unknown | None:
    """Version of the installed fabric manager, None when none is installed; from dpkg's list of packages."""
    if container is not None:
        return Unknown("the packages of a container are not those of the machine")
    try:
        with open(f"{root}/var/lib/dpkg/status", encoding="utf-8", errors="replace") as file:
            text = file.read(_LARGEST_STATUS)
    except OSError:
        return Unknown("the packages of the system cannot be listed without running a command")
    for paragraph in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        if _PACKAGE.fullmatch(fields.get("Package", "")) and fields.get("Status", "").endswith(" installed"):
            version = _UPSTREAM.match(fields.get("Version", ""))
            return version.group(1) if version else Unknown("its package has no version that can be read")
    if os.path.exists(f"{root}/usr/bin/nv-fabricmanager"):
        return Unknown("it was not installed as a package")
    return None


def _word(path: str) -> str:
    """The text of a small file, empty when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096).strip()
    except OSError:
        return ""
