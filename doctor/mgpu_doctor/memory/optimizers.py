"""Bytes that optimizers keep for each trained parameter.

torch 2.7.1, optim/adam.py: two states like the parameter, in its dtype; the default (foreach) form takes the size of
the parameters once more while it steps (optim/optimizer.py), the fused one does not. bitsandbytes (commit 06029dd,
optim/optimizer.py Optimizer2State): two states of one byte with a scale for each block of 2048, in 32 bits for tensors
under 4096 elements, and paged ones may move to host memory; transformers 4.52.4 and 5.6.0, trainer.py
create_optimizer(), has embeddings kept in 32 bits. Adafactor, GaLore and their like keep less than the parameters.
"""

from __future__ import annotations

_LIKE_ADAM = frozenset(
    {"adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_torch_xla", "adamw_apex_fused", "adamw_torch_npu_fused"}
)
_EIGHT_BITS = frozenset({"adamw_8bit", "adamw_bnb_8bit"})
_PAGED_EIGHT_BITS = frozenset({"paged_adamw_8bit"})
_PAGED = frozenset({"paged_adamw", "paged_adamw_32bit"})
_MOST = 3
"""No optimizer of transformers keeps more than three states like the parameter (AdEMAMix)."""


def state_bytes(optimizer: str | None, parameters: int, element: int, embeddings: int | None) -> tuple[int, int]:
    """Bytes for parameters that are trained in ``element`` bytes, at least and at most; None: not known which.

    ``embeddings`` of the parameters are embeddings, None when not known how many.
    """
    plain = 2 * element * parameters
    inner = 0 if embeddings is None else parameters - min(parameters, embeddings)
    eight = round(2.1 * inner) + 8 * (parameters - inner)
    if optimizer in _LIKE_ADAM:
        return plain, plain if optimizer == "adamw_torch_fused" else plain + element * parameters
    if optimizer in _EIGHT_BITS:
        return 2 * parameters, eight
    if optimizer in _PAGED_EIGHT_BITS:
        return 0, eight
    if optimizer in _PAGED:
        return 0, 8 * parameters
    return 0, _MOST * max(element, 4) * parameters


def keeps_gradients(optimizer: str | None) -> bool:
    """Whether all gradients surely exist at once; some optimizers (LOMO, layer-wise GaLore) use each up as it comes."""
    return optimizer is not None and (optimizer in _LIKE_ADAM | _EIGHT_BITS | _PAGED_EIGHT_BITS | _PAGED)
