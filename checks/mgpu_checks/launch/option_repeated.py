"""A launcher's option is given twice with different values: the last one wins."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.launch import command_name, is_switch, is_typed, stands_at, typed_layers
from mgpu_doctor.authoring import (
    Argument,
    Case,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Layer,
    Option,
    Reference,
    Rule,
    Severity,
    Unknown,
    delete_words,
    report,
)

RULE = Rule(
    code="MGD120",
    slug="option-repeated",
    title="An option is given twice",
    severity=Severity.WARNING,
    summary="The same launcher option stands twice with different values; the launcher keeps the last one.",
    why=(
        "argparse keeps the last value of an option without a word. A value that was left over from an earlier "
        "version of the command, or a second spelling of the same option (`-H` and `--hostfile`), "
        "then decides how many processes start or which port is used."
    ),
    bad=(
        Example("two counts", "torchrun --nproc_per_node 4 --nproc_per_node 8 train.py"),
        Example("two spellings", "torchrun --nproc-per-node=4 --nnodes 1 --nproc_per_node=2 train.py"),
        Example("two ports", "accelerate launch --main_process_port 29501 --main_process_port 29502 train.py"),
        Example("on several lines", "torchrun \\\n  --nproc_per_node 4 \\\n  --nproc_per_node 8 \\\n  train.py"),
        Example("a short and a long name", "deepspeed -H hosts_a --hostfile hosts_b train.py"),
        Example(
            "an argument of LLaMA-Factory",
            "llamafactory-cli train --stage sft --model_name_or_path m --stage dpo --output_dir out",
        ),
    ),
    good=(
        Example("an argument that takes several values", "llamafactory-cli train --label_names a --label_names b"),
        Example("the same value twice", "torchrun --nproc_per_node 4 --nproc_per_node 4 train.py"),
        Example("for launcher and script", "accelerate launch --mixed_precision bf16 train.py --mixed_precision fp16"),
        Example("an option that collects values", "accelerate launch --env A=1 --env B=2 train.py"),
        Example("a value that is not known", "torchrun --nproc_per_node 4 --nproc_per_node $N train.py"),
        Example("alternatives in braces", "accelerate launch --config_file=zero{1,2,3}.yaml train.py"),
        Example("a switch twice", "accelerate launch --multi_gpu --num_processes 2 --multi_gpu train.py"),
    ),
    sources=(
        Reference("CPython 3.13, Lib/argparse.py _StoreAction", "a later value replaces an earlier one"),
        Reference("transformers 4.52.4, hf_argparser.py HfArgumentParser", "it is an argparse.ArgumentParser"),
    ),
    fix="leave the earlier one out",
    fixable=True,
)


def find(case: Case) -> Iterator[Finding]:
    """Repeated options whose values differ."""
    for launch in case.launches:
        for layer in typed_layers(launch):
            for dest in dict.fromkeys(option.dest for option in layer.options):
                finding = _repeated(launch, layer, layer.options_for(dest))
                if finding is not None:
                    yield finding
        if launch.target.framework == "llamafactory":
            yield from _repeated_arguments(case, launch)


def _repeated(launch: Launch, layer: Layer, given: tuple[Option, ...]) -> Finding | None:
    if len(given) < 2 or given[0].spec.action in {"append", "append_const", "count"} or is_switch(given[0].spec):
        return None
    # An option out of a variable followed by one in the command is the usual way to override a default.
    # Words of one brace expansion stand at one place: `config{1,2}.yaml` names alternatives to a reader.
    if not all(is_typed(launch, option) for option in given) or len({option.span for option in given}) < len(given):
        return None
    if any(isinstance(option.converted, Unknown) for option in given):
        return None
    last = given[-1]
    different = tuple(option for option in given[:-1] if option.converted != last.converted)
    if not different:
        return None
    source = launch.command.source
    return report(
        RULE,
        f"{command_name(layer)} gets {different[0].flag} {different[0].value} and then {last.flag} {last.value}: "
        f"{last.value} counts.",
        launch.command.locate(different[0].span),
        related=(Evidence("this one counts", launch.command.locate(last.span)),),
        fix=Fix(
            "leave the earlier one out", tuple(delete_words(source, option.span) for option in different), safe=True
        ),
    )


def _repeated_arguments(case: Case, launch: Launch) -> Iterator[Finding]:
    """The same for LLaMA-Factory's own arguments, which argparse reads too."""
    group = "infer" if launch.target.subcommand in {"chat", "api", "webchat"} else "train"
    fields = case.knowledge.fields("llamafactory", group)
    if isinstance(fields, Unknown):
        return
    single = {spec.dest for spec in fields if spec.nargs is None and not is_switch(spec)}
    by_name: dict[str, list[Argument]] = {}
    for argument in launch.target.arguments:
        if argument.name in single and (argument.flag or "").startswith("--") and argument.value is not None:
            by_name.setdefault(argument.name or "", []).append(argument)
    for given in by_name.values():
        earlier = [argument for argument in given[:-1] if argument.value != given[-1].value]
        typed = all(stands_at(launch, argument.span, argument.flag or "") for argument in given)
        if earlier and typed and len({argument.span for argument in given}) == len(given):
            yield _argument_finding(launch, earlier, given[-1])


def _argument_finding(launch: Launch, earlier: list[Argument], last: Argument) -> Finding:
    source = launch.command.source
    return report(
        RULE,
        f"LLaMA-Factory gets {earlier[0].flag} {earlier[0].value} and then {last.flag} {last.value}: "
        f"{last.value} counts.",
        launch.command.locate(earlier[0].span),
        related=(Evidence("this one counts", launch.command.locate(last.span)),),
        fix=Fix(
            "leave the earlier one out", tuple(delete_words(source, argument.span) for argument in earlier), safe=True
        ),
    )
