"""What accelerate, DeepSpeed and transformers really do with the files of the rules' examples, and with more."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

import pytest

from judging import found
from mgpu_checks.engine import (
    accelerate_config_invalid,
    batch_equation,
    config_contradictory,
    config_values_disagree,
    deepspeed_config_invalid,
    fsdp_settings_refused,
)
from mgpu_doctor.authoring import Severity
from oracle_environments import ENVIRONMENTS, python_of, run_parser

pytestmark = pytest.mark.oracle

RELEASES = {
    "old": {"accelerate": "1.7.0", "deepspeed": "0.16.9", "transformers": "4.52.4", "torch": "2.6.0"},
    "new": {"accelerate": "1.15.0", "deepspeed": "0.19.8", "transformers": "5.6.0", "torch": "2.6.0"},
}

LAUNCH = r"""
import contextlib, io, os, tempfile, warnings
warnings.simplefilter("ignore")
from accelerate.commands import launch
from accelerate.utils import launch as prepare
prepare.is_port_in_use = lambda *names, **values: False
work = tempfile.mkdtemp()
os.chdir(work)
before = dict(os.environ)

def start(files, argv):
    for name, text in files.items():
        with open(name, "w") as file:
            file.write(text)
    args = launch.launch_command_parser().parse_args(argv)
    args, defaults, from_config = launch._validate_launch_command(args)
    if args.use_deepspeed and not args.cpu:
        fields = list(defaults.deepspeed_config.keys()) if defaults else []
        args.deepspeed_fields_from_accelerate_config = ",".join(fields + ["mixed_precision"] * from_config)
        kind, env = "deepspeed", prepare.prepare_deepspeed_cmd_env(args)[1]
    elif (args.use_fsdp or args.use_megatron_lm or args.multi_gpu) and not args.cpu:
        kind, env = "fsdp" if args.use_fsdp else "multi", prepare.prepare_multi_gpu_env(args)
    else:
        kind, env = "simple", prepare.prepare_simple_launcher_cmd_env(args)[1]
    shown = {name: value for name, value in env.items() if name.startswith(("ACCELERATE_", "FSDP_", "CUDA_"))}
    os.environ.update(env)
    if kind == "fsdp":
        from accelerate.utils import FullyShardedDataParallelPlugin
        try:
            FullyShardedDataParallelPlugin()
        except (RuntimeError, AssertionError) as error:
            if "no available devices" not in str(error) and "CUDA" not in str(error):
                raise
    elif kind == "deepspeed":
        from accelerate.utils import DeepSpeedPlugin
        DeepSpeedPlugin()
    return {"kind": kind, "env": shown}

result = []
for files, argv in payload:
    os.environ.clear()
    os.environ.update(before)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            result.append(start(files, argv))
    except SystemExit as stop:
        result.append({"error": f"exit {stop.code}"})
    except BaseException as error:
        result.append({"error": f"{type(error).__name__}: {error}"})
