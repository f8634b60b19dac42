"""The port is no port that the ranks could meet on."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.rendezvous import binding_layer, free_port, is_torchrun, port_edit
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Launch,
    Location,
    Reference,
    Rule,
    Severity,
    Signature,
    dataclass,
    report,
)

RULE = Rule(
    code="MGD303",
    slug="port-invalid",
    title="The port cannot be used",
    severity=Severity.ERROR,
    summary="The rendezvous port is no number, outside 0 to 65535, or reserved for root.",
    why=(
        "A TCP port is a number from 1 to 65535; 0 lets the launcher choose where the ranks need not be told. Ports "
        "below 1024 may only be listened on by root: everybody else gets `errno: 13 - Permission denied`."
    ),
    bad=(
        Example("a privileged port", "torchrun --nproc_per_node 2 --master_port 1 train.py"),
        Example("too large", "deepspeed --num_gpus 2 --master_port 295000 train.py"),
        Example("no number", "FORCE_TORCHRUN=1 MASTER_PORT=auto llamafactory-cli train sft.yaml", facts={}),
        Example("an endpoint", "torchrun --nnodes 2 --rdzv_backend c10d --rdzv_endpoint node1:99999 train.py"),
        Example("negative", "accelerate launch --multi_gpu --main_process_port=-1 train.py"),
        Example(
            "accelerate's configuration",
            "accelerate launch --config_file a.yaml train.py",
            files={
                "a.yaml": "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_machines: 1\n"
                "num_processes: 2\nmain_process_port: 99999\n"
            },
        ),
        Example("zero on several nodes", "torchrun --nnodes 2 --node_rank 0 --master_addr h1 --master_port 0 train.py"),
    ),
    good=(
        Example("the default", "torchrun --nproc_per_node 2 train.py"),
        Example("the largest", "deepspeed --num_gpus 2 --master_port 65535 train.py"),
        Example("one that the launcher chooses", "accelerate launch --multi_gpu --main_process_port 0 train.py"),
        Example("zero on one node", "torchrun --nproc_per_node 2 --rdzv_backend c10d --rdzv_endpoint h:0 train.py"),
        Example("not known", 'torchrun --nproc_per_node 2 --master_port "$PORT" train.py', facts=None),
        Example("a port of the program", "torchrun --nproc_per_node 2 serve.py --port 80"),
    ),
    sources=(
        Reference(
            "torch 2.13.0, c10d TCPStore",
            "port 1 as a normal user: errno 13, Permission denied; 70000 and -1: TypeError, the port has 16 bits",
            ran=True,
        ),
        Reference(
            "accelerate 1.7.0, utils/other.py is_port_in_use()", "hands the port to connect_ex(), which refuses > 65535"
        ),
        Reference("torch 2.6.0, distributed/run.py get_rdzv_endpoint()", "the static store takes the port as given"),
    ),
    fix="Use a port from 1024 to 65535",
    fixable=True,
    signatures=(
        Signature(
            r"server socket has failed to (?:listen|bind)\b.*(?:EACCES|[Pp]ermission denied)",
            "torch 2.13.0, csrc/distributed/c10d/socket.cpp",
            "RuntimeError: The server socket has failed to listen on any local network address. The server socket has "
            "failed to bind to [::]:1 (errno: 13 - Permission denied).",
        ),
        Signature(
            r"port must be 0-65535", "Python 3.11, socket.bind()", "OverflowError: bind(): port must be 0-65535."
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class _Given:
    """A port as somebody wrote it."""

    text: str
    name: str
    where: Location | None


def find(case: Case) -> Iterator[Finding]:
    """Launches whose port is written and cannot be used."""
    for launch in case.launches:
        given = _given(launch)
        reason = _reason(given.text, launch) if given is not None else None
        if given is None or reason is None or given.text in {"...", "\u2026"} or given.text.endswith(".py"):
            # Dots are left from a document (MGD121), and a script is there because the value is missing (MGD108).
            continue
        free = free_port(case)
        edit = port_edit(launch, free)
        yield report(
            RULE,
            f"{given.name} is {given.text or 'empty'}: {reason}.",
            given.where,
            subject=None if given.where is not None else given.name,
            fix=Fix(f"Use a port such as {free}", () if edit is None else (edit,)),
        )


def _given(launch: Launch) -> _Given | None:
    layer = binding_layer(launch)
    if layer is None:
        return None
    if layer.implied:
        variable = launch.command.variable("MASTER_PORT")
        if variable is None or variable.text is None:
            return None
        return _Given(variable.text, "MASTER_PORT", variable.location)
    endpoint = layer.option("rdzv_endpoint") if is_torchrun(layer) else None
    if endpoint is not None and endpoint.value:
        _, colon, port = endpoint.value.rpartition(":")
        # An address of IPv6 without a port ends in its own digits.
        if not colon or (":" in endpoint.value[: -len(port) - 1] and "]" not in endpoint.value):
            return None
        return _Given(port, f"the port in {endpoint.flag}", launch.command.locate(endpoint.span))
    option = layer.option("main_process_port" if layer.launcher == "accelerate" else "master_port")
    if option is None and layer.launcher == "accelerate" and layer.config is not None:
        value = layer.config.get("main_process_port")
        if value is None:
            return None
        return _Given(str(value), f"main_process_port in {layer.config.name}", layer.config.locate("main_process_port"))
    if option is None or option.value is None:
        return None
    return _Given(option.value, option.flag, launch.command.locate(option.span))


def _reason(text: str, launch: Launch) -> str | None:
    """What is wrong with a port, None when nothing is."""
    try:
        port = int(text)
    except ValueError:
        return "a port is a number"
    if not 0 <= port < 65536:
        return "a port is a number from 1 to 65535"
    nodes = launch.nodes.known
    if port == 0 and nodes is not None and nodes > 1:
        return f"each of the {nodes} nodes would choose a port of its own and they never meet"
    if 0 < port < 1024:
        return "only root may listen on ports below 1024, so that rank 0 gets 'Permission denied'"
    return None
