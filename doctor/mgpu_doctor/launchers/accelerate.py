"""``accelerate launch``: its options, its configuration file, and which of its launchers it then calls.

Verified in accelerate 0.20.3, 0.34.2, 1.0.1, 1.7.0 and 1.15.0: commands/launch.py
(_validate_launch_command(), launch_command()), utils/launch.py and commands/config/config_args.py.
"""

from __future__ import annotations

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
    whole_number,
)
from mgpu_doctor.model.command import Word
from mgpu_doctor.model.known import Origin, Setting, Unknown
from mgpu_doctor.model.launch import Engine, Layer, ParseProblem, Rendezvous, VisibleDevices
from mgpu_doctor.model.program import ConfigFile, ConfigValue
from mgpu_doctor.model.record import dataclass, replace
from mgpu_doctor.model.source import Source, Span

LAUNCHER = "accelerate"
DEFAULT_PORT = 29500
DEFAULT_CONFIG = "default_config.yaml"

MOST_VALUES, MOST_TEXT = 1_000, 100_000
"""Entries and characters that the user's default file may have; aliases make a small file stand for billions."""
MODULES = frozenset({"accelerate.commands.launch"})
CLI_MODULES = frozenset({"accelerate.commands.accelerate_cli"})
PARADIGMS = ("multi_gpu", "tpu", "use_deepspeed", "use_fsdp", "use_megatron_lm")
"""Switches that choose a launcher, in the order in which the configuration file is ignored for their sake."""

CONFIG_YIELDS_SINCE = (1, 5)
"""Before this release the file's deepspeed_config and fsdp_config win over options (accelerate 1.4.0, 1.5.2)."""

COUNT_NEEDED_SINCE = (0, 34)
"""From this release on a file may lack num_processes, if the command line has it (accelerate 0.33.0, 0.34.2)."""

EXCLUSIVE = ("multi_gpu", "cpu", "tpu", "use_deepspeed", "use_fsdp")

SYNONYMS = {
    "--nproc-per-node": "--num_processes",
    "--nproc": "--num_processes",
    "--num-gpus": "--num_processes",
    "--num-process": "--num_processes",
    "--n-gpus": "--num_processes",
    "--nnodes": "--num_machines",
    "--num-nodes": "--num_machines",
    "--node-rank": "--machine_rank",
    "--master-port": "--main_process_port",
    "--master-addr": "--main_process_ip",
    "--port": "--main_process_port",
    "--config": "--config_file",
    "--gpus": "--gpu_ids",
    "--gpu-id": "--gpu_ids",
    "--num-cpu-threads": "--num_cpu_threads_per_process",
    "--fp16": "--mixed_precision",
    "--bf16": "--mixed_precision",
    "--deepspeed": "--use_deepspeed",
    "--fsdp": "--use_fsdp",
}

_MULTI = frozenset(
    {"MULTI_GPU", "MULTI_NPU", "MULTI_MLU", "MULTI_SDAA", "MULTI_MUSA", "MULTI_XPU", "MULTI_HPU", "MULTI_NEURON"}
)
_BY_TYPE = {
    "DEEPSPEED": "use_deepspeed",
    "FSDP": "use_fsdp",
    "MEGATRON_LM": "use_megatron_lm",
    "XLA": "tpu",
    "TPU": "tpu",
}


@dataclass(frozen=True, slots=True)
class _Facts:
    """What launch_command() works with: options merged with the configuration file.

    ``config`` is None when none takes part, Unknown when nobody knows.
    ``paradigm`` is the switch that decides, ``none`` for the simple launcher.
    """

    layer: Layer
    context: Context
    config: ConfigFile | Unknown | None
    paradigm: Setting[str]


