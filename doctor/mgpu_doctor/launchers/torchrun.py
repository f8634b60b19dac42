"""torchrun, ``python -m torch.distributed.run`` and ``python -m torch.distributed.launch``.

Verified in torch 1.13.1 to 2.13.0, distributed/run.py and distributed/launch.py.
"""

from __future__ import annotations

from mgpu_doctor.launchers.arguments import OptionTable, Parsed, parse_arguments
from mgpu_doctor.launchers.chain import Context, Peeled, Plan
from mgpu_doctor.launchers.variables import (
    as_number,
    as_text,
    given_option,
    program_name,
    read_variable,
    release_label,
    times,
    whole_number,
)
from mgpu_doctor.model.command import Word
from mgpu_doctor.model.known import Origin, Setting, Unknown
from mgpu_doctor.model.launch import Layer, OptionSpec, ParseProblem, Rendezvous, VisibleDevices
from mgpu_doctor.model.record import replace

DEFAULT_PORT = 29500
C10D_PORT = 29400
"""Used by the c10d backend when the endpoint names no port (torch 2.13.0, c10d_rendezvous_backend.py)."""

SYNONYMS = {
    "--num-processes": "--nproc_per_node",
    "--num-gpus": "--nproc_per_node",
    "--nproc": "--nproc_per_node",
    "--n-proc-per-node": "--nproc_per_node",
    "--nprocs-per-node": "--nproc_per_node",
    "--num-nodes": "--nnodes",
    "--num-machines": "--nnodes",
    "--nnode": "--nnodes",
    "--machine-rank": "--node_rank",
    "--noderank": "--node_rank",
    "--main-process-port": "--master_port",
    "--main-process-ip": "--master_addr",
    "--master-address": "--master_addr",
    "--port": "--master_port",
}

_MODULES = {"torch.distributed.run": "torch.distributed.run", "torch.distributed.launch": "torch.distributed.launch"}


def peel(words: tuple[Word, ...], form: str, context: Context) -> Peeled | None:
    """Recognise the launcher in front of ``words`` and split its options from what it starts."""
    name = launcher_name(words, form)
    if name is None:
        return None
    table_name = "torch.distributed.launch" if name == "torch.distributed.launch" else "torchrun"
    release = context.knowledge.release("torch")
    specs = context.knowledge.options(table_name)
    own = words[1:]
    if isinstance(specs, Unknown):
        layer = Layer(name, words[:1], own, release=release, opaque=f"its options are not known: {specs.reason}")
        return Peeled(layer, (), "none")
    specs = _with_positionals_removed(specs)
    table = OptionTable(specs, abbreviations=context.knowledge.allows_abbreviations(table_name))
    python = context.facts.python.version
    parsed = parse_arguments(
        own, table, python=None if isinstance(python, Unknown) else python, synonyms=_synonyms(table)
    )
    layer = Layer(
        name,
        words[:1],
        parsed.words,
        parsed.options,
        release,
        parsed.problems,
        opaque=parsed.opaque,
    )
    layer = replace(layer, problems=(*layer.problems, *_refusals(layer)))
    return _peeled(layer, parsed, context)


def launcher_name(words: tuple[Word, ...], form: str) -> str | None:
    """The launcher's canonical name, None when the words are something else."""
    if not words:
        return None
    text = words[0].value or ""
    if form == "module":
        return _MODULES.get(text)
    if form in ("script", "command"):
        # A console script handed to python stands there with its path: `python $(which torchrun) …`.
        if program_name(words[0]) == "torchrun" and (form == "command" or text != "torchrun"):
            return "torchrun"
        for module in _MODULES:
            if text.endswith("/" + module.replace(".", "/") + ".py"):
                return module
    return None


def _with_positionals_removed(specs: tuple[OptionSpec, ...]) -> tuple[OptionSpec, ...]:
    return tuple(spec for spec in specs if spec.flags)


def _synonyms(table: OptionTable) -> dict[str, str]:
    return {foreign: own if own in table.by_flag else own.replace("_", "-") for foreign, own in SYNONYMS.items()}


