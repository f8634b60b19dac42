"""The rules about who does the parallel work: what their examples do not show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judging import found, mended
from mgpu_checks.engine import (
    batch_equation,
    config_contradictory,
    config_single_process,
    config_values_disagree,
    data_parallel_fallback,
    deepspeed_config_invalid,
    deepspeed_only_launches,
    default_config_used,
    purpose_mismatch,
    training_arguments,
    version_of,
    zero3_conflict,
)
from mgpu_checks.launch import target_options_refused
from mgpu_doctor.authoring import Release, Severity
from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.registry import Registry

TRAINER = (
    "from transformers import HfArgumentParser, Trainer, TrainingArguments\n\n"
    "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\n"
    "Trainer(model=build(), args=args).train()\n"
)
OWN = "import deepspeed\n\nengine, *_ = deepspeed.initialize(args=args, model=model)\n"
SINGLE = "distributed_type: NO\nnum_processes: 1\n"
LLAMAFACTORY = "model_name_or_path: local/model\nstage: sft\ndo_train: true\ndataset: demo\noutput_dir: out\n"


def arguments_of(command: str) -> dict[str, object]:
    report = diagnose(Request(command=command, facts="none"), Registry((), ()))
    (launch,) = report.case.launches
    return {name: given.value for name, given in training_arguments(launch).given.items()}


def test_arguments_are_read_as_the_parser_keeps_them() -> None:
    command = "torchrun train.py --fp16 --bf16 False --no_remove_unused_columns --lr=1e-4 --lr 2e-4 --path $X"
    assert arguments_of(command) == {
        "fp16": True,
        "bf16": "False",
        "remove_unused_columns": False,
        "lr": "2e-4",
        "path": None,
    }


def test_an_expansion_may_be_the_value_of_a_switch() -> None:
    command = "torchrun --nproc-per-node 2 train.py --fp16 $FP16 --bf16 $BF16 --output_dir out"
    assert found(target_options_refused, command, files={"train.py": TRAINER}) == ()


@pytest.mark.parametrize("tail", ["...", '"$@"', "$MORE", "[options]"])
def test_arguments_that_are_left_out_make_the_rest_uncertain(tail: str) -> None:
    report = diagnose(Request(command=f"torchrun train.py --bf16 {tail}", facts="none"), Registry((), ()))
    (launch,) = report.case.launches
    given = training_arguments(launch)
    assert not given.complete
    assert given.truth("fp16") is None
    assert not given.lacks("fp16")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0.9.3", (0, 9, 3)), ("2.6.0+cu124", (2, 6, 0)), ("5.0.0.dev0", (5, 0, 0)), ("main", None), (None, None)],
)
def test_releases_are_numbers(text: str | None, numbers: tuple[int, ...] | None) -> None:
    assert version_of(Release("x", text, "", certain=True)) == numbers


@pytest.mark.parametrize("option", ["--multi_gpu", "--use_fsdp", "--use_deepspeed", "--cpu"])
def test_an_option_outweighs_the_file(option: str) -> None:
    command = f"accelerate launch --config_file c.yaml {option} --num_processes 4 train.py"
    assert found(config_single_process, command, files={"c.yaml": SINGLE, "train.py": ""}) == ()


def test_an_unquoted_no_is_no_and_devices_on_the_command_line_ask_for_more() -> None:
    command = "CUDA_VISIBLE_DEVICES=0,1 accelerate launch --config_file c.yaml train.py"
    (finding,) = found(config_single_process, command, files={"c.yaml": SINGLE, "train.py": ""})
    assert finding.severity is Severity.WARNING
    assert "--multi_gpu --num_processes 2 --config_file" in mended(finding)


def test_a_single_process_file_that_was_chosen_is_advice() -> None:
    command = "accelerate launch --config_file c.yaml train.py"
    (finding,) = found(config_single_process, command, files={"c.yaml": SINGLE, "train.py": ""})
    assert finding.severity is Severity.ADVICE


def test_a_training_loop_of_its_own_is_advice() -> None:
    loop = "import torch\n\nfor batch in data:\n    model(batch).backward()\n"
    (finding,) = found(data_parallel_fallback, "python train.py", files={"train.py": loop})
    assert finding.severity is Severity.ADVICE
    distributed = loop + "from torch.nn.parallel import DistributedDataParallel\nDistributedDataParallel(model)\n"
    assert found(data_parallel_fallback, "python train.py", files={"train.py": distributed}) == ()


def test_the_default_file_names_only_what_the_command_leaves_to_it() -> None:
    facts = {"accelerate_default_config": "distributed_type: MULTI_GPU\nnum_processes: 8\nmixed_precision: bf16\n"}
    (finding,) = found(default_config_used, "accelerate launch --num_processes 4 train.py", facts=facts)
    assert "num_processes: 8" not in finding.message
    assert "mixed_precision: bf16" in finding.message


def test_fsdp_settings_under_multi_gpu_are_not_used() -> None:
    text = "distributed_type: MULTI_GPU\nnum_processes: 2\nfsdp_config:\n  fsdp_sharding_strategy: FULL_SHARD\n"
    (finding,) = found(config_contradictory, "accelerate launch --config_file c.yaml t.py", files={"c.yaml": text})
    assert "fsdp_config" in finding.message
    switched = "accelerate launch --config_file c.yaml --use_fsdp t.py"
    assert found(config_contradictory, switched, files={"c.yaml": text}) == ()


def test_a_bare_no_was_converted_before_accelerate_1_0() -> None:
    text = "distributed_type: MULTI_GPU\nnum_processes: 2\nmixed_precision: no\n"
    command = "accelerate launch --config_file c.yaml t.py"
    old = {"packages": {"accelerate": "0.33.0"}}
    assert found(config_contradictory, command, files={"c.yaml": text}, facts=old) == ()
    (finding,) = found(config_contradictory, command, files={"c.yaml": text})
    assert mended(finding).endswith("mixed_precision: 'no'\n")


def test_the_file_of_the_command_line_is_refused_beside_the_same_settings() -> None:
    text = "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config:\n  zero_stage: 2\n"
    command = "accelerate launch --config_file c.yaml --deepspeed_config_file z.json t.py"
    (finding,) = found(config_contradictory, command, files={"c.yaml": text, "z.json": "{}"})
    assert "zero_stage" in finding.message


@given(st.integers(1, 64), st.integers(1, 16), st.integers(1, 64))
def test_an_equation_that_holds_is_held(micro: int, steps: int, world: int) -> None:
    train = micro * steps * world
    for terms in (
        batch_equation._Terms(train, micro, steps),
        batch_equation._Terms(train, micro, None),
        batch_equation._Terms(train, None, steps),
        batch_equation._Terms(train, None, None),
    ):
        assert batch_equation._product(terms, world) == train


@given(st.integers(1, 4096), st.integers(1, 64), st.integers(2, 64))
def test_what_cannot_be_divided_does_not_hold(train: int, micro: int, world: int) -> None:
    holds = batch_equation._product(batch_equation._Terms(train, micro, None), world) == train
    assert holds == (train % (micro * world) == 0)


def test_a_batch_that_cannot_be_divided_is_named() -> None:
    files = {"z.json": '{"train_batch_size": 10}', "train.py": OWN}
    (finding,) = found(batch_equation, "deepspeed --num_gpus 4 train.py --deepspeed_config z.json", files=files)
    assert "cannot be divided among 4 processes" in finding.message


def test_an_unknown_number_of_processes_is_no_reason() -> None:
    files = {"z.json": '{"train_batch_size": 10, "train_micro_batch_size_per_gpu": 4}', "train.py": OWN}
    command = "torchrun --nproc-per-node $N train.py --deepspeed_config z.json"
    assert found(batch_equation, command, files=files) == ()


def test_a_found_batch_size_is_not_compared() -> None:
    files = {"z.json": '{"train_micro_batch_size_per_gpu": 4}', "train.py": TRAINER}
    command = "torchrun --nproc-per-node 2 train.py --deepspeed z.json --auto_find_batch_size --output_dir out"
    assert found(config_values_disagree, command, files=files) == ()


def test_llamafactory_values_come_from_its_yaml() -> None:
    json = '{"bf16": {"enabled": true}, "gradient_accumulation_steps": 4, "zero_optimization": {"stage": 2}}'
    yaml = LLAMAFACTORY + "deepspeed: z.json\nbf16: true\ngradient_accumulation_steps: 8\n"
    (finding,) = found(
        config_values_disagree, "llamafactory-cli train sft.yaml", files={"sft.yaml": yaml, "z.json": json}
    )
    assert "gradient_accumulation_steps is 4 in z.json" in finding.message
    assert finding.related[0].location is not None
    assert finding.related[0].location.source.name == "sft.yaml"


def test_a_precision_that_only_a_default_contradicts_is_advice() -> None:
    text = "distributed_type: DEEPSPEED\nmixed_precision: bf16\nnum_processes: 2\ndeepspeed_config:\n  zero_stage: 2\n"
    command = "accelerate launch --config_file c.yaml train.py --output_dir out"
    (finding,) = found(config_values_disagree, command, files={"c.yaml": text, "train.py": TRAINER})
    assert finding.severity is Severity.ADVICE


def test_the_stage_of_accelerates_own_file_counts() -> None:
    text = "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config:\n  zero_stage: {stage}\n"
    program = "from transformers import AutoModel\n\nAutoModel.from_pretrained('m', device_map={'': 0})\n"
    command = "accelerate launch --config_file c.yaml train.py"
    (finding,) = found(zero3_conflict, command, files={"c.yaml": text.format(stage=3), "train.py": program})
    assert finding.location is not None
    assert finding.location.source.name == "train.py"
    assert found(zero3_conflict, command, files={"c.yaml": text.format(stage=2), "train.py": program}) == ()


def test_where_the_release_is_not_known_the_finding_is_no_error() -> None:
    program = "from transformers import AutoModel\n\nAutoModel.from_pretrained('m', low_cpu_mem_usage=True)\n"
    files = {"train.py": program, "z.json": '{"zero_optimization": {"stage": 3}}'}
    command = "torchrun --nproc-per-node 2 train.py --deepspeed z.json"
    (finding,) = found(zero3_conflict, command, files=files, known=False)
    assert finding.severity is Severity.WARNING


def test_a_device_map_that_is_computed_is_left_alone() -> None:
    program = (
        "from transformers import AutoModel\n\nchosen = None if zero3 else 'auto'\n"
        "AutoModel.from_pretrained('m', device_map=chosen)\n"
    )
    files = {"train.py": program, "z.json": '{"zero_optimization": {"stage": 3}}'}
    assert found(zero3_conflict, "torchrun --nproc-per-node 2 train.py --deepspeed z.json", files=files) == ()


def test_python_becomes_torchrun() -> None:
    (finding,) = found(data_parallel_fallback, "python train.py --epochs 3", files={"train.py": TRAINER})
    assert mended(finding) == "torchrun --nproc-per-node 8 train.py --epochs 3"


@pytest.mark.parametrize("count", [0, 1])
def test_one_gpu_is_no_reason(count: int) -> None:
    gpus = [{"index": index, "name": "NVIDIA L4", "memory_gib": 24} for index in range(count)]
    assert found(data_parallel_fallback, "python train.py", files={"train.py": TRAINER}, facts={"gpus": gpus}) == ()


def test_unknown_gpus_are_no_reason() -> None:
    assert found(data_parallel_fallback, "python train.py", files={"train.py": TRAINER}, known=False) == ()


def test_the_engine_of_a_yaml_is_an_engine() -> None:
    files = {"sft.yaml": LLAMAFACTORY + "deepspeed: z.json\n", "z.json": '{"zero_optimization": {"stage": 2}}'}
    command = "deepspeed --num_gpus 4 --no_local_rank --module llamafactory.launcher sft.yaml"
    assert found(deepspeed_only_launches, command, files=files) == ()


def test_prediction_in_several_processes_is_what_is_meant() -> None:
    command = (
        "llamafactory-cli train --stage sft --do_predict --model_name_or_path m --eval_dataset demo --template default "
        "--output_dir out"
    )
    assert found(purpose_mismatch, command) == ()


def test_comments_are_refused_where_transformers_reads_the_file() -> None:
    files = {"z.json": '{"zero_optimization": {"stage": 2}} // two\n', "train.py": TRAINER}
    (finding,) = found(deepspeed_config_invalid, "torchrun --nproc-per-node 2 train.py --deepspeed z.json", files=files)
    assert "is not JSON" in finding.message
    assert finding.location is not None
    assert finding.location.source.name == "z.json"


def test_a_slip_in_a_key_is_mended() -> None:
    files = {"z.json": '{"zero_optimization": {"stage": 3, "offload_params": {"device": "cpu"}}}', "train.py": TRAINER}
    (finding,) = found(deepspeed_config_invalid, "torchrun --nproc-per-node 2 train.py --deepspeed z.json", files=files)
    assert '"offload_param": {"device"' in mended(finding)
