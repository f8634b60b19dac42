"""A list of devices or nodes comes out of an array or a command with blanks where commas are needed."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.shell import BASH
from mgpu_doctor.authoring import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Launch,
    Location,
    Reference,
    Rule,
    Severity,
    Variable,
    pattern,
    replace,
    report,
)

RULE = Rule(
    code="MGD815",
    slug="list-joined-wrongly",
    title="The list is joined by blanks",
    severity=Severity.ERROR,
    summary="A list of devices or nodes comes out of an array or a command with blanks where commas are needed.",
    why=(
        "`${GPUS[@]}` and `${GPUS[*]}` put blanks between the elements, and `seq` puts newlines. "
        "CUDA reads the list up to the "
        "first character that is no digit or comma: one GPU is left, and the other ranks find no device."
    ),
    bad=(
        Example("a slice", "GPUS=(0 1 2 3)\nCUDA_VISIBLE_DEVICES=${GPUS[@]:0:2} torchrun --nproc_per_node 2 train.py"),
        Example("an array", 'GPUS=(4 5)\nexport CUDA_VISIBLE_DEVICES="${GPUS[*]}"\npython train.py'),
        Example(
            "names of nodes",
            'NODES=($(scontrol show hostnames))\nsrun --nodelist="${NODES[@]:0:2}" -N 2 torchrun train.py',
            facts=None,
        ),
        Example("seq", "export CUDA_VISIBLE_DEVICES=$(seq 0 3)\ntorchrun --nproc_per_node 4 train.py"),
    ),
    good=(
        Example(
            "joined by commas", 'GPUS=(0 1)\nexport CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${GPUS[*]}")\npython train.py'
        ),
        Example("one element", "GPUS=(0 1)\nCUDA_VISIBLE_DEVICES=${GPUS[0]} python train.py"),
        Example("an array of one", 'GPUS=(0,1)\nCUDA_VISIBLE_DEVICES="${GPUS[*]}" python train.py'),
        Example("seq with a comma", "export CUDA_VISIBLE_DEVICES=$(seq -s, 0 3)\npython train.py"),
        Example("seq and paste", "export CUDA_VISIBLE_DEVICES=$(seq 0 3 | paste -sd,)\npython train.py"),
        Example(
            "names of nodes with commas",
            'NODES=(a b)\nsrun --nodelist="$(IFS=,; echo "${NODES[*]}")" -N 2 python train.py',
            facts=None,
        ),
        Example("one node", 'NODES=(a b)\nsrun --nodelist="${NODES[@]:0:1}" python train.py', facts=None),
        Example("another variable", 'L=(a b)\nexport NAMES="${L[*]}"\npython train.py'),
    ),
    sources=(
        Reference(BASH, "`A=(0 1); B=${A[@]:0:2}` sets B to `0 1`; `$(seq 0 1)` gives `0` newline `1`", ran=True),
        Reference("driver 580.159.04 with one H200, cuDeviceGetCount", "`0 1`: device 0 alone", ran=True),
    ),
    fix='join with commas: $(IFS=,; echo "${GPUS[*]}")',
    fixable=True,
)

_LISTS = pattern(r"(?:CUDA|NVIDIA|HIP|ROCR|ASCEND_RT|ASCEND)_VISIBLE_DEVICES")
_ARRAY = pattern(r"\"?\$\{(\w+)\[[@*]\]((?::[^{}:]+){0,2})\}\"?")
_NODELIST = pattern(r"(?P<flag>--(?:nodelist|exclude))=\"?\$\{(?P<name>\w+)\[@\](?P<slice>(?::[^{}:]+){0,2})\}\"?")
_SEQ = pattern(r"\$\(\s*seq((?:\s+[\w$+{}()-]+){1,3})\s*\)")


def find(case: Case) -> Iterator[Finding]:
    """Variables with a list of devices that reach a launch."""
    seen: set[Location] = set()
    for launch in case.launches:
        for variable in launch.command.environment:
            location = variable.location
            if location is None or location in seen or not _LISTS.fullmatch(variable.name):
                continue
            seen.add(location)
            finding = _finding(variable, location)
            if finding is not None:
                yield finding
        yield from _nodes(launch, seen)


def _nodes(launch: Launch, seen: set[Location]) -> Iterator[Finding]:
    """``srun --nodelist="${NODES[@]}"``: the first name is srun's, the others are taken for the command."""
    source = launch.command.source
    for wrapper in launch.command.wrappers:
        for word in wrapper.words if wrapper.name == "srun" else ():
            array = _NODELIST.fullmatch(source.slice(word.span))
            location = Location(source, word.span)
            if array is None or array["slice"].endswith(":1") or location in seen:
                continue
            seen.add(location)
            new = f'{array["flag"]}="$(IFS=,; echo "${{{array["name"]}[*]{array["slice"]}}}")"'
            yield report(
                RULE,
                f"{array['flag']} gets the first of {array['name']} alone: srun takes the next one for the command.",
                location,
                fix=Fix(f"write {new}", (replace(source, word.span, new),), safe=True),
            )


def _finding(variable: Variable, location: Location) -> Finding | None:
    value = variable.value
    if value is None:
        return None
    written = location.source.slice(value.span)
    edit: Edit | None = None
    if array := _ARRAY.fullmatch(written):
        text = variable.text
        if text is not None and not re.search(r"\d\s+\d", text):
            return None
        if text is None and not re.search(r"\[[@*]\]", written):
            return None
        new = f'$(IFS=,; echo "${{{array.group(1)}[*]{array.group(2)}}}")'
        edit = replace(location.source, value.span, new)
        shown = f"`{text}`" if text is not None else "its elements with blanks between"
    elif seq := _SEQ.fullmatch(written.strip('"')):
        new = f"$(seq -s,{seq.group(1)})"
        edit = replace(location.source, value.span, new)
        shown = "one number per line"
    else:
        return None
    return report(
        RULE,
        f"{variable.name} becomes {shown}, not a list with commas: CUDA reads the first number alone.",
        location,
        fix=Fix(f"write {new}", (edit,), safe=True),
    )
