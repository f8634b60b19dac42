"""The CUDA toolkit is found where torch finds it, and its version read without running it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from environment_files import executable
from mgpu_doctor.collect.toolkit import cuda_home, nvcc_version
from mgpu_doctor.model.known import Unknown
from oracle_environments import requires_oracle, run_parser


def toolkit(top: Path, **files: str) -> Path:
    executable(top / "bin" / "nvcc")
    for name, text in files.items():
        path = top / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return top


def test_where_torch_looks(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    first, second = toolkit(tmp_path / "first"), toolkit(tmp_path / "second")
    path = {"PATH": str(second / "bin")}
    assert cuda_home({"CUDA_HOME": str(first), "CUDA_PATH": "/x", **path}, nowhere) == str(first)
    assert cuda_home({"CUDA_HOME": "", "CUDA_PATH": "/x", **path}, nowhere) == "/x"
    assert cuda_home({"CUDA_HOME": "/gone", **path}, nowhere) == "/gone"
    assert cuda_home({"CUDA_HOME": "", **path}, nowhere) == str(second)
    assert cuda_home({"CUDA_PATH": "", **path}, nowhere) is None
    assert cuda_home({"PATH": nowhere}, str(first)) == str(first)
    assert cuda_home({"PATH": nowhere}, nowhere) is None


@pytest.mark.parametrize(
    ("files", "version"),
    [
        (
            {"version_dot_json": json.dumps({"cuda": {"version": "12.4.1"}, "cuda_nvcc": {"version": "12.4.131"}})},
            "12.4",
        ),
        ({"version_dot_json": json.dumps({"cuda": {"version": "11.8.20220929"}})}, "11.8"),
        ({"version_dot_txt": "CUDA Version 10.2.89\n"}, "10.2"),
        ({"conda-meta__cuda-nvcc-12.1.105-0.json": "{}"}, "12.1"),
        (
            {"conda-meta__cuda-nvcc-tools-12.6.85-he02047a_0.json": "", "conda-meta__cuda-nvcc-12.6.85-hc_0.json": ""},
            "12.6",
        ),
        ({"include__cuda.h": "/* */\n#define CUDA_VERSION 13000\n#define __CUDA_API_VERSION 0x3020\n"}, "13.0"),
        ({"version_dot_json": "{", "include__cuda.h": "#define CUDA_VERSION 12080\n"}, "12.8"),
        ({"version_dot_json": "[1]", "version_dot_txt": "CUDA Version 10.1.243\n"}, "10.1"),
    ],
)
def test_version(tmp_path: Path, files: dict[str, str], version: str) -> None:
    assert nvcc_version(str(toolkit(tmp_path / "cuda", **files))) == version


def test_no_compiler(tmp_path: Path) -> None:
    assert nvcc_version(None) is None
    assert nvcc_version("") is None
    (tmp_path / "version.txt").write_text("CUDA Version 10.2.89\n")
    assert nvcc_version(str(tmp_path)) is None


def test_a_compiler_whose_version_nothing_tells(tmp_path: Path) -> None:
    assert isinstance(nvcc_version(str(toolkit(tmp_path))), Unknown)


def test_a_compiler_behind_a_link_or_a_script(tmp_path: Path) -> None:
    real = toolkit(tmp_path / "cuda-12.8", version_dot_json=json.dumps({"cuda_nvcc": {"version": "12.8.93"}}))
    executable(tmp_path / "usr" / "bin" / "nvcc", f'#!/bin/sh\nexec {real}/bin/nvcc "$@"\n')
    (tmp_path / "linked" / "bin").mkdir(parents=True)
    (tmp_path / "linked" / "bin" / "nvcc").symlink_to(real / "bin" / "nvcc")
    assert nvcc_version(str(tmp_path / "usr")) == "12.8"
    assert nvcc_version(str(tmp_path / "linked")) == "12.8"


@pytest.mark.oracle
@requires_oracle("new")
def test_torch_finds_the_same_toolkit(tmp_path: Path) -> None:
    first, second = toolkit(tmp_path / "first"), toolkit(tmp_path / "second")
    cases: list[dict[str, str]] = [
        {"CUDA_HOME": str(first), "PATH": str(second / "bin")},
        {"CUDA_PATH": str(first), "PATH": str(second / "bin")},
        {"CUDA_HOME": "", "PATH": str(second / "bin")},
        {"CUDA_HOME": "", "CUDA_PATH": "", "PATH": str(second / "bin")},
        {"CUDA_HOME": "/gone", "PATH": ""},
        {"PATH": str(second / "bin")},
        {"PATH": str(tmp_path)},
    ]
    said = run_parser(
        "new",
        """
import os
from torch.utils.cpp_extension import _find_cuda_home
result = []
for case in payload:
    for name in ("CUDA_HOME", "CUDA_PATH", "PATH"):
        os.environ.pop(name, None)
    os.environ.update(case)
    result.append(_find_cuda_home() or None)
""",
        cases,
    )
    assert [cuda_home(case) for case in cases] == said
