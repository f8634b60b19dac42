"""The launcher on PATH belongs to another Python than the environment that holds torch and the framework."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mgpu_doctor.authoring import (
    Case,
    Evidence,
    Example,
    Finding,
    Fix,
    Launch,
    Layer,
    Reference,
    Rule,
    Severity,
    Unknown,
    report,
)

_MODULES = {
    "accelerate": "accelerate.commands.launch",
    "torchrun": "torch.distributed.run",
    "deepspeed": "deepspeed.launcher.runner",
    "llamafactory-cli": "llamafactory.cli",
}
_OTHER = {
    "which": {"torchrun": "/home/me/.local/bin/torchrun", "python": "/opt/env/bin/python"},
    "shebangs": {"/home/me/.local/bin/torchrun": "#!/usr/bin/python3"},
    "python": {"executable": "/opt/env/bin/python", "prefix": "/opt/env"},
}

RULE = Rule(
    code="MGD112",
    slug="launcher-from-other-environment",
    title="The launcher belongs to another environment",
    severity=Severity.ERROR,
    summary="the launcher that PATH finds starts another interpreter than the environment's",
    why=(
        "A launcher is a small script whose first line names its interpreter, and it starts every worker with that "
        "one. "
        "When PATH finds a copy in the user's ~/.local/bin or of a system module first, the workers import other "
        "packages: 'No module named …', or another torch than the one that was tested. `python -m` in front of the "
        "launcher's module takes the interpreter of the active environment."
    ),
    bad=(
        Example(
            "torchrun of the user's own site",
            "torchrun --nproc-per-node 4 train.py",
            files={"train.py": "import torch\n"},
            facts=_OTHER,
        ),
        Example(
            "the torchrun that llamafactory-cli starts",
            "llamafactory-cli train sft.yaml",
            files={"sft.yaml": "model_name_or_path: local/model\nstage: sft\noutput_dir: out\n"},
            facts={
                **_OTHER,
                "which": {
                    "torchrun": "/home/me/.local/bin/torchrun",
                    "llamafactory-cli": "/opt/env/bin/llamafactory-cli",
                },
            },
        ),
    ),
    good=(
        Example(
            "the environment's own",
            "torchrun --nproc-per-node 4 train.py",
            files={"train.py": "import torch\n"},
            facts={
                **_OTHER,
                "which": {"torchrun": "/opt/env/bin/torchrun"},
                "shebangs": {"/opt/env/bin/torchrun": "#!/opt/env/bin/python3.11"},
            },
        ),
        Example(
            "a link elsewhere that starts the environment's interpreter",
            "torchrun --nproc-per-node 4 train.py",
            files={"train.py": "import torch\n"},
            facts={
                **_OTHER,
                "which": {"torchrun": "/usr/local/bin/torchrun"},
                "shebangs": {"/usr/local/bin/torchrun": "#!/opt/env/bin/python"},
            },
        ),
        Example(
            "python -m takes the active interpreter",
            "python -m torch.distributed.run --nproc-per-node 4 train.py",
            files={"train.py": "import torch\n"},
            facts=_OTHER,
        ),
        Example(
            "the first line is not known",
            "torchrun --nproc-per-node 4 train.py",
            files={"train.py": "import torch\n"},
            facts={"which": {"torchrun": "/usr/bin/torchrun"}, "python": {"prefix": "/opt/env"}},
        ),
    ),
    sources=(
        Reference(
            "torch 2.13.0, distributed/run.py config_from_args(); accelerate 1.7.0, utils/launch.py; deepspeed 0.16.9, "
            "launcher/launch.py",
            "workers are started with sys.executable, the launcher's own interpreter",
        ),
        Reference(
            "llamafactory 0.9.3 cli.py, 0.9.5 launcher.py",
            "subprocess.run('torchrun …'.split()): the torchrun that PATH finds",
        ),
    ),
    fix="Start the launcher's module with the environment's interpreter",
)


def find(case: Case) -> Iterator[Finding]:
    """One finding for each launcher whose interpreter lies outside the environment."""
    if case.mode == "lint" or isinstance(case.facts.which, Unknown) or isinstance(case.facts.python.prefix, Unknown):
        return
    for launch in case.launches:
        if launch.command.variable("PATH") is not None:
            continue
        for layer in launch.layers:
            finding = _judge(case, launch, layer, str(case.facts.python.prefix))
            if finding is not None:
                yield finding


def _judge(case: Case, launch: Launch, layer: Layer, prefix: str) -> Finding | None:
    which, shebangs = case.facts.which, case.facts.shebangs
    if isinstance(which, Unknown) or layer.launcher not in _MODULES:
        return None
    name = layer.launcher
    if not layer.implied:
        typed = layer.command_words[0].value if layer.command_words else None
        if typed != name:
            return None
    path = which.get(name)
    line = None if isinstance(shebangs, Unknown) or path is None else shebangs.get(path)
    interpreter = _interpreter(line)
    if (
        path is None
        or interpreter is None
        or _inside(interpreter, prefix)
        or interpreter == case.facts.python.executable
    ):
        return None
    module = _MODULES[name]
    start = (
        f"llamafactory-cli starts the {name} that PATH finds, and that" if layer.implied else f"{name} is {path} and"
    )
    return report(
        RULE,
        f"{start} uses {interpreter}, not the interpreter of {prefix}: its workers import other packages",
        launch.command.locate(layer.span),
        evidence=[Evidence(f"{path}: {line}")],
        fix=Fix(f"Put {prefix}/bin first on PATH, or start python -m {module}"),
    )


def _interpreter(line: str | None) -> str | None:
    """The interpreter's path in a first line; None when it is looked up on PATH or cannot be read."""
    found = re.match(r"#!\s*(/\S+)", line or "")
    if found is None or found.group(1).endswith(("/env", "/sh", "/bash")):
        return None
    return found.group(1)


def _inside(path: str, prefix: str) -> bool:
    return path.startswith(prefix.rstrip("/") + "/")
