"""A bound on what training keeps of the forward pass.

The form of the formula is that of Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models"
(2022), section 4: so many bytes for each token and layer, a term that grows with the sequence where attention keeps its
scores, and little more than the layers' inputs where activations are recomputed. The paper counts 34 bytes for each
unit of width in a layer with 16-bit activations and fused kernels. transformers' plain modules keep more: norms work in
32 bits, rotary embeddings and gated feed-forward parts keep their factors, autocast keeps what it converts. The numbers
here bound what transformers 4.52.4 and 5.6.0 keep for llama, qwen2, qwen3, mixtral, gemma2, phi3, gpt2 and gpt_neox
(tests/memory/test_activations_oracle.py counts it).
"""

from __future__ import annotations

from mgpu_doctor.memory.architecture import Architecture
from mgpu_doctor.model.record import dataclass

_WIDTH = {"mixed": 40, "half": 28, "full": 48}
_HEADS = {"mixed": 16, "half": 10, "full": 16}
_GATED = {"mixed": 10, "half": 6, "full": 12}
_PLAIN = {"mixed": 16, "half": 16, "full": 24}
"""Bytes of each token for each unit of the hidden size, of queries, keys and values, and of the feed-forward part;
``mixed`` is autocast over 32-bit weights, ``half`` 16 bits throughout, ``full`` 32 bits throughout."""

_SCORES = 8
"""Bytes for each score of each head where the matrix of scores is kept: 5 in the paper, 7.2 with a soft cap."""

_ADAPTER = 8
"""Bytes of each token for each unit of an adapted matrix's input: peft copies it in 32 bits, and drops out of it."""

_LOGITS = {"mixed": 18, "half": 18, "full": 20}
"""Bytes for each logit: as computed, in 32 bits for the loss, its log-softmax, and the gradients of both."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step of one process works on, as far as it is bounded: sequences, and tokens in each at most."""

    sequences: int
    tokens: int

    @property
    def all_tokens(self) -> int:
        """Tokens of the whole batch."""
        return self.sequences * self.tokens


def bound_activations(
    shape: Architecture, batch: Batch, precision: str, *, recomputed: bool, keeps_scores: bool, adapters: bool
) -> int | None:
    """Bytes that are enough for one step; None where the shape does not tell the width of the feed-forward part."""
    layer = _layer_bytes(shape, batch, precision, keeps_scores=keeps_scores, adapters=adapters)
    if layer is None:
        return None
    kept = 4 * shape.hidden if precision != "half" else 2 * shape.hidden
    if recomputed:
        return batch.all_tokens * kept * shape.layers + 2 * layer
    return (shape.layers + 1) * layer


def bound_logits(shape: Architecture, batch: Batch, precision: str) -> int | None:
    """Bytes that are enough for logits and loss; None where the size of the vocabulary is not known."""
    if shape.vocabulary is None:
        return None
    return batch.all_tokens * shape.vocabulary * _LOGITS[precision]


def _layer_bytes(
    shape: Architecture, batch: Batch, precision: str, *, keeps_scores: bool, adapters: bool
) -> int | None:
    if shape.intermediate is None:
        return None
    inner = shape.intermediate * max(1, shape.experts_per_token)
    queries = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    if shape.latent_expanded is not None:
        queries = 3 * shape.latent_expanded
    per_token = _WIDTH[precision] * shape.hidden * (1 + shape.experts_per_token // 2) + _HEADS[precision] * queries
    per_token += (_GATED if shape.gated else _PLAIN)[precision] * inner
    if adapters:
        per_token += _ADAPTER * (6 * shape.hidden + queries + inner)
    if keeps_scores:
        per_token += _SCORES * shape.heads * batch.tokens
    return batch.all_tokens * per_token