def peel(words: tuple[Word, ...], form: str, context: Context) -> Peeled | None:
    """Recognise the launcher in front of ``words`` and split its options from what it starts."""
    length = _name_length(words, form)
    if length is None:
        return None
    name, own = words[:length], words[length:]
    release = context.knowledge.release("accelerate")
    specs = context.knowledge.options("accelerate launch")
    if isinstance(specs, Unknown):
        layer = Layer(LAUNCHER, name, own, release=release, opaque=f"its options are not known: {specs.reason}")
        return Peeled(layer, (), "none")
    table = OptionTable(
        (spec for spec in specs if spec.flags),
        abbreviations=context.knowledge.allows_abbreviations("accelerate launch"),
    )
    python = context.facts.python.version
    parsed = parse_arguments(own, table, python=None if isinstance(python, Unknown) else python, synonyms=SYNONYMS)
    layer = Layer(LAUNCHER, name, parsed.words, parsed.options, release, parsed.problems, opaque=parsed.opaque)
    config, is_default = _config(layer, context)
    layer = replace(layer, config=None if isinstance(config, Unknown) else config, config_is_default=is_default)
    layer = replace(layer, problems=(*layer.problems, *_refusals(layer, config)))
    if parsed.target is None:
        return Peeled(layer, (), "none")
    rest = (parsed.target, *parsed.rest)
    if layer.option("no_python") is not None:
        return Peeled(layer, rest, "command")
    return Peeled(layer, rest, "module" if layer.option("module") is not None else "script")


def _name_length(words: tuple[Word, ...], form: str) -> int | None:
    """How many words name ``accelerate launch``; None when these are not it."""
    if not words:
        return None
    if form == "module":
        if words[0].value in MODULES:
            return 1
        return _with_launch(words) if words[0].value in CLI_MODULES else None
    name = program_name(words[0])
    if form == "script" and words[0].value == name:
        return None
    if form not in ("command", "script"):
        return None
    if name == "accelerate-launch":
        return 1
    return _with_launch(words) if name == "accelerate" else None


def _with_launch(words: tuple[Word, ...]) -> int | None:
    return 2 if len(words) > 1 and words[1].value == "launch" else None


def _config(layer: Layer, context: Context) -> tuple[ConfigFile | Unknown | None, bool]:
    """The configuration file that takes part, and whether it is the user's default one."""
    option = layer.option("config_file")
    if option is not None:
        if option.value is None:
            return Unknown(f"the name of the configuration file, {option.values[0].written}, is not known"), False
        config = context.workspace.config(option.value, "accelerate", context.command.directory)
        if config.exists is not True or config.problem is not None or config.data is None:
            reason = config.problem or (
                config.exists.reason if isinstance(config.exists, Unknown) else "it does not exist"
            )
            return config if config.exists is False or config.problem else Unknown(f"{option.value}: {reason}"), False
        return config, False
    if layer.opaque is not None:
        return Unknown(layer.opaque), False
    if layer.option("cpu") is not None:
        return None, False
    text = context.facts.accelerate_default_config
    if isinstance(text, Unknown) and layer.option("num_processes") is None:
        return Unknown(f"whether there is a default configuration file is not known: {text.reason}"), True
    if text is None or isinstance(text, Unknown):
        return None, False
    return read_default_config(text), True


def _assumption(layer: Layer, context: Context) -> tuple[str, ...]:
    """What is said when nobody looked for a default file and the command itself says how many processes are meant."""
    if not isinstance(context.facts.accelerate_default_config, Unknown) or layer.opaque is not None:
        return ()
    if layer.option("num_processes") is None:
        return ()
    if any(layer.option(dest) is not None for dest in ("config_file", "cpu", *PARADIGMS)):
        return ()
    return (f"It is assumed that accelerate's {DEFAULT_CONFIG} does not exist there: it would decide otherwise.",)


def read_default_config(text: str) -> ConfigFile:
    """The user's default configuration from its text; values carry no places."""
    import yaml

    source = Source(DEFAULT_CONFIG, text, "yaml")
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return ConfigFile("accelerate", DEFAULT_CONFIG, source, {}, None, f"not YAML: {error}")
    if not isinstance(data, dict):
        return ConfigFile("accelerate", DEFAULT_CONFIG, source, {}, data, "not a mapping")
    values: dict[tuple[str, ...], ConfigValue] = {}
    if len(text) > MOST_TEXT or not _collect(data, (), text, values):
        problem = "it holds too many values (aliases that multiply?)"
        return ConfigFile("accelerate", DEFAULT_CONFIG, source, {}, None, problem, unseen=True)
    return ConfigFile("accelerate", DEFAULT_CONFIG, source, values, data)


