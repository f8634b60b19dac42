"""Every rule's signatures can be met: their lines hold a telling word, and a log of one such line names the rule."""

from __future__ import annotations

import io

import pytest

from mgpu_doctor.logs import known_causes, read_log, telling_words
from mgpu_doctor.logs.findings import findings_of
from mgpu_doctor.logs.scan import shape_of
from mgpu_doctor.model.rule import Check, Signature
from mgpu_doctor.registry import load_checks

CHECKS = load_checks().checks
CASES = [(check, one) for check in CHECKS for one in check.rule.signatures]
KNOWN = known_causes(CHECKS)
IDS = [f"{check.rule.code}-{number}" for number, (check, _) in enumerate(CASES)]


@pytest.mark.parametrize(("check", "signature"), CASES, ids=IDS)
def test_the_line_is_looked_at(check: Check, signature: Signature) -> None:
    words = telling_words(known_causes([check]))
    assert any(word in shape_of(signature.line.encode()) for word in words), f"{check.rule.code}: no telling word"


@pytest.mark.parametrize(("check", "signature"), CASES, ids=IDS)
def test_the_line_alone_names_the_rule(check: Check, signature: Signature) -> None:
    reading = read_log("run.log", io.BytesIO(signature.line.encode() + b"\n"), KNOWN)
    found = findings_of(reading, {one.rule.code: one.rule for one in CHECKS})
    assert [finding.code for finding in found] == [check.rule.code]


@pytest.mark.parametrize("prefix", ["[rank3]: ", "\x1b[31m", "[default3]:", "2026-01-01T00:00:00.000Z "])
def test_prefixes_hide_no_line(prefix: str) -> None:
    known = KNOWN
    missed = []
    for check, signature in CASES:
        reading = read_log("run.log", io.BytesIO((prefix + signature.line + "\n").encode()), known)
        if check.rule.code not in {hit.code for hit in reading.hits}:
            missed.append((check.rule.code, signature.line))
    assert not missed
