"""Reading logs: what is a line, who wrote it, what is passed over, and how much memory it takes."""

from __future__ import annotations

import io
import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgpu_doctor.logs import TELLING, Known, read_log
from mgpu_doctor.logs.causes import literals_of
from mgpu_doctor.logs.lines import clean
from mgpu_doctor.model.finding import Severity
from mgpu_doctor.model.log import LogReading

LOGS = Path(__file__).parent.parent / "fixtures" / "logs"
BOOM = Known(
    "MGD999",
    re.compile(r"BoomError: (\w+)"),
    ("BoomError: ",),
    weak=False,
    where="test 1",
    severity=Severity.ERROR,
    line="BoomError: x",
)


def reading(text: str | bytes, *known: Known) -> LogReading:
    raw = text.encode() if isinstance(text, str) else text
    return read_log("run.log", io.BytesIO(raw), known or (BOOM,))


@pytest.mark.parametrize(
    ("raw", "text", "rank"),
    [
        ("ValueError: no", "ValueError: no", None),
        ("[rank3]: ValueError: no", "ValueError: no", "3"),
        ("[default1]:ValueError: no", "ValueError: no", "1"),
        ("[1,2]<stderr>:ValueError: no", "ValueError: no", "2"),
        ("12: ValueError: no", "ValueError: no", "12"),
        ("(WorkerDict pid=4411) ValueError: no", "ValueError: no", None),
        ("\x1b[31m[rank0]:\x1b[0m \x1b[1mValueError\x1b[0m: no", "ValueError: no", "0"),
        ("2024-05-01 10:00:00,123 ValueError: no", "ValueError: no", None),
        ("10/16/2024 10:00:00 - INFO - started", "INFO - started", None),
        (" 12%|█▏  | 3/25\r 16%|█▌  | 4/25\rValueError: no", "ValueError: no", None),
        ("E0101 01:02:03.000000 77 torch/a/api.py:882] failed (exitcode: 1) local_rank: 5 (pid: 9)", None, "5"),
        ("[E ProcessGroupNCCL.cpp:474] [Rank 4] Watchdog caught", None, "4"),
    ],
)
def test_what_a_line_says_and_who_wrote_it(raw: str, text: str | None, rank: str | None) -> None:
    found, who = clean(raw)
    assert who == rank
    if text is not None:
        assert found == text


def test_interleaved_ranks_keep_their_numbers() -> None:
    log = reading("[rank0]: fine\n[rank5]: BoomError: five\n[rank2]: BoomError: two\n[rank5]: BoomError: again\n")
    assert [(hit.line.rank, hit.line.number) for hit in log.hits] == [("5", 2), ("2", 3)]
    assert log.first_failed_rank == "5"
    assert str(log.hits[0].location) == "run.log:2:1"


def test_the_launcher_names_the_rank_that_failed_first() -> None:
    with (LOGS / "torchrun-2.13-rank_fails.txt").open("rb") as stream:
        log = read_log("run.log", stream, ())
    assert log.failed
    assert log.first_failed_rank == "2"
    # The other ranks only lost the connection to it.
    assert [(line.rank, line.text) for line in log.errors] == [("2", "ValueError: rows of different lengths: [2, 1]")]


def test_a_killed_rank_is_no_error_of_its_peers() -> None:
    with (LOGS / "torchrun-2.13-killed.txt").open("rb") as stream:
        log = read_log("run.log", stream, ())
    assert (log.failed, log.errors, log.first_failed_rank) == (True, (), "1")


def test_a_run_that_ends_well_has_not_failed() -> None:
    log = reading("{'loss': 1.93}\nerror_rate: 0.1\n0 errors, 0 warnings\nTraining completed in 3 h\n")
    assert (log.failed, log.hits, log.errors, log.lines) == (False, (), (), 4)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("end", ["", "\n"])
def test_line_numbers(newline: str, end: str) -> None:
    log = reading(newline.join(["a", "b", "BoomError: x", "c"]) + (newline if end else ""))
    assert (log.hits[0].line.number, log.hits[0].line.text, log.lines) == (3, "BoomError: x", 4)


def test_utf_16_as_powershell_writes_it() -> None:
    log = reading("a\r\nBoomError: x\r\n".encode("utf-16"))
    assert log.hits[0].line.text == "BoomError: x"


def test_a_line_without_end_is_no_burden() -> None:
    log = reading(b"x" * (9 << 20) + b"\nBoomError: x\n" + b"\xff\xfe\x00\n")
    assert [hit.line.text for hit in log.hits] == ["BoomError: x"]


def test_memory_stays_flat() -> None:
    class Endless(io.RawIOBase):
        left = 96

        def read(self, size: int = -1) -> bytes:
            self.left -= 1
            return b"{'loss': 1.0}\n" * (size // 14) + b"step %d: an error\n" % self.left if self.left >= 0 else b""

    read_log("warm", io.BytesIO(b"error"), (BOOM,))
    tracemalloc.start()
    log = read_log("run.log", Endless(), (BOOM,))  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert log.bytes > 23 << 20
    assert peak < 8 << 20


@given(st.text(alphabet="ab\n\r\x1bE[]:0 ror", max_size=400))
def test_any_text_is_read_and_the_numbers_are_those_of_the_lines(text: str) -> None:
    log = reading(
        text,
        Known(
            "MGD999",
            re.compile("Error"),
            ("Error",),
            weak=False,
            where="test",
            severity=Severity.ERROR,
            line="Error",
        ),
    )
    lines = text.encode().split(b"\n")
    for hit in log.hits:
        assert b"Error" in lines[hit.line.number - 1]


@pytest.mark.parametrize(
    ("expression", "literals"),
    [
        (r"No slot '\d+' specified", ("' specified",)),
        (r"(?:a|b)c+ not found", (" not found",)),
        (r"\d+", ()),
        ("abc", ("abc",)),
        ("no route|timed out", ("no route", "timed out")),
        (r"(?:first|second one) x?", ("first", "second one")),
        (r"a|\d", ()),
    ],
)
def test_the_texts_of_which_a_signature_needs_one(expression: str, literals: tuple[str, ...]) -> None:
    assert literals_of(expression) == literals


def test_telling_words_are_no_longer_than_they_must_be() -> None:
    assert not [(one, other) for one in TELLING for other in TELLING if one != other and one in other]
