"""An argument that the program's parser does not have: LLaMA-Factory's in this release, or a script's own."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.engine import own_config, version_of
from mgpu_doctor.authoring import (
    RANK_LAUNCHERS,
    Argument,
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Launch,
    Layer,
    Location,
    OptionSpec,
    Reference,
    Rule,
    Severity,
    Signature,
    Span,
    Unknown,
    closest,
    delete_words,
    report,
)

_RETIRED = frozenset(
    [
        "adafactor",
        "cpu_infer",
        "dispatch_batches",
        "dpo_beta",
        "dpo_ftx",
        "dpo_loss",
        "evaluation_strategy",
        "fp16_backend",
        "fp16_opt_level",
        "fsdp_min_num_params",
        "fsdp_transformer_layer_cls_to_wrap",
        "group_by_length",
        "half_precision_backend",
        "image_dir",
        "image_resolution",
        "include_inputs_for_metrics",
        "include_tokens_per_second",
        "jit_mode_eval",
        "kt_force_think",
        "kt_maxlen",
        "kt_mode",
        "kt_optimize_rule",
        "kt_use_cuda_graph",
        "logging_dir",
        "mp_parameters",
        "new_special_tokens",
        "no_cuda",
        "orpo_beta",
        "past_index",
        "per_gpu_eval_batch_size",
        "per_gpu_train_batch_size",
        "push_to_hub_model_id",
        "push_to_hub_organization",
        "push_to_hub_token",
        "ray_run_name",
        "ray_scope",
        "ray_storage_filesystem",
        "ray_storage_path",
        "reserved_label_len",
        "save_safetensors",
        "split",
        "split_batches",
        "torchdynamo",
        "tp_size",
        "tpu_metrics_debug",
        "tpu_num_cores",
        "train_mm_proj_only",
        "use_ipex",
        "use_legacy_prediction_loop",
        "use_mps_device",
        "video_resolution",
        "visual_inputs",
        "warmup_ratio",
    ]
)
"""Arguments of llamafactory 0.7.1 to 0.9.4 or transformers 4.40 to 5.6 that the latest releases no longer have."""

_GROUPS = {"train": "train", "chat": "infer", "api": "infer", "webchat": "infer", "export": "infer", "eval": "eval"}
_GPUS = frozenset({"gpus", "gpu", "gpu_id", "gpu_ids", "device", "devices", "cuda", "num_gpus", "ngpus", "n_gpu"})
"""Names under which people ask for GPUs; no release has one of them."""

_ALWAYS = frozenset({"help", "h", "local_rank", "local-rank"})
_TRAIN = (
    "llamafactory-cli train --stage sft --do_train --model_name_or_path local/model --dataset demo --template default "
)
_YAML = (
    "model_name_or_path: local/model\nstage: sft\ndo_train: true\ndataset: demo\ntemplate: default\noutput_dir: out\n"
)

_ARGPARSE = (
    "import argparse\n\nparser = argparse.ArgumentParser()\nparser.add_argument('--learning-rate', type=float)\n"
    "parser.add_argument('--shuffle', action=argparse.BooleanOptionalAction)\nargs = parser.parse_args()\n"
)

RULE = Rule(
    code="MGD115",
    slug="target-option-unknown",
    title="The program has no such argument",
    severity=Severity.ERROR,
    summary="an argument that the script, or this release of LLaMA-Factory, does not have",
    why=(
        "LLaMA-Factory parses its arguments with transformers' HfArgumentParser and stops when one is left over: "
        "'Some specified arguments are not used by the HfArgumentParser'. Every rank loads its libraries first, so the "
        "failure comes late. GPUs, for instance, are chosen with CUDA_VISIBLE_DEVICES or by the launcher; there is no "
        "`--gpus`. ALLOW_EXTRA_ARGS=1 (since 0.9.2) lets unknown ones pass, unused."
    ),
    bad=(
        Example("--gpus is no argument", _TRAIN + "--output_dir out --gpus 0,1,2,3"),
        Example("a misspelt argument", _TRAIN + "--output_dir out --per_device_train_batchsize 4"),
        Example(
            "a key in the YAML", "llamafactory-cli train sft.yaml", files={"sft.yaml": _YAML + "sft_packing: true\n"}
        ),
        Example(
            "a script's own parser",
            "torchrun --nproc-per-node 2 train.py --epoch_count 3 --learning-rat 1e-4",
            files={"train.py": _ARGPARSE},
        ),
        Example("the YAML behind an option", "llamafactory-cli train --config sft.yaml", files={"sft.yaml": _YAML}),
    ),
    good=(
        Example("every argument is known", _TRAIN + "--output_dir out --per_device_train_batch_size 4 --bf16"),
        Example("argparse takes a unique beginning", _TRAIN + "--output_dir out --per_device_train_b 4"),
        Example("dashes for underscores", _TRAIN + "--output-dir out --learning-rate 1e-4"),
        Example("unknown ones are allowed", f"ALLOW_EXTRA_ARGS=1 {_TRAIN} --output_dir out --gpus 0,1"),
        Example(
            "a YAML with known keys", "llamafactory-cli train sft.yaml", files={"sft.yaml": _YAML + "bf16: true\n"}
        ),
        Example(
            "a script that takes what it does not know",
            "torchrun --nproc-per-node 2 train.py --epoch_count 3",
            files={"train.py": _ARGPARSE.replace("parse_args", "parse_known_args")},
        ),
        Example(
            "a beginning, a complement",
            "torchrun --nproc-per-node 2 train.py --learn 1e-4 --no-shuffle",
            files={"train.py": _ARGPARSE},
        ),
        Example("another program's own argument", "torchrun --nproc-per-node 2 train.py --gpus 0,1"),
    ),
    sources=(
        Reference(
            "llamafactory 0.9.3, 0.9.5, hparams/parser.py _parse_args(), with --gpus 0,1,2,3",
            "ValueError: Some specified arguments are not used by the HfArgumentParser: ['--gpus', '0,1,2,3']",
            ran=True,
        ),
        Reference(
            "transformers 4.52.4, hf_argparser.py parse_args_into_dataclasses(), parse_dict()",
            "the parser is argparse's (unique beginnings are taken); a file's unknown keys are a ValueError",
        ),
        Reference(
            "Python 3.11, argparse.ArgumentParser.parse_args()",
            "what no declared option takes is an error: 'unrecognized arguments'; unique beginnings are taken",
        ),
        Reference("llamafactory 0.9.2 to 0.9.5, hparams/parser.py", "ALLOW_EXTRA_ARGS is read"),
    ),
    fix="Remove the argument, or spell it as the release has it",
    signatures=(
        Signature(
            r"Some specified arguments are not used by the HfArgumentParser(?!: \['[^']+\.(?:ya?ml|json)')",
            "transformers 4.52.4, hf_argparser.py; llamafactory 0.8.3 to 0.9.5, hparams/parser.py",
            "ValueError: Some specified arguments are not used by the HfArgumentParser: ['--gpus', '0,1']",
        ),
        Signature(
            r"Some keys are not used by the HfArgumentParser",
            "transformers 4.52.4, hf_argparser.py parse_dict()",
            "ValueError: Some keys are not used by the HfArgumentParser: ['shuffle_all']",
        ),
        Signature(
            r"Got unknown args, potentially deprecated arguments",
            "llamafactory 0.8.3 to 0.9.5, hparams/parser.py",
            "Got unknown args, potentially deprecated arguments: ['--gpus', '0,1']",
        ),
        Signature(
            r"\.py: error: unrecognized arguments: --(?!local[-_]rank)",
            "Python 3.11, argparse in a script",
            "train.py: error: unrecognized arguments: --epoch 3",
            weak=True,
        ),
        Signature(
            r"ValueError: remaining_argv: \[",
            "ms-swift 2.4.2 to 3.9.0, utils/run_utils.py and llm/base.py",
            "ValueError: remaining_argv: ['--lora_target_modules', 'ALL']",
        ),
        Signature(
            r"Could not override '[^']+'\.",
            "hydra-core 1.3.2, _internal/config_loader_impl.py",
            "Could not override 'trainer.n_gpu'.",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each argument or key that the parser would leave over."""
    reason = None
    seen: set[Location | None] = set()
    for launch in case.launches:
        yield from _undeclared(case, launch)
        group = _group(launch)
        if group is None or _allows_extra(case, launch):
            continue
        fields = case.knowledge.fields("llamafactory", group)
        if isinstance(fields, Unknown):
            reason = fields
            continue
        for finding in _judge(launch, _Known(case, launch, fields)):
            if finding.location not in seen:
                seen.add(finding.location)
                yield finding
    if reason is not None:
        case.require(reason)


