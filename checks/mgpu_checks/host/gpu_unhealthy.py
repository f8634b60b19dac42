"""A GPU that reports a fault of its own: memory errors, Xid faults, a brake on its clocks, links that are down."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.host import concerned_gpus, gpu_count
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Gpu,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    XidError,
    dataclass,
    report,
)

_H100 = {"name": "NVIDIA H100 80GB HBM3", "memory_gib": 80, "compute_capability": "9.0"}


def _one(**values: object) -> dict[str, object]:
    return {"gpus": [{**_H100, "index": 0, "pci_bus_id": "00000000:3B:00.0", **values}]}


def _xid(code: int, text: str = "") -> dict[str, object]:
    return {**_one(), "xid_errors": [{"pci_bus_id": "0000:3b:00", "code": code, "text": text}]}


_FULL = {"pcie_width": 16, "pcie_width_max": 16, "utilization_percent": 0}

RULE = Rule(
    code="MGD705",
    slug="gpu-unhealthy",
    title="A GPU is not well",
    severity=Severity.WARNING,
    summary="A GPU reports memory errors, an Xid fault, a hardware brake on its clocks, or links that are down.",
    why=(
        "One sick GPU stops or slows the whole job: all ranks wait for it. Uncorrectable memory errors end the process "
        "that meets them, and the page or row is taken out of use at the next reset only. The driver writes faults to "
        "the kernel log as Xid numbers: some are the program's own (13, 31, 43, 45), others ask for a reset or for a "
        "new card. A hardware slowdown at least halves the clocks."
    ),
    bad=(
        Example("a row that cannot be remapped", facts=_one(remap_failed=True)),
        Example("uncorrectable errors", facts=_one(ecc_uncorrected=3, pages_pending=True)),
        Example("a reset is due", facts=_one(pages_pending=True)),
        Example("too hot", facts=_one(clock_events=["hw_slowdown", "hw_thermal_slowdown"], temperature_c=93)),
        Example("a power brake", "python train.py", facts=_one(clock_events=["hw_power_brake_slowdown"])),
        Example("fallen off the bus", facts=_xid(79, "GPU has fallen off the bus.")),
        Example("a double-bit error", facts=_xid(48, "DBE (double bit error) occurred")),
        Example(
            "a node that must be booted",
            facts=_xid(154, "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)"),
        ),
        Example(
            "one card with fewer lanes than its equals",
            facts={
                "gpus": [{**_H100, **_FULL, "index": n, "pcie_width": 4 if n == 3 else 16} for n in range(4)],
            },
        ),
        Example("one lane at work", facts=_one(pcie_width=1, pcie_width_max=16, utilization_percent=88)),
        Example(
            "a link that is down",
            facts={
                "gpus": [{**_H100, "index": n, "nvlinks": [True] * 17 + [n == 0]} for n in (0, 1)],
                "nvswitch": True,
            },
        ),
        Example("a card that NVML lost", facts={**_one(), "nvml_error": "GPU is lost"}),
    ),
    good=(
        Example("healthy", facts=_one(ecc_uncorrected=0, remap_failed=False, pages_pending=False, clock_events=[])),
        Example("idle", facts=_one(clock_events=["gpu_idle"], pcie_generation=1, pcie_generation_max=5)),
        Example("at its power limit", facts=_one(clock_events=["sw_power_cap", "applications_clocks_setting"])),
        Example("a moment of slowdown", facts=_one(clock_events=["hw_slowdown"])),
        Example("lanes that are asleep", facts=_one(pcie_width=4, pcie_width_max=16, utilization_percent=0)),
        Example(
            "two slots that share their lanes", facts=_one(pcie_width=8, pcie_width_max=16, utilization_percent=90)
        ),
        Example("a program's own fault", facts=_xid(31, "MMU Fault")),
        Example("a process that ended", facts=_xid(45, "Preemptive Channel Removal")),
        Example("a row that was remapped", facts=_xid(63, "Row Remapper: New row marked for remapping")),
        Example(
            "reset since",
            facts={
                **_one(),
                "xid_errors": [
                    {"pci_bus_id": "0000:3b:00", "code": 95, "text": "Uncontained ECC error"},
                    {
                        "pci_bus_id": "0000:3b:00",
                        "code": 154,
                        "text": "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)",
                    },
                ],
            },
        ),
        Example("links of a single card", facts={**_one(nvlinks=[False] * 18), "nvswitch": True}),
        Example("a bridge on some links only", facts={**_one(nvlinks=[True, True, False]), "nvswitch": False}),
        Example(
            "another GPU than the chosen one",
            "CUDA_VISIBLE_DEVICES=1 python train.py",
            facts={"gpus": [{**_H100, "index": 0, "remap_failed": True}, {**_H100, "index": 1}]},
        ),
        Example("a machine of which no more is known"),
    ),
    sources=(
        Reference(
            "NVIDIA Xid catalog (docs.nvidia.com/deploy/xid-errors, with driver R575)",
            "for each code what to do at once: IGNORE, RESTART_APP, RESET_GPU, RESTART_BM (boot), CHECK_MECHANICALS",
        ),
        Reference(
            "NVML 12.570, nvmlClocksEventReasons",
            "hardware slowdown reduces the core clocks by a factor of 2 or more: temperature, or the power brake; "
            "HwSlowdown alone may also be reported during a change of clocks",
        ),
        Reference(
            "NVML 12.570, nvmlDeviceGetRemappedRows",
            "a reset is needed to remap a pending row; the failure flag stays set",
        ),
        Reference(
            "NVIDIA GPU memory error management, R570", "row-remapping failure is a reason for replacement (RMA)"
        ),
        Reference("driver 550, nvidia-smi --help-query-gpu", "link width: may be reduced when the GPU is not in use"),
    ),
    fix="reset the GPU, boot the machine or have the card replaced, as the fault asks for; meanwhile leave it out",
    signatures=(
        Signature(
            r"NVRM: Xid \(PCI:[0-9a-fA-F:.]+\): (?:46|48|54|62|64|74|79|95|109|110|119|120|136|140|143|158|171|172)\b",
            "NVIDIA driver R535 to R575, the kernel log",
            "NVRM: Xid (PCI:0000:c6:00): 79, pid=1101234, name=nvc:[driver], GPU has fallen off the bus.",
        ),
        Signature(
            r"CUDA error: uncorrectable (?:NVLink|ECC) error (?:was )?(?:encountered|detected)",
            "CUDA 12.8, cudaErrorECCUncorrectable (214) and cudaErrorNvlinkUncorrectable (220)",
            "RuntimeError: CUDA error: uncorrectable ECC error encountered",
        ),
        Signature(
            r"Unable to determine the device handle for (?:GPU|gpu) ?\S*:? ?\S*:? ?(?:GPU is lost|Unknown "
            r"Error|Not Found)|GPU is lost\. +Reboot",
            "nvidia-smi 440 and later, a GPU that no longer answers (public reports)",
            "Unable to determine the device handle for GPU 0000:41:00.0: GPU is lost.  Reboot the system to "
            "recover this GPU",
        ),
    ),
)

RESET = "RESET_GPU"
BOOT = "RESTART_BM"
MECHANICS = "CHECK_MECHANICALS"


XIDS = {
    46: (RESET, "the GPU stopped processing"),
    48: (RESET, "an uncorrectable (double-bit) memory error"),
    54: (MECHANICS, "its auxiliary power cable is not connected"),
    62: (RESET, "its internal controller halted"),
    64: (RESET, "a memory row or page could not be taken out of use"),
    74: (RESET, "an NVLink error"),
    79: (BOOT, "it has fallen off the bus"),
    95: (RESET, "an uncontained memory error"),
    109: (RESET, "a context switch that timed out"),
    110: (RESET, "a security fault of the hardware"),
    119: (RESET, "its system processor (GSP) does not answer"),
    120: (RESET, "an error of its system processor (GSP)"),
    136: (RESET, "NVLink training failed"),
    140: (RESET, "an unrecovered memory error"),
    143: (RESET, "it could not be initialised"),
    158: (RESET, "a fatal timeout"),
    171: (RESET, "an uncorrectable DRAM error"),
    172: (RESET, "an uncorrectable SRAM error"),
}
"""Xid codes that are the GPU's fault and not the program's: what NVIDIA's catalog says to do at once, and the cause.

