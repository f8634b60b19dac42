"""Several nodes, and nothing tells them where to meet."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.rendezvous import (
    binding_layer,
    inherits,
    is_first_node,
    is_torchrun,
    launcher_place,
    many_nodes,
    option_insertion,
    platform_speaks,
    starts_copies,
)
from mgpu_doctor.authoring import (
    Case,
    Edit,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Layer,
    Location,
    Reference,
    Rule,
    Severity,
    Unknown,
    insert,
    report,
)

HOSTFILE = "/job/hostfile"
"""Where deepspeed looks when no hostfile is named."""

RULE = Rule(
    code="MGD304",
    slug="rendezvous-missing",
    title="Several nodes, no place to meet",
    severity=Severity.ERROR,
    summary="The launch spans several nodes but no address, endpoint or hostfile tells them where to meet.",
    why=(
        "Every node must be told the address of the first. torchrun's default is 127.0.0.1 (static) or localhost "
        "(c10d), so that each node waits for the others on itself, for ever. torchrun reads PET_MASTER_ADDR and "
        "PET_RDZV_ENDPOINT, which some platforms set, but never MASTER_ADDR. accelerate needs --main_process_ip; "
        "deepspeed a hostfile; LLaMA-Factory reads MASTER_ADDR and MASTER_PORT, and without MASTER_PORT each node "
        "chooses a port of its own."
    ),
    bad=(
        Example(
            "a rank in a variable, but no address",
            "FORCE_TORCHRUN=1 NNODES=2 NODE_RANK=1 llamafactory-cli train a.yaml",
            facts=None,
        ),
        Example("a node rank, no address", "torchrun --nnodes 2 --node_rank 0 --nproc_per_node 8 train.py", facts=None),
        Example("a known environment", "torchrun --nnodes=2 --nproc_per_node=8 train.py"),
        Example(
            "a variable that torchrun does not read",
            "export MASTER_ADDR=10.0.0.5\ntorchrun --nnodes=2 --node_rank=1 --nproc_per_node=8 train.py",
            facts=None,
        ),
        Example("c10d without an endpoint", "torchrun --nnodes 2 --rdzv_backend c10d --rdzv_id job1 train.py"),
        Example(
            "accelerate", "accelerate launch --multi_gpu --num_machines 2 --machine_rank 0 --num_processes 16 t.py"
        ),
        Example(
            "tasks without variables",
            "srun -N 2 --ntasks-per-node=4 python train.py",
            files={"train.py": "import torch.distributed as dist\ndist.init_process_group('nccl')\n"},
        ),
        Example(
            "LLaMA-Factory without a port",
            "FORCE_TORCHRUN=1 NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.5 llamafactory-cli train sft.yaml",
        ),
        Example(
            "LLaMA-Factory without an address",
            "FORCE_TORCHRUN=1 NNODES=2 NODE_RANK=1 MASTER_PORT=29500 llamafactory-cli train sft.yaml",
        ),
        Example("deepspeed without a hostfile", "deepspeed --num_nodes 2 --num_gpus 8 train.py", facts=None),
    ),
    good=(
        Example(
            "a rank of the platform",
            "FORCE_TORCHRUN=1 NNODES=2 NODE_RANK=$RANK llamafactory-cli train a.yaml",
            facts=None,
        ),
        Example("the platform may set PET_ variables", "torchrun --nnodes=2 --nproc_per_node=8 train.py", facts=None),
        Example(
            "the platform sets PET_ variables",
            "torchrun --nnodes=2 --nproc_per_node=8 train.py",
            facts={"env": {"PET_MASTER_ADDR": "worker-0", "PET_NODE_RANK": "1"}},
        ),
        Example(
            "an endpoint", "torchrun --nnodes=2 --rdzv_backend=c10d --rdzv_endpoint=10.0.0.5:29500 train.py", facts=None
        ),
        Example("an address", 'torchrun --nnodes=2 --node_rank=1 --master_addr="$HEAD" train.py', facts=None),
        Example(
            "a program that asks Slurm",
            "srun -N 2 --ntasks-per-node=4 python train.py",
            files={
                "train.py": "import os\nimport torch.distributed as dist\n"
                "os.environ['RANK'] = os.environ['SLURM_PROCID']\ndist.init_process_group('nccl')\n"
            },
        ),
        Example(
            "ms-swift without a port",
            "NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.5 NPROC_PER_NODE=8 swift sft --model acme/base",
        ),
        Example("one node", "torchrun --nnodes=1 --nproc_per_node=8 train.py"),
        Example(
            "LLaMA-Factory with both",
            "FORCE_TORCHRUN=1 NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.5 MASTER_PORT=29500 "
            "llamafactory-cli train a.yaml",
        ),
        Example(
            "accelerate's configuration",
            "accelerate launch --config_file two.yaml train.py",
            files={
                "two.yaml": "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_machines: 2\n"
                "machine_rank: 0\nnum_processes: 16\nmain_process_ip: 10.0.0.5\nmain_process_port: 29500\n"
            },
        ),
        Example("deepspeed on one node", "deepspeed --num_nodes 1 train.py", facts=None),
        Example("a hostfile", "deepspeed --hostfile hosts train.py", files={"hosts": "a slots=8\nb slots=8\n"}),
    ),
    sources=(
        Reference(
            "torch 1.13.1 to 2.13.0, distributed/run.py and distributed/argparse_util.py",
            "--master-addr is 127.0.0.1 unless given; only PET_<OPTION> is read from the environment",
        ),
        Reference(
            "torch 2.6.0, elastic/rendezvous/c10d_rendezvous_backend.py", "an empty endpoint means localhost:29400"
        ),
        Reference(
            "accelerate 0.20.3, 1.7.0, 1.15.0, utils/launch.py",
            "several machines: master_addr is str(main_process_ip), which is 'None' when it is not given",
        ),
        Reference(
            "llamafactory 0.9.3, cli.py",
            "master_port is MASTER_PORT or find_available_port(), master_addr is MASTER_ADDR or 127.0.0.1",
        ),
        Reference(
            "torch 1.13.1, 2.6.0, 2.13.0, distributed/rendezvous.py _env_rendezvous_handler()",
            "environment variable RANK expected, but not set",
        ),
        Reference(
            "ms-swift 3.9.0, cli/main.py", "MASTER_ADDR, MASTER_PORT and NODE_RANK become torchrun's options when set"
        ),
        Reference(
            "deepspeed 0.9.5, 0.16.9, 0.19.8, launcher/runner.py main()",
            "--num_nodes above 1 without a hostfile: ValueError",
        ),
    ),
    fix="Name the first node's address and one port on every node",
)


_TELLING = ("environ", "getenv", "SLURM_", "OMPI_", "deepspeed", "init_method")
"""Words of a program that may come by its rank in another way than from RANK in the environment."""


def find(case: Case) -> Iterator[Finding]:
    """Launches over several nodes whose nodes cannot meet."""
    for launch in case.launches:
        yield from _of_tasks(case, launch)
        layer = binding_layer(launch)
        nodes = many_nodes(launch) or _asked_of_deepspeed(layer)
        if nodes is None or layer is None or layer.opaque is not None:
            continue
        if layer.implied:
            finding = _of_variables(case, launch, nodes)
        elif is_torchrun(layer):
            finding = _of_torchrun(case, launch, layer, nodes)
        elif layer.launcher == "accelerate":
            finding = _of_accelerate(launch, layer, nodes)
        else:
            finding = _of_deepspeed(case, launch, layer, nodes)
        if finding is not None:
            yield finding


def _of_tasks(case: Case, launch: Launch) -> Iterator[Finding]:
    """Copies of a plain program, started by srun or mpirun, that look for MASTER_ADDR and RANK in the environment."""
    program = launch.target.program
    if not starts_copies(launch) or launch.distributed_layers or isinstance(program, Unknown):
        return
    call = program.first("init-process-group")
    if call is None or call.detail not in {"", "env://"} or program.first("explicit-rank") is not None:
        return
    # Whoever reads or sets variables before the call may well make up these; so may deepspeed, which asks MPI.
    if any(
        text in program.source.text for text in ("environ", "getenv", "SLURM_", "OMPI_", "deepspeed", "init_method")
    ):
        return
    missing = [name for name in ("MASTER_ADDR", "RANK") if inherits(case, launch.command, name) is not True]
    if len(missing) < 2:
        return
    name = next(layer.launcher for layer in launch.layers if layer.launcher in {"srun", "mpirun"})
    yield report(
        RULE,
        f"{name} sets neither MASTER_ADDR nor RANK, which init_process_group() asks the environment for: every task "
        "ends with 'environment variable RANK expected, but not set'.",
        launcher_place(launch),
        related=(Evidence("the group is formed here", program.locate(call)),),
        fix=Fix(
            "Let srun start torchrun, one task a node, or set MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE per task"
        ),
    )


def _of_torchrun(case: Case, launch: Launch, layer: Layer, nodes: int) -> Finding | None:
    if any(layer.option(dest) is not None for dest in ("rdzv_endpoint", "master_addr", "standalone")):
        return None
    names = ("PET_MASTER_ADDR", "PET_RDZV_ENDPOINT", "PET_STANDALONE")
    reached = [inherits(case, launch.command, name) for name in names]
    if any(reached) or platform_speaks(case):
        return None
    backend = layer.option("rdzv_backend")
    if backend is not None and backend.value not in {"static", "c10d"}:
        return None
    exported = launch.command.variable("MASTER_ADDR")
    by_hand = exported is not None and exported.location is not None
    rank = layer.option("node_rank")
    by_hand = by_hand or (rank is not None and rank.value is not None)
    # Without a look at the environment only what is written by hand shows that no platform sets PET_ variables.
    if any(isinstance(value, Unknown) for value in reached) and not by_hand:
        return None
    where = "localhost" if backend is not None and backend.value == "c10d" else "127.0.0.1"
    message = f"{nodes} nodes, but no address: each node waits for the others on {where}, that is on itself."
    first = is_first_node(launch)
    if first:
        message = f"{nodes} nodes, but no address: node 0 listens, yet where the others find it is said nowhere."
    edit = None
    title = "Add --master_addr with the first node's address, and one --master_port, on every node"
    if exported is not None:
        message += " torchrun does not read MASTER_ADDR."
        port = '"$MASTER_PORT"' if launch.command.variable("MASTER_PORT") is not None else "29500"
        if backend is None or backend.value == "static":
            edit = option_insertion(launch, layer, f'--master_addr "$MASTER_ADDR" --master_port {port}')
            title = "Hand MASTER_ADDR to torchrun"
    elif backend is not None:
        title = "Add --rdzv_endpoint FIRST_NODE:29500, the same on every node"
    severity = Severity.WARNING if first else Severity.ERROR
    return _report(launch, message, _nodes_place(launch, layer), title, edit, severity)


def _of_accelerate(launch: Launch, layer: Layer, nodes: int) -> Finding | None:
    if layer.option("main_process_ip") is not None or layer.option("mpirun_hostfile") is not None:
        return None
    config = layer.config
    if config is None and _may_have_config(launch):
        return None
    if config is not None and (config.problem is not None or config.get("main_process_ip")):
        return None
    if launch.engine.known is None or _starts_over_ssh(layer):
        return None
    message = (
        f"{nodes} machines, but no main_process_ip: accelerate does not read MASTER_ADDR and tells torchrun to meet "
        "at the address 'None'."
    )
    title = "Add --main_process_ip with the first machine's address, the same on every machine"
    exported = launch.command.variable("MASTER_ADDR")
    edit = None
    if exported is not None:
        edit = option_insertion(launch, layer, '--main_process_ip "$MASTER_ADDR"')
        title = "Hand MASTER_ADDR to accelerate"
    return _report(launch, message, _nodes_place(launch, layer), title, edit)


def _may_have_config(launch: Launch) -> bool:
    """Whether a default configuration file that nobody looked at could name the address."""
    address = launch.rendezvous.address if launch.rendezvous is not None else None
    return address is not None and isinstance(address.value, Unknown) and address.origin.kind != "default"


def _starts_over_ssh(layer: Layer) -> bool:
    """Accelerate with DeepSpeed and pdsh, openmpi or mvapich: the hostfile names the machines."""
    if layer.option("deepspeed_hostfile") is not None:
        return True
    option = layer.option("deepspeed_multinode_launcher")
    value: object = option.value if option is not None else None
    if layer.config is not None:
        settings = layer.config.get("deepspeed_config")
        if isinstance(settings, dict):
            value = value or settings.get("deepspeed_multinode_launcher")
            if settings.get("deepspeed_hostfile"):
                return True
    uses_deepspeed = layer.option("use_deepspeed") is not None or (
        layer.config is not None and layer.config.get("distributed_type") == "DEEPSPEED"
    )
    return uses_deepspeed and value != "standard"


def _of_variables(case: Case, launch: Launch, nodes: int) -> Finding | None:
    """LLaMA-Factory and ms-swift, which make torchrun's options from variables."""
    command = launch.command
    # ms-swift leaves the port to torchrun, whose default is the same on every node.
    names = ("MASTER_ADDR", "MASTER_PORT") if launch.layer("llamafactory-cli") is not None else ("MASTER_ADDR",)
    reached = {name: inherits(case, command, name) for name in names}
    rank = command.variable("NODE_RANK")
    written = rank is not None and rank.location is not None and rank.value is not None and rank.value.is_literal
    if isinstance(reached["MASTER_ADDR"], Unknown) and written:
        # Whoever writes a node's rank down does not leave the address to a platform.
        reached["MASTER_ADDR"] = False
    missing = [name for name in names if reached[name] is False]
    if not missing and isinstance(reached.get("MASTER_PORT"), Unknown) and reached["MASTER_ADDR"] is True:
        # Whoever writes the address down does not leave the port to a platform.
        missing = ["MASTER_PORT"]
    if not missing:
        return None
    outcomes = {
        "MASTER_ADDR": "each node waits for the others on 127.0.0.1, that is on itself",
        "MASTER_PORT": "each node chooses a free port of its own and they never meet",
    }
    message = f"{nodes} nodes, but no {' and no '.join(missing)}: {outcomes[missing[-1]]}."
    edit = None
    if missing == ["MASTER_PORT"]:
        edit = insert(command.source, command.span.start, "MASTER_PORT=29500 ")
    severity = Severity.ERROR
    if missing == ["MASTER_ADDR"] and is_first_node(launch):
        severity = Severity.WARNING
        message = f"{nodes} nodes, but no MASTER_ADDR: node 0 listens, yet where the others find it is said nowhere."
    variable = command.variable("NNODES")
    where = variable.location if variable is not None else None
    return _report(launch, message, where, f"Set {' and '.join(missing)}, the same on every node", edit, severity)


