"""The DeepSpeed configuration is not JSON, has an unknown key, or a value of the wrong type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mgpu_checks.engine import accelerate_file, version_of
from mgpu_doctor.authoring import (
    Case,
    ConfigFile,
    Edit,
    Example,
    Finding,
    Fix,
    Launch,
    Location,
    Reference,
    Rule,
    Severity,
    Signature,
    Span,
    Unknown,
    closest,
    report,
)

_ZERO = frozenset(
    [
        "allgather_bucket_size",
        "allgather_partitions",
        "allgather_sequential",
        "compute_grad_norm",
        "contiguous_gradients",
        "cpu_offload",
        "cpu_offload_param",
        "cpu_offload_use_pin_memory",
        "elastic_checkpoint",
        "enable_sanity_checks",
        "gather_16bit_weights_on_model_save",
        "ignore_unused_parameters",
        "leaf_module",
        "legacy_stage1",
        "load_from_fp32_weights",
        "log_trace_cache_warnings",
        "max_live_parameters",
        "max_reuse_distance",
        "memory_efficient_linear",
        "mics_hierarchical_params_gather",
        "mics_shard_size",
        "model_persistence_threshold",
        "module_granularity_threshold",
        "offload_optimizer",
        "offload_param",
        "overlap_comm",
        "override_module_apply",
        "param_persistence_threshold",
        "parameter_alignment",
        "pipeline_loading_checkpoint",
        "prefetch_bucket_size",
        "reduce_bucket_size",
        "reduce_scatter",
        "round_robin_gradients",
        "save_muon_momentum_buffer_in_memory",
        "stage",
        "stage3_allgather_sequential",
        "stage3_gather_16bit_weights_on_model_save",
        "stage3_gather_fp16_weights_on_model_save",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_model_persistence_threshold",
        "stage3_module_granularity_threshold",
        "stage3_param_persistence_threshold",
        "stage3_prefetch_bucket_size",
        "stage3_use_all_reduce_for_fetch_params",
        "sub_group_size",
        "use_all_reduce_for_fetch_params",
        "use_multi_rank_bucket_allreduce",
        "zenflow",
        "zero_hpz_partition_size",
        "zero_quantized_gradients",
        "zero_quantized_nontrainable_weights",
        "zero_quantized_weights",
        "zeropp_loco_param",
    ]
)
_OFFLOAD_PARAM = frozenset({"buffer_count", "buffer_size", "device", "max_in_cpu", "nvme_path", "pin_memory"})
_OFFLOAD_OPTIMIZER = frozenset(
    [
        "buffer_count",
        "cpuadam_cores_perc",
        "device",
        "fast_init",
        "nvme_path",
        "pin_memory",
        "pipeline_read",
        "pipeline_write",
        "ratio",
        "super_offload",
    ]
)
_SECTIONS: Mapping[tuple[str, ...], frozenset[str]] = {
    ("zero_optimization",): _ZERO,
    ("zero_optimization", "offload_param"): _OFFLOAD_PARAM,
    ("zero_optimization", "offload_optimizer"): _OFFLOAD_OPTIMIZER,
}
"""Keys of the sections that take no others, in any of deepspeed 0.9.5, 0.12.6, 0.14.4, 0.15.4, 0.16.9, 0.19.8."""

_LACKED: Mapping[tuple[int, ...], frozenset[str]] = {
    (0, 11, 2): frozenset(["use_multi_rank_bucket_allreduce"]),
    (0, 13, 5): frozenset(["use_all_reduce_for_fetch_params", "stage3_use_all_reduce_for_fetch_params"]),
    (0, 15, 4): frozenset(
        [
            "log_trace_cache_warnings",
            "module_granularity_threshold",
            "stage3_module_granularity_threshold",
            "zeropp_loco_param",
        ]
    ),
    (0, 17, 0): frozenset(["enable_sanity_checks", "zenflow"]),
    (0, 17, 6): frozenset(
        [
            "allgather_sequential",
            "leaf_module",
            "save_muon_momentum_buffer_in_memory",
            "stage3_allgather_sequential",
        ]
    ),
    (0, 18, 9): frozenset(["compute_grad_norm", "parameter_alignment"]),
}
"""Keys of zero_optimization that releases up to this one do not have yet (ten releases from 0.11.2 to 0.19.8)."""

_PRECISION: Mapping[str, frozenset[str]] = {
    "fp16": frozenset(
        [
            "auto_cast",
            "consecutive_hysteresis",
            "enabled",
            "fp16_master_weights_and_grads",
            "fp16_master_weights_and_gradients",
            "hysteresis",
            "initial_scale_power",
            "loss_scale",
            "loss_scale_window",
            "min_loss_scale",
        ]
    ),
    "bf16": frozenset(
        [
            "bf16_master_weights_and_grads",
            "bf16_optimizer_states",
            "check_grad_overflow",
            "enabled",
            "immediate_grad_update",
        ]
    ),
}
"""Keys of the precisions' sections; 0.16.9 ignores all others, 0.17.6 and 0.19.8 refuse them."""

