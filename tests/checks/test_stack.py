"""The rules about what is installed: their tables against real packages, and which launches they judge."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judging import found, mended
from mgpu_checks.stack import (
    cuda_toolkit_mismatch,
    driver_too_old,
    flash_attn_abi,
    flash_attn_missing,
    flash_attn_switch_unread,
    flash_attn_unsupported_gpu,
    gpu_arch_unsupported,
    nccl_shadowed,
    package_shadowed,
    precision_unsupported,
    torch_cuda,
    torch_without_cuda,
    version_out_of_range,
)
from mgpu_checks.stack.demands import DEMANDS
from mgpu_checks.stack.flash_attn_abi import Tags, read_tags
from mgpu_checks.stack.torch_builds import WHEEL_ARCHS, minimum_driver, runs, runs_on_driver
from mgpu_doctor.authoring import Case, Check, Severity, Unknown, satisfies
from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.knowledge import PackageKnowledge
from mgpu_doctor.model.facts import NOT_LOOKED, Facts
from mgpu_doctor.model.finding import OutcomeKind
from mgpu_doctor.read.workspace import LocalWorkspace
from mgpu_doctor.registry import Registry
from oracle_environments import ENVIRONMENTS, requires_oracle, site_packages_of

ON_GPU = {"train.py": 'import torch\n\nmodel = torch.nn.Linear(8, 8).to("cuda")\n'}
TRAINER = {
    "ft.py": "from transformers import HfArgumentParser, Trainer, TrainingArguments\n\n"
    "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\nTrainer(model, args).train()\n"
}
CPU_BUILD: Mapping[str, object] = {"packages": {"torch": "2.3.1+cpu"}, "torch_cuda": None}
V100 = {
    "gpus": [{"index": index, "name": "Tesla V100-SXM2-32GB", "compute_capability": "7.0"} for index in range(8)],
}
INDEX = "--index-url https://download.pytorch.org/whl"
EVERYWHERE = pytest.mark.parametrize(
    "environment", [pytest.param(name, marks=requires_oracle(name)) for name in ENVIRONMENTS]
)


# Which launches are judged


@pytest.mark.parametrize(
    "command",
    [
        "python train.py",
        "torchrun --nproc_per_node 8 train.py",
        "torchrun --nproc_per_node 8 somewhere_else.py",
        "accelerate launch train.py",
        "deepspeed --num_gpus 8 other.py",
        "llamafactory-cli train --stage sft",
        "vllm serve org/m --tensor-parallel-size 4",
        "uv run torchrun --nproc_per_node 8 train.py",
        None,
    ],
)
def test_jobs_on_the_gpus_are_judged(command: str | None) -> None:
    assert len(found(torch_without_cuda, command, files=ON_GPU, facts=CPU_BUILD)) == 1


@pytest.mark.parametrize(
    "command",
    [
        "ls",
        "python other.py",
        "python prepare.py",
        "CUDA_VISIBLE_DEVICES='' torchrun --nproc_per_node 8 train.py",
        "CUDA_VISIBLE_DEVICES=-1 python train.py",
        "ssh node2 python train.py",
        "docker run --gpus all pytorch python train.py",
        "singularity exec --nv torch.sif python train.py",
        "torchrun --nproc_per_node 8 train.py --use_cpu",
        "torchrun --nproc_per_node 8 train.py --no_cuda True",
        "torchrun --nproc_per_node 8 train.py --device cpu",
        "DS_ACCELERATOR=cpu deepspeed --num_gpus 8 train.py",
        "accelerate launch --config_file cpu.yaml train.py",
        "torchrun --nproc_per_node 8 gloo.py",
        "llamafactory-cli version",
    ],
)
def test_other_commands_are_not(command: str) -> None:
    files = {
        **ON_GPU,
        "prepare.py": "import torch\ntorch.save({}, 'x.pt')\n",
        "gloo.py": "import torch.distributed as dist\n\ndist.init_process_group('gloo')\n",
        "cpu.yaml": "distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\n",
    }
    assert not found(torch_without_cuda, command, files=files, facts=CPU_BUILD)


def test_training_on_the_cpu_by_another_value_is_still_on_the_gpus() -> None:
    command = "torchrun --nproc_per_node 8 train.py --use_cpu False"
    assert found(torch_without_cuda, command, files=ON_GPU, facts=CPU_BUILD)


# torch's CUDA


def case_of(facts: Facts) -> Case:
    return Case((), (), (), facts, LocalWorkspace(".", facts), PackageKnowledge(facts))


@pytest.mark.parametrize(
    ("version", "build", "cuda"),
    [
        ("2.3.1+cpu", None, None),
        ("2.3.1+cu121", None, "12.1"),
        ("1.9.0+cu92", None, "9.2"),
        ("2.9.1+cu130", None, "13.0"),
        ("2.3.1", "2.3.1=py3.11_cpu_0", None),
        ("1.9.0", "1.9.0=py3.8_cpu_0", None),
        ("2.3.1", "2.3.1=cpu_mkl_py311h1234567_100", None),
        ("2.3.1", "2.3.1=cpu_generic_py311h1234567_0", None),
        ("2.3.1", "2.3.1=py3.11_cuda12.1_cudnn8.9.2_0", "12.1"),
        ("2.3.1", "2.3.1=cuda118_py311h1234567_300", "11.8"),
        ("2.3.1", "2.3.1=gpu_py311h1234567_0", Unknown("")),
        ("2.3.1", None, Unknown("")),
        ("2.3.1+rocm6.0", None, Unknown("")),
    ],
)
def test_torchs_cuda_is_known_by_its_version_or_by_condas_build(
    version: str, build: str | None, cuda: str | Unknown | None
) -> None:
    conda = {"pytorch": build} if build else NOT_LOOKED
    told = torch_cuda(case_of(Facts("facts.json", packages={"torch": version}, conda=conda)))
    assert isinstance(told, Unknown) if isinstance(cuda, Unknown) else told == cuda


def test_what_the_build_says_counts_more_than_its_name() -> None:
    facts = Facts("facts.json", packages={"torch": "2.6.0"}, torch_cuda="12.6", conda={"pytorch": "2.6.0=py3.11_cpu_0"})
    assert torch_cuda(case_of(facts)) == "12.6"


def test_the_fix_of_a_cpu_build_fits_driver_and_cards() -> None:
    def command_for(torch: str, driver: str, capability: str = "8.0") -> tuple[str, ...]:
        gpus = [{"index": 0, "name": "NVIDIA", "compute_capability": capability}]
        facts = {"packages": {"torch": torch}, "torch_cuda": None, "driver": driver, "gpus": gpus}
        (finding,) = found(torch_without_cuda, None, facts=facts)
        assert finding.fix is not None
        return finding.fix.commands

    index = "--index-url https://download.pytorch.org/whl"
    assert command_for("2.4.1+cpu", "550.54.15") == (f'pip install "torch==2.4.1+cu124" {index}/cu124',)
    assert command_for("2.4.1+cpu", "470.57.02") == (f'pip install "torch==2.4.1+cu118" {index}/cu118',)
    assert command_for("2.13.0+cpu", "570.133.20") == (f'pip install "torch==2.13.0+cu129" {index}/cu129',)
    assert command_for("2.13.0+cpu", "580.95.05", "6.1") == (f'pip install "torch==2.13.0+cu126" {index}/cu126',)
    assert command_for("2.4.1+cpu", "550.54.15", "12.0") == ()
    assert command_for("2.4.1+cpu", "390.46") == ()
    assert command_for("2.7.0.dev20250310+cpu", "570.133.20") == ()  # an index of releases does not hold nightlies


def test_a_card_too_new_for_a_release_gets_the_first_later_one() -> None:
    def command_for(torch: str, driver: str, capability: str) -> tuple[str, ...]:
        gpus = [{"index": 0, "name": "NVIDIA", "compute_capability": capability}]
        cuda = torch.partition("+cu")[2]
        facts = {"packages": {"torch": torch}, "torch_cuda": f"{cuda[:-1]}.{cuda[-1]}", "driver": driver, "gpus": gpus}
        (finding,) = found(gpu_arch_unsupported, None, facts=facts)
        assert finding.fix is not None
        return finding.fix.commands

    index = "--index-url https://download.pytorch.org/whl"
    assert command_for("2.6.0+cu124", "570.133.20", "12.0") == (f'pip install "torch==2.7.*" {index}/cu128',)
    assert command_for("2.7.1+cu128", "570.133.20", "7.0") == (f'pip install "torch==2.7.1+cu126" {index}/cu126',)
    assert command_for("2.9.0+cu130", "580.95.05", "7.0") == (f'pip install "torch==2.9.0+cu128" {index}/cu128',)
    assert command_for("2.6.0+cu124", "570.133.20", "3.5") == ()


@pytest.mark.parametrize(
    ("torch", "platform", "conda", "cuda"),
    [
        ("2.6.0", "Linux-6.8.0-x86_64", {}, "12.4"),
        ("2.6.0", NOT_LOOKED, NOT_LOOKED, "12.4"),
        ("2.6.0+cpu", "Linux-6.8.0-x86_64", {}, None),
        ("2.6.0", "Windows-11-10.0.26100", {}, NOT_LOOKED),
        ("2.6.0", "Linux-6.8.0-aarch64", {}, NOT_LOOKED),
        ("2.6.0", "Linux-6.8.0-x86_64", {"pytorch": "2.6.0=x"}, NOT_LOOKED),
        ("2.6.0a0+df5bbc0", "Linux-6.8.0-x86_64", {}, NOT_LOOKED),
    ],
)
def test_the_runtime_that_pip_installed_tells_the_cuda_of_its_wheel(
    torch: str, platform: str | Unknown, conda: dict[str, str] | Unknown, cuda: str | Unknown | None
) -> None:
    packages = {"torch": torch, "nvidia-cuda-runtime-cu12": "12.4.127"}
    told = torch_cuda(case_of(Facts("facts.json", packages=packages, platform=platform, conda=conda)))
    assert isinstance(told, Unknown) if isinstance(cuda, Unknown) else told == cuda


# The driver


@pytest.mark.parametrize(
    ("cuda", "driver", "enough"),
    [
        ("12.4", "525.147.05", True),
        ("12.8", "550.54.15", True),
        ("12.1", "515.105.01", False),
        ("11.8", "450.80.02", True),
        ("11.1", "440.33.01", False),
        ("13.0", "580.95.05", True),
        ("13.0", "575.64.03", False),
        ("10.2", "418.39", False),
        ("10.1", "418.39", True),
        ("9.2", "384.81", None),
        ("14.0", "610.10", None),
        ("12.4", "unknown", None),
    ],
)
def test_drivers_by_branch(cuda: str, driver: str, enough: bool | None) -> None:
    assert runs_on_driver(cuda, driver) is enough


def test_minor_releases_share_the_minimum() -> None:
    assert minimum_driver("12.0") == minimum_driver("12.9") == (525, 60, 13)
    assert minimum_driver("10.0") != minimum_driver("10.2")


def test_the_message_names_what_is_there_and_what_is_needed() -> None:
    (finding,) = found(driver_too_old, "python train.py", files=ON_GPU, facts={"driver": "470.57.02"})
    assert "needs driver 525.60.13 or newer; this machine has 470.57.02" in finding.message
    assert finding.subject == "driver 470.57.02"


def test_a_driver_library_that_is_old_as_well_is_named_in_a_container() -> None:
    inside = {"driver": "470.57.02", "container": {"runtime": "docker"}}
    assert not found(driver_too_old, None, facts=inside)
    assert found(driver_too_old, None, facts={**inside, "driver_cuda": "11.4"})


# Architectures


def _device_requirement(source: str) -> dict[int, tuple[str, tuple[int, ...], frozenset[int]]]:
    """torch's own table: code → (kind, start or members, excluded)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "DEVICE_REQUIREMENT":
            assert isinstance(node.value, ast.Dict)
            pairs = zip(node.value.keys, node.value.values, strict=True)
            return {ast.literal_eval(key): _interval(value) for key, value in pairs if key is not None}
    raise AssertionError("torch's table was not found")


