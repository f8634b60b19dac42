"""What training needs on each card and of the host, by method, engine and optimizer.

LLaMA-Factory (0.8.3, 0.9.3, 0.9.5; model/adapter.py init_adapter()): trained parameters are cast to 32 bits unless
``pure_bf16`` or ZeRO-3; LoRA is the default. transformers' Trainer trains in the dtype that the model is loaded in;
``bf16`` and ``fp16`` switch autocast on, which keeps 16-bit copies of 32-bit weights while it computes. torch 2.7.1,
nn/parallel/distributed.py: DDP's buckets are a second copy of the gradients unless ``gradient_as_bucket_view``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mgpu_doctor.memory.activations import Batch, bound_activations, bound_logits
from mgpu_doctor.memory.optimizers import keeps_gradients, state_bytes
from mgpu_doctor.memory.sharding import LIVE_PARAMETERS, Sharding
from mgpu_doctor.memory.zero import estimate_zero2, estimate_zero3, least_card
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.memory import MemoryPart
from mgpu_doctor.model.record import dataclass, replace

if TYPE_CHECKING:
    from mgpu_doctor.memory.arguments import Arguments
    from mgpu_doctor.memory.loading import Loading
    from mgpu_doctor.memory.weights import Weights
    from mgpu_doctor.model.launch import Launch
    from mgpu_doctor.model.program import Program

_FEWER_STATES = ("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon", "use_mca", "use_hyper_parallel")
_PLAIN_STAGES = frozenset({"sft", "pt"})
_LENGTHS = ("cutoff_len", "max_seq_length", "max_seq_len", "model_max_length", "block_size", "max_length")
_EXPANSIONS = ("freeze_trainable_modules", "freeze_extra_modules", "use_llama_pro")


@dataclass(frozen=True, slots=True)
class Method:
    """What is trained: ``full``, ``lora`` or ``freeze``, and how many parameters, ``most`` None without a bound.

    ``element`` are the bytes that a trained parameter has, at least and at most. ``optimizer`` is its name in
    transformers, None when not known.
    """

    name: str
    least: int
    most: int | None
    element: tuple[int, int]
    optimizer: str | None
    precision: str
    """``mixed``, ``half`` or ``full``, as the activations count it."""


def method_of(launch: Launch, arguments: Arguments, loading: Loading, weights: Weights, sharding: Sharding) -> Method:
    """What is trained, as far as command and source tell; what they do not tell widens the range."""
    found = _told_method(launch, arguments, loading, weights, sharding)
    return replace(found, optimizer=None) if sharding.other_optimizer else found


def _told_method(
    launch: Launch, arguments: Arguments, loading: Loading, weights: Weights, sharding: Sharding
) -> Method:
    if launch.target.framework == "llamafactory":
        return _in_llamafactory(arguments, weights, sharding)
    program = launch.target.program
    known = not isinstance(program, Unknown) and program.first("hf-argument-parser") is not None
    optimizer = arguments.text("optim", "adamw_torch") if known and not _has_own_optimizer(program) else None
    adapted = isinstance(program, Unknown) or program.imports_any("peft", "unsloth", "swift")
    if not adapted and not isinstance(program, Unknown):
        adapted = re.search(r"requires_grad|peft_config|use_peft|lora|freeze", program.source.text) is not None
    precision = "mixed" if sharding.half is not False else "full"
    if loading.element < 4 and sharding.half is False:
        precision = "half"
    # FSDP in mixed precision casts to 32 bits; otherwise weights are trained as they were loaded.
    stays = loading.name in {"bf16", "fp16"} and sharding.engine != "fsdp"
    element = (loading.element, loading.element if stays else 4)
    if adapted or not known:
        return Method("adapters or all", 0, weights.parameters, element, None, precision)
    least = int(weights.parameters * weights.sure)
    return Method("full", least, weights.parameters, element, _text(optimizer), precision)


def _has_own_optimizer(program: Program | Unknown) -> bool:
    if isinstance(program, Unknown):
        return True
    text = program.source.text
    return program.first("optimizer") is not None or "create_optimizer" in text or "optimizers=" in text


def _text(value: str | Unknown | None) -> str | None:
    return value if isinstance(value, str) else None


def _in_llamafactory(arguments: Arguments, weights: Weights, sharding: Sharding) -> Method:
    kind = _text(arguments.text("finetuning_type", "lora"))
    pure = arguments.truth("pure_bf16")
    optimizer = _text(arguments.text("optim", "adamw_torch"))
    if not arguments.is_off(*_FEWER_STATES):
        optimizer = None
    element = (2, 4) if pure is not False or not arguments.is_off("use_badam", "use_mca") else (4, 4)
    precision = "half" if pure is True else "mixed" if sharding.half is not False else "full"
    parameters = weights.parameters
    if kind == "full":
        least = int(parameters * weights.sure) - _frozen_towers(weights)
        return Method("full", least, parameters, element, optimizer, precision)
    if kind == "lora":
        return Method("lora", 0, _adapter(arguments, weights), element, optimizer, precision)
    if kind == "freeze":
        return Method("freeze", 0, _unfrozen(arguments, weights), element, optimizer, precision)
    return Method("adapters or all", 0, parameters, element, None, precision)


def _frozen_towers(weights: Weights) -> int:
    """Parameters outside the language model, which LLaMA-Factory freezes unless told otherwise."""
    if not weights.tensors:
        # Whether it is a model for several modalities is not known; such a tower is a tenth of a model at most.
        return weights.parameters // 10
    from math import prod

    outside = ("vision", "visual", "audio", "multi_modal", "mm_projector", "vpm", "apm", "resampler")
    return sum(prod(tensor.shape) for tensor in weights.tensors if any(word in tensor.name for word in outside))


def _adapter(arguments: Arguments, weights: Weights) -> int | None:
    """Parameters of a LoRA adapter on every linear layer at most; None where the layers' shapes are not known."""
    if not weights.tensors or not arguments.lacks("additional_target", "adapter_name_or_path", "resize_vocab"):
        return None
    rank = arguments.number("lora_rank", 8)
    if not isinstance(rank, float) and not isinstance(rank, int):
        return None
    matrices = (tensor for tensor in weights.tensors if len(tensor.shape) >= 2 and re.search(r"\.\d+\.", tensor.name))
    count = 0
    for tensor in matrices:
        *stacked, height, width = tensor.shape
        several = 1
        for size in stacked:
            several *= size
        # DoRA adds a vector of magnitudes.
        count += several * round(rank * (height + width) + height)
    return count


