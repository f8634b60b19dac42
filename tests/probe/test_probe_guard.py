"""The guard leaves nothing: whatever was started is ended, however it hides and however the doctor ends."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mgpu_doctor
from mgpu_doctor.errors import InputError
from mgpu_doctor.probe import guard
from mgpu_doctor.probe.session import LONGEST_SOCKET_PATH, MOST_LINES, Session, opened
from probing import left_of, scratch

linux = pytest.mark.skipif(sys.platform != "linux", reason="process trees are read from /proc")
TOKEN = "0123456789abcdef"

HIDER = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.environ.clear()
        code = "import time; print('hidden', flush=True); time.sleep(600)"
        os.execve(sys.executable, [sys.executable, "-c", code], {})
    os._exit(0)
print("shown", flush=True)
time.sleep(600)
"""
"""A program that ignores SIGTERM and leaves a child in another session, without our mark, whose parent is gone."""


@pytest.fixture
def place() -> Iterator[str]:
    with scratch() as found:
        yield found


def wait_for(session: Session, condition: Callable[[], bool]) -> None:
    assert session.pump(condition, 20), session.output()


def alive(pid: int) -> bool:
    fields = guard.status_fields(pid)
    return bool(fields) and fields[0] not in ("Z", "X")


def descendants_of(session: Session) -> set[int]:
    return guard.descendants(session.guard_pid, guard.parents())


@linux
def test_closing_ends_what_hides_from_it(place: str) -> None:
    with opened(TOKEN, 60, cpu=True) as session:
        session.start(1, [sys.executable, "-c", HIDER], dict(os.environ), "/")
        wait_for(session, lambda: {"shown", "hidden"} <= set(session.lines))
        started = descendants_of(session)
        assert len(started) == 2
    assert not any(alive(pid) for pid in started)
    assert left_of(place) == []


@linux
def test_clearing_ends_all_and_the_session_goes_on(place: str) -> None:
    with opened(TOKEN, 60, cpu=True) as session:
        session.start(1, [sys.executable, "-c", HIDER], dict(os.environ), "/")
        wait_for(session, lambda: {"shown", "hidden"} <= set(session.lines))
        session.clear()
        assert descendants_of(session) == set()
        assert session.ended[1] == -signal.SIGKILL
        session.start(2, [sys.executable, "-c", "print('again')"], dict(os.environ), "/")
        wait_for(session, lambda: 2 in session.ended and "again" in session.lines)
        assert session.ended[2] == 0


@linux
def test_a_killed_guard_takes_the_launcher_along(place: str) -> None:
    with opened(TOKEN, 60, cpu=True) as session:
        session.start(1, [sys.executable, "-c", HIDER], dict(os.environ), "/")
        wait_for(session, lambda: "shown" in session.lines)
        launcher = session.pids[1]
        os.kill(session.guard_pid, signal.SIGKILL)
    assert not alive(launcher)


def test_a_program_that_is_not_there_is_reported(place: str) -> None:
    with opened(TOKEN, 60, cpu=True) as session:
        session.start(1, ["/no/such/launcher", "x"], {}, "/")
        wait_for(session, lambda: 1 in session.missing)
        assert session.missing[1] == "/no/such/launcher: No such file or directory"


def test_a_flood_is_drained_and_only_its_end_is_kept(place: str) -> None:
    flood = "import sys\nfor n in range(200_000): print(n, 'x' * 200)\nprint('y' * 5_000_000)\nprint('last')"
    with opened(TOKEN, 60, cpu=True) as session:
        session.start(1, [sys.executable, "-c", flood], dict(os.environ), "/")
        wait_for(session, lambda: 1 in session.ended)
        session.settle(0.1)
        lines = session.output()
    assert lines[-1] == "last"
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= 2000


