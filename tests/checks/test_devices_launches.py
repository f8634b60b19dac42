"""Launches judged by one device rule each: releases, filters, places and messages that the examples do not show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType

import pytest

from mgpu_checks.devices import device_hard_coded as hard_coded
from mgpu_checks.devices import device_map_under_launcher as device_map
from mgpu_checks.devices import device_order_ambiguous as device_order
from mgpu_checks.devices import gpu_busy
from mgpu_checks.devices import more_processes_than_gpus as more
from mgpu_checks.devices import physical_index_in_visible_space as physical
from mgpu_checks.devices import visible_devices_ignored as ignored
from mgpu_checks.devices import visible_devices_malformed as malformed
from mgpu_checks.devices import visible_devices_misspelt as misspelt
from mgpu_checks.devices import visible_devices_overridden as overridden
from mgpu_checks.devices import visible_devices_set_too_late as too_late
from mgpu_checks.devices import visible_index_out_of_range as out_of_range
from mgpu_doctor import testing
from mgpu_doctor.authoring import Check, Example, Finding, Severity
from mgpu_doctor.mend import apply_edits
from mgpu_doctor.testing import run_example

OLD = {"packages": {"deepspeed": "0.3.10", "torch": "1.7.1"}}


def found(
    module: ModuleType,
    command: str,
    *,
    files: Mapping[str, str] | None = None,
    facts: Mapping[str, object] | None = None,
) -> tuple[Finding, ...]:
    check = Check(module.RULE, module.find)
    report = run_example(check, Example("test", command, files=files or {}, facts=facts or {}))
    (outcome,) = report.outcomes
    assert outcome.kind.value != "crashed", outcome.reason
    return report.findings


def mended(finding: Finding) -> str:
    assert finding.fix is not None
    assert finding.location is not None
    return apply_edits(finding.fix.edits[0].source.text, finding.fix.edits)


def test_the_dropped_list_is_named_with_what_is_used_instead() -> None:
    (finding,) = found(ignored, "CUDA_VISIBLE_DEVICES=4,5,6,7 deepspeed --num_gpus 4 train.py")
    assert "physical GPU 0-3, not on 4-7" in finding.message
    assert mended(finding) == "CUDA_VISIBLE_DEVICES=4,5,6,7 deepspeed train.py"
    assert finding.fix is not None
    assert finding.fix.safe


def test_a_smaller_count_becomes_a_filter() -> None:
    (finding,) = found(ignored, "CUDA_VISIBLE_DEVICES=2,3,5 deepspeed --num_gpus=2 train.py")
    assert mended(finding) == "deepspeed --include localhost:2,3 train.py"


def test_before_slots_were_physical_the_filter_replaces_the_variable() -> None:
    facts = {"packages": {"deepspeed": "0.12.6", "torch": "2.1.2"}}
    (finding,) = found(ignored, "CUDA_VISIBLE_DEVICES=2,3 deepspeed --num_gpus 2 train.py", facts=facts)
    assert mended(finding) == "deepspeed --include localhost:2,3 train.py"


def test_releases_that_never_read_the_variable() -> None:
    (finding,) = found(ignored, "CUDA_VISIBLE_DEVICES=2,3 deepspeed train.py", facts=OLD)
    assert "0.3.10 does not read" in finding.message
    assert "GPU 0 and 1 instead of 2 and 3" in finding.message
    assert not found(ignored, "CUDA_VISIBLE_DEVICES=0,1 deepspeed train.py", facts=OLD)


@pytest.mark.parametrize(
    "command",
    [
        "CUDA_VISIBLE_DEVICES=4,5 deepspeed --hostfile hosts --num_gpus 2 train.py",
        "CUDA_VISIBLE_DEVICES=4,5 DS_ACCELERATOR=cpu deepspeed --num_gpus 2 train.py",
        "CUDA_VISIBLE_DEVICES=0,1,2,3 deepspeed --num_gpus 2 train.py",
        "CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 deepspeed --exclude localhost:0 train.py",
        "CUDA_VISIBLE_DEVICES= deepspeed --num_gpus 2 train.py",
        "CUDA_VISIBLE_DEVICES=4,5 deepspeed train.py --include localhost:0,1",
    ],
)
def test_lists_that_are_not_lost(command: str) -> None:
    assert not found(ignored, command)


def test_an_excluded_gpu_brings_in_all_others() -> None:
    (finding,) = found(ignored, "CUDA_VISIBLE_DEVICES=0,1,2,3 deepspeed --exclude localhost:0 train.py")
    assert "1-7" in finding.message


def test_an_unknown_list_is_a_warning_without_a_guess() -> None:
    (finding,) = found(ignored, "CUDA_VISIBLE_DEVICES=$1 deepspeed --num_gpus 2 train.py")
    assert finding.severity is Severity.WARNING
    assert "$1" in finding.message


def test_uuids_that_deepspeed_would_convert_to_slots() -> None:
    (finding,) = found(malformed, "CUDA_VISIBLE_DEVICES=GPU-00000001 deepspeed train.py")
    assert "--include localhost:GPU-00000001" in finding.message
    assert not found(malformed, "CUDA_VISIBLE_DEVICES=GPU-00000001 torchrun --nproc_per_node 1 train.py")


def test_a_comma_at_the_end_is_refused_by_deepspeed_alone() -> None:
    errors = found(malformed, "CUDA_VISIBLE_DEVICES=0,1, deepspeed train.py")
    assert any(finding.severity is Severity.ERROR for finding in errors)
    harmless = found(malformed, "CUDA_VISIBLE_DEVICES=0,1, torchrun --nproc_per_node 2 train.py")
    assert [finding.severity for finding in harmless] == [Severity.ADVICE]


def test_a_filter_that_deepspeed_cannot_read() -> None:
    (finding,) = found(malformed, "deepspeed --include localhost:0-3 train.py")
    assert mended(finding) == "deepspeed --include localhost:0,1,2,3 train.py"


@pytest.mark.parametrize(
    ("command", "fixed"),
    [
        ("CUDA_VISIBLE_DEVICES=0, 1 python train.py", "CUDA_VISIBLE_DEVICES=0,1 python train.py"),
        ("CUDA_VISIBLE_DEVICES=0, 1, 2 python train.py", "CUDA_VISIBLE_DEVICES=0,1,2 python train.py"),
        ("CUDA_VISIBLE_DEVICES=0 ,1 python train.py", "CUDA_VISIBLE_DEVICES=0,1 python train.py"),
        ("export CUDA_VISIBLE_DEVICES=4, 5; python train.py", "export CUDA_VISIBLE_DEVICES=4,5; python train.py"),
        (
            "accelerate launch --multi_gpu --gpu_ids 0, 1 train.py",
            "accelerate launch --multi_gpu --gpu_ids 0,1 train.py",
        ),
        ("deepspeed --include localhost:0, 1 train.py", "deepspeed --include localhost:0,1 train.py"),
    ],
)
def test_a_blank_behind_the_comma(command: str, fixed: str) -> None:
    (finding,) = found(malformed, command)
    assert "blank ends the list" in finding.message
    assert mended(finding) == fixed


@pytest.mark.parametrize(
    "command",
    ["CUDA_VISIBLE_DEVICES=0 python train.py", "export CUDA_VISIBLE_DEVICES=0 OMP_NUM_THREADS=1\npython train.py 1"],
)
def test_no_blank_is_imagined(command: str) -> None:
    assert not found(malformed, command)


def test_a_list_is_reported_once_however_many_commands_it_reaches() -> None:
    command = "export CUDA_VISIBLE_DEVICES=0-1\npython a.py\npython b.py\npython c.py"
    assert len(found(malformed, command)) == 1


def test_a_name_that_the_program_misspells() -> None:
    text = 'import os\n\nos.environ["CUDA_VISABLE_DEVICES"] = "1"\n\nimport torch\n'
    (finding,) = found(misspelt, "python run.py", files={"run.py": text})
    assert finding.location is not None
    assert finding.location.source.position(finding.location.span.start).line == 3


def test_a_misspelt_name_in_the_environment() -> None:
    (finding,) = found(misspelt, "python run.py", facts={"env": {"CUDA_VISABLE_DEVICES": "0"}})
    assert finding.location is None
    assert finding.subject == "CUDA_VISABLE_DEVICES"


def test_a_list_that_is_narrowed_is_advice() -> None:
    command = "CUDA_VISIBLE_DEVICES=4,5,6,7 accelerate launch --multi_gpu --gpu_ids 4,5 train.py"
    (finding,) = found(overridden, command)
    assert finding.severity is Severity.ADVICE


def test_a_list_that_is_too_short_for_itself_is_not_blamed_on_the_count() -> None:
    gpus = {"gpus": [{"index": 0, "name": "NVIDIA L4", "memory_gib": 24}]}
    assert not found(more, "CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node 2 train.py", facts=gpus)
    assert not found(more, "CUDA_VISIBLE_DEVICES=0-3 torchrun --nproc_per_node 4 train.py")
    assert found(out_of_range, "CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node 2 train.py", facts=gpus)


def test_the_count_is_mended_where_it_stands() -> None:
    (finding,) = found(more, "CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node=4 train.py --epochs 4")
    assert mended(finding) == "CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node=2 train.py --epochs 4"


def test_old_deepspeed_needs_a_torch_that_keeps_its_count() -> None:
    command = "CUDA_VISIBLE_DEVICES=1 deepspeed train.py"
    for torch, count in (("2.0.1+cu118", 1), ("2.4.1", 0)):
        facts = {"packages": {"deepspeed": "0.12.6", "torch": torch}}
        assert len(found(physical, command, facts=facts)) == count
    facts = {"packages": {"deepspeed": "0.12.6", "torch": "2.0.1"}}
    assert not found(physical, "CUDA_VISIBLE_DEVICES=0,1 deepspeed train.py", facts=facts)


def test_physical_numbers_in_a_slurm_job() -> None:
    job = "#!/bin/bash\n#SBATCH --gres=gpu:a100:2\nexport CUDA_VISIBLE_DEVICES={}\npython train.py\n"
    check = Check(physical.RULE, physical.find)
    for devices, count in (("2,3", 1), ("0,1", 0)):
        example = Example("job", files={"job.sh": job.format(devices)}, lint=("job.sh",))
        assert len(run_example(check, example).findings) == count


LATE = "import os\nimport torch\n\n{}\nos.environ['CUDA_VISIBLE_DEVICES'] = '1'\nx = torch.ones(1).cuda()\n"


@pytest.mark.parametrize(
    ("between", "severity"),
    [
        ("", Severity.WARNING),
        ("torch.manual_seed(0)", Severity.WARNING),
        ("torch.cuda.manual_seed_all(0)", Severity.WARNING),
        ("device = torch.device('cuda:0')", Severity.WARNING),
        ("def f():\n    return torch.cuda.is_available()\n", Severity.WARNING),
        ("class A:\n    def f(self):\n        return torch.cuda.is_available()\n", Severity.WARNING),
        ("device = 'cuda' if torch.cuda.is_available() else 'cpu'", Severity.ERROR),
        ("torch.cuda.set_device(0)", Severity.ERROR),
        ("print(torch.cuda.get_device_name(0))", Severity.ERROR),
    ],
)
def test_what_comes_before_the_list_is_set(between: str, severity: Severity) -> None:
    (finding,) = found(too_late, "python fit.py", files={"fit.py": LATE.format(between)})
    assert finding.severity is severity


def test_the_line_is_moved_above_the_import() -> None:
    (finding,) = found(too_late, "python fit.py", files={"fit.py": LATE.format("print(1)")})
    assert mended(finding).startswith("import os\nos.environ['CUDA_VISIBLE_DEVICES'] = '1'\nimport torch\n\nprint(1)\n")


RANKS = "import os\nimport torch\nimport torch.distributed as dist\n\ndist.init_process_group('nccl')\n{}\n"


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("model = build().cuda()", 1),
        ("model = build().cuda(int(os.environ['LOCAL_RANK']))", 0),
        ("torch.cuda.set_device(dist.get_rank())\nmodel = build().cuda()", 0),
        ("rank = dist.get_rank()\nmodel = build().to(rank)", 0),
        ("os.environ['CUDA_VISIBLE_DEVICES'] = os.environ['LOCAL_RANK']\nmodel = build().cuda()", 0),
        ("model = build().to('cuda:1')", 1),
    ],
)
def test_who_selects_the_card(body: str, count: int) -> None:
    findings = found(hard_coded, "torchrun --nproc_per_node 2 fit.py", files={"fit.py": RANKS.format(body)})
    assert len(findings) == count


LOAD = (
    "import os\nfrom transformers import AutoModel\n\nmodel = AutoModel.from_pretrained('acme/base', device_map={})\n"
)


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ("'auto'", 1),
        ("{'': 'cuda:0'}", 1),
        ("'cuda:0'", 1),
        ("{'': int(os.environ['LOCAL_RANK'])}", 0),
        ("None", 0),
        ("'auto' if os.environ.get('WORLD_SIZE', '1') == '1' else None", 0),
    ],
)
def test_device_maps(value: str, count: int) -> None:
    findings = found(device_map, "torchrun --nproc_per_node 2 sft.py", files={"sft.py": LOAD.format(value)})
    assert len(findings) == count


def test_the_holder_of_a_busy_gpu_is_named_with_a_way_out() -> None:
    held = [
        {"gpu": 0, "pid": 11, "command": "python a.py", "memory_gib": 40.0},
        {"gpu": 1, "pid": 12, "command": "python b.py", "memory_gib": 30.0},
    ]
    (finding,) = found(gpu_busy, "torchrun --nproc_per_node 2 train.py", facts={"gpu_processes": held})
    assert "python a.py (pid 11) holds 40.0 GiB" in finding.message
    assert finding.fix is not None
    assert finding.fix.title == "use CUDA_VISIBLE_DEVICES=2,3"


FIXABLE = [
    (module, example)
    for module in (ignored, malformed, misspelt, more, too_late, device_order)
    for example in module.RULE.bad
]


@pytest.mark.parametrize(("module", "example"), FIXABLE, ids=lambda value: getattr(value, "title", ""))
def test_launchers_accept_what_a_fix_writes(module: ModuleType, example: Example) -> None:
    check = Check(module.RULE, module.find)
    edits = [edit for one in run_example(check, example).findings if one.fix is not None for edit in one.fix.edits]
    files, command = testing._mended(example, edits)
    report = run_example(check, replace(example, files=files, command=command))
    assert report.case.launches
    for launch in report.case.launches:
        for layer in launch.layers:
            assert not layer.problems
            assert layer.opaque is None
