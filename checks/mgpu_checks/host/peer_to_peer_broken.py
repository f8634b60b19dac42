"""GPUs that cannot, or may not reliably, reach each other's memory directly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mgpu_checks.host import (
    Job,
    gpu_count,
    in_container,
    jobs,
    numbers,
    through_torchrun,
    trains_with_library,
    variable,
)
from mgpu_checks.verdict import place_of, probed, subject_of
from mgpu_checks.verdict.cure import fix_by_cure
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Launch,
    Location,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    insert,
    observed,
    report,
)

_ADA = [
    {"index": index, "name": "NVIDIA RTX 5880 Ada Generation", "memory_gib": 48, "compute_capability": "8.9"}
    for index in range(2)
]
_4090 = [
    {"index": index, "name": "NVIDIA GeForce RTX 4090", "memory_gib": 24, "compute_capability": "8.9"}
    for index in range(2)
]
_3090 = [
    {"index": index, "name": "NVIDIA GeForce RTX 3090", "memory_gib": 24, "compute_capability": "8.6"}
    for index in range(4)
]
_ACS = {"gpus": _ADA, "topology": "PHB", "pci_acs": {"0000:00:01.1": "enabled"}, "iommu": "enabled"}
_OLD = {"gpus": _4090, "driver": "535.183.01"}
_TRAINER = {
    "t.py": "from transformers import HfArgumentParser, Trainer, TrainingArguments\n"
    "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\nTrainer(args=args).train()\n"
}
_BEFORE_2_23 = {"torch": "2.4.1+cu121", "vllm": "0.2.7"}

RULE = Rule(
    code="MGD704",
    slug="peer-to-peer-broken",
    title="Direct access between GPUs is broken or refused",
    severity=Severity.WARNING,
    summary="Peer-to-peer access between GPUs that a job needs is off, refused by accelerate, or unreliable here.",
    why=(
        "NCCL lets GPUs read each other's memory over NVLink or PCIe. An IOMMU that translates, or access control "
        "services (ACS) on PCI bridges, send that traffic through the processor: it becomes slow, or never arrives "
        "and the first collective hangs. accelerate refuses RTX 40 cards with drivers before 550.40.07 unless "
        "NCCL_P2P_DISABLE and NCCL_IB_DISABLE are set. `NCCL_P2P_DISABLE=1` makes NCCL go through host memory: slower, "
        "but it works."
    ),
    bad=(
        Example("ACS and IOMMU", "torchrun --nproc_per_node 2 train.py", facts=_ACS),
        Example("the machine alone", facts=_ACS),
        Example(
            "seen: a hang that is gone without peer-to-peer copies",
            "torchrun --nproc_per_node 2 train.py",
            observation=probed([0, 1], {"collective": "hung"}, state=["hung", "hung"], cured_by="NCCL_P2P_DISABLE=1"),
        ),
        Example(
            "an IOMMU that translates, and pairs that use PCIe",
            "torchrun --nproc_per_node 2 train.py",
            facts={"gpus": _ADA, "topology": "PHB", "iommu": "enabled", "peer_access": {"0-1": "ok"}},
        ),
        Example(
            "accelerate refuses RTX 40 with an old driver", "torchrun --nproc_per_node 2 t.py", _TRAINER, facts=_OLD
        ),
        Example(
            "also where LLaMA-Factory starts torchrun",
            "llamafactory-cli train sft.yaml",
            {"sft.yaml": "stage: sft\ndo_train: true\nmodel_name_or_path: m\n"},
            facts=_OLD,
        ),
        Example(
            "RTX 3090 with an old accelerate",
            "torchrun --nproc_per_node 2 t.py",
            _TRAINER,
            facts={"gpus": _3090, "packages": {"accelerate": "0.25.0", "torch": "2.1.2"}},
        ),
        Example(
            "NVLink without peer access",
            "torchrun --nproc_per_node 2 train.py",
            facts={"topology": {"0-1": "NV12"}, "peer_access": {"0-1": "GPU not supported"}},
        ),
        Example(
            "GeForce cards across sockets, with an NCCL that reaches across",
            "vllm serve acme/base-7b --tensor-parallel-size 4",
            facts={"gpus": _3090, "topology": "SYS", "packages": _BEFORE_2_23},
        ),
    ),
    good=(
        Example("switched off", "NCCL_P2P_DISABLE=1 torchrun --nproc_per_node 2 train.py", facts=_ACS),
        Example("one process", "python train.py", facts=_ACS),
        Example(
            "seen: a hang that another setting cures",
            "torchrun --nproc_per_node 2 train.py",
            observation=probed([0, 1], {"collective": "hung"}, state=["hung", "hung"], cured_by="NCCL_IB_DISABLE=1"),
        ),
        Example("NVLink", "torchrun --nproc_per_node 2 train.py", facts={**_ACS, "topology": "NV4"}),
        Example("an IOMMU alone", facts={"gpus": _4090, "topology": "PHB", "iommu": "enabled"}),
        Example(
            "PCIe access that the driver does not offer",
            "torchrun --nproc_per_node 2 train.py",
            facts={**_ACS, "peer_access": {"0-1": "chipset not supported"}},
        ),
        Example(
            "an IOMMU that passes through",
            facts={"gpus": _ADA, "topology": "PHB", "iommu": "passthrough", "peer_access": {"0-1": "ok"}},
        ),
        Example(
            "more than two GPUs beyond a host bridge: NCCL 2.23 goes through host memory by itself",
            "torchrun --nproc_per_node 4 train.py",
            facts={**_ACS, "gpus": _3090, "torch_nccl": "2.26.2"},
        ),
        Example("a newer driver", "torchrun --nproc_per_node 2 t.py", _TRAINER, facts={**_OLD, "driver": "550.54.15"}),
        Example(
            "accelerate sets them by itself",
            "accelerate launch --multi_gpu --num_processes 2 t.py",
            _TRAINER,
            facts=_OLD,
        ),
        Example(
            "they are set",
            "NCCL_P2P_DISABLE=1 NCCL_IB_DISABLE=1 torchrun --nproc_per_node 2 t.py",
            _TRAINER,
            facts=_OLD,
        ),
        Example("a program without accelerate", "torchrun --nproc_per_node 2 t.py", {"t.py": "import torch\n"}, _OLD),
        Example("a machine of NVLink GPUs", "torchrun --nproc_per_node 8 train.py", facts={"topology": "NV12"}),
        Example("two cards, nothing known of the way between them", "torchrun --nproc_per_node 2 t.py", {}, _OLD),
    ),
    sources=(
        Reference(
            "NCCL 2.30 user guide, troubleshooting/gpu_troubleshooting, PCI Access Control Services",
            "IOMMU and ACS can redirect PCI point-to-point traffic to the processor: a significant performance "
            "reduction or even a hang; virtual machines need ACS",
        ),
        Reference(
            "NVIDIA Maxine Lipsync NIM 1.0 documentation, PCIe Multi-GPU Systems",
            "IOMMU-enabled peer-to-peer copies over PCIe are not supported on bare-metal Linux: iommu=pt",
        ),
        Reference(
            "NCCL 2.14.3, 2.21.5 and 2.22.3, graph/paths.cc",
            "uses P2P at any distance, but through Intel, Zhaoxin and ARM processors only behind PCIe switches (PXB)",
        ),
        Reference(
            "NCCL 2.23.4 and 2.28.9, graph/paths.cc ncclTopoCheckP2p()",
            "uses P2P up to PXB, and at any distance between two GPUs on an AMD processor; P2P off between GPUs with "
            "NVLink is an error (`P2P is disabled between NVLINK connected GPUs`)",
        ),
        Reference(
            "accelerate 0.25.0, 0.26.1, utils/environment.py check_cuda_p2p_ib_support()", "refuses RTX 3090 and RTX 40"
        ),
        Reference(
            "accelerate 0.27.2 and 0.28.0; 0.29.3 to 1.15.0, the same function",
            "refuses RTX 40; from 0.29 on only with drivers before 550.40.07, and a single process as well",
        ),
        Reference(
            "accelerate 0.25.0 to 1.15.0, state.py PartialState and commands/launch.py multi_gpu_launcher()",
            "NotImplementedError unless both variables are set; accelerate launch sets them for several processes",
        ),
        Reference(
            "vllm-project/vllm issue 2466 (vllm 0.2.7, RTX 3090) and issue 9920 (RTX 6000 Ada)",
            "a start that hangs; NCCL_P2P_DISABLE=1 helps in one, ACS and IOMMU switched off in the other",
        ),
    ),
    fix="NCCL_P2P_DISABLE=1; better: iommu=pt and ACS off in the firmware, or a driver of 550.40.07 or later",
    signatures=(
        Signature(
            r"P2P is disabled between NVLINK connected GPUs \d+ and \d+",
            "NCCL 2.14.3 to 2.28.9, graph/paths.cc",
            "NCCL WARN P2P is disabled between NVLINK connected GPUs 0 and 1. This should not be the case given their "
            "connectivity, and is probably due to a hardware issue.",
        ),
        Signature(
            r"Using RTX (?:3090 or )?4000 series doesn't support faster communication broadband via P2P or IB",
            "accelerate 0.25.0 to 1.15.0, state.py",
            "NotImplementedError: Using RTX 4000 series doesn't support faster communication broadband via P2P or IB. "
            'Please set `NCCL_P2P_DISABLE="1"` and `NCCL_IB_DISABLE="1" or use `accelerate launch` which will do this '
            "automatically.",
        ),
        Signature(
            r"peer access is not supported between these two devices|peer mapping resources exhausted",
            "CUDA 11.7 runtime, cudaErrorPeerAccessUnsupported and cudaErrorTooManyPeers",
            "RuntimeError: CUDA error: peer access is not supported between these two devices",
        ),
    ),
)

_NEAR = frozenset({"PIX", "PXB"})
_FAR = frozenset({"PHB", "NODE", "SYS"})
_OFF = frozenset(
    {"chipset not supported", "gpu not supported", "topology not supported", "disabled by regkey", "not supported"}
)
_CONSUMER = ("GeForce",)
GOOD_DRIVER = (550, 40, 7)


def find(case: Case) -> Iterator[Finding]:
    """Pairs of GPUs of one job, or of the machine when there is no command; what a run showed counts most."""
    seen = [*_seen(case)]
    yield from seen
    if not seen:
        yield from _said(case)


def _seen(case: Case) -> Iterator[Finding]:
    """Ranks that hang, or add up wrongly, unless peer-to-peer copies are out of use."""
    seen = case.observation
    if seen is None or seen.cured_by is None or "NCCL_P2P_DISABLE=1" not in seen.cured_by.split():
        return
    failure = observed.first_failure(seen)
    wrong = "gave a wrong sum" if observed.wrong_sums(seen) else "did not come back"
    stage = failure.name if failure is not None else "collective"
    pairs = [f"ranks {a} and {b} cannot talk to each other" for a, b in seen.bad_pairs[:4]]
    yield report(
        RULE,
        f"The {stage} stage of the probe {wrong}; with {seen.cured_by} all is well: data that goes from GPU to GPU "
        "directly does not arrive as it was sent.",
        place_of(case),
        subject=subject_of(case),
        severity=Severity.ERROR,
        evidence=pairs,
        fix=fix_by_cure(case, seen),
    )


def _said(case: Case) -> Iterator[Finding]:
    if not case.launches:
        if gpu_count(case) > 1:
            yield from _pairs(case, None)
        return
    said = set()
    for job in jobs(case):
        refusal = _refused(case, job)
        if refusal is not None:
            yield refusal
        elif job.gpus > 1:
            for finding in _pairs(case, job):
                if finding.message not in said:
                    # What is wrong between the same GPUs is said once, at the first command that meets it.
                    said.add(finding.message)
                    yield finding


def _pairs(case: Case, job: Job | None) -> Iterator[Finding]:
    launch = job.launch if job is not None else None
    level = variable(case, launch, "NCCL_P2P_LEVEL")
    if variable(case, launch, "NCCL_P2P_DISABLE") == "1" or level in {"LOC", "NVL", "0"}:
        return
    pairs = _links(case, job)
    broken = [pair for pair, link in pairs.items() if link.startswith("NV") and _access(case, pair) in _OFF]
    if broken and case.facts.nvswitch is not True:
        yield _nvlink(case, broken, job)
        return
    over_pcie = {pair: link for pair, link in pairs.items() if link in _NEAR | _FAR and _access(case, pair) not in _OFF}
    used = {pair: link for pair, link in over_pcie.items() if link in _NEAR or _reaches_far(case, job)}
    if not used:
        return
    blockers = _blockers(case, used)
    if blockers:
        yield _redirected(case, used, blockers, job)
    elif job is not None and _old_consumer(case, job, used):
        yield _unsure(used, job)


def _links(case: Case, job: Job | None) -> Mapping[str, str]:
    """How the GPUs in question are linked, by pair; empty when that is not known."""
    topology, gpus = case.facts.topology, case.facts.gpus
    if isinstance(topology, Unknown) or isinstance(gpus, Unknown):
        return {}
    physical = job.physical if job is not None else None
    indices = sorted(gpu.index for gpu in gpus if physical is None or gpu.index in physical)
    pairs = [f"{one}-{other}" for at, one in enumerate(indices) for other in indices[at + 1 :]]
    if isinstance(topology, str):
        return dict.fromkeys(pairs, topology.upper())
    return {pair: topology[pair].upper() for pair in pairs if pair in topology}


def _access(case: Case, pair: str) -> str:
    access = case.facts.peer_access
    return "" if isinstance(access, Unknown) else access.get(pair, "").lower()


def _nccl(case: Case) -> tuple[int, ...]:
    """The NCCL that torch uses: as told, else that of torch's release (2.21.5 up to torch 2.6, 2.26.2 from 2.7 on)."""
    told = case.facts.torch_nccl
    if isinstance(told, str):
        return numbers(told)
    torch = numbers(case.facts.package_version("torch"))
    if not torch:
        return ()
    return (2, 22) if torch < (2, 7) else (2, 26)


