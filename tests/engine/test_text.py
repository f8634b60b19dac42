from __future__ import annotations

from pathlib import Path

import pytest

from mgpu_doctor.errors import InputError
from mgpu_doctor.model.source import Excerpt, Source, Span
from mgpu_doctor.read.text import LARGEST, kind_of, read_source


@pytest.mark.parametrize(
    ("name", "head", "kind"),
    [
        ("a.sh", b"", "shell"),
        ("a.SBATCH", b"", "shell"),
        ("README.md", b"", "markdown"),
        ("a.py", b"#!/bin/bash\n", "python"),
        ("run", b"#!/bin/bash\n", "shell"),
        ("run", b"#!/usr/bin/env bash\n", "shell"),
        ("run", b"#! /bin/sh -e\n", "shell"),
        ("run", b"#!/usr/bin/env python\n", None),
        ("run", b"", None),
    ],
)
def test_kinds(name: str, head: bytes, kind: str | None) -> None:
    assert kind_of(name, head) == kind


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b"echo\nx\0y", "run.sh:2: binary"),
        (b"echo a\n  \xff\xfe", "run.sh:2:3: not UTF-8 (byte 0xff)"),
        (b"\xff\xfee\0c\0", "UTF-16"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "run.sh"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_source(str(path), name="run.sh")
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_a_file_too_large_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "big.sh"
    with path.open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(InputError, match="MiB"):
        read_source(str(path))


def test_missing_and_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_source(str(tmp_path / "none.sh"))
    with pytest.raises(InputError, match="a directory"):
        read_source(str(tmp_path))


def test_carriage_returns_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.sh"
    path.write_bytes(b"echo a\r\n")
    source = read_source(str(path))
    assert source is not None
    assert source.text == "echo a\r\n"


def test_positions_and_lines() -> None:
    source = Source("s", "ab\n\ncé d", "shell")
    assert [tuple(source.position(at)) for at in (0, 2, 3, 4, 6, 99)] == [
        (1, 1),
        (1, 3),
        (2, 1),
        (3, 1),
        (3, 3),
        (3, 5),
    ]
    assert source.slice(source.line_span(3)) == "cé d"
    assert source.line_count == 3


def test_an_excerpt_leads_back() -> None:
    source = Source("d.md", "> a b\n> c", "markdown")
    excerpt = Excerpt(source, "a b\nc", ((0, 2), (4, 8)))
    assert excerpt.locate(2, 3) == Span(4, 5)
    assert excerpt.locate(4, 5) == Span(8, 9)
    assert excerpt.locate(0, 5) == Span(2, 9)
    assert excerpt.locate(5, 5) == Span(9, 9)