def _interval(node: ast.expr) -> tuple[str, tuple[int, ...], frozenset[int]]:
    assert isinstance(node, ast.Call)
    if ast.unparse(node.func) == "_CompatSet":
        return "set", tuple(ast.literal_eval(node.args[0])), frozenset()
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
    return "interval", (given["start"],), frozenset(given.get("exclude", ()))


INTEGRATED = frozenset({53, 62, 72, 87, 101, 110})
"""Jetson's and Thor's chips, which do not run all code of their major version."""


@EVERYWHERE
def test_code_runs_where_torch_says_it_does(environment: str) -> None:
    site = site_packages_of(environment)
    assert site is not None
    table = _device_requirement((site / "torch/cuda/__init__.py").read_text(encoding="utf-8"))
    compared = 0
    for code, (kind, numbers, excluded) in table.items():
        if code in INTEGRATED:
            continue
        assert kind == "interval"
        for device in set(table) - INTEGRATED - excluded:
            theirs = device // 10 == numbers[0] // 10 and device >= numbers[0]
            assert runs((f"sm_{code}",), divmod(device, 10)) is theirs, (code, device)
            compared += 1
    assert compared > 100


@EVERYWHERE
def test_the_newest_wheels_are_those_that_torch_names(environment: str) -> None:
    site = site_packages_of(environment)
    assert site is not None
    source = (site / "torch/cuda/__init__.py").read_text(encoding="utf-8")
    (node,) = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "PYTORCH_RELEASES_CODE_CC"
    ]
    assert node is not None
    theirs = {cuda: by_machine["x86_64"] for cuda, by_machine in ast.literal_eval(node).items()}
    ours = {cuda: set(archs) for (release, cuda), archs in WHEEL_ARCHS.items() if release == "2.13"}
    assert ours == theirs


