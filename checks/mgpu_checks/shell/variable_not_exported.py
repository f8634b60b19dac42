"""A variable is set on a line of its own and not exported: the launcher never sees it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.shell import BASH, RENDEZVOUS, is_knob, once, refers_to, scripts_with_launches
from mgpu_doctor.authoring import (
    Case,
    Command,
    Example,
    Finding,
    Fix,
    Launch,
    Location,
    Reference,
    Rule,
    Script,
    Severity,
    Span,
    Unknown,
    Variable,
    insert,
    replace,
    report,
)

RULE = Rule(
    code="MGD801",
    slug="variable-not-exported",
    title="Variable is not exported",
    severity=Severity.ERROR,
    summary="A variable is set on a line of its own and not exported: the launcher never sees it.",
    why=(
        "`NAME=value` alone sets a variable of the shell. Only `export NAME=value`, or `NAME=value "
        "command` on one line, "
        "puts it into the environment that a program receives. The launch runs as if the line were not there: "
        "with all GPUs instead of the chosen ones, with the default port, with the hub on line."
    ),
    bad=(
        Example("on a line of its own", "CUDA_VISIBLE_DEVICES=4,5\ntorchrun --nproc_per_node 2 train.py"),
        Example("in front of &&", "HF_HUB_OFFLINE=1 && python predict.py --model_path /models/m"),
        Example(
            "several on one line",
            lint=("run.sh",),
            files={"run.sh": "NCCL_DEBUG=INFO NCCL_P2P_DISABLE=1\naccelerate launch train.py\n"},
        ),
        Example(
            "the launcher's own variables", "NNODES=2; NODE_RANK=0; MASTER_ADDR=10.0.0.1\nllamafactory-cli train a.yaml"
        ),
        Example(
            "continued lines above a launch that is not continued",
            "N=2 \\\nCUDA_VISIBLE_DEVICES=0,1 \\\nNCCL_DEBUG=INFO\ntorchrun --nproc_per_node $N train.py",
        ),
        Example("set of another shell", "set CUDA_VISIBLE_DEVICES=0,1\npython train.py"),
    ),
    good=(
        Example("exported", "export CUDA_VISIBLE_DEVICES=4,5\ntorchrun --nproc_per_node 2 train.py"),
        Example("exported later", "CUDA_VISIBLE_DEVICES=4,5\nexport CUDA_VISIBLE_DEVICES\npython train.py"),
        Example("before the command", "CUDA_VISIBLE_DEVICES=4,5 python train.py"),
        Example("set -a", "set -a\nCUDA_VISIBLE_DEVICES=4,5\npython train.py"),
        Example(
            "used as an argument", "MASTER_PORT=29511\ntorchrun --nproc_per_node 2 --master_port $MASTER_PORT train.py"
        ),
        Example("passed on", "CUDA_VISIBLE_DEVICES=4,5\nCUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES python train.py"),
        Example("the launcher does not read it", "NODE_RANK=0\ntorchrun --nproc_per_node 2 train.py"),
        Example("no knob", "MODEL_DIR=/models/m\npython train.py"),
        Example("the script's own name, like a knob's", "HF_DATA_DIR=/data\nDS_CONFIG=z.json\npython train.py"),
        Example("no launch", lint=("env.sh",), files={"env.sh": "CUDA_VISIBLE_DEVICES=0\necho done\n"}),
        Example(
            "already in the environment",
            "CUDA_VISIBLE_DEVICES=4,5\npython train.py",
            facts={"env": {"CUDA_VISIBLE_DEVICES": "0"}},
        ),
    ),
    sources=(
        Reference(BASH, "`A=1` then `printenv A` prints nothing; after `export A=1` it prints 1", ran=True),
        Reference(BASH, "an assignment to a variable that was inherited changes what children receive", ran=True),
    ),
    fix="write export in front of the assignment, or the assignment in front of the command",
    fixable=True,
)


def find(case: Case) -> Iterator[Finding]:
    """Assignments in force at a launch that do not reach it."""
    reading = {id(launch.command): launch for launch in case.launches}
    for script, launches in scripts_with_launches(case):
        groups: dict[int, list[tuple[Variable, Command]]] = {}
        for variable, launch in _hidden(case, script, launches, reading):
            assert variable.location is not None
            groups.setdefault(_statement(script, variable.location.span), []).append((variable, launch))
        for start, group in groups.items():
            yield _finding(script, start, group)
        yield from _set_of_other_shells(script, launches)


def _hidden(
    case: Case, script: Script, launches: tuple[Command, ...], reading: dict[int, Launch]
) -> Iterator[tuple[Variable, Command]]:
    seen = set()
    for launch in launches:
        if any(wrapper.name in {"ssh", "docker run", "docker exec", "kubectl exec"} for wrapper in launch.wrappers):
            continue
        for variable in once(iter(launch.shell_only)):
            location = variable.location
            if variable.scope != "assignment" or location is None or location in seen:
                continue
            if (
                not _is_read(case, variable.name, reading[id(launch)])
                or launch.variable(variable.name) is not None
                or location.source != script.source
            ):
                continue
            if any(refers_to(command, variable.name) for command in script.commands) or _used_elsewhere(
                script, variable
            ):
                continue
            seen.add(location)
            yield variable, launch


def _is_read(case: Case, name: str, launch: Launch) -> bool:
    """Whether something in the launch reads a variable of this name.

    The rendezvous variables are read by torch in a process that no launcher started, and by
    the launchers that start torchrun themselves; torchrun, accelerate and deepspeed take options.
    """
    if name not in RENDEZVOUS:
        return is_knob(name) and _has_readers(case, name)
    if launch.layer("llamafactory-cli", "swift") is not None or any(layer.implied for layer in launch.layers):
        return True
    return not launch.distributed_layers and name in {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}


def _has_readers(case: Case, name: str) -> bool:
    """Whether a package is known to read it; a name of a family that is not tabled counts as read."""
    readers = case.knowledge.variable_readers(name)
    if isinstance(readers, Unknown):
        return name not in case.knowledge.known_variables()
    return readers != ()


def _used_elsewhere(script: Script, variable: Variable) -> bool:
    """Whether another assignment, or any text behind, makes something of the value."""
    assert variable.location is not None
    pattern = re.compile(rf"\$\{{?[#!]?{variable.name}\b")
    return pattern.search(script.source.text, variable.location.span.end) is not None


def _statement(script: Script, span: Span) -> int:
    """Where the assignments of one line begin."""
    text = script.source.text
    start = span.start
    others = sorted(
        (v.location.span for v in script.assignments if v.location is not None and v.scope == "assignment"),
        reverse=True,
    )
    for other in others:
        if other.end < start and not text[other.end : start].replace("\\\n", " ").strip(" \t"):
            start = other.start
    return start


def _finding(script: Script, start: int, group: list[tuple[Variable, Command]]) -> Finding:
    launch = group[0][1]
    places = [variable.location.span for variable, _ in group if variable.location is not None]
    names = ", ".join(dict.fromkeys(item.name for item, _ in group))
    source = script.source
    program = launch.words[0].shown
    plural = len(group) > 1
    return report(
        RULE,
        f"{names} {'are' if plural else 'is'} set in this shell only: "
        f"{program} starts without {'them' if plural else 'it'}.",
        Location(source, Span(min(place.start for place in places), max(place.end for place in places))),
        evidence=(f"no export of {names} above the launch",),
        fix=Fix(f"export {names}", (insert(source, start, "export "),), safe=True),
    )


def _set_of_other_shells(script: Script, launches: tuple[Command, ...]) -> Iterator[Finding]:
    """``set NAME=value`` (cmd.exe, csh) sets ``$1`` in bash."""
    for command in script.commands:
        if command.name != "set" or len(command.words) < 2 or command.span.end > launches[-1].span.start:
            continue
        match = re.match(r"([A-Z_]+)=", command.words[1].known_prefix)
        if match is None or not is_knob(match.group(1)):
            continue
        first = command.words[0].span
        yield report(
            RULE,
            f"`set {match.group(1)}=…` sets $1 in a POSIX shell, not {match.group(1)}: "
            f"{launches[-1].words[0].shown} starts without it.",
            command.locate(command.span),
            fix=Fix("write export", (replace(command.source, first, "export"),), safe=True),
        )
