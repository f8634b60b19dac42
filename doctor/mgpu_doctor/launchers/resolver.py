"""Follows a command through its launchers to the processes that do the work."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from mgpu_doctor.launchers import target as targets
from mgpu_doctor.launchers.chain import Context, Peeled, Plan
from mgpu_doctor.launchers.devices import all_devices, place_ranks, visible_devices
from mgpu_doctor.launchers.variables import program_name, read_variable
from mgpu_doctor.model.command import Command, Word
from mgpu_doctor.model.facts import Facts
from mgpu_doctor.model.knowledge import Knowledge
from mgpu_doctor.model.known import Origin, Setting, Unknown
from mgpu_doctor.model.launch import RANK_LAUNCHERS, Engine, Launch, Layer, RankPlacement, Target, VisibleDevices
from mgpu_doctor.model.record import dataclass, replace
from mgpu_doctor.model.workspace import Workspace

LAUNCHER_MODULES = ("accelerate", "torchrun", "deepspeed", "llamafactory", "swift", "python")
"""The modules of this package that can peel a launcher off a command, asked in this order."""

MOST_LAYERS = 8

_SHELLS = frozenset({"bash", "sh", "zsh"})
_LAUNCH_VARIABLES = frozenset({"CUDA_VISIBLE_DEVICES", "NPROC_PER_NODE", "MASTER_PORT", "NNODES", "FORCE_TORCHRUN"})
_HOUSEKEEPING = frozenset(
    {
        "pip",
        "venv",
        "ensurepip",
        "build",
        "http",
        "json",
        "zipfile",
        "virtualenv",
        "site",
        "timeit",
        "compileall",
        "py_compile",
    }
)
"""Top-level modules that ``python -m`` runs for other purposes than computing."""

_HOUSEKEEPING_SCRIPTS = frozenset({"setup.py", "get-pip.py", "manage.py", "conftest.py"})

_NO_LAUNCHES = frozenset({"accelerate", "deepspeed", "torchrun"})
"""What is left of these as plain commands (``accelerate config``, ``accelerate env``) starts no job."""


class _Launcher(Protocol):
    """What a launcher's module offers."""

    def peel(self, words: tuple[Word, ...], form: str, context: Context) -> Peeled | None: ...

    def plan(self, layer: Layer, before: Plan, context: Context) -> Plan: ...


@dataclass(frozen=True, slots=True)
class _Depth:
    """How far the command has been followed."""

    layers: tuple[Layer, ...]
    plan: Plan
    before_ranks: Setting[VisibleDevices]
    rest: tuple[Word, ...]
    form: str


def resolve(command: Command, facts: Facts, knowledge: Knowledge, workspace: Workspace) -> Launch | None:
    """What a command would really do; None when it launches nothing that could use a GPU.

    A launch has a launcher in it (typed, or one that a framework's command starts by itself), or is a
    Python program or a framework's command.
    """
    context = Context(command, facts, knowledge, workspace)
    depth = _follow(_outside(context), context)
    if not _may_launch(depth):
        return None
    target = targets.read_target(depth.rest, depth.form, depth.layers, context)
    if not _is_launch(depth, target, context):
        return None
    return _launch(depth, target, context)


def _launch(depth: _Depth, target: Target, context: Context) -> Launch:
    layers, plan = depth.layers, depth.plan
    purpose = targets.judge_purpose(target, layers, plan, context)
    engine = targets.judge_engine(target, layers, plan, context)
    spread = targets.judge_spread(target, plan, engine, purpose, context)
    return Launch(
        context.command,
        layers,
        target,
        plan.processes_per_node,
        plan.nodes,
        plan.node_rank,
        _world_size(plan),
        depth.before_ranks,
        plan.visible,
        plan.rendezvous,
        engine,
        purpose,
        spread,
        _placements(layers, plan, context),
        plan.groups,
        plan.notes,
    )


def _placements(layers: tuple[Layer, ...], plan: Plan, context: Context) -> tuple[RankPlacement, ...] | Unknown:
    """Which rank gets which device; with a launcher inside a launcher, several jobs each count from cuda:0."""
    if sum(layer.launcher in RANK_LAUNCHERS for layer in layers) > 1:
        return Unknown("a launcher runs inside a launcher: each inner job counts its ranks, and its GPUs, from 0")
    return place_ranks(plan.processes_per_node, plan.nodes, plan.node_rank, plan.visible, context.facts)


def _outside(context: Context) -> _Depth:
    """The wrappers around the command, and the one process that a shell would start."""
    from mgpu_doctor.launchers import scheduler

    plan = first_plan(context)
    layers: tuple[Layer, ...] = ()
    for wrapper in context.command.wrappers:
        layer = scheduler.wrapper_layer(wrapper)
        if layer is not None:
            layers = (*layers, layer)
            plan = scheduler.plan(layer, plan, context)
    return _Depth(layers, plan, plan.visible, context.command.words, "command")


def first_plan(context: Context) -> Plan:
    """One process on one machine, with the visible list that reaches it."""
    alone = Origin("default", "a command is one process")
    return Plan(
        processes_per_node=Setting(1, alone),
        nodes=Setting(1, alone),
        node_rank=Setting(0, alone),
        visible=_first_visible(context),
        rendezvous=None,
        engine=Setting(Engine("none"), alone),
        groups=Setting(True, alone),
    )


