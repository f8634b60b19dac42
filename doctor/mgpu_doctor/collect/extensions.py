"""What compiled extensions of torch were built for, from their symbols: never loaded.

Looked at: torchvision 0.14.1, 0.21.0 and xformers 0.0.29.post3 (before C++11), torchvision 0.24.1 and xformers
0.0.33.post1 (C++11), each the same as the torch that it was made for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from mgpu_doctor.collect.packages import Distribution
from mgpu_doctor.collect.regular import read_text
from mgpu_doctor.model.pattern import pattern

EXTENSIONS = frozenset(
    {"causal-conv1d", "flash-attn", "flash-attn-3", "mamba-ssm", "torchaudio", "torchvision", "vllm", "xformers"}
)
"""Distributions with libraries that call torch's C++ functions."""

_LARGEST_RECORD = 4 * 1024 * 1024
_MOST_NAMES = 16 * 1024 * 1024
_MOST_LIBRARIES = 8
_CALLED = pattern(
    rb"_ZN3c10(?:5ErrorC[12]ENS_14SourceLocationE|6detail14torchCheckFailEPKcS2_jRK)(Ss|NSt7__cxx1112basic_string)"
)
"""``c10::Error::Error(SourceLocation, std::string)`` and ``c10::detail::torchCheckFail(…, const std::string&)``."""


def extension_abis(distributions: Iterable[Distribution]) -> dict[str, bool]:
    """Whether extensions were built with the C++11 ABI, by distribution; those that do not tell are left out.

    A library of the other ABI than torch's cannot be loaded: "undefined symbol".
    """
    found = {}
    for distribution in distributions:
        if distribution.name in EXTENSIONS:
            abi = next((abi for path in _libraries(distribution) if (abi := library_abi(path)) is not None), None)
            if abi is not None:
                found[distribution.name] = abi
    return found


def library_abi(path: str) -> bool | None:
    """Whether a library calls torch by the names of the C++11 ABI; None where it calls neither kind, or both."""
    from mgpu_doctor.collect.elf import read_section

    names = read_section(path, ".dynstr", _MOST_NAMES)
    kinds = {match[1] != b"Ss" for match in _CALLED.finditer(names)} if names is not None else set()
    return kinds.pop() if len(kinds) == 1 else None


def _libraries(distribution: Distribution) -> list[str]:
    lines = (read_text(os.path.join(distribution.metadata, "RECORD"), _LARGEST_RECORD) or "").split("\n")
    names = [line.partition(",")[0].strip('"') for line in lines if ".so," in line or '.so",' in line]
    return [os.path.join(distribution.site, name) for name in names[:_MOST_LIBRARIES]]
