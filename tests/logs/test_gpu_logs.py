"""What torch printed on a real GPU when these faults were provoked, and the cause that it is read as."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpu_doctor.diagnose_logs import diagnose_logs
from mgpu_doctor.registry import load_checks
from mgpu_doctor.settings import Settings

LOGS = Path(__file__).parent.parent / "fixtures" / "logs"


@pytest.mark.parametrize(
    ("log", "slug"),
    [
        ("nccl-duplicate-gpu", "single-gpu-in-fact"),
        ("invalid-ordinal", "more-processes-than-gpus"),
        ("small-shm", "shm-too-small"),
        ("gpu-memory", "gpu-out-of-memory"),
        ("no-visible-device", "no-visible-device"),
    ],
)
def test_the_cause_is_named_and_nothing_else(log: str, slug: str) -> None:
    report = diagnose_logs([str(LOGS / f"torch-2.11-h200-{log}.txt")], load_checks(), Settings())
    assert [finding.slug for finding in report.findings] == [slug]
    assert not report.problems
