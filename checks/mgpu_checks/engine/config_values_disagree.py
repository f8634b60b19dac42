"""A DeepSpeed or accelerate configuration says another value than the training arguments."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.engine import (
    TrainingArguments,
    deepspeed_file,
    has_plain_defaults,
    training_arguments,
    trains_with_arguments,
    uses_deepspeed,
)
from mgpu_doctor.authoring import (
    Case,
    ConfigFile,
    Edit,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Layer,
    Location,
    Reference,
    Rule,
    Severity,
    Signature,
    report,
)
from mgpu_doctor.model.record import dataclass, replace

_NUMBERS = (
    (("train_micro_batch_size_per_gpu",), "per_device_train_batch_size", 8.0),
    (("gradient_accumulation_steps",), "gradient_accumulation_steps", 1.0),
    (("gradient_clipping",), "max_grad_norm", 1.0),
    (("optimizer", "params", "lr"), "learning_rate", 5e-5),
    (("optimizer", "params", "eps"), "adam_epsilon", 1e-8),
    (("optimizer", "params", "weight_decay"), "weight_decay", 0.0),
    (("scheduler", "params", "warmup_max_lr"), "learning_rate", 5e-5),
)
"""DeepSpeed's key, the training argument that it must equal, and that argument's default (TrainingArguments)."""

_SWITCHES = ((("fp16", "enabled"), ("fp16", "fp16_full_eval")), (("bf16", "enabled"), ("bf16", "bf16_full_eval")))

_TRAINER = (
    "from transformers import HfArgumentParser, Trainer, TrainingArguments\n\n"
    "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\n"
    "Trainer(model=build(), args=args).train()\n"
)
_JSON = (
    '{{"train_micro_batch_size_per_gpu": {micro},\n "bf16": {{"enabled": {bf16}}},\n'
    ' "zero_optimization": {{"stage": 2}}}}\n'
)
_ACCELERATE = (
    "distributed_type: DEEPSPEED\nmixed_precision: {precision}\nnum_processes: 4\n"
    "deepspeed_config:\n  gradient_accumulation_steps: {steps}\n  zero_stage: 2\n"
)

RULE = Rule(
    code="MGD607",
    slug="config-values-disagree",
    title="The configuration and the training arguments disagree",
    severity=Severity.ERROR,
    summary="a value in the DeepSpeed or accelerate configuration differs from the training argument it stands for",
    why=(
        "transformers' Trainer compares the DeepSpeed configuration with its own arguments and stops with 'Please "
        "correct the following DeepSpeed config values that mismatch TrainingArguments values', after the model has "
        "been loaded. Arguments that are not given count with their defaults. `auto` takes the argument's value."
    ),
    bad=(
        Example(
            "another micro batch",
            "torchrun --nproc-per-node 4 train.py --deepspeed z2.json --per_device_train_batch_size 2 --bf16 "
            "--output_dir out",
            files={"z2.json": _JSON.format(micro=4, bf16='"auto"'), "train.py": _TRAINER},
        ),
        Example(
            "bf16 in the file alone",
            "deepspeed --num_gpus 4 train.py --deepspeed z2.json --output_dir out",
            files={"z2.json": _JSON.format(micro='"auto"', bf16="true"), "train.py": _TRAINER},
        ),
        Example(
            "accumulation in accelerate's file and in the arguments",
            "accelerate launch --config_file ds.yaml train.py --gradient_accumulation_steps 8 --bf16 --output_dir out",
            files={"ds.yaml": _ACCELERATE.format(precision="bf16", steps=4), "train.py": _TRAINER},
        ),
        Example(
            "precision in accelerate's file alone",
            "accelerate launch --config_file ds.yaml train.py --gradient_accumulation_steps 4 --output_dir out",
            files={"ds.yaml": _ACCELERATE.format(precision="bf16", steps=4), "train.py": _TRAINER},
        ),
        Example(
            "DeepSpeed is set up twice",
            "accelerate launch --config_file ds.yaml train.py --deepspeed z2.json --gradient_accumulation_steps 4 "
            "--bf16 --output_dir out",
            files={
                "ds.yaml": _ACCELERATE.format(precision="bf16", steps=4),
                "z2.json": _JSON.format(micro='"auto"', bf16='"auto"'),
                "train.py": _TRAINER,
            },
        ),
    ),
    good=(
        Example(
            "auto",
            "torchrun --nproc-per-node 4 train.py --deepspeed z2.json --per_device_train_batch_size 2 --bf16 "
            "--output_dir out",
            files={"z2.json": _JSON.format(micro='"auto"', bf16='"auto"'), "train.py": _TRAINER},
        ),
        Example(
            "the same values",
            "accelerate launch --config_file ds.yaml train.py --gradient_accumulation_steps 4 --bf16 --output_dir out",
            files={"ds.yaml": _ACCELERATE.format(precision="bf16", steps=4), "train.py": _TRAINER},
        ),
        Example(
            "a program with defaults of its own: only what is given counts",
            "torchrun --nproc-per-node 4 train.py --deepspeed z2.json --output_dir out",
            files={
                "z2.json": _JSON.format(micro=4, bf16="true"),
                "train.py": (
                    "import transformers\n\nclass Arguments(transformers.TrainingArguments):\n"
                    "    bf16: bool = True\n    per_device_train_batch_size: int = 4\n\n"
                    "transformers.HfArgumentParser(Arguments).parse_args_into_dataclasses()\n"
                ),
            },
        ),
        Example(
            "batch prediction: the configuration is not finished",
            "torchrun --nproc-per-node 4 train.py --deepspeed z2.json --do_predict --output_dir out",
            files={"z2.json": _JSON.format(micro=4, bf16="false"), "train.py": _TRAINER},
        ),
    ),
    sources=(
        Reference(
            "transformers 4.40.2, 4.52.4, 5.6.0, integrations/deepspeed.py HfTrainerDeepSpeedConfig",
            "values that are neither 'auto' nor equal are collected and raised as a ValueError",
        ),
        Reference(
            "transformers 4.40.2, 4.52.4, trainer.py propagate_args_to_deepspeed(); accelerate 1.7.0, "
            "utils/dataclasses.py DeepSpeedPlugin",
            "without --deepspeed, the same comparison is made with what accelerate's file sets",
        ),
        Reference(
            "transformers 4.52.4 with accelerate 1.7.0, 5.6.0 with 1.15.0: TrainingArguments(deepspeed=…) under "
            "ACCELERATE_CONFIG_DS_FIELDS",
            "ValueError: When using `deepspeed_config_file`, the following accelerate config variables will be ignored",
            ran=True,
        ),
        Reference(
            "transformers 4.52.4, training_args.py; accelerate 1.7.0, DeepSpeedPlugin.set_mixed_precision()",
            "a precision from accelerate's file stays in force when neither fp16 nor bf16 is given, and switches "
            "fp16.enabled or bf16.enabled on: '- ds bf16.enabled=True vs hf bf16|bf16_full_eval=False'",
            ran=True,
        ),
    ),
    fix="Set the configuration's value to auto, or make both equal",
    signatures=(
        Signature(
            r"Please correct the following DeepSpeed config values that mismatch",
            "transformers 4.40.2 to 5.6.0, integrations/deepspeed.py; accelerate 1.7.0, utils/dataclasses.py",
            "ValueError: Please correct the following DeepSpeed config values that mismatch TrainingArguments values:",
        ),
        Signature(
            r"the following accelerate config variables will be ignored",
            "accelerate 0.20.3 to 1.15.0, utils/dataclasses.py DeepSpeedPlugin",
            "ValueError: When using `deepspeed_config_file`, the following accelerate config variables will be "
            "ignored: ['gradient_accumulation_steps', 'zero_stage'].",
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class _Mismatch:
    """A key of the configuration, its value, and the training argument that says another."""

    config: ConfigFile
    path: tuple[str, ...]
    value: object
    argument: str
    said: str
    place: Location | None
    wanted: str
    severity: Severity = Severity.ERROR


def find(case: Case) -> Iterator[Finding]:
    """One finding for each value that disagrees."""
    for launch in case.launches:
        if launch.purpose.known in {"predict", "chat", "serve", "export", "evaluate"}:
            continue
        if not trains_with_arguments(launch):
            continue
        given = training_arguments(launch)
        yield from _two_engines(launch, given)
        if not has_plain_defaults(launch):
            given = TrainingArguments(given.given, complete=False)
        for mismatch in _mismatches(case, launch, given):
            yield _report(launch, mismatch)


_REFUSED = (
    "gradient_accumulation_steps",
    "gradient_clipping",
    "zero_stage",
    "offload_optimizer_device",
    "offload_param_device",
    "offload_param_nvme_path",
    "offload_optimizer_nvme_path",
    "zero3_save_16bit_model",
)
"""Keys of accelerate's file that DeepSpeedPlugin refuses beside a DeepSpeed file (accelerate 0.20.3 to 1.15.0)."""


