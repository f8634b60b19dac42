"""The host has less memory than what is offloaded to it, or than the copies of the model that its processes load."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.hub import models
from mgpu_doctor.authoring import (
    GIB,
    Case,
    Example,
    Finding,
    Fix,
    Launch,
    MemoryNeed,
    MemoryPart,
    Reference,
    Rule,
    Severity,
    Unknown,
    gib,
    memory_need,
    report,
)

_SFT = (
    "FORCE_TORCHRUN=1 llamafactory-cli train --stage sft --do_train --finetuning_type full --model_name_or_path "
    "org/model --dataset demo --template default --output_dir out --bf16 true --deepspeed ds.json"
)
_OFFLOAD = (
    '{"train_micro_batch_size_per_gpu": "auto", "bf16": {"enabled": true},\n'
    ' "zero_optimization": {"stage": STAGE, "offload_optimizer": {"device": "DEVICE"}}}\n'
)


def _zero(stage: int, device: str) -> dict[str, str]:
    return {"ds.json": _OFFLOAD.replace("STAGE", str(stage)).replace("DEVICE", device)}


def _host(memory_gib: float, parameters: float = 70.6e9) -> dict[str, object]:
    model = {"parameters": parameters, "dtype": "bfloat16"}
    return {"models": {"org/model": model}, "host_memory_gib": memory_gib}


_TRAIN = (
    "from transformers import AutoModelForCausalLM, HfArgumentParser, Trainer, TrainingArguments\n\n"
    "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\n"
    'model = AutoModelForCausalLM.from_pretrained("org/model"{more})\n'
    "Trainer(model=model, args=args).train()\n"
)

RULE = Rule(
    code="MGD612",
    slug="host-memory-short",
    title="Too little host memory",
    severity=Severity.ERROR,
    summary="offloaded states, or the copies of the model that the processes load, exceed the host's memory",
    why=(
        "ZeRO's offload moves the optimizer to the host: 32-bit weights and two states, 12 bytes for each parameter, "
        "of all ranks of a node together. And a model that is loaded in another dtype than its files have is "
        "converted in host memory, by every process for itself: eight processes that load 8 B parameters in 32 bits "
        "hold 240 GiB before the first of them reaches its card. When memory runs out the kernel kills a process with "
        "signal 9, without a word in Python."
    ),
    bad=(
        Example("ZeRO-2, 70 B parameters offloaded", _SFT, files=_zero(2, "cpu"), facts=_host(512)),
        Example("ZeRO-3, 70 B parameters offloaded", _SFT, files=_zero(3, "cpu"), facts=_host(700)),
        Example(
            "eight processes convert 13 B parameters to 32 bits",
            "torchrun --nproc-per-node 8 train.py --output_dir out",
            files={"train.py": _TRAIN.format(more="")},
            facts=_host(256, 13e9),
        ),
    ),
    good=(
        Example("a terabyte holds it", _SFT, files=_zero(3, "cpu"), facts=_host(1024)),
        Example("offloaded to NVMe", _SFT, files=_zero(3, "nvme"), facts=_host(256)),
        Example(
            "the files' own dtype is mapped, not copied",
            "torchrun --nproc-per-node 8 train.py --output_dir out",
            files={"train.py": _TRAIN.format(more=', torch_dtype="auto"')},
            facts=_host(128, 13e9),
        ),
        Example(
            "loaded straight to the cards",
            "torchrun --nproc-per-node 8 train.py --output_dir out",
            files={"train.py": _TRAIN.format(more=', device_map={"": rank}')},
            facts=_host(128, 13e9),
        ),
        Example(
            "transformers 5 loads the stored dtype",
            "torchrun --nproc-per-node 8 train.py --output_dir out",
            files={"train.py": _TRAIN.format(more="")},
            facts={
                **_host(128, 13e9),
                "packages": {"torch": "2.11.0", "transformers": "5.6.0", "accelerate": "1.15.0"},
            },
        ),
        Example(
            "nobody knows the host's memory",
            _SFT,
            files=_zero(2, "cpu"),
            facts={"models": {"org/model": {"parameters": 70.6e9, "dtype": "bfloat16"}}},
        ),
    ),
    sources=(
        Reference(
            "deepspeed 0.16.9 and 0.19.8, runtime/zero/stage_1_and_2.py and stage3.py, ops/adam/cpu_adam.py",
            "offloaded: 32-bit weights and two 32-bit states for each parameter; its own estimate is 16 to 18 bytes, "
            "and half as much again for buffers",
        ),
        Reference(
            "transformers 4.52.4 and 5.6.0, from_pretrained() without device_map",
            "in the stored dtype the files are mapped (419 MiB of weights: under 90 MiB of the process's own memory); "
            "in another dtype the process holds a converted copy of the whole model",
            ran=True,
        ),
    ),
    fix="Offload less or to NVMe, or load in the stored dtype",
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each launch whose host is surely too small."""
    for launch in case.launches:
        need = memory_need(case, launch)
        if isinstance(need, Unknown) or not need.host:
            continue
        memory = _memory(case)
        for part in need.host:
            if part.low > memory:
                yield _finding(launch, need, part, memory)
                break


def _memory(case: Case) -> int:
    """The host's memory in bytes, or the control group's share of it where that is less."""
    total = case.require(case.facts.host_memory_gib)
    limits = case.facts.limits
    group = None if isinstance(limits, Unknown) else limits.get("cgroup_memory_gib")
    if isinstance(group, (int, float)) and 0 < group < total:
        total = float(group)
    return round(total * GIB)


def _finding(launch: Launch, need: MemoryNeed, part: MemoryPart, memory: int) -> Finding:
    given = next(iter(models(launch)), None)
    place = given.location if given is not None else launch.command.locate(launch.command.span)
    if part.purpose == "checkpoint":
        return report(
            RULE,
            f"{need.cards} processes load {need.model} at the same time and convert it in host memory: {gib(part.low)} "
            f"together, and the host has {gib(memory)}. The kernel would kill one of them.",
            place,
            subject=need.model,
            severity=Severity.WARNING,
            evidence=(part.why,),
            fix=Fix('Load it in the stored dtype (torch_dtype="auto"), or straight to each card (device_map)'),
        )
    return report(
        RULE,
        f"What is offloaded of {need.model} takes at least {gib(part.low)} of host memory, and the host has "
        f"{gib(memory)}: the kernel would kill a process with signal 9.",
        place,
        subject=need.model,
        evidence=(part.why, f"{need.parameters / 1e9:.2f} billion parameters, from {need.origin}"),
        fix=Fix("Offload to NVMe, use more nodes, keep the optimizer on the cards, or train an adapter (LoRA)"),
    )