_STRICT_PRECISION = (0, 17, 6)

_WHOLE_NUMBERS = frozenset(
    [
        "allgather_bucket_size",
        "reduce_bucket_size",
        "sub_group_size",
        "prefetch_bucket_size",
        "stage3_prefetch_bucket_size",
        "param_persistence_threshold",
        "stage3_param_persistence_threshold",
        "max_live_parameters",
        "stage3_max_live_parameters",
        "max_reuse_distance",
        "stage3_max_reuse_distance",
        "zero_hpz_partition_size",
    ]
)
_TRUTHS = frozenset(
    [
        "allgather_partitions",
        "contiguous_gradients",
        "overlap_comm",
        "reduce_scatter",
        "round_robin_gradients",
        "gather_16bit_weights_on_model_save",
        "stage3_gather_16bit_weights_on_model_save",
    ]
)
_TRUTH_WORDS = frozenset(("0", "off", "f", "false", "n", "no", "1", "on", "t", "true", "y", "yes"))
_DEVICES = ("none", "cpu", "nvme")
_OPTIMIZERS = (
    "Adam",
    "AdamW",
    "Lamb",
    "OneBitAdam",
    "ZeroOneAdam",
    "OneBitLamb",
    "Lion",
    "MuAdam",
    "MuAdamW",
    "MuSGD",
    "Muon",
    "Adagrad",
    "SGD",
    "RMSprop",
    "Adamax",
    "NAdam",
    "RAdam",
    "Adadelta",
    "Adafactor",
    "SparseAdam",
    "LBFGS",
    "Rprop",
    "ASGD",
)
_SCHEDULERS = ("LRRangeTest", "OneCycle", "WarmupLR", "WarmupDecayLR", "WarmupCosineLR")
_REMOVED = {"amp": "NVIDIA Apex AMP integration has been removed", "elasticity": "Elastic training has been removed"}
"""Sections that 0.19.8 no longer takes, in its words."""

_NEWEST = (0, 19, 8)
_TOP = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "zero_optimization",
    "optimizer",
    "scheduler",
    "fp16",
    "bf16",
    "activation_checkpointing",
    "steps_per_print",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "communication_data_type",
)
_WHOLE = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
_RUN = "torchrun --nproc-per-node 4 train.py --deepspeed z.json --output_dir out"
_TRAINER = (
    "from transformers import HfArgumentParser, Trainer, TrainingArguments\n\n"
    "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\n"
    "Trainer(model=build(), args=args).train()\n"
)

_OWN = (
    "import argparse\n\nimport deepspeed\n\nparser = deepspeed.add_config_arguments(argparse.ArgumentParser())\n"
    "args = parser.parse_args()\nengine, *_ = deepspeed.initialize(args=args, model=build())\n"
)

