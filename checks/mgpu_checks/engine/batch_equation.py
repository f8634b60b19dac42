"""DeepSpeed's train_batch_size is not micro batch × accumulation × number of processes."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.engine import (
    deepspeed_file,
    has_plain_defaults,
    source_matches,
    training_arguments,
    trains_with_arguments,
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
    Reference,
    Rule,
    Severity,
    Signature,
    Span,
    Unknown,
    dataclass,
    report,
)

_TRAIN, _MICRO, _STEPS = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"
_JSON = (
    '{{"train_batch_size": {train}, "train_micro_batch_size_per_gpu": {micro},\n'
    ' "gradient_accumulation_steps": {steps}}}\n'
)
_TRAINER = (
    "from transformers import HfArgumentParser, Trainer, TrainingArguments\n\n"
    "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\n"
    "Trainer(model=build(), args=args).train()\n"
)
_OWN = "import deepspeed\n\nengine, *_ = deepspeed.initialize(args=args, model=model)\n"
_DIVIDED = r"\bmpu\b|PipelineModule|sequence_parallel|tensor_parallel|autotp|model_parallel|expert_parallel"
"""Signs that not every process holds a share of the batch of its own."""

RULE = Rule(
    code="MGD606",
    slug="batch-equation",
    title="DeepSpeed's batch sizes do not multiply",
    severity=Severity.ERROR,
    summary="train_batch_size must be train_micro_batch_size_per_gpu × gradient_accumulation_steps × processes",
    why=(
        "DeepSpeed checks the equation with the real number of processes and stops with an AssertionError ('Check "
        "batch related parameters'); under transformers' Trainer the same mismatch is a ValueError. A file that was "
        "made for eight GPUs therefore breaks on four. Leave `train_batch_size` at `auto`, or out."
    ),
    bad=(
        Example(
            "a file for eight processes on four",
            "deepspeed --num_gpus 4 train.py --deepspeed_config ds.json",
            files={"ds.json": _JSON.format(train=64, micro=4, steps=2), "train.py": _OWN},
        ),
        Example(
            "the Trainer's micro batch and accumulation make another product",
            "torchrun --nproc-per-node 8 train.py --deepspeed ds.json --per_device_train_batch_size 4 "
            "--gradient_accumulation_steps 2 --output_dir out",
            files={"ds.json": _JSON.format(train=128, micro='"auto"', steps='"auto"'), "train.py": _TRAINER},
        ),
    ),
    good=(
        Example(
            "4 × 2 × 8 = 64",
            "deepspeed --num_gpus 8 train.py --deepspeed_config ds.json",
            files={"ds.json": _JSON.format(train=64, micro=4, steps=2), "train.py": _OWN},
        ),
        Example(
            "auto takes the Trainer's values",
            "torchrun --nproc-per-node 8 train.py --deepspeed ds.json --per_device_train_batch_size 4 --output_dir out",
            files={"ds.json": _JSON.format(train='"auto"', micro='"auto"', steps='"auto"'), "train.py": _TRAINER},
        ),
        Example(
            "pipeline stages share a batch",
            "deepspeed --num_gpus 4 train.py --deepspeed_config ds.json",
            files={
                "ds.json": _JSON.format(train=64, micro=4, steps=8),
                "train.py": _OWN + "from deepspeed.pipe import PipelineModule\n",
            },
        ),
        Example(
            "the accumulation follows from the other two",
            "deepspeed --num_gpus 4 train.py --deepspeed_config ds.json",
            files={
                "ds.json": '{"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4}\n',
                "train.py": _OWN,
            },
        ),
    ),
    sources=(
        Reference(
            "deepspeed 0.9.5, 0.12.6, 0.16.9, 0.19.8, runtime/config.py DeepSpeedConfig._batch_assertion()",
            "assert train_batch == micro_batch * grad_acc * self.world_size; a missing one is computed by division",
        ),
        Reference(
            "transformers 4.40.2, 4.52.4, integrations/deepspeed.py trainer_config_process()",
            "train_batch_size must equal world_size × per_device_train_batch_size × gradient_accumulation_steps",
        ),
    ),
    fix="Leave train_batch_size to be computed",
    fixable=True,
    signatures=(
        Signature(
            r"Check batch related parameters\. train_batch_size is not equal",
            "deepspeed 0.9.0 to 0.19.8, runtime/config.py _batch_assertion()",
            "AssertionError: Check batch related parameters. train_batch_size is not equal to micro_batch_per_gpu * "
            "gradient_acc_step * world_size 32 != 2 * 1 * 4",
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class _Terms:
    """The three terms of the equation; None where DeepSpeed computes it."""

    train: int | None
    micro: int | None
    steps: int | None


def find(case: Case) -> Iterator[Finding]:
    """One finding for each DeepSpeed file whose batch sizes do not fit the number of processes."""
    for launch in case.launches:
        world = launch.world_size.known
        config = deepspeed_file(case, launch)
        if (
            config is None
            or world is None
            or not launch.distributed_layers
            or launch.purpose.known in {"predict", "chat", "serve"}
        ):
            continue
        if config.get("elasticity", "enabled") is True or _divided(launch):
            continue
        terms = _terms(launch, config)
        if terms is None or terms.train is None:
            continue
        product = _product(terms, world)
        if product != terms.train:
            yield _report(launch, config, terms, world, product)


def _divided(launch: Launch) -> bool:
    return next(source_matches(launch.target.program, _DIVIDED), None) is not None


def _terms(launch: Launch, config: ConfigFile) -> _Terms | None:
    """The terms after transformers has filled in its own; None when one of them cannot be told."""
    values = {name: config.get(name) for name in (_TRAIN, _MICRO, _STEPS)}
    filled: dict[str, int | None] = {}
    trainer = trains_with_arguments(launch)
    if not trainer and not _is_own(launch) and not isinstance(launch.target.program, Unknown):
        return None
    given = training_arguments(launch)
    defaults = has_plain_defaults(launch)
    for name, argument, default in ((_MICRO, "per_device_train_batch_size", 8), (_STEPS, _STEPS, 1)):
        value = values[name]
        if trainer and (value == "auto" or value is None):
            number = given.number(argument, default if defaults else None)
            if number is None:
                return None
            filled[name] = int(number)
        elif value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
            filled[name] = value
        else:
            return None
    train = values[_TRAIN]
    if not isinstance(train, int) or isinstance(train, bool) or train < 1:
        return None
    if trainer and given.truth("auto_find_batch_size") is not False:
        return None
    return _Terms(train, filled[_MICRO], filled[_STEPS])


def _is_own(launch: Launch) -> bool:
    """Whether the program starts DeepSpeed's engine itself, with all processes sharing the batch."""
    program = launch.target.program
    return not isinstance(program, Unknown) and program.first("deepspeed-initialize") is not None


