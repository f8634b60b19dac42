"""Whether a run is truly parallel: its own start-up lines, nvidia-smi's text, and both together."""

from __future__ import annotations

import io
import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgpu_doctor.cli import main
from mgpu_doctor.diagnose_logs import diagnose_logs
from mgpu_doctor.logs import read_log
from mgpu_doctor.logs.smi import is_smi, read_smi
from mgpu_doctor.model.log import Parallelism
from mgpu_doctor.registry import load_checks
from mgpu_doctor.settings import Settings

SMI = Path(__file__).parent.parent / "fixtures" / "smi"
REGISTRY = load_checks()


def nccl(rank: int, bus: str, *, pid: int, size: int = 2, group: str | None = "0x9", host: str = "gpu01") -> str:
    """A line as NCCL 2.21.5 prints it, without ``group`` as 2.10 did."""
    if group is None:
        return (
            f"{host}:{pid}:{pid + 90} [{rank}] NCCL INFO comm 0x55d0{rank} rank {rank} nranks {size} "
            f"cudaDev {rank} busId {bus} - Init COMPLETE"
        )
    return (
        f"{host}:{pid}:{pid + 90} [{rank}] NCCL INFO ncclCommInitRank comm 0x55d0{rank} rank {rank} nranks {size} "
        f"cudaDev {rank} nvmlDev {rank} busId {bus} commId {group} - Init COMPLETE"
    )


FACTORY = (
    "[INFO|2025-06-01 10:00:00] llamafactory.hparams.parser:401 >> Process rank: 1, world size: 4, device: cuda:1, "
    "distributed training: True, compute dtype: torch.bfloat16"
)
EXAMPLE = (
    "11/29/2023 03:16:17 - WARNING - __main__ - Process rank: 0, device: cuda:0, n_gpu: 1, distributed training: "
    "False, 16-bits training: True"
)
DEEPSPEED = (
    "[INFO] [launch.py:164:main] dist_world_size=2\n[INFO] [launch.py:168:main] Setting CUDA_VISIBLE_DEVICES=0,1"
)


def ended(*words: str) -> int:
    with pytest.raises(SystemExit) as info:
        main(["logs", *words])
    return int(info.value.code or 0)


def told(*lines: str) -> Parallelism | None:
    return read_log("run.log", io.BytesIO("\n".join(lines).encode()), ()).parallel


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ((nccl(0, "1a000", pid=10), nccl(1, "1b000", pid=11)), "2 ranks on 2 distinct GPUs of one host"),
        (
            (nccl(0, "1a000", pid=10, group=None), nccl(1, "1b000", pid=11, group=None)),
            "2 ranks on 2 distinct GPUs of one host",
        ),
        (
            (nccl(0, "1a000", pid=10, size=8), nccl(4, "1a000", pid=10, size=8, host="gpu02")),
            "world size 8; the 2 ranks that speak here are on 2 distinct GPUs of 2 hosts",
        ),
        (("[INFO] [launch.py:164:main] dist_world_size=2",), "2 processes, by deepspeed's"),
        (("Distributed environment: MULTI_GPU  Backend: nccl", "Num processes: 4"), "4 processes, by accelerate's"),
        (("Distributed environment: NO", "Num processes: 1"), "one process, by accelerate's own lines"),
        (("Initializing distributed: GLOBAL_RANK: 0, MEMBER: 1/4",), "4 processes, by Lightning's"),
        (
            (FACTORY,),
            "4 processes, by the program's",
        ),
        (
            (EXAMPLE,),
            "one process, by the program's",
        ),
        (
            (
                "  Instantaneous batch size per device = 1",
                "  Total train batch size (w. parallel, distributed & accumulation) = 64",
                "  Gradient Accumulation steps = 8",
            ),
            "the batch is split over 8 devices, by the trainer's batch sizes",
        ),
    ],
)
def test_what_the_start_up_lines_say(lines: tuple[str, ...], sentence: str) -> None:
    parallel = told(*lines)
    assert parallel is not None
    assert parallel.sentence.startswith(sentence)


@pytest.mark.parametrize("line", ["{'loss': 1.0}", "gpu01:1:2 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/IPC"])
def test_nothing_told_nothing_said(line: str) -> None:
    assert told(line) is None


def test_the_largest_communicator_of_the_last_run_counts() -> None:
    first = (nccl(0, "1a000", pid=10), nccl(1, "1b000", pid=11))
    second = (nccl(0, "1b000", pid=20, group="0x7"), nccl(1, "1a000", pid=21, group="0x7"))
    halves = (nccl(0, "1a000", pid=20, size=1, group="0x8"),)
    parallel = told(*first, *second, *halves)
    assert parallel is not None
    assert [(process.pid, process.bus_id) for process in parallel.processes] == [(20, "1b000"), (21, "1a000")]
    assert parallel.shared == ()


