"""accelerate refuses its configuration file: not readable, an unknown key, a value that does not exist."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mgpu_checks.engine import KINDS, config_kind, version_of
from mgpu_doctor.authoring import (
    Case,
    ConfigFile,
    Edit,
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
    Unknown,
    closest,
    report,
)

_OLDEST, _NEWEST = (0, 20, 3), (1, 15, 0)
_Version = tuple[int, ...]

_KEYS: Mapping[str, tuple[_Version, _Version | None]] = {
    **dict.fromkeys(
        (
            "compute_environment",
            "distributed_type",
            "mixed_precision",
            "use_cpu",
            "num_processes",
            "machine_rank",
            "num_machines",
            "gpu_ids",
            "main_process_ip",
            "main_process_port",
            "rdzv_backend",
            "same_network",
            "main_training_function",
            "deepspeed_config",
            "fsdp_config",
            "megatron_lm_config",
            "downcast_bf16",
            "tpu_name",
            "tpu_zone",
            "tpu_use_cluster",
            "tpu_use_sudo",
            "command_file",
            "commands",
            "tpu_vm",
            "tpu_env",
            "dynamo_config",
            "dynamo_backend",
            "fp16",
        ),
        (_OLDEST, None),
    ),
    "debug": ((0, 22, 0), None),
    "mpirun_config": ((0, 28, 0), None),
    "enable_cpu_affinity": ((0, 29, 0), None),
    "fp8_config": ((0, 34, 0), None),
    "tp_config": ((1, 3, 1), (1, 7, 0)),
    "parallelism_config": ((1, 10, 0), None),
    "ipex_config": (_OLDEST, (1, 13, 0)),
}
"""Keys of a file for the machine itself: the release that has them first, and the first that no longer has them.

