"""What is installed for an interpreter: names of files tell nearly all, a few packages' metadata the rest.

Verified against CPython 3.11's ``importlib.metadata`` (``.dist-info`` and ``.egg-info`` on the search path, the first
place wins), pip 23.2 and 25.0 (``direct_url.json``, ``~`` in front of what a failed uninstallation left), setuptools 65
(``.egg-link``, ``.egg``) and conda (``conda-meta``).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping

from mgpu_doctor.collect.interpreter import Interpreter, names_in
from mgpu_doctor.collect.regular import read_bytes, read_text
from mgpu_doctor.model.facts import PackageCopy
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass

PACKAGES_OF_INTEREST = frozenset(
    {
        "accelerate", "apex", "auto-gptq", "autoawq", "bitsandbytes", "causal-conv1d", "cuda-python", "datasets",
        "deepspeed", "diffusers", "evaluate", "fairscale", "flash-attn", "flash-attn-3", "flashinfer-python", "fsspec",
        "gptqmodel", "gradio", "hqq", "huggingface-hub", "lightning", "liger-kernel", "llamafactory", "mamba-ssm",
        "megatron-core", "ms-swift", "numpy", "optimum", "pandas", "peft", "protobuf", "pyarrow", "pydantic",
        "pytorch-lightning", "ray", "safetensors", "sentence-transformers", "sentencepiece", "sglang", "tokenizers",
        "torch", "torchao", "torchaudio", "torchvision", "transformer-engine", "transformers", "triton", "trl",
        "unsloth", "unsloth-zoo", "verl", "vllm", "xformers", "xtuner",
    }
)  # fmt: skip
"""Distributions whose metadata is read: requirements, wheel, and whether they are more than a left-over name."""

_ONE_EXTRA = pattern(r"""extra == ['"][\w.-]+['"]""")
_MOST_HEADERS = 1024 * 1024
_KINDS = (".dist-info", ".egg-info", ".egg-link", ".egg")


@dataclass(frozen=True, slots=True)
class Distribution:
    """A distribution in one directory of the search path; ``metadata`` is the path of its metadata."""

    name: str
    version: str
    site: str
    metadata: str


@dataclass(frozen=True, slots=True)
class Installed:
    """What is installed for an interpreter; see the fields of the same names in ``Facts``."""

    packages: Mapping[str, str] | Unknown
    package_copies: Mapping[str, tuple[PackageCopy, ...]] | Unknown
    package_requirements: Mapping[str, tuple[str, ...]] | Unknown
    extension_abis: Mapping[str, bool] | Unknown
    wheels: Mapping[str, str] | Unknown


def read_packages(interpreter: Interpreter) -> Installed:
    """Everything that is installed for an interpreter; Unknown where its directories are not known or not readable."""
    if not interpreter.sites:
        unknown = Unknown(interpreter.reason or "no directory of packages is known")
        return Installed(unknown, unknown, unknown, unknown, unknown)
    unreadable = [site for site in interpreter.sites if not os.access(site, os.R_OK | os.X_OK)]
    if unreadable:
        unknown = Unknown(f"{unreadable[0]} cannot be read")
        return Installed(unknown, unknown, unknown, unknown, unknown)
    from mgpu_doctor.collect.extensions import extension_abis

    by_site = [distributions_in(site, interpreter.names[site]) for site in interpreter.sites]
    found: dict[str, Distribution] = {}
    for here in (*by_site, *(distributions_in(site, interpreter.names[site]) for site in interpreter.added)):
        for name, distribution in here.items():
            found.setdefault(name, distribution)
    wanted = [found[name] for name in sorted(PACKAGES_OF_INTEREST & found.keys())]
    return Installed(
        {name: distribution.version for name, distribution in found.items()},
        copies_among(by_site),
        _requirements(wanted, interpreter),
        extension_abis(wanted),
        {item.name: wheel for item in wanted if (wheel := wheel_name(item)) is not None},
    )


