"""Flash attention is asked for and the package flash-attn is not installed."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.stack import is_here
from mgpu_checks.stack.attention import Request, requests
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    is_before,
    report,
)

PACKAGES = {"torch": "2.6.0+cu124", "transformers": "4.52.4", "accelerate": "1.7.0", "llamafactory": "0.9.3"}

RULE = Rule(
    code="MGD505",
    slug="flash-attn-missing",
    title="flash-attn is not installed",
    severity=Severity.ERROR,
    summary="The job asks for FlashAttention-2, which needs the package flash-attn, and that is not installed.",
    why=(
        'transformers stops with an ImportError while it loads the model ("the package flash_attn seems to be not '
        'installed"). LLaMA-Factory only warns "FlashAttention-2 is not installed" '
        "and goes on with another attention: slower, and with more memory than planned."
    ),
    bad=(
        Example(
            "an option of the script",
            "torchrun --nproc_per_node 4 sft.py --attn_implementation flash_attention_2",
        ),
        Example(
            "in the program",
            "torchrun --nproc_per_node 4 train.py",
            files={
                "train.py": "from transformers import AutoModelForCausalLM\n"
                'model = AutoModelForCausalLM.from_pretrained("org/m", attn_implementation="flash_attention_2")\n'
            },
        ),
        Example("LLaMA-Factory's option", "llamafactory-cli train --stage sft --flash_attn fa2"),
        Example(
            "FlashAttention 1",
            "torchrun --nproc_per_node 4 sft.py --attn_implementation flash_attention_2",
            facts={"packages": {**PACKAGES, "flash-attn": "1.0.9"}},
        ),
        Example(
            "LLaMA-Factory's file",
            "llamafactory-cli train sft.yaml",
            files={"sft.yaml": "stage: sft\nflash_attn: fa2\n"},
        ),
    ),
    good=(
        Example(
            "installed",
            "torchrun --nproc_per_node 4 sft.py --attn_implementation flash_attention_2",
            facts={"packages": {**PACKAGES, "flash-attn": "2.7.4.post1"}},
        ),
        Example("another attention", "torchrun --nproc_per_node 4 sft.py --attn_implementation sdpa"),
        Example("LLaMA-Factory chooses", "llamafactory-cli train --stage sft --flash_attn auto"),
        Example(
            "nothing is known about the machine",
            "torchrun --nproc_per_node 4 sft.py --attn_implementation flash_attention_2",
            facts=None,
        ),
        Example(
            "a kernel from the hub takes its place",
            "torchrun --nproc_per_node 4 sft.py --attn_implementation flash_attention_2",
            facts={"packages": {"torch": "2.8.0", "transformers": "4.57.6", "kernels": "0.9.0"}},
        ),
        Example(
            "only where it is there",
            "torchrun --nproc_per_node 4 train.py",
            files={
                "train.py": "from transformers import AutoModel\n"
                "from transformers.utils import is_flash_attn_2_available\n"
                'kind = "flash_attention_2" if is_flash_attn_2_available() else "sdpa"\n'
                'model = AutoModel.from_pretrained("org/m", attn_implementation=kind)\n'
            },
        ),
    ),
    sources=(
        Reference(
            "transformers 4.52.4, modeling_utils.py _check_and_enable_flash_attn_2()",
            "raises ImportError when flash_attn is not installed",
        ),
        Reference(
            "transformers 4.45.2, modeling_utils.py _check_and_enable_flash_attn_2()",
            "the same for a flash_attn older than 2.1.0",
        ),
        Reference(
            "transformers 4.56.2 and 4.57.6, modeling_utils.py",
            "falls back to a kernel from the hub when the package kernels is installed",
        ),
        Reference(
            "llamafactory 0.9.3, model/model_utils/attention.py configure_attn_implementation()",
            'fa2 without flash-attn: warns "FlashAttention-2 is not installed." and leaves the attention as it is',
        ),
    ),
    fix="install flash-attn, or choose sdpa",
    fixable=True,
    signatures=(
        Signature(
            r"the package flash_attn seems to be not installed|you need flash_attn package version to be greater or",
            "transformers 4.45.2 and 4.52.4, modeling_utils.py _check_and_enable_flash_attn_2()",
            "ImportError: FlashAttention2 has been toggled on, but it cannot be used due to the following error: the "
            "package flash_attn seems to be not installed. Please refer to the documentation of "
            "https://huggingface.co/docs/transformers/perf_infer_gpu_one#flashattention-2 to install Flash "
            "Attention 2.",
        ),
        Signature(
            r"^ModuleNotFoundError: No module named 'flash_attn'",
            "Python 3.11, a program that imports flash_attn itself",
            "ModuleNotFoundError: No module named 'flash_attn'",
        ),
    ),
)

OLDEST = (2, 1)
KERNELS_SINCE = (4, 56)


def find(case: Case) -> Iterator[Finding]:
    """Requests for FlashAttention-2 on a machine whose packages are known and lack it."""
    asked = [request for launch, request in requests(case.launches) if is_here(case, launch)]
    if not asked:
        return
    packages = case.require(case.facts.packages)
    if not {"torch", "transformers"} & set(packages):
        return
    installed = packages.get("flash-attn")
    others = any(name.startswith("flash-attn") and name != "flash-attn" for name in packages)
    if others or (installed is not None and is_before(installed, *OLDEST) is not True):
        return
    if "kernels" in packages and is_before(packages.get("transformers"), *KERNELS_SINCE) is False:
        return
    for request in asked:
        yield _finding(request, installed, _may_be_installed(case))


def _may_be_installed(case: Case) -> bool:
    """Whether flash-attn could run here: no GPU is known to be older than Ampere."""
    gpus = () if isinstance(case.facts.gpus, Unknown) else case.facts.gpus
    capabilities = [gpu.compute_capability for gpu in gpus if not isinstance(gpu.compute_capability, Unknown)]
    return all(capability >= (8, 0) for capability in capabilities)


def _finding(request: Request, installed: str | None, other_way: bool) -> Finding:
    if request.severity is Severity.ERROR:
        effect = "transformers stops with an ImportError while it loads the model"
    else:
        effect = "LLaMA-Factory warns and runs with another attention"
    lack = (
        "is not installed" if installed is None else f"is {installed}, older than the 2.1.0 that transformers asks for"
    )
    ways = (Fix("install flash-attn", commands=("pip install flash-attn --no-build-isolation",)),) if other_way else ()
    return report(
        RULE,
        f"{request.shown} needs flash-attn, which {lack}: {effect}.",
        request.location,
        severity=request.severity,
        fix=Fix("use torch's own attention (sdpa)", request.edits),
        alternatives=ways,
    )
