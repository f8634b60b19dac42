"""A configuration file stands where the launcher wants the script."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.launch import command_name, stands_at, typed_layers
from mgpu_doctor.authoring import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Launch,
    Layer,
    Reference,
    Rule,
    Severity,
    Signature,
    Word,
    insert,
    report,
)

RULE = Rule(
    code="MGD111",
    slug="config-as-script",
    title="A configuration file stands in the script's place",
    severity=Severity.ERROR,
    summary="The launcher is given a YAML or JSON file as the program to run.",
    why=(
        "The first word that is no option is the script; everything behind it goes to the script. A configuration "
        "file there is handed to Python, which stops with a syntax error in every process, and the options meant for "
        "the launcher are lost. accelerate takes its file with `--config_file`; DeepSpeed's JSON belongs behind the "
        "script as `--deepspeed FILE`; LLaMA-Factory's YAML goes to `llamafactory-cli train FILE`."
    ),
    bad=(
        Example("the option's name is missing", "accelerate launch ds_zero2.yaml train.py --lr 1e-4"),
        Example("behind other options", "accelerate launch --num_processes 4 configs/fsdp.yml train.py"),
        Example("DeepSpeed's JSON", "deepspeed --num_gpus 2 ds_config.json train.py"),
        Example("LLaMA-Factory's YAML", "torchrun --nproc_per_node 4 examples/train_lora/sft.yaml"),
    ),
    good=(
        Example("with its option", "accelerate launch --config_file ds_zero2.yaml train.py --lr 1e-4"),
        Example("the script's own file", "accelerate launch train.py config.yaml"),
        Example("a sub-command that takes it", "llamafactory-cli train examples/train_lora/sft.yaml"),
        Example("a module and its file", "torchrun --nproc_per_node 4 -m llamafactory.launcher sft.yaml"),
    ),
    sources=(
        Reference(
            "accelerate 1.7.0, commands/launch.py launch_command_parser()", "the first positional is training_script"
        ),
        Reference(
            "torch 2.13.0, distributed/run.py config_from_args()", "the script is run as python -u FILE whatever it is"
        ),
        Reference("deepspeed 0.16.9, launcher/launch.py main()", "the same"),
    ),
    fix="name the option that takes the file",
    signatures=(
        Signature(
            r'^\s*File "[^"]+\.(?:ya?ml|json|toml)", line \d+',
            "Python 3.11 under torchrun (torch 2.13.0) and accelerate 1.7.0",
            '  File "/home/me/acc.yaml", line 2',
        ),
    ),
)

_ENDINGS = (".yaml", ".yml", ".json", ".toml")


def find(case: Case) -> Iterator[Finding]:
    """Launches whose script is a configuration file."""
    for launch in case.launches:
        layers, word = typed_layers(launch), launch.target.word
        if not layers or word is None or launch.target.kind != "script" or layers[-1].opaque is not None:
            continue
        text = word.value
        if text is None or not text.lower().endswith(_ENDINGS):
            continue
        yield report(
            RULE,
            f"{command_name(layers[-1])} would run {text} as a Python script.",
            launch.command.locate(word.span),
            fix=_fix(launch, layers[-1], word, text),
        )


def _fix(launch: Launch, layer: Layer, word: Word, text: str) -> Fix:
    program = next((other.value for other in launch.target.argument_words if _is_program(other)), None)
    if layer.launcher == "accelerate" and layer.option("config_file") is None and not text.endswith(".toml"):
        edits: tuple[Edit, ...] = ()
        first = launch.target.argument_words[:1]
        if program is not None and first and first[0].value == program and stands_at(launch, word.span, text[:1]):
            edits = (insert(launch.command.source, word.span.start, "--config_file "),)
        return Fix(f"write --config_file {text}" + ("" if program else " and name the script behind it"), edits)
    if program is not None:
        return Fix(f"put {text} behind {program}, with the option that takes it there")
    return Fix(f"name the program that reads {text}: for LLaMA-Factory, llamafactory-cli train {text}")


def _is_program(word: Word) -> bool:
    return word.value is not None and word.value.endswith(".py")
