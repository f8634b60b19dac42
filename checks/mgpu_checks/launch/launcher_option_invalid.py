"""A launcher's option has no value, or one that the launcher refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.launch import (
    command_name,
    is_certain,
    is_switch,
    parse_problems,
    release_name,
    stands_at,
    typed_layers,
)
from mgpu_doctor.authoring import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Launch,
    Layer,
    ParseProblem,
    Reference,
    Rule,
    Severity,
    Signature,
    Span,
    delete_words,
    pattern,
    replace,
    report,
)

RULE = Rule(
    code="MGD108",
    slug="launcher-option-invalid",
    title="The launcher refuses the option's value",
    severity=Severity.ERROR,
    summary="A launcher's option lacks its value, or has one of the wrong type or outside the choices.",
    why=(
        "The launcher's parser converts every value before anything starts: a word that is no whole number, a choice "
        "that does not exist or a value behind a switch ends the run with a usage message. A switch takes no value "
        "at all: in `--multi_gpu True train.py` the launcher takes `True` for the script."
    ),
    bad=(
        Example("no number", "torchrun --nproc-per-node two train.py"),
        Example("no whole number", "accelerate launch --num_processes 2.5 train.py"),
        Example("no such choice", "accelerate launch --mixed_precision bf61 train.py"),
        Example("no value", "accelerate launch --num_processes --multi_gpu train.py"),
        Example("the script taken for a value", "accelerate launch --num_processes 2 --config_file train.py"),
        Example("a blank behind =", "accelerate launch --multi_gpu --num_processes= 4 train.py"),
        Example("a blank behind torchrun's =", "torchrun --nproc_per_node= 4 train.py"),
        Example("nothing to run", "torchrun --nproc_per_node 4"),
        Example("a value for a switch", "accelerate launch --multi_gpu=true --num_processes 2 train.py"),
        Example("a switch with a word behind it", "accelerate launch --multi_gpu True train.py"),
        Example("nodes that are no range", "torchrun --nnodes 1-2 --nproc_per_node 8 train.py"),
        Example("a slot that is no number", "deepspeed --include localhost:0,one train.py"),
        Example("a port that is the script", "deepspeed --master_port train.py --lr 1", facts=None),
        Example("no precision of any release", "accelerate launch --mixed_precision fp32 train.py", facts=None),
    ),
    good=(
        Example("a precision of every release", "accelerate launch --mixed_precision fp8 train.py", facts=None),
        Example("numbers and choices", "accelerate launch --num_processes 2 --mixed_precision bf16 train.py"),
        Example("words that torchrun takes", "torchrun --nproc-per-node gpu --nnodes 1:2 --rdzv-backend c10d train.py"),
        Example("a value that is not known", "torchrun --nproc-per-node $NPROC train.py"),
        Example("the script's own option", "torchrun --nproc-per-node 2 train.py --mixed_precision nonsense"),
        Example("asked for help", "torchrun --help"),
        Example(
            "a launcher in a document", lint=("a.md",), files={"a.md": "```bash\ntorchrun --nproc_per_node 4\n```\n"}
        ),
        Example("a stand-in for a number", "torchrun --nproc-per-node NUM_GPUS --nnodes <N> train.py", facts=None),
        Example(
            "a synopsis",
            lint=("a.md",),
            files={"a.md": "```\ndeepspeed --autotuning=[tune|run] --bind_core_list <0-7> train.py\n```\n"},
        ),
        Example(
            "a description in a document",
            lint=("a.md",),
            files={"a.md": "```bash\ntorchrun --nproc_per_node how_many_gpus train.py\n```\n"},
        ),
        Example("a script named like a value", "accelerate launch --multi_gpu true.py"),
    ),
    sources=(
        Reference(
            "accelerate 1.7.0, commands/launch.py launch_command_parser()", "types and choices of the options", ran=True
        ),
        Reference(
            "torch 2.13.0, distributed/run.py determine_local_world_size(), parse_min_max_nnodes()",
            "Unsupported nproc_per_node value; nnodes is not in MIN:MAX format",
        ),
        Reference("deepspeed 0.16.9, launcher/runner.py parse_node_config()", "int() of every slot"),
    ),
    fix="give the value that the launcher expects",
    signatures=(
        Signature(
            r"^(?:torchrun|run\.py|launch\.py|deepspeed|runner\.py|ds|accelerate.*): error: (?:argument |the "
            r"following arguments are required: (?:training_script|user_script))",
            "accelerate 1.7.0 and 1.15.0, torch 2.13.0, deepspeed 0.16.9 and 0.19.8",
            "accelerate <command> [<args>] launch: error: argument --num_processes/--num-processes: invalid "
            "int value: 'two'",
        ),
        Signature(
            r"Unsupported nproc_per_node value",
            "torch 2.13.0, distributed/run.py determine_local_world_size()",
            "ValueError: Unsupported nproc_per_node value: two",
        ),
    ),
)

_KINDS = ("missing-value", "invalid-value", "invalid-choice", "unexpected-value", "unexpected-argument")
_PLACEHOLDER = pattern(r"[<{\[(].*[>}\])]|[A-Z][A-Z0-9_]*|\.{2,}|…|x{1,4}", re.DOTALL)
"""Stand-ins such as ``<N>`` and ``NUM_GPUS``: they are another rule's cause."""

_DESCRIPTION = pattern(r"[a-z]+(?:_[a-z]+)+")
"""``number_of_gpus``: what a document writes for a value of the reader's."""

