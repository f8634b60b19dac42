"""The model, as the command loads and uses it, surely needs more memory than the cards have."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.hub import models
from mgpu_doctor.authoring import (
    Case,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Location,
    MemoryFit,
    MemoryNeed,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    gib,
    memory_fit,
    memory_need,
    report,
)

_SFT = (
    "llamafactory-cli train --stage sft --do_train --model_name_or_path org/model --dataset demo --template default "
    "--output_dir out --bf16 true "
)
_8B = {"models": {"org/model": {"parameters": 8.03e9, "dtype": "bfloat16"}}}
_70B = {"models": {"org/model": {"parameters": 70.6e9, "dtype": "bfloat16"}}}
_Z3 = '{"train_micro_batch_size_per_gpu": "auto", "bf16": {"enabled": true},\n "zero_optimization": {"stage": 3}}\n'
_Z2 = '{"train_micro_batch_size_per_gpu": "auto", "bf16": {"enabled": true},\n "zero_optimization": {"stage": 2}}\n'
_OFFLOAD = (
    '{"train_micro_batch_size_per_gpu": "auto", "bf16": {"enabled": true},\n'
    ' "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}}\n'
)
_GENERATE = (
    "from transformers import AutoModelForCausalLM\nimport torch\n\n"
    'model = AutoModelForCausalLM.from_pretrained("org/model", torch_dtype=torch.bfloat16).cuda()\n'
    'print(model.generate(**batch().to("cuda")))\n'
)
_4090 = [
    {"index": index, "name": "NVIDIA GeForce RTX 4090", "memory_gib": 23.99, "compute_capability": "8.9"}
    for index in range(4)
]

RULE = Rule(
    code="MGD610",
    slug="model-does-not-fit",
    title="The model does not fit",
    severity=Severity.ERROR,
    summary="weights, and what training keeps for each of them, need more memory than the cards have",
    why=(
        "What a card must hold can be counted beforehand: the weights in the dtype that they are loaded in and, in "
        "training, gradients and the optimizer's states (16 bytes for each parameter with AdamW in mixed precision), "
        "divided by the ranks only where ZeRO, FSDP or a device map divides them. More processes do not help: with DDP "
        "each holds everything. Only what is certain is counted here, without activations and without the keys and "
        "values of past tokens: when even that does not fit, CUDA runs out of memory while the model is loaded or in "
        "the first step."
    ),
    bad=(
        Example(
            "full fine-tuning of 8 B parameters with DDP: 120 GiB on every card",
            _SFT + "--finetuning_type full",
            facts=_8B,
        ),
        Example(
            "ZeRO-2 still keeps all weights on every card",
            "FORCE_TORCHRUN=1 " + _SFT + "--finetuning_type full --deepspeed z2.json",
            files={"z2.json": _Z2},
            facts=_70B,
        ),
        Example(
            "LoRA keeps the frozen weights on every card",
            _SFT + "--finetuning_type lora",
            facts=_70B,
        ),
        Example(
            "a script loads 70 B parameters onto one card",
            "CUDA_VISIBLE_DEVICES=0 python generate.py",
            files={"generate.py": _GENERATE},
            facts=_70B,
        ),
        Example(
            "four cards together are too small for a chat",
            "llamafactory-cli chat --model_name_or_path org/model --template default",
            facts={**_70B, "gpus": _4090},
        ),
        Example(
            "one card, and a device map that leaves the rest in host memory",
            "CUDA_VISIBLE_DEVICES=0 llamafactory-cli chat --model_name_or_path org/model --template default",
            facts=_70B,
        ),
        Example(
            "others hold the memory",
            "CUDA_VISIBLE_DEVICES=0 python generate.py",
            files={"generate.py": _GENERATE},
            facts={
                **_8B,
                "gpus": [{"index": 0, "name": "NVIDIA A100-SXM4-80GB", "memory_gib": 80, "memory_used_gib": 70}],
            },
        ),
    ),
    good=(
        Example("LoRA of 8 B parameters", _SFT + "--finetuning_type lora", facts=_8B),
        Example(
            "ZeRO-3 over eight cards",
            "FORCE_TORCHRUN=1 " + _SFT + "--finetuning_type full --deepspeed z3.json",
            files={"z3.json": _Z3},
            facts=_8B,
        ),
        Example(
            "ZeRO-3 offloaded to the host",
            "FORCE_TORCHRUN=1 " + _SFT + "--finetuning_type full --deepspeed z3.json",
            files={"z3.json": _OFFLOAD},
            facts=_70B,
        ),
        Example("70 B parameters in four bits", _SFT + "--finetuning_type lora --quantization_bit 4", facts=_70B),
        Example(
            "70 B parameters over eight cards",
            "llamafactory-cli chat --model_name_or_path org/model --template default",
            facts=_70B,
        ),
        Example("pure bf16 halves it", _SFT + "--finetuning_type full --pure_bf16 true", facts=_8B),
        Example(
            "an optimizer that keeps little",
            _SFT + "--finetuning_type full --optim adafactor",
            facts=_8B,
        ),
        Example(
            "Unsloth loads in four bits unless told otherwise",
            "CUDA_VISIBLE_DEVICES=0 python generate.py",
            files={
                "generate.py": "from unsloth import FastLanguageModel\n\n"
                'model, tokenizer = FastLanguageModel.from_pretrained("org/model")\nmodel.cuda().generate(batch())\n'
            },
            facts=_70B,
        ),
        Example("a model of unknown size", _SFT + "--finetuning_type full"),
    ),
    sources=(
        Reference(
            "llamafactory 0.8.3, 0.9.3, 0.9.5, model/adapter.py init_adapter()",
            "trained parameters are cast to 32 bits, unless pure_bf16 or ZeRO-3 is used",
        ),
        Reference(
            "deepspeed 0.16.9 and 0.19.8, estimate_zero2_model_states_mem_needs(), estimate_zero3_…()",
            "the estimates with which ours are compared",
            ran=True,
        ),
        Reference(
            "Rajbhandari et al. 2020, ZeRO, section 3",
            "16 bytes for each parameter in mixed precision with Adam, and what each stage divides",
        ),
        Reference(
            "accelerate 1.7.0 and 1.15.0, utils/modeling.py calculate_maximum_sizes(), commands/estimate.py",
            "size of the weights and of the largest layer, with which ours are compared",
            ran=True,
        ),
        Reference(
            "transformers 4.40.0 to 4.57.6 and 5.0.0 to 5.23.0, modeling_utils.py from_pretrained()",
            "without torch_dtype the model is in 32 bits before 5.0, in the stored dtype since",
        ),
    ),
    fix="Divide the model over the cards, quantise it, or train less of it",
    signatures=(
        Signature(
            r"Some parameters are on the meta device (?:device )?because they were offloaded to the (?:cpu|disk)",
            "accelerate 0.26.1 to 1.15.0, big_modeling.py dispatch_model()",
            "Some parameters are on the meta device because they were offloaded to the cpu.",
            weak=True,
            severity=Severity.WARNING,
        ),
        Signature(
            r"Some modules are dispatched on the CPU or the disk\. Make sure you have enough GPU RAM to fit the",
            "transformers 4.40.0 to 5.23.0, quantizers/quantizer_bnb_4bit.py validate_environment()",
            "ValueError: Some modules are dispatched on the CPU or the disk. Make sure you have enough GPU RAM to fit "
            "the quantized model.",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each launch whose need is surely more than what its cards have."""
    unknown: Unknown | None = None
    for launch in case.launches:
        need = memory_need(case, launch)
        if isinstance(need, Unknown):
            unknown = unknown or (need if next(iter(models(launch)), None) is not None else None)
            continue
        fit = memory_fit(case, launch)
        if isinstance(fit, Unknown):
            unknown = fit
            continue
        yield from _split(launch, need, fit) if need.form == "split" else _on_a_card(launch, need, fit)
    if unknown is not None:
        case.require(unknown)


