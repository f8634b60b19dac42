"""A model's size: from the headers of its files, from the files' sizes, or from what the facts say.

How many bytes the parameters take once they are loaded depends on the dtype they are loaded in; the dtypes here are
those that they are stored in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING

from mgpu_doctor.memory.architecture import Architecture, read_architecture
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.model_folder import ModelFolder, Tensor
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass

if TYPE_CHECKING:
    from re import Pattern

    from mgpu_doctor.model.case import Case
    from mgpu_doctor.model.facts import ModelInfo
    from mgpu_doctor.model.launch import Launch

STORED_BYTES: Mapping[str, float] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8, "F4": 0.5, "F6_E2M3": 0.75, "F6_E3M2": 0.75,
}  # fmt: skip
"""Bytes of an element (safetensors 0.8.0, tensor.rs Dtype)."""

_NAMES: Mapping[str, tuple[str, int]] = {
    "bfloat16": ("bf16", 2), "bf16": ("bf16", 2), "float16": ("fp16", 2), "fp16": ("fp16", 2), "half": ("fp16", 2),
    "float32": ("fp32", 4), "fp32": ("fp32", 4), "float": ("fp32", 4), "f32": ("fp32", 4), "f16": ("fp16", 2),
    "int8": ("int8", 1), "float8_e4m3fn": ("fp8", 1), "fp8": ("fp8", 1),
}  # fmt: skip

_LAYER = pattern(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
_EMBEDDING = pattern(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$")
_HEAD = pattern(r"(?:^|\.)(?:lm_head|embed_out|output)\.weight$")
_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
_BIN_SHARE = 0.9
"""The share of a pickled file that is surely parameters: buffers are in it too (gpt2's masks: 9 %)."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A model's parameters. ``stored`` counts their bytes in the files, None when only the facts tell of them.

    ``sure`` is the share of ``parameters`` that is certain: below 1 for pickled files. ``embedding`` and ``head``
    count the parameters of the input and output embedding, None when not known; ``dtype`` is the stored one in short
    (``bf16``) with its bytes, None when not known. ``quantised`` names the method of a model that is stored quantised.
    """

    model: str
    origin: str
    parameters: int
    stored: int | None
    dtype: tuple[str, int] | None
    sure: float = 1.0
    tensors: tuple[Tensor, ...] = ()
    architecture: Architecture | None = None
    embedding: int | None = None
    head: int | None = None
    quantised: str | None = None
    config: Mapping[str, object] | None = None
    """What config.json holds; None with the facts alone."""


def dtype_named(text: object) -> tuple[str, int] | None:
    """A dtype by any of its usual names: its short name and bytes; None for one that is not known."""
    if not isinstance(text, str):
        return None
    return _NAMES.get(text.lower().removeprefix("torch."))


def find_weights(case: Case, launch: Launch, model: str) -> Weights | Unknown:
    """The size of a model that a command names by path or hub id; Unknown when nothing tells it."""
    told = _told(case, model)
    if told is not None and not isinstance(told.parameters, Unknown):
        return _from_facts(model, told)
    folder = case.workspace.model_folder(model, launch.command.directory)
    if isinstance(folder, Unknown):
        cached = _cached(case, model)
        if cached is None:
            return Unknown(f"the size of {model} is not known: no folder, no cached revision and no fact tells it")
        folder = case.workspace.model_folder(cached)
        if isinstance(folder, Unknown):
            return folder
    return read_weights(folder, model)


def read_weights(folder: ModelFolder, model: str) -> Weights | Unknown:
    """The size of what lies in a folder; Unknown when it holds no whole model."""
    if folder.faults:
        fault = folder.faults[0]
        return Unknown(f"{folder.path}/{fault.name} {fault.detail}")
    if isinstance(folder.weight_bytes, Unknown):
        return folder.weight_bytes
    architecture = read_architecture(folder.config)
    quantised = _method(folder.config)
    if isinstance(folder.tensors, Unknown):
        return _pickled(folder, model, architecture, quantised, folder.weight_bytes)
    kept = tuple(_loaded(folder.tensors, architecture))
    count = len(folder.weights)
    return Weights(
        model=model,
        origin=f"{count} safetensors header{'s' * (count != 1)}",
        parameters=sum(prod(tensor.shape) for tensor in kept),
        stored=round(sum(prod(tensor.shape) * STORED_BYTES.get(tensor.dtype, 1) for tensor in kept)),
        dtype=_common_dtype(kept),
        tensors=kept,
        architecture=architecture,
        embedding=_count(kept, _EMBEDDING),
        head=_count(kept, _HEAD),
        quantised=quantised,
        config=folder.config,
    )


def _told(case: Case, model: str) -> ModelInfo | None:
    models = case.facts.models
    if isinstance(models, Unknown):
        return None
    return next((models[key] for key in (model, model.rstrip("/"), model.rstrip("/") + "/") if key in models), None)


def _from_facts(model: str, told: ModelInfo) -> Weights:
    assert not isinstance(told.parameters, Unknown)
    dtype = dtype_named(told.dtype) if isinstance(told.dtype, str) else None
    quantised = told.dtype if isinstance(told.dtype, str) and (dtype is None or dtype[1] < 2) else None
    dtype = None if quantised is not None else dtype
    return Weights(model, "the facts", int(told.parameters), None, dtype, quantised=quantised)


def _cached(case: Case, model: str) -> str | None:
    """The folder of a hub model's revision in this machine's cache: the one that ``refs/main`` names.

    huggingface_hub 0.20.3 to 2.4.0, file_download.py: ``models--org--name/refs/main`` holds the commit.
    """
    place, names = case.facts.hub_cache_path, case.facts.hub_cache
    if not isinstance(place, str) or isinstance(names, Unknown) or model not in names:
        return None
    top = f"{place}/models--{model.replace('/', '--')}"
    reference = case.workspace.read(f"{top}/refs/main", "text")
    if isinstance(reference, Unknown):
        return None
    commit = reference.text.strip()
    return f"{top}/snapshots/{commit}" if commit.isalnum() else None


def _method(config: Mapping[str, object] | None) -> str | None:
    quantisation = (config or {}).get("quantization_config")
    if not isinstance(quantisation, Mapping):
        return None
    method = quantisation.get("quant_method")
    if isinstance(method, str):
        return method
    return "bitsandbytes" if quantisation.get("load_in_4bit") or quantisation.get("load_in_8bit") else "quantised"


def _loaded(tensors: tuple[Tensor, ...], architecture: Architecture | None) -> Iterator[Tensor]:
    """The tensors that become part of the model, as far as that can be told.

    Layers behind the last one (DeepSeek-V3 stores one for prediction ahead: transformers 4.52.4,
    models/deepseek_v3, ``_keys_to_ignore_on_load_unexpected``), the output embedding that is tied to the input's, and
    frequencies that old files still hold are left out.
    """
    tied = architecture is not None and architecture.tied and any(_EMBEDDING.search(t.name) for t in tensors)
    for tensor in tensors:
        layer = _LAYER.search(tensor.name)
        if architecture is not None and layer and int(layer.group(1)) >= architecture.layers:
            continue
        if (tied and _HEAD.search(tensor.name)) or tensor.name.endswith("rotary_emb.inv_freq"):
            continue
        yield tensor


def _common_dtype(tensors: tuple[Tensor, ...]) -> tuple[str, int] | None:
    """The floating-point dtype that most elements have."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        if tensor.dtype in _FLOATS:
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + prod(tensor.shape)
    if not counts:
        return None
    most = max(counts, key=lambda name: counts[name])
    return _NAMES.get(most.lower())


def _count(tensors: tuple[Tensor, ...], name: Pattern[str]) -> int:
    return sum(prod(tensor.shape) for tensor in tensors if name.search(tensor.name))


def _pickled(
    folder: ModelFolder, model: str, architecture: Architecture | None, quantised: str | None, size: int
) -> Weights | Unknown:
    config = folder.config or {}
    dtype = dtype_named(config.get("torch_dtype", config.get("dtype")))
    if dtype is None:
        return Unknown(f"{folder.path}/config.json does not say which dtype the .bin files hold")
    count = len(folder.weights)
    origin = f"the size of {count} .bin file{'s' * (count != 1)}"
    embedding = None
    if architecture is not None and architecture.vocabulary is not None:
        embedding = architecture.vocabulary * architecture.hidden
    return Weights(
        model,
        origin,
        size // dtype[1],
        size,
        dtype,
        sure=_BIN_SHARE,
        architecture=architecture,
        embedding=embedding,
        head=embedding,
        quantised=quantised,
        config=folder.config,
    )
