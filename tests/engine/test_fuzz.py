"""Random and mutated inputs through the whole line: no crash, spans inside the text, fixes that never overlap.

``MGPU_DOCTOR_FUZZ=100000 pytest tests/engine/test_fuzz.py`` raises the number of inputs.
"""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mgpu_checks import CHECKS
from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.errors import InputError, UsageError
from mgpu_doctor.mend import mended
from mgpu_doctor.model.finding import OutcomeKind
from mgpu_doctor.model.report import Report
from mgpu_doctor.registry import Registry
from mgpu_doctor.testing import standard_facts

EXAMPLES = int(os.environ.get("MGPU_DOCTOR_FUZZ", "600"))
REGISTRY = Registry(CHECKS, ())


def _corpus() -> list[str]:
    texts: set[str] = set()
    for check in CHECKS:
        for example in (*check.rule.bad, *check.rule.good):
            texts.update(text for text in (example.command,) if text)
            texts.update(text for name, text in example.files.items() if name.endswith((".sh", ".md", ".sbatch")))
    return sorted(texts)


CORPUS = _corpus()
SPLINTERS = (
    *(
        "\\",
        "\\\n",
        " \\ \n",
        "\n",
        "'",
        '"',
        "$",
        "${",
        "}",
        "$(",
        ")",
        "`",
        "#",
        " # x",
        ";",
        "&",
        "&&",
        "|",
        "<<EOF\n",
        "(",
        "{",
    ),
    *(
        "=",
        " -",
        " --",
        " -m",
        " -m ",
        " --a=b",
        "--num_processes",
        " 4",
        " 0,1",
        "\r\n",
        "\t",
        "\u00a0",
        "\u2014",
        "\U0001f600",
        "中文",
    ),
    *(
        "[",
        "]",
        "*",
        "?",
        "~",
        "!",
        "export ",
        "env ",
        "srun ",
        "bash -c '",
        "for i in 1 2; do ",
        "; done",
        "$@",
        "${A[@]}",
        "\x1b[31m",
    ),
)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from(CORPUS))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(text)))
        end = draw(st.integers(at, min(len(text), at + 20)))
        piece = draw(st.one_of(st.sampled_from(SPLINTERS), st.sampled_from(CORPUS), st.text(max_size=4)))
        text = text[:at] + piece + text[end:] if draw(st.booleans()) else text[:at] + text[end:]
    return text


def verify(report: Report) -> None:
    crashed = [(o.code, o.reason) for o in report.outcomes if o.kind is OutcomeKind.CRASHED]
    assert not crashed
    for finding in report.findings:
        places = [e.location for e in (*finding.evidence, *finding.related)]
        for location in filter(None, (finding.location, *places)):
            assert 0 <= location.span.start <= location.span.end <= len(location.source.text), finding.code
        for fix in filter(None, (finding.fix, *finding.alternatives)):
            edits = sorted(fix.edits, key=lambda e: (e.source.name, e.span))
            for edit in edits:
                assert 0 <= edit.span.start <= edit.span.end <= len(edit.source.text), finding.code
            for one, other in pairwise(edits):
                assert one.source is not other.source or not one.span.overlaps(other.span), finding.code
    for launch in report.case.launches:
        for layer in launch.layers:
            for word in (*layer.command_words, *layer.argument_words):
                assert 0 <= word.span.start <= word.span.end <= len(launch.command.source.text)
    for source in report.case.sources:
        mended(report.findings, source)


@pytest.fixture(scope="module")
def facts_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("facts") / "facts.json"
    path.write_text(json.dumps(standard_facts()), encoding="utf-8")
    return str(path)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.one_of(mutated(), mutated(), mutated(), st.text(max_size=200)), machine=st.booleans())
def test_any_command_is_judged(text: str, machine: bool, facts_file: str) -> None:
    request = Request(command=text, facts=facts_file if machine else "none", directory=str(Path(facts_file).parent))
    try:
        report = diagnose(request, REGISTRY)
    except (UsageError, InputError):
        return
    verify(report)


@settings(max_examples=EXAMPLES // 2, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.one_of(mutated(), st.text(max_size=300)), kind=st.sampled_from(["shell", "markdown"]))
def test_any_file_is_judged(text: str, kind: str, facts_file: str) -> None:
    if kind == "markdown":
        text = f"Some text\n\n```bash\n{text}\n```\n\n- a\n  ```console\n  $ {text}\n  ```\n"
    request = Request(mode="lint", text=text, text_kind=kind, directory=str(Path(facts_file).parent))
    try:
        report = diagnose(request, REGISTRY)
    except (UsageError, InputError):
        return
    verify(report)


@settings(max_examples=max(50, EXAMPLES // 10), deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    top = tmp_path_factory.getbasetemp()
    (top / "any.sh").write_bytes(data)
    report = diagnose(Request(mode="lint", files=("any.sh",), directory=str(top)), REGISTRY)
    assert report.case.sources or report.problems
    verify(report)
