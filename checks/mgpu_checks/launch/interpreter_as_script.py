"""A launcher is given ``python train.py``: it takes ``python`` for the script."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.launch import remove_before, script_name, typed_rank_layers
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
    Word,
    report,
)

RULE = Rule(
    code="MGD104",
    slug="interpreter-as-script",
    title="The interpreter stands where the script is wanted",
    severity=Severity.ERROR,
    summary="The launcher starts Python itself and takes the word `python` for the script's name.",
    why=(
        "accelerate, torchrun and deepspeed put the interpreter in front of the script themselves. With "
        "`accelerate launch python train.py` every rank runs `python python train.py` and ends with "
        "\"can't open file 'python'\", or, given a path, with a SyntaxError over the interpreter's binary."
    ),
    bad=(
        Example("accelerate", "accelerate launch --num_processes 4 python train.py --lr 1e-4"),
        Example("torchrun with options", "torchrun --nproc_per_node 2 python3 -u train.py"),
        Example("a module", "torchrun --nproc_per_node 2 python -m mytrain.run"),
        Example("deepspeed and a module", "deepspeed --num_gpus 2 python -m mytrain.run", facts=None),
        Example("a path", "accelerate launch --multi_gpu /opt/env/bin/python3.11 train.py"),
    ),
    good=(
        Example("the script alone", "accelerate launch --num_processes 4 train.py"),
        Example("told so", "torchrun --nproc_per_node 2 --no_python python train.py"),
        Example("the interpreter starts the launcher", "python -m torch.distributed.run --nproc_per_node 2 train.py"),
        Example("a script with such a name", "torchrun --nproc_per_node 2 python_bench.py"),
    ),
    sources=(
        Reference(
            "accelerate 1.7.0, utils/launch.py prepare_simple_launcher_cmd_env()",
            "cmd = [sys.executable], then the script, unless --no_python",
        ),
        Reference(
            "torch 2.13.0, distributed/run.py config_from_args(); deepspeed 0.16.9, launcher/launch.py main()",
            "both put sys.executable in front of the script",
        ),
    ),
    fix="Leave the interpreter out",
    fixable=True,
    signatures=(
        Signature(
            r"can't open file '(?:[^']*/)?python[\d.]*': \[Errno 2\]",
            "Python 3.11 under accelerate 1.7.0 and torchrun (torch 2.13.0)",
            "/opt/env/bin/python: can't open file '/home/me/python': [Errno 2] No such file or directory",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each launch whose script is a Python interpreter."""
    for launch in case.launches:
        name = script_name(launch)
        word = launch.target.word
        if name is None or word is None or not _is_interpreter(name):
            continue
        layer = typed_rank_layers(launch)[-1]
        yield report(
            RULE,
            f"{layer.launcher} starts Python itself and takes {launch.target.value} for the script: every rank runs "
            f"`python {launch.target.value} …`.",
            launch.command.locate(word.span),
            fix=_fix(launch, layer, word),
        )


def _is_interpreter(name: str) -> bool:
    stem = name.removesuffix(".exe")
    for start in ("python", "pypy"):
        if stem.startswith(start):
            tail = stem[len(start) :]
            return not tail or tail.replace(".", "").isdigit()
    return False


def _fix(launch: Launch, layer: Layer, word: Word) -> Fix:
    title = "leave the interpreter out"
    for behind in launch.target.argument_words:
        text = behind.value
        if text == "-m":
            words = launch.target.argument_words
            following = words[words.index(behind) + 1 :]
            if not following:
                return Fix(title)
            switch = "--module " if layer.launcher == "deepspeed" else "-m "
            return Fix(title, remove_before(launch, word, following[0], switch))
        if text is None or not text.startswith("-"):
            return Fix(title, remove_before(launch, word, behind))
        if text not in {"-u", "-B", "-O", "-s", "-I", "-E"}:
            return Fix(title)
    return Fix(title)