def _first_visible(context: Context) -> Setting[VisibleDevices]:
    """CUDA_VISIBLE_DEVICES where it is set; else every GPU of the machine.

    An environment that nobody looked at counts as one without the variable.
    """
    text = read_variable(context, "CUDA_VISIBLE_DEVICES")
    order = read_variable(context, "CUDA_DEVICE_ORDER").known
    if isinstance(text.value, str):
        return Setting(visible_devices(text.value, context.facts, order), text.origin)
    if isinstance(text.value, Unknown) and text.origin.kind != "facts":
        return Setting(text.value, text.origin)
    return Setting(all_devices(context.facts, order), Origin("facts", "every GPU of the machine"))


def _follow(depth: _Depth, context: Context) -> _Depth:
    for _ in range(MOST_LAYERS):
        if not depth.rest or depth.form == "none":
            break
        found = _peel(depth, context)
        if found is None:
            break
        launcher, peeled = found
        depth = _descend(depth, launcher, peeled, context)
    return depth


def _peel(depth: _Depth, context: Context) -> tuple[_Launcher, Peeled] | None:
    for name in LAUNCHER_MODULES:
        launcher = cast("_Launcher", import_module(f"mgpu_doctor.launchers.{name}"))
        peeled = launcher.peel(depth.rest, depth.form, context)
        if peeled is not None:
            return launcher, peeled
    return None


def _descend(depth: _Depth, launcher: _Launcher, peeled: Peeled, context: Context) -> _Depth:
    layers, layer = depth.layers, peeled.layer
    if layers and layers[-1].launcher == "python" and not layers[-1].implied:
        # `python -m torch.distributed.run`: the interpreter only names the launcher.
        name = (*layers[-1].command_words, *layers[-1].argument_words, *layer.command_words)
        layers, layer = layers[:-1], replace(layer, command_words=name)
    started = _note_copies(layer, depth.plan, launcher.plan(layer, depth.plan, context))
    ranked = any(before.launcher in RANK_LAUNCHERS for before in layers)
    reached = depth.before_ranks if ranked else depth.plan.visible
    layers = (*layers, layer)
    made = _implied(launcher, layer, depth.plan, context)
    if made is not None:
        from mgpu_doctor.launchers import torchrun

        layers = (*layers, made)
        started = torchrun.plan(made, started, context)
    return _Depth(layers, started, reached, peeled.rest, peeled.form)


def _note_copies(layer: Layer, before: Plan, started: Plan) -> Plan:
    """Say so when a launcher that is started on several nodes makes a job of each node alone."""
    outer, inner = before.nodes.known, started.nodes.known
    if layer.launcher not in RANK_LAUNCHERS or outer is None or inner is None or outer <= inner:
        return started
    note = f"{layer.launcher} is started on {outer} nodes and makes jobs of {inner}: they know nothing of each other"
    return replace(started, notes=(*started.notes, note))


def _implied(launcher: _Launcher, layer: Layer, before: Plan, context: Context) -> Layer | None:
    """The torchrun that a framework's command starts by itself."""
    ask = getattr(launcher, "implied", None)
    made = ask(layer, before, context) if ask is not None else None
    return made if isinstance(made, Layer) else None


def _may_launch(depth: _Depth) -> bool:
    """A cheap answer for the many commands of a script that launch nothing."""
    if any(layer.launcher in RANK_LAUNCHERS for layer in depth.layers):
        last = depth.layers[-1]
        asked_only = not depth.rest and not last.problems and last.opaque is None and not last.implied
        return not asked_only or last.launcher not in RANK_LAUNCHERS
    if depth.form == "inline":
        return False
    text = depth.rest[0].value if depth.rest else None
    if depth.form == "module":
        return text is None or text.partition(".")[0] not in _HOUSEKEEPING
    if depth.form == "script":
        return text is None or text.rpartition("/")[2] not in _HOUSEKEEPING_SCRIPTS
    return bool(depth.rest) or any(layer.launcher not in ("python", "srun", "mpirun") for layer in depth.layers)


def _is_launch(depth: _Depth, target: Target, context: Context) -> bool:
    if depth.form in ("script", "module") and any(layer.launcher == "python" for layer in depth.layers):
        return True
    if any(_starts_work(layer) for layer in depth.layers):
        return True
    if depth.form == "command" and depth.rest and program_name(depth.rest[0]) in _NO_LAUNCHES:
        return False
    if target.framework is not None or target.subcommand is not None:
        return True
    return _is_shell_script(depth, context)


def _starts_work(layer: Layer) -> bool:
    return layer.launcher in RANK_LAUNCHERS or layer.launcher in ("llamafactory-cli", "swift", "megatron", "tune run")


def _is_shell_script(depth: _Depth, context: Context) -> bool:
    """``CUDA_VISIBLE_DEVICES=0 bash eval.sh``: what the script launches gets these variables.

    ``srun bash run.sh`` starts the script once for each task.
    """
    if len(depth.rest) < 2 or program_name(depth.rest[0]) not in _SHELLS:
        return False
    if any(layer.launcher in ("srun", "mpirun") for layer in depth.layers):
        return True
    names = {variable.name for variable in context.command.environment if variable.scope == "prefix"}
    return bool(names & _LAUNCH_VARIABLES)


def _world_size(plan: Plan) -> Setting[int]:
    per_node, nodes = plan.processes_per_node, plan.nodes
    origin = Origin("derived", "processes on each node × nodes")
    if isinstance(per_node.value, Unknown):
        return Setting(per_node.value, origin)
    if isinstance(nodes.value, Unknown):
        return Setting(nodes.value, origin)
    return Setting(per_node.value * nodes.value, origin)
