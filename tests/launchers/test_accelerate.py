"""Which of accelerate's launchers is called, and what the configuration file changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launching import HOST, launch, try_launch, with_packages
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.launch import Engine, VisibleDevices


def _config(directory: Path, text: str) -> Path:
    (directory / "c.yaml").write_text(text)
    return directory


def _entries(visible: VisibleDevices | Unknown) -> tuple[str, ...]:
    assert isinstance(visible, VisibleDevices)
    return visible.entries


@pytest.mark.parametrize(
    "text",
    [
        "accelerate launch t.py",
        "accelerate-launch t.py",
        "python -m accelerate.commands.launch t.py",
        "python -m accelerate.commands.accelerate_cli launch t.py",
        "python /opt/bin/accelerate launch t.py",
    ],
)
def test_every_name_is_recognised(text: str) -> None:
    found = launch(text)
    assert [layer.launcher for layer in found.layers] == ["accelerate"]
    assert found.target.value == "t.py"


@pytest.mark.parametrize("text", ["accelerate config", "accelerate env", "accelerate test", "accelerate launch --help"])
def test_other_subcommands_launch_nothing(text: str) -> None:
    assert try_launch(text) is None


def test_without_a_file_every_visible_gpu_gets_a_process() -> None:
    found = launch("accelerate launch t.py")
    assert found.world_size.value == 8
    assert launch("CUDA_VISIBLE_DEVICES=1,2 accelerate launch t.py").world_size.value == 2


def test_one_visible_gpu_means_one_process_whatever_is_asked() -> None:
    found = launch("CUDA_VISIBLE_DEVICES=0 accelerate launch --num_processes 4 t.py")
    assert found.world_size.value == 1
    assert any("num_processes 4 is not used" in note for note in found.notes)


def test_a_switch_starts_what_is_asked() -> None:
    found = launch("CUDA_VISIBLE_DEVICES=0 accelerate launch --multi_gpu --num_processes 4 t.py")
    assert found.world_size.value == 4


def test_file_without_distribution_means_one_process(tmp_path: Path) -> None:
    directory = _config(tmp_path, "distributed_type: 'NO'\nnum_processes: 8\n")
    found = launch("accelerate launch --config_file c.yaml --num_processes 4 t.py", directory=directory)
    assert found.world_size.value == 1
    assert found.processes_per_node.origin.kind == "config"


def test_option_wins_over_the_file(tmp_path: Path) -> None:
    directory = _config(tmp_path, "distributed_type: MULTI_GPU\nnum_processes: 8\n")
    found = launch("accelerate launch --config_file c.yaml --num_processes 4 t.py", directory=directory)
    assert found.world_size.value == 4
    origin = found.processes_per_node.origin
    assert origin.kind == "option"
    assert origin.overrides is not None
    assert origin.overrides.value == 8


def test_count_is_the_total_of_all_machines(tmp_path: Path) -> None:
    text = (
        "distributed_type: MULTI_GPU\nnum_machines: 2\nnum_processes: 16\nmachine_rank: 1\n"
        "main_process_ip: 10.0.0.1\nmain_process_port: 29555\nrdzv_backend: c10d\n"
    )
    found = launch("accelerate launch --config_file c.yaml t.py", directory=_config(tmp_path, text))
    assert (found.processes_per_node.value, found.nodes.value, found.node_rank.value) == (8, 2, 1)
    assert found.rendezvous is not None
    assert found.rendezvous.backend.value == "static", "the file's rdzv_backend never counts"
    assert found.rendezvous.port is not None
    assert found.rendezvous.port.value == 29555


def test_the_users_default_file_counts_unless_cpu_is_asked_for() -> None:
    facts = replace(HOST, accelerate_default_config="distributed_type: MULTI_GPU\nnum_processes: 3\n")
    found = launch("accelerate launch t.py", facts)
    assert found.world_size.value == 3
    assert found.layers[0].config_is_default
    assert launch("accelerate launch --cpu t.py", facts).world_size.value == 1


def test_an_unknown_default_file_leaves_it_open_unless_the_command_decides() -> None:
    facts = replace(HOST, accelerate_default_config=Unknown("not looked at"))
    assert isinstance(launch("accelerate launch t.py", facts).world_size.value, Unknown)
    assumed = launch("accelerate launch --num_processes 4 t.py", facts)
    assert assumed.world_size.value == 4
    assert any("default_config.yaml" in note for note in assumed.notes)
    assert launch("accelerate launch --multi_gpu --num_processes 4 t.py", facts).world_size.value == 4


def test_gpu_ids_replace_the_visible_list(tmp_path: Path) -> None:
    directory = _config(tmp_path, "distributed_type: MULTI_GPU\nnum_processes: 2\ngpu_ids: '2,3'\n")
    found = launch("CUDA_VISIBLE_DEVICES=0,1 accelerate launch --config_file c.yaml t.py", directory=directory)
    assert _entries(found.visible.value) == ("2", "3")
    assert _entries(found.visible_before.value) == ("0", "1")
    kept = launch("CUDA_VISIBLE_DEVICES=0,1 accelerate launch --gpu_ids all --multi_gpu t.py")
    assert _entries(kept.visible.value) == ("0", "1")


@pytest.mark.parametrize(
    ("options", "engine"),
    [
        ("--use_deepspeed --zero_stage 3 --num_processes 2", Engine("deepspeed", 3)),
        ("--use_deepspeed --num_processes 2", Engine("deepspeed", 2)),
        ("--use_fsdp --num_processes 2", Engine("fsdp")),
        ("--use_megatron_lm --num_processes 2", Engine("megatron")),
    ],
)
def test_engine_by_option(options: str, engine: Engine) -> None:
    assert launch(f"accelerate launch {options} t.py").engine.value == engine


def test_stage_comes_from_the_deepspeed_file(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 1}}')
    text = "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config:\n  deepspeed_config_file: ds.json\n"
    found = launch("accelerate launch --config_file c.yaml t.py", directory=_config(tmp_path, text))
    assert found.engine.value == Engine("deepspeed", 1)


@pytest.mark.parametrize(("release", "stage"), [("1.0.1", 2), ("1.7.0", 3)])
def test_option_against_the_files_stage_differs_by_release(tmp_path: Path, release: str, stage: int) -> None:
    text = "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config:\n  zero_stage: 2\n"
    found = launch(
        "accelerate launch --config_file c.yaml --zero_stage 3 t.py",
        with_packages(accelerate=release),
        _config(tmp_path, text),
    )
    assert found.engine.value == Engine("deepspeed", stage)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ("--cpu --multi_gpu", "conflict"),
        ("--multi_gpu --num_processes 1", "conflict"),
        ("-m --no_python", "conflict"),
        ("--mixed_precison bf16", "unknown-option"),
        ("--num_processes x", "invalid-value"),
        ("--num_proc 4", "unknown-option"),
    ],
)
def test_refusals(options: str, kind: str) -> None:
    assert [problem.kind for problem in launch(f"accelerate launch {options} t.py").layers[0].problems] == [kind]


def test_one_gpu_id_is_refused_only_where_a_file_takes_part(tmp_path: Path) -> None:
    directory = _config(tmp_path, "distributed_type: MULTI_GPU\nnum_processes: 2\n")
    with_file = launch("accelerate launch --config_file c.yaml --gpu_ids 1 t.py", directory=directory)
    assert [problem.kind for problem in with_file.layers[0].problems] == ["refused"]
    assert launch("accelerate launch --multi_gpu --gpu_ids 1 t.py").layers[0].problems == ()


def test_a_file_that_is_not_there_decides_nothing(tmp_path: Path) -> None:
    found = launch("accelerate launch --config_file gone.yaml --num_processes 2 t.py", directory=tmp_path)
    assert isinstance(found.world_size.value, Unknown)
    assert found.layers[0].config is not None
    assert found.layers[0].config.exists is False
