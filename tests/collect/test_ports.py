"""Ports: really tried, the way torch's store takes them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mgpu_doctor.collect import ports
from mgpu_doctor.collect.facts_file import SILENT
from mgpu_doctor.collect.ports import free_port, free_ports, listening_ports, port_state, ports_named, with_ports
from mgpu_doctor.model.facts import Facts, PortHolder
from mgpu_doctor.model.known import Unknown
from stand_ins import launches_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the rules of binding are Linux's")


@contextmanager
def held(address: str = "127.0.0.1", *, listen: bool = True, reuse: bool = False) -> Iterator[int]:
    """A port that this process holds, of one address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        if reuse:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((address, 0))
        if listen:
            holder.listen()
        yield holder.getsockname()[1]


def test_a_free_port() -> None:
    port = free_port()
    assert port is not None
    assert port_state(port) == "free"


def test_the_holder_is_named() -> None:
    with held() as port:
        state = port_state(port)
    assert isinstance(state, PortHolder)
    assert state.port == port
    assert state.pid == os.getpid()
    assert isinstance(state.command, str)
    assert "py" in state.command
    assert port_state(port) == "free"


@pytest.mark.parametrize("reuse", [False, True])
def test_a_listener_on_one_address_is_in_the_way(reuse: bool) -> None:
    with held(reuse=reuse) as port:
        assert isinstance(port_state(port), PortHolder)


def test_a_socket_that_is_only_bound_is_in_the_way() -> None:
    with held(listen=False) as port:
        assert isinstance(port_state(port), PortHolder)


def test_lingering_connections_are_not_in_the_way() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        # The side that closes first lingers in TIME_WAIT.
        accepted.close()
        client.recv(1)
        client.close()
    assert port_state(port) == "free"


def test_one_address() -> None:
    with held("127.0.0.2") as port:
        assert port_state(port, "127.0.0.3") == "free"
        assert isinstance(port_state(port, "127.0.0.2"), PortHolder)


def test_what_cannot_be_tried() -> None:
    for port in (0, -1, 70000):
        assert isinstance(port_state(port), Unknown)
    assert isinstance(port_state(29501, "203.0.113.77"), Unknown)


def test_free_ports_are_distinct_and_leave_out_what_they_must() -> None:
    first = free_ports(3)
    assert len(set(first)) == 3
    assert not set(first) & set(free_ports(3, first))


def test_listening_ports_by_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    with held() as port, held(listen=False) as silent:
        found = listening_ports()
        assert not isinstance(found, Unknown)
        assert port in found
        assert silent not in found
        monkeypatch.setattr(ports, "_asked_of_kernel", lambda: None)
        assert listening_ports() == found
        monkeypatch.setattr(ports, "_read_from_proc", lambda: None)
        assert isinstance(listening_ports(), Unknown)


def test_facts_with_ports() -> None:
    with held() as port:
        stale = {port + 1 if port < 65535 else 1024: PortHolder(1, SILENT, SILENT)}
        facts = with_ports(Facts(ports_in_use=stale), [port, *stale, 0, 99999])
        assert not isinstance(facts.ports_in_use, Unknown)
        assert facts.ports_in_use[port].pid == os.getpid()
        assert set(facts.ports_in_use) == {port}
        assert facts.free_ports
        assert port not in facts.free_ports


def test_ports_named_by_no_launch() -> None:
    assert ports_named(launches_of("torchrun train.py").launches) == ()


def test_a_command_is_shown_without_secrets() -> None:
    assert isinstance(ports.command_of(2**22 + 5), Unknown)
