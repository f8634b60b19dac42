"""A rank's own variable is expanded once, in the shell that starts the ranks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_doctor.authoring import (
    Case,
    Command,
    Edit,
    Example,
    Finding,
    Fix,
    Location,
    Reference,
    Rule,
    Severity,
    Source,
    Span,
    Variable,
    Word,
    Wrapper,
    insert,
    replace,
    report,
)

RULE = Rule(
    code="MGD308",
    slug="expanded-too-early",
    title="Every rank gets the same number",
    severity=Severity.ERROR,
    summary="A rank's own variable is expanded once, in the shell that starts the ranks.",
    why=(
        "srun sets SLURM_PROCID, SLURM_NODEID and SLURM_LOCALID for every task. Outside single "
        "quotes the batch shell expands "
        "them before srun starts anything, where they are 0 or unset: every node gets rank 0, and "
        "the job hangs or runs twice."
    ),
    bad=(
        Example(
            "double quotes",
            'srun bash -c "torchrun --nnodes 2 --node_rank $SLURM_PROCID --master_addr 10.0.0.1 train.py"',
            facts=None,
        ),
        Example(
            "no quotes",
            lint=("job.sbatch",),
            files={
                "job.sbatch": "#!/bin/bash\n#SBATCH --nodes=2\nsrun torchrun --nnodes 2 --node_rank ${SLURM_NODEID} "
                "--master_addr 10.0.0.1 train.py\n"
            },
        ),
        Example(
            "exported in the batch shell",
            lint=("job.sbatch",),
            files={"job.sbatch": "#SBATCH -N 2\nexport NODE_RANK=$SLURM_NODEID\nsrun llamafactory-cli train a.yaml\n"},
        ),
    ),
    good=(
        Example(
            "single quotes",
            "srun bash -c 'torchrun --nnodes 2 --node_rank $SLURM_PROCID --master_addr 10.0.0.1 train.py'",
        ),
        Example(
            "escaped", 'srun bash -c "torchrun --nnodes 2 --node_rank \\$SLURM_PROCID --master_addr 10.0.0.1 train.py"'
        ),
        Example(
            "the same for every rank", 'srun bash -c "torchrun --nnodes $SLURM_NNODES --rdzv_id $SLURM_JOB_ID train.py"'
        ),
        Example(
            "the rendezvous hands out ranks",
            "srun torchrun --nnodes 2 --node_rank $SLURM_NODEID --rdzv_backend c10d --rdzv_endpoint "
            "10.0.0.1:29500 train.py",
        ),
        Example("without srun", "torchrun --nnodes 2 --node_rank $SLURM_NODEID --master_addr 10.0.0.1 train.py"),
    ),
    sources=(
        Reference(
            "Slurm 22.05.8, srun(1) OUTPUT ENVIRONMENT VARIABLES",
            "SLURM_PROCID, SLURM_NODEID, SLURM_LOCALID are set per task",
        ),
        Reference(
            "bash 5.2.15",
            '`X=0 bash -c "bash -c \\"echo $X\\""`: the outer shell expands inside double quotes',
            ran=True,
        ),
    ),
    fix="let the shell on the node expand it: srun bash -c '… $SLURM_PROCID …'",
    fixable=False,
)

_PER_TASK = frozenset(
    {
        "SLURM_PROCID",
        "SLURM_NODEID",
        "SLURM_LOCALID",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "PMI_RANK",
        "PMIX_RANK",
        "MPI_LOCALRANKID",
    }
)
_STARTERS = frozenset({"srun", "mpirun", "mpiexec", "mpiexec.hydra", "orterun", "prterun"})
_SHELLS = frozenset({"bash -c", "sh -c", "zsh -c", "dash -c", "ksh -c", "bash", "sh", "eval", "env -S"})
_RANKS = frozenset({"RANK", "NODE_RANK", "LOCAL_RANK", "MACHINE_RANK", "GROUP_RANK"})


def find(case: Case) -> Iterator[Finding]:
    """Launches under srun or mpirun whose words or rank variables are expanded outside."""
    seen: set[tuple[int, Span]] = set()
    for launch in case.launches:
        command = launch.command
        at = next((n for n, wrapper in enumerate(command.wrappers) if wrapper.name in _STARTERS), None)
        if at is None:
            continue
        starter = command.wrappers[at]
        has_shell = any(wrapper.name in _SHELLS for wrapper in command.wrappers[at + 1 :])
        for word in command.words:
            name = _expanded_outside(command, starter, word, has_shell=has_shell)
            if name is not None and (id(command.source), word.span) not in seen and not _ignored(command, word):
                seen.add((id(command.source), word.span))
                yield _finding(command, starter, word, name, has_shell=has_shell)
        for variable in command.environment:
            if variable.name in _RANKS and _set_before(variable, command.source, starter):
                name = _per_task(variable.value)
                if name is not None:
                    yield _for_variable(command, starter, variable, name)


def _ignored(command: Command, word: Word) -> bool:
    """Whether the word is a node's rank and the rendezvous hands out ranks by itself (every backend but static)."""
    shown = [one.shown for one in command.words]
    at = next((n for n, one in enumerate(command.words) if one is word), 0)
    option = word.known_prefix if "=" in word.known_prefix else shown[at - 1]
    if not re.match(r"--(?:machine|node)[-_]rank", option):
        return False
    return re.search(r"--rdzv[-_]backend[= ](?:c10d|etcd)", " ".join(shown)) is not None