def _on_a_card(launch: Launch, need: MemoryNeed, fit: MemoryFit) -> Iterator[Finding]:
    # Which card a rank gets may not be known: then all of them must be too small.
    card = fit.smallest if fit.certain else fit.largest
    where = f"GPU {card.index}" if fit.certain else "the largest GPU of the machine"
    each = f" on each of {need.cards} cards" if need.cards > 1 else ""
    if need.low > card.total:
        message = (
            f"{_purpose(need)} {need.model} needs at least {gib(need.low)}{each} ({_parts(need)}), but {where} has "
            f"{gib(card.total)}: CUDA will run out of memory."
        )
        yield report(
            RULE, message, _place(launch), subject=need.model, evidence=_evidence(need), fix=_fix(need, card.total)
        )
        return
    if not fit.certain:
        return
    tight = next((room for room in fit.cards if room.free is not None and need.low > room.free), None)
    if tight is not None and tight.free is not None:
        message = (
            f"{_purpose(need)} {need.model} needs at least {gib(need.low)}{each}, and of the {gib(tight.total)} of GPU "
            f"{tight.index} only {gib(tight.free)} are free now: others hold {gib(tight.total - tight.free)}."
        )
        yield report(
            RULE,
            message,
            _place(launch),
            subject=need.model,
            severity=Severity.WARNING,
            evidence=_evidence(need),
            fix=Fix("Wait for the card, or choose another one"),
        )


