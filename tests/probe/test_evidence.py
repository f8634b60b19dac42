"""Reading what launchers, interpreters and NCCL wrote; who forms a group; who plays whom."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from mgpu_doctor.probe.evidence import error_line, nccl_transports, parsed_dump, short_frames, signal_name
from mgpu_doctor.probe.measure import groups_of
from mgpu_doctor.probe.search import tournament
from mgpu_doctor.probe.session import Peer

TORCHRUN = """\
Traceback (most recent call last):
  File "/env/bin/torchrun", line 8, in <module>
    sys.exit(main())
RuntimeError: The server socket has failed to listen on any local network address.
Traceback (most recent call last):
  File "/env/bin/torchrun", line 8, in <module>
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
t.py FAILED
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("usage: x\ndeepspeed: error: unrecognized arguments: -m\n", 1),
        ("usage: x\nAccelerate CLI tool: error: unrecognized arguments: --num_process\n", 1),
        ("deepspeed: error: x\nValueError: y\n", 0),
        (TORCHRUN, 3),
        ("[rank1]: torch.cuda.OutOfMemoryError: CUDA out of memory.\n", 0),
        ("subprocess.CalledProcessError: Command '['x']' returned non-zero exit status 1.\n", 0),
        ("/usr/bin/python: No module named torch\n\n", 0),
        ("bash: x: command not found\nbye\n", 0),
        ("something\n\n", 0),
        ("", None),
    ],
)
def test_the_line_that_says_why(text: str, line: int | None) -> None:
    lines = text.splitlines()
    expected = None if line is None else lines[line].removeprefix("[rank1]: ")
    assert error_line(lines) == expected


def test_transports_are_read_from_nccls_own_files(tmp_path: Path) -> None:
    (tmp_path / "nccl.1").write_text(
        "host:1:9 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM/read\n"
        "host:1:9 [0] NCCL INFO Channel 00 : 0[1b000] -> 2[3d000] via SHM/direct/direct\n"
    )
    (tmp_path / "nccl.2").write_bytes(
        b"\xff host:2:9 [1] NCCL INFO Channel 01/0 : 1[1] -> 2[2] [send] via NET/Socket/0/Shared\n"
    )
    found = nccl_transports(str(tmp_path / name) for name in ("nccl.1", "nccl.2", "absent"))
    assert found == {(0, 1): "P2P/CUMEM", (0, 2): "SHM/direct", (1, 2): "NET/Socket"}


def test_the_main_threads_frames_are_picked_out_of_a_dump(tmp_path: Path) -> None:
    (tmp_path / "stack.1").write_text(
        "Thread 0x01 (most recent call first):\n"
        '  File "/a/worker.py", line 80 in listen\n'
        '  File "/usr/lib/threading.py", line 9 in run\n\n'
        "Current thread 0x02 (most recent call first):\n"
        '  File "/x/site-packages/torch/cuda/__init__.py", line 3 in synchronize\n'
        '  File "/a/worker.py", line 70 in do_solo\n'
        '  File "/a/worker.py", line 60 in attempt\n'
        '  File "/a/worker.py", line 90 in <module>\n'
    )
    frames = parsed_dump(str(tmp_path / "stack.1"))
    assert frames[0].endswith("in <module>")
    assert short_frames(frames, "/a") == (
        "mgpu-doctor/worker.py:70 in do_solo",
        "torch/cuda/__init__.py:3 in synchronize",
    )
    assert parsed_dump(str(tmp_path / "absent")) == ()


def test_signals_have_names() -> None:
    assert signal_name(9) == "SIGKILL"
    assert signal_name(250) == "signal 250"


@pytest.mark.parametrize("count", range(2, 10))
def test_every_pair_meets_once_and_nobody_is_in_two_places(count: int) -> None:
    rounds = tournament(count)
    assert sorted(pair for pairs in rounds for pair in pairs) == sorted(combinations(range(count), 2))
    for pairs in rounds:
        assert max(Counter(rank for pair in pairs for rank in pair).values()) == 1


def worker(pid: int, parent: int, **told: str) -> Peer:
    peer = Peer.__new__(Peer)
    peer.hello = {"pid": pid, "ppid": parent, "told": told}
    return peer


def test_processes_that_were_told_nothing_stand_alone() -> None:
    groups = groups_of([worker(1, 9), worker(2, 9)])
    assert [group.alone for group in groups] == [True, True]
    assert all(group.complete for group in groups)


def test_a_group_lacks_the_ranks_that_never_came() -> None:
    told = {"MASTER_ADDR": "h", "MASTER_PORT": "1", "WORLD_SIZE": "4"}
    (group,) = groups_of([worker(1, 9, RANK="0", **told), worker(2, 9, RANK="2", **told)])
    assert not group.complete
    assert group.missing == (1, 3)


def test_two_launchers_at_one_port_are_two_groups() -> None:
    told = {"MASTER_ADDR": "h", "MASTER_PORT": "1", "WORLD_SIZE": "2"}
    peers = [worker(10 * parent + rank, parent, RANK=str(rank), **told) for parent in (7, 8) for rank in (0, 1)]
    groups = groups_of(peers)
    assert [[peer.pid for peer in group.peers] for group in groups] == [[70, 71], [80, 81]]
    assert all(group.complete for group in groups)
