"""What a probe looks like: on any terminal, as plain lines, as JSON and as annotations."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from mgpu_doctor.model.case import Case
from mgpu_doctor.model.facts import NO_FACTS, Facts, Gpu
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.observation import LinkSeen, Observation, StageSeen
from mgpu_doctor.model.report import Report
from mgpu_doctor.render import console as drawing
from mgpu_doctor.render import plain, probe
from mgpu_doctor.render.github import github_lines
from mgpu_doctor.render.json import dump, report_document
from mgpu_doctor.verdict import judge
from observations import UUIDS, any_observation, healthy, rank, stages


def report_of(seen: Observation, facts: Facts = NO_FACTS) -> Report:
    """The report on an observation, without any rule."""
    nothing: Any = None
    case = Case((), (), (), facts, nothing, nothing, "probe", seen)
    return Report("probe", case, (), verdict=judge(seen))


def drawn(seen: Observation, width: int = 100, *, colour: bool = False, facts: Facts = NO_FACTS) -> str:
    """What a terminal of that width shows."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, force_terminal=colour, markup=False, emoji=False, highlight=False)
    drawing.print_probed(console, report_of(seen, facts))
    # The program takes the blanks that fill the lines away.
    return "".join(f"{line.rstrip()}\n" for line in buffer.getvalue().splitlines())


def lines_of(seen: Observation) -> list[str]:
    """The plain lines."""
    return [*plain.probed_lines(report_of(seen))]


@given(any_observation, st.sampled_from([20, 33, 46, 60, 80, 100, 120]))
def test_any_observation_fits_any_terminal(seen: Observation, width: int) -> None:
    text = drawn(seen, width)
    assert judge(seen).word in text.splitlines()[0]
    assert "\x1b" not in text
    for line in text.splitlines():
        assert cell_len(line) <= width, line


@given(any_observation)
def test_any_observation_has_plain_lines_and_a_document(seen: Observation) -> None:
    report = report_of(seen)
    lines = [*plain.probed_lines(report)]
    assert lines[0].startswith(f"verdict: {judge(seen).word}: ")
    assert not any("\n" in line or "\x1b" in line for line in lines)
    assert json.loads(dump(report_document(report)))["verdict"]["word"] == judge(seen).word
    assert next(github_lines(report)).startswith("::")


def test_the_verdict_comes_first_and_has_a_colour_of_its_own() -> None:
    good, bad = drawn(healthy(2), colour=True), drawn(healthy(2, ranks=(rank(0), rank(1, uuid=UUIDS[0]))), colour=True)
    assert "\x1b[1;7;32m MULTI " in good.splitlines()[0]
    assert "\x1b[1;7;31m SHARED " in bad.splitlines()[0]


def test_a_word_that_is_not_as_promised_is_red() -> None:
    fallen_back = drawn(healthy(1, promised_processes=4), colour=True)
    assert "\x1b[1;7;31m SINGLE " in fallen_back.splitlines()[0]


def test_the_picture_shows_who_is_where() -> None:
    text = drawn(healthy(4))
    assert "           0 1 2 3\n  rank 0   ● · · ·\n  rank 1   · ● · ·\n" in text
    shared = healthy(2, ranks=(rank(0), rank(1, uuid=UUIDS[0], physical_index=0)), idle_uuids=(UUIDS[1],))
    facts = Facts("node.json", gpus=tuple(Gpu(number, uuid=uuid) for number, uuid in enumerate(UUIDS)))
    text = drawn(shared, facts=facts)
    assert "           0 1\n  rank 0   ■ ·\n  rank 1   ■ ○\n" in text
    assert "■ shared with another rank, ○ was promised there, struck out: held by nobody" in text


def test_too_many_ranks_for_a_picture_are_listed() -> None:
    many = tuple(
        rank(n, 40, uuid=f"GPU-{n:08d}-0", physical_index=n, state="hung" if n == 20 else "done") for n in range(40)
    )
    text = drawn(healthy(40, ranks=many, promised_uuids=Unknown("no"), links=()))
    assert "rank 0 " in text
    assert "rank 20" in text
    assert "rank 39" in text
    assert "and 23 more" in text
    assert "rank 12" not in text.split("The same work")[0]


def test_bars_are_as_long_as_the_times() -> None:
    ranks = tuple(rank(n, solo_ms=1.0, together_ms=4.0) for n in range(2))
    (row,) = [line for line in drawn(healthy(2, ranks=ranks)).splitlines() if line.startswith("  rank 1   1.00 ms")]
    alone, together = (part.count("█") for part in row.split("4.00 ms"))
    assert together == 4 * alone > 0
    assert row.endswith("×4.0")


