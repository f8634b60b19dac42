"""A variable that nothing sets is used as an argument: the option loses its value."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_checks.shell import BASH, is_knob
from mgpu_doctor.authoring import (
    Case,
    Command,
    Edit,
    Example,
    Finding,
    Fix,
    Reference,
    Rule,
    Script,
    Severity,
    Source,
    Span,
    Unknown,
    Word,
    closest,
    pattern,
    replace,
    report,
)

RULE = Rule(
    code="MGD810",
    slug="variable-unset",
    title="The variable is never set",
    severity=Severity.WARNING,
    summary="A variable that nothing sets is used as an argument: the option loses its value.",
    why=(
        "An unset variable without quotes leaves no argument at all: `--nproc_per_node $NPRC train.py` "
        "becomes `--nproc_per_node train.py`, and the option takes the next word for its value."
    ),
    bad=(
        Example("misspelt", "NPROC=2\ntorchrun --nproc_per_node $NPORC train.py", facts=None),
        Example(
            "misspelt in a script",
            lint=("run.sh",),
            files={"run.sh": "OUTPUT_DIR=/out\naccelerate launch train.py --output_dir $OUPUT_DIR\n"},
        ),
        Example("unset above", "unset GPUS\ntorchrun --nproc_per_node $GPUS train.py"),
        Example(
            "not in the environment of a script",
            "bash run.sh",
            files={"run.sh": "torchrun --nproc_per_node $NPROC train.py\n"},
        ),
        Example("not in the environment", "torchrun --nproc_per_node $NPROC train.py"),
    ),
    good=(
        Example("set above", "NPROC=2\ntorchrun --nproc_per_node $NPROC train.py"),
        Example("from the caller", lint=("run.sh",), files={"run.sh": "torchrun --nproc_per_node $NPROC train.py\n"}),
        Example("with a default", "torchrun --nproc_per_node ${NPROC:-2} train.py"),
        Example("in the environment", "torchrun --nproc_per_node $NPROC train.py", facts={"env": {"NPROC": "2"}}),
        Example("from the scheduler", "torchrun --nnodes $SLURM_NNODES train.py"),
        Example("nothing is known of the environment", "torchrun --nproc_per_node $NPROC train.py", facts=None),
        Example(
            "given to the script", "NPROC=2 bash run.sh", files={"run.sh": "torchrun --nproc_per_node $NPROC t.py\n"}
        ),
        Example("a parameter", "bash run.sh 4", files={"run.sh": "torchrun --nproc_per_node $1 train.py\n"}),
        Example("numbered names", "CLUSTER_40GB=a\ntorchrun train.py --cluster $CLUSTER_80GB", facts=None),
        Example("nothing but more options", "python train.py $EXTRA_ARGS"),
    ),
    sources=(Reference(BASH, "`printf '<%s>' --a $UNSET b` prints <--a><b>", ran=True),),
    fix="set it, or correct its name",
)

_FROM_OUTSIDE = pattern(
    r"(?:SLURM|PBS|LSB|OMPI|PMI|PMIX|MPI|HYDRA|KUBERNETES|SGE|PJM|COBALT|CI|GITHUB|AZUREML|AZ|SM|VC|MLP|PET|ARNOLD|VOLC|DLC|AWS|XDG|LC"
    r"|SSH|CONDA|VIRTUAL|BASH|COMP|FUNCNAME)_?\w*|[a-z_]|HOME|USER|PWD|OLDPWD|HOSTNAME|HOST|TMPDIR|TMP|TEMP|SHELL|PATH|LANG|TERM"
    r"|LOGNAME|UID|EUID|PPID|RANDOM|SECONDS|LINENO|SCRATCH|WORK|PROJECT|STORE|DATA|OSTYPE|MACHTYPE|DISPLAY|LD_LIBRARY_PATH"
    r"|PYTHONPATH|CUDA_HOME|EPOCHSECONDS|SRANDOM|IFS|OPTARG|OPTIND|PIPESTATUS|JOB_ID|JOBID|WORLD_SIZE|RANK|LOCAL_RANK"
)


def find(case: Case) -> Iterator[Finding]:
    """Unquoted variables in launches that cannot have a value."""
    for launch in case.launches:
        command = launch.command
        script = next((s for s in case.scripts if any(c is command for c in s.commands)), None)
        if script is None:
            continue
        for number, word in enumerate(command.words):
            option = command.words[number - 1].value if number else None
            if option is None or not re.match(r"--?[A-Za-z]", option) or "=" in option:
                continue
            finding = _in_word(case, script, command, option, word)
            if finding is not None:
                yield finding
        yield from _unset(script, command)


def _in_word(case: Case, script: Script, command: Command, option: str, word: Word) -> Finding | None:
    if len(word.pieces) != 1 or word.origin is not None:
        return None
    piece = word.pieces[0]
    name = piece.variable
    if name is None or not re.fullmatch(r"[A-Za-z_]\w*", name):
        return None
    if piece.quoted or piece.written not in (f"${name}", f"${{{name}}}"):
        return None
    if piece.text is not None or _FROM_OUTSIDE.fullmatch(name) or _assigned(script, name):
        return None
    known = {variable.name for variable in script.assignments}
    near = [other for other in closest(name, known) if _typo(name, other)]
    if near and not is_knob(name):
        return _finding(command, word.span, name, option, f"nothing sets it; {near[0]} is set above", near[0])
    environment = case.facts.environment
    if isinstance(environment, Unknown) or name in environment or case.mode == "lint" or _this_machine(case):
        return None
    if not _is_typed_call(command) or _may_be_set(script):
        return None
    return _finding(command, word.span, name, option, "nothing sets it, and it is not in the environment", None)


def _is_typed_call(command: Command) -> bool:
    """Whether nothing but the known environment comes before: the command is typed, or the script that holds it is."""
    caller = command.called_from
    return caller is None or (caller.called_from is None and caller.source.kind == "command")


def _this_machine(case: Case) -> bool:
    """Whether the environment is this process's, of which only a part is looked at."""
    return case.facts.origin == "this machine"


