"""Compute capability by name: names that drivers give, and names that mean more than one card."""

from __future__ import annotations

import pytest

from mgpu_doctor.collect.compute_capability import compute_capability_of


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("NVIDIA GeForce RTX 5090", (12, 0)),
        ("NVIDIA GeForce RTX 5070 Ti", (12, 0)),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", (12, 0)),
        ("NVIDIA GB10", (12, 1)),
        ("NVIDIA B200", (10, 0)),
        ("NVIDIA GB200", (10, 0)),
        ("NVIDIA B300 SXM6 AC", (10, 3)),
        ("NVIDIA H100 80GB HBM3", (9, 0)),
        ("NVIDIA H200", (9, 0)),
        ("NVIDIA GH200 480GB", (9, 0)),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", (8, 9)),
        ("NVIDIA L4", (8, 9)),
        ("NVIDIA L40S", (8, 9)),
        ("NVIDIA RTX 6000 Ada Generation", (8, 9)),
        ("NVIDIA RTX 4000 SFF Ada Generation", (8, 9)),
        ("NVIDIA GeForce RTX 3090", (8, 6)),
        ("NVIDIA RTX A6000", (8, 6)),
        ("NVIDIA A10G", (8, 6)),
        ("NVIDIA A40", (8, 6)),
        ("NVIDIA A100-SXM4-80GB", (8, 0)),
        ("A100-PCIE-40GB", (8, 0)),
        ("NVIDIA A30", (8, 0)),
        ("Tesla T4", (7, 5)),
        ("NVIDIA T4", (7, 5)),
        ("GeForce RTX 2080 Ti", (7, 5)),
        ("NVIDIA GeForce GTX 1660 SUPER", (7, 5)),
        ("Quadro RTX 8000", (7, 5)),
        ("NVIDIA TITAN RTX", (7, 5)),
        ("Tesla V100-SXM2-32GB", (7, 0)),
        ("NVIDIA TITAN V", (7, 0)),
        ("GeForce GTX 1080 Ti", (6, 1)),
        ("Tesla P40", (6, 1)),
        ("Tesla P4", (6, 1)),
        ("NVIDIA TITAN Xp", (6, 1)),
        ("Tesla P100-PCIE-16GB", (6, 0)),
        ("Tesla M60", (5, 2)),
        ("NVIDIA GeForce GTX 980 Ti", (5, 2)),
        ("Tesla K80", (3, 7)),
        ("Tesla K40m", (3, 5)),
        ("NVIDIA GeForce GTX 960M", None),
        ("NVIDIA TITAN X", None),
        ("RTX 5000", None),
        ("Quadro P4000", None),
        ("NVIDIA T1200 Laptop GPU", None),
        ("NVIDIA A1000", None),
        ("AMD Instinct MI300X", None),
        ("AMD Radeon RX 6800", None),
        ("Orin (nvgpu)", None),
        ("GPU", None),
        ("", None),
    ],
)
def test_names_that_drivers_give(name: str, capability: tuple[int, int] | None) -> None:
    assert compute_capability_of(name) == capability
