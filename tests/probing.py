"""Real probes for tests: a command line becomes a launch on this machine, and the probe runs it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mgpu_doctor.collect.machine import this_machine
from mgpu_doctor.diagnose import Request, read_scripts, read_sources, resolve_launches
from mgpu_doctor.knowledge import PackageKnowledge
from mgpu_doctor.model.facts import Facts
from mgpu_doctor.model.launch import Launch
from mgpu_doctor.model.observation import Observation, RankSeen, StageSeen
from mgpu_doctor.probe import ProbePlan, probe
from mgpu_doctor.probe.measure import CURES, LIMITS, Measurement
from mgpu_doctor.probe.session import opened
from mgpu_doctor.probe.start import plain_start
from mgpu_doctor.probe.worker import FAULT_VARIABLE
from mgpu_doctor.read.workspace import LocalWorkspace

NO_GPUS = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu", "DISABLE_VERSION_CHECK": "1"}
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launch_here(text: str, python: Path, directory: Path) -> tuple[Launch, Facts]:
    """What a command line would start on this machine, and the machine."""
    facts = this_machine(python=str(python))
    workspace = LocalWorkspace(str(directory), facts)
    sources, _, _ = read_sources(Request(command=text, directory=str(directory)))
    scripts = read_scripts(sources, facts, workspace)
    knowledge = PackageKnowledge(facts, site_packages=facts.site_packages)
    launches = resolve_launches(scripts, facts, knowledge, workspace)
    assert launches, f"{text!r} launches nothing"
    return launches[0], facts


@contextmanager
def surroundings(python: Path, fault: str | None = None) -> Iterator[None]:
    """The environment of a shell in which this interpreter's commands come first, without GPUs."""
    before = dict(os.environ)
    os.environ.update(NO_GPUS, PATH=f"{python.parent}:/usr/bin:/bin")
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)
    if fault is not None:
        os.environ[FAULT_VARIABLE] = fault
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def observe(
    text: str | None,
    python: Path,
    directory: Path,
    *,
    fault: str | None = None,
    processes: int | None = None,
    deadline_s: float = 90,
) -> Observation:
    """Probe a command (None: without one) as if it were typed in ``directory``; nothing of it may be left."""
    with surroundings(python, fault), scratch() as place:
        os.environ["TMPDIR"] = place
        if text is None:
            plan = ProbePlan(None, Facts(), processes, str(python), str(directory), deadline_s, cpu=True)
        else:
            launch, facts = launch_here(text, python, directory)
            plan = ProbePlan(launch, facts, processes, None, str(directory), deadline_s)
        began = time.monotonic()
        seen = probe(plan)
        assert time.monotonic() - began < deadline_s + 10
        assert left_of(place) == []
        assert os.listdir(place) == []
    return seen


def measure(
    python: Path,
    fault: str,
    limits: Mapping[str, float],
    *,
    processes: int = 2,
    cures: Mapping[str, tuple[Mapping[str, str], ...]] = CURES,
) -> Observation:
    """Probe without a command where a fault is injected; ``limits`` are seconds for stages that are known to hang."""
    with surroundings(python, fault), scratch() as place:
        with opened("feedcafe", 150, cpu=True) as session:
            start = plain_start(Facts(), processes, str(python), session.worker, cpu=True)
            seen = Measurement(session, start, Facts(), lambda _: None, cures, {**LIMITS, **limits}).run()
        assert left_of(place) == []
        assert os.listdir(place) == []
    return seen


@contextmanager
def scratch() -> Iterator[str]:
    """A place of its own for temporary files, by which everything that is left can be told."""
    before, tempfile.tempdir = tempfile.tempdir, None
    place = tempfile.mkdtemp(prefix="mgd-", dir="/tmp")
    tempfile.tempdir = place
    try:
        yield place
    finally:
        tempfile.tempdir = before
        os.rmdir(place)


def left_of(place: str) -> list[str]:
    """The processes that still have something to do with a place: in their words or their environment."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) == os.getpid():
            continue
        try:
            text = Path("/proc", pid, "cmdline").read_bytes() + Path("/proc", pid, "environ").read_bytes()
        except OSError:
            continue
        if place.encode() in text:
            found.append(f"{pid}: {text[:200]!r}")
    return found


def stage(seen: Observation, name: str) -> StageSeen:
    """The stage of that name."""
    return next(one for one in seen.stages if one.name == name)


def states(seen: Observation) -> dict[str, str]:
    """How each stage went."""
    return {one.name: one.state for one in seen.stages}


def rank(seen: Observation, number: int) -> RankSeen:
    """The process with that rank."""
    return next(one for one in seen.ranks if one.rank == number)
