"""Facts recorded on real machines (anonymised, other packages left out): what is healthy there stays silent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgpu_doctor.collect.facts_file import dump_facts, load_facts
from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.model.record import replace

FACTS = Path(__file__).parent.parent / "fixtures" / "facts"
RECORDED = sorted(FACTS.glob("*.json"))
SCRIPT = """\
import os
import torch
import torch.distributed as dist

torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group("nccl")
"""


def slugs(facts: Path, command: str | None, directory: Path) -> list[str]:
    (directory / "train.py").write_text(SCRIPT, encoding="utf-8")
    report = diagnose(Request(facts=str(facts), command=command, directory=str(directory)))
    assert not report.problems
    return [finding.slug for finding in report.findings]


@pytest.mark.parametrize("facts", RECORDED, ids=lambda path: path.stem)
def test_the_healthy_machine_is_clean(facts: Path, tmp_path: Path) -> None:
    assert slugs(facts, None, tmp_path) == []
    assert slugs(facts, "torchrun --standalone --nproc-per-node 1 train.py", tmp_path) == []


def test_a_job_that_is_too_large_for_it_is_named(tmp_path: Path) -> None:
    command = "torchrun --standalone --nproc-per-node 2 train.py"
    assert slugs(FACTS / "one-h200.json", command, tmp_path) == ["more-processes-than-gpus"]


@pytest.mark.parametrize("facts", RECORDED, ids=lambda path: path.stem)
def test_nothing_is_lost_on_the_way_through_a_file(facts: Path, tmp_path: Path) -> None:
    first = load_facts(str(facts))
    again = tmp_path / "again.json"
    again.write_text(json.dumps(dump_facts(first)), encoding="utf-8")
    assert replace(load_facts(str(again)), origin="") == replace(first, origin="")