def _peeled(layer: Layer, parsed: Parsed, context: Context) -> Peeled:
    if parsed.target is None:
        return Peeled(layer, (), "none")
    rest = (parsed.target, *parsed.rest)
    if _switch(layer, context, "no_python") is True:
        return Peeled(layer, rest, "command")
    if _switch(layer, context, "module") is True:
        return Peeled(layer, rest, "module")
    return Peeled(layer, rest, "script")


def _switch(layer: Layer, context: Context, dest: str) -> bool | Unknown:
    """A switch that PET_<DEST> may turn on as well (argparse_util.check_env)."""
    if layer.option(dest) is not None:
        return True
    variable = read_variable(context, f"PET_{dest.upper()}")
    if isinstance(variable.value, Unknown) or variable.value is None:
        return False
    return whole_number(variable.value) not in (0, None)


def _refusals(layer: Layer) -> tuple[ParseProblem, ...]:
    """What run() refuses behind argparse, as far as the words tell."""
    if layer.opaque is not None:
        return ()
    found: list[ParseProblem] = []
    no_python, module = layer.option("no_python"), layer.option("module")
    run_path = layer.option("run_path")
    if no_python and module and not run_path:
        message = "Don't use both the '--no-python' flag and the '--module' flag at the same time."
        found.append(ParseProblem("conflict", message, no_python.span, no_python.flag))
    if layer.launcher == "torch.distributed.launch" and no_python and layer.option("use_env") is None:
        message = "When using the '--no-python' flag, you must also set the '--use-env' flag."
        found.append(ParseProblem("refused", message, no_python.span, no_python.flag))
    nnodes = layer.option("nnodes")
    if nnodes is not None and nnodes.value is not None:
        found.extend(_refused_nnodes(nnodes.value, nnodes.values[0], nnodes.flag))
    nproc = layer.option("nproc_per_node")
    if nproc is not None and nproc.value is not None and not _accepts_nproc(nproc.value):
        message = f"Unsupported nproc_per_node value: {nproc.value}"
        found.append(ParseProblem("invalid-value", message, nproc.values[0].span, nproc.flag))
    return tuple(found)


def _accepts_nproc(text: str) -> bool:
    return whole_number(text) is not None or text in ("auto", "cpu", "gpu", "xpu", "npu", "hpu", "mlu", "musa")


def _refused_nnodes(text: str, word: Word, flag: str) -> tuple[ParseProblem, ...]:
    limits = node_limits(text)
    if limits is None:
        message = f'nnodes={text} is not in "MIN:MAX" format'
    elif not 0 < limits[0] <= limits[1]:
        message = f"--nnodes {text}: the least number of nodes must be above 0 and not above the largest"
    else:
        return ()
    return (ParseProblem("invalid-value", message, word.span, flag),)


def node_limits(text: str) -> tuple[int, int] | None:
    """Least and largest number of nodes of ``N`` or ``MIN:MAX``; None when it is neither."""
    parts = [whole_number(part) for part in text.split(":")]
    if not 1 <= len(parts) <= 2 or None in parts:
        return None
    numbers = [part for part in parts if part is not None]
    return numbers[0], numbers[-1]


def plan(layer: Layer, before: Plan, context: Context) -> Plan:
    """The workers that torchrun starts."""
    nodes = _nodes(layer, before, context)
    per_node = _processes(layer, before, context)
    rendezvous = _rendezvous(layer, before, context, nodes)
    return replace(
        before,
        processes_per_node=times(before.processes_per_node, per_node),
        nodes=nodes,
        node_rank=_node_rank(layer, before, context, nodes),
        rendezvous=rendezvous,
        groups=Setting(True, Origin("derived", "torchrun gives every worker RANK, WORLD_SIZE and MASTER_ADDR")),
    )


