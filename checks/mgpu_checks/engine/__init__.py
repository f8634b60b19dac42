"""Who does the parallel work: the rules of this family, and the training arguments that a launch hands to its program.

LLaMA-Factory reads a file when its first argument ends in .yaml, .yml or .json (llamafactory 0.9.3,
hparams/parser.py read_args()); ``name=value`` behind it overrides the file's entries.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import zip_longest

from mgpu_doctor.authoring import (
    Argument,
    Case,
    ConfigFile,
    Launch,
    Layer,
    Location,
    Program,
    Release,
    Span,
    Unknown,
    dataclass,
    is_before,
    pattern,
    release_numbers,
)

CONFIG_ENDINGS = (".yaml", ".yml", ".json")
_TRUE = frozenset({"true", "1", "yes", "t", "y", "on"})
_FALSE = frozenset({"false", "0", "no", "f", "n", "off"})
_ELIDED = pattern(r"^(?:\.{3}.*|…+|\[.*\]|<.*>)$")


@dataclass(frozen=True, slots=True)
class Given:
    """One argument as given. ``value`` is None when it is not known statically, True for a bare switch.

    ``shown`` is how the author wrote it (``--fp16 True``, ``fp16: true``).
    """

    name: str
    value: object
    shown: str
    location: Location

    @property
    def truth(self) -> bool | None:
        """The value as transformers' string_to_bool reads it; None when unknown or no boolean."""
        if isinstance(self.value, bool):
            return self.value
        text = str(self.value).lower()
        if text in _TRUE:
            return True
        return False if text in _FALSE else None

    @property
    def number(self) -> float | None:
        """The value as a number, None when unknown or no number."""
        if self.value is None or isinstance(self.value, bool):
            return None
        try:
            return float(str(self.value))
        except ValueError:
            return None

    @property
    def text(self) -> str | None:
        """The value as text, None when unknown or a bare switch."""
        return None if self.value is None or isinstance(self.value, bool) else str(self.value)


@dataclass(frozen=True, slots=True)
class TrainingArguments:
    """All arguments of a launch by name. ``complete`` is False when there may be more than can be seen."""

    given: Mapping[str, Given]
    complete: bool

    def get(self, name: str) -> Given | None:
        """The argument of that name, None when it is not given."""
        return self.given.get(name)

    def lacks(self, *names: str) -> bool:
        """Whether it is certain that none of these is given (null in a file counts as not given)."""
        return self.complete and not any(self._has(name) for name in names)

    def _has(self, name: str) -> bool:
        return name in self.given

    def truth(self, name: str, default: bool = False) -> bool | None:
        """A switch's value; its default when it is surely not given, None when that cannot be told."""
        given = self.given.get(name)
        if given is not None:
            return given.truth
        return default if self.complete else None

    def text(self, name: str, default: str | None = None) -> str | None:
        """A text's value; its default when it is surely not given, None when that cannot be told."""
        given = self.given.get(name)
        if given is not None:
            return given.text
        return default if self.complete else None

    def number(self, name: str, default: float | None = None) -> float | None:
        """A number's value; its default when it is surely not given, None when that cannot be told."""
        given = self.given.get(name)
        if given is not None:
            return given.number
        return default if self.complete else None


def training_arguments(launch: Launch) -> TrainingArguments:
    """What is given to the program, the last word winning, as its parser would keep it."""
    config = own_config(launch)
    found: dict[str, Given] = {}
    complete = not _elided(launch)
    if config is not None:
        complete = complete and config.exists is True and config.problem is None and config.source is not None
        found.update(_from_file(config))
    elif _config_word(launch):
        complete = False
    source = launch.command.source
    arguments = launch.target.arguments
    for argument, behind in zip_longest(arguments, arguments[1:]):
        if argument.name is None:
            continue
        name: str = argument.name
        value: object = argument.value
        if not argument.values and not _may_be_value(behind):
            value = True
            if name.startswith("no_"):
                name, value = name[3:], False
        shown = source.slice(argument.span) if len(argument.values) < 2 else str(argument.flag)
        found[name] = Given(name, value, shown, launch.command.locate(argument.span))
    return TrainingArguments(found, complete)


def _may_be_value(behind: Argument | None) -> bool:
    """Whether what follows a bare option is an expansion that may turn into its value."""
    return behind is not None and behind.name is None and any(word.splits for word in behind.values)


def own_config(launch: Launch) -> ConfigFile | None:
    """The YAML or JSON from which LLaMA-Factory takes its arguments, None when it takes them from the command line."""
    return launch.target.config("llamafactory")


def _config_word(launch: Launch) -> bool:
    """Whether the first argument names a configuration file that nobody has read."""
    words = launch.target.argument_words
    return bool(words) and words[0].shown.endswith(CONFIG_ENDINGS)


def _elided(launch: Launch) -> bool:
    """Whether arguments may be missing from what is written: ``…``, ``$@``, unknown expansions."""
    return any(word.splits or _ELIDED.match(word.shown) for word in launch.target.argument_words)


def _from_file(config: ConfigFile) -> dict[str, Given]:
    found: dict[str, Given] = {}
    source = config.source
    if source is None:
        return found
    for path, entry in config.values.items():
        if len(path) != 1 or entry.value is None:
            continue
        location = config.locate(*path)
        if location is not None:
            shown = source.slice(location.span).strip()
            found[path[0]] = Given(path[0], entry.value, shown.splitlines()[0] if shown else path[0], location)
    return found