@pytest.mark.parametrize(
    ("arch", "capability", "answer"),
    [
        ("sm_80", (8, 9), True),
        ("sm_86", (8, 0), False),
        ("sm_90a", (9, 0), True),
        ("sm_90a", (10, 0), False),
        ("compute_90", (12, 0), True),
        ("compute_90a", (12, 0), False),
        ("compute_120", (9, 0), False),
        ("sm_100f", (10, 3), True),
        ("sm_100f", (12, 0), False),
        ("sm_101", (11, 0), True),
        ("sm_120", (12, 1), True),
        ("something new", (15, 0), True),
    ],
)
def test_spellings_of_architectures(arch: str, capability: tuple[int, int], answer: bool) -> None:
    assert runs((arch,), capability) is answer


def test_one_unsupported_card_of_several_is_named_only_where_the_job_uses_it() -> None:
    gpus = [
        {"index": 0, "name": "NVIDIA A100", "compute_capability": "8.0", "uuid": "GPU-0"},
        {"index": 1, "name": "NVIDIA GeForce RTX 5090", "compute_capability": "12.0", "uuid": "GPU-1"},
    ]
    facts = {"gpus": gpus, "packages": {"torch": "2.5.1+cu124"}, "torch_cuda": "12.4"}
    assert not found(gpu_arch_unsupported, None, facts=facts)
    assert not found(gpu_arch_unsupported, "python train.py", files=ON_GPU, facts=facts)
    order = "CUDA_DEVICE_ORDER=PCI_BUS_ID"
    hidden = f"{order} CUDA_VISIBLE_DEVICES=1 python train.py"
    assert found(gpu_arch_unsupported, hidden, files=ON_GPU, facts=facts)
    both = f"{order} torchrun --nproc_per_node 2 train.py"
    (finding,) = found(gpu_arch_unsupported, both, files=ON_GPU, facts=facts)
    assert "RTX 5090" in finding.message
    assert "A100" not in finding.message


# flash-attn


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("flash_attn-2.6.3+cu123torch2.4cxx11abiTRUE-cp310-cp310-linux_x86_64.whl", Tags(12, (2, 4), True, (3, 10))),
        ("flash_attn-2.5.8+cu118torch1.13cxx11abiFALSE-cp38-cp38-linux_x86_64.whl", Tags(11, (1, 13), False, (3, 8))),
        ("flash_attn-2.8.3+cu12torch2.8cxx11abiTRUE-cp313-cp313-linux_x86_64.whl", Tags(12, (2, 8), True, (3, 13))),
        ("2.8.3+cu12torch2.7cxx11abiFALSE", Tags(12, (2, 7), False, ())),
        ("flash_attn-2.7.4.post1-cp311-cp311-linux_x86_64.whl", Tags(python=(3, 11))),
        ("2.7.4.post1", Tags()),
    ],
)
def test_tags_of_a_wheel(text: str, tags: Tags) -> None:
    assert read_tags(text) == tags


