"""Too little memory may be locked for InfiniBand."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.host import in_container, jobs, variable
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
    report,
)

HOPELESS_KIB = 8 * 1024
"""Two of NCCL's buffers of 4 MiB: less than one connection registers."""
SMALL_KIB = 64 * 1024

_NODE = {"infiniband": {"mlx5_0": "ACTIVE"}, "limits": {"memlock_kib": 64}}
_TWO = "torchrun --nnodes 2 --node_rank 0 --nproc_per_node 8 --master_addr 10.0.0.5 --master_port 29500 train.py"

RULE = Rule(
    code="MGD702",
    slug="memlock-too-small",
    title="Too little memory may be locked",
    severity=Severity.ERROR,
    summary="The limit of locked memory (ulimit -l) is small on a machine with InfiniBand.",
    why=(
        "InfiniBand reads and writes buffers that are locked in memory. Under a small limit the verbs library cannot "
        "register them: NCCL stops with `Call to ibv_reg_mr failed` or `ibv_create_cq failed` and the error `Cannot "
        "allocate memory` as soon as a job spans nodes. Jobs of one node do not need it."
    ),
    bad=(
        Example("two nodes", _TWO, facts=_NODE),
        Example("the machine alone", facts=_NODE),
        Example("a container that asked for nothing", facts={**_NODE, "container": {"runtime": "docker"}}),
    ),
    good=(
        Example("unlimited", _TWO, facts={**_NODE, "limits": {"memlock_kib": -1}}),
        Example("no InfiniBand", _TWO, facts={**_NODE, "infiniband": {}}),
        Example("ports that are down", _TWO, facts={**_NODE, "infiniband": {"mlx5_0": "DOWN"}}),
        Example("one node", "torchrun --nproc_per_node 8 train.py", facts=_NODE),
        Example("InfiniBand is not used", f"NCCL_IB_DISABLE=1 {_TWO}", facts=_NODE),
        Example("root may lock all it wants", facts={**_NODE, "env": {"USER": "root"}, "container": None}),
        Example("large enough", facts={**_NODE, "limits": {"memlock_kib": 65805012}}),
        Example("a login node without GPUs", facts={**_NODE, "gpus": []}),
        Example("not known", _TWO, facts={"infiniband": {"mlx5_0": "ACTIVE"}}),
    ),
    sources=(
        Reference(
            "NCCL 2.30 user guide, troubleshooting/runtime_and_mpi_issues, Docker",
            "containers default to limited pinned memory: --ulimit memlock=-1",
        ),
        Reference("NCCL 2.21.5 and 2.28.9, misc/ibvwrap.cc", "`Call to ibv_reg_mr failed with error <errno's text>`"),
        Reference(
            "Linux 6.8, drivers/infiniband/core/umem.c ib_umem_get()",
            "ENOMEM above RLIMIT_MEMLOCK, unless the process has CAP_IPC_LOCK",
        ),
    ),
    fix="ulimit -l unlimited (limits.d, or the scheduler's PropagateResourceLimits); docker: --ulimit memlock=-1",
    signatures=(
        Signature(
            r"Call to ibv_(?:reg_mr\w*|create_cq|create_qp|alloc_pd) failed with error Cannot allocate memory",
            "NCCL 2.14.3 to 2.28.9, misc/ibvwrap.cc",
            "node1:88:140 [0] misc/ibvwrap.cc:215 NCCL WARN Call to ibv_create_cq failed with error Cannot allocate "
            "memory",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """A small limit on a machine whose InfiniBand ports work."""
    if not case.launches:
        yield from _judge(case, None, None)
        return
    for job in jobs(case):
        if (job.launch.nodes.known or 1) > 1:
            found = list(_judge(case, job.launch, job.place))
            if found:
                # A fault of the machine is said once, at the first command that meets it.
                yield found[0]
                return


def _judge(case: Case, launch: Launch | None, place: Location | None) -> Iterator[Finding]:
    devices = case.facts.infiniband
    if (not isinstance(devices, Unknown) and not devices) or (launch is None and not case.facts.gpus):
        return
    devices = case.require(devices)
    active = sorted(name for name, state in devices.items() if state == "ACTIVE")
    if not active or variable(case, launch, "NCCL_IB_DISABLE") == "1":
        return
    limit = case.require(case.facts.limits).get("memlock_kib")
    if not isinstance(limit, (int, float)) or isinstance(limit, bool) or limit < 0 or limit > SMALL_KIB:
        return
    if not in_container(case) and case.facts.variable("USER") == "root":
        return
    certain = launch is not None and limit <= HOPELESS_KIB
    yield report(
        RULE,
        f"A process may lock {limit:g} KiB of memory (ulimit -l), but InfiniBand ({', '.join(active)}) needs its "
        "buffers locked: "
        + ("a job over several nodes stops" if launch is None else "NCCL stops")
        + " with `ibv_reg_mr failed … Cannot allocate memory`.",
        place,
        subject="locked memory",
        severity=Severity.ERROR if certain else Severity.WARNING,
        evidence=(f"memlock: {limit:g} KiB", f"active ports: {', '.join(active)}"),
        fix=_fix(case),
    )


def _fix(case: Case) -> Fix:
    if in_container(case):
        return Fix("start the container with --ulimit memlock=-1 (NVIDIA's images say so at start)")
    return Fix("lift the limit for the users of the machine and in the scheduler", commands=("ulimit -l unlimited",))
