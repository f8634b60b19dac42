"""Fewer ranks than GPUs that were set aside for them."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.devices import VISIBLE, elsewhere, indices, on_cpu, program_of, ranks_here, reaching
from mgpu_doctor.authoring import Case, Example, Finding, Fix, Launch, Reference, Rule, Severity, Unknown, report

_SPLIT = (
    "from transformers import AutoModelForCausalLM\n\n"
    'model = AutoModelForCausalLM.from_pretrained("acme/base-70b", device_map="auto")\n'
)

RULE = Rule(
    code="MGD208",
    slug="fewer-processes-than-gpus",
    title="Visible GPUs without a process",
    severity=Severity.ADVICE,
    summary="The list of devices names more GPUs than the launcher starts processes; the rest stay idle.",
    why=(
        "Rank N uses `cuda:N` of the visible list, so that the GPUs behind the last rank do nothing. They are "
        "nevertheless taken from whoever shares the machine. A model that is split over several cards in one process "
        "is something else and is not meant here."
    ),
    bad=(
        Example("half of the list", "CUDA_VISIBLE_DEVICES=0,1,2,3 torchrun --nproc_per_node 2 train.py"),
        Example("one process", "CUDA_VISIBLE_DEVICES=4,5 accelerate launch --num_processes 1 train.py"),
    ),
    good=(
        Example("as many", "CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node 2 train.py"),
        Example("no list", "torchrun --nproc_per_node 2 train.py"),
        Example(
            "one model over several cards",
            "CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node 1 big.py",
            files={"big.py": _SPLIT},
        ),
        Example("a plain program", "CUDA_VISIBLE_DEVICES=0,1 python run.py"),
        Example(
            "ms-swift spreads each process over its share",
            "NPROC_PER_NODE=2 CUDA_VISIBLE_DEVICES=0,1,2,3 swift sft --model acme/base-7b --dataset acme/pairs",
        ),
    ),
    sources=(
        Reference("torch 2.6.0, distributed/run.py", "LOCAL_RANK counts from 0 to nproc_per_node - 1"),
        Reference("accelerate 1.7.0, state.py PartialState.__init__()", "each process uses cuda:LOCAL_RANK"),
        Reference(
            "ms-swift 3.12.0, swift/llm/model/register.py get_default_device_map()",
            "with two or more visible GPUs for each local process the device map is auto",
        ),
    ),
    fix="start one process for each visible GPU, or take the idle ones off the list",
)


def find(case: Case) -> Iterator[Finding]:
    """Launches that leave visible GPUs without a rank."""
    for launch in case.launches:
        ranks, variable = ranks_here(launch), reaching(case, launch, VISIBLE)
        if ranks is None or ranks < 1 or variable is None or on_cpu(case, launch) or elsewhere(launch.command):
            continue
        wanted, visible = indices(variable.text or ""), launch.visible.value
        if wanted is None or isinstance(visible, Unknown) or visible.all or _splits(launch) or _is_made_single(launch):
            continue
        if tuple(visible.entries) != tuple(str(number) for number in wanted) or len(wanted) <= ranks:
            continue
        idle = [str(number) for number in wanted[ranks:]]
        yield report(
            RULE,
            f"{len(wanted)} GPUs are visible but {ranks} process{'es start' if ranks > 1 else ' starts'}: GPU "
            f"{', '.join(idle)} {'stay' if len(idle) > 1 else 'stays'} idle.",
            launch.processes_per_node.origin.location or launch.command.locate(launch.command.words[0].span),
            fix=Fix(f"start {len(wanted)} processes, or leave {', '.join(idle)} off the list"),
        )


def _is_made_single(launch: Launch) -> bool:
    """Whether accelerate's configuration makes it one process, which is a finding of its own."""
    layer = launch.layer("accelerate")
    return layer is not None and layer.config is not None and layer.config.get("distributed_type") in {"NO", False}


def _splits(launch: Launch) -> bool:
    """Whether one process may use several cards."""
    if launch.spread.known == "split" or launch.target.framework == "swift":
        return True
    engine = launch.engine.known
    if engine is not None and engine.name in {"device_map", "megatron"}:
        return True
    program = program_of(launch)
    return program is not None and bool(program.all("device-map", "data-parallel", "cuda-device", "spawns-ranks"))
