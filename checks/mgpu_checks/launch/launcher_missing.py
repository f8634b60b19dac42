"""Code that needs a launcher's ranks is started by plain python."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.launch import typed_rank_layers, version_at_least
from mgpu_doctor.authoring import (
    Case,
    Command,
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
    delete_words,
    insert,
    replace,
    report,
)

_DDP = "import os\nimport torch.distributed as dist\n\ndist.init_process_group('nccl')\n"
_RUN_EXP = "from llamafactory.train.tuner import run_exp\n\nrun_exp()\n"
_TRAINER = (
    "from transformers import HfArgumentParser, Trainer, TrainingArguments\n\n"
    "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\nTrainer(model, args).train()\n"
)

RULE = Rule(
    code="MGD109",
    slug="launcher-missing",
    title="The program needs a launcher",
    severity=Severity.ERROR,
    summary="A program that needs RANK, WORLD_SIZE and a meeting point is started by plain python.",
    why=(
        "`init_process_group` without a rank, DeepSpeed, Colossal-AI's `launch_from_torch` and LLaMA-Factory's "
        "training on several GPUs take their place in the job from variables that only a launcher sets. Started by "
        'plain python they stop at once ("environment variable RANK expected, but not set", "Please launch '
        'distributed training with `llamafactory-cli` or `torchrun`"). Start them with torchrun, accelerate or '
        "deepspeed."
    ),
    bad=(
        Example("a process group without ranks", "python train.py", files={"train.py": _DDP}),
        Example("the same without a machine", "python3 -u train.py --lr 1", files={"train.py": _DDP}, facts=None),
        Example(
            "LLaMA-Factory's script on eight GPUs",
            "python src/train.py --stage sft --do_train true",
            files={"src/train.py": _RUN_EXP},
        ),
        Example(
            "LLaMA-Factory's module", "python -m llamafactory.launcher sft.yaml", files={"sft.yaml": "stage: sft\n"}
        ),
        Example(
            "DeepSpeed with LLaMA-Factory on one GPU",
            "CUDA_VISIBLE_DEVICES=0 llamafactory-cli train sft.yaml",
            files={
                "sft.yaml": "do_train: true\ndeepspeed: z3.json\n",
                "z3.json": '{"zero_optimization": {"stage": 3}}',
            },
        ),
        Example(
            "DeepSpeed with ms-swift",
            "CUDA_VISIBLE_DEVICES=0,1 swift sft --model m --deepspeed zero2",
            facts={"packages": {"ms-swift": "3.9.0", "torch": "2.6.0"}},
        ),
        Example(
            "a program that sets DeepSpeed up itself",
            "python train.py",
            files={"train.py": "import deepspeed\nengine, *_ = deepspeed.initialize(model=model, config='ds.json')\n"},
        ),
        Example("FSDP with a Trainer", "python sft.py --fsdp full_shard --output_dir out", files={"sft.py": _TRAINER}),
        Example(
            "DeepSpeed with a Trainer",
            "python sft.py --deepspeed z2.json --output_dir out",
            files={"sft.py": _TRAINER, "z2.json": '{"zero_optimization": {"stage": 2}}'},
        ),
    ),
    good=(
        Example("with torchrun", "torchrun --nproc_per_node 8 train.py", files={"train.py": _DDP}),
        Example("ranks by hand", "RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 python train.py", files={"train.py": _DDP}),
        Example(
            "only where there are ranks",
            "python train.py",
            files={"train.py": "import torch.distributed as dist\nif many:\n    dist.init_process_group('nccl')\n"},
        ),
        Example(
            "the program starts its ranks",
            "python train.py",
            files={"train.py": "import torch.multiprocessing as mp\nmp.spawn(work, nprocs=8)\n" + _DDP},
        ),
        Example(
            "the program sets the variables",
            "python train.py",
            files={"train.py": "import os\nos.environ['RANK'] = '0'\n" + _DDP},
        ),
        Example("one task for each rank", "srun --ntasks 8 python train.py", files={"train.py": _DDP}),
        Example(
            "LLaMA-Factory on one GPU",
            "CUDA_VISIBLE_DEVICES=3 python src/train.py --stage sft",
            files={"src/train.py": _RUN_EXP},
        ),
        Example(
            "the command that starts torchrun",
            "llamafactory-cli train sft.yaml",
            files={"sft.yaml": "do_train: true\n"},
        ),
        Example("a Trainer alone", "CUDA_VISIBLE_DEVICES=0 python sft.py --output_dir out", files={"sft.py": _TRAINER}),
    ),
    sources=(
        Reference(
            "torch 2.13.0, distributed/rendezvous.py _env_rendezvous_handler()",
            "without RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT: environment variable RANK expected, but not set",
        ),
        Reference(
            "llamafactory 0.8.3, 0.9.3, 0.9.5, hparams/parser.py get_train_args()",
            "refuses ParallelMode.NOT_DISTRIBUTED, and DeepSpeed unless the mode is DISTRIBUTED",
        ),
        Reference(
            "transformers 4.52.4, trainer.py Trainer.__init__()",
            "Using fsdp only works in distributed training.",
        ),
        Reference(
            "deepspeed 0.16.9, comm/comm.py init_distributed()",
            "without RANK and the like it calls mpi_discovery(), which imports mpi4py",
        ),
        Reference(
            "ms-swift 2.6.1 llm/utils/argument.py, 3.9.0 llm/argument/train_args.py _init_deepspeed()",
            "DeepSpeed with several devices for one process is a ValueError",
        ),
    ),
    fix="Start it with torchrun",
    fixable=True,
    signatures=(
        Signature(
            r"Please launch distributed training with `llamafactory-cli` or `torchrun`",
            "llamafactory 0.8.3 to 0.9.5, hparams/parser.py get_train_args()",
            "ValueError: Please launch distributed training with `llamafactory-cli` or `torchrun`.",
        ),
        Signature(
            r"Please use `FORCE_TORCHRUN=1` to launch DeepSpeed training",
            "llamafactory 0.8.3 to 0.9.5, hparams/parser.py get_train_args()",
            "ValueError: Please use `FORCE_TORCHRUN=1` to launch DeepSpeed training.",
        ),
        Signature(
            r"environment variable (?:RANK|WORLD_SIZE) expected, but not set",
            "torch 2.13.0, distributed/rendezvous.py",
            "ValueError: Error initializing torch.distributed using env:// rendezvous: environment variable "
            "RANK expected, but not set",
        ),
        Signature(
            r"KeyError: '(?:RANK|LOCAL_RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT)'",
            "Python 3.11, os.environ[…] in a program that no launcher started",
            "KeyError: 'LOCAL_RANK'",
        ),
        Signature(
            r"Could not find '(?:RANK|LOCAL_RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT)' in the torch environment",
            "colossalai 0.1.11 and later, initialize.py launch_from_torch()",
            "RuntimeError: Could not find 'RANK' in the torch environment, visit https://www.colossalai.org/ "
            "for more information on launching with torch",
        ),
        Signature(
            r"DeepSpeed is not compatible with (?:MP\.|`device_map`)",
            "ms-swift 2.6.1 (MP) and 3.9.0 (`device_map`), train_args.py _init_deepspeed()",
            "ValueError: DeepSpeed is not compatible with `device_map`. n_gpu: 4, local_world_size: 1.",
        ),
        Signature(
            r"Using fsdp only works in distributed training",
            "transformers 4.28.1 to 4.52.4, trainer.py",
            "ValueError: Using fsdp only works in distributed training.",
        ),
        Signature(
            r"No module named 'mpi4py'",
            "deepspeed 0.16.9, comm/comm.py mpi_discovery(), when no launcher has set RANK",
            "ModuleNotFoundError: No module named 'mpi4py'",
            weak=True,
        ),
    ),
)

_PLACES = frozenset({"RANK", "WORLD_SIZE", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"})
_MANY_TASKS = frozenset({"srun", "mpirun", "mpiexec", "ray job submit", "torchx", "horovodrun"})


def find(case: Case) -> Iterator[Finding]:
    """One finding for each plain launch of something that needs ranks."""
    for launch in case.launches:
        if not _is_plain(case, launch):
            continue
        found = _framework(case, launch) or _program(case, launch) or _trainer(launch)
        if found is not None:
            message, severity, evidence = found
            word = launch.target.word or launch.command.words[0]
            yield report(
                RULE,
                message,
                launch.command.locate(word.span),
                severity=severity,
                evidence=evidence,
                fix=_fix(launch),
            )


def _is_plain(case: Case, launch: Launch) -> bool:
    """Whether nothing gives the process a rank: no launcher, no scheduler, no variables."""
    if typed_rank_layers(launch) or any(layer.implied for layer in launch.layers):
        return False
    command: Command | None = launch.command
    while command is not None:
        if any(wrapper.name in _MANY_TASKS for wrapper in command.wrappers):
            return False
        command = command.called_from
    if any(variable.name in _PLACES and variable.value is not None for variable in launch.command.environment):
        return False
    return not any(isinstance(case.facts.variable(name), str) for name in _PLACES)


_Found = tuple[str, Severity, tuple[Evidence | str, ...]]


def _program(case: Case, launch: Launch) -> _Found | None:
    program = launch.target.program
    if isinstance(program, Unknown) or launch.target.kind not in {"script", "module"}:
        return None
    needed = program.first("needs-ranks")
    if needed is None or program.first("spawns-ranks", "subprocess-launch", "lightning-trainer") is not None:
        return None
    sets = program.all("sets-variable", "defaults-variable")
    if any(seen.detail.partition("=")[0] in _PLACES for seen in sets):
        return None
    what = {"init_process_group": "its process group takes RANK and WORLD_SIZE from the environment"}.get(
        needed.detail, f"{needed.detail} takes its rank from the environment"
    )
    if needed.detail in _PLACES:
        what = f"it reads {needed.detail} from the environment"
    name = launch.target.value or "The program"
    if needed.detail.startswith("deepspeed."):
        return _deepspeed(case, name, Evidence(f"{needed.detail}() runs in any case", program.locate(needed)))
    evidence = (Evidence(f"{needed.detail} runs in any case", program.locate(needed)),)
    # In a text alone, a platform may set the variables for every container that runs it.
    severity = Severity.WARNING if case.mode == "lint" else Severity.ERROR
    return f"{name} is started without a launcher, but {what}: it stops at once.", severity, evidence


def _deepspeed(case: Case, name: str, evidence: Evidence) -> _Found:
    """Without a launcher's variables deepspeed asks MPI, through a package that is seldom there."""
    packages = case.facts.packages
    absent = not isinstance(packages, Unknown) and "mpi4py" not in packages
    message = (
        f"{name} sets up DeepSpeed, but no launcher gives it a rank: deepspeed then looks for MPI and fails without "
        "mpi4py, or runs as one process."
    )
    return message, Severity.ERROR if absent else Severity.WARNING, (evidence,)


