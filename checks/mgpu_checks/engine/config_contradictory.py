"""Values in accelerate's configuration file exclude each other, or exclude what the command gives."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.engine import KINDS, SWITCHES, config_kind, version_of
from mgpu_doctor.authoring import (
    Case,
    ConfigFile,
    Edit,
    Example,
    Finding,
    Fix,
    Layer,
    Location,
    Reference,
    Rule,
    Severity,
    Signature,
    Span,
    report,
)

_MULTI = "distributed_type: MULTI_GPU\nmixed_precision: bf16\nnum_machines: {machines}\nnum_processes: {count}\n{more}"
_STAGE_3 = "deepspeed_config:\n  zero_stage: 3\n"
_SCRIPT = {"train.py": "from accelerate import Accelerator\n\naccelerator = Accelerator()\n"}
_SECTIONS = {"deepspeed_config": "DEEPSPEED", "fsdp_config": "FSDP", "megatron_lm_config": "MEGATRON_LM"}
_SWITCH_OF = {"DEEPSPEED": "use_deepspeed", "FSDP": "use_fsdp", "MEGATRON_LM": "use_megatron_lm"}
_REFUSED_WITH_FILE = (
    "gradient_accumulation_steps",
    "gradient_clipping",
    "zero_stage",
    "offload_optimizer_device",
    "offload_param_device",
    "offload_param_nvme_path",
    "offload_optimizer_nvme_path",
    "zero3_save_16bit_model",
)
"""Keys that DeepSpeedPlugin refuses beside a DeepSpeed file, and mixed_precision (accelerate 0.20.3 to 1.15.0)."""

RULE = Rule(
    code="MGD603",
    slug="config-contradictory",
    title="The accelerate configuration contradicts itself",
    severity=Severity.ERROR,
    summary="values of the configuration file exclude each other",
    why=(
        "A file that was edited by hand can say two things at once. Some of these pairs accelerate refuses, others it "
        "resolves silently: `MULTI_GPU` with `num_processes: 1` starts one process that believes it is alone, and a "
        "`deepspeed_config` under any other `distributed_type` is not used at all."
    ),
    bad=(
        Example(
            "MULTI_GPU with one process",
            "accelerate launch --config_file one.yaml train.py",
            files={"one.yaml": _MULTI.format(machines=1, count=1, more=""), **_SCRIPT},
        ),
        Example(
            "one id for two processes",
            "accelerate launch --config_file ids.yaml train.py",
            files={"ids.yaml": _MULTI.format(machines=1, count=2, more="gpu_ids: '3'\n"), **_SCRIPT},
        ),
        Example(
            "two ids for four processes",
            "accelerate launch --config_file ids.yaml train.py",
            files={"ids.yaml": _MULTI.format(machines=1, count=4, more="gpu_ids: 0,1\n"), **_SCRIPT},
        ),
        Example(
            "DeepSpeed settings under MULTI_GPU",
            "accelerate launch --config_file ds.yaml train.py",
            files={
                "ds.yaml": _MULTI.format(machines=1, count=4, more="deepspeed_config:\n  zero_stage: 3\n"),
                **_SCRIPT,
            },
        ),
        Example(
            "a DeepSpeed file and the same settings beside it",
            "accelerate launch --config_file ds.yaml train.py",
            files={
                "ds.yaml": "distributed_type: DEEPSPEED\nnum_processes: 4\nmixed_precision: bf16\n"
                "deepspeed_config:\n  deepspeed_config_file: z2.json\n  zero_stage: 2\n",
                "z2.json": '{"zero_optimization": {"stage": 2}}\n',
                **_SCRIPT,
            },
        ),
        Example(
            "machine_rank counts from 0",
            "accelerate launch --config_file two.yaml train.py",
            files={
                "two.yaml": _MULTI.format(machines=2, count=16, more="machine_rank: 2\nmain_process_ip: 10.0.0.5\n"),
                **_SCRIPT,
            },
        ),
        Example(
            "no num_processes at all",
            "accelerate launch --config_file none.yaml train.py",
            files={"none.yaml": "distributed_type: MULTI_GPU\nmixed_precision: bf16\n", **_SCRIPT},
        ),
        Example(
            "YAML reads a bare no as a boolean",
            "accelerate launch --config_file no.yaml train.py",
            files={"no.yaml": "distributed_type: MULTI_GPU\nmixed_precision: no\nnum_processes: 4\n", **_SCRIPT},
        ),
    ),
    good=(
        Example(
            "two processes, two ids",
            "accelerate launch --config_file ids.yaml train.py",
            files={"ids.yaml": _MULTI.format(machines=1, count=2, more="gpu_ids: 0,1\n"), **_SCRIPT},
        ),
        Example(
            "the command gives the number of processes",
            "accelerate launch --config_file one.yaml --num_processes 4 train.py",
            files={"one.yaml": _MULTI.format(machines=1, count=1, more=""), **_SCRIPT},
        ),
        Example(
            "DeepSpeed with one process is a way to offload",
            "accelerate launch --config_file ds.yaml train.py",
            files={
                "ds.yaml": "distributed_type: DEEPSPEED\nnum_processes: 1\ndeepspeed_config:\n  zero_stage: 2\n",
                **_SCRIPT,
            },
        ),
        Example(
            "a DeepSpeed file with nothing that it already says",
            "accelerate launch --config_file ds.yaml train.py",
            files={
                "ds.yaml": "distributed_type: DEEPSPEED\nnum_processes: 4\n"
                "deepspeed_config:\n  deepspeed_config_file: z2.json\n  zero3_init_flag: false\n",
                "z2.json": '{"zero_optimization": {"stage": 2}}\n',
                **_SCRIPT,
            },
        ),
        Example(
            "empty sections, as accelerate config writes them",
            "accelerate launch --config_file two.yaml train.py",
            files={
                "two.yaml": _MULTI.format(machines=1, count=2, more="deepspeed_config: {}\nfsdp_config: {}\n"),
                **_SCRIPT,
            },
        ),
        Example(
            "the command switches DeepSpeed on",
            "accelerate launch --config_file ds.yaml --use_deepspeed train.py",
            files={
                "ds.yaml": _MULTI.format(machines=1, count=4, more="deepspeed_config:\n  zero_stage: 3\n"),
                **_SCRIPT,
            },
        ),
    ),
    sources=(
        Reference(
            "accelerate 1.7.0 and 1.15.0, accelerate launch with each of these files",
            "MULTI_GPU with one process: WORLD_SIZE=1; one id: 'Less than two GPU ids were configured'; no "
            "num_processes: 'You need to manually pass in `--num_processes`'; a deepspeed_config under MULTI_GPU: no "
            "ACCELERATE_USE_DEEPSPEED; two ids for four processes: CUDA_VISIBLE_DEVICES=0,1 and WORLD_SIZE=4; "
            "`mixed_precision: no`: AttributeError: 'bool' object has no attribute 'lower'",
            ran=True,
        ),
        Reference(
            "accelerate 1.7.0 and 1.15.0, utils/dataclasses.py DeepSpeedPlugin._deepspeed_config_checks()",
            "with a DeepSpeed file, zero_stage, mixed_precision and others from the accelerate file are a ValueError",
            ran=True,
        ),
    ),
    fix="Make the file say one thing",
    signatures=(
        Signature(
            r"Less than two GPU ids were configured and tried to run on on multiple GPUs",
            "accelerate 0.20.3 to 1.15.0, commands/launch.py _validate_launch_command()",
            "ValueError: Less than two GPU ids were configured and tried to run on on multiple GPUs. Please ensure at "
            "least two are specified for `--gpu_ids`, or use `--gpu_ids='all'`.",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each contradiction in the file of an accelerate launch."""
    for launch in case.launches:
        layer = launch.layer("accelerate")
        if layer is None or layer.config is None or not layer.config.values or layer.config.source is None:
            continue
        for message, place, fix in _contradictions(layer, layer.config):
            yield report(RULE, message, place or launch.command.locate(layer.span), fix=fix)


