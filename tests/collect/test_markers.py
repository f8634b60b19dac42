"""Markers mean what ``packaging`` says."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.markers import Marker

from mgpu_doctor.collect.markers import Markers, holds

VARIABLES = {
    **Markers("3.10.14").variables,
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
}

_COMPARISONS = st.one_of(
    st.tuples(
        st.sampled_from(["python_version", "python_full_version"]),
        st.sampled_from(["<", "<=", "==", "!=", ">=", ">"]),
        st.sampled_from(["3", "3.8", "3.10", "3.10.14", "3.11", "3.9.0"]),
    ),
    st.tuples(
        st.sampled_from(
            ["sys_platform", "platform_system", "platform_machine", "os_name", "extra", "implementation_name"]
        ),
        st.sampled_from(["==", "!="]),
        st.sampled_from(["linux", "Linux", "win32", "x86_64", "posix", "cpython", "dev", "Test_Extra"]),
    ),
)
_MARKERS = st.recursive(
    st.builds(
        lambda parts, quote: f"{parts[0]} {parts[1]} {quote}{parts[2]}{quote}", _COMPARISONS, st.sampled_from("'\"")
    ),
    lambda inner: st.builds(
        lambda left, word, right, closed: f"({left} {word} {right})" if closed else f"{left} {word} {right}",
        inner,
        st.sampled_from(["and", "or"]),
        inner,
        st.booleans(),
    ),
    max_leaves=6,
)


@given(_MARKERS)
def test_the_same_as_packaging(marker: str) -> None:
    assert holds(marker, VARIABLES) is Marker(marker).evaluate(dict(VARIABLES))


@pytest.mark.parametrize(
    "marker",
    [
        "python_version ~= '3.9'",
        "'linux' in sys_platform",
        "sys_platform not in 'win32 darwin'",
        "'3.9' <= python_version",
        "platform_release >= '0'",
        "python_version == '3.*'",
        "python_version in '3.9 3.10'",
    ],
)
def test_unusual_ones_are_left_to_packaging(marker: str) -> None:
    assert holds(marker, VARIABLES) is Marker(marker).evaluate(dict(VARIABLES))


@pytest.mark.parametrize("marker", ["python_version", "nonsense == '1'", "((", "python_version >= '3.8' and"])
def test_one_that_nobody_can_read_counts(marker: str) -> None:
    assert holds(marker, VARIABLES)


def test_variables_of_this_machine() -> None:
    here = Markers(".".join(map(str, sys.version_info[:3])))
    for marker in (
        f"sys_platform == '{sys.platform}'",
        "os_name == 'posix' and extra != 'x'",
        "python_version >= '3.10'",
    ):
        assert here.hold(marker)
        assert here.hold(marker)
    assert not here.hold("extra == 'x'")
