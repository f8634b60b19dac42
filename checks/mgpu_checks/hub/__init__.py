"""Models and data sets: what of them comes from the hub, and whether a job may ask it.

When Hugging Face's libraries stay off the network (huggingface_hub 0.20.3 … 2.4.0, ``constants.py``):
``HF_HUB_OFFLINE`` counts when it is set to anything but the empty text, else ``TRANSFORMERS_OFFLINE``; the
one that counts means offline when it is 1, on, yes or true in any case. So ``HF_HUB_OFFLINE=0`` wins over
``TRANSFORMERS_OFFLINE=1``. datasets (2.21.0 … 5.2.0, ``config.py``) follows, unless ``HF_DATASETS_OFFLINE`` is set.
"""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.launch import earlier_commands
from mgpu_doctor.authoring import Case, Launch, Location, Unknown, Word, dataclass, pattern

ON = frozenset({"1", "ON", "YES", "TRUE"})
"""The values that switch it on, in upper case (huggingface_hub, constants.py, ENV_VARS_TRUE_VALUES)."""

OFF = frozenset({"", "0", "OFF", "NO", "FALSE"})
"""The usual ways to say no; any other text means no as well, but was hardly meant so."""

HUB = "HF_HUB_OFFLINE"
TRANSFORMERS = "TRANSFORMERS_OFFLINE"
DATASETS = "HF_DATASETS_OFFLINE"
SWITCHES = (HUB, TRANSFORMERS)
INVENTED = pattern(r"(?:HF|HUGGING_?FACE|TRANSFORMERS?)_(?:\w*_)?OFF?LINE(?:_MODE)?")
"""Names that people invent for the switch; the real ones fit as well."""

HOSTS = ("huggingface.co", "hf.co")

MODEL_NAMES = ("model_name_or_path", "model", "model_path", "pretrained_model_name_or_path", "model_id", "base_model")
"""Arguments by which scripts and frameworks are given a model."""


@dataclass(frozen=True, slots=True)
class Given:
    """A value that the job is given, where it stands, and the argument's name."""

    text: str
    location: Location
    name: str


def is_offline_machine(case: Case) -> bool:
    """Whether the facts say that the hub cannot be reached from there."""
    reachable = case.facts.reachable
    return not isinstance(reachable, Unknown) and any(reachable.get(host) is False for host in HOSTS)


def value_of(case: Case, launch: Launch, name: str) -> str | Unknown | None:
    """A variable's text as it reaches the job, Unknown when the text is not known, None when it is not set.

    An inherited environment of which nothing is known counts as one that does not set it.
    """
    for variable in reversed(launch.command.environment):
        if variable.name == name:
            if variable.value is None:
                return None
            return Unknown("its value is computed") if variable.text is None else variable.text
    inherited = case.facts.variable(name)
    return inherited if isinstance(inherited, str) and not launch.command.unset_all else None


def is_offline(case: Case, launch: Launch) -> bool | Unknown:
    """Whether the job stays off the hub."""
    for name in SWITCHES:
        value = value_of(case, launch, name)
        if isinstance(value, Unknown):
            return value
        if value:
            return value.upper() in ON
    return False


def sets_itself(launch: Launch) -> bool:
    """Whether the program that is started deals with the switches by itself, as far as its text shows."""
    program = launch.target.program
    if isinstance(program, Unknown):
        return False
    kinds = ("sets-variable", "defaults-variable")
    return any(seen.detail.partition("=")[0] in (*SWITCHES, DATASETS) for seen in program.all(*kinds)) or any(
        "local_files_only=True" in seen.detail for seen in program.all("from-pretrained")
    )


def models(launch: Launch) -> Iterator[Given]:
    """The models that the command line or a configuration file of the target names."""
    argument = launch.target.argument(*MODEL_NAMES)
    if argument is not None and argument.value:
        word = argument.values[0]
        yield Given(argument.value, word.origin or launch.command.locate(word.span), argument.name or "")
    for config in launch.target.configs:
        for name in MODEL_NAMES:
            value, place = config.get(name), config.locate(name)
            if isinstance(value, str) and value and place is not None:
                yield Given(value, place, name)


def is_local_path(text: str) -> bool:
    """Whether a model's name can only be a path: absolute, from the home or the working directory."""
    return text.startswith(("/", "./", "../", "~/"))


