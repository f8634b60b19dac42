"""Fixes inside other languages: the file with the edit holds the command that was meant, or there is no edit."""

from __future__ import annotations

import shlex

import pytest

from mgpu_doctor.diagnose import Request, _excerpts, diagnose
from mgpu_doctor.landing import landed
from mgpu_doctor.mend import apply_edits
from mgpu_doctor.model.command import Command
from mgpu_doctor.model.finding import Edit, Finding, Fix, Severity
from mgpu_doctor.model.source import Source, Span
from mgpu_doctor.read.text import kind_of
from mgpu_doctor.shell import parse_all

POD = "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - image: x\n    command: "
WORKFLOW = (
    "jobs:\n  a:\n    steps:\n      - run: |\n          set -e\n          torchrun \\\n            WORD train.py\n"
)
FORMS = {
    "block.yml": WORKFLOW,
    "folded.yml": "steps:\n  - script: >-\n      torchrun\n      WORD\n      train.py\n",
    "plain.yml": "steps:\n  - script: torchrun WORD train.py\n",
    "double.yml": 'steps:\n  - script: "torchrun WORD train.py"\n',
    "single.yml": "steps:\n  - script: 'torchrun WORD train.py'\n",
    "flow.yaml": POD + '["torchrun", "WORD", "train.py"]\n',
    "list.yaml": POD + "\n    - torchrun\n    - WORD\n    - train.py\n",
    "bash.yaml": POD + '["bash", "-c", "torchrun WORD train.py"]\n',
    "compose.yml": "services:\n  a:\n    command: torchrun WORD train.py\n",
    "Dockerfile": 'FROM x\nCMD ["torchrun", "WORD", "train.py"]\n',
    "Dockerfile.run": "FROM x\nRUN a && \\\n    # note\n    torchrun WORD train.py\n",
    "Makefile": "a:\n\t@torchrun WORD train.py\n",
    "justfile": "a:\n    @torchrun WORD train.py\n",
    "comment.yaml": "# torchrun WORD train.py --config x.yaml\nmodel: x\n",
}  # fmt: skip


def _launch(source: Source) -> Command:
    found = [c for excerpt in _excerpts(source) for script in parse_all(excerpt) for c in script.commands]
    (command,) = [command for command in found if command.name == "torchrun"]
    return command


def _source(name: str, word: str) -> Source:
    return Source(name, FORMS[name].replace("WORD", word), kind_of(name) or "")


def _mended(source: Source, span: Span, replacement: str) -> Source | None:
    """The file with a rule's edit, None when it cannot be expressed there."""
    fix = Fix("write it", (Edit(source, span, replacement),), safe=True)
    finding = Finding("MGD000", "x", Severity.ERROR, "x", fix=fix)
    (after,) = landed([finding], _excerpts)
    assert after.fix is not None
    if not after.fix.edits:
        assert not after.fix.safe
        return None
    return Source(source.name, apply_edits(source.text, after.fix.edits), source.kind)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("replacement", ["--nnodes=2", "'a b'", '"a b"', "\\$x", "'a$b'", "a\\'b", "--a b"])
def test_a_replaced_word_arrives_or_is_not_replaced(name: str, replacement: str) -> None:
    source = _source(name, "--old")
    after = _mended(source, _launch(source).words[1].span, replacement)
    if after is None:
        assert replacement != "--nnodes=2"
        return
    values = [word.value for word in _launch(after).words]
    assert values[: 1 + len(shlex.split(replacement))] == ["torchrun", *shlex.split(replacement)]


@pytest.mark.parametrize("name", sorted(set(FORMS) - {"list.yaml"}))
def test_an_inserted_word_arrives(name: str) -> None:
    source = _source(name, "--old")
    at = _launch(source).words[1].span.start
    after = _mended(source, Span(at, at), "--nnodes=2 ")
    assert after is not None
    assert [word.value for word in _launch(after).words][:3] == ["torchrun", "--nnodes=2", "--old"]


@pytest.mark.parametrize("name", ["flow.yaml", "list.yaml", "Dockerfile"])
@pytest.mark.parametrize("text", ["A=1 ", "a && ", "a; ", "a | "])
def test_a_list_of_words_takes_words_alone(name: str, text: str) -> None:
    source = _source(name, "--old")
    at = _launch(source).words[0].span.start
    assert _mended(source, Span(at, at), text) is None


@pytest.mark.parametrize("name", ["block.yml", "Dockerfile.run", "Makefile", "plain.yml", "flow.yaml", "comment.yaml"])
def test_a_line_above_arrives_where_there_are_lines(name: str) -> None:
    source = _source(name, "--old")
    at = _launch(source).words[0].span.start
    after = _mended(source, Span(at, at), "export A=1\n")
    if name != "block.yml":
        assert after is None
        return
    assert after is not None
    variable = _launch(after).variable("A")
    assert variable is not None
    assert variable.text == "1"


def test_a_template_is_kept() -> None:
    source = _source("plain.yml", "--nproc_per_nodes ${{ matrix.n }}")
    words = _launch(source).words
    after = _mended(source, Span(words[1].span.start, words[2].span.end), "--nproc_per_node ${{ matrix.n }}")
    assert after is not None
    assert "torchrun --nproc_per_node ${{ matrix.n }} train.py" in after.text


def test_an_option_of_a_word_with_a_template_is_replaced() -> None:
    text = POD + "[torchrun, --nproc_per_ndoe=$GPUS, train.py]\n"
    request = Request(mode="lint", text=text, text_name="a.yaml", text_kind="yaml", select=("MGD106",))
    (finding,) = diagnose(request).findings
    assert finding.fix is not None
    assert apply_edits(text, finding.fix.edits) == text.replace("ndoe", "node")


@pytest.mark.parametrize("name", FORMS)
def test_a_rule_and_its_fix_end_to_end(name: str) -> None:
    text = _source(name, "--nproc_per_ndoe=2").text

    def report(text: str) -> tuple[Finding, ...]:
        request = Request(mode="lint", text=text, text_name=name, text_kind=kind_of(name) or "", select=("MGD106",))
        return diagnose(request).findings

    (finding,) = report(text)
    assert finding.location is not None
    start, end = finding.location.span
    assert "--nproc_per_ndoe" in text[start:end]
    assert finding.fix is not None
    assert finding.fix.edits
    assert report(apply_edits(text, finding.fix.edits)) == ()


@pytest.mark.parametrize(
    ("name", "text", "fixed"),
    [
        ("a.yml", "env:\n  NCCL_SOCKET_IFNAME: \"'eth0'\"\nsteps:\n- script: torchrun a.py\n", 'IFNAME: "eth0"'),
        (
            "compose.yml",
            "services:\n  a:\n    environment:\n    - NCCL_SOCKET_IFNAME=\"eth0\"\n    command: torchrun a.py\n",
            "IFNAME=eth0\n",
        ),
        ("Dockerfile", "FROM x\nENV NCCL_SOCKET_IFNAME='\"eth0\"'\nCMD torchrun a.py\n", "IFNAME='eth0'\n"),
        ("Makefile", 'export NCCL_SOCKET_IFNAME := "eth0"\na:\n\ttorchrun a.py\n', "IFNAME := eth0\n"),
    ],
)  # fmt: skip
def test_quotation_marks_of_a_variable_are_removed(name: str, text: str, fixed: str) -> None:
    request = Request(mode="lint", text=text, text_name=name, text_kind=kind_of(name) or "", select=("MGD809",))
    (finding,) = diagnose(request).findings
    assert finding.fix is not None
    assert fixed in apply_edits(text, finding.fix.edits)