def _unfrozen(arguments: Arguments, weights: Weights) -> int | None:
    layers = arguments.number("freeze_trainable_layers", 2)
    shape = weights.architecture
    if not isinstance(layers, (int, float)) or shape is None or not arguments.lacks(*_EXPANSIONS):
        return None
    return round(weights.parameters * min(1.0, abs(layers) / shape.layers))


def training_parts(
    launch: Launch, arguments: Arguments, loading: Loading, weights: Weights, sharding: Sharding
) -> tuple[tuple[MemoryPart, ...], tuple[MemoryPart, ...], tuple[str, ...]]:
    """The parts on a card, those on the host, and what has no bound."""
    method = method_of(launch, arguments, loading, weights, sharding)
    uncounted: list[str] = []
    if method.name == "full":
        card, host = _full(method, weights, sharding)
    else:
        card, host = _partly(method, loading, weights, sharding)
    stage = arguments.text("stage", "sft")
    if launch.target.framework == "llamafactory" and stage not in _PLAIN_STAGES:
        uncounted.append("the reference and reward models")
    card += _of_a_step(launch, arguments, weights, method)
    uncounted += [part.purpose for part in card if part.high is None]
    return card, host, tuple(uncounted)


def _full(
    method: Method, weights: Weights, sharding: Sharding
) -> tuple[tuple[MemoryPart, ...], tuple[MemoryPart, ...]]:
    if sharding.engine == "deepspeed" and sharding.stage > 0:
        return _zero(method, weights, sharding)
    if sharding.engine == "fsdp":
        return _fsdp(method, weights, sharding)
    least, most = method.least, weights.parameters
    low, high = method.element
    if sharding.engine == "deepspeed" and sharding.half is not False:
        # The engine keeps 16-bit weights and gradients, and 32-bit weights beside the optimizer's states.
        return (_states(least * (2 + 2 + 4), most * (2 + 4 + 4 + 12), "DeepSpeed without ZeRO"),), ()
    copies = 2 if method.precision == "mixed" else 0
    buckets = high if sharding.ranks > 1 or sharding.engine == "data_parallel" else 0
    states = state_bytes(method.optimizer, least, low, weights.embedding)[0]
    states_most = state_bytes(method.optimizer, most, high, weights.embedding)[1]
    return (
        MemoryPart("weights", least * low, most * (high + copies), _in_bytes(low, high, "trained", copies)),
        MemoryPart(
            "gradients",
            least * low if keeps_gradients(method.optimizer) else 0,
            most * (high + buckets),
            "like the weights" + _and_buckets(buckets),
        ),
        MemoryPart("optimizer", states, states_most, method.optimizer or "its kind is not known"),
    ), ()


