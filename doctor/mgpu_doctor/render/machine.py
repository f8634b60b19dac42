"""The machine in a few lines, as a person would describe it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from mgpu_doctor.model.facts import Facts, Gpu
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.render.clean import one_line

PACKAGES = ("torch", "accelerate", "deepspeed", "transformers", "llamafactory", "vllm", "flash-attn")
"""Whose versions are worth a line."""


def machine_lines(facts: Facts) -> tuple[tuple[str, str], ...]:
    """What is known about the machine as pairs of a label and a text; empty for facts about none."""
    if facts.origin == "none":
        return ()
    lines = (("GPUs", _gpus(facts)), ("software", _software(facts)), ("host", _host(facts)))
    return tuple((label, one_line(text)) for label, text in lines if text)


def _gpus(facts: Facts) -> str:
    if isinstance(facts.gpus, Unknown):
        return f"unknown: {facts.gpus.reason}"
    parts = [_group(gpu, number) for gpu, number in _models(facts.gpus)] or ["none"]
    if isinstance(facts.driver, str):
        parts.append(f"driver {facts.driver}")
    return ", ".join(parts)


def _models(gpus: tuple[Gpu, ...]) -> Iterator[tuple[Gpu, int]]:
    """The first GPU of each model with the number of its kind."""
    counted = Counter((gpu.name, gpu.memory_gib) for gpu in gpus)
    for key, number in counted.items():
        yield next(gpu for gpu in gpus if (gpu.name, gpu.memory_gib) == key), number


def _group(gpu: Gpu, number: int) -> str:
    name = gpu.name if isinstance(gpu.name, str) else "GPU of unknown model"
    memory = "" if isinstance(gpu.memory_gib, Unknown) else f" ({gpu.memory_gib:.0f} GiB)"
    mig = f", {len(gpu.mig)} MIG instances on the first" if isinstance(gpu.mig, tuple) and gpu.mig else ""
    return f"{f'{number} × ' if number > 1 else ''}{name}{memory}{mig}"


def _software(facts: Facts) -> str:
    parts = []
    python = facts.python
    if isinstance(python.version, str):
        parts.append(f"Python {python.version}")
    if isinstance(facts.packages, Unknown):
        parts.append(f"packages unknown: {facts.packages.reason}")
    else:
        parts += [f"{name} {facts.packages[name]}" for name in PACKAGES if name in facts.packages]
        if "torch" not in facts.packages:
            parts.append("no torch")
    place = f" in {python.prefix}" if isinstance(python.prefix, str) else ""
    return ", ".join(parts) + place if parts else ""


def _host(facts: Facts) -> str:
    parts = []
    if not isinstance(facts.host_memory_gib, Unknown):
        parts.append(f"{facts.host_memory_gib:.0f} GiB memory")
    if not isinstance(facts.cpu_count, Unknown):
        parts.append(f"{facts.cpu_count:g} processors")
    if not isinstance(facts.shm_gib, Unknown):
        parts.append(f"shared memory {_size(facts.shm_gib)}")
    if isinstance(facts.container, str):
        parts.append(f"in a container ({facts.container})")
    if isinstance(facts.scheduler, str):
        parts.append(f"in a job of {facts.scheduler}")
    return ", ".join(parts)


def _size(gib: float) -> str:
    return f"{gib:.0f} GiB" if gib >= 1 else f"{gib * 1024:.0f} MiB"
