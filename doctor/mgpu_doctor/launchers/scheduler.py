"""Schedulers, MPI starters and containers: they start a command once or several times.

``srun`` starts one copy of its command per task (Slurm 24.05, srun(1)): ``--ntasks``, else
``--ntasks-per-node`` times ``--nodes``, else one per node; what srun does not say comes from the job's
``#SBATCH`` lines through SLURM_NTASKS, SLURM_NTASKS_PER_NODE and SLURM_JOB_NUM_NODES.
``mpirun -np N`` starts N copies (Open MPI 5.0 mpirun(1); Intel MPI and MPICH Hydra: ``-n``, ``-ppn``).
A container starts one. The words come from the shell's wrappers (:class:`Wrapper`).
"""

from __future__ import annotations

from mgpu_doctor.launchers.chain import Context, Plan
from mgpu_doctor.launchers.python import cut
from mgpu_doctor.model.command import Command, Word, Wrapper
from mgpu_doctor.model.known import Origin, Setting, Unknown
from mgpu_doctor.model.launch import Layer, Option, OptionSpec, VisibleDevices
from mgpu_doctor.model.record import replace
from mgpu_doctor.model.source import Span

CANONICAL = {
    "mpiexec": "mpirun",
    "mpiexec.hydra": "mpirun",
    "orterun": "mpirun",
    "prterun": "mpirun",
    "docker run": "docker",
    "docker container run": "docker",
    "docker compose run": "docker",
    "docker-compose run": "docker",
    "nvidia-docker run": "docker",
    "nerdctl run": "docker",
    "podman run": "docker",
    "docker exec": "docker exec",
    "docker compose exec": "docker exec",
    "docker-compose exec": "docker exec",
    "podman exec": "docker exec",
    "singularity exec": "apptainer",
    "apptainer exec": "apptainer",
    "sh -c": "bash -c",
    "zsh -c": "bash -c",
    "dash -c": "bash -c",
    "ksh -c": "bash -c",
}
LAYERS = frozenset({"srun", "mpirun", "bash -c", "ray job submit", "docker", "docker exec", "apptainer"})
"""Wrappers that are shown as layers; the rest (``nohup``, ``time``, ``sudo`` …) only start a command."""

_COUNT = OptionSpec("ntasks", ("-n", "--ntasks"), type="int")
_SRUN = (
    _COUNT,
    OptionSpec("nodes", ("-N", "--nodes")),
    OptionSpec("ntasks_per_node", ("--ntasks-per-node", "--tasks-per-node"), type="int"),
    OptionSpec("gpus", ("-G", "--gpus")),
    OptionSpec("gpus_per_node", ("--gpus-per-node",)),
    OptionSpec("gpus_per_task", ("--gpus-per-task",)),
    OptionSpec("gres", ("--gres",)),
    OptionSpec("gpu_bind", ("--gpu-bind",)),
    OptionSpec("cpus_per_task", ("-c", "--cpus-per-task"), type="int"),
    OptionSpec("nodelist", ("-w", "--nodelist")),
    OptionSpec("export", ("--export",)),
    OptionSpec("partition", ("-p", "--partition")),
)
_MPI = (
    OptionSpec("ntasks", ("-n", "-np", "--np", "-c"), type="int"),
    OptionSpec("ntasks_per_node", ("-ppn", "--ppn", "-npernode", "--npernode", "-N", "-perhost"), type="int"),
    OptionSpec("hostfile", ("-f", "-hostfile", "--hostfile", "-machinefile", "--machinefile")),
    OptionSpec("host", ("-H", "-host", "--host", "-hosts")),
)
_CONTAINER = (
    OptionSpec("gpus", ("--gpus",)),
    OptionSpec("shm_size", ("--shm-size",)),
    OptionSpec("ipc", ("--ipc",)),
    OptionSpec("network", ("--network", "--net")),
    OptionSpec("environment", ("-e", "--env")),
    OptionSpec("runtime", ("--runtime",)),
    OptionSpec("device", ("--device",)),
    OptionSpec("ulimit", ("--ulimit",)),
)


def wrapper_layer(wrapper: Wrapper) -> Layer | None:
    """The layer that a shell wrapper is, or None for one that only starts its command once (``nohup``)."""
    name = CANONICAL.get(wrapper.name, wrapper.name)
    if name not in LAYERS:
        return None
    named = _name_words(wrapper)
    own = wrapper.words[named:]
    specs = {"srun": _SRUN, "mpirun": _MPI}.get(name, _CONTAINER if name == "docker" else ())
    return Layer(name, wrapper.words[:named], own, _read_options(own, specs))


