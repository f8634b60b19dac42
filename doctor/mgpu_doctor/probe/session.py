"""The doctor's end of the probe: starts processes through the guard, hears workers, and waits for both with deadlines.

One thread and one ``select`` do it all: whatever interrupts it (Ctrl-C included), leaving the ``with`` block ends
everything that was started.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mgpu_doctor.errors import InputError
from mgpu_doctor.probe import guard

MOST_LINES = 400
LONGEST_LINE = 2000
LONGEST_MESSAGE = 1 << 20
LONGEST_SOCKET_PATH = 100
"""Unix allows 108 bytes, the closing zero included."""

_SETTLE = 0.1


class Peer:
    """One worker, as it has described itself so far."""

    def __init__(self, line: socket.socket) -> None:
        self.line = line
        self.buffer = b""
        self.hello: dict[str, Any] = {}
        self.seen: dict[str, Any] = {}
        self.ready: dict[str, Any] = {}
        self.at = "hello"
        self.stage = "identity"
        self.answer: dict[str, Any] | None = None
        self.error: str | None = None
        self.failed_in: str | None = None
        self.frames: tuple[str, ...] = ()
        self.said_bye = False
        self.gone = False
        self.gone_at = 0.0
        self.exit_code: int | None = None
        self.signal: int | None = None
        self.hung = False

    @property
    def pid(self) -> int:
        """Its process id, 0 before it has said hello."""
        return int(self.hello.get("pid", 0))

    @property
    def told(self) -> Mapping[str, str]:
        """The variables by which its launcher told it its place."""
        told: Mapping[str, str] = self.hello.get("told", {})
        return told

    @property
    def rank(self) -> int | None:
        """Its RANK, None when it was told none."""
        return whole(self.told.get("RANK"))

    @property
    def well(self) -> bool:
        """Whether it still does what it is asked."""
        return not self.gone and self.error is None and not self.hung


class Session:
    """The processes of one probe and the lines to them; to be opened with :func:`opened`."""

    def __init__(self, token: str, seconds: float, *, cpu: bool) -> None:
        self.token = token
        self.deadline = time.monotonic() + seconds
        self.seconds = seconds
        self.cpu = cpu
        self.peers: list[Peer] = []
        self.ended: dict[int, int] = {}
        self.pids: dict[int, int] = {}
        self.missing: dict[int, str] = {}
        self.lines: deque[str] = deque(maxlen=MOST_LINES)
        self._partial = b""
        self._status = b""
        self._cleared = 0
        self._guard: subprocess.Popen[bytes] | None = None
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self.directory = ""

    def open(self) -> None:
        """Make the directory, the line, and the guard.

        Raises:
            InputError: temporary files cannot be written.
        """
        try:
            self.directory = os.path.realpath(tempfile.mkdtemp(prefix="mgpu-doctor-"))
            self._listen()
            self._start_guard()
        except OSError as error:
            self.close()
            raise InputError(
                f"the probe cannot be set up in {tempfile.gettempdir()}: {error.strerror or error}",
                hint="name a directory with room in it: TMPDIR=/path mgpu-doctor probe",
            ) from error
        except BaseException:
            self.close()
            raise

    @property
    def left(self) -> float:
        """Seconds until the deadline of the whole probe."""
        return max(0.0, self.deadline - time.monotonic())

    @property
    def worker(self) -> str:
        """The file that stands in for the user's program."""
        return os.path.join(self.directory, "worker.py")

    @property
    def guard_pid(self) -> int:
        """Process id of the guard, the ancestor of all that runs."""
        return self._guard.pid if self._guard is not None else 0

    def _listen(self) -> None:
        path = os.path.join(self.directory, "line")
        address: object = path
        self._listener = _unix_listener(path)
        if self._listener is None:
            self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            self._listener.bind(("127.0.0.1", 0))
            address = self._listener.getsockname()
        os.mkdir(os.path.join(self.directory, "tmp"))
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        settings = {"address": address, "token": self.token, "cpu": self.cpu}
        Path(self.directory, "channel.json").write_text(json.dumps(settings), encoding="utf-8")
        shutil.copyfile(Path(__file__).with_name("worker.py"), self.worker)

    def _start_guard(self) -> None:
        code = str(Path(__file__).with_name("guard.py"))
        argv = [sys.executable, "-I", "-S", code, self.directory, self.token, f"{self.seconds + 15:.3f}"]
        self._guard = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, cwd="/"
        )
        for stream, hear in ((self._guard.stdout, self._hear_guard), (self._guard.stderr, self._hear_output)):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ, hear)

    def start(self, number: int, argv: Iterable[str], environment: Mapping[str, str], directory: str) -> None:
        """Have the guard start a program; ``ended``, ``missing`` and ``peers`` show what becomes of it.

        Its temporary files lie in the session's directory: a launcher that is killed leaves them behind (torch's
        elastic agent its logs).
        """
        marked = {**environment, guard.TOKEN_VARIABLE: self.token, "TMPDIR": os.path.join(self.directory, "tmp")}
        self._order({"start": list(argv), "id": number, "environment": marked, "directory": directory})

    def clear(self, seconds: float = 6.0) -> None:
        """End everything that was started; the guard stays."""
        wanted = self._cleared + 1
        for peer in self.peers:
            self._drop(peer)
        self._order({"clear": True})
        self.pump(lambda: self._cleared >= wanted or self._guard_is_gone(), seconds)
        self.peers = []

    def _order(self, order: Mapping[str, object]) -> None:
        assert self._guard is not None
        assert self._guard.stdin is not None
        with contextlib.suppress(OSError):
            self._guard.stdin.write((json.dumps(order) + "\n").encode("utf-8", "surrogateescape"))
            self._guard.stdin.flush()

    def _guard_is_gone(self) -> bool:
        return self._guard is None or self._guard.poll() is not None

    def close(self) -> None:
        """End everything and remove what was made; called on every way out."""
        for peer in self.peers:
            self._drop(peer)
        if self._guard is not None:
            self._end_guard(self._guard)
        if self._listener is not None:
            self._listener.close()
        self._selector.close()
        if self.directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _end_guard(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        limit = time.monotonic() + 7
        with contextlib.suppress(KeyError, ValueError):
            # Somebody has to take what is still written, or the writers wait.
            while process.poll() is None and time.monotonic() < limit:
                self._turn(0.02)
        if process.poll() is None:
            process.kill()
            process.wait()
        guard.end_all(None, self.token, 5.0, lambda: None)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    def pump(self, until: Callable[[], bool], seconds: float) -> bool:
        """Hear everybody until a condition holds; False when the time for it, or for the whole probe, is over."""
        limit = min(time.monotonic() + seconds, max(self.deadline, time.monotonic() + 0.01))
        while not until():
            left = limit - time.monotonic()
            if left <= 0:
                return False
            self._turn(min(left, _SETTLE))
        return True

    def settle(self, seconds: float) -> None:
        """Hear everybody for some time, in case that more comes."""
        self.pump(lambda: False, seconds)

    def _turn(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            key.data(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            line, _ = listener.accept()
            line.setblocking(False)
            peer = Peer(line)
            self._selector.register(line, selectors.EVENT_READ, lambda _: self._hear(peer))

    def _hear(self, peer: Peer) -> None:
        try:
            data = peer.line.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or len(peer.buffer) > LONGEST_MESSAGE:
            self._lose(peer)
            return
        *lines, peer.buffer = (peer.buffer + data).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                self._lose(peer)
                return
            self._note(peer, message)

    def _note(self, peer: Peer, message: dict[str, Any]) -> None:
        kind = message.get("kind")
        if kind == "hello":
            if message.get("token") != self.token:
                self._drop(peer)
                return
            peer.hello = message
            self.peers.append(peer)
        elif kind == "at":
            peer.at = message["what"]
        elif kind == "seen":
            peer.seen = message
        elif kind == "done":
            peer.answer = message
            if message["stage"] == "identity":
                peer.ready = message
        elif kind == "failed":
            peer.answer = message
            peer.error, peer.failed_in = message["error"], peer.stage
        elif kind == "stack":
            peer.frames = tuple(message["frames"])
        elif kind == "bye":
            peer.said_bye = True

    def _lose(self, peer: Peer) -> None:
        """Its line is closed: it has ended. How, the kernel says as long as nobody has taken leave of it."""
        peer.gone = True
        peer.gone_at = time.monotonic()
        fields = guard.status_fields(peer.pid) if peer.pid else []
        if len(fields) >= 50 and not peer.said_bye:
            status = int(fields[49])
            if status & 0x7F:
                peer.signal = status & 0x7F
            elif status or fields[0] in ("Z", "X"):
                peer.exit_code = status >> 8
        self._drop(peer)

    def _drop(self, peer: Peer) -> None:
        peer.gone = True
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(peer.line)
        peer.line.close()

    def tell(self, peer: Peer, order: Mapping[str, object]) -> None:
        """Give a worker an order; one that is gone is noted as such when its line is read."""
        peer.answer = None
        with contextlib.suppress(OSError):
            peer.line.send((json.dumps(order) + "\n").encode())

    def _hear_guard(self, stream: Any) -> None:
        data = _take(stream)
        if not data:
            self._forget(stream, data)
            return
        *lines, self._status = (self._status + data).split(b"\n")
        for line in lines:
            self._note_guard(json.loads(line))

    def _note_guard(self, message: dict[str, Any]) -> None:
        if "ended" in message:
            self.ended[message["ended"]] = message["status"]
        elif "missing" in message:
            self.missing[message["missing"]] = message["error"]
        elif "started" in message:
            self.pids[message["started"]] = message["pid"]
        elif "cleared" in message:
            self._cleared += 1

    def _hear_output(self, stream: Any) -> None:
        data = _take(stream)
        if not data:
            self._forget(stream, data)
            return
        *lines, rest = (self._partial + data).split(b"\n")
        self._partial = rest[-LONGEST_LINE:]
        for line in lines[-MOST_LINES:]:
            self.lines.append(line[:LONGEST_LINE].decode("utf-8", "replace").rstrip("\r"))

    def _forget(self, stream: Any, data: bytes | None) -> None:
        if data == b"":
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(stream)

    def output(self) -> tuple[str, ...]:
        """The last lines that were written."""
        rest = self._partial.decode("utf-8", "replace")
        return (*self.lines, rest) if rest.strip() else tuple(self.lines)


@contextlib.contextmanager
def opened(token: str, seconds: float, *, cpu: bool) -> Iterator[Session]:
    """A session that is closed on every way out."""
    session = Session(token, seconds, cpu=cpu)
    session.open()
    try:
        yield session
    finally:
        session.close()


def _unix_listener(path: str) -> socket.socket | None:
    """A socket in the file system; None where the path is too long, or the file system has no sockets."""
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        return None
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
    except OSError:
        listener.close()
        return None
    return listener


def _take(stream: Any) -> bytes | None:
    """What a pipe holds; empty at its end, None when there is nothing now."""
    try:
        return os.read(stream.fileno(), 1 << 16)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def whole(text: str | None) -> int | None:
    """A text as a whole number, None when it is none."""
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None
