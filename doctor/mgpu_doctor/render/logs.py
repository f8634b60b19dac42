"""What was read of logs, in a line or two each: their size, how they ended, how parallel the run was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mgpu_doctor.model.log import LogReading, Parallelism, SmiReading
from mgpu_doctor.model.report import Report
from mgpu_doctor.render.clean import one_line

_MILLION = 1_000_000
_THOUSAND = 10_000


def head_lines(report: Report) -> Iterator[str]:
    """``train.log: 2.4 million lines, failed, rank 3 first``, and below it what its start-up lines say."""
    for reading in report.case.logs:
        yield f"{one_line(reading.name)}: {_size(reading.lines)}, {_end(reading)}"
        if reading.parallel is not None:
            yield f"    {one_line(reading.parallel.sentence)}"
    for smi in report.case.smi:
        yield f"{one_line(smi.name)}: nvidia-smi, {smi.sentence}"


def _size(lines: int) -> str:
    if lines >= _MILLION:
        return f"{lines / _MILLION:.1f} million lines"
    if lines >= _THOUSAND:
        return f"{lines // 1000} thousand lines"
    return f"{lines} line{'s' * (lines != 1)}"


def _end(reading: LogReading) -> str:
    if not reading.failed:
        return "a fault is named" if reading.hits else "no sign of a failure"
    rank = reading.first_failed_rank
    return "failed" if rank is None else f"failed, rank {rank} first"


def parallel_document(told: Parallelism | None) -> dict[str, Any] | None:
    """What start-up lines say, as plain data."""
    if told is None:
        return None
    return {
        "world_size": told.world_size,
        "source": told.source,
        "gpus": told.gpus,
        "hosts": told.hosts,
        "visible": list(told.visible),
        "processes": [
            {"rank": p.rank, "device": p.device, "host": p.host, "pid": p.pid, "bus_id": p.bus_id}
            for p in told.processes
        ],
        "sentence": told.sentence,
    }


def smi_document(smi: SmiReading) -> dict[str, Any]:
    """The GPUs of nvidia-smi's text, as plain data; memory in MiB, utilization in percent."""
    gpus = [
        {
            "index": gpu.index,
            "name": gpu.name,
            "bus_id": gpu.bus_id,
            "memory_used": gpu.memory_used,
            "memory_total": gpu.memory_total,
            "utilization": gpu.utilization,
            "pids": None if gpu.pids is None else list(gpu.pids),
            "idle": gpu.is_idle,
        }
        for gpu in smi.gpus
    ]
    return {"name": smi.name, "gpus": gpus, "sentence": smi.sentence}