def _per_task(word: Word | None) -> str | None:
    names = () if word is None else word.unknown_variables
    return next((name for name in names if name in _PER_TASK), None)


def _set_before(variable: Variable, source: Source, starter: Wrapper) -> bool:
    location = variable.location
    return location is not None and (location.source != source or location.span.end <= starter.words[0].span.start)


def _expanded_outside(command: Command, starter: Wrapper, word: Word, *, has_shell: bool) -> str | None:
    """The per-task variable that an outer shell puts into a word, None when there is none."""
    for piece in word.pieces:
        if piece.text is not None or piece.variable not in _PER_TASK:
            continue
        if piece.early or not has_shell:
            return piece.variable
        if piece.variable not in piece.written:
            name = re.sub(r"[${}]", "", piece.written)
            variable = command.variable(name)
            if variable is not None and _set_before(variable, command.source, starter):
                return piece.variable
    return None


def _finding(command: Command, starter: Wrapper, word: Word, name: str, *, has_shell: bool) -> Finding:
    program = starter.words[0].shown
    return report(
        RULE,
        f"${name} is expanded once, before {program} starts the tasks: every task gets the same `{word.written}`.",
        command.locate(word.span),
        fix=_escaped(command, word, name) if has_shell else _wrapped(command, program, name),
    )


def _escaped(command: Command, word: Word, name: str) -> Fix:
    """A backslash before the dollar sign lets the inner shell expand it."""
    source = command.source
    match = re.search(rf"(?<!\\)\$(?:{name}\b|{{{name}\b)", source.slice(word.span))
    edits = () if match is None else (insert(source, word.span.start + match.start(), "\\"),)
    return Fix(f"escape it: \\${name}", edits, safe=bool(edits))


def _wrapped(command: Command, program: str, name: str) -> Fix:
    """``bash -c '…'`` around the command, when nothing else in it needs the outer shell."""
    source = command.source
    title = f"{program} … bash -c '… ${name} …'"
    if any(word.origin is not None for word in command.words):
        return Fix(title)
    span = Span(command.words[0].span.start, command.words[-1].span.end)
    text = source.slice(span)
    others = {piece.variable for word in command.words for piece in word.pieces if piece.variable} - _PER_TASK
    exported = {variable.name for variable in command.environment}
    edits: tuple[Edit, ...] = ()
    if "'" not in text and others <= exported | {name for name in others if name and name.startswith("SLURM_")}:
        edits = (replace(source, span, f"bash -c '{text}'"),)
    return Fix(title, edits)


def _for_variable(command: Command, starter: Wrapper, variable: Variable, name: str) -> Finding:
    program = starter.words[0].shown
    location: Location | None = variable.location
    return report(
        RULE,
        f"{variable.name} takes ${name} from the shell that calls {program}: every task gets the same rank.",
        location,
        subject=None if location is not None else variable.name,
        fix=Fix(
            f"set it in the task: {program} … bash -c 'export {variable.name}=${name}; {command.words[0].shown} …'"
        ),
    )
