"""Reading the command line: the quick reader agrees with click, and mistakes get one clear line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgpu_doctor import __version__
from mgpu_doctor.cli import edge, program, quick, verb
from mgpu_doctor.cli.verb import VERBS, Given, Verb, load_verb
from mgpu_doctor.errors import MgpuDoctorError

WORDS = ("a.sh", "torchrun train.py", "MGD201", "-", "多卡", "x=1", "--format", "json", "rich", "none", "--", "error")
FLAGS = tuple(option.flag for name in VERBS for option in load_verb(name).options)
MISTAKES = ("--formt", "--format=", "--format=xml", "--no-color=1", "-h", "--sel", "--facts=-", "")


class Reading(NamedTuple):
    verb: str
    given: Given


def by_click(arguments: list[str]) -> Reading | None:
    """What click reads, None when it refuses or shows help."""
    found: list[Reading] = []

    def keep(name: str) -> Verb:
        def record(given: Given) -> int:
            found.append(Reading(name, given))
            return 0

        return replace(load_verb(name), run=record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "load_verb", keep)
        try:
            program.build().main(arguments, prog_name="mgpu-doctor", standalone_mode=False)
        except (click.ClickException, MgpuDoctorError):
            return None
    return found[0] if found else None


def effective(reading: Reading) -> tuple[object, ...]:
    """A reading without the difference between an option that is absent and one that is empty."""
    options = {key: value for key, value in reading.given.options.items() if value not in (None, (), False)}
    return reading.verb, reading.given.words, reading.given.behind, options


@given(
    st.sampled_from(tuple(VERBS)),
    st.lists(
        st.sampled_from(WORDS + FLAGS + MISTAKES)
        | st.builds("{}={}".format, st.sampled_from(FLAGS), st.sampled_from(WORDS)),
        max_size=7,
    ),
)
def test_the_quick_reader_reads_as_click_does(name: str, arguments: list[str]) -> None:
    line = [name, *arguments]
    read = quick.read(line)
    if read is None:
        return
    clicked = by_click(line)
    assert clicked is not None, f"click refuses {line}"
    assert effective(Reading(read[0].name, read[1])) == effective(clicked)


@pytest.mark.parametrize(
    "line",
    [
        ("explain", "torchrun train.py"),
        ("explain", "--format", "json", "--facts", "none", "x"),
        ("explain", "x", "--format=json"),
        ("check", "--", "torchrun", "--nproc-per-node", "2", "--", "x"),
        ("check", "--cmd", "x", "--select", "MGD1,MGD2", "--select", "MGD3"),
        ("lint", "-", "a.sh", "--show-commands"),
        ("rules",),
    ],
)
def test_plain_lines_are_read_quickly(line: tuple[str, ...]) -> None:
    assert quick.read(line) is not None


def test_lists_are_split_at_commas() -> None:
    read = quick.read(["check", "--select", "MGD1, MGD2", "--select", "MGD3"])
    assert read is not None
    assert read[1].names("select") == ("MGD1", "MGD2", "MGD3")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["chekc"], "did you mean 'check'?"),
        (["torchrun", "train.py"], 'mgpu-doctor explain "COMMAND"'),
        (["explain", "--nproc_per_node", "2"], "-- in front of that"),
        (["explain", "torchrun", "--formt", "json"], "--format"),
        (["lint", "--format", "xml"], "'json'"),
        (["check", "--facts"], "requires an argument"),
        (["check", "--"], "nothing stands behind --"),
        (["explain"], "nothing to explain"),
        (["explain", "a", "--", "b"], "two commands"),
        (["check", "--cmd", "x", "y.sh"], "exclude each other"),
        (["rules", "x"], "unexpected argument"),
        (["new-check", "x"], "--code"),
        (["explain", "MGD999"], "no rule is called 'MGD999'"),
        (["explain", "ZZZ999"], "mgpu-doctor rules"),
        (["lint", "--select", "visible-devices-ignord", "."], "did you mean visible-devices-ignored?"),
        (["new-check", "No", "--code", "ABC101"], "hyphens"),
        (["new-check", "a-b", "--code", "101"], "letters and three digits"),
        (["new-check", "port-in-use", "--code", "ABC101"], "is taken"),
    ],
)
def test_a_mistake_is_one_clear_line(
    line: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert edge.run(line) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mgpu-doctor: error: ")
    assert message in err
    assert len(err.splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


HELPS = ([], ["--help"], ["-h"], *([name, "--help"] for name in VERBS))


@pytest.mark.parametrize("line", HELPS, ids=" ".join)
def test_help(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert edge.run(line) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Usage: mgpu-doctor")
    assert "mgpu-doctor " in out.split("\n", 1)[1]
    assert err == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert edge.run(["--version"]) == 0
    assert capsys.readouterr().out == f"mgpu-doctor {__version__}\n"


def test_every_verbs_line_in_the_help_is_its_own_first_sentence() -> None:
    for name, place in verb.VERBS.items():
        assert load_verb(name).name == name
        assert place.help.endswith(".")


def test_an_interrupt_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(quick, "read", interrupted)
    assert edge.run(["rules"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_fault_of_our_own_is_one_line_and_incomplete(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.delenv("MGPU_DOCTOR_TRACEBACK", raising=False)
    monkeypatch.setattr(quick, "read", broken)
    assert edge.run(["rules"]) == 3
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(
        "mgpu-doctor: error: a fault of mgpu-doctor itself: ZeroDivisionError: oh (test_command_line.py:"
    )
    assert "MGPU_DOCTOR_TRACEBACK=1" in second
    monkeypatch.setenv("MGPU_DOCTOR_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        edge.run(["rules"])


def test_a_closed_pipe_is_quiet() -> None:
    writer = subprocess.Popen(
        [sys.executable, "-m", "mgpu_doctor", "rules", "--format", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.close()
    with writer.stderr as errors:
        assert errors.read() == b""
    assert writer.wait(timeout=60) in (0, 141)


def test_an_ascii_terminal_gets_question_marks() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mgpu_doctor", "explain", "多卡-推理x"],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin", "LC_ALL": "C"},
        check=False,
    )
    assert b"Traceback" not in done.stderr
