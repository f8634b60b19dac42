from __future__ import annotations

import dataclasses
import io
import json
import re
from typing import TYPE_CHECKING

import pytest
from rich.cells import cell_len
from rich.console import Console

from mgpu_doctor.mend import mended
from mgpu_doctor.render import plain
from mgpu_doctor.render.console import print_check, print_commands, print_explanation, print_lint
from mgpu_doctor.render.github import github_lines
from mgpu_doctor.render.json import dump, report_document

if TYPE_CHECKING:
    from render.conftest import Sample


def drawn(sample: Sample, width: int, **options: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, markup=False, emoji=False, highlight=False, **options)  # type: ignore[arg-type]
    report = sample.report
    print_explanation(console, report, mended(report.findings, sample.source), report.findings[1:])
    print_check(console, report)
    print_lint(console, report)
    print_commands(console, report)
    return out.getvalue()


def test_an_explanation_says_who_launches_what_where(sample: Sample) -> None:
    text = drawn(sample, 100)
    assert re.search(r"deepspeed \(0\.16\.9\) +launches +starts 2 processes", text)
    assert re.search(r"└── -m 训练\.launcher +computes", text)
    assert re.search(r"0 +cuda:0 +GPU 0 +NVIDIA A100-SXM4-80GB +GPU-00000000", text)
    assert "127.0.0.1:29500, bound by deepspeed" in text
    assert "default of deepspeed 0.16.9" in text
    assert "0,1 (before: 4,5)" in text
    assert "2 replicas for throughput" in text


def test_carets_in_the_terminal_stand_under_the_words(sample: Sample) -> None:
    lines = drawn(sample, 140).splitlines()
    marks = next(index for index, line in enumerate(lines) if line.strip("│^ ") == "" and line.endswith(" " + "^" * 10))
    column = cell_len(lines[marks]) - 10
    text = lines[marks - 1]
    before = next(index for index in range(len(text)) if cell_len(text[:index]) == column)
    assert text[before:].rstrip() == "--gpus 0,1"


def test_the_corrected_command_is_whole_on_one_line(sample: Sample) -> None:
    for width in (40, 100):
        text = drawn(sample, width)
        assert "deepspeed --include localhost:4,5 -m 训练.launcher\n" in text.replace(" \n", "\n")
    assert "put your own secret back" in drawn(sample, 200)


@pytest.mark.parametrize("width", [20, 40, 64, 100, 200])
def test_nothing_is_wider_than_the_terminal_but_the_command_to_copy(sample: Sample, width: int) -> None:
    wide = [line for line in drawn(sample, width).splitlines() if cell_len(line.rstrip()) > width]
    assert all("--include localhost:4,5" in line for line in wide)


def test_markup_and_escapes_of_the_user_are_shown_not_obeyed(sample: Sample) -> None:
    text = drawn(sample, 100)
    assert "[bold]such[/bold]" in text
    assert "␛[31m--gpus" in text
    assert "\x1b" not in text
    coloured = drawn(sample, 100, force_terminal=True)
    assert "\x1b[31m--gpus" not in coloured


def test_secrets_are_masked_in_every_format(sample: Sample) -> None:
    report = sample.report
    texts = [
        drawn(sample, 200),
        "\n".join(plain.explain_lines(report, sample.source.text)),
        "\n".join(github_lines(report)),
        dump(report_document(report, commands=True, corrected=sample.source.text)),
    ]
    assert not [text for text in texts if "abcdefghijklmnop" in text]


def test_long_jobs_are_abridged(wide: Sample) -> None:
    lines = list(plain.explain_lines(wide.report))
    ranks = [line for line in lines if line.startswith("  rank ")]
    assert len(ranks) == 11
    assert "54 more" in ranks[8]
    assert ranks[-1].startswith("  rank 63:")


def test_without_a_machine_the_reason_is_given(blind: Sample) -> None:
    text = "\n".join(plain.explain_lines(blind.report))
    assert "rank 0: cuda:0 = CUDA device 0" in text
    assert "nvidia-smi's numbers are not known: no inventory of GPUs" in text
    assert "the text alone: no machine was looked at" in text


def test_plain_lines_start_with_the_place(sample: Sample) -> None:
    lines = list(plain.lint_lines(sample.report))
    assert lines[0].startswith("<command>:1:1: error MGD201 visible-devices-ignored: deepspeed drops")
    assert lines[-1] == "1 error, 1 warning, 1 accepted by comments"


def test_lint_goes_through_the_file_from_top_to_bottom(sample: Sample) -> None:
    report = dataclasses.replace(sample.report, findings=sample.report.findings[::-1], mode="lint")
    lines = [line for line in plain.lint_lines(report) if line.startswith("<command>")]
    assert [line.split(":")[2] for line in lines] == ["1", "97"]


def test_skips_and_crashes_are_never_silent(sample: Sample) -> None:
    for text in ("\n".join(plain.check_lines(sample.report)), drawn(sample, 100)):
        assert "MGD215, MGD301" in text
        assert "XYZ001 their-own of other crashed: ValueError: no" in text
        assert "a.sh: empty" in text
        assert "a.bin: not read" in text


def test_json_has_the_promised_keys(sample: Sample) -> None:
    document = json.loads(dump(report_document(sample.report, commands=True, corrected="x", remaining=())))
    assert document["schema_version"] == 1
    finding = document["findings"][0]
    assert (finding["code"], finding["slug"], finding["severity"]) == ("MGD201", "visible-devices-ignored", "error")
    assert (finding["line"], finding["column"], finding["end_line"], finding["end_column"]) == (1, 1, 1, 25)
    assert finding["fix"]["edits"][0]["replacement"] == "--include localhost:4,5"
    (command,) = document["commands"]
    assert command["launcher"] == ["deepspeed"]
    assert command["launcher_args"] == [["--num_gpus", "2", "-m"]]
    assert command["target"] == {"module": "训练.launcher"}
    assert command["target_args"] == ["--gpus", "0,1"]
    assert (command["nproc"], command["port"], command["line_start"], command["line_end"]) == (2, 29500, 1, 1)
    assert command["env"]["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert command["devices"]["physical"] == [0, 1]
    assert command["ranks"][1]["physical_index"] == 1
    assert [entry["code"] for entry in document["skipped"]] == ["MGD215", "MGD301"]
    assert [entry["code"] for entry in document["crashed"]] == ["XYZ001"]
    assert document["suppressed"][0]["reason"] == "we know"
    assert document["summary"]["exit_code"] == 2
    assert document["corrected"]["text"] == "x"


def test_json_holds_no_control_character(sample: Sample) -> None:
    text = dump({"text": "\x1b[31m \x9b31m \u202e \u2066 多卡 \udcff"})
    assert "多卡" in text
    assert not any(ord(c) < 0x20 and c != "\n" for c in text)
    assert not any(0x7F <= ord(c) < 0xA0 or ord(c) in {0x202E, 0x2066} for c in text)
    assert json.loads(text)["text"].startswith("\x1b[31m \x9b31m \u202e")


def test_github_lines_escape_what_would_end_them(sample: Sample) -> None:
    lines = list(github_lines(sample.report))
    assert lines[0].startswith("::error file=<command>,line=1,endLine=1,col=1,endColumn=25,title=MGD201 ")
    assert "%0AFix: use --include" in lines[0]
    assert lines[1].startswith("::warning ")
    assert all(line.count("::") >= 2 for line in lines[:-1])