def _group(launch: Launch) -> str | None:
    if launch.target.framework != "llamafactory":
        return None
    if launch.target.kind != "command":
        return "train" if launch.target.subcommand in (None, "train") and _starts_training(launch) else None
    return _GROUPS.get(launch.target.subcommand or "")


def _starts_training(launch: Launch) -> bool:
    if launch.target.kind == "module":
        return launch.target.value in ("llamafactory.launcher", "llamafactory.train")
    program = launch.target.program
    return not isinstance(program, Unknown) and program.first("run-exp") is not None and not program.options


def _allows_extra(case: Case, launch: Launch) -> bool:
    variable = launch.command.variable("ALLOW_EXTRA_ARGS")
    text: object = variable.text if variable is not None else case.facts.variable("ALLOW_EXTRA_ARGS")
    if variable is not None and text is None:
        return True
    return isinstance(text, str) and text.lower() in ("true", "y", "1")


class _Known:
    """The names that the parser knows, and how sure that is."""

    def __init__(self, case: Case, launch: Launch, fields: tuple[OptionSpec, ...]) -> None:
        self.release = case.knowledge.release("llamafactory")
        transformers = case.knowledge.release("transformers")
        self.certain = self.release.certain and transformers.certain
        self.names = frozenset(spec.dest for spec in fields)
        self.flags = (
            frozenset(flag.lstrip("-").replace("-", "_") for spec in fields for flag in spec.flags) | self.names
        )
        self.older = frozenset() if self.certain else _RETIRED
        self.own_checkout = launch.target.kind == "script"
        self.only_text = case.mode == "lint" and not self.certain

    def has_key(self, name: str) -> bool:
        return name in self.names or name in self.older

    def has_flag(self, name: str) -> bool:
        """Whether argparse takes the spelling: whole, as a unique beginning, or as a ``no_`` complement."""
        known = self.flags | self.older
        if name in known or name in _ALWAYS or (name.startswith("no_") and name[3:] in known):
            return True
        return any(flag.startswith(name) for flag in known)

    def severity(self, name: str, similar: tuple[str, ...]) -> Severity:
        """Advice where a newer release or a changed checkout may have the name."""
        sure = self.certain or bool(similar) or name in _GPUS or not (self.only_text or self.own_checkout)
        return Severity.ERROR if sure else Severity.ADVICE

    def where(self) -> str:
        if self.release.version is None:
            return "LLaMA-Factory"
        if self.certain:
            return f"LLaMA-Factory {self.release.version}"
        return f"LLaMA-Factory up to {self.release.version}"


