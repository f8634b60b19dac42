"""How GPUs are linked, in the words of ``nvidia-smi topo``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.record import dataclass

SWITCH = "switch"
"""Stands for the other end of a link that leads to an NVSwitch."""

_LEVELS = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
"""nvmlGpuTopologyLevel_t (nvml.h): one board, one PCIe switch, several switches, one host bridge, several host bridges
of a NUMA node, the whole system; the words are those of the legend of ``nvidia-smi topo -m``."""

_PEER_STATES = {
    0: "ok",
    1: "chipset not supported",
    2: "GPU not supported",
    3: "topology not supported",
    4: "disabled by regkey",
    5: "not supported",
    6: "unknown",
}
"""nvmlGpuP2PStatus_t, in the words of the legend of ``nvidia-smi topo -p2p r``."""

# nvml.h; nvidia-ml-py 13.615 has a tuple for the first by mistake.
_CAPABILITY_READ = 0
_CAPABILITY_P2P = 0
_DEVICE_SWITCH = 2
_FIELD_LINK_STATE = 165
_MOST_LINKS = 36
_HOPPER = 9


@dataclass(frozen=True, slots=True)
class Links:
    """NVLink of one GPU: for each port whether it is up, and how many of these lead to whom.

    ``peers`` maps a PCI address in NVML's form, or :data:`SWITCH`, to the number of links; Unknown when not all
    ends could be found out.
    """

    up: tuple[bool, ...]
    peers: Mapping[str, int] | Unknown


def links_of(nvml: Any, handle: Any, major: int | Unknown) -> Links:
    """The NVLink ports of a GPU of this major compute capability.

    Raises:
        NVMLError: NVML does not tell, though the card may have NVLink.
    """
    up = _states(nvml, handle, major)
    try:
        return Links(up, _ends(nvml, handle, [link for link, is_up in enumerate(up) if is_up]))
    except nvml.NVMLError as error:
        return Links(up, Unknown(f"NVML does not tell where a link leads: {error}"))


def _states(nvml: Any, handle: Any, major: int | Unknown) -> tuple[bool, ...]:
    with suppress(nvml.NVMLError):
        # Asking for a capability trains links that are idle (NCCL 2.30.7, graph/xml.cc, ncclTopoGetXmlFromGpu).
        nvml.nvmlDeviceGetNvLinkCapability(handle, 0, _CAPABILITY_P2P)
    if isinstance(major, Unknown) or major >= _HOPPER:
        found = _states_by_field(nvml, handle)
        if found:
            return found
    states: list[bool] = []
    for link in range(_ports(major)):
        try:
            states.append(bool(nvml.nvmlDeviceGetNvLinkState(handle, link)))
        except nvml.NVMLError_InvalidArgument:
            break
        except nvml.NVMLError_NotSupported:
            # A port that is not wired; without the first two there is no NVLink.
            if link and not states:
                break
    return tuple(states)


def _ports(major: int | Unknown) -> int:
    """How many ports a card of this compute capability can have (NCCL, as above)."""
    if isinstance(major, Unknown):
        return 18
    return 0 if major < 6 else 4 if major < 7 else 6 if major < 8 else 12 if major < _HOPPER else 18


def _states_by_field(nvml: Any, handle: Any) -> tuple[bool, ...]:
    """The states as NCCL asks for them since Hopper, all in one call; empty from drivers that do not know the field."""
    try:
        values = nvml.nvmlDeviceGetFieldValues(handle, [(_FIELD_LINK_STATE, link) for link in range(_MOST_LINKS)])
    except nvml.NVMLError:
        return ()
    return tuple(bool(value.value.uiVal) for value in values if value.nvmlReturn == 0)


def _ends(nvml: Any, handle: Any, links: Sequence[int]) -> dict[str, int]:
    if not links:
        return {}
    # Either all links of a GPU lead to switches or none does.
    if nvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, links[0]) == _DEVICE_SWITCH:
        return {SWITCH: len(links)}
    found: dict[str, int] = {}
    for link in links:
        end = pci_address(nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link))
        found[end] = found.get(end, 0) + 1
    return found


def pci_address(info: Any) -> str:
    """The PCI address of an ``nvmlPciInfo_t``, as NVML writes it: ``00000000:3B:00.0``."""
    address = info.busId
    return address.decode("ascii", "replace") if isinstance(address, bytes) else str(address)


def bonded_links(first: Links | Unknown, second: Links | Unknown, addresses: tuple[object, object]) -> int | Unknown:
    """How many NVLinks join two GPUs, directly or through switches."""
    for links in (first, second):
        if isinstance(links, Unknown):
            return links
        if isinstance(links.peers, Unknown):
            return links.peers
    assert isinstance(first, Links)
    assert isinstance(second, Links)
    counts = []
    for links, other in ((first, addresses[1]), (second, addresses[0])):
        assert not isinstance(links.peers, Unknown)
        counts.append(max(links.peers.get(SWITCH, 0), links.peers.get(str(other), 0)))
    return min(counts)


def path_name(links: int | Unknown, level: int | Unknown) -> str | Unknown:
    """The word of ``nvidia-smi topo -m`` for a pair: NVLink where there is any, otherwise the way over PCIe."""
    if isinstance(links, Unknown):
        return links
    if links:
        return f"NV{links}"
    if isinstance(level, Unknown):
        return level
    return _LEVELS.get(level, Unknown(f"NVML names a level that is not known here: {level}"))


def common_ancestor(nvml: Any, first: Any, second: Any) -> int:
    """The ``nvmlGpuTopologyLevel_t`` of two GPUs."""
    return int(nvml.nvmlDeviceGetTopologyCommonAncestor(first, second))


def peer_state(nvml: Any, first: Any, second: Any) -> str:
    """Whether the first GPU can read the second one's memory, in the words of ``nvidia-smi topo -p2p r``."""
    return _PEER_STATES.get(nvml.nvmlDeviceGetP2PStatus(first, second, _CAPABILITY_READ), "unknown")
