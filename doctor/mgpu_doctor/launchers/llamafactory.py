"""LLaMA-Factory's command: a sub-command that works in one process, or ``train``, which starts torchrun itself.

``train`` starts torchrun when FORCE_TORCHRUN is on or more than one device is visible
(llamafactory 0.8.3, 0.9.0 and 0.9.1 cli.py main(); since 0.9.2 not with USE_RAY, since 0.9.4
launcher.py launch(), not with USE_KT and always with USE_MCA). 0.7.1 never does. The node's rank
comes from RANK up to 0.9.0 and from NODE_RANK since 0.9.1. RDZV_ID switches to the c10d rendezvous since 0.9.3.
``python -m llamafactory.cli`` runs nothing before 0.9.2: the module has no main block there.
"""

from __future__ import annotations

from mgpu_doctor.launchers.chain import Context, Peeled, Plan
from mgpu_doctor.launchers.variables import program_name
from mgpu_doctor.model.command import Piece, Variable, Word
from mgpu_doctor.model.known import Origin, Setting, Unknown
from mgpu_doctor.model.launch import Layer, Option, OptionSpec
from mgpu_doctor.model.record import replace
from mgpu_doctor.model.source import Span
from mgpu_doctor.model.version import is_before

LAUNCHER = "llamafactory-cli"
COMMANDS = frozenset({"llamafactory-cli", "lmf"})
MODULES = frozenset({"llamafactory.cli"})
SUBCOMMAND = OptionSpec("subcommand", ())
"""The positional that names the sub-command; kept as an option of the layer, without being one of its arguments."""

_TORCHRUN = {
    "nnodes": OptionSpec("nnodes", ("--nnodes",), type="str", default="1:1"),
    "node_rank": OptionSpec("node_rank", ("--node-rank", "--node_rank"), type="int", default=0),
    "nproc_per_node": OptionSpec("nproc_per_node", ("--nproc-per-node", "--nproc_per_node"), type="str", default="1"),
    "master_addr": OptionSpec("master_addr", ("--master-addr", "--master_addr"), type="str"),
    "master_port": OptionSpec("master_port", ("--master-port", "--master_port"), type="int", default=29500),
    "rdzv_id": OptionSpec("rdzv_id", ("--rdzv-id", "--rdzv_id"), type="str", default="none"),
    "rdzv_backend": OptionSpec("rdzv_backend", ("--rdzv-backend", "--rdzv_backend"), type="str", default="static"),
    "rdzv_endpoint": OptionSpec("rdzv_endpoint", ("--rdzv-endpoint", "--rdzv_endpoint"), type="str", default=""),
    "max_restarts": OptionSpec("max_restarts", ("--max-restarts", "--max_restarts"), type="int", default=0),
}
_INTEGERS = frozenset({"node_rank", "nproc_per_node", "master_port", "max_restarts"})


def peel(words: tuple[Word, ...], form: str, context: Context) -> Peeled | None:
    """Recognise ``llamafactory-cli``, ``lmf`` and ``-m llamafactory.cli``; ``rest`` starts with the sub-command.

    A path to the console command is a Python file, so it counts as a script too.
    """
    if not words:
        return None
    text = words[0].value
    if form == "command" or (form == "script" and (text is None or "/" in text)):
        if program_name(words[0]) not in COMMANDS:
            return None
    elif form != "module" or text not in MODULES:
        return None
    release = context.knowledge.release("llamafactory")
    options: tuple[Option, ...] = ()
    if len(words) > 1:
        options = (Option(SUBCOMMAND, words[1].shown, (words[1],), words[1].span, words[1].value),)
    layer = Layer(LAUNCHER, words[:1], (), options, release)
    return Peeled(layer, words[1:], "command" if len(words) > 1 else "none")


def implied(layer: Layer, before: Plan, context: Context) -> Layer | Unknown | None:
    """The torchrun that this command starts by itself; None when it starts none.

    Unknown when that hangs on the number of visible devices and nobody knows it.
    """
    starts = _starts_torchrun(layer, before, context)
    if isinstance(starts, Unknown):
        return starts
    if not starts:
        return None
    options = torchrun_options(_settings(layer, before, context))
    return Layer("torchrun", layer.command_words, (), options, context.knowledge.release("torch"), implied=True)


def plan(layer: Layer, before: Plan, context: Context) -> Plan:
    """The command's own process; the torchrun layer that follows does the rest.

    Where it cannot be told whether torchrun is started, the number of processes is unknown.
    """
    starts = _starts_torchrun(layer, before, context)
    if not isinstance(starts, Unknown):
        return before
    return replace(before, processes_per_node=Setting(starts, Origin("derived", "llamafactory-cli train")))


def lookup(name: str, before: Plan, context: Context) -> Variable | None:
    """The variable as the launcher's process would see it: an outer launcher's, the command's own, an inherited one.

    An environment that nobody knows counts as not having it: the text is judged as it stands.
    """
    for variable in reversed(before.variables):
        if variable.name == name:
            return variable if variable.value is not None else None
    for variable in reversed(context.command.environment):
        if variable.name == name:
            return variable if variable.value is not None else None
    if context.command.unset_all:
        return None
    value = context.facts.variable(name)
    if not isinstance(value, str):
        return None
    return Variable(name, made_word(value, context.command.span), "inherited")