def test_every_contradiction_of_a_wheel_is_named_at_once() -> None:
    facts = {
        "packages": {"torch": "2.5.1+cu121", "flash-attn": "2.6.3"},
        "torch_cuda": "12.1",
        "torch_cxx11abi": False,
        "python": {"version": "3.10.13"},
        "wheels": {"flash-attn": "flash_attn-2.6.3+cu118torch2.4cxx11abiTRUE-cp39-cp39-linux_x86_64.whl"},
    }
    (finding,) = found(flash_attn_abi, "python train.py", files=ON_GPU, facts=facts)
    for part in ("torch 2.4", "torch 2.5.1+cu121", "Python 3.9", "Python 3.10", "CUDA 11", "CUDA 12.1", "C++11 ABI"):
        assert part in finding.message


def test_what_is_not_known_contradicts_nothing() -> None:
    facts = {
        "packages": {"torch": "2.4.0", "flash-attn": "2.6.3"},
        "wheels": {"flash-attn": "flash_attn-2.6.3+cu123torch2.4cxx11abiTRUE-cp310-cp310-linux_x86_64.whl"},
    }
    assert not found(flash_attn_abi, None, facts=facts)


def test_installing_flash_attn_is_not_offered_to_a_card_that_cannot_run_it() -> None:
    command = "torchrun --nproc_per_node 8 sft.py --attn_implementation flash_attention_2"
    (on_ampere,) = found(flash_attn_missing, command)
    assert on_ampere.alternatives
    (on_volta,) = found(flash_attn_missing, command, facts=V100)
    assert not on_volta.alternatives
    assert "--attn_implementation sdpa" in mended(on_volta)


def test_a_request_in_the_program_is_found_at_its_place() -> None:
    files = {
        "run.py": "from transformers import AutoModel\n"
        'model = AutoModel.from_pretrained("org/m", attn_implementation="flash_attention_2").cuda()\n'
    }
    facts = {**V100, "packages": {"torch": "2.4.1", "transformers": "4.45.2", "flash-attn": "2.6.3"}}
    (finding,) = found(flash_attn_unsupported_gpu, "python run.py", files=files, facts=facts)
    assert finding.location is not None
    assert finding.location.source.name.endswith("run.py")
    assert 'attn_implementation="sdpa"' in mended(finding)


def test_a_switch_in_the_machines_environment_is_seen_without_a_command() -> None:
    facts = {"env": {"TRANSFORMERS_NO_FLASH_ATTENTION": "1", "DISABLE_FLASH_ATTENTION": "1", "HOME": "/root"}}
    (finding,) = found(flash_attn_switch_unread, None, facts=facts)
    assert finding.subject == "TRANSFORMERS_NO_FLASH_ATTENTION in the environment"
    assert finding.location is None


# Precision


@pytest.mark.parametrize(
    ("transformers", "torch", "severity", "says"),
    [
        ("4.28.1", "2.0.0+cu117", Severity.ERROR, "Your setup doesn't support bf16/gpu"),
        ("4.34.1", "2.3.1+cu121", Severity.ERROR, "Your setup doesn't support bf16/gpu"),
        ("4.35.2", "2.2.2+cu121", Severity.ERROR, "Your setup doesn't support bf16/gpu"),
        ("4.35.2", "2.3.0+cu121", Severity.WARNING, "emulates it"),
        ("5.6.0", "2.6.0+cu124", Severity.WARNING, "emulates it"),
    ],
)
def test_bf16_below_ampere_by_release(transformers: str, torch: str, severity: Severity, says: str) -> None:
    facts = {**V100, "packages": {"torch": torch, "transformers": transformers}}
    (finding,) = found(
        precision_unsupported, "torchrun --nproc_per_node 8 ft.py --bf16 True", files=TRAINER, facts=facts
    )
    assert finding.severity is severity
    assert says in finding.message
    assert finding.location is not None
    assert finding.location.source.slice(finding.location.span) == "--bf16 True"
    assert "--fp16 True" in mended(finding)


def test_bf16_of_a_script_that_cannot_be_read_is_a_warning() -> None:
    facts = {**V100, "packages": {"torch": "2.0.0+cu117", "transformers": "4.28.1"}}
    (finding,) = found(precision_unsupported, "torchrun --nproc_per_node 8 unseen.py --bf16", facts=facts)
    assert finding.severity is Severity.WARNING


def test_a_key_of_a_file_is_mended_in_the_file() -> None:
    files = {"sft.yaml": "stage: sft\ndo_train: true\nbf16: true  # faster\n"}
    (finding,) = found(precision_unsupported, "llamafactory-cli train sft.yaml", files=files, facts=V100)
    assert mended(finding) == "stage: sft\ndo_train: true\nfp16: true  # faster\n"


