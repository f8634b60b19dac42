"""Two launches that run at the same time on one machine use one rendezvous port."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.rendezvous import (
    allocation,
    at_least,
    binding_layer,
    chain,
    free_port,
    likely_port,
    port_edit,
    port_place,
    runs_elsewhere,
)
from mgpu_doctor.authoring import (
    Case,
    Command,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Reference,
    Rule,
    Script,
    Setting,
    Severity,
    report,
)

RULE = Rule(
    code="MGD302",
    slug="port-shared",
    title="Two launches share one port",
    severity=Severity.ERROR,
    summary="Launches that run at the same time on one machine would meet on the same port.",
    why=(
        "Each job needs a port of its own. The default is 29500 for every launcher, so that two jobs started with `&` "
        "collide although neither names a port: the second ends with EADDRINUSE, or its ranks join the first job and "
        "both hang. accelerate from 1.8.0 on looks whether the port is taken and moves to another one, but two that "
        "start at the same moment can both find it free."
    ),
    bad=(
        Example(
            "two jobs on the default port",
            "deepspeed --include localhost:0 a.py &\ndeepspeed --include localhost:1 b.py &\nwait\n",
        ),
        Example(
            "the same port by name",
            "CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node 2 --master_port 29600 a.py &\n"
            "CUDA_VISIBLE_DEVICES=2,3 torchrun --nproc_per_node 2 --master_port 29600 b.py\n",
            facts=None,
        ),
        Example(
            "three of accelerate",
            "accelerate launch --multi_gpu --gpu_ids 0,1 --num_processes 2 a.py &\n"
            "accelerate launch --multi_gpu --gpu_ids 2,3 --num_processes 2 b.py &\n"
            "accelerate launch --multi_gpu --gpu_ids 4,5 --num_processes 2 c.py &\nwait\n",
        ),
        Example(
            "torchrun, the release not known",
            "CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node 2 a.py &\n"
            "CUDA_VISIBLE_DEVICES=2,3 torchrun --nproc_per_node 2 b.py &\nwait\n",
            facts=None,
        ),
        Example(
            "steps of a job with one node",
            lint=("steps.sh",),
            files={
                "steps.sh": "#!/bin/bash\n#SBATCH --nodes=1\n"
                "srun --exact -n1 deepspeed --include localhost:0 a.py &\n"
                "srun --exact -n1 deepspeed --include localhost:1 b.py &\nwait\n"
            },
        ),
        Example(
            "in a script",
            lint=("two.sh",),
            files={
                "two.sh": "#!/bin/bash\ndeepspeed --include localhost:0 a.py > a.log 2>&1 &\n"
                "deepspeed --include localhost:1 b.py > b.log 2>&1 &\nwait\n"
            },
        ),
    ),
    good=(
        Example("one after the other", "deepspeed --num_gpus 2 a.py\ndeepspeed --num_gpus 2 b.py\n"),
        Example("waited for", "deepspeed --num_gpus 2 a.py &\nwait\ndeepspeed --num_gpus 2 b.py\n"),
        Example(
            "two ports",
            "deepspeed --include localhost:0 --master_port 29501 a.py &\ndeepspeed --include localhost:1 b.py &\n",
        ),
        Example("one needs no port", "torchrun --standalone --nproc_per_node 2 a.py &\ndeepspeed --num_gpus 2 b.py\n"),
        Example(
            "two nodes of one job, tried on one machine",
            "torchrun --nnodes 2 --node_rank 0 --master_addr 127.0.0.1 --master_port 29600 a.py &\n"
            "torchrun --nnodes 2 --node_rank 1 --master_addr 127.0.0.1 --master_port 29600 a.py\n",
        ),
        Example(
            "torchrun of a release that takes a free port",
            "torchrun --nproc_per_node 2 a.py &\ntorchrun --nproc_per_node 2 b.py &\n",
            facts={"packages": {"torch": "2.13.0"}},
        ),
        Example(
            "steps that may run on two nodes",
            lint=("steps.sh",),
            files={
                "steps.sh": "#!/bin/bash\n#SBATCH --nodes=2\n"
                "srun -N1 deepspeed --num_gpus 8 a.py &\nsrun -N1 deepspeed --num_gpus 8 b.py &\nwait\n"
            },
        ),
        Example("plain programs", "python a.py &\npython b.py &\nwait\n"),
    ),
    sources=(
        Reference(
            "deepspeed 0.9.5, 0.16.9, 0.19.8, launcher/runner.py parse_args()", "--master_port is 29500 unless given"
        ),
        Reference("torch 1.13.1 to 2.11.0, distributed/run.py", "--master-port is 29500 unless given"),
        Reference(
            "accelerate 0.20.3, 1.7.0, 1.15.0, utils/launch.py", "main_process_port None means 29500; see MGD301"
        ),
        Reference(
            "torch 2.13.0", "a second store on a port that is taken fails: DistNetworkError EADDRINUSE", ran=True
        ),
    ),
    fix="Give each launch a port of its own",
    fixable=True,
)


def find(case: Case) -> Iterator[Finding]:
    """Launches that would meet where an earlier one that still runs does."""
    if len(case.launches) < 2 and not any(launch.command.repeated for launch in case.launches):
        return
    candidates = [launch for launch in case.launches if _is_candidate(case, launch)]
    scripts = {id(command): script for script in case.scripts for command in script.commands}
    given: list[int] = []
    for at, later in enumerate(candidates):
        earlier = next((one for one in candidates[:at] if _collide(one, later, scripts)), None)
        if earlier is not None:
            free = free_port(case, given)
            given.append(free)
            yield _finding(earlier, later, free)
        elif _collides_with_itself(later, scripts):
            yield _loop_finding(later)


def _is_candidate(case: Case, launch: Launch) -> bool:
    """Whether it surely listens on a known port of this one machine."""
    if not _port(launch) or runs_elsewhere(launch) or launch.layer("mpirun") is not None:
        return False
    if launch.layer("srun") is not None:
        # Steps of a job with several nodes may run on different ones.
        job = allocation(case, launch)
        if job is None or job.nodes != 1:
            return False
    layer = launch.layer("deepspeed")
    # A filter such as localhost:$GPU hides which GPUs are meant, but not that they are this machine's.
    here = layer is not None and layer.option("hostfile") is None and layer.option("num_nodes") is None
    return launch.nodes.known == 1 or here


def _collide(one: Launch, other: Launch, scripts: dict[int, Script]) -> bool:
    if _port(one) != _port(other) or _is_apart(one, other):
        return False
    return _run_together(one.command, other.command, scripts)


def _setting(launch: Launch) -> Setting[int] | None:
    return launch.rendezvous.port if launch.rendezvous is not None else None


def _port(launch: Launch) -> int | None:
    setting = _setting(launch)
    return likely_port(launch) or (setting.known if setting is not None else None)


def _is_apart(one: Launch, other: Launch) -> bool:
    """Two jobs at one c10d store do not disturb each other when their ids differ."""
    ids = []
    for launch in (one, other):
        layer = binding_layer(launch)
        if launch.rendezvous is None or launch.rendezvous.backend.known != "c10d" or layer is None:
            return False
        option = layer.option("rdzv_id")
        ids.append(option.values[0].written if option is not None and option.values else None)
    return ids[0] != ids[1]


def _run_together(one: Command, other: Command, scripts: dict[int, Script]) -> bool:
    """Whether ``one`` still runs when ``other``, which stands behind it, starts."""
    for first, second in zip(chain(one), chain(other), strict=False):
        if first is second or (first.source is second.source and first.span == second.span):
            continue
        script = scripts.get(id(first))
        if script is None or scripts.get(id(second)) is not script or not first.background:
            return False
        if first.conditional and second.conditional and not (first.repeated and second.repeated):
            return False
        return not _waits(script, first, second)
    return False


def _waits(script: Script, first: Command, second: Command) -> bool:
    return any(
        command.name in {"wait", "exit", "fg"} and first.span.end <= command.span.start < second.span.start
        for command in script.commands
        if command.source is first.source
    )


def _collides_with_itself(launch: Launch, scripts: dict[int, Script]) -> bool:
    """A loop that starts it again while it still runs."""
    for command in chain(launch.command):
        if not (command.repeated and command.background):
            continue
        script = scripts.get(id(command))
        if script is None:
            return False
        behind = [c for c in script.commands if c.span.start >= command.span.end and c.source is command.source]
        return not any(c.repeated and c.name in {"wait", "sleep", "fg"} for c in behind)
    return False


def _finding(earlier: Launch, later: Launch, free: int) -> Finding:
    port, layer = _port(later), binding_layer(later)
    name = layer.launcher if layer is not None else "the launcher"
    severity, outcome = Severity.ERROR, f"{name} ends with EADDRINUSE, or the ranks of the two jobs mix"
    release = layer.release if layer is not None else None
    if name == "accelerate" and release is not None and at_least(release.version, 1, 8):
        severity = Severity.WARNING
        outcome = f"accelerate {release.version} moves to a free port only when it sees the first in time"
    if likely_port(later) is not None:
        severity = Severity.WARNING
        outcome = "torchrun ends with EADDRINUSE up to torch 2.11.0; from 2.12.1 on each takes a free port"
    edit = port_edit(later, free)
    setting = _setting(later)
    which = "the default port" if setting is not None and setting.origin.kind == "default" else "port"
    return report(
        RULE,
        f"This launch and one that still runs both use {which} {port}: {outcome}.",
        port_place(later),
        severity=severity,
        related=(Evidence(f"this launch uses port {port} as well", port_place(earlier)),),
        fix=Fix(f"Use port {free} here", () if edit is None else (edit,), safe=edit is not None),
    )


def _loop_finding(launch: Launch) -> Finding:
    port = _port(launch)
    return report(
        RULE,
        f"The loop starts this launch again while it still runs, always with port {port}: all but the first end with "
        "EADDRINUSE, or the ranks of the jobs mix.",
        port_place(launch),
        fix=Fix(f"Compute the port from the loop's variable, for example $(({port} + i))"),
    )
