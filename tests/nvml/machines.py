"""Machines with GPUs, as real ones describe themselves, for the simulated NVML."""

from __future__ import annotations

from typing import Any

from mgpu_doctor.model.facts import Facts, Gpu
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.record import replace


def card(index: int, **changes: Any) -> Gpu:
    """A healthy A100 of an HGX board."""
    usual = Gpu(
        index=index,
        name="NVIDIA A100-SXM4-80GB",
        uuid=f"GPU-{index:08x}-1111-2222-3333-444444444444",
        memory_gib=80.0,
        compute_capability=(8, 0),
        pci_bus_id=f"00000000:{0x10 + index:02X}:00.0",
        mig=(),
        memory_used_gib=0.0,
        mig_mode=False,
        mig_profiles=(),
        compute_mode="Default",
        utilization_percent=0,
        temperature_c=31,
        ecc_uncorrected=0,
        pages_pending=False,
        remap_failed=False,
        clock_events=("gpu_idle",),
        pcie_generation=4,
        pcie_generation_max=4,
        pcie_width=16,
        pcie_width_max=16,
        nvlinks=(True,) * 12,
        fabric_state="not supported",
    )
    return replace(usual, **changes)


def hopper(index: int, **changes: Any) -> Gpu:
    usual = {
        "name": "NVIDIA H100 80GB HBM3",
        "compute_capability": (9, 0),
        "nvlinks": (True,) * 18,
        "fabric_state": "completed",
        "pcie_generation": 5,
        "pcie_generation_max": 5,
    }
    return card(index, **{**usual, **changes})


def consumer(index: int, name: str, memory_gib: float, **changes: Any) -> Gpu:
    """A card without NVLink, ECC and MIG."""
    unsupported = Unknown("NVML does not tell: Not Supported")
    usual = {
        "name": name,
        "memory_gib": memory_gib,
        "compute_capability": (8, 6),
        "ecc_uncorrected": unsupported,
        "pages_pending": unsupported,
        "remap_failed": unsupported,
        "nvlinks": (),
        "fabric_state": unsupported,
    }
    return card(index, **{**usual, **changes})


def pairs(count: int, word: str) -> dict[str, str]:
    return {f"{a}-{b}": word for a in range(count) for b in range(a + 1, count)}


def machine(*cards: Gpu, path: str = "SYS", **changes: Any) -> Facts:
    usual: dict[str, Any] = {
        "gpus": cards,
        "gpu_processes": (),
        "driver": "580.159.04",
        "driver_cuda": "13.0",
        "topology": pairs(len(cards), path),
        "peer_access": pairs(len(cards), "ok"),
        "nvswitch": False,
    }
    return Facts(**{**usual, **changes})


def cards_of(described: Facts) -> tuple[Gpu, ...]:
    assert not isinstance(described.gpus, Unknown)
    return described.gpus


HGX = machine(*map(card, range(8)), path="NV12", nvswitch=True)

UNSUPPORTED = Unknown("NVML does not tell: Not Supported")

HEALTHY = {
    "eight A100 behind NVSwitch": HGX,
    "eight H100 behind NVSwitch": machine(*map(hopper, range(8)), path="NV18", nvswitch=True),
    "four V100 joined by NVLink": machine(
        *(
            card(
                index,
                name="Tesla V100-SXM2-32GB",
                memory_gib=32.0,
                compute_capability=(7, 0),
                remap_failed=Unknown("this card retires pages and remaps no rows"),
                nvlinks=(True,) * 6,
                fabric_state=UNSUPPORTED,
                pcie_generation=3,
                pcie_generation_max=3,
            )
            for index in range(4)
        ),
        path="NV2",
    ),
    "four A100 without bridges, their links asleep": machine(
        *(
            card(index, name="NVIDIA A100 80GB PCIe", nvlinks=(False,) * 12, pcie_generation=1, pcie_generation_max=4)
            for index in range(4)
        )
    ),
    "two consumer cards without peer access": machine(
        consumer(0, "NVIDIA GeForce RTX 4090", 24.0, memory_used_gib=0.4, pcie_generation=1),
        consumer(1, "NVIDIA GeForce RTX 4090", 24.0, pcie_generation=1, clock_events=("gpu_idle", "sw_power_cap")),
        path="PHB",
        peer_access={"0-1": "chipset not supported"},
    ),
    "MIG": machine(
        card(
            0,
            mig_mode=True,
            mig=("MIG-aaaaaaaa-0000-0000-0000-000000000000", "MIG-bbbbbbbb-0000-0000-0000-000000000000"),
            mig_profiles=("1g.10gb", "3g.40gb"),
            utilization_percent=UNSUPPORTED,
        )
    ),
    "a card at work": machine(hopper(0, memory_used_gib=70.0, utilization_percent=100, clock_events=("sw_power_cap",))),
}
