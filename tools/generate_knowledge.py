#!/usr/bin/env python3
"""Makes the shipped tables under ``doctor/mgpu_doctor/knowledge/data`` from released packages.

Downloads each release that :data:`RELEASES` names (unless ``--sources`` already holds it unpacked as
``PACKAGE-VERSION``), reads the few files that matter with the same static reader that the program
uses on installed packages, and writes one compact JSON file for each package. Nothing of a package is
imported or run.

    python tools/generate_knowledge.py --sources /tmp/releases            # everything
    python tools/generate_knowledge.py --sources /tmp/releases accelerate # one package
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "doctor"))

from mgpu_doctor.knowledge import environment, installed, layout, static, tables  # noqa: E402
from mgpu_doctor.knowledge.declared import UnreadableSourceError  # noqa: E402

RELEASES: dict[str, tuple[str, ...]] = {
    "accelerate": (
        "0.20.3",
        "0.21.0",
        "0.22.0",
        "0.23.0",
        "0.24.1",
        "0.25.0",
        "0.26.1",
        "0.27.2",
        "0.28.0",
        "0.29.3",
        "0.30.1",
        "0.31.0",
        "0.32.1",
        "0.33.0",
        "0.34.2",
        "1.0.1",
        "1.1.1",
        "1.2.1",
        "1.3.0",
        "1.4.0",
        "1.5.2",
        "1.6.0",
        "1.7.0",
        "1.8.1",
        "1.9.0",
        "1.10.1",
        "1.11.0",
        "1.12.0",
        "1.13.0",
        "1.14.0",
        "1.15.0",
    ),
    "deepspeed": (
        "0.9.5",
        "0.11.2",
        "0.12.6",
        "0.13.5",
        "0.14.5",
        "0.15.4",
        "0.16.9",
        "0.17.6",
        "0.18.9",
        "0.19.8",
    ),
    "torch": (
        "1.13.1",
        "2.0.1",
        "2.1.2",
        "2.2.2",
        "2.3.1",
        "2.4.1",
        "2.5.1",
        "2.6.0",
        "2.7.1",
        "2.8.0",
        "2.9.1",
        "2.10.0",
        "2.11.0",
        "2.12.1",
        "2.13.0",
        "2.14.1",
        "2.15.0",
    ),
    "huggingface_hub": (
        "0.20.3",
        "0.23.5",
        "0.25.2",
        "0.28.1",
        "0.30.2",
        "0.34.4",
        "0.36.0",
        "1.0.1",
        "1.6.0",
        "2.4.0",
    ),
    "datasets": ("2.16.1", "2.21.0", "3.6.0", "4.0.0", "5.2.0"),
    "peft": ("0.10.0", "0.14.0", "0.15.2", "0.18.1"),
    "trl": ("0.9.6", "0.12.0", "0.19.0", "0.24.0"),
    "bitsandbytes": ("0.43.3", "0.48.1"),
    "triton": ("3.1.0", "3.5.0"),
    "ms_swift": ("2.6.1", "3.9.0", "3.12.0", "4.0.0"),
    "llamafactory": ("0.7.1", "0.8.3", "0.9.0", "0.9.1", "0.9.2", "0.9.3", "0.9.4", "0.9.5"),
    "transformers": (
        "4.40.2",
        "4.41.2",
        "4.42.4",
        "4.43.4",
        "4.44.2",
        "4.45.2",
        "4.46.3",
        "4.47.1",
        "4.48.3",
        "4.49.0",
        "4.50.3",
        "4.51.3",
        "4.52.4",
        "4.53.3",
        "4.54.1",
        "4.55.4",
        "4.56.2",
        "4.57.6",
        "5.0.0",
        "5.1.0",
        "5.2.0",
        "5.3.0",
        "5.6.0",
        "5.23.0",
    ),
}
"""The last patch release; of transformers 5 those that frameworks pin."""


NCCL_RELEASES = (
    "2.10.3",
    "2.14.3",
    "2.18.5",
    "2.19.3",
    "2.20.5",
    "2.21.5",
    "2.22.3",
    "2.26.2",
    "2.27.5",
    "2.28.9",
    "2.29.7",
    "2.30.7",
)
"""Releases that PyTorch wheels were built with."""

MENTION = re.compile(
    r"\b(?:ACCELERATE|BNB|CUDA|CUDNN|DEEPSPEED|DS|FSDP|GLOO|HF|HUGGINGFACE|HUGGING_FACE|MEGATRON_LM|NCCL|PET|PYTORCH|"
    r"TORCH|TORCHELASTIC|TORCHINDUCTOR|TRANSFORMERS|TRITON|TOKENIZERS)_[A-Z0-9_]*[A-Z0-9]\b"
)
"""Words that may be variables' names; a misspelling is looked for only among names that no source has."""


def unpacked(package: str, version: str, sources: Path) -> Path | None:
    """The folder of a release, downloaded when it is not there; None when it cannot be had."""
    folder = sources / f"{package}-{version}"
    if folder.is_dir():
        return folder
    downloads = sources / "downloads"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "-d",
        str(downloads),
        f"{package}=={version}",
    ]
    if package == "deepspeed":
        # Published as source only; pip would run its setup.py to learn the metadata.
        command += ["--no-binary", ":all:", "--no-build-isolation"]
    else:
        command += ["--python-version", "3.11", "--only-binary", ":all:"]
    if package == "torch":
        command += ["--platform", "macosx_11_0_arm64", "--platform", "macosx_14_0_arm64"]
    subprocess.run(command, check=False)
    for archive in sorted(downloads.glob(f"{package}-{version}*")):
        folder.mkdir(parents=True)
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(folder)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder.parent, filter="data")
        archive.unlink()
        return folder
    return None