"""
"""Each launch as accelerate prepares it, and the plugin that a worker would make from its environment."""

SCRIPT = {"train.py": "from accelerate import Accelerator\n\naccelerator = Accelerator()\n"}
BASE = "compute_environment: LOCAL_MACHINE\nnum_processes: 4\nmixed_precision: bf16\n"
MULTI = f"{BASE}distributed_type: MULTI_GPU\n"
FSDP = f"{BASE}distributed_type: FSDP\nfsdp_config:\n"
ZERO = "compute_environment: LOCAL_MACHINE\nnum_processes: 4\ndistributed_type: DEEPSPEED\ndeepspeed_config:\n"
Z2 = '{"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}}\n'

REFUSED = {
    "unknown key": f"{MULTI}gradient_accumulation: 3\n",
    "misspelt key": f"{MULTI}num_proceses: 4\n",
    "ZeRO's stage at the top": f"{BASE}distributed_type: DEEPSPEED\nzero_stage: 3\n",
    "SageMaker's key": f"{MULTI}ec2_instance_type: x\n",
    "no kind": BASE,
    "kind in small letters": f"{BASE}distributed_type: multi_gpu\n",
    "kind that does not exist": f"{BASE}distributed_type: DDP\n",
    "kind of old releases": f"{BASE}distributed_type: TPU\n",
    "precision": MULTI.replace("bf16", "bfloat16"),
    "precision fp32": MULTI.replace("bf16", "fp32"),
    "precision as a number": MULTI.replace("bf16", "16"),
    "precision no, unquoted": MULTI.replace("bf16", "no"),
    "no number of processes": MULTI.replace("num_processes: 4\n", ""),
    "bare NO without a number": "distributed_type: NO\n",
    "minus one process": MULTI.replace("num_processes: 4", "num_processes: -1"),
    "one id": f"{MULTI}gpu_ids: '0'\n",
    "ids as a number": f"{MULTI}gpu_ids: 0\n",
    "ids as a list": f"{MULTI}gpu_ids: [0, 1, 2, 3]\n",
    "environment": MULTI.replace("LOCAL_MACHINE", "LOCAL"),
    "environment in small letters": MULTI.replace("LOCAL_MACHINE", "local_machine"),
    "empty": "",
    "a list": "- a\n",
    "not YAML": "distributed_type: MULTI_GPU\n num_processes: 4\n",
    "a tab": "distributed_type: MULTI_GPU\n\tnum_processes: 4\n",
    "strategy": f"{FSDP}  fsdp_sharding_strategy: FULLSHARD\n",
    "strategy's number": f"{FSDP}  fsdp_sharding_strategy: 9\n",
    "wrap policy": f"{FSDP}  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WARP\n",
    "prefetch": f"{FSDP}  fsdp_backward_prefetch: BACKWARD\n",
    "state": f"{FSDP}  fsdp_state_dict_type: SHARDED\n",
    "truth": f"{FSDP}  fsdp_offload_params: 'yes please'\n",
    "efficient loading": f"{FSDP}  fsdp_cpu_ram_efficient_loading: true\n  fsdp_sync_module_states: false\n",
    "least number": f"{FSDP}  fsdp_auto_wrap_policy: SIZE_BASED_WRAP\n  fsdp_min_num_params: 1e8\n",
    "FSDP2, strategy": f"{FSDP}  fsdp_version: 2\n  fsdp_reshard_after_forward: FULL_SHARD\n",
    "FSDP2, local state": f"{FSDP}  fsdp_version: 2\n  fsdp_state_dict_type: LOCAL_STATE_DICT\n",
    "FSDP3": f"{FSDP}  fsdp_version: 3\n",
    "a file and a stage": f"{ZERO}  deepspeed_config_file: z.json\n  zero_stage: 2\n",
    "a file and auto": f"{ZERO}  deepspeed_config_file: z.json\n  gradient_accumulation_steps: auto\n",
    "a file and a precision": (
        f"{BASE}distributed_type: DEEPSPEED\ndeepspeed_config:\n  deepspeed_config_file: z.json\n"
    ),
}

ACCEPTED = {
    "plain": MULTI,
    "capital precision": MULTI.replace("bf16", "BF16"),
    "null precision": MULTI.replace("bf16", "null"),
    "bare NO": "distributed_type: NO\nnum_processes: 1\n",
    "quoted NO without a number": "distributed_type: 'NO'\n",
    "old keys": f"{MULTI.replace('mixed_precision: bf16', 'fp16: true')}dynamo_backend: 'NO'\n",
    "ids": f"{MULTI}gpu_ids: 0,1,2,3\n",
    "all that accelerate config writes": (
        f"{MULTI}debug: false\ndowncast_bf16: 'no'\nenable_cpu_affinity: false\nmachine_rank: 0\n"
        "main_training_function: main\nnum_machines: 1\nrdzv_backend: static\nsame_network: true\ntpu_env: []\n"
        "tpu_use_cluster: false\ntpu_use_sudo: false\nuse_cpu: false\n"
    ),
    "FSDP": (
        f"{FSDP}  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n  fsdp_backward_prefetch: BACKWARD_PRE\n"
        "  fsdp_cpu_ram_efficient_loading: true\n  fsdp_forward_prefetch: false\n  fsdp_offload_params: false\n"
        "  fsdp_sharding_strategy: FULL_SHARD\n  fsdp_state_dict_type: SHARDED_STATE_DICT\n"
        "  fsdp_sync_module_states: true\n  fsdp_use_orig_params: true\n"
    ),
    "FSDP by number": f"{FSDP}  fsdp_sharding_strategy: 1\n",
    "FSDP in small letters": f"{FSDP}  fsdp_sharding_strategy: full_shard\n",
    "FSDP without prefixes": f"{FSDP}  sharding_strategy: SHARD_GRAD_OP\n",
    "FSDP, empty": f"{BASE}distributed_type: FSDP\n",
    "FSDP2": f"{FSDP}  fsdp_version: 2\n  fsdp_reshard_after_forward: true\n",
    "FSDP2 with a prefetch": f"{FSDP}  fsdp_version: 2\n  fsdp_forward_prefetch: true\n",
    "FSDP, a whole number": f"{FSDP}  fsdp_auto_wrap_policy: SIZE_BASED_WRAP\n  fsdp_min_num_params: 100000000\n",
    "efficient loading as text": (
        f"{FSDP}  fsdp_cpu_ram_efficient_loading: 'true'\n  fsdp_sync_module_states: 'false'\n"
    ),
    "ZeRO": f"{ZERO}  zero_stage: 2\n  gradient_accumulation_steps: 1\n  offload_optimizer_device: none\n",
    "ZeRO, auto": f"{ZERO}  zero_stage: 2\n  gradient_clipping: auto\n",
    "a DeepSpeed file": f"{ZERO}  deepspeed_config_file: z.json\n  zero3_init_flag: false\n",
    "a free port": f"{MULTI}main_process_port: 0\n",
}

DROPPED = {
    "FSDP": (f"{FSDP}  fsdp_shard_strategy: SHARD_GRAD_OP\n", "FSDP_SHARDING_STRATEGY"),
    "ZeRO": (f"{ZERO}  zero_stages: 3\n", "ACCELERATE_DEEPSPEED_ZERO_STAGE"),
}
"""Entries that change nothing: the file, and the variable that they were meant for."""

RULES = (accelerate_config_invalid, config_contradictory, fsdp_settings_refused)
RUN = ["--config_file", "acc.yaml", "train.py"]


@lru_cache(maxsize=2)
def answers(environment: str) -> dict[str, Any]:
    """What the environment's accelerate says to every file above."""
    if python_of(environment) is None:
        pytest.skip("no oracle environment: run python tools/oracles.py")
    texts = {**REFUSED, **ACCEPTED, **{f"dropped {name}": text for name, (text, _) in DROPPED.items()}}
    payload = [({"acc.yaml": text, "z.json": Z2, **SCRIPT}, RUN) for text in texts.values()]
    return dict(zip(texts, run_parser(environment, LAUNCH, payload), strict=True))