@linux
def test_shared_memory_of_ours_is_removed_and_of_others_is_not(place: str) -> None:
    ours, other, foreign = (f"/dev/shm/{name}-{os.getpid()}" for name in ("nccl-doctor", "doctor-own", "nccl-foreign"))
    Path(foreign).write_text("x")
    code = f"import time\nfiles = [open(p, 'w') for p in ({ours!r}, {other!r})]\n"
    holder = f"{code}print('open', flush=True)\ntime.sleep(600)"
    try:
        with opened(TOKEN, 60, cpu=True) as session:
            session.start(1, [sys.executable, "-c", holder], dict(os.environ), "/")
            wait_for(session, lambda: "open" in session.lines)
        assert not os.path.exists(ours)
        assert os.path.exists(other)
        assert os.path.exists(foreign)
    finally:
        for path in (ours, other, foreign):
            Path(path).unlink(missing_ok=True)


@linux
def test_the_guard_ends_by_itself_when_its_time_is_over(place: str) -> None:
    directory = os.path.join(place, "d")
    os.mkdir(directory)
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__, directory, TOKEN, "1.0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    order = {"start": [sys.executable, "-c", HIDER], "id": 1, "environment": {}, "directory": "/"}
    process.stdin.write(json.dumps(order).encode() + b"\n")
    process.stdin.flush()
    assert process.wait(20) == 0
    assert process.stdout is not None
    answers = [json.loads(line) for line in process.stdout]
    assert {"cleared": True} in answers
    assert not os.path.exists(directory)
    for stream in (process.stdin, process.stdout, process.stderr):
        assert stream is not None
        stream.close()


DOCTOR = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path[:0] = {paths!r}
from mgpu_doctor.probe.session import opened
with opened("feedfeedfeedfeed", 60, cpu=True) as session:
    session.start(1, [sys.executable, "-c", {hider!r}], dict(os.environ), "/")
    session.pump(lambda: {{"shown", "hidden"}} <= set(session.lines), 20)
    print("ready", session.guard_pid, session.pids[1], flush=True)
    session.pump(lambda: False, 60)
"""


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_nothing_outlives_the_doctor(place: str, number: signal.Signals) -> None:
    paths = [str(Path(mgpu_doctor.__file__).parent.parent)]
    code = textwrap.dedent(DOCTOR).format(paths=paths, hider=HIDER)
    environment = {**os.environ, "TMPDIR": place}
    doctor = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    assert doctor.stdout is not None
    word, guarding, launcher = doctor.stdout.readline().split()
    assert word == b"ready"
    ended = os.pidfd_open(int(guarding))
    started = guard.descendants(int(guarding), guard.parents())
    assert len(started) == 2
    doctor.send_signal(number)
    assert doctor.wait(20) != 0
    assert select.select([ended], [], [], 20)[0], "the guard is still there"
    os.close(ended)
    doctor.stdout.close()
    assert not any(alive(pid) for pid in (*started, int(launcher)))
    assert left_of(place) == []
    assert os.listdir(place) == []


def test_a_long_directory_takes_another_kind_of_line(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    long = os.path.join(place, "x" * LONGEST_SOCKET_PATH)
    os.mkdir(long)
    monkeypatch.setattr(tempfile, "tempdir", long)
    with opened(TOKEN, 60, cpu=True) as session:
        settings = json.loads(Path(session.directory, "channel.json").read_text())
        assert settings["address"][0] == "127.0.0.1"
        session.start(1, [sys.executable, session.worker], dict(os.environ), "/")
        wait_for(session, lambda: bool(session.peers))
        assert session.peers[0].pid == session.pids[1]
    os.rmdir(long)


def test_no_room_for_temporary_files_is_said(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = os.path.join(place, "file")
    Path(file).write_text("")
    monkeypatch.setattr(tempfile, "tempdir", file)
    with pytest.raises(InputError, match="cannot be set up in") as caught, opened(TOKEN, 60, cpu=True):
        pass
    assert "TMPDIR" in str(caught.value.hint)
    os.unlink(file)


def test_a_stranger_on_the_line_is_not_heard(place: str) -> None:
    with opened(TOKEN, 60, cpu=True) as session:
        settings = json.loads(Path(session.directory, "channel.json").read_text())
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(settings["address"])
            stranger.sendall(b'{"kind": "hello", "token": "guessed", "pid": 1}\n')
            session.settle(0.05)
            assert session.peers == []
            assert stranger.recv(1) == b""
