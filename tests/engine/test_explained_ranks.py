"""The table of ranks that ``explain`` shows, from the command to the text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.registry import Registry
from mgpu_doctor.render import plain
from mgpu_doctor.testing import standard_facts


def explained(command: str, top: Path) -> str:
    facts = top / "facts.json"
    facts.write_text(json.dumps(standard_facts()), encoding="utf-8")
    request = Request(mode="explain", command=command, facts=str(facts), directory=str(top))
    return "\n".join(plain.explain_lines(diagnose(request, Registry((), ())), None, ()))


@pytest.mark.parametrize(
    ("command", "shown", "hidden"),
    [
        (
            "CUDA_VISIBLE_DEVICES=4,5 torchrun --nproc-per-node 2 t.py",
            ("rank 0: cuda:0 = GPU 4", "rank 1: cuda:1 = GPU 5"),
            "not known",
        ),
        (
            "CUDA_VISIBLE_DEVICES=2,3 llamafactory-cli chat --model_name_or_path m --template qwen",
            ("rank 0: cuda:0 = GPU 2", "rank 0: cuda:1 = GPU 3", "one model spread over the cards"),
            "rank 1",
        ),
        (
            "CUDA_VISIBLE_DEVICES=6 torchrun --nproc-per-node 2 t.py",
            ("rank 0: cuda:0 = GPU 6", "rank 1: no device"),
            "not known",
        ),
        (
            "accelerate launch --num_processes 4 -m torch.distributed.run --nproc-per-node 2 t.py",
            ("a launcher runs inside a launcher",),
            "rank 0",
        ),
    ],
)
def test_ranks(command: str, shown: tuple[str, ...], hidden: str, tmp_path: Path) -> None:
    text = explained(command, tmp_path)
    assert all(part in text for part in shown), text
    assert hidden not in text
