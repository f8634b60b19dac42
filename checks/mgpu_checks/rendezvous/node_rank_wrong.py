"""A node's rank is beyond the number of nodes, missing, or the same on every node."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from mgpu_checks.rendezvous import (
    allocation,
    binding_layer,
    chain,
    host_of,
    inherits,
    is_loopback,
    is_torchrun,
    is_typed,
    launcher_place,
    many_nodes,
    option_insertion,
    platform_speaks,
    starts_copies,
    stated_address,
    value_edit,
)
from mgpu_doctor.authoring import (
    Case,
    ConfigFile,
    Edit,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Layer,
    Location,
    Option,
    Reference,
    Rule,
    Severity,
    Unknown,
    delete_words,
    replace,
    report,
)

NODE_A = "torchrun --nnodes 2 --nproc_per_node 8 --node_rank 0 --master_addr 10.0.0.5 --master_port 29500 train.py\n"

FACTORY = (
    "FORCE_TORCHRUN=1 NNODES=2 NODE_RANK={rank} MASTER_ADDR=10.0.0.5 MASTER_PORT=29500 llamafactory-cli train a.yaml\n"
)

JOB = (
    "#!/bin/bash\n#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\n#SBATCH --gres=gpu:8\n"
    "srun bash -c 'torchrun --nnodes 2 --nproc_per_node 8 --node_rank {rank} --master_addr h1 "
    "--master_port 29500 train.py'\n"
)

MACHINE = (
    "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_machines: 2\nnum_processes: 16\n"
    "machine_rank: 0\nmain_process_ip: 10.0.0.5\nmain_process_port: 29500\n"
)

RULE = Rule(
    code="MGD305",
    slug="node-rank-wrong",
    title="The node's rank is wrong",
    severity=Severity.ERROR,
    summary="A node's rank is beyond the number of nodes, missing, or equal on every node.",
    why=(
        "Nodes count from 0: with N nodes the ranks are 0 to N-1, each used once. A rank that is too large waits for a "
        "job that is already complete, or stops with an assertion; two nodes with rank 0 each want to be the first and "
        "hang. With `--rdzv_backend c10d` ranks are given out and --node_rank is not needed."
    ),
    bad=(
        Example(
            "one node, rank 3",
            "torchrun --nproc_per_node=4 --nnodes=1 --node_rank=3 --master_addr=10.7.0.1 --master_port=12345 train.py",
            facts=None,
        ),
        Example(
            "counted from 1",
            "torchrun --nnodes 2 --node_rank 2 --master_addr 10.0.0.5 --master_port 29500 train.py",
            facts=None,
        ),
        Example(
            "accelerate",
            "accelerate launch --multi_gpu --num_machines 2 --machine_rank 2 --main_process_ip 10.0.0.5 "
            "--num_processes 16 train.py",
        ),
        Example(
            "LLaMA-Factory",
            "FORCE_TORCHRUN=1 NNODES=2 NODE_RANK=2 MASTER_ADDR=10.0.0.5 MASTER_PORT=29500 "
            "llamafactory-cli train a.yaml",
        ),
        Example(
            "missing", "torchrun --nnodes 2 --nproc_per_node 8 --master_addr 10.0.0.5 --master_port 29500 train.py"
        ),
        Example(
            "a variable that torchrun does not read",
            "export NODE_RANK=1\ntorchrun --nnodes 2 --master_addr 10.0.0.5 --master_port 29500 train.py",
            facts=None,
        ),
        Example(
            "accelerate without any",
            "accelerate launch --multi_gpu --num_machines 2 --main_process_ip h1 --num_processes 4 train.py",
        ),
        Example(
            "two files of one job", lint=("node_a.sh", "node_b.sh"), files={"node_a.sh": NODE_A, "node_b.sh": NODE_A}
        ),
        Example(
            "two files with the rank in a variable",
            lint=("node_a.sh", "node_b.sh"),
            files={"node_a.sh": FACTORY.format(rank=0), "node_b.sh": FACTORY.format(rank=0)},
        ),
        Example("the same for every task", lint=("j.sbatch",), files={"j.sbatch": JOB.format(rank="0")}),
        Example(
            "in the configuration file",
            "accelerate launch --config_file n2.yaml train.py",
            files={"n2.yaml": MACHINE.replace("machine_rank: 0", "machine_rank: 2")},
        ),
        Example(
            "two configuration files of one job",
            lint=("n0.sh", "n1.sh"),
            files={
                "n0.sh": "accelerate launch --config_file n0.yaml train.py\n",
                "n1.sh": "accelerate launch --config_file n1.yaml train.py\n",
                "n0.yaml": MACHINE,
                "n1.yaml": MACHINE,
            },
        ),
    ),
    good=(
        Example(
            "two configuration files with their own ranks",
            lint=("n0.sh", "n1.sh"),
            files={
                "n0.sh": "accelerate launch --config_file n0.yaml train.py\n",
                "n1.sh": "accelerate launch --config_file n1.yaml train.py\n",
                "n0.yaml": MACHINE,
                "n1.yaml": MACHINE.replace("machine_rank: 0", "machine_rank: 1"),
            },
        ),
        Example(
            "the last rank", "torchrun --nnodes 2 --node_rank 1 --master_addr 10.0.0.5 --master_port 29500 train.py"
        ),
        Example("from a variable", 'torchrun --nnodes 2 --node_rank "$R" --master_addr 10.0.0.5 t.py', facts=None),
        Example("given out", "torchrun --nnodes 2 --rdzv_backend c10d --rdzv_endpoint 10.0.0.5:29500 train.py"),
        Example(
            "the platform sets it",
            "torchrun --nnodes 2 --master_addr 10.0.0.5 --master_port 29500 train.py",
            facts={"env": {"PET_NODE_RANK": "1"}},
        ),
        Example("one node, rank 0", "torchrun --nnodes 1 --node_rank 0 --nproc_per_node 8 train.py"),
        Example(
            "each its own rank",
            lint=("node_a.sh", "node_b.sh"),
            files={"node_a.sh": NODE_A, "node_b.sh": NODE_A.replace("node_rank 0", "node_rank 1")},
        ),
        Example(
            "the same in two languages",
            lint=("guide.md", "guide_fr.md"),
            files=dict.fromkeys(("guide.md", "guide_fr.md"), f"```bash\n{NODE_A}```\n"),
        ),
        Example(
            "each its own rank in a variable",
            lint=("node_a.sh", "node_b.sh"),
            files={"node_a.sh": FACTORY.format(rank=0), "node_b.sh": FACTORY.format(rank=1)},
        ),
        Example("a rank of each task", lint=("j.sbatch",), files={"j.sbatch": JOB.format(rank="$SLURM_NODEID")}),
        Example(
            "started node by node",
            lint=("j.sbatch",),
            files={"j.sbatch": JOB.format(rank="0").replace("srun bash", "srun --nodes=1 --ntasks=1 -w n0 bash")},
        ),
        Example(
            "two jobs of one node",
            lint=("pretrain.sh", "finetune.sh"),
            files={"pretrain.sh": NODE_A, "finetune.sh": NODE_A.replace("train.py", "finetune.py")},
        ),
    ),
    sources=(
        Reference(
            "torch 1.13.1 to 2.13.0, distributed/run.py",
            "--node-rank is 0 unless given or PET_NODE_RANK is set; it counts only with the static rendezvous",
        ),
        Reference(
            "torch 2.6.0, elastic/rendezvous/static_tcp_rendezvous.py",
            "rank 0 opens the store; every agent writes its own rank's key",
        ),
        Reference(
            "accelerate 0.20.3, 1.7.0, 1.15.0, utils/launch.py prepare_multi_gpu_env()",
            "several machines: node_rank is int(machine_rank), TypeError when neither option nor file gives one",
        ),
        Reference("llamafactory 0.9.3, cli.py", "node_rank is NODE_RANK or 0"),
    ),
    fix="Give each node its own rank, from 0 to the number of nodes minus 1",
)


def find(case: Case) -> Iterator[Finding]:
    """Launches whose node rank cannot be right."""
    for launch in case.launches:
        finding = _beyond(launch) or _beyond_in_config(launch) or _missing(case, launch) or _fixed(case, launch)
        if finding is not None:
            yield finding
    yield from _equal(case)


def _rank_option(launch: Launch) -> tuple[Layer, Option] | None:
    layer = binding_layer(launch)
    if layer is None:
        return None
    option = layer.option("machine_rank" if layer.launcher == "accelerate" else "node_rank")
    return None if option is None else (layer, option)


def _number(option: Option) -> int | None:
    try:
        return int(option.value or "")
    except ValueError:
        return None


def _counts(layer: Layer) -> bool:
    """Whether the rank that is given has a meaning: an elastic rendezvous gives ranks out."""
    backend = layer.option("rdzv_backend")
    if layer.launcher == "deepspeed":
        return layer.option("no_ssh") is not None
    return (backend is None or backend.value == "static") and layer.option("standalone") is None


def _beyond(launch: Launch) -> Finding | None:
    given = _rank_option(launch)
    nodes = launch.nodes.known
    if given is None or nodes is None:
        return None
    layer, option = given
    rank = _number(option)
    if rank is None or 0 <= rank < nodes or not _counts(layer):
        return None
    if layer.launcher == "accelerate" and nodes == 1:
        # One machine: accelerate starts torchrun without any node rank.
        return None
    edit = None
    if nodes == 1 and is_typed(launch.command, option) and not layer.implied:
        edit = delete_words(launch.command.source, option.span)
    wanted = "the only rank is 0" if nodes == 1 else f"the ranks are 0 to {nodes - 1}"
    name = "NODE_RANK" if layer.implied else option.flag
    title = f"Correct the rank ({wanted}) or the number of nodes" if edit is None else "Leave the node rank out"
    return report(
        RULE,
        f"{name} is {rank}, but with {nodes} node{'s' if nodes > 1 else ''} {wanted}: the node waits for a job that it "
        "is no part of.",
        _place(launch, option),
        evidence=(f"{nodes} from {launch.nodes.origin.detail}",),
        fix=Fix(title, () if edit is None else (edit,)),
    )


_PLACED = ("nodes", "ntasks", "ntasks_per_node", "nodelist", "relative", "exclude")
"""Options of srun that may start the launcher on a part of the job's nodes."""


