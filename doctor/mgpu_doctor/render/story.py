"""What a launch would do, put into words: the content of ``explain``, without any layout."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from mgpu_doctor.model.case import Case
from mgpu_doctor.model.facts import Facts
from mgpu_doctor.model.known import Origin, Setting, Unknown
from mgpu_doctor.model.launch import RANK_LAUNCHERS, Launch, Layer, RankPlacement
from mgpu_doctor.render.clean import one_line
from mgpu_doctor.render.devices import short_uuid

MOST_RANKS = 16
"""How many ranks are listed one by one; of longer jobs the first and last are."""

_TASK_LAUNCHERS = frozenset({"srun", "mpirun", "mpiexec", "mpiexec.hydra"})


class Step(NamedTuple):
    """One program in the chain; ``role`` is ``launches``, ``courier`` or ``computes``, ``does`` says more."""

    name: str
    role: str
    does: str


class RankRow(NamedTuple):
    """One rank and its device; a row whose ``rank`` is ``…`` stands for ranks left out."""

    rank: str
    node: str
    visible: str
    physical: str
    name: str
    uuid: str


class Fact(NamedTuple):
    """A labelled statement about the launch; ``origin`` says where the value comes from."""

    label: str
    value: str
    origin: str = ""


class Story(NamedTuple):
    """A launch in words."""

    place: str
    steps: tuple[Step, ...]
    facts: tuple[Fact, ...]
    ranks: tuple[RankRow, ...]
    no_ranks: str | None
    """Why no table of ranks can be given; None when ``ranks`` is one."""
    several_nodes: bool
    notes: tuple[str, ...]


def tell(launch: Launch, facts: Facts, case: Case | None = None) -> Story:
    """A launch in words; every text is cleaned for showing. With its case, what it needs of memory is told as well."""
    ranks, no_ranks = _ranks(launch, facts)
    source = launch.command.source
    return Story(
        place=f"{one_line(source.name)}:{source.position(launch.command.span.start).line}",
        steps=_steps(launch),
        facts=(*_facts(launch), *_memory(launch, case)),
        ranks=ranks,
        no_ranks=no_ranks,
        several_nodes=launch.nodes.known not in (None, 1),
        notes=tuple(one_line(note) for note in launch.notes),
    )


def basis(case: Case) -> tuple[str, ...]:
    """What the reasoning rests on: the machine, and the release of each package that takes part."""
    lines = [_machine(case.facts)]
    seen: set[str] = set()
    for launch in case.launches:
        for layer in launch.layers:
            release = layer.release
            if release is None or release.package in seen:
                continue
            seen.add(release.package)
            version = release.version or "of unknown version"
            lines.append(one_line(f"{release.package} {version}: {release.why}"))
    return tuple(lines)


def _machine(facts: Facts) -> str:
    if facts.origin == "none":
        return "the text alone: no machine was looked at"
    gpus = facts.gpus
    if isinstance(gpus, Unknown):
        return one_line(f"{facts.origin}: GPUs unknown ({gpus.reason})")
    if not gpus:
        return one_line(f"{facts.origin}: no GPU")
    names = {gpu.name for gpu in gpus}
    name = names.pop() if len(names) == 1 else "of different kinds"
    return one_line(f"{facts.origin}: {len(gpus)} GPU{'s' * (len(gpus) != 1)} {name if isinstance(name, str) else ''}")


def _steps(launch: Launch) -> tuple[Step, ...]:
    starters = [layer for layer in launch.layers if _starts_ranks(layer)]
    innermost = starters[-1] if starters else None
    steps = [_step(launch, layer, layer is innermost) for layer in launch.layers]
    return (*steps, _target_step(launch))


def _starts_ranks(layer: Layer) -> bool:
    return layer.launcher in RANK_LAUNCHERS or layer.launcher in _TASK_LAUNCHERS


def _step(launch: Launch, layer: Layer, innermost: bool) -> Step:
    name = layer.launcher
    if layer.release is not None and layer.release.version and layer.launcher != "python":
        package = layer.release.package
        version = layer.release.version + ("" if layer.release.certain else ", assumed")
        name = f"{name} ({version if package == layer.launcher else f'{package} {version}'})"
    started = "started by the line above; " if layer.implied else ""
    if _starts_ranks(layer):
        does = f"starts {_processes(launch)}" if innermost else "starts the next line once for each of its tasks"
        return Step(one_line(name), "launches", started + does)
    last = layer is launch.layers[-1]
    if last and layer.launcher == "python":
        return Step(one_line(name), "launches", started + "runs it as one process")
    return Step(one_line(name), "courier", started + "hands over to the next line")


def _processes(launch: Launch) -> str:
    per_node, nodes, total = launch.processes_per_node.known, launch.nodes.known, launch.world_size.known
    if total is not None and nodes in (None, 1):
        return _count(total, "process", "processes")
    if per_node is not None and nodes is not None:
        return f"{_count(per_node, 'process', 'processes')} on each of {nodes} nodes"
    if per_node is not None:
        return f"{_count(per_node, 'process', 'processes')} on each node"
    if total is not None:
        return f"{_count(total, 'process', 'processes')} in all"
    return "an unknown number of processes"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _target_step(launch: Launch) -> Step:
    target = launch.target
    name = target_text(launch)
    if target.kind == "none":
        return Step("nothing", "computes", "no script, module or command is given")
    what = {"script": "script", "module": "module", "command": "command", "inline": "inline program"}[target.kind]
    if target.framework:
        what += f" of {target.framework}"
    if target.exists is False:
        what += ", which does not exist"
    return Step(one_line(name), "computes", one_line(what))


def target_text(launch: Launch) -> str:
    """The target as people call it: a script's path, ``-m MODULE``, or a command with its sub-command."""
    target = launch.target
    value = target.word.written if target.word is not None else target.value or ""
    if target.kind == "module":
        return f"-m {value}"
    if target.kind == "inline":
        return "python -c …"
    return " ".join(part for part in (value, target.subcommand) if part)


