"""What inference needs on a card: weights, keys and values, and what a step computes.

transformers generates from the last position's logits alone (since 4.45; generation/utils.py), and keeps no more than
one layer's intermediate results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpu_doctor.memory.kv_cache import cache_bytes, token_bytes
from mgpu_doctor.memory.sharding import LIVE_PARAMETERS, Sharding
from mgpu_doctor.model.memory import GIB, MemoryPart
from mgpu_doctor.model.record import dataclass

if TYPE_CHECKING:
    from mgpu_doctor.memory.architecture import Architecture
    from mgpu_doctor.memory.arguments import Arguments
    from mgpu_doctor.memory.loading import Loading
    from mgpu_doctor.memory.weights import Weights
    from mgpu_doctor.model.launch import Launch

_LENGTHS = ("max_length", "max_seq_length", "max_seq_len", "max_model_len")


@dataclass(frozen=True, slots=True)
class Load:
    """Sequences at once and tokens in each, at most; None where nothing bounds them."""

    sequences: int | None
    tokens: int | None


def inference_parts(
    launch: Launch, arguments: Arguments, loading: Loading, weights: Weights, sharding: Sharding
) -> tuple[tuple[MemoryPart, ...], tuple[str, ...]]:
    """The parts on a card (of a model that is spread: on all), and what has no bound."""
    low, high = loading.low, loading.high
    why = loading.name
    if sharding.splits_weights:
        gathered = 2 * min(LIVE_PARAMETERS, weights.parameters)
        low, high = low // sharding.ranks, None if high is None else high // sharding.ranks + gathered
        why += f", divided by {sharding.ranks} ranks"
    parts = [MemoryPart("weights", low, high, why)]
    shape = weights.architecture
    load = load_of(launch, arguments, shape)
    if shape is None:
        return tuple(parts), ("KV cache", "activations")
    _, each = token_bytes(shape, max(2, loading.element))
    size = f"{each / (1 << 20):.3g} MiB a token"
    if load.sequences is None or load.tokens is None:
        parts.append(MemoryPart("KV cache", 0, None, size))
        return tuple(parts), ("KV cache", "activations")
    _, most = cache_bytes(shape, max(2, loading.element), load.sequences, load.tokens)
    of = f"{load.tokens:,} tokens" if load.sequences == 1 else f"{load.sequences} × {load.tokens:,} tokens"
    parts.append(MemoryPart("KV cache", 0, most, f"{size}, up to {of}"))
    computed = _computed(shape, load.sequences * load.tokens, load.sequences, max(2, loading.element))
    if computed is None:
        return tuple(parts), ("activations",)
    parts.append(MemoryPart("activations", 0, computed, f"one layer of {of}"))
    return tuple(parts), ()


def load_of(launch: Launch, arguments: Arguments, shape: Architecture | None) -> Load:
    """What is generated at once: one conversation, or a batch of predictions."""
    positions = shape.positions if shape is not None else None
    purpose = launch.purpose.known
    given = [arguments.number(name) for name in _LENGTHS if name in arguments.given]
    limit = given[0] if len(given) == 1 and isinstance(given[0], (int, float)) else None
    if launch.target.framework == "llamafactory" and purpose in {"predict", "evaluate"}:
        batch = arguments.number("per_device_eval_batch_size", 8)
        beams = arguments.number("eval_num_beams", 1)
        cutoff = arguments.number("cutoff_len", 2048)
        new = arguments.number("max_new_tokens", 1024)
        if all(isinstance(value, (int, float)) for value in (batch, cutoff, new)):
            several = beams if isinstance(beams, (int, float)) else 1
            assert isinstance(batch, (int, float))
            assert isinstance(cutoff, (int, float))
            assert isinstance(new, (int, float))
            return Load(int(batch * several), int(cutoff + new))
        return Load(None, None)
    if purpose == "chat":
        return Load(1, int(limit) if limit is not None else positions)
    # How many requests are served at once, and in which batches a program generates, is its own affair.
    return Load(None, None)


def _computed(shape: Architecture, tokens: int, sequences: int, element: int) -> int | None:
    if shape.intermediate is None or shape.vocabulary is None:
        return None
    inner = shape.intermediate * max(1, shape.experts_per_token)
    width = 8 * shape.hidden + 4 * (shape.heads + 2 * shape.kv_heads) * shape.head_dim + 3 * inner
    return tokens * width * element + 6 * sequences * shape.vocabulary


def context_part(ranks: int) -> MemoryPart:
    """What the driver and the libraries take before the first tensor, measured in docs/evidence/memory.txt."""
    why = "the driver and its libraries" + (", NCCL's buffers" if ranks > 1 else "")
    return MemoryPart("CUDA context", GIB // 5, GIB * (2 if ranks > 1 else 1), why)
