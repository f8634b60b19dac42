"""A chat template that LLaMA-Factory does not have, or that belongs to another model."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.engine import Given, training_arguments, version_of
from mgpu_doctor.authoring import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Launch,
    Reference,
    Rule,
    Severity,
    Signature,
    Span,
    closest,
    pattern,
    report,
)

_SINCE = {
    (0, 7, 1): """
    alpaca aquila atom baichuan baichuan2 belle bluelm breeze chatglm2 chatglm3 chatglm3_system chatml chatml_de
    codegeex2 cohere cpm custom dbrx deepseek deepseekcoder default empty falcon fewshot gemma intern intern2 llama2
    llama2_zh llama3 mistral olmo openchat orion phi qwen solar starchat vicuna xuanyuan xverse yayi yi yi_vl yuan
    zephyr ziya
    """,
    (0, 8, 3): "codegeex4 glm4 openchat-3.6 telechat",
    (0, 9, 0): "cpm3 llava paligemma qwen2_vl sailor",
    (0, 9, 1): """
    exaone index llava_next llava_next_llama3 llava_next_mistral llava_next_qwen llava_next_video
    llava_next_video_mistral llava_next_video_yi llava_next_yi mllama opencoder phi_small pixtral video_llava
    """,
    (0, 9, 2): """
    bailing deepseek3 granite3 marco minicpm_o minicpm_v ministral mistral_small moonlight paligemma_chat phi4
    qwen2_audio skywork_o1 telechat2
    """,
    (0, 9, 3): """
    cpm4 deepseekr1 gemma3 glmz1 granite3_vision hunyuan intern_vl kimi_vl llama4 mimo mimo_vl qwen2_omni qwen3
    seed_coder smollm smollm2
    """,
    (0, 9, 4): """
    bailing_v2 dots_ocr ernie ernie_nothink ernie_vl falcon_h1 gemma2 gemma3n glm4_5v glm4_moe glm4v gpt_oss granite4
    intern_s1 keye_vl mimo_v2 minimax1 minimax2 ministral3 qwen3_nothink qwen3_omni qwen3_omni_nothink qwen3_vl
    qwen3_vl_nothink seed_oss
    """,
    (0, 9, 5): """
    aeva gemma4 gemma4n glm4_7 glm_ocr hunyuan_small hy3 lfm2 lfm2_vl minicpm_v_4_6 phi4_mini qwen3_5 qwen3_5_nothink
    qwen3_6 youtu youtu_vl
    """,
}
"""Templates by the first of the releases 0.7.1, 0.8.3, 0.9.0 to 0.9.5 that has them (data/template.py)."""

_GONE = {
    (0, 8, 3): frozenset(["chatglm3_system", "custom"]),
    (0, 9, 5): frozenset(
        [
            "aquila",
            "atom",
            "baichuan",
            "baichuan2",
            "belle",
            "bluelm",
            "chatglm2",
            "codegeex2",
            "codegeex4",
            "cpm",
            "cpm3",
            "intern",
            "marco",
            "orion",
            "skywork_o1",
            "telechat",
            "xverse",
            "yayi",
            "ziya",
        ]
    ),
}
"""Templates by the first release that no longer has them."""

_FAMILIES = {
    r"qwen|qwq": ("qwen",),
    r"llama-?2": ("llama2",),
    r"llama-?3": ("llama3", "mllama"),
    r"llama-?4": ("llama4",),
    r"mistral|mixtral|ministral|pixtral": ("mistral", "ministral", "pixtral"),
    r"gemma": ("gemma",),
    r"chatglm|glm-?[z4]": ("chatglm", "glm"),
    r"baichuan": ("baichuan",),
    r"internlm|intern-?vl": ("intern",),
}
"""How models of a family are called, and how the names of their templates start."""

_TUNED = pattern(r"(?i)instruct|chat|[-_]it\b")

_USES = frozenset({None, "train", "chat", "api", "webchat", "export", "eval"})
_CHAT = "llamafactory-cli chat --model_name_or_path local/model --template "

RULE = Rule(
    code="MGD406",
    slug="template-mismatch",
    title="The template does not fit",
    severity=Severity.ERROR,
    summary="the chat template is not registered in this release, or belongs to another family of models",
    why=(
        "`--template` names one of the templates that LLaMA-Factory registers in its source; each release adds some. "
        "An "
        "unknown name is found out after the tokenizer has been loaded: 'Template … does not exist.' The name is the "
        "template's, not the model's: Qwen2.5 takes `qwen`, Llama 3.1 takes `llama3`."
    ),
    bad=(
        Example("a model's name", _CHAT + "qwen2.5"),
        Example("a typing error", _CHAT + "lama3"),
        Example(
            "another family's", "llamafactory-cli chat --model_name_or_path m/Qwen2.5-7B-Instruct --template llama3"
        ),
        Example(
            "newer than the release",
            _CHAT + "qwen3",
            facts={"packages": {"llamafactory": "0.9.2", "transformers": "4.49.0", "torch": "2.5.1"}},
        ),
    ),
    good=(
        Example("a registered name", _CHAT + "qwen"),
        Example(
            "two families in one name",
            "llamafactory-cli chat --model_name_or_path m/R1-Distill-Qwen-Llama-3-Chat --template qwen",
        ),
        Example("a base model takes any", "llamafactory-cli chat --model_name_or_path m/Qwen2.5-7B --template llama3"),
        Example("any release may be meant", _CHAT + "qwen3_5", facts={"packages": {"torch": "2.6.0"}}),
        Example("a value that is not known", _CHAT + "$TEMPLATE"),
        Example(
            "a checkout may register its own",
            "torchrun --nproc-per-node 2 src/train.py --template my_company --stage sft --output_dir out",
            files={"src/train.py": "from llamafactory.train.tuner import run_exp\n\nrun_exp()\n"},
        ),
    ),
    sources=(
        Reference(
            "llamafactory 0.8.3 to 0.9.5, data/template.py get_template_and_fix_tokenizer()",
            "ValueError: Template … does not exist.; the registered names were compared release by release",
        ),
    ),
    fix="Use the name that the release registers",
    signatures=(
        Signature(
            r"Template \S+ does not exist\.",
            "llamafactory 0.7.1 to 0.9.5, data/template.py get_template_and_fix_tokenizer()",
            "ValueError: Template qwen2.5 does not exist.",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each template that the release does not have."""
    for launch in case.launches:
        if launch.target.framework != "llamafactory" or launch.target.subcommand not in _USES:
            continue
        if _is_own_checkout(launch):
            continue
        given = training_arguments(launch)
        template, model = given.get("template"), given.get("model_name_or_path")
        if template is None or template.text is None:
            continue
        fault = next(_judge(case, template, template.text), None)
        if fault is None and model is not None and model.text is not None:
            fault = _other_family(template, template.text, model.text)
        if fault is not None:
            yield fault


