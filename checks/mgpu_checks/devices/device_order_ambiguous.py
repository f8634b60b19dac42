"""GPUs of different models without CUDA_DEVICE_ORDER=PCI_BUS_ID: CUDA's numbers are not nvidia-smi's."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.devices import (
    ORDER,
    VISIBLE,
    elsewhere,
    environment_alone,
    gpu_count,
    indices,
    program_of,
    reaching,
    selections,
    set_by_program,
)
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Launch,
    Reference,
    Rule,
    Severity,
    Unknown,
    insert,
    report,
)

_MIXED = [
    {"index": 0, "name": "NVIDIA GeForce RTX 3060", "memory_gib": 12, "compute_capability": "8.6"},
    {"index": 1, "name": "NVIDIA GeForce RTX 3060", "memory_gib": 12, "compute_capability": "8.6"},
    {"index": 2, "name": "NVIDIA RTX A6000", "memory_gib": 48, "compute_capability": "8.6"},
]

RULE = Rule(
    code="MGD209",
    slug="device-order-ambiguous",
    title="CUDA may number the GPUs differently from nvidia-smi",
    severity=Severity.WARNING,
    summary="GPUs of different models are chosen by index without CUDA_DEVICE_ORDER=PCI_BUS_ID.",
    why=(
        "nvidia-smi numbers GPUs by PCI bus. CUDA by default numbers the fastest first, so that on a machine with "
        "different models index 0 of CUDA_VISIBLE_DEVICES may be another card than GPU 0 of nvidia-smi. With "
        "CUDA_DEVICE_ORDER=PCI_BUS_ID both agree."
    ),
    bad=(
        Example("one of several models", "CUDA_VISIBLE_DEVICES=2 python run.py", facts={"gpus": _MIXED}),
        Example(
            "two ranks on the first two",
            "CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node 2 train.py",
            facts={"gpus": _MIXED},
        ),
    ),
    good=(
        Example(
            "the order is given",
            "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=2 python run.py",
            facts={"gpus": _MIXED},
        ),
        Example("one model", "CUDA_VISIBLE_DEVICES=2 python run.py"),
        Example("all of them", "CUDA_VISIBLE_DEVICES=0,1,2 torchrun --nproc_per_node 3 t.py", facts={"gpus": _MIXED}),
        Example("by UUID", "CUDA_VISIBLE_DEVICES=GPU-00000002 python run.py", facts={"gpus": _MIXED}),
        Example(
            "inherited",
            "CUDA_VISIBLE_DEVICES=2 python run.py",
            facts={"gpus": _MIXED, "env": {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}},
        ),
    ),
    sources=(
        Reference(
            "CUDA programming guide 13.0, CUDA environment variables, CUDA_DEVICE_ORDER",
            "FASTEST_FIRST is the default; PCI_BUS_ID orders by PCI bus id",
        ),
        Reference("driver 580, nvidia-smi(1)", "the index is the zero-based number in PCI bus order"),
    ),
    fix="set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name the GPUs by UUID",
    fixable=True,
)


def find(case: Case) -> Iterator[Finding]:
    """Indices that may mean another card than the one that nvidia-smi shows."""
    yield from _alone(case)
    seen = set()
    for selection in selections(case):
        wanted = indices(selection.text)
        if wanted is None or elsewhere(selection.launch.command) or _ordered(case, selection.launch):
            continue
        count = case.require(gpu_count(case))
        gpus = case.facts.gpus
        if isinstance(gpus, Unknown):
            continue
        names = sorted({gpu.name for gpu in gpus if isinstance(gpu.name, str)})
        key = (selection.name, selection.location)
        if len(names) < 2 or len(set(wanted)) >= count or key in seen:
            continue
        seen.add(key)
        fix = Fix("set CUDA_DEVICE_ORDER=PCI_BUS_ID in front of the list")
        at = selection.location
        variable = selection.variable
        if at is not None and variable is not None and at.source.slice(at.span).startswith(variable.name):
            fix = Fix(fix.title, (insert(at.source, at.span.start, "CUDA_DEVICE_ORDER=PCI_BUS_ID "),))
        yield report(
            RULE,
            f"{selection.name}={selection.text} chooses by index among different models ({', '.join(names)}), and "
            "CUDA numbers the fastest first: these need not be the GPUs that nvidia-smi shows under these numbers.",
            at,
            subject=selection.subject,
            fix=fix,
        )


def _alone(case: Case) -> Iterator[Finding]:
    """A machine without a command: a warning where the environment chooses by index, advice where nobody does yet."""
    if case.launches or isinstance(case.facts.gpus, Unknown) or isinstance(case.facts.environment, Unknown):
        return
    names = sorted({gpu.name for gpu in case.facts.gpus if isinstance(gpu.name, str)})
    if len(names) < 2 or case.facts.variable(ORDER) == "PCI_BUS_ID":
        return
    text = environment_alone(case, VISIBLE)
    wanted = indices(text) if text is not None else ()
    if wanted is None or (wanted and len(set(wanted)) >= len(case.facts.gpus)):
        return
    chosen = f"{VISIBLE}={text} chooses by index among them" if wanted else "a list of indices may mean other cards"
    yield report(
        RULE,
        f"This machine has different GPUs ({', '.join(names)}) and {ORDER} is not set: CUDA numbers the fastest first, "
        f"nvidia-smi by PCI bus, so {chosen}.",
        subject=f"{VISIBLE} in the environment" if wanted else "GPUs",
        severity=None if wanted else Severity.ADVICE,
        fix=Fix("let both count alike", commands=(f"export {ORDER}=PCI_BUS_ID",)),
    )


def _ordered(case: Case, launch: Launch) -> bool:
    order = reaching(case, launch, ORDER)
    if order is not None:
        return order.text is None or order.text == "PCI_BUS_ID"
    program = program_of(launch)
    return program is not None and set_by_program(program, ORDER) is not None
