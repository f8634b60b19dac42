"""check, explain, lint and facts start no process, open no connection, and import nothing heavy or foreign."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TRACER = """
import sys, json
events = []
WATCHED = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.spawn", "pty.spawn",
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request",
    "os.remove", "os.rename", "os.mkdir", "shutil.rmtree",
)
def writes(args):
    return isinstance(args[1], str) and set(args[1]) & set("wax+") and not str(args[0]).endswith(".pyc")
def hook(event, args):
    if event == "socket.sendto" and args[0].family == 16:
        return  # AF_NETLINK: asking the kernel which ports are listened on
    if event in WATCHED:
        events.append([event, repr(args)[:200]])
    elif event == "open" and writes(args):
        events.append([event, repr(args)[:200]])
from mgpu_doctor.cli import main
sys.dont_write_bytecode = True
sys.addaudithook(hook)
sys.argv = ["mgpu-doctor", *sys.argv[1:]]
try:
    main()
except SystemExit:
    pass
foreign = [name for name in ("torch", "numpy", "accelerate", "transformers", "user_module") if name in sys.modules]
print(json.dumps({"events": events, "foreign": foreign}), file=sys.stderr)
"""

PROGRAM = "import os, user_module\nopen('ran', 'w').close()\nos.environ['CUDA_VISIBLE_DEVICES'] = '0'\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "--cmd", "CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc-per-node 2 --master-port 29533 train.py"),
        ("check", "--facts", "none", "--cmd", "bash run.sh"),
        ("check", "--cmd", "python train.py --model_name_or_path ./m --output_dir out/new --do_train"),
        ("check", "--", "accelerate", "launch", "--num_processes", "2", "train.py"),
        ("explain", "$(touch substituted) deepspeed --num_gpus 2 train.py $(touch substituted)"),
        ("explain", "--format", "json", "python train.py"),
        ("lint", "run.sh"),
        ("rules",),
        ("facts",),
        ("facts", "--anonymise"),
    ],
)
def test_nothing_is_started_connected_or_written(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAM)
    (tmp_path / "user_module.py").write_text("open('imported', 'w').close()\n")
    (tmp_path / "run.sh").write_text("touch sourced\nX=$(touch substituted)\ntorchrun --nproc-per-node 2 train.py\n")
    before = sorted(tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-B", "-c", TRACER, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    seen = json.loads(done.stderr.strip().splitlines()[-1])
    assert seen == {"events": [], "foreign": []}
    assert sorted(tmp_path.iterdir()) == before