def table_of(package: str, sources: Path) -> dict[str, object]:
    """The data of one package from all its releases that can be had."""
    found: dict[str, layout.Tables] = {}
    provenance: dict[str, dict[str, str]] = {}
    for version in RELEASES[package]:
        folder = unpacked(package, version, sources)
        if folder is None:
            print(f"{package} {version}: not available", file=sys.stderr)
            continue
        reading = layout.Reading((folder,))
        try:
            found[version] = static.read_tables(package, reading)
        except UnreadableSourceError as error:
            print(f"{package} {version}: {error}", file=sys.stderr)
            continue
        found[version] |= extra_tables(package, folder)
        provenance[version] = {name: tables.digest(text) for name, text in sorted(reading.texts.items())}
    names = sorted({name for table in found.values() for name in table})
    return {
        "package": package,
        "releases": list(found),
        "provenance": provenance,
        "tables": {name: tables.merge([table.get(name, []) for table in found.values()]) for name in names},
    }


def split(data: dict[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    """The data without its variables, and the variables: most commands need only one of the two."""
    held = data["tables"]
    assert isinstance(held, dict)
    apart = {name: table for name, table in held.items() if name in {"variables", "mentioned"}}
    rest = {name: table for name, table in held.items() if name not in apart}
    if "mentioned" in apart:
        apart["mentioned"] = {
            "0": "\n".join(sorted({text for lines in apart["mentioned"].values() for text in lines.split("\n")}))
        }
    variables = {"package": data["package"], "releases": data["releases"], "provenance": {}, "tables": apart}
    return {**data, "tables": rest}, variables


def extra_tables(package: str, folder: Path) -> layout.Tables:
    """What only the whole release tells: modules, variables, console commands, requirements."""
    out: layout.Tables = {}
    modules = layout.read_modules(package, (folder,))
    if modules:
        out["modules"] = list(modules)
    variables: set[str] = set()
    mentioned: set[str] = set()
    for path in folder.rglob("*.py"):
        relative = path.relative_to(folder).parts
        if relative[0] in {"tests", "setup.py", "benchmarks"} or "tests" in relative or "testing" in relative[:-1]:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        variables |= environment.read_variables(text)
        mentioned |= set(MENTION.findall(text))
    out["variables"] = sorted(variables)
    out["mentioned"] = sorted(mentioned - variables)
    for metadata in folder.glob("*.dist-info"):
        distribution = installed.Distribution("", folder, metadata)
        out["scripts"] = sorted(installed.entry_points(distribution, "console_scripts"))
        out["requires"] = [line for line in installed.requirements(distribution) if "extra ==" not in line]
    if package == "deepspeed":
        # Published as source: setup.py's scripts are files under bin/.
        out["scripts"] = sorted(path.name for path in (folder / "bin").iterdir())
    return {name: table for name, table in out.items() if table}


def nccl_table(sources: Path) -> dict[str, object]:
    """The variables that NCCL reads, by release, out of a clone of its repository at ``sources/nccl``."""
    repository = str(sources / "nccl")
    found: list[list[object]] = []
    for version in NCCL_RELEASES:
        text = subprocess.run(
            ["git", "-C", repository, "grep", "-hE", "NCCL_PARAM\\(|NCCL_[A-Z0-9_]{3,}", f"v{version}-1", "--", "src"],
            capture_output=True, text=True, check=True, errors="replace",
        ).stdout  # fmt: skip
        names = {f"NCCL_{name}" for name in re.findall(r'NCCL_PARAM\([A-Za-z0-9_]+, *"([A-Z0-9_]+)"', text)}
        names |= set(re.findall(r'"(NCCL_[A-Z0-9_]+)"', text))
        found.append(sorted(names))
    return {
        "package": "nccl",
        "releases": list(NCCL_RELEASES),
        "provenance": {version: {"git tag": f"v{version}-1"} for version in NCCL_RELEASES},
        "tables": {"variables": tables.merge(found)},
    }


def write(package: str, data: dict[str, object]) -> int:
    """Writes a package's file, one record a line so that a change shows; returns its size in bytes."""
    lines = ["{"]
    lines.append(f' "package": {json.dumps(data["package"])},')
    lines.append(f' "releases": {json.dumps(data["releases"])},')
    lines.append(f' "provenance": {json.dumps(data["provenance"], separators=(",", ":"))},')
    lines.append(' "tables": {')
    listed = data["tables"]
    assert isinstance(listed, dict)
    blocks = []
    for name, records in listed.items():
        if isinstance(records, dict):
            rows = ",\n".join(f"   {json.dumps(run)}: {json.dumps(texts)}" for run, texts in records.items())
            blocks.append(f"  {json.dumps(name)}: {{\n{rows}\n  }}")
        else:
            rows = ",\n".join("   " + json.dumps(row, separators=(",", ":"), ensure_ascii=False) for row in records)
            blocks.append(f"  {json.dumps(name)}: [\n{rows}\n  ]")
    lines.append(",\n".join(blocks))
    lines.append(" }\n}\n")
    text = "\n".join(lines)
    path = Path(tables.DATA) / f"{package}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return len(text.encode())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, required=True, help="folder of unpacked releases, filled as needed")
    parser.add_argument("packages", nargs="*", help="only these packages")
    arguments = parser.parse_args()
    for package in arguments.packages or [*RELEASES, "nccl"]:
        data = nccl_table(arguments.sources) if package == "nccl" else table_of(package, arguments.sources)
        rest, variables = split(data)
        sizes = [
            write(name, part) for name, part in ((package, rest), (f"{package}.variables", variables)) if part["tables"]
        ]
        print(f"{package}: {len(data['releases'])} releases, {sizes} bytes")  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    sys.exit(main())