RULE = Rule(
    code="MGD605",
    slug="deepspeed-config-invalid",
    title="The DeepSpeed configuration is not valid",
    severity=Severity.ERROR,
    summary="not JSON, a key that DeepSpeed refuses, or a value of the wrong type",
    why=(
        "transformers and accelerate read the file as strict JSON: no comments, no comma behind the last entry. Inside "
        "`zero_optimization` DeepSpeed refuses every key that it does not know; at the top it ignores them without a "
        'word, so that `zero_optimisation` means no ZeRO at all. Numbers must be numbers: `8`, not `"8"`.'
    ),
    bad=(
        Example(
            "a comma too many", _RUN, files={"z.json": '{"zero_optimization": {"stage": 2,}}\n', "train.py": _TRAINER}
        ),
        Example(
            "an unknown key",
            _RUN,
            files={"z.json": '{"zero_optimization": {"stage": 2, "overlap_com": true}}\n', "train.py": _TRAINER},
        ),
        Example(
            "a section that is misspelt",
            _RUN,
            files={"z.json": '{"zero_optimisation": {"stage": 2}}\n', "train.py": _TRAINER},
        ),
        Example(
            "a number as text",
            _RUN,
            files={
                "z.json": '{"train_batch_size": "32", "zero_optimization": {"stage": 2}}\n',
                "train.py": _TRAINER,
            },
        ),
        Example(
            "both precisions",
            _RUN,
            files={
                "z.json": '{"bf16": {"enabled": true}, "fp16": {"enabled": true}, "zero_optimization": {"stage": 2}}\n',
                "train.py": _TRAINER,
            },
        ),
        Example(
            "an offload device that does not exist",
            _RUN,
            files={
                "z.json": '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "gpu"}}}\n',
                "train.py": _TRAINER,
            },
        ),
        Example(
            "a number that is none",
            _RUN,
            files={
                "z.json": '{"zero_optimization": {"stage": 2, "reduce_bucket_size": "2e8"}}\n',
                "train.py": _TRAINER,
            },
        ),
        Example("a switch for a section", _RUN, files={"z.json": '{"bf16": true}\n', "train.py": _TRAINER}),
        Example(
            "auto, and nobody who fills it in",
            "deepspeed --num_gpus 4 train.py --deepspeed_config z.json",
            files={
                "z.json": '{"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 2}}\n',
                "train.py": _OWN,
            },
        ),
        Example(
            "YAML", _RUN.replace("z.json", "z.yaml"), files={"z.yaml": "zero_optimization: {}\n", "train.py": _TRAINER}
        ),
        Example(
            "a stage that does not exist",
            _RUN,
            files={"z.json": '{"zero_optimization": {"stage": 4}}\n', "train.py": _TRAINER},
        ),
    ),
    good=(
        Example(
            "what pydantic converts",
            _RUN,
            files={
                "z.json": '{"zero_optimization": {"stage": "3", "reduce_bucket_size": 2e8, "overlap_comm": "true",\n'
                ' "stage3_prefetch_bucket_size": "auto", "offload_optimizer": {"device": "none"}}}\n',
                "train.py": _TRAINER,
            },
        ),
        Example(
            "a valid file",
            _RUN,
            files={
                "z.json": '{"train_batch_size": "auto", "zero_optimization": {"stage": 3, "overlap_comm": true,\n'
                ' "offload_param": {"device": "cpu", "pin_memory": true}}, "bf16": {"enabled": "auto"}}\n',
                "train.py": _TRAINER,
            },
        ),
        Example(
            "a section of its own at the top",
            _RUN,
            files={"z.json": '{"my_notes": {"a": 1}, "zero_optimization": {"stage": 2}}\n', "train.py": _TRAINER},
        ),
        Example(
            "DeepSpeed itself reads comments",
            "deepspeed --num_gpus 4 train.py --deepspeed_config z.json",
            files={
                "z.json": '{"zero_optimization": {"stage": 2,} # small\n}\n',
                "train.py": "import deepspeed\n\nengine, *_ = deepspeed.initialize(args=args, model=model)\n",
            },
        ),
    ),
    sources=(
        Reference(
            "deepspeed 0.9.5, 0.16.9, 0.19.8, runtime/config_utils.py DeepSpeedConfigModel; runtime/zero/config.py",
            'extra = "forbid": an unknown key is a ValidationError; stage is at most 3',
        ),
        Reference(
            "deepspeed 0.9.5, 0.16.9, 0.19.8, runtime/config.py",
            "the file is read with hjson; 'bfloat16 and fp16 modes cannot be simultaneously enabled'; "
            "train_batch_size is compared as a number",
        ),
        Reference(
            "deepspeed 0.16.9 with transformers 4.52.4, 0.19.8 with 5.6.0: DeepSpeedConfig() and "
            "HfTrainerDeepSpeedConfig with some eighty files",
            "\"Input should be 'none', 'cpu' or 'nvme'\"; 'Input should be a valid integer'; 'Partial offloading only "
            "supported for ZeRO Stage 3.'; 'Duplicate keys in DeepSpeed config'; \"Cannot provide deprecated parameter "
            "'cpu_offload' and replacing parameter\"; a batch size of auto: TypeError where DeepSpeed "
            "reads the file itself",
            ran=True,
        ),
        Reference(
            "accelerate 1.7.0, utils/deepspeed.py HfDeepSpeedConfig.__init__()", "the file is read with json.load"
        ),
    ),
    fix="Correct the file",
    signatures=(
        Signature(
            r"\d+ validation errors? for DeepSpeed\w*Config",
            "deepspeed 0.16.9 and 0.19.8, runtime/zero/config.py: pydantic's refusal (ran)",
            "pydantic_core._pydantic_core.ValidationError: 2 validation errors for DeepSpeedZeroConfig",
        ),
        Signature(
            r"Either train_batch_size or train_micro_batch_size_per_gpu needs to be provided",
            "deepspeed 0.16.9 and 0.19.8, runtime/config.py _set_batch_related_parameters()",
            "AssertionError: Either train_batch_size or train_micro_batch_size_per_gpu needs to be provided",
        ),
        Signature(
            r"Expected a string path to an existing deepspeed config",
            "accelerate 0.20.3 to 1.15.0, utils/deepspeed.py; deepspeed 0.16.9, runtime/config.py",
            "ValueError: Expected a string path to an existing deepspeed config, or a dictionary, or a base64 "
            "encoded string. Received: ./ds_config.json",
        ),
        Signature(
            r"Found `(?:optimizer|scheduler)` configured in the DeepSpeed config, but no `",
            "transformers 4.30.2, deepspeed.py deepspeed_optim_sched()",
            "ValueError: Found `scheduler` configured in the DeepSpeed config, but no `optimizer`. Please "
            "configure an optimizer in the DeepSpeed config.",
        ),
        Signature(
            r"b(?:f|float)16 and fp16 modes cannot be simultaneously enabled",
            "deepspeed 0.16.9 and 0.19.8, runtime/config.py",
            "AssertionError: bfloat16 and fp16 modes cannot be simultaneously enabled",
        ),
    ),
)

