"""The map of the GPUs as text."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from mgpu_doctor.model.device_map import DeviceMap, DeviceRow
from mgpu_doctor.model.facts import Gpu, GpuProcess
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.render.console import _print_map
from mgpu_doctor.render.devices import device_words, map_note, ranges, short_bus_id

HOLDER = GpuProcess(1, 4127, "python serve.py --model /data/models/large --port 8000", 61.5, "anna")
GPUS = tuple(
    Gpu(i, "NVIDIA A100-SXM4-80GB", f"GPU-0000000{i}-1111", 80.0, (8, 0), f"00000000:{i}B:00.0") for i in range(2)
)
MAP = DeviceMap(
    (DeviceRow(GPUS[0], 0, None, (), ()), DeviceRow(GPUS[1], 1, 0, (0, 1, 2, 5), (HOLDER,))), "1", None, (6,)
)


def test_words() -> None:
    idle, busy = device_words(MAP)
    assert (idle.visible, idle.ranks, idle.used, idle.pci) == ("hidden", "", "free", "0000:0b:00.0")
    assert (busy.visible, busy.ranks) == ("cuda:0", "0-2, 5")
    assert busy.used == "61.5 of 80 GiB, python serve.py --model /data/m… (pid 4127, anna)"
    assert map_note(MAP) == "CUDA_VISIBLE_DEVICES=1; rank 6 without a GPU"


def test_unknown_is_no_number_and_not_free() -> None:
    row = DeviceRow(Gpu(0), Unknown("order"), Unknown("list"), (), None)
    words = device_words(DeviceMap((row,), None, None))[0]
    assert (words.model, words.uuid, words.pci, words.cuda, words.visible, words.used) == ("?", "?", "?", "?", "?", "")


def test_memory_that_nobody_is_known_to_hold_is_shown() -> None:
    gpu = Gpu(0, "NVIDIA TITAN Xp", memory_gib=12.0, memory_used_gib=10.7)
    assert device_words(DeviceMap((DeviceRow(gpu, 0, 0, (), ()),), None, None))[0].used == "10.7 of 12 GiB"


@pytest.mark.parametrize(
    ("numbers", "text"), [((), ""), ((3,), "3"), ((0, 1, 2), "0-2"), ((5, 0, 1, 7, 8), "0-1, 5, 7-8")]
)
def test_ranges(numbers: tuple[int, ...], text: str) -> None:
    assert ranges(numbers) == text


def test_bus_ids_are_those_of_lspci() -> None:
    assert short_bus_id("00000000:3B:00.0") == "0000:3b:00.0"
    assert short_bus_id("0000:3b:00.0") == "0000:3b:00.0"


@pytest.mark.parametrize("width", [45, 60, 70, 100, 120])
def test_the_table_fits_and_keeps_what_matters(width: int) -> None:
    out = StringIO()
    _print_map(Console(file=out, width=width), MAP)
    lines = out.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    text = " ".join(out.getvalue().split())
    assert "0-2, 5" in text
    assert "hidden" in text
    assert ("GPU-00000001" in text) == (width >= 64)
    assert ("0000:1b:00.0" in text) == (width >= 100)


def test_what_is_known_of_no_gpu_has_no_column() -> None:
    out = StringIO()
    rows = tuple(DeviceRow(Gpu(i, "NVIDIA L4"), i, i, (i,), None) for i in range(2))
    _print_map(Console(file=out, width=120), DeviceMap(rows, "0,1", None))
    heading = out.getvalue().splitlines()[0].split()
    assert heading == ["GPU", "model", "CUDA", "visible", "rank"]