_Found = tuple[str, Location | None, Fix | None]


def _contradictions(layer: Layer, config: ConfigFile) -> Iterator[_Found]:
    cpu = layer.option("cpu") is not None
    switched = any(layer.option(name) is not None for name in SWITCHES)
    kind = config_kind(config)
    if not cpu and not switched and kind is not None:
        if kind.startswith("MULTI_"):
            yield from _multi(layer, config)
        if layer.option("num_processes") is None and _lacks_count(config):
            yield (
                f"{config.name} gives no num_processes and neither does the command: accelerate refuses to start",
                config.locate("num_processes") or config.locate("distributed_type"),
                Fix("Add --num_processes, or num_processes to the file"),
            )
    yield from _machines(layer, config)
    if not cpu:
        yield from _sections(layer, config, kind, switched)
    yield from _beside_file(layer, config, kind, switched)
    yield from _boolean_precision(layer, config)


def _lacks_count(config: ConfigFile) -> bool:
    """Whether the file leaves the number to the command: only a quoted NO means one process by itself."""
    count = config.get("num_processes")
    return count == -1 or (count is None and config.get("distributed_type") != "NO")


def _multi(layer: Layer, config: ConfigFile) -> Iterator[_Found]:
    count = config.get("num_processes")
    machines = config.get("num_machines")
    machines = machines if isinstance(machines, int) and machines > 0 else 1
    if layer.option("num_processes") is not None or layer.option("num_machines") is not None:
        return
    if count == 1:
        yield (
            f"{config.name}: distributed_type: {config_kind(config)} but num_processes: 1: one process, world size 1",
            config.locate("num_processes"),
            Fix("Set num_processes to the number of GPUs, or give --num_processes"),
        )
    ids = _ids(layer, config)
    if ids is None or not isinstance(count, int) or count < 2:
        return
    each = count // machines
    if len(ids) < each:
        outcome = f"{each - len(ids)} ranks have no GPU of their own"
        if len(ids) == 1 and machines <= 1:
            outcome = "accelerate refuses fewer than two ids"
        message = f"{config.name} starts {each} processes on {len(ids)} GPUs (gpu_ids: {','.join(ids)}): {outcome}"
        yield (
            message,
            config.locate("gpu_ids"),
            Fix(f"List {each} GPUs in gpu_ids, or set num_processes to {len(ids) * machines}"),
        )


