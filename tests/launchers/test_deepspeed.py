"""What the deepspeed launcher starts, and on which GPUs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launching import HOST, launch, try_launch, with_packages
from mgpu_doctor.launchers.deepspeed import read_filter, read_hostfile
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import VisibleDevices


def _entries(visible: VisibleDevices | Unknown) -> tuple[str, ...]:
    assert isinstance(visible, VisibleDevices)
    return visible.entries


@pytest.mark.parametrize(
    "text",
    [
        "deepspeed t.py",
        "deepspeed.pt t.py",
        "ds t.py",
        "python -m deepspeed.launcher.runner t.py",
        "/x/bin/deepspeed t.py",
    ],
)
def test_every_name_is_recognised(text: str) -> None:
    assert [layer.launcher for layer in launch(text).layers] == ["deepspeed"]


def test_own_report_is_no_launch() -> None:
    assert try_launch("ds_report") is None


def test_all_gpus_by_default() -> None:
    found = launch("deepspeed t.py")
    assert (found.world_size.value, _entries(found.visible.value)) == (8, tuple("01234567"))


def test_the_visible_list_becomes_the_slots() -> None:
    found = launch("CUDA_VISIBLE_DEVICES=4,5 deepspeed t.py")
    assert (found.world_size.value, _entries(found.visible.value)) == (2, ("4", "5"))


@pytest.mark.parametrize(
    ("options", "entries"),
    [
        ("--num_gpus 4", ("0", "1", "2", "3")),
        ("--include localhost:0,1", ("0", "1")),
        ("--exclude localhost:0,1,2,3,4,5", ("6", "7")),
        ("--include localhost", tuple("01234567")),
    ],
)
def test_options_drop_the_visible_list(options: str, entries: tuple[str, ...]) -> None:
    found = launch(f"CUDA_VISIBLE_DEVICES=4,5,6,7 deepspeed {options} t.py")
    assert _entries(found.visible.value) == entries
    assert _entries(found.visible_before.value) == ("4", "5", "6", "7")


def test_ancient_releases_never_read_the_list() -> None:
    found = launch("CUDA_VISIBLE_DEVICES=4,5 deepspeed t.py", with_packages(deepspeed="0.3.16"))
    assert _entries(found.visible.value) == tuple("01234567")


def test_address_and_port_on_one_machine() -> None:
    found = launch("deepspeed --master_addr 10.0.0.9 --master_port 29511 t.py")
    assert found.rendezvous is not None
    assert found.rendezvous.address is not None
    assert found.rendezvous.port is not None
    assert (found.rendezvous.address.value, found.rendezvous.port.value) == ("127.0.0.1", 29511)


def test_hosts_of_a_hostfile(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a slots=4\n# comment\nb slots=4\n")
    found = launch("CUDA_VISIBLE_DEVICES=0 deepspeed --hostfile hosts t.py", directory=tmp_path)
    assert (found.nodes.value, found.processes_per_node.value, found.world_size.value) == (2, 4, 8)
    one = launch("deepspeed --hostfile hosts --num_nodes 1 --num_gpus 2 t.py", directory=tmp_path)
    assert (one.nodes.value, one.world_size.value) == (1, 2)
    part = launch("deepspeed --hostfile hosts --include b:1,3 t.py", directory=tmp_path)
    assert (part.nodes.value, _entries(part.visible.value)) == (1, ("1", "3"))


def test_hosts_of_different_size_have_no_common_count(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a slots=4\nb slots=8\n")
    assert isinstance(launch("deepspeed --hostfile hosts t.py", directory=tmp_path).world_size.value, Unknown)


@pytest.mark.parametrize("text", ["", "a", "a slots=x", "a slots=1\na slots=2"])
def test_hostfiles_that_are_refused(text: str) -> None:
    assert isinstance(read_hostfile(text), str)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ("--num_gpus 2 --include localhost:1", "conflict"),
        ("--include a --exclude b", "conflict"),
        ("--no_python --module", "conflict"),
        ("-m", "unknown-option"),
        ("--include localhost:x", "invalid-value"),
        ("--elastic_training", "refused"),
        ("--num 2", "ambiguous-option"),
    ],
)
def test_refusals(options: str, kind: str) -> None:
    assert kind in [problem.kind for problem in launch(f"deepspeed {options} t.py").layers[0].problems]


def test_the_missing_m_is_read_as_meant() -> None:
    found = launch("deepspeed --num_gpus 4 -m llamafactory.launcher --stage sft")
    assert found.layers[0].problems[0].suggestions == ("--module",)
    assert (found.target.kind, found.target.value) == ("module", "llamafactory.launcher")


def test_without_an_inventory_only_named_gpus_are_known() -> None:
    facts = replace(HOST, gpus=Unknown("not looked at"))
    assert isinstance(launch("deepspeed t.py", facts).world_size.value, Unknown)
    assert launch("deepspeed --num_gpus 3 t.py", facts).world_size.value == 3
    assert launch("CUDA_VISIBLE_DEVICES=1,2 deepspeed t.py", facts).world_size.value == 2


@given(st.text(alphabet="ab01,:@ -", max_size=12))
def test_filters_of_any_text_are_read_or_refused(text: str) -> None:
    read = read_filter(text)
    assert read is None or all(slots == tuple(sorted(set(slots))) for slots in read.values())


def test_a_mistyped_switch_takes_no_value() -> None:
    found = launch("deepspeed --num_gpus 4 -m llamafactory.launcher --stage sft --model_name_or_path models/x")
    assert [problem.flag for problem in found.layers[0].problems] == ["-m"]
    assert found.target.value == "llamafactory.launcher"
