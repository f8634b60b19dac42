"""Physical numbers where numbers inside the visible list are meant, or the reverse."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.devices import (
    VISIBLE,
    assignments,
    at_least,
    device_arguments,
    elsewhere,
    indices,
    listed,
    program_of,
    reaching,
    set_by_program,
)
from mgpu_doctor.authoring import (
    Argument,
    Case,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Location,
    Reference,
    Rule,
    Script,
    Severity,
    Signature,
    Span,
    Variable,
    report,
)

_TAKES_NUMBER = (
    "import argparse\nimport torch\n\nparser = argparse.ArgumentParser()\nparser.add_argument('--gpu', type=int)\n"
    "args = parser.parse_args()\ntorch.cuda.set_device(args.gpu)\n"
)
_SETS_LIST = (
    "import argparse\nimport os\n\nparser = argparse.ArgumentParser()\nparser.add_argument('--gpu')\n"
    "args = parser.parse_args()\nos.environ['CUDA_VISIBLE_DEVICES'] = args.gpu\nimport torch\n\n"
    "net = torch.nn.Linear(8, 8).cuda()\n"
)
_PINNED = "import torch\n\nmodel = torch.nn.Linear(8, 8).to('cuda:4')\n"

_SETS_OWN = """import os

os.environ["CUDA_VISIBLE_DEVICES"] = "4,3"
import torch

net = torch.nn.Linear(4, 4).to("{}")
"""

RULE = Rule(
    code="MGD202",
    slug="physical-index-in-visible-space",
    title="A physical GPU number is used inside the visible list",
    severity=Severity.ERROR,
    summary="With CUDA_VISIBLE_DEVICES=4,5 the process knows only cuda:0 and cuda:1; the physical numbers are gone.",
    why=(
        "CUDA renumbers: the first entry of CUDA_VISIBLE_DEVICES is `cuda:0`, the second `cuda:1`. A program that is "
        "then asked for `cuda:4` fails with `invalid device ordinal`. Slurm with device cgroups and containers "
        "renumber in the same way, so that physical numbers written into a job script miss the job's own GPUs. "
        "deepspeed before 0.15.2 made the same mistake by itself."
    ),
    bad=(
        Example("pinned in the program", "CUDA_VISIBLE_DEVICES=4,5 python run.py", files={"run.py": _PINNED}),
        Example("a list and a number in the program", "python run.py", files={"run.py": _SETS_OWN.format("cuda:3")}),
        Example("named behind the script", "CUDA_VISIBLE_DEVICES=4,5 python run.py --device cuda:5"),
        Example("Lightning's devices", "CUDA_VISIBLE_DEVICES=2,3 python fit.py fit --trainer.devices=2,3", facts=None),
        Example(
            "a number that the program hands to torch",
            "CUDA_VISIBLE_DEVICES=1 python run.py --gpu 1",
            files={"run.py": _TAKES_NUMBER},
        ),
        Example(
            "Slurm's machine-wide numbers",
            "export CUDA_VISIBLE_DEVICES=$SLURM_JOB_GPUS\ntorchrun --nproc_per_node 4 train.py",
            facts=None,
        ),
        Example(
            "an older deepspeed",
            "CUDA_VISIBLE_DEVICES=2,3 deepspeed train.py",
            facts={"packages": {"deepspeed": "0.12.6", "torch": "2.1.2"}},
        ),
    ),
    good=(
        Example(
            "a program that sets the list from its argument",
            "CUDA_VISIBLE_DEVICES=4,5 python run.py --gpu 4",
            files={"run.py": _SETS_LIST},
        ),
        Example("the program's own list", "python run.py", files={"run.py": _SETS_OWN.format("cuda:1")}),
        Example("numbers inside the list", "CUDA_VISIBLE_DEVICES=4,5 python run.py --device cuda:1"),
        Example("no list", "python run.py --device cuda:5"),
        Example("a script that sets the list itself", "CUDA_VISIBLE_DEVICES=4,5 python run.py --gpu 4"),
        Example(
            "a newer deepspeed",
            "CUDA_VISIBLE_DEVICES=2,3 deepspeed train.py",
        ),
        Example(
            "torch that does not keep the count",
            "CUDA_VISIBLE_DEVICES=2,3 deepspeed train.py",
            facts={"packages": {"deepspeed": "0.14.4", "torch": "2.6.0"}},
        ),
        Example("the whole list from 0", "CUDA_VISIBLE_DEVICES=0,1,2,3 python run.py --device cuda:3"),
    ),
    sources=(
        Reference(
            "CUDA programming guide 13.0, CUDA environment variables, CUDA_VISIBLE_DEVICES",
            "visible devices are enumerated in the order of the list, from 0",
        ),
        Reference(
            "deepspeed 0.12.6, launcher/runner.py main(), parse_inclusion_exclusion() and parse_resource_filter()",
            "the variable becomes --include localhost:2,3, the slots are range(device_count()): "
            "\"No slot '2' specified on host 'localhost'\"; from 0.15.2 on the slots are those of the filter",
        ),
        Reference(
            "torch 2.3.0 (before pull request 122815, in 2.4.0), cuda/__init__.py device_count()",
            "the first answer is kept, also when CUDA_VISIBLE_DEVICES changes before CUDA is initialised",
        ),
        Reference(
            "Slurm, doc/html/gres.shtml at commit 01cec7faa194, GPU Management",
            "a job that gets /dev/nvidia1 inside a device cgroup sees CUDA_VISIBLE_DEVICES=0",
        ),
        Reference(
            "Slurm 23.02, salloc(1) and sbatch(1), SLURM_JOB_GPUS",
            "global GPU numbers, not relative to any device cgroup",
        ),
    ),
    fix="count inside the list: the first visible GPU is 0",
    signatures=(
        Signature(
            r"No slot '\d+' specified on host '\S+'",
            "deepspeed 0.16.9 and 0.19.8, launcher/runner.py parse_resource_filter()",
            "ValueError: No slot '3' specified on host 'localhost'",
        ),
    ),
)

_DEVICES_OF_LIGHTNING = ("trainer.devices", "trainer.gpus")
_GLOBAL_NUMBERS = frozenset({"SLURM_JOB_GPUS", "SLURM_STEP_GPUS"})
_TORCH_KEEPS_COUNT = ("1.13", "2.4")
_DEEPSPEED_CONTIGUOUS = ("0.5.7", "0.15.2")


def find(case: Case) -> Iterator[Finding]:
    """Numbers that miss the visible list: in programs, behind scripts, in deepspeed's slots, in Slurm jobs."""
    for launch in case.launches:
        variable = reaching(case, launch, VISIBLE)
        wanted = indices(variable.text or "") if variable is not None else None
        if variable is None or wanted is None or elsewhere(launch.command):
            continue
        yield from _in_program(launch, wanted)
        yield from _behind_script(launch, wanted)
        yield from _old_deepspeed(case, launch, variable, wanted)
    for launch in case.launches:
        program = program_of(launch)
        own = set_by_program(program, VISIBLE) if program is not None else None
        wanted = indices(own[1]) if own is not None and own[1] is not None else None
        if wanted is not None:
            yield from _numbers(launch, wanted)
    for script in case.scripts:
        yield from _in_job(script)
    for assigned in assignments(case):
        yield from _from_slurm(assigned)


