"""Compute capability by a card's name, for machines that somebody wrote down without it.

NVIDIA, "CUDA GPU Compute Capability" and "Legacy CUDA GPU Compute Capability" (developer.nvidia.com/cuda-gpus and
/cuda-legacy-gpus). Only names that mean one architecture are told: "RTX 5000" alone is a Turing or an Ada card.
"""

from __future__ import annotations

from mgpu_doctor.model.pattern import pattern

_NAMES = (
    (r"GB10", (12, 1)),
    (r"GeForce RTX 50[5-9]0|RTX PRO [2-6][05]00 Blackwell", (12, 0)),
    (r"G?B300", (10, 3)),
    (r"G?B200", (10, 0)),
    (r"GH200|H[12]00", (9, 0)),
    (r"GeForce RTX 40[5-9]0|L4|L40S?|RTX [2456][05]00 (?:SFF )?Ada", (8, 9)),
    (r"GeForce RTX 30[5-9]0|A40|A10G?|A16|A2|RTX A[2-6]000", (8, 6)),
    (r"A100|A30", (8, 0)),
    (
        r"GeForce (?:GTX 16[356]0|RTX 20[678]0)|TITAN RTX|Quadro RTX [34568]000|(?<!GeForce )(?:T4|T400|T600|T1000)",
        (7, 5),
    ),
    (r"V100|TITAN V|GV100", (7, 0)),
    (r"GeForce GTX 10[5-8]0|TITAN Xp|P40?", (6, 1)),
    (r"P100|GP100", (6, 0)),
    (r"GeForce GTX 9[5-8]0|M40|M60", (5, 2)),
    (r"GeForce GTX 750", (5, 0)),
    (r"K80", (3, 7)),
    (r"K[24]0m?", (3, 5)),
)


def compute_capability_of(name: str) -> tuple[int, int] | None:
    """The compute capability of the card with this name (``NVIDIA A100-SXM4-80GB``), None where it does not tell."""
    found = {capability for names, capability in _PATTERNS if names.search(name)}
    return found.pop() if len(found) == 1 else None


_PATTERNS = tuple(
    (pattern(rf"(?i)(?<![A-Za-z0-9])(?:{names})(?![A-Za-z0-9])"), capability) for names, capability in _NAMES
)
