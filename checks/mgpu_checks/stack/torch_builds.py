"""Builds of torch: what the published wheels hold, and which drivers and GPUs run them."""

from __future__ import annotations

import re

from mgpu_checks.stack import known_driver, numbers
from mgpu_doctor.authoring import Case, Gpu, Unknown

MINIMUM_DRIVER: dict[tuple[int, ...], tuple[int, ...]] = {
    (10, 0): (410, 48),
    (10, 1): (418, 39),
    (10, 2): (440, 33),
    (11,): (450, 80, 2),
    (12,): (525, 60, 13),
    (13,): (580, 65, 6),
}
"""CUDA toolkit → oldest Linux driver that runs what it built.

NVIDIA's CUDA compatibility guide, "Minor Version Compatibility", tables 1 and 2 (release 590): up to 10.2 for each
release, from 11 for each major release (11.x ≥ 450, 12.x ≥ 525, 13.x ≥ 580), with the full numbers of the CUDA
toolkit's release notes.
"""

_EARLY = (37, 50, 60, 70)
_AMPERE = (*_EARLY, 75, 80, 86)
_HOPPER = (50, 60, 70, 75, 80, 86, 90)
_BLACKWELL = (75, 80, 86, 90, 100, 120)

WHEEL_ARCHS: dict[tuple[str, str], tuple[int, ...]] = {
    **dict.fromkeys([("1.11", "10.2"), ("1.12", "10.2")], _EARLY),
    **dict.fromkeys([("1.11", "11.3"), ("1.11", "11.5"), ("1.12", "11.3"), ("1.12", "11.6")], _AMPERE),
    **dict.fromkeys([("1.13", "11.6"), ("1.13", "11.7"), ("2.0", "11.7")], _AMPERE),
    **dict.fromkeys([(f"2.{minor}", "11.8") for minor in range(6)], (*_AMPERE, 90)),
    **dict.fromkeys([(f"2.{minor}", "12.1") for minor in range(1, 6)], _HOPPER),
    **dict.fromkeys([("2.4", "12.4"), ("2.5", "12.4")], _HOPPER),
    ("2.13", "12.6"): _HOPPER,
    **dict.fromkeys([("2.13", "12.9"), ("2.13", "13.0"), ("2.13", "13.2")], _BLACKWELL),
}
"""Architectures of download.pytorch.org's wheels for x86-64 (``torch 2.4.1+cu121``), by release and CUDA version.

pytorch/builder, manywheel/build_cuda.sh of each release branch (no PTX in any); for 2.13 torch 2.13.0,
cuda/__init__.py PYTORCH_RELEASES_CODE_CC. The wheels for Windows add 6.1, which changes no answer here.
"""


def minimum_driver(cuda: str) -> tuple[int, ...] | None:
    """The oldest driver for a CUDA version, None when no table tells."""
    release = numbers(cuda)
    return MINIMUM_DRIVER.get(release[:2]) or MINIMUM_DRIVER.get(release[:1])


def runs_on_driver(cuda: str, driver: str) -> bool | None:
    """Whether a driver is new enough for a CUDA version, by its branch; None when that cannot be told.

    Branches are compared, not their patch releases: within a branch only early betas fall short.
    """
    minimum = minimum_driver(cuda)
    found = numbers(driver)
    return None if minimum is None or not found else found[0] >= minimum[0]


def built_archs(case: Case, torch: str, cuda: str) -> tuple[str, ...] | Unknown:
    """What a build holds (``sm_80``, ``compute_90``): its own list, else that of the published wheel."""
    known = case.facts.torch_archs
    if not isinstance(known, Unknown):
        return known or Unknown("torch's list of architectures is empty")
    is_wheel = torch.partition("+")[2] == _tag(cuda)
    listed = WHEEL_ARCHS.get((_release(torch), cuda)) if is_wheel and not _is_arm(case) else None
    return _spelt(listed) if listed else known


def _spelt(archs: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(f"sm_{number}" for number in archs)


def _tag(cuda: str) -> str:
    return "cu" + cuda.replace(".", "")


def _release(torch: str) -> str:
    return ".".join(str(part) for part in numbers(torch)[:2])


def _is_arm(case: Case) -> bool:
    machine = case.facts.platform
    return isinstance(machine, str) and ("aarch64" in machine.lower() or "arm64" in machine.lower())


def runs(archs: tuple[str, ...], capability: tuple[int, int]) -> bool:
    """Whether any code runs on a GPU: machine code of its major version, PTX of any older architecture.

    ``sm_90a`` runs on 9.0 alone, ``sm_100f`` on its family; an unknown spelling is taken to run.
    """
    return any(_code_runs(arch, capability) for arch in archs)


def _code_runs(arch: str, capability: tuple[int, int]) -> bool:
    found = re.fullmatch(r"(sm|compute)_(\d+)([af]?)", arch)
    if found is None:
        return True
    major, minor = divmod(int(found.group(2)), 10)
    if found.group(3) == "a":
        return capability == (major, minor)
    if found.group(1) == "compute" and not found.group(3):
        return capability >= (major, minor)
    if (major, minor) == (10, 1) and capability == (11, 0):
        # CUDA 13 renamed it (torch 2.13.0, cuda/__init__.py DEVICE_REQUIREMENT).
        return True
    return capability[0] == major and capability[1] >= minor


def install_command(case: Case, torch: str, gpus: tuple[Gpu, ...]) -> str | None:
    """The pip command for the same torch with the newest CUDA that driver and GPUs run; None when no table tells."""
    driver = known_driver(case)
    if driver is None or _is_arm(case):
        return None
    needed = [gpu.compute_capability for gpu in gpus]
    offered = [
        (numbers(cuda), cuda, archs) for (release, cuda), archs in WHEEL_ARCHS.items() if release == _release(torch)
    ]
    for _, cuda, archs in sorted(offered, reverse=True):
        suits = all(not isinstance(wanted, Unknown) and runs(_spelt(archs), wanted) for wanted in needed)
        if suits and runs_on_driver(cuda, driver):
            public = torch.partition("+")[0]
            index = f"https://download.pytorch.org/whl/{_tag(cuda)}"
            return f"pip install --force-reinstall torch=={public} --index-url {index}"
    return None