_LOGICAL = frozenset({"true", "false", "yes", "no"})


_SETTLED = ("--mixed_precision", "--mixed-precision")
"""Options whose choices are the same in every known release (accelerate 0.20.3 to 1.15.0: no, fp16, bf16, fp8)."""


def find(case: Case) -> Iterator[Finding]:
    """Values that a launcher's parser refuses, and words behind switches."""
    for launch, layer, problem in parse_problems(case, *_KINDS):
        settled = is_certain(layer) or problem.suggestions or problem.flag in _SETTLED
        if problem.kind == "invalid-choice" and not settled:
            continue
        if _is_stand_in(launch, problem) or _is_of_another_rule(launch, problem):
            continue
        yield report(
            RULE,
            f"{command_name(layer)} refuses this: {problem.message} ({release_name(layer)}).",
            launch.command.locate(problem.span),
            fix=_fix(launch, problem),
        )
    for launch, layer, problem in parse_problems(case, "missing-target"):
        yield from _no_script(case, launch, layer, problem)
    for launch in case.launches:
        yield from _word_behind_switch(launch)


def _is_stand_in(launch: Launch, problem: ParseProblem) -> bool:
    """Whether a placeholder stands where the value belongs, also behind ``=`` or as ``<what it is>``."""
    source = launch.command.source
    written = source.slice(problem.span)
    if written.startswith("-") and "=" in written:
        written = written.partition("=")[2]
    written = written.strip("\"'")
    if _PLACEHOLDER.fullmatch(written) or (written.startswith("[") and "]" not in written):
        return True
    if source.kind in ("markdown", "rst") and _DESCRIPTION.fullmatch(written):
        return True
    return problem.kind == "missing-value" and source.text[problem.span.end :].lstrip(" \t").startswith("<")


def _is_of_another_rule(launch: Launch, problem: ParseProblem) -> bool:
    """Whether the value should be a port, or is two joined words: both have rules of their own."""
    if "\\\n" in launch.command.source.slice(problem.span):
        # Two words that a backslash without a blank has joined (MGD808).
        return True
    if problem.kind != "invalid-value" or launch.command.source.slice(problem.span).endswith(".py"):
        return False
    return (problem.flag or "").replace("-", "_").endswith("_port")


def _no_script(case: Case, launch: Launch, layer: Layer, problem: ParseProblem) -> Iterator[Finding]:
    """An option that has taken the script for its value; or, for a command that was typed, no script at all."""
    taker = next((option for option in layer.options if (option.value or "").endswith(".py")), None)
    if taker is not None:
        yield report(
            RULE,
            f"{taker.flag} lacks its value and takes {taker.value} for it: {command_name(layer)} has no script left "
            f"({release_name(layer)}).",
            launch.command.locate(taker.span),
            fix=Fix(f"give {taker.flag} its value, or leave it out"),
        )
    elif case.mode != "lint" and launch.command.source.kind == "command" and len(layer.problems) == 1:
        yield report(
            RULE,
            f"{command_name(layer)} is given nothing to run: {problem.message}.",
            launch.command.locate(layer.span),
            fix=Fix("name the script, or the module with -m"),
        )


def _fix(launch: Launch, problem: ParseProblem) -> Fix | None:
    if problem.kind == "unexpected-value" and problem.flag:
        edits: tuple[Edit, ...] = ()
        if stands_at(launch, problem.span, problem.flag):
            edits = (replace(launch.command.source, problem.span, problem.flag),)
        return Fix(f"{problem.flag} takes no value", edits)
    if problem.span.start == problem.span.end and problem.flag:
        return _close_gap(launch, problem)
    if problem.suggestions:
        edits = ()
        text = launch.command.source.slice(problem.span)
        if text and not set(text) & set("\"'$`\\"):
            edits = (replace(launch.command.source, problem.span, problem.suggestions[0]),)
        return Fix(f"write {problem.suggestions[0]}", edits)
    return None


def _close_gap(launch: Launch, problem: ParseProblem) -> Fix:
    """``--num_processes= 4``: the value stands behind a blank."""
    text = launch.command.source.text
    end = problem.span.end
    while end < len(text) and text[end] in " \t":
        end += 1
    edits: tuple[Edit, ...] = ()
    if end > problem.span.end and text[problem.span.end - 1] == "=" and text[end : end + 1].isalnum():
        edits = (replace(launch.command.source, Span(problem.span.end, end), ""),)
    return Fix(f"leave no blank behind {problem.flag}=", edits)


def _word_behind_switch(launch: Launch) -> Iterator[Finding]:
    word, layers = launch.target.word, typed_layers(launch)
    if word is None or not layers or launch.target.kind != "script" or (word.value or "").lower() not in _LOGICAL:
        return
    layer: Layer = layers[-1]
    if layer.opaque is not None or not layer.options:
        return
    last = layer.options[-1]
    if not is_switch(last.spec) or not layer.argument_words or layer.argument_words[-1].span != last.span:
        return
    edits: tuple[Edit, ...] = ()
    if stands_at(launch, word.span, word.value or ""):
        edits = (delete_words(launch.command.source, word.span),)
    yield report(
        RULE,
        f"{last.flag} takes no value: {command_name(layer)} would run {word.value!r} as the script.",
        launch.command.locate(word.span),
        fix=Fix(f"leave {word.value} out", edits),
    )
