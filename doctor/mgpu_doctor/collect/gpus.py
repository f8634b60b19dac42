"""GPUs, their driver and the processes on them, as NVML tells: without CUDA contexts, within a deadline.

NVML cannot be interrupted, so it is asked in threads that die with the program, one for each GPU: a card that does not
answer does not hide the others. What has been told when time is up is kept; the rest is Unknown, with the reason.
Each question stands alone: one that fails leaves its own field Unknown. No function that is younger than the driver,
or unknown to the installed nvidia-ml-py (11.525 to 13.615), spoils more than its field.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from mgpu_doctor.collect import driver
from mgpu_doctor.collect.topology import (
    SWITCH,
    Links,
    bonded_links,
    common_ancestor,
    links_of,
    path_name,
    pci_address,
    peer_state,
)
from mgpu_doctor.model.facts import Gpu, GpuProcess
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.record import dataclass, replace

T = TypeVar("T")

DEADLINE_S = 5.0
"""Seconds after which NVML is given up: a broken driver can keep it waiting for ever."""

GIB = 2**30

# nvml.h
_NO_PERMISSION = 4
_NO_DRIVER = frozenset({9, 12})
"""NVML_ERROR_DRIVER_NOT_LOADED, NVML_ERROR_LIBRARY_NOT_FOUND."""
_IS_LOST = 15
_VERSION_MISMATCH = 18
_NEEDS_A_DRIVER = frozenset({11, 15, 16, 18})
"""Errors that only a loaded driver gives: IRQ_ISSUE, GPU_IS_LOST, RESET_REQUIRED, LIB_RM_VERSION_MISMATCH."""
_TEMPERATURE_GPU = 0
_UNCORRECTED = 1
_VOLATILE = 0
_MOST_MIG = 16

_COMPUTE_MODES = ("Default", "Exclusive_Thread", "Prohibited", "Exclusive_Process")
_FABRIC_STATES = ("not supported", "not started", "in progress", "completed")

_CLOCK_EVENTS = (
    (0x001, "gpu_idle"),
    (0x002, "applications_clocks_setting"),
    (0x004, "sw_power_cap"),
    (0x008, "hw_slowdown"),
    (0x010, "sync_boost"),
    (0x020, "sw_thermal_slowdown"),
    (0x040, "hw_thermal_slowdown"),
    (0x080, "hw_power_brake_slowdown"),
    (0x100, "display_clock_setting"),
)
"""NVML's nvmlClocksEventReasons (R590), named as ``nvidia-smi --query-gpu=clocks_event_reasons.…`` does."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What NVML says, by the names of :class:`Facts`. ``gpus`` is empty only when a working driver lists none."""

    gpus: tuple[Gpu, ...] | Unknown
    driver: str | Unknown
    processes: tuple[GpuProcess, ...] | Unknown
    nvml_error: str | Unknown | None
    driver_cuda: str | Unknown
    topology: Mapping[str, str] | Unknown
    peer_access: Mapping[str, str] | Unknown
    nvswitch: bool | Unknown
    driver_module: str | Unknown | None
    device_nodes: tuple[str, ...] | Unknown


UNASKED_PAIRS = Unknown("pairs of GPUs were not asked for")


def inventory(
    deadline_s: float = DEADLINE_S, *, pairs: bool = True, variables: Mapping[str, str] = os.environ, root: str = "/"
) -> Inventory:
    """The GPUs of this machine; every part Unknown, with the reason, when NVML does not answer.

    ``pairs`` asks for each pair of GPUs how it is linked, which takes two calls a pair. ``variables`` tell where the
    dynamic loader looks; ``root`` is the directory below which the signs of a driver are looked for.
    """
    if not driver.nvidia_seen(variables, root):
        # Where nothing is NVIDIA's, no device file is missing.
        return _nothing(driver.NOTHING_SEEN, driver.NOTHING_SEEN, None, driver.NOTHING_SEEN)
    said = _Said(pairs)
    thread = threading.Thread(target=_look, args=(said,), name="nvml", daemon=True)
    thread.start()
    thread.join(deadline_s)
    return _sum_up(said, Unknown(f"NVML did not answer within {deadline_s:g} s"), root)