_Fault = tuple[str, Location | None, Fix | None, Severity]


def find(case: Case) -> Iterator[Finding]:
    """One finding for each fault of a DeepSpeed file that takes part in a launch."""
    for launch in case.launches:
        config = _config(case, launch)
        if config is None or config.exists is not True or config.source is None:
            continue
        if config.problem is not None:
            is_other = config.data is not None and not isinstance(config.data, dict)
            if (_is_strict(launch) or is_other) and config.name.endswith(".json") and not config.unseen:
                place = launch.command.locate(launch.command.span)
                if config.problem_span is not None:
                    place = Location(config.source, config.problem_span)
                what = "is no configuration" if is_other else "is not JSON"
                yield report(RULE, f"{config.name} {what}: {config.problem}", place, fix=Fix("Correct it"))
            continue
        if config.name.endswith((".yaml", ".yml")) and _is_strict(launch):
            if not config.source.text.lstrip().startswith("{"):
                message = f"{config.name} is YAML: transformers and accelerate read DeepSpeed's file as JSON"
                place = Location(config.source, Span(0, min(1, len(config.source.text))))
                yield report(RULE, message, place, fix=Fix("Write it as JSON"))
            continue
        if not isinstance(config.data, dict) or not config.name.endswith(".json"):
            continue
        yield from _by_reader(launch, config)
        for message, at, fix, severity in _faults(case, config, config.data):
            yield report(RULE, message, at, severity=severity, fix=fix)