def _asked_of_deepspeed(layer: Layer | None) -> int | None:
    """The nodes that --num_nodes asks for: without a hostfile there are none to count."""
    option = layer.option("num_nodes") if layer is not None and layer.launcher == "deepspeed" else None
    number = option.converted if option is not None else None
    return number if isinstance(number, int) and number > 1 else None


def _of_deepspeed(case: Case, launch: Launch, layer: Layer, nodes: int) -> Finding | None:
    if layer.option("hostfile") is not None or starts_copies(launch) or layer.option("num_nodes") is None:
        return None
    seen = case.workspace.kind(HOSTFILE, launch.command.directory)
    if seen == "file":
        return None
    missing = seen == "missing"
    where = "does not exist" if missing else "is not known to exist"
    message = f"{nodes} nodes, but no --hostfile, and {HOSTFILE}, the default, {where}: without it deepspeed stops."
    title = "Write a hostfile with one line `HOST slots=N` a node and name it with --hostfile"
    # Some platforms put the hostfile there.
    severity = Severity.ERROR if missing else Severity.ADVICE
    return _report(launch, message, _nodes_place(launch, layer), title, None, severity)


def _nodes_place(launch: Launch, layer: Layer) -> Location | None:
    for dest in ("nnodes", "num_machines", "num_nodes"):
        option = layer.option(dest)
        if option is not None and not layer.implied:
            return launch.command.locate(option.span)
    return None


def _report(
    launch: Launch,
    message: str,
    where: Location | None,
    title: str,
    edit: Edit | None,
    severity: Severity = Severity.ERROR,
) -> Finding:
    return report(
        RULE,
        message,
        where or launcher_place(launch),
        severity=severity,
        evidence=(f"the number of nodes comes from {launch.nodes.origin.detail}",),
        fix=Fix(title, () if edit is None else (edit,)),
    )
