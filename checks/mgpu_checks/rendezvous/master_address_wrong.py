"""The address where the nodes would meet does not lead all of them to the first one."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from mgpu_checks.rendezvous import (
    at_least,
    binding_layer,
    host_of,
    is_first_node,
    is_loopback,
    is_typed,
    many_nodes,
    stated_address,
    value_edit,
)
from mgpu_doctor.authoring import (
    Case,
    Edit,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Location,
    Option,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    Word,
    replace,
    report,
)

TWO = "torchrun --nnodes 2 --node_rank {rank} --nproc_per_node 8 --master_addr {host} --master_port 29500 train.py\n"

FACTORY = (
    "FORCE_TORCHRUN=1 NNODES=2 NODE_RANK={rank} MASTER_ADDR={host} MASTER_PORT=29500 llamafactory-cli train a.yaml\n"
)
MACHINE = (
    "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_machines: 2\nnum_processes: 16\n"
    "machine_rank: {rank}\nmain_process_ip: 127.0.0.1\nmain_process_port: 29500\n"
)

RULE = Rule(
    code="MGD307",
    slug="master-address-wrong",
    title="The nodes would not meet at this address",
    severity=Severity.ERROR,
    summary="The master address is loopback, malformed, this node's own on a later node, or differs between nodes.",
    why=(
        "Every node must name the address of the node with rank 0, and each must reach it. `localhost` and 127.0.0.1 "
        "lead every node to itself: each waits alone until the time-out. An address with a scheme or a port inside "
        "cannot be resolved."
    ),
    bad=(
        Example(
            "loopback", "torchrun --nnodes 2 --node_rank 1 --master_addr 127.0.0.1 --master_port 29500 t.py", facts=None
        ),
        Example(
            "loopback on the first node, with a release that hands it on",
            "torchrun --nnodes 2 --node_rank 0 --master_addr 127.0.0.1 --master_port 29500 train.py",
            facts={"packages": {"torch": "2.1.2"}},
        ),
        Example(
            "an endpoint on each node itself",
            "torchrun --nnodes=4 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=localhost:29500 train.py",
            facts=None,
        ),
        Example(
            "accelerate",
            "accelerate launch --multi_gpu --num_machines 2 --machine_rank 1 --main_process_ip localhost "
            "--num_processes 16 train.py",
        ),
        Example(
            "LLaMA-Factory",
            "FORCE_TORCHRUN=1 NNODES=2 NODE_RANK=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 "
            "llamafactory-cli train a.yaml",
        ),
        Example(
            "this node's own address on the second node",
            "torchrun --nnodes 2 --node_rank 1 --master_addr 10.0.0.5 --master_port 29500 train.py",
        ),
        Example(
            "a port inside",
            "torchrun --nnodes 2 --node_rank 1 --master_addr 10.0.0.9:29500 --master_port 29500 train.py",
        ),
        Example(
            "a scheme inside", "torchrun --nnodes 2 --node_rank 1 --master_addr tcp://10.0.0.9 --master_port 29500 t.py"
        ),
        Example(
            "each node names itself",
            lint=("node0.sh", "node1.sh"),
            files={"node0.sh": TWO.format(rank=0, host="10.0.0.5"), "node1.sh": TWO.format(rank=1, host="10.0.0.6")},
        ),
        Example(
            "each node names itself in a variable",
            lint=("node0.sh", "node1.sh"),
            files={
                "node0.sh": FACTORY.format(rank=0, host="10.0.0.5"),
                "node1.sh": FACTORY.format(rank=1, host="10.0.0.6"),
            },
        ),
        Example(
            "in the second machine's configuration file",
            "accelerate launch --config_file m.yaml train.py",
            files={"m.yaml": MACHINE.format(rank=1)},
        ),
    ),
    good=(
        Example(
            "the first machine may call itself so in its file",
            "accelerate launch --config_file m.yaml train.py",
            files={"m.yaml": MACHINE.format(rank=0)},
        ),
        Example(
            "the same variable on both",
            lint=("node0.sh", "node1.sh"),
            files={
                "node0.sh": FACTORY.format(rank=0, host="10.0.0.5"),
                "node1.sh": FACTORY.format(rank=1, host="10.0.0.5"),
            },
        ),
        Example(
            "the first node's address",
            "torchrun --nnodes 2 --node_rank 0 --master_addr 10.0.0.5 --master_port 29500 train.py",
        ),
        Example(
            "the first node may call itself so",
            "torchrun --nnodes 2 --node_rank 0 --master_addr 127.0.0.1 --master_port 29500 train.py",
        ),
        Example("one node", "torchrun --nnodes 1 --master_addr localhost --master_port 29500 train.py"),
        Example("not known", 'torchrun --nnodes 2 --rdzv_backend c10d --rdzv_endpoint "$HEAD:29500" t.py', facts=None),
        Example(
            "two nodes tried on one machine",
            "torchrun --nnodes 2 --node_rank 0 --master_addr 127.0.0.1 --master_port 29600 a.py &\n"
            "torchrun --nnodes 2 --node_rank 1 --master_addr 127.0.0.1 --master_port 29600 a.py\n",
        ),
        Example(
            "the first node by loopback, the second by its address",
            lint=("node0.sh", "node1.sh"),
            files={"node0.sh": TWO.format(rank=0, host="127.0.0.1"), "node1.sh": TWO.format(rank=1, host="10.0.0.5")},
        ),
        Example(
            "the same on both",
            lint=("node0.sh", "node1.sh"),
            files={"node0.sh": TWO.format(rank=0, host="10.0.0.5"), "node1.sh": TWO.format(rank=1, host="10.0.0.5")},
        ),
    ),
    sources=(
        Reference(
            "torch 2.6.0 and 2.13.0, elastic/rendezvous/c10d_rendezvous_backend.py",
            "an endpoint that matches this machine makes this agent open the store itself",
        ),
        Reference(
            "torch 2.6.0, elastic/rendezvous/static_tcp_rendezvous.py",
            "rank 0 opens the store, the others connect to the address",
        ),
        Reference(
            "torch 1.13.1 to 2.3.1 and 2.4.1 to 2.13.0, elastic/agent/server/api.py _rendezvous()",
            "up to 2.3.1 the first agent writes its master_addr into the store and all others read it there; from "
            "2.4.1 on each takes its own",
        ),
        Reference("accelerate 1.7.0, utils/launch.py", "main_process_ip becomes torchrun's master_addr"),
        Reference("llamafactory 0.9.3, cli.py", "MASTER_ADDR becomes torchrun's --master_addr"),
    ),
    fix="Name the first node's address, the same on every node",
    signatures=(
        Signature(
            r"gloo/transport/tcp/\S+ connect \[?(?:127\.[\d.]+|::1)\]?:\d+: Connection refused",
            "torch 1.13.1 to 2.2, gloo/transport/tcp/pair.cc, on a host whose own name is its loopback",
            "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:799] connect [127.0.1.1]:41120: "
            "Connection refused",
        ),
        Signature(
            r"cannot be retrieved \(gai error: -\d+ - (?:Name or service not known|Temporary failure in name "
            r"resolution)\)",
            "torch 2.13.0, csrc/distributed/c10d/socket.cpp",
            "[W socket.cpp:663] [c10d] The IPv6 network addresses of (node-0, 29500) cannot be retrieved (gai "
            "error: -2 - Name or service not known).",
            weak=True,
        ),
        Signature(
            r"^socket\.gaierror: \[Errno -[235]\]",
            "Python 3.11, socket.getaddrinfo() of a name that nobody knows",
            "socket.gaierror: [Errno -2] Name or service not known",
            weak=True,
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """Launches over several nodes whose address cannot be right."""
    for launch in case.launches:
        nodes, address = many_nodes(launch), stated_address(launch)
        if nodes is not None and address is None:
            yield from _configured(launch, nodes)
        if nodes is None or address is None or address[0].value is None:
            continue
        word, option = address
        if word.origin is None and not is_typed(launch.command, option):
            # Nobody wrote it: an implied torchrun's default, for the rule about a rendezvous that is missing.
            continue
        host = host_of(word.value or "", option)
        reason, edit = _fault(case, launch, host, word, option)
        if reason is not None:
            yield report(
                RULE,
                f"{_name(launch, option)} is {host or 'empty'} for a job of {nodes} nodes: {reason}.",
                launch.command.locate(option.span),
                fix=Fix("Name the first node's address, the same on every node", () if edit is None else (edit,)),
            )
    yield from _different(case)


def _configured(launch: Launch, nodes: int) -> Iterator[Finding]:
    """A configuration file of a later machine that names the machine itself."""
    layer = binding_layer(launch)
    if layer is None or layer.launcher != "accelerate" or layer.config is None or layer.config_is_default:
        return
    address, rank = layer.config.get("main_process_ip"), launch.node_rank.known
    where = layer.config.locate("main_process_ip")
    if not isinstance(address, str) or not is_loopback(address) or not rank or where is None:
        return
    yield report(
        RULE,
        f"main_process_ip in {layer.config.name} is {address} for a job of {nodes} machines: machine {rank} waits for "
        "itself, not for the first one.",
        where,
        fix=Fix("Name the first machine's address, the same on every machine"),
    )


def _name(launch: Launch, option: Option) -> str:
    layer = binding_layer(launch)
    return "MASTER_ADDR" if layer is not None and layer.implied else f"The address in {option.flag}"


def _fault(case: Case, launch: Launch, host: str, word: Word, option: Option) -> tuple[str | None, Edit | None]:
    if is_loopback(host) or host == "0.0.0.0":  # noqa: S104 - an address in somebody's text
        if _is_rehearsal(case, launch):
            return None, None
        if is_first_node(launch):
            # The first node may call itself so, unless its agent hands the address on.
            torch = case.knowledge.release("torch")
            if not torch.certain or at_least(torch.version, 2, 4) is not False:
                return None, None
            return (
                f"with torch {torch.version} the first node hands it on to the others, which then ask themselves",
                None,
            )
        return "it leads every node to itself, so that each waits there alone", None
    bare = _bare(host) if option.dest != "rdzv_endpoint" else None
    if bare is not None:
        edit = None
        if is_typed(launch.command, option) and word.is_literal:
            edit = replace(launch.command.source, word.span, bare)
        return f"an address holds neither scheme nor port, so that no node can resolve it (write {bare})", edit
    if re.fullmatch(r"\d+(\.\d+){3}", host) and any(int(part) > 255 for part in host.split(".")):
        return "the parts of an IPv4 address go from 0 to 255", None
    interfaces, rank = case.facts.interfaces, launch.node_rank.known
    if not isinstance(interfaces, Unknown) and rank is not None and rank > 0 and host in interfaces.values():
        return f"that is this machine's own, but it has node rank {rank}: the address must be that of rank 0", None
    return None, None


def _bare(host: str) -> str | None:
    """The address without the scheme and the port that do not belong there; None when it has neither."""
    match = re.fullmatch(r"(?:[a-z]+://)?([\w.-]+|\[[0-9a-f:]+\])(?::\d+)?/?", host, re.IGNORECASE)
    if match is None or match.group(1) == host:
        return None
    return match.group(1)


def _is_rehearsal(case: Case, launch: Launch) -> bool:
    """Whether the same text starts the other nodes of the job as well, all on one machine."""
    own = launch.node_rank.known
    for other in case.launches:
        if other is launch or other.command.source is not launch.command.source or many_nodes(other) is None:
            continue
        if other.node_rank.known != own or own is None:
            return True
    return launch.command.repeated


def _different(case: Case) -> Iterator[Finding]:
    """Files of one directory that hold the same launch for different nodes, with different addresses."""
    groups: dict[tuple[str | None, ...], list[tuple[Launch, Option, Word]]] = {}
    for launch in case.launches:
        address = stated_address(launch)
        source = launch.command.source
        if (
            address is None
            or source.path is None
            or source.kind in ("notebook", "python")
            or many_nodes(launch) is None
            or address[0].value is None
        ):
            continue
        layer = binding_layer(launch)
        rank = layer.option("machine_rank" if layer.launcher == "accelerate" else "node_rank") if layer else None
        if rank is None or layer is None or rank.value is None or not address[0].is_literal:
            continue
        varying = {word for option in (rank, address[1]) for word in option.values}
        words = tuple(None if word in varying else word.value for word in launch.command.words)
        groups.setdefault((posixpath.dirname(source.name), *words), []).append((launch, address[1], address[0]))
    for members in groups.values():
        first, *others = members
        if is_loopback(host_of(first[2].value or "", first[1])):
            # The first node may call itself so; the others cannot.
            continue
        ranks = {launch.node_rank.known for launch, _, _ in members}
        if len(ranks) != len(members) or len({launch.command.source.name for launch, _, _ in members}) != len(members):
            continue
        for launch, option, word in others:
            if word.value != first[2].value and not is_loopback(host_of(word.value or "", option)):
                yield _difference(first, launch, option, word)


def _difference(first: tuple[Launch, Option, Word], launch: Launch, option: Option, word: Word) -> Finding:
    other, other_option, other_word = first
    place: Location = launch.command.locate(option.span)
    variable = launch.command.variable("MASTER_ADDR") if word.origin is not None else None
    edit: Edit | None = None
    if word.origin is None:
        edit = replace(launch.command.source, word.span, other_word.value or "")
    elif variable is not None:
        edit = value_edit(variable, other_word.value or "")
    return report(
        RULE,
        f"This node would meet at {host_of(word.value or '', option)}, the one in {other.command.source.name} at "
        f"{host_of(other_word.value or '', other_option)}: nodes of one job must name the same address, "
        "that of rank 0.",
        place,
        related=(Evidence("the other address", other.command.locate(other_option.span)),),
        fix=Fix("Use the address of the node with rank 0", () if edit is None else (edit,)),
    )
