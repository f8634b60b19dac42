"""``mgpu-doctor facts``: this machine as a document, and the document in place of this machine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mgpu_doctor.cli import facts as facts_verb
from mgpu_doctor.collect.facts_file import dump_facts, load_facts

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run mgpu-doctor in an empty folder, and see no traceback."""

    def call(
        *arguments: str, stdin: bytes = b"", drop: tuple[str, ...] = (), **variables: str
    ) -> subprocess.CompletedProcess[bytes]:
        kept = {name: value for name, value in os.environ.items() if name not in drop}
        done = subprocess.run(
            [sys.executable, "-m", "mgpu_doctor", *arguments],
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            env=kept | {"NO_COLOR": "1"} | variables,
            check=False,
            timeout=120,
        )
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        assert b"fault of mgpu-doctor" not in done.stderr, done.stderr.decode()
        return done

    return call


def test_the_document_is_read_back(run: Run, tmp_path: Path) -> None:
    done = run("facts", HF_TOKEN="hf_abcdefghijklmnop", MASTER_PORT="29533")
    assert done.returncode == 0
    assert done.stderr == b""
    document = json.loads(done.stdout)
    assert (document["schema"], document["tool"]["name"]) == (1, "mgpu-doctor")
    assert document["env"]["HF_TOKEN"] == "***"
    assert "HF_TOKEN" in document["env_names"]
    assert b"hf_abcdef" not in done.stdout
    assert len(document["free_ports"]) == 4
    file = tmp_path / "facts.json"
    file.write_bytes(done.stdout)
    facts = load_facts(str(file))
    again = dump_facts(facts)
    assert again == {name: value for name, value in document.items() if name not in ("tool", "taken")}


def test_check_takes_it_on_standard_input(run: Run, tmp_path: Path) -> None:
    """Also when a command is corrected, for which the facts are read several times."""
    (tmp_path / "train.py").write_text("")
    facts = {"gpus": [{}, {}], "ports_in_use": {}, "packages": {"torch": "2.6.0"}}
    line = "CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc-per-node 3 train.py"
    arguments = ("check", "--format", "json", "--select", "MGD207", "--cmd", line)
    done = run(*arguments, "--facts", "-", stdin=json.dumps(facts).encode())
    assert [finding["code"] for finding in json.loads(done.stdout)["findings"]] == ["MGD207"]
    assert "GPUs known from <stdin>: 2" in done.stdout.decode()
    (tmp_path / "f.json").write_text(json.dumps(facts))
    named = run(*arguments, "--facts", "f.json")
    assert json.loads(named.stdout.replace(b"f.json", b"<stdin>")) == json.loads(done.stdout)


@pytest.mark.parametrize(
    "line",
    [
        "CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc-per-node 3 --nnodes 2 train.py",
        "RANK=0 accelerate launch --num_processes 2 -m llamafactory.train",
        "deepspeed --num_gpus 2 -m train.py --deepspeed_config ds.json",
    ],
)
def test_the_document_is_judged_as_the_machine_is(run: Run, tmp_path: Path, line: str) -> None:
    (tmp_path / "train.py").write_text("")
    (tmp_path / "facts.json").write_bytes(run("facts").stdout)
    here, there = (
        json.loads(run("check", "--format", "json", *more, "--cmd", line).stdout)
        for more in ((), ("--facts", "facts.json"))
    )
    for part in ("findings", "skipped"):
        assert [(item["code"], item.get("line")) for item in there[part]] == [
            (item["code"], item.get("line")) for item in here[part]
        ]


def test_standard_input_that_holds_no_facts(run: Run) -> None:
    done = run("check", "--facts", "-", "--cmd", "true", stdin=b"")
    assert done.returncode == 2
    assert b"<stdin>:1:1: not JSON" in done.stderr


