"""What config.json says about a transformer's shape.

Names of the keys: transformers 4.40.0 to 5.23.0, models/*/configuration_*.py with their ``attribute_map``; DeepSeek's
compressed attention: models/deepseek_v3/configuration_deepseek_v3.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from mgpu_doctor.model.record import dataclass

_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model", "dim"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "intermediate": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "positions": ("max_position_embeddings", "n_positions", "seq_length"),
}
_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
"""Where models for several modalities keep the language model's part."""

_GATED_OFF = frozenset(
    {"gpt2", "gpt_neox", "opt", "phi", "bloom", "falcon", "starcoder2", "gptj", "mpt", "gpt_bigcode"}
)
"""Types whose feed-forward part has two matrices instead of three."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of a decoder, in numbers of its config; a number is None when the config does not tell.

    ``latent`` is what DeepSeek's compressed attention keeps of a token and layer (``kv_lora_rank`` and
    ``qk_rope_head_dim`` together), None for plain attention. ``window`` limits attention to the last tokens;
    ``full_layers`` are the layers without that limit.
    """

    kind: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int | None
    intermediate: int | None
    positions: int | None
    window: int | None = None
    full_layers: int = 0
    latent: int | None = None
    latent_expanded: int | None = None
    """Elements of a token and layer when that attention keeps its keys and values expanded."""
    gated: bool = True
    experts_per_token: int = 0
    tied: bool = False


def read_architecture(config: Mapping[str, object] | None) -> Architecture | None:
    """The shape that a config.json describes; None where it describes no plain decoder."""
    if config is None:
        return None
    inner: Mapping[str, object] = config
    for name in _NESTED:
        nested = config.get(name)
        if isinstance(nested, Mapping):
            inner = nested
            break
    if inner.get("is_encoder_decoder") is True:
        return None
    layers, hidden, heads = (_first(inner, name) for name in ("layers", "hidden", "heads"))
    if layers is None or hidden is None or heads is None:
        return None
    kind = str(inner.get("model_type", config.get("model_type", "")))
    head_dim = _number(inner.get("head_dim")) or (hidden // heads)
    window, full_layers = _window(inner, kind, layers)
    latent, expanded = _latent(inner, heads)
    return Architecture(
        kind=kind,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(inner, kind, heads),
        head_dim=head_dim,
        vocabulary=_number(inner.get("vocab_size")) or _number(config.get("vocab_size")),
        intermediate=_first(inner, "intermediate") or (4 * hidden if kind in _GATED_OFF else None),
        positions=_first(inner, "positions"),
        window=window,
        full_layers=full_layers,
        latent=latent,
        latent_expanded=expanded,
        gated=kind not in _GATED_OFF,
        experts_per_token=_number(inner.get("num_experts_per_tok")) or 0,
        tied=_tied(inner, config, kind),
    )


def _first(config: Mapping[str, object], name: str) -> int | None:
    return next((found for key in _NAMES[name] if (found := _number(config.get(key))) is not None), None)


def _number(value: object) -> int | None:
    """A sane count; None for anything else."""
    return value if type(value) is int and 0 < value < 1 << 40 else None


def _kv_heads(config: Mapping[str, object], kind: str, heads: int) -> int:
    if kind == "falcon":
        # models/falcon/modeling_falcon.py: the new architecture groups, the old one shares one head if it is asked to.
        if config.get("new_decoder_architecture") is True:
            return _number(config.get("num_kv_heads")) or heads
        return 1 if config.get("multi_query", True) is True else heads
    if kind == "gpt_bigcode":
        return 1 if config.get("multi_query", True) is True else heads
    return _number(config.get("num_key_value_heads")) or _number(config.get("num_kv_heads")) or heads


def _window(config: Mapping[str, object], kind: str, layers: int) -> tuple[int | None, int]:
    """The window, and how many layers see everything all the same."""
    window = _number(config.get("sliding_window"))
    if window is None or config.get("use_sliding_window") is False:
        return None, 0
    types = config.get("layer_types")
    if isinstance(types, list) and len(types) == layers:
        return window, sum(1 for kind_of_layer in types if kind_of_layer != "sliding_attention")
    if kind in {"mistral", "mixtral", "phi3", "starcoder2"}:
        return window, 0
    if kind == "gemma2":
        # models/gemma2: every second layer slides.
        return window, layers // 2
    # The share of layers that slide is not told: all of them may see everything.
    return None, 0


def _latent(config: Mapping[str, object], heads: int) -> tuple[int | None, int | None]:
    rank, rope = _number(config.get("kv_lora_rank")), _number(config.get("qk_rope_head_dim"))
    if rank is None or rope is None:
        return None, None
    plain, value = _number(config.get("qk_nope_head_dim")), _number(config.get("v_head_dim"))
    expanded = heads * (plain + rope + value) if plain is not None and value is not None else None
    return rank + rope, expanded


def _tied(config: Mapping[str, object], outer: Mapping[str, object], kind: str) -> bool:
    told = config.get("tie_word_embeddings", outer.get("tie_word_embeddings"))
    if isinstance(told, bool):
        return told
    # configuration_utils.py PretrainedConfig: true unless the type says otherwise.
    return kind not in {"llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "phi", "phi3",
                        "gpt_neox", "olmo2", "stablelm", "glm4", "granite", "deepseek_v2", "deepseek_v3"}  # fmt: skip
