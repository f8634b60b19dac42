"""Variables of ranks and rendezvous that are left over, or that this launcher does not read."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.rendezvous import (
    binding_layer,
    inherited,
    inherits,
    is_torchrun,
    many_nodes,
    option_insertion,
    port_option,
    starts_copies,
)
from mgpu_doctor.authoring import (
    Case,
    Command,
    Example,
    Finding,
    Fix,
    Launch,
    Layer,
    Reference,
    Rule,
    Severity,
    Span,
    Unknown,
    insert,
    replace,
    report,
)

STALE = {"env": {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}}
TRAINER = {
    "train.py": "from transformers import HfArgumentParser, Trainer, TrainingArguments\n"
    "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\nTrainer(args=args).train()\n"
}
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_STARTED = ("SLURM_STEP_ID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MV2_COMM_WORLD_RANK")

_PLATFORMS = (
    "SLURM_", "OMPI_", "PMI_", "PMIX_", "MV2_", "TORCHELASTIC_", "PET_", "KUBERNETES_", "SM_", "AZUREML_", "VC_",
    "PAI_", "MLP_", "DLC_", "RAY_", "LSB_", "PBS_", "SKYPILOT_", "GROUP_RANK", "ROLE_RANK", "ACCELERATE_",
    "CROSS_RANK", "AIP_",
)  # fmt: skip
"""Beginnings of variables by which schedulers, launchers and training platforms show that the ranks are theirs."""

RULE = Rule(
    code="MGD315",
    slug="stale-rank-variables",
    title="Rank variables that are left over or not read",
    severity=Severity.ERROR,
    summary="RANK, WORLD_SIZE or MASTER_* are left over from another job, or not what this launcher reads.",
    why=(
        "A single process that finds WORLD_SIZE=4 in its environment waits for three others that nobody starts; "
        "`accelerate launch` with one process passes such variables on. LLaMA-Factory takes a node's rank from "
        "NODE_RANK: with RANK alone every node becomes node 0. torchrun, deepspeed and accelerate take the port from "
        "their options: MASTER_PORT is overwritten for the workers and the launch stays on the default port."
    ),
    bad=(
        Example(
            "LLaMA-Factory reads NODE_RANK",
            "FORCE_TORCHRUN=1 NNODES=2 RANK=1 MASTER_ADDR=10.4.0.13 MASTER_PORT=29511 llamafactory-cli train sft.yaml",
            facts=None,
        ),
        Example(
            "so does ms-swift",
            "NNODES=2 RANK=1 MASTER_ADDR=10.4.0.13 MASTER_PORT=29511 NPROC_PER_NODE=8 swift sft --model m",
            facts=None,
        ),
        Example("left over in the environment", "python train.py", files=TRAINER, facts=STALE),
        Example("left over, without a command", facts=STALE),
        Example("passed on", "accelerate launch --num_processes 1 train.py", files=TRAINER, facts=STALE),
        Example("deepspeed does not read it", "MASTER_PORT=29511 deepspeed --num_gpus 2 train.py"),
        Example("torchrun does not read it", "MASTER_PORT=29511 torchrun --nproc_per_node 2 train.py", facts=None),
        Example(
            "accelerate does not read it",
            "export MASTER_PORT=29511\naccelerate launch --multi_gpu --num_processes 2 train.py",
        ),
    ),
    good=(
        Example(
            "NODE_RANK",
            "FORCE_TORCHRUN=1 NNODES=2 NODE_RANK=1 MASTER_ADDR=10.4.0.13 MASTER_PORT=29511 "
            "llamafactory-cli train a.yaml",
        ),
        Example("torchrun sets its own", "torchrun --nproc_per_node 4 train.py", files=TRAINER, facts=STALE),
        Example("a program without ranks", "python plot.py", files={"plot.py": "print('plot')\n"}, facts=STALE),
        Example("a rank of a running job", facts={"env": {**STALE["env"], "TORCHELASTIC_RUN_ID": "none"}}),
        Example("a pod of a training operator", facts={**STALE, "container": {"runtime": "containerd"}}),
        Example("unset", "unset RANK WORLD_SIZE LOCAL_RANK\npython train.py", files=TRAINER, facts=STALE),
        Example("a world of one", "python train.py", files=TRAINER, facts={"env": {"RANK": "0", "WORLD_SIZE": "1"}}),
        Example(
            "handed on",
            "export MASTER_PORT=29511\ntorchrun --nproc_per_node 2 --master_port $MASTER_PORT t.py",
            facts=None,
        ),
        Example("started by hand", "RANK=0 WORLD_SIZE=2 MASTER_PORT=29511 python train.py", files=TRAINER),
        Example("LLaMA-Factory reads it", "FORCE_TORCHRUN=1 MASTER_PORT=29511 llamafactory-cli train sft.yaml"),
    ),
    sources=(
        Reference("llamafactory 0.9.3, cli.py", "node_rank is NODE_RANK or 0; RANK is not read"),
        Reference(
            "ms-swift 2.6.1, 3.9.0, 3.12.0, 4.0.0, swift/cli/main.py get_torchrun_args()",
            "reads NPROC_PER_NODE, MASTER_PORT, NNODES, NODE_RANK and MASTER_ADDR; RANK is not read",
        ),
        Reference("torch 2.11.0, `MASTER_PORT=29666 torchrun --master-port 29601`", "workers get 29601", ran=True),
        Reference(
            "torch 2.13.0, distributed/rendezvous.py", "WORLD_SIZE=4 RANK=0, plain python: waits for 3 ranks", ran=True
        ),
        Reference(
            "accelerate 1.15.0, commands/launch.py simple_launcher()",
            "`accelerate launch --num_processes 1` passes WORLD_SIZE=4 on",
            ran=True,
        ),
        Reference(
            "torch 1.13.1 to 2.13.0, distributed/run.py; deepspeed 0.9.5, 0.16.9, 0.19.8, launcher/launch.py; "
            "accelerate 0.20.3, 1.7.0, 1.15.0, utils/launch.py",
            "MASTER_PORT is set for the workers from the launcher's own option and never read",
        ),
    ),
    fix="Unset what is left over; give the launcher its own option or variable",
)


def find(case: Case) -> Iterator[Finding]:
    """Launches whose rank variables do not do what they seem to; without a command, variables that are left over."""
    yield from _alone(case)
    for launch in case.launches:
        finding = _node_rank(launch) or _left_over(case, launch) or _port(launch)
        if finding is not None:
            yield finding


def _alone(case: Case) -> Iterator[Finding]:
    """A shell that holds a larger job's variables, with no sign of a launcher or a platform that sets them."""
    environment = case.facts.environment
    if case.launches or isinstance(environment, Unknown):
        return
    size = environment.get("WORLD_SIZE", "")
    if not size.isdigit() or int(size) < 2 or "RANK" not in environment:
        return
    every = case.facts.environment_names
    found = environment if isinstance(every, Unknown) else every
    if case.facts.container or case.facts.scheduler or any(name.startswith(_PLATFORMS) for name in found):
        return
    names = [name for name in RANK_VARIABLES if name in environment]
    yield report(
        RULE,
        f"WORLD_SIZE={size} and RANK={environment['RANK']} are left over in the environment: a single process that "
        "joins a group when it finds them (Trainer, accelerate, torch.distributed) waits for ranks that nobody starts.",
        subject="WORLD_SIZE in the environment",
        severity=Severity.WARNING,
        evidence=tuple(f"{name}={environment[name]}" for name in names),
        fix=Fix("Unset the variables that are left over", commands=(f"unset {' '.join(names)}",)),
    )