def _in_program(launch: Launch, wanted: tuple[int, ...]) -> Iterator[Finding]:
    program = program_of(launch)
    if program is not None and set_by_program(program, VISIBLE) is None:
        yield from _numbers(launch, wanted)


def _numbers(launch: Launch, wanted: tuple[int, ...]) -> Iterator[Finding]:
    """The first device of the program that the list has, but not under that number."""
    program = program_of(launch)
    if program is None:
        return
    for seen in program.all("cuda-device"):
        number = int(seen.detail.removeprefix("cuda:"))
        if number >= len(wanted) and number in wanted:
            yield report(
                RULE,
                f"{seen.detail} is a physical number: with CUDA_VISIBLE_DEVICES={_joined(wanted)} the program sees "
                f"{_known(wanted)}, and physical GPU {number} is cuda:{wanted.index(number)}.",
                program.locate(seen),
                fix=Fix(f"write cuda:{wanted.index(number)}"),
            )
            return


def _behind_script(launch: Launch, wanted: tuple[int, ...]) -> Iterator[Finding]:
    for argument, numbers in (*device_arguments(launch), *_of_lightning(launch)):
        if all(number < len(wanted) for number in numbers) or not set(numbers) <= set(wanted):
            continue
        inside = tuple(wanted.index(number) for number in numbers)
        yield report(
            RULE,
            f"{argument.flag} {argument.value} gives physical numbers, but with "
            f"CUDA_VISIBLE_DEVICES={_joined(wanted)} the program sees {_known(wanted)}: `invalid device ordinal`.",
            launch.command.locate(argument.span),
            fix=Fix(f"count inside the list: {(argument.value or '').replace(_joined(numbers), _joined(inside))}"),
        )