def enabled(name: str, before: Plan, context: Context, values: tuple[str, ...] = ("true", "y", "1")) -> bool | Unknown:
    """Whether a switch variable is on (llamafactory 0.9.3, extras/misc.py is_env_enabled)."""
    variable = lookup(name, before, context)
    if variable is None:
        return False
    if variable.text is None:
        return Unknown(f"the value of {name} is not known")
    return variable.text.lower() in values


def device_count(before: Plan, context: Context) -> Setting[int]:
    """How many devices the launcher's process sees."""
    visible = before.visible.known
    if visible is None:
        reason = before.visible.value
        return Setting(reason if isinstance(reason, Unknown) else Unknown("not known"), before.visible.origin)
    if visible.all and not visible.entries:
        gpus = context.facts.gpus
        if isinstance(gpus, Unknown):
            return Setting(Unknown("how many GPUs the machine has is not known"), before.visible.origin)
        return Setting(len(gpus), Origin("facts", context.facts.origin))
    return Setting(len(visible.entries), before.visible.origin)


def release_at_least(version: str | None, *wanted: int) -> bool:
    """Whether a version is not older; an unknown version counts as the latest."""
    return is_before(version, *wanted) is not True


def made_word(text: str, span: Span) -> Word:
    """A word that nobody typed, shown at ``span``."""
    return Word(span, (Piece(text, text),))


def given_word(variable: Variable, layer: Layer, context: Context) -> Word:
    """A variable's value, shown where it is assigned if that is in the command's own text, else at the launcher."""
    span = layer.command_words[0].span
    if variable.location is not None and variable.location.source is context.command.source:
        span = variable.location.span
    if variable.value is None:
        return made_word("", span)
    return replace(variable.value, span=span, origin=variable.location)


def torchrun_options(settings: dict[str, Word]) -> tuple[Option, ...]:
    """The options of a torchrun that another program starts, by destination, each at its value's place."""
    out = []
    for dest, word in settings.items():
        spec = _TORCHRUN[dest]
        value = word.value
        converted: object = value if value is not None else Unknown(f"the value of {word.written} is not known")
        if value is not None and dest in _INTEGERS and value.lstrip("-").isdigit():
            converted = int(value) if dest != "nproc_per_node" else value
        out.append(Option(spec, spec.flags[-1], (word,), word.span, converted))
    return tuple(out)


def subcommand(layer: Layer) -> str | None:
    """The sub-command's text, None when there is none or it is not known."""
    option = layer.option("subcommand")
    return option.value if option is not None else None


def _starts_torchrun(layer: Layer, before: Plan, context: Context) -> bool | Unknown:
    version = layer.release.version if layer.release is not None else None
    if subcommand(layer) != "train" or not release_at_least(version, 0, 8):
        return False
    switches = ("true", "1") if not release_at_least(version, 0, 9, 2) else ("true", "y", "1")
    forced = enabled("FORCE_TORCHRUN", before, context, switches)
    if not forced and not isinstance(forced, Unknown) and release_at_least(version, 0, 9, 4):
        forced = enabled("USE_MCA", before, context)
    if isinstance(forced, Unknown) or forced:
        return forced
    if release_at_least(version, 0, 9, 2) and enabled("USE_RAY", before, context):
        return False
    if release_at_least(version, 0, 9, 4) and enabled("USE_KT", before, context):
        return False
    count = device_count(before, context)
    if isinstance(count.value, Unknown):
        return count.value
    return count.value > 1


def _settings(layer: Layer, before: Plan, context: Context) -> dict[str, Word]:
    version = layer.release.version if layer.release is not None else None
    at = layer.command_words[0].span

    def word(name: str, default: Word) -> Word:
        variable = lookup(name, before, context)
        return given_word(variable, layer, context) if variable is not None else default

    count = device_count(before, context)
    devices = made_word(str(count.value), at)
    if isinstance(count.value, Unknown):
        devices = Word(at, (Piece(None, "number of visible devices"),))
    settings = {"nnodes": word("NNODES", made_word("1", at)), "nproc_per_node": word("NPROC_PER_NODE", devices)}
    address, port = word("MASTER_ADDR", made_word("127.0.0.1", at)), word("MASTER_PORT", made_word("0", at))
    if lookup("RDZV_ID", before, context) is None or not release_at_least(version, 0, 9, 3):
        rank = "NODE_RANK" if release_at_least(version, 0, 9, 1) else "RANK"
        settings["node_rank"] = word(rank, made_word("0", at))
        settings["master_addr"], settings["master_port"] = address, port
        return settings
    if lookup("MIN_NNODES", before, context) is not None and lookup("MAX_NNODES", before, context) is not None:
        low, high = word("MIN_NNODES", address), word("MAX_NNODES", address)
        settings["nnodes"] = Word(low.span, (*low.pieces, Piece(":", ":"), *high.pieces))
    settings["rdzv_id"] = word("RDZV_ID", address)
    settings["rdzv_backend"] = made_word("c10d", at)
    settings["rdzv_endpoint"] = Word(address.span, (*address.pieces, Piece(":", ":"), *port.pieces))
    settings["max_restarts"] = word("MAX_RESTARTS", made_word("0", at))
    return settings
