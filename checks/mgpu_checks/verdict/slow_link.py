"""Data between two GPUs goes through host memory or a socket although a direct way exists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mgpu_checks.verdict import MOST_LINES, launch_of, place_of, probed, seen_in, subject_of
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    LinkSeen,
    Observation,
    Reference,
    Rule,
    Severity,
    Unknown,
    observed,
    report,
)

_SWITCHES = ("NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL", "NCCL_SHM_DISABLE")

RULE = Rule(
    code="MGD908",
    slug="slow-link",
    title="A detour between two GPUs",
    severity=Severity.WARNING,
    summary="NCCL sends through host memory or sockets between GPUs that NVLink or one PCIe switch joins.",
    why=(
        "GPUs under NVLink or one PCIe switch can read each other's memory, and NCCL does so by itself. When it says "
        "SHM or NET for such a pair, something took the direct way out of use: a left-over NCCL_P2P_DISABLE, a low "
        "NCCL_P2P_LEVEL, a container. Collectives then run at a fraction of the speed. Between GPUs under "
        "different CPU bridges NCCL prefers host memory; that is no fault and not reported."
    ),
    bad=(
        Example(
            "NVLink unused",
            "NCCL_P2P_DISABLE=1 torchrun --nproc-per-node 2 train.py",
            facts={"topology": {"0-1": "NV12"}},
            observation=probed(
                [0, 1], links=[{"a": 0, "b": 1, "peer_access": True, "transport": "SHM/direct", "gib_per_s": 9.1}]
            ),
        ),
        Example(
            "one PCIe switch",
            "torchrun --nproc-per-node 2 train.py",
            facts={"topology": "PIX"},
            observation=probed([2, 3], links=[{"a": 0, "b": 1, "peer_access": True, "transport": "NET/Socket"}]),
        ),
    ),
    good=(
        Example(
            "the direct way",
            "torchrun --nproc-per-node 2 train.py",
            facts={"topology": {"0-1": "NV12"}},
            observation=probed([0, 1], links=[{"a": 0, "b": 1, "peer_access": True, "transport": "P2P/CUMEM"}]),
        ),
        Example(
            "two CPU bridges: host memory is NCCL's choice",
            "torchrun --nproc-per-node 2 train.py",
            facts={"topology": "SYS"},
            observation=probed([0, 1], links=[{"a": 0, "b": 1, "peer_access": True, "transport": "SHM/direct"}]),
        ),
        Example(
            "the driver allows no peer access",
            "torchrun --nproc-per-node 2 train.py",
            facts={"topology": "PIX"},
            observation=probed([0, 1], links=[{"a": 0, "b": 1, "peer_access": False, "transport": "SHM/direct"}]),
        ),
    ),
    sources=(
        Reference(
            "NCCL 2.21.5, 2.28.9 and 2.30.7, src/graph/paths.cc ncclTopoCheckP2p()",
            "NVLink and PCIe switches are always close enough for peer-to-peer; across a CPU bridge it depends on CPU "
            "and release; NCCL_P2P_DISABLE and NCCL_P2P_LEVEL override",
        ),
        Reference(
            "NCCL 2.30.7, src/transport/p2p.cc, shm.cc and net.cc",
            "the log says via P2P/…, via SHM/… or via NET/… for each channel",
        ),
    ),
    fix="Take away what keeps NCCL from the direct way",
    seen=("run",),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for all pairs that make a detour."""
    seen = seen_in(case)
    slow = [link for link in seen.links if _is_detour(case, seen, link)]
    if not slow:
        return
    first = slow[0]
    way = _way(case, seen, first)
    names = "NVLink" if way.startswith("NV") else "a PCIe switch"
    speed = f" at {first.gib_per_s:.1f} GiB/s" if isinstance(first.gib_per_s, float | int) else ""
    count = "1 pair" if len(slow) == 1 else f"{len(slow)} pairs"
    yield report(
        RULE,
        f"{count} of GPUs with {names} between them {'talks' if len(slow) == 1 else 'talk'} over {first.transport}"
        f"{speed}: a detour over the host.",
        place_of(case),
        subject=subject_of(case),
        evidence=[*(_described(case, seen, link) for link in slow[:MOST_LINES]), *_switched(case)],
        fix=_fix(case),
    )


def _is_detour(case: Case, seen: Observation, link: LinkSeen) -> bool:
    if observed.goes_direct(link) is not False or link.peer_access is False:
        return False
    way = _way(case, seen, link)
    return way.startswith("NV") or way in ("PIX", "PXB")


def _way(case: Case, seen: Observation, link: LinkSeen) -> str:
    """How the two are joined, in nvidia-smi's words; empty when they are on different machines.

    Ends the check with a skip when the topology is not known.
    """
    pair = [observed.rank_numbered(seen, number) for number in (link.a, link.b)]
    numbers = [rank.physical_index for rank in pair if rank is not None and isinstance(rank.physical_index, int)]
    hosts = {rank.host for rank in pair if rank is not None}
    if len(numbers) != 2 or len(hosts) != 1 or isinstance(next(iter(hosts)), Unknown):
        return ""
    topology = case.facts.topology
    if isinstance(topology, Mapping):
        return topology.get(f"{min(numbers)}-{max(numbers)}", "").strip().upper()
    word: str = case.require(topology)
    return word.strip().upper()


def _described(case: Case, seen: Observation, link: LinkSeen) -> str:
    pair = [observed.rank_numbered(seen, number) for number in (link.a, link.b)]
    devices = observed.joined(observed.device_of(rank) for rank in pair if rank is not None)
    speed = f", {link.gib_per_s:.1f} GiB/s" if isinstance(link.gib_per_s, float | int) else ""
    return f"ranks {link.a} and {link.b}: {devices}, joined by {_way(case, seen, link)}, over {link.transport}{speed}"


def _switched(case: Case) -> Iterator[str]:
    for name, value in _settings(case):
        yield f"{name}={value} is set"


def _settings(case: Case) -> Iterator[tuple[str, str]]:
    launch = launch_of(case)
    for name in _SWITCHES:
        variable = launch.command.variable(name) if launch is not None else None
        value = variable.value.value if variable is not None and variable.value is not None else None
        if value is None:
            inherited = case.facts.variable(name)
            value = inherited if isinstance(inherited, str) else None
        if value is not None:
            yield name, value


def _fix(case: Case) -> Fix | None:
    names = [name for name, _ in _settings(case)]
    return Fix(f"unset {' '.join(names)}") if names else None
