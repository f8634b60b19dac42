"""Console commands that are launches of their own: ms-swift, its ``megatron``, torchtune, trl, axolotl.

``swift SUBCOMMAND`` starts its script in one process, or through ``python -m torch.distributed.run`` when
NPROC_PER_NODE or NNODES is set and the sub-command is one that may (ms-swift 2.6.1 and 3.9.0,
swift/cli/main.py cli_main(); ``megatron``: swift/cli/_megatron/main.py, ms-swift 3.9.0). ``tune run`` takes
torchrun's own options in front of the recipe and stands alone unless it is given a rendezvous
endpoint (torchtune 0.6.1, _cli/run.py). ``trl sft|dpo|kto|grpo`` starts ``accelerate launch`` (trl 0.12.0
commands/cli.py train(), 0.19.0 cli.py main()).
"""

from __future__ import annotations

from mgpu_doctor.launchers import torchrun
from mgpu_doctor.launchers.arguments import OptionTable, parse_arguments
from mgpu_doctor.launchers.chain import Context, Peeled, Plan
from mgpu_doctor.launchers.llamafactory import (
    SUBCOMMAND,
    given_word,
    lookup,
    made_word,
    release_at_least,
    subcommand,
    torchrun_options,
)
from mgpu_doctor.launchers.variables import program_name
from mgpu_doctor.model.command import Word
from mgpu_doctor.model.known import Origin, Setting, Unknown
from mgpu_doctor.model.launch import Layer, Option, OptionSpec
from mgpu_doctor.model.record import replace

TUNE = "tune run"

LAUNCHERS = {"swift": "ms-swift", "megatron": "ms-swift"}
"""Console commands by the distribution that owns them."""

SUBCOMMANDS = {
    "swift": frozenset(
        {
            "app", "app-ui", "deploy", "dpo", "eval", "export", "infer", "merge-lora", "orpo", "pt",
            "rlhf", "rollout", "sample", "sft", "simpo", "web-ui",
        }
    ),
    "megatron": frozenset({"pt", "sft", "rlhf", "export"}),
}  # fmt: skip
"""Every sub-command of the releases named above."""

STARTS_ACCELERATE = {
    "trl": frozenset({"sft", "dpo", "kto", "grpo", "reward", "rloo"}),
    "axolotl": frozenset({"train"}),
}
"""Console commands whose sub-commands run inside ``accelerate launch``."""

_ARGUMENTS = OptionSpec("arguments", (), nargs="...")
_LAUNCH_OPTIONS = (
    "--num_processes",
    "--accelerate_config",
    "--config_file",
    "--multi_gpu",
    "--num_machines",
    "--launcher",
)

_VARIABLES = ("NPROC_PER_NODE", "MASTER_PORT", "NNODES", "NODE_RANK", "MASTER_ADDR")
_DISTRIBUTED_2 = frozenset({"pt", "sft", "dpo", "orpo", "simpo", "rlhf"})
_DISTRIBUTED_3 = frozenset({"pt", "sft", "rlhf", "infer"})


def peel(words: tuple[Word, ...], form: str, context: Context) -> Peeled | None:
    """Recognise ``swift SUBCOMMAND`` and ``megatron SUBCOMMAND``; ``rest`` starts with the sub-command.

    ``swift`` is also Apple's compiler driver: only ms-swift's sub-commands, or a word that is not known, count.
    """
    if form != "command" or len(words) < 2:
        return None
    name = program_name(words[0])
    if name == "tune" and words[1].value == "run":
        return _peel_tune(words, context)
    if name in STARTS_ACCELERATE and words[1].value in STARTS_ACCELERATE[name]:
        option = Option(SUBCOMMAND, words[1].shown, (words[1],), words[1].span, words[1].value)
        own = Option(_ARGUMENTS, words[1].shown, words[2:], words[1].span) if len(words) > 2 else None
        options = (option,) if own is None else (option, own)
        layer = Layer(name, words[:1], (), options, context.knowledge.release(name))
        return Peeled(layer, words[1:], "command")
    if name is None or name not in LAUNCHERS:
        return None
    given = words[1].value
    if given is not None and given.replace("_", "-") not in SUBCOMMANDS[name]:
        return None
    option = Option(SUBCOMMAND, words[1].shown, (words[1],), words[1].span, given)
    layer = Layer(name, words[:1], (), (option,), context.knowledge.release(LAUNCHERS[name]))
    return Peeled(layer, words[1:], "command")


