"""What gets started, and by whom: the rules of this family, and what several of them ask of a launch."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_doctor.authoring import (
    RANK_LAUNCHERS,
    Case,
    Command,
    Edit,
    Launch,
    Layer,
    Option,
    OptionSpec,
    ParseProblem,
    Program,
    Span,
    Unknown,
    Word,
    is_before,
    replace,
)

TABLES = {
    "accelerate": ("accelerate launch", "accelerate"),
    "deepspeed": ("deepspeed", "deepspeed"),
    "torchrun": ("torchrun", "torch"),
    "torch.distributed.run": ("torchrun", "torch"),
    "torch.distributed.launch": ("torch.distributed.launch", "torch"),
}
"""Rank launcher → the name of its option table, and the distribution that it comes with."""

INTERACTIVE_COMMANDS = frozenset({"chat", "webchat", "webui", "api"})
"""LLaMA-Factory's sub-commands that talk or serve for as long as they run."""

LLAMAFACTORY_COMMANDS = frozenset({"llamafactory-cli", "lmf"})

OTHER_COMMANDS = frozenset(
    {
        "axolotl",
        "bash",
        "fairseq-generate",
        "fairseq-train",
        "lightning",
        "litgpt",
        "lm-eval",
        "lm_eval",
        "megatron",
        "py.test",
        "pytest",
        "sh",
        "swift",
        "trl",
        "tune",
        "vllm",
        "xtuner",
    }
)
"""Further console commands that people put behind a launcher."""

SERVERS = frozenset({"chainlit", "gradio", "jupyter", "jupyter-lab", "streamlit", "tensorboard", "uvicorn"})
SERVING_COMMANDS = frozenset(
    {
        ("vllm", "serve"),
        ("vllm", "chat"),
        ("trl", "chat"),
        ("trl", "vllm-serve"),
        ("swift", "app"),
        ("swift", "deploy"),
        ("swift", "rollout"),
        ("swift", "web-ui"),
        ("lmdeploy", "serve"),
        ("lmdeploy", "chat"),
        ("sglang", "serve"),
        ("axolotl", "inference"),
    }
)
"""Sub-commands of console commands that serve or talk."""

LAUNCHER_COMMANDS = frozenset(
    {"accelerate", "accelerate-launch", "torchrun", "deepspeed", "deepspeed.pt", "ds", "mpirun", "mpiexec", "srun"}
)
"""Console commands that start ranks themselves."""


def typed_rank_layers(launch: Launch) -> tuple[Layer, ...]:
    """The layers that start ranks and that somebody typed, outermost first."""
    return tuple(layer for layer in launch.layers if layer.launcher in RANK_LAUNCHERS and not layer.implied)


def script_name(launch: Launch) -> str | None:
    """The script as given to a rank launcher, without its directory; None when it is no script or not known."""
    target = launch.target
    if target.kind != "script" or target.value is None or not typed_rank_layers(launch):
        return None
    return target.value.rsplit("/", 1)[-1]


def bare_command(case: Case, launch: Launch) -> str | None:
    """The console command that stands where a rank launcher wants a Python file, else None.

    A name with a directory is a file, and one without a directory may be a file of the working directory.
    """
    target = launch.target
    name = script_name(launch)
    if name is None or target.value is None or "/" in target.value or "." in name:
        return None
    return None if case.workspace.kind(name, launch.command.directory) == "file" else name


def console_command(case: Case, launch: Launch) -> str | None:
    """The known console command that stands where a rank launcher wants a Python file, else None."""
    name = bare_command(case, launch)
    if name is None:
        return None
    known = name in LLAMAFACTORY_COMMANDS | LAUNCHER_COMMANDS | OTHER_COMMANDS | SERVERS
    return name if known or case.knowledge.script_owner(name) is not None else None


def is_interactive_command(launch: Launch) -> bool:
    """Whether a console command that stands for the script talks to a person or serves."""
    name, words = script_name(launch), launch.target.argument_words
    given = words[0].value if words else None
    if name in LLAMAFACTORY_COMMANDS:
        return given in INTERACTIVE_COMMANDS
    return name in SERVERS or (name, given) in SERVING_COMMANDS


def runs_as_ranks(program: Program | Unknown) -> bool:
    """Whether a program shows that it is meant to run as several ranks."""
    if isinstance(program, Unknown):
        return False
    kinds = (
        "init-process-group",
        "local-rank-use",
        "accelerator",
        "deepspeed-initialize",
        "deepspeed-inference",
        "ddp",
    )
    if program.first(*kinds, "fsdp", "colossalai-launch", "trainer") is not None:
        return True
    names = {"RANK", "LOCAL_RANK", "WORLD_SIZE"}
    return any(seen.detail in names for seen in program.all("reads-variable"))


def several_processes(launch: Launch) -> bool:
    """Whether more than one process may be started: a number above one, or one that nobody knows."""
    return launch.world_size.known is None or launch.world_size.known > 1


