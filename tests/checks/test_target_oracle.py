"""What LLaMA-Factory and transformers say about templates, data sets and FSDP's words, against the rules."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from judging import found
from mgpu_checks.engine import fsdp_settings_refused
from mgpu_checks.hub import dataset_not_registered, template_mismatch
from mgpu_doctor.authoring import Severity
from oracle_environments import ENVIRONMENTS, python_of, run_parser

pytestmark = pytest.mark.oracle

RELEASES = {
    "old": {"llamafactory": "0.9.3", "transformers": "4.52.4", "torch": "2.6.0", "deepspeed": "0.16.9"},
    "new": {"llamafactory": "0.9.5", "transformers": "5.6.0", "torch": "2.6.0", "deepspeed": "0.19.8"},
}
TRAINER = (
    "from transformers import HfArgumentParser, Trainer, TrainingArguments\n\n"
    "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\n"
    "Trainer(model=build(), args=args).train()\n"
)

ASK = r"""
import json, os, sys, tempfile, types
os.environ["LLAMAFACTORY_VERBOSITY"] = "ERROR"
work = tempfile.mkdtemp()
os.chdir(work)

def told(ask):
    try:
        ask()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:300]
    return None

import transformers
try:
    import torchaudio
except ImportError:
    # llamafactory 0.9.5 imports it for audio alone.
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")

from llamafactory.data.parser import get_dataset_list
from llamafactory.data.template import TEMPLATES
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

sets = []
for register, names in payload["sets"]:
    os.makedirs("data", exist_ok=True)
    with open("data/dataset_info.json", "w") as file:
        file.write(register)
    sets.append(told(lambda: get_dataset_list([names], "data")))

TrainingArguments.parallel_mode = property(lambda self: ParallelMode.DISTRIBUTED)
words = []
for fsdp, config in payload["fsdp"]:
    settings = {}
    if config is not None:
        with open("fsdp.json", "w") as file:
            file.write(config)
        settings["fsdp_config"] = "fsdp.json"
    words.append(told(lambda: TrainingArguments(output_dir="out", use_cpu=True, fsdp=fsdp, **settings)))

result = {"templates": sorted(TEMPLATES), "sets": sets, "fsdp": words}
"""

SETS = {
    "registered": ('{"demo": {"file_name": "demo.json"}}', "demo"),
    "misspelt": ('{"demo": {"file_name": "demo.json"}}', "dmeo"),
    "with its ending": ('{"demo": {"file_name": "demo.json"}}', "demo.json"),
    "on the hub": ('{"demo": {"hf_hub_url": "org/demo"}}', "demo"),
    "not JSON": ('{"demo": {"file_name": "demo.json"},}', "demo"),
    "empty": ("", "demo"),
}
"""A register, and the name that is asked for; ``data/demo.json`` exists."""

FSDP = {
    "full": ("full_shard auto_wrap", None),
    "offload as well": ("full_shard offload", None),
    "hybrid": ("hybrid_shard", None),
    "misspelt": ("fullshard", None),
    "comma": ("full_shard,auto_wrap", None),
    "capital": ("FULL_SHARD", None),
    "offload alone": ("offload", None),
    "both strategies": ("full_shard shard_grad_op", None),
    "both ways to wrap": (
        "full_shard auto_wrap",
        '{"min_num_params": 2000, "transformer_layer_cls_to_wrap": ["Qwen2DecoderLayer"]}',
    ),
    "one way to wrap": ("full_shard auto_wrap", '{"transformer_layer_cls_to_wrap": ["Qwen2DecoderLayer"]}'),
    "random weights": ("full_shard", '{"fsdp_sync_module_states": false, "fsdp_cpu_ram_efficient_loading": true}'),
    "efficient": ("full_shard", '{"sync_module_states": true, "cpu_ram_efficient_loading": true}'),
}


@lru_cache(maxsize=2)
def told(environment: str) -> dict[str, Any]:
    if python_of(environment) is None:
        pytest.skip("no oracle environment: run python tools/oracles.py")
    payload = {"sets": [*SETS.values()], "fsdp": [*FSDP.values()]}
    answer: dict[str, Any] = run_parser(environment, ASK, payload)
    return answer


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_templates_of_each_release_are_known(environment: str) -> None:
    names = set(told(environment)["templates"])
    version = tuple(int(part) for part in RELEASES[environment]["llamafactory"].split("."))
    since = {name for first, texts in template_mismatch._SINCE.items() if first <= version for name in texts.split()}
    gone = {name for first, texts in template_mismatch._GONE.items() if first <= version for name in texts}
    assert since - gone == names


@pytest.mark.parametrize("name", ["qwen2.5", "llama-3", "qwenn", "chatglm4", "gemma4x"])
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_template_that_is_reported_is_none_of_the_release(environment: str, name: str) -> None:
    command = f"llamafactory-cli chat --model_name_or_path m --template {name}"
    assert name not in told(environment)["templates"]
    assert len(found(template_mismatch, command, facts={"packages": RELEASES[environment]})) == 1


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_register_is_read_as_the_release_reads_it(environment: str, name: str) -> None:
    register, asked = SETS[name]
    command = f"llamafactory-cli train --stage sft --do_train --model_name_or_path m --template qwen --dataset {asked}"
    files = {"data/dataset_info.json": register, "data/demo.json": "[]"}
    reported = found(dataset_not_registered, command, files=files, facts={"packages": RELEASES[environment]})
    answer = told(environment)["sets"][[*SETS].index(name)]
    assert (answer is not None) == bool(reported), (answer, reported)


@pytest.mark.parametrize("name", FSDP)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_words_of_fsdp_are_those_of_the_release(environment: str, name: str) -> None:
    words, config = FSDP[name]
    command = f"torchrun --nproc-per-node 4 train.py --output_dir out --fsdp '{words}'"
    files = {"train.py": TRAINER}
    if config is not None:
        command, files["fsdp.json"] = f"{command} --fsdp_config fsdp.json", config
    reported = found(fsdp_settings_refused, command, files=files, facts={"packages": RELEASES[environment]})
    errors = [finding.message for finding in reported if finding.severity is Severity.ERROR]
    answer = told(environment)["fsdp"][[*FSDP].index(name)]
    assert (answer is not None) == bool(errors), (answer, errors)
