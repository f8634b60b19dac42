"""The page about the probe shows what the program prints, and names every key that it writes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mgpu_doctor.collect import observation_file
from mgpu_doctor.model import verdict
from mgpu_doctor.render.probe import DOING

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "probe.md").read_text(encoding="utf-8")


def test_the_output_is_what_the_program_prints() -> None:
    found = re.search(r"<!-- output of the saved probe (\S+) -->\n```text\n(.*?)```\n", PAGE, re.DOTALL)
    assert found is not None
    done = subprocess.run(
        [sys.executable, "-m", "mgpu_doctor", "probe", "--from", found[1], "--format", "rich"],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "90"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert _whatever_the_count(done.stdout) == _whatever_the_count(found[2])


def _whatever_the_count(text: str) -> str:
    """The text without the number of rules, which grows."""
    return re.sub(r"^\d+ rules could", "rules could", text, flags=re.MULTILINE)


@pytest.mark.parametrize("word", ["MULTI", "SINGLE", "SHARED", "COPIES", "CPU", "BROKEN", "UNKNOWN"])
def test_every_word_is_explained(word: str) -> None:
    assert getattr(verdict, word) == word
    assert f"| `{word}` |" in PAGE


def test_every_stage_is_explained_in_its_order() -> None:
    assert re.findall(r"^\d\. `(\w+)`:", PAGE, re.MULTILINE) == [*DOING]


def test_every_key_is_named() -> None:
    form = PAGE.split("## The saved form")[1]
    keys = {
        key
        for table in (
            observation_file._OBSERVATION,
            observation_file._RANK,
            observation_file._LINK,
            observation_file._STAGE,
        )
        for key in table
    }
    assert {key for key in keys if f"`{key}`" not in form} == set()