def _facts(launch: Launch) -> Iterable[Fact]:
    yield Fact("processes", _total(launch), _origin(launch.processes_per_node.origin))
    if launch.nodes.known != 1:
        yield Fact("nodes", _setting(launch.nodes), _origin(launch.nodes.origin))
        yield Fact("this node", _setting(launch.node_rank), _origin(launch.node_rank.origin))
    yield _visible(launch)
    yield _rendezvous(launch)
    yield _engine(launch)
    yield _purpose(launch)
    if launch.groups.known is False:
        yield Fact("group", "none: each process believes that it is alone", _origin(launch.groups.origin))


def _memory(launch: Launch, case: Case | None) -> Iterable[Fact]:
    """What the launch needs of memory; nothing where no model is found."""
    from mgpu_doctor.memory.model_used import names_model

    if case is None or not names_model(launch):
        return ()
    from mgpu_doctor.render.memory import memory_lines

    return (Fact(*line) for line in memory_lines(case, launch))


def _total(launch: Launch) -> str:
    total = launch.world_size
    if isinstance(total.value, Unknown):
        return f"unknown: {one_line(total.value.reason)}"
    if launch.nodes.known in (None, 1):
        return str(total.value)
    return f"{total.value} in all, {_setting(launch.processes_per_node)} on each node"


def _setting(setting: Setting[int]) -> str:
    value = setting.value
    return f"unknown: {one_line(value.reason)}" if isinstance(value, Unknown) else str(value)


def _visible(launch: Launch) -> Fact:
    after = launch.visible
    if isinstance(after.value, Unknown):
        return Fact("visible GPUs", f"unknown: {one_line(after.value.reason)}", _origin(after.origin))
    devices = after.value
    text = "all" if devices.all else one_line(",".join(devices.entries)) or "none"
    before = launch.visible_before.known
    if before is not None and (before.entries, before.all) != (devices.entries, devices.all):
        text += f" (before: {'all' if before.all else one_line(','.join(before.entries)) or 'none'})"
    return Fact("visible GPUs", text, _origin(after.origin))


def _rendezvous(launch: Launch) -> Fact:
    meeting = launch.rendezvous
    if meeting is None:
        return Fact("port", "none: the processes do not meet over a port")
    port = meeting.port
    by = f", bound by {meeting.used_by}" if meeting.used_by else ""
    if port is None:
        return Fact("port", f"none{by}", _origin(meeting.backend.origin))
    if isinstance(port.value, Unknown):
        return Fact("port", f"unknown: {one_line(port.value.reason)}", _origin(port.origin))
    address = meeting.address.known if meeting.address is not None else None
    if port.value == 0:
        return Fact("port", f"a free one, chosen at the start{by}", _origin(port.origin))
    where = f"{address}:{port.value}" if address else str(port.value)
    return Fact("port", one_line(where + by), _origin(port.origin))


_ENGINES = {
    "none": "none: each process is on its own",
    "ddp": "DDP: a replica in each process, gradients averaged",
    "deepspeed": "DeepSpeed",
    "fsdp": "FSDP: the model sharded over the processes",
    "megatron": "Megatron: the model split over the processes",
    "device_map": "device_map: one process spreads the layers over the cards",
    "data_parallel": "DataParallel: one process drives all cards",
}


def _engine(launch: Launch) -> Fact:
    engine = launch.engine.value
    if isinstance(engine, Unknown):
        return Fact("engine", f"unknown: {one_line(engine.reason)}", _origin(launch.engine.origin))
    text = _ENGINES.get(engine.name, engine.name)
    if isinstance(engine.stage, int):
        text += f" ZeRO-{engine.stage}"
    elif isinstance(engine.stage, Unknown):
        text += ", ZeRO stage unknown"
    return Fact("engine", one_line(text), _origin(launch.engine.origin))


