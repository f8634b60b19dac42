"""The number of processes counts one node where all are meant, or the reverse."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.rendezvous import allocation, binding_layer, is_torchrun, is_typed, launcher_place, many_nodes
from mgpu_doctor.authoring import (
    Case,
    Edit,
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
    replace,
    report,
)

JOB = (
    "#!/bin/bash\n#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\n#SBATCH --gpus-per-node=8\n"
    "srun bash -c 'accelerate launch --multi_gpu --num_machines 2 --num_processes {number} "
    "--machine_rank $SLURM_NODEID --main_process_ip h1 --main_process_port 29500 train.py'\n"
)

MANY = "accelerate launch --multi_gpu --num_machines 2 --machine_rank 0 --main_process_ip h1 "

RULE = Rule(
    code="MGD306",
    slug="process-count-not-total",
    title="The number of processes does not fit the number of nodes",
    severity=Severity.ERROR,
    summary="accelerate's num_processes counts all machines, torchrun's nproc-per-node counts one.",
    why=(
        "accelerate divides --num_processes by --num_machines and drops the rest: 3 processes on 2 machines become 1 "
        "on each, 1 on 2 machines becomes none. A number that equals the GPUs of one machine leaves half of "
        "all idle. torchrun's --nproc-per-node is for one node: the number of all GPUs there puts several ranks on "
        "each GPU."
    ),
    bad=(
        Example(
            "does not divide",
            MANY + "--num_processes 3 t.py",
            facts=None,
        ),
        Example(
            "fewer than machines",
            MANY.replace("machines 2", "machines 4") + "--num_processes 2 t.py",
            facts=None,
        ),
        Example(
            "the GPUs of one machine",
            MANY + "--num_processes 8 t.py",
        ),
        Example(
            "in the configuration file",
            "accelerate launch --config_file two.yaml train.py",
            files={
                "two.yaml": "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_machines: 2\n"
                "machine_rank: 0\nnum_processes: 5\nmain_process_ip: 10.0.0.5\nmain_process_port: 29500\n"
            },
        ),
        Example(
            "all GPUs given to torchrun",
            "torchrun --nnodes 2 --nproc_per_node 16 --node_rank 0 --master_addr h1 --master_port 29500 train.py",
        ),
        Example("the GPUs of one node of the batch job", lint=("j.sbatch",), files={"j.sbatch": JOB.format(number=8)}),
    ),
    good=(
        Example(
            "the GPUs of all nodes of the batch job", lint=("j.sbatch",), files={"j.sbatch": JOB.format(number=16)}
        ),
        Example(
            "all machines",
            MANY + "--num_processes 16 t.py",
        ),
        Example(
            "half of the GPUs on purpose",
            "CUDA_VISIBLE_DEVICES=0,1,2,3 accelerate launch --multi_gpu --num_machines 2 --machine_rank 0 "
            "--main_process_ip h1 --num_processes 8 t.py",
        ),
        Example("one machine", "accelerate launch --multi_gpu --num_processes 3 train.py"),
        Example(
            "the GPUs of one node",
            "torchrun --nnodes 2 --nproc_per_node 8 --node_rank 0 --master_addr h1 --master_port 29500 train.py",
        ),
        Example("too many on one node is another fault", "torchrun --nproc_per_node 16 train.py"),
    ),
    sources=(
        Reference(
            "accelerate 0.20.3, 1.7.0, 1.15.0, utils/launch.py prepare_multi_gpu_env()",
            "nproc_per_node is num_processes // num_machines",
        ),
        Reference("torch 1.13.1 to 2.13.0, distributed/run.py", "--nproc-per-node: number of workers per node"),
    ),
    fix="Give accelerate the number of all processes, torchrun that of one node",
)


def find(case: Case) -> Iterator[Finding]:
    """Launches over several nodes whose number of processes is that of something else."""
    for launch in case.launches:
        nodes, layer = many_nodes(launch), binding_layer(launch)
        if nodes is None or layer is None or layer.opaque is not None:
            continue
        if layer.launcher == "accelerate":
            finding = _of_accelerate(launch, layer, nodes, _gpus(case, launch))
        elif is_torchrun(layer) and not layer.implied:
            finding = _of_torchrun(launch, layer, nodes, _gpus(case, launch))
        else:
            continue
        if finding is not None:
            yield finding


def _gpus(case: Case, launch: Launch) -> int | None:
    """How many GPUs each node offers: the visible ones, or those that the batch script asks for; None if not known."""
    devices = launch.visible.known
    if devices is not None:
        return len(devices.entries)
    job = allocation(case, launch)
    return job.gpus if job is not None and launch.command.variable("CUDA_VISIBLE_DEVICES") is None else None


def _of_accelerate(launch: Launch, layer: Layer, nodes: int, gpus: int | None) -> Finding | None:
    total, where = _given_count(launch, layer)
    if total is None:
        return None
    if total % nodes:
        each = total // nodes
        return report(
            RULE,
            f"{total} processes on {nodes} machines: accelerate starts {total} // {nodes} = {each} on each, "
            f"{each * nodes} in all.",
            where,
            fix=Fix(f"Give --num_processes a multiple of {nodes}: it counts the processes of all machines"),
        )
    if gpus is None or gpus < 2 or total != gpus:
        return None
    edit = _count_edit(launch, layer, "num_processes", total * nodes)
    return report(
        RULE,
        f"{total} processes on {nodes} machines with {gpus} GPUs each: accelerate's number counts all machines, so "
        f"that {total // nodes} of {gpus} GPUs work on each.",
        where,
        severity=Severity.WARNING,
        fix=Fix(f"Use {total * nodes} for one process a GPU", () if edit is None else (edit,)),
    )


def _given_count(launch: Launch, layer: Layer) -> tuple[int | None, Location]:
    option = layer.option("num_processes")
    if option is not None:
        value = option.converted
        total = value if isinstance(value, int) and not isinstance(value, bool) else None
        return total, launch.command.locate(option.span)
    if layer.config is None:
        return None, launcher_place(launch)
    value = layer.config.get("num_processes")
    total = value if isinstance(value, int) and not isinstance(value, bool) else None
    return total, layer.config.locate("num_processes") or launcher_place(launch)


def _of_torchrun(launch: Launch, layer: Layer, nodes: int, gpus: int | None) -> Finding | None:
    option, each = layer.option("nproc_per_node"), launch.processes_per_node
    if option is None or gpus is None or gpus < 1 or isinstance(each.value, Unknown):
        return None
    number = option.value
    if number is None or not number.isdigit() or int(number) != gpus * nodes:
        return None
    edit = _count_edit(launch, layer, "nproc_per_node", gpus)
    return report(
        RULE,
        f"{option.flag} is {number}, the GPUs of all {nodes} nodes: it counts one node, so that {nodes} ranks would "
        f"share each of its {gpus} GPUs.",
        launch.command.locate(option.span),
        fix=Fix(f"Use {gpus}, the processes of one node", () if edit is None else (edit,)),
    )


def _count_edit(launch: Launch, layer: Layer, dest: str, number: int) -> Edit | None:
    option = layer.option(dest)
    if option is None or not option.values or not is_typed(launch.command, option) or not option.values[0].is_literal:
        return None
    return replace(launch.command.source, option.values[0].span, str(number))
