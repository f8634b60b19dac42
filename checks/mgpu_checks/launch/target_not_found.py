"""The script, module or configuration file does not exist where the command is typed."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.launch import bare_command, console_command, earlier_commands, replace_words
from mgpu_doctor.authoring import (
    Case,
    ConfigFile,
    Example,
    Finding,
    Fix,
    Launch,
    Location,
    Reference,
    Rule,
    Severity,
    Signature,
    Unknown,
    Word,
    closest,
    insert,
    replace,
    report,
)

RULE = Rule(
    code="MGD110",
    slug="target-not-found",
    title="The script, module or file does not exist",
    severity=Severity.ERROR,
    summary="What is to be launched, or a file that it reads first, does not exist relative to the working directory.",
    why=(
        "A launcher passes the script's path on as it is. When it does not exist, every rank ends with \"can't open "
        'file", after the launcher has taken its port and often after minutes in a queue. Paths count from the '
        "directory where the command is typed, not from the script's own."
    ),
    bad=(
        Example("a slip of the keys", "torchrun --nproc_per_node 2 trian.py", files={"train.py": "pass\n"}),
        Example("another directory", "accelerate launch --multi_gpu train.py --lr 1", files={"src/train.py": "pass\n"}),
        Example("without a machine", "deepspeed --num_gpus 2 finetune.py", files={"train.py": "pass\n"}, facts=None),
        Example(
            "accelerate's configuration",
            "accelerate launch --config_file acc.yml train.py",
            files={"train.py": "pass\n", "acc.yaml": "num_processes: 2\n"},
        ),
        Example(
            "LLaMA-Factory's file",
            "llamafactory-cli train examples/stf.yaml",
            files={"examples/sft.yaml": "do_train: true\n"},
        ),
        Example(
            "the DeepSpeed file inside it",
            "llamafactory-cli train sft.yaml",
            files={"sft.yaml": "do_train: true\ndeepspeed: ds_z3.json\n", "ds_z2.json": "{}"},
        ),
        Example(
            "a module of the project",
            "torchrun --nproc_per_node 2 -m mytrain.rum",
            files={"mytrain/__init__.py": "", "mytrain/run.py": "pass\n"},
        ),
        Example("a module's name without -m", "torchrun --nproc_per_node 2 mytrain.recipes.sft --lr 1", facts=None),
    ),
    good=(
        Example("a typographic dash is another rule's", "torchrun \u2014nproc_per_node 4 train.py"),
        Example(
            "an option without its value too", "accelerate launch --num_cpu_threads_per_process --multi_gpu 2 t.py"
        ),
        Example("it exists", "torchrun --nproc_per_node 2 src/train.py", files={"src/train.py": "pass\n"}),
        Example("an absolute path of another machine", "torchrun --nproc_per_node 2 /data/train.py"),
        Example("the name is not known", "torchrun --nproc_per_node 2 $SCRIPT"),
        Example("it is fetched first", "git clone https://host/x/y .\ntorchrun --nproc_per_node 2 train.py"),
        Example(
            "it is copied first", "cp base.py train.py\ntorchrun --nproc_per_node 2 train.py", files={"base.py": ""}
        ),
        Example("it is written first", "echo 'pass' > train.py\ntorchrun --nproc_per_node 2 train.py"),
        Example("inside a container", "docker run --gpus all image torchrun --nproc_per_node 2 train.py"),
        Example(
            "another directory first",
            "cd src && torchrun --nproc_per_node 2 train.py",
            files={"src/train.py": "pass\n"},
        ),
        Example("a text whose place is not known", lint=("run.sh",), files={"run.sh": "torchrun train.py\n"}),
        Example(
            "an option -m of a script in a folder that is not known",
            "HERE=$(dirname $0)\nTOOL=${HERE}/bench.py\npython ${TOOL} -m base-7b",
        ),
        Example(
            "a folder without any such file",
            lint=("a.md",),
            files={"a.md": "```bash\ncd docs\npython bench.py\n```\n", "docs/index.md": ""},
        ),
        Example("an installed module", "torchrun --nproc_per_node 2 -m llamafactory.launcher --stage sft"),
    ),
    sources=(
        Reference(
            "torch 2.13.0, distributed/run.py config_from_args(); accelerate 1.7.0, utils/launch.py; "
            "deepspeed 0.16.9, launcher/launch.py",
            "the script's path is handed to the interpreter as it is, relative to the working directory",
        ),
        Reference(
            "accelerate 1.7.0, commands/config/config_args.py load_config_from_file()",
            "a --config_file that is no file is refused",
        ),
    ),
    fix="Name the file that exists",
    signatures=(
        Signature(
            r"can't open file '[^']+\.(?:py|pyz|sh)': \[Errno 2\]",
            "Python 3.11, the script of python, accelerate, torchrun and deepspeed",
            "/opt/env/bin/python: can't open file '/home/me/trian.py': [Errno 2] No such file or directory",
        ),
        Signature(
            r"The passed configuration file `[^`]*` does not exist",
            "accelerate 1.7.0 and 1.15.0, commands/config/config_args.py load_config_from_file()",
            "FileNotFoundError: The passed configuration file `acc.yml` does not exist. Please pass an "
            "existing file to `accelerate launch`, or use the default one created through `accelerate config` "
            "and run `accelerate launch` without the `--config_file` argument.",
        ),
        Signature(
            r"^\S*python[\d.]*: (?:No module named (?!\S+\.__main__)|Error while finding module specification for )"
            r"(?!'?(?:accelerate|deepspeed|torch|llamafactory|swift|axolotl)\b)",
            "Python 3.11, runpy, python -m of a module that is not there",
            "/opt/env/bin/python: No module named mytrain",
        ),
        Signature(
            r"^(?:\S*bash|\S*sh|zsh): (?:line \d+: )?[^:]+\.sh: No such file or directory|^(?:sh|dash): \d+: "
            r"cannot open \S+: No such file",
            "bash 5.2, dash 0.5.12",
            "bash: run.sh: No such file or directory",
        ),
        Signature(
            r"FileNotFoundError: \[Errno 2\] No such file or directory: '[^']+\.(?:ya?ml|json|toml)'",
            "Python 3.11, a configuration file that a framework opens",
            "FileNotFoundError: [Errno 2] No such file or directory: 'sft.yaml'",
            weak=True,
        ),
    ),
)

_MAKERS = frozenset(
    {"git", "wget", "curl", "tar", "unzip", "gdown", "rsync", "hf", "huggingface-cli", "modelscope", "aws"}
)
_NAMERS = frozenset({"cp", "mv", "ln", "touch", "tee", "sed", "install", "python", "python3", "cat", "echo", "printf"})
_FILE_ENDINGS = (
    ".py",
    ".sh",
    ".pyc",
    ".pyz",
    ".zip",
    ".yaml",
    ".yml",
    ".json",
    ".toml",
    ".bash",
    ".ipynb",
    ".txt",
    ".exe",
)
_MOST_DIRECTORIES = 40


_STOPPING = frozenset({"missing-value", "invalid-value"})
"""What stops a launcher's parser, so that the word which it would take for the script may be none."""


