"""A model's size from its files, the hub's cache and the facts; its shape from config.json."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launching import HOST, launch
from mgpu_doctor.knowledge import PackageKnowledge
from mgpu_doctor.memory.architecture import read_architecture
from mgpu_doctor.memory.kv_cache import cache_bytes, token_bytes
from mgpu_doctor.memory.weights import STORED_BYTES, Weights, find_weights, read_weights
from mgpu_doctor.model.case import Case
from mgpu_doctor.model.facts import Facts, ModelInfo
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.read.model_folder import read_model_folder
from mgpu_doctor.read.workspace import LocalWorkspace
from model_folders import LLAMA_8B, PARAMETERS_8B, llama_tensors, make_model, write_tensors


def weights(folder: Path) -> Weights:
    found = read_model_folder(str(folder), "m")
    assert not isinstance(found, Unknown)
    read = read_weights(found, "m")
    assert not isinstance(read, Unknown), read
    return read


def test_a_model_of_eight_billion_parameters(tmp_path: Path) -> None:
    read = weights(make_model(tmp_path / "m", LLAMA_8B))
    assert read.parameters == PARAMETERS_8B
    assert read.stored == PARAMETERS_8B * 2
    assert read.dtype == ("bf16", 2)
    assert read.embedding == read.head == 128256 * 4096
    assert read.origin == "1 safetensors header"


def test_a_tied_embedding_counts_once(tmp_path: Path) -> None:
    tied = {**LLAMA_8B, "tie_word_embeddings": True}
    stored = [*llama_tensors(tied), ("lm_head.weight", "BF16", (128256, 4096))]
    assert weights(make_model(tmp_path / "m", tied, stored)).parameters == PARAMETERS_8B - 128256 * 4096


def test_layers_behind_the_last_are_not_loaded(tmp_path: Path) -> None:
    stored = [*llama_tensors(LLAMA_8B), ("model.layers.32.eh_proj.weight", "BF16", (8192, 4096))]
    assert weights(make_model(tmp_path / "m", LLAMA_8B, stored)).parameters == PARAMETERS_8B


def test_a_quantised_model_is_as_large_as_its_files(tmp_path: Path) -> None:
    config = {**LLAMA_8B, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    stored = [("model.layers.0.q.qweight", "I32", (512, 4096)), ("model.layers.0.q.scales", "F16", (32, 4096))]
    read = weights(make_model(tmp_path / "m", config, stored))
    assert (read.quantised, read.stored) == ("gptq", 512 * 4096 * 4 + 32 * 4096 * 2)


def test_pickled_files_are_counted_by_size(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_8B), encoding="utf-8")
    with (folder / "pytorch_model.bin").open("wb") as file:
        file.write(b"\x80\x02")
        file.truncate(16_060_522_496)
    read = weights(folder)
    assert read.parameters == PARAMETERS_8B
    assert read.sure < 1
    (folder / "config.json").write_text(json.dumps({**LLAMA_8B, "torch_dtype": None}), encoding="utf-8")
    found = read_model_folder(str(folder), "m")
    assert not isinstance(found, Unknown)
    assert isinstance(read_weights(found, "m"), Unknown)


def test_a_broken_folder_has_no_size(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", LLAMA_8B)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1 << 20)
    found = read_model_folder(str(folder), "m")
    assert not isinstance(found, Unknown)
    read = read_weights(found, "m")
    assert isinstance(read, Unknown)
    assert "cut off" in read.reason


def case_with(facts: Facts, root: Path) -> Case:
    return Case((), (), (), facts, LocalWorkspace(str(root), facts), PackageKnowledge(facts))


def test_the_hubs_cache_is_followed(tmp_path: Path) -> None:
    top = tmp_path / "hub" / "models--org--name"
    (top / "refs").mkdir(parents=True)
    (top / "refs" / "main").write_text("0123abc", encoding="utf-8")
    make_model(top / "snapshots" / "0123abc", LLAMA_8B)
    make_model(top / "snapshots" / "fedc", {**LLAMA_8B, "num_hidden_layers": 1})
    facts = replace(HOST, origin="this machine", hub_cache=("org/name",), hub_cache_path=str(tmp_path / "hub"))
    line = launch("python train.py --model_name_or_path org/name", facts, tmp_path)
    read = find_weights(case_with(facts, tmp_path), line, "org/name")
    assert isinstance(read, Weights)
    assert read.parameters == PARAMETERS_8B
    other = find_weights(case_with(replace(facts, hub_cache=()), tmp_path), line, "org/name")
    assert isinstance(other, Unknown)
    elsewhere = find_weights(case_with(replace(facts, origin="facts.json"), tmp_path), line, "org/name")
    assert isinstance(elsewhere, Unknown), "another machine's cache is not at hand"
    (top / "refs" / "main").write_text("../../../etc", encoding="utf-8")
    assert isinstance(find_weights(case_with(facts, tmp_path), line, "org/name"), Unknown)


def test_the_facts_tell(tmp_path: Path) -> None:
    facts = replace(HOST, models={"org/name": ModelInfo(7.6e9, "bfloat16"), "/m/": ModelInfo(parameters=1e9)})
    line = launch("python train.py", facts, tmp_path)
    read = find_weights(case_with(facts, tmp_path), line, "org/name")
    assert isinstance(read, Weights)
    assert (read.parameters, read.dtype, read.origin) == (7_600_000_000, ("bf16", 2), "the facts")
    read = find_weights(case_with(facts, tmp_path), line, "/m")
    assert isinstance(read, Weights)
    assert read.dtype is None


def test_shapes_by_type() -> None:
    shape = read_architecture(LLAMA_8B)
    assert shape is not None
    assert token_bytes(shape, 2) == (131072, 131072), "2 × 32 layers × 8 heads × 128 × 2 bytes"
    gpt2 = read_architecture({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257})
    assert gpt2 is not None
    assert (gpt2.intermediate, gpt2.gated, gpt2.tied, gpt2.kv_heads) == (3072, False, True, 12)
    falcon = {"model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71}
    assert (read_architecture(falcon) or gpt2).kv_heads == 1
    nested = read_architecture({"model_type": "llava", "text_config": LLAMA_8B})
    assert nested is not None
    assert (nested.kind, nested.layers) == ("llama", 32)
    assert read_architecture({"model_type": "t5", "is_encoder_decoder": True, "num_layers": 6}) is None
    assert read_architecture({"model_type": "llama", "num_hidden_layers": True, "hidden_size": -1}) is None
    assert read_architecture(None) is None


def test_windows_and_compressed_attention() -> None:
    mistral = read_architecture({**LLAMA_8B, "model_type": "mistral", "sliding_window": 4096})
    assert mistral is not None
    low, high = cache_bytes(mistral, 2, 1, 32768)
    assert (low, high) == (4095 * 131072, 32768 * 131072)
    assert cache_bytes(mistral, 2, 1, 1000) == (131_072_000, 131_072_000)
    gemma = read_architecture({**LLAMA_8B, "model_type": "gemma2", "sliding_window": 4096})
    assert gemma is not None
    assert gemma.full_layers == 16
    unused = read_architecture({**LLAMA_8B, "model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False})
    assert unused is not None
    assert unused.window is None
    deepseek = read_architecture(
        {
            "model_type": "deepseek_v3",
            "num_hidden_layers": 61,
            "hidden_size": 7168,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "kv_lora_rank": 512,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
            "num_experts_per_tok": 8,
        }
    )
    assert deepseek is not None
    assert token_bytes(deepseek, 2) == (61 * 576 * 2, 61 * 128 * (192 + 128) * 2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(("a", "model.layers.0.b", "model.layers.7.c", "lm_head.weight", "x.qweight")),
            st.sampled_from(("BF16", "F32", "I32", "U8", "F8_E4M3")),
            st.lists(st.integers(0, 9), max_size=3).map(tuple),
        ),
        unique_by=lambda entry: entry[0],
        min_size=1,
    )
)
def test_stored_bytes_are_those_of_the_file(tensors: list[tuple[str, str, tuple[int, ...]]]) -> None:
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top)
        write_tensors(folder / "model.safetensors", tensors)
        found = read_model_folder(top, "m")
        assert not isinstance(found, Unknown)
        read = read_weights(found, "m")
        if isinstance(read, Unknown):
            assert not any(prod(shape) for _, _, shape in tensors)
            return
        assert read.stored == sum(prod(shape) * STORED_BYTES[dtype] for _, dtype, shape in tensors)


@pytest.mark.parametrize("config", [{}, {"num_hidden_layers": "32"}, {"hidden_size": 1 << 60}, {"text_config": []}])
def test_a_strange_config_describes_nothing(config: dict[str, object]) -> None:
    assert read_architecture(config) is None