def plan(layer: Layer, before: Plan, context: Context) -> Plan:
    """The processes that the scheduler's layer starts."""
    if layer.launcher == "srun":
        return _srun(layer, before, context)
    if layer.launcher == "mpirun":
        return _mpirun(layer, before)
    if layer.launcher == "docker":
        return _container(layer, before, context)
    return before


def directives(command: Command) -> dict[str, tuple[str, Span]]:
    """The ``#SBATCH`` options above a command in the same text, by long name, with their places.

    In a document the lines count from the last code fence on.
    """
    text = command.source.text[: command.span.start]
    if "#SBATCH" not in text:
        return {}
    found: dict[str, tuple[str, Span]] = {}
    offset = 0
    for line in text.splitlines(keepends=True):
        stripped = line.strip()
        if stripped.startswith("```"):
            found.clear()
        elif stripped.startswith("#SBATCH"):
            start = offset + line.index("#SBATCH")
            span = Span(start, start + len(stripped))
            for name, value in _directive_options(stripped[len("#SBATCH") :]):
                found[name] = (value, span)
        offset += len(line)
    return found


_SHORT = {"-n": "ntasks", "-N": "nodes", "-G": "gpus", "-c": "cpus-per-task", "-p": "partition", "-w": "nodelist"}


def _directive_options(text: str) -> list[tuple[str, str]]:
    words = text.split("#", 1)[0].split()
    out = []
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if word.startswith("--"):
            name, separator, value = word[2:].partition("=")
            if not separator and at < len(words) and not words[at].startswith("-"):
                value = words[at]
                at += 1
            out.append((name, value))
        elif word[:2] in _SHORT:
            value = word[2:].removeprefix("=")
            if not value and at < len(words):
                value = words[at]
                at += 1
            out.append((_SHORT[word[:2]], value))
    return out


def _srun(layer: Layer, before: Plan, context: Context) -> Plan:
    job = directives(context.command)
    nodes = _given(layer, "nodes", context) or _directive(job, "nodes", context)
    tasks = _given(layer, "ntasks", context) or _directive(job, "ntasks", context)
    each = _given(layer, "ntasks_per_node", context) or _directive(job, "ntasks-per-node", context)
    if nodes is None and tasks is None and each is None and not job:
        reason = Unknown("the job's allocation is not part of this text")
        origin = Origin("default", "srun")
        nodes = Setting(reason, origin)
        per_node: Setting[int] = Setting(reason, origin)
    else:
        nodes = nodes or Setting(1, Origin("default", "srun"))
        per_node = _tasks_per_node(nodes, tasks, each)
    name = next((w.value for w in layer.command_words if w.value), "srun")
    return replace(
        before,
        processes_per_node=per_node,
        nodes=nodes,
        node_rank=Setting(Unknown("each node has its own"), Origin("derived", "srun")),
        groups=Setting(Unknown(f"whether the program reads {name}'s variables"), Origin("derived", "srun")),
    )