def test_two_ranks_on_one_gpu_are_named(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text("\n".join([nccl(0, "1a000", pid=10), nccl(1, "1a000", pid=11)]))
    report = diagnose_logs([str(log)], REGISTRY, Settings())
    assert [finding.code for finding in report.findings] == ["MGD901"]
    assert "Ranks 0 and 1 of gpu01 hold one GPU, PCI bus 1a000" in report.findings[0].message


def test_without_a_named_communicator_restarts_are_no_sharing(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text(
        "\n".join(
            [
                nccl(0, "1a000", pid=10, group=None),
                nccl(1, "1b000", pid=11, group=None),
                nccl(1, "1a000", pid=21, group=None),
            ]
        )
    )
    assert not diagnose_logs([str(log)], REGISTRY, Settings()).findings


@pytest.mark.parametrize(
    ("name", "gpus"),
    [
        ("table-418.txt", [(0, 730, 0, None), (1, 6014, 0, None)]),
        ("table-470.txt", [(0, 3, 0, ()), (1, 3, 0, ())]),
        ("table-535.txt", [(0, 20672, 47, (12439, 12440)), (1, 8, 0, ())]),
        ("table-570-container.txt", [(0, 70244, 98, None), (1, 70210, 99, None)]),
        ("query-550.txt", [(0, 20672, 47, (12439,)), (1, 8, 0, ())]),
        ("gpus.csv", [(0, 20672, 47, None), (1, 8, 0, None)]),
    ],
)
def test_every_layout_of_nvidia_smi(name: str, gpus: list[tuple[int, int, int, tuple[int, ...] | None]]) -> None:
    text = (SMI / name).read_text()
    assert is_smi(text)
    assert [(gpu.index, gpu.memory_used, gpu.utilization, gpu.pids) for gpu in read_smi(text)] == gpus


@pytest.mark.parametrize("text", ["", "{'loss': 1.0}\n", "index, loss\n0, 1.5\n", "NVIDIA-SMI has failed because\n"])
def test_other_text_is_not_taken_for_it(text: str) -> None:
    assert not is_smi(text)


@given(st.text(alphabet="|GPU NVIDIA-SMI0123456789:.\n/MiBCN+%=,[]", max_size=300))
def test_any_text_is_survived(text: str) -> None:
    read_smi(text)
    read_smi("| NVIDIA-SMI 535 Driver Version\n" + text)
    read_smi("==============NVSMI LOG==============\n" + text)
    read_smi("index, memory.used [MiB]\n" + text)


LIGHTNING = "\n".join(f"Initializing distributed: GLOBAL_RANK: {rank}, MEMBER: {rank + 1}/2" for rank in range(2))


@pytest.mark.parametrize(
    ("log", "smi", "codes"),
    [
        (LIGHTNING, "table-535.txt", ["MGD901"]),
        (LIGHTNING, "table-570-container.txt", []),
        (LIGHTNING, "table-470.txt", []),
        (LIGHTNING, "gpus.csv", ["MGD903"]),
        (
            DEEPSPEED,
            "gpus.csv",
            ["MGD903"],
        ),
        ("Distributed environment: NO\nNum processes: 1", "table-535.txt", ["MGD902"]),
        ("{'loss': 1.0}", "table-535.txt", []),
        ("\n".join([nccl(0, "31000", pid=12439), nccl(1, "32000", pid=12440)]), "table-535.txt", ["MGD901"]),
        ("\n".join([nccl(0, "31000", pid=8), nccl(1, "32000", pid=9)]), "table-535.txt", []),
    ],
)
def test_a_log_and_what_nvidia_smi_showed(tmp_path: Path, log: str, smi: str, codes: list[str]) -> None:
    path = tmp_path / "run.log"
    path.write_text(log)
    report = diagnose_logs([str(path)], REGISTRY, Settings(), [str(SMI / smi)])
    assert [finding.code for finding in report.findings] == codes


def test_the_text_of_nvidia_smi_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(str(SMI / "table-535.txt"), "--format", "plain") == 0
    assert "nvidia-smi, 2 GPUs; work lies on 0 (2 processes)" in capsys.readouterr().out


def test_smi_that_is_none_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, other = tmp_path / "run.log", tmp_path / "other.txt"
    log.write_text("hello\n")
    other.write_text("hello\n")
    assert ended(str(log), "--smi", str(other), "--format", "plain") == 2
    assert "no text of nvidia-smi" in "".join(capsys.readouterr())


def test_json_holds_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "run.log"
    log.write_text("\n".join([nccl(0, "31000", pid=8), nccl(1, "32000", pid=9)]))
    assert ended(str(log), "--smi", str(SMI / "gpus.csv"), "--format", "json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["logs"][0]["parallel"]["world_size"] == 2
    assert document["logs"][0]["parallel"]["gpus"] == 2
    assert [finding["code"] for finding in document["findings"]] == ["MGD903"]
    assert [gpu["idle"] for gpu in document["smi"][0]["gpus"]] == [False, True]


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_text, args=("RuntimeError: No CUDA GPUs are available\n",))
    writer.start()
    report = diagnose_logs([str(fifo)], REGISTRY, Settings())
    writer.join()
    assert [finding.code for finding in report.findings] == ["MGD216"]


@pytest.mark.parametrize("kind", ["directory", "missing", "unreadable"])
def test_what_cannot_be_read_is_a_problem(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.log"
    if kind == "directory":
        path.mkdir()
    elif kind == "unreadable":
        if os.geteuid() == 0:
            pytest.skip("root reads everything")
        path.write_text("x")
        path.chmod(0)
    report = diagnose_logs([str(path)], REGISTRY, Settings())
    assert [problem.subject for problem in report.problems] == [str(path)]
    assert not report.case.logs