def test_a_file_is_written_in_one_piece(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    target.write_text("old")
    link = tmp_path / "link.json"
    link.symlink_to(target)
    done = run("facts", "--output", "link.json")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert link.is_symlink()
    assert json.loads(target.read_text())["schema"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "out.json"]
    assert run("facts", "--output", "-").stdout.startswith(b"{")


def test_a_pipe_is_written_to_and_not_replaced(run: Run) -> None:
    assert json.loads(run("facts", "--output", "/dev/stdout").stdout)["schema"] == 1


@pytest.mark.parametrize("target", ["no/such/folder.json", "."])
def test_a_file_that_cannot_be_written(run: Run, tmp_path: Path, target: str) -> None:
    done = run("facts", "--output", target)
    assert done.returncode == 2
    assert done.stderr.startswith(f"mgpu-doctor: error: {target}: cannot be written: ".encode())
    assert list(tmp_path.iterdir()) == []


def test_anonymised(run: Run, tmp_path: Path) -> None:
    home = tmp_path / "home" / "wilhelmina"
    home.mkdir(parents=True)
    done = run(
        "facts",
        "--anonymise",
        HOME=str(home),
        USER="wilhelmina",
        HOSTNAME="zeppelin-7.dept.example",
        MASTER_ADDR="zeppelin-7",
        SLURM_JOB_ID="99887766",
    )
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert document["env"]["USER"] == "user1"
    assert document["env"]["HOME"].endswith("/home/user1")
    assert document["hub_cache_path"].endswith("/home/user1/.cache/huggingface/hub")
    assert document["scheduler"] == "slurm"
    for private in (b"wilhelmina", b"zeppelin", b"dept.example", b"99887766"):
        assert private not in done.stdout


def test_what_the_verb_does_not_take(run: Run) -> None:
    assert run("facts", "surplus").returncode == 2
    assert run("facts", "--format", "json").returncode == 2
    assert b"--anonymise" in run("facts", "--help").stdout


class Terminal(io.StringIO):
    """A terminal that wakes whoever waits for its first words."""

    def __init__(self) -> None:
        super().__init__()
        self.spoken = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        written = super().write(text)
        self.spoken.set()
        return written


def test_a_terminal_hears_of_a_slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(facts_verb, "_SLOW_S", 0.0)
    with facts_verb._patience():
        assert terminal.spoken.wait(60)
    said, taken_back, rest = terminal.getvalue().split("\r")
    assert said == "looking at this machine ..."
    assert taken_back == " " * len(said)
    assert rest == ""


def test_a_terminal_hears_nothing_of_a_fast_one(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(facts_verb, "_SLOW_S", 600.0)
    with facts_verb._patience():
        pass
    assert terminal.getvalue() == ""


COMMAND = "torchrun --nproc-per-node 2 train.py"


@pytest.mark.parametrize(
    ("variables", "drop"),
    [
        ({}, ("HOME", "PATH", "USER", "LOGNAME")),
        ({"HOME": "/nonexistent/home", "TMPDIR": "/nonexistent/tmp"}, ()),
        ({"HOME": "", "HF_HOME": "", "XDG_CACHE_HOME": "", "PATH": ""}, ()),
        ({"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, ()),
        ({"PYTHONIOENCODING": "ascii:strict", "HF_HOME": "/tmp/缓存"}, ()),
        ({"MASTER_PORT": "²", "HF_HUB_CACHE": "~nobody-such/x", "CUDA_VISIBLE_DEVICES": "\udcff\udc80"}, ()),
        ({"MASTER_PORT": "99999", "HF_HUB_CACHE": "x" * 5000, "TMPDIR": "relative"}, ()),
        ({"HF_HOME": "/dev/null", "TMPDIR": "/proc/self/mem"}, ()),
    ],
    ids=["no HOME", "HOME is gone", "all empty", "LANG=C", "ASCII", "not UTF-8", "too long", "no directories"],
)
@pytest.mark.parametrize("arguments", [("facts",), ("facts", "--anonymise"), ("check", "--cmd", COMMAND)])
def test_a_strange_environment(
    run: Run, arguments: tuple[str, ...], variables: dict[str, str], drop: tuple[str, ...]
) -> None:
    done = run(*arguments, drop=drop, **variables)
    assert done.returncode in (0, 1)
    if arguments[0] == "facts":
        assert json.loads(done.stdout)["schema"] == 1


def test_a_home_that_may_not_be_read(run: Run, tmp_path: Path) -> None:
    """As root everything may be read: then a configuration that is no text takes its place."""
    folder = tmp_path / "hf" / "accelerate"
    folder.mkdir(parents=True)
    config = folder / "default_config.yaml"
    config.write_bytes(b"num_processes: \xff\n")
    config.chmod(0)
    document = json.loads(run("facts", HF_HOME=str(tmp_path / "hf")).stdout)
    assert str(config) in document["unknown"]["accelerate_default_config"]
    folder.chmod(0o500)
    (tmp_path / "hf").chmod(0o500)
    try:
        done = run("check", "--cmd", "accelerate launch --num_processes 2 train.py", HF_HOME=str(tmp_path / "hf"))
    finally:
        (tmp_path / "hf").chmod(0o700)
        folder.chmod(0o700)
    assert done.returncode in (0, 1)


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = (
        "import os, sys; os.rmdir(os.getcwd()); sys.argv = ['mgpu-doctor', 'facts'];"
        "from mgpu_doctor.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=gone,
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert b"Traceback" not in done.stderr
    assert json.loads(done.stdout)["schema"] == 1
