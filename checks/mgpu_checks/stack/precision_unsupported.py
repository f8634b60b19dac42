"""A precision is asked for that the GPUs do not have: bf16, tf32 or fp8."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.engine import TrainingArguments, deepspeed_file, training_arguments, trains_with_arguments
from mgpu_checks.stack import failing, shown_gpus, uses_gpus
from mgpu_doctor.authoring import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Gpu,
    Launch,
    Location,
    Reference,
    Rule,
    Severity,
    Signature,
    Span,
    Unknown,
    dataclass,
    is_before,
    pattern,
    replace,
    report,
)

_TRAINER = (
    "from transformers import HfArgumentParser, Trainer, TrainingArguments\n\n"
    "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\nTrainer(model, args).train()\n"
)
_ACCELERATOR = "from accelerate import Accelerator\n\naccelerator = Accelerator()\n"
_V100 = {"gpus": [{"index": index, "name": "Tesla V100-SXM2-32GB", "compute_capability": "7.0"} for index in range(8)]}
_OLD = {**_V100, "packages": {"torch": "2.0.0+cu117", "transformers": "4.28.1"}, "torch_cuda": "11.7"}

RULE = Rule(
    code="MGD510",
    slug="precision-unsupported",
    title="The GPUs do not have this precision",
    severity=Severity.ERROR,
    summary="bf16 or tf32 below compute capability 8.0, or fp8 below 8.9.",
    why=(
        "bfloat16 and TF32 came with Ampere (compute capability 8.0), FP8 with Ada and Hopper (8.9 and 9.0). On a "
        "V100, T4 or RTX 20 card transformers' Trainer refuses bf16 (\"Your setup doesn't support bf16/gpu\"), unless "
        "transformers is 4.35 or newer and torch 2.3 or newer: these accept an emulation, which leaves the tensor "
        "cores unused. `--tf32 True` is refused in every release, and accelerate takes fp16 where fp8 was asked for. "
        "fp16 runs on all of them."
    ),
    bad=(
        Example(
            "the Trainer's bf16 on V100s", "torchrun --nproc_per_node 8 ft.py --bf16 True", {"ft.py": _TRAINER}, _OLD
        ),
        Example(
            "emulated",
            "torchrun --nproc_per_node 8 ft.py --bf16 True",
            {"ft.py": _TRAINER},
            {**_V100, "packages": {"torch": "2.6.0+cu124", "transformers": "4.52.4"}},
        ),
        Example(
            "LLaMA-Factory's file",
            "llamafactory-cli train sft.yaml",
            {"sft.yaml": "stage: sft\ndo_train: true\nbf16: true\n"},
            _V100,
        ),
        Example("tf32", "torchrun --nproc_per_node 8 ft.py --tf32 True", {"ft.py": _TRAINER}, _V100),
        Example(
            "the launcher's bf16",
            "accelerate launch --multi_gpu --num_processes 8 --mixed_precision bf16 train.py",
            {"train.py": _ACCELERATOR},
            _V100,
        ),
        Example(
            "in accelerate's file",
            "accelerate launch --config_file acc.yaml train.py",
            {
                "train.py": _ACCELERATOR,
                "acc.yaml": "distributed_type: MULTI_GPU\nnum_processes: 8\nmixed_precision: bf16\n",
            },
            _V100,
        ),
        Example(
            "fp8 on A100s",
            "accelerate launch --multi_gpu --num_processes 8 --mixed_precision fp8 train.py",
            {"train.py": _ACCELERATOR},
        ),
        Example(
            "in DeepSpeed's file",
            "deepspeed --num_gpus 8 ft.py --deepspeed ds.json",
            {"ft.py": _TRAINER, "ds.json": '{"bf16": {"enabled": true}, "zero_optimization": {"stage": 2}}'},
            _V100,
        ),
        Example("vLLM's weights", "vllm serve org/m --tensor-parallel-size 8 --dtype bfloat16", {}, _V100),
        Example(
            "the type of the weights",
            "torchrun --nproc_per_node 8 sft.py --torch_dtype bfloat16",
            {"sft.py": _TRAINER},
            _V100,
        ),
        Example(
            "in the program",
            "torchrun --nproc_per_node 8 run.py",
            {
                "run.py": "import torch\nfrom transformers import AutoModelForCausalLM\n"
                'model = AutoModelForCausalLM.from_pretrained("org/m", torch_dtype=torch.bfloat16).cuda()\n'
            },
            _V100,
        ),
    ),
    good=(
        Example("bf16 on A100s", "torchrun --nproc_per_node 8 ft.py --bf16 True --tf32 True", {"ft.py": _TRAINER}),
        Example("vLLM chooses", "vllm serve org/m --tensor-parallel-size 8 --dtype half", {}, _V100),
        Example("fp16 on V100s", "torchrun --nproc_per_node 8 ft.py --fp16 True", {"ft.py": _TRAINER}, _V100),
        Example("switched off", "torchrun --nproc_per_node 8 ft.py --bf16 False", {"ft.py": _TRAINER}, _V100),
        Example(
            "the Trainer's fp16 overrides the launcher's bf16",
            "accelerate launch --multi_gpu --num_processes 8 --mixed_precision bf16 ft.py --fp16 True",
            {"ft.py": _TRAINER},
            _V100,
        ),
        Example(
            "fp8 on Ada cards",
            "accelerate launch --multi_gpu --num_processes 2 --mixed_precision fp8 train.py",
            {"train.py": _ACCELERATOR},
            {"gpus": [{"index": index, "name": "NVIDIA L40S", "compute_capability": "8.9"} for index in range(2)]},
        ),
        Example(
            "DeepSpeed takes the arguments'",
            "deepspeed --num_gpus 8 ft.py --deepspeed ds.json --fp16 True",
            {"ft.py": _TRAINER, "ds.json": '{"bf16": {"enabled": "auto"}}'},
            _V100,
        ),
        Example(
            "the program asks what the GPU can do",
            "torchrun --nproc_per_node 8 run.py",
            {
                "run.py": "import torch\nfrom transformers import AutoModel\n"
                "kind = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16\n"
                'model = AutoModel.from_pretrained("org/m", torch_dtype=kind).cuda()\n'
            },
            _V100,
        ),
        Example("on the CPU", "accelerate launch --cpu ft.py --bf16 True", {"ft.py": _TRAINER}, _V100),
        Example("nothing is known about the GPUs", "torchrun ft.py --bf16 True", {"ft.py": _TRAINER}, None),
    ),
    sources=(
        Reference(
            "transformers 4.28.1, 4.33.3 and 4.34.1, utils/import_utils.py is_torch_bf16_gpu_available()",
            'asks for a major compute capability of 8; TrainingArguments raises "Your setup doesn\'t support bf16/gpu"',
        ),
        Reference(
            "transformers 4.35.2 … 5.23.0, utils/import_utils.py is_torch_bf16_gpu_available()",
            "asks torch.cuda.is_bf16_supported()",
        ),
        Reference(
            "torch 2.0.1, 2.1.2 and 2.2.2, cuda/__init__.py is_bf16_supported()", "major compute capability 8 or more"
        ),
        Reference(
            "torch 2.3.1, 2.4.1 and 2.13.0, cuda/__init__.py is_bf16_supported()",
            "otherwise tries to make a bfloat16 tensor, which succeeds on older GPUs (emulation)",
        ),
        Reference(
            "transformers 4.28.1 … 5.23.0, utils/import_utils.py is_torch_tf32_available()",
            'major compute capability 8; else "--tf32 requires Ampere or a newer GPU arch, cuda>=11 and torch>=1.7"',
        ),
        Reference(
            "accelerate 0.25.0, 1.0.1 and 1.15.0, accelerator.py Accelerator.__init__()",
            'bf16 where is_bf16_supported() is False: no autocast, or ValueError "bf16 mixed precision requires '
            'PyTorch >= 1.10 and a supported device."',
        ),
        Reference(
            "accelerate 0.20.3, 1.0.1 and 1.15.0, state.py and accelerator.py",
            'fp8 below compute capability 8.9: "insufficient for FP8 mixed precision training … Will use FP16 instead"',
        ),
        Reference(
            "deepspeed 0.16.9 and 0.19.8, runtime/engine.py _do_sanity_check()",
            'bf16 where is_bf16_supported() is False: "Type bf16 is not supported on your device."',
        ),
        Reference(
            "vllm 0.2.7, 0.6.3.post1 and 0.9.2, worker/worker.py and v1/worker/gpu_worker.py "
            "_check_if_gpu_supports_dtype()",
            'bfloat16 below a major compute capability of 8: "Bfloat16 is only supported on GPUs with compute '
            'capability of at least 8.0"',
        ),
        Reference(
            "llamafactory 0.9.3, hparams/parser.py get_train_args()",
            'pure_bf16 without bf16: "This device does not support `pure_bf16`."',
        ),
    ),
    fix="use fp16",
    signatures=(
        Signature(
            r"Your setup doesn't support bf16/gpu",
            "transformers 4.28.1 … 5.23.0, training_args.py __post_init__()",
            "ValueError: Your setup doesn't support bf16/gpu. You need torch>=1.10, using Ampere GPU with cuda>=11.0",
        ),
        Signature(
            r"--tf32 requires Ampere or a newer GPU arch",
            "transformers 4.28.1 … 5.23.0, training_args.py __post_init__()",
            "ValueError: --tf32 requires Ampere or a newer GPU arch, cuda>=11 and torch>=1.7",
        ),
        Signature(
            r"bf16 mixed precision requires PyTorch >= 1\.10 and a supported device",
            "accelerate 1.0.1 and 1.15.0, accelerator.py",
            "ValueError: bf16 mixed precision requires PyTorch >= 1.10 and a supported device.",
        ),
        Signature(
            r"insufficient for FP8 mixed precision training",
            "accelerate 1.0.1 and 1.15.0, state.py AcceleratorState.__init__()",
            "The current device has compute capability of (8, 0) which is insufficient for FP8 mixed precision "
            "training (requires a GPU Hopper/Ada Lovelace or higher, compute capability of 8.9 or higher). Will use "
            "FP16 instead.",
        ),
        Signature(
            r"Type bf16 is not supported on your device",
            "deepspeed 0.16.9 and 0.19.8, runtime/engine.py",
            "ValueError: Type bf16 is not supported on your device.",
        ),
        Signature(
            r"Bfloat16 is only supported on GPUs with compute capability of at least 8\.0",
            "vllm 0.2.7, 0.6.3.post1 and 0.9.2, _check_if_gpu_supports_dtype()",
            "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU "
            "has compute capability 7.5. You can use float16 instead by explicitly setting the`dtype` flag in CLI, for "
            "example: --dtype=half.",
        ),
        Signature(
            r"This device does not support `pure_bf16`",
            "llamafactory 0.9.3, hparams/parser.py",
            "ValueError: This device does not support `pure_bf16`.",
        ),
        Signature(
            r"`--fp16`\) and FP16 half precision evaluation .* can only be used on CUDA|fp16 mixed precision "
            r"requires a GPU",
            "transformers 4.28.1 to 4.40.2, training_args.py; accelerate 0.28.0 to 1.10.1, accelerator.py",
            "ValueError: fp16 mixed precision requires a GPU (not 'cpu').",
        ),
    ),
)

NEEDED = {"bf16": (8, 0), "tf32": (8, 0), "fp8": (8, 9)}
"""Precision → the first compute capability that has it."""

ASKS_TORCH_SINCE = (4, 35)
"""transformers from which torch.cuda.is_bf16_supported() decides."""

EMULATED_SINCE = (2, 3)
"""torch from which is_bf16_supported() counts an emulation."""

VLLM_SEEN = (0, 9, 3)
"""vLLM before which it was seen to refuse bfloat16 on older GPUs."""

_FP16 = {"bf16": "fp16", "bfloat16": "float16"}
_OWN_TYPE = pattern(r"\b(?:torch_)?dtype=(?:torch\.bfloat16|['\"]?bfloat16['\"]?)(?:,|$)")


@dataclass(frozen=True, slots=True)
class Wish:
    """A precision asked for: ``who`` acts on it (``trainer``, ``accelerate``, ``deepspeed``, ``vllm``, ``program``).

    ``edits`` give fp16 instead, where the text allows it.
    """

    precision: str
    who: str
    shown: str
    location: Location
    edits: tuple[Edit, ...] = ()


def find(case: Case) -> Iterator[Finding]:
    """What each launch asks for, against the GPUs that it uses."""
    seen = set()
    for launch in case.launches:
        if not uses_gpus(case, launch):
            continue
        for wish in _wishes(case, launch):
            key = (wish.precision, wish.location.source.name, wish.location.span)
            needed = NEEDED[wish.precision]
            gpus = failing(case, launch, lambda capability, needed=needed: capability < needed)  # type: ignore[misc]
            if gpus and key not in seen:
                seen.add(key)
                yield _finding(case, wish, gpus)


def _wishes(case: Case, launch: Launch) -> Iterator[Wish]:
    given = training_arguments(launch)
    yield from _arguments(launch, given)
    if given.truth("fp16") is not True and given.truth("bf16") is not True:
        yield from _accelerate(launch)
    yield from _deepspeed(case, launch)
    yield from _dtype(launch, given)
    yield from _program(launch)


def _arguments(launch: Launch, given: TrainingArguments) -> Iterator[Wish]:
    who = "trainer" if trains_with_arguments(launch) else "program"
    for name in ("bf16", "bf16_full_eval", "pure_bf16", "tf32"):
        found = given.get(name)
        if found is not None and found.truth is True:
            precision = "tf32" if name == "tf32" else "bf16"
            if precision == "bf16" or who == "trainer":
                edits = _instead(found.location) if name in ("bf16", "bf16_full_eval") else ()
                yield Wish(precision, who, found.shown, found.location, edits)


DTYPES = ("torch_dtype", "dtype", "infer_dtype", "model_dtype")
"""Arguments that name the type of a model's weights (trl 0.9.6 and 0.24.0, vLLM, llamafactory 0.9.3, ms-swift)."""


