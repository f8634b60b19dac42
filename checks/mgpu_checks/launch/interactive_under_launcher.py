"""A chat, a server or an export is started once per rank: the copies compete for terminal, port or files."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.launch import (
    SERVERS,
    is_interactive_command,
    remove_before,
    replace_words,
    runs_as_ranks,
    script_name,
    several_processes,
    typed_rank_layers,
)
from mgpu_doctor.authoring import (
    Case,
    Edit,
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
    report,
)

_CHAT = "while True:\n    print(answer(input('> ')))\n"
_SERVER = "import uvicorn\n\nuvicorn.run('app:app', port=8000)\n"

RULE = Rule(
    code="MGD102",
    slug="interactive-under-launcher",
    title="A chat or server is started by a launcher of ranks",
    severity=Severity.ERROR,
    summary="A program that talks to a person or serves requests is started once for every rank.",
    why=(
        "accelerate, torchrun and deepspeed start one copy of the program for each GPU. Two chats read from one "
        "terminal and each gets half of what is typed; two servers want one port and the second fails; and with "
        '`device_map="auto"` every copy spreads its model over every GPU. Such a program wants one process that sees '
        "all the GPUs: start it without a launcher, with the same visible devices."
    ),
    bad=(
        Example("a server's command", "accelerate launch --num_processes 2 vllm serve m"),
        Example(
            "LLaMA-Factory's web page by its script",
            "torchrun --nproc_per_node 2 src/webui.py",
            files={
                "src/webui.py": "from llamafactory.webui.interface import create_ui\ncreate_ui().queue().launch()\n"
            },
        ),
        Example("a notebook server", "torchrun --nproc_per_node 2 jupyter lab"),
        Example(
            "an export by its script",
            "accelerate launch --num_processes 2 src/export_model.py --export_dir out",
            files={"src/export_model.py": "from llamafactory.train.tuner import export_model\nexport_model()\n"},
        ),
        Example("a chat under accelerate", "accelerate launch --num_processes 4 llamafactory-cli chat chat.yaml"),
        Example("the command's module", "torchrun --nproc_per_node 2 -m llamafactory.cli api api.yaml"),
        Example("export by every rank", "accelerate launch --multi_gpu -m llamafactory.cli export merge.yaml"),
        Example(
            "the project's own chat",
            "accelerate launch --num_processes 2 chat.py --model m",
            files={"chat.py": _CHAT},
        ),
        Example(
            "a web server",
            "torchrun --nproc_per_node 4 serve.py",
            files={"serve.py": _SERVER},
            facts=None,
        ),
        Example("a known server module", "torchrun --nproc_per_node 4 -m vllm.entrypoints.openai.api_server --model m"),
        Example(
            "the devices are the launcher's option",
            "accelerate launch --multi_gpu --num_processes 2 --gpu_ids 4,5 chat.py",
            files={"chat.py": _CHAT},
        ),
    ),
    good=(
        Example("without a launcher", "CUDA_VISIBLE_DEVICES=4,5 llamafactory-cli chat chat.yaml"),
        Example("one process", "torchrun --nproc_per_node 1 chat.py", files={"chat.py": _CHAT}),
        Example("training under a launcher", "accelerate launch -m llamafactory.launcher train.yaml"),
        Example(
            "a chat made for ranks",
            "torchrun --nproc_per_node 2 chat.py",
            files={"chat.py": "import torch.distributed as dist\ndist.init_process_group('nccl')\n" + _CHAT},
        ),
        Example(
            "it talks only when asked to",
            "torchrun --nproc_per_node 2 eval.py",
            files={"eval.py": "if args.talk:\n    while True:\n        input()\n"},
        ),
    ),
    sources=(
        Reference(
            "llamafactory 0.9.5, two ranks of llamafactory-cli chat",
            "two REPLs on one terminal, each with device_map auto over all GPUs",
            ran=True,
        ),
        Reference(
            "llamafactory 0.9.3, cli.py main(); 0.9.5, launcher.py launch()",
            "only `train` is handed to torchrun; chat, api, webchat and export run in one process",
        ),
    ),
    fix="Start it without the launcher",
    fixable=True,
    signatures=(
        Signature(
            r"EOFError: EOF when reading a line",
            "Python 3.11, input() in each rank of torchrun (torch 2.13.0) without a terminal",
            "EOFError: EOF when reading a line",
            weak=True,
        ),
    ),
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each launch that starts several copies of something interactive."""
    for launch in case.launches:
        layers = typed_rank_layers(launch)
        if not layers or not several_processes(launch):
            continue
        what = _what(launch)
        if what is not None:
            yield _report(launch, layers[0], what)


