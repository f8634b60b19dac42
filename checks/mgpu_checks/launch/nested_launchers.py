"""A launcher is started by another launcher: every rank starts a job of its own."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.launch import LAUNCHER_COMMANDS, bare_command, remove_before, replace_words, typed_rank_layers
from mgpu_checks.verdict import confirmed, each_rank, place_of, probed, subject_of
from mgpu_doctor.authoring import (
    Case,
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
    delete_words,
    observed,
    report,
)

RULE = Rule(
    code="MGD105",
    slug="nested-launchers",
    title="A launcher inside a launcher",
    severity=Severity.ERROR,
    summary="Each rank of the outer launcher starts a whole job of its own.",
    why=(
        "The outer launcher starts one copy of the inner one for every GPU, and each copy starts its own ranks: N×N "
        "processes on N GPUs, which fight for one port or run out of memory. `llamafactory-cli train` is a launcher "
        "too: with more than one visible GPU it starts torchrun itself, so it must not stand under another one. Keep "
        "one launcher; under an outer one, LLaMA-Factory's module to launch is `llamafactory.launcher`."
    ),
    bad=(
        Example(
            "torchrun's module in accelerate",
            "accelerate launch --num_processes 4 -m torch.distributed.run --nproc_per_node 4 train.py",
        ),
        Example("the command in another launcher", "torchrun --nproc_per_node 4 -m llamafactory.cli train sft.yaml"),
        Example(
            "as a program of its own",
            "accelerate launch --num_processes 4 --no_python llamafactory-cli train sft.yaml",
        ),
        Example("torchrun as if it were a script", "accelerate launch --num_processes 4 torchrun train.py", facts=None),
        Example("one torchrun for each MPI process", "mpirun -np 8 torchrun --nproc_per_node 8 train.py"),
        Example(
            "seen: four processes in two groups",
            "bash -c ./start.sh",
            observation=probed([0, 1, 0, 1], world_size=[2, 2, 2, 2], rank=[0, 1, 0, 1]),
        ),
        Example("deepspeed in torchrun", "torchrun --nproc_per_node 2 --no_python deepspeed --num_gpus 2 train.py"),
    ),
    good=(
        Example("seen: one group", "bash -c ./start.sh", observation=probed([0, 1])),
        Example("the module that starts nothing", "torchrun --nproc_per_node 4 -m llamafactory.launcher sft.yaml"),
        Example("one for each host", "mpirun -np 2 -npernode 1 --hostfile h torchrun --nproc_per_node 8 train.py"),
        Example("the command alone", "llamafactory-cli train sft.yaml"),
        Example(
            "one process sees one GPU",
            "CUDA_VISIBLE_DEVICES=0 torchrun --nproc_per_node 1 -m llamafactory.cli train sft.yaml",
        ),
        Example(
            "one launcher for each node", "srun --nodes 2 --ntasks-per-node 1 torchrun --nproc_per_node 8 train.py"
        ),
        Example(
            "an engine is no launcher",
            "accelerate launch --use_deepspeed --num_processes 4 train.py --deepspeed z.json",
        ),
    ),
    sources=(
        Reference(
            "llamafactory 0.9.5 with FORCE_TORCHRUN=1, torchrun --nproc-per-node 2 of llamafactory-cli train",
            "a torchrun of its own in every rank",
            ran=True,
        ),
        Reference(
            "llamafactory 0.8.3 cli.py main(), 0.9.3 cli.py main(), 0.9.5 launcher.py launch()",
            "train is handed to torchrun when more than one device is visible, also inside a rank",
        ),
    ),
    fix="Keep one launcher",
    fixable=True,
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each launch with a launcher inside a launcher, said beforehand or seen in a run."""
    said = [*_said(case)]
    seen = [*_seen(case)]
    yield from confirmed(said, (finding.message for finding in seen)) if said else seen


def _seen(case: Case) -> Iterator[Finding]:
    """Several groups of several processes, out of one command."""
    if case.observation is None:
        return
    ranks = observed.present(case.observation)
    groups = observed.group_count(case.observation)
    size = observed.world_of(ranks[0]) if ranks else None
    if groups is None or groups < 2 or size is None or size < 2:
        return
    yield report(
        RULE,
        f"{len(ranks)} processes ran, in {groups} groups of {size}: a launcher was started {groups} times, each time "
        "with a job of its own.",
        place_of(case),
        subject=subject_of(case),
        evidence=each_rank(ranks),
        fix=Fix("start the launcher once"),
    )


def _said(case: Case) -> Iterator[Finding]:
    for launch in case.launches:
        layers = typed_rank_layers(launch)
        if not layers:
            continue
        inner = _inner(case, launch, layers)
        if inner is not None:
            yield inner


def _inner(case: Case, launch: Launch, layers: tuple[Layer, ...]) -> Finding | None:
    if len(layers) > 1:
        return _two(launch, layers)
    name = bare_command(case, launch)
    if name is not None and name in LAUNCHER_COMMANDS:
        return _as_script(launch, layers[0], name)
    return _by_itself(launch, layers[0]) or _by_mpi(launch, layers[0])


