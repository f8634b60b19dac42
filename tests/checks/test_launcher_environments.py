"""Launchers and the environments that they belong to, in directories as conda, venv, uv and pip make them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from mgpu_checks.launch import launcher_from_other_environment, launcher_not_installed
from mgpu_doctor.authoring import Check, Finding
from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.registry import Registry


class Machine:
    """A home with environments; ``path`` is what PATH names, first to last."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.top = top
        self.work = top / "work"
        self.work.mkdir()
        (self.work / "train.py").write_text("import torch\n")
        self.monkeypatch = monkeypatch
        monkeypatch.setenv("HOME", str(top / "home"))
        for name in ("VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "PYTHONPATH", "UV_PROJECT_ENVIRONMENT"):
            monkeypatch.delenv(name, raising=False)

    def environment(self, place: str, *packages: str, venv: bool = False) -> Path:
        """An environment with an interpreter and packages, each with the commands that it brings."""
        prefix = self.top / place
        sites = prefix / "lib" / "python3.11" / "site-packages"
        sites.mkdir(parents=True)
        (prefix / "bin").mkdir()
        self.program(prefix / "bin" / "python3.11", "\x7fELF")
        for name in ("python", "python3"):
            (prefix / "bin" / name).symlink_to("python3.11")
        if venv:
            (prefix / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.11.7\n")
        for package in packages:
            self.install(prefix, package)
        return prefix

    def install(self, prefix: Path, package: str) -> None:
        info = prefix / "lib" / "python3.11" / "site-packages" / f"{package}-2.6.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.6.0\n")
        self.launcher(prefix, {"torch": "torchrun", "llamafactory": "llamafactory-cli"}.get(package, package))

    def launcher(self, prefix: Path, name: str, interpreter: str | None = None) -> Path:
        return self.program(prefix / "bin" / name, f"#!{interpreter or prefix / 'bin' / 'python'}\nimport sys\n")

    @staticmethod
    def program(path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def findings(self, module: ModuleType, command: str, *path: Path) -> tuple[Finding, ...]:
        self.monkeypatch.setenv("PATH", ":".join(str(one) for one in path))
        check = Check(module.RULE, module.find)
        report = diagnose(Request(command=command, directory=str(self.work)), Registry((check,), ()))
        (outcome,) = report.outcomes
        assert outcome.kind.value != "crashed", outcome.reason
        return report.findings


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


RUN = "torchrun --nproc_per_node 2 train.py"


def test_the_environment_that_is_active_is_sound(machine: Machine) -> None:
    env = machine.environment("conda/envs/train", "torch", "accelerate")
    base = machine.environment("conda", "torch")
    for module in (launcher_from_other_environment, launcher_not_installed):
        assert not machine.findings(module, RUN, env / "bin", base / "bin")
        assert not machine.findings(module, "accelerate launch train.py", env / "bin", base / "bin")


def test_conda_base_and_an_environment_below_it_are_two(machine: Machine) -> None:
    base = machine.environment("conda", "torch")
    other = machine.environment("conda/envs/old")
    machine.launcher(other, "torchrun")
    wrong = machine.program(machine.top / "front" / "torchrun", f"#!{other}/bin/python\n")
    (finding,) = machine.findings(launcher_from_other_environment, RUN, wrong.parent, base / "bin")
    assert f"uses {other}/bin/python, not the interpreter of {base}" in finding.message


def test_a_copy_in_the_users_own_site_comes_first(machine: Machine) -> None:
    env = machine.environment("env", "torch", venv=True)
    local = machine.program(machine.top / "home" / ".local" / "bin" / "torchrun", "#!/usr/bin/python3\n")
    (finding,) = machine.findings(launcher_from_other_environment, RUN, local.parent, env / "bin")
    assert finding.severity.value == "error"
    assert not machine.findings(launcher_from_other_environment, RUN, env / "bin", local.parent)


def test_what_the_command_activates_counts(machine: Machine) -> None:
    env = machine.environment("env", "torch", venv=True)
    machine.program(env / "bin" / "activate", "")
    system = machine.environment("usr", "torch")
    command = f"source {env}/bin/activate\n{RUN}"
    for module in (launcher_from_other_environment, launcher_not_installed):
        assert not machine.findings(module, command, system / "bin")


def test_one_directory_by_two_names_is_one(machine: Machine) -> None:
    env = machine.environment("mnt/env", "torch", venv=True)
    link = machine.top / "data"
    link.symlink_to("mnt")
    machine.launcher(env, "torchrun", f"{link}/env/bin/python")
    assert not machine.findings(launcher_from_other_environment, RUN, env / "bin")


def test_a_launcher_whose_package_is_gone_is_left_over(machine: Machine) -> None:
    env = machine.environment("env", "torch", venv=True)
    machine.launcher(env, "llamafactory-cli")
    (finding,) = machine.findings(launcher_not_installed, "llamafactory-cli train sft.yaml", env / "bin")
    assert "is left over: llamafactory is not installed" in finding.message
    machine.install(env, "llamafactory")
    assert not machine.findings(launcher_not_installed, "llamafactory-cli train sft.yaml", env / "bin")


def test_an_interpreter_that_is_gone_is_a_bad_one(machine: Machine) -> None:
    env = machine.environment("env", "torch", venv=True)
    machine.launcher(env, "torchrun", str(machine.top / "old" / "bin" / "python"))
    (finding,) = machine.findings(launcher_not_installed, RUN, env / "bin")
    assert "bad interpreter" in finding.message


def test_a_file_without_permission_is_named_as_such(machine: Machine) -> None:
    env = machine.environment("env", "torch", venv=True)
    (env / "bin" / "torchrun").chmod(0o644)
    (finding,) = machine.findings(launcher_not_installed, RUN, env / "bin")
    assert "is not executable (-rw-r--r--)" in finding.message
    assert finding.fix is not None
    assert finding.fix.commands == (f"chmod +x {env}/bin/torchrun",)
    (finding,) = machine.findings(launcher_not_installed, f"{env}/bin/{RUN}", env / "bin")
    assert "is not executable (-rw-r--r--)" in finding.message


def test_uv_run_takes_the_projects_own(machine: Machine) -> None:
    project = machine.environment("work/.venv", "torch", venv=True)
    tools = machine.environment("tools")
    machine.program(tools / "bin" / "uv", "\x7fELF")
    local = machine.program(machine.top / "home" / ".local" / "bin" / "torchrun", "#!/usr/bin/python3\n")
    command = "uv run " + RUN
    assert not machine.findings(launcher_from_other_environment, command, tools / "bin", local.parent)
    (project / "bin" / "torchrun").unlink()
    (machine.work / "pyproject.toml").write_text("[project]\nname = 'x'\nversion = '0'\n")
    (finding,) = machine.findings(launcher_from_other_environment, command, tools / "bin", local.parent)
    assert str(local) in finding.message
    (machine.work / "pyproject.toml").write_text("[project]\nname = 'x'\nversion = '0'\ndependencies = ['torch']\n")
    assert not machine.findings(launcher_from_other_environment, command, tools / "bin", local.parent)
