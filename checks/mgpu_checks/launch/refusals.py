"""What LLaMA-Factory's and transformers' parsers refuse, in the order in which they look.

Read and compared in llamafactory 0.8.3, 0.9.0 to 0.9.5: hparams/parser.py get_train_args(), get_infer_args(),
_verify_model_args(), and __post_init__() of hparams/data_args.py, finetuning_args.py, model_args.py; transformers
4.40.2, 4.45.2, 4.52.4, 5.6.0: training_args.py and hf_argparser.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mgpu_checks.engine import (
    Given,
    TrainingArguments,
    deepspeed_file,
    has_plain_defaults,
    is_training,
    may_be_before,
    may_be_since,
    own_config,
    version_of,
    zero_stage,
)
from mgpu_doctor.authoring import Case, Launch, OptionSpec, Release, Unknown, closest, dataclass

_INFERENCE = ("chat", "api", "webchat", "export")
_TRUTH = frozenset(("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"))
"""What transformers' string_to_bool() takes (4.40.2 to 5.6.0, hf_argparser.py)."""

_ENUMERATED = frozenset(
    (
        "eval_strategy",
        "evaluation_strategy",
        "save_strategy",
        "logging_strategy",
        "lr_scheduler_type",
        "optim",
        "hub_strategy",
    )
)
"""Arguments that TrainingArguments turns into an enumeration: refused from a file as well."""

_LORA_ONLY = ("loraplus_lr_ratio", "use_rslora", "use_dora", "pissa_init")


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the framework would print, the arguments that cause it, and the way out."""

    said: str
    causes: tuple[Given, ...]
    fix: str
    rename: tuple[Given, str] | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A launch whose arguments are judged."""

    case: Case
    launch: Launch
    given: TrainingArguments
    release: Release

    def on(self, *names: str) -> tuple[Given, ...]:
        """The given switches of these names that are surely on."""
        found = (self.given.get(name) for name in names)
        return tuple(argument for argument in found if argument is not None and argument.truth is True)

    def off(self, name: str) -> bool:
        """Whether a switch that is off by default is surely off."""
        return self.given.truth(name) is False

    def stage(self) -> str | None:
        """``--stage``, sft by default."""
        return self.given.text("stage", "sft")

    def tuning(self) -> str | None:
        """``--finetuning_type``, lora by default."""
        return self.given.text("finetuning_type", "lora")


def first_refusal(case: Case, launch: Launch, given: TrainingArguments) -> Refusal | None:
    """The first reason for which the launch's program would refuse its arguments; None when none is certain."""
    question = Question(case, launch, given, case.knowledge.release("llamafactory"))
    judges: tuple[Callable[[Question], Iterator[Refusal]], ...] = ()
    if _is_llamafactory_training(launch):
        version = version_of(question.release)
        if question.release.certain and version is not None and version < (0, 8, 3):
            return None
        judges = (
            _spelt,
            _missing_model,
            _model_arguments,
            _data,
            _trainer,
            _tuning,
            _by_stage,
            _evaluation,
            _combinations,
            _distributed,
            _model,
        )
    elif launch.target.framework == "llamafactory" and launch.target.subcommand in _INFERENCE:
        judges = (_spelt, _inference, _model, _export)
    elif has_plain_defaults(launch):
        judges = (_spelt, _trainer)
    else:
        judges = (_required,)
    return next((refusal for judge in judges for refusal in judge(question)), None)


def _is_llamafactory_training(launch: Launch) -> bool:
    target = launch.target
    if not is_training(launch):
        return False
    if target.kind == "command":
        return target.subcommand == "train"
    if target.kind == "module":
        return target.value == "llamafactory.launcher"
    return not isinstance(target.program, Unknown) and target.program.first("run-exp") is not None