def _split(launch: Launch, need: MemoryNeed, fit: MemoryFit) -> Iterator[Finding]:
    if need.low <= fit.together:
        return
    left, count = need.low - fit.together, len(fit.cards)
    cards = f"{count} cards have {gib(fit.together)} together" if count > 1 else f"the card has {gib(fit.together)}"
    message = (
        f"{need.model} needs at least {gib(need.low)}, and {cards}: the device map leaves {gib(left)} or more of it in "
        "host memory, from where it is fetched anew for every token."
    )
    yield report(
        RULE,
        message,
        _place(launch),
        subject=need.model,
        severity=Severity.WARNING,
        evidence=_evidence(need),
        fix=Fix("Use more cards, or load it quantised"),
    )


def _purpose(need: MemoryNeed) -> str:
    return "Training" if need.purpose == "train" else "Running"


def _parts(need: MemoryNeed) -> str:
    return ", ".join(f"{part.purpose} {gib(part.low)}" for part in need.card if part.low)


def _evidence(need: MemoryNeed) -> Iterator[Evidence | str]:
    yield f"{need.parameters / 1e9:.2f} billion parameters, from {need.origin}"
    for part in need.card:
        if part.low:
            yield f"{part.purpose}: {gib(part.low)} at least ({part.why})"
    if need.uncounted:
        yield f"not counted: {', '.join(need.uncounted)}"


def _place(launch: Launch) -> Location | None:
    given = next(iter(models(launch)), None)
    return given.location if given is not None else launch.command.locate(launch.command.span)


def _fix(need: MemoryNeed, room: int) -> Fix:
    if need.purpose != "train":
        return Fix("Spread it over several cards with device_map auto, or load it quantised")
    shared = need.parameters * 16 // max(1, need.cards)
    if need.form == "sharded":
        return Fix("Offload to the host, use more cards, or train an adapter (LoRA)")
    if any(part.purpose == "adapter" for part in need.card):
        return Fix("Load the frozen weights in four bits (QLoRA), or divide them with ZeRO-3 or FSDP")
    if need.cards > 1 and shared < room:
        return Fix(f"Divide it with ZeRO-3 or FSDP (about {gib(shared)} on each of {need.cards} cards), or train LoRA")
    return Fix("Train an adapter (LoRA), or divide it with ZeRO-3 or FSDP over more cards or with offload")
