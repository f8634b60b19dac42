"""How torch was built is read from its files, and agrees with what torch says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from environment_files import make_library, make_venv, site_of
from mgpu_doctor.collect.interpreter import read_interpreter
from mgpu_doctor.collect.packages import read_packages
from mgpu_doctor.collect.torch_build import (
    NO_TORCH,
    TorchBuild,
    architectures,
    cuda_of,
    cxx11abi,
    library_nccl,
    nccl_version,
    read_torch,
)
from mgpu_doctor.model.known import Unknown
from oracle_environments import ENVIRONMENTS, python_of, requires_oracle, run_parser

NEW_ABI = b"_ZN3c105ErrorC1ENS_14SourceLocationENSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE\0"
OLD_ABI = b"_ZN3c105ErrorC1ENS_14SourceLocationESs\0_ZNSt7__cxx1112basic_string\0"


def make_torch(
    site: Path,
    cuda: str | None = "'12.4'",
    *,
    abi: bytes = NEW_ABI,
    archs: bytes = b"\0sm_80 sm_90\0",
    needed: tuple[str, ...] = ("libnccl.so.2",),
    runpath: str | None = None,
    rpath: str | None = None,
) -> Path:
    torch = site / "torch"
    torch.mkdir(parents=True)
    (torch / "version.py").write_text(
        f"__version__ = '2.6.0'\ncuda: Optional[str] = {cuda}\nhip: Optional[str] = None\n"
    )
    make_library(torch / "lib" / "libc10.so", sections={".dynstr": abi})
    make_library(torch / "lib" / "libtorch_python.so", sections={".rodata": archs})
    make_library(torch / "lib" / "libtorch_cuda.so", needed=needed, rpath=rpath, runpath=runpath)
    return torch


def nccl(path: Path, version: str) -> Path:
    return make_library(
        path,
        soname="libnccl.so.2",
        sections={".rodata": f"\0NCCL version {version}+cuda12.4\0, NCCL version \0".encode()},
    )


def test_build_with_cuda(tmp_path: Path) -> None:
    make_torch(tmp_path, rpath="$ORIGIN/../../nvidia/nccl/lib:$ORIGIN")
    own = nccl(tmp_path / "nvidia" / "nccl" / "lib" / "libnccl.so.2", "2.21.5")
    other = nccl(tmp_path / "other" / "libnccl.so.2", "2.18.1")
    found = read_torch(
        [str(tmp_path)], ["sympy==1", "nvidia-nccl-cu12==2.21.5"], None, {"LD_LIBRARY_PATH": str(other.parent)}
    )
    assert found == TorchBuild("12.4", True, ("sm_80", "sm_90"), "2.21.5", {str(own): "2.21.5", str(other): "2.18.1"})
    assert isinstance(found.nccl_libraries, dict)
    assert [*found.nccl_libraries] == [str(own), str(other)]


def test_a_library_before_torchs_own(tmp_path: Path) -> None:
    """LD_LIBRARY_PATH comes before DT_RUNPATH, but behind DT_RPATH, which the official wheels have."""
    make_torch(tmp_path, runpath="$ORIGIN/../../nvidia/nccl/lib")
    nccl(tmp_path / "nvidia" / "nccl" / "lib" / "libnccl.so.2", "2.21.5")
    other = nccl(tmp_path / "other" / "libnccl.so.2", "2.18.1")
    found = read_torch([str(tmp_path)], [], None, {"LD_LIBRARY_PATH": str(other.parent)}).nccl_libraries
    assert isinstance(found, dict)
    assert [*found.values()] == ["2.18.1", "2.21.5"]


def test_a_version_that_only_the_name_tells(tmp_path: Path) -> None:
    make_torch(tmp_path, rpath="$ORIGIN")
    lib = tmp_path / "torch" / "lib"
    make_library(lib / "libnccl.so.2.18.3", soname="libnccl.so.2")
    (lib / "libnccl.so.2").symlink_to("libnccl.so.2.18.3")
    assert read_torch([str(tmp_path)], [], None, {}).nccl_libraries == {str(lib / "libnccl.so.2"): "2.18.3"}


def test_nccl_inside_torch(tmp_path: Path) -> None:
    """As in the wheels of 1.13: nothing is loaded, and the version stands in torch's own library."""
    make_torch(tmp_path, needed=("libtorch_cuda_cpp.so",))
    make_library(
        tmp_path / "torch" / "lib" / "libtorch_cuda_cpp.so", sections={".rodata": b"NCCL version 2.14.3+cuda11.7\0"}
    )
    found = read_torch([str(tmp_path)], [], None, {})
    assert found.torch_nccl == "2.14.3"
    assert found.nccl_libraries == {}


def test_build_without_cuda(tmp_path: Path) -> None:
    make_torch(tmp_path, "None", abi=OLD_ABI)
    assert read_torch([str(tmp_path)], [], None, {}) == TorchBuild(None, False, (), None, {})


