"""A launcher is given a console command or a shell script where it wants a Python file."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.launch import (
    LAUNCHER_COMMANDS,
    LLAMAFACTORY_COMMANDS,
    console_command,
    is_interactive_command,
    remove_before,
    replace_words,
    script_name,
    typed_rank_layers,
    version_at_least,
)
from mgpu_doctor.authoring import (
    Case,
    Example,
    Finding,
    Fix,
    Launch,
    Layer,
    Reference,
    Rule,
    Severity,
    Signature,
    insert,
    report,
)

RULE = Rule(
    code="MGD103",
    slug="console-script-under-launcher",
    title="A console command stands where a Python file is wanted",
    severity=Severity.ERROR,
    summary="The launcher hands a console command's name to Python as a file in the working directory.",
    why=(
        "accelerate, torchrun and deepspeed start `python FILE` for each rank. They do not look on PATH: with "
        "`torchrun pytest` Python answers \"can't open file 'pytest'\". Launch the module with `-m`, or tell the "
        "launcher with `--no_python` that it is a program of its own."
    ),
    bad=(
        Example("LLaMA-Factory's command", "accelerate launch --num_processes 4 llamafactory-cli train sft.yaml"),
        Example("with torchrun", "torchrun --nproc_per_node 2 llamafactory-cli train sft.yaml"),
        Example("with deepspeed", "deepspeed --num_gpus 2 llamafactory-cli train --stage sft"),
        Example("tests", "torchrun --nproc_per_node 2 pytest tests/test_ranks.py", facts=None),
        Example("a command with a launcher of its own", "torchrun --nproc_per_node 8 swift sft --model m"),
        Example("a shell script", "deepspeed --num_gpus 4 run.sh", files={"run.sh": "python a.py\n"}),
    ),
    good=(
        Example("a command that trains by itself", "NPROC_PER_NODE=8 swift sft --model m"),
        Example("the module", "accelerate launch --num_processes 4 -m llamafactory.launcher sft.yaml"),
        Example("a program of its own", "torchrun --nproc_per_node 2 --no_python pytest tests/test_ranks.py"),
        Example(
            "a file of that name lies there",
            "torchrun --nproc_per_node 2 pytest",
            files={"pytest": "print(1)\n"},
        ),
        Example("a name that nobody knows", "torchrun --nproc_per_node 2 trainer --lr 1", files={"trainer": "pass\n"}),
        Example("the path of a script", "torchrun --nproc_per_node 2 /opt/tools/run_all --lr 1"),
        Example(
            "the command without a launcher", "llamafactory-cli train sft.yaml", files={"sft.yaml": "stage: sft\n"}
        ),
    ),
    sources=(
        Reference(
            "torch 2.13.0, distributed/run.py config_from_args()",
            "without --no-python the entry point is sys.executable with the script's path as it is",
        ),
        Reference(
            "accelerate 1.7.0, utils/launch.py; deepspeed 0.16.9, launcher/launch.py",
            "both start [python, -u, script]; --no_python leaves the interpreter out",
        ),
    ),
    fix="Launch the module with `-m`",
    fixable=True,
    signatures=(
        Signature(
            r"can't open file '(?:[^']*/)?(?:llamafactory-cli|lmf|accelerate|torchrun|deepspeed|swift|axolotl"
            r"|trl|pytest|vllm|lm_eval|lm-eval|tune|litgpt)': \[Errno 2\]",
            "Python 3.11 under accelerate 1.7.0 and torchrun (torch 2.13.0)",
            "/opt/env/bin/python: can't open file '/home/me/llamafactory-cli': [Errno 2] No such file or directory",
        ),
    ),
)

_MODULES = {
    "pytest": "pytest",
    "py.test": "pytest",
    "vllm": "vllm.entrypoints.cli.main",
    "lm_eval": "lm_eval",
    "lm-eval": "lm_eval",
    "pip": "pip",
}
"""Console commands whose package can be run with -m."""

_LAUNCH_THEMSELVES = frozenset({"trl", "axolotl", "tune", "swift", "megatron"})
"""Commands that start their own ranks: under a launcher there would be too many."""


def find(case: Case) -> Iterator[Finding]:
    """One finding for each launch whose script is a console command or a shell script."""
    for launch in case.launches:
        layers = typed_rank_layers(launch)
        word = launch.target.word
        if not layers or word is None or is_interactive_command(launch):
            continue
        name = _command(case, launch)
        if name is not None:
            yield report(
                RULE,
                f"{name} is a command on PATH, but {layers[-1].launcher} takes it for a Python file in the working "
                'directory: every rank ends with "can\'t open file".',
                launch.command.locate(word.span),
                fix=_fix(case, launch, layers[-1], name),
            )
        elif _is_shell_script(launch):
            yield report(
                RULE,
                f"{launch.target.value} is a shell script, but {layers[-1].launcher} gives it to Python: every rank "
                "ends with a SyntaxError.",
                launch.command.locate(word.span),
                fix=_without_python(launch, layers[-1]),
            )


def _command(case: Case, launch: Launch) -> str | None:
    name = console_command(case, launch)
    return None if name in LAUNCHER_COMMANDS else name


def _is_shell_script(launch: Launch) -> bool:
    name = script_name(launch)
    return name is not None and name.endswith((".sh", ".bash"))


def _fix(case: Case, launch: Launch, layer: Layer, name: str) -> Fix:
    word, behind = launch.target.word, launch.target.argument_words
    assert word is not None
    switch = "--module" if layer.launcher == "deepspeed" else "-m"
    module, last = _MODULES.get(name), word
    if name in LLAMAFACTORY_COMMANDS:
        trains = bool(behind) and behind[0].value == "train"
        old = version_at_least(case.knowledge.release("llamafactory").version, 0, 8) is False
        if trains and not old:
            module, last = "llamafactory.launcher", behind[0]
    if name in _LAUNCH_THEMSELVES:
        return _alone(launch, name)
    if module is None:
        return _without_python(launch, layer)
    edits = replace_words(launch, word, last, f"{switch} {module}")
    return Fix(f"launch the module: {switch} {module}", edits)


def _alone(launch: Launch, name: str) -> Fix:
    """Leave the launcher out; ms-swift takes the number of processes from a variable."""
    word, outer = launch.target.word, typed_rank_layers(launch)[0]
    assert word is not None
    count = launch.processes_per_node.known
    text = ""
    if name in {"swift", "megatron"} and count is not None:
        text = f"{'env ' if launch.command.wrappers else ''}NPROC_PER_NODE={count} "
    return Fix(
        f"leave the launcher out: {name} starts its own", remove_before(launch, outer.command_words[0], word, text)
    )


def _without_python(launch: Launch, layer: Layer) -> Fix:
    title = "tell the launcher that it is no Python file: --no_python"
    last = layer.command_words[-1]
    if last.origin is not None:
        return Fix(title)
    text = " --use_env --no_python" if layer.launcher == "torch.distributed.launch" else " --no_python"
    return Fix(title, (insert(launch.command.source, last.span.end, text),))
