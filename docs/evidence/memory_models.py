"""Makes models with random weights, measures what they take, and compares it with mgpu-doctor's range.

Usage: python memory_models.py FOLDER [--small]

Each job is one process. Measured is the most that torch had allocated at once, and what the CUDA context takes beside
it. ``--small`` makes tiny models: without a GPU the jobs then run on the CPU, and only the ranges are printed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

GIB = 1 << 30
MODELS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
    },
    "qwen2": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "gpt2": {"n_embd": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 50257, "n_positions": 1024},
}
SMALL: dict[str, Any] = {"num_hidden_layers": 2, "n_layer": 2, "vocab_size": 500}

MAKE = """
import json, sys
import torch
from transformers import AutoConfig, AutoModelForCausalLM
kind, values, folder = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
torch.set_default_dtype(torch.bfloat16)
with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values))
model.save_pretrained(folder)
"""

MEASURE = """
import json
import subprocess

import torch

QUERY = ["nvidia-smi", "-i", "0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]


def used():
    return int(subprocess.run(QUERY, capture_output=True, text=True, check=True).stdout.strip()) << 20


on_gpu = torch.cuda.is_available()
before = used() if on_gpu else 0


def measured():
    real = None
    if on_gpu:
        torch.cuda.synchronize()
        reserved = torch.cuda.memory_reserved()
        real = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved(),
                "context": used() - before - reserved}
    print("MEASURED", json.dumps(real))
"""
"""Imported before anything touches the card; the context is what nvidia-smi sees beside torch's own reserve."""

CHAT = """
from measure import measured
import torch
from transformers import AutoModelForCausalLM

device = "cuda" if torch.cuda.is_available() else "cpu"
model = AutoModelForCausalLM.from_pretrained("./model", dtype=torch.bfloat16)
model = model.cuda() if device == "cuda" else model
model.eval()
while True:
    try:
        line = input()
    except EOFError:
        break
    ids = torch.randint(0, model.config.vocab_size, (1, 256), device=device)
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=int(line), min_new_tokens=int(line),
                   do_sample=False, pad_token_id=0)
measured()
"""

TRAIN = """
from measure import measured
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, HfArgumentParser, Trainer, TrainingArguments
{imports}

@dataclass
class Length:
    max_seq_length: int = 512


args, length = HfArgumentParser((TrainingArguments, Length)).parse_args_into_dataclasses()
model = AutoModelForCausalLM.from_pretrained("./model", dtype=torch.{dtype})
{adapted}
words = model.config.vocab_size
rows = [dict(input_ids=ids, labels=ids) for ids in torch.randint(0, words, (8, length.max_seq_length))]
Trainer(model=model, args=args, train_dataset=rows).train()
measured()
"""

LORA = """model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"))
model.print_trainable_parameters()"""

STEP = (
    "--output_dir out --max_steps 2 --per_device_train_batch_size 4 --max_seq_length {length} --optim adamw_torch "
    "--report_to none --save_strategy no --logging_steps 1 "
)


def jobs(kind: str, *, small: bool, adapters: bool) -> list[tuple[str, str, str, str]]:
    """Title, program, its text and its command for each thing that is done with a model."""
    length = 64 if small else 512
    step = STEP.format(length=length) + ("--use_cpu true" if small else "")
    plain = {"imports": "", "adapted": ""}
    full, half = TRAIN.format(dtype="float32", **plain), TRAIN.format(dtype="bfloat16", **plain)
    found = [("conversation", "chat.py", CHAT, "python3 chat.py")]
    if kind != "qwen2":
        found.append(("training, mixed precision", "train.py", full, f"python3 train.py {step} --bf16 true"))
    if kind != "gpt2":
        more = f"python3 train.py {step} --bf16 true --gradient_checkpointing true"
        found.append(("the same, recomputed", "train.py", full, more))
    if kind == "llama":
        found.append(("training, bf16 alone", "train_half.py", half, f"python3 train_half.py {step} --bf16 true"))
        if adapters:
            text = TRAIN.format(dtype="bfloat16", imports="from peft import LoraConfig, get_peft_model", adapted=LORA)
            found.append(("LoRA", "lora.py", text, f"python3 lora.py {step} --bf16 true"))
    return found