class _Said:
    """What NVML has said so far: written by the threads, read when they are done or time is up."""

    def __init__(self, pairs: bool) -> None:
        self.pairs_wanted = pairs
        self.started = False
        self.failure: Exception | str | None = None
        self.failure_words = ""
        self.library: str | None = None
        self.driver: str | Unknown | None = None
        self.driver_cuda: str | Unknown | None = None
        self.cards: list[_Card] | None = None
        self.topology: dict[str, str] | Unknown | None = None
        self.peer_access: dict[str, str] | Unknown | None = None
        self.complete = False


class _Card:
    """One GPU's answers so far."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.handle: Any = None
        self.values: dict[str, Any] = {}
        self.links: Links | Unknown | None = None
        self.processes: list[GpuProcess] | Unknown | None = None
        self.failure: Exception | None = None
        self.done = False

    @property
    def denied(self) -> bool:
        """Whether this process may not use it."""
        return getattr(self.failure, "value", None) == _NO_PERMISSION


def _nothing(
    unknown: Unknown, nvml_error: str | Unknown, module: str | Unknown | None, nodes: tuple[str, ...] | Unknown
) -> Inventory:
    return Inventory(unknown, unknown, unknown, nvml_error, unknown, unknown, unknown, unknown, module, nodes)


def _look(said: _Said) -> None:
    try:
        import pynvml as nvml
    except Exception:  # noqa: BLE001 - a broken copy raises anything
        said.failure = "the Python package nvidia-ml-py is not installed"
        return
    said.started = True
    try:
        nvml.nvmlInit()
    except Exception as error:  # noqa: BLE001 - a broken driver raises more than NVMLError
        _note_failure(nvml, said, error)
        return
    try:
        _read(nvml, said)
        said.complete = True
    except Exception as error:  # noqa: BLE001 - the same
        _note_failure(nvml, said, error)
    finally:
        _ask(nvml.nvmlShutdown)


def _note_failure(nvml: Any, said: _Said, error: Exception) -> None:
    words = _say(error)
    if getattr(error, "value", None) == _VERSION_MISMATCH:
        # nvidia-ml-py has words of its own for this one; nvidia-smi says what the library says.
        own = _ask(lambda: _decoded(nvml.nvmlErrorString(_VERSION_MISMATCH)))
        words = words if isinstance(own, Unknown) else own
        version = _ask(lambda: _decoded(nvml.nvmlSystemGetNVMLVersion()))
        said.library = driver.loaded_library_version() or (version if isinstance(version, str) else None)
    said.failure_words = words
    said.failure = error


def _read(nvml: Any, said: _Said) -> None:
    said.driver = _ask(lambda: _decoded(nvml.nvmlSystemGetDriverVersion()))
    said.driver_cuda = _ask(lambda: _cuda_version(nvml))
    cards = [_Card(index) for index in range(nvml.nvmlDeviceGetCount())]
    said.cards = cards
    if len(cards) == 1:
        _fill(nvml, cards[0])
    else:
        threads = [
            threading.Thread(target=_fill, args=(nvml, card), name=f"nvml-{card.index}", daemon=True) for card in cards
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    said.cards = cards = _renumbered(cards)
    if said.pairs_wanted:
        _read_pairs(nvml, said, cards)


def _renumbered(cards: Sequence[_Card]) -> list[_Card]:
    """The cards that this process may use, numbered as nvidia-smi does.

    NVML counts those too whose device files are denied, by a job's control group for instance (nvml.h:
    nvmlDeviceGetCount_v2); nvidia-smi and CUDA number the rest from 0 (NVIDIA/deepops issue 1102).
    """
    allowed = [card for card in cards if not card.denied]
    for index, card in enumerate(allowed):
        card.index = index
        if isinstance(card.processes, list):
            card.processes = [replace(process, gpu=index) for process in card.processes]
    return allowed


def _cuda_version(nvml: Any) -> str:
    number = nvml.nvmlSystemGetCudaDriverVersion()
    return f"{number // 1000}.{number % 1000 // 10}"


def _fill(nvml: Any, card: _Card) -> None:
    try:
        card.handle = nvml.nvmlDeviceGetHandleByIndex(card.index)
    except Exception as error:  # noqa: BLE001 - the same
        lost = Unknown(f"NVML cannot reach it: {_say(error)}")
        card.values.update(dict.fromkeys(_FIELDS, lost))
        card.links = lost
        card.processes = []
        card.failure = error
        card.done = True
        return
    for fields, question in _QUESTIONS:
        answer = _ask(partial(_asked, question, nvml, card))
        if isinstance(answer, Unknown):
            answer = (answer,) * len(fields)
        elif len(fields) == 1:
            answer = (answer,)
        card.values.update(zip(fields, answer, strict=True))
    card.processes = _ask(lambda: _processes(nvml, card))
    card.done = True


def _asked(question: Callable[[Any, _Card], Any], nvml: Any, card: _Card) -> Any:
    try:
        return question(nvml, card)
    except nvml.NVMLError as error:
        if error.value == _IS_LOST:
            card.failure = error
        raise


def _memory(nvml: Any, card: _Card) -> tuple[float, float | Unknown]:
    try:
        found = nvml.nvmlDeviceGetMemoryInfo(card.handle, nvml.nvmlMemory_v2)
        used: float | Unknown = round(found.used / GIB, 2)
    except (nvml.NVMLError_FunctionNotFound, AttributeError, TypeError) as error:
        found = nvml.nvmlDeviceGetMemoryInfo(card.handle)
        # A driver without the second version does not count its reserve as used; a newer one does.
        old_driver = isinstance(error, nvml.NVMLError)
        used = round(found.used / GIB, 2) if old_driver else Unknown("the installed nvidia-ml-py is too old to tell")
    return round(found.total / GIB, 2), used


def _mig(nvml: Any, card: _Card) -> tuple[bool, tuple[str, ...] | Unknown, tuple[str, ...] | Unknown]:
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(card.handle)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return False, (), ()
    if not current:
        return False, (), ()
    instances = _ask(partial(_mig_instances, nvml, card))
    if isinstance(instances, Unknown):
        return True, instances, instances
    return True, tuple(uuid for uuid, _ in instances), tuple(profile for _, profile in instances)


def _mig_instances(nvml: Any, card: _Card) -> list[tuple[str, str]]:
    """UUID and profile of each."""
    found = []
    for index in range(min(nvml.nvmlDeviceGetMaxMigDeviceCount(card.handle), _MOST_MIG)):
        try:
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(card.handle, index)
        except nvml.NVMLError_NotFound:
            continue
        found.append((_decoded(nvml.nvmlDeviceGetUUID(instance)), _profile(nvml, card, instance)))
    return found


def _profile(nvml: Any, card: _Card, instance: Any) -> str:
    """``1g.10gb`` out of the name that ends in "MIG 1g.10gb", otherwise computed as NVIDIA's go-nvlib does."""
    name = _ask(lambda: _decoded(nvml.nvmlDeviceGetName(instance)))
    if isinstance(name, str) and "MIG " in name:
        return name.rpartition("MIG ")[2]
    shape = nvml.nvmlDeviceGetAttributes(instance)
    total = card.values["memory_gib"]
    if isinstance(total, Unknown):
        return f"{shape.gpuInstanceSliceCount}g"
    eighths = -(-shape.memorySizeMB * 8 // int(total * 1024))
    return f"{shape.gpuInstanceSliceCount}g.{round(eighths / 8 * -(-total // 1))}gb"


def _word(words: Sequence[str], number: int) -> str:
    return words[number] if 0 <= number < len(words) else f"unknown ({number})"


def _temperature(nvml: Any, card: _Card) -> int:
    try:
        return int(nvml.nvmlDeviceGetTemperature(card.handle, _TEMPERATURE_GPU))
    except (nvml.NVMLError_FunctionNotFound, AttributeError):
        return int(nvml.nvmlDeviceGetTemperatureV(card.handle, _TEMPERATURE_GPU))


def _pages(nvml: Any, card: _Card) -> tuple[bool, bool | Unknown]:
    """Rows since Ampere, pages before: no card has both."""
    try:
        _, _, pending, failed = nvml.nvmlDeviceGetRemappedRows(card.handle)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, AttributeError):
        waiting = nvml.nvmlDeviceGetRetiredPagesPendingStatus(card.handle)
        return bool(waiting), Unknown("this card retires pages and remaps no rows")
    return bool(pending), bool(failed)


