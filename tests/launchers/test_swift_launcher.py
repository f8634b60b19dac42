from __future__ import annotations

import pytest

from chain_stand_ins import context_of, given, one_process
from mgpu_doctor.launchers.chain import Peeled
from mgpu_doctor.launchers.swift import implied, peel, plan
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import Layer


def peeled(text: str) -> Peeled | None:
    context = context_of(text)
    return peel(context.command.words, "command", context)


def torchrun_of(text: str, environment: dict[str, str], version: str = "3.9.0") -> Layer | Unknown | None:
    context = context_of(text, environment=environment, versions={"ms-swift": version})
    found = peel(context.command.words, "command", context)
    assert found is not None
    return implied(found.layer, one_process(4), context)


@pytest.mark.parametrize(
    "text", ["swift sft --model m", "megatron sft --load m", "swift web-ui", "/opt/bin/swift infer"]
)
def test_recognises_its_commands(text: str) -> None:
    found = peeled(text)
    assert found is not None
    assert not found.layer.argument_words


@pytest.mark.parametrize("text", ["swift build -c release", "swift", "swift --version", "tune ls", "tune"])
def test_leaves_other_commands_alone(text: str) -> None:
    assert peeled(text) is None


def test_a_count_of_processes_starts_torchrun() -> None:
    layer = torchrun_of("swift sft --model m", {"NPROC_PER_NODE": "4", "MASTER_PORT": "29511"})
    assert isinstance(layer, Layer)
    assert (layer.launcher, layer.implied) == ("torch.distributed.run", True)
    assert given(layer) == {"nproc_per_node": "4", "master_port": "29511"}


def test_several_nodes_start_torchrun() -> None:
    assert isinstance(torchrun_of("swift rlhf --model m", {"NNODES": "2", "NODE_RANK": "0"}), Layer)


@pytest.mark.parametrize(
    ("text", "version", "starts"),
    [
        ("swift infer --model m", "3.9.0", True),
        ("swift infer --model m", "2.6.1", False),
        ("swift dpo --model m", "2.6.1", True),
        ("swift deploy --model m", "3.9.0", False),
        ("swift export --model m", "3.9.0", False),
        ("megatron sft --load m", "3.9.0", True),
    ],
)
def test_which_subcommands_do(text: str, version: str, starts: bool) -> None:
    assert isinstance(torchrun_of(text, {"NPROC_PER_NODE": "2"}, version), Layer) is starts


def test_without_a_count_it_is_one_process() -> None:
    assert torchrun_of("swift sft --model m", {}) is None
    assert torchrun_of("swift sft --model m", {"MASTER_PORT": "29511"}) is None


def test_an_unknown_subcommand_is_unknown() -> None:
    assert isinstance(torchrun_of("swift $CMD --model m", {"NPROC_PER_NODE": "2"}), Unknown)


def test_tune_run_takes_torchruns_options() -> None:
    text = "tune run --nnodes 1 --nproc_per_node 4 lora_finetune_distributed --config llama3/8B_lora lr=1e-4"
    found = peeled(text)
    assert found is not None
    assert found.layer.launcher == "tune run"
    assert given(found.layer) == {"nnodes": "1", "nproc_per_node": "4"}
    assert [word.value for word in found.rest[:2]] == ["lora_finetune_distributed", "--config"]
    after = plan(found.layer, one_process(8), context_of(text))
    assert after.processes_per_node.known == 4
    assert after.groups.known is True


def test_tune_run_without_options_is_one_process() -> None:
    text = "tune run lora_finetune_single_device --config llama3/8B_lora_single_device"
    found = peeled(text)
    assert found is not None
    before = one_process(8)
    assert plan(found.layer, before, context_of(text)) == before


def test_trl_trains_inside_accelerate() -> None:
    found = peeled("trl sft --model_name_or_path m")
    assert found is not None
    assert (found.layer.launcher, found.rest[0].value) == ("trl", "sft")


@pytest.mark.parametrize("text", ["trl vllm-serve --model m", "trl env", "axolotl preprocess c.yml"])
def test_other_subcommands_of_trl_and_axolotl_are_plain_commands(text: str) -> None:
    assert peeled(text) is None


@pytest.mark.parametrize("text", ["trl sft --num_processes 4", "axolotl train c.yml", "trl sft --model m"])
def test_what_is_handed_to_accelerate_is_not_guessed(text: str) -> None:
    found = peeled(text)
    assert found is not None
    assert isinstance(plan(found.layer, one_process(8), context_of(text)).processes_per_node.value, Unknown)
