"""A combination of arguments that the framework refuses right after parsing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mgpu_checks.engine import (
    Given,
    TrainingArguments,
    has_plain_defaults,
    is_training,
    may_be_before,
    may_be_since,
    training_arguments,
    version_of,
    zero_stage,
)
from mgpu_doctor.authoring import (
    Case,
    Edit,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Location,
    Reference,
    Release,
    Rule,
    Severity,
    Signature,
    Span,
    Unknown,
    dataclass,
    report,
)

_BASE = "--model_name_or_path local/model --template default --output_dir out"
_RUN = f"accelerate launch --num_processes 4 -m llamafactory.launcher --stage sft {_BASE}"
_TRAINER = (
    "from transformers import HfArgumentParser, Trainer, TrainingArguments\n\n"
    "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\n"
    "Trainer(model=build(), args=args).train()\n"
)

_ARGPARSE = (
    "import argparse\n\nparser = argparse.ArgumentParser()\nparser.add_argument('--data_path', required=True)\n"
    "parser.add_argument('--epochs', type=int)\nargs = parser.parse_args()\n"
)

RULE = Rule(
    code="MGD116",
    slug="target-options-refused",
    title="The framework refuses this combination",
    severity=Severity.ERROR,
    summary="arguments that exclude or need each other, refused at start",
    why=(
        "LLaMA-Factory and transformers check their arguments against each other right after parsing and stop with a "
        "ValueError on every rank. Batch prediction, for instance, reads `--eval_dataset` (or a share of `--dataset`, "
        "`--val_size`), never `--dataset` alone. The finding quotes what the release itself would say."
    ),
    bad=(
        Example("prediction without an evaluation set", f"{_RUN} --dataset demo --do_predict --predict_with_generate"),
        Example("training without a data set", f"{_RUN} --do_train"),
        Example("sft prediction that generates nothing", f"{_RUN} --eval_dataset demo --do_predict"),
        Example("vLLM is for chat and API", f"{_RUN} --dataset demo --do_train --infer_backend vllm"),
        Example(
            "quantized loading without LoRA",
            f"{_RUN} --dataset demo --do_train --finetuning_type full --quantization_bit 4",
        ),
        Example(
            "generation under ZeRO-3",
            f"{_RUN} --eval_dataset demo --do_predict --predict_with_generate --deepspeed z3.json",
            files={"z3.json": '{"zero_optimization": {"stage": 3}}\n'},
        ),
        Example("no arguments at all", "torchrun --nproc-per-node 2 -m llamafactory.launcher"),
        Example(
            "fp16 and bf16",
            "torchrun --nproc-per-node 2 train.py --output_dir out --fp16 --bf16",
            files={"train.py": _TRAINER},
        ),
        Example(
            "the best model without evaluation",
            "torchrun --nproc-per-node 2 train.py --output_dir out --load_best_model_at_end --save_strategy steps",
            files={"train.py": _TRAINER},
        ),
        Example(
            "a script's required option",
            "torchrun --nproc-per-node 2 train.py --epochs 3",
            files={"train.py": _ARGPARSE},
        ),
        Example(
            "in a YAML",
            "llamafactory-cli train predict.yaml",
            files={
                "predict.yaml": "model_name_or_path: local/model\nstage: sft\ndo_predict: true\n"
                "predict_with_generate: true\ndataset: demo\ntemplate: default\noutput_dir: out\n"
            },
        ),
    ),
    good=(
        Example("an evaluation set", f"{_RUN} --eval_dataset demo --do_predict --predict_with_generate"),
        Example(
            "the required option, shortened",
            "torchrun --nproc-per-node 2 train.py --epochs 3 --data d",
            files={"train.py": _ARGPARSE},
        ),
        Example("training", f"{_RUN} --dataset demo --do_train --val_size 0.1 --eval_strategy steps"),
        Example("arguments that are not written out", f"{_RUN} --do_predict --predict_with_generate $MORE"),
        Example("left out in a text", "accelerate launch -m llamafactory.launcher --stage sft --do_predict ..."),
        Example("fp16 switched off", f"{_RUN} --dataset demo --do_train --fp16 false --bf16 true"),
        Example(
            "generation under ZeRO-2",
            f"{_RUN} --eval_dataset demo --do_predict --predict_with_generate --deepspeed z2.json",
            files={"z2.json": '{"zero_optimization": {"stage": 2}}\n'},
        ),
        Example(
            "a share of the training set is enough since 0.9.4",
            f"{_RUN} --dataset demo --val_size 0.1 --do_predict --predict_with_generate",
            facts={"packages": {"llamafactory": "0.9.4", "transformers": "4.57.1", "torch": "2.6.0"}},
        ),
        Example(
            "quoted in a README",
            lint=("README.md",),
            files={"README.md": "Run\n\n```bash\naccelerate launch src/train.py # arguments as above\n```\n"},
        ),
    ),
    sources=(
        Reference(
            "llamafactory 0.8.3, 0.9.0 to 0.9.5, hparams/parser.py get_train_args(), _verify_model_args(); "
            "hparams/data_args.py, finetuning_args.py __post_init__()",
            "the conditions and their messages, compared release by release",
        ),
        Reference(
            "llamafactory 0.9.3, --dataset X --do_predict --predict_with_generate",
            "ValueError: Please specify dataset for evaluation.",
            ran=True,
        ),
        Reference(
            "transformers 4.40.2, 4.45.2, 4.52.4, 5.6.0, training_args.py",
            "'At most one of fp16 and bf16 can be True, but not both'; '--load_best_model_at_end requires the save and "
            "eval strategy to match'",
        ),
        Reference("Python 3.11, argparse", "'the following arguments are required', exit status 2"),
        Reference("llamafactory 0.8.3 to 0.9.5, train/tuner.py export_model()", "'Please specify `export_dir` …'"),
    ),
    fix="Change or add the argument that the message names",
    signatures=(
        Signature(
            r"Please specify dataset for (?:training|evaluation)|Please make sure eval_dataset be provided",
            "llamafactory 0.8.3 to 0.9.5, hparams/parser.py get_train_args()",
            "ValueError: Please specify dataset for evaluation.",
        ),
        Signature(
            r"`predict_with_generate` (?:cannot be set as True except SFT|is incompatible with DeepSpeed "
            r"ZeRO-3)|Please enable `predict_with_generate` to save model predictions|Cannot use "
            r"`predict_with_generate` ",
            "llamafactory 0.8.3 to 0.9.5, hparams/parser.py get_train_args()",
            "ValueError: `predict_with_generate` is incompatible with DeepSpeed ZeRO-3.",
        ),
        Signature(
            r"vLLM(?:/SGLang)? backend is only available for API, CLI and Web",
            "llamafactory 0.8.3 to 0.9.5, hparams/parser.py",
            "ValueError: vLLM/SGLang backend is only available for API, CLI and Web.",
        ),
        Signature(
            r"(?:Adapter|Quantization) is only (?:valid|compatible) (?:for|with) the LoRA",
            "llamafactory 0.8.3 to 0.9.5, hparams/parser.py _verify_model_args()",
            "ValueError: Quantization is only compatible with the LoRA method.",
        ),
        Signature(
            r"`neat_packing` cannot be set as True except SFT|`train_on_prompt` or `mask_history` cannot be "
            r"set|RM and PPO stages do not support|PPO training does not support evaluation|Please specify "
            r"`max_steps` in streaming mode",
            "llamafactory 0.9.2 to 0.9.5, hparams/parser.py get_train_args()",
            "ValueError: Please specify `max_steps` in streaming mode.",
        ),
        Signature(
            r"(?:GaLore|APOLLO) (?:and APOLLO are|is) incompatible with DeepSpeed|Distributed training does "
            r"not support layer-wise",
            "llamafactory 0.8.3 to 0.9.5, hparams/parser.py get_train_args()",
            "ValueError: GaLore and APOLLO are incompatible with DeepSpeed yet.",
        ),
        Signature(
            r"Please specify `export_dir`",
            "llamafactory 0.8.3 to 0.9.5, train/tuner.py export_model()",
            "ValueError: Please specify `export_dir` to save model.",
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What the framework would print, the arguments that cause it, and the way out."""

    said: str
    causes: tuple[Given, ...]
    fix: str
    rename: tuple[Given, str] | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Question:
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


