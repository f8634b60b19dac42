"""How ranks find each other: the rules of this family, and what they share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from mgpu_doctor.authoring import (
    TORCHRUN_NAMES,
    Case,
    Command,
    Edit,
    Launch,
    Layer,
    Location,
    Option,
    Script,
    Span,
    Unknown,
    Variable,
    Word,
    dataclass,
    insert,
    pattern,
    replace,
)

DEFAULT_PORT = 29500
"""The port of torch's, accelerate's and deepspeed's launchers when none is named."""

PORT_OPTIONS = {"accelerate": "main_process_port", "deepspeed": "master_port"}
PORT_FLAGS = {"accelerate": "--main_process_port", "deepspeed": "--master_port"}
_AWAY = {"docker", "podman", "nvidia-docker", "kubectl", "ssh", "pdsh", "clush", "gcloud", "ray", "enroot"}
_LOOPBACK = pattern(r"localhost|127(?:\.\d{1,3}){3}|::1|\[::1\]|ip6-localhost", re.IGNORECASE)


def binding_layer(launch: Launch) -> Layer | None:
    """The layer that listens on the launch's port."""
    if launch.rendezvous is None or launch.rendezvous.used_by is None:
        return None
    return launch.layer(launch.rendezvous.used_by)


def is_torchrun(layer: Layer | None) -> bool:
    """Whether the layer is torchrun under one of its names."""
    return layer is not None and layer.launcher in TORCHRUN_NAMES


def likely_port(launch: Launch) -> int | None:
    """The port that torchrun would listen on up to torch 2.11, where it is not known which torch is used.

    One node without any port: 29500 up to 2.11.0, a free one from 2.12.1 on. None where that is no question.
    """
    layer, rendezvous = binding_layer(launch), launch.rendezvous
    if layer is None or layer.implied or not is_torchrun(layer) or layer.release is None or layer.release.certain:
        return None
    if any(layer.option(dest) is not None for dest in ("standalone", "rdzv_endpoint", "rdzv_backend", "master_port")):
        return None
    known = rendezvous is not None and rendezvous.port is not None and rendezvous.port.known == 0
    return DEFAULT_PORT if known and launch.nodes.known == 1 else None


def port_option(layer: Layer) -> Option | None:
    """The option that names the port: the launcher's own, or torchrun's endpoint."""
    if layer.launcher in TORCHRUN_NAMES:
        return layer.option("rdzv_endpoint") or layer.option("master_port")
    return layer.option(PORT_OPTIONS.get(layer.launcher, ""))


def port_place(launch: Launch) -> Location:
    """Where the port is written; the launcher's name when it is a default."""
    rendezvous, layer = launch.rendezvous, binding_layer(launch)
    if rendezvous is not None and rendezvous.port is not None:
        where = rendezvous.port.origin.location
        if where is not None and where.span.end > where.span.start:
            return where
    if layer is None or layer.implied:
        return launcher_place(launch)
    option = port_option(layer)
    if option is not None:
        return launch.command.locate(option.span)
    return launch.command.locate(layer.span)


def launcher_place(launch: Launch) -> Location:
    """The words that name the innermost launcher that somebody typed."""
    for layer in reversed(launch.layers):
        if not layer.implied and layer.command_words:
            return launch.command.locate(layer.span)
    return launch.command.locate(launch.command.span)


def port_edit(launch: Launch, port: int) -> Edit | None:
    """An edit that gives the launch another port; None when the port is not written where it could be changed."""
    layer = binding_layer(launch)
    if layer is None:
        return None
    if layer.implied:
        return variable_edit(launch.command, "MASTER_PORT", str(port))
    option = port_option(layer)
    if option is not None:
        return _option_edit(launch, option, port)
    if launch.rendezvous is not None and launch.rendezvous.port is not None:
        origin = launch.rendezvous.port.origin
        if origin.kind == "variable":
            return variable_edit(launch.command, origin.detail, str(port), add=False)
    return option_insertion(launch, layer, f"{PORT_FLAGS.get(layer.launcher, '--master_port')} {port}")


def _option_edit(launch: Launch, option: Option, port: int) -> Edit | None:
    if not option.values or not is_typed(launch.command, option):
        return None
    word = option.values[0]
    if not word.is_literal or word.value is None:
        return None
    if option.dest == "rdzv_endpoint":
        host, colon, old = word.value.rpartition(":")
        if not colon or not old.isdigit():
            return None
        return replace(launch.command.source, word.span, f"{host}:{port}")
    return replace(launch.command.source, word.span, str(port))