def _what(launch: Launch) -> str | None:
    """What each copy would be doing, None when it is nothing of this kind."""
    target = launch.target
    if target.subcommand == "export" and target.framework == "llamafactory":
        return "each loads the model and writes the same files"
    if is_interactive_command(launch) or (target.kind == "command" and target.interactive is True):
        return _competition(launch)
    if not isinstance(target.program, Unknown) and target.program.first("export-model") is not None:
        return "each loads the model and writes the same files"
    if target.interactive is not True or runs_as_ranks(target.program):
        return None
    return _competition(launch)


def _competition(launch: Launch) -> str:
    target = launch.target
    given = target.subcommand or (target.argument_words[0].value if target.argument_words else None)
    serves = (
        launch.purpose.known == "serve"
        or script_name(launch) in SERVERS
        or given in {"api", "webui", "webchat", "serve", "deploy"}
    )
    if not isinstance(target.program, Unknown):
        serves = target.program.first("server") is not None
    return "each wants the same port" if serves else "all read from the same terminal"


def _report(launch: Launch, layer: Layer, what: str) -> Finding:
    target = launch.target
    count = launch.world_size.known
    copies = f"{count} copies" if count is not None else "one copy for every GPU"
    name = " ".join(part for part in (target.value, target.subcommand) if part)
    word = target.subcommand_word or target.word or layer.command_words[0]
    return report(
        RULE,
        f"{layer.launcher} starts {copies} of {name or 'a program that talks or serves'}: {what}.",
        launch.command.locate(word.span),
        evidence=_evidence(launch),
        fix=_fix(launch, layer),
    )


def _evidence(launch: Launch) -> tuple[str, ...]:
    program = launch.target.program
    if isinstance(program, Unknown):
        return ()
    seen = program.first("server", "input-loop")
    return () if seen is None else (f"{program.locate(seen)}: {seen.detail}",)


def _fix(launch: Launch, layer: Layer) -> Fix:
    edits = _edits(launch, layer)
    return Fix("start it without the launcher, in one process that sees the same GPUs", edits)


def _edits(launch: Launch, layer: Layer) -> tuple[Edit, ...]:
    target, first = launch.target, layer.command_words[0]
    if target.word is None:
        return ()
    devices = _devices(launch)
    inner = launch.layer("llamafactory-cli")
    if inner is not None:
        last = inner.command_words[-1]
        if last.value is not None and "/" in last.value:
            return remove_before(launch, first, last, devices)
        return replace_words(launch, first, last, f"{devices}llamafactory-cli")
    if target.kind == "module":
        return remove_before(launch, first, target.word, f"{devices}{_python(layer)} -m ")
    if target.kind == "script" and not is_interactive_command(launch):
        return remove_before(launch, first, target.word, f"{devices}{_python(layer)} ")
    return remove_before(launch, first, target.word, devices)


def _python(layer: Layer) -> str:
    """The interpreter that the command names, ``python`` when it names none."""
    first = layer.command_words[0].value or ""
    return first if first.rsplit("/", 1)[-1].startswith("python") else "python"


def _devices(launch: Launch) -> str:
    """An assignment that keeps the GPUs that the launcher's options chose."""
    chosen, before = launch.visible.known, launch.visible_before.known
    if chosen is None or chosen.all or not chosen.entries or launch.visible.origin.kind not in {"option", "config"}:
        return ""
    if before is not None and before.entries == chosen.entries and not before.all:
        return ""
    text = f"CUDA_VISIBLE_DEVICES={','.join(chosen.entries)} "
    return f"env {text}" if launch.command.wrappers else text
