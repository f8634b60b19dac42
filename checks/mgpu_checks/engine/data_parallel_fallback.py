"""Plain python with several visible GPUs: DataParallel, or one GPU at work."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.engine import devices_offered
from mgpu_doctor.authoring import (
    Case,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Program,
    Reference,
    Rule,
    Seen,
    Severity,
    Signature,
    Unknown,
    insert,
    replace,
    report,
)

_TRAINER = "from transformers import Trainer\n\nTrainer(model=build(), args=arguments()).train()\n"
_ACCELERATOR = (
    "from accelerate import Accelerator\n\naccelerator = Accelerator()\nmodel = accelerator.prepare(build())\n"
)
_SWIFT_TRAINING = frozenset({"sft", "pt", "rlhf", "dpo", "orpo", "simpo"})

RULE = Rule(
    code="MGD609",
    slug="data-parallel-fallback",
    title="Several GPUs, one process",
    severity=Severity.WARNING,
    summary="a program that wants one process for each GPU is started once",
    why=(
        "Started by plain python, a program is one process. transformers' Trainer then wraps the model in "
        "`torch.nn.DataParallel` over every visible GPU: one thread feeds all, GPU 0 holds the outputs, slower "
        "than DistributedDataParallel (quantized models break). An `Accelerator()` uses the first GPU alone, and the "
        "others stay idle. Start it with a launcher, or make one GPU visible."
    ),
    bad=(
        Example("the Trainer under python", "python train.py", files={"train.py": _TRAINER}),
        Example(
            "an Accelerator under python",
            "CUDA_VISIBLE_DEVICES=0,1 python train.py --epochs 3",
            files={"train.py": _ACCELERATOR},
        ),
        Example(
            "ms-swift with DeepSpeed but without NPROC_PER_NODE",
            "CUDA_VISIBLE_DEVICES=0,1,2,3 swift sft --model local/model --dataset data.jsonl --deepspeed zero2",
            facts={"packages": {"ms-swift": "3.9.0", "torch": "2.6.0"}},
        ),
    ),
    good=(
        Example("a launcher", "torchrun --nproc-per-node 8 train.py", files={"train.py": _TRAINER}),
        Example("one visible GPU", "CUDA_VISIBLE_DEVICES=2 python train.py", files={"train.py": _TRAINER}),
        Example(
            "the model is spread over the GPUs",
            "python train.py",
            files={"train.py": _TRAINER + "model = Auto.from_pretrained('m', device_map='auto')\n"},
        ),
        Example(
            "the program starts its ranks itself",
            "python train.py",
            files={"train.py": "import torch.multiprocessing as mp\n" + _ACCELERATOR + "mp.spawn(work, nprocs=8)\n"},
        ),
        Example(
            "ms-swift splits the model when DeepSpeed is not asked for",
            "CUDA_VISIBLE_DEVICES=0,1 swift sft --model local/model --dataset data.jsonl",
            facts={"packages": {"ms-swift": "3.9.0", "torch": "2.6.0"}},
        ),
    ),
    sources=(
        Reference(
            "transformers 4.40.2, 4.52.4, training_args.py _setup_devices(), trainer.py _wrap_model()",
            "without a launcher n_gpu is torch.cuda.device_count(), and `if self.args.n_gpu > 1 … model = "
            "nn.DataParallel(model)`",
        ),
        Reference(
            "accelerate 1.7.0, state.py PartialState.__init__()",
            "without LOCAL_RANK the state is DistributedType.NO with one process on cuda:0",
        ),
        Reference(
            "ms-swift 2.6.1, 3.9.0, cli/main.py use_torchrun(), get_torchrun_args()",
            "torchrun is started only when NPROC_PER_NODE or NNODES is set",
        ),
    ),
    fix="Start one process for each GPU",
    fixable=False,
    signatures=(
        Signature(
            r"Was asked to gather along dimension 0, but all",
            "torch 2.9.1, nn/parallel/_functions.py: printed by DataParallel alone",
            "UserWarning: Was asked to gather along dimension 0, but all input tensors were scalars; will instead "
            "unsqueeze and return a vector.",
            weak=True,
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each program that is started once although it would use several processes."""
    for launch in case.launches:
        count = devices_offered(case, launch)
        if count is None or count < 2 or launch.distributed_layers or launch.world_size.known != 1:
            continue
        if launch.purpose.known in {"chat", "serve", "export"} or launch.command.variable("LOCAL_RANK") is not None:
            continue
        if launch.layer("swift") is not None:
            yield from _swift(launch, count)
        elif launch.layer("llamafactory-cli") is None and not isinstance(launch.target.program, Unknown):
            yield from _program(launch, launch.target.program, count)


