"""The rules about devices: how lists are read, which names are slips, and what examples cannot show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgpu_checks.devices import Element, elements, indices, kept, listed
from mgpu_checks.devices import visible_devices_malformed as malformed
from mgpu_checks.devices import visible_devices_misspelt as misspelt

UUID = "GPU-af1b2c3d-1111-2222-3333-444444444444"

SEEN_ON_ONE_GPU = [
    ("", 0),
    ("0", 1),
    (" 0", 1),
    ("0 ", 1),
    ("\t0", 1),
    ("0\r", 1),
    ("0, 1", 1),
    ("0,1", 1),
    ("1,0", 0),
    ("-1", 0),
    ("0,-1", 1),
    ("-1,0", 0),
    ("NoDevFiles", 0),
    ("0,", 1),
    (",0", 0),
    ("0,,0", 1),
    ("0-3", 1),
    ("[0]", 0),
    ("[0,1]", 0),
    ("0]", 1),
    ("cuda:0", 0),
    ('"0"', 0),
    ("'0'", 0),
    ("0;1", 1),
    ("00", 1),
    ("0x0", 1),
    ("+0", 1),
    ("0abc", 1),
    ("abc", 0),
    ("all", 0),
    ("none", 0),
    ("void", 0),
    ("10", 0),
    ("0.0", 1),
    ("0 1", 1),
    ("0:1", 1),
    ("{0}", 0),
    ("(0)", 0),
    ("0，1", 1),
    (UUID, 1),
    (UUID[:8], 1),
    (UUID[4:], 0),
    (UUID.upper(), 1),
    (f"{UUID},0", 1),
    (f"{UUID},GPU-deadbeef", 1),
    ("GPU-deadbeef," + UUID, 0),
    (f"{UUID}, {UUID}", 1),
    ("GPU-", 0),
]
"""What cuDeviceGetCount answered on a machine with one GPU (driver 580.159.04), by the value of the variable."""


def on_one_gpu(text: str) -> int:
    """How many devices the reading of lists gives there."""
    count = 0
    for element in kept(elements(text), 1):
        if element.kind != "index" and not UUID.lower().startswith(element.text.lower()):
            break
        count += 1
    return count


@pytest.mark.parametrize(("text", "count"), SEEN_ON_ONE_GPU)
def test_lists_are_read_as_the_driver_reads_them(text: str, count: int) -> None:
    assert on_one_gpu(text) == count


def test_digits_may_be_followed_by_anything() -> None:
    assert elements("0-3") == (Element("0-3", "index", 0, "-3"),)


@given(st.lists(st.integers(0, 99), min_size=1))
def test_plain_lists_come_back(numbers: list[int]) -> None:
    text = ",".join(map(str, numbers))
    assert indices(text) == tuple(numbers)
    assert [element.index for element in kept(elements(text))] == numbers


@given(st.text())
def test_any_text_can_be_judged(text: str) -> None:
    fault = malformed._fault(text)
    if fault is not None and fault.meant is not None:
        assert malformed._fault(fault.meant) is None


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("0-3", "0,1,2,3"),
        ("[0, 1]", "0,1"),
        ("cuda:0,cuda:1", "0,1"),
        ("0;1;2", "0,1,2"),
        ("0,2-4", "0,2,3,4"),
        ("'4 5'", "4,5"),
        ("3-1", None),
        ("all", None),
        ("GPU-abc,0", None),
    ],
)
def test_what_a_list_was_meant_to_be(text: str, meant: str | None) -> None:
    assert malformed._as_meant(text) == meant


@pytest.mark.parametrize("text", [None, "", "-1", "0", "0,1,2", "0,1,-1", UUID, "NoDevFiles", "MIG-0a1b2c3d-1111"])
def test_lists_without_a_fault(text: str | None) -> None:
    assert malformed._fault(text) is None


@pytest.mark.parametrize(
    "name",
    [
        "CUDA_VISIBLE_DEVICE",
        "CUDA_VISABLE_DEVICES",
        "CUDA_VISIABLE_DEVICES",
        "CUDA_VISIBLE_DEVIECS",
        "CUDA_VISIBILE_DEVICES",
        "CUDAVISIBLE_DEVICES",
        "CUDA_VISIBLE_DEVICES_",
        "CUAD_VISIBLE_DEVICES",
        "cuda_visible_devices",
        "Cuda_Visible_Devices",
        "VISIBLE_CUDA_DEVICES",
        "CUDA_VISIBLE_GPUS",
    ],
)
def test_slips(name: str) -> None:
    assert misspelt.is_misspelt(name)


@pytest.mark.parametrize(
    "name",
    [
        "CUDA_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        "ASCEND_RT_VISIBLE_DEVICES",
        "MUSA_VISIBLE_DEVICES",
        "CUDA_DEVICE_ORDER",
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "CUDA_LAUNCH_BLOCKING",
        "VISIBLE_DEVICES",
        "CUDA_VISIBLE",
        "OLD_CUDA_VISIBLE_DEVICES",
        "CUDA_VISIBLE_DEVICES_TRAIN",
        "CUDA_VISIBLE_DEVICES_LIST",
        "GPUS",
    ],
)
def test_names_that_are_no_slip(name: str) -> None:
    assert not misspelt.is_misspelt(name)


@pytest.mark.parametrize(
    ("numbers", "text"), [((0,), "0"), ((0, 1), "0 and 1"), ((0, 1, 2, 3), "0-3"), ((0, 2, 5), "0, 2 and 5")]
)
def test_numbers_for_people(numbers: tuple[int, ...], text: str) -> None:
    assert listed(numbers) == text
