"""Builds of torch: what the published wheels hold, and which drivers and GPUs run them."""

from __future__ import annotations

import re

from mgpu_checks.stack import is_arm, known_driver, numbers, runtime_package
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
_VOLTA_TO_BLACKWELL = (70, *_BLACKWELL)

WHEEL_ARCHS: dict[tuple[str, str], tuple[int, ...]] = {
    **dict.fromkeys([("1.11", "10.2"), ("1.12", "10.2")], _EARLY),
    **dict.fromkeys([("1.11", "11.3"), ("1.11", "11.5"), ("1.12", "11.3"), ("1.12", "11.6")], _AMPERE),
    **dict.fromkeys([("1.13", "11.6"), ("1.13", "11.7"), ("2.0", "11.7")], _AMPERE),
    **dict.fromkeys([(f"2.{minor}", "11.8") for minor in range(7)], (*_AMPERE, 90)),
    **dict.fromkeys([(f"2.{minor}", "12.1") for minor in range(1, 6)], _HOPPER),
    **dict.fromkeys([(f"2.{minor}", "12.4") for minor in range(4, 7)], _HOPPER),
    **dict.fromkeys([(f"2.{minor}", "12.6") for minor in (*range(6, 12), 13)], _HOPPER),
    **dict.fromkeys([(f"2.{minor}", "12.8") for minor in range(8, 11)], _VOLTA_TO_BLACKWELL),
    ("2.8", "12.9"): _VOLTA_TO_BLACKWELL,
    **dict.fromkeys([("2.7", "12.8"), ("2.11", "12.8")], _BLACKWELL),
    **dict.fromkeys([("2.9", "13.0"), ("2.10", "13.0"), ("2.11", "13.0")], _BLACKWELL),
    **dict.fromkeys([("2.13", "12.9"), ("2.13", "13.0"), ("2.13", "13.2")], _BLACKWELL),
}
"""Architectures of download.pytorch.org's wheels for x86-64 (``torch 2.4.1+cu121``), by release and CUDA version.

Up to 2.5 pytorch/builder, manywheel/build_cuda.sh of each release branch; then pytorch, .ci/manywheel/build_cuda.sh at
v2.6.0 … v2.11.0, RELEASE.md's support matrix, and the lists in the libtorch_python.so of 2.6.0+cu124 and 2.9.1+cu128;
for 2.13 torch 2.13.0, cuda/__init__.py PYTORCH_RELEASES_CODE_CC. What was not looked at is absent. The wheels for
Windows add 6.1, which changes no answer here.
"""

WITH_PTX = frozenset({("2.7", "12.8"), ("2.8", "12.9"), ("2.9", "13.0"), ("2.10", "13.0")})
"""Those of them that hold PTX for 12.0 as well (``12.0+PTX``), which newer GPUs can translate; the others hold none."""


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
    listed = _listed(_release(torch), cuda) if _is_wheel(case, torch, cuda) and not is_arm(case) else ()
    return listed or known


def _is_wheel(case: Case, torch: str, cuda: str) -> bool:
    """Whether this torch is surely a published wheel: by its tag, or by the CUDA runtime that it brings along."""
    public, _, local = torch.partition("+")
    return is_release(public) and (local == _tag(cuda) or (not local and runtime_package(case) == cuda))


def is_release(public: str) -> bool:
    """Whether a version is a release: nightlies and NVIDIA's containers (``2.1.0a0``) are built in other ways."""
    return re.fullmatch(r"\d+(?:\.\d+)*(?:\.post\d+)?", public) is not None


def _listed(release: str, cuda: str) -> tuple[str, ...]:
    archs = tuple(f"sm_{number}" for number in WHEEL_ARCHS.get((release, cuda), ()))
    return (*archs, "compute_120") if (release, cuda) in WITH_PTX else archs


def _tag(cuda: str) -> str:
    return "cu" + cuda.replace(".", "")


def _release(torch: str) -> str:
    return ".".join(str(part) for part in numbers(torch)[:2])


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
    public = torch.partition("+")[0]
    if not is_release(public):
        return None
    cuda = _newest_suitable(case, _release(torch), gpus)
    return None if cuda is None else _pip(f"{public}+{_tag(cuda)}", cuda)


def newer_command(case: Case, torch: str, gpus: tuple[Gpu, ...]) -> str | None:
    """The pip command for the first later release with a build that driver and GPUs run; None when no table tells."""
    own = numbers(torch)[:2]
    for release in sorted({numbers(release) for release, _ in WHEEL_ARCHS}):
        text = ".".join(map(str, release))
        cuda = _newest_suitable(case, text, gpus) if release > own else None
        if cuda is not None:
            return _pip(f"{text}.*", cuda)
    return None


def same_cuda_command(name: str, version: str, torch: str) -> str | None:
    """The pip command for a version of ``name`` (torch or torchvision) from the index that torch came from.

    None where torch's version does not tell that index, or where it is not known to hold that release of torch.
    """
    tag = torch.partition("+")[2]
    cuda = next((cuda for _, cuda in WHEEL_ARCHS if _tag(cuda) == tag), None)
    release = _release(version) if name == "torch" else _release(torch)
    if cuda is None or (release, cuda) not in WHEEL_ARCHS:
        return None
    wanted = f"torch=={version}+{tag}" if name == "torch" else f"{name}=={version}"
    alone = "" if name == "torch" else "--no-deps "
    return f'pip install {alone}"{wanted}" --index-url https://download.pytorch.org/whl/{tag}'


def _newest_suitable(case: Case, release: str, gpus: tuple[Gpu, ...]) -> str | None:
    driver = known_driver(case)
    if driver is None or is_arm(case):
        return None
    offered = sorted(((numbers(cuda), cuda) for name, cuda in WHEEL_ARCHS if name == release), reverse=True)
    for _, cuda in offered:
        archs = _listed(release, cuda)
        needed = [gpu.compute_capability for gpu in gpus]
        suits = all(not isinstance(wanted, Unknown) and runs(archs, wanted) for wanted in needed)
        if suits and runs_on_driver(cuda, driver):
            return cuda
    return None


def _pip(version: str, cuda: str) -> str:
    return f'pip install "torch=={version}" --index-url https://download.pytorch.org/whl/{_tag(cuda)}'
