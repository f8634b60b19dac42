"""An index that the machine does not have: CUDA drops it and everything behind it without a word."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.devices import (
    VISIBLE,
    Element,
    Selection,
    device_arguments,
    elements,
    elsewhere,
    environment_alone,
    gpu_count,
    indices,
    kept,
    listed,
    program_of,
    selections,
    set_by_program,
)
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Launch,
    Location,
    Program,
    Reference,
    Rule,
    Seen,
    Severity,
    Signature,
    Unknown,
    report,
)

_FOUR = [
    {"index": index, "name": "NVIDIA A100-SXM4-80GB", "memory_gib": 80, "uuid": f"GPU-{index}a0b1c2d-1111"}
    for index in range(4)
]
_SLICED = {"index": 0, "memory_gib": 80, "mig_mode": True, "mig": ["MIG-00000000-1111-2222-3333-444444444444"]}

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
        Example(
            "a card that the program pins",
            "python run.py",
            files={"run.py": "import torch\n\nnet = torch.nn.Linear(8, 8).to('cuda:4')\n"},
            facts={"gpus": _FOUR},
        ),
        Example("left in the environment", facts={"gpus": _FOUR, "env": {"CUDA_VISIBLE_DEVICES": "4,5"}}),
        Example(
            "a MIG instance that is gone",
            "CUDA_VISIBLE_DEVICES=MIG-deadbeef-1111-2222-3333-444444444444 python train.py",
            facts={"gpus": [{**_SLICED}]},
        ),
        Example("behind the script", "CUDA_VISIBLE_DEVICES=0,1 python run.py --device cuda:2"),
        Example("a slot", "deepspeed --include localhost:3,4 train.py", facts={"gpus": _FOUR}),
    ),
    good=(
        Example("a visible device", "CUDA_VISIBLE_DEVICES=4,5 python run.py --device cuda:1"),
        Example("the last GPU", "CUDA_VISIBLE_DEVICES=7 python train.py"),
        Example("no inventory is known", "CUDA_VISIBLE_DEVICES=0,15 python train.py", facts=None),
        Example("ended on purpose", "CUDA_VISIBLE_DEVICES=0,1,-1 python train.py"),
        Example("all in the environment", facts={"gpus": _FOUR, "env": {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}}),
        Example(
            "a MIG instance",
            "CUDA_VISIBLE_DEVICES=MIG-00000000-1111-2222-3333-444444444444 python train.py",
            facts={"gpus": [{**_SLICED}]},
        ),
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
    signatures=(
        Signature(
            r"You requested gpu: \[[\d, ]+\]|But your machine only has: \[",
            "pytorch-lightning 1.5 and later (public reports)",
            " But your machine only has: [0, 1]",
        ),
    ),
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
    for launch in case.launches:
        if not elsewhere(launch.command):
            yield from _slots(case, launch)
            yield from _beyond(launch)
    alone = environment_alone(case, VISIBLE)
    if alone:
        finding = _cut_list(case, VISIBLE, alone, None, f"{VISIBLE} in the environment")
        if finding is not None:
            yield finding


def _cut(case: Case, selection: Selection) -> Finding | None:
    return _cut_list(case, selection.name, selection.text, selection.location, selection.subject)


def _cut_list(case: Case, name: str, text: str, location: Location | None, subject: str | None) -> Finding | None:
    found = elements(text)
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
        f"{name}={text} names {missing.text.strip()}, but the machine has {have}: CUDA drops {rest}, and {seen}.",
        location,
        subject=subject,
        evidence=(f"GPUs known from {case.facts.origin}: {count}",),
        fix=Fix(f"name GPUs that the machine has ({listed(tuple(range(count)))})"),
    )


def _on_machine(case: Case, found: tuple[Element, ...], count: int) -> tuple[Element, ...]:
    if found[0].kind == "index":
        return kept(found, count)
    if isinstance(case.facts.gpus, Unknown):
        return found
    uuids = [gpu.uuid for gpu in case.facts.gpus if isinstance(gpu.uuid, str)]
    if found[0].kind == "mig":
        sliced = [gpu.mig for gpu in case.facts.gpus if not isinstance(gpu.mig, Unknown)]
        uuids = [uuid for mig in sliced for uuid in mig]
        if len(sliced) < count or any("/" in element.text for element in found):
            return found  # the older form names GPU, instance and part: MIG-GPU-<UUID>/1/0
    elif len(uuids) < count:
        return found
    out = []
    for element in found:
        if not any(uuid.lower().startswith(element.text.lower()) for uuid in uuids):
            break
        out.append(element)
    return tuple(out)


def _slots(case: Case, launch: Launch) -> Iterator[Finding]:
    """Slots of deepspeed's filter that the machine does not have."""
    layer = launch.layer("deepspeed")
    option = layer.option("include") if layer is not None and layer.option("hostfile") is None else None
    value = option.value if option is not None else None
    if option is None or value is None or "@" in value or not value.startswith("localhost:"):
        return
    wanted, count = indices(value.partition(":")[2]), case.require(gpu_count(case))
    missing = [index for index in wanted or () if index >= count]
    if missing and count:
        yield report(
            RULE,
            f"{option.flag} {value} names GPU {listed(missing)}, but the machine has {count}: older releases of "
            "deepspeed refuse the slot, newer ones pass it on and its rank finds no device.",
            launch.command.locate(option.span),
            evidence=(f"GPUs known from {case.facts.origin}: {count}",),
            fix=Fix(f"name GPUs that the machine has ({listed(tuple(range(count)))})"),
        )


def _beyond(launch: Launch) -> Iterator[Finding]:
    """Devices that the program or its arguments name beyond what the process can see."""
    visible = launch.visible.value
    if isinstance(visible, Unknown) or not visible.entries:
        return
    have = len(visible.entries)
    seen = f"{have} GPU{'s are' if have > 1 else ' is'} visible"
    physical = {entry for entry in visible.entries if not visible.all}
    for argument, numbers in device_arguments(launch):
        missing = [number for number in numbers if number >= have and str(number) not in physical]
        if missing:
            yield report(
                RULE,
                f"{argument.flag} {argument.value} names cuda:{missing[0]}, but {seen} (cuda:0"
                f"{f' to cuda:{have - 1}' if have > 1 else ''}).",
                launch.command.locate(argument.span),
                fix=Fix("name a device that is visible"),
            )
    program = program_of(launch)
    if program is None or set_by_program(program, VISIBLE) is not None:
        return
    if any(call.detail == "torch.cuda.device_count" for call in program.all("cuda-call")):
        return
    for fact in program.all("cuda-device"):
        number = int(fact.detail.removeprefix("cuda:"))
        if number >= have and str(number) not in physical:
            yield report(
                RULE,
                f"The program uses {fact.detail}, but {seen} (cuda:0{f' to cuda:{have - 1}' if have > 1 else ''}): "
                "`invalid device ordinal`.",
                program.locate(fact),
                severity=None if _at_top(program, fact) else Severity.WARNING,
                fix=Fix("name a device that is visible, or make more visible"),
            )
            return


def _at_top(program: Program, fact: Seen) -> bool:
    """Whether the line is not indented, so that it surely runs."""
    text = program.source.text
    return not text[text.rfind("\n", 0, fact.span.start) + 1 :][:1].isspace()
