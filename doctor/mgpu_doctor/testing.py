"""Runs a rule's own examples: for the built-in rules, and for anybody's who writes one.

::

    from mgpu_doctor.testing import check_examples
    def test_examples() -> None:
        check_examples(CHECK)
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from mgpu_doctor.collect.observation_file import observation_from
from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.mend import apply_edits
from mgpu_doctor.model.finding import Edit, Finding, OutcomeKind
from mgpu_doctor.model.report import Report
from mgpu_doctor.model.rule import AnyCheck, Example
from mgpu_doctor.registry import Registry


def standard_facts() -> dict[str, object]:
    """The host that examples run on: eight A100s, known versions, nothing in use, in the plain facts form."""
    gpus = [
        {
            "index": index,
            "name": "NVIDIA A100-SXM4-80GB",
            "memory_gib": 80,
            "uuid": f"GPU-0000000{index}-1111-2222-3333-444444444444",
            "compute_capability": "8.0",
        }
        for index in range(8)
    ]
    return {
        "gpus": gpus,
        "driver": "550.54.15",
        "platform": "Linux-5.15.0-x86_64-with-glibc2.35",
        "packages": {
            "torch": "2.6.0+cu124",
            "accelerate": "1.7.0",
            "deepspeed": "0.16.9",
            "transformers": "4.52.4",
            "llamafactory": "0.9.3",
            "huggingface-hub": "0.33.0",
            "peft": "0.15.2",
            "datasets": "3.6.0",
        },
        "torch_cuda": "12.4",
        "env": {},
        "ports_in_use": {},
        "gpu_processes": [],
        "interfaces": {"lo": "127.0.0.1", "eth0": "10.0.0.5"},
        "accelerate_default_config": None,
    }


def run_example(check: AnyCheck, example: Example) -> Report:
    """Diagnose one example with one check alone."""
    if example.log is not None:
        return _run_log(check, example.log)
    with tempfile.TemporaryDirectory(prefix="mgpu-doctor-example-") as top:
        return _run(check, example, Path(top), dict(example.files), example.command)


def _run_log(check: AnyCheck, text: str) -> Report:
    from mgpu_doctor.diagnose_logs import diagnose_logs
    from mgpu_doctor.settings import Settings

    with tempfile.TemporaryDirectory(prefix="mgpu-doctor-example-") as top:
        log = Path(top) / "run.log"
        log.write_text(text, encoding="utf-8")
        return diagnose_logs((str(log),), Registry((check,), ()), Settings())


def _run(check: AnyCheck, example: Example, top: Path, files: Mapping[str, str], command: str | None) -> Report:
    work = top / "work"
    for name, text in files.items():
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    work.mkdir(exist_ok=True)
    facts = "none"
    if example.facts is not None:
        facts = str(top / "facts.json")
        Path(facts).write_text(json.dumps({**standard_facts(), **example.facts}), encoding="utf-8")
    request = Request(
        mode="lint" if example.lint else "check",
        command=command,
        files=example.lint,
        facts=None if example.lint else facts,
        directory=str(work),
        observation=None if example.observation is None else observation_from(example.observation, example.title),
    )
    return diagnose(request, Registry((check,), ()))


def check_examples(check: AnyCheck) -> None:
    """Assert that every bad example fires, every good one is silent, and every fix with edits silences.

    Raises:
        AssertionError: names the rule, the example and what was seen.
    """
    rule = check.rule
    assert rule.bad, f"{rule.code} has no example that fires"
    assert rule.good, f"{rule.code} has no near miss"
    assert rule.sources, f"{rule.code} names no source"
    for example in rule.bad:
        report = run_example(check, example)
        _assert_ran(check, example, report)
        assert report.findings, f"{rule.code}: bad example {example.title!r} is not found ({_why(report)})"
        _assert_places(report)
        # Whether a fix helps against what was seen in a run, only another run can tell.
        if rule.fixable and example.observation is None:
            _assert_fix_silences(check, example, report.findings)
    for example in rule.good:
        report = run_example(check, example)
        _assert_ran(check, example, report)
        assert not report.findings, f"{rule.code}: good example {example.title!r} is reported: {_messages(report)}"


def _assert_ran(check: AnyCheck, example: Example, report: Report) -> None:
    crashed = [outcome.reason for outcome in report.outcomes if outcome.kind is OutcomeKind.CRASHED]
    assert not crashed, f"{check.rule.code}: {example.title!r} crashes: {crashed}"
    assert not report.problems, f"{check.rule.code}: {example.title!r}: {report.problems}"


def _assert_places(report: Report) -> None:
    for finding in report.findings:
        if finding.location is not None:
            start, end = finding.location.span
            assert 0 <= start <= end <= len(finding.location.source.text), f"{finding.code}: span outside the text"
        for fix in filter(None, (finding.fix, *finding.alternatives)):
            ordered = sorted(fix.edits, key=lambda edit: (edit.source.name, edit.span))
            for one, other in pairwise(ordered):
                assert one.source is not other.source or not one.span.overlaps(other.span), (
                    f"{finding.code}: edits overlap"
                )


def _assert_fix_silences(check: AnyCheck, example: Example, findings: tuple[Finding, ...]) -> None:
    edits = [edit for finding in findings if finding.fix is not None for edit in finding.fix.edits]
    assert edits, f"{check.rule.code}: {example.title!r} offers no edit though the rule is fixable"
    files, command = _mended(example, edits)
    with tempfile.TemporaryDirectory(prefix="mgpu-doctor-example-") as top:
        report = _run(check, example, Path(top), files, command)
    left = [finding for finding in report.findings if finding.code == check.rule.code]
    mended = command if command != example.command else files
    assert not left, (
        f"{check.rule.code}: {example.title!r} is still reported after its fix: {mended!r}: {_messages(report)}"
    )


def _mended(example: Example, edits: list[Edit]) -> tuple[dict[str, str], str | None]:
    files = dict(example.files)
    command = example.command
    by_source: dict[str, list[Edit]] = {}
    for edit in edits:
        by_source.setdefault(edit.source.name, []).append(edit)
    for name, group in by_source.items():
        text = apply_edits(group[0].source.text, group)
        if name == "<command>":
            command = text
        else:
            files[next(known for known in files if name == known or name.endswith("/" + known))] = text
    return files, command


def _why(report: Report) -> str:
    skipped = [f"{outcome.code} skipped: {outcome.reason}" for outcome in report.outcomes_of(OutcomeKind.SKIPPED)]
    return "; ".join(skipped) or f"{len(report.case.launches)} launches were read"


def _messages(report: Report) -> str:
    return "; ".join(f"{finding.code} {finding.message}" for finding in report.findings)