def find(case: Case) -> Iterator[Finding]:
    """One finding for each launch that its framework would refuse, for the first reason that it would meet."""
    for launch in case.launches:
        given = training_arguments(launch)
        question = _Question(case, launch, given, case.knowledge.release("llamafactory"))
        refusal = _first(question)
        if refusal is not None:
            yield _report(launch, refusal)


def _first(question: _Question) -> _Refusal | None:
    launch = question.launch
    judges: tuple[Callable[[_Question], Iterator[_Refusal]], ...] = ()
    if _is_llamafactory_training(launch):
        version = version_of(question.release)
        if question.release.certain and version is not None and version < (0, 8, 3):
            return None
        judges = (_missing_model, _trainer, _data, _by_stage, _evaluation, _combinations, _model)
    elif launch.target.framework == "llamafactory" and launch.target.subcommand == "export":
        judges = (_export,)
    elif has_plain_defaults(launch):
        judges = (_trainer,)
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


def _missing_model(question: _Question) -> Iterator[_Refusal]:
    if question.launch.command.source.kind in ("markdown", "rst"):
        return
    if question.given.lacks("model_name_or_path"):
        nothing = not question.given.given and not question.launch.target.argument_words
        note = "no arguments are given" if nothing else "no model is given"
        yield _Refusal("Please provide `model_name_or_path`.", (), "Give --model_name_or_path and the rest", note=note)


