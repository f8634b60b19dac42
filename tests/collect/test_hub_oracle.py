"""Where huggingface_hub itself looks for its cache, and what it finds there."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpu_doctor.collect import hub
from oracle_environments import ENVIRONMENTS, requires_oracle, run_parser

pytestmark = pytest.mark.oracle

VARIABLES: list[dict[str, str]] = [
    {},
    {"XDG_CACHE_HOME": "/x"},
    {"XDG_CACHE_HOME": "/x", "HF_HOME": "/hf"},
    {"HF_HOME": "~/hf"},
    {"HF_HOME": "$SCRATCH/hf", "SCRATCH": "/s"},
    {"HF_HOME": "${NOTHING}/hf"},
    {"HF_HOME": ""},
    {"XDG_CACHE_HOME": ""},
    {"HF_HOME": "/hf", "HUGGINGFACE_HUB_CACHE": "/old"},
    {"HUGGINGFACE_HUB_CACHE": "~/old", "HF_HUB_CACHE": "/new"},
    {"HUGGINGFACE_HUB_CACHE": "~/old"},
    {"HF_HUB_CACHE": "~/new/$SCRATCH", "SCRATCH": "s"},
    {"HF_HUB_CACHE": ""},
    {"HF_HUB_CACHE": "relative"},
    {"HF_DATASETS_CACHE": "/d", "TRANSFORMERS_CACHE": "/t"},
]

PATHS = """
import importlib, os
from huggingface_hub import constants
result = []
for variables in payload:
    for name in ("HF_HOME", "XDG_CACHE_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "SCRATCH", "NOTHING"):
        os.environ.pop(name, None)
    os.environ.update(variables)
    result.append(importlib.reload(constants).HF_HUB_CACHE)
"""

SCAN = """
from huggingface_hub import scan_cache_dir, try_to_load_from_cache
found = scan_cache_dir(payload)
result = sorted(("datasets/" if repo.repo_type == "dataset" else "") + repo.repo_id for repo in found.repos
                if any(revision.files for revision in repo.revisions))
result = [result, [isinstance(try_to_load_from_cache(name, "config.json", cache_dir=payload), str)
                   for name in ("acme/base", "gpt2", "acme/broken", "acme/none")]]
"""


@pytest.mark.parametrize("environment", [pytest.param(name, marks=requires_oracle(name)) for name in ENVIRONMENTS])
def test_where_the_cache_lies(environment: str) -> None:
    given = [{"HOME": "/h", **variables} for variables in VARIABLES]
    assert [hub.cache_path(variables) for variables in given] == run_parser(environment, PATHS, given)


@pytest.mark.parametrize("environment", [pytest.param(name, marks=requires_oracle(name)) for name in ENVIRONMENTS])
def test_what_it_holds(environment: str, tmp_path: Path) -> None:
    for folder, revision in (
        ("models--acme--base", "a" * 40),
        ("models--gpt2", "b" * 40),
        ("datasets--x--y", "c" * 40),
    ):
        snapshot = tmp_path / folder / "snapshots" / revision
        for path, text in (
            (tmp_path / folder / "refs" / "main", revision),
            (tmp_path / folder / "blobs" / "1", "{}"),
        ):
            path.parent.mkdir(parents=True)
            path.write_text(text)
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").symlink_to("../../blobs/1")
    broken = tmp_path / "models--acme--broken"
    (broken / "snapshots" / ("d" * 40)).mkdir(parents=True)
    (broken / "refs").mkdir()
    (broken / "refs" / "main").write_text("d" * 40)
    scanned, loadable = run_parser(environment, SCAN, str(tmp_path))
    assert hub.cached({"HF_HUB_CACHE": str(tmp_path)}) == tuple(scanned) == ("acme/base", "datasets/x/y", "gpt2")
    assert loadable == [True, True, False, False]
