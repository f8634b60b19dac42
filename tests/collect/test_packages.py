"""What is installed is read from names of files and from metadata, however broken these are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from environment_files import distribution, executable, make_library, make_site, make_venv, site_of
from mgpu_doctor.collect.interpreter import Interpreter, read_interpreter
from mgpu_doctor.collect.packages import (
    Installed,
    conda_packages,
    distributions_in,
    read_packages,
    wheel_name,
)
from mgpu_doctor.model.facts import PackageCopy, PythonInfo
from mgpu_doctor.model.known import Unknown
from oracle_environments import ENVIRONMENTS, python_of, requires_oracle, run_parser


def installed(top: Path, variables: dict[str, str] | None = None) -> Installed:
    return read_packages(read_interpreter(str(top / "bin" / "python"), variables or {"HOME": str(top)}))


def one(site: Path, name: str) -> Any:
    return distributions_in(str(site), os.listdir(site))[name]


def test_names_are_normalised_and_leftovers_are_none(tmp_path: Path) -> None:
    make_venv(tmp_path, "torch-2.6.0+cu124", "huggingface_hub-0.30.2", "~orch-2.5.0", "ruamel.yaml-0.18.6", "a-b-1.0")
    make_site(site_of(tmp_path), "-ip-24.0.dist-info")
    assert installed(tmp_path).packages == {
        "torch": "2.6.0+cu124",
        "huggingface-hub": "0.30.2",
        "ruamel-yaml": "0.18.6",
        "a-b": "1.0",
    }


def test_metadata_whose_name_has_no_version_is_read(tmp_path: Path) -> None:
    make_venv(tmp_path, "torch-2.6.0")
    site = site_of(tmp_path)
    project = tmp_path / "project"
    (project / "my_frame.egg-info").mkdir(parents=True)
    (project / "my_frame.egg-info" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: my-frame\nVersion: 0.3.1\n")
    (site / "my-frame.egg-link").write_text(f"{project}\n.")
    (site / "bare.egg-info").mkdir()
    (site / "bare.egg-info" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: bare\nVersion: 7\n")
    (site / "old-1.0-py3.11.egg-info").write_text("Metadata-Version: 1.1\nName: old\nVersion: 1.0\n")
    (site / "apex-0.1-py3.11-linux-x86_64.egg" / "EGG-INFO").mkdir(parents=True)
    (site / "apex-0.1-py3.11-linux-x86_64.egg" / "EGG-INFO" / "PKG-INFO").write_text("Name: apex\nVersion: 0.1\n")
    (site / "broken.egg-info").mkdir()
    (site / "gone.egg-link").write_text("/no/such/place\n.")
    (site / "binary.egg-link").write_bytes(b"\xff\xfe\0")
    assert installed(tmp_path).packages == {
        "torch": "2.6.0",
        "my-frame": "0.3.1",
        "bare": "7",
        "old": "1.0",
        "apex": "0.1",
    }


def test_an_empty_directory_is_no_installation(tmp_path: Path) -> None:
    make_venv(tmp_path, "torch-2.6.0.dist-info", "peft-0.15.2")
    assert installed(tmp_path).packages == {"peft": "0.15.2"}


def test_of_two_in_one_directory_the_one_written_last_counts(tmp_path: Path) -> None:
    make_venv(tmp_path, "torch-2.6.0", "torch-2.10.0", "trl-0.9.6", "trl-0.20.0.dist-info")
    site = site_of(tmp_path)
    os.utime(site / "torch-2.10.0.dist-info", (1_000, 1_000))
    found = installed(tmp_path)
    assert found.packages == {"torch": "2.6.0", "trl": "0.9.6"}
    assert found.package_copies == {}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00garbage\n\x00", b"Version\nRequires-Dist\n: :\n"])
def test_corrupt_metadata(tmp_path: Path, content: bytes) -> None:
    make_venv(tmp_path, "torch-2.6.0")
    folder = site_of(tmp_path) / "torch-2.6.0.dist-info"
    for name in ("METADATA", "WHEEL", "direct_url.json", "RECORD"):
        (folder / name).write_bytes(content)
    found = installed(tmp_path)
    assert found.packages == {"torch": "2.6.0"}
    assert found.package_requirements == {"torch": ()}
    assert found.wheels == {}


def test_metadata_that_are_directories_or_lead_nowhere(tmp_path: Path) -> None:
    make_venv(tmp_path, "torch-2.6.0")
    folder = site_of(tmp_path) / "torch-2.6.0.dist-info"
    (folder / "METADATA").unlink()
    (folder / "METADATA").mkdir()
    (folder / "WHEEL").symlink_to("nowhere")
    (site_of(tmp_path) / "peft-1.0.dist-info").symlink_to("nowhere")
    found = installed(tmp_path)
    assert found.packages == {"torch": "2.6.0"}
    assert found.package_requirements == {"torch": ()}


def test_file_names_that_are_no_text(tmp_path: Path) -> None:
    """An interpreter in the C locale reads them as surrogates; they must not stop anything."""
    make_venv(tmp_path, "torch-2.6.0")
    os.mkdir(os.fsencode(site_of(tmp_path)) + b"/caf\xe9-1.0.dist-info")
    make_site(site_of(tmp_path), "größe-1.0")
    code = (
        "import sys; sys.path[:0] = eval(sys.argv[2])\n"
        "from mgpu_doctor.collect.interpreter import read_interpreter\n"
        "from mgpu_doctor.collect.packages import read_packages\n"
        "found = read_packages(read_interpreter(sys.argv[1], {}))\n"
        "print(found.packages['torch'], len(found.packages))\n"
    )
    said = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code, str(tmp_path / "bin" / "python"), repr(sys.path)],
        env={"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split() == ["2.6.0", "3"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_directory_that_cannot_be_read(tmp_path: Path) -> None:
    make_venv(tmp_path, "torch-2.6.0")
    site_of(tmp_path).chmod(0)
    try:
        packages = installed(tmp_path).packages
    finally:
        site_of(tmp_path).chmod(0o755)
    assert isinstance(packages, Unknown)
    assert "cannot be read" in packages.reason


def test_a_directory_that_access_denies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_venv(tmp_path, "torch-2.6.0")
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(site_of(tmp_path)))
    packages = installed(tmp_path).packages
    assert packages == Unknown(f"{site_of(tmp_path)} cannot be read")


def test_copies_come_in_the_order_of_the_search_path(tmp_path: Path) -> None:
    prefix = tmp_path / "conda"
    executable(prefix / "bin" / "python3.10")
    own = make_site(prefix / "lib" / "python3.10" / "site-packages", "torch-2.6.0", "peft-0.15.2", "numpy-1.26.4")
    user = make_site(tmp_path / ".local" / "lib" / "python3.10" / "site-packages", "torch-2.3.1", "numpy-1.26.4")
    extra = make_site(tmp_path / "extra", "torch-2.0.1")
    (tmp_path / "again").symlink_to(extra)
    variables = {"HOME": str(tmp_path), "PYTHONPATH": f"{extra}:{tmp_path / 'again'}"}
    found = read_packages(read_interpreter(str(prefix / "bin" / "python3.10"), variables))
    assert found.packages == {"torch": "2.0.1", "numpy": "1.26.4", "peft": "0.15.2"}
    assert found.package_copies == {
        "torch": (
            PackageCopy("2.0.1", str(extra)),
            PackageCopy("2.3.1", str(user)),
            PackageCopy("2.6.0", str(own)),
        ),
        "numpy": (PackageCopy("1.26.4", str(user)), PackageCopy("1.26.4", str(own))),
    }


def test_the_source_of_an_editable_installation_is_no_second_copy(tmp_path: Path) -> None:
    make_venv(tmp_path / "v")
    source = make_site(tmp_path / "my project" / "src")
    (source / "llamafactory.egg-info").mkdir()
    (source / "llamafactory.egg-info" / "PKG-INFO").write_text("Name: llamafactory\nVersion: 0.9.3\n")
    url = f"file://{tmp_path}/my%20project"
    about = json.dumps({"dir_info": {"editable": True}, "url": url})
    distribution(site_of(tmp_path / "v"), "llamafactory", "0.9.3", direct_url__json=about)
    (site_of(tmp_path / "v") / "__editable__.llamafactory.pth").write_text(f"{source}\n")
    found = installed(tmp_path / "v")
    assert found.packages == {"llamafactory": "0.9.3"}
    assert found.package_copies == {}
    with_path = installed(tmp_path / "v", {"PYTHONPATH": str(source)})
    assert with_path.package_copies == {}
    assert with_path.packages == {"llamafactory": "0.9.3"}


def test_directories_that_a_pth_file_adds(tmp_path: Path) -> None:
    make_venv(tmp_path / "v", "torch-2.6.0")
    shared = make_site(tmp_path / "shared", "peft-0.15.2", "torch-1.0")
    lines = f"# ours\nimport sys; sys.path.insert(0, '/x')\n{shared}\n/no/such\n\n"
    (site_of(tmp_path / "v") / "shared.pth").write_text(lines)
    found = read_interpreter(str(tmp_path / "v" / "bin" / "python"), {})
    assert found.added == (str(shared),)
    assert read_packages(found).packages == {"torch": "2.6.0", "peft": "0.15.2"}


def test_an_egg_declares_its_requirements_in_sections(tmp_path: Path) -> None:
    make_venv(tmp_path)
    metadata = site_of(tmp_path) / "deepspeed-0.14.0-py3.11.egg-info"
    metadata.mkdir()
    (metadata / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.14.0\n")
    (metadata / "requires.txt").write_text(
        'hjson\ntorch\n\n[:python_version < "3.12"]\npydantic<2\n\n[:sys_platform == "win32"]\npywin32\n\n'
        "[dev]\npytest\n"
    )
    assert installed(tmp_path).package_requirements == {"deepspeed": ("hjson", "torch", "pydantic<2")}


def test_requirements_are_those_that_count_here(tmp_path: Path) -> None:
    make_venv(tmp_path)
    distribution(
        site_of(tmp_path),
        "torch",
        "2.6.0",
        'Requires-Dist: nvidia-nccl-cu12 (==2.21.5) ; platform_system == "Linux"',
        "Requires-Dist: pywin32>=2; sys_platform == 'win32'",
        "Requires-Dist: typing-extensions>=4.8.0",
        'Requires-Dist: setuptools ; python_version >= "3.12"',
        'Requires-Dist: tomli<3,>=1.1.0 ; python_version < "3.12"',
        'Requires-Dist: optree>=0.13.0; extra == "optree"',
        "Requires-Dist: own @ https://example.org/a;b/own.whl ; python_version > '3.8'",
    )
    assert installed(tmp_path).package_requirements == {
        "torch": (
            "nvidia-nccl-cu12==2.21.5",
            "typing-extensions>=4.8.0",
            "tomli<3,>=1.1.0",
            "own @ https://example.org/a;b/own.whl",
        )
    }


def test_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    make_venv(tmp_path)
    path = distribution(site_of(tmp_path), "trl", "0.9.6", "Requires-Dist: numpy<2") / "METADATA"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert installed(tmp_path).package_requirements == {"trl": ("numpy<2",)}


def test_only_packages_that_matter_are_read(tmp_path: Path) -> None:
    make_venv(tmp_path, "torch-2.6.0", "colorama-1.0")
    assert installed(tmp_path).package_requirements == {"torch": ()}


FLASH = "flash_attn-2.7.4.post1+cu12torch2.4cxx11abiTRUE-cp310-cp310-linux_x86_64.whl"


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (
            {"WHEEL": "Wheel-Version: 1.0\nTag: cp310-cp310-linux_x86_64\n"},
            "flash_attn-2.7.4.post1-cp310-cp310-linux_x86_64.whl",
        ),
        (
            {"WHEEL": "Tag: cp310-cp310-manylinux_2_17_x86_64\nTag: cp310-cp310-manylinux2014_x86_64\n"},
            "flash_attn-2.7.4.post1-cp310-cp310-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        ),
        ({"WHEEL": "Tag: py2-none-any\nTag: py3-none-any\n"}, "flash_attn-2.7.4.post1-py2.py3-none-any.whl"),
        ({"WHEEL": "Tag: nonsense\n"}, None),
        ({}, None),
        ({"direct_url__json": json.dumps({"url": f"https://x.org/v2/{FLASH.replace('+', '%2B')}#sha256=0"})}, FLASH),
        (
            {
                "direct_url__json": json.dumps({"url": "https://x.org/flash-attn-2.7.4.post1.tar.gz"}),
                "WHEEL": "Tag: cp310-cp310-linux_x86_64\n",
            },
            "flash_attn-2.7.4.post1-cp310-cp310-linux_x86_64.whl",
        ),
        ({"direct_url__json": "[1]", "WHEEL": "Tag: py3-none-any\n"}, "flash_attn-2.7.4.post1-py3-none-any.whl"),
    ],
)
def test_name_of_the_wheel(tmp_path: Path, files: dict[str, str], name: str | None) -> None:
    distribution(tmp_path, "flash_attn", "2.7.4.post1", **files)
    assert wheel_name(one(tmp_path, "flash-attn")) == name


def test_name_of_a_wheel_that_pip_installed_from_a_file(tmp_path: Path) -> None:
    """The name tells more than the version in it: pip keeps it only in ``direct_url.json``."""
    wheel = tmp_path / "flash_attn-2.7.4.post1+cu12torch2.4cxx11abiTRUE-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        folder = "flash_attn-2.7.4.post1.dist-info"
        archive.writestr(f"{folder}/METADATA", "Metadata-Version: 2.1\nName: flash-attn\nVersion: 2.7.4.post1\n")
        archive.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{folder}/RECORD", "")
        archive.writestr("flash_attn/__init__.py", "")
    site = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module named pip" in done.stderr:
        pytest.skip("this environment has no pip")
    assert done.returncode == 0, done.stderr
    assert wheel_name(one(site, "flash-attn")) == wheel.name


OLD = b"_ZN3c106detail14torchCheckFailEPKcS2_jRKSs\0"
NEW = b"_ZN3c105ErrorC2ENS_14SourceLocationENSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE\0"


@pytest.mark.parametrize(
    ("names", "abis"),
    [(OLD, {"flash-attn": False}), (NEW, {"flash-attn": True}), (OLD + NEW, {}), (b"_ZNSt7__cxx11\0", {})],
)
def test_abi_of_an_extension(tmp_path: Path, names: bytes, abis: dict[str, bool]) -> None:
    make_venv(tmp_path)
    site = site_of(tmp_path)
    record = "flash_attn/__init__.py,sha256=x,0\nflash_attn/gone.so,,\nflash_attn_2_cuda.cpython-311.so,sha256=x,1\n"
    distribution(site, "flash_attn", "2.7.4", RECORD=record)
    distribution(site, "numpy", "2.0.0", RECORD=record)
    make_library(site / "flash_attn_2_cuda.cpython-311.so", sections={".dynstr": names})
    assert installed(tmp_path).extension_abis == abis


def test_an_extension_that_cannot_be_read(tmp_path: Path) -> None:
    make_venv(tmp_path, "flash_attn-2.7.4")
    assert installed(tmp_path).extension_abis == {}


def test_conda(tmp_path: Path) -> None:
    (tmp_path / "conda-meta").mkdir()
    for name in ("pytorch-1.9.0-py3.8_cpu_0.json", "cuda-nvcc-12.4.131-0.json", "history", "x.json"):
        (tmp_path / "conda-meta" / name).write_text("{}")
    assert conda_packages(str(tmp_path)) == {"pytorch": "1.9.0=py3.8_cpu_0", "cuda-nvcc": "12.4.131=0"}
    assert isinstance(conda_packages(str(tmp_path / "conda-meta")), Unknown)
    assert conda_packages(Unknown("no")) == Unknown("no")


def test_a_thousand_packages(tmp_path: Path) -> None:
    """No more than one look at each directory, and none at packages that do not matter."""
    site = make_site(tmp_path / "site", *(f"package{number}-1.{number}" for number in range(1000)))
    names = {str(site): os.listdir(site)}
    interpreter = Interpreter(PythonInfo("/p/bin/python", "/p", "3.11.7"), (str(site),), (), names)
    read_packages(interpreter)
    started = time.perf_counter()
    found = read_packages(interpreter)
    took = time.perf_counter() - started
    assert not isinstance(found.packages, Unknown)
    assert len(found.packages) == 1000
    assert took < 0.5


@pytest.mark.oracle
@pytest.mark.parametrize("environment", [pytest.param(name, marks=requires_oracle(name)) for name in ENVIRONMENTS])
def test_an_interpreter_says_the_same_of_its_packages(environment: str) -> None:
    python = python_of(environment)
    assert python is not None
    found = read_packages(read_interpreter(str(python), {"HOME": "/nowhere"}))
    assert not isinstance(found.packages, Unknown)
    assert not isinstance(found.package_requirements, Unknown)
    said = run_parser(
        environment,
        """
import re
from importlib import metadata
from packaging.requirements import Requirement
result = {"versions": {}, "requires": {}}
for name in {re.sub(r"[-_.]+", "-", d.metadata["Name"]).lower() for d in metadata.distributions()}:
    result["versions"][name] = metadata.version(name)
for name in payload:
    kept = []
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            requirement.marker = None
            kept.append(str(requirement))
    result["requires"][name] = kept
""",
        sorted(found.package_requirements),
    )
    assert found.packages == said["versions"]
    ours = {name: [str(Requirement(text)) for text in texts] for name, texts in found.package_requirements.items()}
    assert ours == said["requires"]
    assert "torch" in ours
