"""Job folders as people have them: weights, configurations, data sets and scripts, with one defect each or none."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.model.finding import Severity
from mgpu_doctor.model.report import Report
from mgpu_doctor.registry import load_checks
from mgpu_doctor.testing import standard_facts

Files = Mapping[str, bytes]


class Job(NamedTuple):
    """What lies in the folder, what is typed there, and what differs from the standard host."""

    command: str
    files: Files
    facts: Mapping[str, object] = {}


def text(value: str) -> bytes:
    return value.encode()


def safetensors(**shapes: tuple[int, ...]) -> bytes:
    """A file of zeros in safetensors' format: eight bytes of length, the header, the numbers."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        size = 2
        for dimension in shape:
            size *= dimension
        header[name.replace("__", ".")] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + bytes(at)


def model(folder: str = "models/tiny") -> dict[str, bytes]:
    """A model of two shards with everything that transformers looks for."""
    first, second = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": 16,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.52.4",
    }
    weights = {
        "metadata": {"total_size": 2 * (16 * 8 + 8 * 8)},
        "weight_map": {"model.embed_tokens.weight": first, "model.layers.0.self_attn.q_proj.weight": second},
    }
    files = {
        "config.json": text(json.dumps(config)),
        "generation_config.json": b'{"do_sample": true}',
        "tokenizer.json": b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}',
        "tokenizer_config.json": b'{"tokenizer_class": "Qwen2Tokenizer", "chat_template": "{{ messages }}"}',
        "model.safetensors.index.json": text(json.dumps(weights)),
        first: safetensors(model__embed_tokens__weight=(16, 8)),
        second: safetensors(model__layers__0__self_attn__q_proj__weight=(8, 8)),
    }
    return {f"{folder}/{name}": data for name, data in files.items()}


ADAPTER = {
    "models/lora/adapter_config.json": b'{"peft_type": "LORA", "r": 8, "base_model_name_or_path": "models/tiny"}',
    "models/lora/adapter_model.safetensors": safetensors(q_proj__lora_A__weight=(8, 8)),
}
DATA = {
    "data/dataset_info.json": b'{"demo": {"file_name": "demo.json"}, "held_out": {"file_name": "held_out.json"}}\n',
    "data/demo.json": b'[{"instruction": "a", "input": "", "output": "b"}]\n',
    "data/held_out.json": b'[{"instruction": "a", "input": "", "output": "b"}]\n',
}
ZERO_2 = (
    '{\n  "train_batch_size": "auto",\n  "train_micro_batch_size_per_gpu": "auto",\n'
    '  "gradient_accumulation_steps": "auto",\n  "gradient_clipping": "auto",\n'
    '  "zero_allow_untested_optimizer": true,\n  "fp16": {"enabled": "auto"},\n  "bf16": {"enabled": "auto"},\n'
    '  "zero_optimization": {\n    "stage": 2,\n    "allgather_partitions": true,\n'
    '    "allgather_bucket_size": 5e8,\n    "overlap_comm": true,\n    "reduce_bucket_size": 5e8,\n'
    '    "contiguous_gradients": true\n  }\n}\n'
)
SFT = (
    "### model\nmodel_name_or_path: models/tiny\ntrust_remote_code: true\n\n### method\nstage: sft\ndo_train: true\n"
    "finetuning_type: lora\nlora_rank: 8\nlora_target: all\ndeepspeed: ds/z2.json\n\n### dataset\ndataset: demo\n"
    "dataset_dir: data\ntemplate: qwen\ncutoff_len: 2048\nmax_samples: 1000\noverwrite_cache: true\n"
    "preprocessing_num_workers: 4\n\n### output\noutput_dir: saves/tiny\nlogging_steps: 10\nsave_steps: 500\n"
    "plot_loss: true\noverwrite_output_dir: true\nsave_only_model: false\nreport_to: none\n\n### train\n"
    "per_device_train_batch_size: 1\ngradient_accumulation_steps: 8\nlearning_rate: 1.0e-4\nnum_train_epochs: 3.0\n"
    "lr_scheduler_type: cosine\nwarmup_ratio: 0.1\nbf16: true\nddp_timeout: 180000000\n"
)
TRAINER = (
    "from datasets import load_dataset\n"
    "from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, Trainer, TrainingArguments\n\n\n"
    "def main():\n"
    "    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\n"
    '    tokenizer = AutoTokenizer.from_pretrained("models/tiny")\n'
    '    model = AutoModelForCausalLM.from_pretrained("models/tiny")\n'
    '    data = load_dataset("json", data_files="data/demo.json")["train"]\n'
    "    Trainer(model=model, args=args, train_dataset=data, processing_class=tokenizer).train()\n\n\n"
    'if __name__ == "__main__":\n    main()\n'
)
FSDP = (
    "compute_environment: LOCAL_MACHINE\ndebug: false\ndistributed_type: FSDP\ndowncast_bf16: 'no'\n"
    "enable_cpu_affinity: false\nfsdp_config:\n  fsdp_activation_checkpointing: false\n"
    "  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n  fsdp_backward_prefetch: BACKWARD_PRE\n"
    "  fsdp_cpu_ram_efficient_loading: true\n  fsdp_forward_prefetch: false\n  fsdp_offload_params: false\n"
    "  fsdp_sharding_strategy: FULL_SHARD\n  fsdp_state_dict_type: SHARDED_STATE_DICT\n"
    "  fsdp_sync_module_states: true\n  fsdp_transformer_layer_cls_to_wrap: Qwen2DecoderLayer\n"
    "  fsdp_use_orig_params: true\nmachine_rank: 0\nmain_training_function: main\nmixed_precision: bf16\n"
    "num_machines: 1\nnum_processes: 8\nrdzv_backend: static\nsame_network: true\ntpu_env: []\n"
    "tpu_use_cluster: false\ntpu_use_sudo: false\nuse_cpu: false\n"
)
ENGINE = (
    "import argparse\n\nimport deepspeed\nimport torch\n\n\ndef main():\n"
    "    parser = argparse.ArgumentParser()\n"
    '    parser.add_argument("--local_rank", type=int, default=-1)\n'
    '    parser.add_argument("--epochs", type=int, default=1)\n'
    "    parser = deepspeed.add_config_arguments(parser)\n    args = parser.parse_args()\n"
    "    deepspeed.init_distributed()\n    torch.cuda.set_device(args.local_rank)\n"
    "    model = torch.nn.Linear(8, 8)\n"
    "    engine, *_ = deepspeed.initialize(args=args, model=model, model_parameters=model.parameters())\n"
    "    for _ in range(args.epochs):\n        loss = engine(torch.ones(4, 8).to(engine.device)).sum()\n"
    '        engine.backward(loss)\n        engine.step()\n\n\nif __name__ == "__main__":\n    main()\n'
)
ENGINE_CONFIG = (
    '{\n  "train_batch_size": 64,\n  "train_micro_batch_size_per_gpu": 4,\n  "gradient_accumulation_steps": 2,\n'
    '  "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},\n'
    '  "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}},\n  "bf16": {"enabled": true},\n'
    '  "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": true}}\n}\n'
)
PREDICT = (
    "model_name_or_path: models/tiny\nstage: sft\ndo_predict: true\nfinetuning_type: lora\neval_dataset: held_out\n"
    "dataset_dir: data\ntemplate: qwen\ncutoff_len: 2048\noutput_dir: saves/predict\noverwrite_output_dir: true\n"
    "per_device_eval_batch_size: 1\npredict_with_generate: true\nbf16: true\nreport_to: none\n"
)
CHAT = "model_name_or_path: models/tiny\ntemplate: qwen\ninfer_backend: huggingface\ntrust_remote_code: true\n"

