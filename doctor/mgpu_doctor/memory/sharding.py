"""How the engine of a launch divides a model's states over the ranks, as far as memory depends on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.record import dataclass

if TYPE_CHECKING:
    from mgpu_doctor.memory.arguments import Arguments
    from mgpu_doctor.model.case import Case
    from mgpu_doctor.model.launch import Launch
    from mgpu_doctor.model.program import ConfigFile

DEFAULT_BUCKET = 500_000_000
"""Elements of DeepSpeed's buckets for gradients and weights (deepspeed 0.16.9, 0.19.8, runtime/zero/config.py)."""
LIVE_PARAMETERS = 1_000_000_000
"""Parameters that ZeRO-3 keeps gathered at most (there, stage3_max_live_parameters)."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """``engine``: ``none``, ``ddp``, ``data_parallel``, ``deepspeed``, ``fsdp``, ``device_map``.

    ``stage`` is ZeRO's, 0 for anything else; ``ranks`` count over all nodes. ``half`` tells whether training computes
    in 16 bits, None when not known. ``host_optimizer`` and ``host_parameters`` say what is kept in host memory (or on
    NVMe: then ``on_disk``).
    """

    engine: str
    stage: int
    ranks: int
    per_node: int
    nodes: int
    half: bool | None
    host_optimizer: bool = False
    host_parameters: bool = False
    on_disk: bool = False
    bucket: int = DEFAULT_BUCKET
    other_optimizer: bool = False
    """Whether DeepSpeed's file asks for another optimizer than Adam, or for states in 16 bits."""

    @property
    def splits_weights(self) -> bool:
        """Whether no rank holds a whole model."""
        return self.engine == "fsdp" or self.stage >= 3


def sharding_of(case: Case, launch: Launch, arguments: Arguments) -> Sharding | Unknown:
    """The engine, with what its configuration says; Unknown when one of its decisive parts is."""
    engine, ranks = launch.engine.value, launch.world_size.value
    per_node, nodes = launch.processes_per_node.value, launch.nodes.value
    for value in (engine, ranks, per_node, nodes):
        if isinstance(value, Unknown):
            return value
    assert not isinstance(engine, Unknown)
    assert isinstance(ranks, int)
    assert isinstance(per_node, int)
    assert isinstance(nodes, int)
    if engine.name == "megatron":
        return Unknown("Megatron divides a model in its own way")
    if min(ranks, per_node, nodes) < 1:
        return Unknown("no process is started")
    half = _half(launch, arguments)
    if engine.name == "fsdp":
        return _fsdp(launch, arguments, ranks, per_node, nodes, half)
    if engine.name != "deepspeed":
        return Sharding(engine.name, 0, ranks, per_node, nodes, half)
    if isinstance(engine.stage, Unknown):
        return engine.stage
    return _deepspeed(case, launch, engine.stage or 0, Sharding("deepspeed", 0, ranks, per_node, nodes, half))


def _half(launch: Launch, arguments: Arguments) -> bool | None:
    """Whether training computes in 16 bits."""
    asked = [arguments.truth(name) for name in ("bf16", "fp16", "pure_bf16")]
    if any(value is True for value in asked):
        return True
    layer = launch.layer("accelerate")
    if layer is not None:
        option = layer.option("mixed_precision")
        value = option.value if option is not None else None
        if option is None and layer.config is not None:
            found = layer.config.get("mixed_precision")
            value = found if isinstance(found, str) else None
        if value is not None and value.lower() in {"bf16", "fp16", "fp8"}:
            return True
    return None if any(isinstance(value, Unknown) for value in asked) else False


def _deepspeed(case: Case, launch: Launch, stage: int, plain: Sharding) -> Sharding | Unknown:
    config = _deepspeed_file(case, launch)
    if config is None:
        return _by_accelerate(launch, stage, plain)
    half = plain.half
    for name in ("bf16", "bfloat16", "fp16"):
        enabled = config.get(name, "enabled")
        if enabled is True:
            half = True
        elif enabled is not None and enabled not in (False, "auto"):
            half = None
    optimizer = config.get("zero_optimization", "offload_optimizer", "device")
    parameters = config.get("zero_optimization", "offload_param", "device")
    legacy = config.get("zero_optimization", "cpu_offload") is True
    bucket = config.get("zero_optimization", "reduce_bucket_size")
    return Sharding(
        plain.engine,
        stage,
        plain.ranks,
        plain.per_node,
        plain.nodes,
        half,
        host_optimizer=legacy or optimizer in ("cpu", "nvme"),
        host_parameters=stage == 3 and parameters in ("cpu", "nvme"),
        on_disk="nvme" in (optimizer, parameters),
        bucket=int(bucket) if isinstance(bucket, (int, float)) and 0 < bucket < 1 << 40 else DEFAULT_BUCKET,
        other_optimizer=_is_other(config),
    )


def _is_other(config: ConfigFile) -> bool:
    """Whether the states may be smaller than Adam's in 32 bits (deepspeed 0.19.8, runtime/config.py, fp16 and bf16)."""
    kind = config.get("optimizer", "type")
    if kind is not None and str(kind).lower() not in {"adam", "adamw"}:
        return True
    thin = ("master_weights", "optimizer_states")
    return any(
        word in part and entry.value is True for path, entry in config.values.items() for part in path for word in thin
    )


def _deepspeed_file(case: Case, launch: Launch) -> ConfigFile | None:
    config = launch.target.config("deepspeed")
    layer = launch.layer("accelerate")
    if config is None and layer is not None:
        option = layer.option("deepspeed_config_file")
        name: object = option.value if option is not None else None
        if name is None and layer.config is not None:
            name = layer.config.get("deepspeed_config", "deepspeed_config_file")
        if isinstance(name, str) and name.lower() != "none":
            config = case.workspace.config(name, "deepspeed", launch.command.directory)
    if config is None or config.exists is not True or config.problem is not None or not config.values:
        return None
    return config


def _by_accelerate(launch: Launch, stage: int, plain: Sharding) -> Sharding | Unknown:
    """DeepSpeed without a file of its own: accelerate's options and its file say what is offloaded."""
    layer = launch.layer("accelerate")
    if layer is None:
        return Unknown("DeepSpeed's configuration could not be read")

    def device(name: str) -> object:
        option = layer.option(f"{name}_device")
        if option is not None:
            return option.value
        return layer.config.get("deepspeed_config", f"{name}_device") if layer.config is not None else None

    optimizer, parameters = device("offload_optimizer"), device("offload_param")
    return Sharding(
        plain.engine,
        stage,
        plain.ranks,
        plain.per_node,
        plain.nodes,
        plain.half,
        host_optimizer=optimizer in ("cpu", "nvme"),
        host_parameters=stage == 3 and parameters in ("cpu", "nvme"),
        on_disk="nvme" in (optimizer, parameters),
    )


def _fsdp(
    launch: Launch, arguments: Arguments, ranks: int, per_node: int, nodes: int, half: bool | None
) -> Sharding | Unknown:
    """FSDP; with several processes of which nobody knows whether they offload, the need is not known."""
    text = arguments.text("fsdp", "")
    if isinstance(text, Unknown):
        return text
    offload = "offload" in (text or "")
    layer = launch.layer("accelerate")
    if layer is not None:
        option = layer.option("fsdp_offload_params")
        value = option.value if option is not None else None
        if option is None and layer.config is not None:
            value = str(layer.config.get("fsdp_config", "fsdp_offload_params"))
        offload = offload or str(value).lower() in {"true", "1", "yes"}
    return Sharding("fsdp", 0, ranks, per_node, nodes, half, host_optimizer=offload, host_parameters=offload)
