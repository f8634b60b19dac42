"""Host memory that loading takes: checkpoints that every rank reads whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpu_doctor.model.memory import MemoryPart

if TYPE_CHECKING:
    from mgpu_doctor.memory.loading import Loading
    from mgpu_doctor.memory.sharding import Sharding
    from mgpu_doctor.memory.weights import Weights
    from mgpu_doctor.model.case import Case
    from mgpu_doctor.model.launch import Launch


def checkpoint_part(
    case: Case, launch: Launch, weights: Weights, loading: Loading, sharding: Sharding
) -> MemoryPart | None:
    """What the ranks of a node hold of the model in host memory at once; None where that is not known to happen."""
    return None
