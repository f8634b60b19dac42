"""What the batch script asks Slurm for does not fit what the launcher starts."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.rendezvous import (
    Allocation,
    allocation,
    binding_layer,
    chain,
    is_torchrun,
    launcher_place,
    many_nodes,
    runs_elsewhere,
)
from mgpu_doctor.authoring import (
    Case,
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
    Signature,
    report,
)

HEAD = "#!/bin/bash\n#SBATCH --nodes={nodes}\n#SBATCH --ntasks-per-node={tasks}\n#SBATCH --gres=gpu:{gpus}\n"
MANY = "srun torchrun --nnodes {n} --nproc_per_node {p} --rdzv_backend c10d --rdzv_endpoint $HEAD:29500 train.py\n"


def _job(nodes: int, tasks: int, gpus: int, command: str) -> dict[str, str]:
    return {"job.sh": HEAD.format(nodes=nodes, tasks=tasks, gpus=gpus) + command}


RULE = Rule(
    code="MGD309",
    slug="scheduler-mismatch",
    title="The Slurm job does not fit the launcher",
    severity=Severity.ERROR,
    summary="Tasks, nodes or GPUs in #SBATCH lines do not fit the processes that the launcher starts.",
    why=(
        "A launcher such as torchrun starts the processes of a node by itself, so it must run once per node: "
        "`--ntasks-per-node=1` and `srun`. With more tasks each of them starts all processes again. Without srun the "
        "batch script runs on the first node alone, which then waits for the others. More processes than GPUs in the "
        "allocation put several ranks on one GPU."
    ),
    bad=(
        Example("every task starts a launcher", lint=("job.sh",), files=_job(2, 8, 8, MANY.format(n=2, p=8))),
        Example(
            "more processes than GPUs", lint=("job.sh",), files=_job(1, 1, 4, "torchrun --nproc_per_node 8 t.py\n")
        ),
        Example("more nodes than the job has", lint=("job.sh",), files=_job(2, 1, 8, MANY.format(n=4, p=8))),
        Example(
            "nobody starts the other nodes",
            lint=("job.sh",),
            files=_job(2, 1, 8, MANY.format(n=2, p=8)[len("srun ") :]),
        ),
        Example("fewer processes than GPUs", lint=("job.sh",), files=_job(2, 1, 8, MANY.format(n=2, p=4))),
    ),
    good=(
        Example("one launcher a node", lint=("job.sh",), files=_job(2, 1, 8, MANY.format(n=2, p=8))),
        Example("one task a GPU, no launcher", lint=("job.sh",), files=_job(2, 8, 8, "srun python train.py\n")),
        Example("one node", lint=("job.sh",), files=_job(1, 1, 8, "torchrun --nproc_per_node 8 train.py\n")),
        Example("tasks for another step", lint=("job.sh",), files=_job(1, 8, 8, "torchrun --nproc_per_node 8 t.py\n")),
        Example(
            "srun says how many tasks",
            lint=("job.sh",),
            files=_job(2, 8, 8, MANY.format(n=2, p=8).replace("srun", "srun --ntasks-per-node=1")),
        ),
        Example("no batch script", lint=("job.sh",), files={"job.sh": "torchrun --nproc_per_node 8 train.py\n"}),
    ),
    sources=(
        Reference(
            "Slurm 24.05, sbatch(1) and srun(1)",
            "the batch script runs on the first node; srun starts --ntasks copies of its command",
        ),
        Reference("torch 1.13.1 to 2.13.0, distributed/run.py", "one agent a node starts nproc-per-node workers"),
    ),
    fix="Run the launcher once on every node, with as many processes as the node has GPUs",
    signatures=(
        Signature(
            r"srun: error: Unable to (?:create|confirm) (?:job )?step(?: for job \S+)?: (?:Invalid generic "
            r"resource|More processors requested than permitted|Requested node configuration is not "
            r"available|Requested nodes are busy|Memory required by task is not available)",
            "srun of Slurm 19.05 and later (public reports)",
            "srun: error: Unable to create step for job 881: More processors requested than permitted",
        ),
        Signature(
            r"You set `--ntasks=\d+` in your SLURM bash script|number of (?:tasks per node|nodes) configured in "
            r"SLURM `[^`]+` does not match",
            "lightning-fabric 2.5.0, plugins/environments/slurm.py",
            "ValueError: You set `devices=8` in Lightning, but the number of tasks per node configured in SLURM "
            "`--ntasks-per-node=1` does not match. HINT: Set `devices=1`.",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """Launches in batch scripts whose resources do not fit."""
    for launch in case.launches:
        layer = binding_layer(launch)
        job = allocation(case, launch) if layer is not None else None
        if layer is None or job is None or runs_elsewhere(launch) or layer.opaque is not None:
            continue
        finding = _copies(launch, layer, job) or _nodes(case, launch, layer, job) or _processes(launch, layer, job)
        if finding is not None:
            yield finding


def _srun(launch: Launch) -> Layer | None:
    return launch.layer("srun")


def _copies(launch: Launch, layer: Layer, job: Allocation) -> Finding | None:
    """A launcher that starts a node's processes by itself, run once per task."""
    srun = _srun(launch)
    if srun is None or any(srun.option(dest) is not None for dest in ("ntasks", "ntasks_per_node", "nodes")):
        return None
    tasks = job.tasks_on_node
    workers = _workers(launch, layer)
    if tasks is None or tasks < 2 or workers is None or workers < 2:
        return None
    where = job.places.get("ntasks-per-node") or job.places.get("ntasks")
    return _report(
        f"srun starts {tasks} copies of {layer.launcher} on each node and each starts {workers} processes: "
        f"{tasks * workers} a node where {workers} are meant.",
        launch,
        where,
        "Ask for one task per node (#SBATCH --ntasks-per-node=1, or srun --ntasks-per-node=1)",
    )


