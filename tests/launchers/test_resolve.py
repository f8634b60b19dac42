"""Which commands launch something, and how layers follow each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launching import EIGHT, HOST, command, launch, try_launch
from mgpu_doctor.knowledge import PackageKnowledge
from mgpu_doctor.launchers.devices import all_devices, read_visible_list, visible_devices
from mgpu_doctor.launchers.resolver import resolve
from mgpu_doctor.model.facts import NO_FACTS, Gpu
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import VisibleDevices
from mgpu_doctor.read.workspace import LocalWorkspace


@pytest.mark.parametrize(
    "text",
    [
        "ls -l",
        "pip install torch",
        "python -m pip install torch",
        "python setup.py install",
        "echo torchrun",
        "cd x",
        "git pull",
    ],
)
def test_what_launches_nothing(text: str) -> None:
    assert try_launch(text) is None


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("python train.py", ["python"]),
        ("torchrun t.py", ["torchrun"]),
        ("llamafactory-cli train x.yaml", ["llamafactory-cli", "torchrun"]),
        ("llamafactory-cli chat x.yaml", ["llamafactory-cli"]),
        ("accelerate launch -m torch.distributed.run t.py", ["accelerate", "torch.distributed.run"]),
        ("torchrun --no-python llamafactory-cli train x.yaml", ["torchrun", "llamafactory-cli", "torchrun"]),
        ("swift sft --model m", ["swift"]),
    ],
)
def test_layers(text: str, layers: list[str]) -> None:
    assert [layer.launcher for layer in launch(text).layers] == layers


def test_wrappers_stand_outside() -> None:
    found = launch("torchrun --nproc_per_node 2 t.py", wrapper="srun -n 1")
    assert [layer.launcher for layer in found.layers] == ["srun", "torchrun"]


def test_plain_python_is_one_process_that_sees_every_gpu() -> None:
    found = launch("python train.py")
    assert found.world_size.value == 1
    assert found.rendezvous is None
    assert isinstance(found.visible.value, VisibleDevices)
    assert found.visible.value.all


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("0,1", ("0", "1")),
        (" 0 , 1", ("0", "1")),
        ("0,-1,2", ("0",)),
        ("", ()),
        ("-1", ()),
        ("0,0", ()),
        ("1gpu2,2", ("1", "2")),
        ("0,x,1", ("0",)),
        ("GPU-a,GPU-b", ("GPU-a", "GPU-b")),
        ("GPU-a,1", ("GPU-a",)),
        ("GPU-a,GPU-a", ()),
        ("MIG-1", ("MIG-1",)),
        ("+1", ("1",)),
        ("0,,1", ("0",)),
    ],
)
def test_visible_list_as_cuda_reads_it(text: str, entries: tuple[str, ...]) -> None:
    assert read_visible_list(text) == entries


@given(st.text(max_size=20))
def test_any_visible_list_is_read(text: str) -> None:
    entries = read_visible_list(text)
    assert len(set(entries)) == len(entries)


def test_an_index_beyond_the_machine_ends_the_list() -> None:
    seen = visible_devices("6,8,7", HOST)
    assert (seen.entries, seen.physical) == (("6",), (6,))


def test_uuids_lead_to_their_gpu() -> None:
    seen = visible_devices("GPU-00000003,GPU-00000001-aaaa", HOST)
    assert seen.physical == (3, 1)
    assert visible_devices("GPU-0000000", HOST).entries == (), "a prefix of several UUIDs is none"


def test_different_models_need_an_order() -> None:
    mixed = replace(HOST, gpus=(Gpu(0, "A"), Gpu(1, "B")))
    assert all(isinstance(index, Unknown) for index in visible_devices("0,1", mixed).physical)
    assert visible_devices("0,1", mixed, "PCI_BUS_ID").physical == (0, 1)


def test_no_inventory_no_physical_numbers() -> None:
    seen = visible_devices("0,1", NO_FACTS)
    assert seen.entries == ("0", "1")
    assert all(isinstance(index, Unknown) for index in seen.physical)
    assert isinstance(all_devices(NO_FACTS), Unknown)
    assert len(EIGHT) == 8


@given(
    st.lists(
        st.sampled_from(
            ["torchrun", "accelerate", "launch", "deepspeed", "python", "-m", "torch.distributed.run", "--", "-", "",
             "--nproc_per_node", "2", "t.py", "--num_gpus=x", "--no-python", "llamafactory-cli", "train",
             "$X", "--a=$X"]
        ),
        max_size=8,
    )
)  # fmt: skip
def test_no_words_break_the_resolver(parts: list[str]) -> None:
    text = " ".join(part or "''" for part in parts)
    found = command(text)
    if found.words:
        result = resolve(found, HOST, PackageKnowledge(HOST), LocalWorkspace("/nonexistent-directory", HOST))
        assert result is None or result.command is found


@pytest.mark.parametrize(
    ("text", "physical"), [("GPU-00000001", (1,)), ("gpu-00000001", ()), ("GPU-0000000", ()), ("GPU-", ())]
)
def test_a_uuid_prefix_must_mean_one_gpu(text: str, physical: tuple[int, ...]) -> None:
    assert visible_devices(text, HOST).physical == physical


def test_the_case_of_a_uuid_does_not_count() -> None:
    gpu = HOST.gpu(2)
    assert gpu is not None
    assert isinstance(gpu.uuid, str)
    assert visible_devices("GPU-" + gpu.uuid[4:].upper(), HOST).physical == (2,)


def test_a_launcher_inside_a_launcher_has_no_one_table_of_ranks() -> None:
    found = launch("accelerate launch --num_processes 4 -m torch.distributed.run --nproc-per-node 2 t.py")
    assert found.world_size.value == 8
    assert isinstance(found.ranks, Unknown)
    assert "inside a launcher" in found.ranks.reason
