"""Whole trees with commands in files of other languages."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpu_doctor.cli.lint import expanded
from mgpu_doctor.diagnose import Request, diagnose
from mgpu_doctor.model.report import Report
from mgpu_doctor.read.text import kind_of

STEP = "jobs:\n  a:\n    steps:\n      - run: |\n          torchrun --nproc_per_ndoe=2 train.py\n"
TREE = {
    ".github/workflows/gpu.yml": STEP,
    ".hidden/gpu.yml": STEP,
    "docker/Dockerfile": "FROM x\nCMD [\"torchrun\", \"--nproc_per_ndoe=2\", \"train.py\"]\n",
    "docker/empty.Dockerfile": "",
    "Makefile": "train:\n\ttorchrun --nproc_per_ndoe=2 train.py\n",
    "configs/train.yaml": "run: torchrun --nproc_per_ndoe=2 train.py\nlearning_rate: 1e-4\n",
    "configs/empty.yaml": "",
    "configs/template.yaml": "{{ if }}\nsteps: [{run: python train.py}]\n",
}  # fmt: skip


def _lint(root: Path, *paths: str) -> Report:
    files = tuple(
        str(Path(path).relative_to(root)) for path in expanded([str(root / path) for path in paths or (".",)])
    )
    return diagnose(Request(mode="lint", files=files, directory=str(root)))


def test_a_tree_is_linted_and_what_holds_no_commands_is_passed_over(tmp_path: Path) -> None:
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "configs" / "latin.yaml").write_bytes("note: gr\xfc\xdfe python".encode("latin-1"))
    (tmp_path / "configs" / "utf16.yaml").write_bytes("note: python".encode("utf-16"))
    report = _lint(tmp_path)
    assert report.problems == ()
    places = {str(finding.location) for finding in report.findings if finding.code == "MGD106"}
    assert places == {".github/workflows/gpu.yml:5:20", "docker/Dockerfile:2:19", "Makefile:2:11"}
    assert len(report.case.launches) == 3


def test_a_workflow_follows_a_script_of_the_repository(tmp_path: Path) -> None:
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "run.sh").write_text("torchrun --nproc_per_ndoe=$N train.py\n")
    (tmp_path / "gpu.yml").write_text("env: {N: 2}\nsteps:\n  - script: bash ci/run.sh\n")
    report = _lint(tmp_path, "gpu.yml")
    (finding,) = report.findings
    assert str(finding.location) == "ci/run.sh:1:10"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yml", "steps:\n  # mgpu-doctor: ignore[MGD106] wanted\n  - script: torchrun --nproc_per_ndoe=2 train.py\n"),
        ("a.yml", "steps:\n  - script: torchrun --nproc_per_ndoe=2 train.py  # mgpu-doctor: ignore[MGD106] wanted\n"),
        ("Dockerfile", "FROM x\n# mgpu-doctor: ignore[MGD106] wanted\nRUN torchrun --nproc_per_ndoe=2 train.py\n"),
        ("Makefile", "a:\n\t# mgpu-doctor: ignore[MGD106] wanted\n\ttorchrun --nproc_per_ndoe=2 train.py\n"),
    ],
)
def test_a_comment_of_the_file_accepts_a_finding(name: str, text: str) -> None:
    request = Request(mode="lint", text=text, text_name=name, text_kind=kind_of(name) or "")
    report = diagnose(request)
    assert report.findings == ()
    assert [one.finding.code for one in report.suppressed] == ["MGD106"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pod.yaml", "apiVersion: v1\nkind: Pod\nspec: {a: [{image: x, args: [torchrun, --nproc_per_node=8, t.py]}]}"),
        ("Dockerfile", "FROM x\nRUN torchrun --nproc_per_node=8 --master_port 29500 t.py\n"),
        ("compose.yml", "services: {a: {command: torchrun --nproc_per_node 8 --master_port 29500 t.py}}\n"),
        ("sky.yaml", "resources: {}\nrun: torchrun --nproc_per_node 8 --master_port 29500 t.py\n"),
    ],
)  # fmt: skip
def test_a_container_is_not_judged_by_the_machine_that_looks(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    facts = tmp_path / "facts.json"
    facts.write_text(
        '{"gpus": [{"index": 0, "name": "NVIDIA T4", "memory_gib": 16}], "packages": {"torch": "1.13.0"},'
        ' "env": {"CUDA_VISIBLE_DEVICES": "0"}, "ports_in_use": {"29500": {"pid": 1}}, "shm_gib": 0.06}'
    )
    report = diagnose(Request(files=(name,), directory=str(tmp_path), facts=str(facts)))
    assert len(report.case.launches) == 1
    assert report.findings == ()