def _collect(data: object, path: tuple[str, ...], text: str, values: dict[tuple[str, ...], ConfigValue]) -> bool:
    """Every entry below ``path``; False where there are more than a configuration has."""
    if not isinstance(data, dict):
        return True
    for key, value in data.items():
        if len(values) >= MOST_VALUES:
            return False
        here = (*path, str(key))
        at = max(text.find(f"{key}:"), 0)
        end = text.find("\n", at)
        line = Span(at, len(text) if end < 0 else end)
        values[here] = ConfigValue(here, value, Span(at, min(at + len(str(key)), line.end)), line)
        if not _collect(value, here, text, values):
            return False
    return True


def _usable(config: ConfigFile | Unknown | None) -> ConfigFile | Unknown | None:
    if isinstance(config, ConfigFile) and (config.exists is not True or not isinstance(config.data, dict)):
        return Unknown(f"{config.name} cannot be used: {config.problem or 'it does not exist'}")
    return config


def _refusals(layer: Layer, config: ConfigFile | Unknown | None) -> tuple[ParseProblem, ...]:
    """What accelerate refuses behind argparse for what the command line says."""
    if layer.opaque is not None:
        return ()
    found: list[ParseProblem] = []
    chosen = [option for dest in EXCLUSIVE if (option := layer.option(dest)) is not None]
    if len(chosen) > 1:
        message = "You can only use one of `--cpu`, `--multi_gpu`, `--tpu`, `--use_deepspeed`, `--use_fsdp` at a time."
        last = max(chosen, key=lambda option: option.span.start)
        found.append(ParseProblem("conflict", message, last.span, last.flag))
    multi, count = layer.option("multi_gpu"), layer.option("num_processes")
    if multi is not None and count is not None and isinstance(count.converted, int) and count.converted < 2:
        message = "You need to use at least 2 processes to use `--multi_gpu`."
        found.append(ParseProblem("conflict", message, count.span, count.flag))
    module, no_python = layer.option("module"), layer.option("no_python")
    if module is not None and no_python is not None:
        message = "--module and --no_python cannot be used together"
        found.append(ParseProblem("conflict", message, no_python.span, no_python.flag))
    parallel = layer.option("use_parallelism_config")
    if parallel is not None and layer.option("use_fsdp") is None:
        message = "You cannot use `--use_parallelism_config` without `--use_fsdp` and `--fsdp_version=2`. "
        found.append(ParseProblem("refused", message.strip(), parallel.span, parallel.flag))
    found.extend(_refused_gpu_ids(layer, config))
    found.extend(_refused_count(layer, config))
    return tuple(found)


def _refused_count(layer: Layer, config: ConfigFile | Unknown | None) -> tuple[ParseProblem, ...]:
    """A configuration file without a number of processes, and none on the command line."""
    if not isinstance(config, ConfigFile) or not isinstance(config.data, dict) or layer.option("num_processes"):
        return ()
    if release_before(layer.release, *COUNT_NEEDED_SINCE) or config.get("compute_environment") == "AMAZON_SAGEMAKER":
        return ()
    count = config.get("num_processes")
    if count != -1 and (count is not None or config.get("distributed_type") in (None, "NO", False)):
        return ()
    message = "You need to manually pass in `--num_processes` using this config yaml."
    option = layer.option("config_file")
    span = option.span if option is not None else layer.span
    return (ParseProblem("refused", message, span, option.flag if option is not None else None),)


def _refused_gpu_ids(layer: Layer, config: ConfigFile | Unknown | None) -> tuple[ParseProblem, ...]:
    """One GPU id with several processes on one machine: only checked where a configuration file takes part."""
    option = layer.option("gpu_ids")
    if option is None or option.value is None or option.value == "all" or "," in option.value:
        return ()
    if not isinstance(config, ConfigFile) or config.exists is not True:
        return ()
    chosen = any(layer.option(dest) is not None for dest in PARADIGMS)
    multi = layer.option("multi_gpu") is not None or (not chosen and config.get("distributed_type") in _MULTI)
    machines = layer.option("num_machines")
    number = machines.converted if machines is not None else config.get("num_machines") or 1
    if not multi or not isinstance(number, int) or number > 1:
        return ()
    message = "Less than two GPU ids were configured and tried to run on on multiple GPUs."
    return (ParseProblem("refused", message, option.span, option.flag),)


