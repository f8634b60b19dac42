"""accelerate's configuration file makes the job one process, whatever ``--num_processes`` or the machine offers."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.engine import SWITCHES, config_kind, devices_offered
from mgpu_checks.verdict import confirmed, each_rank, launch_of, place_of, probed
from mgpu_doctor.authoring import (
    Case,
    ConfigFile,
    Example,
    Finding,
    Fix,
    Launch,
    Layer,
    Location,
    Reference,
    Rule,
    Severity,
    Unknown,
    insert,
    observed,
    report,
)

_SINGLE = """compute_environment: LOCAL_MACHINE
distributed_type: 'NO'
mixed_precision: bf16
num_machines: 1
num_processes: {count}
use_cpu: {cpu}
"""

RULE = Rule(
    code="MGD601",
    slug="config-single-process",
    title="The accelerate configuration makes it one process",
    severity=Severity.ERROR,
    summary="the configuration file says `distributed_type: NO`, so one process is started",
    why=(
        "With a configuration file, accelerate takes the kind of launch from its `distributed_type`; "
        "`--num_processes` alone does not switch several processes on. With `NO` the script starts once, on one GPU "
        "(or on the CPU with `use_cpu: true`), exit status 0 and no word about it. Give `--multi_gpu`, or a file "
        "that says `MULTI_GPU`."
    ),
    bad=(
        Example(
            "four processes asked for, a file that says NO",
            "accelerate launch --config_file single.yaml --num_processes 4 train.py",
            files={"single.yaml": _SINGLE.format(count=1, cpu="false"), "train.py": "import accelerate\n"},
        ),
        Example(
            "the file itself says NO and eight processes",
            "accelerate launch --config_file odd.yaml train.py",
            files={"odd.yaml": _SINGLE.format(count=8, cpu="false"), "train.py": "import accelerate\n"},
        ),
        Example(
            "the user's default file decides",
            "accelerate launch train.py",
            files={"train.py": "import accelerate\n"},
            facts={"accelerate_default_config": _SINGLE.format(count=1, cpu="false")},
        ),
        Example(
            "a file written on a laptop: use_cpu",
            "accelerate launch --config_file laptop.yaml train.py",
            files={"laptop.yaml": _SINGLE.format(count=1, cpu="true"), "train.py": "import accelerate\n"},
        ),
        Example(
            "seen: one process, with a default file that says NO",
            "accelerate launch --num_processes 4 train.py",
            files={"train.py": "import accelerate\n"},
            facts={"accelerate_default_config": _SINGLE.format(count=1, cpu="false")},
            observation={**probed([0], device_count=[8]), "promised_processes": 1},
        ),
    ),
    good=(
        Example(
            "--multi_gpu overrides the file",
            "accelerate launch --config_file single.yaml --multi_gpu --num_processes 4 train.py",
            files={"single.yaml": _SINGLE.format(count=1, cpu="false"), "train.py": "import accelerate\n"},
        ),
        Example(
            "one process is what the file and the command both say",
            "accelerate launch --config_file single.yaml --num_processes 1 train.py",
            files={"single.yaml": _SINGLE.format(count=1, cpu="false"), "train.py": "import accelerate\n"},
        ),
        Example(
            "a default file, and one visible GPU",
            "CUDA_VISIBLE_DEVICES=3 accelerate launch train.py",
            files={"train.py": "import accelerate\n"},
            facts={"accelerate_default_config": _SINGLE.format(count=1, cpu="false")},
        ),
        Example(
            "no file: several processes and GPUs switch it on",
            "accelerate launch --num_processes 4 train.py",
            files={"train.py": "import accelerate\n"},
        ),
    ),
    sources=(
        Reference(
            "accelerate 0.20.3, 1.0.1, 1.7.0, 1.15.0, commands/launch.py _validate_launch_command()",
            "with a configuration file multi_gpu, use_deepspeed and use_fsdp come from its distributed_type or from "
            "their own options, never from num_processes",
        ),
        Reference(
            "accelerate 1.7.0, accelerate launch --config_file NO.yaml --num_processes 4",
            "one process is started, status 0",
            ran=True,
        ),
        Reference(
            "accelerate 1.7.0, utils/launch.py prepare_simple_launcher_cmd_env()",
            "use_cpu reaches the script as ACCELERATE_USE_CPU",
        ),
    ),
    fix="Add `--multi_gpu`",
    fixable=True,
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each accelerate launch that its file makes a single process against what is asked for."""
    said = [*_said(case)]
    seen = [*_seen(case)]
    yield from confirmed(said, (finding.message for finding in seen)) if said else seen