def _undeclared(case: Case, launch: Launch) -> Iterator[Finding]:
    """Options that a script's own argparse parser refuses, when all that it declares can be seen."""
    program = launch.target.program
    if isinstance(program, Unknown) or program.strict_options is not True or launch.target.kind == "inline":
        return
    flags = {flag for option in program.options for flag in option.flags if flag.startswith("--")}
    launchers = {flag for layer in launch.layers for flag in _launcher_flags(case, layer)}
    for argument in launch.target.arguments:
        flag = argument.flag or ""
        if not flag.startswith("--") or len(flag) < 3 or flag in ("--help", "--version") or flag in launchers:
            continue
        positive = "--" + flag.removeprefix("--no-").removeprefix("--")
        if any(known.startswith(flag) for known in flags) or positive in flags or argument.name == "local_rank":
            continue
        similar = closest(flag, flags)
        place = launch.command.locate(argument.span)
        edits: tuple[Edit, ...] = ()
        if similar and place.source.slice(place.span).startswith(flag):
            edits = (Edit(place.source, Span(place.span.start, place.span.start + len(flag)), similar[0]),)
        hint = f" (did you mean {similar[0]}?)" if similar else ""
        yield report(
            RULE,
            f"{program.source.name} declares no {flag}: its argparse stops with 'unrecognized arguments'{hint}",
            place,
            fix=Fix(f"Write {similar[0]}" if similar else f"Remove {flag}", edits),
        )


