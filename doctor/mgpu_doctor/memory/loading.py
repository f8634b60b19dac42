"""How a program loads its model: in which dtype, quantised or not, and so how many bytes the weights take.

LLaMA-Factory (0.8.3, 0.9.3, 0.9.5; model/patcher.py patch_config(), extras/misc.py infer_optim_dtype()): in 16 bits on
a GPU unless ``infer_dtype`` says 32; ``quantization_bit`` quantises the linear layers on the way. A program that calls
``from_pretrained`` itself (transformers, modeling_utils.py): ``torch_dtype`` or ``dtype`` where given; otherwise 32
bits in 4.40.0 to 4.57.6, and the stored dtype since 5.0.0.
"""

from __future__ import annotations

import re
from math import prod
from typing import TYPE_CHECKING

from mgpu_doctor.memory.weights import STORED_BYTES, Weights, dtype_named
from mgpu_doctor.model.known import Unknown
from mgpu_doctor.model.pattern import pattern
from mgpu_doctor.model.record import dataclass
from mgpu_doctor.model.version import is_before

if TYPE_CHECKING:
    from mgpu_doctor.memory.arguments import Arguments
    from mgpu_doctor.model.case import Case
    from mgpu_doctor.model.launch import Launch
    from mgpu_doctor.model.program import Program, Seen

_FOUR_BITS = (0.5, 0.57)
"""bitsandbytes 0.45.0, functional.py quantize_4bit(): half a byte, and a scale of 4 bytes (1 when quantised again) for
each block of 64."""
_EIGHT_BITS = (1.0, 1.05)
_SCALES = 0.25
"""Bytes that scales and zero points of other methods add to a parameter at most, in groups of 16 or more."""

_UNPACKED = {"fp8": 2.0, "fbgemm_fp8": 2.0, "mxfp4": 4.0, "compressed-tensors": 4.0, "gptq": 1.1, "awq": 1.1,
             "bitsandbytes": 1.1}  # fmt: skip
"""How much larger than its files a quantised model may get: some methods are unpacked where a GPU cannot compute with
them (transformers 4.52.4 and 5.6.0, quantizers/quantizer_finegrained_fp8.py, quantizer_mxfp4.py)."""

_CALL = pattern(r"^((?:\w+\.)*)(\w+)\s*\.\s*from_pretrained$")
_LOADING_CLASS = pattern(r"^AutoModel|Model$|For[A-Z]\w+$|LMHead")
_HALVES = pattern(r"\.half\(|bfloat16|float16|\bfp16\b|\bbf16\b|quantiz|\.to\((?!\s*(?:['\"]|[\w.]*(?:device|rank)\b))")
"""Signs that a model that is loaded in 32 bits may get smaller before it reaches the card."""
_ELSEWHERE = pattern(
    r"tp_plan|dispatch_model|_and_dispatch|cpu_offload|parallelize_module|tensor_parallel|PipelineStage"
)
"""Signs that a program divides the model, or keeps a part of it in host memory, in a way of its own."""
_DTYPE = pattern(r"(?:^|, )(?:torch_dtype|dtype)=([^,]+)")
_LITERAL = pattern(r"""^["']?(?:torch\.)?(bfloat16|float16|half|float32|float|auto)["']?$""")
_TO_CARD = ("cuda-call", "device-map", "trainer", "accelerator", "ddp", "fsdp", "deepspeed-initialize", "cuda-device")


@dataclass(frozen=True, slots=True)
class Loading:
    """The weights as they are loaded: ``low`` and ``high`` bytes of the whole model, ``high`` None without a bound.

    ``element`` are the bytes of what is computed with, at least; ``name`` says it in short: ``bf16``, ``4 bits``.
    ``mapped`` tells whether a program hands in a device_map, so that weights go straight to a card.
    """

    name: str
    element: int
    low: int
    high: int | None
    why: str
    bits: int | None = None
    mapped: bool = False


