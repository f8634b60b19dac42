"""A model's modules, rebuilt from the names in its files' headers, as far as their placement depends on them.

Files hold tensors in alphabetical order and nothing about modules; the order of the modules and those without
parameters come from the types below (transformers 4.48.3 to 5.6.0, models/*/modeling_*.py; tests build each type with
the library and compare). Layers are never divided (``_no_split_modules``), so what is inside them counts by size alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import NamedTuple

from mgpu_doctor.memory.architecture import Architecture
from mgpu_doctor.memory.weights import STORED_BYTES
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.model_folder import Tensor
from mgpu_doctor.model.record import dataclass


class _Family(NamedTuple):
    """``body`` is the path of the module that holds ``children``, in order; ``layers`` names the list of layers."""

    body: str
    children: tuple[str, ...]
    layers: str
    embedding: str
    head: str


_LLAMA = _Family("model", ("embed_tokens", "layers", "norm", "rotary_emb"), "layers", "embed_tokens", "lm_head")
_FAMILIES: Mapping[str, _Family] = {
    **dict.fromkeys(
        (
            "llama",
            "mistral",
            "qwen2",
            "qwen3",
            "phi3",
            "olmo2",
            "starcoder2",
            "granite",
            "mixtral",
            "qwen3_moe",
            "glm4",
        ),
        _LLAMA,
    ),
    "phi": _Family(
        "model",
        ("embed_tokens", "layers", "rotary_emb", "embed_dropout", "final_layernorm"),
        "layers",
        "embed_tokens",
        "lm_head",
    ),
    "gpt2": _Family("transformer", ("wte", "wpe", "drop", "h", "ln_f"), "h", "wte", "lm_head"),
    "gpt_neox": _Family(
        "gpt_neox",
        ("embed_in", "emb_dropout", "layers", "final_layer_norm", "rotary_emb"),
        "layers",
        "embed_in",
        "embed_out",
    ),
    "opt": _Family(
        "model.decoder",
        ("embed_tokens", "embed_positions", "final_layer_norm", "layers"),
        "layers",
        "embed_tokens",
        "lm_head",
    ),
    "bloom": _Family(
        "transformer",
        ("word_embeddings", "word_embeddings_layernorm", "h", "ln_f"),
        "h",
        "word_embeddings",
        "lm_head",
    ),
}
_ROTARY_SHARE = {"phi": 0.5, "gpt_neox": 0.25, "glm4": 0.5}
"""Defaults of partial_rotary_factor (rotary_pct) where a type does not rotate whole heads."""


class Leaf(NamedTuple):
    """A tensor of the model as loaded: full name, bytes, whether it is a buffer."""

    name: str
    size: int
    buffer: bool


@dataclass(frozen=True, slots=True)
class Module:
    """A module with its direct children in order; ``whole`` for one that is never divided."""

    name: str
    children: tuple[Module, ...]
    tensors: tuple[str, ...]
    """Full names of its direct parameters; buffers are not listed, as nothing is divided down to them."""
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Tree:
    """The model: its root, the size of each module and tensor by full name, and the groups of tied parameters.

    ``leaves`` are the modules that hold tensors themselves and no module that does.
    """

    root: Module
    sizes: Mapping[str, int]
    ties: tuple[tuple[str, ...], ...]
    leaves: tuple[str, ...]
    layer: str
    """Full name of the first layer."""


def build_tree(
    tensors: tuple[Tensor, ...],
    architecture: Architecture,
    config: Mapping[str, object],
    element: int,
    *,
    new: bool,
) -> Tree | Unknown:
    """The modules of a model that is loaded in ``element`` bytes; Unknown for a type that is not known.

    ``new`` tells transformers 5 from 4.48 and later: it has one more buffer in rotary embeddings, and experts fused.
    """
    family = _FAMILIES.get(architecture.kind)
    if family is None:
        return Unknown(f"the order of the modules of {architecture.kind or 'this type'} is not known")
    leaves = [*_parameters(tensors, element), *_buffers(architecture, config, family, element, new=new)]
    named = {leaf.name for leaf in leaves}
    tops = (f"{family.body.partition('.')[0]}.", f"{family.head}.")
    if not all(name.startswith(tops) for name in named):
        return Unknown("the files name modules that this type of model does not have")
    sizes = _sizes(leaves)
    head, body = family.head, f"{family.body}."
    children = tuple(
        _child(f"{body}{name}", name == family.layers, architecture.layers, named) for name in family.children
    )
    strange = {name.split(".")[body.count(".")] for name in named if name.startswith(body)} - {*family.children}
    if strange:
        return Unknown(f"the files name a module {min(strange)} that this type of model does not have")
    inner = Module(family.body, children, ())
    for part in reversed(_above(family.body)):
        inner = Module(part, (inner,), ())
    output = Module(head, (), tuple(sorted(name for name in named if name.startswith(f"{head}."))))
    tie = f"{head}.weight"
    ties = (tuple(sorted((f"{body}{family.embedding}.weight", tie))),) if architecture.tied else ()
    if not architecture.tied and tie not in named:
        return Unknown("the files hold no output embedding")
    return Tree(
        Module("", (inner, output), ()), sizes, ties, _leaf_modules(leaves, new=new), f"{body}{family.layers}.0"
    )


def largest_layer(tree: Tree) -> int:
    """Bytes of the largest module that is never divided or has no children (accelerate's get_max_layer_size())."""
    waiting, found = [tree.root], 0
    while waiting:
        module = waiting.pop()
        if module.children and not module.whole:
            waiting.extend(module.children)
        else:
            found = max(found, tree.sizes.get(module.name, 0))
    return found


def _above(path: str) -> list[str]:
    """The modules around one: ``a``, ``a.b`` for ``a.b.c``."""
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _child(name: str, is_layers: bool, layers: int, named: set[str]) -> Module:
    if is_layers:
        return Module(name, tuple(Module(f"{name}.{index}", (), (), whole=True) for index in range(layers)), ())
    return Module(name, (), tuple(sorted(known for known in named if known.startswith(f"{name}."))))


def _parameters(tensors: tuple[Tensor, ...], element: int) -> list[Leaf]:
    """The stored tensors as loaded: floats in the dtype asked for, anything else as it is."""
    found = []
    for tensor in tensors:
        size: float = element
        if not tensor.dtype.startswith(("F", "BF")):
            size = STORED_BYTES.get(tensor.dtype, 1)
        found.append(Leaf(tensor.name, int(prod(tensor.shape) * size), False))
    return found


def _buffers(
    shape: Architecture, config: Mapping[str, object], family: _Family, element: int, *, new: bool
) -> list[Leaf]:
    """Buffers that files do not hold. Frequencies are in 32 bits; transformers 4 counts them in the model's dtype."""
    size = 4 if new else min(4, element)
    found = []
    if "rotary_emb" in family.children:
        share = config.get("partial_rotary_factor", config.get("rotary_pct"))
        nested = config.get("rope_parameters")
        if share is None and isinstance(nested, Mapping):
            share = nested.get("partial_rotary_factor")
        factor = share if isinstance(share, (int, float)) else _ROTARY_SHARE.get(shape.kind, 1.0)
        count = (int(shape.head_dim * factor) + 1) // 2
        names = ("inv_freq", "original_inv_freq") if new else ("inv_freq",)
        found += [Leaf(f"{family.body}.rotary_emb.{name}", count * size, True) for name in names]
    if shape.kind == "gpt2" and not new:
        # models/gpt2/modeling_gpt2.py: a mask of one bool for each pair of positions, and a scalar.
        positions = shape.positions or 1024
        for layer in range(shape.layers):
            attention = f"{family.body}.h.{layer}.attn"
            found.append(Leaf(f"{attention}.bias", int(positions * positions / 8), True))
            found.append(Leaf(f"{attention}.masked_bias", size, True))
    return found


def _sizes(leaves: list[Leaf]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for leaf in leaves:
        parts = leaf.name.split(".")
        for count in range(len(parts) + 1):
            name = ".".join(parts[:count])
            sizes[name] = sizes.get(name, 0) + leaf.size
    return sizes


def _leaf_modules(leaves: list[Leaf], *, new: bool) -> tuple[str, ...]:
    """The modules that hold tensors; in transformers 4 without those that hold modules with tensors beside them."""
    parents = {_fused(leaf.name.rpartition(".")[0]) if new else leaf.name.rpartition(".")[0] for leaf in leaves}
    if new:
        return tuple(sorted(parents))
    above = {".".join(name.split(".")[:count]) for name in parents for count in range(1, name.count(".") + 1)}
    return tuple(sorted(parents - above))


def _fused(module: str) -> str:
    """Experts are parameters of one module in transformers 5."""
    return re.sub(r"\.experts\.\d+(\..*)?$", ".experts", module)