def _launcher_flags(case: Case, layer: Layer) -> Iterator[str]:
    """The options of a launcher, whose place is in front of the script."""
    name = "accelerate launch" if layer.launcher == "accelerate" else layer.launcher
    specs = case.knowledge.options(name) if layer.launcher in RANK_LAUNCHERS else ()
    for spec in () if isinstance(specs, Unknown) else specs:
        yield from spec.flags


def _judge(launch: Launch, known: _Known) -> Iterator[Finding]:
    config = own_config(launch)
    if config is not None:
        yield from _keys(launch, known)
        return
    for argument in launch.target.arguments:
        if argument.name is None or argument.flag is None or not argument.flag.startswith("--"):
            continue
        if known.has_flag(argument.name):
            continue
        finding = _argument(launch, known, argument)
        if finding is not None:
            yield finding


def _argument(launch: Launch, known: _Known, argument: Argument) -> Finding | None:
    similar = closest(str(argument.name), known.flags)
    if known.own_checkout and known.only_text and not similar:
        return None
    source = launch.command.source
    flag = str(argument.flag)
    place = launch.command.locate(argument.span)
    if argument.value is not None and argument.value.endswith((".yaml", ".yml", ".json")) and not similar:
        edit = Edit(source, Span(argument.span.start, argument.values[0].span.start), "")
        message = f"{flag} is no argument of {known.where()}: its file comes first, without an option"
        return report(RULE, message, place, fix=Fix("Give the file alone", (edit,)))
    fixes = [
        Fix(
            f"Write --{name}",
            (Edit(source, Span(place.span.start, place.span.start + len(flag)), f"--{name}"),),
        )
        for name in similar
        if source.slice(place.span).startswith(flag)
    ]
    if not fixes:
        title = f"Remove {flag}" + (": choose GPUs with CUDA_VISIBLE_DEVICES" if argument.name in _GPUS else "")
        fixes = [
            Fix(title, (delete_words(source, argument.span),) if source.slice(place.span).startswith(flag) else ())
        ]
    return report(
        RULE,
        f"{flag} is no argument of {known.where()}: it refuses to start" + _did_you_mean(similar),
        place,
        severity=known.severity(str(argument.name), similar),
        evidence=[f"{known.release.package} {known.release.version}: {known.release.why}"],
        fix=fixes[0],
        alternatives=fixes[1:],
    )


def _did_you_mean(similar: tuple[str, ...]) -> str:
    return f" (did you mean --{similar[0]}?)" if similar else ""


def _keys(launch: Launch, known: _Known) -> Iterator[Finding]:
    config = own_config(launch)
    if config is None or config.source is None or config.problem is not None:
        return
    for path in config.values:
        if len(path) != 1 or known.has_key(path[0]):
            continue
        place = config.locate(path[0])
        similar = closest(path[0], known.names)
        fix = None
        if similar:
            span = config.values[path].key_span
            edit = Edit(config.source, span, similar[0]) if config.source.slice(span) == path[0] else None
            fix = Fix(f"Write {similar[0]}", () if edit is None else (edit,))
        hint = f" (did you mean {similar[0]}?)" if similar else ""
        yield report(
            RULE,
            f"{path[0]} in {config.name} is no argument of {known.where()}: it refuses to start{hint}",
            place,
            severity=known.severity(path[0], similar),
            evidence=[f"{known.release.package} {known.release.version}: {known.release.why}"],
            fix=fix or Fix(f"Remove {path[0]}"),
        )
    yield from _overrides(launch, known)


def _overrides(launch: Launch, known: _Known) -> Iterator[Finding]:
    """Words behind the file: ``name=value`` since 0.9.3, nothing before."""
    version = version_of(known.release)
    if not known.release.certain or version is None:
        return
    for argument in launch.target.arguments[1:]:
        if version < (0, 9, 3):
            message = f"words behind the file are not taken by LLaMA-Factory {known.release.version}"
        elif argument.flag is not None and argument.flag.startswith("-"):
            message = f"behind its file LLaMA-Factory takes {argument.flag.lstrip('-')}=VALUE, without dashes"
        else:
            continue
        yield report(RULE, message, _located(launch, argument), fix=Fix("Set it in the file"))
        return


def _located(launch: Launch, argument: Argument) -> Location:
    return launch.command.locate(argument.span)