@pytest.mark.parametrize(
    ("deepspeed", "torch", "severity"),
    [
        ("0.16.9", "2.2.2+cu121", Severity.ERROR),
        ("0.15.4", "2.2.2+cu121", Severity.WARNING),
        ("0.16.9", "2.6.0+cu124", Severity.WARNING),
    ],
)
def test_bf16_in_deepspeeds_file_by_release(deepspeed: str, torch: str, severity: Severity) -> None:
    files = {**TRAINER, "ds.json": '{"bf16": {"enabled": true}, "zero_optimization": {"stage": 2}}'}
    facts = {**V100, "packages": {"torch": torch, "transformers": "4.45.2", "deepspeed": deepspeed}}
    command = "deepspeed --num_gpus 8 ft.py --deepspeed ds.json"
    (finding,) = found(precision_unsupported, command, files=files, facts=facts)
    assert finding.severity is severity


@pytest.mark.parametrize(("version", "severity"), [("0.6.3", Severity.ERROR), ("0.12.0", Severity.WARNING)])
def test_vllms_dtype_by_release(version: str, severity: Severity) -> None:
    facts = {**V100, "packages": {"torch": "2.6.0", "vllm": version}}
    command = "vllm serve org/m --tensor-parallel-size 8 --dtype bfloat16"
    (finding,) = found(precision_unsupported, command, facts=facts)
    assert finding.severity is severity
    assert mended(finding).endswith("--dtype float16")


# Versions


@EVERYWHERE
def test_llamafactorys_ranges_are_those_in_its_source(environment: str) -> None:
    site = site_packages_of(environment)
    assert site is not None
    version = _installed(site, "llamafactory")
    source = (site / "llamafactory/extras/misc.py").read_text(encoding="utf-8")
    (function,) = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == "check_dependencies"
    ]
    theirs = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "check_version":
            theirs.add(str(ast.literal_eval(node.args[0])))
    release = tuple(int(part) for part in version.split("."))
    rows = [row for row in DEMANDS if row.of == "llamafactory" and row.since == release and row.when == "llamafactory"]
    assert {row.needs + row.specifiers for row in rows} == theirs


@EVERYWHERE
def test_transformers_and_accelerate_demand_no_less_than_the_tables_say(environment: str) -> None:
    """The tables hold the weakest bound of a span: what breaks it breaks the installed release's own demand."""
    site = site_packages_of(environment)
    assert site is not None
    table = (site / "transformers/dependency_versions_table.py").read_text(encoding="utf-8")
    theirs = ast.literal_eval(table[table.index("{") :])
    minimum = re.search(
        r'^ACCELERATE_MIN_VERSION = "(.*)"', (site / "transformers/utils/import_utils.py").read_text(), re.MULTILINE
    )
    constants = (site / "accelerate/utils/constants.py").read_text(encoding="utf-8")
    fsdp = re.search(r'^FSDP_PYTORCH_VERSION = \(?\s*"(.*?)"', constants, re.MULTILINE)
    fsdp2 = re.search(r'^FSDP2_PYTORCH_VERSION = "(.*)"', constants, re.MULTILINE)
    assert minimum is not None
    assert fsdp is not None
    assert fsdp2 is not None
    compared = 0
    for row in DEMANDS:
        if row.of not in ("transformers", "accelerate") or not _is_of(row.since, row.until, _installed(site, row.of)):
            continue
        if row.when in ("fsdp", "fsdp2"):
            real = ">=" + (fsdp if row.when == "fsdp" else fsdp2).group(1)
        elif row.when == "trainer":
            real = ">=" + minimum.group(1)
        else:
            real = theirs[row.needs].removeprefix(row.needs)
        for version in ("0.1", "0.9.2", "1.0.0", "1.2.9", "1.13.1", "2.0.1", "2.1.0a0+32f93b0", "2.5.1", "3.0", "9.0"):
            if satisfies(version, row.specifiers) is False:
                assert satisfies(version, real) is False, (row, version, real)
                compared += 1
    assert compared > 10


def _installed(site: Path, name: str) -> str:
    (folder,) = site.glob(f"{name}-*.dist-info")
    return folder.name.removesuffix(".dist-info").rpartition("-")[2]


def _is_of(since: tuple[int, ...], until: tuple[int, ...] | None, version: str) -> bool:
    release = tuple(int(part) for part in version.split("."))
    return since <= release and (until is None or release < until)


@EVERYWHERE
def test_environments_that_work_are_left_alone(environment: str) -> None:
    """The packages of an environment in which the launchers run, with their own metadata."""
    site = site_packages_of(environment)
    assert site is not None
    packages = {
        name.lower().replace("_", "-"): version
        for folder in site.glob("*.dist-info")
        for name, _, version in [folder.name.removesuffix(".dist-info").partition("-")]
    }
    requirements = {
        name: re.findall(r"^Requires-Dist: (.*)$", text, re.MULTILINE)
        for name, text in (
            (folder.name.partition("-")[0].lower().replace("_", "-"), (folder / "METADATA").read_text(encoding="utf-8"))
            for folder in site.glob("*.dist-info")
        )
    }
    facts = {"packages": packages, "requirements": requirements}
    assert not found(version_out_of_range, None, facts=facts)
    sft = {"sft.yaml": "stage: sft\ndo_train: true\n"}
    assert not found(version_out_of_range, "llamafactory-cli train sft.yaml", files=sft, facts=facts)


def test_the_words_that_ask_for_fsdp_are_named() -> None:
    facts = {"packages": {"torch": "2.1.0a0+b5021ba", "accelerate": "0.25.0", "transformers": "4.36.2"}}
    command = "torchrun --nproc_per_node=8 ft.py --fsdp 'full_shard auto_wrap' --output_dir out"
    (finding,) = found(version_out_of_range, command, files=TRAINER, facts=facts)
    assert "2.1.0a0+b5021ba is installed (a pre-release is older than its release)" in finding.message
    assert "FSDP requires PyTorch >= 2.1.0" in finding.message
    assert finding.location is not None
    assert finding.location.source.slice(finding.location.span) == "--fsdp 'full_shard auto_wrap'"


