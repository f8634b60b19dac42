"""Workers that die, hang, lie or shout, and doctors that are interrupted: what is seen, and that nothing is left."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import mgpu_doctor
from mgpu_doctor.model.facts import Facts
from mgpu_doctor.model.observation import Observation
from mgpu_doctor.probe import ProbePlan, guard, probe
from mgpu_doctor.probe.worker import FAULT_VARIABLE
from oracle_environments import python_of, requires_oracle
from probing import NO_GPUS, left_of, measure, observe, rank, scratch, stage, states, surroundings

pytestmark = [
    pytest.mark.oracle,
    requires_oracle("new"),
    pytest.mark.skipif(sys.platform != "linux", reason="the probe's processes are followed through /proc"),
]
PYTHON = python_of("new") or Path("/nonexistent")
ORDER = ("start", "identity", "device", "solo", "together", "group", "collective", "links", "end")


def with_fault(fault: str, directory: Path, processes: int = 2, deadline_s: float = 60) -> Observation:
    return observe(None, PYTHON, directory, fault=fault, processes=processes, deadline_s=deadline_s)


@pytest.mark.parametrize(
    ("where", "seen_in"),
    [
        ("hello", "identity"),
        ("torch", "identity"),
        ("device", "device"),
        ("solo", "solo"),
        ("together", "together"),
        ("group", "group"),
        ("collective", "collective"),
        ("link", "links"),
        ("end", "end"),
    ],
)
def test_a_worker_that_is_killed(where: str, seen_in: str, tmp_path: Path) -> None:
    seen = with_fault(f"kill:{where}:1", tmp_path)
    at = stage(seen, seen_in)
    assert (at.state, at.ranks) == ("failed", (1,))
    assert at.detail == "a process was ended by SIGKILL"
    assert (rank(seen, 1).state, rank(seen, 1).signal) == ("killed", "SIGKILL")
    before = ORDER[: ORDER.index(seen_in)]
    assert {states(seen)[name] for name in before} <= {"ok"}
    assert seen.stages[-1] == at


def test_a_worker_that_ends_with_a_status(tmp_path: Path) -> None:
    seen = with_fault("exit:solo:0", tmp_path)
    assert (rank(seen, 0).state, rank(seen, 0).exit_code) == ("failed", 3)
    assert stage(seen, "solo").detail == "a process ended with status 3"


def test_a_worker_whose_device_fails_does_not_keep_the_others_from_meeting(tmp_path: Path) -> None:
    seen = with_fault("raise:device:1", tmp_path)
    assert stage(seen, "device").ranks == (1,)
    assert (rank(seen, 1).state, rank(seen, 1).stage) == ("failed", "device")
    assert rank(seen, 1).error == "RuntimeError: injected fault"
    assert states(seen)["group"] == "ok"


@pytest.mark.parametrize(
    ("where", "seen_in"),
    [
        ("driver", "identity"),
        ("torch", "identity"),
        ("device", "device"),
        ("solo", "solo"),
        ("together", "together"),
        ("group", "group"),
        ("link", "links"),
    ],
)
def test_a_worker_that_hangs(where: str, seen_in: str) -> None:
    limits = {seen_in: 12 if seen_in == "identity" else 2}
    seen = measure(PYTHON, f"hang:{where}:1", limits)
    at = stage(seen, seen_in)
    assert at.state == "hung"
    assert 1 in at.ranks
    stuck = rank(seen, 1)
    assert stuck.state == "hung"
    assert any("misbehave" in frame for frame in stuck.stack), stuck.stack


def test_the_rank_that_never_comes_to_the_collective_is_named() -> None:
    seen = measure(PYTHON, "hang:collective:1:unless=MGPU_DOCTOR_PROBE_ROUND", {"collective": 2})
    assert (stage(seen, "collective").state, stage(seen, "collective").ranks) == ("hung", (1,))
    assert any("misbehave" in frame for frame in rank(seen, 1).stack)
    assert any("all_reduce" in frame for frame in rank(seen, 0).stack)
    assert states(seen)["together"] == "ok"


def test_the_stack_is_told_even_while_the_interpreter_is_locked() -> None:
    seen = measure(PYTHON, "block:solo:0", {"solo": 2})
    assert stage(seen, "solo").state == "hung"
    assert rank(seen, 0).stack[-1].endswith("in misbehave")


def test_a_wrong_sum_is_seen_wherever_it_is_in_the_tensor(tmp_path: Path) -> None:
    seen = with_fault("wrong:collective:1", tmp_path)
    assert (stage(seen, "collective").state, stage(seen, "collective").ranks) == ("failed", (1,))
    assert seen.sum_expected == 3.0
    assert isinstance(seen.sum_measured, tuple)
    assert seen.sum_measured[0] == 3.0
    assert seen.sum_measured[1] != 3.0
    assert seen.cured_by is None
    assert states(seen)["links"] == "skipped"


def test_the_bad_pair_is_found() -> None:
    seen = measure(PYTHON, "hang:collective:2,hang:pair-0-2:0", {"collective": 3}, processes=3)
    assert stage(seen, "collective").state == "hung"
    assert seen.bad_pairs == ((0, 2),)


def test_no_pair_is_blamed_where_the_fault_does_not_come_back(tmp_path: Path) -> None:
    seen = with_fault("raise:collective:1:unless=MGPU_DOCTOR_PROBE_ROUND", tmp_path)
    assert stage(seen, "collective").state == "failed"
    assert seen.bad_pairs == ()
    assert any("passed when it was repeated" in note for note in seen.notes)


def test_the_setting_that_cures_is_named() -> None:
    cures = {"gloo": ({"FIRST_CURE": "1"}, {"SECOND_CURE": "1"})}
    seen = measure(PYTHON, "hang:collective:1:unless=SECOND_CURE", {"collective": 2}, cures=cures)
    assert stage(seen, "collective").state == "hung"
    assert seen.cured_by == "SECOND_CURE=1"


def test_the_deadline_of_the_whole_probe_is_kept(tmp_path: Path) -> None:
    seen = with_fault("hang:torch:*", tmp_path, deadline_s=6)
    assert [one.state for one in seen.stages][-1] == "hung"
    assert isinstance(seen.seconds, float)
    assert seen.seconds < 7


def test_a_worker_that_floods_the_output(tmp_path: Path) -> None:
    seen = with_fault("flood:solo:1,flood:torch:0", tmp_path)
    assert states(seen)["end"] == "ok"
    assert len(seen.output) <= 401
    assert max(map(len, seen.output)) <= 2000


def test_a_launcher_that_is_killed(tmp_path: Path) -> None:
    def kill_launcher(name: str) -> None:
        if name == "together":
            tree = guard.parents()
            launchers = [pid for pid, parent in tree.items() if tree.get(parent) == os.getpid()]
            assert len(launchers) == 1
            os.kill(launchers[0], signal.SIGKILL)

    with surroundings(PYTHON), scratch() as place:
        plan = ProbePlan(None, Facts(), 2, str(PYTHON), str(tmp_path), 40, cpu=True)
        seen = probe(plan, kill_launcher)
        assert left_of(place) == []
    assert states(seen)["solo"] == "ok"
    assert len(seen.ranks) == 2


@pytest.mark.parametrize("name", ["start", "identity", "solo", "collective"])
def test_an_interruption_leaves_nothing(name: str, tmp_path: Path) -> None:
    def interrupt(stage_name: str) -> None:
        if stage_name == name:
            raise KeyboardInterrupt

    with surroundings(PYTHON), scratch() as place:
        with pytest.raises(KeyboardInterrupt):
            probe(ProbePlan(None, Facts(), 2, str(PYTHON), str(tmp_path), 40, cpu=True), interrupt)
        assert left_of(place) == []
        assert os.listdir(place) == []


DOCTOR = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path[:0] = {paths!r}
from mgpu_doctor.model.facts import Facts
from mgpu_doctor.probe import ProbePlan, probe
probe(ProbePlan(None, Facts(), 2, {python!r}, "/", 60, cpu=True), lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_doctor_that_is_ended_takes_all_along(number: signal.Signals) -> None:
    with scratch() as place:
        code = DOCTOR.format(paths=[str(Path(mgpu_doctor.__file__).parent.parent)], python=str(PYTHON))
        environment = {**os.environ, **NO_GPUS, "TMPDIR": place, FAULT_VARIABLE: "hang:collective:1"}
        doctor = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        assert doctor.stdout is not None
        for line in doctor.stdout:
            if line == b"collective\n":
                break
        below = guard.descendants(doctor.pid, guard.parents())
        assert len(below) == 4, "guard, launcher and two workers"
        handles = [os.pidfd_open(pid) for pid in below]
        doctor.send_signal(number)
        assert doctor.wait(20) != 0
        doctor.stdout.close()
        for handle in handles:
            assert select.select([handle], [], [], 20)[0], "a process outlives the doctor"
            os.close(handle)
        assert left_of(place) == []
        assert os.listdir(place) == []


def repeat(times: int, directory: Path) -> None:
    memory = set(os.listdir("/dev/shm"))
    handles = len(os.listdir("/proc/self/fd"))
    for _ in range(times):
        assert states(observe(None, PYTHON, directory))["end"] == "ok"
    assert len(os.listdir("/proc/self/fd")) == handles
    left = {name for name in set(os.listdir("/dev/shm")) - memory if name.startswith(("nccl-", "torch_"))}
    assert left == set()


def test_repeated_probes_leave_nothing(tmp_path: Path) -> None:
    repeat(3, tmp_path)


@pytest.mark.slow
def test_a_hundred_probes_leave_nothing(tmp_path: Path) -> None:
    repeat(100, tmp_path)
