"""Text that is not what it looks like: the rules of this family, and how they find commands that fell apart."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_doctor.authoring import (
    Case,
    Command,
    Launch,
    Location,
    Mark,
    Script,
    Source,
    Span,
    Variable,
    dataclass,
    pattern,
)

BASH = "bash 5.2.15"

_LAUNCHERS = (
    r"(?:torchrun|accelerate(?:-launch)?|deepspeed(?:\.pt)?|llamafactory-cli|lmf|swift|axolotl|xtuner|colossalai|horovodrun"
    r"|composer|srun|mpirun|mpiexec|python[\d.]*)"
)
RENDEZVOUS = frozenset(
    {"MASTER_ADDR", "MASTER_PORT", "NNODES", "NODE_RANK", "NPROC_PER_NODE", "RANK", "WORLD_SIZE", "LOCAL_RANK"}
)
_KNOBS = pattern(
    r"(?:CUDA|NCCL|HF|TRANSFORMERS|HUGGINGFACE|TORCH|PYTORCH|TORCHELASTIC|ACCELERATE|DEEPSPEED|DS|GLOO|UCX|FSDP|VLLM|WANDB"
    r"|NVIDIA|HIP|ROCR|ASCEND|XLA|OMPI_MCA|TRITON|SWIFT|UCC|SHARP|OMP|MKL|TOKENIZERS|RAY)_[A-Z0-9_]+"
    r"|TOKENIZERS_PARALLELISM|FORCE_TORCHRUN|USE_MODELSCOPE_HUB|CUDA_HOME|MODELSCOPE_CACHE"
)


def is_knob(name: str) -> bool:
    """Whether a launcher, CUDA, NCCL or a library reads a variable of this name from its environment."""
    return name in RENDEZVOUS or _KNOBS.fullmatch(name) is not None


def scripts_with_launches(case: Case) -> Iterator[tuple[Script, tuple[Command, ...]]]:
    """Every script that holds a launch, with the commands that launch."""
    launching = {id(launch.command) for launch in case.launches}
    for script in case.scripts:
        commands = tuple(command for command in script.commands if id(command) in launching)
        if commands:
            yield script, commands


def scripts_that_mean_to_launch(case: Case) -> Iterator[tuple[Script, tuple[Command, ...]]]:
    """Every script that holds a launch, or a command that begins like one but is not whole."""
    launching = {id(launch.command) for launch in case.launches}
    pattern = re.compile(
        r"(?:\S*/)?" + _LAUNCHERS + r"(?![\w.-])|(?:\S*/)?" + _LAUNCHERS + "[-\u2010-\u2015\u00a0\u3000]"
    )
    for script in case.scripts:
        commands = []
        for command in script.commands:
            shown = command.words[0].shown if command.words else ""
            if id(command) in launching or pattern.match(shown):
                commands.append(command)
        if commands:
            yield script, tuple(commands)


def region_of(script: Script) -> tuple[str, int]:
    """The source's own lines from which a script was read, prompts included, and the offset where they begin."""
    excerpt = script.excerpt
    text = script.source.text
    if not excerpt.text:
        return "", 0
    if script.source.kind == "notebook":
        # Each line with ! is a script of its own; the cells' text is what they share.
        return text, 0
    start = line_start(script.source, excerpt.locate(0, 1).start)
    end = line_end(script.source, excerpt.locate(len(excerpt.text) - 1, len(excerpt.text)).start)
    if script.source.kind == "markdown":
        # Magics stand above the first line of a block that goes to a shell.
        fence = max(text.rfind("```", 0, start), text.rfind("~~~", 0, start))
        start = min(start, line_end(script.source, fence) + 1) if fence >= 0 else start
    return text[start:end], start


def marks_of(script: Script, kind: str) -> tuple[Mark, ...]:
    """The marks of one kind."""
    return tuple(mark for mark in script.marks if mark.kind == kind)


def looks_like_option(command: Command) -> bool:
    """Whether a command begins with what can only be an option of the command above: ``--lr``, ``a.b=c``."""
    if not command.words:
        return False
    start = command.words[0].known_prefix
    return re.match(r"--?[A-Za-z][\w-]*(?:=|$)|\+{0,2}[A-Za-z_]\w*(?:\.\w+)+=", start) is not None