ADAPTER_NAMES = ("adapter_name_or_path", "adapters", "adapter_path", "lora_path", "peft_model_path")
"""Arguments by which scripts and frameworks are given an adapter (the first is LLaMA-Factory's, the second swift's)."""

FETCHERS = frozenset({"git", "wget", "curl", "aria2c", "hf", "huggingface-cli", "modelscope", "aws", "gsutil", "rsync"})
"""Commands that bring files; from what they are told it cannot be seen which."""


def adapters(launch: Launch) -> Iterator[Given]:
    """The adapters that are named; several in one value stand between commas."""
    argument = launch.target.argument(*ADAPTER_NAMES)
    if argument is not None:
        for word in argument.values:
            yield from _split(word.value, word.origin or launch.command.locate(word.span), argument.name or "")
    for config in launch.target.configs:
        for name in ADAPTER_NAMES:
            value, place = config.get(name), config.locate(name)
            if isinstance(value, str) and place is not None:
                yield from _split(value, place, name)


def _split(text: str | None, location: Location, name: str) -> Iterator[Given]:
    for part in (text or "").split(","):
        if part.strip():
            yield Given(part.strip(), location, name)


def may_come_from_before(case: Case, launch: Launch, path: str) -> bool:
    """Whether a command above may bring or write what lies at a path: it fetches something, or names the path."""
    wanted = _plain(path)
    for command in earlier_commands(case, launch):
        if (command.name or "").rsplit("/", 1)[-1] in FETCHERS:
            return True
        if any(_names(case, command.directory, word, wanted) for word in command.words):
            return True
    return False


def _names(case: Case, directory: str | Unknown | None, word: Word, wanted: str) -> bool:
    """Whether a word, or a value in the configuration file that it names, is a path, lies in it or above it."""
    shown = word.shown
    if wanted in _plain(shown.partition("=")[2] or shown):
        return True
    if not shown.endswith((".yaml", ".yml", ".json")):
        return False
    config = case.workspace.config(shown, "arguments", directory)
    values = (_plain(entry.value) for entry in config.values.values() if isinstance(entry.value, str))
    return any(value and (wanted == value or wanted.startswith(f"{value}/")) for value in values)


def _plain(path: str) -> str:
    return path.strip().removeprefix("./").rstrip("/")


def loads_with_transformers(launch: Launch) -> bool:
    """Whether what is given as a model is surely loaded with transformers: the framework's own way to do it."""
    target = launch.target
    if target.framework == "llamafactory":
        return target.subcommand in {None, "train", "chat", "api", "webchat", "export", "eval"}
    return target.framework in {"swift", "trl"} and target.subcommand in {"sft", "pt", "dpo", "kto", "grpo", "rlhf"}


_OTHER_HUBS = {
    "llamafactory": ("USE_MODELSCOPE_HUB", "USE_OPENMIND_HUB"),
    "vllm": ("VLLM_USE_MODELSCOPE",),
}
"""Variables by which a framework takes models from another hub."""


def uses_other_hub(case: Case, launch: Launch) -> bool:
    """Whether models may come from another hub than Hugging Face's."""
    framework = launch.target.framework or ""
    if framework == "swift":
        return True
    names = _OTHER_HUBS.get(framework, tuple(name for names in _OTHER_HUBS.values() for name in names))
    values = [value_of(case, launch, name) for name in names]
    return any(isinstance(value, Unknown) or (value or "0").upper() not in OFF for value in values)


_OF_TRANSFORMERS = frozenset({"model_name_or_path", "pretrained_model_name_or_path", "adapter_name_or_path"})
_FRAMEWORKS = frozenset({"llamafactory", "swift", "vllm", "sglang", "trl", "axolotl"})
_LOADERS = ("transformers", "peft", "trl", "vllm", "sglang", "sentence_transformers")


def is_for_transformers(launch: Launch, given: Given) -> bool:
    """Whether a value surely goes to a library that takes folders and hub ids; ``--model out/best`` may be anything."""
    if given.name in _OF_TRANSFORMERS or launch.target.framework in _FRAMEWORKS:
        return True
    program = launch.target.program
    return not isinstance(program, Unknown) and program.imports_any(*_LOADERS)
