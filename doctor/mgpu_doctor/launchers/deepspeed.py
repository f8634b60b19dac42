"""The DeepSpeed launcher: ``deepspeed``, ``deepspeed.pt``, ``ds`` and ``python -m deepspeed.launcher.runner``.

Verified in deepspeed 0.9.5, 0.12.6, 0.14.4, 0.15.4, 0.16.9 and 0.19.8: launcher/runner.py
parse_args() and main(), launcher/launch.py main(), which sets CUDA_VISIBLE_DEVICES for every
worker to the chosen slots and passes ``--local_rank=N`` as the program's first argument.
"""

from __future__ import annotations

import re

from mgpu_doctor.launchers.arguments import OptionTable, parse_arguments
from mgpu_doctor.launchers.chain import Context, Peeled, Plan
from mgpu_doctor.launchers.devices import visible_devices
from mgpu_doctor.launchers.variables import (
    as_number,
    as_text,
    given_option,
    program_name,
    read_variable,
    release_before,
    release_label,
    times,
)
from mgpu_doctor.model.command import Word
from mgpu_doctor.model.known import Origin, Setting, Unknown
from mgpu_doctor.model.launch import Layer, Option, ParseProblem, Rendezvous, VisibleDevices
from mgpu_doctor.model.record import dataclass, replace

LAUNCHER = "deepspeed"
COMMANDS = frozenset({"deepspeed", "deepspeed.pt", "ds"})
MODULES = frozenset({"deepspeed.launcher.runner", "deepspeed.launcher"})
DEFAULT_PORT = 29500
DEFAULT_HOSTFILE = "/job/hostfile"
FILTERS = ("include", "exclude", "num_gpus", "num_nodes")
"""Options that make the launcher drop CUDA_VISIBLE_DEVICES."""

SYNONYMS = {
    "-m": "--module",
    "--num-processes": "--num_gpus",
    "--nproc-per-node": "--num_gpus",
    "--nproc": "--num_gpus",
    "--gpus": "--num_gpus",
    "--n-gpus": "--num_gpus",
    "--num-gpu": "--num_gpus",
    "--num-gpus": "--num_gpus",
    "--gpu-ids": "--include",
    "--nnodes": "--num_nodes",
    "--num-machines": "--num_nodes",
    "--machine-rank": "--node_rank",
    "--main-process-port": "--master_port",
    "--main-process-ip": "--master_addr",
    "--port": "--master_port",
    "--no-python": "--no_python",
    "--master-port": "--master_port",
    "--master-addr": "--master_addr",
}


@dataclass(frozen=True, slots=True)
class Hosts:
    """The hosts of a run and the slots that each one gives, in order.

    ``local`` means that no hostfile takes part: the one host is this machine. ``slots`` is
    Unknown where no inventory tells how many devices a host has.
    """

    slots: tuple[tuple[str, tuple[int, ...] | Unknown], ...]
    local: bool
    origin: Origin


def peel(words: tuple[Word, ...], form: str, context: Context) -> Peeled | None:
    """Recognise the launcher in front of ``words`` and split its options from what it starts."""
    if not _is_launcher(words, form):
        return None
    own = words[1:]
    release = context.knowledge.release("deepspeed")
    specs = context.knowledge.options(LAUNCHER)
    if isinstance(specs, Unknown):
        layer = Layer(LAUNCHER, words[:1], own, release=release, opaque=f"its options are not known: {specs.reason}")
        return Peeled(layer, (), "none")
    table = OptionTable(
        (spec for spec in specs if spec.flags), abbreviations=context.knowledge.allows_abbreviations(LAUNCHER)
    )
    python = context.facts.python.version
    parsed = parse_arguments(own, table, python=None if isinstance(python, Unknown) else python, synonyms=SYNONYMS)
    layer = Layer(LAUNCHER, words[:1], parsed.words, parsed.options, release, parsed.problems, opaque=parsed.opaque)
    layer = replace(layer, problems=(*layer.problems, *_refusals(layer)))
    if parsed.target is None:
        return Peeled(layer, (), "none")
    rest = (parsed.target, *parsed.rest)
    if layer.option("no_python") is not None:
        return Peeled(layer, rest, "command")
    meant_module = any(problem.flag == "-m" for problem in layer.problems)
    return Peeled(layer, rest, "module" if layer.option("module") is not None or meant_module else "script")


