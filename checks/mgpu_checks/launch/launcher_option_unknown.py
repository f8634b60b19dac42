"""The launcher has no such option and refuses to start."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.launch import TABLES, command_name, is_certain, parse_problems, release_name, stands_at
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
    Word,
    delete_words,
    insert,
    pattern,
    replace,
    report,
)

RULE = Rule(
    code="MGD106",
    slug="launcher-option-unknown",
    title="The launcher has no such option",
    severity=Severity.ERROR,
    summary="An option in front of the script that this launcher, in this release, does not have.",
    why=(
        "What stands between the launcher and the script is read by the launcher's own parser. It knows neither the "
        "script's options nor those of other launchers, and stops with `unrecognized arguments`. The same thing is "
        "spelt differently from launcher to launcher: `-m` of torchrun and accelerate is `--module` for deepspeed; "
        "accelerate takes no abbreviations, torchrun and deepspeed do when these are unambiguous."
    ),
    bad=(
        Example("deepspeed has no -m", "deepspeed --num_gpus 4 -m llamafactory.launcher --stage sft"),
        Example("a misspelt option", "accelerate launch --mixed_precison bf16 train.py"),
        Example("another launcher's option", "accelerate launch --nproc_per_node 4 train.py"),
        Example("accelerate's option for torchrun", "torchrun --num_processes 4 train.py"),
        Example(
            "the script's option in front of it", "torchrun --nproc_per_node 2 --output_dir out train.py --lr 1e-4"
        ),
        Example("a list of GPUs", "deepspeed --gpus 2,3 train.py"),
        Example("torchrun has no list of GPUs", "torchrun --gpus 2,3 train.py"),
        Example("precision of older releases", "accelerate launch --num_processes 2 --fp16 train.py"),
        Example("DeepSpeed's file", "accelerate launch --deepspeed ds.json --num_processes 2 train.py"),
        Example("torchrun does so anyway", "torchrun --use_env --nproc_per_node 2 train.py"),
        Example("no abbreviations", "accelerate launch --num_process 4 train.py"),
        Example("an abbreviation that is ambiguous", "torchrun --nproc 4 train.py"),
        Example(
            "an option of older releases",
            "accelerate launch --ipex train.py",
            facts={"packages": {"accelerate": "1.15.0"}},
        ),
        Example(
            "dashes in a release that has underscores",
            "torchrun --nproc-per-node 2 train.py",
            facts={"packages": {"torch": "1.13.1"}},
        ),
    ),
    good=(
        Example("the real spelling", "deepspeed --num_gpus 4 --module llamafactory.launcher --stage sft"),
        Example("an abbreviation that torchrun takes", "torchrun --nproc-per-nod 4 --nnode=1 train.py"),
        Example("dashes for underscores", "accelerate launch --num-processes 4 --mixed-precision bf16 train.py"),
        Example("the script's own options", "torchrun --nproc_per_node 2 train.py --num_processes 4 --nonsense"),
        Example("the release has it", "accelerate launch --ipex train.py", facts={"packages": {"accelerate": "1.7.0"}}),
        Example("the release is not known", "accelerate launch --ipex train.py", facts=None),
        Example("options that are not known", "torchrun $DISTRIBUTED_ARGS --whatever train.py"),
    ),
    sources=(
        Reference(
            "deepspeed 0.16.9 and 0.19.8, launcher/runner.py parse_args()",
            "there is --module and no -m: error: unrecognized arguments: -m",
            ran=True,
        ),
        Reference(
            "accelerate 1.7.0, commands/launch.py launch_command_parser()",
            "allow_abbrev=False: --num_process is refused",
            ran=True,
        ),
        Reference("torch 2.13.0, distributed/run.py get_args_parser()", "prefixes are allowed, ambiguous ones refused"),
        Reference("torch 1.13.1, distributed/run.py get_args_parser()", "options are spelt with underscores only"),
    ),
    fix="use the launcher's own spelling",
    fixable=False,
    signatures=(
        Signature(
            r"^(?:torchrun|run\.py|launch\.py|deepspeed|runner\.py|ds|Accelerate CLI tool|accelerate.*): "
            r"error: unrecognized arguments: -",
            "accelerate 1.7.0 and 1.15.0 (Accelerate CLI tool), torch 2.13.0 (torchrun), deepspeed 0.16.9 and 0.19.8",
            "Accelerate CLI tool: error: unrecognized arguments: --mixed_precison",
        ),
        Signature(
            r"^(?:torchrun|run\.py|launch\.py|deepspeed|runner\.py|ds|accelerate.*): error: ambiguous option: ",
            "torch 2.13.0, torchrun --rdzv; deepspeed 0.16.9, deepspeed --num",
            "torchrun: error: ambiguous option: --rdzv could match --rdzv-backend, --rdzv_backend",
        ),
    ),
)

_NO_OPTION = pattern(r"--(args?|options?|flags?|foo|bar|your[-_]\w*|other[-_]\w*)\d*")
"""Stand-ins of documentation."""

_DIFFERENT_VALUE = frozenset({"--gpus", "--gpu-ids", "--gpu-id", "--deepspeed", "--fsdp", "--fp16", "--bf16"})
"""Their counterparts in other launchers take another kind of value: nothing is edited."""


def find(case: Case) -> Iterator[Finding]:
    """Options that a launcher does not know, or cannot tell apart."""
    for launch, layer, problem in parse_problems(case, "unknown-option", "ambiguous-option"):
        flag = problem.flag or ""
        if not re.fullmatch(r"--?[A-Za-z][\w.-]*", flag) or _NO_OPTION.fullmatch(flag):
            continue
        if problem.kind == "ambiguous-option":
            if is_certain(layer):
                yield _ambiguous(launch, layer, problem, flag)
            continue
        elsewhere = case.knowledge.releases_with(TABLES[layer.launcher][0], flag)
        if elsewhere and not is_certain(layer):
            continue
        yield _unknown(launch, layer, problem, flag, elsewhere)


def _unknown(launch: Launch, layer: Layer, problem: ParseProblem, flag: str, elsewhere: tuple[str, ...]) -> Finding:
    message = f"{command_name(layer)} has no option {flag} ({release_name(layer)}): it stops before anything starts."
    if problem.suggestions:
        message += f" Did you mean {problem.suggestions[0]}?"
    evidence = [f"it would print: {problem.message}"]
    if elsewhere:
        package = TABLES[layer.launcher][1]
        evidence.append(f"{package} {elsewhere[0]} to {elsewhere[-1]} have it")
    return report(
        RULE,
        message,
        launch.command.locate(_flag_span(launch, problem, flag)),
        evidence=evidence,
        fix=_fix(launch, layer, problem, flag),
    )


def _ambiguous(launch: Launch, layer: Layer, problem: ParseProblem, flag: str) -> Finding:
    names = ", ".join(problem.suggestions[:4])
    behind = any(word.span == problem.span for word in launch.target.argument_words)
    message = f"{command_name(layer)} cannot tell which option {flag} is: {names} ({release_name(layer)})."
    evidence = [f"it would print: {problem.message}"]
    if behind:
        evidence.append(
            "argparse before Python 3.12.8 and 3.13.1 looks for abbreviations among the script's own arguments too"
        )
    fix = Fix(f"write {problem.suggestions[0]} in full") if behind else _fix(launch, layer, problem, flag)
    if behind:
        fix = Fix(f"write {flag}=… differently, or put -- in front of the script")
    return report(RULE, message, launch.command.locate(_flag_span(launch, problem, flag)), evidence=evidence, fix=fix)


def _flag_span(launch: Launch, problem: ParseProblem, flag: str) -> Span:
    if stands_at(launch, problem.span, flag):
        return Span(problem.span.start, problem.span.start + len(flag))
    return problem.span


def _fix(launch: Launch, layer: Layer, problem: ParseProblem, flag: str) -> Fix | None:
    special = _special(launch, layer, problem, flag)
    if special is not None:
        return special
    if not problem.suggestions:
        return _behind(launch, layer, problem, flag)
    meant = problem.suggestions[0]
    edits: tuple[Edit, ...] = ()
    if stands_at(launch, problem.span, flag) and flag.replace("_", "-") not in _DIFFERENT_VALUE:
        edits = (replace(launch.command.source, _flag_span(launch, problem, flag), meant),)
    return Fix(f"write {meant}", edits)


def _value_of(launch: Launch, layer: Layer, problem: ParseProblem) -> Word | None:
    """The word behind the option when it is read as the option's value."""
    for index, word in enumerate(layer.argument_words[:-1]):
        if word.span == problem.span:
            following = layer.argument_words[index + 1]
            taken = any(option.span.contains(following.span) for option in layer.options)
            is_option = following.shown.startswith("-")
            return None if taken or is_option or following is launch.target.word else following
    return None


