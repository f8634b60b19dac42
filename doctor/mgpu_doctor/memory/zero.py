"""What DeepSpeed's ZeRO needs for a model's states: its own estimates, and the paper's formulas below them.

The estimates are those of deepspeed 0.16.9 and 0.19.8, runtime/zero/stage_1_and_2.py
estimate_zero2_model_states_mem_needs() and stage3.py estimate_zero3_model_states_mem_needs(): 16-bit training with
Adam, buffers left out on the card and counted with a factor of 1.5 on the host.
"""

from __future__ import annotations

HOST_FACTOR = 1.5
"""DeepSpeed's ``additional_buffer_factor``."""


def estimate_zero2(
    parameters: int, per_node: int, nodes: int = 1, *, offload: bool = True, factor: float = HOST_FACTOR
) -> tuple[int, int]:
    """Bytes of host memory of a node and of each card, as DeepSpeed estimates them for stage 2."""
    total = nodes * per_node
    if offload:
        return int(parameters * max(4 * total, 16) * factor), 2 * parameters
    return int(parameters * 4 * per_node * factor), 2 * parameters + int(18 * parameters / total)


def estimate_zero3(
    parameters: int,
    largest_layer: int,
    per_node: int,
    nodes: int = 1,
    *,
    offload: bool = True,
    offload_parameters: bool = True,
    zero_init: bool = True,
    factor: float = HOST_FACTOR,
) -> tuple[int, int]:
    """The same for stage 3; ``largest_layer`` counts the parameters of the largest module without children."""
    total, share = nodes * per_node, 1 / nodes
    layer = 4 * largest_layer
    if not offload:
        whole = largest_layer if zero_init else parameters
        return int(whole * 4 * per_node * factor), layer + int(18 * parameters / total)
    states, card = (18, layer) if offload_parameters else (16, layer + int(2 * parameters / total))
    if zero_init:
        return int(parameters * states * share * factor), card
    return int(parameters * max(4 * per_node, states * share) * factor), card


def least_card(parameters: int, stage: int, ranks: int, weight: int, states: int) -> int:
    """Bytes that a card surely holds of weights, gradients and optimizer without offload.

    Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models" (2020), section 3 and
    table 1, without the gradients that stages 0 and 1 keep whole: ``weight`` bytes of each parameter for computing, and
    ``states`` for the optimizer with its own copy of the weights.
    """
    if stage >= 3:
        return parameters * (weight + weight + states) // ranks
    if stage == 2:
        return parameters * weight + parameters * (weight + states) // ranks
    return parameters * weight + parameters * states // (ranks if stage == 1 else 1)
