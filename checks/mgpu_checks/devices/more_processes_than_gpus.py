"""More ranks on a machine than visible GPUs: some ranks have no device of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.devices import VISIBLE, elements, elsewhere, on_cpu, program_of, ranks_here, reaching, uses_cuda
from mgpu_checks.verdict import confirmed, each_rank, launch_of, place_of, probed, subject_of
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
    Skip,
    Span,
    Unknown,
    observed,
    report,
)

_TWO = [{"index": index, "name": "NVIDIA GeForce RTX 4090", "memory_gib": 24} for index in range(2)]
_GLOO = 'import torch.distributed as dist\n\ndist.init_process_group("gloo")\nprint(dist.get_rank())\n'

RULE = Rule(
    code="MGD207",
    slug="more-processes-than-gpus",
    title="More processes than visible GPUs",
    severity=Severity.ERROR,
    summary="A launcher starts more ranks on a machine than there are visible GPUs.",
    why=(
        "Rank N uses `cuda:N`. A rank beyond the last visible GPU fails with `invalid device ordinal`; where the "
        "program wraps the number around, two ranks share a GPU and NCCL stops with `Duplicate GPU detected`. "
        "Launchers do not check it: torchrun starts any number of processes."
    ),
    bad=(
        Example(
            "a longer count than the list", "CUDA_VISIBLE_DEVICES=0 torchrun --nproc-per-node 4 train.py", facts=None
        ),
        Example("more than the machine has", "torchrun --standalone --nproc_per_node=8 train.py", facts={"gpus": _TWO}),
        Example(
            "per machine, also on several",
            "CUDA_VISIBLE_DEVICES=0,1 torchrun --nnodes 2 --node_rank 0 --master_addr n0 --nproc_per_node 4 t.py",
        ),
        Example(
            "the old launcher",
            "CUDA_VISIBLE_DEVICES=0,1 python -m torch.distributed.launch --nproc_per_node=4 train.py",
        ),
        Example("deepspeed", "deepspeed --num_gpus 4 train.py", facts={"gpus": _TWO}),
        Example(
            "seen: four ranks that see two GPUs",
            "mpirun -np 4 python work.py",
            observation=probed([0, 1, 0, 1], device_count=[2, 2, 2, 2], visible=["0,1"] * 4),
        ),
        Example("a container's GPUs", """docker run --gpus '"device=2,3"' img torchrun --nproc_per_node 4 train.py"""),
    ),
    good=(
        Example(
            "numbers that the machine does not have are another rule's",
            "deepspeed --include localhost:2,9 train.py",
        ),
        Example(
            "seen: each rank sees one GPU, another one each",
            "mpirun -np 2 python work.py",
            observation=probed([0, 1], device_count=[1, 1], visible=["0", "1"]),
        ),
        Example("a container with all", "docker run --gpus all img torchrun --nproc_per_node 8 train.py"),
        Example("as many", "CUDA_VISIBLE_DEVICES=2,3 torchrun --nproc_per_node 2 train.py"),
        Example("fewer", "torchrun --nproc_per_node 4 train.py"),
        Example("on the CPU", "torchrun --nproc_per_node 4 train.py --use_cpu", facts={"gpus": _TWO}),
        Example("hidden on purpose", "CUDA_VISIBLE_DEVICES= torchrun --nproc_per_node 4 train.py"),
        Example("nobody knows the machine", "torchrun --nproc_per_node 16 train.py", facts=None),
        Example("several machines", "torchrun --nnodes 2 --node_rank 1 --master_addr n0 --nproc_per_node 8 train.py"),
        Example(
            "a program for the CPU",
            "torchrun --nproc_per_node 4 ranks.py",
            files={"ranks.py": _GLOO},
            facts={"gpus": _TWO},
        ),
    ),
    sources=(
        Reference(
            "torch 2.13.0, torchrun",
            "CUDA_VISIBLE_DEVICES=0 torchrun --nproc-per-node 4 starts 4 ranks that see one device, without a word",
            ran=True,
        ),
        Reference(
            "torch 1.13.1 and 2.6.0, distributed/run.py determine_local_world_size()", "a number is taken as it is"
        ),
        Reference(
            "deepspeed 0.9.5, 0.16.9 and 0.19.5, launcher/runner.py main()",
            "--num_gpus N takes range(N) without a look at the machine",
        ),
    ),
    fix="start as many processes as there are visible GPUs",
    fixable=True,
    signatures=(
        Signature(
            r"invalid device ordinal",
            "CUDA 12.8, cudaGetErrorString(cudaErrorInvalidDevice)",
            "RuntimeError: CUDA error: invalid device ordinal",
        ),
        Signature(
            r"Total available GPUs \S+ is less than total desired GPUs",
            "verl 0.2 and later (public reports)",
            "ValueError: Total available GPUs 4 is less than total desired GPUs 8",
        ),
        Signature(
            r"number of required GPUs exceeds the total number of available GPUs",
            "vllm 0.2.7 and later (public reports)",
            "ValueError: The number of required GPUs exceeds the total number of available GPUs in the placement "
            "group.",
        ),
        Signature(
            r"No available node types can fulfill resource request .*'GPU'",
            "ray's autoscaler (public report: verl-project/verl issue 1842)",
            "(autoscaler +32s) Error: No available node types can fulfill resource request defaultdict(<class "
            "'float'>, {'CPU': 2.0, 'GPU': 2.0}). Add suitable node types to this cluster to resolve this issue.",
        ),
        Signature(
            r"assert \w*(?:gpus|world_size)\w* <= torch\.cuda\.device_count\(\)",
            "detectron2 0.6 and scripts after it (public reports)",
            "    assert num_gpus_per_machine <= torch.cuda.device_count()",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """Launches with ranks that have no GPU, said beforehand or seen in a run."""
    seen = [*_seen(case)]
    try:
        said = [*_said(case)]
    except Skip:
        if not seen:
            raise
        said = []
    yield from confirmed(said, (finding.message for finding in seen)) if said else seen


def _seen(case: Case) -> Iterator[Finding]:
    """Ranks of one machine that all see the same devices, of which there are fewer."""
    seen = case.observation
    if seen is None or not seen.on_gpu:
        return
    ranks = observed.present(seen)
    same = {(rank.host, rank.visible, rank.device_count) for rank in ranks}
    if len(same) != 1 or len(observed.ranks_by_device(seen)) == len(ranks):
        return
    host, _, count = next(iter(same))
    if isinstance(host, Unknown) or not isinstance(count, int) or not 0 < count < len(ranks):
        return
    have = f"{count} GPU" + "s" * (count > 1)
    yield report(
        RULE,
        f"{len(ranks)} processes ran, and all of them see the same {have}: {len(ranks) - count} of them "
        f"{'have no GPU of their own' if len(ranks) - count > 1 else 'has no GPU of its own'}.",
        place_of(case),
        subject=subject_of(case),
        evidence=each_rank(ranks),
        fix=Fix(f"start {count} process{'es' * (count > 1)}") if launch_of(case) is not None else None,
    )


def _said(case: Case) -> Iterator[Finding]:
    for launch in case.launches:
        ranks = ranks_here(launch)
        if ranks is None or ranks < 2 or on_cpu(case, launch) or _hidden_machine(launch) or _for_cpu(launch):
            continue
        variable = reaching(case, launch, VISIBLE)
        if variable is not None and variable.text is None:
            continue
        visible = case.require(launch.visible.value)
        devices = len(visible.entries)
        if variable is not None and _cut_short(variable.text or "", devices):
            continue
        if 0 < devices < ranks and not _names_more(launch, devices) and not _refuses_single(launch):
            yield _finding(case, launch, ranks, devices, visible.all)


def _hidden_machine(launch: Launch) -> bool:
    """Whether the job runs where its GPUs are not known: another machine, or a container that names none."""
    return elsewhere(launch.command) and launch.visible.origin.kind != "option"


def _names_more(launch: Launch, devices: int) -> bool:
    """Whether an option names more devices than are found: its numbers are at fault, not the count."""
    where = launch.visible.origin.location
    if launch.visible.origin.kind != "option" or where is None:
        return False
    return devices < len(re.findall(r"\d+", re.split(r"[:=\s]", where.source.slice(where.span).strip("\"'"))[-1]))


def _refuses_single(launch: Launch) -> bool:
    """Whether accelerate's configuration names a single GPU for several processes, which it refuses by itself."""
    layer = launch.layer("accelerate")
    if layer is None or layer.config is None or layer.option("gpu_ids") is not None:
        return False
    if layer.config.get("distributed_type") != "MULTI_GPU" or layer.option("num_processes") is not None:
        return False
    return str(layer.config.get("gpu_ids")).strip().isdigit()