def test_a_narrow_terminal_gets_no_bars_and_keeps_the_numbers() -> None:
    text = drawn(healthy(2), 44)
    assert "█" not in text
    assert "1.43 ms" in text
    assert "200.0" in text


def test_what_broke_shows_its_last_words_and_nothing_of_them_is_obeyed() -> None:
    output = (
        "first",
        *(f"line {n}" for n in range(20)),
        "[bold]NCCL[/bold] \x1b[31mWARN HF_TOKEN=hf_abcdefghijklmnop1234",
    )
    failed = StageSeen("start", "failed", 1.0, (), "the launcher ended")
    seen = Observation("probe", "torchrun x.py", (), stages=(failed,), output=output)
    for text in (drawn(seen), "\n".join(lines_of(seen))):
        assert "[bold]NCCL[/bold] ␛[31mWARN HF_TOKEN=****" in text
        assert "hf_abc" not in text
        assert "first" not in text
        assert "no rule knows the cause" in text
        assert "nothing found" not in text
    assert "line 19" not in drawn(healthy(1, output=output))


def test_ranks_that_ended_alike_are_told_on_one_line() -> None:
    ranks = tuple(rank(n, 4, state="failed", stage="device", error="RuntimeError: no") for n in range(4))
    text = drawn(healthy(4, ranks=ranks, stages=stages(device="failed")))
    assert "ranks 0-3 failed in device: RuntimeError: no" in text


def test_stages_name_the_one_that_hung() -> None:
    text = drawn(healthy(2, stages=stages(collective="hung", links="skipped")))
    assert "✓ together 1.0 s" in text
    assert "✗ collective hung 1.0 s" in text
    assert "- links" in text


def test_of_very_many_links_the_slowest_are_shown() -> None:
    seen = healthy(9)
    slow = tuple(replace(link, gib_per_s=3.0) if (link.a, link.b) == (4, 7) else link for link in seen.links)
    rows = probe.ways(replace(seen, links=slow))
    assert len(rows) == probe.MOST_LINKS
    assert ("4 - 7", 3.0) in [(row.ranks, row.speed) for row in rows]


@pytest.mark.parametrize(
    ("seen", "level"),
    [
        (healthy(2), "notice"),
        (healthy(2, ranks=(rank(0), rank(1, uuid=Unknown("no")))), "warning"),
        (healthy(2, ranks=(rank(0), rank(1, uuid=UUIDS[0]))), "error"),
    ],
)
def test_the_annotation_is_as_bad_as_the_verdict(seen: Observation, level: str) -> None:
    report = report_of(seen)
    assert report.verdict is not None
    assert next(github_lines(report)).startswith(f"::{level} title=mgpu-doctor probe {report.verdict.word}::")


def test_a_report_without_a_run_shows_nothing_of_it() -> None:
    report = replace(report_of(healthy(2)), verdict=None)
    assert not next(github_lines(report)).startswith("::")
    assert "verdict" not in report_document(report)


def test_stages_are_said_in_words_while_they_run() -> None:
    assert probe.doing("collective") == "probing 7/9: all_reduce with a checked sum"
    assert probe.doing("device: hung: \x1b[2Jno") == "device: hung: ␛[2Jno"


def test_of_processors_nothing_is_said_that_sounds_like_gpus() -> None:
    on_cpu = healthy(
        2,
        on_gpu=False,
        backend="gloo",
        ranks=tuple(rank(number, 2, device_count=0, uuid=None) for number in range(2)),
        links=(LinkSeen(0, 1, peer_access=Unknown("no GPU"), gib_per_s=2.0, transport=Unknown("no GPU")),),
    )
    text = "\n".join(lines_of(on_cpu))
    assert "link 0 - 1: 2.0 GiB/s" in text
    assert "?" not in text
    assert "together" not in text.partition("stage ")[0]
    assert "The same work" not in drawn(on_cpu)
    assert "alone 1." in "\n".join(lines_of(healthy(2)))


def test_a_launcher_that_may_only_be_slow_is_given_more_time() -> None:
    stage = StageSeen("start", "hung", 4.0, (), "the launcher started no process in 4 s")
    slow = healthy(2, ranks=(), stages=(stage,), launcher_exit_code=None)
    assert "in 4 s" in lines_of(slow)[0]
    assert "--deadline 180" in lines_of(slow)[-1]
    assert "--deadline" not in "\n".join(lines_of(healthy(2)))
