"""What the kernel sees of the verbs that promise to look only: no program started, nothing written, nobody called."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CALLS = (
    "execve,execveat,connect,bind,listen,sendto,sendmsg,open,openat,creat,unlink,unlinkat,rename,renameat,renameat2,mkdir,"
    "mkdirat,rmdir,symlink,symlinkat,link,linkat,chmod,fchmodat,truncate,ftruncate,mknod,mknodat,kill,tgkill"
)
WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND")
# NVML opens the driver's device files for reading and writing, and has nvidia-modprobe make missing ones.
ALLOWED_WRITES = re.compile(r'"/dev/(?:null|tty|pts/\d+|nvidia[\w-]*(?:/\w+)?)"')
# Asking the kernel (netlink), or the name service of this machine; a trial of a port binds but never listens.
ALLOWED_PEERS = re.compile(r"sa_family=AF_(?:NETLINK|UNIX|LOCAL)|nl_pid|NULL, 0\)")

STRACE = shutil.which("strace")


def may_trace() -> bool:
    if STRACE is None:
        return False
    done = subprocess.run([STRACE, "-qq", "-e", "trace=none", "true"], capture_output=True, check=False)
    return done.returncode == 0


pytestmark = pytest.mark.skipif(not may_trace(), reason="strace is missing, or may not trace here")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project and its environment, whose every program and module would leave a trace."""
    work = tmp_path / "work"
    site = tmp_path / "env" / "lib" / "python3.11" / "site-packages"
    for path, text in {
        work / "train.py": "import torch\nopen('ran', 'w')\n",
        work / "run.sh": "touch sourced\nexport X=$(touch substituted)\ntorchrun --nproc-per-node 2 train.py\n",
        work / "README.md": "```bash\naccelerate launch --num_processes 2 train.py\n```\n",
        work / "ds.json": '{"train_batch_size": 8}\n',
        tmp_path / "env" / "pyvenv.cfg": "home = /usr/bin\nversion = 3.11.7\n",
        site / "torch" / "__init__.py": "open('imported', 'w')\n",
        site / "torch" / "version.py": "cuda = '12.4'\n",
        site / "torch-2.6.0.dist-info" / "METADATA": "Name: torch\nVersion: 2.6.0\n",
        site / "deepspeed-0.16.9.dist-info" / "METADATA": "Name: deepspeed\nVersion: 0.16.9\n",
        site / "evil.pth": "import os; open('pth', 'w')\n",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    programs = tmp_path / "env" / "bin"
    programs.mkdir()
    for name in ("python", "python3", "torchrun", "accelerate", "deepspeed", "nvidia-smi", "srun", "nvcc", "git"):
        (programs / name).write_text("#!/bin/sh\ntouch started\n")
        (programs / name).chmod(0o755)
    return work


@pytest.mark.parametrize(
    "arguments",
    [
        ("check",),
        ("check", "--cmd", "CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc-per-node 2 --master-port 29544 train.py"),
        ("check", "--format", "json", "run.sh"),
        ("check", "--", "deepspeed", "--num_gpus", "2", "train.py", "--deepspeed_config", "ds.json"),
        ("explain", "$(touch substituted) accelerate launch --num_processes 2 train.py"),
        ("explain", "MGD301"),
        ("lint", "."),
        ("rules",),
        ("facts",),
        ("facts", "--anonymise"),
    ],
    ids=" ".join,
)
def test_the_kernel_sees_nothing_but_looks(arguments: tuple[str, ...], project: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    trace = Path(os.fspath(tmp_path) + ".trace")
    # Not every architecture has all of them.
    traced = ",".join(f"?{name}" for name in CALLS.split(","))
    command = (sys.executable, "-B", "-m", "mgpu_doctor", *arguments)
    assert STRACE is not None
    done = subprocess.run(
        [STRACE, *f"-f -qq -s 200 -o {trace} -e trace={traced}".split(), *command],
        cwd=project,
        capture_output=True,
        env=os.environ | {"PATH": f"{tmp_path}/env/bin", "VIRTUAL_ENV": f"{tmp_path}/env", "HOME": str(tmp_path)},
        check=False,
        timeout=120,
    )
    assert done.returncode in (0, 1), done.stderr.decode()
    assert b"Traceback" not in done.stderr
    lines = [re.sub(r"^\d+\s+", "", line) for line in trace.read_text(errors="replace").splitlines()]
    trace.unlink()
    # A call that another thread interrupted is written in two lines; the first holds its arguments.
    calls = [line for line in lines if not line.startswith(("<...", "---", "+++"))]
    assert any(line.startswith("openat(") for line in calls)
    started = [line for line in calls if line.startswith("exec") and "nvidia-modprobe" not in line]
    assert len(started) == 1
    assert [line for line in calls if not is_look(line)] == []
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "line",
    [
        'openat(AT_FDCWD, "ran", O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0666) = 3',
        'openat(AT_FDCWD, "/dev/shm/x", O_RDWR <unfinished ...>',
        'connect(3, {sa_family=AF_INET, sin_port=htons(443), sin_addr=inet_addr("192.0.2.1")}, 16) = 0',
        "listen(3, 5) = 0",
        'unlink("x") = -1 ENOENT (No such file or directory)',
        "kill(12, SIGTERM) = 0",
    ],
)
def test_a_deed_is_no_look(line: str) -> None:
    assert not is_look(line)


def is_look(line: str) -> bool:
    """Whether a call changes nothing outside this process, and reaches nobody outside this machine."""
    call = line.partition("(")[0]
    if call in ("open", "openat"):
        return not WRITES.search(line) or ALLOWED_WRITES.search(line) is not None
    if call in ("connect", "sendto", "sendmsg"):
        return ALLOWED_PEERS.search(line) is not None
    return call in ("execve", "bind")