def _framework(case: Case, launch: Launch) -> _Found | None:
    target = launch.target
    engine = launch.engine.known
    by_deepspeed = engine is not None and engine.name == "deepspeed"
    devices = _devices(launch)
    if target.framework == "llamafactory" and _trains(launch):
        if _is_old(case, launch):
            return None
        if target.kind == "command" and launch.processes_per_node.known is None:
            return None
        if by_deepspeed:
            message = (
                "LLaMA-Factory refuses DeepSpeed in a process that no launcher started (FORCE_TORCHRUN=1 starts one)."
            )
            return message, Severity.ERROR, ()
        if devices is not None and devices > 1 and target.kind != "command":
            message = (
                f"LLaMA-Factory refuses to train in one process that sees {devices} GPUs: "
                '"Please launch distributed training with `llamafactory-cli` or `torchrun`".'
            )
            return message, Severity.ERROR, ()
    several = devices is not None and devices > 1
    if target.framework == "swift" and target.subcommand in {"sft", "pt", "rlhf"} and by_deepspeed and several:
        message = (
            f"swift starts one process that sees {devices} GPUs and spreads the model over them, which it refuses to "
            "do together with DeepSpeed: set NPROC_PER_NODE."
        )
        return message, Severity.ERROR, ()
    return None


def _is_old(case: Case, launch: Launch) -> bool:
    """Releases before 0.8, those still named llmtuner among them, did not refuse it."""
    program = launch.target.program
    if not isinstance(program, Unknown) and program.imports_any("llmtuner"):
        return True
    return version_at_least(case.knowledge.release("llamafactory").version, 0, 8) is False


