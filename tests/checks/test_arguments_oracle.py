"""What LLaMA-Factory's own parser says, against what the rules about its arguments say."""

from __future__ import annotations

import json
import re
from functools import lru_cache

import pytest
import yaml

from mgpu_checks.engine import deepspeed_config_invalid as invalid
from mgpu_checks.launch import arguments_file_invalid as unreadable
from mgpu_checks.launch import target_option_unknown as unknown
from mgpu_checks.launch import target_options_refused as refused
from mgpu_doctor.authoring import Check, Example, Severity
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

YAML = (
    "model_name_or_path: local/model\nstage: sft\ndo_train: true\ndataset: demo\ntemplate: default\noutput_dir: out\n"
    "finetuning_type: lora\n"
)
FULL = YAML.replace("type: lora", "type: full")
PPO = YAML.replace("stage: sft", "stage: ppo") + "reward_model: local/reward\n"
DPO = YAML.replace("stage: sft", "stage: dpo")
STAGES = {
    "z2.json": '{"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 2}}\n',
    "z3.json": '{"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 3}}\n',
}

REFUSED_FILES = {
    "misspelt method": YAML.replace("lora", "loar"),
    "capital method": YAML.replace("type: lora", "type: LoRA"),
    "scheduler": f"{YAML}lr_scheduler_type: cosin\n",
    "optimiser": f"{YAML}optim: adamw_trch\n",
    "evaluation": f"{YAML}eval_strategy: step\nval_size: 0.1\n",
    "saving": f"{YAML}save_strategy: epochs\n",
    "a bare no": f"{YAML}eval_strategy: no\n",
    "saving, a bare no": f"{YAML}save_strategy: no\n",
    "shares": f"{YAML}mix_strategy: interleave_under\ninterleave_probs: 0.5,0.5\n",
    "shares without mixing": f"{YAML}interleave_probs: 0.5,0.5\n",
    "history and prompt": f"{YAML}mask_history: true\ntrain_on_prompt: true\n",
    "history in dpo": f"{DPO}mask_history: true\n",
    "packing in dpo": f"{DPO}neat_packing: true\n",
    "a share of a stream": f"{YAML}streaming: true\nmax_steps: 5\nval_size: 0.1\n",
    "samples of a stream": f"{YAML}streaming: true\nmax_steps: 5\nmax_samples: 5\n",
    "PiSSA, quantised": f"{YAML}pissa_init: true\nquantization_bit: 4\n",
    "PiSSA in dpo": f"{DPO}pissa_init: true\n",
    "PiSSA, full": f"{FULL}pissa_init: true\n",
    "DoRA, full": f"{FULL}use_dora: true\n",
    "rsLoRA, full": f"{FULL}use_rslora: true\n",
    "LoRA+, full": f"{FULL}loraplus_lr_ratio: 16.0\n",
    "LLaMA Pro, full": f"{FULL}use_llama_pro: true\n",
    "BAdam and LoRA": f"{YAML}use_badam: true\n",
    "BAdam, ratio": f"{FULL}use_badam: true\nbadam_mode: ratio\n",
    "BAdam without ZeRO": f"{FULL}use_badam: true\n",
    "BAdam with ZeRO-2": f"{FULL}use_badam: true\ndeepspeed: z2.json\n",
    "BAdam and GaLore": f"{FULL}use_badam: true\nuse_galore: true\n",
    "GaLore by layer": f"{FULL}use_galore: true\ngalore_layerwise: true\n",
    "GaLore with ZeRO-2": f"{FULL}use_galore: true\ndeepspeed: z2.json\n",
    "PPO, shifted": f"{PPO}shift_attn: true\n",
    "PPO, full": PPO.replace("type: lora", "type: full"),
    "PPO, Unsloth": f"{PPO}use_unsloth: true\n",
    "smoothing": f"{DPO}pref_loss: hinge\ndpo_label_smoothing: 0.1\n",
    "two adapters, quantised": f"{YAML}quantization_bit: 4\nadapter_name_or_path: a,b\n",
    "pixels": f"{YAML}image_max_pixels: 10\nimage_min_pixels: 100\n",
    "export": f"{YAML}export_quantization_bit: 4\n",
    "steps that do not meet": (
        f"{YAML}load_best_model_at_end: true\nval_size: 0.1\neval_strategy: steps\neval_steps: 300\nsave_steps: 500\n"
    ),
    "strategies that differ": f"{YAML}load_best_model_at_end: true\nval_size: 0.1\neval_strategy: epoch\n",
    "no logging steps": f"{YAML}logging_steps: 0\n",
    "evaluation without a set": f"{YAML}eval_strategy: steps\n",
    "predictions that are not made": YAML.replace("do_train", "do_predict"),
    "vLLM": f"{YAML}infer_backend: vllm\n",
    "unknown key": f"{YAML}lr: 1e-4\n",
    "a tab": f"{YAML}\tbf16: true\n",
    "a list": "- stage: sft\n",
}

