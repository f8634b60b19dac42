"""This machine: only what is asked for, nothing secret, nothing loaded without need."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from mgpu_doctor.collect import attempt, host, machine
from mgpu_doctor.collect.environment import MASK, masked, relevant
from mgpu_doctor.collect.machine import ALL, ORIGIN, UNASKED, accelerate_default_config, this_machine
from mgpu_doctor.model.facts import Facts
from mgpu_doctor.model.known import Unknown


def test_only_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISABLE_DEVICES", "0")
    monkeypatch.setenv("MASTER_PORT", "29511")
    monkeypatch.setenv("SOMETHING_PRIVATE", "x")
    facts = this_machine(frozenset({"environment"}))
    assert facts.origin == ORIGIN
    assert facts.gpus == facts.packages == facts.ports_in_use == UNASKED
    assert not isinstance(facts.environment, Unknown)
    assert facts.environment["MASTER_PORT"] == "29511"
    assert facts.environment["CUDA_VISABLE_DEVICES"] == "0"
    assert "SOMETHING_PRIVATE" not in facts.environment
    assert not isinstance(facts.environment_names, Unknown)
    assert "SOMETHING_PRIVATE" in facts.environment_names


def test_everything_is_a_value_or_a_reason() -> None:
    facts = this_machine(ALL)
    assert facts.platform == host.platform()
    for value in (facts.gpus, facts.packages, facts.interfaces, facts.ports_in_use, facts.limits, facts.shm_gib):
        assert value != UNASKED


def test_the_environment_alone_loads_nothing_heavy() -> None:
    code = (
        "import sys; from mgpu_doctor.collect.machine import this_machine; "
        "this_machine(frozenset({'environment'})); "
        "print([m for m in ('psutil', 'pynvml', 'socket', 'subprocess', 'importlib.metadata') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "hf_secret", "SLURM_JWT_TOKEN", "DB_PASSWORD"]
)
def test_secrets_are_masked_by_name(name: str) -> None:
    assert masked(name, "abc") == MASK


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "CUDA_VISIBLE_DEVICES", "PYTHONPATH", "KEYBOARD"])
def test_other_names_are_not(name: str) -> None:
    assert masked(name, "0,1") == "0,1"


def test_secrets_are_masked_by_form() -> None:
    assert masked("NCCL_NOTE", "http://user:pw@host/x") == f"http://{MASK}@host/x"
    assert "abcdefgh" not in masked("HF_NOTE", "hf_abcdefghijkl")
    assert relevant({"HF_TOKEN": "hf_abcdefghijkl", "X": "1"}) == {"HF_TOKEN": MASK}


def test_default_configuration_of_accelerate(tmp_path: Path) -> None:
    file = tmp_path / "hf" / "accelerate" / "default_config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("num_processes: 1\n")
    assert (
        accelerate_default_config({"HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": "/nowhere"})
        == "num_processes: 1\n"
    )
    other = tmp_path / "xdg" / "huggingface" / "accelerate" / "default_config.yaml"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"\xff")
    assert isinstance(accelerate_default_config({"XDG_CACHE_HOME": str(tmp_path / "xdg")}), Unknown)
    assert accelerate_default_config({"HF_HOME": str(tmp_path)}) is None


def test_what_fails_or_hangs_spoils_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def fail(*_: object) -> dict[str, Any]:
        raise ZeroDivisionError("no such luck")

    def hang(*_: object) -> dict[str, Any]:
        gate.wait(60)
        return {}

    answers = {"gpus": fail, "ports": hang, "accelerate_config": lambda *_: {"accelerate_default_config": "x: 1"}}
    parts = [machine._Part(part.need, part.fields, answers.get(part.need, part.look)) for part in machine._PARTS]
    monkeypatch.setattr(machine, "_PARTS", tuple(parts))
    monkeypatch.setattr(attempt.look_at_all, "__defaults__", (0.5,))
    try:
        facts = this_machine(frozenset({"gpus", "ports", "accelerate_config", "interfaces"}))
    finally:
        gate.set()
    assert facts.gpus == facts.driver == Unknown("looking for it failed: ZeroDivisionError: no such luck")
    assert facts.ports_in_use == Unknown("the machine did not answer within 0.5 s")
    assert facts.accelerate_default_config == "x: 1"
    assert not isinstance(facts.interfaces, Unknown)
    assert facts.packages == UNASKED


def test_one_collector_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> float:
        raise OSError("the disk is on fire")

    monkeypatch.setattr(host, "cpu_count", fail)
    facts = this_machine(frozenset({"host"}))
    assert facts.cpu_count == Unknown("looking for it failed: OSError: the disk is on fire")
    assert isinstance(facts.host_memory_gib, float)


def test_what_one_part_does_not_know_another_may(monkeypatch: pytest.MonkeyPatch) -> None:
    def part(need: str, value: object) -> machine._Part:
        return machine._Part(need, ("nvswitch",), lambda *_: {"nvswitch": value})

    ignorance = Unknown("not seen")
    for first, second, known in ((True, ignorance, True), (ignorance, False, False), (True, False, False)):
        monkeypatch.setattr(machine, "_PARTS", (part("host", first), part("gpus", second)))
        assert this_machine(frozenset({"host", "gpus"})).nvswitch is known


def test_every_part_fills_its_facts() -> None:
    for part in machine._PARTS:
        found = part.look(dict(os.environ), None)
        assert set(part.fields) <= set(found), part.need
        assert set(found) <= {field.name for field in fields(Facts)}
