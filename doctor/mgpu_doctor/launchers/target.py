"""What a launcher is asked to run, and what that means: purpose, engine, spread.

Everything is read from the command's words, the files around it and the tables of known packages. What
none of them tells stays :class:`Unknown`.
"""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_doctor.launchers.chain import Context, Plan
from mgpu_doctor.launchers.llamafactory import device_count
from mgpu_doctor.launchers.python import cut
from mgpu_doctor.model.command import Word
from mgpu_doctor.model.known import Origin, Setting, Unknown
from mgpu_doctor.model.launch import Argument, Engine, Layer, Target
from mgpu_doctor.model.program import ConfigFile, Program
from mgpu_doctor.model.source import Location, Span

_OTHER_PLACES = (
    "docker", "podman", "nerdctl", "nvidia-docker", "singularity", "apptainer", "enroot", "ssh", "kubectl", "oc ",
    "ray job",
)  # fmt: skip
"""Wrappers behind which paths are another machine's, container's or directory's."""

_SUBCOMMAND_LAYERS = {
    "llamafactory-cli": "llamafactory",
    "swift": "swift",
    "megatron": "swift",
    "trl": "trl",
    "axolotl": "axolotl",
}
"""Console commands whose first argument is a sub-command, by framework."""

_PACKAGES = {
    "llamafactory": "llamafactory",
    "llmtuner": "llamafactory",
    "swift": "swift",
    "trl": "trl",
    "axolotl": "axolotl",
    "fastchat": "fastchat",
    "vllm": "vllm",
    "sglang": "sglang",
    "verl": "verl",
    "openrlhf": "openrlhf",
    "colossalai": "colossalai",
    "megatron": "megatron",
    "torchtune": "torchtune",
    "pytorch_lightning": "lightning",
    "lightning": "lightning",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "deepspeed": "deepspeed",
}
"""Import packages that name a framework, the most telling first."""

_COMMANDS = {
    "axolotl": "axolotl",
    "trl": "trl",
    "vllm": "vllm",
    "sglang": "sglang",
    "lmdeploy": "lmdeploy",
    "accelerate": "accelerate",
    "lm_eval": "lm_eval",
    "lm-eval": "lm_eval",
    "tune": "torchtune",
}
"""Console commands by framework."""

_WITH_SUBCOMMAND = frozenset({"axolotl", "trl", "vllm", "lmdeploy", "sglang", "accelerate", "tune", "ray", "lightning"})

_LLAMAFACTORY_PURPOSE = {
    "chat": "chat",
    "webchat": "chat",
    "api": "serve",
    "webui": "serve",
    "export": "export",
    "eval": "evaluate",
    "env": "other",
    "version": "other",
    "help": "other",
}
_SWIFT_PURPOSE = {
    "pt": "train",
    "sft": "train",
    "rlhf": "train",
    "dpo": "train",
    "orpo": "train",
    "simpo": "train",
    "deploy": "serve",
    "rollout": "serve",
    "app": "serve",
    "app-ui": "serve",
    "web-ui": "serve",
    "export": "export",
    "merge-lora": "export",
    "eval": "evaluate",
    "sample": "predict",
}
_COMMAND_PURPOSE = {
    ("vllm", "serve"): "serve",
    ("vllm", "chat"): "chat",
    ("vllm", "complete"): "chat",
    ("trl", "vllm-serve"): "serve",
    ("trl", "chat"): "chat",
    ("trl", "sft"): "train",
    ("trl", "dpo"): "train",
    ("trl", "kto"): "train",
    ("trl", "grpo"): "train",
    ("axolotl", "train"): "train",
    ("axolotl", "inference"): "chat",
    ("axolotl", "evaluate"): "evaluate",
    ("axolotl", "merge-lora"): "export",
    ("lmdeploy", "serve"): "serve",
    ("lmdeploy", "chat"): "chat",
    ("sglang", "serve"): "serve",
}
_SERVING_COMMANDS = frozenset(
    {"uvicorn", "gunicorn", "hypercorn", "streamlit", "gradio", "chainlit", "jupyter", "jupyter-lab",
     "jupyter-notebook", "text-generation-launcher", "tensorboard", "ipython", "open-webui", "ollama"}
)  # fmt: skip
"""Console commands that serve or talk for as long as they run."""