def _is_own_checkout(launch: Launch) -> bool:
    """Whether the program is a file, beside which a changed copy of the package may lie."""
    return launch.target.kind == "script"


def _judge(case: Case, template: Given, name: str) -> Iterator[Finding]:
    release = case.knowledge.release("llamafactory")
    version = version_of(release) if release.certain else None
    if name in ("none", "None", "null"):
        return
    since = next((first for first, names in _SINCE.items() if name in names.split()), None)
    gone = next((first for first, names in _GONE.items() if name in names), None)
    if since is None:
        if version is not None and version > max(_SINCE):
            return
        known = [word for names in _SINCE.values() for word in names.split()]
        yield _report(template, name, f"no LLaMA-Factory up to 0.9.5 has a template {name}", _near(name, known))
    elif version is not None and since > (0, 8, 3) and version < since:
        message = f"the template {name} exists since LLaMA-Factory {_dotted(since)}, {release.version} is installed"
        yield _report(template, name, message, ())
    elif version is not None and gone is not None and version >= gone:
        message = f"LLaMA-Factory {_dotted(gone)} no longer has the template {name}, {release.version} is installed"
        yield _report(template, name, message, ())


def _other_family(template: Given, name: str, model: str) -> Finding | None:
    """A model that was tuned for conversations, with the template of another family."""
    base = model.rstrip("/").rsplit("/", 1)[-1]
    families = [starts for pattern, starts in _FAMILIES.items() if re.search(pattern, base, re.IGNORECASE)]
    others = [starts for starts in _FAMILIES.values() if name.startswith(starts)]
    if len(families) != 1 or not _TUNED.search(base) or not others or name.startswith(families[0]):
        return None
    return report(
        RULE,
        f"{base} was tuned with a {families[0][0]} template, {name} belongs to another family: its answers get worse",
        template.location,
        severity=Severity.WARNING,
        fix=Fix(f"Use the {families[0][0]} template of the release"),
    )


def _near(name: str, known: list[str]) -> tuple[str, ...]:
    """Names that may be meant: spelt alike, or the family that a model's name starts with."""
    similar = closest(name.replace("-", "_").replace(".", "_"), known)
    family = [word for word in known if name.lower().startswith(word) and len(word) > 1]
    return tuple(dict.fromkeys((*sorted(family, key=len, reverse=True), *similar)))[:3]


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


def _report(template: Given, name: str, message: str, similar: tuple[str, ...]) -> Finding:
    text = template.location.source.slice(template.location.span)
    at = text.rfind(name)
    fixes = []
    for other in similar:
        start = template.location.span.start + at
        edits = (Edit(template.location.source, Span(start, start + len(name)), other),) if at >= 0 else ()
        fixes.append(Fix(f"Use {other}", edits))
    hint = f" (did you mean {similar[0]}?)" if similar else ""
    return report(
        RULE,
        f"{message}: 'Template {name} does not exist.'{hint}",
        template.location,
        fix=fixes[0] if fixes else Fix("Use a template that the release has"),
        alternatives=fixes[1:],
    )