48 and 74 name a workflow there, whose text asks for a reset; 171 and 172 are details of 48.
"""

RECOVERY = 154
"""The driver's own summary of what is to be done; ``None`` closes what came before it."""

BRAKES = {
    "hw_thermal_slowdown": "it is too hot",
    "hw_power_brake_slowdown": "the power supply asks for it",
}
NARROW = 4
_LANES = "nvidia-smi --query-gpu=index,pcie.link.width.current,pcie.link.width.max --format=csv"


@dataclass(frozen=True, slots=True)
class _Fault:
    """What is wrong with one GPU, how bad it is, and what to do."""

    text: str
    severity: Severity
    fix: Fix
    evidence: tuple[str, ...] = ()


def find(case: Case) -> Iterator[Finding]:
    """One finding for each GPU and kind of fault."""
    error = case.facts.nvml_error
    if isinstance(error, str) and re.search(r"GPU is lost|fallen off the bus", error, re.IGNORECASE):
        yield report(
            RULE,
            f"NVML says: {error}. A GPU no longer answers on the PCIe bus; no CUDA program starts reliably.",
            subject="GPU",
            severity=Severity.ERROR,
            fix=_fix(BOOT, None),
        )
    if isinstance(case.facts.gpus, Unknown) and not isinstance(case.facts.xid_errors, Unknown):
        yield from _lost(case)
        return
    gpus = concerned_gpus(case)
    everybody = () if isinstance(case.facts.gpus, Unknown) else case.facts.gpus
    for gpu in gpus:
        faults = (_memory(gpu), _clocks(gpu), _lanes(gpu, everybody), _links(case, gpu), _logged(case, gpu))
        for fault in faults:
            if fault is not None:
                yield _finding(gpu, fault)
    if not case.launches:
        yield from _lost(case)


