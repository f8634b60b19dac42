"""Which library the loader takes is told as the loader itself decides."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from environment_files import make_library
from mgpu_doctor.collect.elf import read_library, read_section
from mgpu_doctor.collect.libraries import cached_libraries, copies

requires_compiler = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None, reason="needs Linux and a C compiler"
)
NAME = "libmeasured.so.2"
NOWHERE = "/no/such/cache"


def compile_library(path: Path, source: str, *options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-shared", "-fPIC", "-nostdlib", "-o", str(path), "-x", "c", "-", "-x", "none", *options]
    subprocess.run(command, input=source, text=True, check=True, capture_output=True)
    return path


def really_loaded(asking: Path, variables: dict[str, str]) -> str:
    """The copy that the real loader takes for a library."""
    code = (
        "import ctypes, sys; ctypes.CDLL(sys.argv[1])\n"
        f"print(*{{line.split()[-1] for line in open('/proc/self/maps') if {NAME!r} in line}})"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(asking)], env=variables, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@requires_compiler
@pytest.mark.parametrize("tags", ["--disable-new-dtags", "--enable-new-dtags"])
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"LD_LIBRARY_PATH": "TOP/searched"},
        {"LD_LIBRARY_PATH": "TOP/empty:TOP/searched"},
        {"LD_LIBRARY_PATH": "TOP/foreign;TOP/searched"},
        {"LD_PRELOAD": "TOP/preloaded/libmeasured.so.2", "LD_LIBRARY_PATH": "TOP/searched"},
        {"LD_PRELOAD": "libmeasured.so.2", "LD_LIBRARY_PATH": "TOP/searched"},
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_the_loader_takes_the_first_copy(tmp_path: Path, tags: str, variables: dict[str, str], own: bool) -> None:
    top = tmp_path.resolve()
    for folder in ("own", "searched", "preloaded"):
        compile_library(top / folder / NAME, "int measured(void) { return 1; }", f"-Wl,-soname,{NAME}")
    make_library(top / "foreign" / NAME, soname=NAME)
    foreign = bytearray((top / "foreign" / NAME).read_bytes())
    foreign[4] = 1
    (top / "foreign" / NAME).write_bytes(foreign)
    asking = compile_library(
        top / "lib" / "libasking.so",
        "int measured(void); int ask(void) { return measured(); }",
        str(top / "own" / NAME),
        f"-Wl,{tags},-rpath,$ORIGIN/../own",
    )
    if not own:
        shutil.rmtree(top / "own")
        if "LD_LIBRARY_PATH" not in variables:
            pytest.skip("there is no copy to find")
    variables = {name: text.replace("TOP", str(top)) for name, text in variables.items()}
    found = copies(NAME, str(asking), sys.executable, variables, cache=NOWHERE)
    assert found[0] == really_loaded(asking, variables)
    expected = {folder for folder in ("own", "searched") if folder in str(variables) or (folder == "own" and own)}
    assert expected <= {Path(path).parent.name for path in found}


@requires_compiler
def test_a_library_that_is_a_link(tmp_path: Path) -> None:
    """The directory of the link counts, not that of the file: uv can make environments of links into its cache."""
    top = tmp_path.resolve()
    for folder in ("site/own", "cache/own"):
        compile_library(top / folder / NAME, "int measured(void) { return 1; }", f"-Wl,-soname,{NAME}")
    compile_library(
        top / "cache" / "lib" / "libasking.so",
        "int measured(void); int ask(void) { return measured(); }",
        str(top / "cache" / "own" / NAME),
        "-Wl,--disable-new-dtags,-rpath,$ORIGIN/../own",
    )
    (top / "site" / "lib").mkdir()
    (top / "site" / "lib" / "libasking.so").symlink_to(top / "cache" / "lib" / "libasking.so")
    (top / "linked").symlink_to(top / "cache" / "lib")
    for place in ("site/lib", "linked"):
        asking = top / place / "libasking.so"
        (found,) = copies(NAME, str(asking), sys.executable, {}, cache=NOWHERE)
        assert os.path.realpath(found) == os.path.realpath(really_loaded(asking, {}))
    assert copies(NAME, str(top / "site" / "lib" / "libasking.so"), None, {}, NOWHERE) == (
        str(top / "site" / "own" / NAME),
    )


@requires_compiler
def test_what_a_compiled_library_says_of_itself(tmp_path: Path) -> None:
    path = compile_library(
        tmp_path / "liba.so", 'const char text[] = "hello \\u00e4"; int f(void) { return 1; }', "-Wl,-soname,liba.so.1"
    )
    library = read_library(str(path))
    assert library is not None
    assert (library.soname, library.rpath, library.runpath) == ("liba.so.1", None, None)
    texts = read_section(str(path), ".rodata", 100)
    assert texts is not None
    assert b"hello" in texts
    assert read_section(str(path), ".rodata", 3) == texts[:3]


def test_parts_of_a_library(tmp_path: Path) -> None:
    path = make_library(
        tmp_path / "lib.so",
        needed=("a.so", "b.so.1"),
        soname="lib.so.2",
        runpath="$ORIGIN",
        sections={".rodata": b"xyz"},
    )
    library = read_library(str(path))
    assert library is not None
    assert library.needed == ("a.so", "b.so.1")
    assert (library.soname, library.rpath, library.runpath) == ("lib.so.2", None, "$ORIGIN")
    assert read_section(str(path), ".rodata", 10) == b"xyz"
    assert read_section(str(path), ".data", 10) is None


def test_damaged_libraries_are_none(tmp_path: Path) -> None:
    whole = make_library(tmp_path / "whole.so", needed=("a.so",), soname="x").read_bytes()
    damaged = tmp_path / "damaged.so"
    for size in range(0, len(whole) - 64, 7):
        damaged.write_bytes(whole[:size])
        assert read_library(str(damaged)) is None, size
    for at in range(0x28, len(whole), 3):
        damaged.write_bytes(whole[:at] + b"\xff\xff\xff\xff\xff\xff\xff\xff" + whole[at + 8 :])
        read_library(str(damaged))
        read_section(str(damaged), ".rodata", 100)
    assert read_library(str(tmp_path)) is None
    assert read_library(str(tmp_path / "gone")) is None


def test_the_same_file_by_two_ways_is_one_copy(tmp_path: Path) -> None:
    make_library(tmp_path / "real" / "libnccl.so.2.21.5", soname="libnccl.so.2")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "libnccl.so.2").symlink_to("../real/libnccl.so.2.21.5")
    asking = make_library(tmp_path / "t.so", rpath=f"$ORIGIN/a:{tmp_path}/b")
    assert copies("libnccl.so.2", str(asking), None, {}, cache=NOWHERE) == (str(tmp_path / "a" / "libnccl.so.2"),)


def test_the_path_of_the_program_counts_only_without_a_runpath(tmp_path: Path) -> None:
    """Conda's interpreters have one: ``$ORIGIN/../lib``."""
    program = make_library(tmp_path / "bin" / "python3.11", rpath="$ORIGIN/../lib")
    wanted = make_library(tmp_path / "lib" / "libnccl.so.2", soname="libnccl.so.2")
    without = make_library(tmp_path / "torch" / "a.so", needed=("libnccl.so.2",))
    with_one = make_library(tmp_path / "torch" / "b.so", needed=("libnccl.so.2",), runpath="$ORIGIN")
    assert copies("libnccl.so.2", str(without), str(program), {}, cache=NOWHERE) == (str(wanted),)
    assert copies("libnccl.so.2", str(with_one), str(program), {}, cache=NOWHERE) == ()