def _trains(launch: Launch) -> bool:
    target = launch.target
    if target.kind == "command":
        return target.subcommand == "train"
    if target.kind == "module":
        return target.value == "llamafactory.launcher"
    return not isinstance(target.program, Unknown) and target.program.first("run-exp") is not None


def _trainer(launch: Launch) -> _Found | None:
    """A Trainer with DeepSpeed: deepspeed looks for MPI when no launcher's variables are there."""
    target = launch.target
    engine = launch.engine.known
    program = target.program
    if engine is None or isinstance(program, Unknown) or target.kind not in {"script", "module"}:
        return None
    if engine.name not in {"deepspeed", "fsdp"} or program.first("trainer") is None:
        return None
    if program.first("hf-argument-parser") is None or program.first("spawns-ranks", "subprocess-launch") is not None:
        return None
    if any(seen.detail.partition("=")[0] in _PLACES for seen in program.all("sets-variable", "defaults-variable")):
        return None
    if engine.name == "fsdp":
        if launch.engine.origin.kind != "option":
            return None
        message = f"{target.value} is to train with FSDP: the Trainer refuses it in a process that no launcher started."
        return message, Severity.ERROR, ("transformers: Using fsdp only works in distributed training.",)
    message = (
        f"{target.value} is to train with DeepSpeed but no launcher gives it a rank: deepspeed then looks for MPI "
        "and fails without mpi4py, or runs as one process."
    )
    return message, Severity.WARNING, ()


