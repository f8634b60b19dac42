"""Commands in Makefiles and justfiles."""

from __future__ import annotations

import pytest

from mgpu_doctor.diagnose import _excerpts
from mgpu_doctor.model.command import Command
from mgpu_doctor.model.source import Source
from mgpu_doctor.read.text import kind_of
from mgpu_doctor.shell import parse_all


def commands(text: str, name: str = "Makefile") -> list[Command]:
    source = Source(name, text, kind_of(name) or "")
    found = [c for excerpt in _excerpts(source) for script in parse_all(excerpt) for c in script.commands]
    return [c for c in found if c.name in ("torchrun", "accelerate", "python")]


def shown(text: str, name: str = "Makefile") -> list[list[str]]:
    return [[word.shown for word in command.words] for command in commands(text, name)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:\n\ttorchrun x.py\n", [["torchrun", "x.py"]]),
        ("a: b\n\t@-torchrun x.py\n", [["torchrun", "x.py"]]),
        ("a: ; torchrun x.py\n", [["torchrun", "x.py"]]),
        ("a:\n\ttorchrun \\\n\t  x.py\n", [["torchrun", "x.py"]]),
        ("N := 4\na:\n\ttorchrun --nproc $(N) x.py\n", [["torchrun", "--nproc", "4", "x.py"]]),
        ("N ?= 4\na:\n\ttorchrun --nproc ${N} x.py\n", [["torchrun", "--nproc", "${N}", "x.py"]]),
        ("N = 4\nN = 8\na:\n\ttorchrun --nproc $(N) x.py\n", [["torchrun", "--nproc", "$(N)", "x.py"]]),
        ("a:\n\ttorchrun --nproc $(shell nvidia-smi -L | wc -l) x.py\n", None),
        ("a:\n\ttorchrun x.py --home $$HOME\n", [["torchrun", "x.py", "--home", "$HOME"]]),
        ("a:\n\ttorchrun $@ $<\n", [["torchrun", "$@", "$<"]]),
        ("P = python\na:\n\t$(P) x.py\n", [["python", "x.py"]]),
        ("define x\n\ttorchrun x.py\nendef\n", []),
        ("X = torchrun x.py\n", []),
        ("a:\nifdef X\n\ttorchrun x.py\nendif\n", [["torchrun", "x.py"]]),
        ("# a:\n#\ttorchrun x.py\n", []),
        ("\ttorchrun x.py\n", []),
        ("a:\n\tcd x && \\\n\ttorchrun x.py\n", [["torchrun", "x.py"]]),
        ("a:\n\t# torchrun x.py\n", []),
    ],
)
def test_recipes(text: str, expected: list[list[str]] | None) -> None:
    wanted = [["torchrun", "--nproc", "$(shell nvidia-smi -L | wc -l)", "x.py"]] if expected is None else expected
    assert shown(text) == wanted


def test_each_line_has_a_shell_of_its_own_unless_all_share_one() -> None:
    lines = "a:\n\tN=4\n\ttorchrun --nproc $$N x.py\n"
    assert shown(lines) == [["torchrun", "--nproc", "$N", "x.py"]]
    assert shown(".ONESHELL:\n" + lines) == [["torchrun", "--nproc", "4", "x.py"]]


def test_exported_variables_reach_the_commands() -> None:
    (command,) = commands("export CUDA_VISIBLE_DEVICES = 0,1\nexport N ?= 1\na:\n\ttorchrun x.py\n")
    devices, count = command.variable("CUDA_VISIBLE_DEVICES"), command.variable("N")
    assert devices is not None
    assert devices.text == "0,1"
    assert devices.location is not None
    assert command.source.slice(devices.location.span) == "CUDA_VISIBLE_DEVICES = 0,1"
    assert count is not None
    assert count.text is None


def test_words_lead_to_their_places() -> None:
    (command,) = commands("PROCS := 16\na:\n\t@torchrun --nproc $(PROCS) \\\n\t  $$HOME/x.py\n")
    assert [command.source.slice(word.span) for word in command.words] == [
        "torchrun",
        "--nproc",
        "$(PROCS)",
        "$$HOME/x.py",
    ]
    assert command.source.position(command.words[0].span.start) == (3, 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train n='2':\n    @torchrun --nproc {{n}} x.py\n", [["torchrun", "--nproc", "{{n}}", "x.py"]]),
        ("train: build\n    torchrun \\\n      x.py\n", [["torchrun", "x.py"]]),
        (
            "train:\n    #!/usr/bin/env bash\n    N=3\n    torchrun --nproc $N x.py\n",
            [["torchrun", "--nproc", "3", "x.py"]],
        ),
        ("train:\n    #!/usr/bin/env python3\n    torchrun = 1\n", []),
        ("x := 'torchrun x.py'\n", []),
    ],
)
def test_justfiles(text: str, expected: list[list[str]]) -> None:
    assert shown(text, "justfile") == expected


@pytest.mark.parametrize("name", ["Makefile", "GNUmakefile", "makefile", "rules.mk", "Makefile.train"])
def test_names(name: str) -> None:
    assert kind_of(name) == "makefile"
