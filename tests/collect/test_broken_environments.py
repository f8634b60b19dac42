"""Environments broken in every way that comes to mind are still read: nothing raises, nothing waits."""

from __future__ import annotations

import os
import random
import shutil
import sys
from pathlib import Path

import pytest

from environment_files import make_library, make_venv, site_of
from mgpu_doctor.collect.interpreter import find_interpreter, named_interpreter, read_interpreter
from mgpu_doctor.collect.machine import this_machine
from mgpu_doctor.collect.packages import read_packages
from mgpu_doctor.collect.torch_build import read_torch
from mgpu_doctor.errors import InputError
from mgpu_doctor.model.known import Unknown

PARTS = ("METADATA", "RECORD", "WHEEL", "direct_url.json")


def whole(top: Path) -> Path:
    python = make_venv(top, "torch-2.6.0", "peft-0.15.2", "flash_attn-2.7.4")
    site = site_of(top)
    (site / "torch").mkdir()
    (site / "torch" / "version.py").write_text("cuda: Optional[str] = '12.4'\n")
    for name in ("libc10.so", "libtorch_python.so", "libtorch_cuda.so"):
        make_library(
            site / "torch" / "lib" / name, needed=("libnccl.so.2",), rpath="$ORIGIN", sections={".rodata": b"x"}
        )
    (site / "more.pth").write_text("more\n")
    for folder in site.glob("*.dist-info"):
        for name in PARTS[1:]:
            (folder / name).write_text("{}")
    return python


def damage(path: Path, others: list[Path], choice: random.Random) -> None:
    """Something else in the place of a file: other bytes, nothing, a directory, a link anywhere, a pipe."""
    kind = choice.randrange(6)
    if kind == 0 and path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
        return
    if not path.is_file():
        return
    content = bytearray(path.read_bytes())
    path.unlink()
    if kind == 1:
        path.write_bytes(choice.randbytes(choice.randrange(300)))
    elif kind == 2:
        path.mkdir()
    elif kind == 3:
        path.symlink_to(choice.choice(others))
    elif kind == 4:
        os.mkfifo(path)
    elif kind == 5 and content:
        content[choice.randrange(len(content))] = choice.randrange(256)
        path.write_bytes(bytes(content))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("seed", range(60))
def test_anything_broken(tmp_path: Path, seed: int) -> None:
    choice = random.Random(seed)
    python = whole(tmp_path / "v")
    files = sorted((tmp_path / "v").rglob("*"))
    for _ in range(4):
        damage(choice.choice(files), files, choice)
    variables = {"HOME": str(tmp_path), "LD_LIBRARY_PATH": str(site_of(tmp_path / "v") / "torch" / "lib")}
    interpreter = find_interpreter(str(python), {"torchrun": str(python)}, variables)
    packages = read_packages(interpreter).packages
    assert isinstance(packages, (dict, Unknown))
    assert isinstance(
        read_torch((*interpreter.sites, *interpreter.added), (), str(python), variables).torch_cuda,
        (str, Unknown, type(None)),
    )
    assert isinstance(named_interpreter(str(tmp_path / "v")), (str, Unknown))


def test_pipes_in_the_place_of_files(tmp_path: Path) -> None:
    python = whole(tmp_path)
    folder = site_of(tmp_path) / "torch-2.6.0.dist-info"
    for path in (*(folder / name for name in PARTS), site_of(tmp_path) / "more.pth"):
        path.unlink()
        os.mkfifo(path)
    found = read_packages(read_interpreter(str(python), {}))
    assert isinstance(found.packages, dict)
    assert found.packages["torch"] == "2.6.0"


def test_a_machine_without_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("HOME", raising=False)
    facts = this_machine(frozenset({"packages"}))
    assert facts.packages == Unknown("no python is on PATH")
    assert facts.site_packages == ()
    assert not isinstance(facts.which, Unknown)
    assert facts.which["torchrun"] is None


def test_an_interpreter_that_is_asked_for_and_not_there(tmp_path: Path) -> None:
    for needs in (frozenset({"packages"}), frozenset({"environment"})):
        with pytest.raises(InputError, match="does not exist"):
            this_machine(needs, python=str(tmp_path / "gone" / "python"))


def test_this_interpreter_is_read_like_any_other() -> None:
    facts = this_machine(frozenset({"packages"}), python=sys.executable)
    assert facts.python.version == ".".join(map(str, sys.version_info[:3]))
    assert not isinstance(facts.packages, Unknown)
    assert "pytest" in facts.packages
