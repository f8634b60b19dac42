"""What transformers' modules keep of the forward pass, counted, against the bound."""

from __future__ import annotations

from typing import Any

import pytest

from mgpu_doctor.memory.activations import Batch, bound_activations, bound_logits
from mgpu_doctor.memory.architecture import read_architecture
from oracle_environments import ENVIRONMENTS, requires_oracle, run_parser

_LAYERS = (2, 4)
_SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}
_TYPES: dict[str, dict[str, Any]] = {
    "llama": _SHAPE,
    "qwen2": {**_SHAPE, "intermediate_size": 704, "num_key_value_heads": 4},
    "qwen3": {**_SHAPE, "head_dim": 64},
    "mixtral": {**_SHAPE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma2": {**_SHAPE, "head_dim": 32},
    "phi3": {**_SHAPE, "pad_token_id": 0},
    "gpt2": {"n_embd": 128, "n_head": 4, "vocab_size": 256, "n_positions": 256, "attn_pdrop": 0.0},
    "gpt_neox": {**_SHAPE, "intermediate_size": 512},
}
_BATCH = Batch(2, 96)

_COUNT = """
import warnings
warnings.filterwarnings("ignore")
import torch
from transformers import AutoConfig, AutoModelForCausalLM
def kept(model, ids, mixed):
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    own |= {b.untyped_storage().data_ptr() for b in model.buffers()}
    seen, alive = {}, []
    def pack(tensor):
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            model(ids, labels=ids, use_cache=False)
    return sum(size for place, size in seen.items() if place not in own)
result = []
for kind, values, layers, precision, eager, recomputed, (sequences, tokens) in payload:
    name = "n_layer" if kind == "gpt2" else "num_hidden_layers"
    config = AutoConfig.for_model(kind, **values, **{name: layers})
    torch.manual_seed(0)
    attention = "eager" if eager else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    model.to(torch.bfloat16 if precision == "half" else torch.float32).train()
    if recomputed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    ids = torch.randint(0, config.vocab_size, (sequences, tokens))
    result.append(kept(model, ids, precision == "mixed"))
"""


@pytest.mark.oracle
@pytest.mark.parametrize("environment", [pytest.param(name, marks=requires_oracle(name)) for name in ENVIRONMENTS])
def test_the_bound_holds_and_is_no_wild_guess(environment: str) -> None:
    settings = [
        (kind, values, layers, precision, eager, recomputed, (_BATCH.sequences, _BATCH.tokens))
        for kind, values in _TYPES.items()
        for layers in _LAYERS
        for precision in ("mixed", "half", "full")
        for eager in (False, True)
        for recomputed in (False, True)
    ]
    for setting, counted in zip(settings, run_parser(environment, _COUNT, settings), strict=True):
        kind, values, layers, precision, eager, recomputed, _ = setting
        name = "n_layer" if kind == "gpt2" else "num_hidden_layers"
        shape = read_architecture({**values, "model_type": kind, name: layers})
        assert shape is not None
        bound = bound_activations(shape, _BATCH, precision, recomputed=recomputed, keeps_scores=eager, adapters=False)
        logits = bound_logits(shape, _BATCH, precision)
        assert bound is not None
        assert logits is not None
        assert counted <= bound + logits, setting
        if not recomputed:
            assert bound < 4.5 * counted, setting
