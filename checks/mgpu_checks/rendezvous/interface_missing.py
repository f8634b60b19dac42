"""NCCL or Gloo is bound to a network interface that is not there, or that leads nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mgpu_checks.rendezvous import inherited, many_nodes, runs_elsewhere
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Launch,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    pattern,
    report,
)

VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
_INSIDE = pattern(r"docker\d+|virbr\d+|lxcbr\d+|lxdbr\d+")
"""Bridges that Docker, libvirt and LXC make for what runs on the machine itself."""
MANY = "torchrun --nnodes 2 --node_rank 1 --nproc_per_node 8 --master_addr 10.0.0.24 --master_port 29500 train.py"

RULE = Rule(
    code="MGD310",
    slug="interface-missing",
    title="No such network interface",
    severity=Severity.ERROR,
    summary="NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME names no interface of the machine, or loopback across nodes.",
    why=(
        "NCCL stops with `Bootstrap : no socket interface found` when no interface matches, Gloo with `Unable to find "
        "address for`. `lo` is a real interface, but it does not leave the machine: ranks on other nodes cannot be "
        "reached through it. NCCL takes prefixes, `=name` for an exact name and `^name` for all others; Gloo takes "
        "exact names."
    ),
    bad=(
        Example("loopback across nodes", f"NCCL_SOCKET_IFNAME=lo {MANY}", facts=None),
        Example("not on this machine", "NCCL_SOCKET_IFNAME=ib0 torchrun --nproc_per_node 8 train.py"),
        Example("Gloo takes exact names", "export GLOO_SOCKET_IFNAME=eth\ntorchrun --nproc_per_node 8 train.py"),
        Example(
            "inherited", "torchrun --nproc_per_node 8 train.py", facts={"env": {"NCCL_SOCKET_IFNAME": "enp3s0,ens5"}}
        ),
        Example(
            "a bridge of the machine's own",
            f"NCCL_SOCKET_IFNAME=docker0 {MANY}",
            facts={"interfaces": {"lo": "127.0.0.1", "docker0": "172.17.0.1", "eth0": "10.0.0.5"}},
        ),
        Example("Gloo knows no exclusion", f"GLOO_SOCKET_IFNAME=^lo,docker0 {MANY}", facts=None),
        Example("Gloo knows no exclusion, inherited", MANY, facts={"env": {"GLOO_SOCKET_IFNAME": "^docker"}}),
        Example("left in the environment", facts={"env": {"NCCL_SOCKET_IFNAME": "ib0"}}),
        Example("exact", "NCCL_SOCKET_IFNAME==eth torchrun --nproc_per_node 8 train.py"),
    ),
    good=(
        Example("the environment's is there", facts={"env": {"NCCL_SOCKET_IFNAME": "eth0"}}),
        Example("none in the environment"),
        Example("there", f"NCCL_SOCKET_IFNAME=eth0 {MANY}"),
        Example("a prefix", f"NCCL_SOCKET_IFNAME=eth {MANY}"),
        Example("all but some", f"NCCL_SOCKET_IFNAME=^lo,docker0 {MANY}"),
        Example("loopback on one node", "NCCL_SOCKET_IFNAME=lo torchrun --nproc_per_node 8 train.py"),
        Example("not known", 'NCCL_SOCKET_IFNAME="$NIC" ' + MANY, facts=None),
        Example("another machine", f"NCCL_SOCKET_IFNAME=ib0 {MANY}", facts=None),
    ),
    sources=(
        Reference(
            "NCCL 2.28.9 (torch 2.11.0), one H200 with lo and eth0",
            "`nosuch` and `=et`: Bootstrap : no socket interface found; `l`, `=lo`, `^lo` and `nosuch,lo` are taken",
            ran=True,
        ),
        Reference(
            "torch 2.13.0, init_process_group('gloo')",
            "GLOO_SOCKET_IFNAME is a list of exact names; each that is not there: Unable to find address for",
            ran=True,
        ),
    ),
    fix="Name an interface that reaches the other nodes, or leave the variable out",
    signatures=(
        Signature(
            r"Bootstrap ?: no socket interface found",
            "NCCL 2.10.3 to 2.28.9, bootstrap.cc",
            "host:71:88 [0] bootstrap.cc:48 NCCL WARN Bootstrap : no socket interface found",
        ),
        Signature(
            r"Unable to find address for: \S+",
            "torch 2.13.0, Gloo with GLOO_SOCKET_IFNAME",
            "RuntimeError: Unable to find address for: ib0",
        ),
        Signature(
            r"Unable to find interface for: ",
            "torch 2.13.0, gloo/transport/tcp/device.cc in libtorch_cpu",
            "RuntimeError: [enforce fail at ../third_party/gloo/gloo/transport/tcp/device.cc:83] ifa != nullptr. "
            "Unable to find interface for: [0.17.69.208]",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """Variables that name an interface which cannot serve the launch."""
    yield from _alone(case)
    seen = set()
    for launch in case.launches:
        if launch.rendezvous is None:
            continue
        for name in VARIABLES:
            text, key = _value(case, launch, name)
            if text is None or (name, key) in seen:
                continue
            reason = _fault(case, launch, name, text)
            if reason is None:
                continue
            seen.add((name, key))
            variable = launch.command.variable(name)
            where = variable.location if variable is not None else None
            yield report(
                RULE,
                f"{name} is {text}: {reason}.",
                where,
                subject=None if where is not None else f"{name} in the environment",
                evidence=_evidence(case),
                fix=Fix("Name the interface that reaches the other nodes, or leave the variable out"),
            )


def _alone(case: Case) -> Iterator[Finding]:
    """Names in the environment that no interface has, where there is no command."""
    if case.launches or isinstance(case.facts.interfaces, Unknown):
        return
    for name in VARIABLES[:2]:
        text = case.facts.variable(name)
        reason = None
        if isinstance(text, str):
            reason = _foreign_syntax(name, text) or _unmatched(name, text, case.facts.interfaces)
        if reason is not None:
            yield report(
                RULE,
                f"{name} is {text}: {reason}. Every job that is started here inherits it.",
                subject=f"{name} in the environment",
                evidence=_evidence(case),
                fix=Fix("unset it, and take it out of the profile that sets it", commands=(f"unset {name}",)),
            )


def _value(case: Case, launch: Launch, name: str) -> tuple[str | None, object]:
    variable = launch.command.variable(name)
    if variable is not None:
        place = variable.location
        return variable.text, None if place is None else (place.source.name, place.span)
    text = inherited(case, launch.command, name)
    return (None if isinstance(text, Unknown) else text), None


def _fault(case: Case, launch: Launch, name: str, text: str) -> str | None:
    syntax = _foreign_syntax(name, text)
    if syntax is not None:
        return syntax
    nodes = many_nodes(launch)
    wanted = _wanted(text)
    if nodes is not None and wanted and set(wanted) <= {"lo"} and not launch.command.repeated:
        return f"loopback does not leave the machine, and the job has {nodes} nodes"
    if nodes is not None and wanted and all(_INSIDE.fullmatch(part) for part in wanted):
        return f"a bridge for containers or virtual machines does not leave the machine, and the job has {nodes} nodes"
    interfaces = case.facts.interfaces
    if isinstance(interfaces, Unknown) or runs_elsewhere(launch):
        return None
    return _unmatched(name, text, interfaces)


def _foreign_syntax(name: str, text: str) -> str | None:
    """What is wrong with NCCL's notation in a variable of Gloo's, which takes each part for a name."""
    if name != "GLOO_SOCKET_IFNAME" or not text.startswith(("^", "=")):
        return None
    first = text.partition(",")[0]
    return f"`^` and `=` are NCCL's notation; Gloo looks for an interface called {first} and stops without it"


def _wanted(text: str) -> list[str]:
    """The names in the variable; none where it excludes names."""
    return [] if text.startswith("^") else [part.partition(":")[0] for part in text.lstrip("=").split(",") if part]


def _unmatched(name: str, text: str, interfaces: Mapping[str, str]) -> str | None:
    exact = name != "NCCL_SOCKET_IFNAME" or text.startswith("=")
    wanted = _wanted(text)
    if not wanted:
        return None
    found = [_matches(part, interfaces, exact=exact) for part in wanted]
    # Gloo opens one device for each name, NCCL takes those that it finds.
    if all(found) or (name == "NCCL_SOCKET_IFNAME" and any(found)):
        return None
    how = "is called so" if exact else "has a name that begins so"
    return f"no interface of the machine {how} (there are {', '.join(sorted(interfaces))})"


def _matches(wanted: str, interfaces: Mapping[str, str], *, exact: bool) -> bool:
    return wanted in interfaces if exact else any(name.startswith(wanted) for name in interfaces)


def _evidence(case: Case) -> tuple[str, ...]:
    interfaces = case.facts.interfaces
    if isinstance(interfaces, Unknown):
        return ()
    return tuple(f"{name}: {address or 'no IPv4 address'}" for name, address in sorted(interfaces.items()))
