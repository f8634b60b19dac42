"""An environment variable with the name of a known family that nothing reads, most often a slip of a real one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.devices.visible_devices_misspelt import is_misspelt
from mgpu_checks.stack import is_machine_alone
from mgpu_doctor.authoring import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Launch,
    Reference,
    Rule,
    Severity,
    Span,
    Unknown,
    Variable,
    pattern,
    replace,
    report,
)

RULE = Rule(
    code="MGD509",
    slug="variable-unread",
    title="Nothing reads this variable",
    severity=Severity.WARNING,
    summary="An HF_, NCCL_, ACCELERATE_, TORCH_, CUDA_ or DS_ variable that nothing reads: a slip, or a name of old.",
    why=(
        "Nobody complains about an environment variable that nothing reads. With a letter too many the switch "
        "does not act: the log level stays, the interface is chosen freely, the cache goes to the home directory."
    ),
    bad=(
        Example("a plural too many", "NCCL_SOCKET_IFNAMES=eth0 torchrun --nproc_per_node 4 train.py"),
        Example("a letter lost, exported", "export NCCL_P2P_DISBLE=1\ntorchrun --nproc_per_node 4 train.py"),
        Example("a past tense", "NCCL_IB_DISABLED=1 deepspeed --num_gpus 4 train.py", facts=None),
        Example("letters swapped", "PYTORCH_CUDA_ALOLC_CONF=expandable_segments:True python train.py"),
        Example("inherited", "python train.py", facts={"env": {"HF_ENDPIONT": "https://hub.example.org"}}),
        Example("the machine alone", facts={"env": {"HF_ENDPIONT": "https://hub.example.org"}}),
        Example(
            "read by older releases only",
            "TRANSFORMERS_CACHE=/data/hub python train.py",
            facts={"packages": {"transformers": "5.6.0", "torch": "2.8.0", "huggingface-hub": "1.6.0"}},
        ),
        Example(
            "believed in, read by nothing",
            "NCCL_TIMEOUT=3600 torchrun --nproc_per_node 4 train.py",
            files={"train.py": "import torch.distributed as dist\n\ndist.init_process_group('nccl')\n"},
        ),
    ),
    good=(
        Example("the right name", "NCCL_SOCKET_IFNAME=eth0 NCCL_P2P_DISABLE=1 torchrun --nproc_per_node 4 train.py"),
        Example("torch's own", "TORCH_NCCL_BLOCKING_WAIT=1 TORCH_LOGS=dynamo torchrun train.py"),
        Example("torchrun's", "PET_NNODES=2 PET_NODE_RANK=0 torchrun train.py"),
        Example("somebody's own name", "HF_TEAM_BUCKET=models NCCL_PRESET=fast torchrun train.py"),
        Example(
            "the script reads it",
            "NCCL_SOCKET_IFNAMES=eth0 torchrun train.py",
            files={"train.py": "import os\nnames = os.environ['NCCL_SOCKET_IFNAMES'].split(',')\n"},
        ),
        Example("a helper of the text", "HF_HOMES=/data/hub\nexport HF_HOMES\nHF_HOME=$HF_HOMES torchrun train.py"),
        Example("still read by this release", "TRANSFORMERS_CACHE=/data/hub python train.py"),
        Example("a program that may read it by itself", "NCCL_TIMEOUT=3600 torchrun --nproc_per_node 4 train.py"),
        Example("GPUs have a rule of their own", "CUDA_VISIBLE_DEVICE=1 python train.py"),
    ),
    sources=(
        Reference(
            "NCCL 2.10.3 … 2.30.7, NCCL_PARAM and getenv; NCCL's and PyTorch's documentation of their variables",
            "the names that are read",
        ),
        Reference(
            "accelerate 0.20.3 … 1.15.0, deepspeed 0.9.5 … 0.19.8, torch 1.13.1 … 2.15.0, "
            "transformers 4.40.2 … 5.23.0, huggingface_hub 0.20.3 … 2.4.0, datasets 2.16.1 … 5.2.0",
            "the names that os.environ, os.getenv and their helpers are asked for",
        ),
        Reference("transformers 4.57.6 and 5.0.0, utils/hub.py", "TRANSFORMERS_CACHE is read, and is no more"),
    ),
    fix="use the name that is read",
    fixable=False,
)

FAMILIES = (
    "ACCELERATE_", "CUDA_", "CUDNN_", "DEEPSPEED_", "DS_", "HF_", "HUGGINGFACE_", "HUGGING_FACE_", "NCCL_", "PYTORCH_",
    "TORCH_", "TORCHELASTIC_", "TRANSFORMERS_",
)  # fmt: skip

OTHER_RULES = pattern(r".*(?:OFF?LINE|FLASH|ATTN|VISIBLE).*")
"""Names with a rule of their own."""

REPLACED = {
    "TRANSFORMERS_CACHE": ("transformers", "HF_HUB_CACHE"),
    "PYTORCH_TRANSFORMERS_CACHE": ("transformers", "HF_HUB_CACHE"),
    "PYTORCH_PRETRAINED_BERT_CACHE": ("transformers", "HF_HUB_CACHE"),
}
"""Names that a package has given up, with the one to use."""

MYTHS = {
    "NCCL_TIMEOUT": "the limit is init_process_group's timeout (ddp_timeout in transformers, timeout in accelerate)",
    "TORCH_NCCL_TIMEOUT": "the limit is init_process_group's timeout (ddp_timeout in transformers)",
}
"""Names that many believe in, with what to do instead."""

SHORTEST = 8
MOST_CHANGES = 2


def find(case: Case) -> Iterator[Finding]:
    """Unread names in what the commands set for a launch and in what it inherits."""
    seen: set[tuple[str, Span] | str] = set()
    for launch in case.launches:
        for variable in launch.command.environment:
            at = variable.location
            key: tuple[str, Span] | str = variable.name if at is None else (at.source.name, at.span)
            if key in seen or variable.value is None or _is_used_here(variable):
                continue
            found = _judge(case, launch, variable.name)
            if found is not None:
                seen.add(key)
                yield _finding(variable.name, variable, *found)
        yield from _inherited(case, launch, seen)
    if is_machine_alone(case):
        yield from _inherited(case, None, seen)


def _inherited(case: Case, launch: Launch | None, seen: set[tuple[str, Span] | str]) -> Iterator[Finding]:
    environment = case.facts.environment
    if isinstance(environment, Unknown) or (launch is not None and launch.command.unset_all):
        return
    given = () if launch is None else launch.command.environment
    for name in sorted(environment):
        if name in seen or any(variable.name == name for variable in given):
            continue
        found = _judge(case, launch, name)
        if found is not None:
            seen.add(name)
            yield _finding(name, None, *found)


def _judge(case: Case, launch: Launch | None, name: str) -> tuple[str, str | None] | None:
    """What to say of a name, and the name to use instead; None when it is read or nothing certain can be said."""
    if not name.startswith(FAMILIES) or OTHER_RULES.fullmatch(name) or is_misspelt(name):
        return None
    program = launch.target.program if launch is not None else Unknown("there is no command")
    if not isinstance(program, Unknown) and name in program.source.text:
        return None
    if name in REPLACED:
        package, instead = REPLACED[name]
        release = case.knowledge.release(package)
        if release.certain and case.knowledge.variable_readers(name) == ():
            return f"{package} {release.version} no longer reads {name}; the name is {instead}", instead
        return None
    known = case.knowledge.known_variables()
    if name in known or case.knowledge.variable_readers(name) != ():
        return None
    if name in MYTHS:
        # Many a program reads this name by itself: only where the program is known can it be told.
        if isinstance(program, Unknown) and (launch is None or launch.target.framework is None):
            return None
        return f"Nothing reads {name}: {MYTHS[name]}", None
    near = nearest(name, known)
    if near is None or not case.knowledge.variable_readers(near):
        return None
    return f"Nothing reads {name}; {near} is the name that is read", near


def nearest(name: str, known: frozenset[str]) -> str | None:
    """The one known name of which this can only be a slip, None when there is none or more than one.

    Up to two letters changed, added, lost or swapped with their neighbour, in names of at least eight; two only
    in long ones.
    """
    if len(name) < SHORTEST:
        return None
    most = MOST_CHANGES if len(name) >= 2 * SHORTEST else 1
    best: dict[int, list[str]] = {}
    for other in known:
        if abs(len(other) - len(name)) > most or other[:2] != name[:2] or _differs_by_number(name, other):
            continue
        changes = _distance(name, other, most)
        if changes <= most:
            best.setdefault(changes, []).append(other)
    if not best:
        return None
    closest = best[min(best)]
    return closest[0] if len(closest) == 1 else None


def _differs_by_number(one: str, other: str) -> bool:
    """Whether the two differ in digits alone: such names are a series, not a slip."""
    return re.sub(r"\d+", "", one) == re.sub(r"\d+", "", other)


def _distance(one: str, other: str, most: int) -> int:
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
        if min(row) > most + 1:
            return most + 1
    return row[-1]


def _is_used_here(variable: Variable) -> bool:
    """Whether the same text expands the variable, so that it is a helper and no slip."""
    if variable.location is None:
        return False
    text = variable.location.source.text
    return re.search(r"\$\{?" + re.escape(variable.name) + r"\b", text) is not None


def _finding(name: str, variable: Variable | None, message: str, instead: str | None) -> Finding:
    at = variable.location if variable is not None else None
    title = f"rename it to {instead}" if instead else f"remove {name}"
    if at is None:
        value = f"unset {name}"
        return report(RULE, f"{message}.", subject=f"{name} in the environment", fix=Fix(title, commands=(value,)))
    edits: tuple[Edit, ...] = ()
    if instead and at.source.slice(at.span).startswith(f"{name}="):
        edits = (replace(at.source, Span(at.span.start, at.span.start + len(name)), instead),)
    return report(RULE, f"{message}.", at, fix=Fix(title, edits))