def make_cache(path: Path, *libraries: tuple[str, str], before: bytes = b"") -> Path:
    texts = b""
    rows = b""
    start = 48 + 24 * len(libraries)
    for name, place in libraries:
        rows += struct.pack("<iIIIQ", 0x303, start + len(texts), start + len(texts) + len(name) + 1, 0, 0)
        texts += name.encode() + b"\0" + place.encode() + b"\0"
    header = b"glibc-ld.so.cache1.1" + struct.pack("<II", len(libraries), len(texts)) + bytes(20)
    path.write_bytes(before + header + rows + texts)
    return path


def test_cache_of_the_loader(tmp_path: Path) -> None:
    entries = (
        ("libm.so.6", "/lib/libm.so.6"),
        ("libnccl.so.2", "/a/libnccl.so.2"),
        ("libnccl.so.2", "/b/libnccl.so.2"),
    )
    for before in (b"", b"ld.so-1.7.0\0" + bytes(52)):
        cache = make_cache(tmp_path / "cache", *entries, before=before)
        assert cached_libraries("libnccl.so.2", str(cache)) == ("/a/libnccl.so.2", "/b/libnccl.so.2")
        assert cached_libraries("libnccl.so", str(cache)) == ()
    for size in range(0, cache.stat().st_size, 5):
        (tmp_path / "cut").write_bytes(cache.read_bytes()[:size])
        cached_libraries("libnccl.so.2", str(tmp_path / "cut"))
    assert cached_libraries("libnccl.so.2", NOWHERE) == ()


@pytest.mark.skipif(shutil.which("ldconfig") is None or not os.path.exists("/etc/ld.so.cache"), reason="no ldconfig")
def test_cache_of_this_machine() -> None:
    listed = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines()[1:]:
        name, _, place = line.strip().partition(" => ")
        if place:
            assert place in cached_libraries(name.split(" ")[0])