def _two_engines(launch: Launch, given: TrainingArguments) -> Iterator[Finding]:
    """``--deepspeed FILE`` although accelerate's own file sets DeepSpeed up."""
    layer, asked = launch.layer("accelerate"), given.get("deepspeed")
    if layer is None or layer.config is None or asked is None or asked.text is None or not uses_deepspeed(layer):
        return
    section = layer.config.get("deepspeed_config")
    refused = [key for key in _REFUSED if isinstance(section, dict) and key in section]
    if layer.config.get("mixed_precision") is not None and layer.option("mixed_precision") is None:
        refused.append("mixed_precision")
    if refused and section:
        yield report(
            RULE,
            f"{asked.shown} and {layer.config.name} both set DeepSpeed up: accelerate refuses {', '.join(refused)} "
            f"beside "
            "a DeepSpeed file",
            asked.location,
            related=[Evidence("accelerate's own settings", layer.config.locate("deepspeed_config"))],
            fix=Fix(f"Remove one of them: --deepspeed, or {', '.join(refused)} in {layer.config.name}"),
        )


def _mismatches(case: Case, launch: Launch, given: TrainingArguments) -> Iterator[_Mismatch]:
    config = deepspeed_file(case, launch)
    if config is not None:
        yield from _in_file(config, given)
        return
    layer = launch.layer("accelerate")
    if given.get("deepspeed") is None and layer is not None and layer.config is not None and uses_deepspeed(layer):
        yield from _in_accelerate(layer, layer.config, given)


