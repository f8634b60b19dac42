"""Starts what the probe starts, and sees to it that nothing of it is left when the probe is over.

It runs as a process of its own between the doctor and the launcher: ``python guard.py DIRECTORY TOKEN SECONDS``. The
doctor writes orders to its standard input, one JSON object a line: ``{"start": [argv], "id": n, "environment": {…},
"directory": "…"}`` and ``{"clear": true}`` (end all that was started). It answers on its standard output: ``{"started":
n, "pid": …}``, ``{"missing": n, "error": "…"}``, ``{"ended": n, "status": …}``, ``{"cleared": true}``. What the started
programs write goes to its standard error.

When its input closes (the doctor has ended, whatever the reason), when it is told to end, or when SECONDS are over, it
kills every descendant, removes the shared memory that these held and DIRECTORY, and ends. On Linux all orphans below it
become its children (PR_SET_CHILD_SUBREAPER), so that none escapes by detaching itself; and every process whose
environment holds the token is one of ours, wherever it hangs in the tree.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

TOKEN_VARIABLE = "MGPU_DOCTOR_PROBE"  # noqa: S105 - the name of a variable
SHARED_MEMORY = "/dev/shm/"  # noqa: S108 - where POSIX shared memory lies
SHARED_NAMES = ("nccl-", "torch_")
_SUBREAPER = 36
_DEATH_SIGNAL = 1


def parents() -> dict[int, int]:
    """Parent by process id, of all processes that are alive; empty where /proc does not tell."""
    found: dict[int, int] = {}
    try:
        names = os.listdir("/proc")
    except OSError:
        return found
    for name in names:
        if name.isdigit():
            fields = status_fields(int(name))
            if fields and fields[0] not in ("Z", "X"):
                found[int(name)] = int(fields[1])
    return found


def status_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read().decode("ascii", "replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def descendants(root: int, tree: dict[int, int]) -> set[int]:
    """The processes below one, itself excluded."""
    below: dict[int, list[int]] = {}
    for pid, parent in tree.items():
        below.setdefault(parent, []).append(pid)
    found: set[int] = set()
    queue = [root]
    while queue:
        for child in below.get(queue.pop(), ()):
            if child not in found:
                found.add(child)
                queue.append(child)
    return found


def marked(token: str, tree: dict[int, int]) -> set[int]:
    """The processes whose environment holds the token."""
    wanted = f"{TOKEN_VARIABLE}={token}".encode()
    found = set()
    for pid in tree:
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if wanted in file.read().split(b"\0"):
                    found.add(pid)
        except OSError:
            continue
    return found


def shared_memory_of(pids: set[int]) -> set[str]:
    """The shared memory objects of NCCL and torch that these processes have open or mapped."""
    found: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
            found.update(line.split(None, 5)[5].strip() for line in file if SHARED_MEMORY in line)
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return {path for path in found if path.startswith(tuple(SHARED_MEMORY + name for name in SHARED_NAMES))}


def end_all(root: int | None, token: str, seconds: float, reap: Callable[[], object]) -> set[int]:
    """Kill everything marked, and everything below ``root``, until nothing is left; what is left after ``seconds``.

    ``reap`` is called after each round, to take leave of one's own children.
    """
    memory: set[str] = set()
    limit = time.monotonic() + seconds
    while True:
        tree = parents()
        below = descendants(root, tree) if root is not None else set()
        left = (below | marked(token, tree)) - {os.getpid()}
        if not left or time.monotonic() > limit:
            break
        memory |= shared_memory_of(left)
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        reap()
        time.sleep(0.002)
    for path in memory:
        with contextlib.suppress(OSError):
            os.unlink(path)
    return left


def _reap() -> list[tuple[int, int]]:
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append((pid, os.waitstatus_to_exitcode(status)))


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


class Guard:
    """The children that were started, by the doctor's numbers for them."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.started: dict[int, int] = {}
        self.kept: list[subprocess.Popen[bytes]] = []

    def say(self, **fields: object) -> None:
        """Answer the doctor; it may be gone."""
        with contextlib.suppress(OSError):
            os.write(1, (json.dumps(fields) + "\n").encode())

    def start(self, order: dict[str, object]) -> None:
        """Start a program in a session of its own, that ends when this process does."""
        argv = [str(word) for word in order["start"]]  # type: ignore[attr-defined]
        number = int(str(order["id"]))
        environment = order["environment"]
        assert isinstance(environment, dict)
        try:
            child = subprocess.Popen(
                argv,
                env=environment,
                cwd=str(order["directory"]),
                stdin=subprocess.DEVNULL,
                stdout=2,
                stderr=2,
                start_new_session=True,
                preexec_fn=lambda: _prctl(_DEATH_SIGNAL, signal.SIGKILL),  # noqa: PLW1509 - there are no threads here
            )
        except (OSError, ValueError) as error:
            self.say(missing=number, error=f"{argv[0]}: {getattr(error, 'strerror', None) or error}")
            return
        self.kept.append(child)
        self.started[child.pid] = number
        self.say(started=number, pid=child.pid)

    def reap(self) -> None:
        """Tell of the children that have ended."""
        for pid, status in _reap():
            for child in self.kept:
                if child.pid == pid:
                    child.returncode = status
            if pid in self.started:
                self.say(ended=self.started.pop(pid), status=status)

    def clear(self) -> None:
        """End all that was started; where /proc shows no tree, at least the sessions that were started."""
        for pid in () if parents() else self.started:
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
        left = end_all(os.getpid(), self.token, 5.0, self.reap)
        self.reap()
        self.say(cleared=not left)

    def obey(self, order: dict[str, object]) -> None:
        """Carry out one order of the doctor."""
        if "start" in order:
            self.start(order)
        elif "clear" in order:
            self.clear()


def main() -> None:
    """Obey until the input closes or the time is over; then leave nothing behind."""
    directory, token, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    _prctl(_SUBREAPER, 1)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    stop: list[int] = []
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: stop.append(1))
    guard = Guard(token)
    limit = time.monotonic() + seconds
    rest = b""
    try:
        while not stop and time.monotonic() < limit:
            ready, _, _ = select.select([0, woken], [], [], max(0.0, limit - time.monotonic()))
            if woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(woken, 4096)
                guard.reap()
            if 0 in ready:
                data = os.read(0, 1 << 16)
                if not data:
                    break
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    guard.obey(json.loads(line))
    finally:
        guard.clear()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
