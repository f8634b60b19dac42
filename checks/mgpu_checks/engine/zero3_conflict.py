"""ZeRO-3 splits every parameter over the ranks, and something else wants to place or hold whole parameters."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.engine import (
    TrainingArguments,
    deepspeed_file,
    is_training,
    may_be_before,
    source_matches,
    training_arguments,
    version_of,
    zero_stage,
)
from mgpu_doctor.authoring import (
    Case,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Location,
    Program,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    report,
)

_Z3 = '{"train_micro_batch_size_per_gpu": "auto",\n "zero_optimization": {"stage": 3}}\n'
_Z2 = '{"train_micro_batch_size_per_gpu": "auto",\n "zero_optimization": {"stage": 2}}\n'
_LOAD = (
    "from transformers import AutoModelForCausalLM, HfArgumentParser, Trainer, TrainingArguments\n\n"
    "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\n"
    'model = AutoModelForCausalLM.from_pretrained("local/model"{more})\n'
    "Trainer(model=model, args=args).train()\n"
)
_LLAMAFACTORY = (
    "FORCE_TORCHRUN=1 llamafactory-cli train --stage sft --do_train --model_name_or_path local/model --dataset demo "
    "--template default --finetuning_type lora --output_dir out --deepspeed {file} {more}"
)

RULE = Rule(
    code="MGD608",
    slug="zero3-conflict",
    title="Incompatible with ZeRO-3",
    severity=Severity.ERROR,
    summary="ZeRO-3 together with something that needs whole parameters on one device",
    why=(
        "Under ZeRO stage 3 no rank holds a whole parameter: `from_pretrained` builds the model split from the start. "
        "A `device_map`, and before transformers 4.51 `low_cpu_mem_usage=True`, contradict that and are a ValueError; "
        "LLaMA-Factory refuses Unsloth, PiSSA, `pure_bf16` and 8-bit loading with ZeRO-3. Use ZeRO-2, or do without."
    ),
    bad=(
        Example(
            "device_map in the script",
            "torchrun --nproc-per-node 4 train.py --deepspeed z3.json --output_dir out",
            files={"z3.json": _Z3, "train.py": _LOAD.format(more=', device_map="auto"')},
        ),
        Example(
            "low_cpu_mem_usage, transformers 4.45",
            "torchrun --nproc-per-node 4 train.py --deepspeed z3.json --output_dir out",
            files={"z3.json": _Z3, "train.py": _LOAD.format(more=", low_cpu_mem_usage=True")},
            facts={"packages": {"torch": "2.4.1+cu121", "transformers": "4.45.2", "deepspeed": "0.15.4"}},
        ),
        Example(
            "Unsloth in LLaMA-Factory",
            _LLAMAFACTORY.format(file="z3.json", more="--use_unsloth true"),
            files={"z3.json": _Z3},
        ),
        Example(
            "eight bits in LLaMA-Factory",
            _LLAMAFACTORY.format(file="z3.json", more="--quantization_bit 8"),
            files={"z3.json": _Z3},
        ),
    ),
    good=(
        Example(
            "ZeRO-2 holds whole parameters",
            "torchrun --nproc-per-node 4 train.py --deepspeed z2.json --output_dir out",
            files={"z2.json": _Z2, "train.py": _LOAD.format(more=', device_map={"": 0}')},
        ),
        Example(
            "low_cpu_mem_usage is ignored since transformers 4.51",
            "torchrun --nproc-per-node 4 train.py --deepspeed z3.json --output_dir out",
            files={"z3.json": _Z3, "train.py": _LOAD.format(more=", low_cpu_mem_usage=True")},
        ),
        Example(
            "device_map=None",
            "torchrun --nproc-per-node 4 train.py --deepspeed z3.json --output_dir out",
            files={"z3.json": _Z3, "train.py": _LOAD.format(more=", device_map=None")},
        ),
        Example(
            "four bits are possible",
            _LLAMAFACTORY.format(file="z3.json", more="--quantization_bit 4"),
            files={"z3.json": _Z3},
        ),
    ),
    sources=(
        Reference(
            "transformers 4.40.2, 4.45.2, 4.48.3, 4.50.3, modeling_utils.py from_pretrained()",
            "'DeepSpeed Zero-3 is not compatible with `low_cpu_mem_usage=True` or with passing a `device_map`.'",
        ),
        Reference(
            "transformers 4.51.3, 4.52.4 modeling_utils.py; 5.6.0, 5.23.0 integrations/accelerate.py",
            "'DeepSpeed Zero-3 is not compatible with passing a `device_map`.'; low_cpu_mem_usage is dropped",
        ),
        Reference(
            "llamafactory 0.8.3 to 0.9.5, hparams/parser.py get_train_args()",
            "'Unsloth is incompatible with DeepSpeed ZeRO-3.', PiSSA and `pure_bf16` likewise",
        ),
        Reference(
            "llamafactory 0.8.3, 0.9.3, 0.9.5, model/model_utils/quantization.py",
            "bitsandbytes with ZeRO-3: 'Only 4-bit quantized model can use fsdp+qlora or auto device map.'; HQQ and "
            "EETQ are refused",
        ),
    ),
    fix="Use ZeRO-2, or remove what conflicts",
    signatures=(
        Signature(
            r"DeepSpeed Zero-3 is not compatible with ",
            "transformers 4.40.2 to 4.50.3, modeling_utils.py; 4.52.4; 5.6.0 integrations/accelerate.py",
            "ValueError: DeepSpeed Zero-3 is not compatible with passing a `device_map`.",
        ),
        Signature(
            r"(?:Unsloth|KTransformers|`pure_bf16`|HQQ quantization|EETQ quantization) is incompatible with DeepSpeed "
            r"ZeRO-3",
            "llamafactory 0.9.3 and 0.9.5, hparams/parser.py and model/model_utils/quantization.py",
            "ValueError: Unsloth is incompatible with DeepSpeed ZeRO-3.",
        ),
        Signature(
            r"the shape in current model is torch\.Size\(\[0\]\)",
            "torch 2.13.0, nn/modules/module.py load_state_dict(), into parameters that ZeRO-3 has partitioned",
            "size mismatch for visual.blocks.3.mlp.up_proj.bias: copying a param with shape torch.Size([3420]) "
            "from checkpoint, the shape in current model is torch.Size([0]).",
        ),
        Signature(
            r"RuntimeError: 'weight' must be 2-D",
            "torch 2.13.0, F.embedding() of a weight that ZeRO-3 has partitioned",
            "RuntimeError: 'weight' must be 2-D",
            weak=True,
        ),
        Signature(
            r"is not compatible with low_cpu_mem_usage|low_cpu_mem_usage=True` or with passing a `device_map`",
            "transformers 4.30.2 to 4.50.3, modeling_utils.py",
            "ValueError: Passing along a `device_map` or DeepSpeed Zero-3 is not compatible with "
            "`low_cpu_mem_usage=True` or with passing a `device_map`.",
        ),
    ),
)

_Conflict = tuple[str, Location, Severity]


def find(case: Case) -> Iterator[Finding]:
    """One finding for each thing that ZeRO-3 does not bear."""
    for launch in case.launches:
        if zero_stage(case, launch) != 3:
            continue
        config = deepspeed_file(case, launch)
        stage = config.locate("zero_optimization", "stage") if config is not None else None
        related = [] if stage is None else [Evidence("ZeRO stage 3", stage)]
        for message, place, severity in _conflicts(case, launch):
            yield report(RULE, message, place, severity=severity, related=related, fix=Fix("Use ZeRO stage 2"))


def _conflicts(case: Case, launch: Launch) -> Iterator[_Conflict]:
    given = training_arguments(launch)
    if is_training(launch):
        yield from _in_llamafactory(given)
    else:
        yield from _in_arguments(case, given)
    program = launch.target.program
    if not isinstance(program, Unknown):
        yield from _in_program(case, program)


def _in_llamafactory(given: TrainingArguments) -> Iterator[_Conflict]:
    for name, said in (
        ("use_unsloth", "Unsloth is incompatible with DeepSpeed ZeRO-3."),
        ("pissa_init", "Please use scripts/pissa_init.py to initialize PiSSA in DeepSpeed ZeRO-3."),
        ("pure_bf16", "`pure_bf16` is incompatible with DeepSpeed ZeRO-3."),
    ):
        argument = given.get(name)
        if argument is not None and argument.truth:
            yield f"{name} with ZeRO-3: LLaMA-Factory refuses it ({said!r})", argument.location, Severity.ERROR
    bits, method = given.get("quantization_bit"), given.text("quantization_method", "bitsandbytes")
    if bits is not None and bits.number is not None:
        if method in ("bitsandbytes", "bnb", None) and bits.number == 8 and method is not None:
            message = "8-bit loading with ZeRO-3: LLaMA-Factory takes only 4 bits there"
            yield message, bits.location, Severity.ERROR
        elif method in ("hqq", "eetq"):
            yield f"{method} quantization with ZeRO-3: LLaMA-Factory refuses it", bits.location, Severity.ERROR


def _in_arguments(case: Case, given: TrainingArguments) -> Iterator[_Conflict]:
    """Arguments that programs hand on to from_pretrained under the same name."""
    argument = given.get("device_map")
    if argument is not None and argument.text in ("auto", "balanced", "balanced_low_0", "sequential"):
        message = f"device_map {argument.text} with ZeRO-3: from_pretrained refuses a device_map"
        yield message, argument.location, Severity.WARNING
    argument = given.get("low_cpu_mem_usage")
    if argument is not None and argument.truth and _refuses_low_cpu(case) is True:
        message = "low_cpu_mem_usage with ZeRO-3: from_pretrained refuses it before transformers 4.51"
        yield message, argument.location, Severity.WARNING


def _in_program(case: Case, program: Program) -> Iterator[_Conflict]:
    for seen in program.all("device-map"):
        if seen.detail not in ("None", "none", "null", "") and "None" not in seen.detail and "zero3" not in seen.detail:
            certain = seen.detail[:1] in "{\"'" or seen.detail in ("auto", "balanced", "balanced_low_0", "sequential")
            message = f"device_map={seen.detail} with ZeRO-3: from_pretrained refuses a device_map"
            if certain:
                yield message, program.locate(seen), Severity.ERROR
    for seen in program.all("from-pretrained"):
        if "low_cpu_mem_usage=True" in seen.detail and "device_map=" not in seen.detail:
            refuses = _refuses_low_cpu(case)
            if refuses is not False:
                message = "low_cpu_mem_usage=True with ZeRO-3: from_pretrained refuses it before transformers 4.51"
                yield message, program.locate(seen), Severity.ERROR if refuses else Severity.WARNING

    for place in source_matches(program, r"synced_gpus\s*=\s*False"):
        message = (
            "synced_gpus=False with ZeRO-3: a rank that finishes early leaves the others waiting for its parameters"
        )
        yield message, place, Severity.WARNING
    patched = program.first("from-pretrained", "trainer") if program.imports_any("unsloth") else None
    if patched is not None:
        yield "Unsloth with ZeRO-3: it patches whole layers on one GPU", program.locate(patched), Severity.WARNING


def _refuses_low_cpu(case: Case) -> bool | None:
    """Whether the installed transformers refuses low_cpu_mem_usage with ZeRO-3; None when its release is not known."""
    release = case.knowledge.release("transformers")
    if version_of(release) is None or not release.certain:
        return None
    return may_be_before(release, 4, 51)