def _in_bytes(low: int, high: int, what: str, copies: int) -> str:
    size = f"{low * 8} bits" if low == high else f"{low * 8} or {high * 8} bits"
    return f"{what} in {size}" + (", with autocast's copies at most" if copies else "")


def _and_buckets(buckets: int) -> str:
    return ", a second time in the buckets for all_reduce at most" if buckets else ""


def _states(low: int, high: int | None, why: str) -> MemoryPart:
    return MemoryPart("model states", low, high, why)


def _zero(
    method: Method, weights: Weights, sharding: Sharding
) -> tuple[tuple[MemoryPart, ...], tuple[MemoryPart, ...]]:
    """The paper's formula at least; DeepSpeed's own estimate, with its buckets, at most."""
    least, most, ranks = method.least, weights.parameters, sharding.ranks
    weight = 2 if sharding.half is not False else 4
    extra = 0 if sharding.half is not False else 2 * most + 2 * most // ranks
    optimizer = state_bytes(method.optimizer, least, 4, weights.embedding)[0] // max(1, least)
    own_copy = 4 if sharding.half is True and not sharding.other_optimizer else 0
    layer = _largest_module(weights)
    name = f"ZeRO-{sharding.stage} over {ranks} ranks"
    bucket = 9 * 2 * min(sharding.bucket, most)
    if not sharding.host_optimizer:
        low = least_card(least, sharding.stage, ranks, weight, own_copy + optimizer)
        if sharding.stage >= 3:
            if sharding.host_parameters:
                low = least * (weight + own_copy + optimizer) // ranks
            gathered = 2 * min(LIVE_PARAMETERS, most)
            high = (
                None
                if layer is None
                else (
                    estimate_zero3(most, layer, sharding.per_node, sharding.nodes, offload=False)[1] + gathered + bucket
                )
            )
        else:
            high = estimate_zero2(most, sharding.per_node, sharding.nodes, offload=False)[1] + bucket + 2 * most
        return (_states(low, None if high is None else high + extra, name),), ()
    low = 0 if sharding.host_parameters else least * weight // (ranks if sharding.stage >= 3 else 1)
    if sharding.stage >= 3:
        estimate = (
            None
            if layer is None
            else estimate_zero3(
                most, layer, sharding.per_node, sharding.nodes, offload_parameters=sharding.host_parameters
            )
        )
        gathered = 2 * min(LIVE_PARAMETERS, most)
        high = None if estimate is None else estimate[1] + gathered + bucket + extra
        host_high = None if estimate is None else estimate[0]
    else:
        host_high, states = estimate_zero2(most, sharding.per_node, sharding.nodes)
        high = states + bucket + 2 * most + extra
    return (_states(low, high, f"{name}, the optimizer offloaded"),), _on_host(method, weight, sharding, host_high)


def _on_host(method: Method, weight: int, sharding: Sharding, high: int | None) -> tuple[MemoryPart, ...]:
    """DeepSpeed's CPU optimizers keep 32-bit weights and two states for each parameter of the node's ranks.

    deepspeed 0.16.9 and 0.19.8, runtime/zero/stage_1_and_2.py and stage3.py; ops/adam/cpu_adam.py. On NVMe nothing but
    buffers stays in memory.
    """
    if sharding.on_disk:
        return ()
    states = 12 + (weight if sharding.host_parameters else 0)
    low = method.least * states // sharding.nodes
    if method.optimizer is None or not method.optimizer.startswith("adamw"):
        low = method.least * (2 if sharding.other_optimizer else 4) // sharding.nodes
    return (MemoryPart("optimizer", low, high, "offloaded: 32-bit weights and two states for each parameter"),)


def _largest_module(weights: Weights) -> int | None:
    """Parameters of the largest module without children."""
    from math import prod

    if weights.tensors:
        return max((prod(tensor.shape) for tensor in weights.tensors), default=None)
    return weights.embedding