def _special(launch: Launch, layer: Layer, problem: ParseProblem, flag: str) -> Fix | None:
    """Counterparts that take another kind of value, written out."""
    plain = flag.replace("_", "-")
    if not stands_at(launch, problem.span, flag) or launch.command.source.slice(problem.span) != flag:
        return None
    source, value = launch.command.source, _value_of(launch, layer, problem)
    if layer.launcher != "accelerate" and plain == "--use-env":
        return Fix("leave it out: the local rank always comes in LOCAL_RANK", (delete_words(source, problem.span),))
    if layer.launcher == "accelerate" and plain in ("--fp16", "--bf16"):
        text = f"--mixed_precision {flag[2:]}"
        return Fix(f"write {text}", (replace(source, problem.span, text),))
    if layer.launcher == "accelerate" and plain == "--deepspeed":
        text = "--use_deepspeed" + (" --deepspeed_config_file" if value is not None else "")
        return Fix(f"write {text}", (replace(source, problem.span, text),))
    if value is None or not re.fullmatch(r"\d+(,\d+)*", source.slice(value.span)):
        return None
    numbers = source.slice(value.span)
    if layer.launcher == "deepspeed" and plain in _DIFFERENT_VALUE:
        span = Span(problem.span.start, value.span.end)
        return Fix(f"write --include localhost:{numbers}", (replace(source, span, f"--include localhost:{numbers}"),))
    if plain in _DIFFERENT_VALUE and layer.launcher != "accelerate":
        count = numbers.count(",") + 1
        return Fix(f"choose GPUs with CUDA_VISIBLE_DEVICES={numbers} in front, and --nproc_per_node {count}")
    return None


def _behind(launch: Launch, layer: Layer, problem: ParseProblem, flag: str) -> Fix:
    """An option that no launcher has: most likely the script's."""
    target = launch.target.word
    title = f"put {flag} behind the script when it is the script's, else leave it out"
    if target is None or not stands_at(launch, problem.span, flag) or not stands_at(launch, target.span, target.shown):
        return Fix(title)
    value = _value_of(launch, layer, problem)
    span = Span(problem.span.start, value.span.end if value is not None else problem.span.end)
    source = launch.command.source
    text = source.slice(span)
    if "\n" in text:
        return Fix(title)
    return Fix(title, (insert(source, target.span.end, " " + text), delete_words(source, span)))