def _finding(gpu: Gpu, fault: _Fault) -> Finding:
    name = f" ({gpu.name})" if isinstance(gpu.name, str) else ""
    return report(
        RULE,
        f"GPU {gpu.index}{name}: {fault.text}",
        subject=f"GPU {gpu.index}",
        severity=fault.severity,
        evidence=fault.evidence,
        fix=fault.fix,
    )


def _memory(gpu: Gpu) -> _Fault | None:
    if gpu.remap_failed is True:
        return _Fault(
            "a memory row could not be remapped; the spare rows are used up or broken, and the card is to be replaced.",
            Severity.ERROR,
            Fix("leave it out and have it replaced", commands=(f"nvidia-smi -q -d ROW_REMAPPER -i {gpu.index}",)),
        )
    errors = gpu.ecc_uncorrected if isinstance(gpu.ecc_uncorrected, int) else 0
    if errors < 1 and gpu.pages_pending is not True:
        return None
    what = f"{errors} uncorrectable memory error{'s' if errors != 1 else ''} since the driver was loaded"
    if gpu.pages_pending is True:
        waits = "memory waits for a reset to be taken out of use"
        what = f"{what}, and {waits}" if errors else waits
    return _Fault(
        f"{what}: a process that meets such memory ends with `uncorrectable ECC error encountered`.",
        Severity.WARNING,
        _fix(RESET, gpu.index),
        (f"uncorrectable errors: {errors}",),
    )


def _clocks(gpu: Gpu) -> _Fault | None:
    if isinstance(gpu.clock_events, Unknown):
        return None
    reasons = [(name, why) for name, why in BRAKES.items() if name in gpu.clock_events]
    if not reasons:
        return None
    heat = f" ({gpu.temperature_c} °C)" if isinstance(gpu.temperature_c, int) else ""
    return _Fault(
        f"the hardware slows its clocks to half or less now: {' and '.join(why for _, why in reasons)}{heat}. "
        "All ranks wait for the slowest.",
        Severity.WARNING,
        Fix("look after cooling and power", commands=(f"nvidia-smi -q -d PERFORMANCE,TEMPERATURE -i {gpu.index}",)),
        tuple(name for name, _ in reasons),
    )


def _lanes(gpu: Gpu, everybody: tuple[Gpu, ...]) -> _Fault | None:
    """Lanes that are missing: at work, or while equal cards, as idle, have them all."""
    width, most = gpu.pcie_width, gpu.pcie_width_max
    if isinstance(width, Unknown) or isinstance(most, Unknown) or width >= most or width < 1:
        return None
    equals = [other.pcie_width for other in everybody if other.name == gpu.name and other.index != gpu.index]
    known = [found for found in equals if isinstance(found, int)]
    behind = len(known) > 1 and len(known) == len(equals) and min(known) >= 4 * width
    busy = isinstance(gpu.utilization_percent, int) and gpu.utilization_percent > 0
    if not behind and not (busy and width <= NARROW and most >= 4 * width):
        return None
    than = f", its {len(known)} equals have {min(known)} or more" if behind else ""
    return _Fault(
        f"its PCIe link has {width} of {most} lanes{than}: loading and sending take {most / width:g} times as long.",
        Severity.WARNING,
        Fix("seat the card anew, try another slot or riser", commands=(_LANES,)),
        (f"lanes: {width} of {most}",),
    )


