"""Folders of models for tests: real headers and configurations, and files that are as large as these say, but empty."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

_SIZES = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "U8": 1, "F8_E4M3": 1}
Shapes = Iterable[tuple[str, str, tuple[int, ...]]]

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
"""Meta-Llama-3-8B's config.json, what matters of it: 8,030,261,248 parameters."""
PARAMETERS_8B = 8_030_261_248


def write_tensors(path: Path, tensors: Shapes) -> None:
    """A safetensors file whose data are a hole of the right size."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape in tensors:
        end = at + prod(shape) * _SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + at)


def llama_tensors(config: Mapping[str, Any], dtype: str = "BF16") -> list[tuple[str, str, tuple[int, ...]]]:
    """The tensors of a Llama of this shape, the output embedding only where it is not tied."""
    hidden, inner, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    found: list[tuple[str, tuple[int, ...]]] = [
        ("model.embed_tokens.weight", (words, hidden)),
        ("model.norm.weight", (hidden,)),
    ]
    if not config["tie_word_embeddings"]:
        found.append(("lm_head.weight", (words, hidden)))
    for layer in range(config["num_hidden_layers"]):
        top = f"model.layers.{layer}."
        for name, shape in (
            ("self_attn.q_proj", (hidden, hidden)),
            ("self_attn.k_proj", (keys, hidden)),
            ("self_attn.v_proj", (keys, hidden)),
            ("self_attn.o_proj", (hidden, hidden)),
            ("mlp.gate_proj", (inner, hidden)),
            ("mlp.up_proj", (inner, hidden)),
            ("mlp.down_proj", (hidden, inner)),
            ("input_layernorm", (hidden,)),
            ("post_attention_layernorm", (hidden,)),
        ):
            found.append((f"{top}{name}.weight", shape))
    return [(name, dtype, shape) for name, shape in found]


def make_model(folder: Path, config: Mapping[str, Any], tensors: Shapes | None = None) -> Path:
    """A model's folder with one safetensors file."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
    write_tensors(folder / "model.safetensors", llama_tensors(config) if tensors is None else tensors)
    return folder
