"""TCP ports of this machine: whether a rendezvous could listen on one, and who is in the way.

A port is tried the way torch's TCPStore takes it (torch 2.13.0, seen by running both of its servers):
with SO_REUSEADDR, on every address of IPv6 and IPv4 at once, then on IPv4 alone; it fails only when both
do. So connections that linger in TIME_WAIT do not count, while a listener on any single IPv4 address,
a socket that is merely bound, and the local end of an outgoing connection do.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from typing import Literal

from mgpu_doctor.model.facts import Facts, PortHolder
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import Launch
from mgpu_doctor.model.record import replace

FREE_WANTED = 4
"""How many free ports are looked for, so that several launches can each be given one."""

FIRST_TRIED = 29501
LAST_TRIED = 29999
"""Where free ports are looked for first: near torch's default of 29500, below the ephemeral range."""

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_SOCK_DIAG = 4
_BY_FAMILY = 20
_REQUEST_DUMP = 0x301
_DONE = 3
_LISTEN = 10


def port_state(port: int, address: str | None = None) -> Literal["free"] | PortHolder | Unknown:
    """Whether a store could listen on the port now: ``free``, who is in the way, or why it cannot be told.

    ``address`` restricts the trial to one local address; None means all of them, as torch's store does.
    """
    if not 0 < port < 65536:
        return Unknown(f"{port} is no port that could be tried")
    failures = []
    for family, host in _addresses(address):
        failure = _try(family, host, port)
        if failure is None:
            return "free"
        failures.append(failure)
    if errno.EADDRINUSE in failures:
        return _holder(port)
    if errno.EACCES in failures:
        return Unknown(f"port {port} is privileged and may not be tried by this user")
    names = ", ".join(errno.errorcode.get(number, str(number)) for number in failures)
    return Unknown(f"port {port} could not be tried ({names})")


def _addresses(address: str | None) -> tuple[tuple[socket.AddressFamily, str], ...]:
    if address is None:
        return ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0"))  # noqa: S104 - what torch's store does
    return ((socket.AF_INET6 if ":" in address else socket.AF_INET, address),)


def _try(family: socket.AddressFamily, host: str, port: int) -> int | None:
    """None when the port could be bound, otherwise the error number. Never listens: nobody can connect meanwhile."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            trial.bind((host, port))
    except OSError as error:
        return error.errno or errno.EINVAL
    return None


def _holder(port: int) -> PortHolder:
    """The process at the port, as far as this user may see it."""
    import psutil

    hidden = Unknown("the process belongs to another user or container")
    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError) as error:
        return PortHolder(port, Unknown(f"the connections cannot be listed: {error}"), hidden)
    here = [c for c in connections if c.laddr and c.laddr.port == port]
    here.sort(key=lambda c: (c.status != psutil.CONN_LISTEN, c.pid is None))
    if not here or here[0].pid is None:
        return PortHolder(port, hidden, hidden)
    return PortHolder(port, here[0].pid, command_of(here[0].pid))


def command_of(pid: int) -> str | Unknown:
    """The command line of a process, shortened, without the secrets that it may hold."""
    import psutil

    from mgpu_doctor.collect.environment import hide_secrets

    try:
        process = psutil.Process(pid)
        words = process.cmdline() or [process.name()]
    except (psutil.Error, OSError) as error:
        return Unknown(f"process {pid} cannot be looked at: {type(error).__name__}")
    text = hide_secrets(" ".join(words)).strip()
    return text if len(text) <= 200 else text[:199] + "…"


def free_port(besides: Iterable[int] = ()) -> int | None:
    """A port that a store could listen on now; None when none was found."""
    found = free_ports(1, besides)
    return found[0] if found else None


def free_ports(wanted: int, besides: Iterable[int] = ()) -> tuple[int, ...]:
    """Up to ``wanted`` ports that are free now, without those in ``besides``."""
    taken = set(besides)
    found: list[int] = []
    for port in range(FIRST_TRIED, LAST_TRIED + 1):
        if len(found) >= wanted:
            break
        if port not in taken and port_state_is_free(port):
            found.append(port)
    return tuple(found)


def port_state_is_free(port: int) -> bool:
    """Whether a store could listen on the port now, without asking who is in the way."""
    return any(_try(family, host, port) is None for family, host in _addresses(None))


def listening_ports() -> dict[int, PortHolder] | Unknown:
    """Every TCP port of this machine that is listened on, holders not looked up."""
    found = _asked_of_kernel()
    if found is None:
        found = _read_from_proc()
    if found is None:
        return Unknown("the listening ports of this machine cannot be read")
    unasked = Unknown("the process was not looked up")
    return {port: PortHolder(port, unasked, unasked) for port in sorted(found)}


def _asked_of_kernel() -> set[int] | None:
    """The listening ports as sock_diag(7) tells them: it walks listeners alone, /proc/net/tcp every connection."""
    try:
        return {port for family in (socket.AF_INET, socket.AF_INET6) for port in _dump_listeners(family)}
    except (OSError, AttributeError, struct.error, ValueError):
        return None


def _dump_listeners(family: int) -> list[int]:
    request = struct.pack("=BBBBI48x", family, socket.IPPROTO_TCP, 0, 0, 1 << _LISTEN)
    header = struct.pack("=IHHII", 16 + len(request), _BY_FAMILY, _REQUEST_DUMP, 1, 0)
    found: list[int] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
        kernel.settimeout(1.0)
        kernel.sendto(header + request, (0, 0))
        while True:
            answer = kernel.recv(65536)
            at = 0
            while at + 16 <= len(answer):
                length, kind = struct.unpack_from("=IH", answer, at)
                if kind == _DONE:
                    return found
                if kind != _BY_FAMILY or length < 24:
                    raise ValueError(f"sock_diag answered with a message of kind {kind}")
                found.append(struct.unpack_from("!H", answer, at + 20)[0])
                at += (length + 3) & ~3


def _read_from_proc() -> set[int] | None:
    found: set[int] = set()
    read = False
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(name, encoding="ascii") as file:
                lines = file.readlines()[1:]
        except (OSError, UnicodeDecodeError):
            continue
        read = True
        for line in lines:
            # sl local_address rem_address st …: the state 0A is LISTEN, the port is hexadecimal.
            parts = line.split(None, 4)
            if len(parts) > 3 and parts[3] == "0A":
                found.add(int(parts[1].rpartition(":")[2], 16))
    return found if read else None


def ports_named(launches: Iterable[Launch]) -> tuple[int, ...]:
    """The ports that launches would listen on: their rendezvous, and those written in their programs."""
    found: set[int] = set()
    for launch in launches:
        if launch.rendezvous is not None and launch.rendezvous.port is not None:
            found.add(launch.rendezvous.port.known or 0)
        if not isinstance(launch.target.program, Unknown):
            texts = (seen.detail for seen in launch.target.program.all("literal-port"))
            found.update(int(text) for text in texts if text.isascii() and text.isdigit())
    return tuple(sorted(port for port in found if 0 < port < 65536))


def with_ports(facts: Facts, ports: Iterable[int]) -> Facts:
    """The facts of this machine with these ports really tried, and some ports that are free now."""
    wanted = {port for port in ports if 0 < port < 65536}
    holders = {} if isinstance(facts.ports_in_use, Unknown) else dict(facts.ports_in_use)
    for port in sorted(wanted):
        state = port_state(port)
        if isinstance(state, PortHolder):
            holders[port] = state
        elif state == "free":
            holders.pop(port, None)
    return replace(facts, ports_in_use=holders, free_ports=free_ports(FREE_WANTED, wanted))
