"""The numbers of ``accelerate estimate-memory``, from tensors alone.

accelerate 1.7.0 and 1.15.0, commands/estimate.py gather_data() and utils/modeling.py calculate_maximum_sizes(): the
model in 32 bits, its largest layer (a module that is never split, or one without children), and four times its size for
training with Adam.
"""

from __future__ import annotations

from typing import NamedTuple

_SHARES = {"float32": 1, "float16": 2, "int8": 4, "int4": 8}


class Estimate(NamedTuple):
    """Bytes in one dtype; ``training`` is None for those that nothing is trained in."""

    largest_layer: float
    total: float
    training: int | None


def estimate_loading(total: int, largest_layer: int, dtype: str) -> Estimate:
    """One row of accelerate's table; sizes are those in 32 bits.

    Raises:
        KeyError: accelerate has no row for this dtype.
    """
    share = _SHARES[dtype]
    if share == 1:
        return Estimate(largest_layer, total, 4 * total)
    return Estimate(largest_layer / share, total / share, 2 * total if dtype == "float16" else None)
