"""The launcher puts its own argument in front of the one that the program reads by position."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.engine import CONFIG_ENDINGS, is_training, source_matches
from mgpu_doctor.authoring import (
    Case,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Layer,
    Location,
    Reference,
    Rule,
    Severity,
    Signature,
    insert,
    report,
)

_YAML = (
    "model_name_or_path: local/model\nstage: sft\ndo_train: true\ndataset: demo\ntemplate: default\noutput_dir: out\n"
)
_LLAMAFACTORY = "from llamafactory.train.tuner import run_exp\n\nif __name__ == '__main__':\n    run_exp()\n"
_OWN = "import sys\n\nfrom accelerate import Accelerator\n\nsettings = open(sys.argv[1]).read()\nAccelerator()\n"

RULE = Rule(
    code="MGD123",
    slug="argument-order-broken",
    title="The launcher's own argument comes first",
    severity=Severity.ERROR,
    summary="`--local_rank=N` is put before the configuration file that the program expects as its first argument",
    why=(
        "`deepspeed` (and torch.distributed.launch without --use_env) starts every rank as `script --local_rank=N your "
        "arguments`. A program that looks for its YAML in `sys.argv[1]`, as LLaMA-Factory does, finds `--local_rank=0` "
        "there, takes the file's name for an argument and stops. `--no_local_rank` leaves the arguments alone; "
        "torchrun "
        "never adds any."
    ),
    bad=(
        Example(
            "LLaMA-Factory with a YAML under deepspeed",
            "deepspeed --num_gpus 4 src/train.py sft.yaml",
            files={"src/train.py": _LLAMAFACTORY, "sft.yaml": _YAML},
        ),
        Example(
            "a program that reads sys.argv[1]",
            "deepspeed --num_gpus 4 train.py settings.json",
            files={"train.py": _OWN, "settings.json": "{}\n"},
        ),
    ),
    good=(
        Example(
            "--no_local_rank",
            "deepspeed --num_gpus 4 --no_local_rank src/train.py sft.yaml",
            files={"src/train.py": _LLAMAFACTORY, "sft.yaml": _YAML},
        ),
        Example(
            "torchrun adds nothing",
            "torchrun --nproc-per-node 4 src/train.py sft.yaml",
            files={"src/train.py": _LLAMAFACTORY, "sft.yaml": _YAML},
        ),
        Example(
            "options are found anywhere",
            "deepspeed --num_gpus 4 src/train.py --stage sft --do_train --model_name_or_path local/model "
            "--output_dir out",
            files={"src/train.py": _LLAMAFACTORY},
        ),
        Example(
            "argparse finds its positional behind an option",
            "deepspeed --num_gpus 4 train.py sft.yaml",
            files={
                "train.py": "import argparse\n\nparser = argparse.ArgumentParser()\nparser.add_argument('config')\n"
                "parser.add_argument('--local_rank', type=int)\nargs = parser.parse_args()\n",
                "sft.yaml": _YAML,
            },
        ),
    ),
    sources=(
        Reference(
            "deepspeed 0.9.5, 0.16.9, 0.19.8, launcher/launch.py main()",
            "cmd.append(training_script); if not args.no_local_rank: cmd.append(f'--local_rank={local_rank}'); then "
            "the "
            "script's arguments",
        ),
        Reference(
            "deepspeed 0.19.8 with llamafactory 0.9.5, deepspeed train.py x.yaml",
            "`--local_rank=0` stands before the YAML, and LLaMA-Factory fails",
            ran=True,
        ),
        Reference(
            "llamafactory 0.8.3 to 0.9.5, hparams/parser.py",
            "the file is taken only when sys.argv[1] ends in .yaml, .yml or .json (before 0.9.3 also only when it is "
            "the "
            "sole argument)",
        ),
    ),
    fix="Add `--no_local_rank`, or use torchrun",
    fixable=True,
    signatures=(
        Signature(
            r"not used by the HfArgumentParser: \['[^']+\.(?:ya?ml|json)'",
            "transformers 4.52.4 HfArgumentParser, llamafactory 0.9.3 hparams/parser.py: --local_rank=0 stands "
            "before the file",
            "ValueError: Some specified arguments are not used by the HfArgumentParser: ['sft.yaml']",
        ),
        Signature(
            r"spawned with command: \[.*'--local_rank=\d+', '[^']+\.(?:ya?ml|json)'\]",
            "deepspeed 0.16.9, launcher/launch.py main(), with a configuration file as the first argument",
            "[INFO] [launch.py:256:main] process 336 spawned with command: ['/opt/env/bin/python', '-u', "
            "'src/train.py', '--local_rank=0', 'sft.yaml']",
            weak=True,
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each launch whose first argument would be pushed back."""
    for launch in case.launches:
        layer = _adding(launch)
        if layer is None or not launch.target.argument_words or not _reads_first(launch):
            continue
        word = launch.target.argument_words[0]
        source = launch.command.source
        if layer.launcher == "deepspeed":
            fix = Fix("Add --no_local_rank", (insert(source, layer.command_words[-1].span.end, " --no_local_rank"),))
        else:
            fix = Fix("Add --use_env", (insert(source, layer.command_words[-1].span.end, " --use_env"),))
        yield report(
            RULE,
            f"{layer.launcher} puts --local_rank=N before {word.shown}, which the program expects as its first "
            f"argument",
            launch.command.locate(word.span),
            related=[Evidence("it reads sys.argv[1]", place) for place in _places(launch)][:1],
            fix=fix,
        )


def _adding(launch: Launch) -> Layer | None:
    """The layer that puts --local_rank in front of the arguments, None when there is none."""
    for layer in reversed(launch.distributed_layers):
        if layer.implied:
            return None
        if layer.launcher == "deepspeed":
            return layer if layer.option("no_local_rank") is None else None
        if layer.launcher == "torch.distributed.launch":
            return layer if layer.option("use_env") is None else None
        return None
    return None


def _reads_first(launch: Launch) -> bool:
    """Whether the first argument is a file that the program finds by its position."""
    first = launch.target.argument_words[0].shown
    if first.startswith("-") or not first.endswith((*CONFIG_ENDINGS, ".toml")):
        return False
    return is_training(launch) or next(iter(_places(launch)), None) is not None


def _places(launch: Launch) -> Iterator[Location]:
    return source_matches(launch.target.program, r"sys\.argv\[1\]")