def _seen(case: Case) -> Iterator[Finding]:
    """One process of a launch that asks for several and sees several GPUs: only a configuration file makes it so.

    A file that can be read is judged by what it says; this is for one that cannot.
    """
    launch, seen = launch_of(case), case.observation
    layer = launch.layer("accelerate") if launch is not None else None
    if launch is None or layer is None or seen is None or not seen.on_gpu or len(seen.ranks) != 1:
        return
    if layer.option("cpu") is not None or any(layer.option(name) is not None for name in SWITCHES):
        return
    if layer.config is None and not isinstance(case.facts.accelerate_default_config, Unknown):
        return
    (rank,) = seen.ranks
    asked = observed.asked_processes(launch)
    if asked is None or asked < 2 or observed.world_of(rank) != 1:
        return
    if isinstance(rank.device_count, Unknown) or rank.device_count < 2:
        # With one visible GPU accelerate starts one process without any file.
        return
    yield report(
        RULE,
        f"{asked} processes are asked for, {rank.device_count} GPUs are visible, and one process ran: accelerate's "
        "configuration file makes it so",
        place_of(case),
        evidence=each_rank(seen.ranks),
        fix=Fix("Give --multi_gpu, or a configuration file that says distributed_type: MULTI_GPU"),
    )


def _said(case: Case) -> Iterator[Finding]:
    for launch in case.launches:
        layer = launch.layer("accelerate")
        if layer is None or layer.config is None or layer.option("cpu") is not None:
            continue
        if layer.config.get("compute_environment") == "AMAZON_SAGEMAKER":
            continue
        if any(layer.option(name) is not None for name in SWITCHES) or config_kind(layer.config) != "NO":
            continue
        yield from _judge(case, launch, layer, layer.config)


def _judge(case: Case, launch: Launch, layer: Layer, config: ConfigFile) -> Iterator[Finding]:
    option = layer.option("num_processes")
    asked = option.converted if option is not None else config.get("num_processes")
    offered = devices_offered(case, launch)
    place: Location | None
    if isinstance(asked, int) and asked > 1:
        place = launch.command.locate(option.span) if option is not None else config.locate("num_processes")
        source = option.flag if option is not None else "num_processes"
        message = f"{source} asks for {asked} processes, but {config.name} says distributed_type: NO: one is started"
        yield _report(launch, layer, config, message, place)
    elif option is not None:
        return
    elif config.get("use_cpu") is True and offered is not None and offered > 1:
        message = f"{config.name} says use_cpu: true: one process works on the CPU, and {offered} GPUs stay unused"
        yield _report(launch, layer, config, message, config.locate("use_cpu"), offered)
    elif offered is not None and offered > 1:
        message = f"{config.name} says distributed_type: NO: one process uses one of {offered} visible GPUs"
        asked_for = layer.config_is_default or _lists_devices(launch)
        severity = Severity.WARNING if asked_for else Severity.ADVICE
        yield _report(launch, layer, config, message, None, offered, severity)


def _lists_devices(launch: Launch) -> bool:
    """Whether the command itself names the GPUs that it wants."""
    variable = launch.command.variable("CUDA_VISIBLE_DEVICES")
    return variable is not None and (variable.scope in {"prefix", "env"} or variable.location is not None)


def _report(
    launch: Launch,
    layer: Layer,
    config: ConfigFile,
    message: str,
    place: Location | None,
    count: int | None = None,
    severity: Severity = Severity.ERROR,
) -> Finding:
    decisive = config.locate("distributed_type")
    end = layer.command_words[-1].span.end
    added = "--multi_gpu" if count is None else f"--multi_gpu --num_processes {count}"
    fix = Fix(f"Start one process for each GPU: {added}", (insert(launch.command.source, end, f" {added}"),))
    return report(
        RULE,
        message,
        place or launch.command.locate(layer.span),
        severity=severity,
        evidence=[] if decisive is None else [f"{decisive}: distributed_type: {config.get('distributed_type')}"],
        fix=fix,
    )
