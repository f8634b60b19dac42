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
            "a stage that does not exist",
            _RUN,
            files={"z.json": '{"zero_optimization": {"stage": 4}}\n', "train.py": _TRAINER},
        ),
    ),
    good=(
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
            if _is_strict(launch) and config.name.endswith(".json"):
                place = launch.command.locate(launch.command.span)
                if config.problem_span is not None:
                    place = Location(config.source, config.problem_span)
                yield report(RULE, f"{config.name} is not JSON: {config.problem}", place, fix=Fix("Correct it"))
            continue
        if not isinstance(config.data, dict) or not config.name.endswith(".json"):
            continue
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


def _faults(case: Case, config: ConfigFile, data: dict[object, object]) -> Iterator[_Fault]:
    yield from _keys(case, config)
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


def _rename(config: ConfigFile, path: tuple[str, ...], name: str) -> Fix:
    span = config.values[path].key_span
    if config.source is None:
        return Fix(f"Write {name}")
    written = config.source.slice(span)
    return Fix(f"Write {name}", (Edit(config.source, span, written.replace(path[-1], name)),))
