"""Whether a run is truly parallel, from its start-up lines and the text of nvidia-smi: what is certain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from mgpu_doctor.model.finding import Evidence, Finding, Fix
from mgpu_doctor.model.log import BATCHES, LogReading, Parallelism, SmiGpu, count_of
from mgpu_doctor.model.rule import Rule

SHARED = "MGD901"
IDLE = "MGD903"


def parallel_findings(
    reading: LogReading, gpus: tuple[SmiGpu, ...] | None, rules: Mapping[str, Rule]
) -> Iterator[Finding]:
    """What is certain of one log, with or without nvidia-smi's text of the machine that it ran on."""
    told = reading.parallel
    if told is None or any(hit.code == SHARED for hit in reading.hits):
        return
    if SHARED in rules:
        yield from _shared(reading, told, rules[SHARED])
    if gpus and not told.shared and (told.hosts or 1) == 1:
        yield from _against_smi(reading, told, gpus, rules)


def _shared(reading: LogReading, told: Parallelism, rule: Rule) -> Iterator[Finding]:
    for group in told.shared:
        ranks = _list(str(process.rank) for process in group)
        first = group[0]
        yield _finding(
            rule,
            reading,
            f"Ranks {ranks} of {first.host} hold one GPU, PCI bus {first.bus_id}, by NCCL's own lines: it looks like "
            f"{len(group)} GPUs and is one.",
            [
                f"rank {process.rank}: process {process.pid}, {process.device}, bus {process.bus_id}"
                for process in group
            ],
            "let each rank take the GPU of its LOCAL_RANK, and give the job a GPU for each rank",
        )


def _against_smi(
    reading: LogReading, told: Parallelism, gpus: tuple[SmiGpu, ...], rules: Mapping[str, Rule]
) -> Iterator[Finding]:
    if any(gpu.is_idle is None for gpu in gpus) or told.world_size < 2 or told.source == BATCHES:
        return
    busy = [gpu for gpu in gpus if not gpu.is_idle]
    own = {process.pid for process in told.processes} - {None}
    seen = {pid for gpu in busy for pid in gpu.pids or ()}
    if own and seen and not own & seen:
        # Another machine, or pids of a container.
        return
    rows = [_row(gpu) for gpu in gpus]
    if len(busy) == 1 and len(busy[0].pids or ()) >= told.world_size and SHARED in rules:
        yield _finding(
            rules[SHARED],
            reading,
            f"The log speaks of {told.world_size} processes, and nvidia-smi shows all {len(busy[0].pids or ())} that "
            f"compute on GPU {busy[0].index}: it looks like {told.world_size} GPUs and is one.",
            rows,
            "let each rank take the GPU of its LOCAL_RANK (torch.cuda.set_device), and check CUDA_VISIBLE_DEVICES",
        )
        return
    promised = [gpu for gpu in gpus if gpu.index in told.visible]
    idle = [gpu for gpu in promised if gpu.is_idle]
    if IDLE not in rules or not busy:
        return
    if idle:
        indices = _list(str(gpu.index) for gpu in idle)
        yield _finding(
            rules[IDLE],
            reading,
            f"The launcher gave the job GPUs {_list(map(str, told.visible))}, and nvidia-smi shows nothing on "
            f"{indices}: the work of {told.world_size} ranks lies on fewer GPUs than it was given.",
            rows,
            "see that every rank works on the GPU of its LOCAL_RANK",
        )
    elif len(busy) < told.world_size <= len(gpus):
        yield _finding(
            rules[IDLE],
            reading,
            f"The log speaks of {told.world_size} processes, and nvidia-smi shows work on {len(busy)} of "
            f"{len(gpus)} GPUs: either ranks share a GPU, or some were not running when it was asked.",
            rows,
            "see that every rank works on the GPU of its LOCAL_RANK",
        )


def _row(gpu: SmiGpu) -> str:
    memory = f"{gpu.memory_used} MiB held" if gpu.memory_used is not None else "memory unknown"
    use = f", {gpu.utilization} % busy" if gpu.utilization is not None else ""
    held = "" if gpu.pids is None else f", {count_of(len(gpu.pids), 'computing process', 'computing processes')}"
    return f"GPU {gpu.index}: {memory}{use}{held}"


def _finding(rule: Rule, reading: LogReading, message: str, evidence: Iterable[str], fix: str) -> Finding:
    return Finding(
        code=rule.code,
        slug=rule.slug,
        severity=rule.severity,
        message=message,
        subject=reading.name,
        evidence=tuple(Evidence(text) for text in evidence),
        fix=Fix(fix),
        title=rule.title,
    )


def _list(words: Iterable[str]) -> str:
    words = list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