def _required(question: _Question) -> Iterator[_Refusal]:
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
            yield _Refusal(said, (), f"Give {flags[0]}", note=f"{flags[0]} is missing")


def _trainer(question: _Question) -> Iterator[_Refusal]:
    """Transformers' own checks of TrainingArguments."""
    both = question.on("fp16", "bf16")
    if len(both) == 2:
        yield _Refusal("At most one of fp16 and bf16 can be True, but not both", both, "Keep one of them")
    best = question.on("load_best_model_at_end")
    given = question.given
    evaluates = given.lacks("eval_strategy", "evaluation_strategy", "eval_steps") or given.text("eval_strategy") == "no"
    if best and evaluates and given.text("save_strategy", "steps") in ("steps", "epoch"):
        yield _Refusal(
            "--load_best_model_at_end requires the save and eval strategy to match",
            best,
            "Give --eval_strategy the same value as --save_strategy",
        )


def _data(question: _Question) -> Iterator[_Refusal]:
    """DataArguments.__post_init__."""
    given = question.given
    size, evaluation = given.get("val_size"), given.get("eval_dataset")
    if size is not None and size.number is not None and size.number > 1e-6:
        if evaluation is not None:
            said = "Cannot specify `val_size` if `eval_dataset` is not None."
            yield _Refusal(said, (size, evaluation), "Keep one of them")
        if given.lacks("dataset"):
            yield _Refusal("Cannot specify `val_size` if `dataset` is None.", (size,), "Give --dataset")
    streaming, most = question.on("streaming"), given.get("max_samples")
    if streaming and most is not None and most.number:
        yield _Refusal("`max_samples` is incompatible with `streaming`.", (most, *streaming), "Keep one of them")
    if streaming and given.lacks("max_steps"):
        yield _Refusal("Please specify `max_steps` in streaming mode.", streaming, "Give --max_steps")


def _by_stage(question: _Question) -> Iterator[_Refusal]:
    stage = question.stage()
    generate = question.on("predict_with_generate")
    chosen = tuple(argument for argument in (question.given.get("stage"),) if argument is not None)
    if stage is not None and stage != "sft" and generate:
        said = "`predict_with_generate` cannot be set as True except SFT."
        yield _Refusal(said, (*generate, *chosen), "Use --stage sft to predict")
    predict = question.on("do_predict")
    if stage == "sft" and predict and question.off("predict_with_generate"):
        said = "Please enable `predict_with_generate` to save model predictions."
        yield _Refusal(said, predict, "Add --predict_with_generate")
    best = question.on("load_best_model_at_end")
    if stage in ("rm", "ppo") and best:
        yield _Refusal("RM and PPO stages do not support `load_best_model_at_end`.", best, "Leave it out")
    if stage == "ppo" and question.off("do_train"):
        said = "PPO training does not support evaluation, use the SFT stage to evaluate models."
        yield _Refusal(said, chosen, "Add --do_train, or use --stage sft")
    if stage == "ppo" and question.given.lacks("reward_model"):
        yield _Refusal("`reward_model` is necessary for PPO training.", chosen, "Give --reward_model")


def _evaluation(question: _Question) -> Iterator[_Refusal]:
    given = question.given
    train = question.on("do_train")
    if train and given.lacks("dataset"):
        yield _Refusal("Please specify dataset for training.", train, "Give --dataset")
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
        yield _Refusal(said, asked, "Give --eval_dataset", rename)
    elif generate and none and question.release.certain and may_be_before(question.release, 0, 9, 4):
        said = "Cannot use `predict_with_generate` if `eval_dataset` is None."
        yield _Refusal(said, generate, "Give --eval_dataset instead of --val_size")
    if generate and may_be_since(question.release, 0, 9, 0) and zero_stage(question.case, question.launch) == 3:
        said = "`predict_with_generate` is incompatible with DeepSpeed ZeRO-3."
        yield _Refusal(said, generate, "Predict without DeepSpeed, or with ZeRO-2")
    accuracy = question.on("compute_accuracy")
    if generate and accuracy:
        said = "Cannot use `predict_with_generate` and `compute_accuracy` together."
        yield _Refusal(said, (*generate, *accuracy), "Keep one of them")


