"""Launcher options that exclude each other."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.launch import command_name, parse_problems, release_name, typed_layers
from mgpu_doctor.authoring import (
    Case,
    Evidence,
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
    report,
)

RULE = Rule(
    code="MGD118",
    slug="launcher-options-conflict",
    title="Launcher options exclude each other",
    severity=Severity.ERROR,
    summary="The launcher's own checks refuse these options together.",
    why=(
        "Each option is fine alone; together the launcher raises an error before it starts a process. accelerate "
        "takes one of `--cpu`, `--multi_gpu`, `--tpu`, `--use_deepspeed` and `--use_fsdp`; deepspeed either counts "
        "(`--num_gpus`, `--num_nodes`) or names (`--include`, `--exclude`); no launcher runs a module without Python."
    ),
    bad=(
        Example("two ways to choose GPUs", "deepspeed --num_gpus 2 --include localhost:0,1 train.py"),
        Example("include and exclude", "deepspeed --include localhost:0,1 --exclude localhost:2 train.py"),
        Example("two ways to run", "accelerate launch --multi_gpu --use_deepspeed --num_processes 4 train.py"),
        Example("CPU and GPUs", "accelerate launch --cpu --multi_gpu train.py"),
        Example("several GPUs, one process", "accelerate launch --multi_gpu --num_processes 1 train.py"),
        Example("a module without Python", "torchrun --nproc_per_node 2 --no-python -m pkg.train"),
        Example("alone on two nodes", "torchrun --standalone --nnodes 2 --nproc_per_node 8 train.py"),
        Example(
            "no Python, but --local-rank",
            "python -m torch.distributed.launch --nproc_per_node 2 --no_python ./train.sh",
        ),
    ),
    good=(
        Example("one way to choose GPUs", "deepspeed --include localhost:0,1 train.py"),
        Example("the script's own options", "deepspeed --num_gpus 2 train.py --include localhost:0,1"),
        Example("alone on one node", "torchrun --standalone --nnodes=1 --nproc_per_node 8 train.py"),
        Example("DeepSpeed alone", "accelerate launch --use_deepspeed --num_processes 4 train.py"),
        Example("a program without Python", "torchrun --nproc_per_node 2 --no-python ./train.sh"),
        Example(
            "the count on the command line",
            "accelerate launch --config_file acc.yaml --num_processes 2 train.py",
            files={"acc.yaml": "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\n"},
        ),
        Example("a count that is not known", "accelerate launch --multi_gpu --num_processes $N train.py"),
    ),
    sources=(
        Reference(
            "accelerate 1.7.0 and 1.15.0, commands/launch.py _validate_launch_command()",
            "ValueError for more than one of --cpu/--multi_gpu/--tpu/--use_deepspeed/--use_fsdp, and for --multi_gpu "
            "with less than 2 processes; for a file without num_processes when --num_processes is not given",
        ),
        Reference(
            "deepspeed 0.9.5 to 0.19.8, launcher/runner.py main()",
            "Cannot specify num_nodes/gpus with include/exclude; include_str and exclude_str are mutually exclusive",
        ),
        Reference("torch 2.13.0, distributed/run.py config_from_args(); distributed/launch.py launch()", "--no-python"),
        Reference("torch 2.13.0, distributed/run.py run()", "--standalone sets the endpoint to localhost:0"),
    ),
    fix="keep one of them",
    signatures=(
        Signature(
            r"Cannot specify num_nodes/gpus with include/exclude",
            "deepspeed 0.16.9 and 0.19.8, launcher/runner.py main()",
            "ValueError: Cannot specify num_nodes/gpus with include/exclude",
        ),
        Signature(
            r"You can only use one of `--cpu`, `--multi_gpu`",
            "accelerate 1.7.0 and 1.15.0, commands/launch.py _validate_launch_command()",
            "ValueError: You can only use one of `--cpu`, `--multi_gpu`, `--tpu`, `--use_deepspeed`, "
            "`--use_fsdp` at a time.",
        ),
        Signature(
            r"You need to use at least 2 processes to use `--multi_gpu`",
            "accelerate 1.7.0 and 1.15.0, commands/launch.py _validate_launch_command()",
            "ValueError: You need to use at least 2 processes to use `--multi_gpu`.",
        ),
    ),
)

_FIXES = {
    "Cannot specify": "keep the filter that names the GPUs and leave --num_gpus and --num_nodes out",
    "include_str": "keep one of --include and --exclude",
    "You can only use one": "keep one of them",
    "You need to use at least 2": "leave --multi_gpu out, or start at least two processes",
    "--module and": "keep one of --module and --no_python",
    "Don't use both": "keep one of --module and --no_python",
    "When using the": "add --use_env",
}

_OF_THE_FILE = "You need to manually pass in"
"""What the configuration file lacks has a rule of its own (MGD603)."""


def find(case: Case) -> Iterator[Finding]:
    """Combinations that a launcher refuses."""
    for launch, layer, problem in parse_problems(case, "conflict", "refused"):
        if problem.message.startswith(_OF_THE_FILE):
            continue
        what = "these options together" if problem.kind == "conflict" else "this"
        yield report(
            RULE,
            f"{command_name(layer)} refuses {what}: {problem.message} ({release_name(layer)}).",
            launch.command.locate(problem.span),
            evidence=_others(layer, problem),
            fix=next((Fix(fix) for start, fix in _FIXES.items() if problem.message.startswith(start)), None),
        )
    for launch in case.launches:
        yield from _alone_on_several_nodes(launch)


def _alone_on_several_nodes(launch: Launch) -> Iterator[Finding]:
    """--standalone makes each node its own rendezvous on a free port: no other node can join."""
    for layer in typed_layers(launch):
        alone, nodes = layer.option("standalone"), layer.option("nnodes")
        if alone is None or nodes is None or nodes.value is None:
            continue
        least = nodes.value.partition(":")[0]
        if least.isdecimal() and int(least) > 1:
            yield report(
                RULE,
                f"--standalone is for one node: with {nodes.flag} {nodes.value} each node waits for the others at its "
                "own localhost, and none ever comes.",
                launch.command.locate(alone.span),
                related=(Evidence("this asks for several nodes", launch.command.locate(nodes.span)),),
                fix=Fix(
                    "replace --standalone by --rdzv-backend c10d --rdzv-endpoint HOST:PORT, the same on every node"
                ),
            )


def _others(layer: Layer, problem: ParseProblem) -> tuple[str, ...]:
    given = [option.flag for option in layer.options if option.span != problem.span]
    return (f"given as well: {', '.join(given)}",) if given else ()
