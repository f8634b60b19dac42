"""What the output of a probed job says about why it does not work: the rules' signatures, searched for in its lines."""

from __future__ import annotations

import io
from collections.abc import Iterator

from mgpu_doctor.logs import known_causes, read_log
from mgpu_doctor.logs.findings import findings_of
from mgpu_doctor.model.finding import Outcome, OutcomeKind
from mgpu_doctor.model.observation import Observation
from mgpu_doctor.model.record import replace
from mgpu_doctor.model.rule import AnyCheck

OUTPUT = "the probe's output"

_SEEN_OTHERWISE = frozenset({"MGD313", "MGD901", "MGD902", "MGD904", "MGD905", "MGD909", "MGD911", "MGD912"})
"""What a probe measures itself, and what ranks print that only wait for another."""


def with_causes(
    observation: Observation, checks: tuple[AnyCheck, ...], outcomes: tuple[Outcome, ...]
) -> tuple[Outcome, ...]:
    """The outcomes, with a finding for each cause that a line gives away and that was not found otherwise.

    Lines that fit several causes do not count.
    """
    text = "\n".join(_lines(observation))
    reading = read_log(OUTPUT, io.BytesIO(text.encode("utf-8", "replace")), known_causes(checks))
    sure = replace(reading, hits=tuple(hit for hit in reading.hits if not hit.weak and hit.code not in _SEEN_OTHERWISE))
    found = {finding.code: finding for finding in findings_of(sure, {check.rule.code: check.rule for check in checks})}
    return tuple(
        replace(outcome, kind=OutcomeKind.FINDINGS, findings=(found[outcome.code],), reason=None)
        if outcome.code in found and outcome.kind in (OutcomeKind.OK, OutcomeKind.SKIPPED)
        else outcome
        for outcome in outcomes
    )


def _lines(observation: Observation) -> Iterator[str]:
    """Everything that launcher and workers said, once."""
    errors = (rank.error for rank in observation.ranks)
    said = (*observation.output, observation.launcher_error, *errors)
    yield from dict.fromkeys(line for text in said if text for line in text.splitlines())
