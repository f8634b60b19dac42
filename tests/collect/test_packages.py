"""Environments on disk are found and read without running anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpu_doctor.collect.packages import (
    commands_on_path,
    find_environment,
    interpreter_of,
    read_environment,
    shebangs_of,
    torch_cuda,
)
from mgpu_doctor.model.known import Unknown


def make_site(site: Path, *distributions: str) -> None:
    for name in distributions:
        (site / name).mkdir(parents=True)


def executable(path: Path, text: str = "\x7fELF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def make_venv(top: Path, *distributions: str, system: bool = False) -> Path:
    python = executable(top / "bin" / "python")
    (top / "pyvenv.cfg").write_text(
        f"home = {top.parent}/base/bin\ninclude-system-site-packages = {str(system).lower()}\nversion = 3.11.7\n"
    )
    make_site(top / "lib" / "python3.11" / "site-packages", *distributions)
    return python


def test_virtual_environment(tmp_path: Path) -> None:
    python = make_venv(
        tmp_path / "v", "torch-2.6.0+cu124.dist-info", "huggingface_hub-0.30.2.dist-info", "~orch-1.dist-info"
    )
    found = read_environment(str(python), {"HOME": str(tmp_path)})
    assert found.python.prefix == str(tmp_path / "v")
    assert found.python.version == "3.11.7"
    assert found.packages == {"torch": "2.6.0+cu124", "huggingface-hub": "0.30.2"}
    assert found.sites == (str(tmp_path / "v" / "lib" / "python3.11" / "site-packages"),)
    assert isinstance(found.conda, Unknown)


def test_system_packages_count_only_when_asked_for(tmp_path: Path) -> None:
    make_site(tmp_path / "base" / "lib" / "python3.11" / "site-packages", "torch-2.0.1.dist-info", "peft-0.1.dist-info")
    own = make_venv(tmp_path / "own", "torch-2.6.0.dist-info")
    shared = make_venv(tmp_path / "shared", "torch-2.6.0.dist-info", system=True)
    assert read_environment(str(own), {"HOME": str(tmp_path)}).packages == {"torch": "2.6.0"}
    assert read_environment(str(shared), {"HOME": str(tmp_path)}).packages == {"torch": "2.6.0", "peft": "0.1"}


def test_conda_and_user_site(tmp_path: Path) -> None:
    prefix = tmp_path / "conda"
    python = executable(prefix / "bin" / "python3.10")
    make_site(prefix / "lib" / "python3.10" / "site-packages", "torch-1.9.0.dist-info", "old-1.0-py3.10.egg-info")
    (prefix / "conda-meta").mkdir()
    (prefix / "conda-meta" / "pytorch-1.9.0-py3.10_cpu_0.json").write_text("{}")
    make_site(tmp_path / ".local" / "lib" / "python3.10" / "site-packages", "torch-2.0.1.dist-info")
    found = read_environment(str(python), {"HOME": str(tmp_path)})
    assert found.packages == {"torch": "2.0.1", "old": "1.0"}
    assert found.conda == {"pytorch": "1.9.0=py3.10_cpu_0"}
    assert read_environment(str(python), {"HOME": str(tmp_path), "PYTHONNOUSERSITE": "1"}).packages == {
        "torch": "1.9.0",
        "old": "1.0",
    }


def test_debian(tmp_path: Path) -> None:
    python = executable(tmp_path / "usr" / "bin" / "python3.11")
    (tmp_path / "usr" / "bin" / "python3").symlink_to("python3.11")
    make_site(tmp_path / "usr" / "lib" / "python3" / "dist-packages", "numpy-1.24.2.egg-info")
    make_site(tmp_path / "usr" / "local" / "lib" / "python3.11" / "dist-packages", "torch-2.6.0.dist-info")
    found = read_environment(str(tmp_path / "usr" / "bin" / "python3"), {"HOME": str(tmp_path)})
    assert found.python.version == "3.11"
    assert found.packages == {"torch": "2.6.0", "numpy": "1.24.2"}
    assert python.exists()


def test_what_the_files_do_not_tell(tmp_path: Path) -> None:
    lone = executable(tmp_path / "x" / "bin" / "python")
    found = read_environment(str(lone), {})
    assert isinstance(found.python.version, Unknown)
    assert isinstance(found.packages, Unknown)
    shim = executable(tmp_path / "s" / "bin" / "python", "#!/usr/bin/env bash\n")
    assert isinstance(read_environment(str(shim), {}).packages, Unknown)
    assert isinstance(read_environment(str(tmp_path / "gone"), {}).packages, Unknown)


def test_pyenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "pyenv"
    shim = executable(root / "shims" / "python", "#!/usr/bin/env bash\n")
    for version in ("3.10.4", "3.12.1"):
        top = root / "versions" / version
        executable(top / "bin" / "python")
        make_site(top / "lib" / f"python{version[:4]}" / "site-packages", f"torch-2.{version[2:4]}.dist-info")
    (root / "version").write_text("3.12.1\n")
    monkeypatch.chdir(tmp_path)
    assert read_environment(str(shim), {"HOME": str(tmp_path)}).packages == {"torch": "2.12"}
    (tmp_path / ".python-version").write_text("3.10.4\n")
    assert read_environment(str(shim), {"HOME": str(tmp_path)}).packages == {"torch": "2.10"}
    chosen = read_environment(str(shim), {"HOME": str(tmp_path), "PYENV_VERSION": "3.12.1"})
    assert chosen.packages == {"torch": "2.12"}


def test_the_launcher_tells_where_python_does_not(tmp_path: Path) -> None:
    bare = make_venv(tmp_path / "bare", "pip-24.0.dist-info")
    full = make_venv(tmp_path / "full", "torch-2.6.0.dist-info", "accelerate-1.7.0.dist-info")
    launcher = executable(tmp_path / "bin" / "accelerate", f"#!{full}\nimport sys\n")
    places = {"python": str(bare), "accelerate": str(launcher)}
    variables = {"HOME": str(tmp_path)}
    assert find_environment(None, places, variables).python.executable == str(full)
    assert find_environment(None, {"python": str(bare)}, variables).python.executable == str(bare)
    assert find_environment(str(tmp_path / "full"), {"python": str(bare)}, variables).python.executable == str(full)
    assert isinstance(find_environment(None, {}, variables).packages, Unknown)


def test_commands_and_their_first_lines(tmp_path: Path) -> None:
    launcher = executable(tmp_path / "torchrun", "#!/opt/e/bin/python3.11 -E\nimport sys\n")
    executable(tmp_path / "srun")
    places = commands_on_path(str(tmp_path))
    assert places == {"torchrun": str(launcher), "srun": str(tmp_path / "srun")}
    shebangs = shebangs_of(places.values())
    assert shebangs == {str(launcher): "#!/opt/e/bin/python3.11 -E"}
    assert interpreter_of(shebangs[str(launcher)]) == "/opt/e/bin/python3.11"
    assert interpreter_of("#!/usr/bin/env python") is None
    assert interpreter_of("#!/bin/sh") is None


@pytest.mark.parametrize(
    ("text", "cuda"),
    [
        ("__version__ = '2.6.0+cu124'\ncuda: Optional[str] = '12.4'\nhip: Optional[str] = None\n", "12.4"),
        ("__version__ = '2.6.0+cpu'\ncuda: Optional[str] = None\n", None),
        ("cuda = '11.7'\n", "11.7"),
    ],
)
def test_cuda_of_torch(tmp_path: Path, text: str, cuda: str | None) -> None:
    python = make_venv(tmp_path / "v", "torch-2.6.0.dist-info")
    package = tmp_path / "v" / "lib" / "python3.11" / "site-packages" / "torch"
    package.mkdir()
    (package / "version.py").write_text(text)
    assert torch_cuda(read_environment(str(python), {"HOME": str(tmp_path)})) == cuda


def test_no_torch(tmp_path: Path) -> None:
    python = make_venv(tmp_path / "v")
    assert isinstance(torch_cuda(read_environment(str(python), {"HOME": str(tmp_path)})), Unknown)


def test_metadata_whose_name_has_no_version_is_read(tmp_path: Path) -> None:
    python = make_venv(tmp_path, "torch-2.6.0.dist-info")
    (site,) = (tmp_path / "lib").glob("python*/site-packages")
    project = tmp_path / "project"
    (project / "my_frame.egg-info").mkdir(parents=True)
    (project / "my_frame.egg-info" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: my-frame\nVersion: 0.3.1\n")
    (site / "my-frame.egg-link").write_text(f"{project}\n.")
    (site / "bare.egg-info").mkdir()
    (site / "bare.egg-info" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: bare\nVersion: 7\n")
    (site / "broken.egg-info").mkdir()
    (site / "gone.egg-link").write_text("/no/such/place\n.")
    packages = read_environment(str(python), {}).packages
    assert packages == {"torch": "2.6.0", "my-frame": "0.3.1", "bare": "7"}
