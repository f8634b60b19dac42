from __future__ import annotations

from collections.abc import Iterator

import pytest

from mgpu_doctor.authoring import Case, Check, Example, Finding, Reference, Rule, Severity, Unknown, report
from mgpu_doctor.examine import examine
from mgpu_doctor.model.finding import OutcomeKind
from stand_ins import empty_case, launches_of


def rule(code: str = "ABC001") -> Rule:
    return Rule(
        code=code,
        slug=f"slug-{code.lower()}",
        title="t",
        severity=Severity.WARNING,
        summary="s",
        why="w",
        bad=(Example("bad", command="x"),),
        good=(Example("good", command="y"),),
        sources=(Reference("nowhere 1.0", "nothing"),),
    )


def test_ok_findings_skipped_and_crashed_are_kept_apart() -> None:
    def silent(case: Case) -> Iterator[Finding]:
        return iter(())

    def fires(case: Case) -> Iterator[Finding]:
        yield report(rule("ABC002"), "wrong")

    def lacks(case: Case) -> Iterator[Finding]:
        case.require(Unknown("nobody knows"))
        yield report(rule("ABC003"), "never")

    def crashes(case: Case) -> Iterator[Finding]:
        yield report(rule("ABC004"), "before the crash")
        raise ValueError("boom")

    found = (silent, fires, lacks, crashes)
    checks = [Check(rule(f"ABC00{n}"), find) for n, find in enumerate(found, start=1)]
    outcomes = examine(empty_case(), checks)
    assert [outcome.kind for outcome in outcomes] == [
        OutcomeKind.OK,
        OutcomeKind.FINDINGS,
        OutcomeKind.SKIPPED,
        OutcomeKind.CRASHED,
    ]
    assert outcomes[2].reason == "nobody knows"
    assert outcomes[3].reason is not None
    assert "ValueError: boom" in outcomes[3].reason
    assert "test_examine.py" in outcomes[3].reason
    assert outcomes[3].findings == (report(rule("ABC004"), "before the crash"),)


def test_a_skip_for_one_launch_leaves_the_others_judged() -> None:
    def picky(case: Case) -> Iterator[Finding]:
        for launch in case.launches:
            if launch.command.name == "second":
                case.require(Unknown("second cannot be told"))
            yield report(rule(), f"{launch.command.name} is wrong", launch.command.locate(launch.command.span))

    case = launches_of("first", "second", "third")
    (outcome,) = examine(case, [Check(rule(), picky)])
    assert outcome.kind is OutcomeKind.FINDINGS
    assert [finding.message for finding in outcome.findings] == ["first is wrong", "third is wrong"]
    assert outcome.reason == "second cannot be told"


@pytest.mark.parametrize("bad", ["not a finding", report(rule("XYZ009"), "someone else's code")])
def test_what_is_no_finding_of_the_rule_counts_as_a_crash(bad: object) -> None:
    (outcome,) = examine(empty_case(), [Check(rule(), lambda case: [bad])])  # type: ignore[list-item]
    assert outcome.kind is OutcomeKind.CRASHED


def test_an_interrupt_is_not_swallowed() -> None:
    def interrupted(case: Case) -> Iterator[Finding]:
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        examine(empty_case(), [Check(rule(), interrupted)])
