"""Several processes start but form no group: each believes that it is alone and does all of the work."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.engine import source_matches
from mgpu_checks.verdict import confirmed, each_rank, place_of, probed, subject_of
from mgpu_doctor.authoring import (
    Case,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Layer,
    Reference,
    Rule,
    Severity,
    Unknown,
    is_before,
    observed,
    report,
)

_READS_MPI = r"OMPI_COMM_WORLD|PMI_|PMIX_|MPI4PY|mpi4py|SLURM_|MV2_COMM|init_distributed|slurm|horovod|jax\.distributed"
"""Signs that a program finds its rank by itself under mpirun or srun."""

_ALONE = "from transformers import pipeline\n\nprint(pipeline('text-generation', 'local/model')('hello'))\n"

RULE = Rule(
    code="MGD122",
    slug="independent-copies",
    title="Independent copies instead of one job",
    severity=Severity.ERROR,
    summary="N processes start without a group: N times the same work",
    why=(
        "mpirun and srun start processes but set none of the variables that torch reads (RANK, WORLD_SIZE, "
        "MASTER_ADDR). "
        "A program that is not prepared for that finds a world size of 1 in every process: each trains the whole data "
        "set, all on GPU 0, and all write the same output. Start torchrun or accelerate once on each node, or let the "
        "program read OMPI_COMM_WORLD_RANK or SLURM_PROCID."
    ),
    bad=(
        Example("plain python under mpirun", "mpirun -np 4 python predict.py", files={"predict.py": _ALONE}),
        Example(
            "a Trainer with DeepSpeed, for which mpirun sets no LOCAL_RANK",
            "mpirun -np 4 python train.py --deepspeed z2.json --output_dir out",
            files={
                "train.py": (
                    "from transformers import HfArgumentParser, Trainer, TrainingArguments\n\n"
                    "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\n"
                    "Trainer(model, args).train()\n"
                ),
                "z2.json": '{"zero_optimization": {"stage": 2}}\n',
            },
        ),
        Example("plain python under srun", "srun --ntasks=4 python predict.py", files={"predict.py": _ALONE}),
        Example(
            "seen: two processes, each of which is alone",
            "mpirun -np 2 python work.py",
            observation=probed([0, 0], world_size=[1, 1], rank=[0, 0]),
        ),
    ),
    good=(
        Example(
            "a program that reads the launcher's variables",
            "mpirun -np 4 python train.py",
            files={"train.py": "import os\n\nrank = int(os.environ['OMPI_COMM_WORLD_RANK'])\n"},
        ),
        Example(
            "one task each node, torchrun inside",
            "srun --nodes=2 --ntasks-per-node=1 torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d "
            "--rdzv-endpoint node0:29500 train.py",
            files={"train.py": _ALONE},
        ),
        Example("one process", "mpirun -np 1 python predict.py", files={"predict.py": _ALONE}),
        Example("torchrun makes a group", "torchrun --nproc-per-node 4 predict.py", files={"predict.py": _ALONE}),
        Example("seen: one group of two", "torchrun --nproc-per-node 2 work.py", observation=probed([0, 1])),
    ),
    sources=(
        Reference(
            "accelerate 1.15.0, accelerate launch --multi_gpu --num_processes 4 on a machine without GPUs",
            "four processes with WORLD_SIZE=4, of which each works alone",
            ran=True,
        ),
        Reference(
            "torch 2.6.0, distributed/rendezvous.py _env_rendezvous_handler()",
            "the group is made from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and from nothing else",
        ),
        Reference(
            "accelerate 1.7.0, state.py PartialState._prepare_backend()",
            "under mpirun an Accelerator finds its rank in OMPI_COMM_WORLD_RANK or PMI_RANK, for CPUs",
        ),
        Reference(
            "accelerate 0.30.1 to 1.15.0, state.py PartialState.__init__(); transformers 4.40.0 and 4.52.4, "
            "training_args.py _setup_devices()",
            "DeepSpeed is set up only where LOCAL_RANK is set, and with auto_mpi_discovery=False",
        ),
    ),
    fix="Start one launcher for each node",
)

_STARTERS = frozenset({"mpirun", "mpiexec", "srun", "mpiexec.hydra", "jsrun", "prun"})


def find(case: Case) -> Iterator[Finding]:
    """One finding for each launch whose processes form no group, said beforehand or seen in a run."""
    said = [*_said(case)]
    seen = [*_seen(case)]
    yield from confirmed(said, (finding.message for finding in seen)) if said else seen


def _seen(case: Case) -> Iterator[Finding]:
    """Processes of a run that each believe to be alone."""
    if case.observation is None:
        return
    ranks = observed.present(case.observation)
    if len(ranks) < 2 or observed.group_count(case.observation) != len(ranks):
        return
    yield report(
        RULE,
        f"{len(ranks)} processes ran, and each saw a world size of 1: they form no group, and each does the whole work",
        place_of(case),
        subject=subject_of(case),
        evidence=each_rank(ranks),
        fix=Fix("start torchrun or accelerate once on each node, instead of python in every task"),
    )


def _said(case: Case) -> Iterator[Finding]:
    for launch in case.launches:
        count = _count(launch)
        if count is None or count < 2:
            continue
        if not _are_copies(launch):
            yield from _cpu_group(case, launch, count)
            yield from _without_gpus(launch, count)
            continue
        layer = _starter(launch)
        name = layer.launcher if layer is not None else "the launcher"
        yield report(
            RULE,
            f"{name} starts {count} processes that form no group: each sees a world size of 1 and does the whole work",
            launch.command.locate(layer.span if layer is not None else launch.command.span),
            fix=Fix("Start torchrun or accelerate once on each node, instead of python in every task"),
        )


def _cpu_group(case: Case, launch: Launch, count: int) -> Iterator[Finding]:
    """An Accelerator or Trainer under mpirun: what group it makes, it makes of CPUs."""
    layer, program = _starter(launch), launch.target.program
    if layer is None or layer.launcher not in _STARTERS or isinstance(program, Unknown):
        return
    if launch.groups.known or any(
        launch.command.variable(name) is not None for name in ("LOCAL_RANK", "ACCELERATE_USE_CPU")
    ):
        return
    seen = program.first("trainer", "accelerator")
    engine = launch.engine.known
    # DeepSpeed's ZeRO is for GPUs, and since 4.40 at the latest the Trainer does not ask MPI for it.
    for_gpus = engine is not None and engine.name == "deepspeed"
    version = case.facts.package_version("transformers")
    sure = for_gpus and isinstance(version, str) and is_before(version, 4, 40) is False
    if seen is None or next(source_matches(program, _READS_MPI), None) is not None:
        return
    yield report(
        RULE,
        f"{layer.launcher} starts {count} processes without LOCAL_RANK: {seen.detail} makes at most a group of CPUs of "
        "them, none of GPUs" + (", and DeepSpeed is not used" if sure else ""),
        launch.command.locate(layer.span),
        severity=Severity.WARNING if sure else Severity.ADVICE,
        related=[Evidence(seen.detail, program.locate(seen))],
        fix=Fix("Start torchrun or accelerate once on each node, instead of python in every task"),
    )


def _without_gpus(launch: Launch, count: int) -> Iterator[Finding]:
    """``--multi_gpu`` where no GPU is visible: accelerate starts the processes all the same."""
    layer, visible = launch.layer("accelerate"), launch.visible.known
    if layer is None or visible is None or visible.entries or launch.groups.known is not None:
        return
    yield report(
        RULE,
        f"accelerate starts {count} processes although no GPU is visible: a program that makes a group only for GPUs "
        f"runs as {count} copies",
        launch.command.locate(layer.span),
        severity=Severity.ADVICE,
        fix=Fix("Make the GPUs visible, or start it with --cpu"),
    )


def _starter(launch: Launch) -> Layer | None:
    typed = [layer for layer in launch.layers if not layer.implied and layer.launcher != "python"]
    return typed[-1] if typed else None


def _count(launch: Launch) -> int | None:
    """How many processes are started, whatever each of them believes."""
    known = [number for number in (launch.world_size.known, launch.processes_per_node.known) if number is not None]
    layer = _starter(launch)
    option = layer.option("ntasks") if layer is not None and layer.launcher in _STARTERS else None
    if option is not None and option.value is not None and option.value.isdecimal():
        known.append(int(option.value))
    return max(known, default=None)


def _are_copies(launch: Launch) -> bool:
    """Whether the processes surely form no group: the launcher makes none, and neither does the program."""
    if launch.groups.value is False:
        return True
    layer, program = _starter(launch), launch.target.program
    if launch.groups.known or layer is None or layer.launcher not in _STARTERS or isinstance(program, Unknown):
        return False
    if any(launch.command.variable(name) is not None for name in ("RANK", "LOCAL_RANK", "ACCELERATE_USE_CPU")):
        return False
    if not program.imports_any("torch", "transformers", "trl", "accelerate", "peft", "llamafactory"):
        return False
    if program.imports_any("mpi4py", "horovod", "jax", "submitit", "lightning", "pytorch_lightning", "nemo"):
        return False
    # Accelerate and the Trainer read MPI's variables, if only to make a group of CPUs.
    grouping = ("deepspeed-initialize", "init-process-group", "explicit-rank", "colossalai-launch")
    if program.first(*grouping, "accelerator", "trainer", "lightning-trainer") is not None:
        return False
    return next(source_matches(program, _READS_MPI), None) is None