ACCEPTED_FILES = {
    "plain": YAML,
    "a rate without a point": f"{YAML}learning_rate: 1e-4\n",
    "texts for numbers": f"{YAML}learning_rate: '1e-4'\nnum_train_epochs: '3.0'\n",
    "a list of data sets": YAML.replace("dataset: demo", "dataset: [demo, other]"),
    "targets": f"{YAML}lora_target: [q_proj, v_proj]\n",
    "no report": f"{YAML}report_to: none\n",
    "packing": f"{YAML}neat_packing: true\n",
    "ZeRO-2": f"{YAML}deepspeed: z2.json\n",
    "ZeRO-3": f"{YAML}deepspeed: z3.json\n",
    "BAdam with ZeRO-3": f"{FULL}use_badam: true\ndeepspeed: z3.json\n",
    "PiSSA without a reference": f"{DPO}pissa_init: true\npref_loss: orpo\n",
    "PPO, no report": f"{PPO}report_to: none\n",
    "steps that meet": (
        f"{YAML}load_best_model_at_end: true\nval_size: 0.1\neval_strategy: steps\neval_steps: 250\nsave_steps: 500\n"
    ),
    "a number of samples of a stream": f"{YAML}streaming: true\nmax_steps: 5\nval_size: 10\n",
    "quoted no": f"{YAML}eval_strategy: 'no'\n",
    "a byte-order mark": f"\ufeff{YAML}",
    "a variable": f"{YAML}run_name: $HOME\n",
}

SPELT = (
    f"--stage sftt {BASE} --dataset demo --do_train",
    f"--stage sft {BASE} --dataset demo --do_train --lora_rank eight",
    f"--stage sft {BASE} --dataset demo --do_train --learning_rate fast",
    f"--stage sft {BASE} --dataset demo --do_train --packing maybe",
    f"--stage sft {BASE} --dataset demo --do_train --packing on",
    f"--stage sft {BASE} --dataset demo --do_train --finetuning_type loar",
    f"--stage sft {BASE} --dataset demo --do_train --lr_scheduler_type cosin",
    f"--stage sft {BASE} --dataset demo --do_train --quantization_bit four",
    f"--stage sft {BASE} --dataset demo --do_train --per_device_train_batch_size 2.5",
    f"--stage sft {BASE} --dataset demo --do_train --infer_backend hf",
)
"""Values that argparse refuses with exit status 2."""

ALSO_ACCEPTED = (
    f"--stage sft {BASE} --dataset demo --do_train --num_train_epochs 3.5",
    f"--stage sft {BASE} --dataset demo --do_train --packing yes --lora_rank 8 --learning_rate 1e-4",
    f"--stage sft {BASE} --dataset demo --do_train --packing F",
)