def _clock_events(nvml: Any, card: _Card) -> tuple[str, ...]:
    try:
        mask = nvml.nvmlDeviceGetCurrentClocksEventReasons(card.handle)
    except (nvml.NVMLError_FunctionNotFound, AttributeError):
        # The same under its older name.
        mask = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(card.handle)
    return tuple(name for bit, name in _CLOCK_EVENTS if mask & bit)


def _nvlinks(nvml: Any, card: _Card) -> tuple[bool, ...]:
    capability = card.values["compute_capability"]
    try:
        card.links = links_of(nvml, card.handle, capability if isinstance(capability, Unknown) else capability[0])
    except Exception as error:
        card.links = Unknown(f"NVML does not tell: {_say(error)}")
        raise
    return card.links.up


def _fabric(nvml: Any, card: _Card) -> str:
    """The structures of nvml.h are written out: those of nvidia-ml-py before 13 are longer than the driver's."""
    from ctypes import byref, c_uint, sizeof

    # Version and size of the structure, the cluster (16 bytes), status, clique, state, health.
    info = (c_uint * 9)()
    at = 5
    try:
        info[0] = 2 << 24 | sizeof(info)
        nvml.nvmlDeviceGetGpuFabricInfoV(card.handle, byref(info))
    except (nvml.NVMLError_FunctionNotFound, AttributeError):
        # The same in its first version, which begins with the cluster.
        at = 4
        nvml.nvmlDeviceGetGpuFabricInfo(card.handle, byref(info))
    status, _, number = info[at : at + 3]
    state = _word(_FABRIC_STATES, number)
    if state == _FABRIC_STATES[-1] and status:
        return f"{state}: {_say(nvml.NVMLError(status))}"
    return state


