"""A combination of arguments that the framework refuses right after parsing them."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.engine import training_arguments
from mgpu_checks.launch.refusals import Refusal, first_refusal
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
    Rule,
    Severity,
    Signature,
    Span,
    Unknown,
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
            "a stage that does not exist",
            f"torchrun --nproc-per-node 2 -m llamafactory.launcher --stage sftt {_BASE} --dataset demo --do_train",
        ),
        Example(
            "YAML reads a bare no as false",
            "llamafactory-cli train sft.yaml",
            files={
                "sft.yaml": "model_name_or_path: local/model\nstage: sft\ndo_train: true\ndataset: demo\n"
                "template: default\noutput_dir: out\neval_strategy: no\n"
            },
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
        Example("a number as Python writes it", f"{_RUN} --dataset demo --do_train --learning_rate 1e-4 --lora_rank 8"),
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
        Reference(
            "llamafactory 0.9.3 with transformers 4.52.4, 0.9.5 with 5.6.0, get_train_args() with some ninety command "
            "lines and files",
            "each refusal and its message; --stage sftt: exit status 2; eval_strategy: no: 'False is not a valid "
            "IntervalStrategy'",
            ran=True,
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
            r"argument --\w+(?:/--[\w-]+)*: (?:invalid choice: |invalid (?:int|float) value: |Truthy value expected)",
            "Python 3.11, argparse with transformers' HfArgumentParser (ran)",
            "launcher.py: error: argument --stage: invalid choice: 'sftt' (choose from 'pt', 'sft', 'rm', 'ppo', "
            "'dpo', 'kto')",
            weak=True,
        ),
        Signature(
            r"is not a valid (?:IntervalStrategy|SaveStrategy|SchedulerType|OptimizerNames), please select one of"
            r"|AssertionError: Invalid fine-tuning method\.|Unknown task: \w+\.",
            "transformers 4.52.4 and 5.6.0, utils/generic.py; llamafactory 0.8.3 to 0.9.5, finetuning_args.py, "
            "tuner.py (ran)",
            "ValueError: False is not a valid IntervalStrategy, please select one of ['no', 'steps', 'epoch']",
        ),
        Signature(
            r"Please specify `export_dir`",
            "llamafactory 0.8.3 to 0.9.5, train/tuner.py export_model()",
            "ValueError: Please specify `export_dir` to save model.",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each launch that its framework would refuse, for the first reason that it would meet."""
    for launch in case.launches:
        refusal = first_refusal(case, launch, training_arguments(launch))
        if refusal is not None:
            yield _report(launch, refusal)


def _report(launch: Launch, refusal: Refusal) -> Finding:
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