def _dtype(launch: Launch, given: TrainingArguments) -> Iterator[Wish]:
    for name in DTYPES:
        found = given.get(name)
        if found is not None and found.text in ("bfloat16", "bf16"):
            who = "vllm" if launch.target.framework == "vllm" and name == "dtype" else "program"
            yield Wish("bf16", who, found.shown, found.location, _instead(found.location))


def _accelerate(launch: Launch) -> Iterator[Wish]:
    layer = launch.layer("accelerate")
    if layer is None:
        return
    option = layer.option("mixed_precision")
    if option is not None:
        if option.value in ("bf16", "fp8"):
            place = launch.command.locate(option.span)
            edits = _instead(place) if option.value == "bf16" else ()
            yield Wish(option.value, "accelerate", f"{option.flag} {option.value}", place, edits)
        return
    value = layer.config.get("mixed_precision") if layer.config is not None else None
    at = layer.config.locate("mixed_precision") if layer.config is not None else None
    if isinstance(value, str) and value in ("bf16", "fp8") and at is not None:
        edits = _instead(at) if value == "bf16" else ()
        yield Wish(value, "accelerate", f"mixed_precision: {value}", at, edits)


def _deepspeed(case: Case, launch: Launch) -> Iterator[Wish]:
    config = deepspeed_file(case, launch)
    if config is None:
        return
    for name in ("bf16", "bfloat16"):
        at = config.locate(name, "enabled")
        if config.get(name, "enabled") is True and at is not None:
            yield Wish("bf16", "deepspeed", f"{name}.enabled in {config.name}", at)


