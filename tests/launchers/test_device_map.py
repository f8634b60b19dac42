"""Which GPU is which, for launches and for the machine alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launching import HOST, launch
from mgpu_doctor.launchers.device_map import map_devices
from mgpu_doctor.model.device_map import DeviceMap
from mgpu_doctor.model.facts import NO_FACTS, Facts, Gpu, GpuProcess
from mgpu_doctor.model.known import Unknown

MIXED = replace(HOST, gpus=tuple(Gpu(i, name, f"GPU-{i}") for i, name in enumerate(("RTX 3060", "RTX 3060", "A6000"))))


def mapped(command: str | None, facts: Facts = HOST) -> DeviceMap:
    found = map_devices(facts, launch(command, facts) if command is not None else None)
    assert isinstance(found, DeviceMap)
    return found


@pytest.mark.parametrize(
    ("command", "visible", "ranks"),
    [
        ("torchrun --nproc-per-node 2 t.py", {i: i for i in range(8)}, {0: (0,), 1: (1,)}),
        ("CUDA_VISIBLE_DEVICES=5,3 torchrun --nproc-per-node 2 t.py", {5: 0, 3: 1}, {5: (0,), 3: (1,)}),
        # deepspeed drops the list when it is told a number.
        ("CUDA_VISIBLE_DEVICES=4,5 deepspeed --num_gpus 2 t.py", {0: 0, 1: 1}, {0: (0,), 1: (1,)}),
        ("CUDA_VISIBLE_DEVICES=6 torchrun --nproc-per-node 2 t.py", {6: 0}, {6: (0,)}),
        (
            "CUDA_VISIBLE_DEVICES=2,3 llamafactory-cli chat --model_name_or_path m --template qwen",
            {2: 0, 3: 1},
            {2: (0,), 3: (0,)},
        ),
    ],
)
def test_launches(command: str, visible: dict[int, int], ranks: dict[int, tuple[int, ...]]) -> None:
    devices = mapped(command)
    assert {row.gpu.index: row.visible_index for row in devices.rows if row.visible_index is not None} == visible
    assert {row.gpu.index: row.ranks for row in devices.rows if row.ranks} == ranks
    assert [row.cuda_index for row in devices.rows] == list(range(8))


def test_ranks_beyond_the_list_are_named() -> None:
    assert mapped("CUDA_VISIBLE_DEVICES=6 torchrun --nproc-per-node 3 t.py").without_device == (1, 2)


def test_a_machine_without_a_command_follows_its_variables() -> None:
    devices = mapped(None, replace(HOST, environment={"CUDA_VISIBLE_DEVICES": "7,1"}))
    assert devices.visible == "7,1"
    assert {row.gpu.index: row.visible_index for row in devices.rows if row.visible_index is not None} == {7: 0, 1: 1}


def test_different_models_in_the_default_order_are_not_guessed() -> None:
    assert all(isinstance(row.cuda_index, Unknown) for row in mapped(None, MIXED).rows)
    assert all(isinstance(row.visible_index, Unknown) for row in mapped("torchrun --nproc-per-node 2 t.py", MIXED).rows)
    ordered = mapped("CUDA_DEVICE_ORDER=PCI_BUS_ID torchrun --nproc-per-node 2 t.py", MIXED)
    assert [row.cuda_index for row in ordered.rows] == [0, 1, 2]
    assert ordered.order == "PCI_BUS_ID"


def test_holders_stand_with_their_gpu_and_unknown_is_not_nobody() -> None:
    holder = GpuProcess(3, 4127, "python serve.py", 61.5)
    devices = mapped(None, replace(HOST, gpu_processes=(holder,)))
    assert {row.gpu.index: row.holders for row in devices.rows if row.holders} == {3: (holder,)}
    assert mapped(None, replace(HOST, gpu_processes=Unknown("no permission"))).rows[0].holders is None


def test_no_inventory_no_map() -> None:
    assert isinstance(map_devices(NO_FACTS), Unknown)
