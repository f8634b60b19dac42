"""FlashAttention-2 is asked for on a GPU for which it has no code."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.stack import failing, is_here, on_cpu, shown_gpus
from mgpu_checks.stack.attention import Request, requests
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Gpu,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    is_before,
    report,
)

_PACKAGES = {"torch": "2.4.1+cu121", "transformers": "4.45.2", "flash-attn": "2.5.6", "llamafactory": "0.9.1"}
_TURING = {
    "packages": _PACKAGES,
    "torch_cuda": "12.1",
    "gpus": [{"index": 0, "name": "Quadro RTX 5000", "compute_capability": "7.5"}],
}
_BLACKWELL = {
    "packages": {**_PACKAGES, "torch": "2.7.1+cu128"},
    "torch_cuda": "12.8",
    "gpus": [{"index": 0, "name": "NVIDIA GeForce RTX 5090", "compute_capability": "12.0"}],
}
_ASKS = "accelerate launch train.py --attn_implementation flash_attention_2"

RULE = Rule(
    code="MGD507",
    slug="flash-attn-unsupported-gpu",
    title="FlashAttention does not run on this GPU",
    severity=Severity.ERROR,
    summary="The job asks for FlashAttention-2, whose kernels refuse this GPU.",
    why=(
        "FlashAttention-2 has kernels for compute capability 8.0 and newer (Ampere, Ada, Hopper) in fp16 and bf16. On "
        "a V100, T4 or RTX 20 card the model loads, and the first step stops with "
        '"FlashAttention only supports Ampere GPUs or newer". Up to 2.7.2 it says the same on Blackwell cards. '
        "torch's own attention (`sdpa`) runs on all of them."
    ),
    bad=(
        Example("a Turing card", _ASKS, facts=_TURING),
        Example("LLaMA-Factory's option", "llamafactory-cli train --stage sft --flash_attn fa2", facts=_TURING),
        Example(
            "LLaMA-Factory's file",
            "llamafactory-cli train sft.yaml",
            files={"sft.yaml": "stage: sft\ndo_train: true\nflash_attn: fa2\n"},
            facts=_TURING,
        ),
        Example("a Blackwell card and an older flash-attn", _ASKS, facts=_BLACKWELL),
    ),
    good=(
        Example("torch's own attention", "accelerate launch train.py --attn_implementation sdpa", facts=_TURING),
        Example("an Ampere card", _ASKS, facts={"packages": _PACKAGES}),
        Example(
            "a Blackwell card and a newer flash-attn",
            _ASKS,
            facts={**_BLACKWELL, "packages": {**_PACKAGES, "torch": "2.7.1+cu128", "flash-attn": "2.8.3"}},
        ),
        Example(
            "the older card is hidden",
            f"CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=1 {_ASKS}",
            facts={
                **_TURING,
                "gpus": [
                    {"index": 0, "name": "Quadro RTX 5000", "compute_capability": "7.5"},
                    {"index": 1, "name": "NVIDIA A100", "compute_capability": "8.0"},
                ],
            },
        ),
        Example("without the package there is another fault", _ASKS, facts={**_TURING, "packages": {"torch": "2.4.1"}}),
        Example("nothing is known about the machine", _ASKS, facts=None),
    ),
    sources=(
        Reference(
            "flash-attn 2.0.0 … 2.7.2, csrc/flash_attn/flash_api.cpp mha_fwd()",
            'TORCH_CHECK(is_sm90 || is_sm8x, "FlashAttention only supports Ampere GPUs or newer.")',
        ),
        Reference(
            "flash-attn 2.7.3 … 2.8.3, csrc/flash_attn/flash_api.cpp mha_fwd()",
            "the same for compute capabilities below 8 only",
        ),
        Reference(
            "llamafactory 0.9.1 and 0.9.3, model/model_utils/attention.py configure_attn_implementation()",
            "fa2 asks whether flash-attn is installed, not whether the GPU can run it",
        ),
    ),
    fix="use torch's own attention (sdpa)",
    fixable=True,
    signatures=(
        Signature(
            r"FlashAttention only supports Ampere GPUs or newer",
            "flash-attn 2.0.0 … 2.8.3, csrc/flash_attn/flash_api.cpp",
            "RuntimeError: FlashAttention only supports Ampere GPUs or newer.",
        ),
        Signature(
            r"FlashAttention only support fp16 and bf16 data type",
            "flash-attn 2.0.0 … 2.8.3, csrc/flash_attn/flash_api.cpp",
            "RuntimeError: FlashAttention only support fp16 and bf16 data type",
        ),
    ),
)

BLACKWELL_SINCE = (2, 7, 3)


def find(case: Case) -> Iterator[Finding]:
    """Requests for FlashAttention-2 by launches whose GPUs it refuses."""
    for launch, request in requests(case.launches):
        if not is_here(case, launch) or on_cpu(launch):
            continue
        installed = case.facts.package_version("flash-attn")
        if isinstance(installed, Unknown):
            if not isinstance(case.facts.packages, Unknown):
                continue
        elif is_before(installed, 2):
            continue
        old = isinstance(installed, str) and is_before(installed, *BLACKWELL_SINCE) is True
        gpus = failing(case, launch, _refuses_new if old else _refuses)
        if gpus:
            yield _finding(request, gpus, installed if isinstance(installed, str) else None)


def _refuses(capability: tuple[int, int]) -> bool:
    return capability < (8, 0)


def _refuses_new(capability: tuple[int, int]) -> bool:
    return capability < (8, 0) or capability >= (10, 0)


def _finding(request: Request, gpus: tuple[Gpu, ...], installed: str | None) -> Finding:
    too_new = any(not isinstance(gpu.compute_capability, Unknown) and gpu.compute_capability[0] > 8 for gpu in gpus)
    name = f"flash-attn {installed}" if installed else "flash-attn 2"
    newer = Fix("install flash-attn 2.8.3 or newer", commands=("pip install -U flash-attn --no-build-isolation",))
    return report(
        RULE,
        f"{request.shown} on {shown_gpus(gpus)}: {name} has kernels for compute capability "
        f"{'8.0 to 9.0' if too_new else '8.0 and newer'}, and the first step stops with "
        '"FlashAttention only supports Ampere GPUs or newer".',
        request.location,
        fix=Fix("use torch's own attention (sdpa)", request.edits),
        alternatives=(newer,) if too_new else (),
    )