def _tasks_per_node(nodes: Setting[int], tasks: Setting[int] | None, each: Setting[int] | None) -> Setting[int]:
    if each is not None:
        if tasks is None or tasks.known is None or nodes.known is None or nodes.known <= 1:
            return each if tasks is None or nodes.known != 1 else tasks
        return each if each.known is not None else tasks
    if tasks is None:
        return Setting(1, Origin("default", "srun"))
    if tasks.known is None or nodes.known is None:
        return Setting(Unknown("tasks or nodes are not known"), tasks.origin)
    origin = Origin("derived", f"{tasks.known} tasks on {nodes.known} nodes")
    return Setting(-(-tasks.known // max(nodes.known, 1)), origin)


def _mpirun(layer: Layer, before: Plan) -> Plan:
    tasks = _option_count(layer, "ntasks")
    each = _option_count(layer, "ntasks_per_node")
    origin = Origin("default", "mpirun")
    if tasks is None:
        unknown: Setting[int] = Setting(Unknown("mpirun without -np starts one process per slot"), origin)
        return replace(before, processes_per_node=unknown)
    if each is not None and tasks.known and each.known:
        nodes: Setting[int] = Setting(max(-(-tasks.known // each.known), 1), Origin("derived", "mpirun"))
        per_node = each
    elif layer.option("hostfile") or layer.option("host"):
        nodes = Setting(Unknown("how the processes spread over the hosts is not followed"), origin)
        per_node = Setting(Unknown("how the processes spread over the hosts is not followed"), origin)
        if tasks.known == 1:
            nodes, per_node = Setting(1, tasks.origin), tasks
    else:
        nodes, per_node = Setting(1, origin), tasks
    return replace(
        before,
        processes_per_node=per_node,
        nodes=nodes,
        groups=Setting(Unknown("whether the program reads MPI's variables"), Origin("derived", "mpirun")),
    )


def _container(layer: Layer, before: Plan, context: Context) -> Plan:
    """Inside a container the devices that it was given count from 0, and a list inside picks from these."""
    gpus = layer.option("gpus")
    if gpus is None or gpus.value is None:
        return before
    text = gpus.value.strip("\"'")
    offered: tuple[int | Unknown, ...]
    if text.isdigit() and len(text) < 4:
        offered = tuple(range(int(text)))
    elif text.startswith("device="):
        names = [part.strip() for part in text[len("device=") :].split(",") if part.strip()]
        offered = tuple(int(part) if part.isdigit() else Unknown("it is named by UUID") for part in names)
    else:
        return before
    entries = tuple(str(index) for index in range(len(offered)))
    origin = Origin("option", "--gpus", context.command.locate(gpus.span))
    inside = context.command.variable("CUDA_VISIBLE_DEVICES")
    if inside is not None:
        if inside.text is None:
            return before
        picked = [part.strip() for part in inside.text.split(",")]
        if not all(part.isdigit() and int(part) < len(offered) for part in picked):
            return before
        entries, offered = tuple(picked), tuple(offered[int(part)] for part in picked)
        origin = Origin("variable", "CUDA_VISIBLE_DEVICES", inside.location)
    return replace(before, visible=Setting(VisibleDevices(entries, offered, all=inside is None), origin))


def _given(layer: Layer, dest: str, context: Context) -> Setting[int] | None:
    setting = _option_count(layer, dest)
    if setting is None:
        return None
    option = layer.option(dest)
    if option is None:
        return setting
    return Setting(setting.value, Origin("option", option.flag, context.command.locate(option.span)))


def _option_count(layer: Layer, dest: str) -> Setting[int] | None:
    option = layer.option(dest)
    if option is None:
        return None
    return Setting(_count(option.value), Origin("option", option.flag))


def _directive(job: dict[str, tuple[str, Span]], name: str, context: Context) -> Setting[int] | None:
    if name not in job:
        return None
    value, span = job[name]
    return Setting(_count(value), Origin("config", f"#SBATCH --{name}", context.command.locate(span)))


def _count(text: str | None) -> int | Unknown:
    if text is None:
        return Unknown("the value is not known")
    text = text.strip().split("-")[0]
    return int(text) if text.isdigit() and len(text) < 7 else Unknown(f"{text!r} is not a plain number")


def _name_words(wrapper: Wrapper) -> int:
    """How many words name the wrapper: ``ray job submit`` and ``bash -c`` have several."""
    canonical = wrapper.name.split()
    count = 1
    while count < len(canonical) and count < len(wrapper.words) and wrapper.words[count].value == canonical[count]:
        count += 1
    return count


def _read_options(words: tuple[Word, ...], specs: tuple[OptionSpec, ...]) -> tuple[Option, ...]:
    """The known options among a wrapper's own words; every other word is left alone."""
    by_flag = {flag: spec for spec in specs for flag in spec.flags}
    out: list[Option] = []
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        text = word.value if word.value is not None else word.known_prefix
        flag, separator, _ = text.partition("=")
        if flag in by_flag and separator:
            out.append(_option(by_flag[flag], flag, cut(word, len(flag) + 1, None), word.span))
        elif text in by_flag and word.value is not None and at < len(words):
            out.append(_option(by_flag[text], text, words[at], Span(word.span.start, words[at].span.end)))
            at += 1
        elif len(text) > 2 and text[:2] in by_flag and text[1] != "-" and text[2:].isdigit():
            out.append(_option(by_flag[text[:2]], text[:2], cut(word, 2, None), word.span))
    return tuple(out)


def _option(spec: OptionSpec, flag: str, value: Word, span: Span) -> Option:
    converted: object = value.value
    if spec.type == "int":
        converted = _count(value.value)
    return Option(spec, flag, (value,), span, converted)
