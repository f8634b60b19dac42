"""A misspelt CUDA_VISIBLE_DEVICES that nothing reads, so that all GPUs stay visible."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.devices import VISIBLE, assignments
from mgpu_doctor.authoring import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Program,
    Reference,
    Rule,
    Seen,
    Severity,
    Span,
    Unknown,
    Variable,
    report,
)

RULE = Rule(
    code="MGD205",
    slug="visible-devices-misspelt",
    title="CUDA_VISIBLE_DEVICES is misspelt",
    severity=Severity.ERROR,
    summary="A variable that looks like CUDA_VISIBLE_DEVICES but is not: nothing reads it and every GPU stays visible.",
    why=(
        "No program warns about an environment variable that it does not know. With a misspelt name the process sees "
        "every GPU of the machine, so that it runs on GPU 0 and its neighbours instead of the chosen ones, beside "
        "whoever runs there."
    ),
    bad=(
        Example("a letter changed", "CUDA_VISIABLE_DEVICES=2,3 torchrun --nproc_per_node 2 train.py"),
        Example("singular", "CUDA_VISIBLE_DEVICE=6 accelerate launch train.py", facts=None),
        Example("exported", "export CUDA_VISBLE_DEVICES=0,1\npython train.py"),
        Example("through env", "env CUDA_VISIBLE_DEVIES=1 python train.py"),
        Example("words swapped", "CUDA_DEVICES_VISIBLE=1 python train.py"),
        Example("lower case", "cuda_visible_devices=1 python train.py"),
    ),
    good=(
        Example("the right name", "CUDA_VISIBLE_DEVICES=2,3 python train.py"),
        Example("AMD's names", "HIP_VISIBLE_DEVICES=0,1 ROCR_VISIBLE_DEVICES=0,1 python train.py"),
        Example("the container's name", "NVIDIA_VISIBLE_DEVICES=0,1 python train.py"),
        Example("a helper of the script", "CUDA_VISIBLE=0,1\nCUDA_VISIBLE_DEVICES=$CUDA_VISIBLE python train.py"),
        Example(
            "an exported helper", "export VISIBLE_DEVICES=0,1\nCUDA_VISIBLE_DEVICES=$VISIBLE_DEVICES python train.py"
        ),
        Example(
            "other variables of CUDA", "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_DEVICE_MAX_CONNECTIONS=1 python train.py"
        ),
    ),
    sources=(
        Reference(
            "CUDA programming guide 13.0, CUDA environment variables",
            "CUDA_VISIBLE_DEVICES is the one name that the driver reads",
        ),
        Reference(
            "torch 2.13.0, cuda/__init__.py _parse_visible_devices()",
            "reads HIP_VISIBLE_DEVICES and CUDA_VISIBLE_DEVICES",
        ),
    ),
    fix="rename it to CUDA_VISIBLE_DEVICES",
    fixable=True,
)

READ_BY_SOMEBODY = frozenset(
    {
        "ASCEND_RT_VISIBLE_DEVICES",
        "ASCEND_VISIBLE_DEVICES",
        "CUDA_DEVICE_ORDER",
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "CUDA_DEVICE",
        "CUDA_DEVICES",
        "CUDA_VISIBLE",
        "GPU_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
        "MLU_VISIBLE_DEVICES",
        "MUSA_VISIBLE_DEVICES",
        "NPU_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES",
        "SDAA_VISIBLE_DEVICES",
        "SYCL_DEVICE_FILTER",
        "TPU_VISIBLE_DEVICES",
        "XPU_VISIBLE_DEVICES",
        "VISIBLE_DEVICES",
    }
)
"""Names that other hardware's software reads, or that are too general to be a slip."""

SWAPPED = frozenset(
    {"CUDADEVICESVISIBLE", "CUDADEVICEVISIBLE", "VISIBLECUDADEVICES", "CUDAVISIBLEGPUS", "CUDAVISIBLEGPU"}
)
MOST_CHANGES = 2


def is_misspelt(name: str) -> bool:
    """Whether a name can only be a slip of CUDA_VISIBLE_DEVICES."""
    if name == VISIBLE or name.upper() in READ_BY_SOMEBODY or not 14 <= len(name) <= 26:
        return False
    plain = re.sub(r"[-_]", "", name.upper())
    if plain in SWAPPED or (name != VISIBLE and plain == "CUDAVISIBLEDEVICES"):
        return True
    if not plain.startswith(("CUDA", "CUAD", "CDUA", "CUD")):
        return False
    return _distance(plain, "CUDAVISIBLEDEVICES") <= MOST_CHANGES


def _distance(one: str, other: str) -> int:
    """How many letters have to be changed, added, removed or swapped with their neighbour."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, b in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if last and i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


def find(case: Case) -> Iterator[Finding]:
    """Misspelt names in shell texts, in the inherited environment and in the programs that are launched."""
    inherited = set()
    for variable in assignments(case):
        if is_misspelt(variable.name) and not _used(variable):
            inherited.add(variable.name)
            yield _in_shell(variable)
    environment = case.facts.environment
    if not isinstance(environment, Unknown):
        for name in sorted(environment):
            if is_misspelt(name) and name not in inherited:
                yield _inherited(name, environment[name])
    seen = set()
    for launch in case.launches:
        program = launch.target.program
        if isinstance(program, Unknown) or program.source.name in seen:
            continue
        seen.add(program.source.name)
        yield from _in_program(program)


def _used(variable: Variable) -> bool:
    """Whether the same text reads the variable under this name, so that it is a helper and no slip."""
    if variable.location is None:
        return False
    text = variable.location.source.text
    return re.search(r"\$\{?" + re.escape(variable.name) + r"\b", text) is not None


def _in_shell(variable: Variable) -> Finding:
    if variable.location is None:
        return _inherited(variable.name, variable.text or "")
    at = variable.location
    fix = Fix(f"rename it to {VISIBLE}")
    if at.source.slice(at.span).startswith(variable.name):
        name = Span(at.span.start, at.span.start + len(variable.name))
        fix = Fix(f"rename it to {VISIBLE}", (Edit(at.source, name, VISIBLE),), safe=True)
    return report(
        RULE,
        f"Nothing reads {variable.name}; the name is {VISIBLE}. As written every GPU stays visible.",
        at,
        fix=fix,
    )


def _inherited(name: str, value: str) -> Finding:
    return report(
        RULE,
        f"The environment holds {name}={value}, which nothing reads; the name is {VISIBLE}. Every GPU stays visible.",
        subject=name,
        fix=Fix(f"set {VISIBLE} instead", commands=(f"unset {name}", f"export {VISIBLE}={value}")),
    )


def _in_program(program: Program) -> Iterator[Finding]:
    for seen in program.all("sets-variable", "defaults-variable"):
        name = seen.detail.partition("=")[0]
        if is_misspelt(name):
            yield _line(program, seen, name)


def _line(program: Program, seen: Seen, name: str) -> Finding:
    return report(
        RULE,
        f"The program sets {name}, which nothing reads; the name is {VISIBLE}. As written every GPU stays visible.",
        program.locate(seen),
        fix=Fix(f"rename it to {VISIBLE}"),
    )