def _fixed(case: Case, launch: Launch) -> Finding | None:
    """One written rank that srun hands to every node of the job."""
    given, nodes, srun, job = _rank_option(launch), many_nodes(launch), launch.layer("srun"), allocation(case, launch)
    if given is None or nodes is None or srun is None or job is None or job.nodes != nodes or not _counts(given[0]):
        return None
    layer, option = given
    if layer.implied or not option.values or not option.values[0].is_literal or _number(option) is None:
        return None
    if any(srun.option(dest) is not None for dest in _PLACED):
        return None
    if any(command.repeated or command.background for command in chain(launch.command)):
        return None
    return report(
        RULE,
        f"srun starts this on {nodes} nodes, and each gets {option.flag} {option.value}: all want to be the same node, "
        "and they hang.",
        _place(launch, option),
        fix=Fix(f"Let each node take its own: {option.flag} $SLURM_NODEID, expanded on the node (bash -c '…')"),
    )


def _beyond_in_config(launch: Launch) -> Finding | None:
    configured, nodes = _configured(launch), launch.nodes.known
    if configured is None or nodes is None or nodes < 2 or 0 <= configured[1] < nodes:
        return None
    config, rank, _ = configured
    return report(
        RULE,
        f"machine_rank in {config.name} is {rank}, but with {nodes} machines the ranks are 0 to {nodes - 1}.",
        config.locate("machine_rank"),
        fix=Fix(f"Use a rank from 0 to {nodes - 1}, or correct num_machines"),
    )