_MODULE_PURPOSE = {
    "vllm.entrypoints.openai.api_server": "serve",
    "vllm.entrypoints.api_server": "serve",
    "sglang.launch_server": "serve",
    "fastchat.serve.cli": "chat",
    "fastchat.serve.controller": "serve",
    "fastchat.serve.model_worker": "serve",
    "fastchat.serve.multi_model_worker": "serve",
    "fastchat.serve.vllm_worker": "serve",
    "fastchat.serve.sglang_worker": "serve",
    "fastchat.serve.lightllm_worker": "serve",
    "fastchat.serve.gradio_web_server": "serve",
    "fastchat.serve.gradio_web_server_multi": "serve",
    "fastchat.serve.openai_api_server": "serve",
    "llava.serve.cli": "chat",
    "llava.serve.controller": "serve",
    "llava.serve.model_worker": "serve",
    "llava.serve.sglang_worker": "serve",
    "llava.serve.gradio_web_server": "serve",
    "trl.scripts.vllm_serve": "serve",
    "axolotl.cli.train": "train",
    "axolotl.cli.inference": "chat",
    "llamafactory.webui.interface": "serve",
    "llamafactory.api.app": "serve",
    "streamlit": "serve",
    "uvicorn": "serve",
    "gradio": "serve",
    "http.server": "serve",
    "swift.cli.sft": "train",
    "swift.cli.rlhf": "train",
    "swift.cli.pt": "train",
    "swift.cli.deploy": "serve",
    "swift.cli.app": "serve",
    "swift.cli.web_ui": "serve",
}
"""Modules whose work is known (FastChat 0.2.36, LLaVA 1.2.2, vllm 0.6–0.10, sglang 0.4, trl 0.19.0)."""

_SPREADING_MAPS = frozenset({"auto", "balanced", "balanced_low_0", "sequential"})
_FLAG_ON = frozenset({"true", "1", "yes", "y", "t"})


def read_target(rest: tuple[Word, ...], form: str, layers: tuple[Layer, ...], context: Context) -> Target:
    """What the innermost launcher starts; ``rest`` and ``form`` are what its :class:`Peeled` left over."""
    typed = [layer for layer in layers if not layer.implied]
    last = typed[-1] if typed else None
    if last is not None and last.launcher in _SUBCOMMAND_LAYERS:
        return _subcommand_target(rest, last, context)
    if not rest or form == "none":
        return Target("none", None, None)
    if last is not None and last.launcher == "tune run":
        arguments = read_arguments(rest[1:])
        return Target("command", rest[0].value, rest[0], rest[1:], arguments, "torchtune", interactive=False)
    if form == "inline":
        return Target("inline", rest[0].value, rest[0], rest[1:], (), None)
    if form == "command":
        return _command_target(rest, context)
    return _python_target(rest, form, context)


def read_arguments(words: tuple[Word, ...]) -> tuple[Argument, ...]:
    """Arguments as ``--name value…``, ``--name=value``, ``name=value`` or positional, in order."""
    out: list[Argument] = []
    takes_values = False
    for index, word in enumerate(words):
        if word.value == "--":
            out.extend(Argument(None, None, (other,), other.span) for other in words[index + 1 :])
            break
        takes_values = _read_argument(out, word, takes_values)
    return tuple(out)


def _read_argument(out: list[Argument], word: Word, takes_values: bool) -> bool:
    """Append the argument that a word starts, or give the word to the option before it.

    Answers whether the next word may be a value of the last argument.
    """
    text = word.value if word.value is not None else word.known_prefix
    name, separator, _ = text.partition("=")
    if _is_option(text):
        values = (cut(word, len(name) + 1, None),) if separator else ()
        out.append(Argument(_named(name), name, values, word.span))
        return not separator
    if separator and _may_be_key(name) and not (takes_values and not out[-1].values):
        out.append(Argument(_named(name), name, (cut(word, len(name) + 1, None),), word.span))
        return False
    if not takes_values or word.splits:
        out.append(Argument(None, None, (word,), word.span))
        return False
    before = out[-1]
    span = Span(min(before.span.start, word.span.start), max(before.span.end, word.span.end))
    out[-1] = Argument(before.name, before.flag, (*before.values, word), span)
    return True


