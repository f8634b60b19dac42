from __future__ import annotations

from pathlib import Path

from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.registry import Registry


def test_a_byte_order_mark_does_not_hide_the_first_command(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("\ufefftorchrun --nproc-per-node 2 t.py\n", encoding="utf-8")
    report = diagnose(Request(mode="lint", files=("run.sh",), directory=str(tmp_path)), Registry((), ()))
    (launch,) = report.case.launches
    assert launch.command.source.slice(launch.layers[0].span) == "torchrun"