def predicted(folder: Path, command: str, *, on_gpu: bool) -> dict[str, Any] | None:
    """What mgpu-doctor says of memory for a command; None where it says nothing."""
    call = ["mgpu-doctor", "explain", "--format", "json", "--python", sys.executable]
    if not on_gpu:
        call += ["--facts", "none"]
    done = subprocess.run(
        [*call, f"CUDA_VISIBLE_DEVICES=0 {command}"], cwd=folder, capture_output=True, text=True, check=False
    )
    memory: dict[str, Any] | None = json.loads(done.stdout)["commands"][0]["memory"]
    return memory


def run(folder: Path, command: str, given: str) -> Any:
    """What a job measured of itself; None on the CPU.

    Raises:
        SystemExit: the job failed.
    """
    words = command.split()
    done = subprocess.run(
        [sys.executable, *words[1:]],
        cwd=folder,
        input=given,
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    for line in done.stdout.splitlines():
        if line.startswith("MEASURED "):
            return json.loads(line.removeprefix("MEASURED "))
    raise SystemExit(f"{command} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def environment() -> dict[str, str]:
    """The variables of a job: one card, no network."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "0", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def has(package: str) -> bool:
    """Whether the interpreter of the jobs finds a package."""
    return subprocess.run([sys.executable, "-c", f"import {package}"], capture_output=True, check=False).returncode == 0


def shown(amount: float | None) -> str:
    """Bytes in GiB with two places."""
    return "open" if amount is None else f"{amount / GIB:.2f}"


def compare(title: str, memory: dict[str, Any] | None, real: Any) -> bool:
    """Print one line; whether the measured amount lies inside the range."""
    if memory is None:
        print(f"  {title:28} mgpu-doctor says nothing")
        return False
    span = f"{shown(memory['low'])}–{shown(memory['high'])} GiB"
    if real is None:
        print(f"  {title:28} predicted {span}")
        return True
    took = real["allocated"] + real["context"]
    inside = memory["low"] <= took and (memory["high"] is None or took <= memory["high"])
    print(
        f"  {title:28} predicted {span:18} measured {shown(took)} (allocated {shown(real['allocated'])}, "
        f"context {shown(real['context'])}; reserved {shown(real['reserved'])})  {'inside' if inside else 'OUTSIDE'}"
    )
    for part in memory["parts"]:
        print(f"      {part['purpose']:14} {shown(part['low'])}–{shown(part['high'])}  {part['why']}")
    return inside


def main() -> int:
    """All models and jobs; 1 when a measured amount lies outside its range."""
    top, small = Path(sys.argv[1]), "--small" in sys.argv
    probe = "import torch, transformers; print(torch.cuda.is_available(), torch.__version__, transformers.__version__)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, env=environment(), check=False)
    on_gpu, *versions = done.stdout.split()[-3:]
    print("torch {}, transformers {}".format(*versions))
    adapters = has("peft")
    print("peft is installed" if adapters else "peft is not installed: no LoRA")
    fine = True
    for kind, shape in MODELS.items():
        values = {**shape, **{name: value for name, value in SMALL.items() if small and name in shape}}
        folder = top / kind
        folder.mkdir(parents=True)
        made = [sys.executable, "-c", MAKE, kind, json.dumps(values), str(folder / "model")]
        subprocess.run(made, check=True, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (folder / "measure.py").write_text(MEASURE, encoding="utf-8")
        print(f"{kind} {json.dumps(values)}")
        for title, name, text, command in jobs(kind, small=small, adapters=adapters):
            (folder / name).write_text(text, encoding="utf-8")
            memory = predicted(folder, command.replace("--use_cpu true", ""), on_gpu=on_gpu == "True")
            real = run(folder, command, "8\n" if small else "400\n")
            fine = compare(title, memory, real) and fine
    print("all inside" if fine else "something lies outside its range")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