def parameter(target: Target, *names: str) -> Setting[object] | None:
    """A framework parameter by any of its names: on the command line, else in the framework's own file."""
    argument = target.argument(*names)
    if argument is not None:
        value: object = argument.value if argument.values else True
        if argument.values and argument.value is None:
            value = Unknown(f"the value of {argument.values[0].written} is not known")
        return Setting(value, Origin("option", argument.flag or names[0]))
    for config in target.configs:
        if config.role in {"llamafactory", "arguments", "axolotl", "trl", "swift"}:
            for name in names:
                if config.has(name):
                    return Setting(config.get(name), Origin("config", config.name, config.locate(name)))
    return None


def judge_purpose(target: Target, layers: tuple[Layer, ...], plan: Plan, context: Context) -> Setting[str]:  # noqa: ARG001 - a judge's signature
    """``train``, ``predict``, ``chat``, ``serve``, ``export``, ``evaluate`` or ``other``."""
    named = _known_purpose(target)
    if named is not None:
        return named
    if target.kind == "none":
        return Setting(Unknown("nothing is started"), Origin("derived", "the command"))
    if target.framework in {"llamafactory", "transformers", "trl"}:
        asked = _asked_purpose(target)
        if asked is not None:
            return asked
    return _program_purpose(target)


def judge_engine(target: Target, layers: tuple[Layer, ...], plan: Plan, context: Context) -> Setting[Engine]:
    """Who does the parallel work inside the processes."""
    if "megatron" in {layer.launcher for layer in layers} or target.framework == "megatron":
        return Setting(Engine("megatron"), Origin("derived", "megatron"))
    asked = _deepspeed(target, context)
    if asked is not None:
        return asked
    given = plan.engine.known
    if given is not None and given.name not in {"none", "ddp"}:
        return plan.engine
    fsdp = parameter(target, "fsdp")
    if fsdp is not None and fsdp.value not in (None, "", False, "[]", []):
        return Setting(Engine("fsdp"), fsdp.origin)
    return _program_engine(target, plan, context)


def judge_spread(
    target: Target, plan: Plan, engine: Setting[Engine], purpose: Setting[str], context: Context
) -> Setting[str]:
    """``replicas`` (one process a card), ``split`` (one model over several cards) or ``single``."""
    origin = Origin("derived", "processes and engine")
    known = engine.known
    processes, nodes = plan.processes_per_node.known, plan.nodes.known
    if known is not None and known.name in {"megatron", "device_map"}:
        return Setting("split", engine.origin)
    if processes is None or nodes is None:
        return Setting(Unknown("the number of processes is not known"), origin)
    if processes * nodes > 1:
        if known is None:
            return Setting(engine.value if isinstance(engine.value, Unknown) else Unknown("not known"), origin)
        if known.name == "fsdp" or (known.name == "deepspeed" and known.stage == 3):
            return Setting("split", engine.origin)
        if known.name == "deepspeed" and isinstance(known.stage, Unknown):
            return Setting(known.stage, engine.origin)
        return Setting("replicas", origin)
    return _single_spread(target, plan, engine, purpose, context)


def _single_spread(
    target: Target, plan: Plan, engine: Setting[Engine], purpose: Setting[str], context: Context
) -> Setting[str]:
    devices = device_count(plan, context)
    if devices.known is not None and devices.known <= 1:
        return Setting("single", devices.origin)
    if engine.known is not None and engine.known.name == "data_parallel":
        return Setting("replicas", engine.origin)
    loads_auto = target.framework == "llamafactory" and purpose.known in {"chat", "serve", "export"}
    if loads_auto:
        if devices.known is None:
            return Setting(Unknown("the number of visible devices is not known"), devices.origin)
        return Setting("split", Origin("default", "device_map auto"))
    if engine.known is not None and engine.known.name == "none":
        return Setting("single", engine.origin)
    return Setting(Unknown("what the program does with the devices is not known"), Origin("derived", "the program"))