def _links(case: Case, gpu: Gpu) -> _Fault | None:
    links = gpu.nvlinks
    if case.facts.nvswitch is not True or gpu_count(case) < 2 or isinstance(links, Unknown) or all(links):
        return None
    down = [at for at, up in enumerate(links) if not up]
    return _Fault(
        f"{len(down)} of {len(links)} NVLinks are down on a machine with NVSwitches: NCCL runs slower or refuses.",
        Severity.WARNING,
        Fix("look at the links", commands=(f"nvidia-smi nvlink --status -i {gpu.index}",)),
        tuple(f"link {at}: down" for at in down),
    )


def _logged(case: Case, gpu: Gpu) -> _Fault | None:
    if isinstance(case.facts.xid_errors, Unknown) or isinstance(gpu.pci_bus_id, Unknown):
        return None
    wanted = _bus(gpu.pci_bus_id)
    return _judged([error for error in case.facts.xid_errors if _bus(error.pci_bus_id) == wanted], gpu.index)


def _lost(case: Case) -> Iterator[Finding]:
    """Faults of a card that is not in the inventory (any more)."""
    errors = case.facts.xid_errors
    if isinstance(errors, Unknown):
        return
    gpus = () if isinstance(case.facts.gpus, Unknown) else case.facts.gpus
    if any(isinstance(gpu.pci_bus_id, Unknown) for gpu in gpus):
        return
    there = {_bus(gpu.pci_bus_id) for gpu in gpus if isinstance(gpu.pci_bus_id, str)}
    for bus in dict.fromkeys(_bus(error.pci_bus_id) for error in errors):
        if bus in there:
            continue
        fault = _judged([error for error in errors if _bus(error.pci_bus_id) == bus], None)
        if fault is not None:
            yield report(
                RULE,
                f"The GPU at {bus}, which is not listed: {fault.text}",
                subject=f"GPU at {bus}",
                severity=fault.severity,
                evidence=fault.evidence,
                fix=fault.fix,
            )


def _judged(errors: list[XidError], index: int | None) -> _Fault | None:
    """The worst of a GPU's faults that no later recovery has closed."""
    left: list[XidError] = []
    action = ""
    for error in errors:
        if error.code != RECOVERY:
            left.append(error)
            continue
        changed = re.search(r"to 0x[0-9a-f]+ \(([^)]*)\)", error.text, re.IGNORECASE)
        action = changed.group(1) if changed else ""
        if action.lower() == "none":
            left, action = [], ""
    own = [error for error in left if error.code in XIDS]
    if not own and not re.search(r"reset|reboot", action, re.IGNORECASE):
        return None
    boot = any(XIDS[error.code][0] == BOOT for error in own) or "reboot" in action.lower()
    last = own[-1] if own else None
    what = f"Xid {last.code}, {XIDS[last.code][1]}" if last is not None else f"the driver asks for: {action}"
    then = "the machine has to be booted" if boot else "it needs a reset, unless that was done since"
    kind = BOOT if boot else RESET
    if last is not None and XIDS[last.code][0] == MECHANICS and not boot:
        then, kind = "see to its power cable", MECHANICS
    return _Fault(
        f"{what}, is in the kernel log since the start of the machine; {then}.",
        Severity.ERROR if boot else Severity.WARNING,
        _fix(kind, index),
        tuple(f"Xid {error.code}: {error.text or XIDS[error.code][1]}" for error in own[-3:]),
    )


def _bus(text: str) -> str:
    """A PCI address as domain, bus and device, whatever its width and function: ``0000:3b:00``."""
    match = re.search(r"(?:([0-9a-f]+):)?([0-9a-f]{2}):([0-9a-f]{2})", text.lower())
    if match is None:
        return text.lower()
    return f"{int(match.group(1) or '0', 16):04x}:{match.group(2)}:{match.group(3)}"


def _fix(kind: str, index: int | None) -> Fix:
    if kind == BOOT:
        return Fix(
            "boot the machine; if it comes back, have the card and its slot looked at", commands=("sudo reboot",)
        )
    if kind == MECHANICS:
        return Fix("power the machine off and plug the cable in")
    command = "sudo nvidia-smi --gpu-reset" + ("" if index is None else f" -i {index}")
    return Fix("end all processes on it and reset it; if it comes back, have it replaced", commands=(command,))
