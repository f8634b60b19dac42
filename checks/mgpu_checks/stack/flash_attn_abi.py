"""The flash-attn wheel was built for another torch, Python, CUDA or C++ ABI than those that are installed."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.stack import numbers, torch_cuda, users
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    dataclass,
    report,
)

_ON_GPU = {"train.py": 'import torch\n\nmodel = torch.nn.Linear(8, 8).to("cuda")\n'}
_TORCH_24 = {
    "packages": {"torch": "2.4.1+cu121", "transformers": "4.45.2", "flash-attn": "2.6.3"},
    "torch_cuda": "12.1",
    "torch_cxx11abi": False,
    "python": {"version": "3.10.13"},
}


def _wheel(name: str) -> dict[str, object]:
    return {**_TORCH_24, "wheels": {"flash-attn": name}}


RULE = Rule(
    code="MGD506",
    slug="flash-attn-abi",
    title="This flash-attn was built for another torch",
    severity=Severity.ERROR,
    summary="The tags of the installed flash-attn wheel contradict torch, Python, CUDA or the C++ ABI.",
    why=(
        "flash-attn's wheels are compiled against one minor release of torch, one Python, one CUDA major version and "
        "one C++ ABI, and their names say which: `+cu12torch2.4cxx11abiFALSE-cp310`. With another torch the import "
        'fails with "undefined symbol", and since transformers imports flash_attn wherever it is installed, models '
        "fail to load even when another attention was chosen. CUDA's minor version does not matter."
    ),
    bad=(
        Example(
            "another torch",
            "python train.py",
            files=_ON_GPU,
            facts={
                **_wheel("flash_attn-2.6.3+cu123torch2.4cxx11abiFALSE-cp310-cp310-linux_x86_64.whl"),
                "packages": {"torch": "2.5.1+cu121", "flash-attn": "2.6.3"},
            },
        ),
        Example(
            "the other C++ ABI",
            facts=_wheel("flash_attn-2.6.3+cu123torch2.4cxx11abiTRUE-cp310-cp310-linux_x86_64.whl"),
        ),
        Example(
            "another Python",
            facts=_wheel("flash_attn-2.6.3+cu123torch2.4cxx11abiFALSE-cp39-cp39-linux_x86_64.whl"),
        ),
        Example(
            "another CUDA",
            "torchrun --nproc_per_node 8 train.py",
            facts=_wheel("flash_attn-2.6.3+cu118torch2.4cxx11abiFALSE-cp310-cp310-linux_x86_64.whl"),
        ),
        Example(
            "by the version's local part",
            facts={**_TORCH_24, "packages": {"torch": "2.4.1+cu121", "flash-attn": "2.8.3+cu12torch2.7cxx11abiFALSE"}},
        ),
        Example(
            "the C++ ABI that its library calls torch by",
            facts={
                **_wheel("flash_attn-2.6.3-cp310-cp310-linux_x86_64.whl"),
                "extension_abis": {"flash-attn": True},
            },
        ),
    ),
    good=(
        Example(
            "all fit; CUDA 12.3 and 12.1 are compatible",
            "python train.py",
            files=_ON_GPU,
            facts=_wheel("flash_attn-2.6.3+cu123torch2.4cxx11abiFALSE-cp310-cp310-linux_x86_64.whl"),
        ),
        Example("built on this machine", facts=_wheel("flash_attn-2.6.3-cp310-cp310-linux_x86_64.whl")),
        Example("the wheel is not known", facts=_TORCH_24),
        Example("its library fits", facts={**_TORCH_24, "extension_abis": {"flash-attn": False}}),
        Example(
            "nothing runs on GPUs",
            "python a.py",
            files={"a.py": "print(1)\n"},
            facts=_wheel("flash_attn-2.6.3+cu118torch2.1cxx11abiFALSE-cp310-cp310-linux_x86_64.whl"),
        ),
    ),
    sources=(
        Reference(
            "flash-attn 2.6.3 and 2.8.3, setup.py get_wheel_url()",
            "the wheel's name holds CUDA, torch's major.minor, torch._C._GLIBCXX_USE_CXX11_ABI and the Python version; "
            "CUDA minor versions are compatible",
        ),
        Reference(
            "torch 2.6.0+cu124 and 2.9.1+cu128, libc10.so; torchvision and xformers built for each, .dynstr",
            "c10::Error::Error(SourceLocation, std::string) is exported for one C++ ABI alone, and extensions name it",
        ),
        Reference(
            "transformers 4.45.2, modeling_flash_attention_utils.py",
            "imports flash_attn when it is installed, whatever attention is used",
        ),
    ),
    fix="reinstall flash-attn for this torch",
    signatures=(
        Signature(
            r"flash_attn\w*_cuda\S*\.so: undefined symbol",
            "the dynamic loader, for flash-attn 2.6.3 with another torch",
            "ImportError: /opt/conda/lib/python3.10/site-packages/flash_attn_2_cuda.cpython-310-x86_64-linux-gnu.so: "
            "undefined symbol: "
            "_ZN3c105ErrorC2ENS_14SourceLocationENSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE",
        ),
        Signature(
            r"No module named '?flash_attn_2_cuda",
            "Python 3.10, for flash-attn 2.5.6 built for another Python",
            "ModuleNotFoundError: No module named 'flash_attn_2_cuda'",
        ),
        Signature(
            r"version `GLIBC\w*_[\d.]+' not found \(required by \S*flash_attn",
            "glibc 2.36, elf/dl-version.c, for a flash-attn wheel built on a newer system",
            "ImportError: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.32' not found (required by "
            "/opt/env/lib/python3.10/site-packages/flash_attn_2_cuda.cpython-310-x86_64-linux-gnu.so)",
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Tags:
    """What a wheel was built for; None where its name does not tell. ``cuda`` is the major version."""

    cuda: int | None = None
    torch: tuple[int, ...] = ()
    cxx11abi: bool | None = None
    python: tuple[int, ...] = ()


def read_tags(text: str) -> Tags:
    """The tags in a wheel's name or in a version's local part (``2.8.3+cu12torch2.7cxx11abiTRUE``).

    ``cu118`` and ``cu123`` (up to 2.6.3) have the minor version behind the major, ``cu12`` (since) has none.
    """
    local = re.search(r"\+cu(\d\d)\d?torch(\d+)\.(\d+)cxx11abi(TRUE|FALSE)", text, re.IGNORECASE)
    python = re.search(r"-cp(\d)(\d+)-cp\d+", text)
    built = (int(python.group(1)), int(python.group(2))) if python else ()
    if local is None:
        return Tags(python=built)
    abi = local.group(4).upper() == "TRUE"
    return Tags(int(local.group(1)), (int(local.group(2)), int(local.group(3))), abi, built)


def find(case: Case) -> Iterator[Finding]:
    """The installed wheel's tags against what is installed beside it."""
    if not users(case):
        return
    packages = case.require(case.facts.packages)
    installed = packages.get("flash-attn")
    if installed is None:
        return
    wheels = case.facts.wheels
    name = None if isinstance(wheels, Unknown) else wheels.get("flash-attn")
    abis = case.facts.extension_abis
    abi = None if isinstance(abis, Unknown) else abis.get("flash-attn")
    if name is None and abi is None and "+" not in installed:
        case.require(wheels)
        return
    tags = read_tags(name or installed)
    if abi is not None:
        # The library itself knows better than the wheel's name.
        tags = Tags(tags.cuda, tags.torch, abi, tags.python)
    wrong = tuple(_contradictions(case, tags, packages.get("torch")))
    if not wrong:
        return
    # A newer torch may need a newer flash-attn; for all else the release has a wheel of its own.
    newer = tags.torch and numbers(packages.get("torch"))[:2] > tags.torch
    wanted = "flash-attn" if newer else f"flash-attn=={installed.partition('+')[0]}"
    yield report(
        RULE,
        f"flash-attn {installed} was built for {_joined([built for built, _ in wrong])}, but this environment has "
        f'{_joined([here for _, here in wrong])}: importing it fails with "undefined symbol" or a missing module, '
        "also where transformers imports it without being asked.",
        subject=f"flash-attn {installed}",
        evidence=(
            *((f"wheel {name}",) if name else ()),
            *((f"its library calls torch by the names of {_abi(abi)}",) if abi is not None else ()),
        ),
        fix=Fix(
            "reinstall flash-attn for this torch: its wheel where there is one, else it is compiled",
            commands=(f'pip install --force-reinstall --no-deps --no-cache-dir --no-build-isolation "{wanted}"',),
        ),
        alternatives=(Fix("or remove it", commands=("pip uninstall flash-attn",)),),
    )


def _contradictions(case: Case, tags: Tags, torch: str | None) -> Iterator[tuple[str, str]]:
    """What the wheel was built for and what is here instead, where both are known."""
    release = numbers(torch)[:2]
    if tags.torch and release and tags.torch != release:
        yield f"torch {_dotted(tags.torch)}", f"torch {torch}"
    version = case.facts.python.version
    python = () if isinstance(version, Unknown) else numbers(version)[:2]
    if tags.python and len(python) == 2 and tags.python != python:
        yield f"Python {_dotted(tags.python)}", f"Python {_dotted(python)}"
    cuda = torch_cuda(case)
    if tags.cuda is not None and isinstance(cuda, str) and numbers(cuda) and numbers(cuda)[0] != tags.cuda:
        yield f"CUDA {tags.cuda}", f"torch for CUDA {cuda}"
    abi = case.facts.torch_cxx11abi
    if tags.cxx11abi is not None and not isinstance(abi, Unknown) and abi != tags.cxx11abi:
        yield _abi(tags.cxx11abi), f"a torch with {_abi(abi)}"


def _abi(new: bool) -> str:
    return "the C++11 ABI" if new else "the C++ ABI before C++11"


def _dotted(parts: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in parts)


def _joined(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
