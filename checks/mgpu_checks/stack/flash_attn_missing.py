"""Flash attention is asked for and the package flash-attn is not installed."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_doctor.authoring import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Launch,
    Location,
    Reference,
    Rule,
    Severity,
    Span,
    Unknown,
    dataclass,
    is_before,
    pattern,
    replace,
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
)

WANTED = frozenset({"flash_attention_2", "flash_attn_2", "fa2", "flash_attn"})
KERNELS_SINCE = (4, 56)
IN_PROGRAM = pattern(r"(?:attn_implementation=['\"]?flash_attention_2['\"]?|use_flash_attention_2=True)(?:,|$)")


@dataclass(frozen=True, slots=True)
class Request:
    """Where flash attention is asked for: the words for people, the place of the value, and what would do instead."""

    shown: str
    location: Location
    value_span: Span | None
    instead: str
    severity: Severity


def find(case: Case) -> Iterator[Finding]:
    """Requests for FlashAttention-2 on a machine whose packages are known and lack it."""
    requests = [request for launch in case.launches for request in _requests(launch)]
    if not requests:
        return
    packages = case.require(case.facts.packages)
    if not {"torch", "transformers"} & set(packages) or any(name.startswith("flash-attn") for name in packages):
        return
    if "kernels" in packages and is_before(packages.get("transformers"), *KERNELS_SINCE) is False:
        return
    seen = set()
    for request in requests:
        key = (request.location.source.name, request.location.span)
        if key not in seen:
            seen.add(key)
            yield _finding(request)


def _requests(launch: Launch) -> Iterator[Request]:
    llamafactory = launch.target.framework == "llamafactory"
    name = "flash_attn" if llamafactory else "attn_implementation"
    severity = Severity.WARNING if llamafactory else Severity.ERROR
    names = [name, "attn_impl"] if launch.target.framework == "swift" else [name]
    argument = launch.target.argument(*names)
    if argument is not None and argument.value in WANTED:
        word = argument.values[0]
        place = launch.command.locate(argument.span)
        span = word.span if word.origin is None else None
        yield Request(f"{argument.flag} {argument.value}", place, span, "sdpa", severity)
    for config in launch.target.configs:
        value, place_in_file = config.get(name), config.locate(name)
        if isinstance(value, str) and value in WANTED and place_in_file is not None:
            span = config.values[(name,)].span
            yield Request(f"{name}: {value}", place_in_file, span, "sdpa", severity)
    program = launch.target.program
    if not isinstance(program, Unknown):
        for seen in program.all("from-pretrained"):
            if IN_PROGRAM.search(seen.detail):
                place = program.locate(seen)
                text = program.source.slice(seen.span)
                at = text.find("flash_attention_2")
                start = seen.span.start + at
                quoted = at > 0 and text[at - 1] in "'\""
                span = Span(start, start + len("flash_attention_2")) if quoted else None
                yield Request("attn_implementation=flash_attention_2", place, span, "sdpa", severity)


def _finding(request: Request) -> Finding:
    edits: tuple[Edit, ...] = ()
    if request.value_span is not None:
        edits = (replace(request.location.source, request.value_span, request.instead),)
    if request.severity is Severity.ERROR:
        effect = "transformers stops with an ImportError while it loads the model"
    else:
        effect = "LLaMA-Factory warns and runs with another attention"
    return report(
        RULE,
        f"{request.shown} needs flash-attn, which is not installed: {effect}.",
        request.location,
        severity=request.severity,
        fix=Fix("use torch's own attention (sdpa)", edits),
        alternatives=(Fix("install flash-attn", commands=("pip install flash-attn --no-build-isolation",)),),
    )
