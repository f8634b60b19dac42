from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from mgpu_doctor.model.facts import NO_FACTS, ModelInfo, PathInfo
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.program import Program
from mgpu_doctor.model.source import Source
from mgpu_doctor.read.workspace import LARGEST, LocalWorkspace

HERE = replace(NO_FACTS, origin="this machine")
OTHER = replace(
    NO_FACTS,
    origin="host.json",
    paths={
        "/data/run.py": PathInfo("-rw-r--r--"),
        "/data/out": PathInfo("drwxr-xr-x"),
        "/gone": PathInfo(kind="missing"),
    },
    models={"/models/base": ModelInfo()},
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").write_text("import torch\n")
    (tmp_path / "acc.yaml").write_text("num_processes: 2\n")
    (tmp_path / "empty.py").write_text("")
    return tmp_path


def test_about_this_machine_everything_is_looked_at(root: Path) -> None:
    workspace = LocalWorkspace(str(root), HERE)
    assert workspace.kind("src/train.py") == "file"
    assert workspace.kind("src") == "directory"
    assert workspace.kind("src/trian.py") == "missing"
    assert workspace.kind("src/train.py/x") == "missing"
    assert workspace.kind(str(root / "src" / "train.py")) == "file"
    assert workspace.kind("/no/such/path") == "missing"
    assert workspace.kind("train.py", "src") == "file"
    assert workspace.kind("train.py", str(root / "src")) == "file"
    assert workspace.names("src") == ("train.py",)


def test_home_is_followed_on_this_machine_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root))
    assert LocalWorkspace("/", HERE).kind("~/acc.yaml") == "file"
    assert isinstance(LocalWorkspace("/", OTHER).kind("~/acc.yaml"), Unknown)


def test_another_machine_knows_only_what_its_facts_tell(root: Path) -> None:
    workspace = LocalWorkspace(str(root), OTHER)
    assert workspace.kind("src/train.py") == "file"
    assert workspace.kind("src/trian.py") == "missing"
    assert workspace.kind("/data/run.py") == "file"
    assert workspace.kind("/data/out/") == "directory"
    assert workspace.kind("/models/base") == "directory"
    assert workspace.kind("/gone") == "missing"
    assert isinstance(workspace.kind(str(root / "acc.yaml")), Unknown)
    assert isinstance(workspace.read(str(root / "acc.yaml"), "config"), Unknown)
    assert isinstance(workspace.program("/data/run.py"), Unknown)
    assert isinstance(workspace.config("/x/acc.yaml", "accelerate").exists, Unknown)
    assert workspace.config("/data/run.py", "accelerate").exists is True


def test_no_machine_reads_the_working_directory(root: Path) -> None:
    workspace = LocalWorkspace(str(root), NO_FACTS)
    assert workspace.kind("nothing.py") == "missing"
    assert isinstance(workspace.kind(str(root)), Unknown)
    assert workspace.config("acc.yaml", "accelerate").get("num_processes") == 2
    missing = workspace.config("acd.yaml", "accelerate")
    assert (missing.exists, missing.problem) == (False, "there is no file acd.yaml")


def test_lint_judges_only_the_text(root: Path) -> None:
    workspace = LocalWorkspace(str(root), NO_FACTS, judge_only_text=True)
    assert isinstance(workspace.kind("src/train.py"), Unknown)
    assert isinstance(workspace.kind("nothing.py"), Unknown)
    assert isinstance(workspace.names("."), Unknown)
    assert isinstance(workspace.program("src/train.py"), Program)
    assert workspace.config("acc.yaml", "accelerate").problem is None
    assert isinstance(workspace.config("acd.yaml", "accelerate").exists, Unknown)
    assert workspace.kind("train.py", "src") == "file"
    assert workspace.kind("trian.py", "src") == "missing"
    assert isinstance(workspace.kind("train.py", "elsewhere"), Unknown)
    assert isinstance(workspace.kind("zero.json", "src"), Unknown)
    assert isinstance(workspace.kind("trian.py", ".."), Unknown)
    assert isinstance(workspace.config("zero.json", "deepspeed", "src").exists, Unknown)


def test_an_unknown_directory_makes_relative_paths_unknown(root: Path) -> None:
    workspace = LocalWorkspace(str(root), HERE)
    reason = Unknown("cd $DIR")
    assert workspace.kind("src/train.py", reason) is reason
    assert workspace.kind(str(root / "acc.yaml"), reason) == "file"
    assert isinstance(workspace.kind("train.py", "no-such-directory"), Unknown)


def test_sources_carry_the_name_as_given_and_the_text_as_it_is(root: Path) -> None:
    (root / "a.sh").write_bytes(b"\xef\xbb\xbfecho 1\r\n")
    source = LocalWorkspace(str(root), HERE).read("a.sh", "shell")
    assert isinstance(source, Source)
    assert (source.name, source.kind, source.text) == ("a.sh", "shell", "\ufeffecho 1\r\n")
    assert source.path == str(root / "a.sh")


def test_an_empty_program_is_a_program(root: Path) -> None:
    assert isinstance(LocalWorkspace(str(root), HERE).program("empty.py"), Program)


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("bin.py", b"a\0b", "binary"),
        ("latin.py", b"# ok\n# \xe9\n", "latin.py:2 is not UTF-8"),
        ("big.py", b"#" * (LARGEST + 1), "larger"),
    ],
)
def test_unreadable_files_say_why(root: Path, name: str, data: bytes, part: str) -> None:
    (root / name).write_bytes(data)
    found = LocalWorkspace(str(root), HERE).read(name, "python")
    assert isinstance(found, Unknown)
    assert part in found.reason


def test_special_files_are_never_opened(root: Path) -> None:
    os.mkfifo(root / "pipe.yaml")
    (root / "loop.py").symlink_to(root / "loop.py")
    workspace = LocalWorkspace(str(root), HERE)
    assert "not a regular file" in str(workspace.config("pipe.yaml", "accelerate").problem)
    assert isinstance(workspace.read("loop.py", "python"), Unknown)
    assert isinstance(workspace.kind("loop.py"), Unknown)
    assert isinstance(workspace.read("src", "python"), Unknown)
    assert isinstance(workspace.names("acc.yaml"), Unknown)


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 5000])
def test_paths_that_are_none(root: Path, path: str) -> None:
    workspace = LocalWorkspace(str(root), HERE)
    assert isinstance(workspace.kind(path), Unknown)
    assert isinstance(workspace.read(path, "python"), Unknown)
    assert workspace.config(path, "accelerate").problem is not None