def _missing_model(question: Question) -> Iterator[Refusal]:
    if question.launch.command.source.kind in ("markdown", "rst"):
        return
    if not question.given.given and question.launch.target.argument_words:
        # Words that are no arguments, a sub-command for example, stop it earlier.
        return
    if question.given.lacks("model_name_or_path"):
        nothing = not question.given.given
        note = "no arguments are given" if nothing else "no model is given"
        yield Refusal("Please provide `model_name_or_path`.", (), "Give --model_name_or_path and the rest", note=note)


def _required(question: Question) -> Iterator[Refusal]:
    """Options that a script's own argparse parser demands, when all that it declares can be seen."""
    program = question.launch.target.program
    if isinstance(program, Unknown) or program.strict_options is not True or "subparsers" in program.source.text:
        return
    if question.launch.command.source.kind in ("markdown", "rst") or not question.given.complete:
        return
    typed = [argument.flag or "" for argument in question.launch.target.arguments]
    if {"-h", "--help", "--version"} & set(typed):
        return
    for option in program.options:
        flags = [flag for flag in option.flags if flag.startswith("--")]
        if not option.required or not flags or len(flags) != len(option.flags) or "rank" in flags[0]:
            continue
        if not any(flag.startswith(given) for flag in flags for given in typed if given.startswith("--")):
            said = f"the following arguments are required: {'/'.join(flags)}"
            yield Refusal(said, (), f"Give {flags[0]}", note=f"{flags[0]} is missing")


def _trainer(question: Question) -> Iterator[Refusal]:
    """Transformers' own checks of TrainingArguments."""
    both = question.on("fp16", "bf16")
    if len(both) == 2:
        yield Refusal("At most one of fp16 and bf16 can be True, but not both", both, "Keep one of them")
    best = question.on("load_best_model_at_end")
    given = question.given
    evaluates = given.lacks("eval_strategy", "evaluation_strategy", "eval_steps") or given.text("eval_strategy") == "no"
    if best and evaluates and given.text("save_strategy", "steps") in ("steps", "epoch"):
        yield Refusal(
            "--load_best_model_at_end requires the save and eval strategy to match",
            best,
            "Give --eval_strategy the same value as --save_strategy",
        )

    if best:
        yield from _saved_where_evaluated(given, best)
    ratio = given.get("warmup_ratio")
    release = question.case.knowledge.release("transformers")
    share = None if ratio is None else ratio.number
    checked = release.certain and may_be_before(release, 5)
    if ratio is not None and share is not None and checked and not 0 <= share <= 1:
        yield Refusal("warmup_ratio must lie in range [0,1]", (ratio,), "Give steps as --warmup_steps")
    every = given.get("logging_steps")
    if every is not None and every.number == 0 and given.text("logging_strategy", "steps") == "steps":
        said = "logging strategy IntervalStrategy.STEPS requires non-zero --logging_steps"
        yield Refusal(said, (every,), "Give --logging_strategy no")


def _saved_where_evaluated(given: TrainingArguments, best: tuple[Given, ...]) -> Iterator[Refusal]:
    """load_best_model_at_end: what is saved must have been evaluated."""
    evaluated, saved = given.get("eval_strategy"), given.text("save_strategy", "steps")
    if evaluated is None or evaluated.text not in ("steps", "epoch") or saved not in ("steps", "epoch"):
        return
    if evaluated.text != saved:
        said = "--load_best_model_at_end requires the save and eval strategy to match"
        yield Refusal(said, (*best, evaluated), "Give --save_strategy the same value as --eval_strategy")
        return
    each, every = given.get("eval_steps"), given.number("save_steps", 500.0)
    apart = None if each is None else each.number
    if saved != "steps" or each is None or apart is None or every is None or min(apart, every) < 1:
        return
    if every % apart:
        said = "--load_best_model_at_end requires the saving steps to be a round multiple of the evaluation steps"
        yield Refusal(said, (*best, each), "Make save_steps a multiple of eval_steps")