def _subcommand_target(rest: tuple[Word, ...], layer: Layer, context: Context) -> Target:
    name = layer.launcher
    framework = _SUBCOMMAND_LAYERS[name]
    word = layer.command_words[-1]
    if not rest:
        return Target("command", name, word, framework=framework)
    given = rest[0].value
    arguments = read_arguments(rest[1:])
    configs = _configs(arguments, framework, context)
    return Target(
        "command",
        name,
        word,
        rest[1:],
        arguments,
        framework,
        given,
        rest[0],
        interactive=_subcommand_interactive(name, given, arguments),
        exists=Unknown("a console command is looked for on PATH"),
        configs=configs,
    )


def _subcommand_interactive(name: str, given: str | None, arguments: tuple[Argument, ...]) -> bool | Unknown:
    if given is None:
        return Unknown("the sub-command is not known")
    if name == "llamafactory-cli":
        return given in {"chat", "webchat", "api", "webui"}
    if name not in {"swift", "megatron"}:
        return False
    given = given.replace("_", "-")
    if given in {"app", "app-ui", "web-ui", "deploy", "rollout"}:
        return True
    if name == "swift" and given == "infer":
        # ms-swift 3.9.0, llm/argument/infer_args.py _init_eval_human: it talks to a person without a data set.
        names = {argument.name for argument in arguments}
        if any(argument.name is None and argument.values[0].splits for argument in arguments):
            return Unknown("some of the arguments are not known")
        return not names & {"val_dataset", "dataset", "eval_human", "load_data_args", "load_dataset_config"}
    return False


def _command_target(rest: tuple[Word, ...], context: Context) -> Target:
    text = rest[0].value
    name = text.rsplit("/", 1)[-1] if text is not None else None
    framework = _COMMANDS.get(name or "")
    given: Word | None = None
    behind = rest[1:]
    if name in _WITH_SUBCOMMAND and behind and not (behind[0].value or "-").startswith("-"):
        given, behind = behind[0], behind[1:]
    arguments = read_arguments(behind)
    subcommand = given.value if given is not None else None
    interactive: bool | Unknown = Unknown("the command is not one of those that are known")
    if name in _SERVING_COMMANDS:
        interactive = True
    elif name is not None and subcommand is not None:
        purpose = _COMMAND_PURPOSE.get((name, subcommand))
        if purpose is not None:
            interactive = purpose in {"chat", "serve"}
    return Target(
        "command",
        text,
        rest[0],
        behind,
        arguments,
        framework,
        subcommand,
        given,
        interactive=interactive,
        exists=_file_exists(text, context) if text is not None and "/" in text else Unknown("looked for on PATH"),
        configs=_configs(arguments, framework, context),
    )


def _python_target(rest: tuple[Word, ...], form: str, context: Context) -> Target:
    word = rest[0]
    text = word.value
    program: Program | Unknown = Unknown(f"the value of {word.written} is not known")
    exists: bool | Unknown = Unknown(f"the value of {word.written} is not known")
    if text is not None:
        if _elsewhere(context):
            program = Unknown("it runs in a container, on another machine or in another directory")
            exists = Unknown(program.reason)
        elif form == "module":
            program, exists = _module(text, context)
        else:
            exists = _file_exists(text, context)
            program = _read_program(text, context)
    arguments = read_arguments(rest[1:])
    framework = _framework(text, form, program)
    return Target(
        form,
        text,
        word,
        rest[1:],
        arguments,
        framework,
        interactive=_python_interactive(text, form, program),
        exists=exists,
        program=program,
        configs=_configs(arguments, framework, context),
    )


