"""Files of any size and damage in the place of a configuration: a clear word, in bounded time and memory."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from jobs.folders import ENGINE_JOB, FSDP_JOB, OFFLINE, SFT_JOB, Job, built, checked
from mgpu_doctor.model.finding import OutcomeKind
from mgpu_doctor.testing import standard_facts

CPU_SECONDS = 2.0
"""What one check may use of a processor, start of the interpreter included."""

MEMORY = 2 * 1024**3
"""Bytes of address space that one check may map; a file that is read whole does not fit in."""

Damage = Callable[[Path], None]


def bomb(path: Path) -> None:
    """Nine lists of nine aliases each: three gigabytes of text when it is written out."""
    names = "abcdefghij"
    lines = ["a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in pairwise(names)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def mapping_bomb(path: Path) -> None:
    """The same with mappings, whose entries have paths."""
    names = "abcdefghij"
    lines = ["a: &a {x: lol, y: lol, z: lol}"]
    for before, name in pairwise(names):
        entries = ", ".join(f"{key}: *{before}" for key in "pqrstuvwx")
        lines.append(f"{name}: &{name} {{{entries}}}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def itself(path: Path) -> None:
    path.write_text("a: &a\n  b: *a\n", encoding="utf-8")


def deep_yaml(path: Path) -> None:
    path.write_text("a: " + "[" * 10_000 + "]" * 10_000, encoding="utf-8")


def deep_blocks(path: Path) -> None:
    path.write_text("\n".join(" " * level + "a:" for level in range(1_500)), encoding="utf-8")


def deep_json(path: Path) -> None:
    path.write_text('{"a": ' * 10_000 + "1" + "}" * 10_000, encoding="utf-8")


def large(path: Path) -> None:
    """A hundred mebibytes, none of them holes."""
    with path.open("wb") as file:
        for _ in range(100):
            file.write(b"a: 1 # " + b"x" * (1024 * 1024 - 8) + b"\n")


def sparse(path: Path) -> None:
    """A hundred gigabytes that take no room."""
    with path.open("wb") as file:
        file.truncate(100 * 1024**3)


def wide(path: Path) -> None:
    path.write_text("".join(f"key_{n}: {n}\n" for n in range(50_000)), encoding="utf-8")


def loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere")


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def directory(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def holding(data: bytes) -> Damage:
    def damage(path: Path) -> None:
        path.write_bytes(data)

    return damage


DAMAGES: dict[str, Damage] = {
    "alias bomb": bomb,
    "mapping bomb": mapping_bomb,
    "a mapping that holds itself": itself,
    "deep YAML": deep_yaml,
    "deep blocks": deep_blocks,
    "deep JSON": deep_json,
    "large": large,
    "sparse": sparse,
    "wide": wide,
    "link to itself": loop,
    "link to nothing": dangling,
    "named pipe": fifo,
    "device": device,
    "directory": directory,
    "zero bytes": holding(b"stage: sft\0\n"),
    "not UTF-8": holding(b"stage: caf\xe9\n"),
    "UTF-16": holding("stage: sft\n".encode("utf-16")),
    "only a mark": holding(b"\xef\xbb\xbf"),
    "a mark and more": holding(b"\xef\xbb\xbfstage: sft\n"),
    "lone surrogate": holding(b'{"a": "\\ud800"}'),
    "a number of many digits": holding(b"num_processes: " + b"9" * 100_000 + b"\n"),
    "huge exponents": holding(b'{"train_batch_size": 1e999999, "zero_optimization": {"stage": 1e400}}'),
    "dates and binary": holding(b"stage: 2024-01-01\ndataset: !!binary aGVsbG8=\noutput_dir: !!set {a, b}\n"),
    "a Python object": holding(b"stage: !!python/object/apply:os.system ['true']\n"),
    "many documents": holding(b"---\na: 1\n---\nb: 2\n"),
    "keys of all kinds": holding(b"? [a, b]\n: 1\n? {c: d}\n: 2\n1: 3\nnull: 4\ntrue: 5\n1.5: 6\n"),
    "tabs": holding(b"stage:\tsft\n\tdataset: demo\n"),
    "escape sequences": holding(b"stage: \x1b[31mred\x1b[0m\n"),
    "carriage returns": holding(b"stage: sft\r\ndataset: demo\r\n"),
    "a merge of a list": holding(b"a: &a [1]\nb:\n  <<: *a\n"),
    "one line of a mebibyte": holding(b"stage: " + b"x" * 1024 * 1024 + b"\n"),
    "nothing": holding(b""),
}

PLACES: dict[str, tuple[Job, str]] = {
    "LLaMA-Factory's arguments": (SFT_JOB, "sft.yaml"),
    "accelerate's file": (FSDP_JOB, "fsdp.yaml"),
    "DeepSpeed's file of a Trainer": (SFT_JOB, "ds/z2.json"),
    "DeepSpeed's own file": (ENGINE_JOB, "ds.json"),
    "the register of data sets": (SFT_JOB, "data/dataset_info.json"),
    "FSDP's file": (
        FSDP_JOB._replace(
            command="torchrun --nproc-per-node 8 train.py --output_dir out --fsdp full_shard --fsdp_config fsdp.json",
            files={**FSDP_JOB.files, "fsdp.json": b"{}"},
        ),
        "fsdp.json",
    ),
    "a model's index": (SFT_JOB, "models/tiny/model.safetensors.index.json"),
    "a model's configuration": (SFT_JOB, "models/tiny/config.json"),
    "a shard": (SFT_JOB, "models/tiny/model-00001-of-00002.safetensors"),
    "the program": (FSDP_JOB, "train.py"),
}


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def run(job: Job, work: Path, top: Path) -> tuple[int, Any, float]:
    """Exit status, the answer, and the seconds of processor time of ``mgpu-doctor check``."""
    facts = top / "facts.json"
    facts.write_text(json.dumps({**standard_facts(), **job.facts}), encoding="utf-8")
    argv = [
        sys.executable,
        "-m",
        "mgpu_doctor",
        "check",
        "--facts",
        str(facts),
        "--format",
        "json",
        "--cmd",
        job.command,
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        argv,
        cwd=work,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=limit,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    return done.returncode, json.loads(done.stdout), used


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_any_file_ends_in_a_report(damage: str, place: str, tmp_path: Path) -> None:
    job, name = PLACES[place]
    DAMAGES[damage](built(job, tmp_path) / name)
    start = time.process_time()
    report = checked(job._replace(files={}), tmp_path)
    assert time.process_time() - start < CPU_SECONDS
    assert [outcome.reason for outcome in report.outcomes if outcome.kind is OutcomeKind.CRASHED] == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX files and limits")
@pytest.mark.parametrize("place", ["LLaMA-Factory's arguments", "a shard"])
@pytest.mark.parametrize(
    "damage", ["alias bomb", "mapping bomb", "deep YAML", "large", "sparse", "named pipe", "device"]
)
def test_a_limit_of_memory_is_kept(damage: str, place: str, tmp_path: Path) -> None:
    job, name = PLACES[place]
    work = built(job, tmp_path)
    DAMAGES[damage](work / name)
    status, answer, used = run(job, work, tmp_path)
    assert status in (0, 1)
    assert answer["crashed"] == []
    assert used < CPU_SECONDS


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("place", PLACES)
def test_a_file_that_may_not_be_read(place: str, tmp_path: Path) -> None:
    job, name = PLACES[place]
    work = built(job, tmp_path)
    (work / name).chmod(0)
    status, answer, used = run(job, work, tmp_path)
    (work / name).chmod(0o600)
    assert status in (0, 1)
    assert answer["crashed"] == []
    assert used < CPU_SECONDS


@pytest.mark.parametrize(
    ("place", "damage", "slug"),
    [
        ("LLaMA-Factory's arguments", "zero bytes", "arguments-file-invalid"),
        ("LLaMA-Factory's arguments", "not UTF-8", "arguments-file-invalid"),
        ("LLaMA-Factory's arguments", "directory", "arguments-file-invalid"),
        ("LLaMA-Factory's arguments", "a Python object", "arguments-file-invalid"),
        ("LLaMA-Factory's arguments", "nothing", "arguments-file-invalid"),
        ("LLaMA-Factory's arguments", "link to nothing", "target-not-found"),
        ("accelerate's file", "tabs", "accelerate-config-invalid"),
        ("accelerate's file", "only a mark", "accelerate-config-invalid"),
        ("accelerate's file", "many documents", "accelerate-config-invalid"),
        ("DeepSpeed's file of a Trainer", "a mark and more", "deepspeed-config-invalid"),
        ("the register of data sets", "tabs", "dataset-not-registered"),
        ("a shard", "nothing", "model-files-incomplete"),
    ],
)
def test_damage_that_its_reader_refuses_is_named(place: str, damage: str, slug: str, tmp_path: Path) -> None:
    job, name = PLACES[place]
    work = built(job, tmp_path)
    DAMAGES[damage](work / name)
    _, answer, _ = run(job, work, tmp_path)
    assert slug in {finding["slug"] for finding in answer["findings"]}


@pytest.mark.parametrize("damage", ["sparse", "large", "alias bomb", "mapping bomb", "deep JSON"])
def test_what_could_not_be_looked_at_is_said(damage: str, tmp_path: Path) -> None:
    """A file that is too much for us is no fault of the job's, and no clean bill either."""
    job, name = PLACES["accelerate's file"]
    work = built(job, tmp_path)
    DAMAGES[damage](work / name)
    _, answer, _ = run(job, work, tmp_path)
    reasons = [skipped["reason"] for skipped in answer["skipped"] if skipped["code"] == "MGD614"]
    named = [finding for finding in answer["findings"] if finding["slug"] == "accelerate-config-invalid"]
    assert reasons or named


def test_the_users_default_file_may_be_a_bomb(tmp_path: Path) -> None:
    mapping_bomb(tmp_path / "bomb.yaml")
    bombed = {**OFFLINE, "accelerate_default_config": (tmp_path / "bomb.yaml").read_text(encoding="utf-8")}
    job = FSDP_JOB._replace(command="accelerate launch train.py", facts=bombed)
    status, answer, used = run(job, built(job, tmp_path), tmp_path)
    assert status in (0, 1)
    assert answer["crashed"] == []
    assert used < CPU_SECONDS
