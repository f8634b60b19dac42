"""``probe`` and ``check --probe`` from end to end: real workers on the CPU, saved probes of GPUs, and every way out."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mgpu_doctor.cli.probe import save
from mgpu_doctor.collect.observation_file import load_observation, observation_document
from mgpu_doctor.errors import InputError
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.observation import Observation
from observations import UUIDS, healthy, rank
from oracle_environments import python_of, requires_oracle

Run = Callable[..., "subprocess.CompletedProcess[str]"]
NO_GPUS = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "DS_ACCELERATOR": "cpu",
    "NO_COLOR": "1",
    "COLUMNS": "100",
}
PYTHON = python_of("new")
real = [
    pytest.mark.oracle,
    requires_oracle("new"),
    pytest.mark.skipif(sys.platform != "linux", reason="the probe's processes are followed through /proc"),
]


def environment(**variables: str) -> dict[str, str]:
    """A shell's environment without GPUs, in which the oracle's launchers come first."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "FORCE_COLOR")}
    first = f"{PYTHON.parent}:" if PYTHON is not None else ""
    return {**kept, **NO_GPUS, "PATH": first + os.environ["PATH"], **variables}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run mgpu-doctor in a folder that holds one program."""
    (tmp_path / "train.py").write_text("raise SystemExit('the program itself was run')\n")

    def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "mgpu_doctor", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=environment(**variables),
            timeout=150,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert "fault of mgpu-doctor" not in done.stderr, done.stderr
        return done

    return call


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Observation], str]:
    """Writes an observation where ``--from`` finds it."""

    def write(seen: Observation) -> str:
        path = tmp_path / "saved.json"
        path.write_text(json.dumps(observation_document(seen), allow_nan=False))
        return str(path)

    return write


SHARED = healthy(2, ranks=(rank(0), rank(1, uuid=UUIDS[0], physical_index=0)))


@pytest.mark.parametrize(
    ("seen", "word", "code"),
    [
        (healthy(4), "MULTI", 0),
        (healthy(1), "SINGLE", 0),
        (healthy(1, promised_processes=4), "SINGLE", 1),
        (SHARED, "SHARED", 1),
        (healthy(2, ranks=tuple(rank(0, 1, pid=n) for n in range(2))), "COPIES", 1),
        (healthy(2, ranks=(rank(0), rank(1, state="hung"))), "BROKEN", 1),
        (healthy(2, ranks=(rank(0), rank(1, uuid=Unknown("no NVML")))), "UNKNOWN", 3),
    ],
)
def test_the_verdict_decides_the_exit_status(
    run: Run, saved: Callable[[Observation], str], seen: Observation, word: str, code: int
) -> None:
    done = run("probe", "--from", saved(seen), "--format", "json")
    document = json.loads(done.stdout)
    assert (document["verdict"]["word"], done.returncode, document["summary"]["exit_code"]) == (word, code, code)
    assert document["mode"] == "probe"
    assert document["observation"] == observation_document(seen)


def test_a_bad_verdict_fails_even_where_its_rule_is_left_out(run: Run, saved: Callable[[Observation], str]) -> None:
    path = saved(SHARED)
    done = run("probe", "--from", path, "--ignore", "MGD2,MGD9", "--format", "json")
    assert (done.returncode, json.loads(done.stdout)["findings"]) == (1, [])
    assert run("probe", "--from", path, "--fail-on", "never").returncode == 0


def test_a_healthy_probe_has_no_finding(run: Run, saved: Callable[[Observation], str]) -> None:
    done = run("probe", "--from", saved(healthy(8)), "--format", "plain", "--fail-on", "advice")
    assert done.returncode == 0, done.stdout
    assert "\nnothing found\n" in done.stdout


def test_a_saved_probe_is_judged_with_its_command_and_its_machine(
    run: Run, saved: Callable[[Observation], str], tmp_path: Path
) -> None:
    facts = tmp_path / "node.json"
    facts.write_text(
        json.dumps({"gpus": [{"index": n, "uuid": uuid} for n, uuid in enumerate(UUIDS)], "topology": "NV12"})
    )
    seen = healthy(1, promised_processes=Unknown("no"), promised_uuids=Unknown("no"))
    command = ("--", "accelerate", "launch", "--multi_gpu", "--num_processes", "4", "train.py")
    done = run("probe", "--from", saved(seen), "--facts", str(facts), "--format", "json", *command)
    assert "MGD902" in [finding["code"] for finding in json.loads(done.stdout)["findings"]]


def test_the_command_is_judged_as_check_judges_it(run: Run, saved: Callable[[Observation], str]) -> None:
    command = (
        "--facts",
        "none",
        "--format",
        "json",
        "--",
        "deepspeed",
        "--num_gpus",
        "2",
        "-m",
        "x",
        "--dataset",
        "none",
    )
    checked = json.loads(run("check", *command).stdout)
    probed = json.loads(run("probe", "--from", saved(healthy(2)), *command).stdout)
    assert checked["findings"]
    assert probed["findings"] == checked["findings"]


def test_what_the_output_gives_away_is_found(run: Run, saved: Callable[[Observation], str]) -> None:
    line = (
        "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. "
        "port: 29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use"
    )
    seen = Observation("probe", "torchrun x.py", (), promised_processes=2, launcher_exit_code=1, output=("W1", line))
    done = run("probe", "--from", saved(seen), "--format", "json")
    (finding,) = json.loads(done.stdout)["findings"]
    assert (finding["code"], finding["path"], finding["line"]) == ("MGD301", "the probe's output", 2)
    # The same words in the output of a job that works are no cause of anything.
    assert run("probe", "--from", saved(healthy(2, output=(line,)))).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("probe", "--facts", "node.json"), "a probe needs this machine"),
        (("check", "--probe", "--facts", "none", "--", "torchrun", "train.py"), "a probe needs this machine"),
        (("probe", "--nproc", "0"), "--nproc must be a number from 1 to 64"),
        (("probe", "--nproc", "two"), "--nproc must be a number from 1 to 64"),
        (("probe", "--nproc", "2", "--", "torchrun", "train.py"), "--nproc is for a probe without a command"),
        (("probe", "--deadline", "0"), "--deadline must be seconds from 1 to 180"),
        (("probe", "--deadline", "nan"), "--deadline must be seconds from 1 to 180"),
        (("probe", "--cmd", "torchrun t.py", "--", "torchrun", "t.py"), "exclude each other"),
        (("probe", "--from", "x.json", "--cpu"), "--cpu does not go with it"),
        (("probe", "--from", "missing.json"), "missing.json: cannot be read"),
        (("probe", "--save", "."), "is a directory"),
        (("probe", "--save", "nowhere/probe.json"), "nowhere: is no directory"),
        (("probe", "--", "ls", "-l"), "no launch command is recognised"),
        (("probe", "--cmd", "torchrun a.py; torchrun b.py"), "these are 2 launch commands"),
        (("probe", "train.py"), "unexpected argument 'train.py'"),
    ],
)
def test_bad_usage_is_answered_before_anything_is_started(run: Run, arguments: tuple[str, ...], says: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""


def test_a_probe_is_saved_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "probe.json"
    save(healthy(2, output=("HF_TOKEN=hf_abcdefghijklmnop1234",)), str(path))
    assert load_observation(str(path)).output == ("HF_TOKEN=" + "*" * 23,)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="no space left"):
        save(healthy(4), str(path))
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["probe.json"]


def _python() -> str:
    assert PYTHON is not None
    return str(PYTHON)


class TestReal:
    """Workers of the oracle's torch, on the CPU."""

    pytestmark = real

    def test_a_probe_of_this_machine(self, run: Run, tmp_path: Path) -> None:
        done = run("probe", "--cpu", "--nproc", "2", "--python", _python(), "--save", "p.json", "--format", "rich")
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.startswith(" CPU  no GPU took part\n")
        assert "2 processes form one group on the CPU: this proves the launch, not the GPUs" in done.stdout
        assert done.stderr == ""
        again = run("probe", "--from", "p.json", "--format", "json")
        assert again.returncode == 0
        assert json.loads(again.stdout)["observation"] == json.loads((tmp_path / "p.json").read_text())

    def test_the_launchers_own_options_count_and_the_program_is_not_run(self, run: Run) -> None:
        command = ("--", "torchrun", "--standalone", "--nproc-per-node", "3", "train.py", "--lr", "1e-5")
        done = run("probe", "--python", _python(), "--format", "json", *command)
        document = json.loads(done.stdout)
        assert (document["verdict"]["word"], document["verdict"]["as_promised"]) == ("CPU", True)
        assert [one["rank"] for one in document["observation"]["ranks"]] == [0, 1, 2]
        assert "the program itself was run" not in done.stdout

    def test_a_launcher_that_falls_back_to_one_process_is_caught(self, run: Run) -> None:
        command = ("--", "accelerate", "launch", "--num_processes", "4", "train.py")
        done = run("check", "--probe", "--python", _python(), "--format", "plain", *command)
        assert done.returncode == 1
        assert done.stdout.startswith("verdict: SINGLE: one process on the CPU, though 4 were asked for\n")
        assert "error MGD902 single-process-in-fact: One process ran" in done.stdout
        assert "verdict: 1 found" in done.stdout

    def test_a_launcher_that_refuses_its_options_is_broken_and_corrected(self, run: Run) -> None:
        done = run("probe", "--python", _python(), "--format", "plain", "--cmd", "deepspeed -m train")
        assert done.returncode == 1
        assert (
            "verdict: BROKEN: no process of the job reported: deepspeed: error: unrecognized arguments: -m"
            in done.stdout
        )
        assert "MGD106" in done.stdout
        assert (
            "deepspeed --module train\nchecked again: nothing left; whether it works, another probe can tell"
            in done.stdout
        )

    def test_a_hang_ends_with_the_deadline_and_the_stacks(self, run: Run) -> None:
        began = time.monotonic()
        done = run(
            *("probe", "--cpu", "--nproc", "2", "--python", _python(), "--deadline", "45", "--format", "plain"),
            MGPU_DOCTOR_PROBE_FAULT="hang:collective:1",
        )
        assert done.returncode == 1
        assert time.monotonic() - began < 90
        assert "error MGD905 collective-hangs" in done.stdout
        assert "rank 1 does not take part, rank 0 waits" in done.stdout
        assert "in all_reduce" in done.stdout


