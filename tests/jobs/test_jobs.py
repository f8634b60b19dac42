"""Whole jobs: the clean ones are left alone, and each single defect is named by exactly its rule."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from jobs.folders import JOBS, ZERO_2, Change, added, checked, cut, gone, replaced, serious, typed, written


class Defect(NamedTuple):
    job: str
    change: Change
    slug: str


SHARD = "models/tiny/model-00002-of-00002.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 17\n"
ZERO_3 = written("ds/z2.json", '"stage": 2', '"stage": 3')

DEFECTS = {
    # LLaMA-Factory, LoRA, ZeRO-2
    "a key that is misspelt": Defect("sft", written("sft.yaml", "cutoff_len", "cutof_len"), "target-option-unknown"),
    "a key of no release": Defect("sft", added("sft.yaml", "gpus: 0,1\n"), "target-option-unknown"),
    "a tab": Defect("sft", added("sft.yaml", "\tfp16: false\n"), "arguments-file-invalid"),
    "a blank too many": Defect("sft", added("sft.yaml", " fp16: false\n"), "arguments-file-invalid"),
    "a quote that is not closed": Defect("sft", added("sft.yaml", "run_name: 'x\n"), "arguments-file-invalid"),
    "binary arguments": Defect("sft", replaced("sft.yaml", b"\0\1\2"), "arguments-file-invalid"),
    "arguments in another encoding": Defect("sft", added("sft.yaml", ""), "arguments-file-invalid"),
    "an empty file": Defect("sft", replaced("sft.yaml", b""), "arguments-file-invalid"),
    "two values for one key": Defect("sft", added("sft.yaml", "stage: pt\n"), "arguments-file-invalid"),
    "no such arguments": Defect("sft", typed("sft.yaml", "stf.yaml"), "target-not-found"),
    "a method that does not exist": Defect(
        "sft", written("sft.yaml", "type: lora", "type: loar"), "target-options-refused"
    ),
    "a stage that does not exist": Defect(
        "sft", written("sft.yaml", "stage: sft", "stage: sftt"), "target-options-refused"
    ),
    "a scheduler that does not exist": Defect("sft", written("sft.yaml", "cosine", "cosin"), "target-options-refused"),
    "an unquoted no": Defect("sft", added("sft.yaml", "eval_strategy: no\n"), "target-options-refused"),
    "evaluation without a set": Defect("sft", added("sft.yaml", "eval_strategy: steps\n"), "target-options-refused"),
    "two precisions": Defect("sft", added("sft.yaml", "fp16: true\n"), "target-options-refused"),
    "no data set": Defect("sft", written("sft.yaml", "dataset: demo\n", ""), "target-options-refused"),
    "streaming without steps": Defect(
        "sft", written("sft.yaml", "max_samples: 1000", "streaming: true"), "target-options-refused"
    ),
    "full and quantised": Defect(
        "sft", written("sft.yaml", "type: lora", "type: full\nquantization_bit: 4"), "target-options-refused"
    ),
    "DoRA without LoRA": Defect(
        "sft", written("sft.yaml", "type: lora", "type: full\nuse_dora: true"), "target-options-refused"
    ),
    "GaLore and DeepSpeed": Defect(
        "sft", written("sft.yaml", "type: lora", "type: full\nuse_galore: true"), "target-options-refused"
    ),
    "no model": Defect("sft", written("sft.yaml", "model_name_or_path: models/tiny\n", ""), "target-options-refused"),
    "vLLM for training": Defect("sft", added("sft.yaml", "infer_backend: vllm\n"), "target-options-refused"),
    "packing for preferences": Defect(
        "sft", written("sft.yaml", "stage: sft", "stage: dpo\nneat_packing: true"), "target-options-refused"
    ),
    "a data set that is not registered": Defect(
        "sft", written("sft.yaml", "dataset: demo", "dataset: dmeo"), "dataset-not-registered"
    ),
    "a data set without its file": Defect("sft", gone("data/demo.json"), "dataset-not-registered"),
    "no register": Defect("sft", gone("data/dataset_info.json"), "dataset-not-registered"),
    "a register that is not JSON": Defect(
        "sft", replaced("data/dataset_info.json", b'{"demo": {},}'), "dataset-not-registered"
    ),
    "a folder that is not there": Defect(
        "sft", written("sft.yaml", "dataset_dir: data", "dataset_dir: sets"), "dataset-not-registered"
    ),
    "a template that does not exist": Defect("sft", written("sft.yaml", "qwen\n", "qwen2.5\n"), "template-mismatch"),
    "a ZeRO file that is not there": Defect("sft", gone("ds/z2.json"), "target-not-found"),
    "a comma too many": Defect(
        "sft",
        written("ds/z2.json", '"contiguous_gradients": true', '"contiguous_gradients": true,'),
        "deepspeed-config-invalid",
    ),
    "a comment in JSON": Defect("sft", written("ds/z2.json", "{\n", "{ // ZeRO\n"), "deepspeed-config-invalid"),
    "a key that ZeRO refuses": Defect(
        "sft", written("ds/z2.json", "overlap_comm", "overlap_com"), "deepspeed-config-invalid"
    ),
    "a section that is misspelt": Defect(
        "sft", written("ds/z2.json", "zero_optimization", "zero_optimisation"), "deepspeed-config-invalid"
    ),
    "a stage that ZeRO does not have": Defect(
        "sft", written("ds/z2.json", '"stage": 2', '"stage": 4'), "deepspeed-config-invalid"
    ),
    "a bucket as text": Defect(
        "sft",
        written("ds/z2.json", '"reduce_bucket_size": 5e8', '"reduce_bucket_size": "5e8"'),
        "deepspeed-config-invalid",
    ),
    "offload to a GPU": Defect(
        "sft",
        written("ds/z2.json", '"stage": 2', '"stage": 2, "offload_optimizer": {"device": "gpu"}'),
        "deepspeed-config-invalid",
    ),
    "another micro batch": Defect(
        "sft",
        written("ds/z2.json", '"train_micro_batch_size_per_gpu": "auto"', '"train_micro_batch_size_per_gpu": 4'),
        "config-values-disagree",
    ),
    "another clipping": Defect(
        "sft",
        written("ds/z2.json", '"gradient_clipping": "auto"', '"gradient_clipping": 0.5'),
        "config-values-disagree",
    ),
    "bf16 switched off": Defect(
        "sft",
        written("ds/z2.json", '"bf16": {"enabled": "auto"}', '"bf16": {"enabled": false}'),
        "config-values-disagree",
    ),
    "a batch for four": Defect(
        "sft", written("ds/z2.json", '"train_batch_size": "auto"', '"train_batch_size": 32'), "batch-equation"
    ),
    "a shard that is gone": Defect("sft", gone(SHARD), "model-files-incomplete"),
    "a shard that is cut off": Defect("sft", cut(SHARD, 16), "model-files-incomplete"),
    "a pointer for a shard": Defect("sft", replaced(SHARD, POINTER), "model-files-incomplete"),
    "no configuration": Defect("sft", gone("models/tiny/config.json"), "model-files-incomplete"),
    # accelerate's FSDP and a Trainer
    "a strategy that does not exist": Defect(
        "fsdp", written("fsdp.yaml", "FULL_SHARD", "FULLSHARD"), "fsdp-settings-refused"
    ),
    "a wrap policy that does not exist": Defect(
        "fsdp", written("fsdp.yaml", "TRANSFORMER_BASED_WRAP", "TRANSFORMER_WRAP"), "fsdp-settings-refused"
    ),
    "states that are not synchronised": Defect(
        "fsdp", written("fsdp.yaml", "sync_module_states: true", "sync_module_states: false"), "fsdp-settings-refused"
    ),
    "a kind of state that does not exist": Defect(
        "fsdp", written("fsdp.yaml", "SHARDED_STATE_DICT", "SHARDED"), "fsdp-settings-refused"
    ),
    "no truth": Defect(
        "fsdp", written("fsdp.yaml", "offload_params: false", "offload_params: never"), "fsdp-settings-refused"
    ),
    "FSDP twice, in other words": Defect("fsdp", typed("--bf16", "--bf16 --fsdp fullshard"), "fsdp-settings-refused"),
    "a setting that is misspelt": Defect(
        "fsdp", written("fsdp.yaml", "fsdp_sharding_strategy", "fsdp_shard_strategy"), "accelerate-config-invalid"
    ),
    "a key that accelerate refuses": Defect(
        "fsdp", written("fsdp.yaml", "num_machines", "num_machine"), "accelerate-config-invalid"
    ),
    "a kind that does not exist": Defect(
        "fsdp", written("fsdp.yaml", "distributed_type: FSDP", "distributed_type: FSDP2"), "accelerate-config-invalid"
    ),
    "a precision that does not exist": Defect(
        "fsdp", written("fsdp.yaml", "bf16\n", "bfloat16\n"), "accelerate-config-invalid"
    ),
    "a file that is not YAML": Defect(
        "fsdp", written("fsdp.yaml", "debug: false", " debug: false"), "accelerate-config-invalid"
    ),
    "FSDP's section under another kind": Defect(
        "fsdp", written("fsdp.yaml", "distributed_type: FSDP", "distributed_type: MULTI_GPU"), "config-contradictory"
    ),
    "no number of processes": Defect("fsdp", written("fsdp.yaml", "num_processes: 8\n", ""), "config-contradictory"),
    "one process whatever is asked": Defect(
        "fsdp",
        lambda job: typed("fsdp.yaml", "fsdp.yaml --num_processes 8")(
            replaced("fsdp.yaml", b"distributed_type: 'NO'\nnum_processes: 1\n")(job)
        ),
        "config-single-process",
    ),
    "no file for accelerate": Defect("fsdp", gone("fsdp.yaml"), "target-not-found"),
    "a value that is no number": Defect("fsdp", typed("batch_size 2", "batch_size two"), "target-options-refused"),
    "the best model, never evaluated": Defect(
        "fsdp", typed("--bf16", "--bf16 --load_best_model_at_end"), "target-options-refused"
    ),
    # DeepSpeed's launcher and engine
    "a batch for four processes": Defect("engine", typed("--num_gpus 8", "--num_gpus 4"), "batch-equation"),
    "auto for nobody": Defect(
        "engine", written("ds.json", '"train_batch_size": 64', '"train_batch_size": "auto"'), "deepspeed-config-invalid"
    ),
    "the same key twice": Defect(
        "engine", written("ds.json", "{\n", '{\n  "train_batch_size": 64,\n'), "deepspeed-config-invalid"
    ),
    "no batch size": Defect(
        "engine", replaced("ds.json", b'{"zero_optimization": {"stage": 2}}\n'), "deepspeed-config-invalid"
    ),
    "an optimizer that does not exist": Defect(
        "engine", written("ds.json", "AdamW", "AdmaW"), "deepspeed-config-invalid"
    ),
    "no configuration for the engine": Defect("engine", gone("ds.json"), "target-not-found"),
    # batch prediction
    "training's data set": Defect(
        "predict", written("predict.yaml", "eval_dataset", "dataset"), "target-options-refused"
    ),
    "predictions that are not made": Defect(
        "predict",
        written("predict.yaml", "predict_with_generate: true", "predict_with_generate: false"),
        "target-options-refused",
    ),
    "generation under ZeRO-3": Defect(
        "predict",
        lambda job: added("predict.yaml", "deepspeed: z3.json\n")(
            replaced("z3.json", ZERO_2.replace('"stage": 2', '"stage": 3').encode())(job)
        ),
        "target-options-refused",
    ),
    "a held-out set that is not registered": Defect(
        "predict", written("predict.yaml", "held_out", "heldout"), "dataset-not-registered"
    ),
    # chat
    "vLLM with four bits": Defect(
        "chat", written("chat.yaml", "huggingface", "vllm\nquantization_bit: 4"), "target-options-refused"
    ),
    "an adapter for full tuning": Defect(
        "chat",
        added("chat.yaml", "finetuning_type: full\nadapter_name_or_path: models/lora\n"),
        "target-options-refused",
    ),
    "chat's template": Defect("chat", written("chat.yaml", "template: qwen", "template: qwenn"), "template-mismatch"),
    "a sub-command that does not exist": Defect("chat", typed("chat chat", "chta chat"), "subcommand-wrong"),
}
LATIN = DEFECTS["arguments in another encoding"]
DEFECTS["arguments in another encoding"] = LATIN._replace(
    change=lambda job: job._replace(files={**job.files, "sft.yaml": job.files["sft.yaml"] + b"run_name: caf\xe9\n"})
)


@pytest.mark.parametrize("name", JOBS)
def test_a_clean_job_is_clean(name: str, tmp_path: Path) -> None:
    report = checked(JOBS[name], tmp_path)
    assert serious(report) == [], [finding.message for finding in report.findings]


@pytest.mark.parametrize("name", DEFECTS)
def test_one_defect_is_named_by_its_rule_alone(name: str, tmp_path: Path) -> None:
    defect = DEFECTS[name]
    report = checked(defect.change(JOBS[defect.job]), tmp_path)
    assert serious(report) == [defect.slug], [(finding.slug, finding.message) for finding in report.findings]


def test_there_are_enough_of_them() -> None:
    assert len(DEFECTS) >= 60
