"""Whether a process lives is told from its number alone, and only where numbers mean what they seem to mean."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mgpu_doctor.collect import gpu_processes
from mgpu_doctor.collect.gpu_processes import describe
from mgpu_doctor.model.known import Unknown

GIB = 2**30

WITHOUT_ITS_MAIN_THREAD = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
print("ready", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


@contextmanager
def running(code: str) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def test_a_living_process() -> None:
    with running("import time; print('ready', flush=True); time.sleep(600)") as pid:
        found = describe(3, pid, GIB * 5 // 2, all_seen=True)
    assert (found.gpu, found.pid, found.memory_gib, found.alive) == (3, pid, 2.5, True)
    assert found.parent == os.getpid()
    assert isinstance(found.command, str)
    assert "time.sleep(600)" in found.command


def test_a_process_whose_main_thread_has_ended() -> None:
    """It is listed as a zombie, but works on."""
    with running(WITHOUT_ITS_MAIN_THREAD) as pid:
        for _ in range(1000):
            if (stat := gpu_processes._stat(pid)) is None or stat[0] == "Z":
                break
            os.sched_yield()
        assert describe(0, pid, None, all_seen=True).alive is True


@pytest.mark.parametrize("pid", [0, 2**32 - 1])
def test_numbers_that_are_no_process(pid: int) -> None:
    found = describe(0, pid, None, all_seen=True)
    assert isinstance(found.alive, Unknown)
    assert isinstance(found.command, Unknown)


def test_an_orphan_has_the_first_process_for_a_parent() -> None:
    found = describe(0, 1, None, all_seen=True)
    assert found.alive is True
    assert found.parent == 0


def test_where_others_cannot_be_seen_nothing_is_said_of_them() -> None:
    found = describe(0, 1, GIB, all_seen=False)
    assert found.memory_gib == 1.0
    for value in (found.alive, found.command, found.user, found.parent):
        assert isinstance(value, Unknown)


def test_there_a_process_that_holds_a_device_file_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Path("/dev/nvidiactl") if Path("/dev/nvidiactl").exists() else None
    if device is None:
        # No such file can be made here, so another one that only this process holds stands for it.
        file = tmp_path / "device"
        file.touch()
        monkeypatch.setattr(gpu_processes, "DEVICE_FILES", (str(file),))
        device = file
    with device.open("rb"):
        found = describe(0, os.getpid(), GIB, all_seen=False)
    assert found.alive is True
    assert found.parent == os.getppid()
    assert isinstance(describe(0, os.getpid(), GIB, all_seen=False).alive, Unknown) or Path("/dev/nvidiactl").exists()


def test_names_of_processes_may_hold_anything(tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 (b"
    program.symlink_to(sys.executable)
    process = subprocess.Popen([str(program), "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert describe(0, process.pid, None, all_seen=True).parent == os.getpid()
    finally:
        process.communicate(b"\n")


def test_owners() -> None:
    found = describe(0, os.getpid(), None, all_seen=True)
    assert found.user == pwd.getpwuid(os.getuid()).pw_name
    assert isinstance(describe(0, 2**22 + 7, None, all_seen=True).user, Unknown)
