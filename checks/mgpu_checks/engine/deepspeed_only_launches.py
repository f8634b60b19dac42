"""DeepSpeed starts the processes, but nothing uses its engine: no ZeRO, no memory saved."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.engine import source_matches, training_arguments
from mgpu_doctor.authoring import Case, Example, Finding, Fix, Launch, Reference, Rule, Severity, Unknown, report

_ARGUMENTS = ("deepspeed", "deepspeed_config", "ds_config", "deepspeed_plugin", "zero_stage", "deepspeed_path")
_TRAINER = (
    "from transformers import HfArgumentParser, Trainer, TrainingArguments\n\n"
    "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\n"
    "Trainer(model=build(), args=args).train()\n"
)

RULE = Rule(
    code="MGD604",
    slug="deepspeed-only-launches",
    title="DeepSpeed only launches",
    severity=Severity.ADVICE,
    summary="the deepspeed launcher starts a program that does not use DeepSpeed's engine",
    why=(
        "The launcher `deepspeed` starts one process for each GPU and sets the rank variables, as torchrun does. "
        "ZeRO, offloading and everything that saves memory come from the engine, which a program uses only when it is "
        "given a configuration (`--deepspeed ds.json`) or calls `deepspeed.initialize`. Without it every rank holds "
        "the whole model. If that is meant, torchrun or accelerate do the same with fewer surprises."
    ),
    bad=(
        Example(
            "the Trainer without --deepspeed",
            "deepspeed --num_gpus 4 train.py --per_device_train_batch_size 1 --output_dir out",
            files={"train.py": _TRAINER},
        ),
        Example(
            "LLaMA-Factory without --deepspeed",
            "deepspeed --num_gpus 4 --module llamafactory.launcher --stage sft --do_train --model_name_or_path m "
            "--dataset demo --template default --output_dir out",
        ),
    ),
    good=(
        Example(
            "the Trainer with a configuration",
            "deepspeed --num_gpus 4 train.py --deepspeed z2.json --output_dir out",
            files={"train.py": _TRAINER, "z2.json": '{"zero_optimization": {"stage": 2}}\n'},
        ),
        Example(
            "a program that starts the engine itself",
            "deepspeed --num_gpus 4 train.py",
            files={
                "train.py": "import deepspeed\n\nengine, *_ = deepspeed.initialize(model=model, config='z2.json')\n"
            },
        ),
        Example(
            "arguments that are not written out",
            "deepspeed --num_gpus 4 train.py $ARGS",
            files={"train.py": _TRAINER},
        ),
    ),
    sources=(
        Reference(
            "deepspeed 0.9.5, 0.16.9, 0.19.8, launcher/launch.py main()",
            "the launcher sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT and starts the script: no engine",
        ),
        Reference(
            "transformers 4.52.4, training_args.py __post_init__()",
            "DeepSpeed is used when `deepspeed` is given or ACCELERATE_USE_DEEPSPEED, which this launcher does not set",
        ),
    ),
    fix="Give the program a DeepSpeed configuration",
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each deepspeed launch whose program surely does without the engine."""
    for launch in case.launches:
        layer = launch.layer("deepspeed")
        if layer is None or layer.implied or _may_use_engine(launch):
            continue
        processes = launch.processes_per_node.known
        started = f"{processes} processes" if processes is not None else "the processes"
        yield report(
            RULE,
            f"deepspeed starts {started}, but the program uses no DeepSpeed engine: no ZeRO, no memory saved",
            launch.command.locate(layer.span),
            fix=Fix("Add --deepspeed with a configuration file, or launch with torchrun"),
        )


def _may_use_engine(launch: Launch) -> bool:
    engine = launch.engine.known
    if engine is not None and engine.name == "deepspeed":
        return True
    given = training_arguments(launch)
    if not given.lacks(*_ARGUMENTS) or _is_switched_on(launch):
        return True
    program = launch.target.program
    if launch.target.framework == "llamafactory":
        return False
    if isinstance(program, Unknown) or program.first("hf-argument-parser", "ddp", "accelerator") is None:
        return True
    return program.imports_any("deepspeed") or next(source_matches(program, "deepspeed"), None) is not None


def _is_switched_on(launch: Launch) -> bool:
    """Whether a variable gives the engine to every Trainer and Accelerator."""
    return launch.command.variable("ACCELERATE_USE_DEEPSPEED") is not None
