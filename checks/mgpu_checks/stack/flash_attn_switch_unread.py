"""An environment variable that should switch flash attention, which nothing reads."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.stack import is_machine_alone
from mgpu_doctor.authoring import (
    Case,
    Command,
    Edit,
    Example,
    Finding,
    Fix,
    Launch,
    Reference,
    Rule,
    Severity,
    Span,
    Unknown,
    Variable,
    delete_words,
    insert,
    pattern,
    replace,
    report,
)

RULE = Rule(
    code="MGD508",
    slug="flash-attn-switch-unread",
    title="Nothing reads this flash-attention switch",
    severity=Severity.WARNING,
    summary="A variable such as TRANSFORMERS_NO_FLASH_ATTENTION is set, but no library reads it.",
    why=(
        "transformers, accelerate, DeepSpeed and LLaMA-Factory choose the attention in the program, not by a "
        "variable: LLaMA-Factory by `--flash_attn auto|disabled|sdpa|fa2`, transformers by `attn_implementation` "
        "(`eager`, `sdpa`, `flash_attention_2`) where the model is loaded. With the variable alone nothing changes, so "
        "that the failure that it should avoid comes back."
    ),
    bad=(
        Example(
            "in front of LLaMA-Factory",
            "TRANSFORMERS_NO_FLASH_ATTENTION=1 accelerate launch --multi_gpu --num_processes 4 "
            "-m llamafactory.launcher --stage sft --do_train --model_name_or_path org/model",
        ),
        Example("exported", "export TRANSFORMERS_NO_FLASH_ATTENTION=1\ntorchrun --nproc_per_node 4 train.py"),
        Example("a machine of which nothing is known", "HF_USE_FLASH_ATTENTION=0 python train.py", facts=None),
        Example(
            "inside a long line",
            "CUDA_VISIBLE_DEVICES=0 DISABLE_FLASH_ATTENTION=1 llamafactory-cli chat --model_name_or_path org/model",
        ),
    ),
    good=(
        Example("LLaMA-Factory's own option", "llamafactory-cli train --flash_attn disabled --stage sft"),
        Example("a variable that flash-attn reads", "FLASH_ATTENTION_DETERMINISTIC=1 torchrun train.py"),
        Example("one of its build", "FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE pip install flash-attn"),
        Example(
            "the script reads it",
            "TRANSFORMERS_NO_FLASH_ATTENTION=1 torchrun train.py",
            files={"train.py": "import os\nslow = os.environ.get('TRANSFORMERS_NO_FLASH_ATTENTION')\n"},
        ),
        Example("a general name and somebody's own script", "DISABLE_FLASH_ATTENTION=1 torchrun train.py"),
    ),
    sources=(
        Reference(
            "transformers 4.40.2 … 5.23.0, accelerate 0.20.3 … 1.15.0, deepspeed 0.9.5 … 0.19.8, "
            "llamafactory 0.7.1 … 0.9.5, huggingface_hub 0.20.3 … 2.4.0",
            "no source holds TRANSFORMERS_NO_FLASH_ATTENTION or a name like it",
        ),
        Reference("llamafactory 0.9.3, hparams/model_args.py", "flash_attn is auto, disabled, sdpa or fa2"),
        Reference(
            "transformers 4.52.4, modeling_utils.py from_pretrained()", "attn_implementation chooses the attention"
        ),
    ),
    fix="use --flash_attn (LLaMA-Factory) or attn_implementation (transformers)",
    fixable=True,
)

OF_LIBRARIES = pattern(
    r"(?:TRANSFORMERS?|HF|HUGGING_?FACE|ACCELERATE|LLAMA_?FACTORY|DEEPSPEED)_(?:\w+_)?"
    r"(?:FLASH_?ATT\w*|FA2?|ATTN_IMPL\w*|ATTENTION_IMPL\w*)(?:_\w+)?"
)
"""Names that say whose switch they would be."""

GENERAL = pattern(
    r"(?:NO|DISABLE|USE|ENABLE|FORCE)_FLASH_?(?:ATTN|ATTENTION|ATT)(?:_?2)?"
    r"|FLASH_?(?:ATTN|ATTENTION)(?:_?2)?(?:_(?:DISABLED?|ENABLED?|OFF|ON))?"
)
"""Names that a program of somebody's own may well read: reported only where the program is a known framework's."""

OFF_WORDS = ("NO_", "DISABLE", "_OFF")


def find(case: Case) -> Iterator[Finding]:
    """Such names in the environment of each launch."""
    seen: set[tuple[str, Span] | str] = set()
    for launch in case.launches:
        for variable in launch.command.environment:
            if not _is_unread(case, launch, variable.name):
                continue
            at = variable.location
            key: tuple[str, Span] | str = variable.name if at is None else (at.source.name, at.span)
            if key not in seen:
                seen.add(key)
                yield _finding(launch, variable)
        yield from _inherited(case, launch, seen)
    if is_machine_alone(case):
        yield from _inherited(case, None, seen)


def _inherited(case: Case, launch: Launch | None, seen: set[tuple[str, Span] | str]) -> Iterator[Finding]:
    environment = case.facts.environment
    if isinstance(environment, Unknown) or (launch is not None and launch.command.unset_all):
        return
    for name in sorted(environment):
        if launch is not None and launch.command.variable(name) is not None:
            continue
        if name not in seen and _is_unread(case, launch, name):
            seen.add(name)
            fix = Fix("choose the attention in the program", commands=(f"unset {name}",))
            yield report(RULE, _message(launch, name), subject=f"{name} in the environment", fix=fix)


def _is_unread(case: Case, launch: Launch | None, name: str) -> bool:
    """Whether a name is such a switch and neither a library nor, as far as it can be read, the program reads it."""
    known_framework = launch is not None and launch.target.framework is not None
    if not (OF_LIBRARIES.fullmatch(name) or (known_framework and GENERAL.fullmatch(name))):
        return False
    readers = case.knowledge.variable_readers(name)
    if readers or name in case.knowledge.known_variables():
        return False
    if launch is None:
        return True
    program = launch.target.program
    return isinstance(program, Unknown) or name not in program.source.text


def _message(launch: Launch | None, name: str) -> str:
    start = f"Nothing reads {name}"
    wanted = "disabled" if _says_no(name) else "fa2"
    if launch is not None and launch.target.framework == "llamafactory":
        return f"{start}: the attention stays as it was. LLaMA-Factory's switch is --flash_attn {wanted}."
    named = "eager or sdpa" if wanted == "disabled" else "flash_attention_2"
    return (
        f"{start}: the attention stays as it was. transformers takes attn_implementation ({named}) in from_pretrained."
    )


def _says_no(name: str) -> bool:
    return any(word in name for word in OFF_WORDS)


def _finding(launch: Launch, variable: Variable) -> Finding:
    at = variable.location
    if at is None:
        return report(RULE, _message(launch, variable.name), subject=f"{variable.name} in the environment")
    edits = [_removal(variable)]
    title = f"remove {variable.name}"
    if _takes_option(launch):
        wanted = "disabled" if _says_no(variable.name) else "fa2"
        edits.append(insert(launch.command.source, launch.command.words[-1].span.end, f" --flash_attn {wanted}"))
        title = f"use --flash_attn {wanted} instead"
    return report(RULE, _message(launch, variable.name), at, fix=Fix(title, tuple(edits)))


def _takes_option(launch: Launch) -> bool:
    """Whether LLaMA-Factory's option can be put behind the command's last word."""
    command: Command = launch.command
    target = launch.target
    return (
        target.framework == "llamafactory"
        and target.argument("flash_attn") is None
        and not target.configs
        and bool(target.arguments)
        and all(word.origin is None for word in command.words)
    )


def _removal(variable: Variable) -> Edit:
    """Takes the assignment out; a line that only exports it goes as a whole."""
    assert variable.location is not None
    source, span = variable.location.source, variable.location.span
    line = source.line_span(source.position(span.start).line)
    if source.slice(line).strip() == f"export {source.slice(span)}":
        return replace(source, Span(line.start, min(line.end + 1, len(source.text))), "")
    end = span.end
    while end < len(source.text) and source.text[end] in " \t":
        end += 1
    before = source.text[line.start : span.start]
    if not before.strip() and end > span.end:
        return replace(source, Span(span.start, end), "")
    return delete_words(source, span)
