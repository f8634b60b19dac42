"""Ranks on several machines that a container's own network, or InfiniBand that is down, keeps apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mgpu_checks.rendezvous import (
    host_of,
    is_loopback,
    known_address,
    launcher_place,
    many_nodes,
    runs_elsewhere,
    stated_address,
)
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
    Span,
    Unknown,
    Wrapper,
    insert,
    pattern,
    report,
)

_TWO = "torchrun --nnodes 2 --node_rank {rank} --nproc_per_node 8 --master_addr 10.0.0.24 --master_port 29500 train.py"
_FIRST, _SECOND = _TWO.format(rank=0), _TWO.format(rank=1)
_BRIDGED = {"container": {"runtime": "docker"}, "interfaces": {"lo": "127.0.0.1", "eth0": "172.17.0.3"}}

RULE = Rule(
    code="MGD313",
    slug="network-isolated",
    title="The ranks' network leads nowhere",
    severity=Severity.ERROR,
    summary="Ranks of several nodes in a container's own network, or with InfiniBand that is down or left outside.",
    why=(
        "A container on Docker's default bridge has an address (172.17.0.x) that other machines cannot reach. torch's "
        "store can be reached through a published port, but NCCL tells its peers the container's own address and "
        "opens ports of its own: the ranks find each other and then wait, or stop with `socketStartConnect: Connect to "
        "… failed`. Where InfiniBand ports are down, NCCL quietly takes sockets."
    ),
    bad=(
        Example("a new container", f"docker run --gpus all --shm-size=16g img {_SECOND}", facts=None),
        Example("a published port is not enough", f"docker run --gpus all -p 29500:29500 img {_FIRST}", facts=None),
        Example("the bridge by name", f"docker run --network bridge --gpus all img {_SECOND}", facts=None),
        Example("seen inside", _SECOND, facts=_BRIDGED),
        Example(
            "no network at all",
            _SECOND,
            facts={"container": {"runtime": "docker"}, "interfaces": {"lo": "127.0.0.1"}},
        ),
        Example("InfiniBand is down", _FIRST, facts={"infiniband": {"mlx5_0": "DOWN", "mlx5_1": "INIT"}}),
        Example(
            "InfiniBand was left outside the container",
            _FIRST,
            facts={"infiniband": {"mlx5_0": "NO DEVICE FILE"}, "container": {"runtime": "docker"}},
        ),
    ),
    good=(
        Example("the host's network", f"docker run --network=host --gpus all img {_SECOND}", facts=None),
        Example("the same, shorter", f"docker run --net host --gpus all img {_SECOND}", facts=None),
        Example("a network of somebody's own", f"docker run --network overlay1 --gpus all img {_SECOND}", facts=None),
        Example("one node", "docker run --gpus all --shm-size=1g img torchrun --nproc_per_node 8 t.py", facts=None),
        Example("not known", f"docker run $FLAGS img {_SECOND}", facts=None),
        Example("one node, seen inside", "torchrun --nproc_per_node 8 train.py", facts=_BRIDGED),
        Example("a container in the host's network", _SECOND, facts={**_BRIDGED, "interfaces": {"eth0": "10.0.0.5"}}),
        Example("the machine alone", facts={**_BRIDGED, "infiniband": {"mlx5_0": "DOWN"}}),
        Example("one port is up", _FIRST, facts={"infiniband": {"mlx5_0": "ACTIVE", "mlx5_1": "DOWN"}}),
        Example("no InfiniBand", _FIRST, facts={"infiniband": {}}),
        Example("InfiniBand is not wanted", f"NCCL_IB_DISABLE=1 {_FIRST}", facts={"infiniband": {"mlx5_0": "DOWN"}}),
        Example(
            "a try on a machine without a network",
            "torchrun --nnodes 2 --node_rank 0 --nproc_per_node 2 --master_addr 127.0.0.1 --master_port 29500 t.py & "
            "torchrun --nnodes 2 --node_rank 1 --nproc_per_node 2 --master_addr 127.0.0.1 --master_port 29500 t.py",
            facts={"interfaces": {"lo": "127.0.0.1"}},
        ),
        Example(
            "several nodes on one machine",
            "docker run --gpus all img bash -c 'torchrun --nnodes 2 --node_rank 0 --master_addr 127.0.0.1 t.py'",
            facts=None,
        ),
    ),
    sources=(
        Reference(
            "Docker 27 documentation, bridge network driver",
            "without --network a container joins the default bridge (172.17.0.0/16), reachable on its own host only",
        ),
        Reference(
            "NCCL 2.28.9, bootstrap.cc and transport/net_socket.cc",
            "each rank listens on a port that the kernel chooses and tells the others its interface's address",
        ),
        Reference(
            "NCCL 2.30 user guide, troubleshooting/networking_troubleshooting",
            "the port's state should be Active, not Down, Init or Armed; interfaces that cannot talk make init hang",
        ),
        Reference(
            "NCCL 2.28.9, transport/net_ib.cc", "ports that are not active are left out: `NET/IB : No device found`"
        ),
    ),
    fix="docker run --network=host (and --device=/dev/infiniband); in Kubernetes a network that reaches all nodes",
    signatures=(
        Signature(
            r"NCCL WARN .*[Cc]onnect to \S+<\d+> (?:failed ?:|returned) (?:No route to host|Network is unreachable|"
            r"Connection timed out)",
            "NCCL 2.10.3 include/socket.h to 2.28.9 misc/socket.cc",
            "node2:71:201 [0] misc/socket.cc:484 NCCL WARN socketStartConnect: Connect to 172.17.0.2<41253> failed : "
            "No route to host",
        ),
        Signature(
            r"NET/IB : \S+:\d+ Got async event : port error",
            "NCCL 2.21.5, transport/net_ib.cc",
            "node1:88:912 [3] transport/net_ib.cc:101 NCCL WARN NET/IB : mlx5_0:1 Got async event : port error",
        ),
        Signature(
            r"NET/IB ?: Got completion from peer \S+ with status=",
            "NCCL 2.21.5 and 2.28.9, transport/net_ib.cc",
            "node1:88:912 [3] transport/net_ib.cc:1909 NCCL WARN NET/IB : Got completion from peer 10.0.0.6<40112> "
            "with status=12 opcode=0 len=0 vendor err 129 (Send)",
            weak=True,
        ),
        Signature(
            r"The client socket has (?:timed out after|failed to connect to any network address of)",
            "torch 2.13.0, csrc/distributed/c10d/socket.cpp",
            "torch.distributed.DistNetworkError: The client socket has timed out after 60000ms while trying to connect "
            "to (10.0.0.24, 29500).",
            weak=True,
        ),
        Signature(
            r"connect\(\) timed out\. Original timeout was \d+ ms",
            "torch before 1.11, TCPStore (pytorch/pytorch issue 67547)",
            "RuntimeError: connect() timed out. Original timeout was 60000 ms.",
        ),
        Signature(
            r"RendezvousConnectionError: The connection to the C10d store has failed|RendezvousTimeoutError",
            "torch 1.13.1 to 2.13.0, distributed/elastic/rendezvous/c10d_rendezvous_backend.py and "
            "dynamic_rendezvous.py",
            "torch.distributed.elastic.rendezvous.api.RendezvousConnectionError: The connection to the C10d "
            "store has failed. See inner exception for details.",
            weak=True,
        ),
        Signature(
            r"Timed out after \d+ seconds waiting for (?:clients|workers)\. \d+/\d+ (?:clients|workers) joined",
            "torch 2.1 to 2.13, TCPStore: the other ranks never came (OpenRLHF/OpenRLHF issue 1040)",
            "torch.distributed.DistStoreError: Timed out after 1801 seconds waiting for clients. 1/3 clients joined.",
            weak=True,
        ),
        Signature(
            r"[Gg]loo connectFullMesh failed with ",
            "torch 2.13.0, gloo/transport/tcp in libtorch_cpu",
            "RuntimeError: Gloo connectFullMesh failed with [../third_party/gloo/gloo/transport/tcp/pair.cc:144] "
            "no error",
        ),
        Signature(
            r"gloo/transport/tcp/\S+ connect \[?(?!127\.|::1)[\w.:]+\]?:\d+: (?:Connection refused|No route to "
            r"host|Connection timed out|Network is unreachable)",
            "torch 1.13.1 to 2.2, gloo/transport/tcp/pair.cc",
            "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:799] connect [10.0.0.7]:41120: No "
            "route to host",
        ),
        Signature(
            r"Call to ibv_modify_qp failed with (?:error )?(?:\d+ )?(?:Network is unreachable|Connection timed "
            r"out|No such device)",
            "NCCL 2.14.3 to 2.28.9, misc/ibvwrap.cc",
            "n4:460770:460842 [0] misc/ibvwrap.cc:187 NCCL WARN Call to ibv_modify_qp failed with error Network "
            "is unreachable",
        ),
        Signature(
            r"socketStartConnect: exceeded (?:retries|timeouts) \(\d+\)|connect to \S+ returned .+, exceeded "
            r"(?:error|timeout) retry count",
            "NCCL 2.21.5 and 2.27.5, misc/socket.cc",
            "n1:101:240 [0] misc/socket.cc:489 NCCL WARN socketStartConnect: exceeded retries (20000)",
        ),
        Signature(
            r"NCCL error in: .*unhandled system error",
            "torch 1.13.1 to 2.13.0, NCCLUtils: a call to the operating system failed",
            "RuntimeError: NCCL error in: /pytorch/torch/lib/c10d/ProcessGroupNCCL.cpp:492, unhandled system "
            "error, NCCL version 2.4.7",
            weak=True,
        ),
    ),
)

_DEFAULT = pattern(r"172\.17(?:\.\d{1,3}){2}")
_ENGINES = frozenset({"docker", "podman", "nvidia-docker", "nerdctl"})
_UNUSABLE = frozenset({"DOWN", "INIT", "ARMED", "NO DEVICE FILE"})


def find(case: Case) -> Iterator[Finding]:
    """Launches over several nodes whose ranks could not, or only slowly, reach each other."""
    for launch in case.launches:
        nodes = many_nodes(launch)
        if nodes is None or _rehearsal(launch):
            continue
        wrapper = _new_container(launch)
        if wrapper is not None:
            yield _bridge(launch, nodes, wrapper)
        elif not runs_elsewhere(launch):
            yield from _here(case, launch, nodes)


def _rehearsal(launch: Launch) -> bool:
    """Whether the nodes meet on loopback: all of them on one machine, for a try."""
    stated = stated_address(launch)
    address = known_address(launch) or (host_of(stated[0].value or "", stated[1]) if stated is not None else "")
    return is_loopback(address)


def _new_container(launch: Launch) -> Wrapper | None:
    """The ``docker run`` that puts the ranks into the default bridge; None where it does not, or that is unknown."""
    for wrapper in launch.command.wrappers:
        words = wrapper.name.split()
        if words[0] not in _ENGINES or words[-1] != "run" or len(words) > 2:
            continue
        if any(word.splits or (word.value is None and not word.known_prefix) for word in wrapper.words):
            return None
        return wrapper if all(network in {"bridge", "default"} for network in _networks(wrapper)) else None
    return None


def _networks(wrapper: Wrapper) -> list[str | None]:
    """The values of ``--network`` and ``--net``; None for one that is not known."""
    found: list[str | None] = []
    for at, word in enumerate(wrapper.words):
        text = word.value if word.value is not None else word.known_prefix
        name, equals, value = text.partition("=")
        if name in {"--network", "--net"}:
            following = wrapper.words[at + 1].value if at + 1 < len(wrapper.words) else None
            found.append((value if word.value is not None else None) if equals else following)
    return found


def _bridge(launch: Launch, nodes: int, wrapper: Wrapper) -> Finding:
    verb = next((word for word in wrapper.words if word.value == "run"), None)
    name = wrapper.words[0].shown
    fix = Fix("add --network=host (and --device=/dev/infiniband where there is InfiniBand)")
    if verb is not None and verb.origin is None and verb.is_literal and not _networks(wrapper):
        fix = Fix(fix.title, (insert(launch.command.source, verb.span.end, " --network=host"),))
    end = wrapper.words[1].span.end if len(wrapper.words) > 1 else wrapper.words[0].span.end
    return report(
        RULE,
        f"{name} gives the container a network of its own, but the job has {nodes} nodes: NCCL tells the others an "
        "address inside this machine (172.17.0.x), which they cannot reach. A published port does not help.",
        launch.command.locate(Span(wrapper.words[0].span.start, end)),
        fix=fix,
    )


def _here(case: Case, launch: Launch, nodes: int) -> Iterator[Finding]:
    interfaces = case.facts.interfaces
    if not isinstance(interfaces, Unknown) and interfaces and not any(name != "lo" for name in interfaces):
        yield report(
            RULE,
            f"There is no network interface but loopback here, and the job has {nodes} nodes: they cannot reach each "
            "other.",
            launcher_place(launch),
            evidence=tuple(f"{name}: {address or 'no address'}" for name, address in interfaces.items()),
            fix=Fix("start the container with --network=host")
            if isinstance(case.facts.container, str)
            else Fix("bring the machine's network up", commands=("ip address",)),
        )
        return
    if isinstance(case.facts.container, str) and not isinstance(interfaces, Unknown) and _only_bridge(interfaces):
        addresses = ", ".join(f"{name} {address}" for name, address in sorted(interfaces.items()) if address)
        yield report(
            RULE,
            f"This container ({case.facts.container}) is on the engine's default bridge ({addresses}), but the job has "
            f"{nodes} nodes: ranks on other machines cannot reach it.",
            launcher_place(launch),
            evidence=tuple(f"{name}: {address or 'no address'}" for name, address in sorted(interfaces.items())),
            fix=Fix("start the container with --network=host"),
        )
        return
    devices = case.facts.infiniband
    if isinstance(devices, Unknown) or not devices or _without_ib(case, launch):
        return
    if all(state in _UNUSABLE for state in devices.values()):
        states = ", ".join(f"{name} {state.lower()}" for name, state in sorted(devices.items()))
        outside = set(devices.values()) == {"NO DEVICE FILE"}
        yield report(
            RULE,
            f"This machine has InfiniBand, but no port can be used ({states}): NCCL takes sockets between the {nodes} "
            "nodes, several times slower, or the nodes do not agree and hang.",
            launcher_place(launch),
            severity=Severity.WARNING,
            evidence=tuple(f"{name}: {state}" for name, state in sorted(devices.items())),
            fix=Fix("start the container with --device=/dev/infiniband --ulimit memlock=-1")
            if outside
            else Fix("look at the cables and the subnet manager", commands=("ibstat",)),
        )


def _only_bridge(interfaces: Mapping[str, str]) -> bool:
    """Whether the only way out is an address that Docker's default bridge gives."""
    own = [address for name, address in interfaces.items() if name != "lo" and address]
    return bool(own) and all(_DEFAULT.fullmatch(address) for address in own)


def _without_ib(case: Case, launch: Launch) -> bool:
    variable = launch.command.variable("NCCL_IB_DISABLE")
    return (variable.text if variable is not None else case.facts.variable("NCCL_IB_DISABLE")) == "1"
