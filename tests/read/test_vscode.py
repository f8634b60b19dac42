"""Launches in an editor's configuration, and which files a directory's search finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgpu_doctor.cli.lint import expanded
from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.report import Report
from mgpu_doctor.read.text import kind_of

TEXT = """\
{
  // Use IntelliSense to learn about "attributes".
  "version": "0.2.0",
  "configurations": [
    {
      "name": "two // GPUs", "type": "debugpy", "request": "launch",
      "module": "torch.distributed.run",
      "args": ["--nproc_per_node", "2", /* a port */ "--master_port", "70000", "a.py", "--note", "a \\"b\\"",],
      "env": {"CUDA_VISIBLE_DEVICES": "0,1", "B": "${env:HOME}"},
      "cwd": "${workspaceFolder}/src",
    },
    {"type": "python", "request": "launch", "program": "${env:P}/bin/torchrun", "args": "--standalone b.py"},
    {"type": "python", "request": "launch", "program": "c.py"},
    {"type": "python", "request": "attach", "module": "torch.distributed.run", "args": ["d.py"]},
    {"type": "node", "program": "torchrun"},
  ],
}
"""


def _lint(text: str) -> Report:
    return diagnose(Request(mode="lint", text=text, text_name=".vscode/launch.json", text_kind="vscode"))


def test_configurations_that_launch() -> None:
    one, two = (launch.command for launch in _lint(TEXT).case.launches)
    assert [word.value for word in one.words] == [
        "python", "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "70000", "a.py", "--note",
        'a "b"',
    ]  # fmt: skip
    assert [(variable.name, variable.text) for variable in one.environment] == [
        ("CUDA_VISIBLE_DEVICES", "0,1"),
        ("B", None),
    ]
    assert one.directory == "src"
    assert [word.written for word in two.words] == ["${env:P}/bin/torchrun", "--standalone", "b.py"]


def test_the_place_and_the_fix() -> None:
    (finding,) = _lint(TEXT).findings
    assert str(finding.location) == ".vscode/launch.json:8:55"
    assert finding.fix is not None
    (edit,) = finding.fix.edits
    assert TEXT[: edit.span.start] + edit.replacement + TEXT[edit.span.end :] == TEXT.replace("70000", "29501")


def test_a_directory_that_only_the_editor_knows() -> None:
    entry = {"type": "python", "module": "torch.distributed.run", "args": ["a.py"], "cwd": "${fileDirname}"}
    (launch,) = _lint(json.dumps({"configurations": [entry]})).case.launches
    assert isinstance(launch.command.directory, Unknown)


@pytest.mark.parametrize(
    "text",
    ['{"configurations": [{"module": "torchrun"', "torchrun", "[torchrun]", '{"configurations": 1, "x": "torchrun"}'],
)
def test_damage_is_survived(text: str) -> None:
    assert _lint(text).case.launches == ()


def test_a_directory_is_searched_for_all_kinds(tmp_path: Path) -> None:
    names = [
        "a.ipynb",
        "b.py",
        ".vscode/launch.json",
        "launch.json",
        ".vscode/settings.json",
        ".ipynb_checkpoints/a.ipynb",
    ]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    assert [Path(path).relative_to(tmp_path).as_posix() for path in expanded([str(tmp_path)])] == [
        "a.ipynb",
        "b.py",
        ".vscode/launch.json",
    ]
    assert kind_of("launch.json") is None


def test_files_of_python_that_no_utf8_is(tmp_path: Path) -> None:
    contents = {
        "empty.py": b"",
        "latin.py": b"# -*- coding: latin-1 -*-\n# \xe9\nos.system('torchrun a.py')\n",
        "binary.py": b"torchrun\0",
        "two.py": b"print 'torchrun a.py'\n",
        "good.py": b"os.system('torchrun a.py')\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    report = diagnose(Request(mode="lint", files=tuple(sorted(contents)), directory=str(tmp_path)))
    assert report.problems == ()
    assert [launch.command.source.name for launch in report.case.launches] == ["good.py"]


def test_a_damaged_notebook_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").write_text('{"cells": [\n{"source": "!torchrun a.py}]}')
    report = diagnose(Request(mode="lint", files=("a.ipynb",), directory=str(tmp_path)))
    assert [(problem.subject, problem.message) for problem in report.problems] == [
        ("a.ipynb", "a.ipynb:2:12: not a whole notebook: this string does not end")
    ]