_QUESTIONS: tuple[tuple[tuple[str, ...], Callable[[Any, _Card], Any]], ...] = (
    (("name",), lambda nvml, card: _decoded(nvml.nvmlDeviceGetName(card.handle))),
    (("uuid",), lambda nvml, card: _decoded(nvml.nvmlDeviceGetUUID(card.handle))),
    (("memory_gib", "memory_used_gib"), _memory),
    (("compute_capability",), lambda nvml, card: tuple(nvml.nvmlDeviceGetCudaComputeCapability(card.handle))),
    (("pci_bus_id",), lambda nvml, card: pci_address(nvml.nvmlDeviceGetPciInfo(card.handle))),
    (("mig_mode", "mig", "mig_profiles"), _mig),
    (("compute_mode",), lambda nvml, card: _word(_COMPUTE_MODES, nvml.nvmlDeviceGetComputeMode(card.handle))),
    (("utilization_percent",), lambda nvml, card: int(nvml.nvmlDeviceGetUtilizationRates(card.handle).gpu)),
    (("temperature_c",), _temperature),
    (
        ("ecc_uncorrected",),
        lambda nvml, card: int(nvml.nvmlDeviceGetTotalEccErrors(card.handle, _UNCORRECTED, _VOLATILE)),
    ),
    (("pages_pending", "remap_failed"), _pages),
    (("clock_events",), _clock_events),
    (("pcie_generation",), lambda nvml, card: int(nvml.nvmlDeviceGetCurrPcieLinkGeneration(card.handle))),
    (("pcie_generation_max",), lambda nvml, card: int(nvml.nvmlDeviceGetMaxPcieLinkGeneration(card.handle))),
    (("pcie_width",), lambda nvml, card: int(nvml.nvmlDeviceGetCurrPcieLinkWidth(card.handle))),
    (("pcie_width_max",), lambda nvml, card: int(nvml.nvmlDeviceGetMaxPcieLinkWidth(card.handle))),
    (("nvlinks",), _nvlinks),
    (("fabric_state",), _fabric),
)
"""What each GPU is asked, in this order: what a launch depends on comes first. Later answers may need earlier ones."""

_FIELDS = tuple(field for fields, _ in _QUESTIONS for field in fields)