def _data(question: Question) -> Iterator[Refusal]:
    """DataArguments.__post_init__."""
    given = question.given
    size, evaluation = given.get("val_size"), given.get("eval_dataset")
    if size is not None and size.number is not None and size.number > 1e-6:
        if evaluation is not None:
            said = "Cannot specify `val_size` if `eval_dataset` is not None."
            yield Refusal(said, (size, evaluation), "Keep one of them")
        if given.lacks("dataset"):
            yield Refusal("Cannot specify `val_size` if `dataset` is None.", (size,), "Give --dataset")
    streaming, most = question.on("streaming"), given.get("max_samples")
    if streaming and size is not None and size.number is not None and 1e-6 < size.number < 1:
        yield Refusal("Streaming mode should have an integer val size.", (size, *streaming), "Give a number of samples")
    if streaming and most is not None and most.number:
        yield Refusal("`max_samples` is incompatible with `streaming`.", (most, *streaming), "Keep one of them")
    history, prompt = question.on("mask_history"), question.on("train_on_prompt")
    if history and prompt and may_be_since(question.release, 0, 9, 0):
        yield Refusal("`mask_history` is incompatible with `train_on_prompt`.", (*history, *prompt), "Keep one of them")
    yield from _probabilities(given)
    if streaming and given.lacks("max_steps"):
        yield Refusal("Please specify `max_steps` in streaming mode.", streaming, "Give --max_steps")


def _probabilities(given: TrainingArguments) -> Iterator[Refusal]:
    shares = given.get("interleave_probs")
    if shares is None or shares.text is None:
        return
    if given.text("mix_strategy", "concat") == "concat":
        said = "`interleave_probs` is only valid for interleaved mixing."
        yield Refusal(said, (shares,), "Give --mix_strategy interleave_under")
    for name, noun in (("dataset", "dataset"), ("eval_dataset", "eval dataset")):
        sets = given.get(name)
        if sets is None or sets.value is None or isinstance(sets.value, bool):
            continue
        count = len(sets.value) if isinstance(sets.value, list) else len(str(sets.value).split(","))
        if count != len(shares.text.split(",")):
            said = f"The length of {noun} and interleave probs should be identical."
            yield Refusal(said, (shares, sets), "Give one number for each data set")


def _by_stage(question: Question) -> Iterator[Refusal]:
    stage = question.stage()
    generate = question.on("predict_with_generate")
    chosen = tuple(argument for argument in (question.given.get("stage"),) if argument is not None)
    if stage is not None and stage != "sft" and generate:
        said = "`predict_with_generate` cannot be set as True except SFT."
        yield Refusal(said, (*generate, *chosen), "Use --stage sft to predict")
    packed = question.on("neat_packing")
    if stage is not None and stage != "sft" and packed:
        yield Refusal("`neat_packing` cannot be set as True except SFT.", (*packed, *chosen), "Leave it out")
    masked = question.on("train_on_prompt") or question.on("mask_history")
    if stage is not None and stage != "sft" and masked and may_be_since(question.release, 0, 9, 0):
        said = "`train_on_prompt` or `mask_history` cannot be set as True except SFT."
        yield Refusal(said, (*masked, *chosen), "Leave it out")
    predict = question.on("do_predict")
    if stage == "sft" and predict and question.off("predict_with_generate"):
        said = "Please enable `predict_with_generate` to save model predictions."
        yield Refusal(said, predict, "Add --predict_with_generate")
    best = question.on("load_best_model_at_end")
    if stage in ("rm", "ppo") and best:
        yield Refusal("RM and PPO stages do not support `load_best_model_at_end`.", best, "Leave it out")
    if stage == "ppo" and question.off("do_train"):
        said = "PPO training does not support evaluation, use the SFT stage to evaluate models."
        yield Refusal(said, chosen, "Add --do_train, or use --stage sft")
    shifted = question.on("shift_attn")
    if stage == "ppo" and shifted:
        yield Refusal("PPO training is incompatible with S^2-Attn.", (*shifted, *chosen), "Leave shift_attn out")
    unsloth = question.on("use_unsloth")
    if stage == "ppo" and unsloth and question.given.text("reward_model_type", "lora") == "lora":
        yield Refusal("Unsloth does not support lora reward model.", (*unsloth, *chosen), "Leave use_unsloth out")
    if stage == "ppo" and question.given.lacks("reward_model"):
        yield Refusal("`reward_model` is necessary for PPO training.", chosen, "Give --reward_model")