def _fsdp(
    method: Method, weights: Weights, sharding: Sharding
) -> tuple[tuple[MemoryPart, ...], tuple[MemoryPart, ...]]:
    """Fully sharded at least; at most 32 bits for all of it, with the two largest units whole."""
    least, most, ranks = method.least, weights.parameters, sharding.ranks
    element = 2 if sharding.half is not False else method.element[0]
    optimizer = state_bytes(method.optimizer, least, element, weights.embedding)[0]
    low = (least * 2 * element + optimizer) // ranks
    shape = weights.architecture
    high: int | None = None
    if shape is not None and weights.embedding is not None:
        outside = weights.embedding + (weights.head or 0)
        layer = max(0, most - outside) // shape.layers
        high = most * 20 // ranks + 12 * (outside + 2 * layer)
    name = f"FSDP over {ranks} ranks"
    if not sharding.host_parameters:
        return (_states(low, high, name),), ()
    host = MemoryPart("model states", low * sharding.per_node, most * 20 // sharding.nodes, "offloaded by FSDP")
    return (_states(0, high, f"{name}, offloaded"),), (host,)


def _partly(
    method: Method, loading: Loading, weights: Weights, sharding: Sharding
) -> tuple[tuple[MemoryPart, ...], tuple[MemoryPart, ...]]:
    """Frozen weights, and the few that are trained with their gradients and states."""
    low, high = loading.low, loading.high
    if method.name == "lora" and sharding.half is not False and loading.bits is None:
        low = min(low, int(weights.parameters * weights.sure) * 2)
    if sharding.splits_weights:
        low = 0 if sharding.host_parameters else low // sharding.ranks
        gathered = 2 * min(LIVE_PARAMETERS, weights.parameters) if sharding.stage >= 3 else None
        whole = None if high is None else high // sharding.ranks
        high = None if whole is None or gathered is None else whole + gathered
    parts = [MemoryPart("weights", low, high, f"frozen, {loading.name}")]
    most = method.most
    trained = None if most is None else most * (4 + 2 + 2 * 4) + state_bytes(method.optimizer, most, 4, most)[1]
    name = {"lora": "adapter", "freeze": "trained layers"}.get(method.name, "trained parameters")
    why = "weights, gradients and optimizer of what is trained"
    parts.append(MemoryPart(name, 0, trained, why))
    return tuple(parts), ()


def _of_a_step(launch: Launch, arguments: Arguments, weights: Weights, method: Method) -> tuple[MemoryPart, ...]:
    """Activations and logits: a bound where batch and length are known, no low end (sequences may be short)."""
    batch = batch_of(launch, arguments)
    shape = weights.architecture
    if isinstance(batch, Unknown) or shape is None:
        why = batch.reason if isinstance(batch, Unknown) else "the model's shape is not known"
        return (MemoryPart("activations", 0, None, why),)
    llamafactory = launch.target.framework == "llamafactory"
    if llamafactory:
        recomputed = arguments.is_off("disable_gradient_checkpointing")
    else:
        recomputed = arguments.truth("gradient_checkpointing") is True
    keeps_scores = arguments.text("flash_attn", "auto") == "disabled" or (
        arguments.text("attn_implementation", "sdpa") == "eager"
    )
    bound = bound_activations(
        shape,
        batch,
        method.precision,
        recomputed=recomputed,
        keeps_scores=keeps_scores,
        adapters=method.name != "full",
    )
    of = f"{batch.sequences} sequence{'s' * (batch.sequences != 1)} of {batch.tokens:,} tokens at most"
    why = of + (", recomputed in the backward pass" if recomputed else ", all layers kept")
    return (
        MemoryPart("activations", 0, bound, why),
        MemoryPart("logits", 0, bound_logits(shape, batch, method.precision), of),
    )


def batch_of(launch: Launch, arguments: Arguments) -> Batch | Unknown:
    """What a step of one process works on; Unknown when nothing bounds the length of its sequences."""
    sequences = arguments.number("per_device_train_batch_size", 8)
    if isinstance(sequences, Unknown) or sequences is None:
        return Unknown("the batch size is not known")
    length: float | Unknown | None = None
    if launch.target.framework == "llamafactory":
        # 2048 in 0.9.3 and 0.9.5, 1024 in 0.9.0 and before (hparams/data_args.py): the larger bounds both.
        length = arguments.number("cutoff_len", 2048)
    else:
        given = [arguments.number(name) for name in _LENGTHS if name in arguments.given]
        length = given[0] if len(given) == 1 else None
    if not isinstance(length, (int, float)) or isinstance(length, bool) or length < 1 or sequences < 1:
        return Unknown("the length of the sequences is not known")
    return Batch(int(sequences), int(length))