def test_accelerates_own_fsdp_asks_as_well() -> None:
    facts = {"packages": {"torch": "2.0.1+cu118", "accelerate": "0.30.1"}}
    files = {"train.py": "from accelerate import Accelerator\n\naccelerator = Accelerator()\n"}
    command = "accelerate launch --use_fsdp --num_processes 8 train.py"
    assert found(version_out_of_range, command, files=files, facts=facts)
    assert not found(
        version_out_of_range, command, files=files, facts={"packages": {**facts["packages"], "torch": "2.1.2"}}
    )


@pytest.mark.parametrize(
    ("packages", "broken"),
    [
        ({"torch": "2.4.0", "deepspeed": "0.14.0"}, True),
        ({"torch": "2.4.1+cu121", "deepspeed": "0.14.3"}, True),
        ({"torch": "2.4.1+cu121", "deepspeed": "0.14.4"}, False),
        ({"torch": "2.3.1+cu121", "deepspeed": "0.12.6"}, False),
        ({"accelerate": "0.31.0", "peft": "0.15.2"}, True),
        ({"pyarrow": "26.0.1", "numpy": "1.26.4"}, True),
        ({"pyarrow": "25.0.0", "numpy": "1.26.4"}, False),
        ({"pyarrow": "26.0.1", "numpy": "2.2.6"}, False),
        ({"accelerate": "0.34.2", "peft": "0.15.2"}, False),
        ({"accelerate": "0.31.0", "peft": "0.14.0"}, False),
    ],
)
def test_names_that_one_package_imports_from_another(packages: dict[str, str], broken: bool) -> None:
    assert bool(found(version_out_of_range, None, facts={"packages": packages})) is broken


@EVERYWHERE
def test_the_torch_of_today_lacks_what_old_deepspeeds_import(environment: str) -> None:
    site = site_packages_of(environment)
    assert site is not None
    source = (site / "torch/distributed/elastic/agent/server/api.py").read_text(encoding="utf-8")
    assert not re.search(r"^log\b|def _get_socket_with_port", source, re.MULTILINE)
    memory = (site / "accelerate/utils/memory.py").read_text(encoding="utf-8")
    assert "def clear_device_cache" in memory


@pytest.mark.parametrize("value", ["1", "true", "y", "TRUE"])
def test_the_switch_of_llamafactorys_check_is_honoured(value: str) -> None:
    facts = {"packages": {"torch": "2.6.0", "llamafactory": "0.9.3", "transformers": "4.55.0"}}
    files = {"sft.yaml": "stage: sft\ndo_train: true\n"}
    assert found(version_out_of_range, "llamafactory-cli train sft.yaml", files=files, facts=facts)
    exported = f"export DISABLE_VERSION_CHECK={value}\nllamafactory-cli train sft.yaml"
    assert not found(version_out_of_range, exported, files=files, facts=facts)
    assert not found(version_out_of_range, None, facts={**facts, "env": {"DISABLE_VERSION_CHECK": value}})


@pytest.mark.parametrize(
    ("needs", "version", "specifiers", "severity"),
    [
        ("torch", "2.6.0", "torch==2.5.1", Severity.WARNING),
        ("accelerate", "1.2.0", "accelerate>=1.4.0", Severity.WARNING),
        ("accelerate", "1.12.0", "accelerate<1.12,>=1.0", Severity.ADVICE),
        ("tokenizers", "0.22.1", "tokenizers<0.22", None),
        ("tokenizers", "0.20.1", "tokenizers>=0.21", Severity.WARNING),
        ("requests", "1.0", "requests>=2.0", None),
    ],
)
def test_what_metadata_declare_weighs_less(
    needs: str, version: str, specifiers: str, severity: Severity | None
) -> None:
    facts = {"packages": {"peft": "0.15.2", needs: version}, "requirements": {"peft": [specifiers]}}
    assert [finding.severity for finding in found(version_out_of_range, None, facts=facts)] == (
        [severity] if severity else []
    )


# Toolkit, NCCL, shadows


@pytest.mark.parametrize(
    ("deepspeed", "nvcc", "torch", "fits"),
    [
        ("0.14.5", "12.5", "12.1", True),
        ("0.14.5", "12.6", "12.1", False),
        ("0.15.4", "12.6", "12.1", True),
        ("0.16.9", "12.8", "12.4", True),
        ("0.17.6", "12.9", "12.6", True),
        ("0.16.9", "11.8", "12.4", False),
        ("0.16.9", "13.0", "13.0", True),
        ("0.16.9", "11.5", "11.8", True),
        ("0.9.0", "12.0", "12.1", False),
        ("0.11.2", "11.5", "12.1", True),
        ("0.12.2", "12.3", "12.1", True),
        ("0.12.2", "11.8", "12.1", False),
        ("0.19.8", "11.5", "12.6", True),
    ],
)
def test_the_compilers_that_deepspeed_accepts(deepspeed: str, nvcc: str, torch: str, fits: bool) -> None:
    files = {**TRAINER, "ds.json": '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}'}
    facts = {"packages": {"torch": "2.6.0", "deepspeed": deepspeed}, "torch_cuda": torch, "nvcc": nvcc}
    findings = found(
        cuda_toolkit_mismatch, "deepspeed --num_gpus 8 ft.py --deepspeed ds.json", files=files, facts=facts
    )
    assert (not findings) is fits
    for finding in findings:
        assert finding.location is not None
        assert "offload_optimizer" in finding.message or "offloaded" in finding.message


