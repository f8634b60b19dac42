from __future__ import annotations

import pytest

from mgpu_doctor.model.finding import Finding, Severity
from mgpu_doctor.model.source import Location, Source, Span
from mgpu_doctor.suppress import apply_suppressions, matches


def finding_at(source: Source, text: str, code: str = "MGD301", slug: str = "port-in-use") -> Finding:
    start = source.text.index(text)
    return Finding(code, slug, Severity.ERROR, "m", Location(source, Span(start, start + len(text))))


def split(text: str, word: str, kind: str = "shell", command: str | None = None) -> tuple[int, list[str], list[str]]:
    source = Source("run.sh", text, kind)
    spans = []
    if command is not None:
        start = text.index(command)
        spans.append((source, Span(start, start + len(command))))
    kept, suppressed, problems = apply_suppressions([finding_at(source, word)], spans)
    return len(kept), [item.reason for item in suppressed], [problem.message for problem in problems]


@pytest.mark.parametrize("name", ["MGD301", "mgd301", "port-in-use", "MGD3", "MGD3xx", "MGD", "all", "MGD999, MGD301"])
def test_a_comment_on_the_line_accepts_the_finding(name: str) -> None:
    assert split(f"torchrun a.py  # mgpu-doctor: ignore[{name}] ours\n", "torchrun") == (0, ["ours"], [])


@pytest.mark.parametrize("name", ["MGD302", "MGD4", "port", "x"])
def test_other_names_accept_nothing(name: str) -> None:
    assert split(f"torchrun a.py  # mgpu-doctor: ignore[{name}] ours\n", "torchrun")[0] == 1


def test_a_comment_above_covers_a_command_of_several_lines() -> None:
    text = "# mgpu-doctor: ignore[MGD301] ours\n# more\ntorchrun \\\n  --x \\\n  a.py\ntorchrun b.py\n"
    command = "torchrun \\\n  --x \\\n  a.py"
    assert split(text, "a.py", command=command)[0] == 0
    assert split(text, "b.py", command=command)[0] == 1


def test_a_comment_behind_another_command_does_not_reach_below() -> None:
    text = "echo hi  # mgpu-doctor: ignore[MGD301] ours\ntorchrun b.py\n"
    assert split(text, "torchrun")[0] == 1


def test_a_markdown_comment_above_a_fence_covers_its_first_command() -> None:
    comment = "<!-- mgpu-doctor: ignore[MGD301] wrong on purpose -->"
    text = f"{comment}\n\n```bash\ntorchrun a.py\n```\n\n```bash\nother b.py\n```\n"
    assert split(text, "torchrun", "markdown") == (0, ["wrong on purpose"], [])
    assert split(text, "other", "markdown")[0] == 1


def test_a_whole_file_can_be_covered() -> None:
    text = "torchrun a.py\n# mgpu-doctor: ignore-file[MGD3xx] generated\n"
    assert split(text, "torchrun") == (0, ["generated"], [])


@pytest.mark.parametrize(
    ("comment", "message"), [("ignore[MGD301]", "a reason"), ("ignore because", "rules"), ("ignore[] x", "rules")]
)
def test_a_comment_that_lacks_something_accepts_nothing_and_says_so(comment: str, message: str) -> None:
    kept, _, problems = split(f"torchrun a.py  # mgpu-doctor: {comment}\n", "torchrun")
    assert kept == 1
    assert len(problems) == 1
    assert message in problems[0]


def test_a_family_is_letters_and_digits_from_the_front() -> None:
    assert matches("MGD3", "MGD301", "port-in-use")
    assert not matches("GD3", "MGD301", "port-in-use")
    assert not matches("port", "MGD301", "port-in-use")