def errors(module: ModuleType, text: str, environment: str) -> list[str]:
    files = {"acc.yaml": text, "z.json": Z2, **SCRIPT}
    command = "accelerate launch --config_file acc.yaml train.py"
    reported = found(module, command, files=files, facts={"packages": RELEASES[environment]})
    return [finding.message for finding in reported if finding.severity is Severity.ERROR]


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_what_accelerate_refuses_is_named(environment: str, name: str) -> None:
    assert "error" in answers(environment)[name]
    assert [message for module in RULES for message in errors(module, REFUSED[name], environment)]


@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_what_accelerate_takes_is_left_alone(environment: str, name: str) -> None:
    assert "error" not in answers(environment)[name], answers(environment)[name]
    assert [message for module in RULES for message in errors(module, ACCEPTED[name], environment)] == []


@pytest.mark.parametrize("name", DROPPED)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_misspelt_entry_of_a_section_changes_nothing(environment: str, name: str) -> None:
    text, variable = DROPPED[name]
    told = answers(environment)[f"dropped {name}"]["env"]
    assert told.get(variable) in (None, "2", "FULL_SHARD", "1")
    assert len(errors(accelerate_config_invalid, text, environment)) == 1


@pytest.mark.parametrize("module", RULES)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_rules_own_files_behave_so(environment: str, module: ModuleType) -> None:
    """Every bad example about a file is refused or does something else; no good one is refused."""
    if python_of(environment) is None:
        pytest.skip("no oracle environment: run python tools/oracles.py")
    examples = [
        (kind, example)
        for kind, group in (("bad", module.RULE.bad), ("good", module.RULE.good))
        for example in group
        if example.command is not None and example.command.startswith("accelerate launch --config_file")
    ]
    payload = [(dict(example.files), (example.command or "").split()[2:]) for _, example in examples]
    for (kind, example), answer in zip(examples, run_parser(environment, LAUNCH, payload), strict=True):
        is_refused = "error" in answer and "AWS" not in answer["error"] and "sagemaker" not in answer["error"].lower()
        if kind == "good" and "SageMaker" not in example.title:
            assert not is_refused, (example.title, answer)
        elif kind == "bad" and module is fsdp_settings_refused:
            assert is_refused, (example.title, answer)