def _in_file(config: ConfigFile, given: TrainingArguments) -> Iterator[_Mismatch]:
    for path, name, default in _NUMBERS:
        value = config.get(*path)
        said = given.number(name, default)
        if name == "per_device_train_batch_size" and given.truth("auto_find_batch_size") is not False:
            continue
        is_other = isinstance(value, str) and value != "auto"
        if said is not None and (is_other or (_is_number(value) and value != said)):
            shown = f"the text {value!r}" if is_other else value
            yield _mismatch(config, path, shown, given, name, f"{said:g}", '"auto"')
    yield from _betas(config, given)
    for switch, names in _SWITCHES:
        on = config.get(*switch)
        switches = [given.truth(name) for name in names]
        if not isinstance(on, bool) or None in switches or given.get("half_precision_backend") is not None:
            continue
        if on != any(switches):
            yield _mismatch(config, switch, on, given, names[0], str(any(switches)), '"auto"')


def _betas(config: ConfigFile, given: TrainingArguments) -> Iterator[_Mismatch]:
    """Adam's pair of numbers, and the steps of the warm-up: each stands for two arguments."""
    path = ("optimizer", "params", "betas")
    value, first, second = config.get(*path), given.number("adam_beta1", 0.9), given.number("adam_beta2", 0.999)
    is_pair = isinstance(value, list) and len(value) == 2 and all(_is_number(item) for item in value)
    if is_pair and first is not None and second is not None and value != [first, second]:
        yield _mismatch(config, path, value, given, "adam_beta1", f"{first:g} and adam_beta2 {second:g}", '"auto"')
    path = ("scheduler", "params", "warmup_num_steps")
    steps, said = config.get(*path), given.number("warmup_steps", 0.0)
    if _is_number(steps) and said is not None and given.lacks("warmup_ratio") and steps != said:
        yield _mismatch(config, path, steps, given, "warmup_steps", f"{said:g}", '"auto"')


def _in_accelerate(layer: Layer, config: ConfigFile, given: TrainingArguments) -> Iterator[_Mismatch]:
    for key, name, default in (
        ("gradient_accumulation_steps", "gradient_accumulation_steps", 1.0),
        ("gradient_clipping", "max_grad_norm", 1.0),
    ):
        path = ("deepspeed_config", key)
        value = config.get(*path)
        said = given.number(name, default)
        if layer.option(key) is None and said is not None and _is_number(value) and value != said:
            yield _mismatch(config, path, value, given, name, f"{said:g}", f"{said:g}")
    precision = config.get("mixed_precision")
    if layer.option("mixed_precision") is not None or precision not in ("fp16", "bf16"):
        return
    if all(given.truth(name) is False for name in ("fp16", "bf16", "fp16_full_eval", "bf16_full_eval")):
        found = _mismatch(config, ("mixed_precision",), precision, given, str(precision), "False", "'no'")
        # Nothing that is written disagrees: a program may still set the argument before it makes its Trainer.
        yield replace(found, severity=Severity.ADVICE)


def _mismatch(
    config: ConfigFile,
    path: tuple[str, ...],
    value: object,
    given: TrainingArguments,
    name: str,
    said: str,
    wanted: str,
) -> _Mismatch:
    argument = given.get(name)
    return _Mismatch(config, path, value, name, said, argument.location if argument is not None else None, wanted)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _report(launch: Launch, found: _Mismatch) -> Finding:
    shown = ".".join(found.path)
    value = str(found.value).lower() if isinstance(found.value, bool) else found.value
    default = "" if found.place is not None else " (its default)"
    fix = None
    entry = found.config.values[found.path]
    if found.config.source is not None:
        title = f"Set {shown} to {found.wanted} in {found.config.name}"
        fix = Fix(title, (Edit(found.config.source, entry.span, found.wanted),))
    return report(
        RULE,
        f"{shown} is {value} in {found.config.name}, but {found.argument} is {found.said}{default}: "
        "the Trainer refuses to train",
        found.config.locate(*found.path) or launch.command.locate(launch.command.span),
        severity=found.severity,
        related=[] if found.place is None else [Evidence(f"{found.argument} {found.said}", found.place)],
        fix=fix,
        alternatives=[Fix(f"Give --{found.argument} as the configuration says")],
    )