def _reaches_far(case: Case, job: Job | None) -> bool:
    """Whether NCCL may use P2P across a host bridge: any number of GPUs before 2.23, two from then on."""
    count = job.gpus if job is not None else gpu_count(case)
    nccl = _nccl(case)
    return count == 2 or (bool(nccl) and nccl < (2, 23))


def _blockers(case: Case, used: Mapping[str, str]) -> list[str]:
    acs = case.facts.pci_acs
    found = []
    if not isinstance(acs, Unknown):
        on = sorted(bridge for bridge, state in acs.items() if state.lower() == "enabled")
        if on:
            bridges = "bridges" if len(on) > 1 else "bridge"
            found.append(f"ACS is on at {len(on)} PCI {bridges} ({', '.join(on[:2])}{' …' if len(on) > 2 else ''})")
    if case.facts.iommu == "enabled" and (found or any(_access(case, pair) == "ok" for pair in used)):
        found.append("the IOMMU translates")
    return found


def _redirected(case: Case, used: Mapping[str, str], blockers: list[str], job: Job | None) -> Finding:
    pair, link = next(iter(used.items()))
    others = f" and {len(used) - 1} more pairs" if len(used) > 1 else ""
    commands = () if in_container(case) else ("sudo lspci -vvv | grep ACSCtl", "sudo dmesg | grep -e DMAR -e IOMMU")
    return report(
        RULE,
        f"GPU {pair.replace('-', ' and ')}{others} meet over PCIe ({link}), but {' and '.join(blockers)}: direct "
        "traffic between them may be slow, or never arrive, so that the first collective hangs. Only a run can tell.",
        job.place if job is not None else None,
        subject="peer-to-peer access",
        evidence=(
            *blockers,
            f"topology: {link}",
            *(("beyond a host bridge NCCL uses direct access on AMD processors only",) if link in _FAR else ()),
        ),
        fix=_without_p2p(job),
        alternatives=(
            Fix("boot with iommu=pt and switch ACS off in the firmware (not in a virtual machine)", commands=commands),
        ),
    )