def _ids(layer: Layer, config: ConfigFile) -> tuple[str, ...] | None:
    """The file's list of GPUs; None for all of them, or when the command gives its own."""
    if layer.option("gpu_ids") is not None:
        return None
    value = config.get("gpu_ids")
    if not isinstance(value, str) or value.strip() in ("all", ""):
        return None
    return tuple(part.strip() for part in value.split(","))


def _machines(layer: Layer, config: ConfigFile) -> Iterator[_Found]:
    machines, rank = config.get("num_machines"), config.get("machine_rank")
    if not isinstance(machines, int) or machines < 2 or layer.option("num_machines") is not None:
        return
    if isinstance(rank, int) and rank >= machines and layer.option("machine_rank") is None:
        yield (
            (
                f"{config.name} says machine_rank: {rank} of {machines} machines: they count from 0, so the machines "
                "wait for one that never comes"
            ),
            config.locate("machine_rank"),
            Fix(f"Number the machines from 0 to {machines - 1}"),
        )


def _sections(layer: Layer, config: ConfigFile, kind: str | None, switched: bool) -> Iterator[_Found]:
    for section, wanted in _SECTIONS.items():
        filled = config.get(section)
        if not isinstance(filled, dict) or not filled or kind not in KINDS or kind == wanted:
            continue
        if switched and layer.option(_SWITCH_OF[wanted]) is not None:
            continue
        yield (
            (
                f"{config.name} has a {section}, but its distributed_type is {kind}: the section is not used, "
                f"and neither is {'DeepSpeed' if wanted == 'DEEPSPEED' else wanted}"
            ),
            config.locate(section),
            Fix(f"Set distributed_type: {wanted}, or remove {section}"),
        )


def _beside_file(layer: Layer, config: ConfigFile, kind: str | None, switched: bool) -> Iterator[_Found]:
    section = config.get("deepspeed_config")
    keys = section if isinstance(section, dict) else {}
    option = layer.option("deepspeed_config_file")
    name = option.value if option is not None else keys.get("deepspeed_config_file")
    active = layer.option("use_deepspeed") is not None if switched else kind == "DEEPSPEED"
    if not active or not isinstance(name, str) or name.lower() == "none":
        return
    refused = [key for key in _REFUSED_WITH_FILE if key in keys]
    places = [config.locate("deepspeed_config", key) for key in refused]
    if config.get("mixed_precision") is not None and layer.option("mixed_precision") is None:
        refused.append("mixed_precision")
        places.append(config.locate("mixed_precision"))
    if refused:
        yield (
            (
                f"{config.name} names the DeepSpeed file {name} and also sets {', '.join(refused)}: accelerate refuses "
                "them beside a DeepSpeed file"
            ),
            places[0],
            Fix(f"Move {', '.join(refused)} into {name}"),
        )


def _boolean_precision(layer: Layer, config: ConfigFile) -> Iterator[_Found]:
    place = config.locate("mixed_precision")
    if config.get("mixed_precision") is not False or layer.option("mixed_precision") is not None or place is None:
        return
    release = layer.release
    version = version_of(release)
    if release is None or version is None or version < (1, 0):
        return
    written = place.source.slice(place.span)
    at = written.rfind("no") if "no" in written else written.lower().rfind("no")
    edits: tuple[Edit, ...] = ()
    if at > 0:
        span = Span(place.span.start + at, place.span.start + at + 2)
        edits = (Edit(place.source, span, f"'{written[at : at + 2]}'"),)
    yield (
        (
            f"{config.name} says mixed_precision: no without quotes: YAML reads that as false, and accelerate "
            f"{release.version} stops with an AttributeError"
        ),
        place,
        Fix("Quote it: mixed_precision: 'no'", edits, safe=True),
    )