def replace_words(launch: Launch, first: Word, last: Word, text: str) -> tuple[Edit, ...]:
    """Edits that put text in the place of the words from ``first`` to ``last``; none when they are not typed there."""
    source = launch.command.source
    span = Span(first.span.start, last.span.end)
    if first.origin is not None or last.origin is not None or not launch.command.span.contains(span):
        return ()
    return (replace(source, span, text),)


def remove_before(launch: Launch, first: Word, kept: Word, text: str = "") -> tuple[Edit, ...]:
    """Edits that remove the words from ``first`` up to ``kept`` and put ``text`` there."""
    span = Span(first.span.start, kept.span.start)
    if first.origin is not None or kept.origin is not None or span.end < span.start:
        return ()
    if not launch.command.span.contains(span):
        return ()
    return (replace(launch.command.source, span, text),)


def version_at_least(version: str | None, *wanted: int) -> bool | None:
    """Whether a version is a release or a later one; None when it is not known."""
    before = is_before(version, *wanted)
    return None if before is None else not before


def llamafactory_launches(case: Case) -> Iterator[tuple[Launch, Layer]]:
    """Launches of LLaMA-Factory's console command, with its layer."""
    for launch in case.launches:
        layer = launch.layer("llamafactory-cli")
        if layer is not None:
            yield launch, layer


def typed_layers(launch: Launch) -> tuple[Layer, ...]:
    """The rank launchers that somebody typed, outermost first."""
    return tuple(layer for layer in launch.layers if layer.launcher in TABLES and not layer.implied)


def parse_problems(case: Case, *kinds: str) -> Iterator[tuple[Launch, Layer, ParseProblem]]:
    """What launchers refuse in their command lines, of these kinds."""
    for launch in case.launches:
        for layer in typed_layers(launch):
            for problem in layer.problems:
                if problem.kind in kinds:
                    yield launch, layer, problem


def command_name(layer: Layer) -> str:
    """The launcher as people type it: ``accelerate launch``, ``python -m torch.distributed.run``."""
    if layer.launcher == "accelerate":
        return "accelerate launch"
    return f"python -m {layer.launcher}" if layer.launcher.startswith("torch.") else layer.launcher


def release_name(layer: Layer) -> str:
    """The distribution and its release: ``torch 2.6.0``; says when the release is only assumed."""
    package = TABLES[layer.launcher][1]
    release = layer.release
    if release is None or release.version is None:
        return package
    return f"{package} {release.version}" + ("" if release.certain else " (the latest known)")


def is_certain(layer: Layer) -> bool:
    """Whether the release that the launcher comes from is known, not assumed."""
    return layer.release is not None and layer.release.certain


def option_specs(case: Case, layer: Layer) -> tuple[OptionSpec, ...]:
    """The launcher's own options; empty when they are not known."""
    specs = case.knowledge.options(TABLES[layer.launcher][0])
    return () if isinstance(specs, Unknown) else tuple(spec for spec in specs if spec.flags)


def stands_at(launch: Launch, span: Span, text: str) -> bool:
    """Whether the text stands literally at the start of a span, so that it can be edited there."""
    return bool(text) and launch.command.source.slice(span).startswith(text)


def is_typed(launch: Launch, option: Option) -> bool:
    """Whether an option stands literally in the text that was read."""
    return stands_at(launch, option.span, option.flag)


def is_switch(spec: OptionSpec) -> bool:
    """Whether an option takes no value."""
    return spec.nargs == 0 or spec.action in {"store_true", "store_false", "store_const", "help", "version"}


def earlier_commands(case: Case, launch: Launch) -> Iterator[Command]:
    """The commands above it in the same text, and above those that call the text."""
    command: Command | None = launch.command
    while command is not None:
        for other in case.commands:
            if other.source is command.source and other.span.start < command.span.start:
                yield other
        command = command.called_from


THIS_MACHINE = "this machine"
"""The origin of facts that were looked up here, for the environment that the commands themselves choose."""

_ENVIRONMENT_CHANGERS = frozenset(
    {"source", ".", "conda", "mamba", "micromamba", "module", "ml", "spack", "eval", "pyenv", "workon", "pixi"}
)
_INSTALLERS = frozenset({"pip", "pip3", "uv", "poetry", "pdm", "pipenv", "apt", "apt-get", "conda", "mamba"})


def changes_environment(case: Case, launch: Launch) -> bool:
    """Whether a command above may put another environment first on PATH than the one that the facts describe.

    Facts of this machine are those of the environment that the commands choose; facts of another are not.
    """
    if case.facts.origin == THIS_MACHINE:
        return False
    return any((command.name or "") in _ENVIRONMENT_CHANGERS for command in earlier_commands(case, launch))


def installs_before(case: Case, launch: Launch) -> bool:
    """Whether a command above may install packages."""
    for command in earlier_commands(case, launch):
        words = [word.value for word in command.words[:5]]
        if "install" in words or "sync" in words:
            name = (command.name or "").rsplit("/", 1)[-1]
            if name in _INSTALLERS or name.startswith("python"):
                return True
    return False