def plan(layer: Layer, before: Plan, context: Context) -> Plan:
    """The processes that launch_command() starts."""
    before = replace(before, notes=(*before.notes, *_assumption(layer, context)))
    config = _usable(_config(layer, context)[0])
    facts = _Facts(layer, context, config, Setting("none", Origin("default", "")))
    count = _merged_number(facts, "num_processes")
    visible = _visible(facts, before)
    facts = replace(facts, paradigm=_paradigm(facts, count, before))
    if facts.paradigm.known == "none":
        return _simple(facts, count, before, visible)
    nodes = _nodes(facts)
    per_node = _per_node(facts, count, nodes, before)
    hidden = facts.paradigm.value
    if hidden == "tpu":
        hidden = Unknown("on a TPU the program itself starts one process a core")
    if isinstance(hidden, Unknown):
        per_node = Setting(hidden, facts.paradigm.origin)
    return replace(
        before,
        processes_per_node=times(before.processes_per_node, per_node),
        nodes=nodes,
        node_rank=_node_rank(facts, nodes),
        visible=visible,
        rendezvous=_rendezvous(facts, nodes),
        engine=_engine(facts),
        groups=_groups(visible),
    )


def _groups(visible: Setting[VisibleDevices]) -> Setting[bool]:
    devices = visible.known
    if devices is not None and not devices.entries:
        return Setting(Unknown("no GPU is visible: what the processes do is the program's choice"), visible.origin)
    return Setting(True, Origin("derived", "accelerate gives every worker RANK, WORLD_SIZE and MASTER_ADDR"))


def _paradigm(facts: _Facts, count: Setting[int] | None, before: Plan) -> Setting[str]:
    """Which of accelerate's launchers is called: a member of PARADIGMS, or ``none`` for the simple one."""
    layer, context = facts.layer, facts.context
    cpu = layer.option("cpu")
    if cpu is not None:
        return Setting("none", Origin("option", cpu.flag, context.command.locate(cpu.span)))
    for dest in ("use_deepspeed", "use_fsdp", "use_megatron_lm", "multi_gpu", "tpu"):
        option = layer.option(dest)
        if option is not None:
            return Setting(dest, Origin("option", option.flag, context.command.locate(option.span)))
    if layer.opaque is not None:
        return Setting(Unknown(layer.opaque), Origin("option", "accelerate launch"))
    if isinstance(facts.config, Unknown):
        return Setting(facts.config, Origin("config", "accelerate's configuration file"))
    if facts.config is not None:
        return _configured_paradigm(facts.config)
    return _switched_on(count, before)


def _configured_paradigm(config: ConfigFile) -> Setting[str]:
    kind = str(config.get("distributed_type") or "NO")
    where = Origin("config", f"{config.name}: distributed_type {kind}", config.locate("distributed_type"))
    if config.get("compute_environment") == "AMAZON_SAGEMAKER":
        return Setting(Unknown("the configuration starts a job on Amazon SageMaker"), where)
    if kind in _MULTI:
        return Setting("multi_gpu", where)
    return Setting(_BY_TYPE.get(kind, "none"), where)


def _switched_on(count: Setting[int] | None, before: Plan) -> Setting[str]:
    """Without a configuration file, several processes and several visible GPUs switch multi-GPU on."""
    devices = before.visible.value
    origin = Origin("derived", "no configuration file: the number of visible GPUs decides")
    if count is not None and count.known is not None and count.known <= 1:
        return Setting("none", count.origin)
    if isinstance(devices, Unknown):
        return Setting(Unknown(f"it depends on how many GPUs are visible: {devices.reason}"), origin)
    if len(devices.entries) <= 1:
        return Setting("none", origin)
    if count is not None and isinstance(count.value, Unknown):
        return Setting(count.value, count.origin)
    return Setting("multi_gpu", origin)


def _merged(facts: _Facts, dest: str) -> Setting[object] | None:
    """The option, else the configuration file's value; None when neither gives one."""
    given = given_option(facts.layer, facts.context, dest)
    if given is not None:
        config = facts.config
        if isinstance(config, ConfigFile) and config.has(dest) and config.get(dest) != given.value:
            overridden: Setting[object] = Setting(
                config.get(dest), Origin("config", f"{config.name}: {dest}", config.locate(dest))
            )
            return replace(given, origin=replace(given.origin, overrides=overridden))
        return given
    if facts.layer.opaque is not None:
        return Setting(Unknown(facts.layer.opaque), Origin("option", dest))
    if isinstance(facts.config, Unknown):
        return Setting(facts.config, Origin("config", "accelerate's configuration file"))
    if facts.config is None or facts.config.get(dest) is None:
        return None
    config = facts.config
    return Setting(config.get(dest), Origin("config", f"{config.name}: {dest}", config.locate(dest)))


