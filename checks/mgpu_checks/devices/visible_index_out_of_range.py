"""An index that the machine does not have: CUDA drops it and everything behind it without a word."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.devices import Element, Selection, elements, elsewhere, gpu_count, kept, listed, selections
from mgpu_doctor.authoring import Case, Example, Finding, Fix, Reference, Rule, Severity, Unknown, report

_FOUR = [
    {"index": index, "name": "NVIDIA A100-SXM4-80GB", "memory_gib": 80, "uuid": f"GPU-{index}a0b1c2d-1111"}
    for index in range(4)
]

RULE = Rule(
    code="MGD203",
    slug="visible-index-out-of-range",
    title="A visible device does not exist",
    severity=Severity.ERROR,
    summary="The list of visible devices names a GPU that the machine does not have; CUDA ends the list there.",
    why=(
        "CUDA_VISIBLE_DEVICES counts from 0. At the first index or UUID that the machine lacks CUDA stops reading: "
        "that entry and everything behind it are invisible, and nobody says so. A list that starts with such an "
        "entry hides every GPU. The job then fails with `invalid device ordinal`, or runs on fewer GPUs or the CPU."
    ),
    bad=(
        Example(
            "counted from 1",
            "CUDA_VISIBLE_DEVICES=1,2,3,4 torchrun --nproc_per_node 4 train.py",
            facts={"gpus": _FOUR},
        ),
        Example(
            "the first entry hides all",
            "CUDA_VISIBLE_DEVICES=8,0 python train.py",
        ),
        Example(
            "a list for the workers",
            "accelerate launch --multi_gpu --num_processes 2 --gpu_ids 3,4 train.py",
            facts={"gpus": _FOUR},
        ),
        Example(
            "a UUID of another machine",
            "CUDA_VISIBLE_DEVICES=GPU-deadbeef python train.py",
        ),
        Example(
            "inherited from the shell",
            "torchrun --nproc_per_node 2 train.py",
            facts={"gpus": _FOUR, "env": {"CUDA_VISIBLE_DEVICES": "0,4"}},
        ),
    ),
    good=(
        Example("the last GPU", "CUDA_VISIBLE_DEVICES=7 python train.py"),
        Example("no inventory is known", "CUDA_VISIBLE_DEVICES=0,15 python train.py", facts=None),
        Example("ended on purpose", "CUDA_VISIBLE_DEVICES=0,1,-1 python train.py"),
        Example("a short UUID", "CUDA_VISIBLE_DEVICES=GPU-00000003 python train.py"),
        Example("GPUs of another machine", "ssh gpu16 CUDA_VISIBLE_DEVICES=12 python train.py"),
    ),
    sources=(
        Reference(
            "CUDA programming guide 13.0, CUDA environment variables, CUDA_VISIBLE_DEVICES",
            "only devices in front of an invalid index are visible",
        ),
        Reference(
            "driver 580.159.04 with one H200, cuInit and cuDeviceGetCount",
            "`0,1` leaves one device, `1,0` none, `GPU-deadbeef,<its UUID>` none",
            ran=True,
        ),
        Reference(
            "torch 2.13.0, cuda/__init__.py _device_count_nvml()",
            "the count ends at the first index that is not below the number of devices",
        ),
    ),
    fix="name GPUs that the machine has; indices count from 0",
)


def find(case: Case) -> Iterator[Finding]:
    """Lists that CUDA cuts short on this machine."""
    seen = set()
    for selection in selections(case):
        if not selection.text or elsewhere(selection.launch.command):
            continue
        key = (selection.name, selection.location)
        if key in seen:
            continue
        seen.add(key)
        finding = _cut(case, selection)
        if finding is not None:
            yield finding


def _cut(case: Case, selection: Selection) -> Finding | None:
    found = elements(selection.text)
    without_machine = kept(found)
    if not without_machine:
        return None
    count = case.require(gpu_count(case))
    left = _on_machine(case, without_machine, count)
    if len(left) == len(without_machine) or not count:
        return None
    missing = without_machine[len(left)]
    have = f"{count} GPU" + ("s" if count > 1 else "")
    if missing.kind == "index":
        have += f", {listed(tuple(range(count)))}" if count > 1 else ", number 0"
    behind = len(found) - len(left) - 1
    rest = "it" if not behind else f"it and the {behind} behind it"
    if not left:
        seen = "no GPU is visible at all"
    else:
        seen = (
            f"only {', '.join(element.text.strip() for element in left)} {'stay' if len(left) > 1 else 'stays'} visible"
        )
    return report(
        RULE,
        f"{selection.name}={selection.text} names {missing.text.strip()}, but the machine has {have}: "
        f"CUDA drops {rest}, and {seen}.",
        selection.location,
        subject=selection.subject,
        evidence=(f"GPUs known from {case.facts.origin}: {count}",),
        fix=Fix(f"name GPUs that the machine has ({listed(tuple(range(count)))})"),
    )


def _on_machine(case: Case, found: tuple[Element, ...], count: int) -> tuple[Element, ...]:
    if found[0].kind == "index":
        return kept(found, count)
    if found[0].kind == "mig" or isinstance(case.facts.gpus, Unknown):
        return found
    uuids = [gpu.uuid for gpu in case.facts.gpus if isinstance(gpu.uuid, str)]
    if len(uuids) < count:
        return found
    out = []
    for element in found:
        if not any(uuid.lower().startswith(element.text.lower()) for uuid in uuids):
            break
        out.append(element)
    return tuple(out)