ClusterConfig's fields in 28 releases from 0.20.3 to 1.15.0, with the two that process_config() takes out.
"""

_KINDS: Mapping[str, tuple[_Version, _Version | None]] = {
    **dict.fromkeys(KINDS, (_OLDEST, None)),
    "MULTI_NPU": ((0, 21, 0), None),
    "TPU": (_OLDEST, (0, 28, 0)),
    "XLA": ((0, 28, 0), None),
    "MULTI_MLU": ((0, 29, 0), None),
    "MULTI_MUSA": ((0, 33, 0), None),
    "TP": ((1, 3, 1), (1, 10, 0)),
    "MULTI_SDAA": ((1, 5, 0), None),
    "MULTI_HPU": ((1, 5, 0), None),
    "MULTI_NEURON": ((1, 13, 0), None),
}
"""Members of DistributedType, likewise."""

_SAGEMAKER = frozenset(
    (
        "compute_environment",
        "distributed_type",
        "mixed_precision",
        "use_cpu",
        "debug",
        "num_machines",
        "gpu_ids",
        "dynamo_config",
        "dynamo_backend",
        "fp16",
        "enable_cpu_affinity",
        "num_processes",
    )
)
"""Keys above that SageMakerConfig takes too; num_processes is refused by some releases, and put in by others."""

_ENVIRONMENTS = ("LOCAL_MACHINE", "AMAZON_SAGEMAKER")
_PRECISIONS = ("no", "fp8", "fp16", "bf16")
_SECTIONS = {"deepspeed_config": "", "fsdp_config": "fsdp_"}
"""Sections whose entries become options of ``accelerate launch``, and the prefix that their names may lack."""

_ELSEWHERE = {
    "zero_stage": "deepspeed_config",
    "deepspeed_config_file": "deepspeed_config",
    "offload_optimizer_device": "deepspeed_config",
    "offload_param_device": "deepspeed_config",
    "zero3_init_flag": "deepspeed_config",
    "zero3_save_16bit_model": "deepspeed_config",
    "gradient_accumulation_steps": "deepspeed_config",
    "gradient_clipping": "deepspeed_config",
    "train_micro_batch_size_per_gpu": "the file that deepspeed_config_file names",
    "train_batch_size": "the file that deepspeed_config_file names",
    "zero_optimization": "the file that deepspeed_config_file names",
    "fsdp_sharding_strategy": "fsdp_config",
    "fsdp_auto_wrap_policy": "fsdp_config",
    "fsdp_offload_params": "fsdp_config",
    "fsdp_transformer_layer_cls_to_wrap": "fsdp_config",
}
"""Where keys belong that people write at the top."""

_SCRIPT = {"train.py": "from accelerate import Accelerator\n\naccelerator = Accelerator()\n"}
_BASE = "compute_environment: LOCAL_MACHINE\ndistributed_type: {kind}\nnum_processes: 4\nmixed_precision: {precision}\n"
_GOOD = _BASE.format(kind="MULTI_GPU", precision="bf16")
_RUN = "accelerate launch --config_file acc.yaml train.py"

RULE = Rule(
    code="MGD614",
    slug="accelerate-config-invalid",
    title="accelerate refuses its configuration file",
    severity=Severity.ERROR,
    summary="the file is not valid YAML or JSON, has a key that the release does not know, or a value that is none",
    why=(
        "accelerate reads its file before anything else and stops at the first thing that it does not know: 'The "
        "config file … had unknown keys', 'A `distributed_type` must be specified', \"'DDP' is not a valid "
        'DistributedType". Inside `fsdp_config` and `deepspeed_config` it is the other way round: whatever is no '
        "option of `accelerate launch` is dropped without a word, so that a misspelt `zero_stage` means stage 2."
    ),
    bad=(
        Example("an unknown key", _RUN, files={"acc.yaml": _GOOD + "num_proceses: 4\n", **_SCRIPT}),
        Example("ZeRO's stage at the top", _RUN, files={"acc.yaml": _GOOD + "zero_stage: 3\n", **_SCRIPT}),
        Example(
            "a kind of launch that does not exist",
            _RUN,
            files={"acc.yaml": _BASE.format(kind="DDP", precision="bf16"), **_SCRIPT},
        ),
        Example("no kind at all", _RUN, files={"acc.yaml": "num_processes: 4\nmixed_precision: bf16\n", **_SCRIPT}),
        Example(
            "a precision that does not exist",
            _RUN,
            files={"acc.yaml": _BASE.format(kind="MULTI_GPU", precision="bfloat16"), **_SCRIPT},
        ),
        Example("a number for gpu_ids", _RUN, files={"acc.yaml": _GOOD + "gpu_ids: 0\n", **_SCRIPT}),
        Example("not YAML", _RUN, files={"acc.yaml": "distributed_type: MULTI_GPU\n num_processes: 4\n", **_SCRIPT}),
        Example(
            "a section of a newer release",
            _RUN,
            files={"acc.yaml": _GOOD + "parallelism_config: {}\n", **_SCRIPT},
            facts={"packages": {"accelerate": "1.7.0", "torch": "2.6.0"}},
        ),
        Example(
            "a misspelt setting of FSDP",
            _RUN,
            files={
                "acc.yaml": _BASE.format(kind="FSDP", precision="bf16")
                + "fsdp_config:\n  fsdp_shard_strategy: FULL_SHARD\n",
                **_SCRIPT,
            },
        ),
    ),
    good=(
        Example("a valid file", _RUN, files={"acc.yaml": _GOOD + "gpu_ids: all\nmain_process_port: 0\n", **_SCRIPT}),
        Example(
            "what older releases wrote",
            _RUN,
            files={
                "acc.yaml": "distributed_type: MULTI_GPU\nfp16: true\nnum_processes: 4\ndynamo_backend: 'NO'\n"
                "downcast_bf16: 'no'\ntpu_env: []\n",
                **_SCRIPT,
            },
        ),
        Example(
            "FSDP's settings without their prefix",
            _RUN,
            files={
                "acc.yaml": _BASE.format(kind="FSDP", precision="bf16")
                + "fsdp_config:\n  sharding_strategy: FULL_SHARD\n",
                **_SCRIPT,
            },
        ),
        Example(
            "a job for SageMaker has keys of its own",
            _RUN,
            files={
                "acc.yaml": "compute_environment: AMAZON_SAGEMAKER\ndistributed_type: 'NO'\n"
                "ec2_instance_type: ml.p3.2xlarge\niam_role_name: role\n",
                **_SCRIPT,
            },
        ),
        Example(
            "--cpu leaves the default file unread",
            "accelerate launch --cpu train.py",
            files=_SCRIPT,
            facts={"accelerate_default_config": "distributed_type: DDP\n"},
        ),
    ),
    sources=(
        Reference(
            "accelerate 1.7.0 and 1.15.0, load_config_from_file() and _validate_launch_command() with each of these",
            "ValueError: The config file at … had unknown keys (['zero_stage']); A `distributed_type` must be "
            "specified in the config file.; 'DDP' is not a valid DistributedType; Unknown mixed_precision mode: "
            "bfloat16; AttributeError: 'int' object has no attribute 'split'; unknown entries of fsdp_config and "
            "deepspeed_config change nothing",
            ran=True,
        ),
        Reference(
            "accelerate 0.20.3 to 1.15.0 (28 releases), commands/config/config_args.py ClusterConfig, "
            "utils/dataclasses.py DistributedType",
            "the keys and values by release; before 0.23 an unknown key is a TypeError of the same place",
        ),
    ),
    fix="Correct the file, or write it anew with `accelerate config`",
    signatures=(
        Signature(
            r"The config file at \S+ had unknown keys",
            "accelerate 0.23.0 to 1.15.0, commands/config/config_args.py (ran)",
            "ValueError: The config file at acc.yaml had unknown keys (['zero_stage']), please try upgrading your "
            "`accelerate` version or fix (and potentially remove) these keys from your config file.",
        ),
        Signature(
            r"A `distributed_type` must be specified in the config file|'[^']*' is not a valid DistributedType",
            "accelerate 0.34.0 to 1.15.0, commands/config/config_args.py; utils/dataclasses.py (ran)",
            "ValueError: 'DDP' is not a valid DistributedType",
        ),
        Signature(
            r"Unknown mixed_precision mode: ",
            "accelerate 0.20.3 to 1.15.0, utils/launch.py (ran)",
            "ValueError: Unknown mixed_precision mode: bfloat16. Choose between ['no', 'fp8', 'fp16', 'bf16'].",
        ),
    ),
)

_Fault = tuple[str, Location | None, Fix | None, Severity]


def find(case: Case) -> Iterator[Finding]:
    """One finding for each fault of the file that an accelerate launch reads."""
    for launch in case.launches:
        layer = launch.layer("accelerate")
        config = layer.config if layer is not None else None
        if layer is None or config is None or config.exists is not True:
            continue
        if layer.config_is_default and layer.option("cpu") is not None:
            continue
        if config.unseen:
            case.require(Unknown(config.problem or f"{config.name} cannot be read"))
        whole = _place(launch, layer, config)
        for message, place, fix, severity in _faults(case, layer, config):
            yield report(RULE, message, place or whole, severity=severity, fix=fix)


def _place(launch: Launch, layer: Layer, config: ConfigFile) -> Location:
    if config.problem_span is not None and config.source is not None:
        return Location(config.source, config.problem_span)
    option = layer.option("config_file")
    return launch.command.locate(option.span if option is not None else layer.span)


def _faults(case: Case, layer: Layer, config: ConfigFile) -> Iterator[_Fault]:
    if config.problem is not None:
        kind = "JSON" if config.name.endswith(".json") else "YAML"
        said = config.problem if config.source is None else f"{config.name}: {config.problem}"
        yield f"accelerate cannot read it as {kind}: {said}", None, Fix("Correct the file"), Severity.ERROR
        return
    if config.get("compute_environment") == "AMAZON_SAGEMAKER":
        yield from _local(config)
        return
    release = layer.release
    version = version_of(release) if release is not None and release.certain else None
    if version is not None and version < _OLDEST:
        return
    yield from _environment(config)
    yield from _kind(config, version)
    yield from _keys(case, config, version)
    yield from _values(layer, config)
    yield from _entries(case, layer, config)


def _local(config: ConfigFile) -> Iterator[_Fault]:
    """Keys of a launch on this machine in a file for Amazon SageMaker."""
    for path in config.values:
        if len(path) == 1 and path[0] in _KEYS and path[0] not in _SAGEMAKER:
            message = (
                f"{path[0]} in {config.name} is no key of a file for AMAZON_SAGEMAKER: accelerate refuses the file"
            )
            fix = Fix("Remove it, or set compute_environment: LOCAL_MACHINE")
            yield message, config.locate(path[0]), fix, Severity.ERROR


def _environment(config: ConfigFile) -> Iterator[_Fault]:
    value = config.get("compute_environment")
    if isinstance(value, str) and value not in _ENVIRONMENTS:
        message = f"compute_environment: {value} in {config.name} is neither of {', '.join(_ENVIRONMENTS)}"
        fix = _write(config, ("compute_environment",), _ENVIRONMENTS[0])
        yield message, config.locate("compute_environment"), fix, Severity.ERROR


def _kind(config: ConfigFile, version: _Version | None) -> Iterator[_Fault]:
    if not config.has("distributed_type"):
        message = f"{config.name} has no distributed_type: accelerate refuses it"
        yield message, None, Fix("Add distributed_type: MULTI_GPU"), Severity.ERROR
        return
    value = config.get("distributed_type")
    if not isinstance(value, str):
        return
    known = tuple(name for name, span in _KINDS.items() if _holds(span, version))
    if value in known or (version is not None and version > _NEWEST and not closest(value.upper(), known, 1)):
        return
    meant = "XLA" if value == "TPU" else "MULTI_GPU" if value.upper() in ("DDP", "GPU", "CUDA") else None
    near = meant or next(iter((config_kind(config), *closest(value.upper(), known, 1))), None)
    near = near if near in known else next(iter(closest(value.upper(), known, 1)), None)
    hint = f" (did you mean {near}?)" if near else ""
    message = f"distributed_type: {value} in {config.name} is no kind of launch{_in(version)}{hint}"
    fix = _write(config, ("distributed_type",), near) if near else Fix("Use MULTI_GPU, DEEPSPEED or FSDP")
    yield message, config.locate("distributed_type"), fix, Severity.ERROR


def _keys(case: Case, config: ConfigFile, version: _Version | None) -> Iterator[_Fault]:
    known = [name for name, span in _KEYS.items() if _holds(span, version)]
    for path in config.values:
        if len(path) != 1 or path[0] in known:
            continue
        name = path[0]
        near = next(iter(closest(name, [key for key in known if not config.has(key)], 1)), None)
        home = _ELSEWHERE.get(name)
        if near is None and home is None and name not in _KEYS:
            if version is not None and version > _NEWEST:
                continue
            if version is None and case.mode == "lint":
                continue
        hint = f": it belongs into {home}" if home else f" (did you mean {near}?)" if near else ""
        message = f"{name} in {config.name} is no key{_in(version)}: accelerate refuses the file{hint}"
        fix = Fix(f"Move it into {home}") if home else _rename(config, path, near) if near else Fix(f"Remove {name}")
        yield message, config.locate(name), fix, Severity.ERROR


def _values(layer: Layer, config: ConfigFile) -> Iterator[_Fault]:
    value = config.get("mixed_precision")
    is_given = layer.option("mixed_precision") is None and value is not None and not isinstance(value, bool)
    text = str(value).lower()
    if is_given and text not in _PRECISIONS:
        near = closest(text.replace("float", "f"), _PRECISIONS, 1)
        near = near or (("no",) if text in ("fp32", "float32", "32", "none") else ())
        hint = f" (did you mean {near[0]}?)" if near else ""
        message = f"mixed_precision: {value} in {config.name} is none of {', '.join(_PRECISIONS)}{hint}"
        fix = _write(config, ("mixed_precision",), near[0] if near[0] != "no" else "'no'") if near else None
        yield message, config.locate("mixed_precision"), fix, Severity.ERROR
    ids = config.get("gpu_ids")
    if layer.option("gpu_ids") is None and ids is not None and not isinstance(ids, str):
        shown = ",".join(str(item) for item in ids) if isinstance(ids, list) else str(ids)
        message = f"gpu_ids in {config.name} is a {_noun(ids)}, not text: accelerate stops with an AttributeError"
        yield message, config.locate("gpu_ids"), _write(config, ("gpu_ids",), f"'{shown}'"), Severity.ERROR


def _entries(case: Case, layer: Layer, config: ConfigFile) -> Iterator[_Fault]:
    """Entries of a section that no option of this release takes: dropped without a word."""
    specs = case.knowledge.options("accelerate launch")
    if isinstance(specs, Unknown) or layer.release is None:
        return
    names = frozenset(spec.dest for spec in specs)
    for path in config.values:
        if len(path) != 2 or path[0] not in _SECTIONS:
            continue
        prefix = _SECTIONS[path[0]]
        name = path[1] if path[1].startswith(prefix.rstrip("_")) else prefix + path[1]
        if name in names:
            continue
        others = case.knowledge.releases_with("accelerate launch", f"--{name}")
        family = [known for known in names if known.startswith(prefix)]
        near = next((known for known in closest(name, family, 1) if not config.has(path[0], known)), None)
        if others and not layer.release.certain:
            continue
        message = f"{path[1]} in {config.name} ({path[0]}) is no setting of accelerate: it is dropped without a word"
        if others:
            message = (
                f"{path[1]} in {config.name} ({path[0]}) is not known to accelerate {layer.release.version} "
                f"({others[0]} to {others[-1]} have it): it is dropped without a word"
            )
            # What it asked for may be the default by now.
            yield message, config.locate(*path), Fix(f"Remove {path[1]}"), Severity.ADVICE
        elif near is not None:
            fix = _rename(config, path, near)
            yield f"{message} (did you mean {near}?)", config.locate(*path), fix, Severity.ERROR
        elif layer.release.certain:
            yield message, config.locate(*path), Fix(f"Remove {path[1]}"), Severity.ADVICE


def _holds(span: tuple[_Version, _Version | None], version: _Version | None) -> bool:
    """Whether a release has it; any release when none is known for certain."""
    first, gone = span
    return version is None or (version >= first and (gone is None or version < gone))


def _in(version: _Version | None) -> str:
    return "" if version is None else f" of accelerate {'.'.join(str(part) for part in version)}"


def _noun(value: object) -> str:
    return "list" if isinstance(value, list) else "number" if isinstance(value, int) else type(value).__name__


def _has_places(config: ConfigFile) -> bool:
    """Whether values have spans of their own: those of the user's default file have only lines."""
    return all(entry.span.start >= entry.key_span.end for entry in config.values.values())


def _rename(config: ConfigFile, path: tuple[str, ...], name: str) -> Fix:
    span = config.values[path].key_span
    if config.source is None or not _has_places(config) or config.source.slice(span).strip("\"'") != path[-1]:
        return Fix(f"Write {name}")
    written = config.source.slice(span)
    return Fix(f"Write {name}", (Edit(config.source, span, written.replace(path[-1], name)),))


def _write(config: ConfigFile, path: tuple[str, ...], text: str) -> Fix:
    span = config.values[path].span
    edits = (Edit(config.source, span, text),) if config.source is not None and _has_places(config) else ()
    return Fix(f"Write {path[-1]}: {text}", edits)