def _config(case: Case, launch: Launch) -> ConfigFile | None:
    config = launch.target.config("deepspeed")
    if config is not None:
        return config
    name = accelerate_file(launch)
    return None if name is None else case.workspace.config(name, "deepspeed", launch.command.directory)


def _is_strict(launch: Launch) -> bool:
    """Whether transformers or accelerate reads the file, not DeepSpeed."""
    program = launch.target.program
    if launch.target.framework in ("llamafactory", "swift", "trl"):
        return True
    if isinstance(program, Unknown) or program.first("deepspeed-initialize") is not None:
        return False
    return program.first("hf-argument-parser", "trainer", "accelerator") is not None


def _reads_itself(launch: Launch) -> bool:
    """Whether DeepSpeed opens the file, and nobody changes what it says on the way."""
    program = launch.target.program
    if isinstance(program, Unknown) or program.first("deepspeed-initialize") is None:
        return False
    if program.first("hf-argument-parser", "trainer", "accelerator") is not None:
        return False
    text = program.source.text
    return not any(word in text for word in ("json", "yaml", "open(", "HfDeepSpeedConfig", "OmegaConf", "train_batch"))


def _by_reader(launch: Launch, config: ConfigFile) -> Iterator[Finding]:
    """What depends on who reads the file: DeepSpeed itself, or transformers and accelerate."""
    if config.source is None:
        return
    itself = _reads_itself(launch)
    for before in config.repeated:
        place = Location(config.source, before.key_span)
        last, name = config.values[before.path], before.path[-1]
        if itself:
            message = f"{name} stands twice in {config.name}: 'Duplicate keys in DeepSpeed config'"
            yield report(RULE, message, place, fix=Fix(f"Keep one {name}"))
        elif before.value != last.value:
            message = f"{name} stands twice in {config.name}: {before.value} is replaced by {last.value}"
            yield report(RULE, message, place, severity=Severity.WARNING, fix=Fix(f"Keep one {name}"))
    if not itself:
        return
    for name in _WHOLE:
        if config.get(name) == "auto":
            message = f'{name} is "auto" in {config.name}: only transformers and accelerate fill it in'
            yield report(RULE, message, config.locate(name), fix=Fix("Write a number"))
    given = config.has("train_batch_size") or config.has("train_micro_batch_size_per_gpu")
    if not given and config.get("elasticity", "enabled") is not True:
        message = f"{config.name} gives neither train_batch_size nor train_micro_batch_size_per_gpu: one is needed"
        place = Location(config.source, Span(0, min(1, len(config.source.text))))
        yield report(RULE, message, place, fix=Fix("Add train_micro_batch_size_per_gpu"))


def _faults(case: Case, config: ConfigFile, data: dict[object, object]) -> Iterator[_Fault]:
    yield from _keys(case, config)
    yield from _newer(case, config)
    yield from _sections(case, config)
    yield from _zero(config)
    yield from _named(config)
    for name in _WHOLE:
        value = config.get(name)
        if isinstance(value, str) and value != "auto":
            number = value if value.isdecimal() else None
            edit = (
                ()
                if number is None or config.source is None
                else (Edit(config.source, config.values[(name,)].span, number),)
            )
            message = f"{name} is the text {value!r} in {config.name}: DeepSpeed needs a number"
            yield (
                message,
                config.locate(name),
                Fix(f"Write {number or 'a number'} without quotes", edit),
                Severity.ERROR,
            )
    stage = config.get("zero_optimization", "stage")
    if isinstance(stage, int) and not isinstance(stage, bool) and not 0 <= stage <= 3:
        message = f"ZeRO stage {stage} in {config.name} does not exist: 0, 1, 2 or 3"
        yield message, config.locate("zero_optimization", "stage"), None, Severity.ERROR
    if config.get("bf16", "enabled") is True and config.get("fp16", "enabled") is True:
        message = f"{config.name} enables fp16 and bf16: 'bfloat16 and fp16 modes cannot be simultaneously enabled'"
        yield message, config.locate("fp16", "enabled"), Fix("Keep one of them"), Severity.ERROR
    for key in data:
        if isinstance(key, str) and key not in _TOP:
            near = [name for name in closest(key, _TOP, 1) if name not in data and abs(len(name) - len(key)) <= 2]
            if near:
                message = f"{key} in {config.name} is ignored by DeepSpeed (did you mean {near[0]}?)"
                yield message, config.locate(key), _rename(config, (key,), near[0]), Severity.ERROR


