"""From a launch to what it needs of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpu_doctor.memory.arguments import Arguments, read_arguments
from mgpu_doctor.memory.host import checkpoint_part
from mgpu_doctor.memory.inference import context_part, inference_parts
from mgpu_doctor.memory.kv_cache import token_bytes
from mgpu_doctor.memory.loading import Loading, loading_of
from mgpu_doctor.memory.model_used import NO_MODEL, model_of, names_model
from mgpu_doctor.memory.sharding import Sharding, sharding_of
from mgpu_doctor.memory.spread import map_kind, spread_of
from mgpu_doctor.memory.training import training_parts
from mgpu_doctor.memory.weights import Weights, find_weights
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.memory import MemoryNeed, MemoryPart

if TYPE_CHECKING:
    from mgpu_doctor.model.case import Case
    from mgpu_doctor.model.launch import Launch

_PURPOSES = frozenset({"train", "predict", "chat", "serve", "evaluate"})
_OTHER_ENGINES = frozenset({"vllm", "sglang", "lmdeploy", "verl", "openrlhf", "torchtune", "megatron", "colossalai"})
_MOST_KEPT = 64
_kept: list[tuple[Case, Launch, MemoryNeed | Unknown]] = []
"""Answers of the case that is being looked at: several rules and ``explain`` ask the same."""


def memory_need(case: Case, launch: Launch) -> MemoryNeed | Unknown:
    """What a launch needs of each card and of the host; Unknown with the reason where that cannot be told."""
    if not names_model(launch):
        return NO_MODEL
    for known, asked, answer in _kept:
        # The workspace belongs to one look at one machine: a copy of a case shares it.
        if asked is launch and known.workspace is case.workspace and known.facts is case.facts:
            return answer
    if len(_kept) >= _MOST_KEPT or (_kept and _kept[0][0].workspace is not case.workspace):
        _kept.clear()
    answer = _worked_out(case, launch)
    _kept.append((case, launch, answer))
    return answer


def _worked_out(case: Case, launch: Launch) -> MemoryNeed | Unknown:
    purpose = launch.purpose.value
    if isinstance(purpose, Unknown):
        return purpose
    if purpose not in _PURPOSES or launch.target.framework in _OTHER_ENGINES:
        return Unknown("it is not a program whose memory is understood")
    arguments = read_arguments(launch)
    backend = arguments.text("infer_backend", "huggingface")
    if purpose != "train" and backend not in ("huggingface", "hf"):
        return Unknown("the inference engine takes a share of each card by its own settings")
    if not arguments.is_off("use_cpu", "no_cuda", "cpu") or _on_cpu(launch):
        return Unknown("it runs on the CPU, or may do so")
    model = model_of(launch, arguments)
    if model is None:
        return NO_MODEL
    if isinstance(model, Unknown):
        return model
    weights = find_weights(case, launch, model)
    if isinstance(weights, Unknown):
        return weights
    sharding = sharding_of(case, launch, arguments)
    if isinstance(sharding, Unknown):
        return sharding
    loading = loading_of(case, launch, arguments, weights)
    if isinstance(loading, Unknown):
        return loading
    return _need(case, launch, arguments, weights, loading, sharding)


def _on_cpu(launch: Launch) -> bool:
    layer = launch.layer("accelerate")
    return layer is not None and layer.option("cpu") is not None


def _need(
    case: Case, launch: Launch, arguments: Arguments, weights: Weights, loading: Loading, sharding: Sharding
) -> MemoryNeed:
    purpose = launch.purpose.known or ""
    form = _form(launch, arguments, loading, sharding, purpose)
    host: tuple[MemoryPart, ...] = ()
    if purpose == "train":
        card, host, uncounted = training_parts(launch, arguments, loading, weights, sharding)
    else:
        card, uncounted = inference_parts(launch, arguments, loading, weights, sharding)
    shape = weights.architecture
    cards = _cards(launch, sharding, form)
    context = context_part(sharding.ranks)
    if form == "split":
        several = max(1, cards)
        high = None if context.high is None else context.high * several
        context = MemoryPart(context.purpose, context.low * several, high, context.why)
    checkpoint = checkpoint_part(launch, weights, loading, sharding)
    return MemoryNeed(
        model=weights.model,
        origin=weights.origin,
        parameters=weights.parameters,
        dtype=loading.name,
        weights=(loading.low, loading.high),
        form=form,
        purpose=purpose,
        cards=cards,
        card=(*card, context),
        host=host if checkpoint is None else (*host, checkpoint),
        uncounted=uncounted,
        token_bytes=None if shape is None else token_bytes(shape, max(2, loading.element))[1],
        placement=spread_of(case, launch, weights, loading) if form == "split" else None,
    )


def _form(launch: Launch, arguments: Arguments, loading: Loading, sharding: Sharding, purpose: str) -> str:
    if sharding.ranks > 1:
        return "sharded" if sharding.splits_weights else "replicas"
    if launch.spread.known != "split":
        # A device map on one card leaves in host memory what does not fit.
        mapped = purpose != "train" and launch.spread.known == "single" and map_kind(launch) is not None
        batch = launch.target.framework == "llamafactory" and purpose not in {"chat", "serve"}
        return "split" if mapped and not batch and loading.bits is None else "one"
    if launch.target.framework == "llamafactory" and loading.bits is not None:
        # model/model_utils/quantization.py: bitsandbytes goes to the current device unless told otherwise.
        told = arguments.text("quantization_device_map")
        return "split" if told == "auto" or loading.why != "quantization_bit" else "one"
    return "split"


def _cards(launch: Launch, sharding: Sharding, form: str) -> int:
    devices = launch.visible.known
    if form != "split":
        return sharding.per_node
    return len(devices.entries) if devices is not None else 0
