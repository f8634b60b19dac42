"""What LLaMA-Factory's own parser says, against what the rules about its arguments say."""

from __future__ import annotations

import re

import pytest

from mgpu_checks.engine import deepspeed_config_invalid as invalid
from mgpu_checks.launch import target_option_unknown as unknown
from mgpu_checks.launch import target_options_refused as refused
from mgpu_doctor.authoring import Check, Example
from mgpu_doctor.testing import run_example
from oracle_environments import ENVIRONMENTS, python_of, requires_oracle, run_parser

pytestmark = pytest.mark.oracle

RELEASES = {"old": ("0.9.3", "4.52.4"), "new": ("0.9.5", "5.6.0")}

BASE = "--model_name_or_path local/model --template default --output_dir out"

REFUSED = (
    f"--stage sft {BASE} --dataset demo --do_predict --predict_with_generate",
    f"--stage sft {BASE} --do_train",
    f"--stage sft {BASE} --eval_dataset demo --do_predict",
    f"--stage sft {BASE} --dataset demo --do_train --infer_backend vllm",
    f"--stage sft {BASE} --dataset demo --do_train --finetuning_type full --quantization_bit 4",
    f"--stage sft {BASE} --dataset demo --do_train --finetuning_type full --adapter_name_or_path a",
    f"--stage sft {BASE} --dataset demo --do_train --val_size 0.1 --eval_dataset other",
    f"--stage sft {BASE} --do_train --val_size 0.1",
    f"--stage dpo {BASE} --dataset demo --do_train --predict_with_generate",
    f"--stage ppo {BASE} --dataset demo --do_train",
    f"--stage sft {BASE} --dataset demo --do_train --streaming",
    f"--stage sft {BASE} --dataset demo --do_train --streaming --max_samples 10 --max_steps 5",
    f"--stage sft {BASE} --dataset demo --do_train --use_galore",
    f"--stage sft {BASE} --dataset demo --do_train --quantization_device_map auto",
    f"--stage sft {BASE} --dataset demo --do_train --eval_strategy steps --eval_steps 10",
    f"--stage sft {BASE} --dataset demo --do_train --load_best_model_at_end",
    "--stage sft --do_train --dataset demo --template default --output_dir out",
    f"--stage sft {BASE} --dataset demo --val_size 0.1 --do_predict --predict_with_generate --compute_accuracy",
)

ACCEPTED = (
    f"--stage sft {BASE} --dataset demo --do_train",
    f"--stage sft {BASE} --dataset demo --do_train --val_size 0.1 --eval_strategy steps --eval_steps 10",
    f"--stage dpo {BASE} --dataset demo --do_train --finetuning_type full",
    f"--stage sft {BASE} --dataset demo --do_train --adapter_name_or_path a --quantization_bit 4",
    f"--stage sft {BASE} --dataset demo --do_train --streaming --max_steps 5",
    f"--stage sft {BASE} --dataset demo --do_train --finetuning_type full --use_galore",
    f"--stage sft {BASE} --dataset demo --do_train --fp16 false --max_grad 0.5",
    f"--stage sft {BASE} --dataset demo --do_train --learning-rate 1e-4",
)

UNKNOWN = (
    f"--stage sft {BASE} --dataset demo --do_train --gpus 0,1,2,3",
    f"--stage sft {BASE} --dataset demo --do_train --sft_packing",
    f"--stage sft {BASE} --dataset demo --do_train --per_device_train_batchsize 2",
    f"--stage sft {BASE} --dataset demo --do_train --no_cuda_please true",
)

PARSE = """
import os, sys
os.environ["LLAMAFACTORY_VERBOSITY"] = "ERROR"
from llamafactory.hparams import get_train_args
import llamafactory.hparams.parser as parser
parser._check_extra_dependencies = lambda *args, **kwargs: None
result = []
for argv in payload:
    try:
        get_train_args(argv)
        result.append(None)
    except SystemExit as stop:
        result.append("exit")
    except Exception as error:
        result.append(str(error))
"""

ZERO = """
import json
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
result = []
for section in payload:
    try:
        DeepSpeedZeroConfig(**section)
        result.append(None)
    except Exception as error:
        result.append(str(error))
"""


def facts(environment: str) -> dict[str, object]:
    llamafactory, transformers = RELEASES[environment]
    packages = {"llamafactory": llamafactory, "transformers": transformers, "torch": "2.6.0", "deepspeed": "0.16.9"}
    return {"packages": packages, "gpus": []}


def judged(module: object, command: str, environment: str) -> str | None:
    check = Check(module.RULE, module.find)  # type: ignore[attr-defined]
    report = run_example(check, Example("test", command, facts=facts(environment)))
    assert [outcome.reason for outcome in report.outcomes if outcome.reason] == []
    return report.findings[0].message if report.findings else None


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_rules_and_the_parser_agree(environment: str) -> None:
    if python_of(environment) is None:
        pytest.skip("no oracle environment: run python tools/oracles.py")
    arguments = (*REFUSED, *ACCEPTED, *UNKNOWN)
    answers = run_parser(environment, PARSE, [text.split() for text in arguments])
    for text, answer in zip(arguments, answers, strict=True):
        command = f"torchrun --nproc-per-node 1 -m llamafactory.launcher {text}"
        about_names = judged(unknown, command, environment)
        about_values = judged(refused, command, environment)
        if answer is None:
            assert about_names is None, (text, about_names)
            assert about_values is None, (text, about_values)
        elif "not used by the HfArgumentParser" in answer:
            assert about_names is not None, (text, answer)
        else:
            assert about_values is not None, (text, answer)
            said = re.search(r"refuses to start: ['\"](.*)['\"]$", about_values)
            assert said is not None
            assert said.group(1)[:40] in answer, (text, answer, about_values)


@requires_oracle("new")
def test_deepspeed_refuses_the_keys_that_are_not_tabled() -> None:
    sections = [{"stage": 2, "overlap_com": True}, {"stage": 4}, {"stage": 3, "overlap_comm": True}]
    answers = run_parser("new", ZERO, sections)
    assert ["overlap_com" in (answers[0] or ""), answers[1] is not None, answers[2]] == [True, True, None]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_key_that_deepspeed_takes_is_tabled(environment: str) -> None:
    if python_of(environment) is None:
        pytest.skip("no oracle environment: run python tools/oracles.py")
    names = """
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
fields = DeepSpeedZeroConfig.model_fields
result = sorted({*fields, *(field.alias for field in fields.values() if field.alias)})
"""
    taken = run_parser(environment, names, None)
    assert set(taken) <= set(invalid._ZERO)
