"""A later layer sets the list of devices again, so that the one in front of the command does not count."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.devices import VISIBLE, Selection, elements, gpu_ids, program_of, ranks_here, reaching, set_by_program
from mgpu_doctor.authoring import (
    Case,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Reference,
    Rule,
    Severity,
    Variable,
    delete_words,
    report,
)

_CONFIG = (
    "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\ngpu_ids: '2,3'\nmachine_rank: 0\n"
    "num_machines: 1\nnum_processes: 2\nuse_cpu: false\n"
)
_SETS = 'import os\n\nos.environ["CUDA_VISIBLE_DEVICES"] = "0"\n\nimport torch\n\nprint(torch.ones(1).cuda())\n'

RULE = Rule(
    code="MGD206",
    slug="visible-devices-overridden",
    title="CUDA_VISIBLE_DEVICES is set again by a later layer",
    severity=Severity.WARNING,
    summary="The list in front of the command is replaced by the launcher's option, its configuration or the program.",
    why=(
        "The last layer wins. `accelerate launch` replaces CUDA_VISIBLE_DEVICES by `--gpu_ids` or by `gpu_ids` of its "
        "configuration file, without a word, and reads these numbers as physical ones; a program that assigns "
        "os.environ does the same for itself. The GPUs named in front of the command are then not the ones that work."
    ),
    bad=(
        Example(
            "the configuration file",
            "CUDA_VISIBLE_DEVICES=0,1 accelerate launch --config_file two.yaml train.py",
            files={"two.yaml": _CONFIG},
        ),
        Example("the option", "CUDA_VISIBLE_DEVICES=4,5,6,7 accelerate launch --multi_gpu --gpu_ids 0,1 train.py"),
        Example("the program", "CUDA_VISIBLE_DEVICES=3 python run.py", files={"run.py": _SETS}),
        Example("one list for every rank", "torchrun --nproc_per_node 2 run.py", files={"run.py": _SETS}),
    ),
    good=(
        Example(
            "both name the same GPUs",
            "CUDA_VISIBLE_DEVICES=2,3 accelerate launch --config_file two.yaml train.py",
            files={"two.yaml": _CONFIG},
        ),
        Example("the option alone", "accelerate launch --multi_gpu --gpu_ids 0,1 train.py"),
        Example(
            "every GPU of the list", "CUDA_VISIBLE_DEVICES=4,5 accelerate launch --multi_gpu --gpu_ids all train.py"
        ),
        Example("the program alone", "python run.py", files={"run.py": _SETS}),
        Example(
            "a default in the program",
            "CUDA_VISIBLE_DEVICES=3 python run.py",
            files={
                "run.py": _SETS.replace('["CUDA_VISIBLE_DEVICES"] = "0"', '.setdefault("CUDA_VISIBLE_DEVICES", "0")')
            },
        ),
    ),
    sources=(
        Reference(
            "accelerate 0.20.3, 1.7.0 and 1.15.0, utils/launch.py prepare_simple_launcher_cmd_env(), "
            "prepare_multi_gpu_env(), prepare_deepspeed_cmd_env()",
            "gpu_ids other than `all` become CUDA_VISIBLE_DEVICES of the workers",
        ),
        Reference(
            "accelerate 1.7.0 and 1.15.0, commands/launch.py _validate_launch_command()",
            "gpu_ids of the configuration file count when --gpu_ids is absent",
        ),
        Reference(
            "accelerate 1.15.0",
            "CUDA_VISIBLE_DEVICES=0,1 with gpu_ids 2,3 in the configuration: the workers receive 2,3, silently",
            ran=True,
        ),
    ),
    fix="name the GPUs in one place",
)


def find(case: Case) -> Iterator[Finding]:
    """Launches whose list of devices is replaced on the way to the workers."""
    for launch in case.launches:
        variable = reaching(case, launch, VISIBLE)
        chosen = gpu_ids(launch)
        if chosen is not None and variable is not None:
            yield from _by_accelerate(launch, variable, chosen)
        yield from _by_program(launch, variable)


def _by_accelerate(launch: Launch, variable: Variable, chosen: Selection) -> Iterator[Finding]:
    if variable.text is None or variable.text == "" or _names(variable.text) == _names(chosen.text):
        return
    narrowed = set(_names(chosen.text)) < set(_names(variable.text))
    fix = Fix("leave the variable out: gpu_ids are physical numbers")
    option = launch.layers[0].option("gpu_ids") if launch.layers else None
    if option is not None and launch.command.source.slice(option.span).startswith(option.flag):
        edit = delete_words(launch.command.source, option.span)
        fix = Fix(f"leave {option.flag} out: the workers then get {VISIBLE}={variable.text}", (edit,))
    yield report(
        RULE,
        f"{chosen.name} {chosen.text} replaces {VISIBLE}={variable.text}: the workers run on physical GPU "
        f"{chosen.text}.",
        chosen.location or launch.command.locate(launch.command.words[0].span),
        severity=Severity.ADVICE if narrowed else None,
        related=() if variable.location is None else (Evidence("the list that is replaced", variable.location),),
        fix=fix,
    )


def _by_program(launch: Launch, variable: Variable | None) -> Iterator[Finding]:
    program = program_of(launch)
    found = set_by_program(program, VISIBLE) if program is not None else None
    if program is None or found is None or found[1] is None:
        return
    seen, value = found
    if variable is not None and variable.text and _names(variable.text) != _names(value or ""):
        yield report(
            RULE,
            f"The program sets {VISIBLE}={value} itself, so that {VISIBLE}={variable.text} of the command does not "
            "count.",
            program.locate(seen),
            related=() if variable.location is None else (Evidence("the list that is replaced", variable.location),),
            fix=Fix("let the program take the variable from the command: os.environ.setdefault, or drop the line"),
        )
        return
    ranks = ranks_here(launch)
    if ranks is not None and value and len(elements(value)) < ranks:
        yield report(
            RULE,
            f"The program gives each of its {ranks} ranks {VISIBLE}={value}: they share "
            f"{len(elements(value))} GPU(s), and cuda:N beyond them does not exist.",
            program.locate(seen),
            fix=Fix("drop the line and name the GPUs in front of the launcher"),
        )


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