def _devices(launch: Launch) -> int | None:
    visible = launch.visible.known
    if visible is None or (visible.all and not visible.entries):
        return None
    return len(visible.entries)


def _fix(launch: Launch) -> Fix:
    target, source = launch.target, launch.command.source
    first = launch.command.words[0]
    count = _devices(launch)
    several = str(count) if count is not None and count > 0 else "gpu"
    if target.kind == "command":
        if target.framework == "swift":
            text, title = f"NPROC_PER_NODE={several} ", "set NPROC_PER_NODE, so that swift starts torchrun"
        else:
            text, title = "FORCE_TORCHRUN=1 ", "set FORCE_TORCHRUN=1, so that it starts torchrun"
        if launch.command.wrappers:
            text = "env " + text
        edits = () if first.origin is not None else (insert(source, first.span.start, text),)
        return Fix(title, edits)
    title = "start it with torchrun, one process for each GPU"
    python = _python_layer(launch)
    if python is None or python.command_words[0].origin is not None or python.opaque is not None:
        return Fix(title)
    torchrun = f"torchrun --nproc_per_node {several}"
    unbuffered = [delete_words(source, word.span) for word in python.argument_words if word.value == "-u"]
    return Fix(title, (replace(source, python.command_words[0].span, torchrun), *unbuffered))


def _python_layer(launch: Launch) -> Layer | None:
    """The interpreter's layer; None when it has options that torchrun does not know."""
    layer = launch.layer("python")
    if layer is None or any(word.value not in {"-m", "-u"} or word.origin for word in layer.argument_words):
        return None
    return layer
