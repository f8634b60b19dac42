from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mgpu_doctor.model.facts import NO_FACTS, Facts, PathInfo
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.model_folder import ModelFolder, Storage
from mgpu_doctor.model.record import replace
from mgpu_doctor.read.model_folder import MOST_HEADERS, read_model_folder
from mgpu_doctor.read.storage import look_at_storage
from mgpu_doctor.read.workspace import LocalWorkspace
from oracle_environments import requires_oracle, run_parser

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 17\n"
HERE = replace(NO_FACTS, origin="this machine")


def tensor(elements: int = 1) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [elements], "data_offsets": [0, 4 * elements]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4 * elements)


def folder(top: Path, files: dict[str, bytes]) -> ModelFolder:
    for name, data in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    found = read_model_folder(str(top), "models/m")
    assert isinstance(found, ModelFolder)
    return found


def index(*shards: str) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": {f"t{n}": shard for n, shard in enumerate(shards)}}).encode()


def kinds(found: ModelFolder) -> dict[str, str]:
    return {fault.name: fault.kind for fault in found.faults}


def test_the_file_that_transformers_would_load_is_chosen(tmp_path: Path) -> None:
    files = {
        "pytorch_model.bin.index.json": index("pytorch_model-00001-of-00001.bin"),
        "pytorch_model-00001-of-00001.bin": b"\x80\x02",
    }
    assert folder(tmp_path, files).weights == ("pytorch_model-00001-of-00001.bin",)
    assert folder(tmp_path, {"pytorch_model.bin": b"\x80\x02"}).weights == ("pytorch_model.bin",)
    files = {"model.safetensors.index.json": index("b.safetensors", "a.safetensors", "a.safetensors")}
    found = folder(tmp_path, {**files, "a.safetensors": tensor(), "b.safetensors": tensor(2)})
    assert (found.index, found.weights) == ("model.safetensors.index.json", ("a.safetensors", "b.safetensors"))
    assert found.weight_bytes == len(tensor()) + len(tensor(2))
    assert found.parameters == 3
    assert folder(tmp_path, {"model.safetensors": tensor(5)}).weights == ("model.safetensors",)
    assert folder(tmp_path, {"config.json": b'{"transformers_weights": "x.safetensors"}'}).weights == ("x.safetensors",)