@pytest.mark.oracle
@requires_oracle("new")
def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_terminal_sees_each_stage_and_an_interrupt_ends_everything(tmp_path: Path) -> None:
    main, secondary = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mgpu_doctor", "probe", "--cpu", "--nproc", "2", "--python", _python()],
        cwd=tmp_path,
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        start_new_session=True,
        # Whoever runs the tests in the background ignores interrupts, and children inherit that.
        preexec_fn=_heed_interrupts,  # noqa: PLW1509 - it only restores a signal
        env=environment(MGPU_DOCTOR_PROBE_FAULT="hang:collective:1", TMPDIR=str(tmp_path), TERM="xterm"),
    )
    os.close(secondary)
    text = ""
    while "all_reduce with a checked sum" not in text:
        text += os.read(main, 65536).decode()
    process.send_signal(signal.SIGINT)
    try:
        while data := os.read(main, 65536):
            text += data.decode()
    except OSError:
        # Linux says EIO when the other end is closed.
        pass
    os.close(main)
    assert process.wait(timeout=60) == 130
    assert re.search(r"probing \d/9: every process says who and where it is", text)
    assert text.endswith("\r\x1b[Kmgpu-doctor: interrupted; what the probe had started has been ended\r\n")
    assert [*tmp_path.iterdir()] == []