def _is_launcher(words: tuple[Word, ...], form: str) -> bool:
    if not words:
        return False
    if form == "module":
        return words[0].value in MODULES
    name = program_name(words[0])
    if form == "command":
        return name in COMMANDS
    # A console script handed to python: `python $(which deepspeed) …`; a bare word is the user's own file.
    return form == "script" and name in COMMANDS and words[0].value != name


def _refusals(layer: Layer) -> tuple[ParseProblem, ...]:
    """What main() refuses behind argparse, as far as the words tell."""
    if layer.opaque is not None:
        return ()
    found: list[ParseProblem] = []
    filters = [option for dest in ("include", "exclude") if (option := layer.option(dest)) and option.value != ""]
    counts = [option for dest in ("num_gpus", "num_nodes") if (option := layer.option(dest)) and _asked(option)]
    if len(filters) == 2 and all(option.value is not None for option in filters):
        message = "include_str and exclude_str are mutually exclusive."
        found.append(ParseProblem("conflict", message, filters[1].span, filters[1].flag))
    if counts and filters and filters[0].value is not None:
        message = "Cannot specify num_nodes/gpus with include/exclude"
        found.append(ParseProblem("conflict", message, counts[0].span, counts[0].flag))
    no_python, module = layer.option("no_python"), layer.option("module")
    if no_python and module:
        message = "Don't use both the '--no_python' flag and the '--module' flag at the same time."
        found.append(ParseProblem("conflict", message, no_python.span, no_python.flag))
    for dest in ("include", "exclude"):
        option = layer.option(dest)
        if option is not None and option.value is not None and read_filter(option.value) is None:
            message = f"--{dest} {option.value}: a slot is no whole number"
            found.append(ParseProblem("invalid-value", message, option.values[0].span, option.flag))
    return (*found, *_elastic(layer))


def _elastic(layer: Layer) -> tuple[ParseProblem, ...]:
    elastic = layer.option("elastic_training")
    if elastic is None:
        return ()
    if layer.option("master_addr") is None:
        message = "Master Addr is required when elastic training is enabled"
        return (ParseProblem("refused", message, elastic.span, elastic.flag),)
    without = layer.option("no_local_rank")
    if without is not None:
        message = "--no_local_rank argument is not supported in Elastic training"
        return (ParseProblem("conflict", message, without.span, without.flag),)
    return ()


def _asked(option: Option) -> bool:
    number = option.converted
    return isinstance(number, int) and number >= 0


def read_filter(text: str) -> dict[str, tuple[int, ...]] | None:
    """``host:0,2@other`` as host → slots (none for the whole host); None when it cannot be read."""
    found: dict[str, list[int]] = {}
    for node in text.split("@"):
        host, colon, slots = node.partition(":")
        try:
            numbers = [int(slot) for slot in slots.split(",")] if colon else []
        except ValueError:
            return None
        found.setdefault(host, []).extend(numbers)
    return {host: tuple(sorted(set(numbers))) for host, numbers in found.items()}


def read_hostfile(text: str) -> tuple[tuple[str, int], ...] | str:
    """Host and slots of each line, or the reason why the launcher refuses the file (runner.py _parse_hostfile())."""
    hosts: dict[str, int] = {}
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = re.match(r"^(\S+)\s+slots=(\d+)", line)
        if match is None:
            return f"Hostfile contains a bad entry: {line}, unable to proceed with launching"
        if match.group(1) in hosts:
            return f"Hostfile contains multiple entries for {match.group(1)}, unable to proceed with launching"
        hosts[match.group(1)] = int(match.group(2))
    if not hosts:
        return "Hostfile is empty or not formatted correctly, unable to proceed with launching."
    return tuple(hosts.items())


def plan(layer: Layer, before: Plan, context: Context) -> Plan:
    """The workers that the launcher starts: one a slot, each with the chosen slots as its visible devices."""
    hosts = _hosts(layer, before, context)
    groups = Setting(True, Origin("derived", "deepspeed gives every worker RANK, WORLD_SIZE and MASTER_ADDR"))
    if isinstance(hosts, Unknown):
        hidden = Origin("derived", "deepspeed's resources")
        return replace(
            before,
            processes_per_node=_processes_by_option(layer, context, hosts),
            nodes=Setting(hosts, hidden),
            node_rank=Setting(hosts, hidden),
            visible=Setting(hosts, hidden),
            rendezvous=_rendezvous(layer, context, None),
            groups=groups,
        )
    per_node, visible = _here(hosts, before, context)
    nodes = Setting(len(hosts.slots), hosts.origin)
    return replace(
        before,
        processes_per_node=times(before.processes_per_node, per_node),
        nodes=nodes,
        node_rank=_node_rank(layer, context, nodes),
        visible=visible,
        rendezvous=_rendezvous(layer, context, hosts),
        groups=groups,
    )


