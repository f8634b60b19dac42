"""A launcher's option stands behind the script and so never reaches the launcher."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.launch import command_name, is_switch, option_specs, stands_at, typed_layers
from mgpu_doctor.authoring import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Launch,
    Layer,
    OptionSpec,
    Program,
    Reference,
    Rule,
    Severity,
    Signature,
    Span,
    Word,
    delete_words,
    insert,
    pattern,
    report,
)

RULE = Rule(
    code="MGD107",
    slug="launcher-option-after-script",
    title="A launcher option stands behind the script",
    severity=Severity.ERROR,
    summary="An option of the launcher behind the script goes to the script; the launcher uses its default.",
    why=(
        "A launcher stops reading at the script: all that follows belongs to the script, even where it is spelt like "
        "the launcher's option. `torchrun train.py --nproc-per-node 8` starts one process; `accelerate launch train.py "
        "--config_file x.yaml` runs without that file. The launcher says nothing; at best the script refuses it."
    ),
    bad=(
        Example("torchrun starts one process", "torchrun train.py --nproc-per-node 8"),
        Example("the count", "accelerate launch train.py --num_processes 4 --lr 1e-4"),
        Example("over several lines", "torchrun \\\n    train.py \\\n    --nproc-per-node 8 \\\n    --lr 1e-4"),
        Example("at the end of several lines", "torchrun \\\n    train.py --lr 1e-4 \\\n    --nproc-per-node 8"),
        Example("behind a module", "torchrun -m pkg.train --nproc-per-node=8"),
        Example("several", "accelerate launch train.py --multi_gpu --num_processes=2"),
        Example("deepspeed's count", "deepspeed train.py --num_gpus 2"),
        Example("deepspeed's GPUs", "deepspeed train.py --include localhost:2,3 --lr 1e-4"),
        Example("the port", "accelerate launch --num_processes 2 train.py --main_process_port 29501"),
        Example(
            "the configuration file",
            "accelerate launch train.py --config_file acc.yaml",
            files={
                "acc.yaml": "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_processes: 2\n",
                "train.py": "import argparse\np = argparse.ArgumentParser()\np.add_argument('--lr')\np.parse_args()\n",
            },
        ),
        Example(
            "a program that does not take it",
            "torchrun --nproc_per_node 2 train.py --master_port 29501",
            files={
                "train.py": "import argparse\np = argparse.ArgumentParser()\np.add_argument('--lr')\np.parse_args()\n"
            },
        ),
    ),
    good=(
        Example("in its place", "torchrun --nproc-per-node 8 train.py --lr 1e-4"),
        Example("a name that both have", "accelerate launch --num_processes 2 train.py --mixed_precision bf16"),
        Example("the DeepSpeed configuration", "deepspeed train.py --deepspeed ds.json --local_rank 0"),
        Example(
            "the script declares it",
            "accelerate launch train.py --num_processes 4",
            files={"train.py": "import argparse\np = argparse.ArgumentParser()\np.add_argument('--num_processes')\n"},
        ),
        Example("the script's own file", "accelerate launch train.py --config_file configs/model.yaml"),
        Example("a pattern of the script's", "deepspeed train.py --include '*.txt'"),
        Example("given to both", "accelerate launch --num_processes 2 train.py --num_processes 8"),
        Example("a value of another option", "torchrun --nproc_per_node 2 train.py --note '--nnodes is 1'"),
    ),
    sources=(
        Reference(
            "torch 2.13.0, accelerate 1.15.0, deepspeed 0.19.8",
            "torchrun s.py --nproc-per-node 2; accelerate launch s.py --multi_gpu --num_processes 2; deepspeed s.py "
            "--num_gpus 2: one process each, the options went to the script",
            ran=True,
        ),
        Reference("torch 2.13.0, distributed/run.py get_args_parser()", "training_script_args: nargs=REMAINDER"),
    ),
    fix="move the option in front of the script",
    fixable=True,
    signatures=(
        Signature(
            r"^(?!run\.py|launch\.py|runner\.py)\S+\.py: error: unrecognized arguments: .*--(?:nproc[-_]per[-_]node"
            r"|nnodes|num[-_]processes|num[-_]machines|multi[-_]gpu|num_gpus|num_nodes|config_file|rdzv[-_]endpoint"
            r"|main_process_port|master[-_]port|node[-_]rank|machine_rank)",
            "Python 3.11, argparse in the script, behind accelerate 1.7.0, torchrun and deepspeed",
            "train.py: error: unrecognized arguments: --num_processes 2",
        ),
    ),
)

_SURE = {
    "accelerate": frozenset(
        {
            "num_processes",
            "num_machines",
            "machine_rank",
            "main_process_ip",
            "main_process_port",
            "multi_gpu",
            "deepspeed_hostfile",
            "deepspeed_multinode_launcher",
            "num_cpu_threads_per_process",
        }
    ),
    "deepspeed": frozenset({"num_gpus", "num_nodes", "hostfile", "no_local_rank", "force_multi"}),
    "torch": frozenset({"nproc_per_node", "nnodes", "standalone", "rdzv_backend", "rdzv_endpoint", "rdzv_id"}),
}
"""Nobody means anything else by these than the launcher's."""