def _workers(launch: Launch, layer: Layer) -> int | None:
    """The processes that one copy of the launcher starts on a node."""
    if is_torchrun(layer):
        option = layer.option("nproc_per_node")
        return _whole(option)
    if layer.launcher == "accelerate":
        option, nodes = layer.option("num_processes"), launch.nodes.known
        total = _whole(option)
        return None if nodes is None or total is None else total // nodes
    return None


def _whole(option: Option | None) -> int | None:
    text = option.value if option is not None else None
    return int(text) if text is not None and text.isdigit() else None


def _nodes(case: Case, launch: Launch, layer: Layer, job: Allocation) -> Finding | None:
    nodes = launch.nodes.known
    if nodes is None or job.nodes is None or layer.launcher == "deepspeed":
        return None
    srun = _srun(launch)
    if nodes > job.nodes:
        return _report(
            f"The launcher waits for {nodes} nodes, but the job has {job.nodes}: it never starts.",
            launch,
            job.places.get("nodes"),
            "Ask for as many nodes as the launcher is told",
        )
    alone = srun is None and launch.layer("mpirun") is None and not _is_looped(launch)
    if nodes > 1 and alone and not _mentions_srun(case, launch):
        return _report(
            f"The launcher waits for {nodes} nodes, but without srun the batch script runs on the first node only.",
            launch,
            job.places.get("nodes"),
            "Start it with srun --ntasks-per-node=1, once on every node",
        )
    return None


def _is_looped(launch: Launch) -> bool:
    return any(command.repeated for command in chain(launch.command))


def _mentions_srun(case: Case, launch: Launch) -> bool:
    """Whether the script hands commands to other nodes in a way that the launch does not show."""
    outermost = chain(launch.command)[0]
    for command in case.commands:
        if command.source is outermost.source and command is not outermost:
            names = {command.name, *(wrapper.name for wrapper in command.wrappers)}
            if names & {"srun", "pdsh", "clush", "ssh", "mpirun", "parallel"}:
                return "scontrol" not in " ".join(word.shown for word in command.words)
    return False


def _processes(launch: Launch, layer: Layer, job: Allocation) -> Finding | None:
    workers = _workers(launch, layer)
    if workers is None or job.gpus is None or workers == job.gpus or launch.command.variable("CUDA_VISIBLE_DEVICES"):
        return None
    if _counts_other_unit(launch, layer, workers, job.gpus):
        return None
    where = next((job.places[name] for name in ("gres", "gpus-per-node", "gpus") if name in job.places), None)
    if workers > job.gpus:
        return _report(
            f"{workers} processes on a node, but the job has {job.gpus} GPU{'s' if job.gpus > 1 else ''} there: "
            "several ranks get the same GPU or none.",
            launch,
            where,
            f"Start {job.gpus} processes a node, or ask for {workers} GPUs",
        )
    if workers < 2 or _is_shared(launch):
        return None
    return _report(
        f"{workers} processes on a node, but the job reserves {job.gpus} GPUs there: {job.gpus - workers} stay idle.",
        launch,
        where,
        f"Start {job.gpus} processes a node, or ask for {workers} GPUs",
        Severity.WARNING,
    )


def _counts_other_unit(launch: Launch, layer: Layer, workers: int, gpus: int) -> bool:
    """Whether the number is right for one node where all are meant, or the reverse: the fault of MGD306."""
    nodes = many_nodes(launch)
    if nodes is None:
        return False
    return workers * nodes == gpus if layer.launcher == "accelerate" else workers == gpus * nodes


def _is_shared(launch: Launch) -> bool:
    """Whether other launches may use the rest of the node."""
    return launch.command.background or _is_looped(launch)


def _report(
    message: str, launch: Launch, where: Location | None, title: str, severity: Severity = Severity.ERROR
) -> Finding:
    related = () if where is None else (Evidence("the job asks for it here", where),)
    return report(RULE, message, launcher_place(launch), severity=severity, related=related, fix=Fix(title))