def _place(launch: Launch, option: Option) -> Location:
    return launch.command.locate(option.span)


def _missing(case: Case, launch: Launch) -> Finding | None:
    """Several nodes and no rank: every node believes to be the first, or the launcher stops."""
    nodes, layer = many_nodes(launch), binding_layer(launch)
    if nodes is None or layer is None or layer.opaque is not None or layer.implied or _rank_option(launch) is not None:
        return None
    if any(problem.kind == "missing-value" for problem in layer.problems):
        return None
    if is_torchrun(layer):
        return _missing_under_torchrun(case, launch, layer, nodes)
    if layer.launcher == "accelerate" and layer.config is None and launch.node_rank.origin.kind == "default":
        message = f"{nodes} machines, but no --machine_rank and no configuration file: accelerate stops (TypeError)."
        return _missing_finding(launch, layer, message, "--machine_rank", Severity.ERROR)
    if layer.launcher == "deepspeed" and layer.option("no_ssh") is not None:
        message = f"{nodes} nodes without ssh, but no --node_rank: deepspeed stops (AssertionError)."
        return _missing_finding(launch, layer, message, "--node_rank", Severity.ERROR)
    return None


def _missing_under_torchrun(case: Case, launch: Launch, layer: Layer, nodes: int) -> Finding | None:
    address = stated_address(launch)
    if address is None or not _counts(layer) or platform_speaks(case):
        return None
    word, option = address
    if option.dest == "rdzv_endpoint" and layer.option("rdzv_conf") is not None:
        # The static rendezvous may carry the rank in its own settings.
        return None
    unread = launch.command.variable("NODE_RANK")
    reached = inherits(case, launch.command, "PET_NODE_RANK")
    written = word.is_literal and _is_number(host_of(word.shown, option))
    if reached is True or (isinstance(reached, Unknown) and unread is None and not written):
        return None
    surely = starts_copies(launch) or unread is not None
    message = f"{nodes} nodes meet at {host_of(word.shown, option)}, but no --node_rank is given: every node that runs "
    message += "this takes rank 0, wants to be the first, and they hang."
    if unread is not None:
        message += " torchrun does not read NODE_RANK."
    return _missing_finding(launch, layer, message, "--node_rank", Severity.ERROR if surely else Severity.WARNING)


