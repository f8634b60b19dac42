"""The rules about launcher options: their edits make commands that the launchers take."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import pytest

from mgpu_checks import CHECKS
from mgpu_doctor.authoring import AnyCheck, Example, Finding
from mgpu_doctor.mend import apply_edits
from mgpu_doctor.testing import run_example
from oracle_environments import LAUNCHER_PARSERS, python_of, run_parser

CODES = ("MGD106", "MGD107", "MGD108", "MGD111", "MGD118", "MGD120")
RULES = {check.rule.code: check for check in CHECKS if check.rule.code in CODES}


@dataclass(frozen=True)
class Mended:
    """An example whose findings carry edits, and the command after all of them."""

    check: AnyCheck
    example: Example
    command: str

    @property
    def name(self) -> str:
        return f"{self.check.rule.code} {self.example.title}"


def _mended() -> list[Mended]:
    found = []
    for check in RULES.values():
        for example in check.rule.bad:
            if example.command is None:
                continue
            findings: tuple[Finding, ...] = run_example(check, example).findings
            edits = [edit for finding in findings if finding.fix for edit in finding.fix.edits]
            if edits:
                found.append(Mended(check, example, apply_edits(example.command, edits)))
    return found


@pytest.fixture(scope="module")
def mended() -> list[Mended]:
    return _mended()


def test_all_six_are_there() -> None:
    assert tuple(sorted(RULES)) == CODES


def test_edits_silence_what_they_mend(mended: list[Mended]) -> None:
    assert len(mended) >= 20
    for one in mended:
        again = Example(one.example.title, one.command, one.example.files, one.example.facts)
        left = run_example(one.check, again).findings
        assert not left, f"{one.name}: {one.command!r}: {left[0].message}"


@pytest.mark.oracle
def test_launchers_take_the_mended_commands(mended: list[Mended]) -> None:
    if python_of("old") is None:
        pytest.skip("no oracle environment 'old': run python tools/oracles.py")
    launchers = [one for one in mended if not one.command.startswith("llamafactory-cli ")]
    standard = [one for one in launchers if not (one.example.facts or {}).get("packages")]
    asked = [_split(one.command) for one in standard]
    answers = run_parser("old", LAUNCHER_PARSERS, asked)
    refused = [
        f"{one.name}: {one.command!r}: {answer['error']}"
        for one, answer in zip(standard, answers, strict=True)
        if "values" not in answer
    ]
    assert not refused, "\n".join(refused)


def _split(command: str) -> tuple[str, list[str]]:
    words = shlex.split(command)
    if words[:2] == ["accelerate", "launch"]:
        return "accelerate", words[2:]
    if words[0] == "python":
        return words[2], words[3:]
    return words[0], words[1:]


@pytest.mark.parametrize(
    ("command", "codes"),
    [
        ("accelerate launch --multi_gpu True train.py", {"MGD108"}),
        ("deepspeed train.py --num_gpus 2 --master_port 29501", {"MGD107"}),
        ("torchrun --nproc_per_node 2 train.py --num_processes 4 --config_file x.yaml", set()),
        ("python train.py --nproc_per_node 2", set()),
        ("llamafactory-cli train x.yaml", set()),
        ("torchrun $ARGS train.py --lr 1", set()),
        ("accelerate launch --config_file $CONFIG --num_processes $N train.py --mixed_precision bf16", set()),
    ],
)
def test_which_rules_speak(command: str, codes: set[str]) -> None:
    spoke = {finding.code for check in RULES.values() for finding in run_example(check, Example("", command)).findings}
    assert spoke == codes
