"""The probe on a real GPU: one is enough to see what two ranks on it look like."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from mgpu_doctor.collect.machine import this_machine
from mgpu_doctor.model.facts import Gpu
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.observation import Observation
from mgpu_doctor.probe import ProbePlan, probe
from mgpu_doctor.probe.worker import FAULT_VARIABLE
from probing import left_of, rank, scratch, stage, states

pytestmark = pytest.mark.gpu


@lru_cache(maxsize=1)
def torch_on_gpu() -> str | None:
    """An interpreter whose torch sees a GPU; None without one. MGPU_DOCTOR_TORCH_PYTHON names one."""
    if shutil.which("nvidia-smi") is None:
        return None
    for name in (os.environ.get("MGPU_DOCTOR_TORCH_PYTHON"), sys.executable, shutil.which("python3")):
        if name is None:
            continue
        asked = [name, "-c", "import torch; raise SystemExit(not torch.cuda.is_available())"]
        if subprocess.run(asked, capture_output=True, check=False).returncode == 0:
            return name
    return None


def gpu_zero() -> Gpu:
    """The first GPU as NVML shows it."""
    gpus = this_machine(frozenset({"gpus"})).gpus
    assert not isinstance(gpus, Unknown)
    return gpus[0]


def on_the_first_gpu(monkeypatch: pytest.MonkeyPatch, processes: int, fault: str | None = None) -> Observation:
    """A probe without a command on one GPU; nothing of it may be left."""
    python = torch_on_gpu()
    if python is None:
        pytest.skip("no torch that sees a GPU")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    if fault is not None:
        monkeypatch.setenv(FAULT_VARIABLE, fault)
    with scratch() as place:
        seen = probe(ProbePlan(None, this_machine(python=python), processes, python, "/", 60))
        assert left_of(place) == []
        assert os.listdir(place) == []
    assert [name for name in os.listdir("/dev/shm") if name.startswith("nccl-")] == []
    return seen


def test_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = on_the_first_gpu(monkeypatch, 1)
    (alone,) = seen.ranks
    gpu = gpu_zero()
    assert seen.on_gpu
    assert (alone.uuid, alone.device_name, alone.physical_index) == (gpu.uuid, gpu.name, gpu.index)
    assert isinstance(alone.solo_ms, float)
    assert 0 < alone.solo_ms < 1000
    assert {one.state for one in seen.stages} <= {"ok", "skipped"}
    assert (seen.backend, states(seen)["collective"], seen.sum_measured) == ("nccl", "ok", (1.0,))
    assert seen.notes == ()
    assert {"torch", "cuda", "python"} <= set(seen.versions)


def test_two_ranks_on_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = on_the_first_gpu(monkeypatch, 2)
    assert {one.uuid for one in seen.ranks} == {gpu_zero().uuid}
    assert seen.backend == "gloo"
    assert states(seen)["group"] == "ok"
    assert "two ranks on one device" in stage(seen, "group").detail
    assert states(seen)["collective"] == "skipped"
    for one in seen.ranks:
        assert isinstance(one.solo_ms, float)
        assert isinstance(one.together_ms, float)
        assert 1.5 < one.together_ms / one.solo_ms < 4
    assert any("has no device of its own" in note for note in seen.notes)


def test_a_rank_that_is_killed_while_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = on_the_first_gpu(monkeypatch, 2, "kill:together:1")
    assert (stage(seen, "together").state, stage(seen, "together").ranks) == ("failed", (1,))
    assert rank(seen, 1).signal == "SIGKILL"


def test_a_rank_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = on_the_first_gpu(monkeypatch, 2, "hang:solo:1")
    assert (stage(seen, "solo").state, stage(seen, "solo").ranks) == ("hung", (1,))
    assert any("misbehave" in frame for frame in rank(seen, 1).stack)
    assert {one.uuid for one in seen.ranks} == {gpu_zero().uuid}


def test_the_interpreter_that_is_probed_has_its_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = on_the_first_gpu(monkeypatch, 1)
    python = torch_on_gpu()
    assert python is not None
    asked = [python, "-c", "import torch; print(torch.__version__)"]
    version = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.strip()
    assert seen.versions["torch"] == version
