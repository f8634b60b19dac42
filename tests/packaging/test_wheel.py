"""The wheel in a clean environment, among packages with the same names as ours, and as a pre-commit hook."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = "CUDA_VISIBLE_DEVICES=4,5,6,7 deepspeed --num_gpus 4 train.py"

pytestmark = pytest.mark.network


def without_variables(**more: str) -> dict[str, str]:
    """This process's environment without what would leak our own packages into another interpreter."""
    dropped = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    return {name: value for name, value in os.environ.items() if name not in dropped} | more


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built apart from the checkout."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, env=without_variables(), check=False)
    if done.returncode and ("Could not find a version" in done.stderr or "No matching distribution" in done.stderr):
        pytest.skip("no package index with hatchling can be reached")
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def clean_bin(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel and what it needs, nothing else."""
    top = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(top, with_pip=True)
    done = subprocess.run(
        [str(top / "bin" / "pip"), "install", "-q", str(wheel)],
        capture_output=True,
        text=True,
        env=without_variables(),
        check=False,
    )
    if done.returncode and "Could not find a version" in done.stderr:
        pytest.skip("no package index with the dependencies can be reached")
    assert done.returncode == 0, done.stderr
    return top / "bin"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder whose packages have the names of our source roots; importing one ends the program."""
    for name in ("checks", "doctor", "tests", "tools"):
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").write_text(f"raise SystemExit('{name} was imported')\n")
    (tmp_path / "train.py").write_text("import checks, doctor\n")
    return tmp_path


@pytest.mark.parametrize("verb", ["explain", "check"])
def test_it_works_among_packages_called_checks_and_doctor(clean_bin: Path, hostile: Path, verb: str) -> None:
    arguments = [verb, "--facts", "none", "--format", "json"]
    arguments += [COMMAND] if verb == "explain" else ["--cmd", COMMAND]
    done = subprocess.run(
        [str(clean_bin / "mgpu-doctor"), *arguments],
        cwd=hostile,
        env=without_variables(PYTHONPATH="."),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert "MGD201" in [finding["code"] for finding in document["findings"]]
    assert document["problems"] == []
    assert done.returncode == 1


def test_it_draws_on_a_terminal_and_lists_its_rules(clean_bin: Path, hostile: Path) -> None:
    for arguments in (["explain", "--facts", "none", "--format", "rich", COMMAND], ["rules"], ["--help"]):
        done = subprocess.run(
            [str(clean_bin / "mgpu-doctor"), *arguments],
            cwd=hostile,
            env=without_variables(PYTHONPATH="."),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        assert done.returncode in (0, 1)
        assert done.stdout


def test_the_wheel_holds_the_packages_and_their_data_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/", 1)[0].split("-", 1)[0] for name in names} == {"mgpu_doctor", "mgpu_checks"}
    assert "mgpu_doctor/py.typed" in names
    assert any(name.startswith("mgpu_doctor/knowledge/data/") for name in names)
    assert not [name for name in names if name.endswith((".pyc", ".md"))]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.usefixtures("wheel")
def test_the_hook_blocks_a_bad_script_and_passes_a_good_one(tmp_path: Path) -> None:
    pre_commit = Path(sys.executable).parent / "pre-commit"
    if not pre_commit.exists():
        pytest.skip("pre-commit is not installed")
    hooks = tmp_path / "hooks"
    # The working tree as it is, without environments and caches, as a repository of its own.
    ignored = shutil.ignore_patterns(".git", ".venv", ".oracles", ".*_cache", "__pycache__", "tests")
    shutil.copytree(ROOT, hooks, ignore=ignored)
    project = tmp_path / "project"
    project.mkdir()
    bad, good, other = project / "bad.sh", project / "good.sh", project / "other.txt"
    bad.write_text(f"#!/bin/bash\n{COMMAND}\n")
    good.write_text("#!/bin/bash\nCUDA_VISIBLE_DEVICES=4,5 torchrun --nproc-per-node 2 train.py\n")
    other.write_text(f"'''{COMMAND}'''\n")
    environment = without_variables(
        PRE_COMMIT_HOME=str(tmp_path / "cache"),
        HOME=str(tmp_path),
        **{f"GIT_{who}_{what}": "someone@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    )
    for folder in (hooks, project):
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "Start"]):
            subprocess.run(["git", *command], cwd=folder, env=environment, check=True, capture_output=True)

    def run(*files: Path) -> subprocess.CompletedProcess[str]:
        command = [str(pre_commit), "try-repo", str(hooks), "mgpu-doctor", "--files", *map(str, files)]
        return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)

    failed = run(bad, good, other)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "bad.sh:2:1: error MGD201" in failed.stdout
    assert "good.sh" not in failed.stdout
    assert "other.txt" not in failed.stdout
    passed = run(good, other)
    assert passed.returncode == 0, passed.stdout + passed.stderr
