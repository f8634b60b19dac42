"""What a launch needs, against numbers worked out by hand from the papers' and libraries' formulas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from judging import found
from mgpu_checks.engine import host_memory_short, model_does_not_fit, model_fits_one_gpu
from mgpu_doctor.authoring import MemoryNeed, MemoryPart, Placement, Unknown, memory_fit, memory_need
from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.model.case import Case
from mgpu_doctor.registry import Registry
from mgpu_doctor.render.json import report_document
from mgpu_doctor.render.plain import explain_lines
from mgpu_doctor.render.probe_plain import probe_lines
from mgpu_doctor.testing import standard_facts
from model_folders import LLAMA_8B, PARAMETERS_8B, make_model
from observations import healthy

P = PARAMETERS_8B
EMBEDDING = 128256 * 4096
INSIDE = P - 2 * EMBEDDING - 4096 * 65
"""Parameters of the matrices inside the layers of the model of eight billion."""
GIB = 1 << 30

SFT = (
    "llamafactory-cli train --stage sft --do_train --dataset demo --template default --output_dir out "
    "--model_name_or_path ./m "
)
FULL = SFT + "--finetuning_type full "
ZERO = "FORCE_TORCHRUN=1 " + FULL + "--bf16 true --deepspeed ds.json "
SCRIPT = (
    "import torch\nfrom transformers import {imports}\n{before}"
    'model = AutoModelForCausalLM.from_pretrained("./m"{more})\n{after}\n'
)
TRAINER = "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("models")
    make_model(top / "m", LLAMA_8B)
    return top


def case_of(
    folder: Path, command: str, files: Mapping[str, str] | None = None, facts: Mapping[str, object] | None = None
) -> Case:
    for name, text in (files or {}).items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "facts.json").write_text(json.dumps({**standard_facts(), **(facts or {})}), encoding="utf-8")
    request = Request(command=command, facts=str(folder / "facts.json"), directory=str(folder))
    return diagnose(request, Registry((), ())).case


def need(
    folder: Path, command: str, files: Mapping[str, str] | None = None, facts: Mapping[str, object] | None = None
) -> MemoryNeed | Unknown:
    case = case_of(folder, command, files, facts)
    return memory_need(case, case.launches[-1])


def known(
    folder: Path, command: str, files: Mapping[str, str] | None = None, facts: Mapping[str, object] | None = None
) -> MemoryNeed:
    answer = need(folder, command, files, facts)
    assert isinstance(answer, MemoryNeed), answer
    return answer


def part(parts: tuple[MemoryPart, ...], purpose: str) -> MemoryPart:
    (one,) = (each for each in parts if each.purpose == purpose)
    return one


def zero(stage: int, **more: object) -> dict[str, str]:
    return {"ds.json": json.dumps({"bf16": {"enabled": True}, "zero_optimization": {"stage": stage, **more}})}


def script(more: str = "", before: str = "", after: str = "", imports: str = "AutoModelForCausalLM") -> dict[str, str]:
    return {"run.py": SCRIPT.format(more=more, before=before, after=after, imports=imports)}


def trainer(more: str = "", before: str = "") -> dict[str, str]:
    names = "AutoModelForCausalLM, HfArgumentParser, Trainer, TrainingArguments"
    return script(more, TRAINER + before, "Trainer(model=model, args=args).train()", names)


def test_full_training_in_mixed_precision_takes_sixteen_bytes(folder: Path) -> None:
    told = known(folder, FULL + "--bf16 true")
    assert told.form == "replicas"
    assert part(told.card, "weights").low == 4 * P
    assert part(told.card, "gradients").low == 4 * P
    assert part(told.card, "gradients").high == 8 * P, "DDP's buckets"
    states = part(told.card, "optimizer")
    assert (states.low, states.high) == (8 * P, 12 * P), "the default form of AdamW needs room while it steps"
    fused = part(known(folder, FULL + "--bf16 true --optim adamw_torch_fused").card, "optimizer")
    assert fused.high == 8 * P
    assert told.low - part(told.card, "CUDA context").low == 16 * P


@pytest.mark.parametrize(
    ("more", "low"),
    [
        ("--pure_bf16 true", 8 * P),
        ("--bf16 true --optim adamw_8bit", (4 + 4 + 2) * P),
        ("--bf16 true --optim paged_adamw_32bit", (4 + 4) * P),
        ("--bf16 true --optim adafactor", 4 * P),
        ("--bf16 true --use_galore true", 4 * P),
        ("", 16 * P),
    ],
)
def test_precision_and_optimizer(folder: Path, more: str, low: int) -> None:
    told = known(folder, FULL + more)
    assert told.low - part(told.card, "CUDA context").low == low


def test_eight_bit_states_keep_embeddings_in_full(folder: Path) -> None:
    states = part(known(folder, FULL + "--bf16 true --optim adamw_8bit").card, "optimizer")
    assert states.high == round(2.1 * (P - EMBEDDING)) + 8 * EMBEDDING


@pytest.mark.parametrize(
    ("stage", "low", "estimate"),
    [
        (1, 2 * P + 12 * P // 8, 2 * P + 18 * P // 8),
        (2, 2 * P + 14 * P // 8, 2 * P + 18 * P // 8),
        (3, 16 * P // 8, 4 * EMBEDDING + 18 * P // 8),
    ],
)
def test_zero_divides(folder: Path, stage: int, low: int, estimate: int) -> None:
    states = part(known(folder, ZERO, zero(stage)).card, "model states")
    assert states.low == low
    assert states.high is not None
    assert states.low < estimate <= states.high


def test_what_deepspeeds_file_says_of_the_optimizer_counts(folder: Path) -> None:
    offload = {"offload_optimizer": {"device": "cpu"}}
    for more in ({"optimizer": {"type": "Lion"}}, {"fp16": {"fp16_master_weights_and_gradients": True}}):
        config = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2, **offload}, **more}
        told = known(folder, ZERO, {"ds.json": json.dumps(config)})
        assert part(told.host, "optimizer").low == 2 * P
    config = {"optimizer": {"type": "AdamW"}, "zero_optimization": {"stage": 2, **offload}}
    assert part(known(folder, ZERO, {"ds.json": json.dumps(config)}).host, "optimizer").low == 12 * P


def test_zero_offload_goes_to_the_host(folder: Path) -> None:
    files = zero(2, offload_optimizer={"device": "cpu"})
    told = known(folder, ZERO, files)
    assert part(told.card, "model states").low == 2 * P
    host = part(told.host, "optimizer")
    assert (host.low, host.high) == (12 * P, int(P * 32 * 1.5))
    files = zero(3, offload_optimizer={"device": "cpu"}, offload_param={"device": "cpu"})
    told = known(folder, ZERO, files)
    assert part(told.card, "model states").low == 0
    assert part(told.host, "optimizer").low == 14 * P
    files = zero(3, offload_optimizer={"device": "nvme", "nvme_path": "/x"})
    assert known(folder, ZERO, files).host == ()


def test_fsdp_divides(folder: Path) -> None:
    config = (
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nfsdp_config:\n  fsdp_offload_params: {}\n"
        "mixed_precision: bf16\nnum_machines: 1\nnum_processes: 8\n"
    )
    command = "accelerate launch --config_file fsdp.yaml run.py --output_dir out --bf16 true"
    told = known(folder, command, {**trainer(), "fsdp.yaml": config.format("false")})
    assert told.form == "sharded"
    assert part(told.card, "model states").low == 8 * P // 8
    told = known(folder, command, {**trainer(), "fsdp.yaml": config.format("true")})
    assert part(told.card, "model states").low == 0
    assert part(told.host, "model states").low == 8 * P


def test_lora_keeps_the_frozen_weights_whole(folder: Path) -> None:
    told = known(folder, SFT + "--finetuning_type lora --bf16 true")
    assert part(told.card, "weights").low == 2 * P
    adapter = part(told.card, "adapter")
    # rank 8 on the seven matrices of each layer, with DoRA's magnitudes at most
    sums = 8 * (2 * 8192 + 2 * (1024 + 4096) + 3 * (14336 + 4096)) + 2 * 4096 + 2 * 1024 + 2 * 14336 + 4096
    assert adapter.low == 0
    assert adapter.high == 32 * sums * (4 + 2 + 4 + 4 + 12)
    assert known(folder, "FORCE_TORCHRUN=1 " + SFT + "--bf16 true --deepspeed ds.json", zero(3)).card[0].low == P // 4


def test_quantised_loading(folder: Path) -> None:
    four = part(known(folder, SFT + "--bf16 true --quantization_bit 4").card, "weights")
    assert four.low == round(INSIDE * 0.5 + (P - INSIDE) * 2)
    eight = part(known(folder, SFT + "--bf16 true --quantization_bit 8").card, "weights")
    assert eight.low == round(INSIDE * 1.0 + (P - INSIDE) * 2)
    assert isinstance(need(folder, SFT + "--quantization_bit 40"), Unknown)


def test_freezing_trains_few_layers(folder: Path) -> None:
    trained = part(known(folder, SFT + "--finetuning_type freeze --bf16 true").card, "trained layers")
    assert trained.low == 0
    assert trained.high == pytest.approx(P * 2 / 32 * 26, rel=1e-6)


def test_activations_are_bounded_where_batch_and_length_are_known(folder: Path) -> None:
    tokens = 2 * 1024
    told = known(folder, FULL + "--bf16 true --per_device_train_batch_size 2 --cutoff_len 1024")
    activations = part(told.card, "activations")
    layer = tokens * (40 * 4096 + 16 * (32 + 16) * 128 + 10 * 14336)
    assert (activations.low, activations.high) == (0, tokens * 4 * 4096 * 32 + 2 * layer)
    assert part(told.card, "logits").high == tokens * 128256 * 18
    kept = known(folder, FULL + "--bf16 true --cutoff_len 1024 --disable_gradient_checkpointing true")
    assert (part(kept.card, "activations").high or 0) > 5 * (activations.high or 0)
    command = "torchrun --nproc-per-node 8 run.py --output_dir out --bf16 true"
    open_end = known(folder, command, trainer())
    assert open_end.high is None
    assert open_end.uncounted == ("activations",)


def test_a_program_trains_in_the_dtype_that_it_loads(folder: Path) -> None:
    command = "torchrun --nproc-per-node 8 run.py --output_dir out --bf16 true"
    told = known(folder, command, trainer())
    assert part(told.card, "weights").low == 4 * P
    assert part(told.card, "optimizer").low == 8 * P
    halved = known(folder, command, trainer(", torch_dtype=torch.bfloat16"))
    assert part(halved.card, "weights").low == 2 * P
    assert part(halved.card, "optimizer").low == 4 * P
    new = {"packages": {"transformers": "5.6.0", "torch": "2.11.0", "accelerate": "1.15.0"}}
    assert part(known(folder, command, trainer(), new).card, "weights").low == 2 * P
    assert part(known(folder, command, trainer(before="import peft\n")).card, "weights").low == 4 * P
    assert part(known(folder, command, trainer(before="import peft\n")).card, "trained parameters").low == 0


@pytest.mark.parametrize(
    "files",
    [
        script(", **options", after='model.to("cuda")'),
        script(", quantization_config=config", after="model.cuda()"),
        script(),
        script(after="model.cuda()\nother = AutoModelForCausalLM.from_pretrained(x)"),
        script(', tp_plan="auto"', after="model.cuda()"),
        {"run.py": 'from unsloth import FastLanguageModel as F\nm = F.from_pretrained("./m").cuda()\n'},
        {"run.py": "import torch\nmodel = torch.load('x').cuda()\n"},
        {"run.py": "def broken(:\n"},
    ],
)
def test_what_a_program_hides_is_not_guessed(folder: Path, files: dict[str, str]) -> None:
    assert isinstance(need(folder, "CUDA_VISIBLE_DEVICES=0 python run.py", files), Unknown)


def test_a_dtype_that_may_be_anything_widens_the_range(folder: Path) -> None:
    files = script(", torch_dtype=kind", after="model.cuda()\nmodel.generate(x)")
    weights = part(known(folder, "CUDA_VISIBLE_DEVICES=0 python run.py", files).card, "weights")
    assert (weights.low, weights.high) == (2 * P, 4 * P)


def test_a_chat_over_several_cards(folder: Path) -> None:
    told = known(folder, "llamafactory-cli chat --model_name_or_path ./m --template llama3")
    assert (told.form, told.cards) == ("split", 8)
    assert part(told.card, "weights").low == 2 * P
    assert part(told.card, "KV cache").high == 8192 * 131072
    assert isinstance(told.placement, Placement)
    assert sum(load.share for load in told.placement.loads) == pytest.approx(2 * P, rel=1e-6)
    assert told.placement.host == 0
    one = known(folder, "CUDA_VISIBLE_DEVICES=3 llamafactory-cli chat --model_name_or_path ./m --template llama3")
    assert (one.form, one.cards) == ("split", 1), "what does not fit stays in host memory"
    assert isinstance(one.placement, Placement)
    assert one.placement.modules == (("", 0),)
    quantised = "llamafactory-cli chat --model_name_or_path ./m --template llama3 --quantization_bit 4"
    assert known(folder, quantised).form == "one", "bitsandbytes goes to one card"


def test_prediction_counts_its_batches(folder: Path) -> None:
    told = known(
        folder,
        "llamafactory-cli train --stage sft --do_predict --predict_with_generate --eval_dataset demo --template llama3 "
        "--output_dir out --model_name_or_path ./m --per_device_eval_batch_size 4 --cutoff_len 1000 "
        "--max_new_tokens 24",
    )
    assert told.form == "replicas"
    assert part(told.card, "KV cache").high == 4 * 1024 * 131072


@pytest.mark.parametrize(
    "command",
    [
        "vllm serve ./m",
        "llamafactory-cli chat --model_name_or_path ./m --template llama3 --infer_backend vllm",
        SFT + "--use_unsloth true",
        SFT.replace("./m", "./nothing-here"),
        SFT.replace("./m", "$MODEL"),
        "llamafactory-cli export --model_name_or_path ./m --export_dir out",
        "python train.py",
        FULL + "--use_cpu true",
        "accelerate launch --cpu run.py --output_dir out",
    ],
)
def test_what_is_not_known_is_not_counted(folder: Path, command: str) -> None:
    case = case_of(folder, command)
    for launch in case.launches:
        assert isinstance(memory_need(case, launch), Unknown)


def test_mig_instances_have_a_size_of_their_own(folder: Path) -> None:
    gpus = [{"index": 0, "memory_gib": 80, "mig_mode": "enabled", "mig_devices": [{"uuid": "MIG-1", "profile": "1g"}]}]
    case = case_of(folder, FULL, facts={"gpus": gpus})
    assert isinstance(memory_fit(case, case.launches[-1]), Unknown)


def test_a_card_too_small_by_little_is_no_error(folder: Path) -> None:
    """The low end alone decides: a model that takes all of a card but its context is reported, one byte less is not."""
    files = dict(script(", torch_dtype=torch.bfloat16", after="model.cuda()\nmodel.generate(x)"))
    low = known(folder, "CUDA_VISIBLE_DEVICES=0 python run.py", files).low
    for memory, count in ((low / GIB + 0.01, 0), (low / GIB - 0.01, 1)):
        facts = {
            "gpus": [{"index": 0, "name": "X", "memory_gib": memory}],
            "models": {"./m": {"parameters": P, "dtype": "bfloat16"}},
        }
        findings = found(model_does_not_fit, "CUDA_VISIBLE_DEVICES=0 python run.py", files=files, facts=facts)
        assert len(findings) == count


def test_messages_have_numbers() -> None:
    facts = {"models": {"./m": {"parameters": P, "dtype": "bfloat16"}}, "host_memory_gib": 64}
    (finding,) = found(model_does_not_fit, FULL + "--bf16 true", facts=facts)
    assert "108 GiB on each of 8 cards" in finding.message, "a tenth may be a tower that is frozen"
    assert "GPU 0 has 80.0 GiB" in finding.message
    assert finding.fix is not None
    assert "ZeRO-3" in finding.fix.title
    (finding,) = found(model_fits_one_gpu, "llamafactory-cli chat --model_name_or_path ./m --template x", facts=facts)
    assert "15.0 GiB" in finding.message
    assert finding.fix is not None
    assert finding.fix.commands[0].startswith("CUDA_VISIBLE_DEVICES=0 llamafactory-cli chat")
    files = zero(2, offload_optimizer={"device": "cpu"})
    (finding,) = found(host_memory_short, ZERO, files=files, facts=facts)
    assert "80.8 GiB" in finding.message
    assert "64.0 GiB" in finding.message


def test_explain_tells_amounts_placement_and_the_choice(folder: Path) -> None:
    (folder / "facts.json").write_text(json.dumps(standard_facts()), encoding="utf-8")
    request = Request(
        mode="explain",
        command="llamafactory-cli chat --model_name_or_path ./m --template llama3",
        facts=str(folder / "facts.json"),
        directory=str(folder),
    )
    report = diagnose(request, Registry((), ()))
    text = "\n".join(explain_lines(report))
    assert "memory: about 16.6–25.5 GiB on 8 cards together: weights 15.0 (bf16), KV cache 0–1.0 (0.125 MiB" in text
    assert "placement: cuda:0 " in text
    assert "(model.embed_tokens" in text
    assert "model.norm, model.rotary_emb, lm_head)" in text
    assert "choice: memory split: one copy of the model (15.0 GiB) over 8 cards" in text
    assert "llamafactory-cli train --model_name_or_path ./m --template llama3 --stage sft --do_predict true" in text
    document = report_document(report, commands=True)["commands"][0]["memory"]
    assert (document["form"], document["cards"], document["parameters"]) == ("split", 8, P)
    assert document["placement"]["model.embed_tokens"] == 0
    assert document["choice"]["kind"] == "split"
    assert document["low"] == sum(entry["low"] for entry in document["parts"])
    assert json.loads(json.dumps(document)) == document


def test_a_probe_of_one_process_says_where_its_model_would_lie(folder: Path) -> None:
    (folder / "facts.json").write_text(json.dumps(standard_facts()), encoding="utf-8")
    request = Request(
        mode="probe",
        command="llamafactory-cli chat --model_name_or_path ./m --template llama3",
        facts=str(folder / "facts.json"),
        directory=str(folder),
        observation=healthy(1),
    )
    text = "\n".join(probe_lines(diagnose(request, Registry((), ()))))
    assert "verdict: SINGLE" in text
    assert "  placement: cuda:0 " in text
    assert "on 8 cards together: weights 15.0 (bf16)" in text


def test_nothing_is_said_where_nothing_is_known(folder: Path) -> None:
    (folder / "facts.json").write_text(json.dumps(standard_facts()), encoding="utf-8")
    request = Request(
        mode="explain",
        command="torchrun --nproc-per-node 8 train.py",
        facts=str(folder / "facts.json"),
        directory=str(folder),
    )
    report = diagnose(request, Registry((), ()))
    text = "\n".join(explain_lines(report))
    assert not any(line.strip().startswith(("memory:", "placement:", "choice:")) for line in text.splitlines())
    assert report_document(report, commands=True)["commands"][0]["memory"] is None