def _evaluates(given: TrainingArguments) -> tuple[Given, ...]:
    """A strategy that switches do_eval on (TrainingArguments.__post_init__)."""
    found = (given.get("eval_strategy"), given.get("evaluation_strategy"))
    return tuple(argument for argument in found if argument is not None and argument.text in ("steps", "epoch"))


def _combinations(question: _Question) -> Iterator[_Refusal]:
    given = question.given
    backend = given.get("infer_backend")
    if backend is not None and backend.text in ("vllm", "sglang"):
        said = "vLLM/SGLang backend is only available for API, CLI and Web."
        if backend.text == "vllm" and question.release.certain and may_be_before(question.release, 0, 9, 3):
            said = "vLLM backend is only available for API, CLI and Web."
        yield _Refusal(said, (backend,), "Use --infer_backend huggingface, or leave it out")
    mapped = given.get("quantization_device_map")
    train = question.on("do_train")
    if train and mapped is not None and mapped.text == "auto":
        yield _Refusal("Cannot use device map for quantized models in training.", (mapped,), "Leave it out")
    low_rank = question.on("use_galore", "use_apollo")
    engine = given.get("deepspeed")
    if low_rank and engine is not None:
        said = "GaLore and APOLLO are incompatible with DeepSpeed yet."
        yield _Refusal(said, (*low_rank, engine), "Keep one of them")
    if low_rank and question.tuning() == "lora":
        said = "Cannot use LoRA with GaLore, APOLLO or BAdam together."
        yield _Refusal(said, low_rank, "Use --finetuning_type full")


def _model(question: _Question) -> Iterator[_Refusal]:
    """_verify_model_args()."""
    given, tuning = question.given, question.tuning()
    adapter, bits = given.get("adapter_name_or_path"), given.get("quantization_bit")
    chosen = tuple(argument for argument in (given.get("finetuning_type"),) if argument is not None)
    if tuning in ("full", "freeze"):
        if adapter is not None:
            yield _Refusal(
                "Adapter is only valid for the LoRA method.", (adapter, *chosen), "Use --finetuning_type lora"
            )
        if bits is not None:
            said = "Quantization is only compatible with the LoRA or OFT method."
            if question.release.certain and may_be_before(question.release, 0, 9, 4):
                said = "Quantization is only compatible with the LoRA method."
            yield _Refusal(said, (bits, *chosen), "Use --finetuning_type lora")
    if bits is not None and question.on("resize_vocab"):
        said = "Cannot resize embedding layers of a quantized model."
        yield _Refusal(said, (bits, *question.on("resize_vocab")), "Keep one of them")
    if bits is not None and adapter is not None and question.on("create_new_adapter"):
        said = "Cannot create new adapter upon a quantized model."
        yield _Refusal(said, (bits, adapter), "Merge the adapter first")


def _export(question: _Question) -> Iterator[_Refusal]:
    given = question.given
    if given.lacks("export_dir") and given.given:
        yield _Refusal(
            "Please specify `export_dir` to save model.", (), "Give --export_dir", note="export_dir is missing"
        )
    adapter, bits = given.get("adapter_name_or_path"), given.get("export_quantization_bit")
    if adapter is not None and bits is not None:
        said = "Please merge adapters before quantizing the model."
        yield _Refusal(said, (bits, adapter), "Export the merged model first, then quantize it")


def _report(launch: Launch, refusal: _Refusal) -> Finding:
    target = launch.target
    word = target.subcommand_word or target.word
    place: Location = refusal.causes[0].location if refusal.causes else launch.command.locate(launch.command.span)
    if not refusal.causes and word is not None:
        place = launch.command.locate(word.span)
    edits: tuple[Edit, ...] = ()
    title = refusal.fix
    if refusal.rename is not None:
        given, name = refusal.rename
        written = given.location.source.slice(given.location.span)
        at = written.find(given.name)
        if 0 <= at <= 2:
            start = given.location.span.start + at
            edits = (Edit(given.location.source, Span(start, start + len(given.name)), name),)
            title = f"Give the data set as --{name}"
    seen = " with ".join(cause.shown for cause in refusal.causes[:2]) or refusal.note
    refuser = target.framework
    if refuser not in ("llamafactory", "transformers"):
        refuser = target.program.source.name if not isinstance(target.program, Unknown) else "the program"
    return report(
        RULE,
        f"{seen}: {refuser} refuses to start: {refusal.said!r}",
        place,
        related=[Evidence(cause.shown, cause.location) for cause in refusal.causes[1:]],
        fix=Fix(title, edits),
    )