def _processes(nvml: Any, card: _Card) -> list[GpuProcess]:
    from mgpu_doctor.collect.gpu_processes import describe, sees_all_processes

    all_seen = sees_all_processes()
    found = [describe(card.index, pid, used, all_seen) for pid, used in _running(nvml, card.handle).items()]
    if any(process.alive is False for process in found):
        # It may have ended since it was listed: only what NVML still lists has died without its memory.
        listed = _running(nvml, card.handle)
        found = [process for process in found if process.alive is not False or process.pid in listed]
    return found


def _running(nvml: Any, handle: Any) -> dict[int, int | None]:
    """Memory in bytes by process, None where NVML does not tell; compute and graphics, each process once."""
    found: dict[int, int | None] = {}
    for kind in ("Compute", "Graphics"):
        try:
            listed = _listed(nvml, handle, kind)
        except nvml.NVMLError_NotSupported:
            # Cards without graphics, and MIG.
            if kind == "Compute":
                raise
            continue
        for process in listed:
            known = found.get(process.pid)
            used = process.usedGpuMemory
            found[process.pid] = known if used is None else max(used, known or 0)
    return found


def _listed(nvml: Any, handle: Any, kind: str) -> Sequence[Any]:
    """The running processes, asked with the newest function that both nvidia-ml-py and the driver have."""
    failure: Exception | None = None
    for version in ("_v3", "_v2", ""):
        question = getattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses{version}", None)
        if question is None:
            continue
        try:
            found: Sequence[Any] = question(handle)
        except nvml.NVMLError_FunctionNotFound as error:
            failure = error
            continue
        return found
    raise failure or nvml.NVMLError(13)


def _read_pairs(nvml: Any, said: _Said, cards: Sequence[_Card]) -> None:
    paths: dict[str, str] = {}
    access: dict[str, str] = {}
    unknown: list[tuple[str, Unknown]] = []
    for at, first in enumerate(cards):
        for second in cards[at + 1 :]:
            if first.handle is None or second.handle is None:
                continue
            pair = f"{first.index}-{second.index}"
            state = _ask(partial(peer_state, nvml, first.handle, second.handle))
            for into, answer in ((paths, _path(nvml, first, second)), (access, state)):
                if isinstance(answer, Unknown):
                    unknown.append(("paths" if into is paths else "access", answer))
                else:
                    into[pair] = answer
    said.topology = _all_or_reason(paths, [reason for name, reason in unknown if name == "paths"])
    said.peer_access = _all_or_reason(access, [reason for name, reason in unknown if name == "access"])


def _all_or_reason(found: dict[str, str], reasons: Sequence[Unknown]) -> dict[str, str] | Unknown:
    """The pairs that are known; when there were pairs and none is, why."""
    return reasons[0] if reasons and not found else found


def _path(nvml: Any, first: _Card, second: _Card) -> str | Unknown:
    unknown = Unknown("its NVLinks are not known")
    addresses = (first.values.get("pci_bus_id"), second.values.get("pci_bus_id"))
    links = bonded_links(first.links or unknown, second.links or unknown, addresses)
    if isinstance(links, Unknown) or links:
        return path_name(links, unknown)
    return path_name(links, _ask(lambda: common_ancestor(nvml, first.handle, second.handle)))


def _sum_up(said: _Said, late: Unknown, root: str) -> Inventory:
    """What is known now; ``late`` stands for what has not been said yet."""
    if said.failure is not None:
        return _failed(said, root)
    pairs_late = late if said.pairs_wanted else UNASKED_PAIRS
    cards = said.cards
    if cards is not None and any(card.denied for card in cards):
        # Until all have answered, their numbers are not known.
        cards = None
    return Inventory(
        gpus=late if cards is None else tuple(_gpu(card, late) for card in cards),
        driver=late if said.driver is None else said.driver,
        processes=late if cards is None else _all_processes(cards, late),
        nvml_error=_error(said, late),
        driver_cuda=late if said.driver_cuda is None else said.driver_cuda,
        topology=pairs_late if said.topology is None else said.topology,
        peer_access=pairs_late if said.peer_access is None else said.peer_access,
        nvswitch=late if cards is None else _nvswitch(cards, late, root),
        driver_module=_visible(driver.module_version(root)) if cards else driver.module_version(root),
        device_nodes=_visible(driver.device_nodes(root)) if cards else driver.device_nodes(root),
    )