PARSE = """
import os, sys, tempfile
os.environ["LLAMAFACTORY_VERBOSITY"] = "ERROR"
import llamafactory.hparams.parser as parser
from transformers import TrainingArguments
from transformers.training_args import ParallelMode
import transformers.integrations.deepspeed as engine
parser._check_extra_dependencies = lambda *args, **kwargs: None
parser.transformers.set_seed = lambda *args, **kwargs: None
TrainingArguments.parallel_mode = property(lambda self: ParallelMode.DISTRIBUTED)
os.chdir(tempfile.mkdtemp())
result = []
for files, argv in payload:
    for name, text in files.items():
        with open(name, "w") as file:
            file.write(text)
    sys.argv = ["train", *argv]
    engine._hf_deepspeed_config_weak_ref = None
    try:
        parser.get_train_args()
        result.append(None)
    except SystemExit as stop:
        result.append(f"exit {stop.code}")
    except Exception as error:
        result.append(str(error))
"""
"""Each command's arguments through the release's own parser, as one of several processes."""

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


RULES = (unknown, refused, unreadable)


def judged(command: str, environment: str, files: dict[str, str]) -> dict[str, str]:
    """The first error of each rule about arguments, by the rule's slug."""
    out: dict[str, str] = {}
    for module in RULES:
        check = Check(module.RULE, module.find)
        report = run_example(check, Example("test", command, files=files, facts=facts(environment)))
        assert [outcome.reason for outcome in report.outcomes if outcome.reason] == []
        messages = [finding.message for finding in report.findings if finding.severity is Severity.ERROR]
        if messages:
            out[module.RULE.slug] = messages[0]
    return out


@lru_cache(maxsize=2)
def answers(environment: str) -> dict[str, str | None]:
    """What the environment's parser says to every command line and file above, by its text or name."""
    if python_of(environment) is None:
        pytest.skip("no oracle environment: run python tools/oracles.py")
    lines = (*REFUSED, *ACCEPTED, *UNKNOWN, *SPELT, *ALSO_ACCEPTED)
    payload: list[tuple[dict[str, str], list[str]]] = [({}, text.split()) for text in lines]
    payload += [
        ({"a.yaml": text, **STAGES}, ["a.yaml"]) for text in (*REFUSED_FILES.values(), *ACCEPTED_FILES.values())
    ]
    return dict(zip((*lines, *REFUSED_FILES, *ACCEPTED_FILES), run_parser(environment, PARSE, payload), strict=True))


@pytest.mark.parametrize("text", [*REFUSED, *ACCEPTED, *UNKNOWN, *SPELT, *ALSO_ACCEPTED])
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_rules_and_the_parser_agree_about_command_lines(environment: str, text: str) -> None:
    answer = answers(environment)[text]
    messages = judged(f"torchrun --nproc-per-node 2 -m llamafactory.launcher {text}", environment, {})
    if answer is None:
        assert messages == {}
    elif "not used by the HfArgumentParser" in answer:
        assert "target-option-unknown" in messages
    elif answer.startswith("exit"):
        assert "target-options-refused" in messages
    else:
        said = re.search(r"refuses to start: ['\"](.*)['\"]$", messages["target-options-refused"])
        assert said is not None
        assert said.group(1)[:40] in answer


@pytest.mark.parametrize("name", [*REFUSED_FILES, *ACCEPTED_FILES])
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_rules_and_the_parser_agree_about_files(environment: str, name: str) -> None:
    answer = answers(environment)[name]
    text = {**REFUSED_FILES, **ACCEPTED_FILES}[name]
    command = "torchrun --nproc-per-node 2 -m llamafactory.launcher a.yaml"
    messages = judged(command, environment, {"a.yaml": text, **STAGES})
    assert (answer is None) == (messages == {}), (answer, messages)
    assert (name in REFUSED_FILES) == (answer is not None)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_json_and_keys_that_stand_twice(environment: str) -> None:
    if python_of(environment) is None:
        pytest.skip("no oracle environment: run python tools/oracles.py")
    files = {
        "a.json": json.dumps(yaml.safe_load(YAML)),
        "b.yaml": f"{YAML}stage: sft\n",
        "c.yml": YAML,
    }
    told = run_parser(environment, PARSE, [(files, [name]) for name in files])
    for name, answer in zip(files, told, strict=True):
        messages = judged(f"torchrun --nproc-per-node 2 -m llamafactory.launcher {name}", environment, files)
        assert (answer is not None) == ("arguments-file-invalid" in messages), (name, answer, messages)
    assert [answer is None for answer in told] == [environment == "old", environment == "old", True]


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
