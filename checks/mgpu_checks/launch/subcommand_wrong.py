"""LLaMA-Factory or accelerate is called with a sub-command that it does not have, or a file is made for another one."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.launch import llamafactory_launches, replace_words, version_at_least
from mgpu_doctor.authoring import (
    Case,
    Command,
    ConfigFile,
    Edit,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Layer,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    closest,
    delete_words,
    insert,
    replace,
    report,
)

_TRAIN = "model_name_or_path: m\nstage: sft\ndo_train: true\noutput_dir: out\nlearning_rate: 1.0e-4\n"

RULE = Rule(
    code="MGD117",
    slug="subcommand-wrong",
    title="The sub-command is wrong",
    severity=Severity.ERROR,
    summary="The sub-command does not exist in this release, is missing, or the file belongs to another one.",
    why=(
        "`llamafactory-cli` takes its first argument for the sub-command. Since 0.9.2 it answers an unknown one with "
        "its usage and exit status 0, so that a job script goes on as if the training had succeeded. Since 0.9.4 "
        "`eval` only raises NotImplementedError. A file with training arguments is refused by `chat`, `api` and "
        "`export`. `accelerate` starts nothing without `launch`, which must be its first argument: its parser refuses "
        "everything else."
    ),
    bad=(
        Example("a slip of the keys", "llamafactory-cli tarin sft.yaml", files={"sft.yaml": _TRAIN}),
        Example("the sub-command is missing", "llamafactory-cli sft.yaml", files={"sft.yaml": _TRAIN}),
        Example(
            "a sub-command for the module that has none",
            "accelerate launch --multi_gpu -m llamafactory.launcher train sft.yaml",
            files={"sft.yaml": _TRAIN},
        ),
        Example("a slip in accelerate's", "accelerate lanuch train.py"),
        Example("accelerate without launch", "accelerate train.py --lr 1e-4"),
        Example("options in front of launch", "accelerate --num_processes 2 launch train.py"),
        Example("options instead of a sub-command", "llamafactory-cli --stage sft --do_train true", facts=None),
        Example(
            "eval in a release that dropped it",
            "llamafactory-cli eval ev.yaml",
            facts={"packages": {"llamafactory": "0.9.4"}},
        ),
        Example("a training file for the chat", "llamafactory-cli chat sft.yaml", files={"sft.yaml": _TRAIN}),
        Example(
            "an evaluation file for training",
            "llamafactory-cli train ev.yaml",
            files={"ev.yaml": "model_name_or_path: m\ntask: mmlu_test\nn_shot: 5\nsave_dir: out\n"},
        ),
    ),
    good=(
        Example("train", "llamafactory-cli train sft.yaml", files={"sft.yaml": _TRAIN}),
        Example("the short name", "lmf version"),
        Example("accelerate's others", "accelerate config\naccelerate env\naccelerate to-fsdp2 --config_file a.yaml"),
        Example("accelerate's help", "accelerate --help"),
        Example("another program of that name", "accelerate world --fast"),
        Example(
            "eval where it still works",
            "llamafactory-cli eval ev.yaml",
            facts={"packages": {"llamafactory": "0.9.3"}},
            files={"ev.yaml": "task: mmlu_test\nsave_dir: out\n"},
        ),
        Example("not known", "llamafactory-cli $COMMAND sft.yaml"),
        Example("the chat's own file", "llamafactory-cli chat c.yaml", files={"c.yaml": "model_name_or_path: m\n"}),
        Example(
            "extra keys are allowed",
            "ALLOW_EXTRA_ARGS=1 llamafactory-cli chat sft.yaml",
            files={"sft.yaml": _TRAIN},
        ),
        Example("nothing at all prints the usage", "llamafactory-cli"),
    ),
    sources=(
        Reference(
            "accelerate 1.7.0 and 1.15.0, `accelerate lauch x.py`, `accelerate --num_processes 2 launch x.py`",
            "invalid choice: 'lauch'; invalid choice: '2'",
            ran=True,
        ),
        Reference("llamafactory 0.9.5, llamafactory-cli chta", "usage text, status 0", ran=True),
        Reference(
            "llamafactory 0.7.1, 0.8.3, 0.9.1 cli.py main()",
            "an unknown sub-command raises NotImplementedError; 0.9.2 and later print the usage",
        ),
        Reference(
            "llamafactory 0.9.4, 0.9.5 launcher.py launch()",
            'eval: NotImplementedError("Evaluation will be deprecated in the future.")',
        ),
        Reference(
            "llamafactory 0.9.3 hparams/parser.py get_infer_args(), get_eval_args()",
            "neither takes TrainingArguments; unknown keys of a file are refused without ALLOW_EXTRA_ARGS",
        ),
    ),
    fix="Name the sub-command that is meant",
    signatures=(
        Signature(
            r"^(?:NotImplementedError: )?Unknown command: \S+",
            "llamafactory 0.8.3 (NotImplementedError) to 0.9.5, cli.py",
            "Unknown command: chta.",
        ),
        Signature(
            r"NotImplementedError: Evaluation will be deprecated in the future",
            "llamafactory 0.9.5, launcher.py",
            "NotImplementedError: Evaluation will be deprecated in the future.",
        ),
    ),
)

_ALL = ("api", "chat", "env", "eval", "export", "train", "webchat", "webui", "version", "help")
_TRAINING_KEYS = (
    "do_train",
    "do_predict",
    "output_dir",
    "learning_rate",
    "num_train_epochs",
    "per_device_train_batch_size",
)
_EVALUATION_KEYS = ("task", "task_dir", "n_shot", "save_dir")
_MEANT = {
    "sft": "train",
    "dpo": "train",
    "ppo": "train",
    "pretrain": "train",
    "finetune": "train",
    "predict": "train",
    "run": "train",
    "train_bash": "train",
    "infer": "chat",
    "inference": "chat",
    "cli": "chat",
    "web": "webui",
    "board": "webui",
    "web_demo": "webchat",
    "serve": "api",
    "merge": "export",
    "evaluate": "eval",
}
"""Words that people use for a sub-command of another name."""

_ENDINGS = (".yaml", ".yml", ".json")

_ACCELERATE = frozenset(
    {"config", "env", "estimate-memory", "launch", "merge-weights", "test", "to-fsdp2", "tpu-config"}
)
"""The sub-commands of accelerate 1.15.0; earlier releases have fewer."""

_MEANT_LAUNCH = frozenset({"run", "start", "train", "exec"})


def find(case: Case) -> Iterator[Finding]:
    """One finding for each call of LLaMA-Factory with a wrong sub-command, or with one where none belongs."""
    for launch in case.launches:
        yield from _superfluous(launch)
    for command in case.commands:
        if command.name == "accelerate" and len(command.words) > 1:
            yield from _of_accelerate(command)
    for launch, layer in llamafactory_launches(case):
        if launch.command.variable("USE_V1") is not None:
            continue
        given = launch.target.subcommand
        if given is None:
            continue
        known = _known(case)
        if given not in known:
            yield _unknown(launch, layer, given, known)
        elif given == "eval" and _lacks_eval(layer):
            yield _eval(launch, layer)
        else:
            yield from _file(launch, given)


def _of_accelerate(command: Command) -> Iterator[Finding]:
    """What stands behind `accelerate` where `launch` belongs."""
    word = command.words[1]
    given, source = word.value, command.source
    if given is None or given in _ACCELERATE:
        return
    edits: tuple[Edit, ...] = ()
    if given.startswith("-"):
        later = next((other for other in command.words[2:] if other.value == "launch"), None)
        if later is None or given in {"-h", "--help"}:
            return
        message = f"accelerate's sub-command comes first: its parser refuses {given} in front of launch."
        title = "put launch directly behind accelerate"
        if word.origin is None and later.origin is None:
            edits = (insert(source, word.span.start, "launch "), delete_words(source, later.span))
    elif given.endswith(".py"):
        message = f"accelerate has no sub-command {given}: a script is started by accelerate launch."
        title = "put launch behind accelerate"
        edits = (insert(source, word.span.start, "launch "),) if word.origin is None else ()
    else:
        near = ("launch",) if given in _MEANT_LAUNCH else closest(given, _ACCELERATE, 1)
        if not near:
            return
        message = f"accelerate has no sub-command {given}: its parser stops there."
        title = f"did you mean {near[0]}?"
        edits = (replace(source, word.span, near[0]),) if word.origin is None else ()
    yield report(RULE, message, command.locate(word.span), fix=Fix(title, edits))


def _superfluous(launch: Launch) -> Iterator[Finding]:
    """The training module takes arguments, or a file, and no sub-command."""
    target = launch.target
    program = target.program
    is_script = not isinstance(program, Unknown) and program.first("run-exp") is not None
    if target.kind not in {"module", "script"} or not (target.value == "llamafactory.launcher" or is_script):
        return
    first = target.argument_words[0] if target.argument_words else None
    if first is None or first.value not in _ALL:
        return
    trains = first.value == "train"
    edits = (delete_words(launch.command.source, first.span),) if trains and first.origin is None else ()
    message = f"{target.value} takes training arguments and no sub-command: it refuses {first.value}."
    title = "leave the sub-command out" if trains else f"it only trains: call llamafactory-cli {first.value}"
    yield report(RULE, message, launch.command.locate(first.span), fix=Fix(title, edits))


def _known(case: Case) -> tuple[str, ...]:
    found = case.knowledge.subcommands("llamafactory")
    return _ALL if isinstance(found, Unknown) else tuple({*found, "eval"})


def _lacks_eval(layer: Layer) -> bool:
    release = layer.release
    return release is not None and release.certain and version_at_least(release.version, 0, 9, 4) is True


def _unknown(launch: Launch, layer: Layer, given: str, known: tuple[str, ...]) -> Finding:
    word = launch.target.subcommand_word
    assert word is not None
    if given.startswith("-") or given.endswith(_ENDINGS):
        message = f"{given} stands where the sub-command belongs: nothing is run."
        meant = _meant(launch, given)
        fix = Fix(f"name the sub-command: {meant}")
        if word.origin is None:
            fix = Fix(fix.title, (insert(launch.command.source, word.span.start, f"{meant} "),))
    else:
        message = f"llamafactory-cli has no sub-command {given}: {_reaction(layer)}."
        near = (_MEANT[given],) if given in _MEANT else closest(given, known, 1)
        edits = replace_words(launch, word, word, near[0]) if near else ()
        title = f"did you mean {near[0]}?" if near else f"use one of {', '.join(sorted(known))}"
        fix = Fix(title, edits)
    return report(RULE, message, launch.command.locate(word.span), fix=fix)


def _reaction(layer: Layer) -> str:
    version = layer.release.version if layer.release is not None else None
    if version_at_least(version, 0, 9, 2) is False:
        return "it raises NotImplementedError"
    return "it prints its usage and ends with status 0, and nothing has run"


def _meant(launch: Launch, given: str) -> str:
    """The sub-command that the first argument would suit."""
    names = {argument.name for argument in launch.target.arguments}
    if given.startswith("-"):
        names.add(given.lstrip("-").partition("=")[0].replace("-", "_"))
    return "export" if "export_dir" in names else "train"


def _eval(launch: Launch, layer: Layer) -> Finding:
    word = launch.target.subcommand_word
    assert word is not None
    version = layer.release.version if layer.release is not None else None
    return report(
        RULE,
        f"`eval` of LLaMA-Factory {version} only raises NotImplementedError: it was dropped in 0.9.4.",
        launch.command.locate(word.span),
        fix=Fix("evaluate with another tool (lm-evaluation-harness), or use a release up to 0.9.3"),
    )


def _file(launch: Launch, given: str) -> Iterator[Finding]:
    config = launch.target.config("llamafactory")
    if config is None or config.problem is not None or launch.command.variable("ALLOW_EXTRA_ARGS") is not None:
        return
    if given in {"chat", "api", "webchat", "export", "eval"}:
        key = next((key for key in _TRAINING_KEYS if config.has(key)), None)
        meant = "train"
    elif given == "train":
        key = next((key for key in _EVALUATION_KEYS if config.has(key)), None)
        meant = "eval"
    else:
        return
    if key is not None:
        yield _refused(launch, config, given, key, meant)


def _refused(launch: Launch, config: ConfigFile, given: str, key: str, meant: str) -> Finding:
    word = launch.target.subcommand_word
    assert word is not None
    place = config.locate(key)
    edits = replace_words(launch, word, word, meant) if meant == "train" else ()
    return report(
        RULE,
        f"{config.name} is made for `{meant}`: `{given}` does not know its key {key} and refuses the file.",
        launch.command.locate(word.span),
        related=() if place is None else (Evidence(f"{key} belongs to {meant}", place),),
        fix=Fix(f"call llamafactory-cli {meant}, or name a file for {given}", edits),
    )