def _node_rank(launch: Launch) -> Finding | None:
    """LLaMA-Factory or ms-swift with RANK where they read NODE_RANK."""
    layer, command = binding_layer(launch), launch.command
    rank, nodes = command.variable("RANK"), many_nodes(launch)
    if layer is None or not layer.implied or nodes is None or rank is None:
        return None
    name = "LLaMA-Factory" if launch.layer("llamafactory-cli") is not None else "ms-swift"
    if launch.layer("llamafactory-cli", "swift") is None or command.variable("NODE_RANK") is not None:
        return None
    at = rank.location
    if at is not None and at.source.slice(at.span).startswith("RANK="):
        edit = replace(at.source, Span(at.span.start, at.span.start + len("RANK")), "NODE_RANK")
    else:
        edit = insert(command.source, command.span.start, 'NODE_RANK="$RANK" ')
    return report(
        RULE,
        f"{name} takes this node's rank from NODE_RANK, not from RANK: each of the {nodes} nodes becomes node "
        "0, and they never meet.",
        at or command.locate(command.words[0].span),
        fix=Fix("Set NODE_RANK", (edit,)),
    )


def _left_over(case: Case, launch: Launch) -> Finding | None:
    """One process that finds the variables of a larger job in its environment."""
    command = launch.command
    size = inherited(case, command, "WORLD_SIZE")
    if not isinstance(size, str) or not size.isdigit() or int(size) < 2 or starts_copies(launch):
        return None
    if launch.rendezvous is not None or launch.world_size.known not in {1, None} or not _forms_group(launch):
        return None
    if any(inherits(case, command, name) is True for name in _STARTED):
        return None
    found = {name: inherited(case, command, name) for name in RANK_VARIABLES}
    names = " ".join(name for name, text in found.items() if text is not None)
    others = int(size) - 1
    return report(
        RULE,
        f"WORLD_SIZE={size} is left over in the environment, but this command starts one process: it waits for "
        f"{others} other{'s' if others > 1 else ''} that nobody starts.",
        subject="WORLD_SIZE in the environment",
        evidence=tuple(f"{name}={text}" for name, text in found.items() if text is not None),
        fix=Fix("Unset the variables that are left over", commands=(f"unset {names}",)),
    )