def _without_p2p(job: Job | None) -> Fix:
    title = "if it hangs, set NCCL_P2P_DISABLE=1; `mgpu-doctor probe` tries it in seconds"
    if job is None:
        return Fix(title, commands=("export NCCL_P2P_DISABLE=1",))
    command = job.launch.command
    return Fix(title, (insert(command.source, command.span.start, "NCCL_P2P_DISABLE=1 "),))


def _nvlink(case: Case, broken: list[str], job: Job | None) -> Finding:
    pair = broken[0]
    return report(
        RULE,
        f"GPU {pair.replace('-', ' and ')} are joined by NVLink, but the driver gives no peer access "
        f"({_access(case, pair)}): NCCL stops with `P2P is disabled between NVLINK connected GPUs`.",
        job.place if job is not None else None,
        subject="peer-to-peer access",
        severity=Severity.ERROR,
        evidence=tuple(f"GPU {pair}: {_access(case, pair)}" for pair in broken),
        fix=Fix("look at the links (nvidia-smi nvlink --status), reset the GPUs", commands=("nvidia-smi topo -p2p r",)),
    )


def _old_consumer(case: Case, job: Job, used: Mapping[str, str]) -> bool:
    """GeForce cards behind host bridges, with an NCCL that uses P2P there on AMD processors."""
    gpus = () if isinstance(case.facts.gpus, Unknown) else case.facts.gpus
    named = [gpu.name for gpu in gpus if job.physical is None or gpu.index in job.physical]
    if not named or not all(isinstance(name, str) and any(part in name for part in _CONSUMER) for name in named):
        return False
    nccl = _nccl(case)
    return bool(nccl) and nccl < (2, 23) and all(link in _FAR for link in used.values())


