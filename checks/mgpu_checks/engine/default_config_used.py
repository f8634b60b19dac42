"""No ``--config_file``: the configuration file in the user's cache decides what accelerate starts."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_doctor.authoring import (
    Case,
    ConfigFile,
    Evidence,
    Example,
    Finding,
    Fix,
    Layer,
    Reference,
    Rule,
    Severity,
    report,
)

_DECISIVE = (
    "distributed_type",
    "num_processes",
    "num_machines",
    "machine_rank",
    "main_process_ip",
    "main_process_port",
    "gpu_ids",
    "mixed_precision",
    "use_cpu",
)
_TWO = "distributed_type: MULTI_GPU\nmixed_precision: bf16\nnum_machines: 1\nnum_processes: 2\ngpu_ids: 0,1\n"

RULE = Rule(
    code="MGD602",
    slug="default-config-used",
    title="The user's default accelerate configuration decides",
    severity=Severity.ADVICE,
    summary="without `--config_file`, accelerate reads `default_config.yaml` from the user's cache",
    why=(
        "`accelerate launch` without `--config_file` silently reads the file that `accelerate config` once wrote to "
        "the Hugging Face cache. It decides the number of processes, the GPUs and the precision, so the same command "
        "does something else for another user or on another machine. Name the file, or give the options."
    ),
    bad=(
        Example(
            "a default file with two processes",
            "accelerate launch train.py",
            files={"train.py": "import accelerate\n"},
            facts={"accelerate_default_config": _TWO},
        ),
    ),
    good=(
        Example(
            "the file is named",
            "accelerate launch --config_file two.yaml train.py",
            files={"two.yaml": _TWO, "train.py": "import accelerate\n"},
            facts={"accelerate_default_config": _TWO},
        ),
        Example(
            "--cpu: the default file is not read",
            "accelerate launch --cpu train.py",
            files={"train.py": "import accelerate\n"},
            facts={"accelerate_default_config": _TWO},
        ),
        Example("there is no default file", "accelerate launch train.py", files={"train.py": "import accelerate\n"}),
    ),
    sources=(
        Reference(
            "accelerate 0.20.3, 1.0.1, 1.7.0, 1.15.0, commands/launch.py _validate_launch_command()",
            "`args.config_file is not None or os.path.isfile(default_config_file) and not args.cpu`: the default file "
            "is loaded when it exists",
        ),
        Reference(
            "accelerate 1.7.0, commands/config/config_args.py",
            "default_config.yaml lies in $HF_HOME/accelerate (~/.cache/huggingface/accelerate)",
        ),
    ),
    fix="Give `--config_file`, or the options themselves",
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each accelerate launch whose default file takes part."""
    for launch in case.launches:
        layer = launch.layer("accelerate")
        if layer is None or layer.config is None or not layer.config_is_default or layer.option("cpu") is not None:
            continue
        lines = tuple(_lines(layer, layer.config))
        if not lines:
            continue
        said = ", ".join(line.text for line in lines)
        yield report(
            RULE,
            f"no --config_file: {layer.config.name} decides ({said})",
            launch.command.locate(layer.span),
            evidence=lines,
            fix=Fix(f"Name the file that is meant: --config_file {layer.config.name}"),
        )


def _lines(layer: Layer, config: ConfigFile) -> Iterator[Evidence]:
    """The file's entries that decide, without those that the command overrides."""
    for name in _DECISIVE:
        if config.get(name) is not None and layer.option(name) is None:
            yield Evidence(f"{name}: {config.get(name)}", config.locate(name))
