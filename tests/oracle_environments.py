"""The real launchers for tests: environments that ``tools/oracles.py`` makes under ``.oracles/``.

``old`` holds accelerate 1.7.0, deepspeed 0.16.9, llamafactory 0.9.3; ``new`` holds accelerate 1.15.0,
deepspeed 0.19.8, llamafactory 0.9.5; both torch 2.13.0 without CUDA.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent / ".oracles"
ENVIRONMENTS = ("old", "new")

_HARNESS = """
import contextlib, io, json, os, sys
payload = json.load(sys.stdin)
answer_to = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
names = {"payload": payload, "result": None}
exec(compile(sys.argv[1], "<snippet>", "exec"), names)
json.dump(names["result"], answer_to)
answer_to.close()
"""

LAUNCHER_PARSERS = """
import contextlib, io, sys
def make(launcher):
    if launcher == "accelerate":
        from accelerate.commands.launch import launch_command_parser
        return launch_command_parser()
    if launcher == "torchrun":
        from torch.distributed.run import get_args_parser
        return get_args_parser()
    if launcher == "torch.distributed.launch":
        import argparse
        from torch.distributed.run import get_args_parser
        parser = get_args_parser()
        parser.add_argument("--use-env", "--use_env", default=False, action="store_true")
        return parser
    if launcher == "deepspeed":
        import argparse
        from deepspeed.launcher import runner
        made = []
        original = argparse.ArgumentParser.parse_args
        def keep(self, args=None, namespace=None):
            made.append(self)
            return original(self, ["x.py"], namespace)
        argparse.ArgumentParser.parse_args = keep
        runner.parse_args([])
        argparse.ArgumentParser.parse_args = original
        return made[0]
    raise KeyError(launcher)
result = []
parsers = {}
for launcher, argv in payload:
    if launcher not in parsers:
        parsers[launcher] = make(launcher)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(io.StringIO()):
            found = vars(parsers[launcher].parse_args(argv))
        result.append({"values": {k: v if isinstance(v, (str, int, float, bool, type(None), list)) else repr(v)
                                  for k, v in found.items()}})
    except SystemExit as stop:
        result.append({"error": complaint.getvalue().strip().splitlines()[-1:] or [""], "status": stop.code})
"""
"""Snippet: ``payload`` is a list of ``[launcher, argv]``; each answer has ``values`` (the namespace) or ``error``.

``error`` is a list with the last line that the parser printed; ``status`` the exit status (0 for ``--help``).
"""


def python_of(environment: str) -> Path | None:
    """The interpreter of an oracle environment; None when it has not been made."""
    folder = ROOT / environment
    python = folder / "bin" / "python"
    return python if python.exists() and (folder / "complete").exists() else None


def site_packages_of(environment: str) -> Path | None:
    """The directory of an oracle environment's packages; None when it has not been made."""
    python = python_of(environment)
    return None if python is None else next(python.parent.parent.glob("lib/python3*/site-packages"))


def requires_oracle(environment: str) -> pytest.MarkDecorator:
    """A mark that skips a test, with the reason, where the environment is not there."""
    return pytest.mark.skipif(
        python_of(environment) is None, reason=f"no oracle environment {environment!r}: run python tools/oracles.py"
    )


def run_parser(environment: str, snippet: str, payload: object, timeout: float = 300) -> Any:
    """Runs Python text in one process of an environment and returns what it puts into ``result``.

    The snippet finds its input in ``payload``; both travel as JSON. What it prints is not part of the answer.

    Raises:
        AssertionError: when the process fails; the message ends with what it printed.
    """
    python = python_of(environment)
    assert python is not None, f"no oracle environment {environment!r}"
    clean = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    clean |= {
        "PATH": f"{python.parent}:/usr/bin:/bin",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "DISABLE_VERSION_CHECK": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [str(python), "-c", _HARNESS, snippet],
        input=json.dumps(payload),
        capture_output=True,
        text=True,
        timeout=timeout,
        env=clean,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)