def _visible(sign: T) -> T | Unknown:
    """A trace of a driver that answers; where there is none, a sandbox hides it."""
    return sign or Unknown("the driver answers, but this cannot be seen from here")


def _error(said: _Said, late: Unknown) -> str | Unknown | None:
    """What is wrong though NVML has started: nothing, single GPUs, or it does not come back."""
    if not said.started:
        return late
    cards = said.cards or []
    if not said.complete:
        return late.reason + _numbers([card for card in cards if not card.done])
    broken = [card for card in cards if card.failure is not None]
    if not broken:
        return None
    assert broken[0].failure is not None
    return _say(broken[0].failure) + _numbers(broken)


def _numbers(cards: Sequence[_Card]) -> str:
    return f" ({', '.join(f'GPU {card.index}' for card in cards)})" if cards else ""


def _failed(said: _Said, root: str) -> Inventory:
    """NVML cannot be used: is that a fault of the machine, or is there nothing that it could list?"""
    words = said.failure_words
    module, nodes = driver.module_version(root), driver.device_nodes(root)
    if isinstance(said.failure, str):
        unknown = Unknown(said.failure)
        return _nothing(unknown, unknown, module, nodes)
    code = getattr(said.failure, "value", None)
    cards = driver.hardware(root)
    if code in _NEEDS_A_DRIVER:
        module, nodes = _visible(module), _visible(nodes)
    elif not (driver.driver_present(root) or cards):
        unknown = Unknown(f"{driver.NOTHING_SEEN.reason} (NVML says: {words})")
        return _nothing(unknown, unknown, module, unknown)
    if code == _VERSION_MISMATCH:
        versions = [f"kernel module {module}"] if isinstance(module, str) else []
        versions += [f"library {said.library}"] if said.library else []
        words += f" ({', '.join(versions)})" if versions else ""
    elif code in _NO_DRIVER and cards and not driver.driver_present(root):
        words += f" ({len(cards)} NVIDIA GPU{'s' if len(cards) > 1 else ''} on the PCI bus: {', '.join(cards[:4])}"
        words += ", …)" if len(cards) > 4 else ")"
    return _nothing(Unknown(f"NVML cannot start: {words}"), words, module, nodes)


def _gpu(card: _Card, late: Unknown) -> Gpu:
    return Gpu(index=card.index, **{**dict.fromkeys(_FIELDS, late), **card.values.copy()})


def _all_processes(cards: Sequence[_Card], late: Unknown) -> tuple[GpuProcess, ...] | Unknown:
    """The processes of all GPUs; Unknown as soon as one that can be reached does not tell: none is not the same."""
    found: list[GpuProcess] = []
    for card in cards:
        told = card.processes
        if told is None:
            return late
        if isinstance(told, Unknown):
            return told
        found.extend(told)
    return tuple(found)


def _nvswitch(cards: Sequence[_Card], late: Unknown, root: str) -> bool | Unknown:
    """Whether GPUs are linked through NVSwitch chips: a link that leads to one, or the chips' driver, is the proof."""
    links = [card.links for card in cards]
    ends = [one.peers for one in links if isinstance(one, Links)]
    if driver.nvswitch_seen(root) or any(SWITCH in peers for peers in ends if not isinstance(peers, Unknown)):
        return True
    for card, link in zip(cards, links, strict=True):
        if link is None:
            return late
        reason = link if isinstance(link, Unknown) else link.peers
        if isinstance(reason, Unknown):
            return reason
        # Links that are down do not tell where they lead.
        assert isinstance(link, Links)
        if link.up and not all(link.up) and card.values.get("fabric_state") != _FABRIC_STATES[0]:
            return Unknown(f"GPU {card.index} has NVLinks that are down")
    return False


def _ask(question: Callable[[], Any]) -> Any:
    """The answer, or why there is none: one query that fails does not spoil the others."""
    try:
        return question()
    except Exception as error:  # noqa: BLE001 - a missing symbol raises other than NVMLError
        return Unknown(f"NVML does not tell: {_say(error)}")


def _decoded(text: str | bytes) -> str:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else text


def _say(error: Exception) -> str:
    return str(error) or type(error).__name__
