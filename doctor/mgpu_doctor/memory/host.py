"""Host memory that loading takes where every process of a node first builds the whole model there.

transformers maps files that are stored in the dtype asked for into memory, safetensors and ``.bin`` alike: 419 MiB of
weights took under 90 MiB of a process's own memory in 4.52.4 and 5.6.0 (*ran*). In another dtype each process makes its
own converted copy, all of it (*ran*: the whole model in 32 bits, from files in 16). With a device_map the copy is made
on the card; ZeRO-3 and FSDP have ways of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.memory import MemoryPart
from mgpu_doctor.model.pattern import pattern

if TYPE_CHECKING:
    from mgpu_doctor.memory.loading import Loading
    from mgpu_doctor.memory.sharding import Sharding
    from mgpu_doctor.memory.weights import Weights
    from mgpu_doctor.model.launch import Launch

_IN_TURN = pattern(
    r"set_default_device|main_process_first|local_main_process|is_main_process|barrier\(|wait_for_everyone"
    r"|rank\s*==\s*0|zero_first|init_empty_weights"
)
"""Signs that ranks load one after the other, one of them alone, or straight to the card."""


def checkpoint_part(launch: Launch, weights: Weights, loading: Loading, sharding: Sharding) -> MemoryPart | None:
    """What the ranks of a node hold of the model in host memory at once; None where that is not known to happen."""
    program = launch.target.program
    if isinstance(program, Unknown) or launch.target.framework == "llamafactory":
        return None
    if loading.mapped or sharding.splits_weights or sharding.engine not in {"ddp", "deepspeed"}:
        return None
    if loading.bits is not None or weights.quantised is not None or weights.dtype is None:
        return None
    if loading.name == weights.dtype[0] or loading.high is None or _IN_TURN.search(program.source.text):
        return None
    if loading.name not in {"fp32", "bf16", "fp16"}:
        return None
    count = sharding.per_node
    why = f"{count} processes convert {weights.dtype[0]} to {loading.name}, each in a copy of its own"
    return MemoryPart("checkpoint", count * loading.low, count * loading.high * 2, why)
