"""What keys and values of past tokens take.

transformers 4.40.0 to 5.23.0, cache_utils.py DynamicCache: two tensors a layer of key-value heads times head size for
each token, in the model's dtype. DeepSeek's compressed attention could keep its latent alone (DeepSeek-V2, section 2.1;
vLLM does); transformers 4.52.4 and 5.6.0, models/deepseek_v3/modeling_deepseek_v3.py, keeps the expanded keys and
values. A window bounds the tokens kept by layers that slide only where the cache follows it, so the high end ignores
it.
"""

from __future__ import annotations

from mgpu_doctor.memory.architecture import Architecture


def token_bytes(shape: Architecture, element: int) -> tuple[int, int]:
    """Bytes of one token in all layers, at least and at most."""
    if shape.latent is not None:
        low = shape.layers * shape.latent * element
        expanded = shape.latent_expanded
        return low, shape.layers * expanded * element if expanded is not None else low
    each = 2 * shape.layers * shape.kv_heads * shape.head_dim * element
    return each, each


def cache_bytes(shape: Architecture, element: int, sequences: int, tokens: int) -> tuple[int, int]:
    """Bytes for so many sequences of so many tokens, at least and at most."""
    low, high = token_bytes(shape, element)
    kept = tokens
    if shape.window is not None and shape.window < tokens:
        share = shape.full_layers / shape.layers
        # A cache that follows the window keeps the tokens before the next one: one less than the window.
        kept = int(tokens * share + (shape.window - 1) * (1 - share))
    return low * sequences * kept, high * sequences * tokens