def find(case: Case) -> Iterator[Finding]:
    """One finding for each file of a launch that is not there."""
    for launch in case.launches:
        found = [*_target(case, launch), *_missing_configs(case, launch)]
        # Only now, because it looks at every command above.
        if found and not _made_before(case, launch):
            yield from found
    yield from _script_of_a_shell(case)


def _missing_configs(case: Case, launch: Launch) -> Iterator[Finding]:
    for config, place in _configs(launch):
        if config.exists is False and not _named_before(case, launch, config.name):
            yield _config(case, launch, config, place)


def _script_of_a_shell(case: Case) -> Iterator[Finding]:
    """``bash run.sh`` as it is typed, where there is no such script."""
    for command in case.commands:
        name = (command.name or "").rsplit("/", 1)[-1]
        if command.source.kind != "command" or name not in {"bash", "sh", "zsh"} or len(command.words) < 2:
            continue
        path = command.words[1].value
        if command.wrappers or path is None or not path.endswith(".sh") or command.conditional:
            continue
        if case.workspace.kind(path, command.directory) == "missing":
            message = f"{path} does not exist in the working directory."
            yield report(RULE, message, command.locate(command.words[1].span), subject=path)


def _target(case: Case, launch: Launch) -> Iterator[Finding]:
    target = launch.target
    value, word = target.value, target.word
    if value is None or word is None or any(p.kind in _STOPPING for layer in launch.layers for p in layer.problems):
        return
    if target.kind == "script" and _is_dotted_module(value):
        if target.exists is not True:
            yield _without_switch(launch, value, word)
    elif target.exists is not False or _named_before(case, launch, value):
        return
    elif target.kind == "script" and not _belongs_to_another_rule(case, launch, value):
        message = f"{value} does not exist in {_where(launch)}."
        yield _report(case, launch, message, value, launch.command.locate(word.span), word)
    elif target.kind == "module":
        yield _module(case, launch, value, word)