def test_an_adapter_is_no_model_until_both_are_there(tmp_path: Path) -> None:
    found = folder(tmp_path, {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": tensor()})
    assert found.adapter == {"peft_type": "LORA"}
    assert found.config is None
    assert found.weights == ("adapter_model.safetensors",)
    assert not found.faults


def test_every_faulty_file_is_named(tmp_path: Path) -> None:
    found = folder(
        tmp_path,
        {
            "config.json": b'{"model_type": "llama",}',
            "tokenizer.json": POINTER,
            "tokenizer_config.json": b"",
            "model.safetensors.index.json": index("a.safetensors", "b.safetensors", "c.safetensors", "d.safetensors"),
            "a.safetensors": tensor(),
            "b.safetensors": tensor()[:-1],
            "c.safetensors": POINTER,
        },
    )
    assert kinds(found) == {
        "config.json": "json",
        "b.safetensors": "cut",
        "c.safetensors": "pointer",
        "d.safetensors": "missing",
        "tokenizer.json": "pointer",
        "tokenizer_config.json": "empty",
    }
    assert found.config is None
    assert isinstance(found.weight_bytes, Unknown)
    assert isinstance(found.parameters, Unknown)


@pytest.mark.parametrize(
    ("data", "kind"),
    [(POINTER, "pointer"), (b"", "empty"), (b"<html>", "page"), (b"PK\x03\x04" + bytes(100_000), "cut")],
)
def test_weights_of_torch_are_looked_at_from_both_ends(data: bytes, kind: str, tmp_path: Path) -> None:
    assert kinds(folder(tmp_path, {"pytorch_model.bin": data})) == {"pytorch_model.bin": kind}


def test_an_archive_with_its_end_record_is_whole(tmp_path: Path) -> None:
    data = b"PK\x03\x04" + bytes(100_000) + b"PK\x05\x06" + bytes(18)
    assert folder(tmp_path, {"pytorch_model.bin": data}).faults == ()


@pytest.mark.parametrize("text", [b"[]", b'{"weight_map": 3}', b"{", POINTER, b"\xff\xfe"])
def test_an_index_that_is_none_is_named(text: bytes, tmp_path: Path) -> None:
    found = folder(tmp_path, {"model.safetensors.index.json": text})
    assert found.index == "model.safetensors.index.json"
    assert list(kinds(found)) == ["model.safetensors.index.json"]


def test_odd_directory_entries_are_survived(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    os.mkfifo(tmp_path / "tokenizer.json")
    (tmp_path / "model.safetensors").symlink_to("model.safetensors")
    found = folder(tmp_path, {})
    assert kinds(found) == {"config.json": "unreadable", "model.safetensors": "unreadable"}
    assert isinstance(read_model_folder(str(tmp_path / "none"), "none"), Unknown)
    (tmp_path / "self").symlink_to("self")
    loop = read_model_folder(str(tmp_path / "self"), "self")
    assert isinstance(loop, Unknown)
    assert "symbolic links" in loop.reason


def test_hundreds_of_shards_of_which_only_headers_are_read(tmp_path: Path) -> None:
    names = [f"model-{n:05d}-of-00400.safetensors" for n in range(1, 401)]
    size = 5 * (1 << 30)
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    for name in names:
        with (tmp_path / name).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + size)
    start = time.process_time()
    found = folder(tmp_path, {"model.safetensors.index.json": index(*names)})
    assert time.process_time() - start < 5
    assert found.faults == ()
    assert found.parameters == 400 * size


def test_the_headers_of_a_folder_are_read_up_to_a_limit(tmp_path: Path) -> None:
    names = [f"{n}.safetensors" for n in range(600)]
    long = (
        json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode().ljust(MOST_HEADERS // 600 + 9)
    )
    (tmp_path / names[0]).write_bytes(len(long).to_bytes(8, "little") + long)
    for name in names[1:]:
        (tmp_path / name).symlink_to(names[0])
    # Each lacks its one byte of data, which is not seen where the header is only measured.
    assert folder(tmp_path, {"model.safetensors.index.json": index(*names)}).faults == ()
    assert kinds(folder(tmp_path, {"model.safetensors.index.json": index(names[0])})) == {names[0]: "cut"}


def test_only_a_folder_that_can_be_looked_at_is_read(tmp_path: Path) -> None:
    folder(tmp_path / "m", {"config.json": b"{}"})
    (tmp_path / "file").write_text("x")
    here = LocalWorkspace(str(tmp_path), HERE)
    found = here.model_folder("m")
    assert isinstance(found, ModelFolder)
    assert found is here.model_folder("./m/../m/") or found.names == ("config.json",)
    assert isinstance(here.model_folder("file"), Unknown)
    assert isinstance(here.model_folder("org/model"), Unknown)
    other = LocalWorkspace(str(tmp_path), replace(NO_FACTS, origin="host.json"))
    assert isinstance(other.model_folder("m"), ModelFolder)
    assert isinstance(other.model_folder(str(tmp_path / "m")), Unknown)
    assert isinstance(LocalWorkspace(str(tmp_path), NO_FACTS, judge_only_text=True).model_folder("m"), Unknown)


def test_storage_is_that_of_the_nearest_directory(tmp_path: Path) -> None:
    found = look_at_storage(str(tmp_path / "a" / "b"))
    assert isinstance(found, Storage)
    assert (found.existing, found.kind, found.is_whole, found.writable) == (str(tmp_path), "directory", False, True)
    assert isinstance(found.free_gib, float)
    assert found.free_gib > 0
    (tmp_path / "file").write_text("x")
    inside = look_at_storage(str(tmp_path / "file" / "out"))
    assert isinstance(inside, Storage)
    assert (inside.kind, inside.is_whole) == ("file", False)


def test_a_directory_that_is_closed_to_this_user_is_not_writable(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    closed.chmod(0o555)
    if os.getuid() != 0:
        found = look_at_storage(str(closed / "out"))
        assert isinstance(found, Storage)
        assert found.writable is False
        return
    # root may write everywhere: look with the eyes of another user, at a place that this one can reach.
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    text = (
        "import os, sys\nos.setgid(65534)\nos.setuid(65534)\n"
        "from mgpu_doctor.read.storage import look_at_storage\n"
        "if not os.access(sys.argv[2], os.W_OK):\n    sys.exit(3)\n"
        "print(look_at_storage(sys.argv[1]).writable, look_at_storage(sys.argv[2]).writable)"
    )
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    done = subprocess.run(
        [sys.executable, "-c", "import mgpu_doctor.read.storage\n" + text, str(closed / "out"), str(tmp_path / "open")],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 3:
        pytest.skip("another user cannot reach the directory for temporary files")
    assert done.stdout.split() == ["False", "True"], done.stderr


def told(facts: Facts, path: str) -> Storage | Unknown:
    return LocalWorkspace("/nowhere", facts).storage(path)


def test_another_machine_is_known_by_its_facts_alone() -> None:
    facts = replace(
        NO_FACTS,
        origin="host.json",
        paths={
            "/closed": PathInfo("dr-xr-xr-x"),
            "/data": PathInfo("drwxr-xr-x", free_gib=2.0),
            "/scratch/new": PathInfo(kind="missing", writable=False, free_gib=7.0),
        },
    )
    closed = told(facts, "/closed/out/")
    assert isinstance(closed, Storage)
    assert (closed.existing, closed.is_whole, closed.writable) == ("/closed", False, False)
    data = told(facts, "/data/")
    assert isinstance(data, Storage)
    assert (data.is_whole, data.free_gib) == (True, 2.0)
    assert isinstance(data.writable, Unknown)
    new = told(facts, "/scratch/new")
    assert isinstance(new, Storage)
    assert (new.is_whole, new.writable, new.free_gib) == (False, False, 7.0)
    assert isinstance(told(facts, "/other"), Unknown)
    assert isinstance(told(facts, "out"), Unknown)
    as_root = told(replace(facts, environment={"USER": "root"}), "/closed")
    assert isinstance(as_root, Storage)
    assert isinstance(as_root.writable, Unknown)


def test_this_machine_is_looked_at_whatever_its_facts_hold(tmp_path: Path) -> None:
    facts = replace(HERE, paths={str(tmp_path): PathInfo("dr-xr-xr-x", writable=False)})
    found = LocalWorkspace(str(tmp_path), facts).storage("out/run1")
    assert isinstance(found, Storage)
    assert found.writable is True


def test_links_are_followed_on_this_machine_only(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    real = os.path.realpath(tmp_path / "real")
    assert LocalWorkspace("/", HERE).resolve(str(tmp_path / "link")) == real
    assert isinstance(LocalWorkspace("/", NO_FACTS).resolve(str(tmp_path / "link")), Unknown)


_LOAD = """
import os, shutil, tempfile
from transformers import AutoModelForCausalLM, LlamaConfig
top = tempfile.mkdtemp(dir=payload)
config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=16)
model = AutoModelForCausalLM.from_config(config)
model.save_pretrained(top + "/whole")
model.save_pretrained(top + "/shards", max_shard_size="1KB")
def copy(source, name):
    return shutil.copytree(top + "/" + source, top + "/" + name)
def cut(path, count):
    data = open(path, "rb").read()
    open(path, "wb").write(data[:-count])
shard = sorted(n for n in os.listdir(top + "/shards") if n.endswith(".safetensors"))[1]
os.remove(copy("shards", "missing") + "/" + shard)
cut(copy("shards", "cut") + "/" + shard, 5)
os.remove(copy("whole", "none") + "/model.safetensors")
open(copy("whole", "pointer") + "/model.safetensors", "w").write("version https://git-lfs.github.com/spec/v1\\n")
os.remove(copy("shards", "unlisted") + "/model.safetensors.index.json")
open(copy("whole", "beside") + "/pytorch_model.bin", "w").write("version https://git-lfs.github.com/spec/v1\\n")
result = {"top": top, "loads": {}}
for name in os.listdir(top):
    try:
        AutoModelForCausalLM.from_pretrained(top + "/" + name)
        result["loads"][name] = True
    except Exception:
        result["loads"][name] = False
"""


@pytest.mark.oracle
@pytest.mark.parametrize("environment", ["old", "new"])
def test_transformers_itself_loads_what_is_called_whole_and_nothing_else(environment: str, tmp_path: Path) -> None:
    requires = requires_oracle(environment)
    if requires.args[0]:
        pytest.skip(str(requires.kwargs["reason"]))
    seen = run_parser(environment, _LOAD, str(tmp_path))
    assert len(seen["loads"]) == 8
    for name, loads in seen["loads"].items():
        found = read_model_folder(f"{seen['top']}/{name}", name)
        assert isinstance(found, ModelFolder)
        assert (bool(found.weights) and not found.faults) is loads, name