ENGINE = r"""
import logging, os, tempfile, types
import deepspeed.runtime.config as runtime
from transformers import TrainingArguments
import transformers.integrations.deepspeed as integration
logging.disable(logging.CRITICAL)
os.chdir(tempfile.mkdtemp())
runtime.dist.get_rank = lambda *names, **values: 0
runtime.dist.get_world_size = lambda *names, **values: 4
TrainingArguments.world_size = property(lambda self: 4)

class Model:
    config = types.SimpleNamespace(hidden_size=1024)

def by_itself():
    runtime.DeepSpeedConfig("z.json")

def by_the_trainer():
    config = integration.HfTrainerDeepSpeedConfig("z.json")
    args = TrainingArguments(output_dir="out", use_cpu=True)
    config.trainer_config_process(args)
    config.trainer_config_finalize(args, Model(), 100)
    runtime.DeepSpeedConfig(config.config)

result = []
for text in payload:
    with open("z.json", "w") as file:
        file.write(text)
    answers = []
    for read in (by_itself, by_the_trainer):
        try:
            read()
            answers.append(None)
        except BaseException as error:
            answers.append(f"{type(error).__name__}: {error}"[:300])
    result.append(answers)
"""
"""Each file as DeepSpeed reads it for itself, and as transformers' Trainer hands it on, for four processes."""

MICRO = '"train_micro_batch_size_per_gpu": 8'
SECTIONS = {
    "plain": "",
    "clipping auto": '"gradient_clipping": "auto"',
    "precision auto": '"bf16": {"enabled": "auto"}',
    "optimizer auto": '"optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto"}}',
    "buckets auto": '"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "overlap_comm": "auto"}',
    "stage as text": '"zero_optimization": {"stage": "3"}',
    "stage 4": '"zero_optimization": {"stage": 4}',
    "a list for ZeRO": '"zero_optimization": [2]',
    "offload as text": '"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}',
    "offload to a GPU": '"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "gpu"}}',
    "offload to CUDA": '"zero_optimization": {"stage": 3, "offload_param": {"device": "cuda"}}',
    "no offload": '"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}}',
    "a share under stage 2": '"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}',
    "a share under stage 3": '"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}',
    "a share of two": '"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 2}}',
    "the old name": '"zero_optimization": {"stage": 2, "cpu_offload": true}',
    "the old name and the new": (
        '"zero_optimization": {"stage": 2, "cpu_offload": true, "offload_optimizer": {"device": "cpu"}}'
    ),
    "bucket 2e8": '"zero_optimization": {"stage": 2, "reduce_bucket_size": 2e8}',
    "bucket as text": '"zero_optimization": {"stage": 2, "reduce_bucket_size": "2e8"}',
    "bucket in digits": '"zero_optimization": {"stage": 2, "reduce_bucket_size": "200000000"}',
    "bucket below zero": '"zero_optimization": {"stage": 2, "reduce_bucket_size": -1}',
    "half a bucket": '"zero_optimization": {"stage": 2, "reduce_bucket_size": 2.5}',
    "truth as text": '"zero_optimization": {"stage": 2, "overlap_comm": "true"}',
    "no truth": '"zero_optimization": {"stage": 2, "overlap_comm": "maybe"}',
    "unknown key": '"zero_optimization": {"stage": 2, "overlap_com": true}',
    "a key of 0.19": '"zero_optimization": {"stage": 2, "parameter_alignment": true}',
    "a key of 0.18": '"zero_optimization": {"stage": 3, "leaf_module": {}}',
    "a key of bf16 that is fp16's": '"bf16": {"enabled": "auto", "loss_scale": 0}',
    "both precisions": '"fp16": {"enabled": true}, "bf16": {"enabled": true}',
    "precision as a switch": '"bf16": true',
    "accumulation as text": '"gradient_accumulation_steps": "1"',
    "an equation that fails": '"train_batch_size": 64, "gradient_accumulation_steps": 1',
    "an equation that holds": '"train_batch_size": 32, "gradient_accumulation_steps": 1',
    "another key": '"my_notes": {"a": 1}',
    "a comma too many": '"steps_per_print": 10,',
    "twice": f"{MICRO.replace('8', '4')}, {MICRO}",
}
TRAINED = {
    "Python's True": '"steps_per_print": True',
    "rate": '"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}',
    "betas": '"optimizer": {"type": "AdamW", "params": {"lr": 5e-5, "betas": [0.8, 0.999]}}',
    "decay": '"optimizer": {"type": "AdamW", "params": {"lr": 5e-5, "weight_decay": 0.1}}',
    "epsilon": '"optimizer": {"type": "AdamW", "params": {"lr": 5e-5, "eps": 1e-6}}',
    "same values": '"optimizer": {"type": "AdamW", "params": {"lr": 5e-5, "betas": [0.9, 0.999], "eps": 1e-8}}',
    "warm-up rate": '"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 1e-3}}',
    "warm-up steps": '"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 50}}',
    "accumulation": '"gradient_accumulation_steps": 4',
    "clipping": '"gradient_clipping": 5.0',
    "clipping as text": '"gradient_clipping": "1.0"',
    "bf16": '"bf16": {"enabled": true}',
    "fp16": '"fp16": {"enabled": true}',
}
"""Values that only the Trainer compares with its arguments."""

