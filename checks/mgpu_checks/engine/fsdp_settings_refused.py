"""FSDP's settings hold a value that does not exist, or two that exclude each other."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.engine import (
    SWITCHES,
    Given,
    TrainingArguments,
    config_kind,
    may_be_before,
    training_arguments,
    trains_with_arguments,
    version_of,
)
from mgpu_doctor.authoring import (
    Case,
    ConfigFile,
    Edit,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Layer,
    Location,
    Reference,
    Rule,
    Severity,
    Signature,
    closest,
    dataclass,
    report,
)

_STRATEGIES = ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2")
_NAMES = {
    "fsdp_sharding_strategy": (*_STRATEGIES, "1", "2", "3", "4", "5"),
    "fsdp_backward_prefetch": ("BACKWARD_PRE", "BACKWARD_POST", "NO_PREFETCH", "1", "2"),
    "fsdp_state_dict_type": ("FULL_STATE_DICT", "LOCAL_STATE_DICT", "SHARDED_STATE_DICT", "1", "2", "3"),
    "fsdp_auto_wrap_policy": ("TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP"),
}
"""What FullyShardedDataParallelPlugin takes, in any case of letters (accelerate 0.34.2 to 1.15.0)."""

_SWITCHED = (
    "fsdp_offload_params",
    "fsdp_use_orig_params",
    "fsdp_forward_prefetch",
    "fsdp_activation_checkpointing",
    "fsdp_sync_module_states",
    "fsdp_cpu_ram_efficient_loading",
)
_TRUTH = frozenset(("y", "yes", "t", "true", "on", "1", "n", "no", "f", "false", "off", "0"))
"""What accelerate's str_to_bool() takes."""

_OPTIONS = ("full_shard", "shard_grad_op", "no_shard", "hybrid_shard", "hybrid_shard_zero2", "offload", "auto_wrap")
"""Members of transformers' FSDPOption (4.40.2 to 5.23.0)."""

_SCRIPT = {"train.py": "from accelerate import Accelerator\n\naccelerator = Accelerator()\n"}
_FSDP = "distributed_type: FSDP\nnum_processes: 4\nmixed_precision: bf16\nfsdp_config:\n"
_RUN = "accelerate launch --config_file fsdp.yaml train.py"
_TRAINER = (
    "from transformers import HfArgumentParser, Trainer, TrainingArguments\n\n"
    "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\n"
    "Trainer(model=build(), args=args).train()\n"
)
_TORCHRUN = "torchrun --nproc-per-node 4 train.py --output_dir out --fsdp"

