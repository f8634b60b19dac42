"""What transformers keeps of past tokens, and of a model in host memory while it loads, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mgpu_doctor.memory.architecture import read_architecture
from mgpu_doctor.memory.kv_cache import cache_bytes
from oracle_environments import ENVIRONMENTS, requires_oracle, run_parser
from small_models import BUILD

pytestmark = [pytest.mark.oracle]
both = pytest.mark.parametrize(
    "environment", [pytest.param(name, marks=requires_oracle(name)) for name in ENVIRONMENTS]
)
_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
_TYPES: dict[str, dict[str, Any]] = {
    "llama": _SHAPE,
    "qwen3": {**_SHAPE, "head_dim": 32},
    "mistral": {**_SHAPE, "sliding_window": 16},
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 100, "n_positions": 64},
    "gpt_neox": {key: value for key, value in _SHAPE.items() if key != "num_key_value_heads"},
    "falcon": {**{k: v for k, v in _SHAPE.items() if k != "num_key_value_heads"}, "new_decoder_architecture": False},
    "deepseek_v3": {
        **_SHAPE,
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 12,
        "v_head_dim": 16,
        "n_routed_experts": 4,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
    },
}
_CACHE = (
    BUILD
    + """
def tensors(cache):
    if hasattr(cache, "layers"):
        for layer in cache.layers:
            yield layer.keys
            yield layer.values
    else:
        for layer in range(len(cache)):
            yield from cache[layer][:2]
result = {}
for kind, values, sequences, tokens in payload:
    config = AutoConfig.for_model(kind, **values)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        cache = model(torch.randint(0, 100, (sequences, tokens)), use_cache=True).past_key_values
    result[kind] = sum(tensor.numel() * tensor.element_size() for tensor in tensors(cache))
"""
)


@both
def test_keys_and_values(environment: str) -> None:
    sequences, tokens = 3, 40
    answers = run_parser(environment, _CACHE, [[kind, values, sequences, tokens] for kind, values in _TYPES.items()])
    for kind, values in _TYPES.items():
        shape = read_architecture({**values, "model_type": kind})
        assert shape is not None
        low, high = cache_bytes(shape, 4, sequences, tokens)
        assert low <= answers[kind] <= high, kind
        if kind not in {"mistral", "deepseek_v3"}:
            assert low == high == answers[kind], kind


_SAVE = (
    BUILD
    + """
config = AutoConfig.for_model("llama", hidden_size=1024, intermediate_size=2816, num_hidden_layers=8,
                              num_attention_heads=16, num_key_value_heads=16, vocab_size=8000)
model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
model.save_pretrained(payload)
result = sum(p.numel() for p in model.parameters())
"""
)
_LOAD = (
    BUILD
    + """
def own():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Anonymous:")) * 1024
kind = DTYPES[payload[1]]
# The first one brings in what is imported on the way.
first = AutoModelForCausalLM.from_pretrained(payload[0], torch_dtype=kind)
before = own()
model = AutoModelForCausalLM.from_pretrained(payload[0], torch_dtype=kind)
result = own() - before
"""
)


@both
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the kernel does not tell private memory")
def test_only_a_converted_model_is_copied_by_each_process(environment: str, tmp_path: Path) -> None:
    parameters = run_parser(environment, _SAVE, str(tmp_path))
    assert run_parser(environment, _LOAD, [str(tmp_path), "bf16"]) < 0.2 * parameters, "mapped"
    assert run_parser(environment, _LOAD, [str(tmp_path), "fp32"]) > 0.9 * 4 * parameters
