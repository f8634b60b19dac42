from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement as Line
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from mgpu_doctor.model.version import (
    Requirement,
    is_before,
    read_requirement,
    release_numbers,
    satisfies,
    version_key,
)

NUMBERS = st.lists(st.integers(0, 30), min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts)))
ENDINGS = st.sampled_from(["", "a0", "rc1", "rc11", ".dev1", ".post2", "b2.dev3"])
VERSIONS = st.builds(
    lambda numbers, ending, local: numbers + ending + local, NUMBERS, ENDINGS, st.sampled_from(["", "+cu124"])
)


@given(VERSIONS, VERSIONS)
def test_the_order_is_that_of_pep_440(one: str, other: str) -> None:
    real = Version(Version(one).public), Version(Version(other).public)
    assert (version_key(one) < version_key(other)) == (real[0] < real[1])
    assert (version_key(one) == version_key(other)) == (real[0] == real[1])


@given(VERSIONS)
def test_numbers(text: str) -> None:
    assert release_numbers(text) == Version(text).release


@pytest.mark.parametrize(
    ("text", "wanted", "before"),
    [
        ("2.1.0a0+b5021ba", (2, 1), True),
        ("2.1.0", (2, 1), False),
        ("2.1", (2, 1, 0), False),
        ("2.0.1+cu118", (2, 1), True),
        ("1.0.post1", (1, 0), False),
        ("unknown", (1,), None),
        (None, (1,), None),
    ],
)
def test_before(text: str | None, wanted: tuple[int, ...], before: bool | None) -> None:
    assert is_before(text, *wanted) is before


OPERATORS = st.sampled_from(["==", "!=", "<=", ">=", "<", ">", "~="])
CLAUSES = st.builds(lambda operator, version: operator + version, OPERATORS, NUMBERS).filter(
    lambda clause: not (clause.startswith("~=") and "." not in clause)
)
FAMILIES = st.builds(lambda operator, version: f"{operator}{version}.*", st.sampled_from(["==", "!="]), NUMBERS)
SETS = st.lists(CLAUSES | FAMILIES, max_size=3).map(",".join)


@given(st.builds(str.__add__, NUMBERS, st.sampled_from(["", "+cu124"])), SETS)
def test_specifiers_are_those_of_pep_440(version: str, specifiers: str) -> None:
    assert satisfies(version, specifiers) is SpecifierSet(specifiers).contains(Version(version).public)


@pytest.mark.parametrize(
    ("version", "specifiers", "answer"),
    [
        ("2.1.0a0+b5021ba", ">=2.1.0", False),
        ("2.1.0a0+b5021ba", ">=2.1.0.a0+32f93b1", True),
        ("1.7.0", ">=0.34.0, <=1.7.0", True),
        ("4.46.2", ">=4.45.0,!=4.46.2", False),
        ("4.0.0rc1", "<4.0.0", True),
        ("unknown", ">=1.0", None),
        ("1.0", ">=nonsense", None),
        ("1.0", "nonsense", None),
        ("1.0", ">=2.0,nonsense", False),
        ("1.0", "", True),
    ],
)
def test_satisfies(version: str, specifiers: str, answer: bool | None) -> None:
    assert satisfies(version, specifiers) is answer


@pytest.mark.parametrize(
    "text",
    [
        "torch",
        "torch>=2.0.0",
        "huggingface_hub[hf_xet]>=0.21.0",
        "torch (==2.0.1)",
        'numpy<3.0.0,>=1.17; python_version < "3.12"',
        'ruff ; extra == "dev"',
        "zope.interface ~= 5.0",
    ],
)
def test_requirements_are_read_as_pip_does(text: str) -> None:
    real = Line(text)
    read = read_requirement(text)
    assert read is not None
    assert read.name == real.name.replace("_", "-").replace(".", "-")
    assert SpecifierSet(read.specifiers) == real.specifier
    assert (read.marker is None) == (real.marker is None)


def test_a_direct_reference_is_no_requirement_on_a_version() -> None:
    assert read_requirement("pkg @ https://example.org/pkg-1.0.whl") is None
    assert read_requirement("") is None
    assert read_requirement("Torch_Vision==1.0") == Requirement("torch-vision", "==1.0", None)