def _belongs_to_another_rule(case: Case, launch: Launch, value: str) -> bool:
    """A command, an interpreter, a configuration or a shell script in the script's place has a rule of its own."""
    if value.endswith((".yaml", ".yml", ".json", ".sh", ".bash")) or value.startswith(
        ("-", "\u2013", "\u2014", "\u2212")
    ):
        return True
    if not value.strip() or value.lower() in {"true", "false", "yes", "no"}:
        # A blank behind a backslash: the script stands on the next line. Or a value behind a switch.
        return True
    if console_command(case, launch) is not None or _may_be_an_argument(launch, value):
        return True
    name = bare_command(case, launch)
    return name is not None and name.startswith("python")


def _may_be_an_argument(launch: Launch, value: str) -> bool:
    """Whether an expansion in front of it may be the script, so that this is the script's own argument."""
    if value.endswith(".py"):
        return False
    return any(word.splits and word.value is None for layer in launch.layers for word in layer.argument_words)


def _is_dotted_module(value: str) -> bool:
    parts = value.split(".")
    return len(parts) > 2 and not value.endswith(_FILE_ENDINGS) and all(part.isidentifier() for part in parts)


def _without_switch(launch: Launch, value: str, word: Word) -> Finding:
    layer = launch.layers[-1] if launch.layers else None
    switch = "--module" if layer is not None and layer.launcher == "deepspeed" else "-m"
    edits = (insert(launch.command.source, word.span.start, f"{switch} "),) if word.origin is None else ()
    return report(
        RULE,
        f"{value} is a module's name, but without {switch} it is taken for a file of that name.",
        launch.command.locate(word.span),
        fix=Fix(f"put {switch} in front of it", edits),
    )


def _module(case: Case, launch: Launch, value: str, word: Word) -> Finding:
    parent, _, name = value.rpartition(".")
    names = case.workspace.names(parent.replace(".", "/") or ".", launch.command.directory)
    known = () if isinstance(names, Unknown) else tuple(n.removesuffix(".py") for n in names if not n.startswith("_"))
    near = closest(name, known, 1)
    fix = None
    if near:
        better = f"{parent}.{near[0]}" if parent else near[0]
        fix = Fix(f"did you mean {better}?", replace_words(launch, word, word, better))
    return report(RULE, f"There is no module {value} to run.", launch.command.locate(word.span), fix=fix)