def _processes_by_option(layer: Layer, context: Context, reason: Unknown) -> Setting[int]:
    """--num_gpus decides alone, whatever hosts there are."""
    asked = given_option(layer, context, "num_gpus")
    if asked is not None and isinstance(asked.value, int) and asked.value > 0:
        return as_number(asked, "--num_gpus")
    return Setting(reason, Origin("derived", "deepspeed's resources"))


def _here(hosts: Hosts, before: Plan, context: Context) -> tuple[Setting[int], Setting[VisibleDevices]]:
    counts = {len(slots) if not isinstance(slots, Unknown) else slots for _host, slots in hosts.slots}
    known = {count for count in counts if isinstance(count, int)}
    per_node: int | Unknown
    if len(counts) == 1:
        per_node = counts.pop()
    elif known == counts:
        per_node = Unknown("the hosts have different numbers of slots: " + ", ".join(map(str, sorted(known))))
    else:
        per_node = next(count for count in counts if isinstance(count, Unknown))
    slots = hosts.slots[0][1] if hosts.slots else Unknown("no host is left")
    visible: Setting[VisibleDevices]
    if isinstance(slots, Unknown):
        visible = Setting(slots, hosts.origin)
    else:
        order = read_variable(context, "CUDA_DEVICE_ORDER", before.variables).known
        devices = visible_devices(",".join(map(str, slots)), context.facts, order)
        visible = Setting(devices, replace(hosts.origin, overrides=before.visible))
    return Setting(per_node, hosts.origin), visible


def drops_visible_devices(layer: Layer) -> Option | None:
    """The option for whose sake the launcher ignores CUDA_VISIBLE_DEVICES, None when none is given."""
    for dest in ("include", "exclude"):
        option = layer.option(dest)
        if option is not None and option.value != "":
            return option
    nodes, gpus = layer.option("num_nodes"), layer.option("num_gpus")
    if gpus is not None and not (isinstance(gpus.converted, int) and gpus.converted <= 0):
        return gpus
    if nodes is not None and not (isinstance(nodes.converted, int) and nodes.converted <= 1):
        return nodes
    return None


def _hosts(layer: Layer, before: Plan, context: Context) -> Hosts | Unknown:
    """The resources in main()'s order: hostfile, visible devices, include or exclude, counts."""
    if layer.opaque is not None and layer.option("num_gpus") is None and layer.option("include") is None:
        return Unknown(layer.opaque)
    pool = _resource_pool(layer, context)
    if isinstance(pool, Unknown):
        return pool
    hosts = pool if pool is not None else _local(layer, before, context)
    if isinstance(hosts, Unknown):
        return hosts
    if pool is not None or drops_visible_devices(layer) is not None:
        filtered = _filter(layer, hosts, context)
        if isinstance(filtered, Unknown):
            return filtered
        hosts = filtered
    return _trim(layer, hosts, context)


def _resource_pool(layer: Layer, context: Context) -> Hosts | Unknown | None:
    option = layer.option("hostfile")
    path = option.value if option is not None else DEFAULT_HOSTFILE
    if path is None:
        return Unknown("the name of the hostfile is not known")
    workspace, directory = context.workspace, context.command.directory
    if workspace.kind(path, directory) == "missing":
        return None
    source = workspace.read(path, "hostfile", directory)
    if isinstance(source, Unknown):
        # /job/hostfile exists only on clusters that put it there: not looked at counts as absent.
        return Unknown(f"the hostfile {path} is not known: {source.reason}") if option is not None else None
    read = read_hostfile(source.text)
    if isinstance(read, str):
        return Unknown(f"{path}: {read}")
    origin = Origin("config", path)
    return Hosts(tuple((host, tuple(range(slots))) for host, slots in read), local=False, origin=origin)


def _local(layer: Layer, before: Plan, context: Context) -> Hosts | Unknown:
    text = read_variable(context, "CUDA_VISIBLE_DEVICES", before.variables)
    if drops_visible_devices(layer) is None and not release_before(layer.release, 0, 5, 7):
        if isinstance(text.value, Unknown):
            return Unknown(text.value.reason)
        if text.value:
            return _from_variable(text.value, text.origin)
    gpus = context.facts.gpus
    origin = Origin("facts", "the GPUs of this machine")
    if isinstance(gpus, Unknown):
        hidden = Unknown(f"the GPUs of the machine are not known: {gpus.reason}")
        return Hosts((("localhost", hidden),), local=True, origin=origin)
    return Hosts((("localhost", tuple(range(len(gpus)))),), local=True, origin=origin)


