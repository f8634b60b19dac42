"""A container numbers its GPUs from 0, but the numbers of the machine are used inside."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.devices import VISIBLE, gpu_ids, indices
from mgpu_doctor.authoring import (
    Case,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Location,
    Reference,
    Rule,
    Severity,
    Span,
    Wrapper,
    report,
)

RULE = Rule(
    code="MGD214",
    slug="container-renumbers-devices",
    title="The container numbers its GPUs from 0",
    severity=Severity.WARNING,
    summary="docker --gpus device=… or NVIDIA_VISIBLE_DEVICES picks GPUs, which are 0, 1, … inside the container.",
    why=(
        "The container runtime passes only the chosen GPUs in, and inside the container they are numbered from 0. "
        "CUDA_VISIBLE_DEVICES, `--gpu_ids` or `--include` with the machine's numbers then name GPUs that do not "
        "exist there: CUDA drops them without a word."
    ),
    bad=(
        Example(
            "the variable inside",
            "docker run --gpus '\"device=2,3\"' -e CUDA_VISIBLE_DEVICES=2,3 i torchrun --nproc_per_node 2 train.py",
        ),
        Example(
            "the runtime's variable",
            "docker run --runtime nvidia -e NVIDIA_VISIBLE_DEVICES=4,5 -e CUDA_VISIBLE_DEVICES=4,5 img python run.py",
            facts=None,
        ),
        Example(
            "a shell inside",
            "docker run --gpus '\"device=2,3\"' img bash -c 'CUDA_VISIBLE_DEVICES=2,3 python run.py'",
        ),
    ),
    good=(
        Example(
            "numbers from 0",
            "docker run --gpus '\"device=2,3\"' -e CUDA_VISIBLE_DEVICES=0,1 img torchrun --nproc_per_node 2 train.py",
        ),
        Example("every GPU", "docker run --gpus all -e CUDA_VISIBLE_DEVICES=2,3 img python run.py"),
        Example("no list inside", "docker run --gpus '\"device=2,3\"' img python run.py"),
    ),
    sources=(
        Reference(
            "NVIDIA container toolkit 1.17, specialized configurations with Docker, GPU enumeration",
            "device= and NVIDIA_VISIBLE_DEVICES choose the GPUs that exist in the container",
        ),
        Reference(
            "CUDA programming guide 13.0, CUDA environment variables, CUDA_VISIBLE_DEVICES",
            "an index that does not exist ends the list",
        ),
    ),
    fix="count from 0 inside the container, or leave the variable out there",
)

_ENGINES = frozenset({"docker", "podman", "nvidia-docker", "nerdctl"})


def find(case: Case) -> Iterator[Finding]:
    """Launches in a container whose list of devices uses the machine's numbers."""
    for launch in case.launches:
        wrapper = next((one for one in launch.command.wrappers if one.name.split()[0] in _ENGINES), None)
        outer = _outer(wrapper) if wrapper is not None else None
        if outer is None:
            continue
        wanted, place = outer
        inner = _inner(launch)
        if inner is None:
            continue
        name, text, location = inner
        used = indices(text)
        if used is None or all(index < len(wanted) for index in used):
            continue
        inside = ",".join(str(number) for number in range(len(wanted)))
        yield report(
            RULE,
            f"The container gets {len(wanted)} GPU(s) ({','.join(wanted)}), numbered {inside} inside, but {name} names "
            f"{text} there: CUDA drops what does not exist.",
            location or launch.command.locate(place),
            related=(Evidence("the GPUs are chosen here", launch.command.locate(place)),),
            fix=Fix(f"write {inside} inside the container, or leave {name} out"),
        )


def _outer(wrapper: Wrapper) -> tuple[tuple[str, ...], Span] | None:
    """The GPUs that the container engine passes in, when it names them."""
    words = wrapper.words
    for at, word in enumerate(words):
        text = word.value
        if text is None:
            continue
        following = words[at + 1].value if at + 1 < len(words) else None
        given = text.partition("=")[2] if text.startswith("--gpus=") else following if text == "--gpus" else None
        if given is not None:
            devices = re.fullmatch(r"[\"']?device=([^\"']+)[\"']?", given)
            if devices:
                return tuple(devices.group(1).split(",")), word.span
        match = re.search(r"(?:^|=)NVIDIA_VISIBLE_DEVICES=([\"']?)([\w,:-]+)\1$", text)
        if match and indices(match.group(2)) is not None:
            return tuple(match.group(2).split(",")), word.span
    return None


def _inner(launch: Launch) -> tuple[str, str, Location | None] | None:
    """What names devices inside the container: variable, accelerate's option, deepspeed's filter."""
    chosen = gpu_ids(launch)
    if chosen is not None:
        return chosen.name, chosen.text, chosen.location
    deepspeed = launch.layer("deepspeed")
    include = deepspeed.option("include") if deepspeed is not None else None
    if include is not None and include.value is not None and include.value.startswith("localhost:"):
        return include.flag, include.value.partition(":")[2], launch.command.locate(include.span)
    variable = launch.command.variable(VISIBLE)
    if variable is not None and variable.text is not None and variable.location is not None:
        return VISIBLE, variable.text, variable.location
    return None