def normalise(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    plain = name.lower().replace("_", "-")
    # Most names are done by now, and a pattern costs more than everything else that is done with them.
    return re.sub(r"[-.]+", "-", plain) if "." in plain or "--" in plain else plain


def distributions_in(site: str, names: Iterable[str]) -> dict[str, Distribution]:
    """The distributions in one directory that holds these names, by normalised name.

    What pip left behind (``~orch…``) is none. Of several sets of metadata for one name the one that was written last
    counts: its files lie there.
    """
    found: dict[str, Distribution] = {}
    doubles: set[str] = set()
    for entry in names:
        if not entry.endswith(_KINDS) or entry.startswith(("~", ".", "-")):
            continue
        distribution = _distribution(site, entry)
        if distribution is None:
            continue
        other = found.get(distribution.name)
        if other is not None:
            distribution = max(other, distribution, key=_written)
            doubles.add(distribution.name)
        found[distribution.name] = distribution
    for name in (PACKAGES_OF_INTEREST | doubles) & found.keys():
        if not _is_more_than_a_name(found[name]):
            del found[name]
    return found


def _written(distribution: Distribution) -> tuple[bool, int, str]:
    try:
        at = os.stat(distribution.metadata).st_mtime_ns
    except OSError:
        at = 0
    return _is_more_than_a_name(distribution), at, distribution.metadata


def _is_more_than_a_name(distribution: Distribution) -> bool:
    """Whether the metadata holds anything: an empty directory is what an interrupted uninstallation leaves."""
    if not os.path.isdir(distribution.metadata):
        return os.path.isfile(distribution.metadata)
    return any(os.path.exists(os.path.join(distribution.metadata, name)) for name in ("METADATA", "PKG-INFO", "RECORD"))


def _distribution(site: str, entry: str) -> Distribution | None:
    path = os.path.join(site, entry)
    stem, _, kind = entry.rpartition(".")
    name, dash, rest = stem.partition("-")
    if kind == "dist-info" and "-" in rest:
        # Some old tools left dashes in names; a version never holds one.
        name, dash, rest = stem.rpartition("-")
    if kind == "egg":
        path = os.path.join(path, "EGG-INFO")
    if dash and kind != "egg-link":
        # An egg's name goes on with the Python version: pkg-1.0-py3.11.egg-info.
        version: str | None = rest if kind == "dist-info" else rest.partition("-")[0]
    else:
        name, version, path = stem, *_recorded_version(path, kind)
    return Distribution(normalise(name), version, site, path) if name and version else None


def _recorded_version(path: str, kind: str) -> tuple[str | None, str]:
    """The version inside metadata whose name does not tell it, and where that lies; None when it cannot be read.

    ``setup.py develop`` leaves ``pkg.egg-link`` with the project's directory in its first line, and the
    metadata as ``pkg.egg-info`` there (setuptools 65, command/develop.py).
    """
    if kind == "egg-link":
        text = read_text(path, 4096)
        if not text or "\0" in text:
            return None, path
        project = os.path.join(os.path.dirname(path), text.partition("\n")[0].strip())
        stem = os.path.basename(path).removesuffix(".egg-link").replace("-", "_").lower()
        names = (name for name in names_in(project) if name.lower().replace("-", "_") == f"{stem}.egg_info")
        inside = next(names, None)
        if inside is None:
            return None, path
        path = os.path.join(project, inside)
    return next((line[8:].strip() or None for line in headers(path) if line.startswith("Version:")), None), path


def headers(metadata: str) -> list[str]:
    """The header lines of a distribution's metadata (``METADATA``, ``PKG-INFO``); empty when it cannot be read."""
    for path in (os.path.join(metadata, "METADATA"), os.path.join(metadata, "PKG-INFO"), metadata):
        raw = read_bytes(path, _MOST_HEADERS)
        if raw is None:
            continue
        # The description behind the headers can be long; it is not even decoded.
        head = (raw.replace(b"\r\n", b"\n") if b"\r" in raw else raw).partition(b"\n\n")[0]
        return head.decode("utf-8", "replace").split("\n")
    return []


def copies_among(by_site: Iterable[Mapping[str, Distribution]]) -> dict[str, tuple[PackageCopy, ...]]:
    """Distributions that lie in several directories, with their copies in the order of the search path.

    A copy that is the source of an editable installation is that installation, not another.
    """
    found: dict[str, list[Distribution]] = {}
    for here in by_site:
        for name, distribution in here.items():
            found.setdefault(name, []).append(distribution)
    out = {}
    for name, copies in found.items():
        if len(copies) < 2:
            continue
        projects = [place for copy in copies if (place := editable_project(copy)) is not None]
        kept = [copy for copy in copies if not any(_inside(copy.site, project) for project in projects)]
        if len(kept) > 1:
            out[name] = tuple(PackageCopy(copy.version, copy.site) for copy in kept)
    return out


def editable_project(distribution: Distribution) -> str | None:
    """The directory of the project that an editable installation leads to; None for any other.

    PEP 610: ``{"dir_info": {"editable": true}, "url": "file:///home/me/project"}``; setuptools' ``.egg-link``.
    """
    if not _inside(distribution.metadata, distribution.site):
        return os.path.dirname(distribution.metadata)
    url, about = _direct_url(distribution)
    folder = about.get("dir_info")
    if not isinstance(folder, dict) or not folder.get("editable") or not url.startswith("file://"):
        return None
    from urllib.parse import unquote

    return unquote(url.removeprefix("file://").removeprefix("localhost"))


def _inside(place: str, project: str) -> bool:
    place, project = os.path.realpath(place), os.path.realpath(project)
    return place == project or place.startswith(project.rstrip(os.sep) + os.sep)


def _direct_url(distribution: Distribution) -> tuple[str, Mapping[str, object]]:
    try:
        found = json.loads(read_text(os.path.join(distribution.metadata, "direct_url.json"), 65536) or "null")
    except (ValueError, RecursionError):
        return "", {}
    url = found.get("url") if isinstance(found, dict) else None
    return (url, found) if isinstance(url, str) else ("", {})


def wheel_name(distribution: Distribution) -> str | None:
    """The file name of the wheel that a distribution was installed from; None where nothing tells.

    Installed from a file or an address, it is that one's last part (``direct_url.json``, PEP 610): this keeps what a
    project wrote into the name alone (``flash_attn-2.7.4.post1+cu12torch2.4cxx11abiTRUE-…``). Otherwise it is put
    together from the tags in ``WHEEL``.
    """
    url, _ = _direct_url(distribution)
    if url.partition("#")[0].endswith(".whl"):
        from urllib.parse import unquote

        return unquote(url.partition("#")[0].rpartition("/")[2])
    stem, dot, kind = os.path.basename(distribution.metadata).rpartition(".")
    if not dot or kind != "dist-info":
        return None
    lines = (read_text(os.path.join(distribution.metadata, "WHEEL"), 65536) or "").splitlines()
    tags = [line.removeprefix("Tag:").strip().split("-") for line in lines if line.startswith("Tag:")]
    if not tags or any(len(tag) != 3 for tag in tags):
        return None
    parts = (".".join(dict.fromkeys(tag[at] for tag in tags)) for at in range(3))
    return f"{stem}-{'-'.join(parts)}.whl"


def _requirements(distributions: Iterable[Distribution], interpreter: Interpreter) -> dict[str, tuple[str, ...]]:
    from mgpu_doctor.collect.markers import Markers

    version = interpreter.python.version
    if isinstance(version, Unknown):
        return {}
    counts = Markers(version).hold
    return {item.name: requirements_of(item, counts) for item in distributions}


def requirements_of(distribution: Distribution, counts: Callable[[str], bool]) -> tuple[str, ...]:
    """What a distribution requires where its markers count, without the markers: ``numpy<2``, extras left out.

    The older way to write it, ``numpy (<2)``, is turned into the newer.
    """
    found = []
    for line in _declared(distribution):
        text, _, marker = line.partition(";")
        if " @ " in text:
            # The marker of a direct reference stands behind a blank, as addresses may hold a semicolon.
            text, _, marker = line.partition(" ;")
        marker = marker.strip()
        if marker and (_ONE_EXTRA.fullmatch(marker) or not counts(marker)):
            continue
        if "(" in text:
            text = re.sub(r"\s*\(([^()]*)\)\s*$", r"\1", text)
        found.append(text.strip())
    return tuple(found)


def _declared(distribution: Distribution) -> list[str]:
    """The requirements as they are declared, markers included."""
    declared = [line[14:] for line in headers(distribution.metadata) if line.startswith("Requires-Dist:")]
    if declared or not os.path.exists(os.path.join(distribution.metadata, "requires.txt")):
        return declared
    return _declared_by_egg(distribution)


def _declared_by_egg(distribution: Distribution) -> list[str]:
    """What an ``egg-info`` declares in the sections of its ``requires.txt``."""
    from pathlib import Path

    from importlib_metadata import Distribution as Metadata

    class Egg(Metadata):
        def read_text(self, filename: str) -> str | None:
            return read_text(os.path.join(distribution.metadata, filename), _MOST_HEADERS)

        def locate_file(self, path: str | os.PathLike[str]) -> Path:
            return Path(distribution.site) / path

    return list(Egg().requires or ())


def conda_packages(prefix: str | Unknown) -> dict[str, str] | Unknown:
    """Conda's packages: ``{"pytorch": "1.9.0=py3.8_cpu_0"}``, from the names of its records."""
    if isinstance(prefix, Unknown):
        return prefix
    directory = os.path.join(prefix, "conda-meta")
    if not os.path.isdir(directory):
        return Unknown(f"{prefix} is no conda environment")
    found = {}
    for entry in names_in(directory):
        parts = entry.removesuffix(".json").rsplit("-", 2)
        if entry.endswith(".json") and len(parts) == 3:
            found[parts[0]] = f"{parts[1]}={parts[2]}"
    return found