def _from_variable(text: str, origin: Origin) -> Hosts | Unknown:
    slots = read_filter(f"localhost:{text}")
    if slots is None:
        return Unknown(f"deepspeed takes only numbers from CUDA_VISIBLE_DEVICES, and it is {text}")
    return Hosts((("localhost", slots["localhost"]),), local=True, origin=origin)


def _filter(layer: Layer, hosts: Hosts, context: Context) -> Hosts | Unknown:
    include, exclude = layer.option("include"), layer.option("exclude")
    option = include if include is not None and include.value != "" else exclude
    if option is None or option.value == "":
        return hosts
    wanted = read_filter(option.value) if option.value is not None else None
    if wanted is None:
        return Unknown(f"{option.flag} is not known here")
    origin = Origin("option", option.flag, context.command.locate(option.span), Setting(hosts.slots, hosts.origin))
    kept: list[tuple[str, tuple[int, ...] | Unknown]] = []
    for host, slots in hosts.slots:
        if option is include:
            if host in wanted:
                kept.append((host, wanted[host] or slots))
        elif host not in wanted:
            kept.append((host, slots))
        elif wanted[host]:
            left = slots if isinstance(slots, Unknown) else tuple(s for s in slots if s not in wanted[host])
            if left or isinstance(left, Unknown):
                kept.append((host, left))
    strangers = [host for host in wanted if host not in dict(hosts.slots)]
    if strangers:
        return Unknown(f"Hostname '{strangers[0]}' not found in hostfile")
    return Hosts(tuple(kept), hosts.local, origin)


def _trim(layer: Layer, hosts: Hosts, context: Context) -> Hosts | Unknown:
    slots, origin = hosts.slots, hosts.origin
    nodes = given_option(layer, context, "num_nodes")
    if nodes is not None:
        if isinstance(nodes.value, Unknown):
            return nodes.value
        if isinstance(nodes.value, int) and nodes.value > 0:
            if hosts.local and nodes.value > 1:
                return Unknown("Num nodes is >1 but no extra nodes available via hostfile")
            slots = slots[: nodes.value]
    gpus = given_option(layer, context, "num_gpus")
    if gpus is not None:
        if isinstance(gpus.value, Unknown):
            slots = tuple((host, gpus.value) for host, _old in slots)
            origin = gpus.origin
        elif isinstance(gpus.value, int) and gpus.value > 0:
            slots = tuple((host, tuple(range(min(gpus.value, 4096)))) for host, _old in slots)
            origin = gpus.origin
    return Hosts(slots, hosts.local, origin)


def _node_rank(layer: Layer, context: Context, nodes: Setting[int]) -> Setting[int]:
    if layer.option("no_ssh") is not None:
        given = given_option(layer, context, "node_rank")
        if given is not None:
            return as_number(given, "--node_rank")
    if nodes.known == 1:
        return Setting(0, Origin("derived", "one node"))
    return Setting(0, Origin("derived", "the launcher starts the other nodes itself"))


def _rendezvous(layer: Layer, context: Context, hosts: Hosts | None) -> Rendezvous:
    backend = Setting("env", Origin("derived", "MASTER_ADDR and MASTER_PORT of the workers"))
    given = given_option(layer, context, "master_port")
    name = release_label(layer.release, "deepspeed")
    port = (
        Setting(DEFAULT_PORT, Origin("default", f"{name}: --master_port is {DEFAULT_PORT}"))
        if given is None and layer.opaque is None
        else Setting(Unknown(layer.opaque or ""), Origin("option", "--master_port"))
        if given is None
        else as_number(given, "--master_port")
    )
    return Rendezvous(backend, _address(layer, context, hosts), port, LAUNCHER)


def _address(layer: Layer, context: Context, hosts: Hosts | None) -> Setting[str]:
    if hosts is not None and hosts.local:
        # Without a hostfile main() overwrites whatever --master_addr says.
        return Setting("127.0.0.1", Origin("default", "deepspeed on one machine uses 127.0.0.1"))
    given = given_option(layer, context, "master_addr")
    if given is not None:
        return as_text(given)
    reason = "hostname -I of the first host, asked over ssh" if hosts is not None else "the hosts are not known"
    return Setting(Unknown(reason), Origin("derived", "deepspeed"))