_PURPOSES = {
    "train": "training",
    "predict": "batch prediction",
    "chat": "interactive chat",
    "serve": "serving requests",
    "export": "exporting a model",
    "evaluate": "evaluation",
    "other": "not one that is recognised",
}


def _purpose(launch: Launch) -> Fact:
    purpose, spread = launch.purpose.value, launch.spread.value
    unknown = purpose.reason if isinstance(purpose, Unknown) else None
    text = _PURPOSES.get(str(purpose), str(purpose)) if unknown is None else f"unknown: {one_line(unknown)}"
    return Fact("purpose", text + _spread(launch, spread), _origin(launch.purpose.origin))


def _spread(launch: Launch, spread: str | Unknown) -> str:
    count = launch.world_size.known
    if spread == "replicas":
        return f"; {count or 'several'} replicas for throughput, one model on each card"
    if spread == "split":
        return "; one model spread over the cards"
    if spread == "single":
        return "; one model on one card"
    return ""


def _origin(origin: Origin) -> str:
    text = origin.detail if origin.kind not in ("default", "config") else _kind(origin)
    overrides = origin.overrides
    if overrides is not None:
        old = f"{overrides.value} from " if isinstance(overrides.value, (int, str)) else ""
        text += f", overrides {old}{overrides.origin.detail}"
    return one_line(text)


def _kind(origin: Origin) -> str:
    if origin.kind == "default":
        return f"default of {origin.detail}" if not origin.detail.startswith("default") else origin.detail
    if origin.location is not None:
        return f"{origin.detail}, line {origin.location.source.position(origin.location.span.start).line}"
    return origin.detail


def _ranks(launch: Launch, facts: Facts) -> tuple[tuple[RankRow, ...], str | None]:
    ranks = launch.ranks
    if isinstance(ranks, Unknown):
        return (), one_line(ranks.reason)
    if not ranks:
        return (), "no process uses a GPU"
    if len(ranks) == 1 and _spreads(launch):
        return _spread_rows(ranks[0], launch, facts), None
    if len(ranks) <= MOST_RANKS:
        return tuple(_row(rank, launch, facts) for rank in ranks), None
    head = tuple(_row(rank, launch, facts) for rank in ranks[: MOST_RANKS // 2])
    tail = tuple(_row(rank, launch, facts) for rank in ranks[-2:])
    left_out = len(ranks) - len(head) - len(tail)
    return (*head, RankRow("…", "", f"{left_out} more", "", "", ""), *tail), None


def _spreads(launch: Launch) -> bool:
    """Whether one process uses every visible card."""
    devices = launch.visible.known
    return launch.spread.known == "split" and devices is not None and len(devices.entries) > 1


def _spread_rows(rank: RankPlacement, launch: Launch, facts: Facts) -> tuple[RankRow, ...]:
    """A row for each card of a model that one process spreads."""
    devices = launch.visible.known
    assert devices is not None
    rows = []
    for index, physical in enumerate(devices.physical[:MOST_RANKS]):
        gpu = facts.gpu(physical) if isinstance(physical, int) else None
        uuid = gpu.uuid if gpu is not None else Unknown("no inventory of GPUs")
        place = RankPlacement(rank.rank, rank.local_rank, rank.node, index, physical, uuid)
        rows.append(_row(place, launch, facts))
    return tuple(rows)


def _row(rank: RankPlacement, launch: Launch, facts: Facts) -> RankRow:
    physical = rank.physical_index
    gpu = facts.gpu(physical) if isinstance(physical, int) else None
    name = gpu.name if gpu is not None and isinstance(gpu.name, str) else ""
    uuid = rank.uuid if isinstance(rank.uuid, str) else ""
    return RankRow(
        str(rank.rank),
        str(rank.node),
        f"cuda:{rank.visible_index}" if isinstance(rank.visible_index, int) else "no device",
        f"GPU {physical}" if isinstance(physical, int) else one_line(_entry(rank, launch)),
        one_line(name),
        one_line(short_uuid(uuid)),
    )


def _entry(rank: RankPlacement, launch: Launch) -> str:
    """What the visible list says about a rank's device when nvidia-smi's number for it is not known."""
    devices, index = launch.visible.known, rank.visible_index
    if not isinstance(index, int):
        return "none"
    if devices is None:
        return "unknown"
    if devices.all:
        return f"CUDA device {index}"
    if not 0 <= index < len(devices.entries):
        return "none"
    entry = devices.entries[index]
    return f"CUDA device {entry}" if entry.isdecimal() else entry


def why_unknown(launch: Launch) -> str | None:
    """Why physical devices are unknown where some are; None when all are known."""
    if isinstance(launch.ranks, Unknown):
        return None
    placed = (rank.physical_index for rank in launch.ranks if isinstance(rank.visible_index, int))
    reason = next((physical for physical in placed if isinstance(physical, Unknown)), None)
    return one_line(f"nvidia-smi's numbers are not known: {reason.reason}") if reason is not None else None
