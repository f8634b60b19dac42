"""Every rule's own examples: the bad fire, the good are silent, the fixes silence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mgpu_checks
from mgpu_checks import CHECKS
from mgpu_doctor.authoring import AnyCheck, DeferredCheck
from mgpu_doctor.testing import check_examples


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.rule.code}-{check.rule.slug}")
def test_examples(check: AnyCheck) -> None:
    check_examples(check)


def test_every_rule_file_is_listed_and_named_after_its_slug() -> None:
    top = Path(mgpu_checks.__file__).parent
    files = {path.stem for path in top.rglob("*.py") if "\nRULE = " in path.read_text(encoding="utf-8")}
    assert files == {check.rule.slug.replace("-", "_") for check in CHECKS}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.code)
def test_the_table_says_what_the_rule_says(check: DeferredCheck) -> None:
    assert (check.code, check.slug) == (check.rule.code, check.rule.slug)
    looks_at_case = any((check.wants.command, check.wants.machine, check.wants.names, check.wants.text))
    assert ("case" in check.rule.seen) == looks_at_case
    assert check.rule.seen != ("run",) or check.wants.run
    assert ("log" in check.rule.seen) == check.wants.log


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.rule.code)
def test_every_rule_says_what_a_reader_needs(check: AnyCheck) -> None:
    rule = check.rule
    assert re.fullmatch(r"MGD\d{3}", rule.code)
    assert rule.summary
    assert len(rule.why) > 40
    assert all(re.search(r"\d", source.where) for source in rule.sources), "a source names a release"
