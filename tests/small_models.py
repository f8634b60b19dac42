"""Small configurations of several architectures, and Python text that builds them in an oracle environment."""

from __future__ import annotations

from typing import Any

_PLAIN = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_PLAIN},
    "llama-tied": {**_PLAIN, "tie_word_embeddings": True},
    "llama-many": {**_PLAIN, "num_hidden_layers": 40, "vocab_size": 128},
    "mistral": {**_PLAIN, "sliding_window": None},
    "qwen2": {**_PLAIN, "vocab_size": 20000},
    "qwen2-tied": {**_PLAIN, "tie_word_embeddings": True, "vocab_size": 20000},
    "qwen3": {**_PLAIN, "head_dim": 32},
    "phi3": {**_PLAIN, "pad_token_id": 0},
    "olmo2": {**_PLAIN},
    "starcoder2": {**_PLAIN, "tie_word_embeddings": True},
    "granite": {**_PLAIN},
    "glm4": {**_PLAIN, "head_dim": 16, "pad_token_id": 0},
    "phi": {**_PLAIN, "num_key_value_heads": 4},
    "mixtral": {**_PLAIN, "num_local_experts": 4},
    "qwen3_moe": {**_PLAIN, "num_experts": 4, "moe_intermediate_size": 32, "head_dim": 16},
    "gpt2": {"n_embd": 64, "n_layer": 6, "n_head": 4, "vocab_size": 1000, "n_positions": 128},
    "gpt_neox": {key: value for key, value in _PLAIN.items() if key != "num_key_value_heads"},
    "opt": {
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "vocab_size": 1000,
        "word_embed_proj_dim": 64,
        "max_position_embeddings": 256,
    },
    "bloom": {"hidden_size": 64, "n_layer": 6, "n_head": 4, "vocab_size": 1000},
}
"""By a name whose part before the dash is the type."""

BUILD = """
import warnings
warnings.filterwarnings("ignore")
import torch
from transformers import AutoConfig, AutoModelForCausalLM
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
NAMES = {torch.bfloat16: "BF16", torch.float32: "F32"}
def build(name, values, dtype):
    config = AutoConfig.for_model(name.partition("-")[0], **values)
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[dtype])
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    finally:
        torch.set_default_dtype(before)
    return model
def described(model):
    tensors = [[name, NAMES[tensor.dtype], list(tensor.shape)] for name, tensor in model.state_dict().items()
               if tensor.dtype in NAMES]
    config = {key: value for key, value in model.config.to_dict().items()
              if isinstance(value, (int, float, str, bool, list, dict, type(None)))}
    return {"tensors": tensors, "config": config}
"""
"""``build(name, values, dtype)`` makes a model without storage; ``described(model)`` its tensors and config."""