def _program(launch: Launch) -> Iterator[Wish]:
    program = launch.target.program
    if isinstance(program, Unknown):
        return
    for seen in program.all("from-pretrained"):
        if _OWN_TYPE.search(seen.detail):
            yield Wish("bf16", "program", "a model in bfloat16", program.locate(seen))


def _instead(place: Location) -> tuple[Edit, ...]:
    """An edit that writes fp16 where bf16 stands (float16 for bfloat16), when it stands there once."""
    text = place.source.slice(place.span)
    found = re.findall(r"bf16|bfloat16", text)
    if len(found) != 1:
        return ()
    start = place.span.start + text.index(found[0])
    return (replace(place.source, Span(start, start + len(found[0])), _FP16[found[0]]),)


def _finding(case: Case, wish: Wish, gpus: tuple[Gpu, ...]) -> Finding:
    major, minor = NEEDED[wish.precision]
    severity, effect = _effect(case, wish)
    fix = Fix("switch tf32 off") if wish.precision == "tf32" else Fix("use fp16", wish.edits)
    return report(
        RULE,
        f"{wish.shown} on {shown_gpus(gpus)}: {wish.precision} needs compute capability {major}.{minor}{effect}.",
        wish.location,
        severity=severity,
        fix=fix,
    )


def _effect(case: Case, wish: Wish) -> tuple[Severity, str]:
    """How bad it is, and what happens."""
    if wish.precision == "tf32":
        return Severity.ERROR, ', and the Trainer stops with "--tf32 requires Ampere or a newer GPU arch"'
    if wish.precision == "fp8":
        return Severity.ERROR, ", and accelerate trains in fp16 instead"
    vllm = case.facts.package_version("vllm")
    if wish.who == "vllm" and isinstance(vllm, str) and is_before(vllm, *VLLM_SEEN):
        return (
            Severity.ERROR,
            ', and vLLM stops with "Bfloat16 is only supported on GPUs with compute capability of at least 8.0"',
        )
    torch = case.facts.package_version("torch")
    emulated = None if isinstance(torch, Unknown) else is_before(torch, *EMULATED_SINCE) is False
    if wish.who == "trainer":
        transformers = case.facts.package_version("transformers")
        own = None if isinstance(transformers, Unknown) else is_before(transformers, *ASKS_TORCH_SINCE)
        if own or (own is False and emulated is False):
            return Severity.ERROR, ', and the Trainer stops with "Your setup doesn\'t support bf16/gpu"'
    if wish.who == "accelerate" and emulated is False:
        return Severity.ERROR, ": accelerate refuses it or goes on in fp32"
    if wish.who == "deepspeed" and emulated is False and _refuses_bf16(case):
        return Severity.ERROR, ', and DeepSpeed stops with "Type bf16 is not supported on your device"'
    accepted = f": torch {torch} accepts it and emulates it" if emulated else ": it is refused, or emulated"
    return Severity.WARNING, f"{accepted} without the tensor cores, which is slower than fp16"


def _refuses_bf16(case: Case) -> bool:
    """Whether DeepSpeed asks before it trains in bf16 (0.16.9 does, 0.15.4 does not)."""
    deepspeed = case.facts.package_version("deepspeed")
    return isinstance(deepspeed, str) and is_before(deepspeed, 0, 16, 9) is False