OFFLINE: Mapping[str, object] = {"env": {"HF_HUB_OFFLINE": "1"}, "host_memory_gib": 1024, "shm_gib": 512}

SFT_JOB = Job(
    "FORCE_TORCHRUN=1 llamafactory-cli train sft.yaml",
    {**model(), **DATA, "sft.yaml": text(SFT), "ds/z2.json": text(ZERO_2)},
    OFFLINE,
)
FSDP_JOB = Job(
    "accelerate launch --config_file fsdp.yaml train.py --output_dir out --per_device_train_batch_size 2 --bf16",
    {**model(), **DATA, "fsdp.yaml": text(FSDP), "train.py": text(TRAINER)},
    OFFLINE,
)
ENGINE_JOB = Job(
    "deepspeed --num_gpus 8 train.py --deepspeed --deepspeed_config ds.json --epochs 2",
    {"train.py": text(ENGINE), "ds.json": text(ENGINE_CONFIG)},
    OFFLINE,
)
PREDICT_JOB = Job(
    "torchrun --nproc-per-node 8 -m llamafactory.launcher predict.yaml",
    {**model(), **DATA, "predict.yaml": text(PREDICT)},
    OFFLINE,
)
CHAT_JOB = Job(
    "CUDA_VISIBLE_DEVICES=0 llamafactory-cli chat chat.yaml",
    {**model(), **ADAPTER, "chat.yaml": text(CHAT)},
    OFFLINE,
)
JOBS = {"sft": SFT_JOB, "fsdp": FSDP_JOB, "engine": ENGINE_JOB, "predict": PREDICT_JOB, "chat": CHAT_JOB}

Change = Callable[[Job], Job]


def written(name: str, old: str, new: str) -> Change:
    """A change of a file's text; the text must be there."""

    def change(job: Job) -> Job:
        before = job.files[name].decode()
        assert old in before, f"{name} has no {old!r}"
        return job._replace(files={**job.files, name: before.replace(old, new, 1).encode()})

    return change


def added(name: str, more: str) -> Change:
    """A change that adds text to the end of a file."""
    return lambda job: job._replace(files={**job.files, name: job.files[name] + more.encode()})


def replaced(name: str, data: bytes) -> Change:
    """A change that gives a file other contents."""
    return lambda job: job._replace(files={**job.files, name: data})


def gone(name: str) -> Change:
    """A change that takes a file away; it must be there."""

    def change(job: Job) -> Job:
        assert name in job.files
        return job._replace(files={path: data for path, data in job.files.items() if path != name})

    return change


def cut(name: str, count: int) -> Change:
    """A change that cuts bytes off the end of a file."""
    return lambda job: job._replace(files={**job.files, name: job.files[name][:-count]})


def typed(old: str, new: str) -> Change:
    """A change of the command; what it changes must be there."""

    def change(job: Job) -> Job:
        assert old in job.command
        return job._replace(command=job.command.replace(old, new, 1))

    return change


def built(job: Job, top: Path) -> Path:
    """The job's folder below ``top``."""
    work = top / "work"
    for name, data in job.files.items():
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    work.mkdir(exist_ok=True)
    return work


def checked(job: Job, top: Path) -> Report:
    """What ``mgpu-doctor check --facts`` says about the job, all built-in rules asked."""
    facts = top / "facts.json"
    facts.write_text(json.dumps({**standard_facts(), **job.facts}), encoding="utf-8")
    request = Request(command=job.command, facts=str(facts), directory=str(built(job, top)))
    return diagnose(request, load_checks())


def serious(report: Report) -> list[str]:
    """The slugs of all errors and warnings, each once, in order."""
    found = [finding.slug for finding in report.findings if finding.severity is not Severity.ADVICE]
    return [*dict.fromkeys(found)]