def _configs(launch: Launch) -> Iterator[tuple[ConfigFile, Location]]:
    """The configuration files that take part, with the place that names each."""
    for layer in launch.layers:
        option = layer.option("config_file")
        if layer.config is not None and option is not None and not layer.config_is_default:
            place = option.values[0].span if option.values else option.span
            yield layer.config, launch.command.locate(place)
    for config in launch.target.configs:
        yield config, _place(launch, config)


def _place(launch: Launch, config: ConfigFile) -> Location:
    for argument in launch.target.arguments:
        for word in argument.values:
            if word.value is not None and (word.value == config.name or config.name.endswith("/" + word.value)):
                return launch.command.locate(word.span)
    for other in launch.target.configs:
        for value in other.values.values():
            if isinstance(value.value, str) and value.value == config.name and other.source is not None:
                return Location(other.source, value.span)
    word = launch.target.word or launch.command.words[0]
    return launch.command.locate(word.span)


def _config(case: Case, launch: Launch, config: ConfigFile, place: Location) -> Finding:
    message = f"{config.name} does not exist in {_where(launch)}; it is read before anything else."
    return _report(case, launch, message, config.name, place, None)


def _report(case: Case, launch: Launch, message: str, path: str, place: Location, word: Word | None) -> Finding:
    near = _near(case, launch, path)
    fix = None
    if near:
        span = word.span if word is not None else place.span
        exact = place.source.slice(span) == path and (word is None or word.origin is None)
        edits = (replace(place.source, span, near[0]),) if exact else ()
        fix = Fix(f"did you mean {' or '.join(near)}?", edits)
    return report(RULE, message, place, subject=path, fix=fix)


def _near(case: Case, launch: Launch, path: str) -> tuple[str, ...]:
    """Existing files with nearly this name beside it, or with this very name one directory away."""
    directory, _, name = path.rpartition("/")
    beside = case.workspace.names(directory or ".", launch.command.directory)
    prefix = f"{directory}/" if directory else ""
    if not isinstance(beside, Unknown):
        near = _alike(name, beside)
        if near:
            return tuple(prefix + found for found in near)
    if isinstance(beside, Unknown) or directory:
        beside = case.workspace.names(".", launch.command.directory)
    if isinstance(beside, Unknown):
        return ()
    candidates = [name, *(f"{other}/{name}" for other in beside[:_MOST_DIRECTORIES] if "." not in other)]
    return tuple(
        found
        for found in candidates
        if found != path and case.workspace.kind(found, launch.command.directory) == "file"
    )[:2]


def _alike(name: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Names whose stem is the same, has the same letters in another order, or is nearly the same."""
    stem, _, ending = name.rpartition(".") if "." in name else (name, "", "")
    stems: dict[str, str] = {}
    for other in names:
        start, _, other_ending = other.rpartition(".") if "." in other else (other, "", "")
        same_kind = other_ending == ending or {ending, other_ending} <= {"yml", "yaml"} or not ending
        if same_kind:
            stems.setdefault(start, other)
    alike = [start for start in stems if sorted(start.lower()) == sorted(stem.lower())]
    return tuple(stems[start] for start in dict.fromkeys((*alike, *closest(stem, stems, 2))))[:2]


def _where(launch: Launch) -> str:
    directory = launch.command.directory
    return directory if isinstance(directory, str) and directory else "the working directory"


def _made_before(case: Case, launch: Launch) -> bool:
    """Whether an earlier command may bring any files."""
    return any((other.name or "").rsplit("/", 1)[-1] in _MAKERS for other in earlier_commands(case, launch))


def _named_before(case: Case, launch: Launch, path: str) -> bool:
    """Whether an earlier command may make this very file."""
    name = path.rsplit("/", 1)[-1]
    for other in earlier_commands(case, launch):
        if any(redirect.target is not None and name in redirect.target.shown for redirect in other.redirects):
            return True
        if (other.name or "").rsplit("/", 1)[-1] in _NAMERS and any(name in word.shown for word in other.words[1:]):
            return True
    return False
