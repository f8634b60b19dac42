"""A quick look: can this text hold a launch command at all?"""

from __future__ import annotations

import re
from functools import lru_cache

_WORDS = (
    "torchrun",
    "accelerate",
    "deepspeed",
    "python",
    "llamafactory",
    "torch.distributed",
    "swift",
    "axolotl",
    "srun",
    "mpirun",
    "colossalai",
    "lmf",
    "mpiexec",
    "vllm",
    "paddle",
    "horovodrun",
    "composer",
    "tune run",
    "uv run",
    "xtuner",
)


@lru_cache(maxsize=1)
def _pattern() -> re.Pattern[str]:
    return re.compile("|".join(re.escape(word) for word in _WORDS))


def mentions_launcher(text: str) -> bool:
    """Whether a text names a launcher or python anywhere; False means that parsing it would find no launch."""
    return _pattern().search(text) is not None