def _evaluation(question: Question) -> Iterator[Refusal]:
    given = question.given
    train = question.on("do_train")
    if train and given.lacks("dataset"):
        yield Refusal("Please specify dataset for training.", train, "Give --dataset")
    asked = question.on("do_predict", "do_eval") or _evaluates(given)
    generate = question.on("predict_with_generate")
    if not asked and may_be_since(question.release, 0, 9, 4) and question.release.certain:
        asked = generate
    none = given.lacks("eval_dataset")
    if asked and none and given.number("val_size", 0.0) == 0.0:
        dataset = given.get("dataset")
        rename = (dataset, "eval_dataset") if dataset is not None and not train else None
        version = version_of(question.release)
        older = version is not None and question.release.certain and version < (0, 9, 4)
        said = "Please specify dataset for evaluation."
        if not older:
            said = "Please make sure eval_dataset be provided or val_size >1e-6"
        yield Refusal(said, asked, "Give --eval_dataset", rename)
    elif generate and none and question.release.certain and may_be_before(question.release, 0, 9, 4):
        said = "Cannot use `predict_with_generate` if `eval_dataset` is None."
        yield Refusal(said, generate, "Give --eval_dataset instead of --val_size")
    if generate and may_be_since(question.release, 0, 9, 0) and zero_stage(question.case, question.launch) == 3:
        said = "`predict_with_generate` is incompatible with DeepSpeed ZeRO-3."
        yield Refusal(said, generate, "Predict without DeepSpeed, or with ZeRO-2")
    accuracy = question.on("compute_accuracy")
    if generate and accuracy:
        said = "Cannot use `predict_with_generate` and `compute_accuracy` together."
        yield Refusal(said, (*generate, *accuracy), "Keep one of them")


def _evaluates(given: TrainingArguments) -> tuple[Given, ...]:
    """A strategy that switches do_eval on (TrainingArguments.__post_init__)."""
    found = (given.get("eval_strategy"), given.get("evaluation_strategy"))
    return tuple(argument for argument in found if argument is not None and argument.text in ("steps", "epoch"))


def _combinations(question: Question) -> Iterator[Refusal]:
    given = question.given
    backend = given.get("infer_backend")
    if backend is not None and backend.text in ("vllm", "sglang"):
        said = "vLLM/SGLang backend is only available for API, CLI and Web."
        if backend.text == "vllm" and question.release.certain and may_be_before(question.release, 0, 9, 3):
            said = "vLLM backend is only available for API, CLI and Web."
        yield Refusal(said, (backend,), "Use --infer_backend huggingface, or leave it out")
    mapped = given.get("quantization_device_map")
    train = question.on("do_train")
    if train and mapped is not None and mapped.text == "auto":
        yield Refusal("Cannot use device map for quantized models in training.", (mapped,), "Leave it out")
    low_rank = question.on("use_galore", "use_apollo")
    engine = given.get("deepspeed")
    if low_rank and engine is not None:
        said = "GaLore and APOLLO are incompatible with DeepSpeed yet."
        yield Refusal(said, (*low_rank, engine), "Keep one of them")
    others = (*low_rank, *question.on("use_badam"))
    if others and question.tuning() == "lora":
        said = "Cannot use LoRA with GaLore, APOLLO or BAdam together."
        yield Refusal(said, others, "Use --finetuning_type full")
    if len(others) > 1:
        yield Refusal("Cannot use GaLore, APOLLO or BAdam together.", others, "Keep one of them")
    eight, bits = question.on("fp8"), given.get("quantization_bit")
    if eight and bits is not None and bits.number and may_be_since(question.release, 0, 9, 4):
        said = "FP8 training is not compatible with quantization. Please disable one of them."
        yield Refusal(said, (*eight, bits), "Keep one of them")


