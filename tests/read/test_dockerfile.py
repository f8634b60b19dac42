"""Commands in Dockerfiles."""

from __future__ import annotations

import textwrap

import pytest

from mgpu_doctor.diagnose import _excerpts
from mgpu_doctor.model.command import Command
from mgpu_doctor.model.source import Source
from mgpu_doctor.read.text import kind_of
from mgpu_doctor.shell import parse_all


def commands(text: str) -> list[Command]:
    source = Source("Dockerfile", textwrap.dedent(text), kind_of("Dockerfile") or "")
    found = [c for excerpt in _excerpts(source) for script in parse_all(excerpt) for c in script.commands]
    return [c for c in found if c.name in ("torchrun", "accelerate", "python")]


def values(text: str) -> list[list[str | None]]:
    return [[word.value for word in command.words] for command in commands(text)]


def test_a_run_may_go_on_behind_comments_and_blank_lines() -> None:
    text = """\
        FROM image
        RUN --mount=type=cache,target=/root pip install x \\
            # a comment

            && torchrun --nproc_per_node 2 \\
            train.py
    """
    (command,) = commands(text)
    assert [word.value for word in command.words] == ["torchrun", "--nproc_per_node", "2", "train.py"]
    assert [command.source.position(word.span.start) for word in command.words[::3]] == [(5, 8), (6, 5)]
    assert [wrapper.name for wrapper in command.wrappers] == ["docker image"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('CMD ["torchrun", "a b.py"]', [["torchrun", "a b.py"]]),
        ('CMD ["torchrun", "\\u0061\\".py"]', [["torchrun", 'a".py']]),
        ('CMD ["torchrun", \\\n  "a b.py"]', [["torchrun", "a b.py"]]),
        ('CMD ["torchrun", "a\\\nb.py"]', [["torchrun", "ab.py"]]),
        ("CMD torchrun 'a b.py'", [["torchrun", "a b.py"]]),
        ('CMD ["bash", "-c", "torchrun \\"a b.py\\""]', [["torchrun", "a b.py"]]),
        ('ENTRYPOINT ["accelerate", "launch"]\nCMD ["train.py"]', [["accelerate", "launch", "train.py"]]),
        ('ENTRYPOINT torchrun a.py\nCMD ["python", "b.py"]', [["torchrun", "a.py"]]),
        ("CMD torchrun a.py\nCMD torchrun b.py", [["torchrun", "b.py"]]),
        ('CMD torchrun a.py\nENTRYPOINT ["python", "b.py"]', [["python", "b.py"]]),
        ("ONBUILD RUN torchrun a.py", [["torchrun", "a.py"]]),
        ("RUN <<EOF\nset -e\ntorchrun a.py\nEOF\nRUN python b.py", [["torchrun", "a.py"], ["python", "b.py"]]),
        ("RUN <<EOF\n#!/usr/bin/env python\ntorchrun = 1\nEOF", []),
        ("RUN python <<EOF\ntorchrun a.py\nEOF", [["python"]]),
        ("COPY <<EOF /x.sh\ntorchrun a.py\nEOF\n", []),
        ('SHELL ["powershell", "-command"]\nRUN torchrun a.py', []),
        ("# escape=`\nRUN torchrun `\n  a.py", [["torchrun", "a.py"]]),
        ("RUN torchrun a.py \\\\\nRUN torchrun b.py", [["torchrun", "a.py", "\\"], ["torchrun", "b.py"]]),
        ("# torchrun a.py\nLABEL x=torchrun", []),
        ("RUN torchrun {{ script }}", [["torchrun", None]]),
        ("CMD [torchrun", []),
        ("RUN torchrun a.py \\", [["torchrun", "a.py"]]),
    ],
)
def test_forms(text: str, expected: list[list[str | None]]) -> None:
    assert values(f"FROM image\n{text}\n" if not text.startswith("# escape") else text) == expected


def test_env_reaches_what_follows_in_its_stage() -> None:
    text = """\
        FROM image AS base
        ARG GPUS=4
        ENV CUDA_VISIBLE_DEVICES=0,1 NCCL_SOCKET_IFNAME='"eth0"' \\
            NOTE="two words"
        ENV OLD the rest
        ENV PATH=/opt:$PATH
        RUN torchrun --nproc_per_node $GPUS train.py
        FROM other
        CMD ["torchrun", "train.py"]
        FROM base AS last
        CMD torchrun --nproc_per_node $GPUS train.py
    """
    built, other, last = commands(text)
    found = {
        name: built.variable(name) for name in ("CUDA_VISIBLE_DEVICES", "NCCL_SOCKET_IFNAME", "NOTE", "OLD", "PATH")
    }
    assert {name: variable and variable.text for name, variable in found.items()} == {
        "CUDA_VISIBLE_DEVICES": "0,1",
        "NCCL_SOCKET_IFNAME": '"eth0"',
        "NOTE": "two words",
        "OLD": "the rest",
        "PATH": None,
    }
    note = found["NOTE"]
    assert note is not None
    assert note.location is not None
    assert built.source.slice(note.location.span) == 'NOTE="two words"'
    assert built.variable("GPUS") is not None
    assert built.words[2].value is None
    assert other.variable("CUDA_VISIBLE_DEVICES") is None
    assert last.variable("CUDA_VISIBLE_DEVICES") is not None
    assert last.variable("GPUS") is None


@pytest.mark.parametrize(
    "name", ["Dockerfile", "Dockerfile.gpu", "gpu.Dockerfile", "docker/train.dockerfile", "Containerfile"]
)
def test_names(name: str) -> None:
    assert kind_of(name) == "dockerfile"


def test_the_ignore_file_is_none() -> None:
    assert kind_of("Dockerfile.dockerignore") is None