def _unset(script: Script, command: Command) -> Iterator[Finding]:
    """Options whose value is a variable that is unset above: the word is gone, so the text is looked at."""
    names = {v.name for v in command.environment if v.value is None and v.scope == "export"}
    if not names or script.source is not command.source:
        return
    text = command.source.slice(command.span)
    for match in re.finditer(r"(?<!\S)(--?[A-Za-z][\w-]*)[ \t]+(\$\{?(\w+)\}?)(?=\s|$)", text):
        if match.group(3) in names:
            start = command.span.start + match.start(2)
            span = Span(start, start + len(match.group(2)))
            yield _finding(command, span, match.group(3), match.group(1), "it is unset above", None)


def _assigned(script: Script, name: str) -> bool:
    """Whether anything in the text may set the variable: an assignment, ``read``, a loop, a parameter of a function."""
    return (
        re.search(
            rf"(?<![\w$])(?:{name}(?:\+?=|\[)|(?:for|read|local|declare|export|mapfile|getopts)\b[^\n]*\b{name}\b)",
            script.source.text,
        )
        is not None
    )


def _may_be_set(script: Script) -> bool:
    return any(command.name in {"source", ".", "eval", "module"} for command in script.commands)


def _typo(one: str, other: str) -> bool:
    """Whether two names differ by one slip: a letter more, less, changed, or two that changed places."""
    if one.lower() == other.lower() or re.sub(r"\d+", "", one) == re.sub(r"\d+", "", other):
        return False
    if min(len(one), len(other)) < 5 or abs(len(one) - len(other)) > 1:
        return False
    start = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    tail_one, tail_other = one[start:], other[start:]
    return (
        tail_one[1:] == tail_other[1:]
        or tail_one[1:] == tail_other
        or tail_one == tail_other[1:]
        or (tail_one[:2] == tail_other[1::-1] and tail_one[2:] == tail_other[2:])
    )


def _finding(command: Command, span: Span, name: str, option: str, reason: str, near: str | None) -> Finding:
    fix = Fix(f"set {name}")
    if near is not None:
        edit = _rename(command.source, span, name, near)
        fix = Fix(f"write ${near}", () if edit is None else (edit,))
    return report(RULE, f"{option} gets no value: ${name} is empty, {reason}.", command.locate(span), fix=fix)


def _rename(source: Source, span: Span, name: str, near: str) -> Edit | None:
    at = source.slice(span).find(name)
    return None if at < 0 else replace(source, Span(span.start + at, span.start + at + len(name)), near)