def backed_value(layer: Layer, before: Plan, context: Context, dest: str) -> Setting[object] | None:
    """The command line's value, or that of PET_<DEST>; None when neither gives one.

    Unknown when the words or the environment hide it.
    """
    setting = given_option(layer, context, dest)
    if setting is not None:
        return setting
    if layer.opaque is not None:
        return Setting(Unknown(layer.opaque), Origin("option", dest))
    variable = read_variable(context, f"PET_{dest.upper()}", before.variables)
    if variable.value is None:
        return None
    return Setting(variable.value, variable.origin)


def _default(layer: Layer, context: Context, dest: str) -> object:
    for spec in _table(layer, context):
        if spec.dest == dest:
            return spec.default
    return None


def _table(layer: Layer, context: Context) -> tuple[OptionSpec, ...]:
    name = "torch.distributed.launch" if layer.launcher == "torch.distributed.launch" else "torchrun"
    specs = context.knowledge.options(name)
    return () if isinstance(specs, Unknown) else specs


def _unlooked(setting: Setting[object] | None, layer: Layer) -> bool:
    """Whether only the environment, which nobody looked at, could give a value."""
    return (
        setting is not None
        and isinstance(setting.value, Unknown)
        and setting.origin.kind == "facts"
        and layer.opaque is None
    )


def _processes(layer: Layer, before: Plan, context: Context) -> Setting[int]:
    setting = backed_value(layer, before, context, "nproc_per_node")
    if setting is None or _unlooked(setting, layer):
        return Setting(1, Origin("default", f"{release_label(layer.release, 'torch')}: --nproc-per-node is 1"))
    value = setting.value
    if isinstance(value, Unknown):
        return Setting(value, setting.origin)
    if value in ("gpu", "auto"):
        return _as_many_as_visible(before.visible, setting.origin, str(value))
    if value == "cpu":
        return Setting(Unknown("the number of CPUs of the machine is not known"), setting.origin)
    return as_number(setting, "--nproc-per-node")


def _as_many_as_visible(visible: Setting[VisibleDevices], origin: Origin, value: str) -> Setting[int]:
    devices = visible.value
    if isinstance(devices, Unknown):
        return Setting(Unknown(f"{value} means one process a visible GPU: {devices.reason}"), origin)
    if not devices.entries:
        reason = "no GPU is visible: one process a CPU core" if value == "auto" else "no GPU is visible"
        return Setting(Unknown(reason), origin)
    return Setting(len(devices.entries), origin)


def _nodes(layer: Layer, before: Plan, context: Context) -> Setting[int]:
    setting = backed_value(layer, before, context, "nnodes")
    if setting is None or _unlooked(setting, layer):
        return Setting(1, Origin("default", f"{release_label(layer.release, 'torch')}: --nnodes is 1"))
    value = setting.value
    if isinstance(value, Unknown):
        return Setting(value, setting.origin)
    limits = node_limits(str(value))
    if limits is None:
        return Setting(Unknown(f"--nnodes {value} is neither N nor MIN:MAX"), setting.origin)
    if limits[0] != limits[1]:
        return Setting(Unknown(f"between {limits[0]} and {limits[1]} nodes"), setting.origin)
    return Setting(limits[1], setting.origin)


def _node_rank(layer: Layer, before: Plan, context: Context, nodes: Setting[int]) -> Setting[int]:
    if _backend(layer, before, context).known not in ("static", None):
        if nodes.known == 1:
            return Setting(0, Origin("derived", "one node"))
        return Setting(Unknown("the rendezvous gives out node ranks"), Origin("derived", "rendezvous"))
    setting = backed_value(layer, before, context, "node_rank")
    if setting is None or (_unlooked(setting, layer) and nodes.known == 1):
        return Setting(0, Origin("default", f"{release_label(layer.release, 'torch')}: --node-rank is 0"))
    return as_number(setting, "--node-rank")


def _standalone(layer: Layer, context: Context) -> bool:
    return _switch(layer, context, "standalone") is True


def _backend(layer: Layer, before: Plan, context: Context) -> Setting[str]:
    if _standalone(layer, context):
        return Setting("c10d", Origin("option", "--standalone"))
    setting = backed_value(layer, before, context, "rdzv_backend")
    if setting is None or _unlooked(setting, layer):
        return Setting(
            "static", Origin("default", f"{release_label(layer.release, 'torch')}: --rdzv-backend is static")
        )
    return as_text(setting)