def _model(question: Question) -> Iterator[Refusal]:
    """_verify_model_args()."""
    given, tuning = question.given, question.tuning()
    adapter, bits = given.get("adapter_name_or_path"), given.get("quantization_bit")
    chosen = tuple(argument for argument in (given.get("finetuning_type"),) if argument is not None)
    if tuning == "oft" and adapter is not None:
        said = "Adapter is only valid for the LoRA method."
        yield Refusal(said, (adapter, *chosen), "Use --finetuning_type lora")
    if tuning in ("full", "freeze"):
        if adapter is not None:
            yield Refusal(
                "Adapter is only valid for the LoRA method.", (adapter, *chosen), "Use --finetuning_type lora"
            )
        if bits is not None:
            said = "Quantization is only compatible with the LoRA or OFT method."
            if question.release.certain and may_be_before(question.release, 0, 9, 4):
                said = "Quantization is only compatible with the LoRA method."
            yield Refusal(said, (bits, *chosen), "Use --finetuning_type lora")
    if bits is not None and question.on("resize_vocab"):
        said = "Cannot resize embedding layers of a quantized model."
        yield Refusal(said, (bits, *question.on("resize_vocab")), "Keep one of them")
    if bits is not None and question.on("pissa_init"):
        said = "Please use scripts/pissa_init.py to initialize PiSSA for a quantized model."
        yield Refusal(said, (bits, *question.on("pissa_init")), "Keep one of them")
    if bits is not None and adapter is not None and adapter.text is not None and "," in adapter.text:
        yield Refusal("Quantized model only accepts a single adapter. Merge them first.", (bits, adapter), "Merge them")
    if bits is not None and adapter is not None and question.on("create_new_adapter"):
        said = "Cannot create new adapter upon a quantized model."
        yield Refusal(said, (bits, adapter), "Merge the adapter first")


def _export(question: Question) -> Iterator[Refusal]:
    given = question.given
    if question.launch.target.subcommand != "export" or given.get("do_train") is not None:
        # A file for training is none for export: that has a rule of its own.
        return
    if given.lacks("export_dir") and given.given:
        yield Refusal(
            "Please specify `export_dir` to save model.", (), "Give --export_dir", note="export_dir is missing"
        )
    adapter, bits = given.get("adapter_name_or_path"), given.get("export_quantization_bit")
    if adapter is not None and bits is not None:
        said = "Please merge adapters before quantizing the model."
        yield Refusal(said, (bits, adapter), "Export the merged model first, then quantize it")


def _spelt(question: Question) -> Iterator[Refusal]:
    """Values that are none: outside the choices, or no number. A file's values are looked at by fewer readers."""
    launch = question.launch
    package, group = "llamafactory", "train" if is_training(launch) else "infer"
    if launch.target.framework != "llamafactory":
        package, group = "transformers", "TrainingArguments"
    fields = question.case.knowledge.fields(package, group)
    if isinstance(fields, Unknown):
        return
    transformers = question.case.knowledge.release("transformers")
    certain = transformers.certain and (package == "transformers" or question.release.certain)
    from_file = own_config(launch) is not None
    specs = {spec.dest: spec for spec in fields}
    for name, given in question.given.given.items():
        spec = specs.get(name)
        if spec is None:
            continue
        yield from _in_file(given, spec, certain) if from_file else _on_line(given, spec, certain)