def is_training(launch: Launch) -> bool:
    """Whether the program parses LLaMA-Factory's training arguments."""
    return launch.target.framework == "llamafactory" and launch.target.subcommand in (None, "train")


def version_of(release: Release | None) -> tuple[int, ...] | None:
    """A release's number, None when no version is known."""
    if release is None or release.version is None:
        return None
    return release_numbers(release.version) or None


def may_be_before(release: Release, *number: int) -> bool:
    """Whether the release may be older than ``number``: it is, or it is only assumed."""
    return not release.certain or is_before(release.version, *number) is not False


def may_be_since(release: Release, *number: int) -> bool:
    """Whether the release may be ``number`` or newer: it is, or it is only assumed."""
    return not release.certain or is_before(release.version, *number) is not True


SWITCHES = ("multi_gpu", "tpu", "tpu_use_cluster", "use_deepspeed", "use_fsdp", "use_megatron_lm")
"""accelerate's options that decide the kind of launch against its file (commands/launch.py, 0.20.3 to 1.15.0)."""


KINDS = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "DEEPSPEED", "FSDP", "MEGATRON_LM")
"""Kinds of launch that every release of accelerate has (DistributedType, 0.20.3 to 1.15.0)."""


def config_kind(config: ConfigFile) -> str | None:
    """The ``distributed_type`` of accelerate's file, ``NO`` for YAML's bare ``NO``; None when it says none."""
    value = config.get("distributed_type")
    if value is False:
        return "NO"
    return value.upper() if isinstance(value, str) else None


def devices_offered(case: Case, launch: Launch) -> int | None:
    """How many GPUs the launch could use on its node: the visible list, else the machine's; None when unknown."""
    visible = launch.visible.known
    if visible is not None and not visible.all:
        return len(visible.entries)
    if isinstance(case.facts.gpus, Unknown):
        return len(visible.entries) if visible is not None and visible.entries else None
    return len(case.facts.gpus)


def deepspeed_file(case: Case, launch: Launch) -> ConfigFile | None:
    """The DeepSpeed configuration file that takes part and could be read: the program's, else accelerate's.

    None when there is none, when it could not be read, or when it is not a mapping.
    """
    config = launch.target.config("deepspeed")
    if config is None:
        name = accelerate_file(launch)
        config = None if name is None else case.workspace.config(name, "deepspeed", launch.command.directory)
    if config is None or config.exists is not True or config.problem is not None or config.source is None:
        return None
    return config if config.values else None


def accelerate_file(launch: Launch) -> str | None:
    """The DeepSpeed file that accelerate is told to use, by option or by its own file; None when there is none."""
    layer = launch.layer("accelerate")
    if layer is None or uses_deepspeed(layer) is not True:
        return None
    option = layer.option("deepspeed_config_file")
    if option is not None:
        return option.value
    value = layer.config.get("deepspeed_config", "deepspeed_config_file") if layer.config is not None else None
    return value if isinstance(value, str) and value.lower() != "none" else None


def uses_deepspeed(layer: Layer) -> bool:
    """Whether accelerate itself switches DeepSpeed on, by option or by its file."""
    if layer.option("cpu") is not None:
        return False
    if any(layer.option(name) is not None for name in SWITCHES):
        return layer.option("use_deepspeed") is not None
    return layer.config is not None and config_kind(layer.config) == "DEEPSPEED"


def zero_stage(case: Case, launch: Launch) -> int | None:
    """The ZeRO stage that is in force, None when there is none or when it cannot be told."""
    config = deepspeed_file(case, launch)
    if config is not None:
        stage = config.get("zero_optimization", "stage")
        return stage if isinstance(stage, int) else None
    engine = launch.engine.known
    if engine is not None and isinstance(engine.stage, int):
        return engine.stage
    layer = launch.layer("accelerate")
    if layer is None or not uses_deepspeed(layer):
        return None
    option = layer.option("zero_stage")
    value = option.converted if option is not None else None
    if option is None and layer.config is not None:
        value = layer.config.get("deepspeed_config", "zero_stage")
    return value if isinstance(value, int) else None


def source_matches(program: Program | Unknown, pattern: str) -> Iterator[Location]:
    """Where a program's code matches a pattern, comment lines left out."""
    if isinstance(program, Unknown):
        return
    text = program.source.text
    for found in re.finditer(pattern, text):
        line = text[text.rfind("\n", 0, found.start()) + 1 : found.start()]
        if "#" not in line:
            yield Location(program.source, Span(*found.span()))


def trains_with_arguments(launch: Launch) -> bool:
    """Whether the command's arguments become transformers' TrainingArguments.

    Sure for LLaMA-Factory's training and for a program that gives them to an HfArgumentParser. For a program that
    cannot be read, ``--deepspeed FILE`` beside ``--per_device_train_batch_size`` is taken as the sign of it.
    """
    if is_training(launch):
        return True
    program = launch.target.program
    if isinstance(program, Unknown):
        names = {argument.name for argument in launch.target.arguments}
        return {"deepspeed", "per_device_train_batch_size"} <= names
    return program.first("hf-argument-parser") is not None and "TrainingArguments" in program.source.text


def has_plain_defaults(launch: Launch) -> bool:
    """Whether arguments that are not given surely have transformers' own defaults."""
    if is_training(launch):
        return True
    program = launch.target.program
    if isinstance(program, Unknown) or not trains_with_arguments(launch):
        return False
    return next(source_matches(program, r"class\s+\w+\([^)]*(?:TrainingArguments|Config)\b"), None) is None
