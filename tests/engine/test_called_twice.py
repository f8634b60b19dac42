from __future__ import annotations

from pathlib import Path

from mgpu_doctor.diagnose import Request, diagnose


def test_what_is_wrong_in_a_script_is_said_once_however_many_texts_call_it(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("torchrun --nproc_per_node 2 train.py\n  --lr 1\n")
    for name in ("a.sh", "b.sh"):
        (tmp_path / name).write_text("bash run.sh\n")
    report = diagnose(Request(mode="lint", directory=str(tmp_path), files=("a.sh", "./run.sh", "b.sh")))
    assert [(finding.code, str(finding.location).removeprefix("./")) for finding in report.findings] == [
        ("MGD803", "run.sh:2:3")
    ]