def _read_program(path: str, context: Context) -> Program | Unknown:
    if not path.endswith((".py", ".pyw")):
        return Unknown("it is not a Python file by its name")
    return context.workspace.program(path, context.command.directory)


def _elsewhere(context: Context) -> bool:
    return any(wrapper.name.startswith(_OTHER_PLACES) for wrapper in context.command.wrappers)


def _file_exists(path: str, context: Context) -> bool | Unknown:
    if _elsewhere(context):
        return Unknown("it runs in a container, on another machine or in another directory")
    kind = context.workspace.kind(path, context.command.directory)
    return kind if isinstance(kind, Unknown) else kind != "missing"


def _module(name: str, context: Context) -> tuple[Program | Unknown, bool | Unknown]:
    """A module's source where it lies in the working directory or on PYTHONPATH, and whether it exists at all."""
    directory = context.command.directory
    if not all(part.isidentifier() for part in name.split(".")):
        return Unknown(f"{name} is not a module's name"), False if name else Unknown("no name")
    parts = name.replace(".", "/")
    for root in _import_roots(context):
        for path in (f"{root}{parts}.py", f"{root}{parts}/__main__.py"):
            program = context.workspace.program(path, directory)
            if not isinstance(program, Unknown) or context.workspace.kind(path, directory) == "file":
                return program, True
        package = context.workspace.kind(f"{root}{name.split('.', maxsplit=1)[0]}/__init__.py", directory)
        if package == "file":
            inside = context.workspace.kind(f"{root}{parts}", directory)
            if isinstance(inside, Unknown):
                return inside, inside
            return Unknown(f"{name} has no file that can be run"), inside == "directory"
    kind = context.knowledge.module_kind(name)
    if isinstance(kind, Unknown):
        return kind, kind
    return Unknown("it belongs to an installed package"), kind != "missing"


def _import_roots(context: Context) -> Iterator[str]:
    yield ""
    variable = context.command.variable("PYTHONPATH")
    text = variable.text if variable is not None else context.facts.variable("PYTHONPATH")
    if isinstance(text, str):
        for entry in text.split(":"):
            if entry and entry not in {".", "./"}:
                yield entry.rstrip("/") + "/"


def _framework(text: str | None, form: str, program: Program | Unknown) -> str | None:
    if form == "module" and text is not None:
        top = text.split(".", maxsplit=1)[0]
        if top in _PACKAGES:
            return _PACKAGES[top]
    if isinstance(program, Unknown):
        return None
    for package, framework in _PACKAGES.items():
        if program.imports_any(package):
            return framework
    return None


def _python_interactive(text: str | None, form: str, program: Program | Unknown) -> bool | Unknown:
    if form == "module" and text in _MODULE_PURPOSE:
        return _MODULE_PURPOSE[text] in {"chat", "serve"}
    if form == "module" and text == "llamafactory.launcher":
        return False
    if isinstance(program, Unknown):
        return program
    talks = program.all("server", "input-loop")
    if any(seen.detail != "conditional" for seen in talks):
        return True
    if talks:
        return Unknown("it does so only under a condition")
    if program.first("trainer", "run-exp", "ddp", "fsdp", "backward", "deepspeed-initialize") is not None:
        return False
    return Unknown("its source shows neither a server nor a prompt, but may import one")


def _configs(arguments: tuple[Argument, ...], framework: str | None, context: Context) -> tuple[ConfigFile, ...]:
    """The files that the target reads its own parameters and its engine's from."""
    if _elsewhere(context):
        return ()
    directory = context.command.directory
    found: list[ConfigFile] = []
    own = _own_config(arguments, framework)
    if own is not None:
        role = framework if framework in {"llamafactory", "axolotl"} else "arguments"
        found.append(context.workspace.config(own, role or "arguments", directory))
    for name, role in (("deepspeed", "deepspeed"), ("deepspeed_config", "deepspeed"), ("fsdp_config", "fsdp")):
        path = next((a.value for a in reversed(arguments) if a.name == name), None)
        if path is None and found and found[0].role != role:
            value = found[0].get(name)
            path = value if isinstance(value, str) else None
        if path is not None and path.endswith((".json", ".yaml", ".yml")):
            found.append(context.workspace.config(path, role, directory))
    return tuple(found)


