"""On a real terminal: format, colour and width fit the place."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from rich.cells import cell_len

BROKEN = "CUDA_VISIBLE_DEVICES=4,5 deepspeed --num_gpus 2 train.py --名字 推理"
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?[34][0-9][0-9;]*m")


def seen(directory: Path, columns: int, *arguments: str, **variables: str) -> str:
    """What a terminal of that width receives."""
    main, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    dropped = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM", "COLORTERM")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    process = subprocess.Popen(
        [sys.executable, "-m", "mgpu_doctor", *arguments],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=secondary,
        stderr=secondary,
        env=environment | {"TERM": "xterm-256color"} | variables,
    )
    os.close(secondary)
    received = b""
    while True:
        try:
            data = os.read(main, 65536)
        except OSError:
            # Linux says EIO when the other end is closed.
            break
        if not data:
            break
        received += data
    os.close(main)
    process.wait(timeout=60)
    return received.decode().replace("\r\n", "\n")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text("")
    return tmp_path


def test_a_terminal_gets_colour_and_layout(here: Path) -> None:
    text = seen(here, 100, "explain", "--facts", "none", BROKEN)
    assert "What would run" in text
    assert COLOUR.search(text)


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colour_is_left_out_on_request(here: Path, variable: str, value: str) -> None:
    text = seen(here, 100, "explain", "--facts", "none", BROKEN, **{variable: value})
    assert not COLOUR.search(text)
    assert "MGD201" in text


def test_no_color_option(here: Path) -> None:
    assert not COLOUR.search(seen(here, 100, "explain", "--no-color", "--facts", "none", BROKEN))


def test_a_dumb_terminal_gets_plain_lines(here: Path) -> None:
    assert "\x1b" not in seen(here, 100, "explain", "--facts", "none", BROKEN, TERM="dumb")


@pytest.mark.parametrize("columns", [40, 60, 100])
@pytest.mark.parametrize("verb", ["explain", "check", "rules"])
def test_it_fits_the_terminal(here: Path, columns: int, verb: str) -> None:
    arguments = {"explain": (BROKEN,), "check": ("--cmd", BROKEN), "rules": ()}[verb]
    facts = () if verb == "rules" else ("--facts", "none")
    text = ESCAPE.sub("", seen(here, columns, verb, *facts, *arguments))
    text = text.split("Corrected command\n")[0]
    assert text.strip()
    assert max(cell_len(line) for line in text.splitlines()) <= columns


def test_a_pipe_gets_plain_lines_and_colour_only_when_forced(here: Path) -> None:
    command = [sys.executable, "-m", "mgpu_doctor", "explain", "--facts", "none", BROKEN]
    for variables, coloured in (({}, False), ({"FORCE_COLOR": "1", "TERM": "xterm-256color"}, True)):
        environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | variables
        done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
        assert ("\x1b" in done.stdout) is coloured