def option_insertion(launch: Launch, layer: Layer, words: str) -> Edit | None:
    """An edit that adds words behind the launcher's name; None when the name comes out of a variable."""
    last = layer.command_words[-1] if layer.command_words else None
    if layer.implied or last is None or not last.is_literal or last.origin is not None:
        return None
    return insert(launch.command.source, last.span.end, f" {words}")


def variable_edit(command: Command, name: str, text: str, *, add: bool = True) -> Edit | None:
    """An edit that gives a variable a value: where it is set, or (``add``) in front of the command."""
    variable = command.variable(name)
    if variable is None:
        return insert(command.source, command.span.start, f"{name}={text} ") if add else None
    return value_edit(variable, text)


def value_edit(variable: Variable, text: str) -> Edit | None:
    """An edit of a variable's written value; None when it is inherited or built from other variables."""
    at, value = variable.location, variable.value
    if at is None or value is None or not value.is_literal or value.origin is not None:
        return None
    written = at.source.slice(at.span)
    start = written.find(variable.name + "=")
    if start < 0:
        return None
    return replace(at.source, Span(at.span.start + start + len(variable.name) + 1, at.span.end), text)


def is_typed(command: Command, option: Option) -> bool:
    """Whether the option stands in the text as it was read, so that an edit of it touches nothing else."""
    return command.source.slice(option.span).startswith(option.flag)


def free_port(case: Case, besides: Iterable[int] = ()) -> int:
    """A port for a fix: one that was found free, or one that nothing is known to use."""
    used = set(besides)
    for launch in case.launches:
        if launch.rendezvous is not None and launch.rendezvous.port is not None:
            used.add(launch.rendezvous.port.known or 0)
    if not isinstance(case.facts.ports_in_use, Unknown):
        used.update(case.facts.ports_in_use)
    for port in case.facts.free_ports:
        if port not in used:
            return port
    return next(port for port in range(DEFAULT_PORT + 1, 65536) if port not in used)


def runs_elsewhere(launch: Launch) -> bool:
    """Whether the command runs in a container or on another machine, whose ports are its own."""
    return any(wrapper.name.split()[0] in _AWAY for wrapper in launch.command.wrappers)


def is_loopback(address: str) -> bool:
    """Whether an address leads to the machine itself on every machine."""
    return _LOOPBACK.fullmatch(address.strip()) is not None


def known_address(launch: Launch) -> str | None:
    """The address where the ranks meet, when it is known."""
    if launch.rendezvous is None or launch.rendezvous.address is None:
        return None
    return launch.rendezvous.address.known


def stated_address(launch: Launch) -> tuple[Word, Option] | None:
    """The word that gives the address, and its option; None when no option of the launcher gives one.

    An endpoint's word holds the port as well: see :func:`host_of`.
    """
    layer = binding_layer(launch)
    if layer is None:
        return None
    for dest in ("rdzv_endpoint", "master_addr", "main_process_ip"):
        option = layer.option(dest)
        if option is not None and option.values:
            return option.values[0], option
    return None


def host_of(text: str, option: Option) -> str:
    """The host in an option's value: without the port where the option is an endpoint."""
    if option.dest != "rdzv_endpoint":
        return text
    if text.startswith("["):
        return text[1:].partition("]")[0]
    host, colon, _ = text.rpartition(":")
    return host if colon else text


def left_alone(command: Command, name: str) -> bool:
    """Whether the text neither sets nor unsets a variable, so that an inherited one reaches the command."""
    return not command.unset_all and all(variable.name != name for variable in command.environment)


def inherited(case: Case, command: Command, name: str) -> str | Unknown | None:
    """What the command inherits as this variable; None where it is unset or the text has its own."""
    return case.facts.variable(name) if left_alone(command, name) else None


def inherits(case: Case, command: Command, name: str) -> bool | Unknown:
    """Whether a variable reaches the command; Unknown where the environment was not looked at."""
    if command.variable(name) is not None:
        return True
    value = inherited(case, command, name)
    return value if isinstance(value, Unknown) else value is not None


def platform_speaks(case: Case) -> bool:
    """Whether a platform hands torchrun its options as PET_ variables."""
    environment = case.facts.environment
    return not isinstance(environment, Unknown) and any(name.startswith("PET_") for name in environment)