def _program(launch: Launch, program: Program, count: int) -> Iterator[Finding]:
    if launch.engine.known is not None and launch.engine.known.name in {"deepspeed", "device_map", "fsdp", "megatron"}:
        return
    others = ("spawns-ranks", "lightning-trainer", "run-exp", "device-map", "deepspeed-initialize", "subprocess-launch")
    if program.first(*others, "init-process-group", "deepspeed-inference", "colossalai-launch") is not None:
        return
    if program.imports_any("ray", "verl", "openrlhf", "vllm", "mpi4py", "horovod", "jax"):
        return
    trainer, accelerator = program.first("trainer"), program.first("accelerator")
    start = f"{count} GPUs are visible, but python starts one process"
    if trainer is not None and program.imports_any("unsloth"):
        yield _report(launch, program, trainer, f"{start}, and Unsloth works on one GPU", count)
    elif trainer is not None and program.imports_any("transformers", "trl", "accelerate"):
        outcome = f"{trainer.detail} falls back to DataParallel, one thread that feeds all of them"
        yield _report(launch, program, trainer, f"{start}: {outcome}", count)
    elif accelerator is not None and trainer is None:
        yield _report(launch, program, accelerator, f"{start}, and {accelerator.detail} uses the first alone", count)
    elif trainer is None:
        yield from _own_loop(launch, program, start, count)


def _own_loop(launch: Launch, program: Program, start: str, count: int) -> Iterator[Finding]:
    """A training loop of the program's own: what it does with the other GPUs is its choice, so this is advice."""
    wrapped, loop = program.first("data-parallel"), program.first("backward")
    if wrapped is not None:
        message = f"{start}: DataParallel feeds all of them from one thread"
        yield _report(launch, program, wrapped, message, count, Severity.ADVICE)
    elif loop is not None and program.first("ddp", "fsdp", "local-rank-use") is None:
        message = f"{start}, and the training loop distributes nothing: one GPU works"
        yield _report(launch, program, loop, message, count, Severity.ADVICE)


def _report(
    launch: Launch, program: Program, seen: Seen, message: str, count: int, severity: Severity = Severity.WARNING
) -> Finding:
    fixes = []
    python = launch.layer("python")
    if python is not None and launch.target.kind == "script" and len(python.command_words) == 1:
        words = python.command_words[0]
        edit = replace(launch.command.source, words.span, f"torchrun --nproc-per-node {count}")
        ready = severity is Severity.WARNING and not python.argument_words and words.origin is None
        if ready:
            fixes.append(Fix(f"Start {count} processes with torchrun", (edit,)))
    one = Fix(
        "Make one GPU visible", (insert(launch.command.source, launch.command.span.start, "CUDA_VISIBLE_DEVICES=0 "),)
    )
    return report(
        RULE,
        message,
        launch.command.locate(python.span if python is not None else launch.command.span),
        severity=severity,
        related=[Evidence(seen.detail or seen.kind, program.locate(seen))],
        fix=fixes[0] if fixes else None,
        alternatives=[one]
        if launch.command.variable("CUDA_VISIBLE_DEVICES") is None and not launch.command.wrappers
        else [],
    )


def _swift(launch: Launch, count: int) -> Iterator[Finding]:
    target = launch.target
    wanted = target.argument("deepspeed")
    if target.subcommand not in _SWIFT_TRAINING or wanted is None or wanted.value in (None, "None", "none"):
        return
    if any(launch.command.variable(name) is not None for name in ("NPROC_PER_NODE", "NNODES")):
        return
    command = launch.command
    fix = Fix(f"Set NPROC_PER_NODE={count}", (insert(command.source, command.span.start, f"NPROC_PER_NODE={count} "),))
    yield report(
        RULE,
        f"{count} GPUs are visible and DeepSpeed is asked for, but without NPROC_PER_NODE swift starts one process",
        command.locate(wanted.span),
        fix=fix,
    )