def _cut_short(text: str, devices: int) -> bool:
    """Whether the list is at fault and not the count: CUDA sees fewer devices than it names."""
    found = elements(text)
    return devices < len(found) or any(element.rest.strip() for element in found)


def _for_cpu(launch: Launch) -> bool:
    """Whether a readable program with a process group touches no GPU by itself or through a library."""
    program = program_of(launch)
    if program is None or uses_cuda(launch) or not program.all("init-process-group"):
        return False
    kinds = ("accelerator", "trainer", "lightning-trainer", "deepspeed-initialize", "cuda-call", "run-exp")
    return not program.all(*kinds) and '"nccl"' not in program.source.text and "'nccl'" not in program.source.text


def _finding(case: Case, launch: Launch, ranks: int, devices: int, every: bool) -> Finding:
    place = launch.processes_per_node.origin.location or launch.command.locate(launch.command.words[0].span)
    have = f"{devices} GPU" + ("s" if devices > 1 else "")
    if elsewhere(launch.command):
        every, where = True, f"the container gets {have}"
    else:
        where = f"the machine has {have}" if every else f"{have} {'are' if devices > 1 else 'is'} visible"
    node = " on this machine" if (launch.nodes.known or 1) > 1 else ""
    edit = _edit(place, ranks, devices)
    fix = Fix(f"start {devices} process{'es' if devices > 1 else ''}", () if edit is None else (edit,))
    evidence = [f"devices: {', '.join(_entries(launch))}"]
    if not isinstance(case.facts.gpus, Unknown):
        evidence.append(f"GPUs known from {case.facts.origin}: {len(case.facts.gpus)}")
    return report(
        RULE,
        f"{ranks} processes start{node}, but {where}: {ranks - devices} of them "
        f"{'get no GPU of their own' if ranks - devices > 1 else 'gets no GPU of its own'}.",
        place,
        evidence=evidence,
        fix=fix,
    )


def _entries(launch: Launch) -> tuple[str, ...]:
    return () if isinstance(launch.visible.value, Unknown) else launch.visible.value.entries


def _edit(place: Location, ranks: int, devices: int) -> Edit | None:
    written = place.source.slice(place.span)
    last = re.search(rf"(?<!\d){ranks}(?=['\"]?$)", written)
    if last is None or place.source.kind in {"yaml", "json"}:
        return None
    start = place.span.start + last.start()
    return Edit(place.source, Span(start, start + len(last.group())), str(devices))
