"""Real launchers start our worker: what they do with a command on this machine, without a GPU."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mgpu_doctor.model.facts import Facts
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.observation import Observation
from mgpu_doctor.probe.measure import Measurement
from mgpu_doctor.probe.session import opened
from mgpu_doctor.probe.start import Start, free_port
from oracle_environments import ENVIRONMENTS, python_of, requires_oracle
from probing import left_of, observe, rank, scratch, stage, states, surroundings

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(sys.platform != "linux", reason="the probe's processes are followed through /proc"),
]
ALL_OK = dict.fromkeys(("start", "identity", "device", "solo", "together", "group", "collective", "links", "end"), "ok")
ONE_PROCESS = "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nnum_processes: 1\nmixed_precision: 'no'\n"
FOUR_PROCESSES = ONE_PROCESS.replace("'NO'", "MULTI_GPU").replace("num_processes: 1", "num_processes: 4")

Probe = Callable[..., Observation]


@pytest.fixture
def probed(tmp_path: Path) -> Probe:
    """Probes a command with the launchers of an environment; the program in the directory fails when it is run."""
    (tmp_path / "train.py").write_text("raise SystemExit('the program itself was run')\n")

    def run(text: str | None, environment: str = "new", **how: object) -> Observation:
        python = python_of(environment)
        assert python is not None
        return observe(text, python, tmp_path, **how)  # type: ignore[arg-type]

    return run


@requires_oracle("new")
def test_without_a_command_two_workers_prove_the_cpu_path(probed: Probe) -> None:
    seen = probed(None)
    assert states(seen) == ALL_OK
    assert [one.rank for one in seen.ranks] == [0, 1]
    assert seen.promised_processes == 2
    assert (seen.on_gpu, seen.backend) == (False, "gloo")
    assert (seen.sum_expected, seen.sum_measured) == (3.0, (3.0, 3.0))
    assert isinstance(seen.all_reduce_gib_per_s, float)
    (link,) = seen.links
    assert (link.a, link.b) == (0, 1)
    assert isinstance(link.gib_per_s, float)
    assert link.gib_per_s > 0
    assert {one.state for one in seen.ranks} == {"done"}
    assert all(isinstance(one.solo_ms, float) and isinstance(one.together_ms, float) for one in seen.ranks)
    assert len({one.pid for one in seen.ranks}) == 2
    assert all(one.uuid is None and one.device_index is None for one in seen.ranks)
    assert seen.versions["torch"].startswith("2.13.0")
    assert (seen.launcher_exit_code, seen.launcher_error) == (0, None)


@requires_oracle("new")
def test_what_lies_in_the_users_directory_disturbs_no_plain_probe(probed: Probe, tmp_path: Path) -> None:
    for name in ("random.py", "queue.py", "torch.py"):
        (tmp_path / name).write_text("raise ImportError('shadowed')\n")
    assert states(probed(None)) == ALL_OK


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_accelerate_with_a_configuration_for_one_process(probed: Probe, tmp_path: Path, environment: str) -> None:
    if python_of(environment) is None:
        pytest.skip("no such environment")
    (tmp_path / "one.yaml").write_text(ONE_PROCESS)
    seen = probed("accelerate launch --config_file one.yaml --num_processes 4 train.py", environment)
    assert seen.promised_processes == 4
    (alone,) = seen.ranks
    assert isinstance(alone.rank, Unknown)
    assert isinstance(alone.world_size, Unknown)
    assert alone.state == "done"
    assert states(seen)["group"] == "skipped"
    assert "alone" in stage(seen, "group").detail


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_accelerate_with_the_configuration_repaired(probed: Probe, tmp_path: Path, environment: str) -> None:
    if python_of(environment) is None:
        pytest.skip("no such environment")
    (tmp_path / "four.yaml").write_text(FOUR_PROCESSES)
    command = f"accelerate launch --config_file four.yaml --main_process_port {free_port()} --num_processes 4 -m train"
    seen = probed(command, environment)
    assert states(seen) == ALL_OK
    assert [one.rank for one in seen.ranks] == [0, 1, 2, 3]
    assert {one.world_size for one in seen.ranks} == {4}
    assert seen.sum_measured == (10.0,) * 4
    assert len(seen.links) == 6


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_deepspeed_refuses_m(probed: Probe, environment: str) -> None:
    if python_of(environment) is None:
        pytest.skip("no such environment")
    seen = probed("deepspeed --num_gpus 4 -m llamafactory.launcher --stage sft", environment)
    assert seen.ranks == ()
    assert seen.promised_processes == 4
    assert seen.launcher_error is not None
    assert "unrecognized arguments: -m" in seen.launcher_error
    assert seen.launcher_exit_code == 2
    assert states(seen)["start"] == "failed"
    assert states(seen) == {"start": "failed"}


@requires_oracle("new")
def test_deepspeed_starts_ranks_without_a_gpu(probed: Probe) -> None:
    seen = probed(f"deepspeed --num_gpus 2 --master_port {free_port()} train.py")
    assert states(seen) == ALL_OK
    assert [one.visible for one in seen.ranks] == ["0,1", "0,1"]


@requires_oracle("new")
def test_a_launcher_in_a_launcher_multiplies(probed: Probe) -> None:
    seen = probed("torchrun --nproc-per-node 2 -m torch.distributed.run --standalone --nproc-per-node 2 train.py")
    assert len(seen.ranks) == seen.promised_processes == 4
    assert [one.rank for one in seen.ranks] == [0, 1, 0, 1]
    assert {one.world_size for one in seen.ranks} == {2}
    assert len({one.master for one in seen.ranks}) == 2
    assert seen.sum_measured == (3.0, 3.0)


@pytest.mark.slow
@requires_oracle("new")
def test_sixteen_processes_of_nested_launchers_are_counted(probed: Probe) -> None:
    command = "torchrun --nproc-per-node 4 -m torch.distributed.run --standalone --nproc-per-node 4 train.py"
    seen = probed(command, deadline_s=180)
    assert len(seen.ranks) == seen.promised_processes == 16
    assert states(seen)["group"] == "ok"


@requires_oracle("new")
def test_the_torchrun_that_llamafactory_starts(probed: Probe) -> None:
    seen = probed("FORCE_TORCHRUN=1 NPROC_PER_NODE=2 llamafactory-cli train a.yaml")
    assert states(seen) == ALL_OK
    assert len(seen.ranks) == 2


@requires_oracle("new")
def test_a_chat_is_one_process(probed: Probe) -> None:
    seen = probed("llamafactory-cli chat a.yaml")
    (alone,) = seen.ranks
    assert alone.state == "done"
    assert seen.promised_processes == 1
    assert isinstance(alone.solo_ms, float)


@requires_oracle("new")
def test_left_over_variables_promise_ranks_that_never_come(probed: Probe) -> None:
    seen = probed("WORLD_SIZE=4 RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29533 python train.py")
    assert [(one.rank, one.state) for one in seen.ranks] == [
        (0, "done"),
        (1, "missing"),
        (2, "missing"),
        (3, "missing"),
    ]
    assert stage(seen, "identity").ranks == (1, 2, 3)
    assert states(seen)["group"] == "failed"
    assert isinstance(seen.seconds, float)
    assert seen.seconds < 30


@requires_oracle("new")
def test_a_port_that_is_taken_stops_the_launcher(probed: Probe) -> None:
    with socket.socket() as thief:
        thief.bind(("", 0))
        thief.listen()
        seen = probed(f"torchrun --nproc-per-node 2 --master-port {thief.getsockname()[1]} train.py")
    assert states(seen)["start"] == "failed"
    assert seen.launcher_error is not None
    assert "EADDRINUSE" in seen.launcher_error
    assert seen.launcher_exit_code == 1


@requires_oracle("new")
def test_a_port_that_is_taken_stops_the_group(probed: Probe) -> None:
    with socket.socket() as thief:
        thief.bind(("", 0))
        thief.listen()
        seen = probed(f"deepspeed --num_gpus 2 --master_port {thief.getsockname()[1]} train.py", deadline_s=40)
    assert states(seen)["together"] == "ok"
    assert states(seen)["group"] == "failed"
    assert 0 in stage(seen, "group").ranks
    assert "EADDRINUSE" in str(rank(seen, 0).error)


@requires_oracle("new")
def test_a_launcher_that_is_not_there(probed: Probe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = probed("/no/such/bin/torchrun --nproc-per-node 2 train.py")
    assert states(seen)["start"] == "failed"
    assert seen.launcher_error == "/no/such/bin/torchrun: No such file or directory"


@requires_oracle("new")
def test_an_interpreter_without_torch(probed: Probe) -> None:
    seen = probed("python -I -S train.py")
    (alone,) = seen.ranks
    assert (alone.state, alone.stage) == ("failed", "identity")
    assert alone.error == "ModuleNotFoundError: No module named 'torch'"
    assert states(seen)["identity"] == "failed"


@requires_oracle("new")
def test_a_torch_that_is_broken(probed: Probe, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text(
        "raise ImportError('libcudart.so.12: cannot open shared object file')\n"
    )
    seen = probed(f"PYTHONPATH={tmp_path / 'broken'} python train.py")
    (alone,) = seen.ranks
    assert alone.error == "ImportError: libcudart.so.12: cannot open shared object file"


@requires_oracle("new")
def test_no_torch_for_torchs_own_launcher(tmp_path: Path) -> None:
    bare = tmp_path / "bin" / "python"
    bare.parent.mkdir()
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    seen = observe(None, bare, tmp_path)
    assert seen.ranks == ()
    assert "No module named 'torch'" in str(seen.launcher_error)


COPIES = """
import subprocess, sys
children = [subprocess.Popen([sys.executable, sys.argv[1]]) for _ in range(3)]
sys.exit(max(child.wait() for child in children))
"""


@requires_oracle("new")
def test_copies_that_know_nothing_of_each_other(tmp_path: Path) -> None:
    python = python_of("new")
    assert python is not None
    with surroundings(python), scratch() as place:
        with opened("feedbeef", 60, cpu=True) as session:
            argv = (str(python), "-c", COPIES, session.worker)
            start = Start(argv, dict(os.environ), str(tmp_path), "copies", 3, Unknown("no GPUs"))
            seen = Measurement(session, start, Facts(), lambda _: None).run()
        assert left_of(place) == []
    assert len(seen.ranks) == 3
    assert all(isinstance(one.rank, Unknown) for one in seen.ranks)
    assert all(isinstance(one.together_ms, float) for one in seen.ranks)
    assert states(seen)["group"] == "skipped"
    assert "each of the 3 processes" in stage(seen, "group").detail