def _merged_number(facts: _Facts, dest: str) -> Setting[int] | None:
    setting = _merged(facts, dest)
    return None if setting is None else as_number(setting, dest)


def _unlooked(facts: _Facts) -> bool:
    """Whether only a default configuration that nobody looked at could give a value."""
    return (
        isinstance(facts.config, Unknown) and facts.layer.opaque is None and facts.layer.option("config_file") is None
    )


def _nodes(facts: _Facts) -> Setting[int]:
    setting = _merged_number(facts, "num_machines")
    if setting is None or (isinstance(setting.value, Unknown) and _unlooked(facts)):
        return Setting(1, Origin("default", f"{release_label(facts.layer.release, LAUNCHER)}: one machine"))
    return setting


def _per_node(facts: _Facts, count: Setting[int] | None, nodes: Setting[int], before: Plan) -> Setting[int]:
    if count is None:
        count = _default_count(facts, before)
    if isinstance(count.value, Unknown):
        return count
    if isinstance(nodes.value, Unknown):
        return Setting(Unknown(f"num_processes counts all machines: {nodes.value.reason}"), count.origin)
    if count.value < 0:
        return Setting(Unknown("You need to manually pass in `--num_processes` using this config yaml."), count.origin)
    if nodes.value <= 1:
        return count
    return Setting(count.value // nodes.value, replace(count.origin, detail=f"{count.origin.detail} of all machines"))


def _default_count(facts: _Facts, before: Plan) -> Setting[int]:
    name = release_label(facts.layer.release, LAUNCHER)
    if isinstance(facts.config, ConfigFile):
        number = 1 if facts.config.get("distributed_type") == "NO" else -1
        return Setting(number, Origin("default", f"{name}: num_processes of a configuration file"))
    devices = before.visible.value
    origin = Origin("default", f"{name}: one process a visible GPU")
    return Setting(devices if isinstance(devices, Unknown) else len(devices.entries), origin)


def _simple(facts: _Facts, count: Setting[int] | None, before: Plan, visible: Setting[VisibleDevices]) -> Plan:
    """simple_launcher(): one process, or mpirun's where a hostfile for it is given."""
    one = Setting(1, facts.paradigm.origin)
    notes = before.notes
    hostfile = _merged(facts, "mpirun_hostfile")
    if hostfile is None and isinstance(facts.config, ConfigFile) and facts.config.get("mpirun_config"):
        hostfile = Setting(Unknown("the configuration starts mpirun"), facts.paradigm.origin)
    if hostfile is not None and not (_unlooked(facts) and isinstance(hostfile.value, Unknown)):
        nodes = _nodes(facts)
        return replace(
            before,
            processes_per_node=times(before.processes_per_node, _per_node(facts, count, nodes, before)),
            nodes=nodes,
            node_rank=Setting(Unknown("mpirun gives out the ranks"), hostfile.origin),
            visible=visible,
            rendezvous=None,
            engine=Setting(Engine("none"), facts.paradigm.origin),
        )
    if count is not None and count.known is not None and count.known > 1:
        notes = (
            *notes,
            f"accelerate starts one process: num_processes {count.known} is not used ({one.origin.detail})",
        )
    return replace(
        before,
        processes_per_node=times(before.processes_per_node, one),
        nodes=Setting(1, one.origin),
        node_rank=Setting(0, one.origin),
        visible=visible,
        rendezvous=None,
        engine=Setting(Engine("none"), facts.paradigm.origin),
        groups=Setting(True, Origin("derived", "one process")),
        notes=notes,
    )


def _node_rank(facts: _Facts, nodes: Setting[int]) -> Setting[int]:
    setting = _merged_number(facts, "machine_rank")
    if nodes.known == 1 and (setting is None or isinstance(setting.value, Unknown)):
        return Setting(0, Origin("derived", "one machine"))
    if setting is not None:
        return setting
    name = release_label(facts.layer.release, LAUNCHER)
    if isinstance(facts.config, ConfigFile):
        return Setting(0, Origin("default", f"{name}: machine_rank of a configuration file is 0"))
    return Setting(Unknown("--machine_rank is not given"), Origin("default", name))


def _visible(facts: _Facts, before: Plan) -> Setting[VisibleDevices]:
    """gpu_ids other than "all" becomes the workers' CUDA_VISIBLE_DEVICES, whatever stood there."""
    setting = _merged(facts, "gpu_ids")
    if setting is None or (isinstance(setting.value, Unknown) and _unlooked(facts)):
        return before.visible
    value = setting.value
    origin = replace(setting.origin, overrides=before.visible)
    if isinstance(value, Unknown):
        return Setting(value, origin)
    if str(value) == "all":
        return before.visible
    order = read_variable(facts.context, "CUDA_DEVICE_ORDER", before.variables).known
    return Setting(visible_devices(str(value), facts.context.facts, order), origin)


def _rendezvous(facts: _Facts, nodes: Setting[int]) -> Rendezvous:
    name = release_label(facts.layer.release, LAUNCHER)
    # The option's own default is "static", so that a configuration file's rdzv_backend never counts.
    given = given_option(facts.layer, facts.context, "rdzv_backend")
    backend = (
        Setting("static", Origin("default", f"{name}: --rdzv_backend is static")) if given is None else as_text(given)
    )
    port = _merged_number(facts, "main_process_port")
    if port is None or (isinstance(port.value, Unknown) and _unlooked(facts)):
        port = Setting(DEFAULT_PORT, Origin("default", f"{name}: the port is {DEFAULT_PORT}"))
    address = _merged(facts, "main_process_ip")
    if nodes.known == 1:
        here = Setting("127.0.0.1", Origin("default", "one machine"))
        return Rendezvous(backend, here, port, LAUNCHER)
    if address is None:
        return Rendezvous(
            backend, Setting(Unknown("--main_process_ip is not given"), Origin("default", name)), port, LAUNCHER
        )
    return Rendezvous(backend, as_text(address), port, LAUNCHER)


def _engine(facts: _Facts) -> Setting[Engine]:
    paradigm, origin = facts.paradigm.value, facts.paradigm.origin
    if isinstance(paradigm, Unknown):
        return Setting(paradigm, origin)
    if paradigm == "use_deepspeed":
        return Setting(Engine("deepspeed", _zero_stage(facts)), origin)
    names = {"use_fsdp": "fsdp", "use_megatron_lm": "megatron", "multi_gpu": "ddp"}
    return Setting(Engine(names.get(paradigm, "none")), origin)


def _zero_stage(facts: _Facts) -> int | Unknown:
    path = _deepspeed_value(facts, "deepspeed_config_file")
    if isinstance(path, Unknown):
        return path
    if path not in (None, "none", ""):
        config = facts.context.workspace.config(str(path), "deepspeed", facts.context.command.directory)
        if isinstance(config.exists, Unknown):
            return Unknown(f"{path}: {config.exists.reason}")
        if not config.exists or config.problem is not None:
            return Unknown(f"{path}: {config.problem or 'it does not exist'}")
        stage = whole_number(config.get("zero_optimization", "stage") or 0)
        return Unknown(f"{path}: the stage is no number") if stage is None else stage
    stage_value = _deepspeed_value(facts, "zero_stage")
    if isinstance(stage_value, Unknown):
        return stage_value
    if stage_value is None:
        return 2
    number = whole_number(stage_value)
    return Unknown(f"zero_stage is {stage_value!r}") if number is None else number


def _deepspeed_value(facts: _Facts, dest: str) -> object:
    """From the option or the file's deepspeed_config, whichever this release lets win."""
    given = given_option(facts.layer, facts.context, dest)
    config = facts.config
    configured = config.get("deepspeed_config", dest) if isinstance(config, ConfigFile) else None
    if given is not None and configured is not None and release_before(facts.layer.release, *CONFIG_YIELDS_SINCE):
        return configured
    if given is not None:
        return given.value
    if isinstance(config, Unknown) and not _unlooked(facts):
        return config
    return configured