def test_build_for_rocm(tmp_path: Path) -> None:
    torch = make_torch(tmp_path)
    (torch / "version.py").write_text("cuda: Optional[str] = None\nhip: Optional[str] = '6.2.41133'\n")
    found = read_torch([str(tmp_path)], [], None, {})
    assert found.torch_cuda is None
    for value in (found.torch_archs, found.torch_nccl, found.nccl_libraries):
        assert isinstance(value, Unknown)
        assert "ROCm" in value.reason


def test_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    assert read_torch([str(tmp_path)], [], None, {}) == TorchBuild(*[NO_TORCH] * 5)


def test_a_torch_whose_files_are_damaged(tmp_path: Path) -> None:
    torch = make_torch(tmp_path)
    for library in (torch / "lib").iterdir():
        library.write_bytes(library.read_bytes()[:80])
    found = read_torch([str(tmp_path)], [], None, {})
    assert found.torch_cuda == "12.4"
    for value in (found.torch_cxx11abi, found.torch_archs, found.torch_nccl, found.nccl_libraries):
        assert isinstance(value, Unknown)
    (torch / "version.py").write_bytes(b"\xff\x00")
    assert isinstance(read_torch([str(tmp_path)], [], None, {}).torch_cuda, Unknown)


@pytest.mark.parametrize(
    ("text", "cuda"),
    [
        ("__version__ = '2.6.0+cu124'\ncuda: Optional[str] = '12.4'\nhip: Optional[str] = None\n", "12.4"),
        ("__version__ = '2.6.0+cpu'\ncuda: Optional[str] = None\n", None),
        ("cuda = '11.7'\n", "11.7"),
        ('cuda: str | None = "13.0"\n', "13.0"),
        ("cuda = None\nhip = '6.0'\n", None),
    ],
)
def test_cuda_of_a_version_file(text: str, cuda: str | None) -> None:
    assert cuda_of(text) == cuda


def test_a_version_file_that_does_not_tell() -> None:
    assert isinstance(cuda_of("__version__ = '2.6.0'\nxcuda = '1'\n"), Unknown)
    assert isinstance(cuda_of(None), Unknown)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\0sm_50 sm_60 sm_90\0", ("sm_50", "sm_60", "sm_90")),
        (b"def from_ipc_handle(Device device, std::string ipc_hsm_70 sm_75 sm_120\0", ("sm_70", "sm_75", "sm_120")),
        (b"\0sm_90a compute_90\0", ("sm_90a", "compute_90")),
        (b"\0compute_70 sm_80\0", ("compute_70", "sm_80")),
        (b"\0sm_80 sm_90\0 needs at least sm_75 here\0", ("sm_80", "sm_90")),
        (b"\0prism_x\0sm_80\0", ("sm_80",)),
    ],
)
def test_architectures(tmp_path: Path, content: bytes, expected: tuple[str, ...]) -> None:
    make_library(tmp_path / "libtorch_python.so", sections={".rodata": content})
    assert architectures(str(tmp_path)) == expected


@pytest.mark.parametrize("content", [b"", b"\0sm_80\0sm_90\0", b"\0sm_80 sm_90"])
def test_architectures_that_are_not_told(tmp_path: Path, content: bytes) -> None:
    make_library(tmp_path / "libtorch_python.so", sections={".rodata": content})
    assert isinstance(architectures(str(tmp_path)), Unknown)


def test_abi_that_is_not_told(tmp_path: Path) -> None:
    assert isinstance(cxx11abi(str(tmp_path)), Unknown)
    make_library(tmp_path / "libc10.so", sections={".dynstr": NEW_ABI + OLD_ABI})
    assert isinstance(cxx11abi(str(tmp_path)), Unknown)


def test_nccl_that_is_not_told(tmp_path: Path) -> None:
    assert isinstance(nccl_version(str(tmp_path), ["nvidia-nccl-cu12>=2"]), Unknown)
    two = make_library(tmp_path / "x.so", sections={".rodata": b"NCCL version 2.1.5\0NCCL version 2.2.13\0"})
    assert library_nccl(str(two)) is None


@pytest.mark.oracle
@pytest.mark.parametrize("environment", [pytest.param(name, marks=requires_oracle(name)) for name in ENVIRONMENTS])
def test_torch_says_the_same_of_itself(environment: str) -> None:
    python = python_of(environment)
    assert python is not None
    interpreter = read_interpreter(str(python), {})
    required = read_packages(interpreter).package_requirements
    assert not isinstance(required, Unknown)
    found = read_torch(interpreter.sites, required["torch"], str(python), {})
    said = run_parser(
        environment,
        """
import torch
from torch.utils.cpp_extension import _find_cuda_home
result = [torch.version.cuda, torch.compiled_with_cxx11_abi(), torch.cuda.get_arch_list(),
          torch.distributed.is_nccl_available()]
""",
        None,
    )
    assert found.torch_cuda == said[0]
    assert found.torch_cxx11abi is said[1]
    assert found.torch_archs == tuple(said[2])
    assert (found.torch_nccl is not None) is said[3]


def test_torch_of_an_environment(tmp_path: Path) -> None:
    python = make_venv(tmp_path, "torch-2.6.0")
    make_torch(site_of(tmp_path))
    assert read_torch(read_interpreter(str(python), {}).sites, [], str(python), {}).torch_cuda == "12.4"