def _rendezvous(layer: Layer, before: Plan, context: Context, nodes: Setting[int]) -> Rendezvous:
    backend = _backend(layer, before, context)
    if _standalone(layer, context):
        free = Origin("option", "--standalone")
        return Rendezvous(backend, Setting("localhost", free), Setting(0, free), layer.launcher)
    if isinstance(backend.value, Unknown):
        hidden = Unknown(backend.value.reason)
        return Rendezvous(backend, Setting(hidden, backend.origin), Setting(hidden, backend.origin), layer.launcher)
    endpoint = backed_value(layer, before, context, "rdzv_endpoint")
    if _unlooked(endpoint, layer) and nodes.known == 1:
        endpoint = None
    if endpoint is not None and endpoint.value != "":
        return _at_endpoint(backend, endpoint, layer)
    if backend.value == "static":
        return _static(layer, before, context, nodes, backend)
    default = Origin("default", f"--rdzv-backend {backend.value} without an endpoint")
    if backend.value == "c10d":
        return Rendezvous(backend, Setting("localhost", default), Setting(C10D_PORT, default), layer.launcher)
    return Rendezvous(backend, None, None, layer.launcher)


def _at_endpoint(backend: Setting[str], endpoint: Setting[object], layer: Layer) -> Rendezvous:
    value = endpoint.value
    if isinstance(value, Unknown):
        return Rendezvous(backend, Setting(value, endpoint.origin), Setting(value, endpoint.origin), layer.launcher)
    host, port = split_endpoint(str(value))
    number: Setting[int]
    if port is None:
        fallback = C10D_PORT if backend.value == "c10d" else -1
        number = Setting(fallback, Origin("default", "the endpoint names no port"))
        if fallback < 0:
            return Rendezvous(backend, Setting(host, endpoint.origin), None, layer.launcher)
    else:
        whole = whole_number(port)
        bad = Unknown(f"the endpoint's port {port!r} is no number")
        number = Setting(bad if whole is None else whole, endpoint.origin)
    return Rendezvous(backend, Setting(host or "localhost", endpoint.origin), number, layer.launcher)


def split_endpoint(text: str) -> tuple[str, str | None]:
    """Host and port of ``host[:port]`` or ``[v6]:port``; the port is None when there is none."""
    text = text.strip()
    if text.startswith("["):
        host, _bracket, behind = text[1:].partition("]")
        return host, behind[1:] if behind.startswith(":") and len(behind) > 1 else None
    host, colon, port = text.rpartition(":")
    if not colon:
        return text, None
    return host, port or None


def _static(layer: Layer, before: Plan, context: Context, nodes: Setting[int], backend: Setting[str]) -> Rendezvous:
    one_node = nodes.known == 1
    address = backed_value(layer, before, context, "master_addr")
    port = backed_value(layer, before, context, "master_port")
    if one_node and _unlooked(address, layer):
        address = None
    if one_node and _unlooked(port, layer):
        port = None
    name = release_label(layer.release, "torch")
    where: Setting[str] = (
        Setting("127.0.0.1", Origin("default", f"{name}: --master-addr is 127.0.0.1"))
        if address is None
        else as_text(address)
    )
    if port is not None:
        return Rendezvous(backend, where, as_number(port, "--master-port"), layer.launcher)
    # Some releases leave --master-port without a default and then, on one node, let the system choose
    # (torch 2.13.0, distributed/run.py run()); before, 29500 is bound.
    if one_node and _default(layer, context, "master_port") is None and _table(layer, context):
        free = Origin("default", f"{name}: one node without --master-port takes a free port")
        return Rendezvous(Setting("c10d", free), Setting("localhost", free), Setting(0, free), layer.launcher)
    return Rendezvous(
        backend, where, Setting(DEFAULT_PORT, Origin("default", f"{name}: --master-port is 29500")), layer.launcher
    )
