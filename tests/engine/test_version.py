from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from mgpu_doctor.model.version import is_before, release_numbers, version_key

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