RULE = Rule(
    code="MGD615",
    slug="fsdp-settings-refused",
    title="FSDP refuses these settings",
    severity=Severity.ERROR,
    summary="a value of accelerate's fsdp_config, or of --fsdp, does not exist or excludes another",
    why=(
        "`accelerate launch` hands FSDP's settings to the workers as variables without looking at most of them; each "
        "worker then stops when it makes its Accelerator: a KeyError for a sharding strategy that does not exist, an "
        "'invalid truth value', an \"Invalid auto wrap policy\". transformers' `--fsdp` takes its own words "
        "(`full_shard auto_wrap`) and refuses what does not go together."
    ),
    bad=(
        Example(
            "a sharding strategy that does not exist",
            _RUN,
            files={"fsdp.yaml": _FSDP + "  fsdp_sharding_strategy: FULLSHARD\n", **_SCRIPT},
        ),
        Example(
            "a wrap policy that does not exist",
            _RUN,
            files={"fsdp.yaml": _FSDP + "  fsdp_auto_wrap_policy: TRANSFORMER_WRAP\n", **_SCRIPT},
        ),
        Example(
            "efficient loading without synchronised states",
            _RUN,
            files={
                "fsdp.yaml": _FSDP + "  fsdp_cpu_ram_efficient_loading: true\n  fsdp_sync_module_states: false\n",
                **_SCRIPT,
            },
        ),
        Example(
            "YAML reads 1e8 as text",
            _RUN,
            files={
                "fsdp.yaml": _FSDP + "  fsdp_auto_wrap_policy: SIZE_BASED_WRAP\n  fsdp_min_num_params: 1e8\n",
                **_SCRIPT,
            },
        ),
        Example(
            "a strategy where FSDP2 wants true or false",
            _RUN,
            files={"fsdp.yaml": _FSDP + "  fsdp_version: 2\n  fsdp_reshard_after_forward: FULL_SHARD\n", **_SCRIPT},
        ),
        Example("a word that --fsdp does not know", f"{_TORCHRUN} fullshard", files={"train.py": _TRAINER}),
        Example("offload alone", f"{_TORCHRUN} offload", files={"train.py": _TRAINER}),
        Example(
            "FSDP and DeepSpeed",
            f"{_TORCHRUN} full_shard --deepspeed z2.json",
            files={"train.py": _TRAINER, "z2.json": '{"zero_optimization": {"stage": 2}}\n'},
        ),
        Example(
            "both ways to wrap",
            f"{_TORCHRUN} 'full_shard auto_wrap' --fsdp_config fsdp.json",
            files={
                "train.py": _TRAINER,
                "fsdp.json": '{"min_num_params": 2000, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}\n',
            },
        ),
    ),
    good=(
        Example(
            "as accelerate config writes it",
            _RUN,
            files={
                "fsdp.yaml": _FSDP + "  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n"
                "  fsdp_backward_prefetch: BACKWARD_PRE\n  fsdp_cpu_ram_efficient_loading: true\n"
                "  fsdp_forward_prefetch: false\n  fsdp_offload_params: false\n"
                "  fsdp_sharding_strategy: FULL_SHARD\n  fsdp_state_dict_type: SHARDED_STATE_DICT\n"
                "  fsdp_sync_module_states: true\n  fsdp_use_orig_params: true\n",
                **_SCRIPT,
            },
        ),
        Example(
            "numbers and small letters",
            _RUN,
            files={
                "fsdp.yaml": _FSDP + "  fsdp_sharding_strategy: 1\n  fsdp_backward_prefetch: no_prefetch\n",
                **_SCRIPT,
            },
        ),
        Example(
            "FSDP2",
            _RUN,
            files={
                "fsdp.yaml": _FSDP + "  fsdp_version: 2\n  fsdp_reshard_after_forward: true\n"
                "  fsdp_state_dict_type: SHARDED_STATE_DICT\n",
                **_SCRIPT,
            },
        ),
        Example(
            "settings that are not used",
            "accelerate launch --config_file fsdp.yaml --multi_gpu train.py",
            files={"fsdp.yaml": _FSDP + "  fsdp_sharding_strategy: FULLSHARD\n", **_SCRIPT},
        ),
        Example("what --fsdp takes", f"{_TORCHRUN} 'full_shard auto_wrap offload'", files={"train.py": _TRAINER}),
        Example("another program's own option", f"{_TORCHRUN} yes", files={"train.py": "import torch\n"}),
    ),
    sources=(
        Reference(
            "accelerate 1.7.0 and 1.15.0, accelerate launch's preparation and FullyShardedDataParallelPlugin()",
            "KeyError: 'FULLSHARD'; 'invalid truth value yes please'; 'When using `--fsdp_cpu_ram_efficient_loading` "
            "set `--fsdp_sync_module_states` to `True`'; \"invalid literal for int() with base 10: '1e8'\"; FSDP2: "
            "'invalid truth value full_shard', 'FSDP2 does not support LOCAL_STATE_DICT'",
            ran=True,
        ),
        Reference(
            "accelerate 0.27.2, 0.34.2, 1.0.1, 1.15.0, utils/dataclasses.py FullyShardedDataParallelPlugin",
            "names of strategies since 0.26, the wrap policy's name is checked since 0.34",
        ),
        Reference(
            "transformers 4.40.2, 4.52.4, 5.0.0, 5.6.0, training_args.py; trainer.py",
            "'`--fsdp offload` can't work on its own', 'Using --fsdp xxx together with --deepspeed is not possible', "
            "'`min_num_params` and `transformer_layer_cls_to_wrap` are mutually exclusive.'; 5.23.0 takes the first "
            "and the last of these",
            ran=True,
        ),
    ),
    fix="Write a value that FSDP has",
    signatures=(
        Signature(
            r"Invalid auto wrap policy: |`--fsdp offload` can't work on its own"
            r"|Using --fsdp xxx together with --deepspeed",
            "accelerate 0.34.2 to 1.15.0, utils/dataclasses.py; transformers 4.40.2 to 5.6.0, training_args.py",
            "ValueError: Invalid auto wrap policy: TRANSFORMER. Must be one of ['TRANSFORMER_BASED_WRAP', "
            "'SIZE_BASED_WRAP', 'NO_WRAP']",
        ),
        Signature(
            r"When using `--fsdp_cpu_ram_efficient_loading` set `--fsdp_sync_module_states`"
            r"|`min_num_params` and `transformer_layer_cls_to_wrap` are mutually exclusive",
            "accelerate 0.25.0 to 1.15.0, utils/launch.py; transformers 4.40.2 to 5.6.0, training_args.py",
            "ValueError: When using `--fsdp_cpu_ram_efficient_loading` set `--fsdp_sync_module_states` to `True`",
        ),
        Signature(
            r"'\w+' is not a valid FSDPOption|FSDP2 does not support LOCAL_STATE_DICT",
            "transformers 4.40.2 to 5.6.0, trainer_utils.py; accelerate 1.7.0 and 1.15.0, utils/dataclasses.py",
            "ValueError: FSDP2 does not support LOCAL_STATE_DICT. Please set `fsdp_state_dict_type` to "
            "`SHARDED_STATE_DICT` or `FULL_STATE_DICT`.",
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class _Value:
    """A setting of FSDP as accelerate would hand it on; ``shown`` is how its author wrote it."""

    name: str
    value: object
    shown: str
    location: Location
    config: ConfigFile | None = None
    path: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return str(self.value)

    def write(self, text: str) -> Fix:
        """A fix that puts another value there."""
        title = f"Write {self.name}: {text}"
        if self.config is None or self.config.source is None:
            return Fix(title)
        entry = self.config.values[self.path]
        # The user's default file has lines, no places of values.
        edits = (Edit(self.config.source, entry.span, text),) if entry.span.start >= entry.key_span.end else ()
        return Fix(title, edits)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each setting of FSDP that is refused."""
    for launch in case.launches:
        layer = launch.layer("accelerate")
        if layer is not None and _uses_fsdp(layer):
            yield from _in_accelerate(launch, layer)
        if trains_with_arguments(launch):
            yield from _in_arguments(case, launch, training_arguments(launch))


def _uses_fsdp(layer: Layer) -> bool:
    if layer.option("cpu") is not None:
        return False
    if any(layer.option(name) is not None for name in SWITCHES):
        return layer.option("use_fsdp") is not None
    return layer.config is not None and config_kind(layer.config) == "FSDP"


def _in_accelerate(launch: Launch, layer: Layer) -> Iterator[Finding]:
    version = version_of(layer.release) if layer.release is not None and layer.release.certain else None
    if version is not None and version < (0, 34):
        return
    settings = {
        name: found
        for name in (*_NAMES, *_SWITCHED, "fsdp_version", "fsdp_min_num_params", "fsdp_reshard_after_forward")
        if (found := _setting(launch, layer, name)) is not None
    }
    yield from _names(settings)
    yield from _switches(settings)
    yield from _minimum(settings)
    yield from _second_version(settings, version)


def _setting(launch: Launch, layer: Layer, name: str) -> _Value | None:
    option = layer.option(name)
    if option is not None:
        if option.value is None:
            return None
        place = launch.command.locate(option.span)
        return _Value(name, option.value, place.source.slice(place.span), place)
    config = layer.config
    if config is None or config.problem is not None:
        return None
    for key in (name, name.removeprefix("fsdp_")):
        path = ("fsdp_config", key)
        found = config.locate(*path)
        if found is not None and config.get(*path) is not None:
            return _Value(name, config.get(*path), f"{key}: {config.get(*path)}", found, config, path)
    return None


def _names(settings: dict[str, _Value]) -> Iterator[Finding]:
    for name, known in _NAMES.items():
        found = settings.get(name)
        if found is None or found.text.upper() in known:
            continue
        words = [word for word in known if not word.isdigit()]
        near = closest(found.text.upper(), words, 1) or tuple(
            word for word in words if found.text and word.startswith(found.text.upper())
        )
        hint = f" (did you mean {near[0]}?)" if near else ""
        yield report(
            RULE,
            f"{found.shown}: no such {name.removeprefix('fsdp_')}; there are {', '.join(words)}{hint}",
            found.location,
            fix=found.write(near[0]) if near else Fix(f"Use one of {', '.join(words)}"),
        )


def _switches(settings: dict[str, _Value]) -> Iterator[Finding]:
    for name in _SWITCHED:
        found = settings.get(name)
        if found is not None and found.text.lower() not in _TRUTH:
            message = f"{found.shown}: 'invalid truth value {found.text.lower()}'"
            yield report(RULE, message, found.location, fix=Fix("Write true or false"))
    efficient = settings.get("fsdp_cpu_ram_efficient_loading")
    synchronised = settings.get("fsdp_sync_module_states")
    if efficient is not None and efficient.value is True and synchronised is not None and synchronised.value is False:
        yield report(
            RULE,
            f"{efficient.shown} with {synchronised.shown}: every rank but the first would train random weights, and "
            "accelerate refuses it",
            synchronised.location,
            related=[Evidence(efficient.shown, efficient.location)],
            fix=synchronised.write("true"),
        )


def _minimum(settings: dict[str, _Value]) -> Iterator[Finding]:
    policy, least = settings.get("fsdp_auto_wrap_policy"), settings.get("fsdp_min_num_params")
    if policy is None or policy.text.upper() != "SIZE_BASED_WRAP" or least is None or isinstance(least.value, int):
        return
    if least.text.strip().lstrip("+-").isdecimal():
        return
    try:
        meant = str(int(float(least.text)))
    except (ValueError, OverflowError):
        meant = ""
    message = f"{least.shown}: not a whole number as YAML reads it; accelerate stops with 'invalid literal for int()'"
    yield report(RULE, message, least.location, fix=least.write(meant) if meant else Fix("Write it out in digits"))


def _second_version(settings: dict[str, _Value], version: tuple[int, ...] | None) -> Iterator[Finding]:
    found = settings.get("fsdp_version")
    if found is None or (version is not None and version < (1, 6)):
        return
    if found.text not in ("1", "2"):
        yield report(RULE, f"{found.shown}: there are versions 1 and 2", found.location, fix=found.write("2"))
    if found.text != "2":
        return
    related = [Evidence(found.shown, found.location)]
    again = settings.get("fsdp_reshard_after_forward")
    if again is not None and again.text.lower() not in _TRUTH:
        message = f"{again.shown} with FSDP2: it is true or false there ('invalid truth value {again.text.lower()}')"
        wanted = "true" if again.text.upper() in ("FULL_SHARD", "HYBRID_SHARD") else "false"
        yield report(RULE, message, again.location, related=related, fix=again.write(wanted))
    kind = settings.get("fsdp_state_dict_type")
    if kind is not None and kind.text.upper() in ("LOCAL_STATE_DICT", "2"):
        message = f"{kind.shown}: 'FSDP2 does not support LOCAL_STATE_DICT'"
        yield report(RULE, message, kind.location, related=related, fix=kind.write("SHARDED_STATE_DICT"))


def _in_arguments(case: Case, launch: Launch, given: TrainingArguments) -> Iterator[Finding]:
    asked = given.get("fsdp")
    words = _words(asked)
    if asked is None or words is None or not words:
        return
    release = case.knowledge.release("transformers")
    unknown = [word for word in words if word not in _OPTIONS]
    for word in unknown:
        near = closest(word, _OPTIONS, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        text = asked.location.source.slice(asked.location.span)
        at = text.rfind(word)
        start = asked.location.span.start + at
        span = type(asked.location.span)(start, start + len(word))
        edits = (Edit(asked.location.source, span, near[0]),) if near and at >= 0 else ()
        fix = Fix(f"Write {near[0]}" if near else f"Use words out of {', '.join(_OPTIONS)}", edits)
        yield report(RULE, f"{word} is no word of --fsdp{hint}", asked.location, fix=fix)
    engine = given.get("deepspeed")
    if engine is not None and engine.text not in (None, "", "null"):
        yield report(
            RULE,
            f"{asked.shown} with {engine.shown}: 'Using --fsdp xxx together with --deepspeed is not possible'",
            asked.location,
            related=[Evidence(engine.shown, engine.location)],
            fix=Fix("Keep one of them"),
        )
    if may_be_before(release, 5, 7):
        severity = Severity.ERROR if release.certain else Severity.WARNING
        yield from _together(case, launch, given, asked, frozenset(words), severity)


def _words(asked: Given | None) -> list[str] | None:
    """The words of ``--fsdp``; None when they are not known or it is a switch."""
    if asked is None or asked.value is None or isinstance(asked.value, bool):
        return None
    words = [str(item) for item in asked.value] if isinstance(asked.value, list) else str(asked.value).split()
    plain = len(words) == 1 and words[0].lower() in (*_TRUTH, "none", "null")
    return None if plain else words


def _together(
    case: Case, launch: Launch, given: TrainingArguments, asked: Given, words: frozenset[str], severity: Severity
) -> Iterator[Finding]:
    if words == {"offload"}:
        message = f"{asked.shown}: offload can't work on its own"
        fix = Fix('Write "full_shard offload"')
        yield report(RULE, message, asked.location, severity=severity, fix=fix)
    if {"full_shard", "shard_grad_op"} <= words:
        message = f"{asked.shown}: full_shard is not compatible with shard_grad_op"
        yield report(RULE, message, asked.location, severity=severity, fix=Fix("Keep one of them"))
    name = given.text("fsdp_config")
    if name is None or name.startswith("{"):
        return
    config = case.workspace.config(name, "fsdp", launch.command.directory)
    if config.exists is not True or config.problem is not None:
        return
    least, classes = _entry(config, "min_num_params"), _entry(config, "transformer_layer_cls_to_wrap")
    if least is not None and classes is not None and isinstance(config.get(*least), int) and config.get(*least):
        message = f"{config.name}: min_num_params and transformer_layer_cls_to_wrap are mutually exclusive"
        yield report(RULE, message, config.locate(*least), severity=severity, fix=Fix("Keep one of them"))
    again, efficient = _entry(config, "sync_module_states"), _entry(config, "cpu_ram_efficient_loading")
    if again is not None and efficient is not None:
        values = (str(config.get(*again)).lower(), str(config.get(*efficient)).lower())
        if values == ("false", "true"):
            message = f"{config.name}: sync_module_states must be true when cpu_ram_efficient_loading is"
            yield report(RULE, message, config.locate(*again), severity=severity, fix=Fix("Set it to true"))


def _entry(config: ConfigFile, name: str) -> tuple[str, ...] | None:
    """The path of a setting, with or without its prefix."""
    return next(((key,) for key in (name, f"fsdp_{name}") if config.get(key) is not None), None)
