from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpu_doctor.model.model_folder import FileFault
from mgpu_doctor.read.safetensors import LARGEST_HEADER, LARGEST_READ, Header, read_header
from oracle_environments import requires_oracle, run_parser


def whole(elements: int = 4, *, pad: int = 0) -> bytes:
    """A sound file with one float32 tensor."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [elements], "data_offsets": [0, 4 * elements]}}).encode()
    header += b" " * pad
    return len(header).to_bytes(8, "little") + header + bytes(4 * elements)


def judge(path: Path, data: bytes) -> Header | FileFault:
    path.write_bytes(data)
    return read_header(str(path), path.name)


def kind(found: Header | FileFault) -> str:
    return found.kind if isinstance(found, FileFault) else "sound"


def measured(found: Header | FileFault) -> tuple[int, int | None]:
    """The size of a sound file, and the number of its elements."""
    assert isinstance(found, Header), found
    return found.size, found.elements


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4976698672\n"

FILES = {
    "sound": (whole(), "sound"),
    "padded header": (whole(pad=13), "sound"),
    "no tensors": ((2).to_bytes(8, "little") + b"{}", "sound"),
    "metadata alone": (
        (27).to_bytes(8, "little") + b'{"__metadata__":{"a":"b"}} ',
        "sound",
    ),
    "a byte short": (whole()[:-1], "cut"),
    "only half": (whole(1000)[:300], "cut"),
    "inside the header": (whole()[:30], "cut"),
    "only the length": (whole()[:8], "cut"),
    "four bytes": (whole()[:4], "cut"),
    "a byte more": (whole() + b"x", "longer"),
    "empty": (b"", "empty"),
    "pointer": (POINTER, "pointer"),
    "web page": (b"<!DOCTYPE html><html><body>Entry not found</body></html>", "page"),
    "other text": (b"Entry not found and some more text", "foreign"),
    "zip archive": (b"PK\x03\x04" + bytes(200), "foreign"),
    "header of nothing": (bytes(64), "foreign"),
    "no JSON": ((5).to_bytes(8, "little") + b"{nope" + bytes(4), "foreign"),
    "a list": ((2).to_bytes(8, "little") + b"[]", "foreign"),
}


@pytest.mark.parametrize("name", FILES)
def test_faults_are_told_apart(name: str, tmp_path: Path) -> None:
    data, expected = FILES[name]
    assert kind(judge(tmp_path / "model.safetensors", data)) == expected


def test_a_pointer_tells_what_it_stands_for(tmp_path: Path) -> None:
    found = judge(tmp_path / "a.safetensors", POINTER)
    assert isinstance(found, FileFault)
    assert found.detail == f"is a git-lfs pointer in the place of 4.6 GiB, {len(POINTER)} bytes long"


def test_elements_of_all_tensors_are_counted(tmp_path: Path) -> None:
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "BF16", "shape": [3, 5], "data_offsets": [0, 30]},
            "b": {"dtype": "F32", "shape": [], "data_offsets": [30, 34]},
        }
    ).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(34)
    assert measured(judge(tmp_path / "a.safetensors", data)) == (len(data), 16)


def test_a_sparse_file_of_a_hundred_gigabytes_is_judged_by_its_header(tmp_path: Path) -> None:
    size = 100 * (1 << 30)
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path = tmp_path / "big.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    assert measured(read_header(str(path), path.name)) == (8 + len(header) + size, size)
    with path.open("r+b") as file:
        file.truncate(size // 2)
    found = read_header(str(path), path.name)
    assert isinstance(found, FileFault)
    assert found.detail == "is cut off: 50.0 GiB of 100.0 GiB are missing"


def test_a_header_too_large_to_be_read_is_only_measured(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write((LARGEST_READ + 1).to_bytes(8, "little") + b"{")
        file.truncate(8 + LARGEST_READ + 100)
    assert measured(read_header(str(path), path.name)) == (8 + LARGEST_READ + 100, None)
    with path.open("wb") as file:
        file.write((LARGEST_HEADER + 1).to_bytes(8, "little"))
        file.truncate(LARGEST_HEADER * 2)
    assert kind(read_header(str(path), path.name)) == "foreign"


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    gone = read_header(str(tmp_path / "gone"), "gone")
    assert gone == FileFault("gone", "missing", "does not exist")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert read_header(str(tmp_path / "link"), "link") == FileFault("link", "missing", "is a link that leads nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    loop = read_header(str(tmp_path / "loop"), "loop")
    assert kind(loop) == "unreadable"
    assert "symbolic links" in str(loop)
    assert kind(read_header(str(tmp_path), "folder")) == "unreadable"
    os.mkfifo(tmp_path / "pipe")
    assert kind(read_header(str(tmp_path / "pipe"), "pipe")) == "unreadable"
    assert kind(read_header(f"{tmp_path}/a\0b", "zero")) == "unreadable"


@settings(max_examples=300, deadline=None)
@given(
    data=st.binary(max_size=200)
    | st.builds(lambda raw, more: len(raw).to_bytes(8, "little") + raw + more, st.binary(max_size=80), st.binary())
    | st.builds(
        lambda text, more: len(text.encode()).to_bytes(8, "little") + text.encode() + more,
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda part: (
                st.lists(part, max_size=3)
                | st.dictionaries(st.sampled_from(["a", "shape", "data_offsets", "__metadata__"]), part, max_size=3)
            ),
            max_leaves=8,
        ).map(json.dumps),
        st.binary(max_size=20),
    )
)
def test_no_content_is_too_odd(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("odd") / "x.safetensors"
    found = judge(path, data)
    assert isinstance(found, (Header, FileFault))


@pytest.mark.oracle
@requires_oracle("new")
def test_safetensors_itself_agrees(tmp_path: Path) -> None:
    """What is called sound, safetensors opens; what is called faulty, it refuses."""
    paths = []
    for number, (data, _) in enumerate(FILES.values()):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(data)
        paths.append(str(path))
    opened = run_parser(
        "new",
        "from safetensors import safe_open\nresult = []\n"
        "for path in payload:\n"
        "    try:\n"
        "        with safe_open(path, framework='pt') as f:\n"
        "            result.append(list(f.keys()) is not None)\n"
        "    except Exception:\n"
        "        result.append(False)\n",
        paths,
    )
    ours = [kind(read_header(path, path)) == "sound" for path in paths]
    assert ours == opened
