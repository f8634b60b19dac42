"""The verdict: one word that is never kinder than what was seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given

from launching import HOST, launch
from mgpu_doctor.model.facts import Gpu
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.observation import Observation, RankSeen
from mgpu_doctor.model.observed import bare_uuid, wrong_sums
from mgpu_doctor.model.verdict import BROKEN, COPIES, CPU, MULTI, SHARED, SINGLE, UNKNOWN
from mgpu_doctor.verdict import judge
from observations import UUIDS, any_observation, healthy, rank, stages

HIDDEN = Unknown("it did not say")


def test_distinct_gpus_that_all_work_are_multi() -> None:
    verdict = judge(healthy(4))
    assert (verdict.word, verdict.as_promised, verdict.failed) == (MULTI, True, False)
    assert "4 processes form one group" in verdict.sentence
    assert [line.agree for line in verdict.comparisons[:5]] == [True] * 5


def test_equal_uuids_are_shared_also_where_nccl_refused_for_it() -> None:
    seen = healthy(
        2,
        ranks=(rank(0, state="failed", error="Duplicate GPU detected"), rank(1, uuid=UUIDS[0], physical_index=0)),
        stages=stages(collective="failed"),
    )
    verdict = judge(seen)
    assert (verdict.word, verdict.as_promised, verdict.failed) == (SHARED, False, True)
    assert "2 processes run on GPU 0 (GPU-00000000)" in verdict.sentence


def test_torchs_and_nvmls_spelling_of_a_uuid_are_one_device() -> None:
    seen = healthy(2, ranks=(rank(0), rank(1, uuid=UUIDS[0].removeprefix("GPU-").upper())))
    assert judge(seen).word == SHARED


def test_half_the_ranks_doubled_up_are_shared() -> None:
    seen = healthy(4, ranks=tuple(rank(number, 4, uuid=UUIDS[number % 2]) for number in range(4)))
    verdict = judge(seen)
    assert verdict.word == SHARED
    assert "ranks 0 and 2" in verdict.sentence
    assert "ranks 1 and 3" in verdict.sentence


def test_mig_instances_of_one_card_are_no_multi() -> None:
    instances = tuple(rank(number, uuid=f"MIG-{number}", pci_bus_id="0000:3B:00.0") for number in range(2))
    verdict = judge(healthy(2, ranks=instances, promised_uuids=HIDDEN))
    assert verdict.word == SHARED
    assert "MIG instances of one card" in verdict.sentence
    apart = tuple(replace(one, pci_bus_id=f"0000:{number}:00.0") for number, one in enumerate(instances))
    assert judge(healthy(2, ranks=apart, promised_uuids=HIDDEN)).word == MULTI


def test_processes_that_are_each_alone_are_copies() -> None:
    told_nothing = tuple(rank(0, 1, pid=number, rank=HIDDEN, world_size=HIDDEN) for number in range(3))
    verdict = judge(healthy(3, ranks=told_nothing))
    assert verdict.word == COPIES
    assert "3 processes that form no group" in verdict.sentence
    assert "all on GPU 0" in verdict.sentence


def test_groups_of_several_are_copies_too() -> None:
    nested = tuple(rank(number % 2, 2, pid=number, uuid=UUIDS[number]) for number in range(4))
    verdict = judge(healthy(2, ranks=nested))
    assert verdict.word == COPIES
    assert "2 groups of 2" in verdict.sentence
    assert verdict.comparisons[0].measured == "4 in 2 groups"


@pytest.mark.parametrize(
    ("state", "error", "says"),
    [
        ("failed", "CUDA error: invalid device ordinal", "invalid device ordinal"),
        ("killed", None, "killed by SIGKILL"),
        ("hung", None, "did not come back"),
    ],
)
def test_a_rank_that_does_not_finish_breaks_it(state: str, error: str | None, says: str) -> None:
    fallen = rank(1, state=state, error=error, signal="SIGKILL", stage="device")
    verdict = judge(healthy(2, ranks=(rank(0), fallen)))
    assert (verdict.word, verdict.stage) == (BROKEN, "device")
    assert "rank 1" in verdict.sentence
    assert says in verdict.sentence


def test_a_stage_that_hangs_names_itself_and_the_seconds() -> None:
    hung = tuple(rank(number, state="hung", stage="collective") for number in range(2))
    steps = tuple(
        replace(step, state="hung", seconds=20.0, ranks=(0, 1)) if step.name == "collective" else step
        for step in stages()
    )
    verdict = judge(healthy(2, ranks=hung, stages=steps))
    assert (verdict.word, verdict.stage) == (BROKEN, "collective")
    assert "ranks 0 and 1 did not come back within 20 s in the all_reduce" in verdict.sentence


def test_a_rank_that_never_reports_breaks_it() -> None:
    seen = healthy(2, ranks=(rank(0), rank(1, state="missing")), launcher_error="error: address already in use")
    verdict = judge(seen)
    assert verdict.word == BROKEN
    assert "1 of 2 processes never reported: error: address already in use" in verdict.sentence


def test_a_launcher_that_starts_nothing_breaks_it() -> None:
    verdict = judge(Observation("probe", "deepspeed -m x", (), launcher_exit_code=2))
    assert (verdict.word, verdict.stage) == (BROKEN, "start")
    assert "exit status 2" in verdict.sentence


@pytest.mark.parametrize("value", [2.9, float("nan"), float("inf")])
def test_a_wrong_sum_breaks_it_though_every_stage_is_well(value: float) -> None:
    verdict = judge(healthy(2, sum_measured=(3.0, value)))
    assert (verdict.word, verdict.stage) == (BROKEN, "collective")


def test_unknown_identity_is_said_to_be_unknown() -> None:
    verdict = judge(healthy(2, ranks=(rank(0), rank(1, uuid=HIDDEN))))
    assert verdict.word == UNKNOWN
    assert "rank 1" in verdict.sentence
    assert verdict.undecided


@pytest.mark.parametrize("name", ["group", "device", "collective"])
def test_what_was_not_tried_is_not_praised(name: str) -> None:
    assert judge(healthy(2, stages=stages(**{name: "skipped"}))).word == UNKNOWN
    without = tuple(step for step in stages() if step.name != name)
    assert judge(healthy(2, stages=without)).word == UNKNOWN


def test_measurements_may_be_missing() -> None:
    assert judge(healthy(2, stages=stages(solo="skipped", together="skipped", links="skipped"))).word == MULTI


def test_a_single_process_is_single_as_asked_or_not() -> None:
    asked = judge(healthy(1))
    assert (asked.word, asked.as_promised) == (SINGLE, True)
    assert "as asked" in asked.sentence
    fallen_back = judge(healthy(1, promised_processes=4))
    assert (fallen_back.word, fallen_back.failed) == (SINGLE, True)
    assert "though 4 were asked for" in fallen_back.sentence


def test_what_the_words_ask_for_counts_also_where_the_launch_foresees_one_process() -> None:
    one_gpu = replace(HOST, gpus=(Gpu(0, uuid=UUIDS[0]),))
    asking = launch("accelerate launch --num_processes 4 train.py", one_gpu)
    assert asking.world_size.known == 1
    verdict = judge(healthy(1, promised_processes=1), asking)
    assert (verdict.word, verdict.as_promised) == (SINGLE, False)
    assert verdict.comparisons[0].promised == "4"


def test_one_process_that_spreads_a_model_is_told_of_the_gpus_it_sees() -> None:
    chat = launch("llamafactory-cli chat --model_name_or_path m --template qwen")
    assert chat.spread.known == "split"
    verdict = judge(healthy(1), chat)
    assert verdict.word == SINGLE
    assert "sees 8 GPUs and may spread one model over them" in verdict.sentence


def on_cpu(count: int = 2, **over: Any) -> tuple[RankSeen, ...]:
    """Ranks that work on the CPU of a machine without GPUs."""
    values: dict[str, Any] = {"uuid": None, "device_index": None, "device_count": 0} | over
    return tuple(rank(number, count, **values) for number in range(count))


def test_on_the_cpu_the_launch_is_proven_and_nothing_else() -> None:
    verdict = judge(healthy(2, ranks=on_cpu(), on_gpu=False, promised_uuids=HIDDEN))
    assert (verdict.word, verdict.as_promised, verdict.failed) == (CPU, True, False)
    assert "proves the launch, not the GPUs" in verdict.sentence


@pytest.mark.parametrize("on_gpu", [True, False])
def test_a_run_meant_for_gpus_that_ends_on_the_cpu_failed_its_promise(on_gpu: bool) -> None:
    promised = judge(healthy(2, ranks=on_cpu(), on_gpu=on_gpu))
    assert (promised.word, promised.failed) == (CPU, True)
    there = judge(healthy(2, ranks=on_cpu(device_count=4), on_gpu=on_gpu, promised_uuids=HIDDEN))
    assert (there.word, there.failed) == (CPU, True)
    assert "the driver shows 4 GPUs, and torch works on none" in there.sentence


@pytest.mark.parametrize("on_gpu", [True, False])
def test_half_on_the_cpu_is_broken(on_gpu: bool) -> None:
    mixed = judge(healthy(2, ranks=(rank(0), on_cpu()[1]), on_gpu=on_gpu))
    assert (mixed.word, mixed.stage) == (BROKEN, "device")
    assert "rank 1 found no GPU" in mixed.sentence


def test_one_process_on_the_cpu_where_several_were_asked_for_is_single() -> None:
    verdict = judge(healthy(1, ranks=on_cpu(1), on_gpu=False, promised_processes=4, promised_uuids=HIDDEN))
    assert (verdict.word, verdict.failed) == (SINGLE, True)
    assert verdict.sentence == "one process on the CPU, though 4 were asked for"


def test_other_gpus_than_promised_are_not_as_promised() -> None:
    verdict = judge(healthy(2, promised_uuids=(UUIDS[4], UUIDS[5])))
    assert (verdict.word, verdict.as_promised) == (MULTI, False)
    assert "not the GPUs that the launch promises" in verdict.sentence


def test_nothing_promised_is_nothing_broken() -> None:
    verdict = judge(healthy(2, promised_processes=HIDDEN, promised_uuids=HIDDEN))
    assert (verdict.word, verdict.as_promised, verdict.failed) == (MULTI, None, False)


def test_the_other_machines_ranks_are_not_missed() -> None:
    two_nodes = launch("torchrun --nnodes 2 --node_rank 0 --master_addr node0 --nproc-per-node 2 train.py")
    seen = healthy(2, ranks=tuple(rank(number, 4) for number in range(2)), promised_processes=4)
    assert judge(seen, two_nodes).word == UNKNOWN
    assert judge(seen).word == BROKEN


def test_one_process_on_each_of_two_machines_is_what_was_asked_for() -> None:
    command = "accelerate launch --multi_gpu --num_machines 2 --machine_rank 0 --main_process_ip n0 --num_processes 2"
    two_nodes = launch(f"{command} --main_process_port 29500 train.py")
    verdict = judge(healthy(1, promised_processes=1), two_nodes)
    assert (verdict.word, verdict.failed) == (SINGLE, False)


def test_why_something_was_not_tried_is_said() -> None:
    steps = tuple(replace(one, detail="this torch has no NCCL") for one in stages(collective="skipped"))
    assert judge(healthy(2, stages=steps)).sentence.endswith(
        "not everything was tried: collective (this torch has no NCCL)"
    )


def test_the_port_is_compared_where_the_launch_names_one() -> None:
    fixed = launch("accelerate launch --multi_gpu --num_processes 2 --main_process_port 29511 train.py")
    (port,) = (line for line in judge(healthy(2), fixed).comparisons if line.subject == "port")
    assert (port.promised, port.measured, port.agree) == ("29511", "29500", False)
    elastic = launch("torchrun --rdzv-backend c10d --rdzv-endpoint localhost:29400 --nproc-per-node 2 train.py")
    (port,) = (line for line in judge(healthy(2), elastic).comparisons if line.subject == "port")
    assert port.agree


@given(any_observation)
def test_any_observation_is_judged(seen: Observation) -> None:
    verdict = judge(seen)
    assert verdict.word in {MULTI, SINGLE, SHARED, COPIES, CPU, BROKEN, UNKNOWN}
    assert verdict.sentence
    assert (verdict.stage is not None) == (verdict.word == BROKEN)
    if verdict.word != MULTI:
        return
    uuids = [bare_uuid(one.uuid) for one in seen.ranks if isinstance(one.uuid, str)]
    assert len(seen.ranks) > 1
    assert len(uuids) == len(set(uuids)) == len(seen.ranks)
    assert all(uuids)
    assert all(one.state == "done" for one in seen.ranks)
    assert all(step.state in ("ok", "skipped") for step in seen.stages)
    assert not wrong_sums(seen)
    assert seen.on_gpu


@given(any_observation)
def test_a_spoilt_probe_is_never_multi(other: Observation) -> None:
    """Whatever else was seen: take the identity, a stage or a rank away from a healthy probe, and it is no MULTI."""
    assume(other.ranks)
    spoilt = replace(healthy(2), ranks=(rank(0), replace(other.ranks[0], uuid=UUIDS[0])))
    assert judge(spoilt).word != MULTI
    bad = tuple(step for step in other.stages if step.state in ("failed", "hung"))
    if bad:
        assert judge(replace(healthy(2), stages=(*stages(), *bad))).word == BROKEN


def test_a_shared_card_does_not_hide_a_killed_process() -> None:
    killed = rank(1, uuid=UUIDS[0], physical_index=0, state="killed", signal="SIGKILL", stage="together")
    verdict = judge(healthy(2, ranks=(rank(0), killed), stages=stages(together="failed")))
    assert verdict.word == SHARED
    assert "it looks like 2 GPUs and is one; besides, rank 1 was killed by SIGKILL" in verdict.sentence
