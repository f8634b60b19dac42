"""The launcher adds ``--local-rank`` or ``--local_rank`` to the arguments of a program that does not take it."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.engine import source_matches, version_of
from mgpu_doctor.authoring import (
    Case,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Layer,
    Program,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    insert,
    report,
)

_PARSER = (
    "import argparse\n\nparser = argparse.ArgumentParser()\nparser.add_argument('{flag}', type=int, default=0)\n"
    "parser.add_argument('--epochs', type=int)\nargs = parser.parse_args()\n"
)

RULE = Rule(
    code="MGD114",
    slug="local-rank-argument",
    title="The script does not take the launcher's local rank",
    severity=Severity.ERROR,
    summary="torch.distributed.launch or deepspeed adds a local-rank argument that the script's parser refuses",
    why=(
        "torch.distributed.launch gives every script `--local-rank=N` since torch 2.0, `--local_rank=N` before; "
        "deepspeed "
        "always `--local_rank=N`. argparse takes the two spellings for different options, so a script that declares "
        "the other one, or none, stops with 'unrecognized arguments'. torchrun adds nothing: the rank is in the "
        "variable "
        "LOCAL_RANK, as it is with `--use_env`."
    ),
    bad=(
        Example(
            "torch 2 passes --local-rank",
            "python -m torch.distributed.launch --nproc_per_node 4 train.py",
            files={"train.py": _PARSER.format(flag="--local_rank")},
        ),
        Example(
            "a script that takes neither",
            "deepspeed --num_gpus 2 train.py --epochs 3",
            files={"train.py": _PARSER.format(flag="--seed")},
        ),
        Example(
            "torch 1.13 passes --local_rank",
            "python -m torch.distributed.launch --nproc_per_node 2 train.py",
            files={"train.py": _PARSER.format(flag="--local-rank")},
            facts={"packages": {"torch": "1.13.1+cu117"}},
        ),
    ),
    good=(
        Example(
            "both spellings",
            "python -m torch.distributed.launch --nproc_per_node 4 train.py",
            files={"train.py": _PARSER.format(flag="--local_rank', '--local-rank")},
        ),
        Example(
            "torchrun adds nothing",
            "torchrun --nproc-per-node 4 train.py",
            files={"train.py": _PARSER.format(flag="--local_rank")},
        ),
        Example(
            "--use_env adds nothing",
            "python -m torch.distributed.launch --use_env --nproc_per_node 4 train.py",
            files={"train.py": _PARSER.format(flag="--seed")},
        ),
        Example(
            "deepspeed passes --local_rank",
            "deepspeed --num_gpus 2 train.py",
            files={"train.py": _PARSER.format(flag="--local_rank")},
        ),
        Example(
            "what is unknown is left alone",
            "deepspeed --num_gpus 2 train.py",
            files={"train.py": _PARSER.format(flag="--seed").replace("parse_args", "parse_known_args")},
        ),
    ),
    sources=(
        Reference(
            "torch 2.13.0, distributed/launch.py (its documentation, 'versionchanged:: 2.0.0') and run.py",
            "'The launcher will passes the --local-rank=<rank> argument to your script. From PyTorch 2.0.0 onwards, "
            "the "
            "dashed --local-rank is preferred over the previously used underscored --local_rank.'",
        ),
        Reference(
            "deepspeed 0.9.5, 0.16.9, 0.19.8, launcher/launch.py main()",
            "if not args.no_local_rank: cmd.append(f'--local_rank={local_rank}')",
        ),
    ),
    fix="Use torchrun and LOCAL_RANK, or declare the argument",
    fixable=True,
    signatures=(
        Signature(
            r"error: unrecognized arguments: .*--local[-_]rank\b",
            "Python 3.11, argparse in a script started by deepspeed 0.16.9 or torch.distributed.launch (torch 2.13.0)",
            "train.py: error: unrecognized arguments: --local_rank=0",
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each launch that adds an argument which the script refuses."""
    for launch in case.launches:
        layer = launch.distributed_layers[-1] if launch.distributed_layers else None
        program = launch.target.program
        if layer is None or layer.implied or isinstance(program, Unknown) or program.strict_options is not True:
            continue
        flag = _added(case, layer)
        if flag is not None and not _takes(program, flag):
            yield _report(case, launch, layer, program, flag)


def _added(case: Case, layer: Layer) -> str | None:
    """The option that the launcher adds, None when it adds none or when its release is not known."""
    if layer.launcher == "deepspeed":
        return "--local_rank" if layer.option("no_local_rank") is None else None
    if layer.launcher != "torch.distributed.launch" or layer.option("use_env") is not None:
        return None
    release = layer.release or case.knowledge.release("torch")
    version = version_of(release)
    if version is None:
        return None
    return "--local-rank" if version >= (2, 0) else "--local_rank"


def _takes(program: Program, flag: str) -> bool:
    flags = {name for option in program.options for name in option.flags}
    if flag in flags or any(name.startswith(flag) for name in flags):
        return True
    # A parser that DeepSpeed or another library fills has options that cannot be seen here.
    filled = next(source_matches(program, r"add_config_arguments|add_[a-z_]*args\(|parents\s*="), None)
    return filled is not None and not any(map(_is_local_rank, flags))


def _is_local_rank(flag: str) -> bool:
    return flag.lstrip("-").replace("-", "_") == "local_rank"


def _report(case: Case, launch: Launch, layer: Layer, program: Program, flag: str) -> Finding:
    declared = next((option for option in program.options if any(map(_is_local_rank, option.flags))), None)
    reads = f"declares {declared.flags[0]}" if declared is not None else "declares no such option"
    option = "--no_local_rank" if layer.launcher == "deepspeed" else "--use_env"
    end = layer.command_words[-1].span.end
    release = layer.release or case.knowledge.release("torch")
    assumed = declared is not None and not release.certain and layer.launcher != "deepspeed"
    name = (
        f"{layer.launcher} of torch 2.0 and later"
        if assumed
        else f"{layer.launcher} ({release.package} {release.version})"
    )
    return report(
        RULE,
        f"{name} gives every rank {flag}=N, but the script {reads}: 'unrecognized arguments'",
        launch.command.locate(layer.span),
        severity=Severity.ADVICE if assumed else Severity.ERROR,
        related=[] if declared is None else [Evidence("declared here", program.locate(declared))],
        fix=Fix(
            f"Add {option}; the script must then read the variable LOCAL_RANK",
            (insert(launch.command.source, end, f" {option}"),),
        ),
        alternatives=[Fix("Start it with torchrun"), Fix("Declare both --local_rank and --local-rank")],
    )