def _of_lightning(launch: Launch) -> Iterator[tuple[Argument, tuple[int, ...]]]:
    """Lists in the arguments of Lightning's command line, which count inside the visible list."""
    argument = launch.target.argument(*_DEVICES_OF_LIGHTNING)
    if argument is not None and argument.value is not None and re.search(r"[,\[]", argument.value):
        numbers = indices(argument.value.strip("[]"))
        if numbers is not None:
            yield argument, numbers


def _old_deepspeed(case: Case, launch: Launch, variable: Variable, wanted: tuple[int, ...]) -> Iterator[Finding]:
    layer = launch.layer("deepspeed")
    if layer is None or layer.release is None or not layer.release.certain or layer.opaque is not None:
        return
    if any(layer.option(dest) for dest in ("num_gpus", "num_nodes", "include", "exclude", "hostfile")):
        return
    first, fixed = _DEEPSPEED_CONTIGUOUS
    torch = case.knowledge.release("torch")
    keeps, forgets = _TORCH_KEEPS_COUNT
    version = layer.release.version
    if not at_least(version, first) or at_least(version, fixed):
        return
    if not torch.certain or not at_least(torch.version, keeps) or at_least(torch.version, forgets):
        return
    missing = [number for number in wanted if number >= len(wanted)]
    if not missing:
        return
    yield report(
        RULE,
        f"deepspeed {version} turns CUDA_VISIBLE_DEVICES={variable.text} into slots {listed(wanted)} but may count "
        f"only {len(wanted)} GPU(s), so that slot {missing[0]} is refused: \"No slot '{missing[0]}' specified on host "
        "'localhost'\".",
        variable.location,
        subject=None if variable.location is not None else VISIBLE,
        severity=Severity.WARNING,
        evidence=(f"torch {torch.version} keeps the count of devices that it found before the variable was deleted",),
        fix=Fix(
            f"write --include localhost:{_joined(wanted)} and leave the variable out, or update deepspeed to {fixed}"
        ),
    )


def _in_job(script: Script) -> Iterator[Finding]:
    """Physical numbers in a Slurm job that asks for fewer GPUs."""
    granted = _granted(script)
    if granted is None:
        return
    count, text, span = granted
    for variable in script.assignments:
        if variable.name != VISIBLE or variable.location is None or variable.location.source is not script.source:
            continue
        wanted = indices(variable.text or "")
        if wanted is None or all(number < count for number in wanted) or variable.location.span.start < span.start:
            continue
        yield report(
            RULE,
            f"The job asks Slurm for {count} GPU(s) and then names GPU {listed(wanted)}: where Slurm fences devices "
            f"the job's own GPUs are numbered from 0 to {count - 1}, elsewhere it takes GPUs that it was not given.",
            variable.location,
            severity=Severity.WARNING,
            related=(Evidence(text.strip(), script_location(script, span)),),
            fix=Fix("leave the variable to Slurm: it sets CUDA_VISIBLE_DEVICES to the GPUs of the job"),
        )
        return


def _from_slurm(variable: Variable) -> Iterator[Finding]:
    """A list that is made from Slurm's machine-wide numbers."""
    if variable.name != VISIBLE or variable.value is None:
        return
    if not any(piece.variable in _GLOBAL_NUMBERS for piece in variable.value.pieces):
        return
    yield report(
        RULE,
        f"{VISIBLE}={variable.value.written}: these are the machine's GPU numbers, but where Slurm fences devices the "
        "job's GPUs are numbered from 0. Slurm has set the right list already.",
        variable.location,
        severity=Severity.WARNING,
        fix=Fix(f"leave the line out: Slurm sets {VISIBLE} for the job"),
    )


def script_location(script: Script, span: Span) -> Location:
    """A place in the script's source."""
    return Location(script.source, span)


def _granted(script: Script) -> tuple[int, str, Span] | None:
    """How many GPUs a node of the job gets, with the directive that says so."""
    for text, span in script.directives:
        match = re.search(r"--(?:gres=gpu(?::[A-Za-z][\w.-]*)?:|gpus-per-node=(?:[A-Za-z][\w.-]*:)?)(\d+)\b", text)
        if match and int(match.group(1)):
            return int(match.group(1)), text, span
    return None


def _known(wanted: tuple[int, ...]) -> str:
    return "cuda:0 alone" if len(wanted) == 1 else f"cuda:0 to cuda:{len(wanted) - 1}"


def _joined(numbers: tuple[int, ...]) -> str:
    return ",".join(str(number) for number in numbers)
