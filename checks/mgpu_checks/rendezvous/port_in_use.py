"""The port on which the ranks would meet is taken by another process."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.rendezvous import (
    at_least,
    binding_layer,
    free_port,
    is_loopback,
    known_address,
    launcher_place,
    likely_port,
    port_edit,
    port_place,
    runs_elsewhere,
    variable_edit,
)
from mgpu_doctor.authoring import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Launch,
    Location,
    Reference,
    Rule,
    Severity,
    Signature,
    Span,
    Unknown,
    replace,
    report,
)

BUSY = {"ports_in_use": {"29500": {"pid": 4127, "command": "python gui.py"}}}
SCRIPT = "import torch.distributed as dist\ndist.init_process_group('nccl', init_method='tcp://127.0.0.1:29500')\n"

RULE = Rule(
    code="MGD301",
    slug="port-in-use",
    title="The rendezvous port is in use",
    severity=Severity.ERROR,
    summary="Another process holds the port on which the ranks would meet.",
    why=(
        "Rank 0, or the launcher on its node, listens on one TCP port: 29500 unless another is named. When a process "
        "already holds it, torchrun and deepspeed end with EADDRINUSE. accelerate refuses to start before 1.8.0; "
        "from 1.8.0 on, on one machine, it warns and takes a free port. With `--rdzv-backend c10d` torchrun takes the "
        "holder for the store of its own job and waits for it: it hangs when the holder is something else."
    ),
    bad=(
        Example("deepspeed's default port", "deepspeed --num_gpus 2 train.py", facts=BUSY),
        Example("a port given to torchrun", "torchrun --nproc_per_node 2 --master_port 29500 train.py", facts=BUSY),
        Example("accelerate that refuses", "accelerate launch --multi_gpu --num_processes 2 train.py", facts=BUSY),
        Example(
            "accelerate that falls back",
            "accelerate launch --multi_gpu --num_processes 2 train.py",
            facts={**BUSY, "packages": {"accelerate": "1.10.1", "torch": "2.6.0"}},
        ),
        Example(
            "an endpoint on this machine",
            "torchrun --nproc_per_node 2 --rdzv_backend c10d --rdzv_endpoint localhost:29500 train.py",
            facts=BUSY,
        ),
        Example(
            "LLaMA-Factory's variable",
            "FORCE_TORCHRUN=1 MASTER_PORT=29500 llamafactory-cli train sft.yaml",
            facts=BUSY,
            files={"sft.yaml": "stage: sft\ndo_train: true\n"},
        ),
        Example("ranks by hand", "RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 python t.py", facts=BUSY),
        Example(
            "torchrun, the release not known",
            "torchrun --nproc_per_node 2 train.py",
            facts={**BUSY, "packages": {}},
        ),
        Example("a port in the program's text", "python train.py", files={"train.py": SCRIPT}, facts=BUSY),
    ),
    good=(
        Example("another port", "torchrun --nproc_per_node 2 --master_port 29511 train.py", facts=BUSY),
        Example("a free one is taken", "accelerate launch --multi_gpu --main_process_port 0 train.py", facts=BUSY),
        Example("nothing listens", "torchrun --standalone --nproc_per_node 2 train.py", facts=BUSY),
        Example(
            "torchrun that chooses for itself",
            "torchrun --nproc_per_node 2 train.py",
            facts={**BUSY, "packages": {"torch": "2.13.0"}},
        ),
        Example(
            "not the node that listens",
            "torchrun --nnodes 2 --node_rank 1 --master_addr 10.0.0.9 --master_port 29500 train.py",
            facts=BUSY,
        ),
        Example("LLaMA-Factory's own choice", "FORCE_TORCHRUN=1 llamafactory-cli train sft.yaml", facts=BUSY),
        Example("not the first", "RANK=1 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 python t.py", facts=BUSY),
        Example("one process needs no port", "python train.py", facts=BUSY),
    ),
    sources=(
        Reference(
            "accelerate 0.21.0, 1.0.1, 1.7.0, utils/launch.py prepare_multi_gpu_env() and prepare_deepspeed_cmd_env()",
            "ConnectionError when is_port_in_use(main_process_port), on the first machine only from 0.25.0 on",
        ),
        Reference(
            "accelerate 1.8.0, 1.10.1, 1.15.0, utils/launch.py",
            "on one machine it warns and sets standalone; several machines: ConnectionError",
        ),
        Reference(
            "torch 2.11.0 without a port, torch 2.13.0 with `--master-port 29500`, the port taken",
            "DistNetworkError: The server socket has failed to listen on any local network address, EADDRINUSE",
            ran=True,
        ),
        Reference(
            "torch 2.12.1 and 2.13.0, distributed/run.py run()",
            "one node without --master-port and endpoint takes a free port; up to 2.11.0 it is 29500",
        ),
        Reference("deepspeed 0.9.5, 0.16.9, 0.19.8, launcher/runner.py", "--master_port is 29500 unless given"),
    ),
    fix="Use a port that is free",
    fixable=True,
    signatures=(
        Signature(
            r"server socket has failed to (?:listen|bind)\b.*(?:EADDRINUSE|[Aa]ddress already in use)",
            "torch 2.13.0, csrc/distributed/c10d/socket.cpp",
            "RuntimeError: The server socket has failed to listen on any local network address. port: 29500, useIpv6: "
            "0, code: -98, name: EADDRINUSE, message: address already in use",
        ),
        Signature(
            r"Tried to launch distributed communication on port `?\d+`?, but another process is utilizing it",
            "accelerate 0.21.0 to 1.15.0, utils/launch.py",
            "ConnectionError: Tried to launch distributed communication on port `29500`, but another process is "
            "utilizing it. Please specify a different port",
        ),
        Signature(
            r"^RuntimeError: Address already in use$",
            "torch before 1.11, TCPStore (pytorch/pytorch issue 72816)",
            "RuntimeError: Address already in use",
        ),
        Signature(
            r"OSError: \[Errno (?:98|48)\] .*[Aa]ddress already in use|\[Errno 98\] error while attempting to "
            r"bind on address",
            "Python 3.11, socket.bind() and asyncio's create_server()",
            "OSError: [Errno 98] Address already in use",
        ),
        Signature(
            r"\[Errno 98\] error while attempting to bind on address",
            "uvicorn 0.54.0, a second server on one port",
            "ERROR:    [Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in use",
        ),
        Signature(
            r"Cannot find empty port in range",
            "gradio 5.49.1, http_server.py, a second server on one port",
            "OSError: Cannot find empty port in range: 7860-7860. You can specify a different port by setting "
            "the GRADIO_SERVER_PORT environment variable or passing the `server_port` parameter to `launch()`.",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """Launches whose port somebody holds."""
    if not case.launches:
        return
    relevant = [launch for launch in case.launches if _port(launch) is not None or _literal_ports(launch)]
    if not relevant:
        return
    holders = case.require(case.facts.ports_in_use)
    taken: list[int] = []
    for launch in relevant:
        port = _port(launch)
        if port is not None and port in holders and _listens_here(launch, case):
            free = free_port(case, taken)
            taken.append(free)
            yield _finding(case, launch, port, free)
            continue
        for literal, where in _literal_ports(launch):
            if literal in holders and literal != port and not runs_elsewhere(launch):
                yield _literal_finding(case, literal, where)


def _port(launch: Launch) -> int | None:
    if launch.rendezvous is None or launch.rendezvous.port is None:
        return _port_of_rank_zero(launch)
    return likely_port(launch) or launch.rendezvous.port.known or None


def _port_of_rank_zero(launch: Launch) -> int | None:
    """MASTER_PORT of a process that is told by hand that it is the first of several."""
    values = [launch.command.variable(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")]
    rank, size, port = (variable.text if variable is not None else None for variable in values)
    if rank != "0" or not (size or "").isdigit() or int(size or 0) < 2 or not (port or "").isdigit():
        return None
    return int(port or 0) if launch.layer("srun", "mpirun") is None else None


def _literal_ports(launch: Launch) -> list[tuple[int, Location]]:
    program = launch.target.program
    if isinstance(program, Unknown):
        return []
    return [(int(seen.detail), program.locate(seen)) for seen in program.all("literal-port") if seen.detail.isdigit()]


def _literal_finding(case: Case, port: int, where: Location) -> Finding:
    free = free_port(case)
    start = where.source.slice(where.span).rfind(str(port))
    edits: tuple[Edit, ...] = ()
    if start >= 0:
        at = where.span.start + start
        edits = (replace(where.source, Span(at, at + len(str(port))), str(free)),)
    return report(
        RULE,
        f"The program meets on port {port}, which is written in its text, and {_holder(case, port)} holds it: the "
        "group cannot be formed. The launcher's port and MASTER_PORT do not change that.",
        where,
        fix=Fix(f"Write a port that is free, such as {free}, or read it from MASTER_PORT", edits),
    )


def _listens_here(launch: Launch, case: Case) -> bool:
    """Whether a process of this launch would listen on the port on the machine that the facts describe."""
    if runs_elsewhere(launch):
        return False
    address = known_address(launch)
    if launch.nodes.known == 1:
        return True
    interfaces = case.facts.interfaces
    own = not isinstance(interfaces, Unknown) and address in interfaces.values()
    if address is not None and (is_loopback(address) or own):
        return True
    layer = binding_layer(launch)
    return launch.node_rank.known == 0 and layer is not None and layer.launcher != "deepspeed"


def _holder(case: Case, port: int) -> str:
    holders = case.facts.ports_in_use
    holder = None if isinstance(holders, Unknown) else holders.get(port)
    if holder is None or isinstance(holder.pid, Unknown):
        return "another process"
    return f"process {holder.pid}" + ("" if isinstance(holder.command, Unknown) else f" ({holder.command})")


def _finding(case: Case, launch: Launch, port: int, free: int) -> Finding:
    layer = binding_layer(launch)
    name = layer.launcher if layer is not None else "the launcher"
    holder = _holder(case, port)
    severity = Severity.ERROR
    outcome = f"{name} ends with EADDRINUSE (address already in use)"
    if name == "accelerate":
        release = layer.release if layer is not None else None
        version = release.version if release is not None else None
        if launch.nodes.known != 1:
            outcome = "accelerate refuses to start (ConnectionError)"
        elif at_least(version, 1, 8):
            severity = Severity.WARNING
            outcome = f"accelerate {version} warns and takes another port; before 1.8.0 it refuses to start"
        elif at_least(version, 0, 21):
            outcome = f"accelerate {version} refuses to start (ConnectionError)"
    elif likely_port(launch) is not None:
        severity = Severity.WARNING
        outcome = "torchrun ends with EADDRINUSE up to torch 2.11.0; from 2.12.1 on it takes a free port"
    elif launch.rendezvous is not None and launch.rendezvous.backend.known == "c10d":
        outcome = "torchrun takes the holder for its job's store and waits for ever unless it is one"
    edit = port_edit(launch, free)
    if layer is None:
        outcome = "rank 0 cannot listen there (EADDRINUSE)"
        edit = variable_edit(launch.command, "MASTER_PORT", str(free), add=False)
    one_node = launch.nodes.known == 1
    title = f"Use port {free}, which is free now" if case.facts.free_ports else f"Use another port, such as {free}"
    return report(
        RULE,
        f"Port {port} is held by {holder}: {outcome}.",
        port_place(launch) if layer is not None else _place_of_variable(launch),
        severity=severity,
        evidence=(_origin(launch, port), f"port {port}: {holder}"),
        fix=Fix(
            title if one_node else f"{title}, the same on every node",
            edits=() if edit is None else (edit,),
            safe=one_node and edit is not None,
        ),
    )


def _place_of_variable(launch: Launch) -> Location:
    variable = launch.command.variable("MASTER_PORT")
    return launcher_place(launch) if variable is None or variable.location is None else variable.location


def _origin(launch: Launch, port: int) -> str:
    setting = launch.rendezvous.port if launch.rendezvous is not None else None
    return f"port {port}" if setting is None else f"port {port} from {setting.origin.detail}"