def _own_config(arguments: tuple[Argument, ...], framework: str | None) -> str | None:
    if framework in {"llamafactory", "transformers", "trl", "axolotl"} and arguments:
        first = arguments[0]
        if first.name is None and first.value is not None and first.value.endswith((".yaml", ".yml", ".json")):
            return first.value
    if framework in {"trl", "swift"}:
        for argument in arguments:
            if argument.name == "config" and argument.value is not None and argument.value.endswith((".yaml", ".yml")):
                return argument.value
    return None


def _known_purpose(target: Target) -> Setting[str] | None:
    origin = Origin("derived", target.subcommand or target.value or "the command")
    if target.kind == "command":
        name = (target.value or "").rsplit("/", 1)[-1]
        given = target.subcommand or ""
        if name == "llamafactory-cli":
            purpose = _LLAMAFACTORY_PURPOSE.get(given)
        elif name in {"swift", "megatron"}:
            purpose = _SWIFT_PURPOSE.get(given.replace("_", "-"))
            if given == "infer":
                purpose = (
                    None if isinstance(target.interactive, Unknown) else "chat" if target.interactive else "predict"
                )
        else:
            purpose = _COMMAND_PURPOSE.get((name, given)) or ("serve" if name in _SERVING_COMMANDS else None)
        return Setting(purpose, origin) if purpose is not None else None
    if target.kind == "module" and target.value in _MODULE_PURPOSE:
        return Setting(_MODULE_PURPOSE[target.value], origin)
    return None


def _asked_purpose(target: Target) -> Setting[str] | None:
    """What ``do_train``, ``do_predict`` and ``do_eval`` ask for (transformers 4.52.4, TrainingArguments)."""
    for name, purpose in (("do_train", "train"), ("do_predict", "predict"), ("do_eval", "evaluate")):
        setting = parameter(target, name)
        if setting is None:
            continue
        if isinstance(setting.value, Unknown):
            return Setting(setting.value, setting.origin)
        if setting.value is True or str(setting.value).lower() in _FLAG_ON:
            return Setting(purpose, setting.origin)
    return None


def _program_purpose(target: Target) -> Setting[str]:
    if isinstance(target.program, Unknown):
        return Setting(target.program, Origin("derived", "the program"))
    kinds = (
        ("train", ("trainer", "backward", "optimizer")),
        ("export", ("export-model",)),
        ("serve", ("server",)),
        ("chat", ("input-loop",)),
        ("predict", ("predict", "generate")),
        ("train", ("ddp", "fsdp", "deepspeed-initialize")),
    )
    for purpose, names in kinds:
        seen = target.program.first(*names)
        if seen is not None and not (purpose in {"serve", "chat"} and seen.detail == "conditional"):
            return Setting(purpose, Origin("derived", seen.kind, target.program.locate(seen)))
    return Setting(Unknown("the program's source does not show its purpose"), Origin("derived", "the program"))


_SWIFT_STAGES = {"zero0": 0, "zero1": 1, "zero2": 2, "zero3": 3}


def _deepspeed(target: Target, context: Context) -> Setting[Engine] | None:
    setting = parameter(target, "deepspeed")
    explicit = parameter(target, "deepspeed_config")
    if setting is None and explicit is None:
        return None
    chosen = explicit if explicit is not None and (setting is None or setting.value is True) else setting
    if chosen is None or chosen.value in (None, False, "", "None", "none", "null"):
        return None
    if str(chosen.value).lower() == "false":
        return None
    origin = chosen.origin
    if origin.location is None and target.argument("deepspeed", "deepspeed_config") is not None:
        argument = target.argument("deepspeed", "deepspeed_config")
        if argument is not None:
            origin = Origin(origin.kind, origin.detail, Location(context.command.source, argument.span))
    stage: int | Unknown = Unknown("the DeepSpeed configuration could not be read")
    text = str(chosen.value).removeprefix("default-").replace("-", "_").removesuffix("_offload")
    if text in _SWIFT_STAGES:
        return Setting(Engine("deepspeed", _SWIFT_STAGES[text]), origin)
    config = target.config("deepspeed")
    if config is not None and config.problem is None and config.exists is True:
        found = config.get("zero_optimization", "stage")
        stage = found if isinstance(found, int) else 0 if found is None else Unknown("the stage is no number")
    return Setting(Engine("deepspeed", stage), origin)