def _by_mpi(launch: Launch, inner: Layer) -> Finding | None:
    """Mpirun on this machine alone: as many copies of the launcher as it is told to start."""
    outer = launch.layer("mpirun")
    asked, started = _asked(outer) if outer is not None else None, _asked(inner)
    if outer is None or asked is None or asked < 2 or started is None or started < 2:
        return None
    if any(outer.option(dest) is not None for dest in ("hostfile", "host", "ntasks_per_node")):
        return None
    return report(
        RULE,
        f"mpirun starts {asked} copies of {inner.launcher}, and each starts {started} processes: "
        f"{asked * started} where {started} are meant.",
        launch.command.locate(inner.span),
        related=(Evidence("the outer launcher is mpirun", launch.command.locate(outer.span)),),
        fix=Fix(
            f"start {inner.launcher} without mpirun",
            remove_before(launch, outer.command_words[0], inner.command_words[0]),
        ),
    )


def _two(launch: Launch, layers: tuple[Layer, ...]) -> Finding:
    outer, inner = layers[0], layers[1]
    edits = remove_before(launch, outer.command_words[0], inner.command_words[0])
    if inner.command_words[0].value in {
        "torch.distributed.run",
        "torch.distributed.launch",
        "accelerate.commands.launch",
    }:
        edits = remove_before(launch, outer.command_words[0], inner.command_words[0], "python -m ")
    return report(
        RULE,
        f"{outer.launcher} starts {_copies(outer)} of {inner.launcher}, and each starts a job of its own.",
        launch.command.locate(inner.span),
        related=(Evidence(f"the outer launcher is {outer.launcher}", launch.command.locate(outer.span)),),
        fix=Fix(f"keep {inner.launcher} alone", edits),
    )


def _as_script(launch: Launch, outer: Layer, name: str) -> Finding | None:
    word = launch.target.word
    if word is None:
        return None
    return report(
        RULE,
        f"{name} is a launcher inside {outer.launcher}; here {outer.launcher} even takes the word for a Python file in "
        "the working directory.",
        launch.command.locate(word.span),
        related=(Evidence(f"the outer launcher is {outer.launcher}", launch.command.locate(outer.span)),),
        fix=Fix(f"keep {name} alone", remove_before(launch, outer.command_words[0], word)),
    )


def _by_itself(launch: Launch, outer: Layer) -> Finding | None:
    """A framework's command that starts torchrun on its own."""
    position = launch.layers.index(outer)
    command = next((layer for layer in launch.layers[position + 1 :] if layer.launcher in _STARTERS), None)
    if command is None:
        return None
    given = launch.target.subcommand
    implied = any(layer.implied for layer in launch.layers[position + 1 :])
    if command.launcher == "llamafactory-cli" and not implied:
        # Nobody knows how many GPUs are visible, but the outer launcher is asked for several processes.
        asked = _asked(outer)
        if given != "train" or asked is None or asked < 2 or launch.processes_per_node.known is not None:
            return None
    elif not implied:
        return None
    word = launch.target.subcommand_word or command.command_words[0]
    return report(
        RULE,
        f"`{command.launcher} {given}` starts torchrun itself, and {outer.launcher} starts {_copies(outer)} of "
        "it: every rank becomes a job of its own.",
        launch.command.locate(word.span),
        related=(Evidence(f"the outer launcher is {outer.launcher}", launch.command.locate(outer.span)),),
        fix=_fix(launch, outer, command),
    )


_STARTERS = frozenset({"llamafactory-cli", "swift", "megatron"})


def _fix(launch: Launch, outer: Layer, command: Layer) -> Fix:
    last = launch.target.subcommand_word
    if command.launcher != "llamafactory-cli" or last is None:
        return Fix(
            "start it without the outer launcher",
            remove_before(launch, outer.command_words[0], command.command_words[0]),
        )
    name = command.command_words[-1]
    own_switch = outer.option("no_python")
    module = outer.option("module")
    edits: tuple[Edit, ...] = ()
    switch = "--module" if outer.launcher == "deepspeed" else "-m"
    text = "llamafactory.launcher" if module is not None else f"{switch} llamafactory.launcher"
    edits = replace_words(launch, name, last, text)
    if edits and own_switch is not None:
        edits = (delete_words(launch.command.source, own_switch.span), *edits)
    return Fix("let the outer launcher start llamafactory.launcher, which starts nothing itself", edits)


def _asked(layer: Layer) -> int | None:
    """How many processes the outer launcher's own options ask for."""
    for dest in ("nproc_per_node", "num_processes", "num_gpus", "ntasks"):
        option = layer.option(dest)
        if option is not None and option.value is not None and option.value.isdigit():
            return int(option.value)
    return None


def _copies(layer: Layer) -> str:
    asked = _asked(layer)
    return f"{asked} copies" if asked is not None else "one copy for every GPU"
