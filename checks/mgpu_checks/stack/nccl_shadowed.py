"""Another libnccl is loaded before torch's own, and it is older."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.stack import numbers, torch_cuda, users, version
from mgpu_doctor.authoring import Case, Example, Finding, Fix, Reference, Rule, Severity, Signature, Unknown, report

_OWN = "/opt/env/lib/python3.11/site-packages/nvidia/nccl/lib/libnccl.so.2"
_SYSTEM = "/usr/lib/x86_64-linux-gnu/libnccl.so.2"
_TRAIN = {"train.py": "import torch.distributed as dist\n\ndist.init_process_group('nccl')\n"}

RULE = Rule(
    code="MGD513",
    slug="nccl-shadowed",
    title="An older NCCL is loaded before torch's own",
    severity=Severity.WARNING,
    summary="LD_LIBRARY_PATH or LD_PRELOAD brings a libnccl that is older than the one torch was built with.",
    why=(
        "torch brings its own NCCL (the package nvidia-nccl), but directories in LD_LIBRARY_PATH are searched before "
        'it. An older libnccl lacks functions that torch calls: the import fails with "undefined symbol: ncclComm…", '
        'or the first collective with "invalid usage". A newer one is taken on purpose and works.'
    ),
    bad=(
        Example(
            "an older one in LD_LIBRARY_PATH",
            "torchrun --nproc_per_node 8 train.py",
            _TRAIN,
            {"nccl_libraries": {_SYSTEM: "2.10.3", _OWN: "2.21.5"}, "torch_nccl": "2.21.5"},
        ),
        Example(
            "the package of another CUDA lies over torch's",
            facts={"nccl_libraries": {_OWN: "2.14.3"}, "torch_nccl": "2.27.3"},
        ),
        Example(
            "the packages of two CUDA versions, whose library is one file",
            facts={
                "packages": {"torch": "2.12.0+cu130", "nvidia-nccl-cu12": "2.27.5", "nvidia-nccl-cu13": "2.29.7"},
                "torch_cuda": "13.0",
            },
        ),
        Example(
            "the machine alone", facts={"nccl_libraries": {_SYSTEM: "2.10.3", _OWN: "2.21.5"}, "torch_nccl": "2.21.5"}
        ),
    ),
    good=(
        Example("torch's own", facts={"nccl_libraries": {_OWN: "2.21.5", _SYSTEM: "2.10.3"}, "torch_nccl": "2.21.5"}),
        Example("a newer one", facts={"nccl_libraries": {_SYSTEM: "2.26.2", _OWN: "2.21.5"}, "torch_nccl": "2.21.5"}),
        Example(
            "its version is not known", facts={"nccl_libraries": {_SYSTEM: "", _OWN: "2.21.5"}, "torch_nccl": "2.21.5"}
        ),
        Example(
            "the program does not use GPUs",
            "python a.py",
            {"a.py": "print(1)\n"},
            {"nccl_libraries": {_SYSTEM: "2.10.3", _OWN: "2.21.5"}, "torch_nccl": "2.21.5"},
        ),
        Example(
            "the package of another CUDA, and torch's own library is in place",
            facts={
                "packages": {"torch": "2.12.0+cu130", "nvidia-nccl-cu12": "2.27.5", "nvidia-nccl-cu13": "2.29.7"},
                "torch_cuda": "13.0",
                "nccl_libraries": {_OWN: "2.29.7"},
                "torch_nccl": "2.29.7",
            },
        ),
        Example(
            "one package of NCCL",
            facts={"packages": {"torch": "2.12.0+cu130", "nvidia-nccl-cu13": "2.29.7"}, "torch_cuda": "13.0"},
        ),
        Example("a torch without NCCL", facts={"nccl_libraries": {_SYSTEM: "2.10.3"}, "torch_nccl": None}),
    ),
    sources=(
        Reference(
            "ld.so(8), man-pages 6.03",
            "LD_PRELOAD, then LD_LIBRARY_PATH come before DT_RUNPATH, by which torch finds its own libraries",
        ),
        Reference(
            "pytorch/builder release/2.5, manywheel/build_cuda.sh",
            "CUDA_RPATHS holds $ORIGIN/../../nvidia/nccl/lib: NCCL comes from the package nvidia-nccl",
        ),
        Reference(
            "nvidia-nccl-cu13 2.29.7 and nvidia-nccl-cu12 2.27.5, contents of the wheels",
            "both hold nvidia/nccl/lib/libnccl.so.2: what is installed last lies there",
        ),
        Reference(
            "torch 2.2.0, torch/csrc/distributed/c10d/NCCLUtils.hpp NCCL_HAS_COMM_REGISTER",
            "built with NCCL 2.19 or newer it calls ncclCommRegister, which an older libnccl does not have",
        ),
    ),
    fix="take the other NCCL out of LD_LIBRARY_PATH",
    signatures=(
        Signature(
            r"undefined symbol: nccl\w+",
            "the dynamic loader, for torch 2.2.0 with an older libnccl",
            "ImportError: /opt/env/lib/python3.11/site-packages/torch/lib/libtorch_cuda.so: undefined symbol: "
            "ncclCommRegister",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """The libnccl that is loaded first, against the one that torch asks for."""
    if not users(case) or version(case, "torch") is None:
        return
    if isinstance(case.facts.nccl_libraries, Unknown):
        yield from _two_packages(case)
    libraries = case.require(case.facts.nccl_libraries)
    wanted = case.require(case.facts.torch_nccl)
    first = next(iter(libraries), None)
    if first is None or wanted is None:
        return
    loaded = numbers(libraries[first])
    if not loaded or loaded >= numbers(wanted)[: len(loaded)]:
        return
    if re.search(r"/(?:nvidia/nccl|torch)/lib/[^/]*$", first):
        where, fix = "lies where torch looks for its own", Fix("reinstall torch's nvidia-nccl package", commands=_AGAIN)
    else:
        where = "is loaded before torch's own"
        fix = Fix(f"take {first.rpartition('/')[0]} out of LD_LIBRARY_PATH, or libnccl out of LD_PRELOAD")
    yield report(
        RULE,
        f"{first} (NCCL {libraries[first]}) {where}, and torch was made with NCCL {wanted}: an older NCCL lacks "
        "functions that it calls.",
        subject=f"NCCL {libraries[first]}",
        evidence=tuple(f"{path}: NCCL {found or 'of unknown version'}" for path, found in libraries.items()),
        fix=fix,
    )


def _two_packages(case: Case) -> Iterator[Finding]:
    """NCCL for another CUDA than torch's, newer or older, in a package that writes the same file."""
    packages, cuda = case.require(case.facts.packages), torch_cuda(case)
    if not isinstance(cuda, str) or not numbers(cuda):
        return
    own = f"nvidia-nccl-cu{numbers(cuda)[0]}"
    for other in sorted(name for name in packages if re.fullmatch(r"nvidia-nccl-cu\d+", name) and name != own):
        if own in packages and numbers(packages[other]) < numbers(packages[own]):
            yield report(
                RULE,
                f"{own} {packages[own]} and {other} {packages[other]} are installed, and both bring nvidia/nccl/lib/"
                "libnccl.so.2: if the older one was installed last, it lies in place of the one that torch was made "
                "with, and lacks functions that torch calls.",
                subject=f"{other} {packages[other]}",
                fix=Fix(
                    f"remove {other} and install torch's own again",
                    commands=(
                        f"pip uninstall -y {other}",
                        f"pip install --force-reinstall --no-deps {own}=={packages[own]}",
                    ),
                ),
            )


_AGAIN = ("pip list | grep nvidia-nccl", "pip install --force-reinstall --no-deps nvidia-nccl-cu12")
