from __future__ import annotations

import re

import pytest

from mgpu_doctor.model.pattern import pattern


def test_it_has_the_methods_and_attributes_of_a_compiled_one() -> None:
    words = pattern(r"(?P<word>[a-z]+)", re.IGNORECASE)
    for _ in range(2):
        match = words.match("Abc 1")
        assert match is not None
        assert match["word"] == "Abc"
    assert words.sub("-", "a1b") == "-1-"
    assert [found[0] for found in words.finditer("a b")] == ["a", "b"]
    assert words.groupindex == {"word": 1}
    assert words.pattern == r"(?P<word>[a-z]+)"


def test_a_wrong_pattern_is_refused_when_it_is_used() -> None:
    wrong = pattern("(")
    with pytest.raises(re.error):
        wrong.match("x")