def _in_file(given: Given, spec: OptionSpec, certain: bool) -> Iterator[Refusal]:
    """A file's values go into the dataclasses as they are; only some of these look at them."""
    is_known = spec.choices is None or given.value in spec.choices or given.value is None
    if is_known or spec.choices is None:
        return
    choices = tuple(str(choice) for choice in spec.choices)
    if given.name in _ENUMERATED and given.value is False:
        said = f"False is not a valid {'SaveStrategy' if given.name == 'save_strategy' else 'IntervalStrategy'}"
        yield Refusal(said, (given,), "Quote it: YAML reads a bare no as false", note="")
    elif given.name in _ENUMERATED and isinstance(given.value, str):
        near = closest(given.value, choices, 1)
        if near or certain:
            said = f"{given.value} is not a valid {given.name}, please select one of {list(choices)[:8]}"
            yield Refusal(said, (given,), f"Write {near[0]}" if near else "Use one of the choices")
    elif given.name in ("finetuning_type", "stage") and isinstance(given.value, str):
        near = closest(given.value.lower(), choices, 1)
        if near or certain:
            said = "Invalid fine-tuning method." if given.name == "finetuning_type" else f"Unknown task: {given.value}."
            yield Refusal(said, (given,), f"Write {near[0]}" if near else f"Use one of {', '.join(choices)}")


def _on_line(given: Given, spec: OptionSpec, certain: bool) -> Iterator[Refusal]:
    """Argparse converts what is on the command line, and refuses what it cannot."""
    text = given.text
    if text is None or spec.nargs in ("+", "*"):
        return
    if spec.choices is not None:
        choices = tuple(str(choice) for choice in spec.choices)
        near = closest(text.lower(), choices, 1)
        if text not in choices and (certain or near):
            said = f"argument --{spec.dest}: invalid choice: '{text}' (choose from {', '.join(choices[:8])})"
            yield Refusal(said, (given,), f"Write {near[0]}" if near else "Use one of the choices")
        return
    if spec.type == "string_to_bool" and text.lower() not in _TRUTH:
        said = f"argument --{spec.dest}: Truthy value expected: got {text}"
        yield Refusal(said, (given,), "Write true or false")
    elif spec.type in ("int", "float") and not _is_number(text, spec.type):
        said = f"argument --{spec.dest}: invalid {spec.type} value: '{text}'"
        yield Refusal(said, (given,), "Write a whole number" if spec.type == "int" else "Write a number")


def _is_number(text: str, kind: str) -> bool:
    try:
        int(text) if kind == "int" else float(text)
    except ValueError:
        return False
    return True


def _model_arguments(question: Question) -> Iterator[Refusal]:
    """ModelArguments.__post_init__."""
    given = question.given
    split = question.on("split_special_tokens")
    checked = question.release.certain and may_be_before(question.release, 0, 9, 5)
    if split and checked and given.truth("use_fast_tokenizer", default=True) is True:
        said = "`split_special_tokens` is only supported for slow tokenizers."
        yield Refusal(said, split, "Add --use_fast_tokenizer false")
    bits = given.get("export_quantization_bit")
    if bits is not None and bits.number and given.lacks("export_quantization_dataset"):
        said = "Quantization dataset is necessary for exporting."
        yield Refusal(said, (bits,), "Give --export_quantization_dataset")
    for kind in ("image", "video"):
        most, least = given.get(f"{kind}_max_pixels"), given.get(f"{kind}_min_pixels")
        if most is None or least is None or most.number is None or least.number is None:
            continue
        if most.number < least.number and question.release.certain and may_be_since(question.release, 0, 9, 3):
            said = f"`{kind}_max_pixels` cannot be smaller than `{kind}_min_pixels`."
            yield Refusal(said, (most, least), "Swap them")