def loading_of(case: Case, launch: Launch, arguments: Arguments, weights: Weights) -> Loading | Unknown:
    """How the program of a launch loads a model; Unknown when its words and its source do not tell."""
    if launch.target.framework == "llamafactory":
        return _in_llamafactory(arguments, weights, trains=launch.purpose.known == "train")
    program = launch.target.program
    if isinstance(program, Unknown):
        return Unknown("how the program loads the model is not known: its source was not read")
    return _in_program(case, program, weights)


def _in_llamafactory(arguments: Arguments, weights: Weights, *, trains: bool) -> Loading | Unknown:
    if not arguments.is_off("use_unsloth", "use_kt"):
        return Unknown("Unsloth and KTransformers load models in their own way")
    bits = arguments.number("quantization_bit")
    if isinstance(bits, Unknown):
        return bits
    if weights.quantised is not None:
        return _stored(weights, weights.quantised)
    if bits is not None:
        return _quantised(weights, int(bits), "quantization_bit")
    asked = arguments.text("infer_dtype", "auto")
    if not trains and isinstance(asked, str) and dtype_named(asked) == ("fp32", 4):
        return _plain(weights, "fp32", 4, 4, "infer_dtype")
    precision = "bf16" if _asks(arguments, "bf16", "pure_bf16") else "fp16" if _asks(arguments, "fp16") else None
    stored = weights.dtype[0] if weights.dtype is not None else None
    shown = precision or ("bf16" if stored == "bf16" else "fp16" if stored is not None else "16 bits")
    return _plain(weights, shown, 2, 2, "LLaMA-Factory loads in 16 bits", mapped=True)


def _asks(arguments: Arguments, *names: str) -> bool:
    return any(arguments.truth(name) is True for name in names)


def _in_program(case: Case, program: Program, weights: Weights) -> Loading | Unknown:
    calls = [seen for seen in program.all("from-pretrained") if _loads_model(program, seen)]
    if len(calls) != 1:
        return Unknown(
            "the program's source shows no call that loads the model"
            if not calls
            else f"the program loads {len(calls)} models"
        )
    if _ELSEWHERE.search(program.source.text):
        return Unknown("the program divides the model in a way of its own")
    text, keywords = program.source.slice(calls[0].span), calls[0].detail
    if program.first(*_TO_CARD) is None and "device_map=" not in keywords:
        return Unknown("the program's source does not show that the model goes to a GPU")
    if "**" in text:
        return Unknown("the program loads the model with keywords that cannot be seen")
    if "quantization_config=" in keywords or "load_in_" in keywords:
        bits = 4 if "load_in_4bit=True" in keywords else 8 if "load_in_8bit=True" in keywords else None
        return Unknown("how the program quantises is not known") if bits is None else _quantised(weights, bits, "")
    mapped = "device_map=" in keywords
    if weights.quantised is not None:
        return _stored(weights, weights.quantised)
    given = _DTYPE.search(keywords)
    if given is not None:
        return _given_dtype(program, given.group(1).strip(), weights, mapped=mapped)
    return _default_dtype(case, program, weights, mapped=mapped)


def _loads_model(program: Program, seen: Seen) -> bool:
    """Whether a call loads a model by a class of transformers; other libraries' classes have defaults of their own."""
    call = _CALL.match(program.source.slice(seen.span).split("(", 1)[0].strip())
    if call is None or not _LOADING_CLASS.search(call.group(2)):
        return False
    if call.group(1):
        return call.group(1) == "transformers."
    return f"transformers.{call.group(2)}" in program.imports


def _given_dtype(program: Program, text: str, weights: Weights, *, mapped: bool) -> Loading | Unknown:
    literal = _LITERAL.match(text)
    if literal is None:
        return _unsure(weights, mapped=mapped)
    if literal.group(1) == "auto":
        return _as_stored(weights, "torch_dtype auto", mapped=mapped)
    named = dtype_named(literal.group(1))
    assert named is not None
    if named[1] == 4 and re.search(r"\.half\(|\.to\(torch\.\w*float16|quantiz", program.source.text):
        return _unsure(weights, mapped=mapped)
    return _plain(weights, named[0], named[1], named[1], f"torch_dtype {text}", mapped=mapped)