@pytest.mark.parametrize("built", [True, False])
def test_operators_that_were_compiled_when_deepspeed_was_installed_need_no_compiler(
    tmp_path: Path, built: bool
) -> None:
    place = tmp_path / "deepspeed" / "git_version_info_installed.py"
    place.parent.mkdir()
    place.write_text(f"version='0.16.9'\ninstalled_ops={{'cpu_adam': False, 'fused_adam': {built}}}\n")
    case = case_of(Facts("this machine", site_packages=(str(tmp_path),)))
    assert cuda_toolkit_mismatch._is_built(case, "fused_adam") is built
    assert cuda_toolkit_mismatch._is_built(case, "cpu_adam") is False


def test_a_toolkit_is_only_advice_without_a_job_that_compiles() -> None:
    (finding,) = found(cuda_toolkit_mismatch, None, facts={"nvcc": "11.5"})
    assert finding.severity is Severity.ADVICE


def test_nccl_by_the_copy_that_is_loaded_first() -> None:
    own = "/v/lib/python3.11/site-packages/nvidia/nccl/lib/libnccl.so.2"
    other = "/opt/nccl/lib/libnccl.so.2"
    (finding,) = found(
        nccl_shadowed, None, facts={"nccl_libraries": {other: "2.18.1", own: "2.21.5"}, "torch_nccl": "2.21.5"}
    )
    assert finding.fix is not None
    assert "/opt/nccl/lib" in finding.fix.title
    (finding,) = found(nccl_shadowed, None, facts={"nccl_libraries": {own: "2.14.3"}, "torch_nccl": "2.21.5"})
    assert "reinstall" in finding.fix.title if finding.fix else False


LAYOUTS: tuple[tuple[dict[str, str], bool], ...] = (
    ({"accelerate.py": "class Other: ...\n"}, True),
    ({"accelerate/__init__.py": ""}, True),
    ({"accelerate/notes.txt": ""}, False),
    ({"accelerate/part.py": ""}, False),
    ({"other/accelerate.py": ""}, False),
    ({"lib/accelerate.py": ""}, True),
)


@pytest.mark.parametrize(
    ("files", "hides"), LAYOUTS, ids=lambda value: str(sorted(value)) if isinstance(value, dict) else ""
)
def test_a_local_module_hides_the_library_where_python_takes_it(
    files: dict[str, str], hides: bool, tmp_path: Path
) -> None:
    """The rule and the interpreter agree: a stand-in of the library lies where site-packages would."""
    library = tmp_path / "site" / "accelerate"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text("class Accelerator:\n    pass\n")
    script = "import sys\nfrom accelerate import Accelerator\n\naccelerator = Accelerator()\n"
    for name, text in {**files, "train.py": script}.items():
        path = tmp_path / "job" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    # A search path behind the script's directory, as site-packages is.
    clean = {"PATH": os.defpath, "PYTHONPATH": f"lib:{tmp_path / 'site'}"}
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path / "job", env=clean, capture_output=True, text=True, check=False
    )
    assert (done.returncode != 0) is hides, done.stderr
    facts = {"packages": {"torch": "2.6.0", "accelerate": "1.7.0"}}
    command = "PYTHONPATH=lib:/opt/site python train.py"
    assert bool(found(package_shadowed, command, files={**files, "train.py": script}, facts=facts)) is hides


def test_a_shadow_that_holds_what_the_program_takes_is_meant() -> None:
    files = {"train.py": "from accelerate import go\n\ngo()\n", "accelerate.py": "def go():\n    pass\n"}
    assert not found(package_shadowed, "python train.py", files=files)
    more = {**files, "train.py": "from transformers import Trainer\nfrom accelerate import go\n\nTrainer(m).train()\n"}
    assert found(package_shadowed, "python train.py", files=more)


def test_the_script_is_named_where_its_folder_shadows() -> None:
    files = {"src/train.py": "from accelerate import Accelerator\n\nAccelerator()\n", "src/accelerate.py": "x = 1\n"}
    (finding,) = found(package_shadowed, "accelerate launch src/train.py", files=files)
    assert finding.location is not None
    assert finding.location.source.slice(finding.location.span) == "src/train.py"
    assert "src/accelerate.py is imported instead of the installed accelerate" in finding.message
    assert not found(
        package_shadowed, "accelerate launch src/train.py", files=files, facts={"packages": {"torch": "2.6.0"}}
    )


# Facts of any kind