def _program_engine(target: Target, plan: Plan, context: Context) -> Setting[Engine]:
    processes, nodes = plan.processes_per_node.known, plan.nodes.known
    world = processes * nodes if processes is not None and nodes is not None else None
    shown = _shown_engine(target.program, world)
    if shown is not None:
        return shown
    if plan.engine.known is not None and plan.engine.known.name == "ddp":
        return plan.engine
    trains = target.framework in {"llamafactory", "swift"} and (
        target.subcommand in {"train", "sft", "pt", "rlhf", "dpo"} or target.kind == "module"
    )
    if trains and world is not None:
        return Setting(Engine("ddp" if world > 1 else "none"), Origin("derived", f"{target.framework}'s trainer"))
    if world == 1:
        return _one_process(target, plan, context)
    reason = plan.engine.value if isinstance(plan.engine.value, Unknown) else None
    return Setting(reason or Unknown("the program's source does not show it"), plan.engine.origin)


def _shown_engine(program: Program | Unknown, world: int | None) -> Setting[Engine] | None:
    """The engine that the program's source sets up itself."""
    if isinstance(program, Unknown):
        return None
    if (seen := program.first("deepspeed-initialize")) is not None:
        engine = Engine("deepspeed", Unknown("it is set inside the program"))
        return Setting(engine, Origin("derived", seen.kind, program.locate(seen)))
    if (seen := program.first("fsdp")) is not None:
        return Setting(Engine("fsdp"), Origin("derived", seen.kind, program.locate(seen)))
    if world == 1:
        mapped = next((seen for seen in program.all("device-map") if seen.detail in _SPREADING_MAPS), None)
        if mapped is not None:
            return Setting(Engine("device_map"), Origin("derived", "device_map", program.locate(mapped)))
        if (seen := program.first("data-parallel")) is not None:
            return Setting(Engine("data_parallel"), Origin("derived", "DataParallel", program.locate(seen)))
    elif world is not None and (seen := program.first("ddp", "trainer", "accelerator", "run-exp")) is not None:
        return Setting(Engine("ddp"), Origin("derived", seen.kind, program.locate(seen)))
    return None


def _one_process(target: Target, plan: Plan, context: Context) -> Setting[Engine]:
    devices = device_count(plan, context).known
    if target.framework == "llamafactory" and target.subcommand in {"chat", "webchat", "api", "export"}:
        return Setting(
            Engine("device_map" if devices is None or devices > 1 else "none"), Origin("default", "device_map")
        )
    if devices is not None and devices <= 1:
        return Setting(Engine("none"), Origin("derived", "one process, one device"))
    program = target.program
    if not isinstance(program, Unknown):
        trainer = program.first("trainer")
        accelerator = program.first("accelerator")
        if trainer is not None and accelerator is None and devices is not None:
            return Setting(Engine("data_parallel"), Origin("derived", trainer.detail, program.locate(trainer)))
        if program.first("server", "input-loop", "trainer") is None:
            return Setting(Engine("none"), Origin("derived", "one process"))
    return Setting(Unknown("the program could not be read"), Origin("derived", "the program"))


def _is_option(text: str) -> bool:
    if not text.startswith("-") or len(text) < 2:
        return False
    return not (text[1].isdigit() or (text[1] == "." and text[2:3].isdigit()) or " " in text.split("=", 1)[0])


def _named(flag: str) -> str:
    return flag.lstrip("-+").replace("-", "_")


def _may_be_key(name: str) -> bool:
    return name.lstrip("+").replace(".", "").replace("_", "").isalnum()