def _tuning(question: Question) -> Iterator[Refusal]:
    """FinetuningArguments.__post_init__."""
    given, tuning, stage = question.given, question.tuning(), question.stage()
    chosen = tuple(argument for argument in (given.get("finetuning_type"),) if argument is not None)
    if stage == "ppo" and tuning in ("full", "freeze") and given.text("reward_model_type", "lora") == "lora":
        said = "`reward_model_type` cannot be lora for Freeze/Full PPO training."
        yield Refusal(said, chosen, "Give --reward_model_type full")
    smoothing, loss = given.get("dpo_label_smoothing"), given.get("pref_loss")
    other_loss = loss is not None and loss.text not in (None, "sigmoid")
    if stage == "dpo" and loss is not None and other_loss and smoothing is not None and (smoothing.number or 0) > 1e-6:
        said = "`dpo_label_smoothing` is only valid for sigmoid loss function."
        yield Refusal(said, (smoothing, loss), "Leave it out")
    blocks = question.on("use_llama_pro")
    if blocks and tuning == "full":
        said = "`use_llama_pro` is only valid for Freeze or LoRA training."
        yield Refusal(said, (*blocks, *chosen), "Use --finetuning_type freeze or lora")
    initial = question.on("pissa_init")
    referred = stage == "dpo" and given.text("pref_loss", "sigmoid") not in (None, "orpo", "simpo")
    if initial and (stage in ("ppo", "kto") or referred):
        said = "Cannot use PiSSA for current training stage."
        yield Refusal(said, initial, "Leave pissa_init out")
    if tuning in ("full", "freeze"):
        for name in _LORA_ONLY:
            argument = given.get(name)
            if argument is not None and (argument.truth if name != "loraplus_lr_ratio" else argument.number):
                said = f"`{name}` is only valid for LoRA training."
                yield Refusal(said, (argument, *chosen), "Use --finetuning_type lora")


def _distributed(question: Question) -> Iterator[Refusal]:
    """What only several processes are refused."""
    if not question.launch.distributed_layers:
        return
    for method in ("galore", "apollo"):
        by_layer = question.on(f"{method}_layerwise")
        if by_layer and question.on(f"use_{method}"):
            name = "GaLore" if method == "galore" else "APOLLO"
            said = f"Distributed training does not support layer-wise {name}."
            yield Refusal(said, by_layer, f"Leave {method}_layerwise out")
    badam = question.on("use_badam")
    if not badam:
        return
    mode = question.given.text("badam_mode", "layer")
    if mode == "ratio":
        said = "Radio-based BAdam does not yet support distributed training, use layer-wise BAdam."
        yield Refusal(said, badam, "Use --badam_mode layer")
    elif mode == "layer" and _surely_without_third_stage(question):
        said = "Layer-wise BAdam only supports DeepSpeed ZeRO-3 training."
        yield Refusal(said, badam, "Give --deepspeed a configuration with stage 3")


def _surely_without_third_stage(question: Question) -> bool:
    if question.launch.layer("accelerate") is not None:
        return False
    if question.given.lacks("deepspeed"):
        return True
    return deepspeed_file(question.case, question.launch) is not None and zero_stage(
        question.case, question.launch
    ) in (0, 1, 2)


def _inference(question: Question) -> Iterator[Refusal]:
    """get_infer_args()."""
    given = question.given
    backend = given.get("infer_backend")
    if backend is None or backend.text != "vllm":
        return
    stage, bits, adapters = given.get("stage"), given.get("quantization_bit"), given.get("adapter_name_or_path")
    if stage is not None and stage.text not in (None, "sft"):
        yield Refusal("vLLM engine only supports auto-regressive models.", (backend, stage), "Leave --stage out")
    if bits is not None and bits.number:
        said = "vLLM engine does not support bnb quantization (GPTQ and AWQ are supported)."
        yield Refusal(said, (backend, bits), "Leave --quantization_bit out")
    scaling = given.get("rope_scaling")
    if scaling is not None and scaling.text is not None:
        yield Refusal("vLLM engine does not support RoPE scaling.", (backend, scaling), "Leave --rope_scaling out")
    if adapters is not None and adapters.text is not None and "," in adapters.text:
        yield Refusal("vLLM only accepts a single adapter. Merge them first.", (backend, adapters), "Merge them first")