def many_nodes(launch: Launch) -> int | None:
    """The number of nodes where it is known and more than one, else None."""
    nodes = launch.nodes.known
    return nodes if nodes is not None and nodes > 1 else None


def is_first_node(launch: Launch) -> bool:
    """Whether the text says that this is the node with rank 0 of a static rendezvous."""
    layer = binding_layer(launch)
    if layer is None:
        return False
    backend = layer.option("rdzv_backend")
    if backend is not None and backend.value != "static":
        return False
    if layer.implied:
        variable = launch.command.variable("NODE_RANK")
        return variable is not None and variable.text == "0"
    rank = layer.option("machine_rank" if layer.launcher == "accelerate" else "node_rank")
    return rank is not None and rank.value == "0"


def chain(command: Command) -> tuple[Command, ...]:
    """The command with those that run the scripts in which it stands, outermost first."""
    found = [command]
    while found[-1].called_from is not None and len(found) < 32:
        found.append(found[-1].called_from)
    return tuple(reversed(found))


def starts_copies(launch: Launch) -> bool:
    """Whether a scheduler or an MPI starter runs the command once per task."""
    return launch.layer("srun", "mpirun") is not None


def at_least(version: str | None, *wanted: int) -> bool | None:
    """Whether a version is a given release or a later one; None when it is not known."""
    match = re.match(r"\d+(?:\.\d+)*", version or "")
    if match is None:
        return None
    return tuple(int(part) for part in match.group(0).split(".")) >= wanted


_DIRECTIVE = pattern(r"^#SBATCH\s+(.*?)\s*$")
_SHORT = {"-n": "ntasks", "-N": "nodes", "-G": "gpus"}


@dataclass(frozen=True, slots=True)
class Allocation:
    """What a batch script's ``#SBATCH`` lines ask for; None for what they do not say, with the lines' places.

    ``gpus`` counts those of one node.
    """

    nodes: int | None
    tasks: int | None
    tasks_per_node: int | None
    gpus: int | None
    places: Mapping[str, Location]

    @property
    def tasks_on_node(self) -> int | None:
        """Tasks of one node, None when they are not said or not equal on all."""
        if self.tasks_per_node is not None:
            return self.tasks_per_node
        if self.tasks is not None and self.nodes and self.tasks % self.nodes == 0:
            return self.tasks // self.nodes
        return None


def allocation(case: Case, launch: Launch) -> Allocation | None:
    """The resources of the batch script in which a launch stands, None outside any."""
    callers = chain(launch.command)
    for script in case.scripts:
        if script.directives and any(command is caller for command in script.commands for caller in callers):
            return _allocation(script)
    return None


def _allocation(script: Script) -> Allocation | None:
    given: dict[str, str] = {}
    places: dict[str, Location] = {}
    for text, span in script.directives:
        match = _DIRECTIVE.match(text)
        for name, value in _options(match.group(1)) if match else ():
            given[name] = value
            places[name] = Location(script.source, span)
    if not given:
        return None
    nodes = _count(given.get("nodes"))
    gpus = _gpus(given, nodes)
    return Allocation(nodes, _count(given.get("ntasks")), _count(given.get("ntasks-per-node")), gpus, places)


def _options(text: str) -> Iterator[tuple[str, str]]:
    """``--name=value``, ``--name value`` and ``-N value`` up to a comment."""
    words = text.partition(" #")[0].split()
    at = 0
    while at < len(words):
        word = words[at]
        name, equals, value = word.partition("=")
        if word.startswith("--") and equals:
            yield name[2:], value
        elif word[:2] in _SHORT and len(word) > 2 and not word.startswith("--"):
            yield _SHORT[word[:2]], word[2:]
        elif at + 1 < len(words) and (word in _SHORT or word.startswith("--")):
            yield _SHORT.get(word, word.removeprefix("--")), words[at + 1]
            at += 1
        at += 1


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _gpus(given: Mapping[str, str], nodes: int | None) -> int | None:
    """GPUs of one node: ``--gres=gpu:a100:4``, ``--gpus-per-node=4``, or ``--gpus`` of a single node."""
    for part in given.get("gres", "").split(","):
        if part.startswith("gpu"):
            return _count(part.partition("(")[0].rpartition(":")[2]) if ":" in part else 1
    per_node = given.get("gpus-per-node")
    if per_node is not None:
        return _count(per_node.rpartition(":")[2])
    total = given.get("gpus")
    if total is not None and (nodes or 1) == 1:
        return _count(total.rpartition(":")[2])
    return None