def _product(terms: _Terms, world: int) -> int:
    """The right side of the equation, after DeepSpeed has computed what is missing."""
    train, micro, steps = terms.train or 0, terms.micro, terms.steps
    if micro is None and steps is None:
        steps = 1
    if micro is None:
        micro = train // world // (steps or 1)
    if steps is None:
        steps = train // micro // world if micro else 0
    return micro * steps * world


def _report(launch: Launch, config: ConfigFile, terms: _Terms, world: int, product: int) -> Finding:
    micro = terms.micro if terms.micro is not None else "?"
    steps = terms.steps if terms.steps is not None else "?"
    if terms.micro is None or terms.steps is None:
        message = f"train_batch_size {terms.train} in {config.name} cannot be divided among {world} processes"
    else:
        message = (
            f"train_batch_size {terms.train} in {config.name} is not {micro} (micro batch) × {steps} (accumulation) × "
            f"{world} (processes) = {product}"
        )
    entry = config.values[(_TRAIN,)]
    fix = None
    if config.source is not None and terms.micro is not None and terms.steps is not None:
        value = '"auto"' if trains_with_arguments(launch) else str(product)
        fix = Fix(f"Set train_batch_size to {value}", (Edit(config.source, Span(*entry.span), value),))
    sure = trains_with_arguments(launch) or _is_own(launch)
    return report(
        RULE,
        message,
        config.locate(_TRAIN),
        severity=Severity.ERROR if sure else Severity.ADVICE,
        related=[Evidence(f"{world} processes", launch.world_size.origin.location)],
        fix=fix,
    )