_LIKELY = {
    "accelerate": frozenset({"gpu_ids", "use_deepspeed", "use_fsdp", "deepspeed_config_file", "same_network"}),
    "deepspeed": frozenset({"include", "exclude", "master_port", "master_addr", "launcher"}),
    "torch": frozenset({"node_rank", "master_addr", "master_port", "max_restarts", "rdzv_conf"}),
}
"""Programs have options of these names too: only reported when the program is seen not to take them."""

_HOST_FILTER = pattern(r"(^|=)[\w.-]+:\d+(,\d+)*(@|$)")
"""deepspeed's own way to name GPUs: ``localhost:0,1``."""

_OTHER_PARSERS = (
    "fire",
    "typer",
    "click",
    "hydra",
    "tyro",
    "absl",
    "jsonargparse",
    "simple_parsing",
    "draccus",
    "omegaconf",
    "yacs",
)


def find(case: Case) -> Iterator[Finding]:
    """Launcher options among the script's arguments."""
    for launch in case.launches:
        layers = typed_layers(launch)
        if _is_no_script(launch.target.value):
            continue
        if not layers or layers[-1] is not _innermost(launch) or launch.target.kind not in {"script", "module"}:
            continue
        yield from _behind(case, launch, layers[-1])


def _is_no_script(value: str | None) -> bool:
    """Whether a stray word stands where the script is looked for: a value behind a switch, or a typographic dash."""
    return value is not None and (value.lower() in {"true", "false"} or value[:1] in {"\u2013", "\u2014", "\u2212"})


def _innermost(launch: Launch) -> Layer | None:
    own = [layer for layer in launch.layers if layer.launcher != "python"]
    return own[-1] if own else None


def _behind(case: Case, launch: Launch, layer: Layer) -> Iterator[Finding]:
    by_flag = {flag: spec for spec in option_specs(case, layer) for flag in spec.flags if flag.startswith("--")}
    words = launch.target.argument_words
    for index, word in enumerate(words):
        if word.value == "--":
            return
        text = word.value if word.value is not None else word.known_prefix
        flag, equals, _value = text.partition("=")
        spec = by_flag.get(flag)
        if spec is None or (word.value is None and not equals):
            continue
        value = None if equals or is_switch(spec) or index + 1 >= len(words) else words[index + 1]
        if layer.option(spec.dest) is None and _is_misplaced(case, launch, layer, spec, flag, value or word):
            yield _finding(launch, layer, flag, word, value)


def _is_misplaced(case: Case, launch: Launch, layer: Layer, spec: OptionSpec, flag: str, value: Word) -> bool:
    family = "torch" if layer.launcher not in _SURE else layer.launcher
    taken = _takes(launch.target.program, flag)
    if taken is True:
        return False
    if spec.dest in _SURE[family]:
        return True
    if spec.dest in ("include", "exclude") and _HOST_FILTER.search(value.value or ""):
        return True
    if layer.launcher == "accelerate" and spec.dest == "config_file":
        return taken is False or _is_accelerate_config(case, launch, value)
    return taken is False and spec.dest in _LIKELY[family]


def _takes(program: object, flag: str) -> bool | None:
    """Whether a program declares an option; None when its text does not tell."""
    if not isinstance(program, Program):
        return None
    wanted = flag.lstrip("-").replace("-", "_")
    if any(known.lstrip("-").replace("-", "_") == wanted for option in program.options for known in option.flags):
        return True
    if program.imports_any(*_OTHER_PARSERS):
        return True
    return False if program.options and program.strict_options else None


def _is_accelerate_config(case: Case, launch: Launch, value: Word) -> bool:
    text = value.value
    if text is None:
        return False
    path = text.partition("=")[2] if text.startswith("--") else text
    config = case.workspace.config(path, "accelerate", launch.command.directory)
    return config.exists is True and config.has("distributed_type")


def _finding(launch: Launch, layer: Layer, flag: str, word: Word, value: Word | None) -> Finding:
    end = value.span.end if value is not None else word.span.end
    span = Span(word.span.start, max(end, word.span.end))
    script = launch.target.value or "the script"
    return report(
        RULE,
        f"{flag} stands behind {script}: {command_name(layer)} never sees it and uses its default; {script} gets it.",
        launch.command.locate(span),
        fix=Fix(f"move {flag} in front of {script}", _move(launch, layer, span, flag)),
    )


def _move(launch: Launch, layer: Layer, span: Span, flag: str) -> tuple[Edit, ...]:
    source = launch.command.source
    text = source.slice(span)
    if not stands_at(launch, span, flag) or "\n" in text:
        return ()
    return (insert(source, layer.span.end, " " + text), delete_words(source, span))