def _forms_group(launch: Launch) -> bool:
    """Whether the program surely joins a group when the environment asks for one."""
    if launch.target.framework in {"llamafactory", "transformers"} and launch.purpose.known == "train":
        return True
    program = launch.target.program
    if isinstance(program, Unknown):
        return False
    if program.first("init-process-group", "deepspeed-initialize", "hf-argument-parser") is not None:
        return True
    return program.imports_any("accelerate", "lightning", "pytorch_lightning")


def _port(launch: Launch) -> Finding | None:
    """MASTER_PORT in front of a launcher that takes the port from its option."""
    layer, command = binding_layer(launch), launch.command
    variable = command.variable("MASTER_PORT")
    if layer is None or layer.implied or variable is None or variable.location is None or layer.opaque is not None:
        return None
    if port_option(layer) is not None or launch.nodes.known != 1 or _is_used(command, "MASTER_PORT"):
        return None
    if layer.option("standalone") is not None or (layer.config is not None and layer.config.has("main_process_port")):
        return None
    setting = launch.rendezvous.port if launch.rendezvous is not None else None
    port = setting.known if setting is not None else None
    stays = "takes a free port" if port == 0 else "uses port 29500" if port is None else f"uses port {port}"
    if variable.text is not None and str(port) == variable.text:
        return None
    flag = "--main_process_port" if layer.launcher == "accelerate" else "--master_port"
    edit = option_insertion(launch, layer, f"{flag} {variable.text}") if variable.text is not None else None
    name = _shown(layer)
    return report(
        RULE,
        f"{name} does not read MASTER_PORT: it {stays} and overwrites the variable for the processes it starts.",
        variable.location,
        severity=Severity.WARNING if variable.scope in {"prefix", "env"} else Severity.ADVICE,
        fix=Fix(f"Give the port to {name} with {flag}", () if edit is None else (edit,)),
    )


def _shown(layer: Layer) -> str:
    return "torchrun" if is_torchrun(layer) else layer.launcher


def _is_used(command: Command, name: str) -> bool:
    """Whether a word of the command is made from the variable."""
    words = [*command.words, *(word for wrapper in command.wrappers for word in wrapper.words)]
    return any(piece.variable == name or name in piece.written for word in words for piece in word.pieces)