def implied(layer: Layer, before: Plan, context: Context) -> Layer | Unknown | None:
    """The torchrun that the command starts by itself, None when it starts none."""
    if layer.launcher == TUNE or layer.launcher in STARTS_ACCELERATE:
        return None
    given = subcommand(layer)
    if given is None:
        return Unknown("the sub-command is not known")
    version = layer.release.version if layer.release is not None else None
    newer = release_at_least(version, 3)
    if given.replace("_", "-") not in (_DISTRIBUTED_3 if newer else _DISTRIBUTED_2):
        return None
    found = {name: variable for name in _VARIABLES if (variable := lookup(name, before, context)) is not None}
    if "NPROC_PER_NODE" not in found and "NNODES" not in found:
        return None
    settings = {name.lower(): given_word(variable, layer, context) for name, variable in found.items()}
    options = torchrun_options(settings)
    name = "torch.distributed.run"
    return Layer(name, layer.command_words, (), options, context.knowledge.release("torch"), implied=True)


def plan(layer: Layer, before: Plan, context: Context) -> Plan:
    """The command's own process; an implied torchrun layer does the rest. ``tune run`` obeys its options."""
    if layer.launcher in STARTS_ACCELERATE:
        return _inside_accelerate(layer, before, context)
    if layer.launcher != TUNE or not layer.argument_words:
        return before
    given = replace(layer, launcher="torchrun")
    if layer.option("rdzv_endpoint") is None:
        alone = Option(OptionSpec("standalone", ("--standalone",), "store_true"), "--standalone", (), layer.span, True)
        given = replace(given, options=(*layer.options, alone))
    return torchrun.plan(given, before, context)


def _peel_tune(words: tuple[Word, ...], context: Context) -> Peeled:
    """``tune run [torchrun's options] RECIPE …``; the recipe is a name, or a module's path."""
    release = context.knowledge.release("torch")
    specs = context.knowledge.options("torchrun")
    if isinstance(specs, Unknown):
        reason = f"its options are not known: {specs.reason}"
        return Peeled(Layer(TUNE, words[:2], words[2:], release=release, opaque=reason), (), "none")
    table = OptionTable((spec for spec in specs if spec.flags), abbreviations=True)
    parsed = parse_arguments(words[2:], table)
    layer = Layer(TUNE, words[:2], parsed.words, parsed.options, release, parsed.problems, opaque=parsed.opaque)
    if parsed.target is None:
        return Peeled(layer, (), "none")
    return Peeled(layer, (parsed.target, *parsed.rest), "command")


def _inside_accelerate(layer: Layer, before: Plan, context: Context) -> Plan:
    """What ``accelerate launch`` without options starts; unknown when the command hands options on to it."""
    from mgpu_doctor.launchers import accelerate

    arguments = layer.option("arguments")
    given = [word.known_prefix.partition("=")[0] for word in arguments.values] if arguments is not None else []
    at = layer.command_words[0].span
    if layer.launcher == "trl" and not any(flag in _LAUNCH_OPTIONS for flag in given):
        words = tuple(made_word(text, at) for text in ("accelerate", "launch", "script.py"))
        peeled = accelerate.peel(words, "command", context)
        if peeled is not None:
            return accelerate.plan(peeled.layer, before, context)
    reason = Unknown(f"{layer.launcher} starts accelerate launch with options of its own")
    origin = Origin("derived", layer.launcher)
    unknown: Setting[int] = Setting(reason, origin)
    groups: Setting[bool] = Setting(reason, origin)
    return replace(before, processes_per_node=unknown, nodes=unknown, node_rank=unknown, groups=groups)