def _lacks_target(launch: Launch) -> bool:
    """Whether a launcher was given options but nothing to run."""
    return any(problem.kind == "missing-target" for layer in launch.layers for problem in layer.problems)


def _is_program(command: Command) -> bool:
    """Whether a command that begins its line with blanks is a Python file, as the script of a launcher above is."""
    start = command.span.start
    shown = command.words[0].shown if command.words else ""
    return shown.endswith(".py") and command.source.text[start - 1 : start] in (" ", "\t")


@dataclass(frozen=True, slots=True)
class Break:
    """A place where a launch command ends although its options go on.

    ``head`` is the launch, ``before`` the command that ends (the head, or what was
    broken off it), ``fragment`` the command that its next options became. ``cause``: ``blank``, ``comment``,
    ``newline``,
    ``separator``.
    """

    script: Script
    head: Command
    before: Command
    fragment: Command
    cause: str

    @property
    def gap(self) -> Span:
        """What stands between the two."""
        return Span(self.before.span.end, self.fragment.span.start)


def breaks(case: Case) -> Iterator[Break]:
    """Every place where options of a launch are cut off it."""
    empty = {id(launch.command) for launch in case.launches if _lacks_target(launch)}
    for script, launches in scripts_that_mean_to_launch(case):
        heads = {id(command) for command in launches}
        commands = sorted(script.commands, key=lambda command: command.span)
        head = before = None
        for command in commands:
            belongs = looks_like_option(command) or (before is head and id(head) in empty and _is_program(command))
            if before is not None and head is not None and belongs:
                cause = _cause(script, before, command)
                if cause is not None:
                    yield Break(script, head, before, command, cause)
                    before = command
                    continue
            if id(command) in heads:
                head = before = command
            elif before is not None and command.span.start >= before.span.end:
                head = before = None


def _cause(script: Script, before: Command, after: Command) -> str | None:
    source = script.source
    if after.span.start < before.span.end:
        return None
    gap = source.text[before.span.end : after.span.start]
    if _ends_in_blanks(script, before, after):
        return "blank"
    comments = [
        mark
        for mark in marks_of(script, "comment")
        if before.span.end <= mark.span.start and mark.span.end <= after.span.start
    ]
    rest = gap
    for mark in reversed(comments):
        rest = rest[: mark.span.start - before.span.end] + rest[mark.span.end - before.span.end :]
    if re.search(r"[|&;]", rest):
        return "separator" if rest.count("\n") <= 1 else None
    bare = re.sub(r"[ \t>\r\\]", "", rest)
    if bare.strip("\n"):
        return None
    if comments:
        return "comment" if bare.count("\n") <= len(comments) + 1 else None
    return "newline" if bare.count("\n") == 1 else None


def _ends_in_blanks(script: Script, before: Command, after: Command) -> bool:
    """Whether a backslash with blanks behind it stands in ``before``: what it left whole may end anywhere below."""
    return any(before.span.start < mark.span.start < after.span.start for mark in marks_of(script, "escaped-blank"))


def line_start(source: Source, offset: int) -> int:
    """Where the line of an offset begins."""
    return source.text.rfind("\n", 0, offset) + 1


def line_end(source: Source, offset: int) -> int:
    """Where the line of an offset ends, its newline excluded."""
    end = source.text.find("\n", offset)
    return len(source.text) if end < 0 else end


def location_in(source: Source, start: int, end: int) -> Location:
    """A location in a source."""
    return Location(source, Span(start, end))


def refers_to(command: Command, name: str) -> bool:
    """Whether a command's words, or its wrappers', use a variable."""
    words = [*command.words, *(word for wrapper in command.wrappers for word in wrapper.words)]
    pattern = re.compile(rf"\${{?{name}\b")
    return any(piece.variable == name for word in words for piece in word.pieces) or any(
        pattern.search(word.written) for word in words
    )


def once(variables: Iterator[Variable]) -> Iterator[Variable]:
    """Variables, each place once."""
    seen = set()
    for variable in variables:
        key = None if variable.location is None else (variable.location.source.name, variable.location.span)
        if key not in seen:
            seen.add(key)
            yield variable