def _keys(case: Case, config: ConfigFile) -> Iterator[_Fault]:
    release = case.knowledge.release("deepspeed")
    version = version_of(release)
    if release.certain and version is not None and version > _NEWEST:
        return
    for section, known in _SECTIONS.items():
        for path in config.values:
            if path[:-1] != section or path[-1] in known:
                continue
            near = closest(path[-1], known, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            message = f"{path[-1]} is no key of {'.'.join(section)}: DeepSpeed refuses {config.name}{hint}"
            certain = bool(near) or release.certain or case.mode != "lint"
            severity = Severity.ERROR if certain else Severity.ADVICE
            yield message, config.locate(*path), _rename(config, path, near[0]) if near else None, severity


def _newer(case: Case, config: ConfigFile) -> Iterator[_Fault]:
    """Keys of ZeRO's section that only later releases have."""
    release = case.knowledge.release("deepspeed")
    version = version_of(release)
    if not release.certain or version is None:
        return
    for last, names in _LACKED.items():
        for name in sorted(names):
            place = config.locate("zero_optimization", name)
            if version <= last and place is not None:
                message = f"{name} in {config.name} is not known to DeepSpeed {release.version}: it refuses the file"
                yield message, place, Fix(f"Remove {name}, or upgrade DeepSpeed"), Severity.ERROR


def _sections(case: Case, config: ConfigFile) -> Iterator[_Fault]:
    """Sections that are no mapping, and what a precision's section does not have."""
    release = case.knowledge.release("deepspeed")
    version = version_of(release) if release.certain else None
    for name in ("zero_optimization", "fp16", "bf16"):
        value = config.get(name)
        if value is not None and not isinstance(value, dict) and not (name == "zero_optimization" and value is True):
            shown = str(value).lower() if isinstance(value, bool) else value
            meant = '{"stage": 2}' if name == "zero_optimization" else '{"enabled": true}'
            message = f"{name} is {shown} in {config.name}: it is a section ({meant})"
            yield message, config.locate(name), Fix(f"Write {meant}"), Severity.ERROR
    for name, known in _PRECISION.items():
        section = config.get(name)
        for key in section if isinstance(section, dict) else ():
            near = closest(str(key), known, 1)
            if (
                key in known
                or not isinstance(key, str)
                or (not near and (version is None or version < _STRICT_PRECISION))
            ):
                continue
            hint = f" (did you mean {near[0]}?)" if near else ""
            message = f"{key} is no key of {name} in {config.name}{hint}"
            yield (
                message,
                config.locate(name, key),
                _rename(config, (name, key), near[0]) if near else None,
                Severity.ERROR,
            )
    if version is not None and version >= _NEWEST:
        for name, said in _REMOVED.items():
            if config.get(name, "enabled") is True:
                message = f"{name} in {config.name}: DeepSpeed {release.version} refuses it ('{said}')"
                yield message, config.locate(name), Fix(f"Remove {name}"), Severity.ERROR


def _zero(config: ConfigFile) -> Iterator[_Fault]:
    """Values of ZeRO's section that pydantic does not convert; "auto" counts as not given."""
    section = config.get("zero_optimization")
    for key, value in section.items() if isinstance(section, dict) else ():
        place = config.locate("zero_optimization", str(key))
        if value is None or value == "auto":
            continue
        if key in _WHOLE_NUMBERS and not _is_whole(value):
            message = f"{key} is {value!r} in {config.name}: DeepSpeed needs a whole number"
            yield message, place, Fix("Write a whole number without quotes"), Severity.ERROR
        elif key in _TRUTHS and str(value).lower() not in _TRUTH_WORDS:
            message = f"{key} is {value!r} in {config.name}: DeepSpeed needs true or false"
            yield message, place, Fix("Write true or false"), Severity.ERROR
    for name in ("offload_optimizer", "offload_param"):
        yield from _offload(config, name)
    for old, new in (("cpu_offload", "offload_optimizer"), ("cpu_offload_param", "offload_param")):
        if config.get("zero_optimization", old) is not None and config.has("zero_optimization", new):
            message = f"{old} and {new} in {config.name}: DeepSpeed refuses the old name beside the new one"
            yield message, config.locate("zero_optimization", old), Fix(f"Remove {old}"), Severity.ERROR


def _offload(config: ConfigFile, name: str) -> Iterator[_Fault]:
    path = ("zero_optimization", name)
    value = config.get(*path)
    if value is None or value == "auto":
        return
    if not isinstance(value, dict):
        message = f'{name} is {value!r} in {config.name}: it is a section ({{"device": "cpu"}})'
        yield message, config.locate(*path), Fix('Write {"device": "cpu"}'), Severity.ERROR
        return
    device = value.get("device")
    if isinstance(device, str) and device not in (*_DEVICES, "auto"):
        message = f"{name}.device is {device} in {config.name}: it is one of {', '.join(_DEVICES)}"
        yield message, config.locate(*path, "device"), Fix("Write cpu, or none to keep it on the GPU"), Severity.ERROR
    ratio = value.get("ratio")
    if name == "offload_optimizer" and isinstance(ratio, int | float) and not isinstance(ratio, bool):
        stage = config.get("zero_optimization", "stage")
        if not 0 <= ratio <= 1:
            message = f"offload_optimizer.ratio is {ratio} in {config.name}: it lies between 0 and 1"
            yield message, config.locate(*path, "ratio"), None, Severity.ERROR
        elif ratio < 1 and stage in (0, 1, 2, None) and not isinstance(stage, bool):
            message = f"offload_optimizer.ratio {ratio} in {config.name}: part of it is offloaded under stage 3 alone"
            yield message, config.locate(*path, "ratio"), Fix("Leave ratio out, or use stage 3"), Severity.ERROR


def _named(config: ConfigFile) -> Iterator[_Fault]:
    """Misspelt optimizers and schedulers."""
    for section, known in (("optimizer", _OPTIMIZERS), ("scheduler", _SCHEDULERS)):
        name = config.get(section, "type")
        if not isinstance(name, str) or name.lower() in {other.lower() for other in known}:
            continue
        near = closest(name, known, 1)
        if near and (section == "optimizer" or not name.endswith(("LR", "Restarts", "Plateau"))):
            message = f"{section}.type {name} in {config.name} does not exist (did you mean {near[0]}?)"
            span = config.values[(section, "type")].span
            edits = () if config.source is None else (Edit(config.source, span, f'"{near[0]}"'),)
            yield message, config.locate(section, "type"), Fix(f"Write {near[0]}", edits), Severity.ERROR


def _is_whole(value: object) -> bool:
    """Whether pydantic makes an integer of it: numbers without a fraction, and digits."""
    if isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        return value >= 0 and value == int(value)
    return isinstance(value, str) and value.strip().isdecimal()


def _rename(config: ConfigFile, path: tuple[str, ...], name: str) -> Fix:
    span = config.values[path].key_span
    if config.source is None:
        return Fix(f"Write {name}")
    written = config.source.slice(span)
    return Fix(f"Write {name}", (Edit(config.source, span, written.replace(path[-1], name)),))
