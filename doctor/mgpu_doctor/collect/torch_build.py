"""How the installed torch was built, from its files: never imported, never run.

Verified on the Linux wheels of torch 1.13.1+cu117, 2.0.1+cu117, 2.5.1+cu124, 2.6.0+cu124, 2.9.1+cu128 and 2.13.0+cpu.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping

from mgpu_doctor.collect.regular import read_text
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass

NO_TORCH = Unknown("torch was not found")
NOT_CUDA = "torch was built for ROCm, not for CUDA"

_MOST_NAMES = 4 * 1024 * 1024
_MOST_TEXTS = 32 * 1024 * 1024
_ARCHITECTURES = pattern(rb"((?:(?:sm|compute)_\d{2,3}[af]?)(?: (?:sm|compute)_\d{2,3}[af]?)*)\0")
_ARCHITECTURE = b"sm_"
_NCCL_VERSION = pattern(rb"NCCL version (\d+\.\d+(?:\.\d+)?)")
_NCCL_NAME = "libnccl.so.2"
_CUDA_LIBRARIES = ("libtorch_cuda.so", "libtorch_cuda_cpp.so")
"""The libraries that may hold or need NCCL: torch 1.13 kept it in the second."""


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """What the files of one torch tell; see the fields of the same names in ``Facts``."""

    torch_cuda: str | Unknown | None
    torch_cxx11abi: bool | Unknown
    torch_archs: tuple[str, ...] | Unknown
    torch_nccl: str | Unknown | None
    nccl_libraries: Mapping[str, str] | Unknown


def torch_directory(sites: Iterable[str]) -> str | None:
    """The torch package that would be imported, None where none of the directories has one."""
    for site in sites:
        place = os.path.join(site, "torch")
        if os.path.isfile(os.path.join(place, "__init__.py")) or os.path.isfile(os.path.join(place, "version.py")):
            return place
    return None


def read_torch(
    sites: Iterable[str], requirements: Iterable[str], program: str | None, variables: Mapping[str, str]
) -> TorchBuild:
    """How the torch in these directories was built.

    ``requirements`` are those of its metadata that count here, ``program`` the interpreter's executable,
    ``variables`` the environment that it would be loaded in.
    """
    place = torch_directory(sites)
    if place is None:
        return TorchBuild(NO_TORCH, NO_TORCH, NO_TORCH, NO_TORCH, NO_TORCH)
    text = _version_text(place)
    cuda = cuda_of(text)
    libraries = os.path.join(place, "lib")
    abi = cxx11abi(libraries)
    if cuda is None or isinstance(cuda, Unknown):
        return _without_cuda(cuda, abi, text)
    return TorchBuild(
        cuda,
        abi,
        architectures(libraries),
        nccl_version(libraries, requirements),
        nccl_libraries(libraries, program, variables),
    )


def _without_cuda(cuda: Unknown | None, abi: bool | Unknown, text: str | None) -> TorchBuild:
    if cuda is not None:
        return TorchBuild(cuda, abi, cuda, cuda, cuda)
    if text is not None and _assigned("hip", text) is not None:
        other = Unknown(NOT_CUDA)
        return TorchBuild(None, abi, other, other, other)
    return TorchBuild(None, abi, (), None, {})


def _version_text(place: str) -> str | None:
    return read_text(os.path.join(place, "version.py"), 65536)


def cuda_of(text: str | None) -> str | Unknown | None:
    """The CUDA version in the text of torch/version.py; None for a build without CUDA.

    Lines read: ``cuda: Optional[str] = '12.4'``, ``cuda = '11.7'``, ``cuda: Optional[str] = None``.
    """
    if text is None:
        return Unknown("torch/version.py cannot be read")
    if re.search(r"^cuda\s*(?::[^=\n]*)?=\s*None\b", text, re.MULTILINE):
        return None
    return _assigned("cuda", text) or Unknown("torch/version.py does not tell")


def _assigned(name: str, text: str) -> str | None:
    match = re.search(rf"^{name}\s*(?::[^=\n]*)?=\s*(?:'([^'\n]+)'|\"([^\"\n]+)\")", text, re.MULTILINE)
    return (match[1] or match[2]) if match else None


def cxx11abi(libraries: str) -> bool | Unknown:
    """Whether torch was built with the C++11 ABI, what ``torch.compiled_with_cxx11_abi()`` tells.

    From the mangled names in libc10.so: ``c10::Error::Error(SourceLocation, std::string)`` takes a ``std::__cxx11``
    string or the old one (``Ss``). TorchConfig.cmake names the ABI of builds up to 2.6.0, but not of 2.9.1.
    """
    from mgpu_doctor.collect.elf import read_section

    names = read_section(os.path.join(libraries, "libc10.so"), ".dynstr", _MOST_NAMES)
    if names is None:
        return Unknown("torch's libc10.so cannot be read")
    new = b"_ZN3c105ErrorC1ENS_14SourceLocationENSt7__cxx1112basic_string" in names
    old = b"_ZN3c105ErrorC1ENS_14SourceLocationESs" in names
    return new if new != old else Unknown("torch's libc10.so does not tell")


def architectures(libraries: str) -> tuple[str, ...] | Unknown:
    """What ``torch.cuda.get_arch_list()`` tells: the text of CUDA_ARCH_FLAGS in libtorch_python.so.

    It may stand behind other text without a separator (``…std::string ipc_hsm_70 sm_75``, 2.9.1).
    """
    from mgpu_doctor.collect.elf import read_section

    texts = read_section(os.path.join(libraries, "libtorch_python.so"), ".rodata", _MOST_TEXTS)
    if texts is None:
        return Unknown("torch's libtorch_python.so cannot be read")
    found = set(_lists_of_architectures(texts))
    if len(found) != 1:
        return Unknown("torch's libtorch_python.so does not tell its architectures")
    return tuple(found.pop().split())


def _lists_of_architectures(texts: bytes) -> Iterator[str]:
    """The texts that are lists of architectures. Looking for one plain word first is twenty times as fast."""
    at = texts.find(_ARCHITECTURE)
    while at >= 0:
        # PTX (compute_70) may stand in front.
        around = _ARCHITECTURES.finditer(texts, max(at - 100, 0), at + 1000)
        match = next((match for match in around if match.start() <= at < match.end()), None)
        if match is not None:
            yield match[1].decode()
        at = texts.find(_ARCHITECTURE, at + 1 if match is None else match.end())


def nccl_version(libraries: str, requirements: Iterable[str]) -> str | Unknown:
    """The NCCL that torch was made for: the one its metadata requires, else the one inside its own libraries."""
    for requirement in requirements:
        match = re.match(r"nvidia-nccl-cu\d+\s*\(?==\s*([\d.]+)", requirement)
        if match:
            return match[1]
    found = {version for name in _CUDA_LIBRARIES if (version := library_nccl(os.path.join(libraries, name)))}
    return found.pop() if len(found) == 1 else Unknown("neither torch's metadata nor its libraries tell its NCCL")


def library_nccl(path: str) -> str | None:
    """The NCCL version inside a library, None where it tells none.

    libnccl, and what it is linked into, holds ``NCCL version 2.21.5+cuda12.4`` (2.14.3, 2.21.5 and 2.27.5 looked at).
    """
    from mgpu_doctor.collect.elf import read_section

    texts = read_section(path, ".rodata", _MOST_TEXTS)
    found = {match[1].decode() for match in _NCCL_VERSION.finditer(texts)} if texts is not None else set()
    return found.pop() if len(found) == 1 else None


def nccl_libraries(libraries: str, program: str | None, variables: Mapping[str, str]) -> dict[str, str] | Unknown:
    """Copies of libnccl that the loader could take for torch, the one it takes first: path → version.

    Empty where torch holds NCCL itself (the wheels of 1.13).
    """
    from mgpu_doctor.collect.elf import read_library
    from mgpu_doctor.collect.libraries import copies

    asking = os.path.join(libraries, _CUDA_LIBRARIES[0])
    library = read_library(asking)
    if library is None:
        return Unknown("torch's libtorch_cuda.so cannot be read")
    if _NCCL_NAME not in library.needed:
        return {}
    found = copies(_NCCL_NAME, asking, program, variables)
    return {path: library_nccl(path) or _version_in_name(path) for path in found}


def _version_in_name(path: str) -> str:
    match = re.search(r"\.so\.(\d+\.\d+(?:\.\d+)?)$", os.path.realpath(path))
    return match[1] if match else ""
