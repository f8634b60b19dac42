"""Interpreters on disk are found and read without running anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from environment_files import executable, make_site, make_venv, site_of
from mgpu_doctor.collect.interpreter import (
    commands_on_path,
    find_interpreter,
    interpreter_of,
    launcher_interpreter,
    named_interpreter,
    path_of_user,
    read_interpreter,
    shebangs_of,
)
from mgpu_doctor.collect.packages import read_packages
from mgpu_doctor.model.known import Unknown


def packages_of(python: Path | str, variables: dict[str, str]) -> object:
    return read_packages(read_interpreter(str(python), variables)).packages


def test_virtual_environment(tmp_path: Path) -> None:
    python = make_venv(tmp_path / "v", "torch-2.6.0")
    found = read_interpreter(str(python), {"HOME": str(tmp_path)})
    assert found.python.prefix == str(tmp_path / "v")
    assert found.python.version == "3.11.7"
    assert found.sites == (str(site_of(tmp_path / "v")),)


def test_system_packages_count_only_when_asked_for(tmp_path: Path) -> None:
    make_site(site_of(tmp_path / "base"), "torch-2.0.1", "peft-0.1")
    own = make_venv(tmp_path / "own", "torch-2.6.0")
    shared = make_venv(tmp_path / "shared", "torch-2.6.0", system=True)
    assert packages_of(own, {"HOME": str(tmp_path)}) == {"torch": "2.6.0"}
    assert packages_of(shared, {"HOME": str(tmp_path)}) == {"torch": "2.6.0", "peft": "0.1"}


def test_conda_and_user_site(tmp_path: Path) -> None:
    prefix = tmp_path / "conda"
    python = executable(prefix / "bin" / "python3.10")
    make_site(prefix / "lib" / "python3.10" / "site-packages", "torch-1.9.0")
    make_site(tmp_path / ".local" / "lib" / "python3.10" / "site-packages", "torch-2.0.1")
    assert packages_of(python, {"HOME": str(tmp_path)}) == {"torch": "2.0.1"}
    assert packages_of(python, {"HOME": str(tmp_path), "PYTHONNOUSERSITE": "1"}) == {"torch": "1.9.0"}
    other = {"HOME": "/nowhere", "PYTHONUSERBASE": str(tmp_path / ".local")}
    assert packages_of(python, other) == {"torch": "2.0.1"}


def test_debian(tmp_path: Path) -> None:
    executable(tmp_path / "usr" / "bin" / "python3.11")
    (tmp_path / "usr" / "bin" / "python3").symlink_to("python3.11")
    make_site(tmp_path / "usr" / "lib" / "python3" / "dist-packages", "requests-2.28.1")
    make_site(tmp_path / "usr" / "local" / "lib" / "python3.11" / "dist-packages", "torch-2.6.0")
    found = read_interpreter(str(tmp_path / "usr" / "bin" / "python3"), {"HOME": str(tmp_path)})
    assert found.python.version == "3.11"
    assert read_packages(found).packages == {"torch": "2.6.0", "requests": "2.28.1"}


def test_the_third_number_of_a_version_stands_in_the_header(tmp_path: Path) -> None:
    python = executable(tmp_path / "p" / "bin" / "python3.12")
    make_site(tmp_path / "p" / "lib" / "python3.12" / "site-packages")
    header = tmp_path / "p" / "include" / "python3.12" / "patchlevel.h"
    header.parent.mkdir(parents=True)
    header.write_text('#define PY_MICRO_VERSION 4\n#define PY_VERSION      "3.12.4+"\n')
    assert read_interpreter(str(python), {}).python.version == "3.12.4"


def test_an_interpreter_without_its_lock_has_its_own_directory(tmp_path: Path) -> None:
    python = executable(tmp_path / "p" / "bin" / "python3.13t")
    make_site(tmp_path / "p" / "lib" / "python3.13t" / "site-packages", "torch-2.9.1")
    make_site(tmp_path / "p" / "lib" / "python3.13" / "site-packages", "torch-2.6.0")
    found = read_interpreter(str(python), {"HOME": str(tmp_path)})
    assert found.python.version == "3.13"
    assert read_packages(found).packages == {"torch": "2.9.1"}


def test_what_the_files_do_not_tell(tmp_path: Path) -> None:
    lone = executable(tmp_path / "x" / "bin" / "python")
    assert isinstance(read_interpreter(str(lone), {}).python.version, Unknown)
    assert isinstance(packages_of(lone, {}), Unknown)
    script = executable(tmp_path / "s" / "bin" / "python", "#!/usr/bin/env bash\nmodule load python\nexec python3\n")
    assert isinstance(packages_of(script, {}), Unknown)


def test_a_shim_that_is_another_program_is_no_interpreter(tmp_path: Path) -> None:
    """Mise links every shim to itself: the directory above it is not the environment."""
    tool = executable(tmp_path / "usr" / "bin" / "mise")
    make_site(tmp_path / "usr" / "lib" / "python3.11" / "site-packages", "torch-2.6.0")
    shim = tmp_path / "shims" / "python"
    shim.parent.mkdir()
    shim.symlink_to(tool)
    packages = packages_of(shim, {"HOME": str(tmp_path)})
    assert isinstance(packages, Unknown)
    assert "mise" in packages.reason


def test_a_script_that_only_starts_an_interpreter(tmp_path: Path) -> None:
    python = make_venv(tmp_path / "v", "torch-2.6.0")
    script = executable(tmp_path / "bin" / "python", f'#!/bin/sh\n# ours\nexec "{python}" "$@"\n')
    assert packages_of(script, {"HOME": str(tmp_path)}) == {"torch": "2.6.0"}
    more = executable(tmp_path / "more" / "python", f'#!/bin/sh\nexport PYTHONPATH=/x\nexec {python} "$@"\n')
    assert isinstance(packages_of(more, {"HOME": str(tmp_path)}), Unknown)


def test_pyenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "pyenv"
    shim = executable(root / "shims" / "python", "#!/usr/bin/env bash\nset -e\nexec pyenv exec python\n")
    for version in ("3.10.4", "3.12.1"):
        top = root / "versions" / version
        executable(top / "bin" / "python")
        make_site(top / "lib" / f"python{version[:4]}" / "site-packages", f"torch-2.{version[2:4]}")
    (root / "version").write_text("3.12.1\n")
    monkeypatch.chdir(tmp_path)
    assert packages_of(shim, {"HOME": str(tmp_path)}) == {"torch": "2.12"}
    (tmp_path / ".python-version").write_text("3.10.4\n")
    assert packages_of(shim, {"HOME": str(tmp_path)}) == {"torch": "2.10"}
    assert packages_of(shim, {"HOME": str(tmp_path), "PYENV_VERSION": "3.12.1"}) == {"torch": "2.12"}


def test_the_launcher_tells_where_python_does_not(tmp_path: Path) -> None:
    bare = make_venv(tmp_path / "bare", "pip-24.0")
    full = make_venv(tmp_path / "full", "torch-2.6.0", "accelerate-1.7.0")
    launcher = executable(tmp_path / "bin" / "accelerate", f"#!{full}\nimport sys\n")
    places = {"python": str(bare), "accelerate": str(launcher)}
    variables = {"HOME": str(tmp_path)}
    assert find_interpreter(None, places, variables).python.executable == str(full)
    assert find_interpreter(None, {"python": str(bare)}, variables).python.executable == str(bare)
    assert find_interpreter(str(full), {"python": str(bare)}, variables).python.executable == str(full)
    assert find_interpreter(None, {}, variables).reason == "no python is on PATH"
    assert find_interpreter(Unknown("who knows"), places, variables).reason == "who knows"


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


def test_the_environment_that_uvx_makes_is_not_the_users(tmp_path: Path) -> None:
    own = make_venv(tmp_path / "own", "mgpu_doctor-0.1.0")
    configuration = tmp_path / "own" / "pyvenv.cfg"
    path = f"{own.parent}:/usr/bin:/bin"
    assert path_of_user({"PATH": path}, str(own)) == path
    configuration.write_text(configuration.read_text() + "uv = 0.13.9\n")
    assert path_of_user({"PATH": path}, str(own)) == "/usr/bin:/bin"
    assert path_of_user({"PATH": path, "VIRTUAL_ENV": str(tmp_path / "own")}, str(own)) == path
    assert path_of_user({"PATH": f"/usr/bin:{path}"}, str(own)) == f"/usr/bin:{path}"
    assert path_of_user({"PATH": str(own.parent)}, str(own)) == str(own.parent)
    assert path_of_user({}, str(own)) is None
    make_site(site_of(tmp_path / "own"), "torch-2.6.0")
    assert path_of_user({"PATH": path}, str(own)) == path


def test_a_launcher_in_an_environment_with_a_blank_in_its_path(tmp_path: Path) -> None:
    """As pip 23.2 writes it, for a first line may hold no blank."""
    text = "#!/bin/sh\n'''exec' \"/home/me/my env/bin/python3.11\" \"$0\" \"$@\"\n' '''\nimport re\n"
    assert launcher_interpreter(str(executable(tmp_path / "a", text))) == "/home/me/my env/bin/python3.11"
    plain = "#!/bin/sh\n'''exec' /home/me/env/bin/python \"$0\" \"$@\"\n' '''\n"
    assert launcher_interpreter(str(executable(tmp_path / "b", plain))) == "/home/me/env/bin/python"
    assert launcher_interpreter(str(executable(tmp_path / "c", "#!/bin/sh\nexec torchrun\n"))) is None
    assert launcher_interpreter(str(executable(tmp_path / "d"))) is None


def test_an_interpreter_by_path_directory_or_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = make_venv(tmp_path / "v")
    monkeypatch.chdir(tmp_path)
    for name in (str(python), "v/bin/python", "v", "./v", str(tmp_path / "v" / "bin")):
        assert named_interpreter(name) == str(python), name
    assert named_interpreter("python", path=str(tmp_path / "v" / "bin")) == str(python)


def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    def reason(name: str) -> str:
        found = named_interpreter(name, path=str(tmp_path))
        assert isinstance(found, Unknown)
        return found.reason

    assert reason(str(tmp_path / "gone" / "python")).endswith("does not exist")
    assert "on PATH" in reason("python3.99")
    (tmp_path / "empty").mkdir()
    assert "no bin/python" in reason(str(tmp_path / "empty"))
    make_venv(tmp_path / "project" / ".venv")
    assert str(tmp_path / "project" / ".venv") in reason(str(tmp_path / "project"))
    text = tmp_path / "text"
    text.write_text("")
    text.chmod(0o644)
    assert "not executable" in reason(str(text))


def test_an_environment_whose_interpreter_has_been_removed(tmp_path: Path) -> None:
    python = make_venv(tmp_path / "v", "torch-2.6.0")
    python.unlink()
    python.symlink_to("/usr/lib/removed/python3.11")
    for name in (str(python), str(tmp_path / "v")):
        found = named_interpreter(name)
        assert isinstance(found, Unknown)
        assert "/usr/lib/removed/python3.11" in found.reason
    packages = packages_of(python, {})
    assert isinstance(packages, Unknown)
    assert "removed" in packages.reason


def test_a_real_virtual_environment_agrees_with_its_interpreter(tmp_path: Path) -> None:
    top = tmp_path / "v"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(top)], check=True)
    extra = tmp_path / "extra"
    extra.mkdir()
    found = read_interpreter(str(top / "bin" / "python"), {"HOME": str(tmp_path), "PYTHONPATH": f"{extra}:"})
    code = "import sys, platform; print(platform.python_version()); print(*sys.path, sep='\\n')"
    said = subprocess.run(
        [str(top / "bin" / "python"), "-c", code],
        env={"HOME": str(tmp_path), "PYTHONPATH": str(extra)},
        text=True,
        capture_output=True,
        check=True,
    ).stdout.split("\n")
    assert found.python.version == said[0]
    assert list(found.sites) == [path for path in said[1:] if path.endswith(("/extra", "-packages"))]


@pytest.mark.parametrize("place", ["/usr/bin/python3", f"{sys.base_prefix}/bin/python3"])
def test_an_interpreter_of_this_machine_agrees(place: str, tmp_path: Path) -> None:
    """Debian's keeps its packages in other places than one that was built from source."""
    if not Path(place).exists():
        pytest.skip(f"no {place}")
    code = "import sys, platform; print(platform.python_version()); print(*sys.path, sep='\\n')"
    said = subprocess.run(
        [place, "-c", code], env={"HOME": str(tmp_path)}, text=True, capture_output=True, check=True
    ).stdout.split("\n")
    found = read_interpreter(place, {"HOME": str(tmp_path)})
    assert isinstance(found.python.version, str)
    assert said[0].startswith(found.python.version)
    assert [*found.sites, *found.added] == [path for path in said[1:] if path.endswith("-packages")]


def test_home_is_not_needed(tmp_path: Path) -> None:
    python = make_venv(tmp_path / "v", "torch-2.6.0", system=True)
    assert read_interpreter(str(python), {}).sites[0] == str(site_of(tmp_path / "v"))
