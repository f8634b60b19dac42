"""Xid lines of kernel logs: NVIDIA's documentation and real logs write them in several ways."""

from __future__ import annotations

from pathlib import Path

from mgpu_doctor.collect import kernel_log
from mgpu_doctor.collect.kernel_log import MOST_ERRORS, read_xid_errors, since_boot, xid_errors
from mgpu_doctor.model.facts import XidError
from mgpu_doctor.model.known import Unknown

LOG = """\
<6>[    5.1] NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build
<4>[ 1000.2] NVRM: GPU at PCI:0000:3b:00: GPU-b850f46d-d5ea-c752-ddf3-c4453e44d3f7
<4>[ 1000.3] NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
<4>[ 1001.0] NVRM: Xid (0000:03:00): 14, Channel 00000001
[ 1002.0] NVRM: Xid (PCI:0001:c1:00.0): 154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)
<4>[ 1003.0] nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 LTSSM Fault Up
<4>[ 1004.0] NVRM: Xid (PCI:0000:5E:00): 48
<4>[ 1005.0] NVRM: Xid (PCI:zz): 13, nonsense
"""


def test_lines() -> None:
    assert read_xid_errors(LOG) == (
        XidError("00000000:3B:00.0", 79, "pid='<unknown>', name=<unknown>, GPU has fallen off the bus."),
        XidError("00000000:03:00.0", 14, "Channel 00000001"),
        XidError("00000001:C1:00.0", 154, "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)"),
        XidError("00000000:5E:00.0", 48, ""),
    )


def test_a_card_that_never_stops() -> None:
    line = "NVRM: Xid (PCI:0000:3b:00): {}, Ch {}" + " x" * 1000
    found = read_xid_errors("\n".join(line.format(31, at) for at in range(1000)))
    assert len(found) == MOST_ERRORS
    assert found[-1].text.startswith("Ch 999 ")
    assert max(len(one.text) for one in found) == 300


def write_log(root: Path, text: bytes) -> None:
    file = root / "var" / "log" / "kern.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text)


def test_only_what_was_written_since_the_kernel_started(tmp_path: Path) -> None:
    head = "Nov 26 06:00:0{} node1 kernel: [    {}.0] {}\n"
    started = "Linux version 6.8.0-49-generic (buildd@lcy02)"
    before = head.format(1, 9, "NVRM: Xid (PCI:0000:3b:00): 79, before")
    after = head.format(3, 9, "NVRM: Xid (PCI:0000:3b:00): 31, after")
    write_log(tmp_path, (before + head.format(2, 0, started) + after).encode())
    found = xid_errors(str(tmp_path))
    assert not isinstance(found, Unknown)
    assert [one.code for one in found] == [31]
    assert since_boot(before + after) == before + after


def test_the_end_of_a_large_log(tmp_path: Path) -> None:
    filler = b"x" * 80 + b"\n"
    old, new = (b"NVRM: Xid (PCI:0000:3b:00): %d, text\n" % code for code in (13, 79))
    write_log(tmp_path, old + filler * (kernel_log.LARGEST_LOG // len(filler) + 1) + b"\xff\xfe\n" + new)
    found = xid_errors(str(tmp_path))
    assert not isinstance(found, Unknown)
    assert [one.code for one in found] == [79]


def test_no_log_is_not_an_empty_log(tmp_path: Path) -> None:
    assert xid_errors(str(tmp_path)) == Unknown("no permission to read the kernel log")
    write_log(tmp_path, b"\0binary")
    assert isinstance(xid_errors(str(tmp_path)), Unknown)
    write_log(tmp_path, b"")
    assert xid_errors(str(tmp_path)) == ()


def test_this_machine() -> None:
    found = xid_errors()
    assert isinstance(found, (tuple, Unknown))