def _torch_on_gpu() -> str | None:
    """An interpreter whose torch sees a GPU; None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    for name in (os.environ.get("MGPU_DOCTOR_TORCH_PYTHON"), sys.executable, shutil.which("python3")):
        if name is None:
            continue
        asked = [name, "-c", "import torch; raise SystemExit(not torch.cuda.is_available())"]
        if subprocess.run(asked, capture_output=True, check=False).returncode == 0:
            return name
    return None


@pytest.mark.gpu
@pytest.mark.parametrize(("processes", "word", "code"), [("1", "SINGLE", 0), ("2", "SHARED", 1)])
def test_ranks_on_one_real_gpu(run: Run, processes: str, word: str, code: int) -> None:
    python = _torch_on_gpu()
    if python is None:
        pytest.skip("no torch that sees a GPU")
    options = ("--nproc", processes, "--python", python, "--select", "MGD9", "--format", "json")
    done = run("probe", *options, CUDA_VISIBLE_DEVICES="0")
    document = json.loads(done.stdout)
    assert (document["verdict"]["word"], done.returncode) == (word, code), done.stdout
    found = [finding["code"] for finding in document["findings"]]
    assert found == (["MGD901"] if word == "SHARED" else [])
    factors = [one["together_ms"] / one["solo_ms"] for one in document["observation"]["ranks"] if "together_ms" in one]
    assert all(factor > 1.5 for factor in factors)


def test_a_terminal_without_these_signs_still_tells_good_from_bad(
    run: Run, saved: Callable[[Observation], str]
) -> None:
    done = run("probe", "--from", saved(SHARED), "--format", "rich", PYTHONIOENCODING="ascii")
    assert "  +   rank 0      GPU-00000000   GPU 0 (GPU-00000000)\n" in done.stdout
    assert "  x   rank 1      GPU-00000001   GPU 0 (GPU-00000000)\n" in done.stdout
    assert "  rank 1              #            -\n" in done.stdout
    assert "?" not in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="the probe's processes are followed through /proc")
def test_an_interpreter_without_torch_is_named_and_no_verdict_is_given(run: Run, tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], capture_output=True, check=False
    )
    assert made.returncode == 0, made.stderr
    done = run("probe", "--cpu", "--python", str(tmp_path / "bare"))
    assert done.returncode == 2
    assert "bare/bin/python" in done.stderr
    assert "has no torch" in done.stderr
    assert "--python" in done.stderr
    assert "verdict" not in done.stdout