OWN = (
    "import argparse\n\nimport deepspeed\n\nparser = deepspeed.add_config_arguments(argparse.ArgumentParser())\n"
    "args = parser.parse_args()\nengine, *_ = deepspeed.initialize(args=args, model=build())\n"
)
TRAINER = (
    "from transformers import HfArgumentParser, Trainer, TrainingArguments\n\n"
    "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\n"
    "Trainer(model=build(), args=args).train()\n"
)
READERS = {
    "own": (0, "deepspeed --num_gpus 4 train.py --deepspeed_config z.json", OWN),
    "trainer": (1, "torchrun --nproc-per-node 4 train.py --deepspeed z.json --output_dir out", TRAINER),
}
"""Who reads the file: its place among the answers, the command and the program."""

WHOLE = {
    "batch sizes auto": '{"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"}',
    "no batch size, text for ZeRO": '{"zero_optimization": "2"}',
    "a comment": '{"train_micro_batch_size_per_gpu": 8, // small\n}',
    "a list": "[]",
}


def files_of_the_engine() -> dict[str, str]:
    named = {**SECTIONS, **TRAINED}
    return {**{name: f"{{{MICRO}{', ' if text else ''}{text}}}" for name, text in named.items()}, **WHOLE}


@lru_cache(maxsize=2)
def engine_answers(environment: str) -> dict[str, list[str | None]]:
    if python_of(environment) is None:
        pytest.skip("no oracle environment: run python tools/oracles.py")
    texts = files_of_the_engine()
    return dict(zip(texts, run_parser(environment, ENGINE, [*texts.values()]), strict=True))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", files_of_the_engine())
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_deepspeed_and_the_rules_agree(environment: str, name: str, reader: str) -> None:
    place, command, program = READERS[reader]
    files = {"z.json": files_of_the_engine()[name], "train.py": program}
    named = [
        finding.message
        for module in (deepspeed_config_invalid, batch_equation, config_values_disagree)
        for finding in found(module, command, files=files, facts={"packages": RELEASES[environment]})
        if finding.severity is Severity.ERROR
    ]
    answer = engine_answers(environment)[name][place]
    if reader == "own" and answer is not None and "Hjson" in answer:
        # Which of hjson's texts without quotes it takes is left to hjson.
        assert named == []
        return
    assert (answer is not None) == bool(named), (answer, named)