ODD = st.sampled_from(
    ["", "unknown", "1", "12.4", "2.6.0+cu124", "2.6.0+cpu", "0.9.3", "9" * 30, "a.b.c", "\u2014", "1.0.dev1"]
)
ODD_FACTS = st.fixed_dictionaries(
    {},
    optional={
        "gpus": st.lists(
            st.fixed_dictionaries(
                {}, optional={"name": ODD, "compute_capability": st.sampled_from(["7.0", "12.0", "8.6"])}
            ),
            max_size=3,
        ),
        "driver": ODD,
        "driver_cuda": ODD,
        "nvcc": st.none() | ODD,
        "platform": ODD,
        "packages": st.dictionaries(
            st.sampled_from(
                [
                    "torch",
                    "transformers",
                    "accelerate",
                    "deepspeed",
                    "llamafactory",
                    "flash-attn",
                    "vllm",
                    "torchvision",
                ]
            ),
            ODD,
        ),
        "requirements": st.dictionaries(
            st.sampled_from(["transformers", "vllm"]), st.lists(ODD | st.just("torch>=;;"))
        ),
        "wheels": st.dictionaries(st.just("flash-attn"), ODD | st.just("+cu12torch2.4cxx11abiTRUE-cp3")),
        "torch_cuda": st.none() | ODD,
        "torch_archs": st.lists(ODD),
        "torch_nccl": st.none() | ODD,
        "nccl_libraries": st.dictionaries(ODD, ODD),
        "conda": st.dictionaries(st.sampled_from(["pytorch", "deepspeed"]), ODD),
        "python": st.fixed_dictionaries({}, optional={"version": ODD, "prefix": ODD, "executable": ODD}),
    },
)
COMMANDS = st.sampled_from(
    [
        None,
        "torchrun --nproc_per_node 2 ft.py --bf16 True --tf32 1 --fsdp x --attn_implementation flash_attention_2",
        "llamafactory-cli train --stage sft --flash_attn fa2 --bf16",
        "accelerate launch --mixed_precision fp8 --use_deepspeed --offload_optimizer_device cpu ft.py",
    ]
)
RULES = (
    torch_without_cuda,
    driver_too_old,
    gpu_arch_unsupported,
    version_out_of_range,
    flash_attn_missing,
    flash_attn_abi,
    flash_attn_unsupported_gpu,
    precision_unsupported,
    cuda_toolkit_mismatch,
    package_shadowed,
    nccl_shadowed,
)


@settings(max_examples=150, deadline=None)
@given(ODD_FACTS, COMMANDS)
def test_odd_facts_break_no_rule(facts: dict[str, object], command: str | None) -> None:
    checks = tuple(Check(module.RULE, module.find) for module in RULES)
    with tempfile.TemporaryDirectory() as top:
        (Path(top) / "ft.py").write_text(TRAINER["ft.py"])
        file = Path(top) / "facts.json"
        file.write_text(json.dumps(facts))
        report = diagnose(Request(command=command, facts=str(file), directory=top), Registry(checks, ()))
    crashed = [(outcome.code, outcome.reason) for outcome in report.outcomes if outcome.kind is OutcomeKind.CRASHED]
    assert not crashed


# What the fixes say


@pytest.mark.parametrize(
    ("packages", "command"),
    [
        ({"torch": "2.4.0+cu121", "deepspeed": "0.14.2"}, "pip install 'deepspeed>=0.14.4'"),
        ({"torch": "2.1.2+cu121", "transformers": "5.0.0"}, f'pip install "torch==2.2.0+cu121" {INDEX}/cu121'),
        ({"torch": "2.1.2", "transformers": "5.0.0"}, None),
        (
            {"torch": "2.4.0+cu121", "torchvision": "0.20.1"},
            f'pip install --no-deps "torchvision==0.19.*" {INDEX}/cu121',
        ),
        ({"torch": "2.4.0", "torchvision": "0.20.1"}, 'pip install --no-deps "torchvision==0.19.*"'),
    ],
)
def test_no_fix_brings_another_cuda_by_the_way(packages: dict[str, str], command: str | None) -> None:
    (finding,) = found(version_out_of_range, None, facts={"packages": packages})
    assert finding.fix is not None
    assert finding.fix.commands == ((command,) if command else ())


@pytest.mark.parametrize(
    ("build", "command"),
    [
        ("1.9.0=py3.8_cpu_0", 'conda install -c pytorch -c nvidia "pytorch=1.9.0=*cuda*"'),
        ("2.6.0=cpu_generic_py312h1_0", 'conda install -c conda-forge "pytorch=2.6.0=*cuda*"'),
    ],
)
def test_what_conda_installed_conda_replaces(build: str, command: str) -> None:
    version = build.partition("=")[0]
    facts = {"packages": {"torch": version}, "torch_cuda": None, "conda": {"pytorch": build}}
    (finding,) = found(torch_without_cuda, None, facts=facts)
    assert finding.fix is not None
    assert finding.fix.commands == (command,)


@pytest.mark.parametrize(
    ("torch", "wanted"),
    [("2.2.2+cu121", "flash-attn==2.5.8"), ("2.6.0+cu124", "flash-attn"), ("2.3.0", "flash-attn==2.5.8")],
)
def test_the_same_flash_attn_unless_torch_is_newer(torch: str, wanted: str) -> None:
    wheel = "flash_attn-2.5.8+cu122torch2.3cxx11abiFALSE-cp39-cp39-linux_x86_64.whl"
    facts = {
        "packages": {"torch": torch, "flash-attn": "2.5.8"},
        "wheels": {"flash-attn": wheel},
        "python": {"version": "3.10.14"},
    }
    (finding,) = found(flash_attn_abi, None, facts=facts)
    assert finding.fix is not None
    assert finding.fix.commands[0].endswith(f'"{wanted}"')


def test_the_numbers_of_linux_drivers_are_not_told_to_windows() -> None:
    facts = {"packages": {"torch": "2.3.1+cu121"}, "torch_cuda": "12.1", "driver": "512.78"}
    (windows,) = found(driver_too_old, None, facts={**facts, "platform": "Windows-11-10.0.22631"})
    (linux,) = found(driver_too_old, None, facts=facts)
    assert "driver 525 or newer" in windows.message
    assert "driver 525.60.13 or newer" in linux.message