def _missing_finding(launch: Launch, layer: Layer, message: str, flag: str, severity: Severity) -> Finding:
    edit = None
    if launch.command.variable("NODE_RANK") is not None:
        edit = option_insertion(launch, layer, f'{flag} "$NODE_RANK"')
    return report(
        RULE,
        message,
        launcher_place(launch),
        severity=severity,
        fix=Fix(f"Add {flag}, 0 on the first node, 1 on the second and so on", () if edit is None else (edit,)),
    )


def _is_number(address: str) -> bool:
    return address.replace(".", "").isdigit()


def _equal(case: Case) -> Iterator[Finding]:
    """Files of one directory that hold the same launch with the same rank: one job, written once for each node."""
    groups: dict[tuple[str | None, ...], list[tuple[Launch, Location]]] = {}
    for launch in case.launches:
        key, place = _job(launch), _rank_place(launch)
        if key is not None and place is not None:
            groups.setdefault(key, []).append((launch, place))
    for members in groups.values():
        by_file = {launch.command.source.name: (launch, place) for launch, place in members}
        nodes = members[0][0].nodes.known or 0
        if len(members) != len(by_file) or not 1 < len(by_file) <= nodes:
            continue
        (first, first_place), *others = by_file.values()
        for at, (launch, place) in enumerate(others, start=1):
            yield _equal_finding(first, first_place, launch, place, at)


def _configured(launch: Launch) -> tuple[ConfigFile, int, str] | None:
    """Accelerate's configuration file with the rank and the address that it gives; None where options do."""
    layer = launch.layer("accelerate")
    if layer is None or layer.config is None or layer.config_is_default or layer.option("machine_rank") is not None:
        return None
    rank, address = layer.config.get("machine_rank"), layer.config.get("main_process_ip")
    if not isinstance(rank, int) or isinstance(rank, bool) or not isinstance(address, str):
        return None
    return layer.config, rank, address


def _rank_place(launch: Launch) -> Location | None:
    given = _rank_option(launch)
    if given is not None:
        return _place(launch, given[1])
    configured = _configured(launch)
    return configured[0].locate("machine_rank") if configured is not None else None


def _job(launch: Launch) -> tuple[str | None, ...] | None:
    """What makes launches of several files one job: everything, and all of it written out."""
    source, configured = launch.command.source, _configured(launch)
    # Documents say the same in several languages and chapters, programs and tests in several places.
    told = ("markdown", "rst", "notebook", "python", "vscode")
    if source.path is None or source.kind in told or many_nodes(launch) is None:
        return None
    words: list[str | None] = [word.value for word in launch.command.words]
    if None in words:
        return None
    directory = posixpath.dirname(source.name)
    if configured is not None:
        config, rank, address = configured
        if is_loopback(address):
            return None
        port = config.get("main_process_port")
        # The files' names differ from node to node, what they say does not.
        plain = [None if word is not None and posixpath.basename(word) in config.name else word for word in words]
        return (directory, *plain, str(rank), address, str(port))
    stated, given = stated_address(launch), _rank_option(launch)
    if stated is None or given is None or given[1].value is None:
        return None
    host = stated[0].value
    # A launcher that is only implied has its rank and address from variables, which are no words of the command.
    return None if host is None or is_loopback(host_of(host, stated[1])) else (directory, *words, given[1].value, host)


def _equal_finding(first: Launch, first_place: Location, launch: Launch, place: Location, at: int) -> Finding:
    rank = launch.node_rank.known
    return report(
        RULE,
        f"{launch.command.source.name} and {first.command.source.name} start the same job of {launch.nodes.known} "
        f"nodes, both with node rank {rank}: both want to be the same node, and they hang.",
        place,
        related=(Evidence("the same rank here", first_place),),
        fix=Fix(f"Give this node rank {at}", _rank_edits(launch, at)),
    )


def _rank_edits(launch: Launch, rank: int) -> tuple[Edit, ...]:
    configured, given = _configured(launch), _rank_option(launch)
    if configured is not None:
        value = configured[0].values.get(("machine_rank",))
        source = configured[0].source
        return () if value is None or source is None else (replace(source, value.span, str(rank)),)
    if given is not None and is_typed(launch.command, given[1]):
        return (replace(launch.command.source, given[1].values[0].span, str(rank)),)
    variable = launch.command.variable("NODE_RANK")
    edit = value_edit(variable, str(rank)) if variable is not None else None
    return () if edit is None else (edit,)
