"""The rules that read what a run showed."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launching import HOST, launch
from mgpu_checks.devices import more_processes_than_gpus
from mgpu_checks.engine import config_single_process
from mgpu_checks.launch import independent_copies, nested_launchers
from mgpu_checks.verdict import (
    collective_hangs,
    collective_wrong,
    gpus_idle_in_fact,
    no_speed_up,
    single_gpu_in_fact,
    single_process_in_fact,
    slow_link,
    slow_rank,
)
from mgpu_doctor.examine import examine
from mgpu_doctor.mend import apply_edits
from mgpu_doctor.model.case import Case
from mgpu_doctor.model.facts import Facts, Gpu, GpuProcess
from mgpu_doctor.model.finding import Finding, Outcome, OutcomeKind, Severity
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.observation import LinkSeen, Observation
from mgpu_doctor.model.rule import Check
from observations import UUIDS, any_observation, healthy, rank, stages

ALONE = (
    single_gpu_in_fact,
    single_process_in_fact,
    gpus_idle_in_fact,
    collective_wrong,
    collective_hangs,
    no_speed_up,
    slow_rank,
    slow_link,
)
CONFIRMED = (independent_copies, nested_launchers, more_processes_than_gpus, config_single_process)
MACHINE = replace(HOST, gpus=tuple(Gpu(index, uuid=uuid) for index, uuid in enumerate(UUIDS)), topology="NV12")
TORCHRUN = "torchrun --nproc-per-node 2 train.py"


def outcome(
    module: ModuleType, seen: Observation | None, command: str | None = TORCHRUN, facts: Facts = MACHINE
) -> Outcome:
    """What one rule says of an observation."""
    launches = () if command is None else (launch(command, facts),)
    nothing: Any = None
    case = Case((), (), launches, facts, nothing, nothing, "probe", seen)
    (found,) = examine(case, (Check(module.RULE, module.find),))
    assert found.kind is not OutcomeKind.CRASHED, found.reason
    return found


def only(module: ModuleType, seen: Observation, command: str | None = TORCHRUN, facts: Facts = MACHINE) -> Finding:
    """The one finding."""
    (finding,) = outcome(module, seen, command, facts).findings
    return finding


@pytest.mark.parametrize("module", ALONE, ids=lambda module: module.RULE.slug)
def test_without_a_run_the_rules_are_skipped(module: ModuleType) -> None:
    found = outcome(module, None)
    assert found.kind is OutcomeKind.SKIPPED
    assert "mgpu-doctor probe" in (found.reason or "")


@pytest.mark.parametrize("module", [*ALONE, *CONFIRMED], ids=lambda module: module.RULE.slug)
@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_healthy_job_is_left_alone(module: ModuleType, count: int) -> None:
    command = f"torchrun --nproc-per-node {count} train.py"
    assert outcome(module, healthy(count), command).kind is OutcomeKind.OK
    assert outcome(module, healthy(count), None).kind is OutcomeKind.OK


@given(any_observation, st.sampled_from([None, TORCHRUN, "accelerate launch --num_processes 2 train.py"]))
def test_no_observation_makes_a_rule_crash(seen: Observation, command: str | None) -> None:
    for module in (*ALONE, *CONFIRMED):
        outcome(module, seen, command)


def test_a_finding_of_the_machine_alone_names_the_probe() -> None:
    shared = healthy(2, ranks=(rank(0), rank(1, uuid=UUIDS[0])))
    finding = only(single_gpu_in_fact, shared, None)
    assert (finding.location, finding.subject) == (None, "the probe")
    assert only(single_gpu_in_fact, shared).location is not None


def test_the_contention_on_one_card_is_said() -> None:
    seen = healthy(2, ranks=tuple(rank(n, uuid=UUIDS[0], solo_ms=1.43, together_ms=3.6) for n in range(2)))
    assert "2.5 times as long as alone" in only(single_gpu_in_fact, seen).message


def test_copies_on_one_card_are_copies_and_not_a_shared_card() -> None:
    seen = healthy(2, ranks=tuple(rank(0, 1, pid=n, uuid=UUIDS[0]) for n in range(2)))
    assert not outcome(single_gpu_in_fact, seen).findings
    assert only(independent_copies, seen).severity is Severity.ERROR


def test_a_run_confirms_what_the_command_says_instead_of_saying_it_twice() -> None:
    two = replace(MACHINE, gpus=(Gpu(0, uuid=UUIDS[0]),))
    seen = healthy(2, ranks=tuple(rank(n, uuid=UUIDS[0], device_count=1, visible=None) for n in range(2)))
    finding = only(more_processes_than_gpus, seen, TORCHRUN, two)
    assert finding.fix is not None
    assert finding.fix.edits
    assert "measured: 2 processes ran, and all of them see the same 1 GPU" in finding.evidence[-1].text


def test_ranks_that_each_see_their_own_gpu_are_not_too_many() -> None:
    own = tuple(rank(n, device_count=1, visible=str(n)) for n in range(2))
    assert not outcome(more_processes_than_gpus, healthy(2, ranks=own)).findings
    # Of unknown identity, but each sees another device.
    unseen = tuple(replace(one, uuid=Unknown("no NVML")) for one in own)
    assert not outcome(more_processes_than_gpus, healthy(2, ranks=unseen)).findings


def test_a_default_file_that_cannot_be_read_is_named_by_what_it_did() -> None:
    hidden = replace(MACHINE, accelerate_default_config=Unknown("no permission"))
    command = "accelerate launch --num_processes 4 train.py"
    finding = only(config_single_process, healthy(1), command, hidden)
    assert "8 GPUs are visible, and one process ran" in finding.message
    one_visible = healthy(1, ranks=(rank(0, 1, device_count=1),))
    assert not outcome(config_single_process, one_visible, command, hidden).findings


def test_a_hang_tells_where_each_rank_stands_and_what_helps() -> None:
    hung = tuple(
        rank(n, state="hung", stage="collective", stack=("a.py:1 in main", "b.py:2 in step", "c.py:3 in all_reduce"))
        for n in range(2)
    )
    seen = healthy(2, ranks=hung, stages=stages(collective="hung"), cured_by="NCCL_P2P_DISABLE=1", bad_pairs=((0, 1),))
    finding = only(collective_hangs, seen)
    text = "\n".join(item.text for item in finding.evidence)
    assert "rank 1 on GPU 1 (GPU-00000001): a.py:1 in main > b.py:2 in step > c.py:3 in all_reduce" in text
    assert "ranks 0 and 1 (GPU 0 (GPU-00000000) and GPU 1 (GPU-00000001)) cannot talk to each other" in text
    assert "with NCCL_P2P_DISABLE=1 it came back" in text
    assert finding.fix is not None
    assert apply_edits(finding.fix.edits[0].source.text, finding.fix.edits) == f"NCCL_P2P_DISABLE=1 {TORCHRUN}"


def test_a_pair_without_a_cure_is_to_be_left_out() -> None:
    hung = tuple(rank(n, 3, state="hung") for n in range(3))
    seen = healthy(3, ranks=hung, stages=stages(collective="hung"), bad_pairs=((1, 2),))
    finding = only(collective_hangs, seen)
    assert finding.fix is not None
    assert "leave one of GPU 1 (GPU-00000001) and GPU 2 (GPU-00000002) out" in finding.fix.title


def test_a_rank_that_hangs_by_itself_is_named_with_its_step() -> None:
    ranks = (rank(0), rank(1, state="hung", stack=("worker.py:7 in multiply",)))
    finding = only(collective_hangs, healthy(2, ranks=ranks, stages=stages(solo="hung")))
    assert "Rank 1 did not come back" in finding.message
    assert "a matrix product, while the others rested" in finding.message
    assert "worker.py:7 in multiply" in finding.evidence[0].text


def test_of_several_timings_the_middle_decides() -> None:
    def timed(*together: float) -> Observation:
        ranks = tuple(rank(n, len(together), together_ms=value, solo_ms=1.0) for n, value in enumerate(together))
        return healthy(len(together), ranks=ranks)

    assert "2.0 times" in only(no_speed_up, timed(2.0, 2.2, 1.0, 2.0)).message
    assert not outcome(no_speed_up, timed(1.0, 2.2)).findings
    assert not outcome(no_speed_up, timed(1.49, 1.49)).findings
    assert not outcome(no_speed_up, timed(1.0, 1.0, 1.0, 9.0)).findings


def test_timings_shorter_than_the_timer_mean_nothing() -> None:
    ranks = tuple(rank(n, solo_ms=0.004 * (n + 1), together_ms=0.02) for n in range(2))
    assert not outcome(no_speed_up, healthy(2, ranks=ranks)).findings
    assert not outcome(slow_rank, healthy(2, ranks=ranks)).findings


def test_too_few_processors_are_a_suspect() -> None:
    ranks = tuple(rank(n, 4, solo_ms=1.0, together_ms=3.0) for n in range(4))
    finding = only(no_speed_up, healthy(4, ranks=ranks), None, replace(MACHINE, cpu_count=2.0))
    assert "4 ranks share 2 processors" in [item.text for item in finding.evidence]


def test_a_slow_card_is_named_with_what_is_known_of_it() -> None:
    gpus = tuple(
        Gpu(n, uuid=uuid, clock_events=("hw_thermal_slowdown", "gpu_idle") if n == 2 else (), temperature_c=40 + 20 * n)
        for n, uuid in enumerate(UUIDS)
    )
    holders = (GpuProcess(2, 99, "python other.py"),)
    ranks = tuple(rank(n, 4, solo_ms=2.0 if n == 2 else 1.0, together_ms=2.0 if n == 2 else 1.0) for n in range(4))
    facts = replace(MACHINE, gpus=gpus, gpu_processes=holders)
    finding = only(slow_rank, healthy(4, ranks=ranks), None, facts)
    assert finding.severity is Severity.WARNING
    assert finding.message.startswith(
        "Rank 2 on GPU 2 (GPU-00000002) needs 2.00 ms alone for what the others need 1.00"
    )
    assert [item.text for item in finding.evidence] == [
        "its clocks are lowered: hw_thermal_slowdown",
        "it has 80 °C",
        "process 99 (python other.py) uses it too",
    ]


def test_of_two_ranks_nobody_is_blamed() -> None:
    ranks = (rank(0, solo_ms=1.0, together_ms=1.0), rank(1, solo_ms=1.5, together_ms=1.5))
    assert "of two alone one cannot tell which is out of order" in only(slow_rank, healthy(2, ranks=ranks)).message


def test_cards_of_different_models_may_differ() -> None:
    names = ("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 3090")
    ranks = tuple(rank(n, solo_ms=1.0 + n, together_ms=1.0 + n, device_name=names[n]) for n in range(2))
    assert only(slow_rank, healthy(2, ranks=ranks)).severity is Severity.ADVICE


def _linked(transport: str | Unknown, **over: Any) -> Observation:
    return healthy(2, links=(LinkSeen(0, 1, transport=transport, **over),))


def test_a_detour_is_named_with_the_setting_behind_it() -> None:
    facts = replace(MACHINE, environment={"NCCL_P2P_DISABLE": "1"})
    finding = only(slow_link, _linked("SHM/direct", gib_per_s=8.5), TORCHRUN, facts)
    assert "over SHM/direct at 8.5 GiB/s" in finding.message
    assert finding.fix is not None
    assert finding.fix.title == "unset NCCL_P2P_DISABLE"
    per_pair = replace(facts, topology={"0-1": "NV4"})
    assert "joined by NV4" in only(slow_link, _linked("NET/Socket"), TORCHRUN, per_pair).evidence[0].text


@pytest.mark.parametrize("topology", ["SYS", "NODE", "PHB", {"2-3": "NV12"}])
def test_host_memory_is_right_where_no_direct_way_is(topology: Any) -> None:
    found = outcome(slow_link, _linked("SHM/direct", peer_access=True), TORCHRUN, replace(MACHINE, topology=topology))
    assert found.kind is OutcomeKind.OK


def test_an_unknown_topology_is_no_guess() -> None:
    facts = replace(MACHINE, topology=Unknown("nvidia-smi was not asked"))
    found = outcome(slow_link, _linked("SHM/direct", peer_access=True), TORCHRUN, facts)
    assert (found.kind, found.reason) == (OutcomeKind.SKIPPED, "nvidia-smi was not asked")
    assert outcome(slow_link, _linked("P2P/CUMEM"), TORCHRUN, facts).kind is OutcomeKind.OK


def test_ranks_on_two_machines_talk_over_the_network() -> None:
    seen = replace(_linked("NET/IB"), ranks=(rank(0), rank(1, host="node2")))
    assert outcome(slow_link, seen).kind is OutcomeKind.OK


def test_idle_gpus_count_only_where_they_were_meant_for_the_job() -> None:
    idle = healthy(2, idle_uuids=UUIDS[2:])
    assert not outcome(gpus_idle_in_fact, idle).findings
    listed = "CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 " + TORCHRUN
    assert "GPU 2, GPU 3, GPU 4" in only(gpus_idle_in_fact, idle, listed).message
    assert outcome(gpus_idle_in_fact, healthy(2, idle_uuids=Unknown("no NVML"))).kind is OutcomeKind.SKIPPED