def _default_dtype(case: Case, program: Program, weights: Weights, *, mapped: bool) -> Loading | Unknown:
    release = case.knowledge.release("transformers")
    before = is_before(release.version, 5) if release.certain else None
    if before is None or _HALVES.search(program.source.text):
        return _unsure(weights, mapped=mapped)
    if before:
        return _plain(
            weights, "fp32", 4, 4, f"no torch_dtype is given to transformers {release.version}", mapped=mapped
        )
    return _as_stored(weights, f"no dtype is given to transformers {release.version}", mapped=mapped)


def _as_stored(weights: Weights, why: str, *, mapped: bool) -> Loading | Unknown:
    if weights.dtype is None:
        return _unsure(weights, mapped=mapped)
    name, size = weights.dtype
    return _plain(weights, name, size, size, why, mapped=mapped)


def _unsure(weights: Weights, *, mapped: bool) -> Loading:
    return _plain(weights, "16 or 32 bits", 2, 4, "in which dtype the program loads is not known", mapped=mapped)


def _plain(weights: Weights, name: str, low: int, high: int, why: str, *, mapped: bool = False) -> Loading:
    least, most = int(weights.parameters * weights.sure) * low, weights.parameters * high
    others = [tensor for tensor in weights.tensors if not tensor.dtype.startswith(("F", "BF"))]
    for tensor in others:
        count, size = prod(tensor.shape), STORED_BYTES.get(tensor.dtype, 1)
        least, most = least + round(count * (size - low)), most + round(count * (size - high))
    return Loading(name, low, least, most, why, mapped=mapped)


def _stored(weights: Weights, method: str) -> Loading | Unknown:
    """A model that is stored quantised: its files' size, or with the facts alone what the name of the dtype tells."""
    if weights.stored is not None:
        factor = _UNPACKED.get(method)
        high = round(weights.stored * factor) if factor is not None else None
        return Loading(method, 2, round(weights.stored * weights.sure), high, f"stored in {method}")
    bits = re.search(r"(?<!\d)([2348])(?!\d)", method)
    if bits is None:
        return Unknown(f"how many bytes {method} takes is not known")
    count = int(bits.group(1))
    return Loading(method, 2, weights.parameters * count // 8, None, f"stored in {method}", bits=count)


def _quantised(weights: Weights, bits: int, why: str) -> Loading | Unknown:
    if not 1 <= bits <= 8:
        return Unknown(f"{bits} bits are no quantisation that is known")
    least, most = {4: _FOUR_BITS, 8: _EIGHT_BITS}.get(bits, (bits / 8, bits / 8 + _SCALES))
    name = f"{bits} bits"
    reason = why or f"loaded in {bits} bits"
    kept = _unquantised(weights)
    if kept is None:
        # Embeddings stay in 16 bits; how large they are is not known.
        return Loading(name, 2, round(weights.parameters * weights.sure * least), None, reason, bits)
    linear = weights.parameters - kept
    high = linear * most + kept * 4
    if weights.architecture is not None and weights.architecture.experts_per_token:
        # transformers 5 fuses experts into plain parameters, which not every release quantises.
        high = weights.parameters * 4
    return Loading(name, 2, round((linear * least + kept * 2) * weights.sure), round(high), reason, bits)


def _unquantised(weights: Weights) -> int | None:
    """How many parameters stay as they are: embeddings, the output layer, norms."""
    if weights.tensors:
        inside = sum(
            prod(t.shape) for t in weights.tensors if len(t.shape) == 2 and re.search(r"\.\d+\.", t.name) is not None
        )
        return weights.parameters - inside
    if weights.embedding is None:
        return None
    tied = weights.architecture is not None and weights.architecture.tied
    return weights.embedding + (0 if tied else weights.head or 0)