def _unsure(used: Mapping[str, str], job: Job) -> Finding:
    link = next(iter(used.values()))
    return report(
        RULE,
        f"These {job.gpus} GeForce cards meet across the processor ({link}). NCCL before 2.23 may use direct access "
        "there on AMD machines, and starts that hang are known; only a run can tell.",
        job.place,
        subject="peer-to-peer access",
        severity=Severity.ADVICE,
        evidence=(f"topology: {link}",),
        fix=_without_p2p(job),
    )


def _refused(case: Case, job: Job) -> Finding | None:
    """RTX 40 (or 3090) cards that accelerate itself refuses."""
    launch = job.launch
    cards = _refused_cards(case, job.processes)
    if not cards or not trains_with_library(launch) or _sets_variables(launch, job.processes):
        return None
    names = ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE")
    missing = [name for name in names if variable(case, launch, name) is None]
    if not missing:
        return None
    release = case.knowledge.release("accelerate").version
    command = launch.command
    words = " ".join(f"{name}=1" for name in missing)
    place: Location = job.place
    reads_driver = numbers(release) >= (0, 29)
    driver = f" with driver {case.facts.driver}" if reads_driver else " whatever the driver is"
    newer = "install a driver of 550.40.07 or later"
    return report(
        RULE,
        f"accelerate {release} refuses {cards}{driver} (NotImplementedError) unless "
        f"{' and '.join(names)} are set; only `accelerate launch` for several processes sets them by itself.",
        place,
        severity=Severity.ERROR,
        evidence=(f"driver: {case.facts.driver}", f"accelerate: {release}"),
        fix=Fix(f"set {' and '.join(missing)}", (insert(command.source, command.span.start, words + " "),)),
        alternatives=(Fix(newer if reads_driver else f"update accelerate to 0.29 or later, and {newer}"),),
    )


def _refused_cards(case: Case, processes: int) -> str | None:
    release = case.knowledge.release("accelerate")
    version, driver = numbers(release.version), numbers(case.facts.driver)
    gpus = case.facts.gpus
    if not release.certain or not version or not driver or isinstance(gpus, Unknown) or len(gpus) < 2:
        return None
    if version < (0, 25) or (version >= (0, 29) and driver >= GOOD_DRIVER):
        return None
    if processes < 2 and version < (0, 29):
        return None
    bad = ("RTX 3090", "RTX 40") if version < (0, 27) else ("RTX 40",)
    names = [gpu.name for gpu in gpus if isinstance(gpu.name, str)]
    return next((name for name in names if any(part in name for part in bad)), None)


def _sets_variables(launch: Launch, processes: int) -> bool:
    """Whether accelerate's launcher starts several processes, or none of the ranks is told that it is one."""
    if launch.layer("accelerate") is not None:
        return processes > 1
    return processes > 1 and not through_torchrun(launch) and launch.layer("deepspeed") is None
